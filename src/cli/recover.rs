//! `recover`: what is unfinished here and what to do about it; or does it, for all of them.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use journal_format::{AttemptPurpose, TxnId};
use serde_json::{Value, json};

use super::attempt::{Otherwise, reopen};
use super::error::CliError;
use super::exit::ExitStatus;
use super::recover_from::{FromHost, recover_from};
use super::session::{Seen, Session};
use crate::journal::JournalError;
use crate::report::list::ListEntry;
use crate::report::show::{choices, objects, typed};
use crate::report::status::Status;
use crate::report::transaction::TransactionLog;

#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
/// What to do with all unfinished transactions; nothing asked for: only show them.
#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// Resume every interrupted transaction; finish those that are rolling back or cleaning up
    #[arg(long, conflicts_with = "rollback_all")]
    resume_all: bool,
    /// Roll every interrupted transaction back; finish those that are rolling back or cleaning up
    #[arg(long)]
    rollback_all: bool,
    /// Act for controllers that are gone: roll back what this destination holds records of and nobody knows any more
    #[arg(long, value_name = "HOST", conflicts_with_all = ["resume_all", "rollback_all"])]
    from: Option<String>,
    /// With --from: of committed clones remove the record too, though their controller has not seen its mark
    #[arg(long, requires = "from")]
    forget: bool,
    /// With --from: also transactions of controllers on other machines, which are gone for ever
    #[arg(long, requires = "from")]
    machine_gone: bool,
    /// With --from: only look
    #[arg(long, requires = "from")]
    dry_run: bool,
    /// With --from: private key file for that host
    #[arg(long, value_name = "FILE", requires = "from")]
    ssh_key: Option<PathBuf>,
}

impl RecoverArgs {
    /// What is to be done with a transaction in this status; `None`: it is only shown. A transaction has one way left
    /// once it turned back or was committed; a running one is left alone, and a stuck one waits for a person.
    fn purpose(&self, status: Status) -> Option<AttemptPurpose> {
        match status {
            _ if !self.resume_all && !self.rollback_all => None,
            Status::Interrupted if self.resume_all => Some(AttemptPurpose::Resume),
            Status::Interrupted | Status::RollingBack => Some(AttemptPurpose::Rollback),
            Status::CleaningUp => Some(AttemptPurpose::Resume),
            Status::Running | Status::Stuck | Status::Committed | Status::RolledBack | Status::Abandoned => None,
        }
    }
}

/// Shows, or brings to an end, every unfinished transaction; the worst ending counts. One failure keeps none of the
/// others from being looked at.
pub fn recover(args: &RecoverArgs, session: &Session) -> Result<ExitStatus, CliError> {
    if let Some(host) = &args.from {
        let wanted = FromHost {
            host,
            key_file: args.ssh_key.clone(),
            forget: args.forget,
            machine_gone: args.machine_gone,
            dry_run: args.dry_run,
        };
        return recover_from(&wanted, session);
    }
    session.warn_of_no_state();
    let mut worst = ExitStatus::Done;
    let mut values = Vec::new();
    let mut text = String::new();
    for (txn, seen) in session.see_all()? {
        match recover_one(args, txn, seen, session, &mut text) {
            Ok(None) => {}
            Ok(Some((status, value))) => {
                worst = worst.worse(status);
                values.push(value);
            }
            Err(error) => {
                worst = worst.worse(error.exit);
                session.terminal.complain(&error);
                values.push(json!({ "id": txn.to_string(), "exit_status": error.exit as u8, "error": error.view() }));
            }
        }
    }
    let nothing = || format!("nothing is unfinished in {}\n", session.state.in_words());
    session.terminal.result(&values, || if values.is_empty() { nothing() } else { text });
    Ok(worst)
}

/// Deals with one transaction; `None` when nothing of it is unfinished.
fn recover_one(
    args: &RecoverArgs,
    txn: TxnId,
    seen: Result<Seen, JournalError>,
    session: &Session,
    text: &mut String,
) -> Result<Option<(ExitStatus, Value)>, CliError> {
    let seen = seen.map_err(|error| CliError::journal(&error, ExitStatus::Refused))?;
    let log = seen.log;
    if !log.status.is_unfinished() {
        return Ok(None);
    }
    let purpose = args.purpose(log.status).filter(|_| !session.is_interrupted());
    let Some(purpose) = purpose else {
        describe(&log, session, text);
        let acting = args.resume_all || args.rollback_all;
        let status = match log.status {
            Status::Stuck if acting => ExitStatus::Stuck,
            Status::Running if acting => {
                let held = format!("transaction {txn} is left to the process that drives it now");
                session.terminal.warning(&held);
                ExitStatus::Held
            }
            // Ctrl-C came before its turn.
            _ if acting => ExitStatus::Suspended,
            _ => ExitStatus::Done,
        };
        return Ok(Some((status, view(&log, status))));
    };
    session.terminal.note(&format!("transaction {txn}: {} → {}", log.source.vm_name, log.destination.vm_name));
    let conclusion = reopen(txn, purpose, &Otherwise::default(), session)?;
    conclusion.say(&session.terminal);
    text.push_str(&conclusion.human());
    Ok(Some((conclusion.status, conclusion.json())))
}

fn describe(log: &TransactionLog, session: &Session, text: &mut String) {
    let (source, clone) = (&log.source, &log.destination);
    let _ = writeln!(
        text,
        "{}  {} on {} → {} on {}: {}, {} %",
        log.transaction_id, source.vm_name, source.host, clone.vm_name, clone.host, log.status, log.progress.percent
    );
    for (command, effect) in choices(log) {
        let _ = writeln!(text, "  {}\n      {effect}", typed(log, command, session.program()));
        for object in objects(log, command) {
            let _ = writeln!(text, "        {object}");
        }
    }
}

fn view(log: &TransactionLog, status: ExitStatus) -> Value {
    let mut value = json!(ListEntry::from(log));
    if let Value::Object(object) = &mut value {
        object.insert("exit_status".into(), json!(status as u8));
        for (command, effect) in choices(log) {
            object.insert(command.to_owned(), Value::String(effect));
            match command {
                "resume" => drop(object.insert("resume_steps".to_owned(), json!(objects(log, command)))),
                "rollback" => drop(object.insert("rollback_removes".to_owned(), json!(objects(log, command)))),
                _ => {}
            }
        }
    }
    value
}
