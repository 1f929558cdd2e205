//! The one bincode configuration of the format. Nothing may be encoded or decoded with another one.
//!
//! Integers are little-endian and of their own width, lengths are `u64`, variant numbers are `u32`: an independent
//! reader needs no table of varints.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes that one encoded value may have. A plan with ten definitions is far below.
pub const VALUE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Why bytes could not be made of a value, or a value of bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("{0} bytes, more than {VALUE_BYTES_MAX}")]
    TooLong(usize),
    #[error("{0}")]
    Encode(String),
    #[error("{0}")]
    Decode(String),
    #[error("{0} bytes left over")]
    Trailing(usize),
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<VALUE_BYTES_MAX>()
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, WireError> {
    let bytes = bincode::serde::encode_to_vec(value, config()).map_err(|error| WireError::Encode(error.to_string()))?;
    if bytes.len() > VALUE_BYTES_MAX { Err(WireError::TooLong(bytes.len())) } else { Ok(bytes) }
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    let (value, consumed) =
        bincode::serde::decode_from_slice(bytes, config()).map_err(|error| WireError::Decode(error.to_string()))?;
    if consumed == bytes.len() { Ok(value) } else { Err(WireError::Trailing(bytes.len() - consumed)) }
}
