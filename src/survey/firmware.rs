//! Which firmware a host would start a VM with. Its code is the host's own and is not carried; the variables that are
//! carried only fit code like that of the source.

use journal_format::ChunkValue;

use crate::domain::documents;
use crate::transfer::root_of;
use crate::world::{Fault, Host};

/// More than any firmware has.
const CODE_BYTES_MAX: u64 = 64 << 20;

/// The firmware's code on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirmwareFacts {
    /// Its file.
    pub path: String,
    /// Its bytes; `None`: there is no such file.
    pub bytes: Option<u64>,
    /// Plain BLAKE3 of it, where it has a size that firmware can have.
    pub root: Option<ChunkValue>,
}

/// The firmware in flash memory that a command line of libvirt's starts; `None` when it starts another kind.
pub(super) fn look(host: &dyn Host, command: &str) -> Result<Option<FirmwareFacts>, Fault> {
    let Some(path) = documents::flash_code(command) else { return Ok(None) };
    let real = host.resolve(&path)?;
    let stat = real.as_deref().map_or(Ok(None), |real| host.stat(real))?;
    let (Some(real), Some(stat)) = (real, stat) else {
        return Ok(Some(FirmwareFacts { path, bytes: None, root: None }));
    };
    let root = if stat.size <= CODE_BYTES_MAX { Some(root_of(host, &real, Vec::new(), stat.size)?) } else { None };
    Ok(Some(FirmwareFacts { path, bytes: Some(stat.size), root }))
}
