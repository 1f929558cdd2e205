//! Survey + request → plan. Pure: the clock and randomness come in as values, and every name, UUID, MAC address and
//! path of the transaction is chosen here, once.

mod bases;
pub mod changes;
pub mod replaced;
mod snapshots;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use journal_format::{
    BackingV1, CleanUpStepV1, ControllerId, DeviceV1, DirectoryV1, DomainUuid, EndpointV1, ImageRoleV1, ImageV1,
    LayerV1, NewDirectoryV1, OptionsV1, PlaceV1, PlanV1, ReplacedV1, RequestV1, SourceKindV1, StepV1, TxnId,
    UnixMillis,
};

use crate::domain::qcow2::{Qcow2Error, renamed_backing};
use crate::domain::{Change, Definition, Disk, DomainError, Identity, InterfaceSource, Rewrite, Tpm, places, rewrite};
use crate::host::Address;
use crate::request::{ByteRate, Request};
use crate::steps::host_record::parent_of;
use crate::survey::placement::{self, NoDirectory};
use crate::survey::{Below, DirectoryFacts, EmulatorFacts, FlattenedLayer, ImageFacts, OwnerNames, SourceFile, Survey};

/// First three bytes of every new MAC address: QEMU's and libvirt's own range.
const MAC_PREFIX: [u8; 3] = [0x52, 0x54, 0x00];
/// Draws for one MAC address that nobody has. With a hundred thousand taken, all fail once in 10^142.
const MAC_DRAWS_MAX: usize = 64;
/// Permission bits of an image that was a device.
const DEVICE_IMAGE_MODE: u32 = 0o600;

/// Why there is no plan. Preflight says each of these as a blocker; a survey without blockers has a plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A file cannot be read.
    #[error("{what}: there is no readable image")]
    NoImage {
        /// What of the VM it is.
        what: String,
    },
    /// A file has no place on the destination.
    #[error("{what}: there is no directory for it on the destination")]
    NoDirectory {
        /// What of the VM it is.
        what: String,
        /// Why.
        why: NoDirectory,
    },
    /// A device cannot take a disk.
    #[error("{what}: {path} is no block device that can be told from others")]
    NoDevice {
        /// What of the VM it is.
        what: String,
        /// The device, as it was typed.
        path: String,
    },
    /// The header of an image has no room for the name of the one below it.
    #[error("{path}: its header cannot name {reference}, where the image below it will be: {why}")]
    Backing {
        /// The source's image.
        path: String,
        /// The name that it should have.
        reference: String,
        /// Why not.
        why: Qcow2Error,
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
    let clone_uuid = if request.preserve_uuid { survey.source.vm.brief.uuid } else { new_uuid(circumstances) };
    let (mut directories, images) = lay_out(request, survey, txn, clone_uuid, circumstances)?;
    let new_directories = tpm_directories(survey, clone_uuid);
    let replaced = replaced::replaced(request, survey, txn, &mut directories, circumstances);
    let mut rewriting = Rewriting::new(request, survey, (txn, clone_uuid), &images, circumstances);
    let definition = clone_definition(&mut rewriting, survey, txn)?;
    let snapshots = snapshots::snapshots(&mut rewriting, survey)?;
    let (images, bases) = bases::apart(survey, images);
    let pools = touched_pools(survey, &directories);
    let mut steps = forward_steps(request, directories.len(), new_directories.len(), (&images, bases.len()));
    steps.extend((0..snapshots.len()).map(|snapshot| StepV1::DefineSnapshot { snapshot: number(snapshot) }));
    steps.extend(replaced.as_ref().map(|_| StepV1::StopOldVm));
    let clean_up = clean_up_steps(request, survey, replaced.as_ref(), directories.len(), pools.len());
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
        autostart: starts_with_its_host(request, survey),
        directories,
        new_directories,
        images,
        replaced,
        pools,
        steps,
        clean_up,
        snapshots,
        bases,
    })
}

fn new_uuid(circumstances: &mut Circumstances<'_>) -> DomainUuid {
    DomainUuid(*uuid::Builder::from_random_bytes((circumstances.random)()).into_uuid().as_bytes())
}

