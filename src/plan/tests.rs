//! Plans of surveys made by hand.
#![allow(clippy::unwrap_used)]

use journal_format::ImageFormat;
use proptest::prelude::*;

use super::*;
use crate::domain::{Definition, DomainName};
use crate::request::Target;
use crate::steps;
use crate::steps::host_record::parent_of;
use crate::survey::sample::{self, DATA, GIB, IMAGES};
use crate::survey::{EmulatorFacts, SourceImage};
use crate::world::FileKind;

/// Random bytes that count upwards from a seed: no two calls are alike.
fn counting(seed: u8) -> impl FnMut() -> [u8; 16] {
    let mut counter = u32::from(seed) << 24;
    move || {
        counter += 1;
        *blake3::hash(&counter.to_le_bytes()).as_bytes().first_chunk().unwrap()
    }
}

pub(super) fn plan_of(request: &Request, survey: &Survey) -> Result<PlanV1, PlanError> {
    let controller = sample::controller();
    let now = UnixMillis(1_750_000_000_000);
    plan(request, survey, &mut Circumstances { controller: &controller, now, random: &mut counting(1) })
}

#[test]
fn a_plan_is_whole() {
    let plan = plan_of(&sample::request(), &sample::survey()).unwrap();
    let txn = plan.txn;
    let paths: Vec<_> = plan.images.iter().map(|disk| (disk.staging_path.clone(), disk.final_path.clone())).collect();
    assert_eq!(
        paths,
        [
            (format!("{IMAGES}/.kvm-clone/{txn}/vda.qcow2"), format!("{IMAGES}/web01_clone-vda.qcow2")),
            (format!("{DATA}/.kvm-clone/{txn}/vdb.img"), format!("{DATA}/web01_clone-vdb.img")),
        ]
    );
    assert_eq!(plan.images[0].owner, (64055, 108));
    assert_eq!(plan.images[0].mode, 0o640);
    assert_eq!(plan.images[0].allocated_bytes, 2 * GIB);
    assert_eq!(plan.images[1].source_path, "/srv/data/disk.img");
    assert_eq!(plan.pools, ["default"]);
    assert_eq!(plan.title.as_deref(), Some("The shop"));
    assert_eq!(plan.source_definition, sample::DEFINITION);
    assert_eq!(plan.request.new_name, "web01_clone");
    assert_eq!(plan.request.source.machine_id, "a".repeat(32));
    assert_eq!(
        plan.steps,
        [
            StepV1::ReserveRecord,
            StepV1::ClaimName,
            StepV1::CreateStaging { directory: 0 },
            StepV1::CreateStaging { directory: 1 },
            StepV1::DetectSharedStorage,
            StepV1::CreateImage { image: 0 },
            StepV1::TransferImage { image: 0 },
            StepV1::VerifyImage { image: 0 },
            StepV1::CreateImage { image: 1 },
            StepV1::TransferImage { image: 1 },
            StepV1::VerifyImage { image: 1 },
            StepV1::PublishImage { image: 0 },
            StepV1::PublishImage { image: 1 },
            StepV1::DefineDomain,
        ]
    );
    assert_eq!(
        plan.clean_up,
        [
            CleanUpStepV1::FinishDomain,
            CleanUpStepV1::ReleaseClaim,
            CleanUpStepV1::RemoveStaging { directory: 0 },
            CleanUpStepV1::RemoveStaging { directory: 1 },
            CleanUpStepV1::RefreshPool { pool: 0 },
            CleanUpStepV1::RemoveRecord,
        ]
    );
}

#[test]
fn what_was_asked_for_is_in_the_steps() {
    let (mut request, mut survey) = (sample::request(), sample::survey());
    request.start = true;
    request.verify = false;
    survey.source.vm.autostart = true;
    let plan = plan_of(&request, &survey).unwrap();
    assert!(!plan.steps.iter().any(|step| matches!(step, StepV1::VerifyImage { .. })));
    assert_eq!(
        plan.clean_up[..4],
        [
            CleanUpStepV1::FinishDomain,
            CleanUpStepV1::ReleaseClaim,
            CleanUpStepV1::SetAutostart,
            CleanUpStepV1::StartDomain
        ]
    );
    assert!(plan.autostart);
    assert!(!plan.request.options.verify);
}

