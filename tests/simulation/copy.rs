//! Images by chunks between two simulated hosts: each chunk read, written, synced and reported is an operation of its own.

use std::convert::Infallible;
use std::ops::Range;

use journal_format::{ChunkRecordV1, ChunkState, ChunkValue, ImageFormat, Inode};
use kvm_clone::world::{
    BATCH_CHUNKS_MAX, ChunkGeometry, ChunkSink, CopyJob, CopySummary, Fault, FaultKind, FileKind, FileStat, HashJob,
    Layer, Patch, Side, World, ZeroChunks,
};
use kvm_clone_agent::flat::{Chain, ChainError, LayerFile};

use crate::content::Content;
use crate::filesystem::{Filesystem, Refusal};
use crate::host::{Kind, SimHost};
use crate::world::SimWorld;

/// The subtree value of one chunk.
pub fn chunk_value(geometry: ChunkGeometry, chunk: u64, bytes: &[u8]) -> ChunkValue {
    use blake3::hazmat::HasherExt;
    if geometry.chunk_count() == 1 {
        return ChunkValue(*blake3::hash(bytes).as_bytes());
    }
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(chunk * u64::from(geometry.chunk_bytes));
    hasher.update(bytes);
    ChunkValue(hasher.finalize_non_root())
}

fn state_of(geometry: ChunkGeometry, chunk: u64, bytes: &[u8]) -> ChunkState {
    if bytes.iter().all(|byte| *byte == 0) {
        return ChunkState::Zero;
    }
    ChunkState::Data(chunk_value(geometry, chunk, bytes))
}

/// Bytes of one chunk, and whether they are a hole.
fn read_chunk(
    host: &SimHost,
    (path, below): (&str, &[Layer]),
    inode: Option<Inode>,
    geometry: ChunkGeometry,
    chunk: u64,
    patches: &[Patch],
) -> Result<(Vec<u8>, bool), Fault> {
    let (owned, below, patches) = (path.to_owned(), below.to_vec(), patches.to_vec());
    host.look(&|| format!("read chunk {chunk} of {path}"), move |machine, agent| {
        if !below.is_empty() {
            let (bytes, hole) = read_chain(&machine.files, &owned, &below, geometry, chunk)?;
            machine.agents[agent].counts.image_bytes_read += bytes.len() as u64;
            return Ok((bytes, hole));
        }
        let stat = machine.files.stat(&owned).ok_or((FaultKind::NotFound, "no such file".to_owned()))?;
        if inode.is_some_and(|inode| inode != stat.inode) || !is_as_large(&stat, geometry) {
            return Err((FaultKind::Changed, "another file, or another size".to_owned()));
        }
        let start = chunk * u64::from(geometry.chunk_bytes);
        let content = machine.files.content(&owned).ok_or((FaultKind::Unsupported, "not a file".to_owned()))?;
        let len = geometry.chunk_len(chunk);
        let mut bytes = content.read(start, len);
        for (at, byte) in patches.iter().flat_map(|patch| (patch.offset..).zip(&patch.bytes)) {
            if let Some(place) = at.checked_sub(start).and_then(|at| bytes.get_mut(usize::try_from(at).unwrap())) {
                *place = *byte;
            }
        }
        let hole = content.is_hole(&(start..start + len));
        if !hole {
            machine.agents[agent].counts.image_bytes_read += len;
        }
        Ok((bytes, hole))
    })
}

