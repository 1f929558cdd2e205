//! The journal of a simulated controller: what was durable outlives it, every write is a crash point, and the oracle
//! reads along.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use journal_format::{ChunkRecordV1, ChunkState, RecordV1, TxnId};
use kvm_clone::journal::memory::MemoryJournal;
use kvm_clone::journal::{Journal, JournalError};

use crate::oracle::Oracle;
use crate::world::{Core, SimWorld};

/// What is on the controller's disk.
#[derive(Debug, Clone, Default)]
pub struct Durable {
    pub records: Vec<RecordV1>,
    pub ledger: BTreeMap<u32, BTreeMap<u64, ChunkState>>,
}

/// A journal that one life of a controller has open.
pub struct Notebook {
    world: SimWorld,
    open: MemoryJournal,
    durable: Rc<RefCell<Durable>>,
    oracle: Rc<RefCell<Oracle>>,
    failed: bool,
}

impl Notebook {
    pub fn open(txn: TxnId, world: &SimWorld, durable: &Rc<RefCell<Durable>>, oracle: &Rc<RefCell<Oracle>>) -> Self {
        let mut open = MemoryJournal::new(txn, Box::new(|_| false));
        let kept = durable.borrow();
        for (sequence, record) in (0..).zip(&kept.records) {
            open.append(sequence, record.clone()).unwrap();
        }
        for (disk, chunks) in &kept.ledger {
            let records: Vec<_> =
                chunks.iter().map(|(index, state)| ChunkRecordV1 { index: *index, state: *state }).collect();
            open.record_chunks(*disk, &records).unwrap();
        }
        drop(kept);
        Self { world: world.clone(), open, durable: Rc::clone(durable), oracle: Rc::clone(oracle), failed: false }
    }

    fn judge(&self, judge: impl FnOnce(&Core) -> Result<(), String>) {
        self.world.with(|core| {
            if let Err(broken) = judge(core) {
                core.broken.push(broken);
            }
        });
    }

    /// One write: a crash point before it and one behind it.
    fn write(
        &mut self,
        told: &dyn Fn() -> String,
        write: impl FnOnce(&mut MemoryJournal, &mut Durable) -> Result<(), JournalError>,
    ) -> Result<(), JournalError> {
        let poisoned = JournalError::Poisoned { path: "the simulated journal".to_owned() };
        if self.failed {
            return Err(poisoned);
        }
        let (open, durable) = (&mut self.open, &self.durable);
        let mut written = Ok(());
        let good = self.world.journal_point(told, || written = write(open, &mut durable.borrow_mut()));
        self.failed = !good;
        if good { written } else { Err(poisoned) }
    }
}

impl Journal for Notebook {
    fn txn(&self) -> TxnId {
        self.open.txn()
    }

    fn records(&self) -> &[RecordV1] {
        self.open.records()
    }

    fn append(&mut self, expected: u64, record: RecordV1) -> Result<(), JournalError> {
        let told = {
            let event = record.event.clone();
            move || {
                let mut told = format!("journal: {event:?}");
                told.truncate(told.char_indices().nth(160).map_or(told.len(), |(at, _)| at));
                told
            }
        };
        let oracle = Rc::clone(&self.oracle);
        self.judge(|core| oracle.borrow().recorded(core, &record.event));
        self.write(&told, |open, durable| {
            open.append(expected, record.clone())?;
            durable.records.push(record);
            Ok(())
        })
    }

    fn chunks(&self, disk: u32) -> Result<BTreeMap<u64, ChunkState>, JournalError> {
        self.open.chunks(disk)
    }

    fn record_chunks(&mut self, disk: u32, records: &[ChunkRecordV1]) -> Result<(), JournalError> {
        let oracle = Rc::clone(&self.oracle);
        self.judge(|core| oracle.borrow().ledger(core, disk, records));
        self.write(&|| format!("ledger of disk {disk}: {} chunks", records.len()), |open, durable| {
            open.record_chunks(disk, records)?;
            durable.ledger.entry(disk).or_default().extend(records.iter().map(|record| (record.index, record.state)));
            Ok(())
        })
    }

    fn forget_chunks(&mut self, disk: u32) -> Result<(), JournalError> {
        self.write(&|| format!("ledger of disk {disk} forgotten"), |open, durable| {
            open.forget_chunks(disk)?;
            durable.ledger.remove(&disk);
            Ok(())
        })
    }
}
