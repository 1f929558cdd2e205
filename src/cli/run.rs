//! `run SRC DST VM…`: clone VMs. Here: one of them; `several` has the rest. `plan` is the same, and stops before anything is
//! touched.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use journal_format::{AttemptPurpose, CountsV1, DomainUuid, DropKindV1, Epoch, EventV1, PlanV1, RecordV1, TxnId};
use serde_json::{Value, json};

use super::attempt::{Otherwise, drive, reopen};
use super::error::{CliError, Problem};
use super::exit::ExitStatus;
use super::session::{Seen, Session, now};
use super::several::{self, PARALLEL_VMS_MAX, Wanted, clone_several};
use crate::domain::DomainName;
use crate::host::{Access, Address, Interrupt, RealWorld};
use crate::journal::FileJournal;
use crate::plan::Circumstances;
use crate::preflight::{self, Prepared, Report, Unfinished};
use crate::report::plan::Foresight;
use crate::report::replaced::{ReplacedView, stop_word};
use crate::report::show::{suggestions, typed};
use crate::report::status::Status;
use crate::request::{ByteRate, ChunkSize, Occupied, Request, Target, VmSelector, stop_mode};
use crate::survey::{Survey, SurveyError};
use crate::world::{Side, World};

/// How `plan` is used.
pub const PLAN_USAGE: &str =
    "kvm-clone plan [OPTIONS] <SRC> <DST> <VM>...\n       kvm-clone plan [OPTIONS] <SRC> <DST> --all [--match <GLOB>]";

