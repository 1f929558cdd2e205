//! The old VM of a scene: a guest of the clone's name on the destination, with two disks and firmware variables of its own, which
//! its definition does not name, and what the plan says of it.

use journal_format::{
    CleanUpStepV1, DirectoryV1, DomainUuid, FileStampV1, ImageRoleV1, OldFileFateV1, OldFileV1, ReplacedV1, StopModeV1,
    TxnId,
};

use crate::content::Content;
use crate::machine::Machine;
use crate::scene::{CLONE_NAME, IMAGES, NVRAM, SECOND, definition, staged_in};
use crate::seed::Seed;

/// What the old VM of a scene is, and what may be done to it.
#[derive(Debug, Clone, Copy)]
pub struct OldVm {
    pub running: bool,
    /// Its guest does not listen when it is asked to shut down.
    pub deaf: bool,
    pub autostart: bool,
    pub stop: StopModeV1,
    pub keep: bool,
}

impl OldVm {
    /// It runs, and is asked to shut down.
    pub fn running() -> Self {
        Self { running: true, deaf: false, autostart: true, stop: StopModeV1::Shutdown, keep: false }
    }

    pub fn random(seed: &mut Seed) -> Self {
        let running = seed.chance(70);
        let mut modes = vec![StopModeV1::Shutdown, StopModeV1::Save, StopModeV1::Destroy];
        modes.extend((!running).then_some(StopModeV1::Never));
        Self {
            running,
            deaf: seed.chance(30),
            autostart: seed.chance(40),
            stop: *seed.pick(&modes),
            keep: seed.chance(25),
        }
    }
}

/// Its disks' files.
pub fn paths() -> [String; 2] {
    [format!("{IMAGES}/{CLONE_NAME}-old.img"), format!("{SECOND}/{CLONE_NAME}-old.img")]
}

/// Its firmware variables under a name.
pub fn variables(name: &str) -> String {
    format!("{NVRAM}/{name}_VARS.fd")
}

/// Puts it onto the destination.
pub fn put(shape: OldVm, destination: &mut Machine, uuid: DomainUuid, seed: &mut Seed) -> String {
    for path in paths().into_iter().chain([variables(CLONE_NAME)]) {
        let mut bytes = vec![0; 9000];
        seed.fill(&mut bytes);
        destination.files.make_file(&path, 0o600, Content::of(&bytes)).unwrap();
    }
    let [first, second] = paths();
    let text = definition(CLONE_NAME, uuid, &[("vda", "raw", &first), ("vdb", "raw", &second)]);
    let text = text.replace("<os>", "<os firmware='efi'>");
    destination.libvirt.define(&mut destination.files, &text).unwrap();
    destination.libvirt.set_autostart(&mut destination.files, uuid, shape.autostart).unwrap();
    if shape.deaf {
        destination.libvirt.deaf.insert(uuid);
    }
    if shape.running {
        destination.start(uuid).unwrap();
    }
    text
}

/// What the plan says of it. A directory that the clone does not use is added for the nonce beside its files.
pub fn planned(
    shape: OldVm,
    destination: &Machine,
    (uuid, text): (DomainUuid, String),
    txn: TxnId,
    directories: &mut Vec<DirectoryV1>,
    seed: &mut Seed,
) -> ReplacedV1 {
    let mut files = Vec::new();
    let disks = paths().into_iter().zip(["vda", "vdb"]);
    let disks = disks.map(|(path, target)| (path, ImageRoleV1::Disk { target: target.to_owned() }));
    for (path, role) in disks.chain([(variables(CLONE_NAME), ImageRoleV1::Nvram)]) {
        let stat = destination.files.stat(&path).unwrap();
        let parent = crate::filesystem::split(&path).0;
        let directory = staged_in(parent, txn, destination, directories, seed);
        let fate = if shape.keep {
            OldFileFateV1::Left { why: "the old VM is kept".to_owned() }
        } else {
            OldFileFateV1::Deleted { directory }
        };
        let stamp = FileStampV1 { inode: stat.inode, size: stat.size, mtime_ns: stat.mtime_ns };
        files.push(OldFileV1 { role, path: path.clone(), stamp, fate });
    }
    ReplacedV1 {
        uuid,
        definition: text,
        running: shape.running,
        stop: shape.stop,
        keep: shape.keep,
        clone_name: format!("{CLONE_NAME}.new-{txn}"),
        kept_name: format!("{CLONE_NAME}.replaced-{}", txn.short()),
        saved_path: format!("{}/old-vm.save", directories[0].staging),
        files,
    }
}

/// The clean-up steps that the old VM adds: those before the clone is finished, and those after.
pub fn clean_up(shape: OldVm) -> (Vec<CleanUpStepV1>, Vec<CleanUpStepV1>) {
    let deleted = if shape.keep { 0..0 } else { 0..u32::try_from(paths().len() + 1).unwrap() };
    let after = deleted.map(|file| CleanUpStepV1::DeleteOldFile { file }).collect();
    (vec![CleanUpStepV1::RetireOldVm, CleanUpStepV1::RenameClone], after)
}
