//! Ctrl-C, SIGTERM, SIGHUP (a terminal that was closed) and the time limit of a run: a flag that the engine asks for and that ends
//! long operations at once.
//!
//! It never ends anything by itself: what is under way on a host is finished or given up by whoever waits for it.

use std::sync::{Arc, OnceLock};

use tokio::signal::unix::Signal;
use tokio::sync::Notify;

/// Raised once, never lowered. Clones share one flag.
#[derive(Debug, Clone, Default)]
pub struct Interrupt {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Why it was raised, in words.
    why: OnceLock<String>,
    notify: Notify,
}

impl Interrupt {
    /// A flag that is not raised.
    pub fn new() -> Self {
        Self::default()
    }

    /// Raises it, from now on and for good, and says why. The first reason counts.
    pub fn raise(&self, why: impl Into<String>) {
        self.shared.why.get_or_init(|| why.into());
        self.shared.notify.notify_waiters();
    }

    /// Was it raised?
    pub fn is_raised(&self) -> bool {
        self.why().is_some()
    }

    /// Why it was raised, if it was.
    pub fn why(&self) -> Option<&str> {
        self.shared.why.get().map(String::as_str)
    }

    /// Returns once it is raised: why.
    pub async fn raised(&self) -> String {
        loop {
            // Registered before the flag is read, so that a raise in between is not missed.
            let notified = self.shared.notify.notified();
            if let Some(why) = self.why() {
                return why.to_owned();
            }
            notified.await;
        }
    }

    /// Lets SIGINT, SIGTERM and SIGHUP raise it, on a thread of its own, for the life of the process.
    pub fn raise_on_signals(&self) -> std::io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let (mut interrupt, mut terminate, mut hangup) = {
            let _guard = runtime.enter();
            // Under `nohup` a closed terminal is meant to end nothing.
            let hangup = if hangup_is_ignored() { None } else { Some(signal(SignalKind::hangup())?) };
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, hangup)
        };
        let flag = self.clone();
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    Some(()) = heard(hangup.as_mut()) => {}
                }
                flag.raise("interrupted");
                // The handlers stay: a second Ctrl-C must not kill what is being suspended cleanly.
                std::future::pending::<()>().await;
            });
        })?;
        Ok(())
    }
}

/// The next signal; for ever none where nobody listens.
async fn heard(signal: Option<&mut Signal>) -> Option<()> {
    match signal {
        Some(signal) => signal.recv().await,
        None => std::future::pending().await,
    }
}

/// Was this process started with SIGHUP ignored?
fn hangup_is_ignored() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores_hangup(&status))
}

/// From the `SigIgn` line of `/proc/PID/status` (proc(5)): a mask in hexadecimal, in which signal 1 is the lowest bit.
fn ignores_hangup(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_ignored_hangup_is_seen() {
        assert!(ignores_hangup("Name:\tx\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000000\n"));
        assert!(!ignores_hangup("Name:\tx\nSigIgn:\t0000000000001000\nSigCgt:\t0000000000000001\n"));
        assert!(!ignores_hangup(""));
    }

    #[tokio::test]
    async fn waiters_and_latecomers_see_it() {
        let flag = Interrupt::new();
        assert!(!flag.is_raised());
        let waiter = tokio::spawn({
            let flag = flag.clone();
            async move { flag.raised().await }
        });
        tokio::task::yield_now().await;
        flag.raise("the time is over");
        flag.raise("interrupted");
        assert_eq!(waiter.await.unwrap(), "the time is over");
        assert_eq!(flag.raised().await, "the time is over");
        assert!(flag.is_raised());
    }
}
