//! The host records on a host, read without any lock: what transactions there are, whose, and how far they say they are.
//! What is read here may be outdated at once; whoever acts on it takes the owner lock and looks again.

use std::collections::BTreeMap;

use journal_format::owner::{DirectionV1, OwnerV1, decode_owner_file};
use journal_format::{ChainEnd, EventV1, PlanV1, TxnId};
use serde::Serialize;

use crate::steps::host_record::{HOST_ROOT, OWNER_BYTES_MAX};
use crate::world::{Fault, Host};

/// Longer than any plan that an agent writes at once.
const PLAN_BYTES_MAX: u64 = 3 << 20;

/// How far a transaction is, as its record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordState {
    /// On its way to the commit.
    Unfinished,
    /// On its way back.
    RollingBack,
    /// The commit mark is set.
    Committed,
    /// A person closed it.
    Abandoned,
    /// The record itself was being built or taken away: nothing else of the transaction exists.
    Scaffold,
}

/// One transaction's record.
#[derive(Debug, Clone)]
pub struct FoundRecord {
    /// Whose.
    pub txn: TxnId,
    /// How far.
    pub state: RecordState,
    /// Who drives it; in words, why that cannot be read.
    pub owner: Result<OwnerV1, String>,
    /// Its plan; in words, why that cannot be read.
    pub plan: Result<Box<PlanV1>, String>,
}

/// All records, oldest first.
pub fn host_records(host: &dyn Host) -> Result<Vec<FoundRecord>, Fault> {
    let mut directories: BTreeMap<TxnId, (bool, String)> = BTreeMap::new();
    for name in host.list(HOST_ROOT)?.unwrap_or_default() {
        let scaffold = [".new-", ".gone-"].iter().find_map(|prefix| name.strip_prefix(prefix));
        let Ok(txn) = scaffold.unwrap_or(&name).parse::<TxnId>() else { continue };
        // A whole record counts more than what is left of an earlier try to build it.
        if scaffold.is_none() || !directories.contains_key(&txn) {
            directories.insert(txn, (scaffold.is_some(), format!("{HOST_ROOT}/{name}")));
        }
    }
    directories.into_iter().map(|(txn, (scaffold, directory))| record(host, txn, scaffold, &directory)).collect()
}

fn record(host: &dyn Host, txn: TxnId, scaffold: bool, directory: &str) -> Result<FoundRecord, Fault> {
    let mut owner = Err(format!("{directory} has no owner file"));
    let mut state = RecordState::Unfinished;
    let names = [
        ("owner", RecordState::Unfinished),
        ("committed", RecordState::Committed),
        ("abandoned", RecordState::Abandoned),
    ];
    for (name, told) in names {
        if let Some(bytes) = host.read(&format!("{directory}/{name}"), OWNER_BYTES_MAX)? {
            owner = decode_owner_file(&bytes).map_err(|error| error.to_string()).and_then(|owner| {
                if owner.txn == txn { Ok(owner) } else { Err(format!("it names transaction {}", owner.txn)) }
            });
            state = told;
            break;
        }
    }
    let state = match (&owner, state) {
        _ if scaffold => RecordState::Scaffold,
        (Ok(OwnerV1 { direction: DirectionV1::RollingBack, .. }), RecordState::Unfinished) => RecordState::RollingBack,
        (_, state) => state,
    };
    let plan = match host.read(&format!("{directory}/plan"), PLAN_BYTES_MAX)? {
        Some(bytes) => plan_of(txn, &bytes),
        None => Err(format!("{directory} has no plan")),
    };
    Ok(FoundRecord { txn, state, owner, plan })
}

fn plan_of(txn: TxnId, bytes: &[u8]) -> Result<Box<PlanV1>, String> {
    let (frame, _) = ChainEnd::start(txn).decode(bytes).map_err(|error| error.to_string())?;
    match frame.record.event {
        EventV1::Begun { plan } if plan.txn == txn => Ok(plan),
        EventV1::Begun { plan } => Err(format!("it is the plan of {}", plan.txn)),
        _ => Err("it is not a plan".to_owned()),
    }
}
