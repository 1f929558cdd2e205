//! `journal verify` and `journal export`: the record itself, byte for byte.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use journal_format::TxnId;
use serde_json::{Value, json};

use super::error::CliError;
use super::exit::ExitStatus;
use super::session::Session;
use crate::journal::Repair;
use crate::journal::verify::{CopyReport, Verdict, VerifyReport, export, verify};
use crate::report::quantity::printable;

/// What to do with a journal.
#[derive(Debug, Subcommand)]
pub enum JournalCommand {
    /// Check both copies of a transaction's journal, record by record; changes nothing
    Verify(VerifyArgs),
    /// Write a transaction's events.log out as it is; changes nothing
    Export(ExportArgs),
}

/// Which journal.
#[derive(Debug, Args)]
#[command(after_help = VERIFY_HELP)]
pub struct VerifyArgs {
    /// The transaction
    txn: String,
}

const VERIFY_HELP: &str = "\
Exit status: 0 both copies are sound, or lack no more than a crash takes; 6 something that was recorded is damaged or gone in one \
copy (`repairable`: the next resume or rollback puts it right from the other) or in both.";

/// Which journal, and where to.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The transaction
    txn: String,
    /// File to write, which must not exist yet [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Checks or exports a journal.
pub fn journal(command: &JournalCommand, session: &Session) -> Result<ExitStatus, CliError> {
    match command {
        JournalCommand::Verify(args) => verify_one(session.state.find(&args.txn)?, session),
        JournalCommand::Export(args) => export_one(session.state.find(&args.txn)?, args.output.as_deref(), session),
    }
}

fn verify_one(txn: TxnId, session: &Session) -> Result<ExitStatus, CliError> {
    let report = verify(&session.state, txn).map_err(|error| CliError::journal(&error, ExitStatus::Refused))?;
    let (status, word, notes) = match &report.verdict {
        Verdict::Sound => (ExitStatus::Done, "sound", Vec::new()),
        Verdict::Repairable(repairs) => {
            let harmless = repairs.iter().all(Repair::is_of_a_crash);
            let status = if harmless { ExitStatus::Done } else { ExitStatus::Journal };
            (status, "repairable", repairs.iter().map(ToString::to_string).collect())
        }
        Verdict::Damaged(what) => (ExitStatus::Journal, "damaged", vec![what.clone()]),
        Verdict::Newer(what) => (ExitStatus::Journal, "newer", vec![what.clone()]),
    };
    session.terminal.result(&view(&report, word, &notes), || human(&report, word, &notes));
    Ok(status)
}

fn view(report: &VerifyReport, word: &str, notes: &[String]) -> Value {
    let copies: Vec<Value> = report
        .copies
        .iter()
        .map(
            |copy| json!({ "name": copy.name, "records": copy.frames.len(), "bytes": size(copy), "fault": copy.fault }),
        )
        .collect();
    json!({
        "id": report.txn.to_string(),
        "verdict": word,
        "notes": notes,
        "held_by_process": report.holder.as_ref().map(|holder| holder.pid),
        "copies": copies,
    })
}

fn human(report: &VerifyReport, word: &str, notes: &[String]) -> String {
    let mut text = format!("journal of {}: {word}\n", report.txn);
    for copy in &report.copies {
        let fault = copy.fault.as_ref().map_or_else(String::new, |fault| format!("; {}", printable(fault)));
        let _ = writeln!(text, "  {}: {} records, {} bytes{fault}", copy.name, copy.frames.len(), size(copy));
    }
    if matches!(report.verdict, Verdict::Repairable(_)) {
        text.push_str("  the next resume or rollback puts right:\n");
    }
    for note in notes {
        let _ = writeln!(text, "  {}", printable(note));
    }
    if let Some(holder) = &report.holder {
        let _ = writeln!(text, "  held by process {} on {}: the second copy was not read", holder.pid, holder.host);
    }
    text
}

fn size(copy: &CopyReport) -> u64 {
    copy.frames.iter().map(|frame| frame.bytes).sum()
}

fn export_one(txn: TxnId, output: Option<&Path>, session: &Session) -> Result<ExitStatus, CliError> {
    let failed = |error| CliError::journal(&error, ExitStatus::Refused);
    let Some(path) = output else {
        if session.terminal.is_json() || io::stdout().is_terminal() {
            let message = "journal export: the export is binary, and standard output is no place for it here";
            return Err(CliError::usage(message, "name a file with --output, or send standard output to one"));
        }
        export(&session.state, txn, &mut io::stdout().lock()).map_err(failed)?;
        return Ok(ExitStatus::Done);
    };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(|error| {
        CliError::new(ExitStatus::Refused, format!("{}: {error}", path.display()), "name a file that does not exist")
    })?;
    let written = export(&session.state, txn, &mut file).and_then(|records| {
        file.flush().and_then(|()| file.sync_all()).map(|()| records).map_err(|source| {
            crate::journal::JournalError::Io { path: path.display().to_string(), operation: "fsync", source }
        })
    });
    let records = written.map_err(|error| {
        // Half an export must not be taken for one.
        let _ = std::fs::remove_file(path);
        failed(error)
    })?;
    let value = json!({ "id": txn.to_string(), "output": path.display().to_string(), "records": records });
    session.terminal.result(&value, || format!("{records} records in {}\n", path.display()));
    Ok(ExitStatus::Done)
}