#[test]
fn the_definition_is_the_clones_and_otherwise_the_sources() {
    let (mut request, mut survey) = (sample::request(), sample::survey());
    request.network_map = vec!["default=lab".parse().unwrap(), "br0=br7".parse().unwrap()];
    survey.destination.directories.remove(DATA);
    survey.destination.emulator = EmulatorFacts::Path("/usr/libexec/qemu-kvm".into());
    let plan = plan_of(&request, &survey).unwrap();
    let mut expected = sample::DEFINITION
        .replace("web01<", "web01_clone<")
        .replace("11111111-2222-4333-8444-555555555555", &plan.clone_uuid.to_string())
        .replace("/usr/bin/qemu-system-x86_64", "/usr/libexec/qemu-kvm")
        .replace("/var/lib/libvirt/images/disk.img", "/var/lib/libvirt/images/web01_clone-vda.qcow2")
        .replace("/srv/data/disk.img", "/var/lib/libvirt/images/web01_clone-vdb.img")
        .replace("network='default'", "network='lab'")
        .replace("bridge='br0'", "bridge='br7'");
    let macs: Vec<_> = Definition::parse(&plan.definition).unwrap().macs().collect();
    expected = expected.replace("52:54:00:aa:bb:01", &macs[0]).replace("52:54:00:AA:BB:02", &macs[1]);
    assert_eq!(plan.definition, expected);
    assert!(macs.iter().all(|mac| mac.starts_with("52:54:00:")) && macs[0] != macs[1], "{macs:?}");
}

#[test]
fn kept_addresses_are_kept_as_they_are_written() {
    let mut request = sample::request();
    request.preserve_mac = true;
    let plan = plan_of(&request, &sample::survey()).unwrap();
    assert!(plan.definition.contains("'52:54:00:aa:bb:01'") && plan.definition.contains("'52:54:00:AA:BB:02'"));
}

#[test]
fn an_address_that_somebody_has_is_drawn_again() {
    let (request, mut survey) = (sample::request(), sample::survey());
    let macs = |plan: &PlanV1| Definition::parse(&plan.definition).unwrap().macs().collect::<Vec<_>>();
    let first = macs(&plan_of(&request, &survey).unwrap());
    survey.destination.neighbours[0].macs.insert(first[0].clone());
    survey.source.neighbours[0].macs.insert(first[1].clone());
    let second = macs(&plan_of(&request, &survey).unwrap());
    assert!(second.iter().all(|mac| !first.contains(mac)), "{first:?} {second:?}");
}

#[test]
fn addresses_do_not_run_out_in_silence() {
    let controller = sample::controller();
    let mut circumstances = Circumstances { controller: &controller, now: UnixMillis(1), random: &mut || [0; 16] };
    let result = plan(&sample::request(), &sample::survey(), &mut circumstances);
    assert_eq!(result, Err(PlanError::NoMac));
}

#[test]
fn a_taken_path_gives_way_to_one_with_the_transaction_in_it() {
    let (request, mut survey) = (sample::request(), sample::survey());
    survey.destination.taken.insert(format!("{IMAGES}/web01_clone-vda.qcow2"));
    // A domain names it, though there is no such file.
    survey.destination.neighbours[0].paths.insert(format!("{DATA}/web01_clone-vdb.img"));
    let plan = plan_of(&request, &survey).unwrap();
    let short = plan.txn.short();
    assert_eq!(plan.images[0].final_path, format!("{IMAGES}/web01_clone-vda-{short}.qcow2"));
    assert_eq!(plan.images[1].final_path, format!("{DATA}/web01_clone-vdb-{short}.img"));
    assert!(plan.definition.contains(&plan.images[0].final_path));
}

