//! `vms HOST…`: which VMs there are.

use std::fmt::Write;

use clap::Args;
use journal_format::ImageFormat;
use serde::Serialize;
use serde_json::{Value, json};

use super::error::CliError;
use super::exit::ExitStatus;
use super::session::Session;
use crate::domain::qcow2::{HEADER_READ_BYTES, Header};
use crate::domain::{Definition, Disk, DiskSource};
use crate::host::{Access, Address, Connector, Role};
use crate::report::quantity::{bytes, printable};
use crate::report::table::lay_out;
use crate::world::{DomainFacts, DomainState, Fault, Host, readable};

/// Which hosts.
#[derive(Debug, Args)]
pub struct VmsArgs {
    /// `local`, `[user@]host[:port]`, or an alias of ~/.ssh/config
    #[arg(value_name = "HOST", required = true)]
    hosts: Vec<String>,
    /// Private key file for all of them
    #[arg(long, value_name = "FILE")]
    ssh_key: Option<std::path::PathBuf>,
}

/// A VM in the list.
#[derive(Debug, Serialize)]
struct VmView {
    host: String,
    name: String,
    uuid: String,
    /// `shut_off` or `active`.
    state: &'static str,
    autostart: bool,
    disks: Vec<DiskView>,
}

/// A disk in the list. What this user cannot see is `None`.
#[derive(Debug, Serialize)]
struct DiskView {
    target: String,
    /// By the definition, or by the pool that has it as a volume.
    path: Option<String>,
    /// `raw`, `qcow2` or whatever the definition says.
    format: Option<String>,
    /// Bytes that its guest sees.
    guest_bytes: Option<u64>,
    /// Bytes of the image.
    size_bytes: Option<u64>,
    allocated_bytes: Option<u64>,
}

/// Lists the VMs of each host. A host that cannot be asked is named; the others are listed all the same.
pub fn vms(args: &VmsArgs, session: &Session) -> Result<ExitStatus, CliError> {
    let addresses = args.hosts.iter().map(|host| host.parse()).collect::<Result<Vec<Address>, _>>()?;
    let connector = session.connector()?;
    let mut status = ExitStatus::Done;
    let mut views: Vec<VmView> = Vec::new();
    let mut failures: Vec<Value> = Vec::new();
    let mut empty: Vec<String> = Vec::new();
    for address in addresses {
        let access = Access::new(address.clone(), args.ssh_key.clone());
        match look(&connector, &access) {
            Ok(found) => {
                empty.extend(found.is_empty().then(|| address.to_string()));
                views.extend(found);
            }
            Err(fault) => {
                let error = CliError::before_begun(&fault);
                status = status.worse(error.exit);
                session.terminal.complain(&error);
                failures.push(json!({ "host": address.to_string(), "error": error.view() }));
            }
        }
    }
    let values: Vec<Value> = views.iter().map(|view| json!(view)).chain(failures).collect();
    session.terminal.result(&values, || table(&views, &empty));
    Ok(status)
}

fn look(connector: &Connector, access: &Access) -> Result<Vec<VmView>, Fault> {
    let host = connector.connect(access, Role::Look)?;
    let mut views = Vec::new();
    for brief in host.domains()? {
        // One that went away meanwhile is no longer there to be listed.
        if let Some(facts) = host.domain(brief.uuid)? {
            views.push(view(host.as_ref(), &facts)?);
        }
    }
    views.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(views)
}

fn view(host: &dyn Host, facts: &DomainFacts) -> Result<VmView, Fault> {
    let mut disks = Vec::new();
    // A definition that cannot be read is `run`'s to complain about.
    if let Ok(definition) = Definition::parse(&facts.definition) {
        for disk in definition.images() {
            disks.push(disk_view(host, disk)?);
        }
    }
    Ok(VmView {
        host: host.name(),
        name: facts.brief.name.clone(),
        uuid: facts.brief.uuid.to_string(),
        state: match facts.brief.state {
            DomainState::ShutOff => "shut_off",
            DomainState::Active => "active",
        },
        autostart: facts.autostart,
        disks,
    })
}

fn disk_view(host: &dyn Host, disk: &Disk) -> Result<DiskView, Fault> {
    let path = match &disk.source {
        DiskSource::File(path) | DiskSource::Device(path) => Some(path.clone()),
        DiskSource::Volume { pool, volume } => readable(host.volume_path(pool, volume))?.flatten(),
        DiskSource::Empty | DiskSource::Elsewhere { .. } => None,
    };
    let real = path.as_deref().map_or(Ok(None), |path| Ok(readable(host.resolve(path))?.flatten()))?;
    let stat = real.as_deref().map_or(Ok(None), |real| Ok(readable(host.stat(real))?.flatten()))?;
    let head = match &real {
        Some(real) if disk.image_format() == Some(ImageFormat::Qcow2) => {
            readable(host.read(real, HEADER_READ_BYTES as u64))?.flatten()
        }
        _ => None,
    };
    let is_raw = disk.image_format() == Some(ImageFormat::Raw);
    Ok(DiskView {
        target: disk.target.clone(),
        path,
        format: disk.format.clone(),
        guest_bytes: match head.and_then(|head| Header::read(&head).ok()) {
            Some(header) => Some(header.virtual_size_bytes),
            None => stat.filter(|_| is_raw).map(|stat| stat.size),
        },
        size_bytes: stat.map(|stat| stat.size),
        allocated_bytes: stat.map(|stat| stat.allocated),
    })
}

/// `empty`: hosts that answered and have no VM.
fn table(views: &[VmView], empty: &[String]) -> String {
    let mut text = vms_table(views);
    for host in empty {
        let _ = writeln!(text, "no VMs on {}", printable(host));
    }
    text
}

fn vms_table(views: &[VmView]) -> String {
    if views.is_empty() {
        return String::new();
    }
    let size = |count: Option<u64>| count.map_or_else(|| "?".to_owned(), bytes);
    let disk = |disk: &DiskView| {
        format!("{} {} ({} allocated)", disk.target, size(disk.guest_bytes), size(disk.allocated_bytes))
    };
    let rows: Vec<[String; 5]> = views
        .iter()
        .map(|vm| {
            let disks: Vec<String> = vm.disks.iter().map(disk).collect();
            [vm.host.clone(), vm.name.clone(), vm.uuid.clone(), vm.state.to_owned(), disks.join(", ")]
        })
        .collect();
    lay_out(["HOST", "VM", "UUID", "STATE", "DISKS"], &rows)
}
