//! A step of a plan in words: its name for JSON, the object it concerns, and one line for people.

use journal_format::{CleanUpStepV1, ImageV1, NewDirectoryV1, PlanV1, ReplacedV1, StepRef, StepV1, StopModeV1};

use super::quantity::bytes;

/// A step in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepText {
    /// Its kind, such as `transfer_image`.
    pub kind: &'static str,
    /// What it is about, such as `vda` or a path; empty where the kind says all.
    pub object: String,
    /// One line for people, without a full stop.
    pub line: String,
}

/// Every step of a plan, in order: those before the commit, then the clean-up.
pub fn all_steps(plan: &PlanV1) -> impl Iterator<Item = StepRef> {
    let forward = (0..).map(StepRef::Forward).take(plan.steps.len());
    forward.chain((0..).map(StepRef::CleanUp).take(plan.clean_up.len()))
}

/// The image whose bytes a step moves or reads back, if it is such a step.
pub fn image_of_bytes(plan: &PlanV1, step: StepRef) -> Option<&ImageV1> {
    match forward(plan, step)? {
        StepV1::TransferImage { image } | StepV1::VerifyImage { image } => image_at(plan, image),
        _ => None,
    }
}

/// The step before the commit that a reference names.
pub fn forward(plan: &PlanV1, step: StepRef) -> Option<StepV1> {
    match step {
        StepRef::Forward(index) => plan.steps.get(usize::try_from(index).ok()?).copied(),
        StepRef::CleanUp(_) => None,
    }
}

/// Words for a step; a reference outside the plan is named as such.
pub fn describe(plan: &PlanV1, step: StepRef) -> StepText {
    let found = match step {
        StepRef::Forward(_) => forward(plan, step).map(|step| describe_forward(plan, step)),
        StepRef::CleanUp(index) => usize::try_from(index)
            .ok()
            .and_then(|index| plan.clean_up.get(index))
            .map(|step| describe_clean_up(plan, *step)),
    };
    found.unwrap_or_else(|| StepText {
        kind: "unknown",
        object: String::new(),
        line: format!("{step:?}, not in the plan"),
    })
}

fn describe_forward(plan: &PlanV1, step: StepV1) -> StepText {
    let host = &plan.request.destination.address;
    match step {
        StepV1::ReserveRecord => text("reserve_record", String::new(), format!("make the host record on {host}")),
        StepV1::ClaimName => {
            let name = plan.request.new_name.clone();
            let line = format!("claim the name {name} on {host}");
            text("claim_name", name, line)
        }
        StepV1::CreateStaging { directory } => about_directory(plan, directory, "create_staging", "make"),
        StepV1::DetectSharedStorage => {
            text("detect_shared_storage", String::new(), "look for storage that both hosts share".into())
        }
        StepV1::CreateImage { image } => about_image(plan, image, "create_image", |image| {
            format!("create {} ({})", image.role, bytes(image.source_stamp.size))
        }),
        StepV1::TransferImage { image } => about_image(plan, image, "transfer_image", |image| {
            let layers = match image.flattened.len() {
                0 => String::new(),
                1 => " and the image below it, flattened".to_owned(),
                more => format!(" and the {more} images below it, flattened"),
            };
            let allocated = bytes(image.allocated_bytes);
            format!("transfer {}: {}{layers} ({allocated} allocated)", image.role, image.source_path)
        }),
        StepV1::VerifyImage { image } => {
            about_image(plan, image, "verify_image", |image| format!("verify {}: read back from the disk", image.role))
        }
        StepV1::PublishImage { image } => {
            about_image(plan, image, "publish_image", |image| format!("publish {} as {}", image.role, image.final_path))
        }
        StepV1::MakeDirectory { directory } => {
            let path = new_directory_at(plan, directory).map(|made| made.path.clone()).unwrap_or_default();
            let line = format!("make the directory {path}");
            text("make_directory", path, line)
        }
        StepV1::DefineDomain => {
            let name = plan.request.new_name.clone();
            let line = format!("define {name} ({})", plan.clone_uuid);
            text("define_domain", name, line)
        }
        StepV1::DefineSnapshot { snapshot } => {
            let index = usize::try_from(snapshot).ok();
            let name = index.and_then(|index| plan.snapshots.get(index)).map(|planned| planned.name.clone());
            let name = name.unwrap_or_default();
            let line = format!("define the snapshot {name} of {}", plan.request.new_name);
            text("define_snapshot", name, line)
        }
        StepV1::ClaimDevice { image } => about_image(plan, image, "claim_device", |image| {
            format!("claim the device {}: what it holds is written over, and does not come back", image.final_path)
        }),
        StepV1::HoldBase { base } => {
            let index = usize::try_from(base).ok();
            let Some(base) = index.and_then(|index| plan.bases.get(index)) else {
                return text("hold_base", String::new(), format!("hold base {base}, not in the plan"));
            };
            let line = format!("use {} as it is: {} has the bytes of {}", base.role, base.path, base.source_path);
            text("hold_base", base.path.clone(), line)
        }
        StepV1::StopOldVm => {
            let name = plan.request.new_name.clone();
            let line = plan.replaced.as_ref().map_or_else(String::new, |old| stopping(&name, old));
            text("stop_old_vm", name, line)
        }
    }
}

