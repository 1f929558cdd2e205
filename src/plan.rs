//! Survey + request → plan. Pure: the clock and randomness come in as values, and every name, UUID, MAC address and
//! path of the transaction is chosen here, once.

pub mod placement;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use journal_format::{
    CleanUpStepV1, ControllerId, DirectoryV1, DomainUuid, EndpointV1, ImageRoleV1, ImageV1, OptionsV1, PlanV1,
    RequestV1, SourceStampV1, StepV1, TxnId, UnixMillis,
};

use crate::domain::{Change, DomainError, Identity, InterfaceSource, Rewrite, rewrite};
use crate::host::Address;
use crate::plan::placement::NoDirectory;
use crate::request::{ByteRate, Request};
use crate::survey::{DirectoryFacts, EmulatorFacts, ImageFacts, SourceDisk, Survey};

/// First three bytes of every new MAC address: QEMU's and libvirt's own range.
const MAC_PREFIX: [u8; 3] = [0x52, 0x54, 0x00];
/// Draws for one MAC address that nobody has. With a hundred thousand taken, all fail once in 10^142.
const MAC_DRAWS_MAX: usize = 64;

/// Why there is no plan. Preflight says each of these as a blocker; a survey without blockers has a plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A disk has no image that could be read.
    #[error("disk {target}: there is no readable image")]
    NoImage {
        /// The disk's target name.
        target: String,
    },
    /// A disk has no place on the destination.
    #[error("disk {target}: there is no directory for it on the destination")]
    NoDirectory {
        /// The disk's target name.
        target: String,
        /// Why.
        why: NoDirectory,
    },
    /// No free MAC address was drawn.
    #[error("no free MAC address was found in {MAC_DRAWS_MAX} draws")]
    NoMac,
    /// The definition cannot be rewritten.
    #[error("the clone's definition cannot be made: {0}")]
    Definition(#[from] DomainError),
}

/// What a plan takes from outside survey and request.
pub struct Circumstances<'a> {
    /// The controller that will drive the transaction.
    pub controller: &'a ControllerId,
    /// The time.
    pub now: UnixMillis,
    /// Fresh random bytes at each call.
    pub random: &'a mut dyn FnMut() -> [u8; 16],
}

/// Plans a clone whole.
pub fn plan(request: &Request, survey: &Survey, circumstances: &mut Circumstances<'_>) -> Result<PlanV1, PlanError> {
    let mut entropy = [0; 10];
    entropy.copy_from_slice(&(circumstances.random)()[..10]);
    let txn = TxnId::new(circumstances.now, entropy);
    let clone_uuid = new_uuid(circumstances);
    let (directories, disks) = lay_out(request, survey, txn, circumstances)?;
    let definition = clone_definition(request, survey, clone_uuid, &disks, circumstances)?;
    let pools = touched_pools(survey, &directories);
    let steps = forward_steps(request, directories.len(), disks.len());
    let clean_up = clean_up_steps(request, survey.source.vm.autostart, directories.len(), pools.len());
    Ok(PlanV1 {
        txn,
        created_at: circumstances.now,
        program_version: env!("CARGO_PKG_VERSION").to_owned(),
        controller: circumstances.controller.clone(),
        request: recorded_request(request, survey),
        clone_uuid,
        source_definition: survey.source.vm.definition.clone(),
        definition,
        title: survey.source.definition.title.clone(),
        autostart: survey.source.vm.autostart,
        directories,
        new_directories: Vec::new(),
        images: disks,
        pools,
        steps,
        clean_up,
    })
}

fn new_uuid(circumstances: &mut Circumstances<'_>) -> DomainUuid {
    DomainUuid(*uuid::Builder::from_random_bytes((circumstances.random)()).into_uuid().as_bytes())
}

