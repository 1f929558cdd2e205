//! Domain XML: read, rewrite by spans, and what of it can be carried.
//!
//! Text in, text out: nothing here opens a file or asks libvirt. What is not changed stays byte for byte, and no input,
//! however hostile, may panic, recurse without bound or take more than linear memory.

pub mod carry;
pub mod compare;
pub mod definition;
pub mod differences;
pub mod documents;
pub mod leave_behind;
pub mod metadata;
pub mod name;
pub mod named;
pub mod places;
pub mod qcow2;
pub mod rewrite;
pub mod snapshot;
mod xml;

pub use carry::{Carriage, Droppable, Uncarried, uncarried, uncarried_image, unflattened_image};
pub use compare::{ReadBackError, read_back, same};
pub use definition::{
    ChainLayer, Definition, Disk, DiskDevice, DiskSource, Graphics, Interface, InterfaceSource, Os, Tpm, Variables,
};
pub use differences::{Difference, differences};
pub use leave_behind::leave_behind;
pub use metadata::{CloneMark, DiskMark, ImageMark, MarkState, SourceMark};
pub use name::{DomainName, NameError};
pub use rewrite::{Change, Identity, Rewrite, rewrite};
pub use snapshot::SnapshotDefinition;

/// Why a definition cannot be read or rewritten.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DomainError {
    /// Larger than what libvirt itself moves in one call.
    #[error("the definition has {bytes} bytes, more than the {max} that libvirt itself carries in one call")]
    TooLarge {
        /// Its bytes.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// Not well-formed, or with a document type declaration, which is never read.
    #[error("the definition is not well-formed XML: {why}")]
    NotXml {
        /// What the parser said, with line and column.
        why: String,
    },
    /// Elements nested, or attributes heaped, beyond anything libvirt writes.
    #[error("the definition has {what}, more than the {max} that are read")]
    Excessive {
        /// Of what there is too much.
        what: &'static str,
        /// The bound.
        max: usize,
    },
    /// The root element is another one.
    #[error("the document describes <{found}>, not a <domain>")]
    NotADomain {
        /// The root element's name.
        found: String,
    },
    /// There is more than one of something that a domain has once.
    #[error("the definition has more than one <{what}>, and which of them counts cannot be said")]
    Repeated {
        /// The element's name.
        what: &'static str,
    },
    /// Something that every definition of libvirt's has is not there.
    #[error("the definition has no {what}")]
    Missing {
        /// What.
        what: String,
    },
    /// Something has a value that means nothing.
    #[error("the definition's {what} is {value:?}, which is not {expected}")]
    BadValue {
        /// Where.
        what: String,
        /// What stands there.
        value: String,
        /// What should.
        expected: &'static str,
    },
    /// A rewrite names a disk, interface or element that the definition does not have.
    #[error("the rewrite names {what}, which the definition does not have")]
    NoSuchTarget {
        /// What it names.
        what: String,
    },
    /// XML has no way to write this character.
    #[error("{what} {value:?} holds a character that XML cannot express")]
    Inexpressible {
        /// What it was meant for.
        what: String,
        /// The value.
        value: String,
    },
    /// Two edits of one rewrite touch the same bytes.
    #[error("two edits of one rewrite overlap at byte {at}")]
    Overlap {
        /// Where the second begins.
        at: usize,
    },
    /// Our own metadata element is there and cannot be read.
    #[error("kvm-clone's metadata element is damaged: {why}")]
    BadMark {
        /// What is missing or wrong.
        why: String,
    },
}
