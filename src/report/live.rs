//! Live progress for other terminals: one small file a transaction in a runtime directory. The engine never reads it,
//! and nothing is decided by it: a missing, stale or odd file only means that `list` and `show` say less.

use std::fs;
use std::path::{Path, PathBuf};

use journal_format::{StepRef, TxnId, UnixMillis};
use serde::{Deserialize, Serialize};

use crate::observer::Progress;

/// Bytes of such a file that are read at most.
const LIVE_FILE_BYTES_MAX: u64 = 64 * 1024;

/// How far the step that moves bytes is, as last reported by the process that drives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveProgress {
    /// `forward` or `clean_up`.
    pub phase: Phase,
    /// Index of the step.
    pub step: u32,
    /// Image bytes dealt with, holes included.
    pub done_bytes: u64,
    /// Image bytes in all.
    pub total_bytes: u64,
    /// Image bytes a second, lately.
    pub bytes_per_second: u64,
    /// When it was reported; RFC 3339, UTC.
    pub at: String,
}

/// A list of steps of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Before the commit.
    Forward,
    /// After it.
    CleanUp,
}

impl LiveProgress {
    /// What is reported of a step at a time.
    pub fn new(progress: &Progress, bytes_per_second: u64, at: UnixMillis) -> Self {
        let (phase, step) = match progress.step {
            StepRef::Forward(index) => (Phase::Forward, index),
            StepRef::CleanUp(index) => (Phase::CleanUp, index),
        };
        Self {
            phase,
            step,
            done_bytes: progress.done_bytes,
            total_bytes: progress.total_bytes,
            bytes_per_second,
            at: at.to_string(),
        }
    }

    /// The step it is about.
    pub fn step_ref(&self) -> StepRef {
        match self.phase {
            Phase::Forward => StepRef::Forward(self.step),
            Phase::CleanUp => StepRef::CleanUp(self.step),
        }
    }
}

/// Where live progress lies. Writers use the first place that can be made; readers look in all of them, because
/// `sudo` and a service have no `XDG_RUNTIME_DIR` where a login shell has one.
#[derive(Debug, Clone)]
pub struct LiveDirectory {
    places: Vec<PathBuf>,
}

impl LiveDirectory {
    /// The places for a state directory: below `XDG_RUNTIME_DIR`, below `/run/user`, or beside the transactions.
    pub fn beside(state_dir: &Path) -> Self {
        let session = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
        let user = PathBuf::from(format!("/run/user/{}", nix::unistd::geteuid()));
        let mut places: Vec<PathBuf> = session.into_iter().map(|path| path.join("kvm-clone")).collect();
        places.extend(user.is_dir().then(|| user.join("kvm-clone")));
        places.push(state_dir.join("run"));
        places.dedup();
        Self { places }
    }

    /// Leaves a report for others. A failure costs them a number and nobody else anything.
    pub fn write(&self, txn: TxnId, progress: &LiveProgress) {
        let Ok(text) = serde_json::to_vec(progress) else { return };
        for place in &self.places {
            let (new, path) = (place.join(format!("{txn}.new")), place.join(format!("{txn}.json")));
            let written =
                fs::create_dir_all(place).and_then(|()| fs::write(&new, &text)).and_then(|()| fs::rename(&new, &path));
            if written.is_ok() {
                return;
            }
        }
    }

    /// What was last reported, if anything was.
    pub fn read(&self, txn: TxnId) -> Option<LiveProgress> {
        let reports = self.places.iter().filter_map(|place| {
            let path = place.join(format!("{txn}.json"));
            let size = fs::metadata(&path).ok()?.len();
            let text = (size <= LIVE_FILE_BYTES_MAX).then(|| fs::read(&path).ok())??;
            serde_json::from_slice::<LiveProgress>(&text).ok()
        });
        // Two attempts may have used two places; the times' form sorts as the times do.
        reports.max_by(|one, other| one.at.cmp(&other.at))
    }

    /// Takes the reports of a finished transaction away, and the directory with the last one.
    pub fn remove(&self, txn: TxnId) {
        for place in &self.places {
            for name in [format!("{txn}.json"), format!("{txn}.new")] {
                // Best effort, as all of this file: what stays behind is read by nobody.
                let _ = fs::remove_file(place.join(name));
            }
            let _ = fs::remove_dir(place);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_was_written_is_read_until_it_is_removed() {
        let state = tempfile::tempdir().unwrap();
        let live = LiveDirectory { places: vec![state.path().join("run")] };
        let txn = TxnId::new(UnixMillis(1), [7; 10]);
        assert_eq!(live.read(txn), None);
        let step = Progress { step: StepRef::Forward(5), done_bytes: 1, total_bytes: 2 };
        let report = LiveProgress::new(&step, 3, UnixMillis(0));
        live.write(txn, &report);
        assert_eq!(live.read(txn), Some(report.clone()));
        assert_eq!(report.step_ref(), StepRef::Forward(5));
        live.remove(txn);
        assert_eq!(live.read(txn), None);
        assert!(!state.path().join("run").exists());
    }

    #[test]
    fn an_odd_file_says_nothing() {
        let state = tempfile::tempdir().unwrap();
        let live = LiveDirectory { places: vec![state.path().to_owned()] };
        let txn = TxnId::new(UnixMillis(1), [7; 10]);
        fs::write(state.path().join(format!("{txn}.json")), b"{\"phase\":").unwrap();
        assert_eq!(live.read(txn), None);
    }
}