/// Which VMs, from where to where, and how.
#[derive(Debug, Args)]
#[command(
    override_usage = "kvm-clone run [OPTIONS] <SRC> <DST> <VM>...\n       kvm-clone run [OPTIONS] <SRC> <DST> --all [--match <GLOB>]"
)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub struct RunArgs {
    /// Host that has the VM: `local`, `[user@]host[:port]`, or an alias of ~/.ssh/config
    #[arg(value_name = "SRC")]
    source: String,
    /// Host that gets the clone, likewise
    #[arg(value_name = "DST")]
    destination: String,
    /// Names or UUIDs of the VMs; they must be shut off. Each is a transaction of its own
    #[arg(value_name = "VM", required_unless_present = "all")]
    vms: Vec<String>,
    /// Clone every VM of SRC
    #[arg(long, conflicts_with = "vms")]
    all: bool,
    /// With --all: only those whose name matches; `*` stands for any characters, `?` for one
    #[arg(long = "match", value_name = "GLOB", requires = "all", conflicts_with = "vms")]
    pattern: Option<String>,
    /// Clone this many of several VMs at once (up to 16)
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=i64::from(PARALLEL_VMS_MAX)))]
    parallel_vms: u8,
    /// Name of the clone [default: <VM>_clone]; for one VM only
    #[arg(long, value_name = "NAME", conflicts_with_all = ["all"])]
    new_name: Option<String>,
    /// Look and plan, print what is in the way and the plan, touch nothing: as `plan` does
    #[arg(long)]
    dry_run: bool,
    /// Start the clone once it is finished
    #[arg(long)]
    start: bool,
    /// Keep the MAC addresses of the source
    #[arg(long)]
    preserve_mac: bool,
    /// The state of an emulated TPM: `copy`, or `fresh` for a new one
    #[arg(long, value_name = "STATE", default_value = "copy")]
    tpm: String,
    /// The images that a disk stands on: `keep` copies them all, `share` does not copy the lowest where the destination has it, byte
    /// for byte, and stands on that, `flatten` makes one raw image of them
    #[arg(long, value_name = "HOW", default_value = "keep")]
    chain: String,
    /// Copy the media in drives too, and disks that are only read or shared; otherwise the destination's are used, and drives
    /// whose medium is not there are emptied
    #[arg(long)]
    copy_media: bool,
    /// Keep the UUID of the source: source and clone are one machine to everything, and only one of them may run
    #[arg(long)]
    preserve_uuid: bool,
    /// Replace a VM of the clone's name, after the clone is whole beside it
    #[arg(long)]
    force: bool,
    /// Safe to run again and again: nothing to do where a clone of this VM is there whose disks, and whose source, are
    /// unchanged; any other VM of the clone's name is replaced, whoever made it; an unfinished transaction of the same clone is
    /// resumed, with the options that it was begun with
    #[arg(long)]
    idempotent: bool,
    /// How a running VM that is replaced may be stopped: shutdown (after 60 s it is switched off), save (its memory, for
    /// a rollback), destroy, never
    #[arg(long, value_name = "HOW", default_value = "shutdown")]
    stop: String,
    /// Keep the VM that is replaced, as <NAME>.replaced-<TXN>
    #[arg(long)]
    keep_replaced: bool,
    /// Plug interfaces of network or bridge A into B on the destination; may be given several times
    #[arg(long, value_name = "A=B")]
    network_map: Vec<String>,
    /// Put the disks into this storage pool of the destination
    #[arg(long, conflicts_with = "directory")]
    pool: Option<String>,
    /// Put the disks into this directory of the destination
    #[arg(long, value_name = "DIR")]
    directory: Option<String>,
    /// Put the image of one disk (its target name, such as vda) into a pool, POOL/NAME, or to a path, /DIR/NAME, under that
    /// name, or onto a block device, /dev/NAME (see --overwrite-device); may be given several times, for one VM only
    #[arg(long, value_name = "TARGET=PLACE", conflicts_with_all = ["all"])]
    disk_map: Vec<String>,
    /// Write over this block device of the destination, whose path was given to --disk-map (TARGET=/dev/...): what it holds is
    /// lost, and no rollback brings it back. May be given several times
    #[arg(long, value_name = "PATH", requires = "disk_map")]
    overwrite_device: Vec<String>,
    /// Leave behind what is not carried of this kind: a device of that name in the definition, snapshots, checkpoints or
    /// managed-save; what can be carried arrives all the same. May be given several times
    #[arg(long = "drop", value_name = "KIND", value_parser = drop_kind())]
    dropped: Vec<DropKindV1>,
    /// Send at most this much a second for each VM: 100M, 1.5G (bytes) or 800Mbit
    #[arg(long, value_name = "RATE")]
    bandwidth_limit: Option<String>,
    /// Do not read the clone's disks back before they are published
    #[arg(long)]
    no_verify: bool,
    /// Allocate the clone's disks whole, without holes
    #[arg(long)]
    prealloc: bool,
    /// Bytes of a chunk, a power of two from 64K to 16M
    #[arg(long, value_name = "SIZE", default_value = "1M")]
    chunk_size: String,
    /// Private key file for both hosts
    #[arg(long, value_name = "FILE")]
    ssh_key: Option<PathBuf>,
    /// Suspend after this many seconds, as Ctrl-C does
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    timeout: Option<u64>,
}

/// The kinds that can be left behind, by their words.
fn drop_kind() -> impl TypedValueParser<Value = DropKindV1> {
    PossibleValuesParser::new(DropKindV1::ALL.map(DropKindV1::word))
        .try_map(|word| DropKindV1::of_word(&word).ok_or("not a kind that can be left behind"))
}

/// What became of one VM.
pub struct Told {
    /// How the program ends, as far as this VM goes.
    pub status: ExitStatus,
    /// Where it came to, in a word, for tables.
    pub word: String,
    /// Its transaction, where there is one.
    pub txn: Option<String>,
    /// For programs.
    pub value: Value,
    /// For people; empty where standard error had it all.
    pub text: String,
}

