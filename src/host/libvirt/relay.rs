//! The relay of one libvirt connection: a private Unix socket here, a stream of the agent, libvirt's own socket there.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kvm_clone_agent::protocol::{Message, RELAY_BYTES_MAX, RELAY_CREDIT_BYTES, RelayPurpose, Request};
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::stat::{Mode, fstat, lstat};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::host::client::{Client, Event, Stream};
use crate::world::{Fault, FaultKind};

/// How long the agent may take to reach libvirt's socket.
const OPEN_SECONDS_MAX: u64 = 10;
/// How long libvirt's library may take to connect to our socket.
const ACCEPT_SECONDS_MAX: u64 = 10;
/// What the names of private directories begin with.
const DIRECTORY_PREFIX: &str = "kvm-clone.";
/// How often a private directory is made anew that somebody took for a left one before it was locked.
const DIRECTORY_TRIES_MAX: usize = 8;
/// Bytes of a Unix socket's path, at most (`sun_path`, with its zero).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// A relay for one connection. Dropped, it is cut.
pub(super) struct Relay {
    open: Arc<AtomicBool>,
    task: JoinHandle<()>,
    socket: PathBuf,
}

impl Relay {
    /// Connects the agent to libvirt and listens for one connection. `LibvirtDown` when nobody is there, `Fenced` for
    /// changes without the owner lock.
    pub(super) async fn open(client: &Client, purpose: RelayPurpose, operation: &str) -> Result<Self, Fault> {
        let mut stream = client.open(&Request::OpenRelay { purpose }, operation, RELAY_CREDIT_BYTES)?;
        match timeout(Duration::from_secs(OPEN_SECONDS_MAX), stream.next()).await {
            Ok(Ok(Event::Message(Message::Opened))) => {}
            Ok(Ok(Event::Message(Message::Ended(Err(failure))))) => return Err(stream.fault(&failure)),
            Ok(Ok(_)) => return Err(stream.nonsense("a relay that does not open")),
            Ok(Err(fault)) => return Err(fault),
            Err(_) => {
                let detail = format!("libvirt's socket took no connection within {OPEN_SECONDS_MAX} s");
                return Err(stream.broken(FaultKind::LibvirtDown, detail));
            }
        }
        let here = |error: std::io::Error| {
            stream.broken(FaultKind::Io, format!("no private socket can be made on this machine: {error}"))
        };
        let directory = PrivateDirectory::make().map_err(here)?;
        let listener = UnixListener::bind(directory.socket()).map_err(here)?;
        let open = Arc::new(AtomicBool::new(true));
        let flag = Arc::clone(&open);
        let socket = directory.socket();
        let task = tokio::spawn(async move {
            carry(listener, directory, stream).await;
            flag.store(false, Ordering::SeqCst);
        });
        Ok(Self { open, task, socket })
    }

    /// Has neither end closed it?
    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst)
    }

    /// What libvirt's library is to connect to.
    pub(super) fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", escape(&self.socket))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Takes one connection and carries bytes both ways until either end closes.
async fn carry(listener: UnixListener, directory: PrivateDirectory, stream: Stream) {
    let Ok(Ok((socket, _))) = timeout(Duration::from_secs(ACCEPT_SECONDS_MAX), listener.accept()).await else {
        return;
    };
    drop(listener);
    // At once: a controller that is killed later leaves no directory behind.
    drop(directory);
    let (mut from_here, mut to_here) = UnixStream::into_split(socket);
    let sender = stream.sender();
    let outwards = async move {
        let mut buffer = vec![0; RELAY_BYTES_MAX];
        while let Ok(count @ 1..) = from_here.read(&mut buffer).await {
            let bytes = u32::try_from(count).unwrap_or(u32::MAX);
            if sender.spend(bytes).await.is_err() || sender.bytes(&buffer[..count]).is_err() {
                break;
            }
        }
    };
    let inwards = async move {
        let mut stream = stream;
        while let Ok(Event::Bytes(bytes)) = stream.next().await {
            if to_here.write_all(&bytes).await.is_err() {
                break;
            }
            stream.grant(bytes.len() as u64);
        }
    };
    tokio::select! {
        () = outwards => {}
        () = inwards => {}
    }
}

