//! The destination's half of the survey.

use std::collections::{BTreeMap, BTreeSet};

use journal_format::ImageFormat;
use journal_format::owner::{OWNER_FILE_BYTES, decode_owner_file};

use super::neighbours::neighbours;
use super::{
    ClaimFacts, DestinationSurvey, DirectoryFacts, EmulatorFacts, OwnerNames, OwnerNumbers, PoolSurvey, SourceFile,
    SourceSurvey, SurveyError, TargetDevice, words_of_refusal,
};
use crate::domain::{Definition, Disk, DomainName, documents, places};
use crate::reach::Reached;
use crate::request::Request;
use crate::steps::host_record::{CLAIMS, DEVICE_CLAIMS, HOST_ROOT, parent_of};
use crate::survey::placement;
use crate::world::{Fault, FaultKind, Host, readable};

pub(super) fn survey(
    host: &dyn Host,
    request: &Request,
    source: &SourceSurvey,
    new_name: &DomainName,
) -> Result<DestinationSurvey, SurveyError> {
    let pools = pools(host)?;
    let mut directories = BTreeMap::new();
    let mut taken = BTreeSet::new();
    for file in &source.files {
        let preferred = placement::preferred_name(request, new_name, file);
        for candidate in placement::candidate_directories(request, &pools, file) {
            let Some(facts) = directory(host, &candidate)? else { continue };
            if let Some(preferred) = &preferred {
                let path = placement::join(&facts.path, preferred);
                if host.stat(&path)?.is_some() {
                    taken.insert(path);
                }
            }
            directories.insert(candidate, facts);
        }
    }
    Ok(DestinationSurvey {
        name: host.name(),
        host: host.facts()?,
        neighbours: neighbours(host)?,
        networks: host.networks()?,
        bridges: bridges(host, request, source)?,
        pools,
        directories,
        record: nearest_directory(host, HOST_ROOT)?,
        taken,
        devices: devices(host, request)?,
        media: media(host, source)?,
        leftovers: leftovers(host, new_name)?,
        old: None,
        bases: Vec::new(),
        is_twin: false,
        claim: claim(host, new_name)?,
        emulator: emulator(host, &source.definition)?,
        cpu_lacks: cpu_lacks(host, &source.definition)?,
        swtpm: swtpm(host, &source.definition)?,
        owners: owners(host, source)?,
    })
}

fn pools(host: &dyn Host) -> Result<Vec<PoolSurvey>, Fault> {
    host.pools()?
        .into_iter()
        .map(|facts| {
            let real_path = facts.path.as_deref().map_or(Ok(None), |path| host.resolve(path))?;
            Ok(PoolSurvey { facts, real_path })
        })
        .collect()
}

/// The facts of a directory (or whatever else is there); `None` when nothing is.
pub(super) fn directory(host: &dyn Host, path: &str) -> Result<Option<DirectoryFacts>, Fault> {
    let Some(path) = host.resolve(path)? else { return Ok(None) };
    let Some(stat) = host.stat(&path)? else { return Ok(None) };
    let filesystem = host.filesystem(&path)?;
    let staging_parent = host.stat(&placement::join(&path, ".kvm-clone"))?;
    Ok(Some(DirectoryFacts { path, stat, filesystem, staging_parent }))
}

/// A directory, or the nearest one above it that exists.
fn nearest_directory(host: &dyn Host, path: &str) -> Result<DirectoryFacts, Fault> {
    let mut path = path;
    loop {
        match directory(host, path)? {
            Some(facts) => return Ok(facts),
            // `/` always exists; a host that says otherwise fails at its filesystem, in its own words.
            None if path == "/" => {
                let filesystem = host.filesystem("/")?;
                return Err(Fault {
                    kind: FaultKind::Io,
                    host: host.name(),
                    operation: "stat /".to_owned(),
                    detail: format!("the root directory (on {}) cannot be found", filesystem.kind),
                });
            }
            None => path = parent_of(path),
        }
    }
}

/// Those bridges which the clone would use and the host has.
fn bridges(host: &dyn Host, request: &Request, source: &SourceSurvey) -> Result<BTreeSet<String>, Fault> {
    let mut found = BTreeSet::new();
    for name in source.bridges() {
        let name = request.mapped_network(name);
        if host.stat(&format!("/sys/class/net/{name}/bridge"))?.is_some() {
            found.insert(name.to_owned());
        }
    }
    Ok(found)
}

/// What the block devices are that may be written over.
fn devices(host: &dyn Host, request: &Request) -> Result<BTreeMap<String, TargetDevice>, Fault> {
    if request.overwritten.is_empty() {
        return Ok(BTreeMap::new());
    }
    let reached = Reached::on(host, None)?;
    let look = |typed: &String| {
        let path = host.resolve(typed)?.unwrap_or_else(|| typed.clone());
        let facts = host.device(&path)?;
        let identity = facts.as_ref().and_then(|facts| facts.identity.clone());
        let claim = identity.map_or(Ok(None), |identity| claim_at(host, format!("{DEVICE_CLAIMS}/{identity}")))?;
        let reached = reached.by(&path)?;
        Ok((typed.clone(), TargetDevice { path, facts, reached, claim, used_on_source: None }))
    };
    request.overwritten.iter().map(look).collect()
}

