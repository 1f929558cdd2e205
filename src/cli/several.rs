//! `run` with several VMs: one transaction each, some of them at once, one summary. What happens to one VM is nothing
//! to the others: each is looked at, refused, cloned or suspended by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::thread;

use serde_json::{Map, Value, json};

use super::error::CliError;
use super::exit::ExitStatus;
use super::run::{RunArgs, Told, clone_one};
use super::session::Session;
use crate::glob;
use crate::host::{Access, Role};
use crate::report::list::short;
use crate::report::table::lay_out;
use crate::request::{Request, VmSelector};

/// VMs of one command at most.
const VMS_MAX: usize = 1000;
/// VMs at once at most: each has an agent on both hosts.
pub const PARALLEL_VMS_MAX: u8 = 16;

/// One VM of several.
#[derive(Debug)]
pub struct Wanted {
    /// What it is called in messages: as typed, or by its name.
    pub vm: String,
    /// Its clone.
    pub request: Request,
}

/// How it went with one of them.
struct Row {
    vm: String,
    ended: Result<Told, CliError>,
}

/// The VMs that were named, each once. Contacts nobody.
pub fn named(
    vms: &[String],
    request: impl Fn(VmSelector) -> Result<Request, CliError>,
) -> Result<Vec<Wanted>, CliError> {
    let mut seen = BTreeSet::new();
    let mut wanted = Vec::new();
    for vm in vms {
        if !seen.insert(vm) {
            return Err(CliError::usage(format!("VM {vm}: named twice"), "no host was contacted"));
        }
        wanted.push(Wanted { vm: vm.clone(), request: request(vm.parse()?)? });
    }
    bounded(wanted)
}

/// The VMs of the source host, or those whose names match. `like`: what each of them is asked for.
pub fn all(pattern: Option<&str>, like: &Request, session: &Session) -> Result<Vec<Wanted>, CliError> {
    let access = Access::new(like.source.clone(), like.key_file.clone());
    let domains = session.connector()?.connect(&access, Role::Look).and_then(|host| host.domains());
    let mut domains = domains.map_err(|fault| CliError::before_begun(&fault))?;
    domains.retain(|domain| pattern.is_none_or(|pattern| glob::matches(pattern, &domain.name)));
    if domains.is_empty() {
        let matching = pattern.map_or_else(String::new, |pattern| format!(" whose name matches {pattern:?}"));
        let message = format!("{} has no VM{matching}; nothing was touched", like.source);
        return Err(CliError::new(ExitStatus::Refused, message, "`kvm-clone vms` lists the VMs of a host"));
    }
    domains.sort_by(|one, other| one.name.cmp(&other.name));
    let of = |vm: String, uuid| Wanted { vm, request: Request { vm: VmSelector::Uuid(uuid), ..like.clone() } };
    bounded(domains.into_iter().map(|domain| of(domain.name, domain.uuid)).collect())
}

fn bounded(wanted: Vec<Wanted>) -> Result<Vec<Wanted>, CliError> {
    if wanted.len() > VMS_MAX {
        let message = format!("{} VMs are more than one command takes ({VMS_MAX}); nothing was touched", wanted.len());
        return Err(CliError::usage(message, "use several commands, such as one for each `--match`"));
    }
    Ok(wanted)
}

/// Clones them, `at_once` at a time, in their order, and sums up; the worst ending counts.
pub fn clone_several(
    wanted: Vec<Wanted>,
    at_once: u8,
    args: &RunArgs,
    session: &Session,
) -> Result<ExitStatus, CliError> {
    let jobs = wanted.into_iter().map(|one| session.for_vm(&one.vm).map(|own| (one, own)));
    let jobs: Vec<(Wanted, Session)> = jobs.collect::<Result<_, _>>()?;
    let further = jobs.len().min(usize::from(at_once)).saturating_sub(1);
    let turns = Mutex::new(jobs.into_iter().enumerate());
    let rows: Mutex<BTreeMap<usize, Row>> = Mutex::default();
    let work = || {
        loop {
            // Out of the lock before the work begins: the others take theirs.
            let next = lock(&turns).next();
            let Some((place, (one, own))) = next else { return };
            let row = clone_in_turn(one, args, &own);
            lock(&rows).insert(place, row);
        }
    };
    thread::scope(|scope| {
        for _ in 0..further {
            if let Err(error) = thread::Builder::new().name("vm".into()).spawn_scoped(scope, work) {
                session.terminal.warning(&format!("fewer VMs are cloned at once: no further thread: {error}"));
                break;
            }
        }
        work();
    });
    let rows: Vec<Row> = std::mem::take(&mut *lock(&rows)).into_values().collect();
    let values: Vec<Value> = rows.iter().map(Row::json).collect();
    session.terminal.result(&values, || summary(&rows, args.dry_run()));
    Ok(worst(&rows))
}

