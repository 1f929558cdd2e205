//! The recovery table: what to do with a step, from its last event, its probe and the direction.
//!
//! | | last event | probe | forward | back |
//! | --- | --- | --- | --- | --- |
//! | A | none | Absent | apply | nothing |
//! | B | none | Ours, Partial, `InUse` | stop: an effect nobody recorded | stop |
//! | C | none | Foreign | turn back | nothing |
//! | D | Started, Reopened, Failed | Absent | apply (Failed: –) | Undone |
//! | E | Started, Reopened, Failed | Partial | apply (Failed: –) | undo |
//! | F | Started, Reopened, Failed | Ours | Done (Failed: –) | undo |
//! | G | Started, Reopened, Failed | Foreign | turn back | Undone: nothing of ours is there |
//! | H | Done | Ours | nothing | undo |
//! | I | Done | Absent, Partial | reopen, with all later steps of that disk | undo what is there |
//! | J | Done | Foreign | stop | stop |
//! | K | Undone | Absent, Foreign | – | nothing |
//! | L | Undone | Ours, Partial | – | undo again |
//! | M | any but none | `InUse` | stop | stop |
//!
//! A host that does not answer is no row: that suspends. `–` cannot happen, because Failed and Undone exist only where
//! the direction is back; it stops rather than guesses.

use crate::history::Last;
use crate::steps::Probe;

/// Where an attempt is going before the commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Towards the commit.
    Forward,
    /// Towards the world as it was.
    Back,
}

/// What to do with a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Nothing.
    Nothing,
    /// Make the effect (again).
    Apply,
    /// Record that the effect is there, once it is durable.
    RecordDone,
    /// The effect of a done step is gone: apply it again, and what builds on it.
    Reopen,
    /// Take the effect away.
    Undo,
    /// Record that no effect of ours is there.
    RecordUndone,
    /// Somebody else has what this step needs: roll back.
    TurnBack,
    /// A person must look.
    Stop,
}

/// The table.
// One arm a row: rows that decide alike stay apart, so that each can be read, and changed, alone.
#[allow(clippy::match_same_arms)]
pub fn decide(last: Last, probe: &Probe, direction: Direction) -> Decision {
    use Direction::{Back, Forward};
    match (last, probe, direction) {
        // A
        (Last::None, Probe::Absent, Forward) => Decision::Apply,
        (Last::None, Probe::Absent, Back) => Decision::Nothing,
        // B
        (Last::None, Probe::Ours(_) | Probe::Partial | Probe::InUse(_), Forward | Back) => Decision::Stop,
        // C
        (Last::None, Probe::Foreign(_), Forward) => Decision::TurnBack,
        (Last::None, Probe::Foreign(_), Back) => Decision::Nothing,
        // D, E
        (Last::Started | Last::Reopened, Probe::Absent | Probe::Partial, Forward) => Decision::Apply,
        (Last::Started | Last::Reopened | Last::Failed, Probe::Absent, Back) => Decision::RecordUndone,
        // E, F
        (Last::Started | Last::Reopened | Last::Failed, Probe::Partial | Probe::Ours(_), Back) => Decision::Undo,
        (Last::Started | Last::Reopened, Probe::Ours(_), Forward) => Decision::RecordDone,
        // G
        (Last::Started | Last::Reopened, Probe::Foreign(_), Forward) => Decision::TurnBack,
        (Last::Started | Last::Reopened | Last::Failed, Probe::Foreign(_), Back) => Decision::RecordUndone,
        // H
        (Last::Done, Probe::Ours(_), Forward) => Decision::Nothing,
        // H, I
        (Last::Done, Probe::Ours(_) | Probe::Absent | Probe::Partial, Back) => Decision::Undo,
        // I
        (Last::Done, Probe::Absent | Probe::Partial, Forward) => Decision::Reopen,
        // J
        (Last::Done, Probe::Foreign(_), Forward | Back) => Decision::Stop,
        // K
        (Last::Undone, Probe::Absent | Probe::Foreign(_), Back) => Decision::Nothing,
        // L
        (Last::Undone, Probe::Ours(_) | Probe::Partial, Back) => Decision::Undo,
        // M
        (
            Last::Started | Last::Reopened | Last::Failed | Last::Done | Last::Undone,
            Probe::InUse(_),
            Forward | Back,
        ) => Decision::Stop,
        // –
        (Last::Failed | Last::Undone, Probe::Absent | Probe::Partial | Probe::Ours(_) | Probe::Foreign(_), Forward) => {
            Decision::Stop
        }
    }
}
