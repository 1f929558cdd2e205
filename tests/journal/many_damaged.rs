//! Many damaged journals, each from its own seed: `KVM_CLONE_DAMAGED` says how many (`tests/course`). Rows say what became
//! of them.
//!
//! They are opened in child processes: what a damaged store does to the process that opens it (memory that is never
//! given back, an abort, an endless loop) is then told as a finding, with its seed.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use super::course::{Course, Violation, print_rows};
use super::damaged::{Ground, Seeded, case, fuzz};

const COUNT_DEFAULT: u64 = 600;
/// Journals that one child opens.
const BATCH: usize = 150;
/// What one journal may take, on a machine that is busy with other tests.
const CASE_MAX: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
/// Seeds, divided by commas, for a child.
const BATCH_VARIABLE: &str = "KVM_CLONE_TEST_DAMAGED";

/// In memory where that is possible: a damaged journal needs no disk.
fn memory() -> PathBuf {
    let shared = Path::new("/dev/shm");
    if tempfile::tempfile_in(shared).is_ok() { shared.to_owned() } else { std::env::temp_dir() }
}

/// Not a test of its own: what the children do. A line before each case and one behind it.
#[test]
fn damage_in_a_child() {
    let Ok(batch) = std::env::var(BATCH_VARIABLE) else { return };
    // sled's panics are caught and told as errors; their text would only be noise.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !panic.location().is_some_and(|location| location.file().contains("/sled-")) {
            hook(panic);
        }
    }));
    let ground = Ground::make(&memory());
    let mut out = std::io::stdout();
    for seed in batch.split(',').map(|seed| seed.parse().unwrap()) {
        writeln!(out, "\nbegin {seed}").unwrap();
        match case(&ground, &mut Seeded(seed)) {
            Ok(case) => writeln!(out, "ended {seed} {} {:?}", case.kind, case.outcome).unwrap(),
            Err(broken) => writeln!(out, "broken {seed} {} {}", broken.kind, broken.what).unwrap(),
        }
    }
}

/// What children said.
#[derive(Default)]
struct Said {
    outcomes: BTreeMap<String, BTreeMap<String, u64>>,
    broken: Vec<Violation>,
    cases: u64,
}

impl Said {
    /// Takes in a line; the seed that has begun and not ended is in `open`.
    fn hear(&mut self, line: &str, open: &mut Option<u64>) {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words[..] {
            ["begin", seed] => *open = seed.parse().ok(),
            ["ended", _, kind, outcome] => {
                *self.outcomes.entry(kind.to_owned()).or_default().entry(outcome.to_owned()).or_default() += 1;
                (self.cases, *open) = (self.cases + 1, None);
            }
            ["broken", seed, kind, what] => {
                self.breaks(seed.parse().unwrap(), format!("{kind}: {what}"));
                (self.cases, *open) = (self.cases + 1, None);
            }
            _ => {}
        }
    }

    fn breaks(&mut self, seed: u64, story: String) {
        let replay = format!("KVM_CLONE_SEED={seed} cargo test --test journal never_loses");
        self.broken.push(Violation { seed, story, replay });
    }
}

fn run_batch(seeds: &[u64], said: &Mutex<Said>) {
    let batch: Vec<_> = seeds.iter().map(u64::to_string).collect();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "many_damaged::damage_in_a_child", "--nocapture"])
        .env(BATCH_VARIABLE, batch.join(","))
        .env("TMPDIR", memory())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let (sender, lines) = std::sync::mpsc::channel();
    let reader = thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    let mut open = None;
    let hung = loop {
        match lines.recv_timeout(CASE_MAX) {
            Ok(line) => said.lock().unwrap().hear(&line, &mut open),
            Err(error) => break error == std::sync::mpsc::RecvTimeoutError::Timeout,
        }
    };
    let status = if hung { kill(&mut child) } else { wait(&mut child) };
    let _ = reader.join();
    if let Some(seed) = open {
        said.lock().unwrap().breaks(seed, format!("the process ended in it: {status}"));
    } else if status != "exit status: 0" {
        said.lock().unwrap().breaks(seeds[0], format!("at the end of {} cases from there on: {status}", seeds.len()));
    }
}

fn kill(child: &mut Child) -> String {
    let _ = child.kill();
    let _ = child.wait();
    format!("nothing for {} s", CASE_MAX.as_secs())
}

fn wait(child: &mut Child) -> String {
    let deadline = Instant::now() + CASE_MAX;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().unwrap() {
            return status.to_string();
        }
        thread::sleep(POLL);
    }
    kill(child)
}

#[test]
fn a_damaged_journal_is_repaired_or_refused_and_never_loses_in_silence() {
    let course = Course::of_environment("KVM_CLONE_DAMAGED", COUNT_DEFAULT);
    let said = Mutex::new(Said::default());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, std::num::NonZero::get) {
            scope.spawn(|| {
                loop {
                    let seeds: Vec<u64> = std::iter::from_fn(|| course.next()).take(BATCH).collect();
                    if seeds.is_empty() {
                        break;
                    }
                    run_batch(&seeds, &said);
                }
            });
        }
    });
    let said = said.into_inner().unwrap();
    let mut rows = vec![
        ("seconds".to_owned(), course.took().as_secs()),
        ("first seed".to_owned(), course.first()),
        ("damaged journals".to_owned(), said.cases),
    ];
    // Where the damage was, without its kind.
    let mut outcomes = BTreeMap::<_, u64>::new();
    for (kind, count) in said.outcomes.iter().flat_map(|(kind, of)| of.iter().map(move |one| (kind, one))) {
        let place = kind.split(':').next().unwrap_or(kind);
        *outcomes.entry(format!("{place}: {}", count.0)).or_default() += count.1;
    }
    rows.extend(outcomes);
    print_rows("damaged journals", &rows, &said.broken);
    assert!(said.broken.is_empty(), "{} journals broke a promise; the rows above say which", said.broken.len());
    assert!(said.cases > 0, "no journal was damaged");
}

#[test]
fn seeds_of_the_fuzz_target() {
    let ground = Ground::make(&memory());
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/journal");
    let mut count = 0;
    for entry in seeds.read_dir().unwrap() {
        let path = entry.unwrap().path();
        if let Err(broken) = fuzz(&ground, &std::fs::read(&path).unwrap()) {
            panic!("{}: {}: {}", path.display(), broken.kind, broken.what);
        }
        count += 1;
    }
    assert!(count >= 10, "the seeds are gone");
}
