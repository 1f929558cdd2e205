//! The calls themselves: each takes the connection on its thread and says what libvirt said.

use std::ffi::CString;

use journal_format::DomainUuid;
use virt::connect::Connect;
use virt::domain::{
    Domain, DomainPausedReason, DomainPausedReasonEnum, DomainStateEnum, DomainStateReason, DomainStateReasonEnum,
};
use virt::error::ErrorNumber;
use virt::storage_pool::StoragePool;

use super::{Libvirt, MEMORY_CALL_SECONDS_MAX, Refusal};
use crate::domain::documents::{PoolDocument, name_and_uuid};
use crate::world::{DomainBrief, DomainFacts, DomainState, Fault, FaultKind, NetworkFacts, PoolFacts};

/// Prefix of our metadata element.
const METADATA_KEY: &str = "kvm-clone";
/// Namespace of our metadata element.
const METADATA_URI: &str = "https://kvm-clone.org/ns/domain/1";
/// The first libvirt that knows `VIR_DOMAIN_UNDEFINE_KEEP_TPM`: 8.9.0.
const KEEP_TPM_SINCE: u32 = 8_009_000;

/// What libvirt says of its host.
pub(in crate::host) struct LibvirtFacts {
    pub(in crate::host) libvirt_version: u64,
    pub(in crate::host) hypervisor_version: u64,
    pub(in crate::host) capabilities: String,
}

impl Libvirt {
    pub(in crate::host) async fn facts(&self) -> Result<LibvirtFacts, Fault> {
        self.ask("ask libvirt about its host", |connect| {
            Ok(LibvirtFacts {
                libvirt_version: connect.lib_version()?.into(),
                hypervisor_version: connect.hyp_version()?.into(),
                capabilities: connect.capabilities()?,
            })
        })
        .await
    }

    pub(in crate::host) async fn domains(&self) -> Result<Vec<DomainBrief>, Fault> {
        self.ask("list domains", |connect| {
            let mut briefs = Vec::new();
            for domain in connect.list_all_domains(0)? {
                briefs.extend(unless_gone(brief(&domain))?);
            }
            briefs.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(briefs)
        })
        .await
    }

    pub(in crate::host) async fn domain(&self, uuid: DomainUuid) -> Result<Option<DomainFacts>, Fault> {
        self.ask(&format!("look at domain {uuid}"), move |connect| whole(find(connect, uuid)?)).await
    }

    pub(in crate::host) async fn domain_named(&self, name: &str) -> Result<Option<DomainFacts>, Fault> {
        let wanted = name.to_owned();
        self.ask(&format!("look at domain {name}"), move |connect| {
            whole(unless_gone(connect.lookup_domain_by_name(&wanted).map_err(Refusal::from))?)
        })
        .await
    }

    pub(in crate::host) async fn define(&self, definition: &str) -> Result<(), Fault> {
        let (name, uuid) = name_and_uuid(definition);
        let operation = format!("define domain {}", name.as_deref().unwrap_or("without a name"));
        let text = definition.to_owned();
        let result = self
            .change(&operation, move |connect| {
                connect.define_domain_xml_flags(&text, virt_sys::VIR_DOMAIN_DEFINE_VALIDATE)?;
                Ok(())
            })
            .await;
        match result {
            // libvirt has one code for every refusal; what is really there tells a name that is taken.
            Err(fault) if fault.kind == FaultKind::Refused => {
                if let (Some(name), Some(uuid)) = (name, uuid)
                    && self.domain_named(&name).await?.is_some_and(|there| there.brief.uuid != uuid)
                {
                    return Err(Fault { kind: FaultKind::AlreadyExists, ..fault });
                }
                Err(fault)
            }
            other => other,
        }
    }

    pub(in crate::host) async fn undefine(&self, uuid: DomainUuid) -> Result<(), Fault> {
        self.change(&format!("undefine domain {uuid}"), move |connect| undefine(connect, uuid, 0)).await
    }

    pub(in crate::host) async fn undefine_whole(&self, uuid: DomainUuid) -> Result<(), Fault> {
        let flags = virt_sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | virt_sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA;
        self.change(&format!("undefine domain {uuid} with its saved state"), move |connect| {
            undefine(connect, uuid, flags)
        })
        .await
    }

