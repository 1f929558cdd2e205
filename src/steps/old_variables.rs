//! The firmware variables of an old VM that is kept, where its definition does not name them: libvirt finds them by the domain's
//! name, and would make fresh ones under the other name. So the file gets that name first, as a second one, and loses the first
//! when the domain has lost it: whatever happens in between, the old VM finds its own variables.

use journal_format::{PlanV1, ReplacedV1};

use super::Context;
use super::host_record::parent_of;
use crate::domain::{Definition, places};
use crate::failure::Failure;
use crate::world::FaultKind;

/// The file of its variables by its name, and by the name that it would be kept under. `None`: its definition names them, or it
/// has none.
pub fn variables_by_name(plan: &PlanV1, old: &ReplacedV1) -> Option<[String; 2]> {
    let variables = Definition::parse(&old.definition).ok()?.os.variables?;
    let of = |name: &str| places::variables(name, variables.format);
    variables.path.is_none().then(|| [of(&plan.request.new_name), of(&old.kept_name)])
}

/// Gives them the name that the kept VM will look for, durably. Before it is renamed.
pub(super) fn name_anew(context: &Context, old: &ReplacedV1) -> Result<(), Failure> {
    let Some([before, after]) = variables_by_name(&context.plan, old) else { return Ok(()) };
    let host = &context.destination;
    // A VM that was never started has none yet.
    let Some(variables) = host.stat(&before)? else { return Ok(()) };
    match host.link(&before, &after) {
        Err(fault) if fault.kind == FaultKind::AlreadyExists => {
            if host.stat(&after)?.is_none_or(|there| there.inode != variables.inode) {
                return Err(Failure::suspend(
                    format!("{after} on {} is there already, and not ours", host.name()),
                    "put it elsewhere, then resume",
                ));
            }
        }
        linked => linked?,
    }
    Ok(host.sync(parent_of(&after))?)
}

/// Do they have both names? Then the first one is to go, once the VM is kept under the other.
pub(super) fn have_both_names(context: &Context, old: &ReplacedV1) -> Result<bool, Failure> {
    let Some([before, after]) = variables_by_name(&context.plan, old) else { return Ok(false) };
    let before = context.destination.stat(&before)?;
    let after = context.destination.stat(&after)?;
    Ok(before.zip(after).is_some_and(|(before, after)| before.inode == after.inode))
}

/// Takes their first name away: the next VM of that name would run on them too.
pub(super) fn drop_first_name(context: &Context, old: &ReplacedV1) -> Result<(), Failure> {
    let Some([before, _]) = variables_by_name(&context.plan, old) else { return Ok(()) };
    if let Some(stat) = context.destination.stat(&before)? {
        context.destination.unlink(&before, stat.inode)?;
    }
    Ok(())
}

/// Makes what is seen of them survive a power cut.
pub(super) fn settle(context: &Context, old: &ReplacedV1) -> Result<(), Failure> {
    if let Some([before, _]) = variables_by_name(&context.plan, old) {
        let directory = parent_of(&before);
        if context.destination.stat(directory)?.is_some() {
            context.destination.sync(directory)?;
        }
    }
    Ok(())
}