/// Clones one VM, or several.
pub fn run(args: &RunArgs, session: &Session) -> Result<ExitStatus, CliError> {
    let wanted = args.wanted()?;
    if let Some(seconds) = args.timeout {
        interrupt_after(seconds, &session.interrupt()?);
    }
    match wanted {
        Vms::One(request) => clone_one(&request, args, session).map(|told| {
            session.terminal.result(&told.value, || told.text);
            told.status
        }),
        Vms::Named(vms) => clone_several(vms, args.parallel_vms, args, session),
        Vms::All(like) => several::all(args.pattern.as_deref(), &like, session)
            .and_then(|vms| clone_several(vms, args.parallel_vms, args, session)),
    }
}

/// Request → survey → preflight → plan → journal → engine. What goes wrong in the transaction is said at once; what
/// keeps it from being one is the error.
pub fn clone_one(request: &Request, args: &RunArgs, session: &Session) -> Result<Told, CliError> {
    let (mut prepared, mut counts) = prepare(request, session)?;
    if args.idempotent
        && !args.dry_run
        && let Some(txn) = prepared.unfinished
    {
        if let Some(told) = finish_first(txn, request, session)? {
            return Ok(told);
        }
        (prepared, counts) = prepare(request, session)?;
    }
    let Prepared { report, plan, survey, up_to_date, .. } = prepared;
    if args.dry_run && !up_to_date {
        return foretell(&report, plan.as_ref());
    }
    if up_to_date {
        return Ok(tell_up_to_date(request, &survey));
    }
    for warning in &report.warnings {
        session.terminal.warning(&warning.to_string());
    }
    let plan = plan.ok_or_else(|| blocked(&report))?;
    let mut journal = begin(plan, session)?;
    Ok(drive(&mut journal, AttemptPurpose::Run, &Otherwise::default(), counts, session)?.told(&session.terminal))
}

/// `plan`: the same, and nothing is touched.
pub fn plan(mut args: Box<RunArgs>, session: &Session) -> Result<ExitStatus, CliError> {
    args.dry_run = true;
    run(&args, session)
}

/// Says what would be done, and all that is in the way of it.
fn foretell(report: &Report, plan: Option<&PlanV1>) -> Result<Told, CliError> {
    let refused = |error: String| CliError::new(ExitStatus::Refused, error, "nothing was touched");
    let foresight = Foresight::of(report, plan).map_err(|error| refused(error.to_string()))?;
    let (status, word) = match plan {
        Some(_) => (ExitStatus::Done, "planned"),
        None => (refusal(report), "refused"),
    };
    let value = serde_json::to_value(&foresight).map_err(|error| refused(error.to_string()))?;
    Ok(Told { status, word: word.into(), txn: None, value, text: foresight.human() })
}

/// An unfinished transaction of the very same request is brought to its end. `None`: it was rolling back, that is done, and
/// the request stands as before.
fn finish_first(txn: TxnId, request: &Request, session: &Session) -> Result<Option<Told>, CliError> {
    let Seen { log, .. } = session.see(txn).map_err(|error| CliError::journal(&error, ExitStatus::Refused))?;
    let otherwise = Otherwise { ssh_key: request.key_file.clone(), bandwidth_limit: request.bandwidth_limit };
    match log.status {
        Status::Running => {
            let message = format!("transaction {txn} of this very request is running now");
            Err(CliError::new(ExitStatus::Held, message, "wait for its end; `kvm-clone show` tells how far it is"))
        }
        Status::Stuck => {
            let message = format!("transaction {txn} of this very request is stuck: a person must look");
            let mut error = CliError::new(ExitStatus::Stuck, message, "");
            error.suggestions = suggestions(&log, session.program());
            Err(error)
        }
        Status::RollingBack => {
            session
                .terminal
                .note(&format!("transaction {txn} of this request was rolling back: that is finished first"));
            let conclusion = reopen(txn, AttemptPurpose::Rollback, &otherwise, session)?;
            if conclusion.status == ExitStatus::Done {
                return Ok(None);
            }
            Ok(Some(conclusion.told(&session.terminal)))
        }
        Status::Interrupted | Status::CleaningUp | Status::Committed | Status::RolledBack | Status::Abandoned => {
            if let Some(old) = log.replaces.as_ref().filter(|old| is_otherwise(old, request)) {
                let message = format!(
                    "transaction {txn} of the same clone is unfinished, and does otherwise with the VM that is there ({})",
                    replaced_words(old)
                );
                let mut error =
                    CliError::new(ExitStatus::Refused, message, "finish it as it was begun, or roll it back first");
                error.suggestions = suggestions(&log, session.program());
                return Err(error);
            }
            session.terminal.note(&format!("transaction {txn} of this request is unfinished: it is resumed"));
            Ok(Some(reopen(txn, AttemptPurpose::Resume, &otherwise, session)?.told(&session.terminal)))
        }
    }
}

