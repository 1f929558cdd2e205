//! Which files the domains and pools of a host reach, through backing chains and data files, and what unfinished clones will
//! stand on: what somebody reaches is never deleted. Only looks. What cannot be read counts as reaching everything.

use std::collections::{BTreeMap, BTreeSet};

use journal_format::{DomainUuid, Inode};

use crate::domain::named::{ImagePlace, named_images, named_paths, names_path};
use crate::domain::qcow2::{HEADER_READ_BYTES, Header};
use crate::domain::{Definition, SnapshotDefinition};
use crate::records::{RecordState, host_records};
use crate::world::{Fault, FileKind, FileStat, Host, PoolFacts, readable};

/// Images below one another. QEMU itself gives up at 200.
const CHAIN_IMAGES_MAX: usize = 200;
/// Files in a pool's directory that are looked at.
const VOLUMES_MAX: usize = 20_000;
/// Enough of an image to tell its format.
const MAGIC_READ_BYTES: u64 = 8;
/// Formats other than qcow2 whose images may stand on others, by their first bytes; their headers are not read here.
const UNREAD_MAGICS: [&[u8]; 3] = [b"QED\0", b"KDMV", b"# Disk D"];
const QCOW_MAGIC: &[u8] = b"QFI\xfb";

/// A file, whatever its name.
type FileId = (u64, Inode);

/// Everything that is reached on a host.
pub struct Reached<'h> {
    host: &'h dyn Host,
    /// Images, and what is below them: with who reaches them.
    files: BTreeMap<FileId, String>,
    /// Other paths that are named, such as those of firmware variables: where each leads, and who names it.
    named: BTreeMap<String, (Option<String>, String)>,
    /// Definitions and snapshots, with whose they are.
    documents: Vec<(String, String)>,
    /// Something that may reach anything, in words.
    unreadable: Option<String>,
}

/// A VM that will not be there any more, and its files: they reach nothing.
pub struct Leaving {
    /// Which one.
    pub vm: DomainUuid,
    /// Real paths.
    pub files: BTreeSet<String>,
}

impl<'h> Reached<'h> {
    /// Looks at all domains with their snapshots, all pools and all host records, but for who is leaving.
    pub fn on(host: &'h dyn Host, leaving: Option<&Leaving>) -> Result<Self, Fault> {
        let (files, named) = (BTreeMap::new(), BTreeMap::new());
        let mut reached = Self { host, files, named, documents: Vec::new(), unreadable: None };
        let pools = host.pools()?;
        for brief in host.domains()?.into_iter().filter(|brief| leaving.is_none_or(|one| brief.uuid != one.vm)) {
            let Some(facts) = host.domain(brief.uuid)? else { continue };
            let who = format!("the VM {}", brief.name);
            for definition in std::iter::once(facts.definition).chain(host.live_definition(brief.uuid)?) {
                match Definition::parse(&definition) {
                    Ok(read) => reached.add_document(&who, definition, &[read], &pools)?,
                    Err(_) => reached.fail(format!("the definition of {who}")),
                }
            }
            let snapshots = if facts.snapshots > 0 { host.snapshots(brief.uuid)? } else { Vec::new() };
            for snapshot in snapshots {
                let read = SnapshotDefinition::parse(&snapshot.definition).ok();
                let definitions: Vec<_> = read.iter().flat_map(SnapshotDefinition::definitions).cloned().collect();
                reached.add_document(&who, snapshot.definition, &definitions, &pools)?;
            }
        }
        for pool in &pools {
            reached.add_pool(pool, leaving)?;
        }
        reached.add_bases()?;
        Ok(reached)
    }

    /// Who reaches the file of this real path, in words; `None`: nobody, or there is no such file.
    pub fn by(&self, path: &str) -> Result<Option<String>, Fault> {
        if let Some(what) = &self.unreadable {
            return Ok(Some(format!("{what} cannot be read, and may stand on it")));
        }
        let Some(stat) = self.host.stat(path)? else { return Ok(None) };
        if let Some(who) = self.files.get(&(stat.device, stat.inode)) {
            return Ok(Some(format!("{who} reaches it")));
        }
        let named = self.named.values().find(|(real, _)| real.as_deref() == Some(path)).map(|(_, who)| who);
        let in_words = || self.documents.iter().find(|(_, document)| names_path(document, path).unwrap_or(true));
        let who = named.or_else(|| in_words().map(|(who, _)| who));
        Ok(who.map(|who| format!("{who} names it")))
    }