    pub(in crate::host) async fn rename(&self, uuid: DomainUuid, name: &str) -> Result<(), Fault> {
        let wanted = name.to_owned();
        let result = self
            .change(&format!("rename domain {uuid} to {name}"), move |connect| {
                let domain = must_find(connect, uuid)?;
                if domain.name()? != wanted {
                    domain.rename(&wanted, 0)?;
                }
                Ok(())
            })
            .await;
        match result {
            // libvirt has one code for every refusal; what is really there tells a name that is taken.
            Err(fault) if fault.kind == FaultKind::Refused => match self.domain_named(name).await? {
                Some(there) if there.brief.uuid != uuid => Err(Fault { kind: FaultKind::AlreadyExists, ..fault }),
                _ => Err(fault),
            },
            other => other,
        }
    }

    pub(in crate::host) async fn live_definition(&self, uuid: DomainUuid) -> Result<Option<String>, Fault> {
        self.ask(&format!("look at what domain {uuid} runs with"), move |connect| {
            let Some(domain) = find(connect, uuid)? else { return Ok(None) };
            if !domain.is_active()? {
                return Ok(None);
            }
            unless_gone(domain.xml_desc(virt_sys::VIR_DOMAIN_XML_SECURE).map_err(Refusal::from))
        })
        .await
    }

