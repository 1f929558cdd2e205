//! `--overwrite-device`: can these block devices take the disks that go onto them? Nothing of theirs comes back once it is
//! written over, so whatever anybody might still need them for is a refusal.

use journal_format::{ControllerId, ImageFormat, ImageRoleV1};

use super::{BlockerKind, Report, WarningKind};
use crate::report::quantity::bytes;
use crate::request::Request;
use crate::survey::placement::device_of;
use crate::survey::{SourceFile, Survey, TargetDevice};
use crate::world::DeviceFacts;

pub(super) fn check(report: &mut Report, request: &Request, survey: &Survey, controller: &ControllerId) {
    let mapped = || survey.source.files.iter().filter_map(|file| Some((file, device_of(request, file)?)));
    for (file, typed) in mapped() {
        let Some(target) = survey.destination.devices.get(typed) else { continue };
        let before = report.blockers.len();
        check_disk(report, survey, file, typed);
        check_device(report, survey, file, target);
        check_claim(report, survey, target, controller);
        let twin = mapped().find(|(other, also)| {
            let theirs = survey.destination.devices.get(*also).map(|device| &device.path);
            other.role != file.role && theirs == Some(&target.path)
        });
        if let Some((other, also)) = twin {
            let what = format!("{typed} and {also}, for {} and {}, are one device", file.what(), other.what());
            block(report, survey, &what, "Give each disk a device of its own.");
        }
        if let (true, Some(facts)) = (report.blockers.len() == before, &target.facts) {
            warn(report, survey, file, (typed, target), facts);
        }
    }
}

fn block(report: &mut Report, survey: &Survey, what: &str, advice: &str) {
    let host = survey.destination.name.as_str();
    report.block(BlockerKind::Device, host, format!("{host}: {what}."), advice);
}

/// What of a disk does not go onto a device.
fn check_disk(report: &mut Report, survey: &Survey, file: &SourceFile, typed: &str) {
    let what = file.what();
    if !matches!(file.role, ImageRoleV1::Disk { .. }) {
        let told = format!("{what}: only a disk of the VM's own goes onto a device, and {typed} is one");
        block(report, survey, &told, "Let it be a file.");
    }
    if file.format != ImageFormat::Raw {
        let told = format!("{what} is a qcow2 image, and only raw ones go onto a device ({typed}) yet");
        let advice = "Let it be a file, or convert it first (`qemu-img convert -O raw IMAGE NEW`).";
        block(report, survey, &told, advice);
    }
}

fn check_device(report: &mut Report, survey: &Survey, file: &SourceFile, target: &TargetDevice) {
    let path = &target.path;
    let Some(facts) = &target.facts else {
        let told = format!("{}: there is no block device {path}", file.what());
        return block(report, survey, &told, "`lsblk` shows those that there are.");
    };
    let needed = file.image().map_or(0, |image| image.stat.size);
    let mut refuse = |is_so: bool, what: String, advice: &str| {
        if is_so {
            block(report, survey, &what, advice);
        }
    };
    refuse(
        facts.in_use,
        format!(
            "{path} is in use: it has partitions, or it or a part of it is mounted, swapped on, or part of another device"
        ),
        "`lsblk` and `findmnt` show by what. Take that away, or give another device.",
    );
    refuse(
        facts.read_only,
        format!("{path} cannot be written to"),
        "`blockdev --setrw` allows it, where the hardware does.",
    );
    refuse(
        facts.bytes < needed,
        format!("{path} has {}, and {} needs {}", bytes(facts.bytes), file.what(), bytes(needed)),
        "Give a larger device.",
    );
    refuse(
        facts.identity.is_none(),
        format!(
            "nothing names {path} for good (no world-wide name, serial number or UUID): after a boot it might be another"
        ),
        "Give a device that has one; a volume of LVM does.",
    );
    if let Some(who) = &target.used_on_source {
        let source = &survey.source.name;
        refuse(true, format!("{path} is a device that {source} sees too, and uses ({who})"), "Give another device.");
    }
    if let Some(who) = &target.reached {
        refuse(true, format!("{path}: {who}"), "Give another device, or undefine what is not needed any more.");
    }
}

fn check_claim(report: &mut Report, survey: &Survey, target: &TargetDevice, controller: &ControllerId) {
    let Some(claim) = &target.claim else { return };
    let (kind, who) = match &claim.owner {
        Ok(owner) if owner.controller == *controller => {
            (BlockerKind::DeviceClaimed, format!("transaction {}", owner.txn))
        }
        Ok(owner) => {
            let theirs = &owner.controller;
            let who = format!(
                "transaction {} of another controller ({}, {})",
                owner.txn, theirs.machine_id, theirs.state_dir
            );
            (BlockerKind::DeviceHeld, who)
        }
        Err(why) => (BlockerKind::DeviceHeld, format!("{}, which does not say by whom: {why}", claim.path)),
    };
    let host = survey.destination.name.as_str();
    let message = format!("{host}: the device {} is reserved by {who}.", target.path);
    report.block(kind, host, message, "Wait for its end (`kvm-clone list`), or give another device.");
}

