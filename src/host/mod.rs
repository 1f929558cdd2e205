//! World on real hosts: an agent on each, reached over ssh or started here, and libvirt through the agent.
//!
//! This is a blocking facade over one tokio runtime: the engine's thread waits, everything else is async or has a thread
//! of its own. Nothing here reconnects by itself, and nothing here knows what a step is.

mod address;
mod interrupt;
mod known_hosts;
mod pattern;
mod ssh_config;

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use journal_format::EndpointV1;

pub use address::{Address, AddressError, SshTarget, Target};
pub use interrupt::Interrupt;
pub use ssh_config::{SshConfigError, SshSettings, SshSurroundings};

use crate::world::{Fault, FaultKind, Host};

/// How one host is reached, and which machine is expected there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// As the user named it.
    pub address: Address,
    /// The private key file that the user named.
    pub key_file: Option<PathBuf>,
    /// The machine-id that the plan has for it: another machine under the same name is refused.
    pub machine_id: Option<String>,
}

impl Access {
    /// A host that no plan speaks of yet.
    pub fn new(address: Address, key_file: Option<PathBuf>) -> Self {
        Self { address, key_file, machine_id: None }
    }

    /// A host of a plan.
    pub fn from_endpoint(endpoint: &EndpointV1) -> Result<Self, AddressError> {
        Ok(Self {
            address: endpoint.address.parse()?,
            key_file: endpoint.key_file.as_ref().map(PathBuf::from),
            machine_id: Some(endpoint.machine_id.clone()).filter(|id| !id.is_empty()),
        })
    }
}

/// What the agent is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Everything: as root, by `sudo -n` where the user is not.
    Work,
    /// Looking only, as the user is.
    Look,
}

/// What all connections of a process have in common.
#[derive(Debug, Clone, Default)]
pub struct ConnectOptions {
    /// Another file than `~/.ssh/config`; `KVM_CLONE_SSH_CONFIG` where this is `None`.
    pub ssh_config_file: Option<PathBuf>,
    /// Accept, and write down, the key of a host that is not known yet. A changed key is refused all the same.
    pub accept_new_host_keys: bool,
    /// Another agent than the one beside this program; `KVM_CLONE_AGENT` where this is `None`.
    pub agent_binary: Option<PathBuf>,
    /// Ends waiting and long operations.
    pub interrupt: Interrupt,
}

/// Connects to hosts. One a process.
pub struct Connector {
    #[allow(dead_code)]
    runtime: Arc<tokio::runtime::Runtime>,
    #[allow(dead_code)]
    options: ConnectOptions,
}

impl Connector {
    /// Starts the runtime; contacts nobody.
    pub fn new(options: ConnectOptions) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("host").build()?;
        Ok(Self { runtime: Arc::new(runtime), options })
    }

    /// A new agent on a host.
    pub fn connect(&self, access: &Access, role: Role) -> Result<Rc<dyn Host>, Fault> {
        let _ = role;
        Err(Fault {
            kind: FaultKind::Unsupported,
            host: access.address.to_string(),
            operation: "connect".into(),
            detail: "the agent is not there yet".into(),
        })
    }
}

/// Both hosts of a clone.
pub struct RealWorld {
    #[allow(dead_code)]
    connector: Connector,
    #[allow(dead_code)]
    source: Access,
    #[allow(dead_code)]
    destination: Access,
}

impl RealWorld {
    /// Two hosts that are not connected yet.
    pub fn new(connector: Connector, source: Access, destination: Access) -> Self {
        Self { connector, source, destination }
    }
}