/// As the source does, but for a clone that is the same machine: after a power cut of both hosts two of them would run.
fn starts_with_its_host(request: &Request, survey: &Survey) -> bool {
    survey.source.vm.autostart && !request.preserve_uuid
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
            preserve_uuid: request.preserve_uuid,
            bandwidth_limit_bytes_per_second: request.bandwidth_limit.map(ByteRate::bytes_per_second),
            preallocate: request.preallocate,
            chunk_size_bytes: request.chunk_size.bytes(),
            dropped: request.dropped.clone(),
        },
    }
}

/// Gives each file its directory, staging path and final path; each directory once, in the order of the files. One that is
/// used as it is there has that as its final path, and nothing else.
fn lay_out(
    request: &Request,
    survey: &Survey,
    txn: TxnId,
    clone_uuid: DomainUuid,
    circumstances: &mut Circumstances<'_>,
) -> Result<(Vec<DirectoryV1>, Vec<ImageV1>), PlanError> {
    let mut directories: Vec<DirectoryV1> = Vec::new();
    let mut images = Vec::new();
    for file in &survey.source.files {
        let image = file.image().ok_or_else(|| PlanError::NoImage { what: file.what() })?;
        if let Some(base) = survey.base_of(file) {
            images.push(ImageV1 { final_path: base.path.clone(), ..planned_image(survey, file, image)? });
            continue;
        }
        if let Some(typed) = placement::device_of(request, file) {
            let (path, device) = planned_device(survey, typed)
                .ok_or_else(|| PlanError::NoDevice { what: file.what(), path: typed.to_owned() })?;
            images.push(ImageV1 {
                place: PlaceV1::Device { device },
                staging_path: path.clone(),
                final_path: path,
                ..planned_image(survey, file, image)?
            });
            continue;
        }
        let facts = placement::directory_for(request, &survey.destination, file)
            .map_err(|why| PlanError::NoDirectory { what: file.what(), why })?;
        let index = directory_number(&mut directories, facts, txn, circumstances);
        let final_path = placement::final_path(request, (&survey.new_name, txn), &survey.destination, facts, file);
        images.push(ImageV1 {
            place: PlaceV1::Directory { directory: number(index) },
            staging_path: format!("{}/{}", directories[index].staging, placement::staged_name(file)),
            final_path: final_path.unwrap_or_else(|| tpm_state(survey, clone_uuid)),
            ..planned_image(survey, file, image)?
        });
    }
    for (index, file) in survey.source.files.iter().enumerate() {
        if let (Below::Image { reference, file: below }, Some(image)) = (&file.below, file.image()) {
            let clone = reference_to(reference, &images[index].final_path, &images[*below].final_path);
            if let Err(why) = renamed_backing(&image.head, &clone) {
                return Err(PlanError::Backing { path: image.path.clone(), reference: clone, why });
            }
            images[index].backing = Some(BackingV1 { source: reference.clone(), clone });
        }
    }
    Ok((directories, images))
}

/// The place of a directory among those of the plan, where it is put if it is new.
fn directory_number(
    directories: &mut Vec<DirectoryV1>,
    facts: &DirectoryFacts,
    txn: TxnId,
    circumstances: &mut Circumstances<'_>,
) -> usize {
    let known = directories.iter().position(|directory| directory.path == facts.path);
    known.unwrap_or_else(|| {
        directories.push(DirectoryV1 {
            path: facts.path.clone(),
            inode: facts.stat.inode,
            staging: placement::join(&facts.path, &format!(".kvm-clone/{txn}")),
            nonce: (circumstances.random)(),
        });
        directories.len() - 1
    })
}

/// How an image of the clone names the one below: relative where it was and both lie together, else in full.
fn reference_to(source: &str, from: &str, to: &str) -> String {
    let together = parent_of(from) == parent_of(to);
    match to.rsplit_once('/') {
        // A name with a colon would be taken for a protocol.
        Some((_, name)) if together && !source.starts_with('/') && !name.contains(':') => name.to_owned(),
        _ => to.to_owned(),
    }
}

