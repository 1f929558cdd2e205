//! The images below a disk's own image, as their headers name them. A format is taken from the reference or from the
//! definition, never from the image itself.

use journal_format::{ImageFormat, ImageRoleV1};

use super::accounts::Accounts;
use super::source::look_at_file;
use super::{Below, FlattenedLayer, NamedAs, SourceFile, SourceImage};
use crate::domain::ChainLayer;
use crate::domain::qcow2::Header;
use crate::steps::host_record::parent_of;
use crate::world::{Fault, Host};

/// Images in one chain, at most. QEMU itself gets slow long before.
const CHAIN_IMAGES_MAX: u32 = 64;

/// Follows the chain below the file at `top`, whose definition names `written` below it. New images are added to
/// `files`; one that is there already (a base of two disks) is used again.
pub(super) fn follow(
    host: &dyn Host,
    accounts: &Accounts,
    files: &mut Vec<SourceFile>,
    top: usize,
    written: Option<&[ChainLayer]>,
) -> Result<(), Fault> {
    let ImageRoleV1::Disk { target } = files[top].role.clone() else { return Ok(()) };
    let mut at = top;
    for depth in 1..=CHAIN_IMAGES_MAX {
        let layer = match written {
            None => Written::Unsaid,
            Some(layers) => layers.get(depth as usize - 1).map_or(Written::Nothing, Written::Layer),
        };
        let reference = match reference_of(&files[at], layer) {
            Ok(Some(reference)) => reference,
            Ok(None) => return Ok(()),
            Err(why) => {
                files[at].below = Below::Refused(why);
                return Ok(());
            }
        };
        let role = ImageRoleV1::Layer { target: target.clone(), depth };
        let found = look_at_file(host, accounts, role, None, (&reference.path, NamedAs::File), reference.format)?;
        if let (Some(layer), Some(image)) = (layer.named(), found.image())
            && host.resolve(&layer.path)?.as_ref() != Some(&image.path)
        {
            files[at].below =
                Below::Refused(format!("its header names {}, and the definition {}", reference.path, layer.path));
            return Ok(());
        }
        let known = found
            .image()
            .and_then(|image| files.iter().position(|file| file.image().is_some_and(|other| other.path == image.path)));
        if known.is_some_and(|known| matches!(files[known].role, ImageRoleV1::Disk { .. })) || known == Some(at) {
            files[at].below = Below::Refused(format!("{} is another disk of this VM, or itself", reference.path));
            return Ok(());
        }
        let is_known = known.is_some();
        let next = known.unwrap_or(files.len());
        if !is_known {
            files.push(found);
        }
        files[at].below = Below::Image { reference: reference.written, file: next };
        if is_known {
            // What is below it was followed with the first disk, or the chain bites its own tail.
            return Ok(());
        }
        at = next;
    }
    files[at].below = too_many();
    Ok(())
}

/// The files as they are where chains are flattened: what lies below a disk is read through it, and is no file of its own.
pub(super) fn flattened(files: &[SourceFile]) -> Vec<SourceFile> {
    let tops = files.iter().filter(|file| !matches!(file.role, ImageRoleV1::Layer { .. }));
    tops.map(|top| SourceFile { below: refused(&top.below), flattened: layers_of(files, top), ..top.clone() }).collect()
}

/// What a disk stands on, from the top down. A base of two disks is there for each.
fn layers_of(files: &[SourceFile], top: &SourceFile) -> Vec<FlattenedLayer> {
    let ImageRoleV1::Disk { target } = &top.role else { return Vec::new() };
    let mut layers = Vec::new();
    let mut below = &top.below;
    // With the top, as many as are followed.
    for depth in 1..CHAIN_IMAGES_MAX {
        let Below::Image { reference, file } = below else { return layers };
        let Some(file) = files.get(*file) else { return layers };
        below = &file.below;
        let role = ImageRoleV1::Layer { target: target.clone(), depth };
        let file = SourceFile { role, below: refused(below), ..file.clone() };
        layers.push(FlattenedLayer { reference: reference.clone(), file });
    }
    // Too deep, or it bites its own tail.
    if let (Below::Image { .. }, Some(last)) = (below, layers.last_mut()) {
        last.file.below = too_many();
    }
    layers
}

fn too_many() -> Below {
    Below::Refused(format!("the chain has more than {CHAIN_IMAGES_MAX} images"))
}

fn refused(below: &Below) -> Below {
    match below {
        Below::Nothing | Below::Image { .. } => Below::Nothing,
        Below::Refused(why) => Below::Refused(why.clone()),
    }
}

struct Reference {
    /// As the header has it.
    written: String,
    path: String,
    format: ImageFormat,
}

/// What the definition says of the image below another one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Written<'a> {
    Unsaid,
    /// That there is none.
    Nothing,
    Layer(&'a ChainLayer),
}

impl<'a> Written<'a> {
    fn named(self) -> Option<&'a ChainLayer> {
        match self {
            Self::Layer(layer) => Some(layer),
            Self::Unsaid | Self::Nothing => None,
        }
    }
}

/// What an image says lies below it. `layer`: what the definition says of that.
fn reference_of(file: &SourceFile, layer: Written<'_>) -> Result<Option<Reference>, String> {
    let SourceImage::Readable(image) = &file.image else { return Ok(None) };
    if file.format != ImageFormat::Qcow2 {
        return Ok(None);
    }
    // A header that cannot be read is a problem of its own.
    let Ok(header) = Header::read(&image.head) else { return Ok(None) };
    let Some(written) = header.backing_file else {
        return match layer.named() {
            Some(layer) => Err(format!("the definition names {} below it, and its header nothing", layer.path)),
            None => Ok(None),
        };
    };
    if layer == Written::Nothing {
        return Err(format!("its header names {written} below it, and the definition says that there is nothing"));
    }
    let plain = written.strip_prefix("file:").unwrap_or(&written);
    if plain.starts_with("json:") || plain.split('/').next().is_some_and(|first| first.contains(':')) {
        return Err(format!("it is on top of {written}, which is not the name of a file"));
    }
    let path = if plain.starts_with('/') { plain.to_owned() } else { format!("{}/{plain}", parent_of(&file.path)) };
    let named = header.backing_format.as_deref().or_else(|| layer.named().and_then(|layer| layer.format.as_deref()));
    let format = match named {
        Some("raw") => ImageFormat::Raw,
        Some("qcow2") => ImageFormat::Qcow2,
        Some(other) => return Err(format!("it is on top of {written}, an image of format {other:?}")),
        None => {
            return Err(format!(
                "it is on top of {written}, and nothing says of which format that is (`qemu-img rebase -u -F FORMAT -b {written} IMAGE` does)"
            ));
        }
    };
    Ok(Some(Reference { written, path, format }))
}
