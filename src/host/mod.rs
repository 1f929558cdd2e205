//! World on real hosts: an agent on each, reached over ssh or started here, and libvirt through the agent.
//!
//! This is a blocking facade over one tokio runtime: the engine's thread waits, everything else is async or has a thread
//! of its own. Nothing here reconnects by itself, and nothing here knows what a step is.

mod address;
mod client;
mod connect;
mod copy;
mod interrupt;
mod known_hosts;
mod launch;
mod libvirt;
mod pace;
mod pattern;
mod real_host;
mod real_world;
mod ssh;
mod ssh_config;
mod transport;

pub use address::{Address, AddressError, SshTarget, Target};
pub use connect::{Access, ConnectOptions, Connector, Role};
pub use interrupt::Interrupt;
pub use kvm_clone_agent::protocol::Overrides;
pub use real_world::RealWorld;
pub use ssh_config::{SshConfigError, SshSettings, SshSurroundings, look_up};
