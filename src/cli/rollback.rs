//! `rollback TXN`: undo an unfinished transaction.

use clap::Args;
use journal_format::AttemptPurpose;

use super::attempt::{Otherwise, reopen};
use super::error::CliError;
use super::exit::ExitStatus;
use super::session::Session;

/// Which transaction.
#[derive(Debug, Args)]
pub struct RollbackArgs {
    /// The transaction
    txn: String,
    #[command(flatten)]
    otherwise: Otherwise,
}

/// Rolls one transaction back.
pub fn rollback(args: &RollbackArgs, session: &Session) -> Result<ExitStatus, CliError> {
    let txn = session.state.find(&args.txn)?;
    let conclusion = reopen(txn, AttemptPurpose::Rollback, &args.otherwise, session)?;
    Ok(conclusion.tell(&session.terminal))
}
