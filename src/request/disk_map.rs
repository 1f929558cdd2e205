//! `--disk-map TARGET=POOL/NAME`, `TARGET=/ABS/PATH` and `TARGET=/dev/DEVICE`: where one disk's image goes, and under which name.

use std::fmt;
use std::str::FromStr;

use super::{RequestError, Target};

/// A file name has at most so many bytes on every filesystem that is used here.
const NAME_BYTES_MAX: usize = 255;
/// Where devices are.
const DEVICES: &str = "/dev/";
/// No path of a device is longer.
const PATH_BYTES_MAX: usize = 1024;
/// Staging is kept under this name in each directory.
const STAGING: &str = ".kvm-clone";

/// A disk of the source VM, and where its image goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskMapping {
    /// Target name in the source's definition, such as `vda`.
    pub target: String,
    /// Where.
    pub to: DiskPlace,
}

/// Where the image of a mapped disk goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskPlace {
    /// Into the directory of a pool.
    Volume {
        /// The pool.
        pool: String,
        /// The file's name.
        name: String,
    },
    /// Into a directory, which must exist.
    File {
        /// The directory: absolute, in its shortest form.
        directory: String,
        /// The file's name.
        name: String,
    },
    /// Onto a block device, which must exist, and be named once more where it is allowed to be written over.
    Device {
        /// Its path: absolute, in its shortest form, below `/dev`.
        path: String,
    },
}

impl DiskPlace {
    /// The name of the file.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Volume { name, .. } | Self::File { name, .. } => Some(name),
            Self::Device { .. } => None,
        }
    }

    /// The same, as the place of any file.
    pub fn target(&self) -> Option<Target> {
        match self {
            Self::Volume { pool, .. } => Some(Target::Pool(pool.clone())),
            Self::File { directory, .. } => Some(Target::Directory(directory.clone())),
            Self::Device { .. } => None,
        }
    }

    /// The device's path.
    pub fn device(&self) -> Option<&str> {
        match self {
            Self::Device { path } => Some(path),
            Self::Volume { .. } | Self::File { .. } => None,
        }
    }
}

impl fmt::Display for DiskPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume { pool, name } => write!(f, "{pool}/{name}"),
            Self::File { directory, name } => write!(f, "{directory}/{name}"),
            Self::Device { path } => f.write_str(path),
        }
    }
}

impl fmt::Display for DiskMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.target, self.to)
    }
}

impl FromStr for DiskMapping {
    type Err = RequestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = |why| RequestError::DiskMapping { text: text.to_owned(), why };
        let Some((target, place)) = text.split_once('=').filter(|(target, _)| !target.is_empty()) else {
            return Err(bad("there is no TARGET="));
        };
        if place.starts_with(DEVICES) {
            let path = device_path(place).ok_or_else(|| bad("it is no path of a device"))?;
            return Ok(Self { target: target.to_owned(), to: DiskPlace::Device { path } });
        }
        let Some((above, name)) = place.rsplit_once('/') else {
            return Err(bad("there is neither a pool nor a path: a file's name needs a place"));
        };
        if name.is_empty() || name == "." || name == ".." || name == STAGING || name.contains(char::is_control) {
            return Err(bad("its last part is no file's name"));
        }
        if name.len() > NAME_BYTES_MAX {
            return Err(bad("the file's name has more than 255 bytes"));
        }
        let name = name.to_owned();
        let to = if place.starts_with('/') {
            match Target::directory(above)? {
                Target::Directory(directory) => DiskPlace::File { directory, name },
                Target::LikeSource | Target::Pool(_) => return Err(bad("it is no path")),
            }
        } else if above.contains('/') {
            return Err(bad("a pool's name holds no `/`, and a path begins with one"));
        } else {
            Target::pool(above)?;
            DiskPlace::Volume { pool: above.to_owned(), name }
        };
        Ok(Self { target: target.to_owned(), to })
    }
}

/// A path below `/dev`, in its shortest form.
fn device_path(text: &str) -> Option<String> {
    let below = text.strip_prefix(DEVICES)?;
    let plain = |part: &str| !matches!(part, "" | "." | "..");
    let fits = text.len() <= PATH_BYTES_MAX && !text.contains(char::is_control);
    (fits && below.split('/').all(plain)).then(|| text.to_owned())
}

