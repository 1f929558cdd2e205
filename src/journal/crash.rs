//! Places where a test kills the program, so that every boundary of a journal can be crossed by a real crash.
//! Without the feature `crash-points` nothing of it is in the program.
//!
//! `KVM_CLONE_CRASH_AT` (SIGKILL) or `KVM_CLONE_STOP_AT` (SIGSTOP) is `before:<seq>` or `after:<seq>` (the append of that record), or `before-ledger:<n>` or
//! `after-ledger:<n>` (the n-th ledger write of this process, from 0).

/// A boundary that has been reached.
#[cfg(feature = "crash-points")]
macro_rules! crash_point {
    ($($boundary:tt)*) => {
        $crate::journal::crash::$($boundary)*
    };
}

/// Nothing.
#[cfg(not(feature = "crash-points"))]
macro_rules! crash_point {
    ($($boundary:tt)*) => {};
}

#[cfg(feature = "crash-points")]
pub(super) use chosen::{after_append, after_ledger, before_append, before_ledger};

#[cfg(feature = "crash-points")]
mod chosen {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use nix::sys::signal::{Signal, raise};

    const SIGNALS: [(&str, Signal); 2] =
        [("KVM_CLONE_CRASH_AT", Signal::SIGKILL), ("KVM_CLONE_STOP_AT", Signal::SIGSTOP)];

    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Boundary {
        BeforeAppend(u64),
        AfterAppend(u64),
        BeforeLedger(u64),
        AfterLedger(u64),
    }

    static CHOSEN: OnceLock<Option<(Boundary, Signal)>> = OnceLock::new();
    static LEDGER_WRITES: AtomicU64 = AtomicU64::new(0);

    pub(in crate::journal) fn before_append(sequence: u64) {
        reached(Boundary::BeforeAppend(sequence));
    }

    pub(in crate::journal) fn after_append(sequence: u64) {
        reached(Boundary::AfterAppend(sequence));
    }

    pub(in crate::journal) fn before_ledger() {
        reached(Boundary::BeforeLedger(LEDGER_WRITES.load(Ordering::Relaxed)));
    }

    pub(in crate::journal) fn after_ledger() {
        reached(Boundary::AfterLedger(LEDGER_WRITES.fetch_add(1, Ordering::Relaxed)));
    }

    fn reached(boundary: Boundary) {
        if let Some((chosen, signal)) = *CHOSEN.get_or_init(chosen)
            && chosen == boundary
        {
            let _ = raise(signal);
        }
    }

    /// A value that means nothing ends the program at once: a test that crashes nowhere would pass for nothing.
    fn chosen() -> Option<(Boundary, Signal)> {
        let (variable, text, signal) =
            SIGNALS.iter().find_map(|(variable, signal)| Some((*variable, std::env::var(variable).ok()?, *signal)))?;
        let parsed = text.split_once(':').and_then(|(kind, number)| {
            let number = number.parse().ok()?;
            match kind {
                "before" => Some(Boundary::BeforeAppend(number)),
                "after" => Some(Boundary::AfterAppend(number)),
                "before-ledger" => Some(Boundary::BeforeLedger(number)),
                "after-ledger" => Some(Boundary::AfterLedger(number)),
                _ => None,
            }
        });
        assert!(parsed.is_some(), "{variable}={text}: expected before:N, after:N, before-ledger:N or after-ledger:N");
        parsed.map(|boundary| (boundary, signal))
    }
}
