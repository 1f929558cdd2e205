//! The steps of a scene's plan, in their order.

use journal_format::{CleanUpStepV1, ImageV1, StepV1};

use super::Shape;
use crate::old_vm;

pub fn steps(
    shape: Shape,
    directories: usize,
    (images, bases): (&[ImageV1], usize),
    new_directories: usize,
) -> Vec<StepV1> {
    let [directories, new_directories, bases] =
        [directories, new_directories, bases].map(|count| u32::try_from(count).unwrap());
    let on_device = |image: &u32| images[*image as usize].device().is_some();
    let images = || 0..u32::try_from(images.len()).unwrap();
    let mut steps = vec![StepV1::ReserveRecord, StepV1::ClaimName];
    steps.extend(images().filter(on_device).map(|image| StepV1::ClaimDevice { image }));
    steps.extend((0..directories).map(|directory| StepV1::CreateStaging { directory }));
    steps.push(StepV1::DetectSharedStorage);
    steps.extend((0..bases).map(|base| StepV1::HoldBase { base }));
    for image in images() {
        if !on_device(&image) {
            steps.push(StepV1::CreateImage { image });
        }
        steps.push(StepV1::TransferImage { image });
        if shape.verify {
            steps.push(StepV1::VerifyImage { image });
        }
    }
    steps.extend((0..new_directories).map(|directory| StepV1::MakeDirectory { directory }));
    steps.extend(images().filter(|image| !on_device(image)).map(|image| StepV1::PublishImage { image }));
    steps.push(StepV1::DefineDomain);
    if shape.snapshots {
        steps.extend((0..2).map(|snapshot| StepV1::DefineSnapshot { snapshot }));
    }
    steps.extend(shape.old.map(|_| StepV1::StopOldVm));
    steps
}

pub fn clean_up(shape: Shape, directories: usize) -> Vec<CleanUpStepV1> {
    let (mut steps, deleting) = shape.old.map(old_vm::clean_up).unwrap_or_default();
    steps.extend([CleanUpStepV1::FinishDomain, CleanUpStepV1::ReleaseClaim]);
    if shape.autostart {
        steps.push(CleanUpStepV1::SetAutostart);
    }
    if shape.start {
        steps.push(CleanUpStepV1::StartDomain);
    }
    steps.extend(deleting);
    steps.extend((0..u32::try_from(directories).unwrap()).map(|directory| CleanUpStepV1::RemoveStaging { directory }));
    steps.extend([CleanUpStepV1::RefreshPool { pool: 0 }, CleanUpStepV1::RemoveRecord]);
    steps
}