    pub(in crate::host) async fn shut_down(&self, uuid: DomainUuid) -> Result<(), Fault> {
        self.change(&format!("ask domain {uuid} to shut down"), move |connect| {
            unless_off(&must_find(connect, uuid)?, |domain| {
                domain.shutdown_flags(virt_sys::VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
            })
        })
        .await
    }

    pub(in crate::host) async fn destroy(&self, uuid: DomainUuid) -> Result<(), Fault> {
        self.change(&format!("switch domain {uuid} off"), move |connect| {
            unless_off(&must_find(connect, uuid)?, Domain::destroy)
        })
        .await
    }

    pub(in crate::host) async fn save(&self, uuid: DomainUuid, path: &str) -> Result<(), Fault> {
        let to = path.to_owned();
        let operation = format!("save the memory of domain {uuid} to {path}");
        self.change_within(MEMORY_CALL_SECONDS_MAX, &operation, move |connect| save(&must_find(connect, uuid)?, &to))
            .await
    }

    pub(in crate::host) async fn restore(&self, path: &str) -> Result<(), Fault> {
        let from = path.to_owned();
        let operation = format!("restore the memory saved in {path}");
        self.change_within(MEMORY_CALL_SECONDS_MAX, &operation, move |connect| Ok(connect.restore_domain(&from)?)).await
    }

    pub(in crate::host) async fn set_metadata(&self, uuid: DomainUuid, element: Option<&str>) -> Result<(), Fault> {
        let element = element.map(str::to_owned);
        self.change(&format!("set our metadata of domain {uuid}"), move |connect| {
            set(
                connect,
                uuid,
                virt_sys::VIR_DOMAIN_METADATA_ELEMENT,
                element.as_deref(),
                Some((METADATA_KEY, METADATA_URI)),
            )
        })
        .await
    }

    pub(in crate::host) async fn set_title(&self, uuid: DomainUuid, title: Option<&str>) -> Result<(), Fault> {
        let title = title.map(str::to_owned);
        self.change(&format!("set the title of domain {uuid}"), move |connect| {
            set(connect, uuid, virt_sys::VIR_DOMAIN_METADATA_TITLE, title.as_deref(), None)
        })
        .await
    }

    pub(in crate::host) async fn set_autostart(&self, uuid: DomainUuid, autostart: bool) -> Result<(), Fault> {
        self.change(&format!("set autostart of domain {uuid}"), move |connect| {
            Ok(must_find(connect, uuid)?.set_autostart(autostart)?)
        })
        .await
    }

    pub(in crate::host) async fn start(&self, uuid: DomainUuid) -> Result<(), Fault> {
        let result = self
            .change(&format!("start domain {uuid}"), move |connect| {
                let domain = must_find(connect, uuid)?;
                if domain.is_active()? {
                    return Ok(());
                }
                Ok(domain.create()?)
            })
            .await;
        result.map_err(|fault| {
            // QEMU's own words, which it never translates.
            let locked = fault.kind == FaultKind::Refused && fault.detail.contains("Failed to get \"write\" lock");
            if locked { Fault { kind: FaultKind::InUse, ..fault } } else { fault }
        })
    }

    pub(in crate::host) async fn native_command(&self, definition: &str) -> Result<String, Fault> {
        let text = definition.to_owned();
        self.ask("ask what QEMU would be started with", move |connect| {
            Ok(connect.domain_xml_to_native("qemu-argv", &text, 0)?)
        })
        .await
    }

    pub(in crate::host) async fn domain_capabilities(
        &self,
        arch: &str,
        machine: &str,
        virt_type: &str,
    ) -> Result<String, Fault> {
        let (arch, machine, virt_type) = (arch.to_owned(), machine.to_owned(), virt_type.to_owned());
        self.ask("ask for the capabilities of domains", move |connect| {
            Ok(connect.domain_capabilities(None, Some(&arch), Some(&machine), Some(&virt_type), 0)?)
        })
        .await
    }

    /// `kind`: architecture, machine and virtualization type; an empty one lets libvirt choose.
    pub(in crate::host) async fn lacks_of_cpu(&self, kind: [&str; 3], cpu: &str) -> Result<Option<String>, Fault> {
        let (kind, cpu) = (kind.map(str::to_owned), cpu.to_owned());
        self.ask("compare a CPU with what QEMU can do", move |connect| {
            let text =
                |value: &str| CString::new(value).map_err(|error| Refusal { code: None, message: error.to_string() });
            let (cpu, kind) = (text(&cpu)?, [text(&kind[0])?, text(&kind[1])?, text(&kind[2])?]);
            let [arch, machine, virt_type] =
                kind.each_ref().map(|value| if value.is_empty() { std::ptr::null() } else { value.as_ptr() });
            let flags = virt_sys::VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE;
            // SAFETY: the connection is open, every string ends in NUL and outlives the call, and null means "not said".
            let compared = unsafe {
                virt_sys::virConnectCompareHypervisorCPU(
                    connect.as_ptr(),
                    std::ptr::null(),
                    arch,
                    machine,
                    virt_type,
                    cpu.as_ptr(),
                    flags,
                )
            };
            let refusal = || Refusal::from(virt::error::Error::last_error());
            match compared {
                // Where nothing can be compared there is nothing to say.
                0.. => Ok(None),
                _ => Ok(Some(refusal())
                    .filter(|refusal| refusal.is(ErrorNumber::CpuIncompatible))
                    .map(|one| one.message)),
            }
        })
        .await
    }

    pub(in crate::host) async fn networks(&self) -> Result<Vec<NetworkFacts>, Fault> {
        self.ask("list networks", |connect| {
            let mut facts = Vec::new();
            for network in connect.list_all_networks(0)? {
                facts.push(NetworkFacts { name: network.name()?, active: network.is_active()? });
            }
            facts.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(facts)
        })
        .await
    }

    pub(in crate::host) async fn pools(&self) -> Result<Vec<PoolFacts>, Fault> {
        self.ask("list pools", |connect| {
            let mut facts = Vec::new();
            for pool in connect.list_all_storage_pools(0)? {
                facts.extend(unless_gone(pool_facts(&pool))?);
            }
            facts.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(facts)
        })
        .await
    }

    pub(in crate::host) async fn volume_path(&self, pool: &str, volume: &str) -> Result<Option<String>, Fault> {
        let wanted = (pool.to_owned(), volume.to_owned());
        self.ask(&format!("look at volume {volume} of pool {pool}"), move |connect| {
            let find =
                || Ok(connect.lookup_storage_pool_by_name(&wanted.0)?.lookup_storage_vol_by_name(&wanted.1)?.path()?);
            unless_gone(find())
        })
        .await
    }

    pub(in crate::host) async fn refresh_pool(&self, name: &str) -> Result<(), Fault> {
        let wanted = name.to_owned();
        self.change(&format!("refresh pool {name}"), move |connect| {
            connect.lookup_storage_pool_by_name(&wanted)?.refresh(0)?;
            Ok(())
        })
        .await
    }
}

/// What libvirt says of something that is not there.
const GONE: [ErrorNumber; 3] = [ErrorNumber::NoDomain, ErrorNumber::NoStoragePool, ErrorNumber::NoStorageVolume];

/// What is gone by the time it is asked is no error.
fn unless_gone<T>(result: Result<T, Refusal>) -> Result<Option<T>, Refusal> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(refusal) if GONE.iter().any(|number| refusal.is(*number)) => Ok(None),
        Err(refusal) => Err(refusal),
    }
}

/// Undefines a domain that is off, always keeping its NVRAM and TPM state.
fn undefine(connect: &Connect, uuid: DomainUuid, more_flags: u32) -> Result<(), Refusal> {
    let Some(domain) = find(connect, uuid)? else { return Ok(()) };
    // One that runs would go on without a definition, on disks that are about to go.
    if domain.is_active()? {
        return Err(Refusal { code: None, message: "the domain was started meanwhile".to_owned() });
    }
    let mut flags = virt_sys::VIR_DOMAIN_UNDEFINE_KEEP_NVRAM | virt_sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA;
    if connect.lib_version()? >= KEEP_TPM_SINCE {
        flags |= virt_sys::VIR_DOMAIN_UNDEFINE_KEEP_TPM;
    }
    unless_gone(domain.undefine_flags(flags | more_flags).map_err(Refusal::from)).map(|_| ())
}