/// Bytes of one chunk as a guest sees it through a chain, and whether they are a hole: by the very code of the agent.
fn read_chain(
    files: &Filesystem,
    top: &str,
    below: &[Layer],
    geometry: ChunkGeometry,
    chunk: u64,
) -> Result<(Vec<u8>, bool), Refusal> {
    let top = Layer { path: top.to_owned(), format: ImageFormat::Qcow2 };
    let open = |layer: &Layer| match files.stat(&layer.path) {
        None => Err((FaultKind::NotFound, format!("{}: no such file", layer.path))),
        Some(_) => files
            .content(&layer.path)
            .map(|content| (InMemory(content), layer.format))
            .ok_or_else(|| (FaultKind::Unsupported, "not a file".to_owned())),
    };
    let layers = std::iter::once(&top).chain(below).map(open).collect::<Result<Vec<_>, _>>()?;
    let unreadable = |error: ChainError<Infallible>| (FaultKind::Unsupported, format!("{error:?}"));
    let chain = Chain::open(layers).map_err(unreadable)?;
    if chain.bytes() != geometry.image_bytes {
        return Err((FaultKind::Changed, "another size".to_owned()));
    }
    let start = chunk * u64::from(geometry.chunk_bytes);
    let len = geometry.chunk_len(chunk);
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    chain.read(start, &mut bytes).map_err(unreadable)?;
    let hole = chain.data_from(start).map_err(unreadable)?.start >= start + len;
    Ok((bytes, hole))
}

struct InMemory<'a>(&'a Content);

impl LayerFile for InMemory<'_> {
    type Error = Infallible;

    fn bytes(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, position: u64, bytes: &mut [u8]) -> Result<(), Infallible> {
        bytes.copy_from_slice(&self.0.read(position, bytes.len() as u64));
        Ok(())
    }

    fn data_from(&self, position: u64) -> Result<Range<u64>, Infallible> {
        Ok(self.0.data_from(position))
    }
}

/// A file is as large as its image; a device may be larger.
fn is_as_large(stat: &FileStat, geometry: ChunkGeometry) -> bool {
    let larger = stat.kind == FileKind::BlockDevice && stat.size > geometry.image_bytes;
    larger || stat.size == geometry.image_bytes
}

/// Values of chunks of a file, ascending.
pub fn hash(host: &SimHost, job: &HashJob, sink: &mut dyn ChunkSink) -> Result<(), Fault> {
    let operation = || format!("hash {}", job.path);
    let closed = || host.fault(&operation, FaultKind::Sink, "the caller wants no more");
    let mut batch = Vec::new();
    for chunk in job.wanted.iter().cloned().flatten() {
        let (bytes, hole) = read_chunk(host, (&job.path, &job.below), job.inode, job.geometry, chunk, &job.patches)?;
        if hole {
            if !batch.is_empty() {
                sink.chunks(&std::mem::take(&mut batch)).map_err(|_| closed())?;
            }
            sink.holes(chunk..chunk + 1).map_err(|_| closed())?;
            continue;
        }
        batch.push(ChunkRecordV1 { index: chunk, state: state_of(job.geometry, chunk, &bytes) });
        if batch.len() == BATCH_CHUNKS_MAX {
            sink.chunks(&std::mem::take(&mut batch)).map_err(|_| closed())?;
        }
    }
    if !batch.is_empty() {
        sink.chunks(&batch).map_err(|_| closed())?;
    }
    Ok(())
}

/// A copy from the source to the destination.
pub fn copy(world: &SimWorld, job: &CopyJob, sink: &mut dyn ChunkSink) -> Result<CopySummary, Fault> {
    let (source, destination) = (world.host(Side::Source)?, world.host(Side::Destination)?);
    let mut copy = Copy { job, destination: &destination, sink, unsynced: Vec::new() };
    let mut summary = CopySummary::default();
    for chunk in job.wanted.iter().cloned().flatten() {
        world.check_interrupted()?;
        let (bytes, hole) = read_chunk(&source, (&job.from, &job.below), None, job.geometry, chunk, &job.patches)?;
        let zero = bytes.iter().all(|byte| *byte == 0);
        match job.zero_chunks {
            ZeroChunks::Skip if hole => copy.report_hole(chunk)?,
            // Nothing was ever there, so nothing has to become durable.
            ZeroChunks::Skip if zero => copy.unsynced.push(ChunkRecordV1 { index: chunk, state: ChunkState::Zero }),
            ZeroChunks::Punch if zero => copy.punch(chunk)?,
            _ => {
                summary.sent_bytes += bytes.len() as u64;
                copy.write(chunk, bytes)?;
            }
        }
        let batch_chunks = 1 + world.draw(3);
        if copy.unsynced.len() as u64 >= batch_chunks {
            copy.sync_and_report()?;
        }
    }
    copy.sync_and_report()?;
    Ok(summary)
}