/// A device is written over only where its very path was typed twice: where an image goes there, and that it may.
fn check_devices(mappings: &[DiskMapping], overwritten: &[String]) -> Result<(), RequestError> {
    for (index, path) in overwritten.iter().enumerate() {
        let is_mapped = mappings.iter().any(|mapping| mapping.to.device() == Some(path));
        if !is_mapped || overwritten[..index].contains(path) {
            return Err(RequestError::NothingOverwritten { path: path.clone() });
        }
    }
    for mapping in mappings {
        if let Some(path) = mapping.to.device().filter(|path| !overwritten.iter().any(|typed| typed == path)) {
            return Err(RequestError::DeviceNotNamed { target: mapping.target.clone(), path: path.to_owned() });
        }
    }
    Ok(())
}

/// Checks all mappings together: each disk once, and each place once; and the devices that may be written over.
pub(super) fn check(mappings: &[DiskMapping], overwritten: &[String]) -> Result<(), RequestError> {
    check_devices(mappings, overwritten)?;
    for (index, mapping) in mappings.iter().enumerate() {
        for earlier in &mappings[..index] {
            if earlier.target == mapping.target {
                return Err(RequestError::DiskMappedTwice { target: mapping.target.clone() });
            }
            if earlier.to == mapping.to {
                return Err(RequestError::DisksMappedTogether {
                    targets: [earlier.target.clone(), mapping.target.clone()],
                    place: mapping.to.to_string(),
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn mapping(text: &str) -> DiskMapping {
        text.parse().unwrap()
    }

    #[test]
    fn a_disk_goes_into_a_pool_or_to_a_path() {
        let volume = DiskPlace::Volume { pool: "fast".into(), name: "web.img".into() };
        assert_eq!(mapping("vda=fast/web.img"), DiskMapping { target: "vda".into(), to: volume });
        let file = DiskPlace::File { directory: "/srv/vm".into(), name: "a=b.img".into() };
        assert_eq!(mapping("vdb=/srv/vm/a=b.img"), DiskMapping { target: "vdb".into(), to: file });
        for text in ["vda=fast/web.img", "vdb=/srv/vm/a=b.img"] {
            assert_eq!(mapping(text).to_string(), text);
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let long = format!("vda=/srv/{}", "x".repeat(256));
        for text in [
            "",
            "vda",
            "=/srv/a",
            "vda=",
            "vda=web.img",
            "vda=/web.img",
            "vda=/srv/",
            "vda=/srv/..",
            "vda=/srv/../a",
            "vda=/srv//b/a",
            "vda=/dev/",
            "vda=/dev/../etc/x",
            "vda=/dev//sdx",
            "vda=pool/sub/a",
            "vda=pool/",
            "vda=pool/.",
            "vda=/srv/.kvm-clone",
            "vda=/srv/a\nb",
            &long,
        ] {
            assert!(text.parse::<DiskMapping>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_device_is_named_twice_or_not_written_over() {
        let onto = |texts: &[&str], typed: &[&str]| {
            let typed: Vec<_> = typed.iter().map(|path| (*path).to_owned()).collect();
            check(&texts.iter().map(|text| mapping(text)).collect::<Vec<_>>(), &typed)
        };
        assert_eq!(mapping("vda=/dev/vg/lv").to, DiskPlace::Device { path: "/dev/vg/lv".into() });
        assert_eq!(onto(&["vda=/dev/sdx", "vdb=p/b"], &["/dev/sdx"]), Ok(()));
        for typed in [&[][..], &["/dev/sdy"], &["/dev/sdx/"]] {
            assert!(onto(&["vda=/dev/sdx"], typed).is_err(), "{typed:?}");
        }
        for (texts, typed) in [(&["vda=p/a"][..], &["/dev/sdx"][..]), (&["vda=/dev/sdx"], &["/dev/sdx", "/dev/sdx"])] {
            assert!(matches!(onto(texts, typed), Err(RequestError::NothingOverwritten { .. })), "{typed:?}");
        }
        let together = onto(&["vda=/dev/sdx", "vdb=/dev/sdx"], &["/dev/sdx"]);
        assert!(matches!(together, Err(RequestError::DisksMappedTogether { .. })));
    }

    #[test]
    fn each_disk_and_each_place_once() {
        let all = |texts: &[&str]| check(&texts.iter().map(|text| mapping(text)).collect::<Vec<_>>(), &[]);
        assert_eq!(all(&["vda=p/a", "vdb=p/b", "vdc=/p/a"]), Ok(()));
        assert!(matches!(all(&["vda=p/a", "vda=p/b"]), Err(RequestError::DiskMappedTwice { .. })));
        assert!(matches!(all(&["vda=p/a", "vdb=p/a"]), Err(RequestError::DisksMappedTogether { .. })));
    }
}
