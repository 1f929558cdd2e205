//! From a host's name to an agent that runs there and was told what it is for.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use journal_format::{EndpointV1, TxnId};
use kvm_clone_agent::protocol::{self, Overrides};
use tokio::runtime::Runtime;

use super::address::{Address, AddressError, SshTarget, Target};
use super::client::Client;
use super::interrupt::Interrupt;
use super::launch::{self, Privilege};
use super::real_host::RealHost;
use super::ssh::SshLink;
use super::ssh_config::{SshSurroundings, look_up};
use super::transport::Transport;
use crate::world::{Fault, FaultKind, Host};

/// Names another file than `~/.ssh/config`.
const SSH_CONFIG_VARIABLE: &str = "KVM_CLONE_SSH_CONFIG";
/// Names another agent than the one beside this program.
const AGENT_VARIABLE: &str = "KVM_CLONE_AGENT";

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

    /// A host of a plan, with another key file where one is given.
    pub fn from_endpoint(endpoint: &EndpointV1, key_file: Option<&Path>) -> Result<Self, AddressError> {
        Ok(Self {
            address: endpoint.address.parse()?,
            key_file: key_file.map(Path::to_owned).or_else(|| endpoint.key_file.as_ref().map(PathBuf::from)),
            machine_id: Some(endpoint.machine_id.clone()).filter(|id| !id.is_empty()),
        })
    }
}

/// What the agent is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Looking only, as root where that can be had, else as the user is: enough for `vms`.
    Look,
    /// Looking only, as root: a survey.
    Survey,
    /// The source's side of a transaction. Changes nothing.
    Source(TxnId),
    /// The destination's side of a transaction.
    Destination(TxnId),
}

impl Role {
    fn privilege(self) -> Privilege {
        if self == Self::Look { Privilege::RootIfPossible } else { Privilege::Root }
    }

    fn on_the_wire(self) -> (Option<TxnId>, protocol::Role) {
        match self {
            Self::Look | Self::Survey => (None, protocol::Role::Look),
            Self::Source(txn) => (Some(txn), protocol::Role::Source),
            Self::Destination(txn) => (Some(txn), protocol::Role::Destination),
        }
    }
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
    /// Other places on the hosts, for tests.
    pub overrides: Overrides,
}

/// Connects to hosts. One a process; clones share it.
#[derive(Clone)]
pub struct Connector {
    pub(super) runtime: Arc<Runtime>,
    pub(super) options: Arc<ConnectOptions>,
}

impl Connector {
    /// Starts the runtime; contacts nobody.
    pub fn new(options: ConnectOptions) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("host").build()?;
        Ok(Self { runtime: Arc::new(runtime), options: Arc::new(options) })
    }

    /// A new agent on a host. It ends when the last reference to the host is dropped.
    pub fn connect(&self, access: &Access, role: Role) -> Result<Rc<dyn Host>, Fault> {
        Ok(Rc::new(self.connect_real(access, role)?))
    }

    pub(super) fn connect_real(&self, access: &Access, role: Role) -> Result<RealHost, Fault> {
        let client = self.runtime.block_on(async {
            tokio::select! {
                biased;
                why = self.options.interrupt.raised() => Err(interrupted(access.address.as_str(), "connect", why)),
                client = self.attach(access, role) => client,
            }
        })?;
        Ok(RealHost::new(self.clone(), role, client))
    }

    async fn attach(&self, access: &Access, role: Role) -> Result<Client, Fault> {
        let host = access.address.as_str();
        let (txn, wire_role) = role.on_the_wire();
        let transport = self.start_agent(access, role.privilege()).await?;
        let client = Client::attach(host, transport, txn, wire_role, self.options.overrides.clone()).await?;
        let there = &client.hello().machine_id;
        if there.is_empty() {
            client.end().await;
            let detail = "its /etc/machine-id is empty, and nothing else says which machine it is; \
                          `systemd-machine-id-setup` makes one"
                .to_owned();
            return Err(unusable(host, "connect", detail));
        }
        if let Some(planned) = access.machine_id.as_ref().filter(|planned| *planned != there) {
            let detail = format!(
                "another machine answers: its machine-id is {there}, the plan was made with {planned}. \
                 Let the name lead to the machine of the plan again"
            );
            client.end().await;
            return Err(unusable(host, "connect", detail));
        }
        Ok(client)
    }

    async fn start_agent(&self, access: &Access, privilege: Privilege) -> Result<Transport, Fault> {
        let host = access.address.as_str();
        let given = self.options.agent_binary.clone().or_else(|| path_variable(AGENT_VARIABLE));
        let agent = launch::find_agent(given.as_deref()).map_err(|why| unusable(host, "start the agent", why))?;
        match access.address.target() {
            Target::Local => {
                launch::start_here(&agent, privilege).await.map_err(|why| unusable(host, "start the agent", why))
            }
            Target::Ssh(target) => {
                let link = self.open_ssh(access, target).await?;
                launch::start_there(link, &agent, privilege)
                    .await
                    .map_err(|error| fault(error.kind, host, "start the agent", error.detail))
            }
        }
    }

    async fn open_ssh(&self, access: &Access, target: &SshTarget) -> Result<SshLink, Fault> {
        let host = access.address.as_str();
        let home = std::env::home_dir()
            .ok_or_else(|| unusable(host, "connect", "this user has no home directory; set HOME".into()))?;
        let given = self.options.ssh_config_file.clone().or_else(|| path_variable(SSH_CONFIG_VARIABLE));
        let surroundings = SshSurroundings {
            config_file: match given {
                // Without the file that was named the host would be looked for under the alias itself.
                Some(path) if !path.is_file() => {
                    let detail = format!("the ssh configuration {} is not there", path.display());
                    return Err(unusable(host, "connect", detail));
                }
                given => given.unwrap_or_else(|| home.join(".ssh/config")),
            },
            home,
            user: user_name(),
            agent_socket: path_variable("SSH_AUTH_SOCK"),
        };
        let settings = look_up(target, &surroundings).map_err(|error| unusable(host, "connect", error.to_string()))?;
        SshLink::open(&settings, access.key_file.as_ref(), self.options.accept_new_host_keys)
            .await
            .map_err(|error| fault(error.kind, host, "connect", error.detail))
    }
}

fn path_variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The user's name; a user without one logs in under a number, which sshd will refuse by name.
fn user_name() -> String {
    let uid = nix::unistd::geteuid();
    nix::unistd::User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
}

pub(super) fn interrupted(host: &str, operation: &str, why: String) -> Fault {
    fault(FaultKind::Interrupted, host, operation, why)
}

fn unusable(host: &str, operation: &str, detail: String) -> Fault {
    fault(FaultKind::Unusable, host, operation, detail)
}

fn fault(kind: FaultKind, host: &str, operation: &str, detail: String) -> Fault {
    Fault { kind, host: host.to_owned(), operation: operation.to_owned(), detail }
}
