//! The images that the clone stands on as they are: not copied, and not its own.

use journal_format::{BaseV1, ImageV1};

use crate::survey::Survey;

/// Takes them out of the images, which are in the order of the source's files.
pub(super) fn apart(survey: &Survey, images: Vec<ImageV1>) -> (Vec<ImageV1>, Vec<BaseV1>) {
    let (mut copied, mut bases) = (Vec::new(), Vec::new());
    for (file, image) in survey.source.files.iter().zip(images) {
        match survey.base_of(file) {
            None => copied.push(image),
            Some(base) => bases.push(BaseV1 {
                role: image.role,
                reached_by: image.reached_by,
                source_path: image.source_path,
                source_stamp: image.source_stamp,
                path: base.path.clone(),
                directory: base.directory,
                stamp: base.stamp,
                root: base.root,
            }),
        }
    }
    (copied, bases)
}
