//! Rates and sizes, as they are typed.

use std::fmt;
use std::str::FromStr;

use super::RequestError;

/// Bytes of a chunk when nothing else is asked for.
pub const CHUNK_SIZE_DEFAULT_BYTES: u32 = 1 << 20;
/// Smallest chunk that can be asked for.
pub const CHUNK_SIZE_MIN_BYTES: u32 = 64 << 10;
/// Largest chunk that can be asked for.
pub const CHUNK_SIZE_MAX_BYTES: u32 = 16 << 20;
/// Slowest transfer that can be asked for: below it a time-out would come first.
pub const RATE_MIN_BYTES_PER_SECOND: u64 = 10_000;
/// Digits behind the point that a size or rate may have.
const FRACTION_DIGITS_MAX: usize = 9;

/// A rate in bytes per second. Written `100M`, `1.5G` (bytes) or `800Mbit`; units are decimal, `/s` may follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteRate(u64);

impl ByteRate {
    /// Bytes per second.
    pub fn bytes_per_second(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteRate {
    type Err = RequestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = |why| RequestError::Rate { text: text.to_owned(), why };
        let amount = text.strip_suffix("/s").unwrap_or(text);
        let (number, unit) = split_number(amount);
        let (prefix, divisor) = match unit.strip_suffix("bit") {
            Some(prefix) => (prefix, 8),
            None => (unit.strip_suffix('B').unwrap_or(unit), 1),
        };
        let factor = match prefix {
            "" => 1,
            "k" | "K" => 1_000,
            "m" | "M" => 1_000_000,
            "g" | "G" => 1_000_000_000,
            _ => return Err(bad("the unit is none of K, M, G, Kbit, Mbit, Gbit")),
        };
        let bytes = scaled(number, factor).ok_or_else(|| bad("there is no number that can be used"))? / divisor;
        if bytes < RATE_MIN_BYTES_PER_SECOND {
            return Err(bad("it is below 10 KB per second; leave the limit out for no limit"));
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for ByteRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", crate::report::quantity::bytes(self.0))
    }
}

/// Bytes of a chunk: a power of two from 64 KiB to 16 MiB. Written `64K`, `1M`, `1MiB` or in bytes; units are binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChunkSize(u32);

impl ChunkSize {
    /// Bytes.
    pub fn bytes(self) -> u32 {
        self.0
    }
}

impl Default for ChunkSize {
    fn default() -> Self {
        Self(CHUNK_SIZE_DEFAULT_BYTES)
    }
}

impl FromStr for ChunkSize {
    type Err = RequestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || RequestError::ChunkSize { text: text.to_owned() };
        let (number, unit) = split_number(text);
        let factor = match unit {
            "" => 1,
            "k" | "K" | "KiB" => 1 << 10,
            "m" | "M" | "MiB" => 1 << 20,
            _ => return Err(bad()),
        };
        let bytes = scaled(number, factor).and_then(|bytes| u32::try_from(bytes).ok()).ok_or_else(bad)?;
        if !bytes.is_power_of_two() || !(CHUNK_SIZE_MIN_BYTES..=CHUNK_SIZE_MAX_BYTES).contains(&bytes) {
            return Err(bad());
        }
        Ok(Self(bytes))
    }
}

/// Cuts a text behind its leading digits and point.
fn split_number(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len()))
}

/// A decimal number times a factor, exactly, rounded down; `None` when it is no number or too large.
fn scaled(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if fraction.len() > FRACTION_DIGITS_MAX {
        return None;
    }
    let numerator: u128 = format!("{whole}{fraction}").parse().ok()?;
    // Both sides of a point need a digit: `.5M` and `5.M` are more likely slips than numbers.
    if whole.is_empty() || fraction.is_empty() {
        return None;
    }
    let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    u64::try_from(numerator.checked_mul(u128::from(factor))? / scale).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn rates_are_decimal_and_exact() {
        for (text, bytes) in [
            ("100M", 100_000_000),
            ("1.5G", 1_500_000_000),
            ("800Mbit", 100_000_000),
            ("2.5Gbit/s", 312_500_000),
            ("64k", 64_000),
            ("100MB/s", 100_000_000),
            ("12345", 12_345),
            ("0.000010G", 10_000),
        ] {
            assert_eq!(text.parse::<ByteRate>().unwrap().bytes_per_second(), bytes, "{text}");
        }
    }

    #[test]
    fn other_rates_are_refused() {
        for text in [
            "",
            "M",
            "0",
            "0M",
            "9999",
            "-5M",
            "1.5.0M",
            ".5M",
            "5.M",
            "10X",
            "1e9",
            "10MiB",
            "1.0000000001G",
            "99999999999999999999G",
            "10 M",
            "٣M",
        ] {
            assert!(matches!(text.parse::<ByteRate>(), Err(RequestError::Rate { .. })), "{text}");
        }
    }

    #[test]
    fn chunk_sizes_are_powers_of_two_within_bounds() {
        for (text, bytes) in [
            ("64K", 65_536),
            ("1M", 1 << 20),
            ("16M", 16 << 20),
            ("1048576", 1 << 20),
            ("0.5M", 512 << 10),
            ("2MiB", 2 << 20),
        ] {
            assert_eq!(text.parse::<ChunkSize>().unwrap().bytes(), bytes, "{text}");
        }
        for text in ["", "0", "32K", "32M", "3M", "1000000", "1G", "M", "1MB"] {
            assert!(matches!(text.parse::<ChunkSize>(), Err(RequestError::ChunkSize { .. })), "{text}");
        }
    }
}
