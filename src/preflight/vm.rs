//! Can this VM be cloned, as it is now? Its state, what belongs to it, and its disks.

use journal_format::{ImageFormat, ImageRoleV1};

use super::{BlockerKind, Report, WarningKind};
use crate::domain::qcow2::Header;
use crate::domain::{Carriage, uncarried, uncarried_image, unflattened_image};
use crate::shell::shell_word;
use crate::survey::{Below, ImageFacts, NamedAs, SourceFile, SourceImage, Survey};
use crate::world::{DomainState, FileKind, ImageCheck};

pub(super) fn check(report: &mut Report, survey: &Survey) {
    check_state(report, survey);
    match uncarried(&survey.source.definition) {
        Ok(carriage) => take(report, survey, carriage),
        Err(error) => {
            let message = format!("{} of VM {}: {error}.", survey.source.name, survey.source.vm.brief.name);
            report.block(BlockerKind::Definition, &survey.source.name, message, "");
        }
    }
    for file in &survey.source.files {
        for layer in file.layers() {
            check_file(report, survey, layer, !file.flattened.is_empty());
            let checked = layer.image().and_then(|image| survey.source.checks.get(&image.path));
            if let Some(check) = checked {
                check_tables(report, survey, layer, check);
            }
        }
    }
}

fn check_state(report: &mut Report, survey: &Survey) {
    let (vm, host) = (&survey.source.vm, survey.source.name.as_str());
    let name = &vm.brief.name;
    let word = shell_word(name);
    if vm.brief.state == DomainState::Active {
        report.block(
            BlockerKind::Running,
            host,
            format!("{host}: VM {name} is running, and only a VM that is shut off can be cloned."),
            format!("Shut it down (`virsh shutdown {word}`) and run again."),
        );
    }
    if !vm.persistent {
        report.block(
            BlockerKind::Transient,
            host,
            format!("{host}: VM {name} is transient: it has no definition that a clone could be made from."),
            "Define it (`virsh define`) first.",
        );
    }
}

/// What is not carried, in this report's words.
fn take(report: &mut Report, survey: &Survey, carriage: Carriage) {
    let (vm, host) = (&survey.source.vm.brief.name, survey.source.name.as_str());
    let message =
        |found: &crate::domain::Uncarried| format!("{host}: VM {vm}, {}: {}: {}.", found.where_, found.what, found.why);
    for found in carriage.blockers {
        let advice = match &found.device {
            Some(device) => format!("{}; or leave it behind: --drop {}.", found.advice, device.kind),
            None => format!("{}.", found.advice),
        };
        report.block(BlockerKind::Uncarried, host, message(&found), advice);
    }
    for found in carriage.warnings {
        report.warn(WarningKind::Carriage, host, message(&found), format!("{}.", found.advice));
    }
}

fn check_file(report: &mut Report, survey: &Survey, file: &SourceFile, flattened: bool) {
    let host = survey.source.name.as_str();
    let (what, path) = (file.what(), &file.path);
    if let Below::Refused(why) = &file.below {
        report.block(
            BlockerKind::Chain,
            host,
            format!("{host}: {what}: {path}: {why}."),
            "Correct the reference, or put it all into one image: with the VM shut off, `qemu-img convert -O qcow2 IMAGE NEW`, and use NEW.",
        );
    }
    match &file.image {
        SourceImage::Missing => report.block(
            BlockerKind::DiskMissing,
            host,
            format!("{host}: {what}: {path} does not exist."),
            "Mount what it lies on, or take the disk out of the definition.",
        ),
        SourceImage::Unreadable(words) => report.block(
            BlockerKind::DiskUnreadable,
            host,
            format!("{host}: {what}: {path} cannot be read: {words}."),
            "Let root read it on that host, or repair what it lies on.",
        ),
        SourceImage::Readable(image) if !is_as_named(file.named_as, image.stat.kind) => {
            let expected = match file.named_as {
                NamedAs::File => "a regular file",
                NamedAs::Device => "a block device",
                NamedAs::Volume => "a regular file or block device",
            };
            report.block(
                BlockerKind::DiskKind,
                host,
                format!("{host}: {what}: {} is not {expected}, though the definition says so.", image.path),
                "Correct the disk's type in the definition.",
            );
        }
        SourceImage::Readable(image) if file.format == ImageFormat::Qcow2 => {
            check_header(report, survey, (file, image), flattened);
        }
        SourceImage::Readable(_) => {}
    }
}