#[test]
fn a_directory_that_is_missing_gives_way_to_the_default_pool() {
    let (request, mut survey) = (sample::request(), sample::survey());
    survey.destination.directories.remove(DATA);
    let plan = plan_of(&request, &survey).unwrap();
    assert_eq!(plan.directories.len(), 1, "both disks in one");
    assert_eq!(plan.images[1].final_path, format!("{IMAGES}/web01_clone-vdb.img"));
    assert_eq!((plan.images[0].directory(), plan.images[1].directory()), (Some(0), Some(0)));
    survey.destination.pools[0].facts.active = false;
    assert!(matches!(plan_of(&request, &survey), Err(PlanError::NoDirectory { .. })));
}

#[test]
fn a_pool_or_directory_that_was_asked_for_takes_all() {
    let (mut request, mut survey) = (sample::request(), sample::survey());
    // Known by a symlink: the plan holds the real path.
    survey.destination.directories.insert("/mnt/elsewhere".into(), sample::directory("/big/store", 5, 100 * GIB));
    survey.destination.pools[1].real_path = Some("/big/store".into());
    for target in [Target::pool("elsewhere").unwrap(), Target::directory("/mnt/elsewhere/").unwrap()] {
        request.target = target;
        let plan = plan_of(&request, &survey).unwrap();
        assert_eq!(plan.directories.len(), 1);
        assert_eq!(plan.directories[0].path, "/big/store");
        assert_eq!(plan.pools, ["elsewhere"]);
    }
}

#[test]
fn a_mapped_disk_goes_where_it_was_asked_for_and_takes_no_other_with_it() {
    let (mut request, mut survey) = (sample::request(), sample::survey());
    survey.destination.directories.insert("/mnt/elsewhere".into(), sample::directory("/big/store", 5, 100 * GIB));
    request.disk_map.push("vdb=elsewhere/second".parse().unwrap());
    let plan = plan_of(&request, &survey).unwrap();
    let paths: Vec<_> = plan.images.iter().map(|image| image.final_path.as_str()).collect();
    assert_eq!(paths, [&format!("{IMAGES}/web01_clone-vda.qcow2"), "/big/store/second"]);
    assert_eq!(plan.images[1].staging_path, format!("/big/store/.kvm-clone/{}/vdb.img", plan.txn));
    assert!(plan.definition.contains("<source file='/big/store/second'/>"));
}

#[test]
fn a_device_becomes_an_image_in_the_default_pool_and_never_a_file_among_devices() {
    let (request, mut survey) = (sample::request(), sample::survey());
    survey.destination.directories.insert("/dev/vg".into(), sample::directory("/dev/vg", 9, 100 * GIB));
    let file = &mut survey.source.files[1];
    file.path = "/dev/vg/data".into();
    let SourceImage::Readable(image) = &mut file.image else { unreachable!() };
    (image.path, image.stat.kind) = ("/dev/dm-3".into(), FileKind::BlockDevice);
    let plan = plan_of(&request, &survey).unwrap();
    let data = &plan.images[1];
    assert_eq!(data.final_path, format!("{IMAGES}/web01_clone-vdb.img"));
    assert_eq!((data.source_kind, data.mode, data.owner), (SourceKindV1::Device, 0o600, (0, 0)));
    assert_eq!((data.source_stamp.mtime_ns, data.source_stamp.ctime_ns), (0, 0), "no time of a node says anything");
    survey.destination.pools[0].facts.active = false;
    let why = NoDirectory::OfDevice { device: "/dev/vg/data".into() };
    assert_eq!(plan_of(&request, &survey), Err(PlanError::NoDirectory { what: "disk vdb".into(), why }));
}