fn describe_clean_up(plan: &PlanV1, step: CleanUpStepV1) -> StepText {
    let name = plan.request.new_name.clone();
    match step {
        CleanUpStepV1::FinishDomain => text("finish_domain", name.clone(), format!("mark {name} as finished")),
        CleanUpStepV1::ReleaseClaim => {
            text("release_claim", name.clone(), format!("release the claim on the name {name}"))
        }
        CleanUpStepV1::SetAutostart => text("set_autostart", name.clone(), format!("let {name} start with its host")),
        CleanUpStepV1::StartDomain => text("start_domain", name.clone(), format!("start {name}")),
        CleanUpStepV1::RemoveStaging { directory } => about_directory(plan, directory, "remove_staging", "remove"),
        CleanUpStepV1::RefreshPool { pool } => {
            let pool = usize::try_from(pool).ok().and_then(|pool| plan.pools.get(pool)).cloned().unwrap_or_default();
            let line = format!("refresh the pool {pool}");
            text("refresh_pool", pool, line)
        }
        CleanUpStepV1::RemoveRecord => text("remove_record", String::new(), "remove the host record".into()),
        CleanUpStepV1::RetireOldVm => {
            let line = match plan.replaced.as_ref().filter(|old| old.keep) {
                Some(old) => format!("rename the old VM {name} to {}", old.kept_name),
                None => format!("undefine the old VM {name}"),
            };
            text("retire_old_vm", name, line)
        }
        CleanUpStepV1::RenameClone => {
            let beside = plan.replaced.as_ref().map_or("", |old| &old.clone_name);
            text("rename_clone", name.clone(), format!("rename the clone {beside} to {name}"))
        }
        CleanUpStepV1::DeleteOldFile { file } => {
            let files = plan.replaced.as_ref().map_or(&[][..], |old| &old.files);
            let path = usize::try_from(file).ok().and_then(|file| files.get(file)).map(|file| file.path.clone());
            let path = path.unwrap_or_default();
            text("delete_old_file", path.clone(), format!("delete {path} of the old VM {name}"))
        }
    }
}

/// How the old VM comes to be off.
fn stopping(name: &str, old: &ReplacedV1) -> String {
    match (old.running, old.stop) {
        (false, _) => format!("see that the old VM {name} stays off"),
        (true, StopModeV1::Shutdown) => format!("shut down the old VM {name}; after a minute switch it off"),
        (true, StopModeV1::Save) => format!("save the memory of the old VM {name} and switch it off"),
        (true, StopModeV1::Destroy) => format!("switch off the old VM {name}"),
        (true, StopModeV1::Never) => format!("wait for nothing: the old VM {name} runs and may not be stopped"),
    }
}

fn text(kind: &'static str, object: String, line: String) -> StepText {
    StepText { kind, object, line }
}

fn about_image(plan: &PlanV1, image: u32, kind: &'static str, line: impl Fn(&ImageV1) -> String) -> StepText {
    match image_at(plan, image) {
        Some(image) => text(kind, image.role.to_string(), line(image)),
        None => text(kind, String::new(), format!("{kind} of image {image}, not in the plan")),
    }
}

fn about_directory(plan: &PlanV1, directory: u32, kind: &'static str, verb: &str) -> StepText {
    let index = usize::try_from(directory).ok();
    let path = index.and_then(|index| plan.directories.get(index)).map(|found| found.staging.clone());
    let path = path.unwrap_or_default();
    let line = format!("{verb} the staging directory {path}");
    text(kind, path, line)
}

fn new_directory_at(plan: &PlanV1, directory: u32) -> Option<&NewDirectoryV1> {
    plan.new_directories.get(usize::try_from(directory).ok()?)
}

fn image_at(plan: &PlanV1, image: u32) -> Option<&ImageV1> {
    plan.images.get(usize::try_from(image).ok()?)
}
