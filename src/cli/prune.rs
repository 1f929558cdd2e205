//! `prune`: removes the journals of transactions that are over, here and nowhere else. What is unfinished, stuck, damaged or
//! in use is never removed.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use journal_format::{TxnId, UnixMillis};
use serde_json::{Value, json};

use super::error::CliError;
use super::exit::ExitStatus;
use super::session::{Seen, Session, now};
use crate::journal::{JournalError, prune as journals};
use crate::report::list::{ListEntry, short};
use crate::report::table::lay_out;

/// Without either option: those that ended longer ago than this, …
const OLDER_THAN_DEFAULT_DAYS: u64 = 30;
/// … and are not among this many that ended last.
const KEEP_DEFAULT_TRANSACTIONS: usize = 100;

/// Which of the finished transactions go; with both options those that both allow. Without any: --older-than 30d --keep 100.
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Only what ended longer ago than this: 90m, 12h, 30d or 8w [default: 30d where --keep is not given either]
    #[arg(long, value_name = "AGE")]
    older_than: Option<Age>,
    /// Keep this many that ended last [default: 100 where --older-than is not given either]
    #[arg(long, value_name = "NUMBER")]
    keep: Option<usize>,
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
}

impl PruneArgs {
    /// Does it only tell?
    pub fn dry_run(&self) -> bool {
        self.dry_run
    }

    /// The age and the number that count.
    fn bounds(&self) -> (Duration, usize) {
        match (self.older_than, self.keep) {
            (None, None) => (Duration::from_secs(OLDER_THAN_DEFAULT_DAYS * DAY_SECONDS), KEEP_DEFAULT_TRANSACTIONS),
            (age, keep) => (age.map_or(Duration::ZERO, |age| age.0), keep.unwrap_or(0)),
        }
    }
}

/// A time that has passed: a whole number of minutes, hours, days or weeks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Age(Duration);

const DAY_SECONDS: u64 = 24 * 60 * 60;

impl FromStr for Age {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unit = match text.chars().next_back() {
            Some('m') => 60,
            Some('h') => 60 * 60,
            Some('d') => DAY_SECONDS,
            Some('w') => 7 * DAY_SECONDS,
            _ => 0,
        };
        let digits =
            text.get(..text.len().saturating_sub(1)).filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
        let number = digits.and_then(|digits| digits.parse::<u64>().ok()).filter(|_| unit > 0);
        let seconds = number.and_then(|number| number.checked_mul(unit));
        let seconds = seconds.ok_or("expected a whole number and m, h, d or w: 90m, 12h, 30d or 8w")?;
        Ok(Self(Duration::from_secs(seconds)))
    }
}

/// A transaction that is over, and when that was.
struct Over {
    txn: TxnId,
    at: UnixMillis,
    entry: ListEntry,
}

/// Removes what may go, oldest first. What cannot be removed is named, and keeps none of the others.
pub fn prune(args: &PruneArgs, session: &Session) -> Result<ExitStatus, CliError> {
    session.warn_of_no_state();
    let mut status = ExitStatus::Done;
    let mut left: Vec<Value> = Vec::new();
    let mut leave = |txn: TxnId, error: &JournalError| {
        let complaint = CliError::journal(error, ExitStatus::Refused);
        // In use is no failure: it is left for the next time.
        if complaint.exit == ExitStatus::Held {
            session.terminal.note(&format!("left: {error}"));
        } else {
            status = status.worse(complaint.exit);
            session.terminal.complain(&complaint);
        }
        left.push(json!({ "id": txn.to_string(), "error": complaint.view() }));
    };
    if !args.dry_run {
        journals::finish_removals(&session.state).map_err(|error| CliError::journal(&error, ExitStatus::Refused))?;
    }
    let mut over: Vec<Over> = Vec::new();
    for (txn, seen) in session.see_all()? {
        match seen {
            Ok(Seen { log, last, .. }) if !log.status.is_unfinished() => {
                over.push(Over { txn, at: last, entry: ListEntry::from(&log) });
            }
            Ok(_) => {}
            Err(error) => leave(txn, &error),
        }
    }
    let found = over.len();
    let mut removed: Vec<ListEntry> = Vec::new();
    for Over { txn, entry, .. } in chosen(over, args.bounds(), now()) {
        if session.is_interrupted() {
            break;
        }
        let is_over = || session.see(txn).map(|seen| !seen.log.status.is_unfinished());
        match if args.dry_run { Ok(true) } else { journals::remove(&session.state, txn, is_over) } {
            Ok(true) => removed.push(entry),
            Ok(false) => {}
            Err(error) => leave(txn, &error),
        }
    }
    let kept = found - removed.len();
    let value = json!({ "dry_run": args.dry_run, "removed": removed, "kept_finished": kept, "left": left });
    session.terminal.result(&value, || human(&removed, kept, args.dry_run));
    Ok(status)
}