#[test]
fn a_flattened_chain_is_one_raw_image_and_all_its_layers_count() {
    let (request, mut survey) = (sample::request(), sample::survey());
    let layers = [("middle.qcow2", ImageFormat::Qcow2), ("base.img", ImageFormat::Raw)];
    let flattened = layers.map(|(reference, format)| {
        let file = sample::disk(0, "vda", format, &format!("/srv/templates/{reference}"), GIB);
        FlattenedLayer { reference: reference.into(), file }
    });
    survey.source.files[0].flattened = flattened.into();
    let plan = plan_of(&request, &survey).unwrap();
    assert_eq!(plan.images.len(), 2, "the layers are no images of their own");
    let image = &plan.images[0];
    assert_eq!(image.final_path, format!("{IMAGES}/web01_clone-vda.img"));
    assert_eq!((image.format, image.clone_format()), (ImageFormat::Qcow2, ImageFormat::Raw));
    assert_eq!(image.source_stamp.size, 20 * GIB, "what its guest sees");
    assert_eq!(image.allocated_bytes, 4 * GIB, "2 of its own, and 1 of each layer");
    let read: Vec<_> = steps::paths_read(image).skip(1).collect();
    assert_eq!(read, ["/srv/templates/middle.qcow2", "/srv/templates/base.img"]);
    let clone = Definition::parse(&plan.definition).unwrap();
    assert_eq!(clone.disks[0].image_format(), Some(ImageFormat::Raw));
    assert_eq!(clone.disks[0].image(), Some(image.final_path.as_str()));

    let stamp = |survey: &Survey| plan_of(&request, survey).unwrap().images[0].source_stamp;
    let before = stamp(&survey);
    base_of(&mut survey).stat.mtime_ns -= 1;
    assert_ne!(stamp(&survey).mtime_ns, before.mtime_ns);
    base_of(&mut survey).stat.allocated = 100 * GIB;
    assert_eq!(plan_of(&request, &survey).unwrap().images[0].allocated_bytes, 20 * GIB, "no more than its guest sees");
    survey.source.files[0].flattened[1].file.image = SourceImage::Missing;
    assert_eq!(plan_of(&request, &survey), Err(PlanError::NoImage { what: "disk vda".into() }));
}

fn base_of(survey: &mut Survey) -> &mut ImageFacts {
    match &mut survey.source.files[0].flattened[1].file.image {
        SourceImage::Readable(image) => image,
        other => panic!("{other:?}"),
    }
}

#[test]
fn two_names_of_one_directory_are_one_directory() {
    let (request, mut survey) = (sample::request(), sample::survey());
    survey.destination.directories.insert(DATA.into(), sample::directory(IMAGES, 1, 100 * GIB));
    let plan = plan_of(&request, &survey).unwrap();
    assert_eq!(plan.directories.len(), 1);
}

#[test]
fn an_owner_that_the_destination_does_not_know_is_root_there() {
    let (request, mut survey) = (sample::request(), sample::survey());
    for numbers in survey.destination.owners.values_mut() {
        *numbers = crate::survey::OwnerNumbers { user: None, group: Some(36) };
    }
    assert_eq!(plan_of(&request, &survey).unwrap().images[0].owner, (0, 36));
}

#[test]
fn odd_modes_and_blocks_beyond_the_end_are_set_right() {
    let (request, mut survey) = (sample::request(), sample::survey());
    for (disk, mode) in survey.source.files.iter_mut().zip([0o100_000, 0o100_444]) {
        if let crate::survey::SourceImage::Readable(image) = &mut disk.image {
            image.stat.mode = mode;
            image.stat.allocated = 50 * GIB; // of 10 GiB
        }
    }
    let plan = plan_of(&request, &survey).unwrap();
    assert_eq!((plan.images[0].mode, plan.images[1].mode), (0o600, 0o444));
    assert_eq!(plan.images[0].allocated_bytes, 10 * GIB);
}

#[test]
fn a_vm_without_disks_has_a_plan() {
    let (request, mut survey) = (sample::request(), sample::survey());
    survey.source.files.clear();
    let plan = plan_of(&request, &survey).unwrap();
    assert_eq!((plan.directories.len(), plan.images.len(), plan.pools.len()), (0, 0, 0));
    assert_eq!(plan.steps.last(), Some(&StepV1::DefineDomain));
}