/// Nobody panics while holding one of these locks.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn clone_in_turn(one: Wanted, args: &RunArgs, own: &Session) -> Row {
    let Wanted { vm, request } = one;
    let ended = if let Some(why) = own.interruption() {
        let message = format!("{why} before its turn; nothing of it was touched");
        Err(CliError::new(ExitStatus::Refused, message, "run it again"))
    } else {
        // A mistake of this program in one VM's turn must not take the others with it.
        catch_unwind(AssertUnwindSafe(|| clone_one(&request, args, own))).unwrap_or_else(|_| {
            let message = "kvm-clone itself failed at this VM: a mistake in the program";
            Err(CliError::new(ExitStatus::Suspended, message, "`kvm-clone recover` shows what is unfinished"))
        })
    };
    match &ended {
        Ok(told) if !args.dry_run() && !told.text.is_empty() => own.terminal.note(told.text.trim_end()),
        Ok(_) => {}
        Err(error) => own.terminal.complain(error),
    }
    Row { vm, ended }
}

fn worst(rows: &[Row]) -> ExitStatus {
    rows.iter().map(Row::status).fold(ExitStatus::Done, ExitStatus::worse)
}

/// The plans, where only they were asked for; a line for each VM; how many of them arrived.
fn summary(rows: &[Row], dry_run: bool) -> String {
    let mut text = String::new();
    let told = rows.iter().filter_map(|row| row.ended.as_ref().ok().map(|told| (&row.vm, told)));
    for (_, told) in told.filter(|_| dry_run) {
        let _ = writeln!(text, "{}", told.text);
    }
    let lines: Vec<[String; 4]> = rows.iter().map(Row::line).collect();
    text += &lay_out(["VM", "RESULT", "EXIT", "TXN"], &lines);
    let done = rows.iter().filter(|row| row.status() == ExitStatus::Done).count();
    let _ = writeln!(text, "{done} of {} VMs done; exit status {}.", rows.len(), worst(rows) as u8);
    text
}

impl Row {
    fn status(&self) -> ExitStatus {
        self.ended.as_ref().map_or_else(|error| error.exit, |told| told.status)
    }

    fn line(&self) -> [String; 4] {
        let (word, txn) = match &self.ended {
            Ok(told) => (told.word.as_str(), told.txn.as_deref().map_or("-", short)),
            Err(error) => (error.exit.word(), "-"),
        };
        [self.vm.clone(), word.to_owned(), (self.status() as u8).to_string(), txn.to_owned()]
    }

    /// What `run` prints for one VM, with `vm` and `exit_status`.
    fn json(&self) -> Value {
        let mut object = Map::new();
        object.insert("vm".into(), json!(self.vm));
        object.insert("exit_status".into(), json!(self.status() as u8));
        match &self.ended {
            Ok(Told { value: Value::Object(value), .. }) => object.extend(value.clone()),
            Ok(told) => drop(object.insert("result".into(), told.value.clone())),
            Err(error) => drop(object.insert("error".into(), json!(error.view()))),
        }
        Value::Object(object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(vm: &str, status: ExitStatus) -> Row {
        let (word, txn) = ("committed".to_owned(), Some("0198c0de-1111-7000-8000-0000deadbeef".to_owned()));
        let ended = match status {
            ExitStatus::Done => {
                Ok(Told { status, word, txn, value: json!({ "id": 1, "status": "committed" }), text: String::new() })
            }
            _ => Err(CliError::new(status, "no room", "")),
        };
        Row { vm: vm.to_owned(), ended }
    }

    #[test]
    fn the_summary_has_a_line_for_each_and_the_worst_ending() {
        let rows =
            [row("one", ExitStatus::Done), row("two", ExitStatus::Refused), row("three", ExitStatus::RolledBack)];
        assert_eq!(worst(&rows), ExitStatus::RolledBack);
        let text = summary(&rows, false);
        assert!(text.contains("one    committed    0     deadbeef\n"), "{text}");
        assert!(text.contains("two    refused      5     -\n"), "{text}");
        assert!(text.ends_with("1 of 3 VMs done; exit status 1.\n"), "{text}");
        let values = rows.each_ref().map(Row::json);
        assert_eq!(
            (&values[0]["vm"], &values[0]["exit_status"], &values[0]["status"]),
            (&json!("one"), &json!(0), &json!("committed"))
        );
        assert_eq!(values[1]["error"]["message"], "no room");
    }

    #[test]
    fn no_vm_is_named_twice() {
        let request = |vm| -> Result<Request, CliError> { Ok(Request::new("a".parse()?, "b".parse()?, vm)) };
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(named(&words(&["web", "db"]), request).map(|wanted| wanted.len()).ok(), Some(2));
        assert_eq!(
            named(&words(&["web", "db", "web"]), request).map_err(|error| error.exit).err(),
            Some(ExitStatus::Usage)
        );
    }
}
