//! `--disk-map`: does the VM have these disks, and are the places free?

use std::collections::BTreeMap;

use journal_format::ImageRoleV1;

use super::replace::is_up_to_date;
use super::{BlockerKind, Report};
use crate::request::Request;
use crate::survey::Survey;
use crate::survey::placement::{device_of, directory_for, is_taken, join, mapping_of, preferred_name};

pub(super) fn check(report: &mut Report, request: &Request, survey: &Survey) {
    check_targets(report, request, survey);
    check_paths(report, request, survey);
}

/// A mapping of something that is not copied would be dropped in silence.
fn check_targets(report: &mut Report, request: &Request, survey: &Survey) {
    let targets: Vec<&str> = survey.source.files.iter().filter_map(|file| own_target(&file.role)).collect();
    let (host, vm) = (survey.source.name.as_str(), &survey.source.vm.brief.name);
    for mapping in request.disk_map.iter().filter(|mapping| !targets.contains(&mapping.target.as_str())) {
        let target = &mapping.target;
        let why = match survey.source.definition.media().find(|disk| disk.target == *target) {
            Some(_) => format!("what is in {target} of VM {vm} is not copied"),
            None => format!("VM {vm} has no disk {target} that is copied"),
        };
        let known = if targets.is_empty() { "none".to_owned() } else { targets.join(", ") };
        report.block(
            BlockerKind::DiskMapUnused,
            host,
            format!("--disk-map {mapping}: {why}; copied are: {known}."),
            "Correct the target, or leave the mapping out; --copy-media copies media and shared disks.",
        );
    }
}

fn own_target(role: &ImageRoleV1) -> Option<&str> {
    match role {
        ImageRoleV1::Disk { target } | ImageRoleV1::Medium { target } => Some(target),
        ImageRoleV1::Layer { .. } | ImageRoleV1::Nvram | ImageRoleV1::Tpm => None,
    }
}

/// A place that was asked for by name is free, or there is no clone: it never gives way to another in silence.
fn check_paths(report: &mut Report, request: &Request, survey: &Survey) {
    let host = survey.destination.name.as_str();
    // Where there is nothing to do, what stands in the place is the clone itself.
    let is_there = is_up_to_date(request, survey);
    let mut users: BTreeMap<String, (String, bool)> = BTreeMap::new();
    for file in &survey.source.files {
        let mapping = mapping_of(request, file);
        if device_of(request, file).is_some() {
            continue;
        }
        let directory = directory_for(request, &survey.destination, file);
        let (Ok(directory), Some(name)) = (directory, preferred_name(request, &survey.new_name, file)) else {
            continue;
        };
        let path = join(&directory.path, &name);
        if let Some(mapping) = mapping.filter(|_| !is_there && is_taken(&survey.destination, &path)) {
            let namer = survey.destination.neighbours.iter().find(|neighbour| neighbour.paths.contains(&path));
            let what = namer.map_or_else(
                || "is there already".to_owned(),
                |neighbour| format!("belongs to VM {}", neighbour.brief.name),
            );
            report.block(
                BlockerKind::PathTaken,
                host,
                format!("{host}: --disk-map {mapping}: {path} {what}."),
                "Choose another name: nothing that is there is ever written over.",
            );
        }
        let here = (file.what(), mapping.is_some());
        if let Some((other, is_mapped)) = users.insert(path.clone(), here)
            && (is_mapped || mapping.is_some())
        {
            report.block(
                BlockerKind::PathTaken,
                host,
                format!("{host}: --disk-map: {} and {other} would both be {path}.", file.what()),
                "Give each a place of its own.",
            );
        }
    }
}
