//! Ctrl-C and SIGTERM: a flag that the engine asks for and that ends long operations at once.
//!
//! It never ends anything by itself: what is under way on a host is finished or given up by whoever waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// Raised once, never lowered. Clones share one flag.
#[derive(Debug, Clone, Default)]
pub struct Interrupt {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    raised: AtomicBool,
    notify: Notify,
}

impl Interrupt {
    /// A flag that is not raised.
    pub fn new() -> Self {
        Self::default()
    }

    /// Raises it, from now on and for good.
    pub fn raise(&self) {
        self.shared.raised.store(true, Ordering::SeqCst);
        self.shared.notify.notify_waiters();
    }

    /// Was it raised?
    pub fn is_raised(&self) -> bool {
        self.shared.raised.load(Ordering::SeqCst)
    }

    /// Returns once it is raised.
    pub async fn raised(&self) {
        loop {
            // Registered before the flag is read, so that a raise in between is not missed.
            let notified = self.shared.notify.notified();
            if self.is_raised() {
                return;
            }
            notified.await;
        }
    }

    /// Lets SIGINT and SIGTERM raise it, on a thread of its own, for the life of the process.
    pub fn raise_on_signals(&self) -> std::io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let (mut interrupt, mut terminate) = {
            let _guard = runtime.enter();
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
        };
        let flag = self.clone();
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                flag.raise();
                // The handlers stay: a second Ctrl-C must not kill what is being suspended cleanly.
                std::future::pending::<()>().await;
            });
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn waiters_and_latecomers_see_it() {
        let flag = Interrupt::new();
        assert!(!flag.is_raised());
        let waiter = tokio::spawn({
            let flag = flag.clone();
            async move { flag.raised().await }
        });
        tokio::task::yield_now().await;
        flag.raise();
        waiter.await.unwrap();
        flag.raised().await;
        assert!(flag.is_raised());
    }
}
