//! What the clone's definition will have otherwise than the source's: the two compared, nothing remembered.

use journal_format::PlanV1;

use crate::domain::{Change, CloneMark, Definition, Difference, DomainError, MarkState, Rewrite, differences, rewrite};

/// Everything in which the finished clone's definition will differ from its source's, as planned. What libvirt itself adds
/// on the destination is told when it does.
pub fn changes(plan: &PlanV1) -> Result<Vec<Difference>, DomainError> {
    differences(&plan.source_definition, &finished(plan)?)
}

/// The clone's definition at the end: with its name, and with a mark. Of the mark only the transaction is known yet.
fn finished(plan: &PlanV1) -> Result<String, DomainError> {
    let mark = CloneMark {
        txn: plan.txn,
        controller: plan.controller.clone(),
        source_machine_id: plan.request.source.machine_id.clone(),
        source_host: plan.request.source.address.clone(),
        source_uuid: plan.request.vm_uuid,
        source_definition: None,
        clone_uuid: plan.clone_uuid,
        same_identity: plan.clone_uuid == plan.request.vm_uuid,
        state: MarkState::Finished,
        disks: Vec::new(),
        bases: Vec::new(),
    };
    let name = Some(plan.request.new_name.clone());
    rewrite(&Definition::parse(&plan.definition)?, &Rewrite { name, mark: Change::Set(mark), ..Rewrite::default() })
}
