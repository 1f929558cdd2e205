//! The lock of a transaction on its controller: an exclusive OFD lock on `lock`, whose content names the holder.
//! The kernel frees it when the holder dies. Readers only test it; they never take it.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use journal_format::UnixMillis;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::JournalError;
use super::disk::{FILE_MODE, failed};

/// Name of the lock's file in a transaction's directory.
pub const LOCK_NAME: &str = "lock";
/// Bytes of its content at most.
const CONTENT_BYTES_MAX: usize = 1024;

/// Who holds a transaction's lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// `uname -n` of its machine.
    pub host: String,
    /// Start time of the process in clock ticks since boot (`/proc/<pid>/stat`, field 22).
    pub started: u64,
    /// When it took the lock (RFC 3339).
    pub since: String,
}

impl Holder {
    fn this_process() -> Self {
        let host =
            nix::unistd::gethostname().map_or_else(|_| "unknown".into(), |name| name.to_string_lossy().into_owned());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            pid: std::process::id(),
            host,
            started: own_start_time().unwrap_or(0),
            since: UnixMillis(u64::try_from(now.as_millis()).unwrap_or(u64::MAX)).to_string(),
        }
    }

    /// Stands where a lock is held and its content cannot be read: the holder is about to write it.
    fn unknown() -> Self {
        Self { pid: 0, host: "unknown".to_owned(), started: 0, since: "unknown".to_owned() }
    }

    fn to_text(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(text, "pid {}\nhost {}\nstarted {}\nsince {}", self.pid, self.host, self.started, self.since);
        text
    }

    fn from_text(text: &str) -> Option<Self> {
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Some(Self {
            pid: field("pid")?.parse().ok()?,
            host: field("host")?.to_owned(),
            started: field("started")?.parse().ok()?,
            since: field("since")?.to_owned(),
        })
    }

    pub(super) fn held(self, directory: &Path) -> JournalError {
        JournalError::Held { path: directory.display().to_string(), pid: self.pid, host: self.host, since: self.since }
    }
}

fn own_start_time() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The command's name, field 2, may hold spaces and parentheses: what follows its last one starts with field 3.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// A transaction's lock, held until this is dropped.
#[derive(Debug)]
pub struct TxnLock {
    file: File,
}

impl TxnLock {
    /// Takes the lock of the transaction in this directory, or says who holds it. Never waits.
    pub fn take(directory: &Path) -> Result<Self, JournalError> {
        let path = directory.join(LOCK_NAME);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
            .open(&path)
            .map_err(failed(&path, "open"))?;
        match fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK))) {
            Ok(_) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => return Err(read_holder(&file).held(directory)),
            Err(errno) => return Err(failed(&path, "lock")(errno.into())),
        }
        // Only for people and `show`: what counts is the lock. So it need not be durable.
        let content = Holder::this_process().to_text();
        file.write_all_at(content.as_bytes(), 0)
            .and_then(|()| file.set_len(content.len() as u64))
            .map_err(failed(&path, "write"))?;
        Ok(Self { file })
    }

    /// Who holds the lock of the transaction in this directory; `None`: nobody. Takes nothing.
    pub fn holder(directory: &Path) -> Result<Option<Holder>, JournalError> {
        let path: PathBuf = directory.join(LOCK_NAME);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&path, "open")(error)),
        };
        let mut test = whole_file(libc::F_WRLCK);
        fcntl(file.as_fd(), FcntlArg::F_OFD_GETLK(&mut test))
            .map_err(|errno| failed(&path, "test lock")(errno.into()))?;
        let held = libc::c_int::from(test.l_type) != libc::F_UNLCK;
        Ok(held.then(|| read_holder(&file)))
    }
}

impl Drop for TxnLock {
    fn drop(&mut self) {
        // Closing is not enough: a child that another thread is just starting has the descriptor too, until it execs.
        let _ = fcntl(self.file.as_fd(), FcntlArg::F_OFD_SETLK(&whole_file(libc::F_UNLCK)));
    }
}

fn read_holder(file: &File) -> Holder {
    let mut content = vec![0; CONTENT_BYTES_MAX];
    let text = file.read_at(&mut content, 0).map(|length| String::from_utf8_lossy(&content[..length]).into_owned());
    text.ok().and_then(|text| Holder::from_text(&text)).unwrap_or_else(Holder::unknown)
}

#[allow(clippy::cast_possible_truncation)] // the constants are small and the field is a short
fn whole_file(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}