/// A VM with disks of these formats, each in one of a few directories.
fn vm_with(disks: &[(bool, usize)], basename: &str) -> (String, Vec<SourceFile>) {
    let mut elements = Vec::new();
    let mut sources = Vec::new();
    for (index, (qcow2, directory)) in disks.iter().enumerate() {
        let target = format!(
            "vd{}{}",
            char::from(b'a' + u8::try_from(index / 26).unwrap()),
            char::from(b'a' + u8::try_from(index % 26).unwrap())
        );
        let path = placement::join([IMAGES, DATA, "/gone"][*directory], basename);
        let (format, name) = if *qcow2 { (ImageFormat::Qcow2, "qcow2") } else { (ImageFormat::Raw, "raw") };
        elements.push(format!(
            "<disk type='file' device='disk'><driver name='qemu' type='{name}'/><source file='{path}'/><target dev='{target}' bus='virtio'/></disk>"
        ));
        sources.push(sample::disk(index, &target, format, &path, GIB));
    }
    let start = sample::DEFINITION.find("    <disk").unwrap();
    let end = sample::DEFINITION.rfind("</disk>\n").unwrap() + "</disk>\n".len();
    (format!("{}{}{}", &sample::DEFINITION[..start], elements.concat(), &sample::DEFINITION[end..]), sources)
}

proptest! {
    /// Whatever is taken and wherever the disks lie: every path of a plan is distinct, inside its directory, holds the
    /// clone's name or the transaction, and is never a path of the source, also not on the source's own host.
    #[test]
    fn paths_never_meet(
        disks in prop::collection::vec((any::<bool>(), 0usize..3), 0..12),
        taken in prop::collection::vec((any::<bool>(), 0usize..12, any::<bool>()), 0..12),
        new_name in "[a-zA-Z0-9._ -]{0,20}[a-z]",
        seed in any::<u8>(),
        own_name in any::<bool>(),
    ) {
        let (request, mut survey) = (sample::request(), sample::survey());
        let new_name = DomainName::new(new_name.trim()).unwrap();
        // The nastiest basename: the one that the first disk of the clone would like to have.
        let basename = if own_name { format!("{new_name}-vdaa.img") } else { "disk.img".to_owned() };
        let (text, sources) = vm_with(&disks, &basename);
        survey.source.definition = Definition::parse(&text).unwrap();
        survey.source.vm.definition = text;
        survey.source.files = sources;
        survey.new_name = new_name.clone();
        for disk in &survey.source.files {
            survey.destination.taken.insert(disk.path.clone());
        }
        for (data, number, qcow2) in taken {
            let format = if qcow2 { ImageFormat::Qcow2 } else { ImageFormat::Raw };
            let target = format!("vda{}", char::from(b'a' + u8::try_from(number).unwrap()));
            let name = placement::preferred_name(&sample::request(), &new_name, &sample::disk(0, &target, format, "/x", 0)).unwrap();
            survey.destination.taken.insert(placement::join(if data { DATA } else { IMAGES }, &name));
        }
        let controller = sample::controller();
        let mut circumstances =
            Circumstances { controller: &controller, now: UnixMillis(1_750_000_000_000), random: &mut counting(seed) };
        let plan = plan(&request, &survey, &mut circumstances).unwrap();

        let mut seen = BTreeSet::new();
        let txn = plan.txn.to_string();
        for disk in &plan.images {
            let directory = &plan.directories[disk.directory().unwrap() as usize];
            prop_assert!(seen.insert(disk.staging_path.clone()) && seen.insert(disk.final_path.clone()), "{disk:?}");
            prop_assert_eq!(parent_of(&disk.final_path), &directory.path);
            prop_assert_eq!(parent_of(&disk.staging_path), &directory.staging);
            prop_assert_eq!(&directory.staging, &format!("{}/.kvm-clone/{txn}", directory.path));
            prop_assert!(!survey.destination.taken.contains(&disk.final_path), "{} is taken", disk.final_path);
            prop_assert!(disk.final_path.contains(new_name.as_str()));
            for source in &plan.images {
                prop_assert!(disk.final_path != source.source_path && disk.staging_path != source.source_path);
            }
        }
        let nonces: BTreeSet<_> = plan.directories.iter().map(|directory| directory.nonce).collect();
        prop_assert_eq!(nonces.len(), plan.directories.len());
        prop_assert!(plan.clone_uuid != survey.source.definition.uuid);
        // What is sent names exactly the final paths, in order.
        let sent = Definition::parse(&plan.definition).unwrap();
        let named: Vec<_> = sent.images().filter_map(|disk| disk.image()).collect();
        let finals: Vec<_> = plan.images.iter().map(|disk| disk.final_path.as_str()).collect();
        prop_assert_eq!(named, finals);
    }
}
