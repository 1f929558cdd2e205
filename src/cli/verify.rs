//! `verify TXN`: is the clone still what was copied? Any time after the commit, also while it runs; changes nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use indicatif::ProgressBar;
use journal_format::{OutcomeV1, PlanV1, StepV1, TxnId};
use serde_json::{Value, json};

use super::error::CliError;
use super::exit::ExitStatus;
use super::session::Session;
use super::watch::byte_style;
use crate::domain::metadata::CloneMark;
use crate::history::History;
use crate::host::{Access, Role};
use crate::journal::verify::ledgers;
use crate::journal::{self, JournalError};
use crate::report::quantity::{bytes, printable};
use crate::report::show::suggestions;
use crate::report::status::Status;
use crate::verify::{Expected, ImageVerdict, verify as verify_image};
use crate::world::{ChunkGeometry, DomainState, FaultKind, Host};

/// Which transaction.
#[derive(Debug, Args)]
#[command(after_help = VERIFY_HELP)]
pub struct VerifyArgs {
    /// The transaction
    txn: String,
    /// Private key file for the host, instead of the one that the clone was begun with
    #[arg(long, value_name = "FILE")]
    ssh_key: Option<PathBuf>,
}

const VERIFY_HELP: &str = "\
Exit status: 0 every byte is as it was copied; 4 something differs though nobody wrote to it since, or is gone; \
5 something differs, and the clone was started or written to since.";

/// The clone as libvirt knows it now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CloneState {
    ShutOff,
    Running,
    /// Nothing of that UUID has this transaction's mark any more.
    Gone,
}

impl CloneState {
    fn word(self) -> &'static str {
        match self {
            Self::ShutOff => "shut_off",
            Self::Running => "running",
            Self::Gone => "gone",
        }
    }
}

/// Re-reads the images of a committed clone on its host.
pub fn verify(args: &VerifyArgs, session: &Session) -> Result<ExitStatus, CliError> {
    let txn = session.state.find(&args.txn)?;
    must_be_committed(txn, session)?;
    let (plan, images) = expected(txn, session)?;
    let access = Access::from_endpoint(&plan.request.destination, args.ssh_key.as_deref())?;
    let before = |fault| CliError::before_begun(&fault);
    let host = session.connector()?.connect(&access, Role::Survey).map_err(before)?;
    let machine_id = host.facts().map_err(before)?.machine_id;
    if machine_id != plan.request.destination.machine_id {
        let message =
            format!("{} is another machine ({machine_id}) than the one that the clone was made on", host.name());
        return Err(CliError::new(ExitStatus::Refused, message, "see what that name leads to now"));
    }
    let clone = clone_state(&plan, host.as_ref())?;
    let mut verdicts = Vec::new();
    for image in &images {
        verdicts.push(reread(host.as_ref(), image, session)?);
    }
    let status = judge(clone, &verdicts);
    let value = view(&plan, clone, &verdicts, status);
    session.terminal.result(&value, || human(&plan, clone, &verdicts));
    Ok(status)
}

fn must_be_committed(txn: TxnId, session: &Session) -> Result<(), CliError> {
    let log = session.see(txn).map_err(|error| CliError::journal(&error, ExitStatus::Refused))?.log;
    let message = format!("transaction {txn} is {}: there is no clone to be verified", log.status);
    let mut error = match log.status {
        Status::Committed | Status::CleaningUp => return Ok(()),
        Status::Running => CliError::new(ExitStatus::Held, message, "wait for its end"),
        _ => CliError::new(ExitStatus::Refused, message, ""),
    };
    error.suggestions = suggestions(&log, session.program());
    Err(error)
}

