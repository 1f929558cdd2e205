//! A limit on bytes per second: whoever sends waits here first.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// What was left unused is caught up with for so long, and no longer.
const BURST_MILLISECONDS: u64 = 1000;

/// Lets bytes pass at a rate. Without one it lets all pass.
pub(super) struct Pace {
    bytes_per_second: Option<u64>,
    next: Instant,
}

impl Pace {
    pub(super) fn new(bytes_per_second: Option<u64>) -> Self {
        // A rate of nothing would be for ever.
        Self { bytes_per_second: bytes_per_second.map(|rate| rate.max(1)), next: Instant::now() }
    }

    /// Returns when so many bytes may be sent.
    pub(super) async fn pass(&mut self, bytes: u32) {
        let now = Instant::now();
        let due = self.due(now, bytes);
        if due > now {
            sleep_until(due).await;
        }
    }

    /// When so many bytes may be sent, asked at `now`.
    fn due(&mut self, now: Instant, bytes: u32) -> Instant {
        let Some(rate) = self.bytes_per_second else { return now };
        let earliest = now.checked_sub(Duration::from_millis(BURST_MILLISECONDS)).unwrap_or(now);
        let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
        let share = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        self.next = self.next.max(earliest) + share;
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_exact_to_five_percent_even_if_timers_are_late() {
        for (rate, pieces) in [(10_000_000, 400), (262_144, 4), (1_000_000_000, 40_000)] {
            let start = Instant::now();
            let mut pace = Pace { bytes_per_second: Some(rate), next: start };
            let mut now = start;
            for _ in 0..pieces {
                let due = pace.due(now, 262_144);
                if due > now {
                    now = due + Duration::from_millis(1);
                }
            }
            let seconds = (now - start).as_secs_f64();
            #[allow(clippy::cast_precision_loss)]
            let expected = f64::from(pieces) * 262_144.0 / rate as f64;
            assert!((seconds / expected - 1.0).abs() < 0.05, "{rate}: {seconds} s instead of {expected} s");
        }
    }

    #[test]
    fn without_a_limit_nothing_waits() {
        let now = Instant::now();
        assert_eq!(Pace::new(None).due(now, u32::MAX), now);
    }

    #[test]
    fn a_pause_is_not_caught_up_with() {
        let now = Instant::now();
        let mut pace = Pace { bytes_per_second: Some(1_000_000), next: now };
        let later = now + Duration::from_secs(100);
        pace.due(later, 1_000_000);
        assert!(pace.due(later, 1_000_000) >= later + Duration::from_millis(900));
    }
}