/// Nobody shall say that they did not know.
fn warn(
    report: &mut Report,
    survey: &Survey,
    file: &SourceFile,
    (typed, target): (&str, &TargetDevice),
    facts: &DeviceFacts,
) {
    let host = survey.destination.name.as_str();
    let used = file.image().map_or(0, |image| image.stat.size);
    let rest = match facts.bytes.saturating_sub(used) {
        0 => String::new(),
        rest => format!(" The last {} of it stay as they are, and the guest sees them.", bytes(rest)),
    };
    report.warn(
        WarningKind::DeviceOverwritten,
        host,
        format!(
            "{host}: all that {} ({}) holds is written over for {}, and no rollback brings it back.{rest}",
            target.path,
            bytes(facts.bytes),
            file.what()
        ),
        "",
    );
    if typed == target.path {
        let told =
            format!("{host}: the clone's definition names {typed}, and a boot may give that name to another device.");
        let advice = "Give a path that stays: `ls -l /dev/disk/by-id /dev/mapper` shows some.";
        report.warn(WarningKind::DeviceName, host, told, advice);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use journal_format::owner::{DirectionV1, OwnerV1};
    use journal_format::{CleanUpStepV1, Epoch, Inode, StepV1, TxnId, UnixMillis};

    use super::*;
    use crate::plan::{Circumstances, plan};
    use crate::preflight::check as check_all;
    use crate::survey::ClaimFacts;
    use crate::survey::sample::{self, GIB};

    const TYPED: &str = "/dev/vg/web";

    /// The second disk, a raw image of 10 GiB, goes onto a device of 12 GiB.
    fn scene() -> (Request, Survey) {
        let (mut request, mut survey) = (sample::request(), sample::survey());
        request.disk_map = vec![format!("vdb={TYPED}").parse().unwrap()];
        request.overwritten = vec![TYPED.to_owned()];
        request.check().unwrap();
        let facts = DeviceFacts {
            inode: Inode(5),
            bytes: 12 * GIB,
            identity: Some("dm-LVM-abc".into()),
            in_use: false,
            read_only: false,
        };
        let device = TargetDevice {
            path: "/dev/dm-3".into(),
            facts: Some(facts),
            reached: None,
            claim: None,
            used_on_source: None,
        };
        survey.destination.devices.insert(TYPED.into(), device);
        (request, survey)
    }

    fn facts(survey: &mut Survey) -> &mut DeviceFacts {
        survey.destination.devices.get_mut(TYPED).unwrap().facts.as_mut().unwrap()
    }

    fn claim(state_dir: &str, machine: &str) -> ClaimFacts {
        let controller = ControllerId { machine_id: machine.repeat(32), state_dir: state_dir.into() };
        let owner = OwnerV1 {
            counter: 1,
            txn: TxnId([7; 16]),
            epoch: Epoch(1),
            controller,
            agent_pid: 1,
            agent_started: 1,
            direction: DirectionV1::Forward,
        };
        ClaimFacts { path: "/var/lib/kvm-clone/host/devices/dm-LVM-abc".into(), owner: Ok(owner) }
    }

    #[test]
    fn a_device_that_nobody_needs_is_planned_and_told() {
        let (request, mut survey) = scene();
        // Where the other disks go does not matter to it.
        survey.destination.directories.remove(sample::DATA);
        let controller = sample::controller();
        let report = check_all(&request, &survey, &controller, &[]);
        assert_eq!(report.blockers, []);
        let told: Vec<_> = report.warnings.iter().map(|warning| (warning.kind, warning.message.clone())).collect();
        assert_eq!(told.len(), 1, "{told:#?}");
        assert_eq!(told[0].0, WarningKind::DeviceOverwritten);
        for words in ["/dev/dm-3", "disk vdb", "no rollback brings it back", "The last 2.15 GB"] {
            assert!(told[0].1.contains(words), "{words}: {}", told[0].1);
        }
        let mut circumstances =
            Circumstances { controller: &controller, now: UnixMillis(1_750_000_000_000), random: &mut || [3; 16] };
        let request = Request { preserve_mac: true, ..request };
        let plan = plan(&request, &survey, &mut circumstances).unwrap();
        let image = &plan.images[1];
        assert_eq!((image.staging_path.as_str(), image.final_path.as_str()), ("/dev/dm-3", "/dev/dm-3"));
        let device = image.device().unwrap();
        assert_eq!((device.identity.as_str(), device.bytes, image.directory()), ("dm-LVM-abc", 12 * GIB, None));
        let about: Vec<_> = plan.steps.iter().filter(|step| crate::steps::image_of(**step) == Some(1)).collect();
        let verify = StepV1::VerifyImage { image: 1 };
        assert_eq!(about, [&StepV1::ClaimDevice { image: 1 }, &StepV1::TransferImage { image: 1 }, &verify]);
        assert!(
            plan.definition.contains("<disk type='block' device='disk'>")
                && plan.definition.contains("<source dev='/dev/vg/web'/>")
        );
        assert_eq!(plan.directories.len(), 1, "nothing is staged beside a device");
        assert!(plan.clean_up.contains(&CleanUpStepV1::ReleaseClaim));
    }

    #[test]
    fn whatever_a_device_may_still_be_needed_for_is_a_refusal() {
        type Spoil = fn(&mut Request, &mut Survey);
        fn device(survey: &mut Survey) -> &mut TargetDevice {
            survey.destination.devices.get_mut(TYPED).unwrap()
        }
        let table: &[(BlockerKind, Spoil, &[&str])] = &[
            (BlockerKind::Device, |_, s| device(s).facts = None, &["there is no block device /dev/dm-3"]),
            (BlockerKind::Device, |_, s| facts(s).in_use = true, &["/dev/dm-3 is in use", "lsblk"]),
            (BlockerKind::Device, |_, s| facts(s).read_only = true, &["cannot be written to"]),
            (BlockerKind::Device, |_, s| facts(s).bytes = 9 * GIB, &["9.66 GB", "needs 10.7"]),
            (BlockerKind::Device, |_, s| facts(s).identity = None, &["nothing names /dev/dm-3 for good"]),
            (
                BlockerKind::Device,
                |_, s| device(s).used_on_source = Some("/dev/sdx there: the VM web reaches it".into()),
                &["kvm1 sees too", "the VM web"],
            ),
            (
                BlockerKind::Device,
                |_, s| device(s).reached = Some("the VM db names it".into()),
                &["the VM db names it"],
            ),
            (
                BlockerKind::DeviceClaimed,
                |_, s| device(s).claim = Some(claim("/var/lib/kvm-clone", "c")),
                &["reserved by transaction 07070707-"],
            ),
            (BlockerKind::DeviceHeld, |_, s| device(s).claim = Some(claim("/s", "e")), &["another controller", "eeee"]),
            (BlockerKind::Device, |_, s| s.source.files[1].format = ImageFormat::Qcow2, &["only raw ones", "convert"]),
        ];
        for (kind, spoil, words) in table {
            let (mut request, mut survey) = scene();
            spoil(&mut request, &mut survey);
            let report = check_all(&request, &survey, &sample::controller(), &[]);
            let found = report.blockers.iter().find(|blocker| blocker.kind == *kind);
            let text = found.map(ToString::to_string).unwrap_or_default();
            assert!(words.iter().all(|word| text.contains(word)), "{words:?}: {report:#?}");
            assert_eq!(report.exit(), Some(if *kind == BlockerKind::DeviceHeld { 7 } else { 5 }));
            assert!(report.warnings.iter().all(|warning| warning.kind != WarningKind::DeviceOverwritten));
        }
    }

    #[test]
    fn two_disks_do_not_share_a_device() {
        let (mut request, mut survey) = scene();
        survey.source.files[0].format = ImageFormat::Raw;
        request.disk_map.push("vda=/dev/mapper/vg-web".parse().unwrap());
        request.overwritten.push("/dev/mapper/vg-web".into());
        request.check().unwrap();
        let twin = survey.destination.devices[TYPED].clone();
        survey.destination.devices.insert("/dev/mapper/vg-web".into(), twin);
        let report = check_all(&request, &survey, &sample::controller(), &[]);
        assert!(report.blockers.iter().any(|blocker| blocker.message.contains("are one device")), "{report:#?}");
    }

    #[test]
    fn a_directory_of_devices_takes_no_images() {
        let (request, mut survey) = (sample::request(), sample::survey());
        survey.destination.directories.get_mut(sample::DATA).unwrap().filesystem.kind = "devtmpfs".into();
        let report = check_all(&request, &survey, &sample::controller(), &[]);
        let told: Vec<_> = report.blockers.iter().map(|blocker| blocker.kind).collect();
        assert_eq!(told, [BlockerKind::NotADirectory], "{report:#?}");
    }
}
