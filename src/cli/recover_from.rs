//! `recover --from HOST`: transactions that a destination holds a record of and whose controller is gone. Those on their way
//! are rolled back, committed ones cleaned up. What a controller still knows is its own affair, and only named.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use journal_format::{ControllerId, TxnId};
use serde_json::{Value, json};

use super::conclusion::clone_gone;
use super::error::CliError;
use super::exit::ExitStatus;
use super::session::Session;
use super::watch::Watcher;
use crate::engine::{self, Ending, Recovery};
use crate::host::{Access, Address, RealWorld, Role};
use crate::journal::{JournalError, StateDir};
use crate::records::{FoundRecord, RecordState, host_records};
use crate::report::quantity::printable;
use crate::report::show::stuck;
use crate::shell::shell_word;

/// What to do with what is found.
pub struct FromHost<'a> {
    /// The destination, as the user named it.
    pub host: &'a str,
    /// The private key file that the user named.
    pub key_file: Option<PathBuf>,
    /// The records of committed clones go too.
    pub forget: bool,
    /// Controllers on other machines are gone as well: the user says so.
    pub machine_gone: bool,
    /// Only look.
    pub dry_run: bool,
}

/// Who may still know of a transaction.
enum Home {
    /// Its journal is in this state directory.
    Known(PathBuf),
    /// Its controller was on this machine, and knows nothing of it any more.
    Gone,
    /// Its controller is on another machine, which cannot be asked.
    Elsewhere(ControllerId),
}

/// Looks at a destination, and acts for the controllers that are gone. The worst ending counts.
pub fn recover_from(wanted: &FromHost<'_>, session: &Session) -> Result<ExitStatus, CliError> {
    let address: Address = wanted.host.parse()?;
    let access = Access::new(address, wanted.key_file.clone());
    let controller = session.controller()?;
    let connector = session.connector()?;
    let found = connector
        .connect(&access, Role::Survey)
        .and_then(|host| host_records(host.as_ref()))
        .map_err(|fault| CliError::before_begun(&fault))?;
    let mut worst = ExitStatus::Done;
    let (mut values, mut text) = (Vec::new(), String::new());
    for record in &found {
        let home = home_of(record, &controller, session)?;
        let outcome = match left_alone(record, &home, wanted, session) {
            Some(outcome) => outcome,
            None => act(record, &access, &controller, wanted, session)?,
        };
        worst = worst.worse(outcome.status);
        if let Some(error) = &outcome.error {
            session.terminal.complain(error);
        }
        let _ = writeln!(text, "{}\n  {}", headline(record), outcome.told);
        values.push(view(record, &outcome));
    }
    session.terminal.result(&values, || {
        if found.is_empty() { format!("no transactions on {}\n", printable(wanted.host)) } else { text }
    });
    Ok(worst)
}

/// What became of one record.
struct Outcome {
    status: ExitStatus,
    told: String,
    error: Option<CliError>,
}

impl Outcome {
    fn told(status: ExitStatus, told: impl Into<String>) -> Self {
        Self { status, told: told.into(), error: None }
    }

    fn failed(error: CliError) -> Self {
        Self { status: error.exit, told: "nothing more was done".to_owned(), error: Some(error) }
    }
}

fn home_of(record: &FoundRecord, here: &ControllerId, session: &Session) -> Result<Home, CliError> {
    let signed = record.owner.as_ref().ok().map(|owner| &owner.controller);
    let planned = record.plan.as_ref().ok().map(|plan| &plan.controller);
    let own = std::iter::once(session.state.path());
    let others = [signed, planned].into_iter().flatten().filter(|controller| controller.machine_id == here.machine_id);
    for path in own.chain(others.map(|controller| Path::new(controller.state_dir.as_str()))) {
        let state = StateDir::at(path)?;
        if state.txn_path(record.txn).exists() {
            return Ok(Home::Known(state.path().to_owned()));
        }
    }
    // Who signed last drives it; nobody has to be asked where it was bound to go back already.
    let bound = matches!(record.state, RecordState::RollingBack | RecordState::Scaffold);
    match signed.filter(|signed| !bound && signed.machine_id != here.machine_id) {
        Some(elsewhere) => Ok(Home::Elsewhere(elsewhere.clone())),
        None => Ok(Home::Gone),
    }
}

/// The outcome for what is only named; `None`: it is acted on.
fn left_alone(record: &FoundRecord, home: &Home, wanted: &FromHost<'_>, session: &Session) -> Option<Outcome> {
    let txn = record.txn;
    match home {
        _ if record.state == RecordState::Abandoned => Some(Outcome::told(
            ExitStatus::Done,
            "abandoned: nobody acts on it; what it left is for a person to remove",
        )),
        Home::Known(state) => {
            let show = format!("kvm-clone --state-dir {} show {txn}", shell_word(&state.display().to_string()));
            Some(Outcome::told(ExitStatus::Held, format!("left alone: its controller knows it, see `{show}`")))
        }
        Home::Elsewhere(controller) if !wanted.machine_gone => Some(Outcome::told(
            ExitStatus::Held,
            format!(
                "left alone: it is of the controller {} on machine {}, which cannot be asked from here; if that \
                 controller is gone for ever, add --machine-gone",
                printable(&controller.state_dir),
                printable(&controller.machine_id)
            ),
        )),
        Home::Gone | Home::Elsewhere(_) if wanted.dry_run => Some(Outcome::told(
            ExitStatus::Done,
            match (record.state, wanted.forget) {
                (RecordState::Committed, false) => "would be cleaned up; its mark would stay",
                (RecordState::Committed, true) => "would be cleaned up and forgotten",
                _ => "would be rolled back",
            },
        )),
        Home::Gone | Home::Elsewhere(_) if session.is_interrupted() => {
            Some(Outcome::told(ExitStatus::Suspended, "interrupted before its turn"))
        }
        Home::Gone | Home::Elsewhere(_) => None,
    }
}