/// What the images were at the commit, and what it stands on, from the journal alone.
fn expected(txn: TxnId, session: &Session) -> Result<(PlanV1, Vec<Expected>), CliError> {
    let failed = |error: &JournalError| CliError::journal(error, ExitStatus::Refused);
    let snapshot = journal::read(&session.state, txn).map_err(|error| failed(&error))?;
    let path = || session.state.txn_path(txn).display().to_string();
    let damaged = |what: String| failed(&JournalError::Damaged { path: path(), what });
    let history = History::of(&snapshot.records).map_err(|error| damaged(error.to_string()))?;
    let (known, why_not) = ledgers(&session.state, txn, history.plan.images.len()).map_err(|error| failed(&error))?;
    if let Some(why) = why_not {
        session.terminal.warning(&format!(
            "the second copy of the journal cannot be read, and so not where an image differs, only whether: {why}"
        ));
    }
    let mut images = Vec::new();
    for ((index, image), chunks) in (0u32..).zip(&history.plan.images).zip(known) {
        let step = history.of_step(StepV1::TransferImage { image: index });
        let Some(OutcomeV1::Transferred { root, inode, source_size, mtime_ns, .. }) =
            step.and_then(|step| step.outcome.as_ref())
        else {
            return Err(damaged(format!("it has no record of the transfer of {}", image.role)));
        };
        images.push(Expected {
            role: image.role.to_string(),
            path: image.final_path.clone(),
            geometry: ChunkGeometry {
                image_bytes: *source_size,
                chunk_bytes: history.plan.request.options.chunk_size_bytes,
            },
            root: *root,
            inode: *inode,
            mtime_ns: *mtime_ns,
            chunks,
        });
    }
    images.extend(history.plan.bases.iter().map(|base| Expected {
        role: base.role.to_string(),
        path: base.path.clone(),
        geometry: ChunkGeometry {
            image_bytes: base.stamp.size,
            chunk_bytes: history.plan.request.options.chunk_size_bytes,
        },
        root: base.root,
        inode: base.stamp.inode,
        mtime_ns: base.stamp.mtime_ns,
        // It was not transferred: only its root is known.
        chunks: BTreeMap::new(),
    }));
    Ok((history.plan.as_ref().clone(), images))
}

fn clone_state(plan: &PlanV1, host: &dyn Host) -> Result<CloneState, CliError> {
    let domain = host.domain(plan.clone_uuid).map_err(|fault| CliError::before_begun(&fault))?;
    let is_ours =
        |definition: &str| CloneMark::read(definition).ok().flatten().is_some_and(|mark| mark.txn == plan.txn);
    Ok(match domain.filter(|domain| is_ours(&domain.definition)) {
        None => CloneState::Gone,
        Some(domain) if domain.brief.state == DomainState::Active => CloneState::Running,
        Some(_) => CloneState::ShutOff,
    })
}

fn reread(host: &dyn Host, image: &Expected, session: &Session) -> Result<ImageVerdict, CliError> {
    let title = format!("read {} ({}) on {}", image.role, printable(&image.path), host.name());
    if !session.terminal.draws() {
        session.terminal.note(&format!("{title}, {}", bytes(image.geometry.image_bytes)));
    }
    let bar = session.terminal.bars().add(ProgressBar::new(image.geometry.image_bytes));
    bar.set_style(byte_style());
    bar.set_message(title);
    let verdict = verify_image(host, image, &mut |done| bar.set_position(done));
    bar.finish_and_clear();
    verdict.map_err(|fault| match fault.kind {
        FaultKind::Changed => {
            let message = format!("{fault}: it was changed while it was read");
            CliError::new(ExitStatus::Refused, message, "shut the clone off, then verify it again; nothing was touched")
        }
        _ => CliError::before_begun(&fault),
    })
}

/// Something that differs is an accident, unless somebody wrote to it.
fn judge(clone: CloneState, verdicts: &[ImageVerdict]) -> ExitStatus {
    let is_explained =
        |image: &ImageVerdict| image.found_bytes.is_some() && (image.changed_since || clone == CloneState::Running);
    let of_image = |image: &ImageVerdict| match image.equal {
        true => ExitStatus::Done,
        false if is_explained(image) => ExitStatus::Refused,
        false => ExitStatus::Stuck,
    };
    let of_clone = if clone == CloneState::Gone { ExitStatus::Stuck } else { ExitStatus::Done };
    verdicts.iter().map(of_image).fold(of_clone, ExitStatus::worse)
}

