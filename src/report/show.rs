//! The human view of one transaction: what it is, how far it is, what went wrong, what to do next.

use std::fmt::Write;

use journal_format::FindingV1;
use serde::Serialize;

use super::quantity::{bytes, printable};
use super::status::Status;
use super::table::lay_out;
use super::transaction::{DiskView, TransactionLog};

/// Everything a person needs of a transaction; with `events` its whole journal too. `program`: how this program is
/// called, for the commands that are suggested.
pub fn human(log: &TransactionLog, events: bool, program: &str) -> String {
    let mut text = String::new();
    head(log, &mut text);
    let _ = write!(text, "\n{}", disks(&log.disks));
    let _ = write!(text, "\n{}", steps(log));
    if !log.failures.is_empty() {
        text.push_str("\nWhat went wrong\n");
        for failure in &log.failures {
            let _ = writeln!(text, "  {}  {}: {}", failure.at, failure.event, printable(&failure.message));
            // What was to be done then is not to be done now.
            if !failure.advice.is_empty() && log.status.is_unfinished() {
                let _ = writeln!(text, "    hint: {}", printable(&failure.advice));
            }
        }
    }
    if log.status == Status::Stuck
        && let Some(finding) = log.findings.last()
    {
        text.push_str(&stuck_lines(&log.destination.host, &finding.expected, &finding.found, &finding.commands));
    }
    if log.status == Status::Abandoned {
        let _ =
            writeln!(text, "\nNobody acts on it any more; it may have left on {}", printable(&log.destination.host));
        for (kind, id) in log.may_be_left() {
            let _ = writeln!(text, "  {kind} {}", printable(id));
        }
    }
    for warning in &log.warnings {
        let _ = writeln!(text, "\nwarning: {}", printable(warning));
    }
    if events {
        text.push_str("\nJournal\n");
        for event in &log.events {
            let _ = writeln!(
                text,
                "  {:>4}  {}  {:<14}  {}",
                event.sequence,
                event.at,
                event.event,
                printable(&event.text)
            );
        }
    }
    let next = next(log, program);
    if !next.is_empty() {
        let _ = write!(text, "\nNext\n{next}");
    }
    text
}

fn head(log: &TransactionLog, text: &mut String) {
    let mut line = |label: &str, value: &str| {
        let _ = writeln!(text, "{label:<12}{}", printable(value));
    };
    line("Transaction", &log.transaction_id);
    line("Status", log.status.word());
    line("Source", &format!("{} on {} ({})", log.source.vm_name, log.source.host, log.source.vm_uuid));
    line("Clone", &format!("{} on {} ({})", log.destination.vm_name, log.destination.host, log.destination.vm_uuid));
    if let Some(old) = &log.replaces {
        line("Replaces", &old.line());
        for file in &old.left {
            line("Left", &format!("{}: {}", printable(&file.path), printable(&file.why)));
        }
    }
    line("Started", &log.started_at);
    if let Some(completed) = &log.completed_at {
        line("Completed", completed);
    }
    if log.status.is_unfinished() {
        let progress = &log.progress;
        line(
            "Progress",
            &format!("{} % of the bytes, {} of {} steps", progress.percent, progress.steps_done, progress.steps_total),
        );
    }
    if let Some(live) = &log.progress.live {
        let step = log.steps.iter().find(|step| step.id == live.step_ref().into());
        let what = step.map_or_else(String::new, |step| format!("{} {}: ", step.kind, step.object));
        let amount = format!("{what}{} of {}", bytes(live.done_bytes), bytes(live.total_bytes));
        match log.status {
            Status::Running => line("Now", &format!("{amount}, {}/s", bytes(live.bytes_per_second))),
            _ => line("Last seen", &format!("{amount}, at {}", live.at)),
        }
    }
    if let Some(attempt) = log.attempts.last() {
        let which =
            format!("{} by `{}` since {}, process {}", attempt.epoch, attempt.purpose, attempt.opened_at, attempt.pid);
        line("Attempt", &which);
    }
    if let Some(reason) = &log.abandoned_because {
        line("Abandoned", reason);
    }
}

fn disks(disks: &[DiskView]) -> String {
    let amount = |count: Option<u64>| count.map_or_else(|| "-".to_owned(), bytes);
    let rows: Vec<[String; 7]> = disks
        .iter()
        .map(|disk| {
            [
                disk.target.clone(),
                disk.format.to_owned(),
                bytes(disk.size_bytes),
                amount(disk.missing_bytes),
                amount(disk.sent_bytes),
                disk.verification.to_owned(),
                disk.final_path.clone(),
            ]
        })
        .collect();
    let mut text = lay_out(["DISK", "FORMAT", "SIZE", "TO SEND", "SENT", "VERIFIED", "FINAL PATH"], &rows);
    for disk in disks {
        if let Some(root) = &disk.root {
            let _ = writeln!(text, "{} BLAKE3 {root}", printable(&disk.target));
        }
        if let Some(root) = &disk.source_root {
            let _ = writeln!(text, "{} BLAKE3 {root} on the source", printable(&disk.target));
        }
    }
    text
}