fn is_as_named(named_as: NamedAs, kind: FileKind) -> bool {
    match named_as {
        NamedAs::File => kind == FileKind::File,
        NamedAs::Device => kind == FileKind::BlockDevice,
        NamedAs::Volume => matches!(kind, FileKind::File | FileKind::BlockDevice),
    }
}

fn check_header(report: &mut Report, survey: &Survey, (file, image): (&SourceFile, &ImageFacts), flattened: bool) {
    match Header::read(&image.head) {
        Ok(header) => {
            take(report, survey, uncarried_image(&file.what(), &header));
            if flattened {
                take(report, survey, unflattened_image(&place_of(file), &header));
            }
            let followed = matches!(file.role, ImageRoleV1::Disk { .. } | ImageRoleV1::Layer { .. });
            if let Some(below) = header.backing_file.filter(|_| !followed) {
                let host = survey.source.name.as_str();
                report.block(
                    BlockerKind::Chain,
                    host,
                    format!(
                        "{host}: {}: {} is on top of {below}, and only chains of disks are carried.",
                        file.what(),
                        image.path
                    ),
                    "Flatten it (`qemu-img convert`), or leave it out.",
                );
            }
        }
        Err(error) => {
            let host = survey.source.name.as_str();
            report.block(
                BlockerKind::DiskHeader,
                host,
                format!("{host}: {}: {}: {error}.", file.what(), image.path),
                "Look at it with `qemu-img check`, or correct the disk's format in the definition.",
            );
        }
    }
}

/// What it is and where: a chain has several of them.
fn place_of(file: &SourceFile) -> String {
    format!("{} ({})", file.what(), file.path)
}

/// What `qemu-img check` said. Where it is not there, nobody can say anything.
fn check_tables(report: &mut Report, survey: &Survey, file: &SourceFile, check: &ImageCheck) {
    let (host, what, path) = (survey.source.name.as_str(), file.what(), &file.path);
    let mut tell = |words: &str, meaning: &str, advice: &str| {
        let message = format!("{host}: {what}: {path}: {meaning} ({}).", one_line(words));
        report.warn(WarningKind::DiskTables, host, message, advice);
    };
    match check {
        ImageCheck::Whole | ImageCheck::NoTool => {}
        ImageCheck::Leaks(words) => tell(
            words,
            "`qemu-img check` finds space that is lost, and the clone will have it too",
            "It does no harm; `qemu-img check -r leaks` gives it back.",
        ),
        ImageCheck::Unchecked(words) => {
            tell(words, "its tables could not be checked", "`qemu-img check` on that host says more.");
        }
        ImageCheck::Broken(words) => report.block(
            BlockerKind::DiskTables,
            host,
            format!(
                "{host}: {what}: {path}: `qemu-img check` finds errors, and a clone would have them too ({}).",
                one_line(words)
            ),
            "Keep a copy of it, and repair it: `qemu-img check -r all IMAGE`.",
        ),
    }
}

/// The words of a tool, as part of a sentence.
fn one_line(words: &str) -> String {
    words.split_whitespace().collect::<Vec<_>>().join(" ").trim_end_matches('.').to_owned()
}

/// Bytes that the clone's image may come to take, before any margin.
pub(super) fn bytes_to_allocate(file: &SourceFile, image: &ImageFacts, preallocate: bool) -> u64 {
    if !preallocate {
        // Of a chain that cannot be read: that is a blocker of its own.
        return file.allocated_bytes().unwrap_or(0);
    }
    let guest_bytes = file.guest_bytes().unwrap_or(0);
    if file.flattened.is_empty() { guest_bytes.max(image.stat.size) } else { guest_bytes }
}
