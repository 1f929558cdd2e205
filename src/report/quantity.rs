//! Bytes, rates and durations as people read them. GB = 10^9 bytes, here as everywhere.

use std::time::Duration;

/// Bytes with two decimals in the unit that fits: `512 B`, `1.50 kB`, `45.23 GB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if count < 1000 {
        return format!("{count} B");
    }
    // In hundredths of the unit, rounded, so that 999 999 B becomes 1.00 MB and not 1000.00 kB.
    let mut unit = 1000_u128;
    for name in UNITS {
        let hundredths = (u128::from(count) * 100 + unit / 2) / unit;
        if hundredths < 100_000 || name == "EB" {
            return format!("{}.{:02} {name}", hundredths / 100, hundredths % 100);
        }
        unit *= 1000;
    }
    format!("{count} B")
}

/// A duration in its two largest units: `43s`, `5m 10s`, `2h 5m`, `3d 4h`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// Whole per cent, rounded down, so that 100 means all of it; all of nothing is 100.
pub fn percent(done: u64, total: u64) -> u64 {
    let percent = (u128::from(done.min(total)) * 100).checked_div(u128::from(total));
    percent.and_then(|value| u64::try_from(value).ok()).unwrap_or(100)
}

/// Text from a host or a definition, fit for a terminal: control characters are shown as `\u{…}`, never sent.
pub fn printable(text: &str) -> String {
    let harmless = |c: char| !c.is_control();
    if text.chars().all(harmless) {
        return text.to_owned();
    }
    text.chars().map(|c| if harmless(c) { c.to_string() } else { c.escape_unicode().to_string() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_decimal_and_rounded() {
        for (count, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 kB"),
            (999_999, "1.00 MB"),
            (45_230_000_000, "45.23 GB"),
            (1_073_741_824, "1.07 GB"),
            (u64::MAX, "18.45 EB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn durations_have_two_units() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (310, "5m 10s"), (7500, "2h 5m"), (273_600, "3d 4h")] {
            assert_eq!(duration(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_hundred_per_cent_means_all_of_it() {
        assert_eq!(percent(0, 0), 100);
        assert_eq!(percent(999, 1000), 99);
        assert_eq!(percent(1000, 1000), 100);
        assert_eq!(percent(u64::MAX, u64::MAX), 100);
    }

    #[test]
    fn escape_sequences_never_reach_a_terminal() {
        assert_eq!(printable("web01"), "web01");
        assert_eq!(printable("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\u{a}");
    }
}
