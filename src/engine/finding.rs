//! What made a transaction stop, with the commands that a person would type on the destination to see it. They only look:
//! what is to be done about it is that person's decision.

use journal_format::{FindingV1, ImageV1, PlanV1, StepRef, StepV1};

use crate::failure::Failure;
use crate::shell::shell_word;
use crate::steps::Context;
use crate::steps::host_record::HostRecord;

/// A finding in the place of a step.
pub(super) fn finding(context: &Context, step: StepRef, expected: String, found: &str) -> Failure {
    let commands = look_commands(&context.plan, Some(step));
    Failure::Finding(FindingV1 { step: Some(step), expected, found: found.to_owned(), commands })
}

/// The finding, with commands where who found it knew none.
pub(super) fn with_commands(plan: &PlanV1, finding: FindingV1) -> FindingV1 {
    if finding.commands.is_empty() {
        return FindingV1 { commands: look_commands(plan, finding.step), ..finding };
    }
    finding
}

/// What shows the place of a step; all of the transaction's places where no step is known.
fn look_commands(plan: &PlanV1, step: Option<StepRef>) -> Vec<String> {
    let planned = match step {
        Some(StepRef::Forward(index)) => plan.steps.get(index as usize).copied(),
        Some(StepRef::CleanUp(_)) | None => None,
    };
    let record = HostRecord::of(plan.txn, &plan.request.new_name);
    let records = || list_files([record.directory.as_str(), &record.claim]);
    let images = |image: &ImageV1| list_files([image.staging_path.as_str(), &image.final_path]);
    let domain = || format!("virsh dumpxml --inactive {}", plan.clone_uuid);
    match planned {
        Some(StepV1::ReserveRecord | StepV1::ClaimName) => vec![records()],
        Some(StepV1::CreateStaging { directory }) => {
            plan.directories.get(directory as usize).map(|dir| list_files([dir.staging.as_str()])).into_iter().collect()
        }
        Some(
            StepV1::CreateImage { image }
            | StepV1::TransferImage { image }
            | StepV1::VerifyImage { image }
            | StepV1::PublishImage { image }
            | StepV1::ClaimDevice { image },
        ) => {
            let image = plan.images.get(image as usize);
            let users = image.map(|image| in_use(&image.final_path));
            image.map(images).into_iter().chain(users).collect()
        }
        Some(StepV1::HoldBase { base }) => {
            let base = plan.bases.get(base as usize).map(|base| base.path.as_str());
            base.map(|path| list_files([path])).into_iter().chain(base.map(in_use)).collect()
        }
        Some(StepV1::MakeDirectory { directory }) => {
            let made = plan.new_directories.get(directory as usize);
            made.map(|made| list_files([made.path.as_str()])).into_iter().collect()
        }
        Some(StepV1::DefineDomain) => vec![format!("virsh list --all --uuid --name --title"), domain()],
        Some(StepV1::DefineSnapshot { .. }) => {
            vec![format!("virsh snapshot-list --tree {}", plan.clone_uuid), domain()]
        }
        Some(StepV1::StopOldVm) => {
            let old = plan.replaced.as_ref();
            old.map(|old| format!("virsh domstate --reason {}", old.uuid)).into_iter().chain([records()]).collect()
        }
        Some(StepV1::DetectSharedStorage) | None => {
            std::iter::once(records()).chain(plan.images.iter().map(images)).chain([domain()]).collect()
        }
    }
}

fn in_use(path: &str) -> String {
    format!("fuser -v {}", shell_word(path))
}

fn list_files<'a>(paths: impl IntoIterator<Item = &'a str>) -> String {
    paths.into_iter().fold("ls -lid".to_owned(), |command, path| format!("{command} {}", shell_word(path)))
}
