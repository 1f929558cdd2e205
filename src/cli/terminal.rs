//! The terminal: results to standard output, everything else to standard error. With `--json` standard output carries
//! one JSON value and nothing else.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{MultiProgress, ProgressDrawTarget};
use serde::Serialize;
use serde_json::json;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::error::CliError;
use crate::report::quantity::printable;

/// Where the program speaks. Clones speak to the same place.
#[derive(Debug, Clone)]
pub struct Terminal {
    json: bool,
    quiet: bool,
    verbose: bool,
    bars: MultiProgress,
    /// Standard output took no result. Clones share it.
    unwritten: Arc<AtomicBool>,
    /// The VM that it speaks of, where it speaks of several in turns.
    vm: Option<String>,
}

impl Terminal {
    /// A terminal as the global options have it.
    pub fn new(json: bool, quiet: bool, verbose: bool) -> Self {
        let drawing = io::stderr().is_terminal() && !quiet;
        let target = if drawing { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self {
            json,
            quiet,
            verbose,
            bars: MultiProgress::with_draw_target(target),
            unwritten: Arc::default(),
            vm: None,
        }
    }

    /// The same terminal, where each line begins with a VM's name.
    #[must_use]
    pub fn for_vm(&self, vm: &str) -> Self {
        Self { vm: Some(printable(vm)), ..self.clone() }
    }

    /// A line as it is to be shown: with the VM that it is about in front, where there are several.
    pub fn named(&self, line: &str) -> String {
        self.vm.as_ref().map_or_else(|| line.to_owned(), |vm| format!("{vm}: {line}"))
    }

    /// Lets log messages (`KVM_CLONE_LOG`, by default warnings) go to standard error, above the progress bars.
    pub fn start_logging(&self) {
        let filter = EnvFilter::builder()
            .with_default_directive(if self.verbose { tracing::Level::INFO } else { tracing::Level::WARN }.into())
            .with_env_var("KVM_CLONE_LOG")
            .from_env_lossy();
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(AboveBars(self.bars.clone()))
            .with_ansi(io::stderr().is_terminal())
            .finish();
        // A second subscriber can only be a caller's own, and then that one is wanted.
        let _ = tracing::subscriber::set_global_default(subscriber);
    }

    /// Whether results are JSON.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Whether more than the usual was asked for.
    pub fn is_verbose(&self) -> bool {
        self.verbose
    }

    /// Whether progress is drawn in place, rather than told in lines.
    pub fn draws(&self) -> bool {
        !self.bars.is_hidden()
    }

    /// The bars.
    pub fn bars(&self) -> &MultiProgress {
        &self.bars
    }

    /// What was asked for: on standard output, as JSON or for people.
    pub fn result(&self, value: &impl Serialize, human: impl FnOnce() -> String) {
        let text = if self.json { serde_json::to_string_pretty(value).map(|text| text + "\n") } else { Ok(human()) };
        if let Err(error) = text.map_err(io::Error::from).and_then(|text| to_stdout(text.as_bytes())) {
            self.unwritten.store(true, Ordering::Relaxed);
            self.line(&format!("error: the result cannot be written to standard output: {error}"));
        }
    }

    /// Whether a result could not be written.
    pub fn is_unwritten(&self) -> bool {
        self.unwritten.load(Ordering::Relaxed)
    }

    /// Something that happens: on standard error, unless `--quiet`.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            self.line(&printable(text));
        }
    }

    /// Something that an operator should know: on standard error.
    pub fn warning(&self, text: &str) {
        self.line(&format!("warning: {}", printable(text)));
    }

    /// A command that failed and has no other result.
    pub fn error(&self, error: &CliError) {
        self.complain(error);
        if self.json {
            self.result(&json!({ "error": error.view() }), String::new);
        }
    }

    /// The words of a failure: on standard error.
    pub fn complain(&self, error: &CliError) {
        let mut text = format!("error: {}", indented("  ", &error.message));
        for problem in &error.problems {
            let _ = write!(text, "\n  - {}", indented("    ", &problem.message));
            push_hint(&mut text, "    ", &problem.hint);
        }
        push_hint(&mut text, "  ", &error.hint);
        for suggestion in &error.suggestions {
            let _ = write!(text, "\n    {}\n      {}", printable(&suggestion.command), printable(&suggestion.effect));
        }
        self.line(&text);
    }

    fn line(&self, text: &str) {
        let text = text.lines().map(|line| self.named(line)).collect::<Vec<_>>().join("\n");
        self.bars.suspend(|| {
            // Nobody is left to tell when standard error is closed.
            let _ = writeln!(io::stderr(), "{text}");
        });
    }
}

fn push_hint(text: &mut String, indent: &str, hint: &str) {
    if !hint.is_empty() {
        let _ = write!(text, "\n{indent}hint: {}", indented(indent, hint));
    }
}

/// Line breaks of a message are kept, and what follows them is indented; other control characters never reach the
/// terminal.
fn indented(indent: &str, text: &str) -> String {
    text.trim_end().lines().map(printable).collect::<Vec<_>>().join(&format!("\n{indent}"))
}

fn to_stdout(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        // A reader that has seen enough (`| head`) is no failure of ours.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Writes log lines without tearing the bars.
#[derive(Clone)]
struct AboveBars(MultiProgress);

impl<'a> MakeWriter<'a> for AboveBars {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Write for AboveBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