fn recorded_request(request: &Request, survey: &Survey) -> RequestV1 {
    let endpoint = |address: &Address, machine_id: &str| EndpointV1 {
        address: address.to_string(),
        machine_id: machine_id.to_owned(),
        key_file: request.key_file.as_ref().map(|path| path.display().to_string()),
    };
    RequestV1 {
        source: endpoint(&request.source, &survey.source.host.machine_id),
        vm_uuid: survey.source.vm.brief.uuid,
        vm_name: survey.source.vm.brief.name.clone(),
        destination: endpoint(&request.destination, &survey.destination.host.machine_id),
        new_name: survey.new_name.to_string(),
        options: OptionsV1 {
            start: request.start,
            verify: request.verify,
            preserve_mac: request.preserve_mac,
            bandwidth_limit_bytes_per_second: request.bandwidth_limit.map(ByteRate::bytes_per_second),
            preallocate: request.preallocate,
            chunk_size_bytes: request.chunk_size.bytes(),
        },
    }
}

/// Gives each disk its directory, staging path and final path; each directory once, in the order of the disks.
fn lay_out(
    request: &Request,
    survey: &Survey,
    txn: TxnId,
    circumstances: &mut Circumstances<'_>,
) -> Result<(Vec<DirectoryV1>, Vec<ImageV1>), PlanError> {
    let mut directories: Vec<DirectoryV1> = Vec::new();
    let mut disks = Vec::new();
    for disk in &survey.source.disks {
        let image = disk.image().ok_or_else(|| PlanError::NoImage { target: disk.target.clone() })?;
        let facts = placement::directory_for(request, &survey.destination, disk)
            .map_err(|why| PlanError::NoDirectory { target: disk.target.clone(), why })?;
        let known = directories.iter().position(|directory| directory.path == facts.path);
        let index = known.unwrap_or_else(|| {
            directories.push(DirectoryV1 {
                path: facts.path.clone(),
                inode: facts.stat.inode,
                staging: placement::join(&facts.path, &format!(".kvm-clone/{txn}")),
                nonce: (circumstances.random)(),
            });
            directories.len() - 1
        });
        disks.push(planned_disk(survey, txn, disk, image, facts, index, &directories[index]));
    }
    Ok((directories, disks))
}

fn planned_disk(
    survey: &Survey,
    txn: TxnId,
    disk: &SourceDisk,
    image: &ImageFacts,
    facts: &DirectoryFacts,
    index: usize,
    directory: &DirectoryV1,
) -> ImageV1 {
    let owner = survey.destination.owners.get(&image.owner).copied().unwrap_or_default();
    ImageV1 {
        role: ImageRoleV1::Disk { target: disk.target.clone() },
        format: disk.format,
        reached_by: disk.path.clone(),
        source_path: image.path.clone(),
        source_stamp: SourceStampV1 {
            size: image.stat.size,
            mtime_ns: image.stat.mtime_ns,
            ctime_ns: image.stat.ctime_ns,
        },
        // Blocks beyond the end of the image are not moved.
        allocated_bytes: image.stat.allocated.min(image.stat.size),
        directory: number(index),
        staging_path: format!("{}/{}.{}", directory.staging, disk.target, placement::extension(disk.format)),
        final_path: placement::final_path(&survey.new_name, txn, &survey.destination, facts, disk),
        mode: final_mode(image.stat.mode),
        // A name that the destination does not know is root's there, never a stranger's with the same number.
        owner: (owner.user.unwrap_or(0), owner.group.unwrap_or(0)),
        patches: Vec::new(),
    }
}

/// The source image's permission bits. None at all is what an unfinished image has, and is never a finished one's.
fn final_mode(mode: u32) -> u32 {
    match mode & 0o777 {
        0 => 0o600,
        kept => kept,
    }
}

fn clone_definition(
    request: &Request,
    survey: &Survey,
    clone_uuid: DomainUuid,
    disks: &[ImageV1],
    circumstances: &mut Circumstances<'_>,
) -> Result<String, PlanError> {
    let source = &survey.source.definition;
    let macs = if request.preserve_mac { BTreeMap::new() } else { new_macs(survey, circumstances)? };
    let indices = survey.source.disks.iter().map(|disk| disk.index);
    let changes = Rewrite {
        identity: Some(Identity { uuid: clone_uuid, genid: new_uuid(circumstances) }),
        emulator: match &survey.destination.emulator {
            EmulatorFacts::Path(path) => Some(path.clone()),
            EmulatorFacts::Refused(_) => None,
        },
        disk_files: indices.zip(disks.iter().map(|disk| disk.final_path.clone())).collect(),
        macs,
        networks: renamed_networks(request, survey),
        mark: Change::Remove,
        ..Rewrite::default()
    };
    Ok(rewrite(source, &changes.named(&survey.new_name))?)
}

