//! Security labels: where a host has them, what is published gets the one that its path has by default.

use std::os::unix::fs::PermissionsExt;

use crate::MIB;
use crate::lab::{Disk, Host, Lab, Vm};

const TOOLS: &str = "/srv/tools";
const LABELLED: &str = "/srv/labelled";

/// No kernel of tests has such labels: the host's tools say that it has, and write down what they are asked for.
fn put_tools(host: &Host, status: u8) {
    std::fs::create_dir_all(host.path(TOOLS)).unwrap();
    let put = |name: &str, script: &str| {
        let path = host.path(format!("{TOOLS}/{name}"));
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    put("selinuxenabled", "exit 0");
    put("restorecon", &format!("echo \"$*\" >>{LABELLED}\necho no such label >&2\nexit {status}"));
}

#[test]
fn what_is_published_gets_its_default_label_where_the_host_has_labels() {
    let lab = Lab::up();
    lab.a().define(&Vm::new("web").disk(Disk::raw(MIB)).disk(Disk::qcow2(MIB)));
    put_tools(lab.b(), 0);
    lab.b().run(["mount", "--bind", TOOLS, "/usr/local/sbin"]);
    let labelled = || std::fs::read_to_string(lab.b().path(LABELLED)).unwrap();
    let finished = lab.controller().run(["run", "a", "b", "web"]).expect(0);
    assert!(!finished.stderr.contains("label"), "{}", finished.stderr);
    let images = "/var/lib/libvirt/images";
    assert_eq!(labelled(), format!("-- {images}/web_clone-vda.img\n-- {images}/web_clone-vdb.qcow2\n"));
    // A label that cannot be given is told, and keeps no clone from its end.
    put_tools(lab.b(), 1);
    let finished = lab.controller().run(["run", "a", "b", "web", "--new-name", "other"]).expect(0);
    assert!(
        finished.stderr.contains("other-vda.img") && finished.stderr.contains("no such label"),
        "{}",
        finished.stderr
    );
}