/// A device that may be written over, with its node.
fn planned_device(survey: &Survey, typed: &str) -> Option<(String, DeviceV1)> {
    let target = survey.destination.devices.get(typed)?;
    let facts = target.facts.as_ref()?;
    let device = DeviceV1 { identity: facts.identity.clone()?, bytes: facts.bytes, named: typed.to_owned() };
    Some((target.path.clone(), device))
}

/// What is known of an image before it has a place.
fn planned_image(survey: &Survey, file: &SourceFile, image: &ImageFacts) -> Result<ImageV1, PlanError> {
    let source_kind = file.source_kind();
    let (mode, owner) = match source_kind {
        // Who may do what with a device says nothing of an image.
        SourceKindV1::Device => (DEVICE_IMAGE_MODE, (0, 0)),
        SourceKindV1::File => (final_mode(image.stat.mode), owner_there(survey, &image.owner)),
    };
    let unreadable = || PlanError::NoImage { what: file.what() };
    let layer = |layer: &FlattenedLayer| {
        Some(LayerV1 {
            reference: layer.reference.clone(),
            reached_by: layer.file.path.clone(),
            source_path: layer.file.image()?.path.clone(),
            format: layer.file.format,
        })
    };
    Ok(ImageV1 {
        role: file.role.clone(),
        format: file.format,
        reached_by: file.path.clone(),
        source_path: image.path.clone(),
        source_stamp: file.stamp().ok_or_else(unreadable)?,
        allocated_bytes: file.allocated_bytes().ok_or_else(unreadable)?,
        place: PlaceV1::Directory { directory: 0 },
        staging_path: String::new(),
        final_path: String::new(),
        mode,
        owner,
        backing: None,
        source_kind,
        flattened: file.flattened.iter().map(layer).collect::<Option<_>>().ok_or_else(unreadable)?,
    })
}

/// The numbers of an owner on the destination. A name that is not known there is root's, never a stranger's with the
/// same number.
fn owner_there(survey: &Survey, names: &OwnerNames) -> (u32, u32) {
    let owner = survey.destination.owners.get(names).copied().unwrap_or_default();
    (owner.user.unwrap_or(0), owner.group.unwrap_or(0))
}

/// The directories that the state of the clone's TPM needs; its UUID makes them its own.
fn tpm_directories(survey: &Survey, clone_uuid: DomainUuid) -> Vec<NewDirectoryV1> {
    let Some(version) = survey.source.definition.tpm else { return Vec::new() };
    let (states, makes_states) = placement::tpm_states(&survey.destination);
    let paths = places::tpm_directories(&states, clone_uuid, version).into_iter();
    paths
        .zip(&survey.source.tpm_directories)
        .zip([makes_states, false])
        .map(|((path, attributes), makes_parent)| NewDirectoryV1 {
            path,
            mode: attributes.mode,
            owner: owner_there(survey, &attributes.owner),
            makes_parent,
        })
        .collect()
}

/// Where the state of the clone's TPM goes.
fn tpm_state(survey: &Survey, clone_uuid: DomainUuid) -> String {
    let (states, _) = placement::tpm_states(&survey.destination);
    places::tpm_state(&states, clone_uuid, survey.source.definition.tpm.unwrap_or(Tpm::V2))
}

/// The source image's permission bits. None at all is what an unfinished image has, and is never a finished one's.
fn final_mode(mode: u32) -> u32 {
    match mode & 0o777 {
        0 => 0o600,
        kept => kept,
    }
}

/// The clone's definition: beside the old VM until the commit.
fn clone_definition(rewriting: &mut Rewriting<'_, '_>, survey: &Survey, txn: TxnId) -> Result<String, PlanError> {
    let changes = rewriting.changes(&survey.source.definition)?.named(&survey.new_name);
    let name = survey.destination.old.as_ref().map(|_| survey.new_name.beside(txn));
    let name = name.or_else(|| changes.name.clone());
    Ok(rewrite(&survey.source.definition, &Rewrite { name, ..changes })?)
}