/// Was the clone started, or written to by anybody? A start that wrote nothing leaves no trace.
fn is_used(clone: CloneState, verdicts: &[ImageVerdict]) -> bool {
    clone == CloneState::Running || verdicts.iter().any(|image| image.changed_since)
}

fn view(plan: &PlanV1, clone: CloneState, verdicts: &[ImageVerdict], status: ExitStatus) -> Value {
    json!({
        "id": plan.txn.to_string(),
        "host": plan.request.destination.address,
        "vm": plan.request.new_name,
        "vm_state": clone.word(),
        "equal": verdicts.iter().all(|image| image.equal),
        "used_since": is_used(clone, verdicts),
        "exit_status": status as u8,
        "images": verdicts,
    })
}

fn human(plan: &PlanV1, clone: CloneState, verdicts: &[ImageVerdict]) -> String {
    let (name, host) = (printable(&plan.request.new_name), printable(&plan.request.destination.address));
    let mut text = String::new();
    for image in verdicts {
        let what = match (image.equal, image.found_bytes) {
            (true, _) => format!("every byte is as it was copied ({})", bytes(image.size_bytes)),
            (false, None) => "it is gone".to_owned(),
            (false, Some(_)) if image.only_as_a_whole => "it differs; nothing says where".to_owned(),
            (false, Some(_)) => format!("{} differ, in whole chunks", bytes(image.differing_bytes)),
        };
        let changed = image.found_bytes.filter(|_| image.changed_since);
        let since = changed.map_or("", |_| "; it was written to since (another file, size or time)");
        let _ = writeln!(text, "{} {}: {what}{since}", image.target, printable(&image.path));
        for (start, end) in image.ranges.iter().filter(|_| !image.only_as_a_whole) {
            let _ = writeln!(text, "  bytes {start} to {}", end - 1);
        }
        if image.ranges_left_out > 0 {
            let _ = writeln!(text, "  and {} further ranges", image.ranges_left_out);
        }
    }
    let state = match clone {
        CloneState::Gone => "is no longer defined",
        CloneState::Running => "is running, and so was started since its commit",
        CloneState::ShutOff if is_used(clone, verdicts) => "was started or written to since its commit",
        CloneState::ShutOff => "is shut off, and nothing shows that it was used since its commit",
    };
    let _ = writeln!(text, "{name} on {host} {state}.");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(equal: bool, changed_since: bool) -> ImageVerdict {
        ImageVerdict {
            target: "vda".into(),
            path: "/srv/vda".into(),
            equal,
            changed_since,
            size_bytes: 4096,
            found_bytes: Some(4096),
            differing_bytes: if equal { 0 } else { 1024 },
            ranges: if equal { Vec::new() } else { vec![(1024, 2048)] },
            ranges_left_out: 0,
            only_as_a_whole: false,
        }
    }

    #[test]
    fn a_difference_is_an_accident_unless_somebody_wrote() {
        use CloneState::{Gone, Running, ShutOff};
        let gone = ImageVerdict { found_bytes: None, changed_since: true, ..image(false, true) };
        for (clone, images, status) in [
            (ShutOff, vec![image(true, false)], ExitStatus::Done),
            (Running, vec![image(true, true)], ExitStatus::Done),
            (ShutOff, vec![image(false, false)], ExitStatus::Stuck),
            (ShutOff, vec![image(false, true)], ExitStatus::Refused),
            (Running, vec![image(false, false)], ExitStatus::Refused),
            (ShutOff, vec![image(false, true), image(false, false)], ExitStatus::Stuck),
            (ShutOff, vec![gone], ExitStatus::Stuck),
            (Gone, vec![image(true, false)], ExitStatus::Stuck),
        ] {
            assert_eq!(judge(clone, &images), status, "{clone:?} {images:?}");
        }
    }
}
