//! What goes wrong, and when: every primitive operation, and every append to the journal, of one life of a
//! controller has a number, and faults happen at numbers.

use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

use kvm_clone::world::{FaultKind, Side};

use crate::durability::Survival;
use crate::world::SimWorld;

/// What becomes of the operation at which something goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It does not happen.
    Never,
    /// It happened first.
    First,
    /// It happens later, after so many milliseconds, if who was asked is still there then.
    Late(u64),
}

/// Something that goes wrong.
#[derive(Clone)]
pub enum Fault {
    /// The controller dies.
    Crash,
    /// The link to the host is cut; its agent does not know yet.
    LinkCut,
    /// The host's agent dies.
    AgentDies,
    /// A host loses its power, and comes back at once.
    PowerCut(Side, Survival),
    /// No answer in time.
    TimesOut,
    /// This once the answer is an error.
    Fails(FaultKind),
    /// The destination's filesystems are full until the attempt ends.
    DiskFull,
    /// Ctrl-C.
    Interrupt,
    /// The controller's own disk: the journal is poisoned.
    JournalFails,
    /// Somebody does something, then the operation is carried out.
    Meanwhile(&'static str, Rc<dyn Fn(&SimWorld)>),
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Crash => f.write_str("Crash"),
            Self::LinkCut => f.write_str("LinkCut"),
            Self::AgentDies => f.write_str("AgentDies"),
            Self::PowerCut(side, survival) => write!(f, "PowerCut({side}, {survival:?})"),
            Self::TimesOut => f.write_str("TimesOut"),
            Self::Fails(kind) => write!(f, "Fails({kind:?})"),
            Self::DiskFull => f.write_str("DiskFull"),
            Self::Interrupt => f.write_str("Interrupt"),
            Self::JournalFails => f.write_str("JournalFails"),
            Self::Meanwhile(name, _) => write!(f, "Meanwhile({name})"),
        }
    }
}

/// A fault at one operation.
#[derive(Debug, Clone)]
pub struct Injection {
    pub fault: Fault,
    pub effect: Effect,
}

/// The faults of one life of a controller, by number of the operation, from 0.
#[derive(Debug, Clone, Default)]
pub struct FaultPlan {
    at: BTreeMap<u64, Injection>,
}

impl FaultPlan {
    pub fn none() -> Self {
        Self::default()
    }

    pub fn at(operation: u64, fault: Fault, effect: Effect) -> Self {
        Self::none().and(operation, fault, effect)
    }

    pub fn and(mut self, operation: u64, fault: Fault, effect: Effect) -> Self {
        self.at.insert(operation, Injection { fault, effect });
        self
    }

    pub fn take(&mut self, operation: u64) -> Option<Injection> {
        self.at.remove(&operation)
    }

    /// Nothing is left to happen.
    pub fn is_spent(&self) -> bool {
        self.at.is_empty()
    }
}
