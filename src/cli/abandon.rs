//! `abandon TXN --reason TEXT`: close a transaction that can neither be finished nor rolled back.

use clap::Args;

use super::attempt::{Otherwise, conclude, open};
use super::error::CliError;
use super::exit::ExitStatus;
use super::session::Session;
use crate::engine::{self, GivingUp};

/// Bytes of a reason at most: it is for people, and stands in `show`.
const REASON_BYTES_MAX: usize = 1000;

/// Which transaction, and why.
#[derive(Debug, Args)]
pub struct AbandonArgs {
    /// The transaction; nobody acts on it any more, and what it made stays and is listed
    txn: String,
    /// Why, in your words: `show` tells it
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Close it also if the destination does not answer, because that host is gone for ever
    #[arg(long)]
    destination_gone: bool,
    #[command(flatten)]
    otherwise: Otherwise,
}

/// Gives one transaction up.
pub fn abandon(args: &AbandonArgs, session: &Session) -> Result<ExitStatus, CliError> {
    let reason = args.reason.trim();
    if reason.is_empty() || reason.len() > REASON_BYTES_MAX {
        return Err(CliError::usage(
            format!("a reason of {} bytes; it has 1 to {REASON_BYTES_MAX}", reason.len()),
            "say in a sentence why it is given up",
        ));
    }
    let txn = session.state.find(&args.txn)?;
    let mut journal = open(txn, session)?;
    let giving_up = GivingUp {
        controller: session.controller()?,
        reason: reason.to_owned(),
        destination_gone: args.destination_gone,
    };
    let conclusion = conclude(&mut journal, &args.otherwise, session, |world, journal, watcher| {
        engine::abandon(world, journal, watcher, &giving_up)
    })?;
    Ok(conclusion.tell(&session.terminal))
}
