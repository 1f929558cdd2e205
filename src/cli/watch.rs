//! Tells what an attempt does while it does it: bars on a terminal, plain lines elsewhere, and the live-progress file
//! for other terminals. Decides nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use journal_format::{EventV1, PlanV1, RecordV1, StepRef};

use super::session::now;
use super::terminal::Terminal;
use crate::observer::{Observer, Progress};
use crate::report::live::{LiveDirectory, LiveProgress};
use crate::report::quantity::{bytes, duration, percent, printable};
use crate::report::rate::Meter;
use crate::report::step::{all_steps, describe};

/// Between two plain lines of progress.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// Between two writes of the live-progress file.
const FILE_INTERVAL: Duration = Duration::from_secs(1);
/// Between two turns of a spinner.
const SPIN_INTERVAL: Duration = Duration::from_millis(120);

/// Watches one attempt.
pub struct Watcher<'a> {
    terminal: &'a Terminal,
    live: &'a LiveDirectory,
    plan: PlanV1,
    numbers: BTreeMap<StepRef, usize>,
    began: Instant,
    started: BTreeMap<StepRef, Instant>,
    moving: Option<Moving>,
}

/// The step that goes on now.
struct Moving {
    step: StepRef,
    bar: ProgressBar,
    meter: Meter,
    line_at: Instant,
    file_at: Option<Instant>,
}

impl<'a> Watcher<'a> {
    /// A watcher for one attempt in the transaction with this plan.
    pub fn new(plan: PlanV1, live: &'a LiveDirectory, terminal: &'a Terminal) -> Self {
        let numbers = all_steps(&plan).zip(1..).collect();
        Self { terminal, live, plan, numbers, began: Instant::now(), started: BTreeMap::new(), moving: None }
    }

    /// `[3/14]`.
    fn number(&self, step: StepRef) -> String {
        let number = self.numbers.get(&step).copied().unwrap_or(0);
        format!("[{number}/{}]", self.numbers.len())
    }

    /// `[3/14] transfer vda`.
    fn title(&self, step: StepRef) -> String {
        format!("{} {}", self.number(step), printable(&describe(&self.plan, step).line))
    }

    fn begin(&mut self, step: StepRef) {
        self.clear();
        self.started.insert(step, Instant::now());
        let title = self.title(step);
        if !self.terminal.draws() {
            self.terminal.note(&title);
        }
        let bar = self.terminal.bars().add(ProgressBar::new_spinner());
        bar.set_message(self.terminal.named(&title));
        bar.enable_steady_tick(SPIN_INTERVAL);
        let moving = Moving { step, bar, meter: Meter::default(), line_at: Instant::now(), file_at: None };
        self.moving = Some(moving);
    }

    fn end(&mut self, step: StepRef, word: &str) {
        self.clear();
        let time = self.started.remove(&step).map(|started| format!(" in {}", short_time(started.elapsed())));
        let time = time.unwrap_or_default();
        // Where lines follow each other, the step was named a line before.
        let told = !self.terminal.draws() && !time.is_empty();
        let title = if told { self.number(step) } else { self.title(step) };
        self.terminal.note(&format!("{title}: {word}{time}"));
    }

    fn clear(&mut self) {
        if let Some(moving) = self.moving.take() {
            moving.bar.finish_and_clear();
        }
    }
}

impl Drop for Watcher<'_> {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Observer for Watcher<'_> {
    fn appended(&mut self, _sequence: u64, record: &RecordV1) {
        match &record.event {
            EventV1::Started { step } => self.begin(*step),
            EventV1::Done { step, .. } => self.end(*step, "done"),
            EventV1::Undone { step } => self.end(*step, "undone"),
            EventV1::Failed { step, .. } => self.end(*step, "failed"),
            EventV1::Reopened { step, why, .. } => self.end(*step, &format!("again: {why}")),
            EventV1::RollingBack { failure } => {
                self.clear();
                self.terminal.note(&format!("rolling back: {}", failure.message));
            }
            EventV1::Committed => self.terminal.note("committed: from here on only forward"),
            EventV1::Finished { .. } | EventV1::Abandoned { .. } => {
                self.clear();
                self.live.remove(self.plan.txn);
            }
            EventV1::LeftBehind { step, failure } => {
                self.end(*step, &format!("left for later: {}", failure.message));
            }
            EventV1::SourceChanged { image, .. } => {
                let image = usize::try_from(*image).ok().and_then(|image| self.plan.images.get(image));
                let target = image.map_or_else(|| "a disk".to_owned(), |image| image.role.to_string());
                self.terminal.note(&format!("the source's image of {target} changed: what differs is sent again"));
            }
            // The end of an attempt is told by the command, with what to do next.
            EventV1::Suspended { .. } | EventV1::Stuck { .. } => self.clear(),
            EventV1::Begun { .. } | EventV1::AttemptOpened { .. } => {}
        }
    }

    fn progress(&mut self, progress: &Progress) {
        if self.moving.as_ref().is_none_or(|moving| moving.step != progress.step) {
            self.begin(progress.step);
        }
        let Some(moving) = &mut self.moving else { return };
        let now_instant = Instant::now();
        moving.meter.take(self.began.elapsed(), progress.done_bytes);
        let rate = moving.meter.bytes_per_second();
        if moving.bar.length() != Some(progress.total_bytes) {
            moving.bar.disable_steady_tick();
            moving.bar.set_style(byte_style());
            moving.bar.set_length(progress.total_bytes);
        }
        moving.bar.set_position(progress.done_bytes);
        if moving.file_at.is_none_or(|at| now_instant >= at + FILE_INTERVAL) {
            moving.file_at = Some(now_instant);
            self.live.write(self.plan.txn, &LiveProgress::new(progress, rate, now()));
        }
        if !self.terminal.draws() && now_instant >= moving.line_at + LINE_INTERVAL {
            moving.line_at = now_instant;
            let left = moving.meter.time_left(progress.done_bytes, progress.total_bytes);
            let left = left.map_or_else(String::new, |left| format!(", {} left", duration(left)));
            self.terminal.note(&format!(
                "  {} % ({} of {}), {}/s{left}",
                percent(progress.done_bytes, progress.total_bytes),
                bytes(progress.done_bytes),
                bytes(progress.total_bytes),
                bytes(rate),
            ));
        }
    }

    fn warning(&mut self, message: &str) {
        self.terminal.warning(message);
    }
}

/// Bytes, rate and time left after the step's name.
pub(super) fn byte_style() -> ProgressStyle {
    let template = "{msg}\n  {wide_bar} {percent:>3} %  {decimal_bytes}/{decimal_total_bytes}  {decimal_bytes_per_sec}  {eta} left";
    // A template that does not parse would be a mistake of this line; the default style says less, and no more is lost.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn short_time(time: Duration) -> String {
    if time < Duration::from_secs(10) { format!("{:.1}s", time.as_secs_f64()) } else { duration(time) }
}