/// Those that may go, oldest first: ended longer ago than `age`, and not among the `keep` that ended last.
fn chosen(mut over: Vec<Over>, (age, keep): (Duration, usize), now: UnixMillis) -> Vec<Over> {
    over.sort_by_key(|one| (one.at, one.txn));
    let last: BTreeSet<TxnId> = over.iter().rev().take(keep).map(|one| one.txn).collect();
    // One that ended in the future, by this clock, has no age.
    over.retain(|one| now.0.checked_sub(one.at.0).is_some_and(|past| u128::from(past) >= age.as_millis()));
    over.retain(|one| !last.contains(&one.txn));
    over
}

fn human(removed: &[ListEntry], kept: usize, dry_run: bool) -> String {
    let mut text = String::new();
    if !removed.is_empty() {
        let rows: Vec<[String; 4]> = removed
            .iter()
            .map(|entry| {
                let ended = entry.completed_at.clone().unwrap_or_default();
                [
                    short(&entry.id).to_owned(),
                    format!("{} → {}", entry.vm, entry.new_name),
                    entry.status.to_string(),
                    ended,
                ]
            })
            .collect();
        text += &lay_out(["TXN", "VM → CLONE", "STATUS", "ENDED"], &rows);
    }
    let would = if dry_run { "would be removed" } else { "removed" };
    let _ = writeln!(text, "{} finished transactions {would}, {kept} kept", removed.len());
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::report::fixture::Journal;
    use crate::report::transaction::TransactionLog;

    const HOUR_MILLIS: u64 = 3_600_000;

    fn over(number: u8, hours_ago: u64, now: UnixMillis) -> Over {
        let log = TransactionLog::of(&Journal::begun().did(1, 0..7).committed(1).records, false, None).unwrap();
        Over { txn: TxnId([number; 16]), at: UnixMillis(now.0 - hours_ago * HOUR_MILLIS), entry: ListEntry::from(&log) }
    }

    #[test]
    fn what_is_old_enough_and_not_among_the_last_goes() {
        let now = UnixMillis(1_700_000_000_000);
        let numbers = |hours: u64, keep: usize| -> Vec<u8> {
            let all = vec![over(1, 1, now), over(2, 50, now), over(3, 30, now), over(4, 2, now)];
            let chosen = chosen(all, (Duration::from_secs(hours * 3600), keep), now);
            chosen.iter().map(|one| one.txn.0[0]).collect()
        };
        assert_eq!(numbers(0, 0), [2, 3, 4, 1], "all, oldest first");
        assert_eq!(numbers(24, 0), [2, 3]);
        assert_eq!(numbers(30, 0), [2, 3], "exactly so old is old enough");
        assert_eq!(numbers(0, 2), [2, 3]);
        assert_eq!(numbers(24, 3), [2]);
        assert_eq!(numbers(24, 4), [0; 0]);
        let future = Over { at: UnixMillis(now.0 + 1), ..over(5, 0, now) };
        assert!(chosen(vec![future], (Duration::ZERO, 0), now).is_empty(), "its clock was wrong, or this one is");
    }

    #[test]
    fn an_age_is_a_number_and_a_unit() {
        for (text, seconds) in [("90m", 5400), ("12h", 43_200), ("30d", 2_592_000), ("8w", 4_838_400), ("0d", 0)] {
            assert_eq!(text.parse(), Ok(Age(Duration::from_secs(seconds))), "{text}");
        }
        for text in ["", "d", "30", "-1d", "1.5d", "30 d", "30é", "é", "99999999999999999999d", "9999999999999999999w"]
        {
            assert!(text.parse::<Age>().is_err(), "{text:?}");
        }
    }
}