/// A directory that nobody else may enter, for as long as it takes to connect; it goes with its holder. It is locked, so that
/// what a killed controller left is known, and removed by the next.
struct PrivateDirectory {
    path: PathBuf,
    _lock: Flock<OwnedFd>,
}

impl PrivateDirectory {
    fn make() -> std::io::Result<Self> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
        let places = runtime.into_iter().chain([PathBuf::from("/run"), std::env::temp_dir()]);
        let mut last = std::io::Error::other("no directory for it");
        for place in places {
            let template = place.join(format!("{DIRECTORY_PREFIX}XXXXXX"));
            if template.as_os_str().len() + "/libvirt".len() > SOCKET_PATH_BYTES_MAX {
                continue;
            }
            remove_left(&place);
            for _ in 0..DIRECTORY_TRIES_MAX {
                // `mkdtemp` makes it with mode 0700.
                match nix::unistd::mkdtemp(&template).map(Self::lock) {
                    Ok(Some(directory)) => return Ok(directory),
                    Ok(None) => {}
                    Err(error) => {
                        last = error.into();
                        break;
                    }
                }
            }
        }
        Err(last)
    }

    /// Takes a directory; `None` where another process has it, or took it away.
    fn lock(path: PathBuf) -> Option<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let directory = nix::fcntl::open(&path, flags, Mode::empty()).ok()?;
        let lock = Flock::lock(directory, FlockArg::LockExclusiveNonblock).ok()?;
        let (locked, named) = (fstat(&*lock).ok()?, lstat(&path).ok()?);
        let is_ours = locked.st_uid == nix::unistd::geteuid().as_raw();
        ((locked.st_dev, locked.st_ino) == (named.st_dev, named.st_ino) && is_ours)
            .then_some(Self { path, _lock: lock })
    }

    fn socket(&self) -> PathBuf {
        self.path.join("libvirt")
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        // What cannot be removed is an empty name in a directory for such.
        drop(std::fs::remove_file(self.socket()));
        drop(std::fs::remove_dir(&self.path));
    }
}

/// Removes what killed controllers left: directories of ours that nobody holds, with nothing in them but the socket.
/// Whatever cannot be removed stays.
fn remove_left(place: &Path) {
    let Ok(entries) = std::fs::read_dir(place) else { return };
    let named = |name: &std::ffi::OsStr| name.to_str().is_some_and(|name| name.starts_with(DIRECTORY_PREFIX));
    for entry in entries.flatten().filter(|entry| named(&entry.file_name())) {
        drop(PrivateDirectory::lock(entry.path()));
    }
}

/// A path as the value of a URI's query.
fn escape(path: &Path) -> String {
    use std::fmt::Write;
    use std::os::unix::ffi::OsStrExt;
    path.as_os_str().as_bytes().iter().fold(String::new(), |mut out, byte| {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => out.push(char::from(*byte)),
            // Writing to a string cannot fail.
            _ => drop(write!(out, "%{byte:02X}")),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_directory_is_private_and_goes_away() {
        let directory = PrivateDirectory::make().unwrap();
        let path = directory.path.clone();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        drop(directory);
        assert!(!path.exists());
    }

    #[test]
    fn what_a_killed_controller_left_goes_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let make = |name: &str, file: &str| {
            std::fs::create_dir(place.path().join(name)).unwrap();
            std::fs::write(place.path().join(name).join(file), b"").unwrap();
        };
        make("kvm-clone.abcdef", "libvirt");
        make("kvm-clone.other1", "somebody's");
        make("another", "libvirt");
        let left = || {
            let entries = std::fs::read_dir(place.path()).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        let in_use = std::fs::File::open(place.path().join("kvm-clone.abcdef")).unwrap();
        let in_use = Flock::lock(in_use, FlockArg::LockExclusiveNonblock).unwrap();
        remove_left(place.path());
        assert_eq!(left().len(), 3, "what is held is in use");
        drop(in_use);
        remove_left(place.path());
        assert_eq!(left(), ["another", "kvm-clone.other1"]);
    }

    #[test]
    fn odd_paths_are_escaped() {
        assert_eq!(escape(Path::new("/run/a b&c/libvirt")), "/run/a%20b%26c/libvirt");
    }
}