    /// A domain's definition or a snapshot's document, with the definitions that it holds.
    fn add_document(
        &mut self,
        who: &str,
        document: String,
        definitions: &[Definition],
        pools: &[PoolFacts],
    ) -> Result<(), Fault> {
        let (Ok(images), Ok(mut paths)) = (named_images(&document), named_paths(&document)) else {
            self.fail(format!("a definition of {who}"));
            return Ok(());
        };
        for image in images {
            let path = match image.place {
                // Looked at as an image, it need not be once more as a path.
                ImagePlace::Path(path) => {
                    paths.remove(&path);
                    path
                }
                // A volume of a pool that is no directory is no file.
                ImagePlace::Volume { pool, volume } => {
                    let pool = pools.iter().find(|known| known.name == pool);
                    let Some(directory) = pool.and_then(|pool| pool.path.as_ref()) else { continue };
                    format!("{directory}/{volume}")
                }
            };
            self.follow(who, path, image.format.as_deref() == Some("raw"))?;
        }
        paths.extend(definitions.iter().filter_map(Definition::variables_path));
        for path in paths {
            if self.named.contains_key(&path) {
                continue;
            }
            match readable(self.host.resolve(&path))? {
                Some(real) => drop(self.named.insert(path, (real, who.to_owned()))),
                None => self.fail(format!("{path}, which {who} names,")),
            }
        }
        self.documents.push((who.to_owned(), document));
        Ok(())
    }

    /// A pool's volumes reach what is below them. That a file lies in a pool's directory does not make it used.
    fn add_pool(&mut self, pool: &PoolFacts, leaving: Option<&Leaving>) -> Result<(), Fault> {
        let Some(directory) = pool.path.as_ref().filter(|_| ["dir", "fs", "netfs"].contains(&pool.kind.as_str()))
        else {
            return Ok(());
        };
        let Some(names) = readable(self.host.list(directory))? else {
            self.fail(format!("the directory of pool {}", pool.name));
            return Ok(());
        };
        let names = names.unwrap_or_default();
        if names.len() > VOLUMES_MAX {
            self.fail(format!("pool {} with more than {VOLUMES_MAX} files", pool.name));
            return Ok(());
        }
        for name in names {
            let path = format!("{directory}/{name}");
            if let Some(leaving) = leaving
                && self.host.resolve(&path)?.is_some_and(|path| leaving.files.contains(&path))
            {
                continue;
            }
            let who = format!("the volume {path}");
            if let Some(below) = self.below(&who, &path)? {
                for path in below {
                    self.follow(&who, path, false)?;
                }
            }
        }
        Ok(())
    }

    /// What unfinished clones will stand on: a suspended one holds no lock.
    fn add_bases(&mut self) -> Result<(), Fault> {
        for record in host_records(self.host)?.into_iter().filter(|record| record.state == RecordState::Unfinished) {
            let who = format!("transaction {}", record.txn);
            match record.plan {
                Ok(plan) => plan.bases.into_iter().try_for_each(|base| self.follow(&who, base.path, true))?,
                Err(_) => self.fail(format!("the plan of {who}")),
            }
        }
        Ok(())
    }

    /// An image, and everything below it.
    fn follow(&mut self, who: &str, path: String, is_raw: bool) -> Result<(), Fault> {
        let mut waiting = vec![(path, is_raw)];
        let mut seen = 0_usize;
        while let Some((path, is_raw)) = waiting.pop() {
            seen += 1;
            if seen > CHAIN_IMAGES_MAX {
                self.fail(format!("the chain of {who}"));
                return Ok(());
            }
            let Some(path) = absolute("/", &path) else {
                self.fail(format!("{path}, which {who} reaches,"));
                continue;
            };
            let Some(there) = readable(self.look(&path))? else {
                self.fail(format!("{path}, which {who} reaches,"));
                continue;
            };
            let Some(stat) = there else {
                // What an image names is somewhere, perhaps where nothing is mounted just now. A disk may be gone for good.
                if seen > 1 {
                    self.fail(format!("{path}, which {who} reaches,"));
                }
                continue;
            };
            self.files.entry((stat.device, stat.inode)).or_insert_with(|| who.to_owned());
            if !is_raw && let Some(below) = self.below(who, &path)? {
                waiting.extend(below.into_iter().map(|path| (path, false)));
            }
        }
        Ok(())
    }