/// Does something to a running domain; one that is off, or went off meanwhile, needs nothing.
fn unless_off<T>(domain: &Domain, act: impl FnOnce(&Domain) -> Result<T, virt::error::Error>) -> Result<(), Refusal> {
    if !domain.is_active()? {
        return Ok(());
    }
    match act(domain) {
        Ok(_) => Ok(()),
        Err(_) if !domain.is_active()? => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A save pauses its guest first, and says so.
fn is_saving(domain: &Domain) -> Result<bool, Refusal> {
    let (state, reason) = domain.state()?;
    let paused = matches!(state, DomainStateEnum::Known(virt::domain::DomainState::Paused));
    let saving = DomainPausedReasonEnum::Known(DomainPausedReason::Save);
    Ok(paused && matches!(reason, DomainStateReasonEnum::Known(DomainStateReason::Paused(why)) if why == saving))
}

/// The binding has no call for this one.
fn save(domain: &Domain, path: &str) -> Result<(), Refusal> {
    let path = CString::new(path).map_err(|_| Refusal { code: None, message: format!("{path:?} is no path") })?;
    // SAFETY: the domain lives while `domain` does, and the path is a string that ends in a zero for the whole call.
    if unsafe { virt_sys::virDomainSave(domain.as_ptr(), path.as_ptr()) } < 0 {
        return Err(virt::error::Error::last_error().into());
    }
    Ok(())
}

pub(super) fn must_find(connect: &Connect, uuid: DomainUuid) -> Result<Domain, Refusal> {
    Ok(connect.lookup_domain_by_uuid_string(&uuid.to_string())?)
}

pub(super) fn find(connect: &Connect, uuid: DomainUuid) -> Result<Option<Domain>, Refusal> {
    unless_gone(must_find(connect, uuid))
}

fn brief(domain: &Domain) -> Result<DomainBrief, Refusal> {
    let state = if domain.is_active()? { DomainState::Active } else { DomainState::ShutOff };
    Ok(DomainBrief { uuid: DomainUuid(*domain.uuid()?.as_bytes()), name: domain.name()?, state })
}

fn whole(domain: Option<Domain>) -> Result<Option<DomainFacts>, Refusal> {
    domain.map_or(Ok(None), |domain| unless_gone(facts(&domain)))
}

fn facts(domain: &Domain) -> Result<DomainFacts, Refusal> {
    Ok(DomainFacts {
        brief: brief(domain)?,
        persistent: domain.is_persistent()?,
        autostart: domain.autostart()?,
        managed_save: domain.has_managed_save(0)?,
        saving: is_saving(domain)?,
        snapshots: domain.num_snapshots(0)?,
        checkpoints: checkpoints(domain)?,
        definition: domain.xml_desc(virt_sys::VIR_DOMAIN_XML_INACTIVE | virt_sys::VIR_DOMAIN_XML_SECURE)?,
    })
}

/// How many checkpoints a domain has; none where libvirt knows no such thing.
fn checkpoints(domain: &Domain) -> Result<u32, Refusal> {
    // SAFETY: the domain lives while `domain` does; with no place for a list libvirt only counts.
    let count = unsafe { virt_sys::virDomainListAllCheckpoints(domain.as_ptr(), std::ptr::null_mut(), 0) };
    match u32::try_from(count) {
        Ok(count) => Ok(count),
        Err(_) => match Refusal::from(virt::error::Error::last_error()) {
            refusal if refusal.is(ErrorNumber::NoSupport) => Ok(0),
            refusal => Err(refusal),
        },
    }
}

fn set(
    connect: &Connect,
    uuid: DomainUuid,
    kind: virt_sys::virDomainMetadataType,
    value: Option<&str>,
    name: Option<(&str, &str)>,
) -> Result<(), Refusal> {
    let domain = must_find(connect, uuid)?;
    let kind = i32::try_from(kind).unwrap_or(i32::MAX);
    let (key, uri) = name.unzip();
    domain.set_metadata(kind, value, value.and(key), uri, virt_sys::VIR_DOMAIN_AFFECT_CONFIG)?;
    Ok(())
}

fn pool_facts(pool: &StoragePool) -> Result<PoolFacts, Refusal> {
    let document = PoolDocument::parse(&pool.xml_desc(0)?)
        .map_err(|error| Refusal { code: None, message: format!("a pool's XML: {error}") })?;
    Ok(PoolFacts { name: pool.name()?, active: pool.is_active()?, kind: document.kind, path: document.path })
}

#[cfg(test)]
#[path = "calls_tests.rs"]
mod tests;
