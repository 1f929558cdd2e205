//! An image of the source as it is now: what it is read from, and what tells whether it changed.

use journal_format::{ImageV1, SourceKindV1, SourceStampV1};

use super::Context;
use crate::domain::qcow2::{HEADER_READ_BYTES, Header};
use crate::failure::Failure;
use crate::world::{FileStat, Host, Layer};

/// Bytes of a digest that a stamp has room for: a positive number.
const DIGEST_BYTES: usize = 15;

/// The images below that are read through it.
pub(super) fn below(image: &ImageV1) -> Vec<Layer> {
    let layers = image.flattened.iter();
    layers.map(|layer| Layer { path: layer.source_path.clone(), format: layer.format }).collect()
}

/// The real paths of all that is read of an image, its own first.
pub fn paths_read(image: &ImageV1) -> impl Iterator<Item = &str> {
    std::iter::once(&image.source_path)
        .chain(image.flattened.iter().map(|layer| &layer.source_path))
        .map(String::as_str)
}

/// An image of the source that is not there: after a reboot its filesystem may only not be mounted yet.
pub fn source_not_there(source: &dyn Host, path: &str) -> Failure {
    Failure::suspend(
        format!("{path} on {} is not there", source.name()),
        "mount its filesystem or bring the image back, then resume; if it is gone for good, roll back",
    )
}

/// The source's image as its ledger knows it.
pub(super) fn known_stamp(context: &Context, image: u32) -> Result<SourceStampV1, Failure> {
    let source = context.recorder.history().sources.get(image as usize);
    source.map(|source| source.stamp).ok_or_else(|| Failure::stop(None, "a plan with this image", "none"))
}

/// The source's image as it is now, with the stamp of all that is read of it.
pub fn look_at_source(context: &Context, image: u32) -> Result<(FileStat, SourceStampV1), Failure> {
    let (source, planned) = (context.source()?, context.image(image)?);
    let stat = |path: &str| source.stat(path)?.ok_or_else(|| source_not_there(source.as_ref(), path));
    let path = &planned.source_path;
    let own = stat(path)?;
    if planned.flattened.is_empty() {
        return Ok((own, stamp_of(planned.source_kind, &own)));
    }
    let mut stats = vec![own];
    for layer in &planned.flattened {
        stats.push(stat(&layer.source_path)?);
    }
    let head = source.read(path, HEADER_READ_BYTES as u64)?.unwrap_or_default();
    let header = Header::read(&head).map_err(|error| {
        let what = format!("{path} on {}: {error}", source.name());
        Failure::turn_back(what, "look at it with `qemu-img check`, then clone again")
    })?;
    Ok((own, stamp_of_chain(planned.source_kind, header.virtual_size_bytes, &stats)))
}

/// What tells whether an image of the source changed. The times of a device's node say nothing of its bytes.
pub fn stamp_of(kind: SourceKindV1, stat: &FileStat) -> SourceStampV1 {
    match kind {
        SourceKindV1::File => SourceStampV1 { size: stat.size, mtime_ns: stat.mtime_ns, ctime_ns: stat.ctime_ns },
        SourceKindV1::Device => SourceStampV1 { size: stat.size, mtime_ns: 0, ctime_ns: 0 },
    }
}

/// What tells whether any image of a chain changed that is read as one, of which a guest sees so many bytes. The latest time would
/// not: a layer may have been put back from an older copy.
pub fn stamp_of_chain(kind: SourceKindV1, guest_bytes: u64, layers: &[FileStat]) -> SourceStampV1 {
    match kind {
        SourceKindV1::File => SourceStampV1 {
            size: guest_bytes,
            mtime_ns: digest(layers, |layer| layer.mtime_ns),
            ctime_ns: digest(layers, |layer| layer.ctime_ns),
        },
        SourceKindV1::Device => SourceStampV1 { size: guest_bytes, mtime_ns: 0, ctime_ns: 0 },
    }
}

/// A number made of the size and one time of each layer.
fn digest(layers: &[FileStat], time: impl Fn(&FileStat) -> i128) -> i128 {
    let mut hasher = blake3::Hasher::new();
    for layer in layers {
        hasher.update(&layer.size.to_le_bytes());
        hasher.update(&time(layer).to_le_bytes());
    }
    let first = hasher.finalize().as_bytes()[..DIGEST_BYTES].iter().fold(0, |all, byte| all << 8 | u128::from(*byte));
    i128::try_from(first).unwrap_or(i128::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use journal_format::Inode;

    use super::*;
    use crate::world::FileKind;

    fn stat(size: u64, mtime_ns: i128, ctime_ns: i128) -> FileStat {
        FileStat {
            kind: FileKind::File,
            inode: Inode(1),
            device: 1,
            size,
            allocated: size,
            mode: 0o600,
            uid: 0,
            gid: 0,
            links: 1,
            mtime_ns,
            ctime_ns,
        }
    }

    #[test]
    fn a_change_of_any_layer_changes_the_stamp_of_its_chain() {
        let stamp = |layers: &[FileStat]| stamp_of_chain(SourceKindV1::File, 1 << 30, layers);
        let layers = [stat(1, 100, 100), stat(2, 50, 50), stat(3, 10, 10)];
        let before = stamp(&layers);
        assert_eq!(before.size, 1 << 30);
        for at in 0..layers.len() {
            let was = layers[at];
            let mut now = layers;
            // Older than it was, and older than the others.
            now[at] = FileStat { mtime_ns: 5, ..was };
            assert_ne!(stamp(&now).mtime_ns, before.mtime_ns, "layer {at}");
            now[at] = FileStat { size: 9, ..was };
            assert_ne!(stamp(&now).mtime_ns, before.mtime_ns, "layer {at}");
            now[at] = FileStat { ctime_ns: 200, ..was };
            assert_eq!(stamp(&now).mtime_ns, before.mtime_ns, "layer {at}: only its ctime");
            assert_ne!(stamp(&now).ctime_ns, before.ctime_ns, "layer {at}");
        }
        let device = stamp_of_chain(SourceKindV1::Device, 1 << 30, &layers);
        assert_eq!(device, SourceStampV1 { size: 1 << 30, mtime_ns: 0, ctime_ns: 0 });
    }
}