/// What becomes of everything that the source's definitions name: the same in its own and in those inside its snapshots.
struct Rewriting<'a, 'r> {
    request: &'a Request,
    survey: &'a Survey,
    images: &'a [ImageV1],
    identity: Option<Identity>,
    variables: Option<String>,
    /// MAC addresses that somebody has, in small letters.
    taken_macs: BTreeSet<String>,
    /// The clone's MAC address by the source's, in small letters.
    macs: BTreeMap<String, String>,
    circumstances: &'a mut Circumstances<'r>,
}

impl<'a, 'r> Rewriting<'a, 'r> {
    fn new(
        request: &'a Request,
        survey: &'a Survey,
        (txn, clone_uuid): (TxnId, DomainUuid),
        images: &'a [ImageV1],
        circumstances: &'a mut Circumstances<'r>,
    ) -> Self {
        let neighbours = survey.source.neighbours.iter().chain(&survey.destination.neighbours);
        let mut taken_macs: BTreeSet<String> =
            neighbours.flat_map(|neighbour| neighbour.macs.iter().cloned()).collect();
        taken_macs.extend(survey.source.definitions().flat_map(Definition::macs));
        let placed = survey.source.files.iter().zip(images);
        let mut variables = placed.filter(|(file, _)| file.role == ImageRoleV1::Nvram);
        Self {
            request,
            survey,
            images,
            identity: (!request.preserve_uuid).then(|| Identity { uuid: clone_uuid, genid: new_uuid(circumstances) }),
            variables: variables
                .next()
                .map(|(_, image)| image.final_path.clone())
                .or_else(|| new_variables(survey, txn)),
            taken_macs,
            macs: BTreeMap::new(),
            circumstances,
        }
    }

    /// The changes of one of these definitions, but for its name.
    fn changes(&mut self, definition: &Definition) -> Result<Rewrite, PlanError> {
        let macs = if self.request.preserve_mac { BTreeMap::new() } else { self.new_macs(definition)? };
        let mut changes = Rewrite {
            identity: self.identity,
            emulator: match &self.survey.destination.emulator {
                EmulatorFacts::Path(path) => Some(path.clone()),
                EmulatorFacts::Refused(_) => None,
            },
            emptied: self.emptied_drives(definition),
            variables: definition.os.variables.as_ref().and(self.variables.clone()),
            macs,
            networks: renamed_networks(self.request, definition),
            mark: Change::Remove,
            ..Rewrite::default()
        };
        for disk in &definition.disks {
            let Some(top) = self.survey.source.file_of(disk) else { continue };
            if let Some(image) = self.images.get(top) {
                match image.device() {
                    Some(device) => changes.disk_devices.insert(disk.index, device.named.clone()),
                    None => changes.disk_files.insert(disk.index, image.final_path.clone()),
                };
            }
            let chain = self.chain_files(disk, top);
            changes.chain_files.extend((!chain.is_empty()).then_some((disk.index, chain)));
            let is_flattened = self.survey.source.files.get(top).is_some_and(|file| !file.flattened.is_empty());
            changes.flattened.extend(is_flattened.then_some(disk.index));
        }
        Ok(changes)
    }

    /// Where the chain below a disk is, as far as its definition names it.
    fn chain_files(&self, disk: &Disk, top: usize) -> Vec<String> {
        let written = disk.chain.as_ref().map_or(0, Vec::len);
        let layers = self.survey.source.chain_below(top).take(written);
        layers.filter_map(|at| Some(self.images.get(at)?.final_path.clone())).collect()
    }

    /// Drives whose media the destination does not have.
    fn emptied_drives(&self, definition: &Definition) -> BTreeSet<usize> {
        let media = &self.survey.destination.media;
        let is_missing = |disk: &&Disk| disk.medium().is_some_and(|path| media.get(path) == Some(&false));
        definition.media().filter(is_missing).map(|disk| disk.index).collect()
    }

