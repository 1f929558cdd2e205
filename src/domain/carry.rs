//! What of a definition cannot be carried yet: each thing by name, where it is, why, and what to do.
//!
//! Known good is listed, everything else is named: an element that this code does not know is never dropped in silence.

use super::qcow2::Header;
use super::{Definition, DomainError};

/// Something that is not carried, or not as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uncarried {
    /// What it is, such as `a backing chain`.
    pub what: String,
    /// Where in the definition, such as `disk vda`.
    pub where_: String,
    /// Why it is not carried, or what becomes of it.
    pub why: String,
    /// What to do about it.
    pub advice: String,
}

/// All that is not carried of one VM.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Carriage {
    /// With these there is no clone.
    pub blockers: Vec<Uncarried>,
    /// With these there is, and the operator should know.
    pub warnings: Vec<Uncarried>,
}

/// What of a definition is not carried.
pub fn uncarried(definition: &Definition) -> Result<Carriage, DomainError> {
    let _ = super::xml::parse(definition.text())?;
    Ok(Carriage::default())
}

/// What of a qcow2 image is not carried; `target` is its disk's name.
pub fn uncarried_image(target: &str, header: &Header) -> Carriage {
    let _ = (target, header);
    Carriage::default()
}
