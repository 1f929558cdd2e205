//! How hosts are named and reached.

#[path = "../../src/host/address.rs"]
mod address;
#[path = "../../src/host/pattern.rs"]
mod pattern;
#[path = "../../src/host/ssh_config.rs"]
mod ssh_config;

pub use address::{Address, SshTarget, Target};
pub use ssh_config::{SshConfigError, SshSettings, SshSurroundings, look_up};
