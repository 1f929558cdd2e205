//! What every command has at hand: the state directory, the terminal, and the flag that Ctrl-C raises.

use std::cell::OnceCell;
use std::path::Path;
use std::time::SystemTime;

use journal_format::{ControllerId, TxnId, UnixMillis};

use super::error::CliError;
use super::exit::ExitStatus;
use super::terminal::Terminal;
use crate::host::{ConnectOptions, Connector, Interrupt};
use crate::journal::{self, JournalError, StateDir};
use crate::report::live::LiveDirectory;
use crate::report::transaction::TransactionLog;
use crate::shell::shell_word;

/// One run of the program.
pub struct Session {
    /// Where it speaks.
    pub terminal: Terminal,
    /// The transactions' journals.
    pub state: StateDir,
    /// What running transactions report of themselves.
    pub live: LiveDirectory,
    interrupt: OnceCell<Interrupt>,
    program: String,
}

/// A transaction as a reader sees it.
pub struct Seen {
    /// When it was planned.
    pub began: UnixMillis,
    /// When something was last recorded of it.
    pub last: UnixMillis,
    /// All of it.
    pub log: TransactionLog,
}

impl Session {
    /// Finds the state directory that the option, the environment or the user's place names.
    pub fn open(state_dir: Option<&Path>, terminal: Terminal) -> Result<Self, CliError> {
        let state = StateDir::locate(state_dir)?;
        let program = match state_dir {
            Some(_) => format!("kvm-clone --state-dir {}", shell_word(&state.path().display().to_string())),
            None => "kvm-clone".to_owned(),
        };
        let live = LiveDirectory::beside(state.path());
        Ok(Self { terminal, state, live, interrupt: OnceCell::new(), program })
    }

    /// The same run of the program, speaking of one VM of several: for a thread of its own.
    pub fn for_vm(&self, vm: &str) -> Result<Self, CliError> {
        Ok(Self {
            terminal: self.terminal.for_vm(vm),
            state: self.state.clone(),
            live: self.live.clone(),
            interrupt: OnceCell::from(self.interrupt()?),
            program: self.program.clone(),
        })
    }

    /// How this program is called, for the commands that are suggested.
    pub fn program(&self) -> &str {
        &self.program
    }

    /// Reads a transaction without its lock. A journal that cannot be folded is damaged.
    pub fn see(&self, txn: TxnId) -> Result<Seen, JournalError> {
        let snapshot = journal::read(&self.state, txn)?;
        let began = snapshot.records.first().map_or(UnixMillis(0), |record| record.at);
        let last = snapshot.records.last().map_or(began, |record| record.at);
        let log = TransactionLog::of(&snapshot.records, snapshot.holder.is_some(), self.live.read(txn));
        let damaged =
            |what: String| JournalError::Damaged { path: self.state.txn_path(txn).display().to_string(), what };
        Ok(Seen { began, last, log: log.map_err(|error| damaged(error.to_string()))? })
    }

    /// All transactions, oldest first, each as a reader sees it. One that was pruned meanwhile is none any more.
    pub fn see_all(&self) -> Result<impl Iterator<Item = (TxnId, Result<Seen, JournalError>)>, CliError> {
        let all = self.state.transactions().map_err(|error| CliError::journal(&error, ExitStatus::Refused))?;
        let seen = all.into_iter().map(|txn| (txn, self.see(txn)));
        Ok(seen.filter(|(txn, seen)| seen.is_ok() || self.state.txn_path(*txn).exists()))
    }

    /// JSON has no place for it: an empty list may come of a state directory that was named wrong.
    pub fn warn_of_no_state(&self) {
        if self.terminal.is_json() && !self.state.path().exists() {
            self.terminal.warning(&format!("the state directory {} does not exist", self.state.path().display()));
        }
    }

    /// The flag that Ctrl-C, SIGTERM and SIGHUP raise. From the first call on they end nothing by themselves.
    pub fn interrupt(&self) -> Result<Interrupt, CliError> {
        if let Some(interrupt) = self.interrupt.get() {
            return Ok(interrupt.clone());
        }
        let interrupt = Interrupt::new();
        interrupt.raise_on_signals().map_err(|error| {
            let message = format!("signals cannot be caught: {error}");
            CliError::new(ExitStatus::Refused, message, "nothing was touched; see `ulimit -n` and `ulimit -u`")
        })?;
        Ok(self.interrupt.get_or_init(|| interrupt).clone())
    }

    /// What ends this program early, if anything does: a signal, or the time limit of a run.
    pub fn interruption(&self) -> Option<&str> {
        self.interrupt.get().and_then(Interrupt::why)
    }

    /// Whether anything does.
    pub fn is_interrupted(&self) -> bool {
        self.interruption().is_some()
    }

    /// What connects to hosts. Contacts nobody.
    pub fn connector(&self) -> Result<Connector, CliError> {
        let options = ConnectOptions { interrupt: self.interrupt()?, ..ConnectOptions::default() };
        Connector::new(options).map_err(|error| {
            let message = format!("no thread or file can be had to connect with: {error}");
            CliError::new(ExitStatus::Refused, message, "nothing was touched; see `ulimit -n` and `ulimit -u`")
        })
    }

    /// This controller.
    pub fn controller(&self) -> Result<ControllerId, CliError> {
        const MACHINE_ID: &str = "/etc/machine-id";
        let machine_id = std::fs::read_to_string(MACHINE_ID).map(|text| text.trim().to_owned()).unwrap_or_default();
        if machine_id.is_empty() {
            return Err(CliError::new(
                ExitStatus::Refused,
                format!("{MACHINE_ID} of this machine cannot be read or is empty: it names the controller"),
                "`systemd-machine-id-setup` makes it; nothing was touched",
            ));
        }
        Ok(ControllerId { machine_id, state_dir: self.state.path().display().to_string() })
    }
}

/// The time by this machine's clock.
pub fn now() -> UnixMillis {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}
