//! A value behind a mutex, with its condition: what the agent's threads share and wait for.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A value and the threads that wait for it to change.
#[derive(Debug, Default)]
pub struct Monitor<T> {
    value: Mutex<T>,
    changed: Condvar,
}

impl<T> Monitor<T> {
    /// A monitor of this value.
    pub fn new(value: T) -> Self {
        Self { value: Mutex::new(value), changed: Condvar::new() }
    }

    /// The value. Poisoning is passed over: a panic ends the process before anybody could see it.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the value and wakes everybody.
    pub fn change<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let result = change(&mut self.lock());
        self.changed.notify_all();
        result
    }

    /// Waits until something is there.
    pub fn wait_for<R>(&self, mut ready: impl FnMut(&mut T) -> Option<R>) -> R {
        let mut value = self.lock();
        loop {
            if let Some(result) = ready(&mut value) {
                return result;
            }
            value = self.changed.wait(value).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until `ready` says so, which otherwise says how long to wait before it is asked again (`None`: until a change).
    pub fn wait_with_time<R>(&self, mut ready: impl FnMut(&mut T) -> Result<R, Option<Duration>>) -> R {
        let mut value = self.lock();
        loop {
            value = match ready(&mut value) {
                Ok(result) => return result,
                Err(None) => self.changed.wait(value).unwrap_or_else(PoisonError::into_inner),
                Err(Some(time)) => self.changed.wait_timeout(value, time).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }
}