/// Is a VM that this request keeps, or stops in another way, deleted or stopped otherwise?
fn is_otherwise(old: &ReplacedView, request: &Request) -> bool {
    old.kept_as.is_some() != request.keep_replaced || old.stop != stop_word(request.stop)
}

fn replaced_words(old: &ReplacedView) -> String {
    let end = if old.kept_as.is_some() { "with --keep-replaced" } else { "without --keep-replaced" };
    format!("{end}, --stop {}", old.stop)
}

/// The clone is there, and neither it nor its source was changed since.
fn tell_up_to_date(request: &Request, survey: &Survey) -> Told {
    let (clone, source) = (survey.new_name.as_str(), survey.source.vm.brief.name.as_str());
    let txn = survey.destination.old.as_ref().and_then(|old| old.mark.as_ref()).map(|mark| mark.txn.to_string());
    let (from, to) = (&survey.source.name, &survey.destination.name);
    let start = if request.start { "; it is not started" } else { "" };
    Told {
        status: ExitStatus::Done,
        word: "up to date".into(),
        value: json!({ "status": "up_to_date", "id": txn, "warnings": [] }),
        text: format!(
            "{clone} on {to} is a clone of {source} on {from}; the source and the clone's disks were not changed since: nothing to do{start}.\n"
        ),
        txn,
    }
}

/// Asks both hosts; nothing is touched. With what their agents did for that.
fn prepare(request: &Request, session: &Session) -> Result<(Prepared, Option<[CountsV1; 2]>), CliError> {
    let controller = session.controller()?;
    let access = |address: &Address| Access::new(address.clone(), request.key_file.clone());
    let world = RealWorld::new(session.connector()?, access(&request.source), access(&request.destination), None);
    let connect = |side| world.connect(side).map_err(|fault| CliError::before_begun(&fault));
    let (source, destination) = (connect(Side::Source)?, connect(Side::Destination)?);
    let mut circumstances = Circumstances { controller: &controller, now: world.now(), random: &mut || world.random() };
    let unfinished = unfinished(session)?;
    let prepared = preflight::prepare(source.as_ref(), destination.as_ref(), request, &mut circumstances, &unfinished);
    let counts = source.counts().ok().zip(destination.counts().ok());
    // The attempt brings its own agents: what may change something knows its transaction from its start.
    world.disconnect(Side::Source);
    world.disconnect(Side::Destination);
    prepared.map(|prepared| (prepared, counts.map(<[CountsV1; 2]>::from))).map_err(|error| match error {
        SurveyError::Host(fault) => CliError::before_begun(&fault),
        error => CliError::new(ExitStatus::Refused, error.to_string(), "nothing was touched"),
    })
}

