//! Any bytes as a host's address and the ssh configuration that says how it is reached.

#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

include!("../bodies/ssh_config.rs");

static HOME: LazyLock<PathBuf> = LazyLock::new(|| {
    let home = std::env::temp_dir().join(format!("kvm-clone-fuzz-ssh-{}", std::process::id()));
    std::fs::create_dir_all(home.join(".ssh")).expect("a directory for the configuration");
    home
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| read_ssh_config(data, &HOME));
