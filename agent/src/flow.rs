//! Credit: how many bytes a stream may still send, and how it is told to stop.

use kvm_clone_agent::protocol::{Failure, FailureKind};

use crate::failure::failure;
use crate::monitor::Monitor;

/// The credit of one direction of a stream, and the controller's word that it wants no more.
#[derive(Debug)]
pub struct Flow {
    credit_bytes_max: u64,
    state: Monitor<State>,
}

#[derive(Debug)]
struct State {
    credit_bytes: u64,
    cancelled: bool,
}

impl Flow {
    /// A flow with so much credit to begin with; never more than the bound.
    pub fn new(credit_bytes: u64, credit_bytes_max: u64) -> Self {
        let credit_bytes = credit_bytes.min(credit_bytes_max);
        Self { credit_bytes_max, state: Monitor::new(State { credit_bytes, cancelled: false }) }
    }

    /// Adds credit, up to the bound.
    pub fn grant(&self, bytes: u64) {
        self.state.change(|state| {
            state.credit_bytes = state.credit_bytes.saturating_add(bytes).min(self.credit_bytes_max);
        });
    }

    /// Takes from `least` to `most` bytes of credit, once there are as many.
    pub fn take(&self, least: u64, most: u64) -> Result<u64, Failure> {
        self.state.wait_for(|state| {
            if state.cancelled {
                return Some(Err(cancelled()));
            }
            let taken = state.credit_bytes.min(most);
            (taken >= least).then(|| {
                state.credit_bytes -= taken;
                Ok(taken)
            })
        })
    }

    /// Ends the stream: whoever waits here stops.
    pub fn cancel(&self) {
        self.state.change(|state| state.cancelled = true);
    }

    /// `Cancelled` once the controller said so.
    pub fn check(&self) -> Result<(), Failure> {
        if self.state.lock().cancelled { Err(cancelled()) } else { Ok(()) }
    }
}

/// What a stream ends with when the controller cancelled it.
pub fn cancelled() -> Failure {
    failure(FailureKind::Cancelled, "cancelled by the controller")
}