    /// A MAC address for each interface, by its index: free on both hosts and among themselves, and the same one wherever the
    /// source has the same.
    fn new_macs(&mut self, definition: &Definition) -> Result<BTreeMap<usize, String>, PlanError> {
        let mut macs = BTreeMap::new();
        for interface in &definition.interfaces {
            let was = interface.mac.as_ref().map(|mac| mac.to_ascii_lowercase());
            let mac = match was.as_ref().and_then(|was| self.macs.get(was)) {
                Some(mac) => mac.clone(),
                None => self.draw_free_mac()?,
            };
            self.macs.extend(was.map(|was| (was, mac.clone())));
            macs.insert(interface.index, mac);
        }
        Ok(macs)
    }

    fn draw_free_mac(&mut self) -> Result<String, PlanError> {
        let (circumstances, taken) = (&mut self.circumstances, &mut self.taken_macs);
        let mut draws = (0..MAC_DRAWS_MAX).map(|_| draw_mac((circumstances.random)()));
        draws.find(|mac| taken.insert(mac.clone())).ok_or(PlanError::NoMac)
    }
}

/// Where libvirt will make the variables of a clone whose source was never started.
fn new_variables(survey: &Survey, txn: TxnId) -> Option<String> {
    let variables = survey.source.definition.os.variables.as_ref()?;
    // A file that is there would be adopted: an old VM may have one of that name.
    let name = match &survey.destination.old {
        Some(_) => format!("{}-{}", survey.new_name, txn.short()),
        None => survey.new_name.to_string(),
    };
    Some(places::variables(&name, variables.format))
}

/// The other name of each network or bridge that has one on the destination, by the interface's index.
fn renamed_networks(request: &Request, definition: &Definition) -> BTreeMap<usize, String> {
    let interfaces = definition.interfaces.iter();
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

fn forward_steps(
    request: &Request,
    directories: usize,
    new_directories: usize,
    (images, bases): (&[ImageV1], usize),
) -> Vec<StepV1> {
    let mut steps = vec![StepV1::ReserveRecord, StepV1::ClaimName];
    let on = |devices: bool| {
        let images = (0..).zip(images).filter(move |(_, image)| image.device().is_some() == devices);
        images.map(|(image, _)| image)
    };
    steps.extend(on(true).map(|image| StepV1::ClaimDevice { image }));
    steps.extend((0..directories).map(|directory| StepV1::CreateStaging { directory: number(directory) }));
    steps.push(StepV1::DetectSharedStorage);
    steps.extend((0..bases).map(|base| StepV1::HoldBase { base: number(base) }));
    for (image, planned) in (0..).zip(images) {
        steps.extend(planned.directory().map(|_| StepV1::CreateImage { image }));
        steps.push(StepV1::TransferImage { image });
        if request.verify {
            steps.push(StepV1::VerifyImage { image });
        }
    }
    steps.extend((0..new_directories).map(|directory| StepV1::MakeDirectory { directory: number(directory) }));
    steps.extend(on(false).map(|image| StepV1::PublishImage { image }));
    steps.push(StepV1::DefineDomain);
    steps
}

fn clean_up_steps(
    request: &Request,
    survey: &Survey,
    replaced: Option<&ReplacedV1>,
    directories: usize,
    pools: usize,
) -> Vec<CleanUpStepV1> {
    let (mut steps, deleting) = replaced::clean_up(replaced);
    steps.extend([CleanUpStepV1::FinishDomain, CleanUpStepV1::ReleaseClaim]);
    if starts_with_its_host(request, survey) {
        steps.push(CleanUpStepV1::SetAutostart);
    }
    if request.start {
        steps.push(CleanUpStepV1::StartDomain);
    }
    steps.extend(deleting);
    steps.extend((0..directories).map(|directory| CleanUpStepV1::RemoveStaging { directory: number(directory) }));
    steps.extend((0..pools).map(|pool| CleanUpStepV1::RefreshPool { pool: number(pool) }));
    steps.push(CleanUpStepV1::RemoveRecord);
    steps
}

/// An index as the plan holds it. A definition that libvirt carries is at most 4 MiB, so there are never 2^32 of anything.
fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}