/// The other name of each network or bridge that has one on the destination, by the interface's index.
fn renamed_networks(request: &Request, survey: &Survey) -> BTreeMap<usize, String> {
    let interfaces = survey.source.definition.interfaces.iter();
    interfaces
        .filter_map(|interface| match &interface.source {
            InterfaceSource::Network(name) | InterfaceSource::Bridge(name) => {
                let mapped = request.mapped_network(name);
                (mapped != name).then(|| (interface.index, mapped.to_owned()))
            }
            InterfaceSource::User | InterfaceSource::Other { .. } => None,
        })
        .collect()
}

/// A MAC address for each interface, by its index: free on both hosts and among themselves.
fn new_macs(survey: &Survey, circumstances: &mut Circumstances<'_>) -> Result<BTreeMap<usize, String>, PlanError> {
    let neighbours = survey.source.neighbours.iter().chain(&survey.destination.neighbours);
    let mut taken: BTreeSet<String> = neighbours.flat_map(|neighbour| neighbour.macs.iter().cloned()).collect();
    taken.extend(survey.source.definition.macs());
    let mut macs = BTreeMap::new();
    for interface in &survey.source.definition.interfaces {
        let mac = (0..MAC_DRAWS_MAX)
            .map(|_| draw_mac((circumstances.random)()))
            .find(|mac| taken.insert(mac.clone()))
            .ok_or(PlanError::NoMac)?;
        macs.insert(interface.index, mac);
    }
    Ok(macs)
}

fn draw_mac(random: [u8; 16]) -> String {
    let [a, b, c] = MAC_PREFIX;
    format!("{a:02x}:{b:02x}:{c:02x}:{:02x}:{:02x}:{:02x}", random[0], random[1], random[2])
}

/// Active pools whose directory receives a file.
fn touched_pools(survey: &Survey, directories: &[DirectoryV1]) -> Vec<String> {
    let touched = |path: &String| directories.iter().any(|directory| directory.path == *path);
    let pools = survey.destination.pools.iter();
    pools
        .filter(|pool| pool.facts.active && pool.real_path.as_ref().is_some_and(touched))
        .map(|pool| pool.facts.name.clone())
        .collect()
}

fn forward_steps(request: &Request, directories: usize, images: usize) -> Vec<StepV1> {
    let mut steps = vec![StepV1::ReserveRecord, StepV1::ClaimName];
    steps.extend((0..directories).map(|directory| StepV1::CreateStaging { directory: number(directory) }));
    steps.push(StepV1::DetectSharedStorage);
    for image in (0..images).map(number) {
        steps.extend([StepV1::CreateImage { image }, StepV1::TransferImage { image }]);
        if request.verify {
            steps.push(StepV1::VerifyImage { image });
        }
    }
    steps.extend((0..images).map(|image| StepV1::PublishImage { image: number(image) }));
    steps.push(StepV1::DefineDomain);
    steps
}

fn clean_up_steps(request: &Request, autostart: bool, directories: usize, pools: usize) -> Vec<CleanUpStepV1> {
    let mut steps = vec![CleanUpStepV1::FinishDomain, CleanUpStepV1::ReleaseClaim];
    if autostart {
        steps.push(CleanUpStepV1::SetAutostart);
    }
    if request.start {
        steps.push(CleanUpStepV1::StartDomain);
    }
    steps.extend((0..directories).map(|directory| CleanUpStepV1::RemoveStaging { directory: number(directory) }));
    steps.extend((0..pools).map(|pool| CleanUpStepV1::RefreshPool { pool: number(pool) }));
    steps.push(CleanUpStepV1::RemoveRecord);
    steps
}

/// An index as the plan holds it. A definition that libvirt carries is at most 4 MiB, so there are never 2^32 of anything.
fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}