/// Who uses that device on the source's host, which may see it too: a VM, or that host itself. Also a part of it, or all of what it
/// is a part of.
pub(super) fn used_on_source(host: &dyn Host, device: &TargetDevice) -> Result<Option<String>, Fault> {
    let Some(identity) = device.identity() else { return Ok(None) };
    let nodes = host.devices_like(identity)?;
    if nodes.is_empty() {
        return Ok(None);
    }
    let reached = Reached::on(host, None)?;
    for node in nodes {
        if let Some(who) = reached.by(&node)? {
            return Ok(Some(format!("{node} there: {who}")));
        }
        // What cannot be opened may be used all the same.
        if readable(host.device(&node))?.is_none_or(|facts| facts.is_some_and(|facts| facts.in_use)) {
            return Ok(Some(format!(
                "{node} there has partitions, or is mounted, swapped on, or part of another device"
            )));
        }
    }
    Ok(None)
}

/// Which of the media that are not copied are there.
fn media(host: &dyn Host, source: &SourceSurvey) -> Result<BTreeMap<String, bool>, Fault> {
    let is_copied = |path: &str| source.files.iter().any(|file| file.path == path);
    let paths: BTreeSet<_> = source.definitions().flat_map(Definition::media).filter_map(Disk::medium).collect();
    let left = paths.into_iter().filter(|path| !is_copied(path));
    left.map(|path| Ok((path.to_owned(), host.resolve(path)?.is_some()))).collect()
}

/// Files and directories that libvirt would take for the clone's own, because it makes their names of the domain's.
fn leftovers(host: &dyn Host, new_name: &DomainName) -> Result<Vec<String>, Fault> {
    let mut found = Vec::new();
    for path in [
        format!("/etc/libvirt/qemu/{new_name}.xml"),
        format!("/etc/libvirt/qemu/autostart/{new_name}.xml"),
        places::variables(new_name.as_str(), ImageFormat::Raw),
        places::variables(new_name.as_str(), ImageFormat::Qcow2),
        format!("/var/lib/libvirt/qemu/save/{new_name}.save"),
        format!("/var/lib/libvirt/qemu/snapshot/{new_name}"),
        format!("/var/lib/libvirt/qemu/checkpoint/{new_name}"),
    ] {
        if host.stat(&path)?.is_some() {
            found.push(path);
        }
    }
    Ok(found)
}

/// Who holds the clone's name: the claim is a link to an owner file.
fn claim(host: &dyn Host, new_name: &DomainName) -> Result<Option<ClaimFacts>, Fault> {
    claim_at(host, format!("{CLAIMS}/{new_name}"))
}

fn claim_at(host: &dyn Host, path: String) -> Result<Option<ClaimFacts>, Fault> {
    let Some(bytes) = host.read(&path, OWNER_FILE_BYTES as u64)? else { return Ok(None) };
    let owner = decode_owner_file(&bytes).map_err(|error| error.to_string());
    Ok(Some(ClaimFacts { path, owner }))
}

/// Asks for the emulator of the VM's architecture, machine type and virtualization.
fn emulator(host: &dyn Host, definition: &Definition) -> Result<EmulatorFacts, Fault> {
    let os = &definition.os;
    // An empty word lets libvirt choose, as it does at define.
    let (arch, machine) = (os.arch.as_deref().unwrap_or(""), os.machine.as_deref().unwrap_or(""));
    let answer = host.domain_capabilities(arch, machine, &definition.virt_type);
    Ok(match words_of_refusal(answer)? {
        Ok(capabilities) => match documents::emulator(&capabilities) {
            Some(path) => EmulatorFacts::Path(path),
            None => EmulatorFacts::Refused("libvirt's domain capabilities name no emulator".to_owned()),
        },
        Err(words) => EmulatorFacts::Refused(words),
    })
}

/// What the host's QEMU lacks of a CPU that is named by model and features. Others are what the host has.
fn cpu_lacks(host: &dyn Host, definition: &Definition) -> Result<Option<String>, Fault> {
    let os = &definition.os;
    let (arch, machine) = (os.arch.as_deref().unwrap_or(""), os.machine.as_deref().unwrap_or(""));
    match (&definition.cpu, definition.cpu_mode.as_deref()) {
        (Some(cpu), Some("custom")) => host.lacks_of_cpu(arch, machine, &definition.virt_type, cpu),
        _ => Ok(None),
    }
}

/// The version of swtpm, where it matters.
pub(super) fn swtpm(host: &dyn Host, definition: &Definition) -> Result<Option<String>, Fault> {
    definition.tpm.map_or(Ok(None), |_| host.swtpm_version())
}

/// Numbers on the destination of the names that own the source's images.
fn owners(host: &dyn Host, source: &SourceSurvey) -> Result<BTreeMap<OwnerNames, OwnerNumbers>, Fault> {
    let files = source.files.iter().filter_map(SourceFile::image).map(|image| &image.owner);
    let names: BTreeSet<_> = files.chain(source.tpm_directories.iter().map(|directory| &directory.owner)).collect();
    names
        .into_iter()
        .map(|names| {
            // An empty name is nobody's.
            let name = |name: &Option<String>| name.clone().unwrap_or_default();
            let (user, group) = host.ids_of(&name(&names.user), &name(&names.group))?;
            Ok((names.clone(), OwnerNumbers { user, group }))
        })
        .collect()
}
