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
//! Where nothing of ours is lost but a name (one more name of what is in its own place, or the name of a domain that is gone),
//! another's object under it is `Absent` on the way back.
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

#[cfg(test)]
mod tests {
    use journal_format::OutcomeV1;

    use super::*;

    const LASTS: [(&str, Last); 6] = [
        ("none", Last::None),
        ("Started", Last::Started),
        ("Reopened", Last::Reopened),
        ("Failed", Last::Failed),
        ("Done", Last::Done),
        ("Undone", Last::Undone),
    ];

    fn probes() -> [(&'static str, Probe); 5] {
        [
            ("Absent", Probe::Absent),
            ("Partial", Probe::Partial),
            ("Ours", Probe::Ours(OutcomeV1::Nothing)),
            ("`InUse`", Probe::InUse(String::new())),
            ("Foreign", Probe::Foreign(String::new())),
        ]
    }

    /// The rows of the doc comment: last events, probes, forward, back.
    fn rows() -> Vec<[Vec<String>; 4]> {
        let cells = |line: &str| -> Option<[Vec<String>; 4]> {
            let columns: Vec<&str> = line.strip_prefix("//! | ")?.split('|').map(str::trim).collect();
            let [letter, last, probe, forward, back, ..] = columns[..] else { return None };
            (letter.len() == 1).then(|| {
                let last = match last {
                    "any but none" => LASTS[1..].iter().map(|(name, _)| (*name).to_owned()).collect(),
                    names => names.split(", ").map(str::to_owned).collect(),
                };
                [last, probe.split(", ").map(str::to_owned).collect(), vec![forward.to_owned()], vec![back.to_owned()]]
            })
        };
        include_str!("table.rs").lines().filter_map(cells).collect()
    }

    fn in_words(decision: Decision) -> &'static str {
        match decision {
            Decision::Nothing => "nothing",
            Decision::Apply => "apply",
            Decision::RecordDone => "Done",
            Decision::Reopen => "reopen",
            Decision::Undo => "undo",
            Decision::RecordUndone => "Undone",
            Decision::TurnBack => "turn back",
            Decision::Stop => "stop",
        }
    }

    #[test]
    fn the_code_is_the_table_of_the_doc_comment() {
        let rows = rows();
        assert_eq!(rows.len(), 13);
        for (last_name, last) in LASTS {
            for (probe_name, probe) in probes() {
                let matching: Vec<_> = rows
                    .iter()
                    .filter(|[lasts, probes, ..]| {
                        lasts.iter().any(|name| name == last_name) && probes.iter().any(|name| name == probe_name)
                    })
                    .collect();
                let [[_, _, forward, back]] = matching[..] else {
                    panic!("{last_name} and {probe_name} stand in {} rows", matching.len())
                };
                for (words, direction) in [(&forward[0], Direction::Forward), (&back[0], Direction::Back)] {
                    let decided = in_words(decide(last, &probe, direction));
                    let impossible = words == "–" || (last == Last::Failed && words.contains("(Failed: –)"));
                    let impossible = impossible || (last == Last::Failed && direction == Direction::Forward);
                    let expected = if impossible { "stop" } else { words.as_str() };
                    assert!(
                        expected.starts_with(decided),
                        "{last_name}, {probe_name}, {direction:?}: {decided}, not {words}"
                    );
                }
            }
        }
    }
}
