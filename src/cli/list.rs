//! `list`: every transaction of this state directory.

use journal_format::UnixMillis;
use serde_json::{Value, json};

use super::error::CliError;
use super::exit::ExitStatus;
use super::session::{Seen, Session, now};
use crate::journal::JournalError;
use crate::report::list::{ListEntry, table};

/// Lists the transactions, oldest first. A journal that cannot be read is named and ends in its own status; the others
/// are listed all the same.
pub fn list(session: &Session) -> Result<ExitStatus, CliError> {
    let mut rows: Vec<(UnixMillis, ListEntry)> = Vec::new();
    let mut values: Vec<Value> = Vec::new();
    let mut status = ExitStatus::Done;
    session.warn_of_no_state();
    for (txn, seen) in session.see_all()? {
        match seen {
            Ok(Seen { log, began, .. }) => {
                let entry = ListEntry::from(&log);
                values.push(json!(entry));
                rows.push((began, entry));
            }
            Err(error) => {
                let complaint = CliError::journal(&error, ExitStatus::Refused);
                status = status.worse(complaint.exit);
                session.terminal.complain(&complaint);
                values.push(json!({ "id": txn.to_string(), "status": unreadable(&error), "error": complaint.view() }));
            }
        }
    }
    session.terminal.result(&values, || {
        if rows.is_empty() {
            return format!("no transactions in {}\n", session.state.in_words());
        }
        table(&rows, now())
    });
    Ok(status)
}

/// The word that stands in the place of a status where a journal cannot be read.
fn unreadable(error: &JournalError) -> &'static str {
    match error {
        JournalError::Newer { .. } => "newer",
        JournalError::Damaged { .. } => "damaged",
        _ => "unreadable",
    }
}
