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
    /// So many changes of files happen first, and half of the next one if it is a write.
    Part(u64),
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
    /// Who carries it out dies in the middle of it: libvirtd, which comes back at once, or the agent.
    BrokenOff,
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
            Self::BrokenOff => f.write_str("BrokenOff"),
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

impl Injection {
    /// What it is, for the tally.
    pub fn kind(&self) -> &'static str {
        match (&self.fault, self.effect) {
            (Fault::Crash, _) => "controller crash",
            (Fault::LinkCut, Effect::Never | Effect::Part(_)) => "link cut, request lost",
            (Fault::LinkCut, Effect::First) => "link cut, reply lost",
            (Fault::LinkCut, Effect::Late(_)) => "link cut, effect late",
            (Fault::PowerCut(Side::Source, _), _) => "power cut of the source",
            (Fault::PowerCut(Side::Destination, _), Effect::Part(_)) => "power cut of the destination, effect partial",
            (Fault::PowerCut(Side::Destination, _), _) => "power cut of the destination",
            (Fault::AgentDies, _) => "agent crash",
            (Fault::BrokenOff, _) => "agent or libvirtd crash, effect partial",
            (Fault::TimesOut, Effect::Never | Effect::Part(_)) => "time-out, request lost",
            (Fault::TimesOut, Effect::First) => "time-out, reply lost after the effect",
            (Fault::TimesOut, Effect::Late(_)) => "time-out, effect lands later",
            (Fault::Fails(FaultKind::Io), Effect::Part(_)) => "I/O error, effect partial",
            (Fault::Fails(FaultKind::Io), _) => "I/O error",
            (Fault::Fails(FaultKind::NoSpace), Effect::Part(_)) => "no space once, effect partial",
            (Fault::Fails(FaultKind::NoSpace), _) => "no space once",
            (Fault::Fails(FaultKind::LibvirtDown), _) => "libvirt unreachable",
            (Fault::Fails(_), _) => "refusal",
            (Fault::DiskFull, _) => "disk full",
            (Fault::Interrupt, _) => "interrupt",
            (Fault::JournalFails, _) => "journal failure",
            (Fault::Meanwhile(name, _), _) => name,
        }
    }
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