fn act(
    record: &FoundRecord,
    access: &Access,
    controller: &ControllerId,
    wanted: &FromHost<'_>,
    session: &Session,
) -> Result<Outcome, CliError> {
    let txn = record.txn;
    // Nothing is ever asked of the source: it stands for a host that is not connected.
    let world = RealWorld::new(session.connector()?, access.clone(), access.clone(), Some(txn));
    let ending = match (&record.plan, record.state) {
        (_, RecordState::Scaffold) => engine::clear_scaffold(&world, txn, controller),
        (Err(why), _) => {
            let message = format!("the plan of transaction {txn} on {} cannot be read: {why}", access.address);
            return Ok(Outcome::failed(CliError::new(
                ExitStatus::Journal,
                message,
                "a newer kvm-clone may know it; else a person must look at its host record",
            )));
        }
        (Ok(plan), _) => {
            let recovery =
                Recovery { controller: controller.clone(), controller_pid: std::process::id(), forget: wanted.forget };
            let mut watcher = Watcher::new(plan.as_ref().clone(), &session.live, &session.terminal);
            engine::drive_from_record(&world, plan, &mut watcher, &recovery)
                .map_err(|error: JournalError| CliError::journal(&error, ExitStatus::Journal))?
        }
    };
    Ok(told(ending, txn, wanted, session))
}

fn told(ending: Ending, txn: TxnId, wanted: &FromHost<'_>, session: &Session) -> Outcome {
    let status = ExitStatus::of_ending(&ending);
    let host = printable(wanted.host);
    match ending {
        Ending::Committed { warnings } => {
            for warning in &warnings {
                session.terminal.warning(warning);
            }
            let kept = if wanted.forget { "forgotten" } else { "its mark stays for its controller, until --forget" };
            Outcome::told(status, format!("committed: cleaned up; {kept}"))
        }
        Ending::RolledBack { failure: None } => {
            Outcome::told(status, format!("rolled back: nothing of it is left on {host}"))
        }
        Ending::RolledBack { failure: Some(failure) } | Ending::Suspended(failure) | Ending::Refused(failure) => {
            Outcome::failed(CliError::new(status, format!("transaction {txn}: {}", failure.message), failure.advice))
        }
        Ending::Stuck(finding) => {
            let message = format!("transaction {txn} is stuck{}", stuck(wanted.host, &finding));
            Outcome::failed(CliError::new(status, message, "once that is gone, run it again"))
        }
        Ending::CloneGone { missing, orphans, warnings } => {
            for warning in &warnings {
                session.terminal.warning(warning);
            }
            let (message, hint) = clone_gone(&txn.to_string(), wanted.host, &missing, &orphans);
            Outcome::failed(CliError::new(status, message, hint))
        }
        Ending::Abandoned { .. } => Outcome::told(status, "abandoned"),
    }
}

fn headline(record: &FoundRecord) -> String {
    let what = match &record.plan {
        Ok(plan) => format!("{} → {}", plan.request.vm_name, plan.request.new_name),
        Err(_) => "its plan cannot be read".to_owned(),
    };
    let whose = match &record.owner {
        Ok(owner) => format!("{} on machine {}", owner.controller.state_dir, owner.controller.machine_id),
        Err(why) => why.clone(),
    };
    format!("{}  {}: {}; controller: {}", record.txn, printable(&what), word(record.state), printable(&whose))
}

fn word(state: RecordState) -> &'static str {
    match state {
        RecordState::Unfinished => "unfinished",
        RecordState::RollingBack => "rolling back",
        RecordState::Committed => "committed",
        RecordState::Abandoned => "abandoned",
        RecordState::Scaffold => "hardly begun, or hardly anything left",
    }
}

fn view(record: &FoundRecord, outcome: &Outcome) -> Value {
    let mut value = json!({
        "id": record.txn.to_string(),
        "state": record.state,
        "vm": record.plan.as_ref().ok().map(|plan| &plan.request.vm_name),
        "new_name": record.plan.as_ref().ok().map(|plan| &plan.request.new_name),
        "machine_id": record.owner.as_ref().ok().map(|owner| &owner.controller.machine_id),
        "state_dir": record.owner.as_ref().ok().map(|owner| &owner.controller.state_dir),
        "outcome": outcome.told,
        "exit_status": outcome.status as u8,
    });
    if let (Some(error), Value::Object(object)) = (&outcome.error, &mut value) {
        object.insert("error".to_owned(), json!(error.view()));
    }
    value
}
