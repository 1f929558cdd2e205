//! `show TXN`: one transaction, whole.

use clap::Args;

use super::error::CliError;
use super::exit::ExitStatus;
use super::session::Session;
use crate::report::show::human;

/// Which transaction.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The transaction
    txn: String,
}

/// Shows one transaction: with `--json` its transaction log, with `--verbose` its journal too.
pub fn show(args: &ShowArgs, session: &Session) -> Result<ExitStatus, CliError> {
    let txn = session.state.find(&args.txn)?;
    let seen = session.see(txn).map_err(|error| CliError::journal(&error, ExitStatus::Refused))?;
    session.terminal.result(&seen.log, || human(&seen.log, session.terminal.is_verbose(), session.program()));
    Ok(ExitStatus::Done)
}