    /// What is behind a path and all symlinks.
    fn look(&self, path: &str) -> Result<Option<FileStat>, Fault> {
        match self.host.resolve(path)? {
            Some(real) => self.host.stat(&real),
            None => Ok(None),
        }
    }

    /// What an image names below it, by its header; `None`: it names nothing, or that cannot be told, which is noted.
    fn below(&mut self, who: &str, path: &str) -> Result<Option<Vec<String>>, Fault> {
        let real = self.host.resolve(path)?;
        let Some(real) = real else { return Ok(None) };
        match self.host.stat(&real)?.map(|stat| stat.kind) {
            Some(FileKind::File | FileKind::BlockDevice) => {}
            Some(_) | None => return Ok(None),
        }
        let beginning = |bytes| readable(self.host.read(&real, bytes));
        let named = match beginning(MAGIC_READ_BYTES)? {
            None => Err(()),
            Some(head) => match head.unwrap_or_default() {
                head if UNREAD_MAGICS.iter().any(|magic| head.starts_with(magic)) => Err(()),
                head if head.starts_with(QCOW_MAGIC) => {
                    let head = beginning(HEADER_READ_BYTES as u64)?.flatten().unwrap_or_default();
                    Header::read(&head).map_err(|_| ()).and_then(|header| files_named(&header))
                }
                _ => return Ok(None),
            },
        };
        let paths = named.and_then(|names| {
            let parent = crate::steps::host_record::parent_of(path);
            names.iter().map(|name| absolute(parent, name).ok_or(())).collect::<Result<Vec<_>, ()>>()
        });
        if paths.is_err() {
            self.fail(format!("{path}, which {who} reaches,"));
        }
        Ok(paths.ok())
    }

    fn fail(&mut self, what: String) {
        self.unreadable.get_or_insert(what);
    }
}

/// Files that a header names, as it names them. A name that may be a file, and cannot be read here, is an error.
fn files_named(header: &Header) -> Result<Vec<String>, ()> {
    if header.external_data && header.data_file.is_none() {
        return Err(());
    }
    let names = header.backing_file.iter().chain(&header.data_file);
    names.filter_map(|name| file_named(name).transpose()).collect()
}

/// `Ok(None)`: something that is no file.
fn file_named(name: &str) -> Result<Option<String>, ()> {
    if name.starts_with("json:") || name.is_empty() {
        return Err(());
    }
    if let Some(path) = name.strip_prefix("file:") {
        return Ok(Some(path.to_owned()));
    }
    let is_protocol =
        |scheme: &str| !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+');
    match name.split_once("://") {
        Some((scheme, _)) if is_protocol(scheme) && scheme != "file" => Ok(None),
        Some(_) => Err(()),
        None => Ok(Some(name.to_owned())),
    }
}

/// A name in an image that lies in this directory, as a path. `None`: where it leads cannot be told without walking it.
fn absolute(directory: &str, name: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    if !name.starts_with('/') {
        parts.extend(directory.split('/').filter(|part| !part.is_empty()));
    }
    for part in name.split('/').filter(|part| !part.is_empty() && *part != ".") {
        // Behind a name that may be a symlink, `..` leads who knows where.
        if part == ".." {
            return None;
        }
        parts.push(part);
    }
    Some(format!("/{}", parts.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_relative_to_the_image_that_has_them() {
        let path = |name| absolute("/srv/vm", name);
        assert_eq!(path("base.img").as_deref(), Some("/srv/vm/base.img"));
        assert_eq!(path("./a//base.img").as_deref(), Some("/srv/vm/a/base.img"));
        assert_eq!(path("/else/base.img").as_deref(), Some("/else/base.img"));
        assert_eq!(path("../base.img"), None);
        assert_eq!(path("a/../base.img"), None);
        assert_eq!(path("/a/../base.img"), None);
    }

    #[test]
    fn what_may_be_a_file_and_cannot_be_read_is_said() {
        assert_eq!(file_named("base.img"), Ok(Some("base.img".to_owned())));
        assert_eq!(file_named("file:/a/b"), Ok(Some("/a/b".to_owned())));
        assert_eq!(file_named("nbd://host/x"), Ok(None));
        assert_eq!(file_named("json:{\"file.filename\":\"/a\"}"), Err(()));
        assert_eq!(file_named("file:///a"), Ok(Some("///a".to_owned())));
        assert_eq!(file_named("a b://c"), Err(()));
    }
}
