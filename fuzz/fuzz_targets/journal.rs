//! Any bytes as a way to damage a journal that is whole, which is then opened by the real store.

#![no_main]
// The test's own judge tells more than is asked here.
#![allow(dead_code)]

use std::path::Path;
use std::sync::LazyLock;

#[path = "../../tests/journal/damaged/mod.rs"]
mod damaged;
#[path = "../../journal-format/tests/example/mod.rs"]
mod example;

use damaged::{Ground, fuzz};

/// In memory where that is possible; `verify` makes its copies there as well.
static GROUND: LazyLock<Ground> = LazyLock::new(|| {
    let shared = Path::new("/dev/shm");
    let base = if shared.is_dir() { shared.to_owned() } else { std::env::temp_dir() };
    // SAFETY: the fuzzer has one thread, and this is before the first journal is opened.
    unsafe { std::env::set_var("TMPDIR", &base) };
    Ground::make(&base)
});

libfuzzer_sys::fuzz_target!(
    init: {
        // A panic of sled's is caught and told as an error; one that gets out ends the fuzzer all the same.
        std::panic::set_hook(Box::new(|_| {}));
    },
    |data: &[u8]| {
        if let Err(broken) = fuzz(&GROUND, data) {
            eprintln!("{}: {}", broken.kind, broken.what);
            std::process::abort();
        }
    }
);