fn steps(log: &TransactionLog) -> String {
    let rows: Vec<[String; 4]> = log
        .steps
        .iter()
        .map(|step| {
            let attempts = if step.attempts > 1 { format!("{} times", step.attempts) } else { String::new() };
            let when = step.completed_at.clone().or_else(|| step.started_at.clone()).unwrap_or_default();
            [step.state.to_owned(), step.description.clone(), when, attempts]
        })
        .collect();
    lay_out(["STATE", "STEP", "WHEN", ""], &rows)
}

/// What was expected on this host, what was found, and what a person would type there.
pub fn stuck(host: &str, finding: &FindingV1) -> String {
    stuck_lines(host, &finding.expected, &finding.found, &finding.commands)
}

fn stuck_lines(host: &str, expected: &str, found: &str, commands: &[String]) -> String {
    let (host, expected, found) = (printable(host), printable(expected), printable(found));
    let mut text = format!("\nA person must act\n  expected: {expected}\n  found:    {found}\n  look on {host}:\n");
    for command in commands {
        let _ = writeln!(text, "  $ {}", printable(command));
    }
    text
}

/// A command that fits a transaction's status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Suggestion {
    /// As it is typed.
    pub command: String,
    /// What it would do.
    pub effect: String,
}

/// The commands that fit the status; none when nothing is left to do.
pub fn suggestions(log: &TransactionLog, program: &str) -> Vec<Suggestion> {
    let suggestion = |(command, effect)| Suggestion { command: typed(log, command, program), effect };
    choices(log).into_iter().map(suggestion).collect()
}

/// A command for this transaction as it is typed.
pub fn typed(log: &TransactionLog, command: &str, program: &str) -> String {
    let rest = if command == "abandon" { " --reason TEXT" } else { "" };
    format!("{program} {command} {}{rest}", log.transaction_id)
}

/// What a command would work on, one line each: the steps that `resume` would do, the things that `rollback` would remove,
/// each in its order.
pub fn objects(log: &TransactionLog, command: &str) -> Vec<String> {
    match command {
        "resume" => {
            let left = log.steps.iter().filter(|step| step.state != "done");
            left.map(|step| printable(&step.description)).collect()
        }
        "rollback" => {
            let mut made: Vec<_> = log.may_be_left().map(|(kind, id)| format!("{kind} {}", printable(id))).collect();
            made.reverse();
            made
        }
        _ => Vec::new(),
    }
}

/// Those commands for people, two lines each.
pub fn next(log: &TransactionLog, program: &str) -> String {
    suggestions(log, program).iter().fold(String::new(), |mut text, Suggestion { command, effect }| {
        let _ = writeln!(text, "  {command}\n      {effect}");
        text
    })
}

/// The commands that fit the status (`resume`, `rollback`, `abandon`), each with what it would do.
pub fn choices(log: &TransactionLog) -> Vec<(&'static str, String)> {
    let source = &log.source;
    let clone = printable(&format!("{} on {}", log.destination.vm_name, log.destination.host));
    let made = log.may_be_left().count();
    let forward = || {
        let left = log.steps.iter().filter(|step| step.state != "done").count();
        format!("does the {left} steps that are left: {clone} becomes a clone of {}", printable(&source.vm_name))
    };
    let back = || match made {
        0 => "nothing was made; it is closed".to_owned(),
        1 => format!("removes the one thing it made on {}", printable(&log.destination.host)),
        made => format!("removes the {made} things it made on {}", printable(&log.destination.host)),
    };
    match log.status {
        Status::Interrupted => vec![("resume", forward()), ("rollback", back())],
        Status::RollingBack => vec![("rollback", back())],
        Status::CleaningUp => vec![("resume", format!("clears away what is left; {clone} is committed"))],
        Status::Stuck => {
            let has = |what| log.events.iter().any(|event| event.event == what);
            let forward = ("resume", "looks again and goes on, if what it stopped at is gone".to_owned());
            let back = ("rollback", "looks again and turns back, if what it stopped at is gone".to_owned());
            let up = "gives it up: nobody acts on it any more, what it made stays and is listed".to_owned();
            // Who has turned back goes on with that.
            let forward = Some(forward).filter(|_| !has("rolling_back"));
            forward.into_iter().chain([back, ("abandon", up)]).collect()
        }
        Status::Running | Status::Committed | Status::RolledBack | Status::Abandoned => Vec::new(),
    }
}
