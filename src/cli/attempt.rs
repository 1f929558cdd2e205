//! One attempt in one transaction: what `run`, `resume`, `rollback`, `recover` and `abandon` have in common.

use std::path::PathBuf;

use clap::Args;
use journal_format::{AttemptPurpose, CountsV1, EventV1, PlanV1, TxnId};

use super::conclusion::Conclusion;
use super::error::CliError;
use super::exit::ExitStatus;
use super::session::Session;
use super::watch::Watcher;
use crate::engine::{self, Ending, Settings};
use crate::host::{Access, RealWorld};
use crate::journal::{FileJournal, Journal, JournalError};
use crate::report::transaction::TransactionLog;
use crate::request::ByteRate;

/// What may be otherwise in one attempt than the plan has it.
#[derive(Debug, Clone, Default, Args)]
pub struct Otherwise {
    /// Private key file for both hosts, instead of the one that the clone was begun with
    #[arg(long, value_name = "FILE")]
    pub ssh_key: Option<PathBuf>,
    /// Image bytes a second at most, from now on.
    #[arg(skip)]
    pub bandwidth_limit: Option<ByteRate>,
}

/// Opens a transaction that is there and drives it as far as it goes.
pub fn reopen(
    txn: TxnId,
    purpose: AttemptPurpose,
    otherwise: &Otherwise,
    session: &Session,
) -> Result<Conclusion, CliError> {
    drive(&mut open(txn, session)?, purpose, otherwise, None, session)
}

/// Opens the journal of a transaction that is there, and tells what had to be repaired.
pub fn open(txn: TxnId, session: &Session) -> Result<FileJournal, CliError> {
    let (journal, repairs) =
        FileJournal::open(&session.state, txn).map_err(|error| CliError::journal(&error, ExitStatus::Suspended))?;
    for repair in repairs {
        session.terminal.warning(&format!("journal of {txn}: {repair}"));
    }
    Ok(journal)
}

/// Drives the transaction of an open journal as far as it goes, and says how that ended. `survey`: what the agents did that
/// looked for it just before.
pub fn drive(
    journal: &mut dyn Journal,
    purpose: AttemptPurpose,
    otherwise: &Otherwise,
    survey: Option<[CountsV1; 2]>,
    session: &Session,
) -> Result<Conclusion, CliError> {
    let settings = Settings {
        purpose,
        controller: session.controller()?,
        controller_pid: std::process::id(),
        bandwidth_limit_bytes_per_second: otherwise.bandwidth_limit.map(ByteRate::bytes_per_second),
        survey,
    };
    conclude(journal, otherwise, session, |world, journal, watcher| engine::drive(world, journal, watcher, &settings))
}

/// Lets the engine act on an open journal's transaction between its two hosts, and says how that ended.
pub fn conclude(
    journal: &mut dyn Journal,
    otherwise: &Otherwise,
    session: &Session,
    act: impl FnOnce(&RealWorld, &mut dyn Journal, &mut Watcher<'_>) -> Result<Ending, JournalError>,
) -> Result<Conclusion, CliError> {
    let journal_error = |error: &JournalError| CliError::journal(error, ExitStatus::Suspended);
    let plan = plan_of(journal).map_err(|error| journal_error(&error))?;
    let access = |endpoint| Access::from_endpoint(endpoint, otherwise.ssh_key.as_deref()).map_err(CliError::from);
    let (source, destination) = (access(&plan.request.source)?, access(&plan.request.destination)?);
    let world = RealWorld::new(session.connector()?, source, destination, Some(plan.txn));
    let ended_before = matches!(journal.records().last().map(|record| &record.event), Some(EventV1::Finished { .. }));
    let mut watcher = Watcher::new(plan, &session.live, &session.terminal);
    let ending = act(&world, journal, &mut watcher).map_err(|error| journal_error(&error))?;
    drop(watcher);
    // The attempt has ended: nobody drives it any more.
    let log = TransactionLog::of(journal.records(), false, session.live.read(journal.txn()))
        .map_err(|error| journal_error(&damaged(journal, error.to_string())))?;
    let conclusion = Conclusion::new(ending, log, session.program());
    Ok(if ended_before { conclusion.of_before() } else { conclusion })
}

fn plan_of(journal: &dyn Journal) -> Result<PlanV1, JournalError> {
    match journal.records().first().map(|record| &record.event) {
        Some(EventV1::Begun { plan }) => Ok(plan.as_ref().clone()),
        _ => Err(damaged(journal, "it does not begin with a plan".to_owned())),
    }
}

fn damaged(journal: &dyn Journal, what: String) -> JournalError {
    JournalError::Damaged { path: journal.txn().to_string(), what }
}
