//! Which firmware a host would start a VM with. Its code is the host's own and is not carried; the variables that are
//! carried only fit code like that of the source.

use std::collections::BTreeMap;

use journal_format::ChunkValue;

use crate::domain::documents;
use crate::transfer::{GatherSink, manifest};
use crate::world::{ChunkGeometry, Fault, HashJob, Host, Layer};

/// More than any firmware has.
const CODE_BYTES_MAX: u64 = 64 << 20;
const CHUNK_BYTES: u32 = 1 << 20;

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

/// Plain BLAKE3 of a file of that many bytes.
pub(super) fn root_of(host: &dyn Host, path: &str, below: Vec<Layer>, bytes: u64) -> Result<ChunkValue, Fault> {
    let geometry = ChunkGeometry { image_bytes: bytes, chunk_bytes: CHUNK_BYTES };
    let wanted = std::iter::once(0..geometry.chunk_count()).filter(|all| !all.is_empty()).collect();
    let (path, patches) = (path.to_owned(), Vec::new());
    let job = HashJob { path, inode: None, geometry, wanted, patches, below, reread: false };
    // 32 bytes for each MiB.
    let mut values = BTreeMap::new();
    host.hash_chunks(&job, &mut GatherSink(&mut values))?;
    Ok(manifest::root(geometry, &values))
}
