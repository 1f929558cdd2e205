//! The agent: the program that kvm-clone runs on a host, as root, to read, hash, lock and write there.
//!
//! It obeys one controller over stdin and stdout (`protocol`), refuses what its role and its list do not cover (`guard`),
//! and ends with the link, or after 30 s of silence; every lock it holds ends with it. It starts no program but
//! the few that `tools` names, never speaks to libvirt itself, and keeps nothing.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::single_range_in_vec_init))]

mod buffer;
mod counts;
mod devices;
mod exit;
mod extents;
mod failure;
mod files;
mod filesystem;
mod flow;
mod guard;
mod hash;
mod image;
mod lanes;
mod locks;
mod monitor;
mod outbox;
mod process;
mod receive;
mod relay;
mod requests;
mod send;
mod session;
mod source;
mod tools;

use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;

use kvm_clone_agent::protocol::{AGENT_COMM, PROTOCOL_VERSION};

const USAGE: &str = "usage: kvm-clone-agent [--unlink-self] | --version
Started by kvm-clone on a host; speaks its protocol on standard input and output.";

/// From this size on an allocation is the kernel's own mapping.
const LARGE_ALLOCATION_BYTES: i32 = 128 << 10;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(|argument| argument.to_string_lossy()).collect();
    let unlink = match arguments.iter().map(AsRef::as_ref).collect::<Vec<&str>>()[..] {
        ["--version"] => {
            println!("kvm-clone-agent {} (protocol {PROTOCOL_VERSION})", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        ["--unlink-self"] => true,
        [] => false,
        _ => return refuse(USAGE),
    };
    // Also what makes a person who tries it out see words and not frames.
    if std::io::stdin().is_terminal() || std::io::stdout().is_terminal() {
        return refuse(USAGE);
    }
    if unlink && let Err(why) = unlink_self() {
        return refuse(&format!("kvm-clone-agent: cannot unlink itself: {why}"));
    }
    exit::end_on_panic();
    // Modes are exactly those that the controller names.
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    // The name that another agent looks for before it kills this one, whatever the file was called.
    let named = std::ffi::CString::new(AGENT_COMM).map_err(std::io::Error::from);
    if let Err(error) = named.and_then(|name| nix::sys::prctl::set_name(&name).map_err(std::io::Error::from)) {
        return refuse(&format!("kvm-clone-agent: cannot set its process name: {error}"));
    }
    give_buffers_back();
    session::run()
}

/// Lets the allocator return every large buffer to the kernel when it is freed, instead of keeping it for the thread
/// that freed it: otherwise what the agent holds would grow with the number of its streams.
fn give_buffers_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two numbers, and is called before there are other threads.
    unsafe {
        nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, LARGE_ALLOCATION_BYTES);
    }
}

fn refuse(why: &str) -> ExitCode {
    eprintln!("{why}");
    ExitCode::from(exit::UNUSABLE)
}

/// Removes the file that this process runs from, if it is a copy: what lies under `/usr` was installed.
fn unlink_self() -> Result<(), String> {
    let running = std::fs::metadata("/proc/self/exe").map_err(|error| format!("/proc/self/exe: {error}"))?;
    let path = std::env::current_exe().map_err(|error| format!("/proc/self/exe: {error}"))?;
    let path = path.as_path();
    if path.starts_with(Path::new("/usr")) {
        return Err(format!("{} was installed there", path.display()));
    }
    let named = std::fs::symlink_metadata(path).map_err(|error| format!("{}: {error}", path.display()))?;
    if (named.dev(), named.ino()) != (running.dev(), running.ino()) {
        return Err(format!("{} is another file by now", path.display()));
    }
    std::fs::remove_file(path).map_err(|error| format!("{}: {error}", path.display()))
}
