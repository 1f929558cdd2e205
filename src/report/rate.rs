//! How fast bytes move lately, and how long the rest takes at that pace.

use std::collections::VecDeque;
use std::time::Duration;

/// What counts as lately.
const WINDOW: Duration = Duration::from_secs(10);
/// Samples closer together than this are one.
const SAMPLE_INTERVAL_MIN: Duration = Duration::from_millis(200);
/// Samples kept at most.
const SAMPLES_MAX: usize = 64;

/// Samples of one step's progress.
#[derive(Debug, Clone, Default)]
pub struct Meter {
    samples: VecDeque<(Duration, u64)>,
}

impl Meter {
    /// Takes in how many bytes are done at a time, counted from any fixed moment.
    pub fn take(&mut self, at: Duration, done_bytes: u64) {
        if self.samples.back().is_some_and(|(last, _)| at < *last + SAMPLE_INTERVAL_MIN) {
            return;
        }
        self.samples.push_back((at, done_bytes));
        let old = |sample: &(Duration, u64)| sample.0 + WINDOW < at;
        while self.samples.len() > SAMPLES_MAX || (self.samples.len() > 2 && self.samples.front().is_some_and(old)) {
            self.samples.pop_front();
        }
    }

    /// Bytes a second over the window; 0 before two samples were taken, or when a step began again.
    pub fn bytes_per_second(&self) -> u64 {
        let (Some((from, before)), Some((to, after))) = (self.samples.front(), self.samples.back()) else { return 0 };
        let millis = to.saturating_sub(*from).as_millis();
        let moved = u128::from(after.saturating_sub(*before)) * 1000;
        moved.checked_div(millis).and_then(|rate| u64::try_from(rate).ok()).unwrap_or(0)
    }

    /// How long the rest takes at that pace; `None` while nothing moves.
    pub fn time_left(&self, done_bytes: u64, total_bytes: u64) -> Option<Duration> {
        let seconds = total_bytes.saturating_sub(done_bytes).checked_div(self.bytes_per_second())?;
        Some(Duration::from_secs(seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let mut meter = Meter::default();
        assert_eq!((meter.bytes_per_second(), meter.time_left(0, 10)), (0, None));
        for second in 0..100_u64 {
            // 1 MB/s for 50 s, then 3 MB/s.
            let done = if second < 50 { second } else { 50 + (second - 50) * 3 };
            meter.take(Duration::from_secs(second), done * 1_000_000);
        }
        assert_eq!(meter.bytes_per_second(), 3_000_000);
        assert_eq!(meter.time_left(0, 30_000_000), Some(Duration::from_secs(10)));
    }

    #[test]
    fn many_reports_are_few_samples() {
        let mut meter = Meter::default();
        for report in 0..100_000_u64 {
            meter.take(Duration::from_micros(report * 100), report);
        }
        assert!(meter.samples.len() <= SAMPLES_MAX);
        assert_eq!(meter.bytes_per_second(), 10_000);
    }
}