/// What this controller has not brought to its end. A journal that cannot be read is named, and no reason to refuse
/// another clone: the claim on the destination stands for it.
fn unfinished(session: &Session) -> Result<Vec<Unfinished>, CliError> {
    let mut unfinished = Vec::new();
    for (txn, seen) in session.see_all()? {
        match seen {
            Ok(Seen { log, .. }) if log.status.is_unfinished() || log.status == Status::Abandoned => {
                let abandoned = log.status == Status::Abandoned;
                let commands = suggestions(&log, session.program());
                let mut commands: Vec<_> = commands.iter().map(|one| format!("`{}`", one.command)).collect();
                if abandoned {
                    commands.push(format!("`{}`", typed(&log, "abandon", session.program())));
                }
                let advice = if commands.is_empty() { "wait for its end".to_owned() } else { commands.join(" or ") };
                unfinished.push(Unfinished {
                    txn,
                    destination_machine_id: log.destination.machine_id,
                    new_name: log.destination.vm_name,
                    source_machine_id: log.source.machine_id,
                    vm_uuid: log.source.vm_uuid,
                    running: log.status == Status::Running,
                    abandoned,
                    advice: format!("First {advice}; or choose another name with --new-name."),
                });
            }
            Ok(_) => {}
            Err(error) => session.terminal.warning(&error.to_string()),
        }
    }
    Ok(unfinished)
}

/// Writes the plan into a new journal. From here on there is a transaction.
fn begin(plan: PlanV1, session: &Session) -> Result<FileJournal, CliError> {
    session.terminal.note(&format!(
        "transaction {}: {} on {} → {} on {}",
        plan.txn,
        plan.request.vm_name,
        plan.request.source.address,
        plan.request.new_name,
        plan.request.destination.address
    ));
    let record = RecordV1 { at: now(), epoch: Epoch(0), event: EventV1::Begun { plan: Box::new(plan) } };
    FileJournal::create(&session.state, record).map_err(|error| CliError::journal(&error, ExitStatus::Refused))
}

/// Everything that is in the way, at once.
fn blocked(report: &Report) -> CliError {
    let message = match report.blockers.len() {
        1 => "one thing is in the way; nothing was touched".to_owned(),
        count => format!("{count} things are in the way; nothing was touched"),
    };
    let problems = report.blockers.iter().map(|blocker| Problem {
        kind: json!(blocker.kind),
        host: blocker.host.clone(),
        message: blocker.message.clone(),
        hint: blocker.advice.clone(),
    });
    CliError { problems: problems.collect(), ..CliError::new(refusal(report), message, "") }
}

/// How the program ends where something is in the way.
fn refusal(report: &Report) -> ExitStatus {
    if report.exit() == Some(ExitStatus::Held as u8) { ExitStatus::Held } else { ExitStatus::Refused }
}

/// The VMs that a command line means.
#[derive(Debug)]
enum Vms {
    One(Box<Request>),
    Named(Vec<Wanted>),
    /// All of the source host, each asked for like this.
    All(Box<Request>),
}

impl RunArgs {
    /// Is only the plan wanted?
    pub fn dry_run(&self) -> bool {
        self.dry_run
    }

    /// Which VMs were asked for, and how. Contacts nobody.
    fn wanted(&self) -> Result<Vms, CliError> {
        if self.all {
            // Whichever VM stands in it: what is wrong with the rest is said before a host is asked.
            let like = self.request(VmSelector::Uuid(DomainUuid([0; 16])))?;
            if like.source == like.destination {
                let message =
                    "--all: source and destination are one host: each run would clone the clones of the one before";
                return Err(CliError::usage(message, "name the VMs; no host was contacted"));
            }
            return Ok(Vms::All(Box::new(like)));
        }
        match &self.vms[..] {
            [vm] => Ok(Vms::One(Box::new(self.request(vm.parse()?)?))),
            _ if self.new_name.is_some() => {
                let message = "--new-name: several VMs cannot have one name";
                Err(CliError::usage(message, "leave it out (each clone is <VM>_clone), or clone them one by one"))
            }
            _ if !self.disk_map.is_empty() => {
                let message = "--disk-map: the disks of several VMs cannot be one file";
                Err(CliError::usage(
                    message,
                    "leave it out (--pool and --directory take all), or clone them one by one",
                ))
            }
            vms => several::named(vms, |vm| self.request(vm)).map(Vms::Named),
        }
    }

