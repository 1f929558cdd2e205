//! VMs that a test defines: a name, disks, and whatever else the test puts into the definition.

use std::fmt::Write;
use std::path::Path;

use super::Host;
use super::image::{self, Content, Format};

/// A disk of a VM, with the image that is made for it.
#[derive(Debug, Clone)]
pub struct Disk {
    format: Format,
    bytes: u64,
    content: Content,
    seed: u64,
    path: Option<String>,
}

impl Disk {
    /// A raw disk with mixed content.
    pub fn raw(bytes: u64) -> Self {
        Self { format: Format::Raw, bytes, content: Content::Mixed, seed: 1, path: None }
    }

    /// A qcow2 disk with mixed content.
    pub fn qcow2(bytes: u64) -> Self {
        Self { format: Format::Qcow2, ..Self::raw(bytes) }
    }

    /// With other content.
    #[must_use]
    pub fn content(mut self, content: Content) -> Self {
        self.content = content;
        self
    }

    /// From another seed.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// At another place than `/var/lib/libvirt/images/<vm>-<number>.<format>`. Its directory is made.
    #[must_use]
    pub fn at(mut self, path: &str) -> Self {
        self.path = Some(path.to_owned());
        self
    }

    /// Where the image is on its host. Known once the disk is part of a VM.
    pub fn path(&self) -> &str {
        self.path.as_deref().expect("the disk is part of a VM")
    }

    /// Makes its image on a host.
    pub fn make_on(&self, host: &Host) {
        self.make(&host.path(self.path()));
    }

    pub(super) fn make(&self, to: &Path) {
        std::fs::create_dir_all(to.parent().expect("an image is in a directory")).expect("make the image's directory");
        image::make(to, self.format, self.bytes, self.content, self.seed);
    }
}

/// A VM to be defined.
#[derive(Debug, Clone)]
pub struct Vm {
    name: String,
    disks: Vec<Disk>,
    devices: String,
    top_level: String,
    uefi: bool,
}

impl Vm {
    /// A VM without disks, with one interface on the network `default`.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), disks: Vec::new(), devices: String::new(), top_level: String::new(), uefi: false }
    }

    /// With one more disk. Disks are `vda`, `vdb`, … in this order.
    #[must_use]
    pub fn disk(mut self, mut disk: Disk) -> Self {
        if disk.path.is_none() {
            disk.path = Some(format!("/var/lib/libvirt/images/{}-{}.{}", self.name, self.disks.len(), disk.format));
        }
        self.disks.push(disk);
        self
    }

    /// With UEFI, which libvirt chooses, and an emulated TPM.
    #[must_use]
    pub fn uefi_and_tpm(mut self) -> Self {
        self.uefi = true;
        self.device("<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>")
    }

    /// With more in its `<devices>`.
    #[must_use]
    pub fn device(mut self, xml: &str) -> Self {
        self.devices.push_str(xml);
        self
    }

    /// With more directly in its `<domain>`.
    #[must_use]
    pub fn element(mut self, xml: &str) -> Self {
        self.top_level.push_str(xml);
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its disks.
    pub fn disks(&self) -> &[Disk] {
        &self.disks
    }

    /// Its definition.
    pub fn definition(&self) -> String {
        let mut disks = String::new();
        for (disk, letter) in self.disks.iter().zip('a'..='z') {
            write!(
                disks,
                "<disk type='file' device='disk'><driver name='qemu' type='{}'/><source file='{}'/>\
                 <target dev='vd{letter}' bus='virtio'/></disk>",
                disk.format,
                disk.path()
            )
            .expect("write to a string");
        }
        format!(
            "<domain type='qemu'><name>{}</name><memory unit='MiB'>128</memory><vcpu>1</vcpu>\
             {}<features><acpi/></features>{}\
             <devices>{disks}<interface type='network'><source network='default'/><model type='virtio'/></interface>\
             <serial type='pty'/><memballoon model='none'/>{}</devices></domain>",
            self.name,
            if self.uefi {
                // Without secure boot, which needs a machine that emulates it slowly.
                "<os firmware='efi'><firmware><feature enabled='no' name='secure-boot'/></firmware>\
                 <type arch='x86_64' machine='q35'>hvm</type></os>"
            } else {
                "<os><type arch='x86_64' machine='pc'>hvm</type></os>"
            },
            self.top_level,
            self.devices
        )
    }
}
