//! The command line: one file a command; the only place that prints. Every command ends in an `ExitStatus`, and every
//! failure says what, where, why and what to do next.

mod abandon;
mod attempt;
mod conclusion;
mod error;
mod exit;
mod journal;
mod list;
mod prune;
mod recover;
mod recover_from;
mod resume;
mod rollback;
mod run;
mod session;
mod several;
mod show;
mod terminal;
mod verify;
mod vms;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};

use error::CliError;
pub use exit::ExitStatus;
use session::Session;
use terminal::Terminal;

/// Clones libvirt/KVM virtual machines between hosts. A clone is a transaction: after a crash of anything it is
/// resumed to the same result, or rolled back to the world as it was.
#[derive(Debug, Parser)]
#[command(name = "kvm-clone", version, arg_required_else_help = true, after_help = EXIT_HELP)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const EXIT_HELP: &str = "\
Exit status: 0 done; 1 failed and rolled back; 2 wrong usage; 3 suspended, resume or roll back; 4 stuck, a person must \
act; 5 refused, nothing touched; 6 journal damaged or newer; 7 held by another process or controller. Where several \
transactions end differently the worst counts: 6, 4, 3, 1, 5, 7, 2, 0.

TXN is a transaction's id, or four or more digits that begin or end it, such as the last 8 that `list` shows.";

const STATE_DIR_HELP: &str = "\
Directory of the transactions' journals [default: $KVM_CLONE_STATE_DIR, else /var/lib/kvm-clone for root and \
$XDG_STATE_HOME/kvm-clone for others]";

/// Options of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every command")]
struct Global {
    /// Directory of the transactions' journals
    #[arg(long, global = true, value_name = "DIR", help = STATE_DIR_HELP)]
    state_dir: Option<PathBuf>,
    /// Print the result as JSON on standard output, and nothing else there
    #[arg(long, global = true)]
    json: bool,
    /// Say more: log messages of level info, the whole journal in `show`
    #[arg(long, short, global = true)]
    verbose: bool,
    /// No progress, only results, warnings and errors
    #[arg(long, short, global = true, conflicts_with = "verbose")]
    quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Clone shut-off VMs from one host to another
    #[command(visible_alias = "clone")]
    Run(Box<run::RunArgs>),
    /// Say what `run` would do, and everything that is in the way of it; touch nothing
    #[command(override_usage = run::PLAN_USAGE)]
    Plan(Box<run::RunArgs>),
    /// Go on with an unfinished transaction
    Resume(resume::ResumeArgs),
    /// Undo an unfinished transaction: the world becomes as it was before
    Rollback(rollback::RollbackArgs),
    /// Show what is unfinished and what to do about it, or do it
    Recover(recover::RecoverArgs),
    /// Close a transaction that can be neither finished nor rolled back; what it made stays and is listed
    Abandon(abandon::AbandonArgs),
    /// List the transactions
    List,
    /// Show one transaction
    Show(show::ShowArgs),
    /// Remove the journals of transactions that are over
    Prune(prune::PruneArgs),
    /// Compare a clone with what was copied, byte for byte; changes nothing
    Verify(verify::VerifyArgs),
    /// List the VMs of hosts
    Vms(vms::VmsArgs),
    /// Check or export a transaction's journal
    #[command(subcommand)]
    Journal(journal::JournalCommand),
}

impl Command {
    /// Does it change anything, besides telling?
    fn acts(&self) -> bool {
        match self {
            Self::Run(args) => !args.dry_run(),
            Self::Prune(args) => !args.dry_run(),
            Self::Resume(_) | Self::Rollback(_) | Self::Recover(_) | Self::Abandon(_) => true,
            Self::Plan(_) | Self::List | Self::Show(_) | Self::Verify(_) | Self::Vms(_) | Self::Journal(_) => false,
        }
    }
}

/// Runs the command line and gives the exit status.
pub fn main() -> ExitCode {
    keep_blocks();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return misused(&error).into(),
    };
    let terminal = Terminal::new(cli.global.json, cli.global.quiet, cli.global.verbose);
    terminal.start_logging();
    let acts = cli.command.acts();
    let ended =
        Session::open(cli.global.state_dir.as_deref(), terminal.clone()).and_then(|session| match cli.command {
            Command::Run(args) => run::run(&args, &session),
            Command::Plan(args) => run::plan(args, &session),
            Command::Resume(args) => resume::resume(&args, &session),
            Command::Rollback(args) => rollback::rollback(&args, &session),
            Command::Recover(args) => recover::recover(&args, &session),
            Command::Abandon(args) => abandon::abandon(&args, &session),
            Command::List => list::list(&session),
            Command::Show(args) => show::show(&args, &session),
            Command::Prune(args) => prune::prune(&args, &session),
            Command::Verify(args) => verify::verify(&args, &session),
            Command::Vms(args) => vms::vms(&args, &session),
            Command::Journal(command) => journal::journal(&command, &session),
        });
    let status = ended.unwrap_or_else(|error| {
        terminal.error(&error);
        error.exit
    });
    // Of what was done the status speaks; where there was only something to tell, an untold result is no success.
    let untold = status == ExitStatus::Done && !acts && terminal.is_unwritten();
    if untold { ExitStatus::Refused } else { status }.into()
}

/// Lets the allocator keep what a copy frees: its blocks come and go at the rate of the copy, and asking the kernel for each
/// anew costs more than sealing what is in it. What a copy holds at once is bounded elsewhere.
fn keep_blocks() {
    #[cfg(target_env = "gnu")]
    {
        const KEPT_BYTES_MAX: i32 = 64 << 20;
        const OWN_MAPPING_BYTES: i32 = 4 << 20;
        // SAFETY: mallopt takes two numbers, and is called before there are other threads.
        unsafe {
            nix::libc::mallopt(nix::libc::M_TRIM_THRESHOLD, KEPT_BYTES_MAX);
            nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, OWN_MAPPING_BYTES);
        }
    }
}

/// Help, version, or words that the command line does not know.
fn misused(error: &clap::Error) -> ExitStatus {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // Nobody is left to tell when standard output is closed.
        let _ = error.print();
        return ExitStatus::Done;
    }
    // What was typed could not be read whole, so whether JSON was wanted is looked up in the words themselves.
    let json = std::env::args_os().take_while(|word| word != "--").any(|word| word == "--json");
    if json {
        let text = error.render().to_string();
        let message = text.trim_start_matches("error: ").trim_end();
        Terminal::new(true, false, false).error(&CliError::usage(message, "see `kvm-clone --help`"));
    } else {
        let _ = error.print();
    }
    ExitStatus::Usage
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