    /// What was typed, as a request for one VM. Contacts nobody.
    fn request(&self, vm: VmSelector) -> Result<Request, CliError> {
        let mut request = Request::new(self.source.parse()?, self.destination.parse()?, vm);
        request.new_name = self.new_name.as_deref().map(DomainName::new).transpose()?;
        request.target = match (&self.pool, &self.directory) {
            (Some(pool), _) => Target::pool(pool)?,
            (_, Some(directory)) => Target::directory(directory)?,
            _ => Target::LikeSource,
        };
        request.network_map = self.network_map.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        request.disk_map = self.disk_map.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        request.dropped = self.dropped.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
        request.overwritten.clone_from(&self.overwrite_device);
        request.start = self.start;
        request.preserve_mac = self.preserve_mac;
        request.preserve_uuid = self.preserve_uuid;
        request.occupied = match (self.idempotent, self.force) {
            (true, _) => Occupied::ReplaceIfChanged,
            (false, true) => Occupied::Replace,
            (false, false) => Occupied::Refuse,
        };
        request.stop = stop_mode(&self.stop)?;
        request.keep_replaced = self.keep_replaced;
        request.tpm = self.tpm.parse()?;
        request.chain = self.chain.parse()?;
        request.copy_media = self.copy_media;
        request.verify = !self.no_verify;
        request.preallocate = self.prealloc;
        request.bandwidth_limit = self.bandwidth_limit.as_deref().map(str::parse::<ByteRate>).transpose()?;
        request.chunk_size = self.chunk_size.parse::<ChunkSize>()?;
        request.key_file = self.ssh_key.as_deref().map(std::path::absolute).transpose().map_err(|error| {
            CliError::usage(format!("key file {:?}: {error}", self.ssh_key), "give the absolute path of a private key")
        })?;
        request.check()?;
        Ok(request)
    }
}

/// The time limit of a run.
fn interrupt_after(seconds: u64, interrupt: &Interrupt) {
    let interrupt = interrupt.clone();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(seconds));
        interrupt.raise(format!("the time limit of {seconds} seconds was reached"));
    });
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::{Request, Vms};
    use crate::cli::{Cli, Command};

    /// Words that mean something here, and any others.
    fn word() -> impl Strategy<Value = String> {
        let known = [
            "run",
            "clone",
            "plan",
            "resume",
            "journal",
            "verify",
            "local",
            "root@kvm1",
            "ssh://me@[::1]:22",
            "web01",
            "--new-name",
            "--all",
            "--match",
            "web*",
            "--parallel-vms=4",
            "--dry-run",
            "--chunk-size",
            "64K",
            "--bandwidth-limit=100M",
            "1.5G",
            "--network-map",
            "a=b",
            "--pool",
            "--directory",
            "/srv/vm",
            "--drop",
            "hostdev",
            "--drop=managed-save",
            "--ssh-key",
            "--timeout",
            "5",
            "--json",
            "--quiet",
            "-v",
            "--state-dir=/x",
            "--",
            "",
        ];
        prop_oneof![3 => select(known.to_vec()).prop_map(str::to_owned), 1 => any::<String>()]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn any_words_are_read_or_refused(runs: bool, words in vec(word(), 0..10)) {
            let first = if runs { &["kvm-clone", "run", "local", "kvm2"][..] } else { &["kvm-clone"] };
            let words = first.iter().map(|word| (*word).to_owned()).chain(words);
            if let Ok(cli) = Cli::try_parse_from(words)
                && let Command::Run(args) = cli.command
                && let Ok(wanted) = args.wanted()
            {
                let requests: Vec<&Request> = match &wanted {
                    Vms::One(request) | Vms::All(request) => vec![request],
                    Vms::Named(vms) => vms.iter().map(|one| &one.request).collect(),
                };
                for request in requests {
                    prop_assert!(request.check().is_ok());
                }
            }
        }
    }
}
