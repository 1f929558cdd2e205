//! How much room the clone needs, per filesystem of the destination, and the words for too little of it.

use std::fmt;

/// What is kept free beyond the bytes to be written, in percent.
pub const SAFETY_MARGIN_PERCENT: u64 = 15;
/// Bytes in one hundredth of a GB: what the messages are rounded to.
const CENTIGIGABYTE_BYTES: u64 = 10_000_000;

/// Bytes to be allocated, with the safety margin, rounded up.
pub fn with_margin(bytes: u64) -> u64 {
    let margin = u128::from(bytes) * u128::from(100 + SAFETY_MARGIN_PERCENT);
    u64::try_from(margin.div_ceil(100)).unwrap_or(u64::MAX)
}

/// A filesystem that is too small. Its text is the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// The host's name.
    pub host: String,
    /// A directory on the filesystem.
    pub path: String,
    /// Bytes, margin included.
    pub required_bytes: u64,
    /// Bytes.
    pub available_bytes: u64,
}

impl Shortage {
    /// A shortage, if these bytes (margin not yet included) do not fit.
    pub fn of(host: &str, path: &str, allocated_bytes: u64, available_bytes: u64) -> Option<Self> {
        let required_bytes = with_margin(allocated_bytes);
        (required_bytes > available_bytes).then(|| Self {
            host: host.to_owned(),
            path: path.to_owned(),
            required_bytes,
            available_bytes,
        })
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Rounded so that the three numbers add up and never promise too much: what is needed up, what is there down.
        let required = self.required_bytes.div_ceil(CENTIGIGABYTE_BYTES);
        let available = self.available_bytes / CENTIGIGABYTE_BYTES;
        writeln!(
            f,
            "Insufficient disk space on {} ({}). Required: {} (including {SAFETY_MARGIN_PERCENT}% safety margin), Available: {}",
            self.host,
            self.path,
            Centigigabytes(required),
            Centigigabytes(available),
        )?;
        write!(f, "Please free up at least {} on {} before retrying.", Centigigabytes(required - available), self.host)
    }
}

/// Hundredths of a GB (10^9 bytes).
struct Centigigabytes(u64);

impl fmt::Display for Centigigabytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02} GB", self.0 / 100, self.0 % 100)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_message_has_the_form_of_the_design() {
        // 45,652,173,913 bytes × 1.15 = 52.50 GB.
        let shortage = Shortage::of("kvm2", "/var/lib/libvirt/images", 45_652_173_913, 45_230_000_000).unwrap();
        assert_eq!(
            shortage.to_string(),
            "Insufficient disk space on kvm2 (/var/lib/libvirt/images). Required: 52.50 GB (including 15% safety \
             margin), Available: 45.23 GB\nPlease free up at least 7.27 GB on kvm2 before retrying."
        );
    }

    #[test]
    fn the_margin_decides() {
        assert_eq!(Shortage::of("h", "/p", 100, 115), None);
        assert!(Shortage::of("h", "/p", 100, 114).is_some());
        assert_eq!(with_margin(1), 2, "rounded up");
        assert_eq!(with_margin(u64::MAX), u64::MAX);
        assert_eq!(Shortage::of("h", "/p", 0, 0), None);
    }

    #[test]
    fn a_shortage_of_one_byte_still_asks_for_something() {
        let shortage = Shortage::of("h", "/p", 1_000_000_000, 1_149_999_999).unwrap();
        assert!(shortage.to_string().contains("at least 0.01 GB"), "{shortage}");
    }
}