/// The destination's half of a copy.
struct Copy<'a> {
    job: &'a CopyJob,
    destination: &'a SimHost,
    sink: &'a mut dyn ChunkSink,
    /// Written, not durable, not reported.
    unsynced: Vec<ChunkRecordV1>,
}

impl Copy<'_> {
    fn closed(&self) -> Fault {
        self.destination.fault(&|| format!("copy {}", self.job.from), FaultKind::Sink, "the caller wants no more")
    }

    fn start_of(&self, chunk: u64) -> u64 {
        chunk * u64::from(self.job.geometry.chunk_bytes)
    }

    fn report_hole(&mut self, chunk: u64) -> Result<(), Fault> {
        self.sink.holes(chunk..chunk + 1).map_err(|_| self.closed())
    }

    fn punch(&mut self, chunk: u64) -> Result<(), Fault> {
        let start = self.start_of(chunk);
        let end = start + self.job.geometry.chunk_len(chunk);
        let (path, inode) = (self.job.to.clone(), self.job.to_inode);
        let told = || format!("punch chunk {chunk} of {}", self.job.to);
        self.destination.operate(&told, &Kind::Change(&[&self.job.to]), move |machine, agent| {
            machine.check_held(agent, &path)?;
            machine.files.punch(&path, inode, start..end)
        })?;
        self.unsynced.push(ChunkRecordV1 { index: chunk, state: ChunkState::Zero });
        Ok(())
    }

    fn write(&mut self, chunk: u64, bytes: Vec<u8>) -> Result<(), Fault> {
        let start = self.start_of(chunk);
        let state = state_of(self.job.geometry, chunk, &bytes);
        let mut bytes = bytes;
        if self.destination.world.with(|core| std::mem::take(&mut core.flips_next_write)) {
            bytes[0] = !bytes[0];
        }
        let (path, inode) = (self.job.to.clone(), self.job.to_inode);
        let told = || format!("write chunk {chunk} of {}", self.job.to);
        self.destination.operate(&told, &Kind::Change(&[&self.job.to]), move |machine, agent| {
            machine.check_held(agent, &path)?;
            machine.agents[agent].counts.image_bytes_written += bytes.len() as u64;
            machine.files.write_at(&path, inode, start, &bytes)
        })?;
        self.unsynced.push(ChunkRecordV1 { index: chunk, state });
        Ok(())
    }

    /// `fdatasync`: the times of the file are not durable yet.
    fn sync_and_report(&mut self) -> Result<(), Fault> {
        if self.unsynced.is_empty() {
            return Ok(());
        }
        let path = self.job.to.clone();
        let told = || format!("fdatasync {}", self.job.to);
        self.destination.look(&told, move |machine, _| machine.files.sync_data(&path))?;
        let durable = std::mem::take(&mut self.unsynced);
        self.sink.chunks(&durable).map_err(|_| self.closed())?;
        if !self.job.read_back {
            return Ok(());
        }
        let mut records = Vec::new();
        for ChunkRecordV1 { index, .. } in durable.iter().filter(|record| record.state != ChunkState::Zero) {
            let CopyJob { to, to_inode, geometry, .. } = self.job;
            let (bytes, _) = read_chunk(self.destination, (to, &[]), Some(*to_inode), *geometry, *index, &[])?;
            self.destination.world.has_read_back(to, *index);
            records.push(ChunkRecordV1 { index: *index, state: state_of(*geometry, *index, &bytes) });
        }
        if records.is_empty() {
            return Ok(());
        }
        self.sink.read_back(&records).map_err(|_| self.closed())
    }
}
