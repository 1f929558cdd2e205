//! Both hosts of a clone, the machine's clock, and its randomness.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use journal_format::{TxnId, UnixMillis};

use super::connect::{Access, Connector, Role, interrupted};
use super::copy;
use super::real_host::RealHost;
use crate::world::{ChunkSink, CopyJob, CopySummary, Fault, FaultKind, Host, Side, World};

/// Both hosts of a clone.
pub struct RealWorld {
    connector: Connector,
    source: Slot,
    destination: Slot,
    txn: Option<TxnId>,
}

struct Slot {
    access: Access,
    host: RefCell<Option<Rc<RealHost>>>,
}

impl RealWorld {
    /// Two hosts that are not connected yet. Without a transaction the agents change nothing: a survey.
    pub fn new(connector: Connector, source: Access, destination: Access, txn: Option<TxnId>) -> Self {
        let slot = |access| Slot { access, host: RefCell::new(None) };
        Self { connector, source: slot(source), destination: slot(destination), txn }
    }

    fn slot(&self, side: Side) -> &Slot {
        match side {
            Side::Source => &self.source,
            Side::Destination => &self.destination,
        }
    }

    fn connected(&self, side: Side) -> Result<Rc<RealHost>, Fault> {
        let slot = self.slot(side);
        slot.host.borrow().clone().ok_or_else(|| Fault {
            kind: FaultKind::Unreachable,
            host: slot.access.address.to_string(),
            operation: "copy".into(),
            detail: format!("the {side} is not connected"),
        })
    }
}

impl World for RealWorld {
    fn connect(&self, side: Side) -> Result<Rc<dyn Host>, Fault> {
        self.disconnect(side);
        let role = match (self.txn, side) {
            (None, _) => Role::Survey,
            (Some(txn), Side::Source) => Role::Source(txn),
            (Some(txn), Side::Destination) => Role::Destination(txn),
        };
        let slot = self.slot(side);
        let host = Rc::new(self.connector.connect_real(&slot.access, role)?);
        *slot.host.borrow_mut() = Some(Rc::clone(&host));
        Ok(host)
    }

    fn disconnect(&self, side: Side) {
        if let Some(host) = self.slot(side).host.borrow_mut().take() {
            host.end();
        }
    }

    fn copy_chunks(&self, job: &CopyJob, sink: &mut dyn ChunkSink) -> Result<CopySummary, Fault> {
        let (source, destination) = (self.connected(Side::Source)?, self.connected(Side::Destination)?);
        let interrupt = &self.connector.options.interrupt;
        self.connector.runtime.block_on(copy::copy(source.client(), destination.client(), job, interrupt, sink))
    }

    fn now(&self) -> UnixMillis {
        // A clock before 1970 is wrong in a way that no number here can mend.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    fn random(&self) -> [u8; 16] {
        // Two random UUIDs hold 244 random bits; hashed, every bit of the 128 is one of them.
        let mut hasher = blake3::Hasher::new();
        for _ in 0..2 {
            hasher.update(uuid::Uuid::new_v4().as_bytes());
        }
        let mut bytes = [0; 16];
        hasher.finalize_xof().fill(&mut bytes);
        bytes
    }

    fn wait(&self, time: Duration) -> Result<(), Fault> {
        let interrupt = &self.connector.options.interrupt;
        self.connector.runtime.block_on(async {
            tokio::select! {
                biased;
                why = interrupt.raised() => Err(interrupted("local", "wait", why)),
                () = tokio::time::sleep(time) => Ok(()),
            }
        })
    }

    fn check_interrupted(&self) -> Result<(), Fault> {
        match self.connector.options.interrupt.why() {
            Some(why) => Err(interrupted("local", "go on", why.to_owned())),
            None => Ok(()),
        }
    }
}
