//! `resume TXN`: go on with an unfinished transaction.

use clap::Args;
use journal_format::AttemptPurpose;

use super::attempt::{Otherwise, reopen};
use super::error::CliError;
use super::exit::ExitStatus;
use super::session::Session;
use crate::request::ByteRate;

/// Which transaction, and how fast.
#[derive(Debug, Args)]
pub struct ResumeArgs {
    /// The transaction
    txn: String,
    /// Send at most this much a second from now on: 100M, 1.5G (bytes) or 800Mbit
    #[arg(long, value_name = "RATE")]
    bandwidth_limit: Option<String>,
    #[command(flatten)]
    otherwise: Otherwise,
}

/// Resumes one transaction.
pub fn resume(args: &ResumeArgs, session: &Session) -> Result<ExitStatus, CliError> {
    let bandwidth_limit = args.bandwidth_limit.as_deref().map(str::parse::<ByteRate>).transpose()?;
    let otherwise = Otherwise { bandwidth_limit, ..args.otherwise.clone() };
    let txn = session.state.find(&args.txn)?;
    let conclusion = reopen(txn, AttemptPurpose::Resume, &otherwise, session)?;
    Ok(conclusion.tell(&session.terminal))
}
