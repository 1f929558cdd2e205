//! How long a durable append takes, and how large a ledger becomes. Ignored: it measures, and asserts nothing.

use std::time::{Duration, Instant};

use journal_format::EventV1;
use kvm_clone::journal::Journal;

use super::{Home, chunk, example};

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort();
    times[(times.len() - 1) * percent / 100]
}

fn bytes_below(directory: &std::path::Path) -> u64 {
    super::content(directory).iter().map(|(_, bytes)| bytes.len() as u64).sum()
}

#[test]
#[ignore = "a measurement: cargo test --test journal latency -- --ignored --nocapture"]
fn latency() {
    let home = Home::new();
    let mut journal = home.write(2);
    let time = |work: &mut dyn FnMut()| {
        let start = Instant::now();
        work();
        start.elapsed()
    };
    let mut appends: Vec<Duration> = (2..2002)
        .map(|number| time(&mut || journal.append(number, example::record(number, 1, EventV1::Committed)).unwrap()))
        .collect();
    println!("append: p50 {:?}, p99 {:?}", percentile(&mut appends, 50), percentile(&mut appends, 99));
    // A 64 GiB image in chunks of 1 MiB, 32 at a time.
    let chunks: Vec<_> = (0..65_536).map(chunk).collect();
    let mut batches: Vec<Duration> =
        chunks.chunks(32).map(|batch| time(&mut || journal.record_chunks(0, batch).unwrap())).collect();
    println!("32 chunks: p50 {:?}, p99 {:?}", percentile(&mut batches, 50), percentile(&mut batches, 99));
    println!("read 65536 chunks: {:?}", time(&mut || drop(journal.chunks(0).unwrap())));
    drop(journal);
    println!("bytes: {}", bytes_below(&home.directory()));
    for _ in 0..3 {
        println!("open: {:?}", time(&mut || drop(home.open())));
        println!("bytes: {}", bytes_below(&home.directory()));
    }
    let small = Home::with(30);
    println!("small, bytes: {}", bytes_below(&small.directory()));
    println!("small, open: {:?}", time(&mut || drop(small.open())));
    let (mut journal, _) = home.open();
    println!("forget 65536 chunks: {:?}", time(&mut || journal.forget_chunks(0).unwrap()));
}
