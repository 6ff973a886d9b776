//! Batches that Lambda gave up on. In a database that has had a repair they are not applied: above
//! an image, the version of a late record proves nothing. So they become rejected records, and
//! `redrive` reads their items again.
//!
//! Nobody repairs while late records are applied by their versions: the lock of repairs is held
//! from the first of them to the end of the run, and the question is asked with the lock held.

use anyhow::bail;
use projector::database::Database;
use projector::deadline::Deadline;
use projector::rejected::{self, Rejection, Stored};

use crate::advisory_lock::{self, Held};
use crate::console;
use crate::deliver::Delivery;
use crate::repair::ledger;
use crate::repair::reread::Replay;

const REASON: &str = "Lambda gave up on it, and this database has had a repair: `backfill redrive` \
    reads its item again";

/// What becomes of late records.
#[derive(Default)]
pub(crate) struct Late {
    /// Keeps repairs away; `None` behind a pooler, too.
    lock: Option<Held>,
    /// A late record has come, and the lock was taken.
    begun: bool,
    told: bool,
}

impl Late {
    /// Says, if this database has had a repair, what becomes of the records of this run.
    ///
    /// # Errors
    /// If the database stays away.
    pub(crate) async fn tell(&mut self, database: &Database) -> anyhow::Result<()> {
        if !self.told && ledger::late_records(database).await? == Replay::ReRead {
            self.told = true;
            console::line(
                "this database has had a repair: batches that Lambda gave up on go to \
                 rejected_records, and `backfill redrive` reads their items again. Records of any \
                 other file are applied by their versions, which can bring back what the repair \
                 removed: run `backfill verify --tables` after them",
            );
        }
        Ok(())
    }

    /// What becomes of the next late records.
    ///
    /// # Errors
    /// If a repair, a merge or a redrive is under way, or the database stays away.
    pub(crate) async fn replay(&mut self, database: &Database) -> anyhow::Result<Replay> {
        if !self.begun {
            let lock = advisory_lock::REPAIR.by("backfill file");
            self.lock = Held::take_unless_pooled(lock, database).await?;
            self.begun = true;
        } else if let Some(lock) = &mut self.lock {
            lock.keep(database).await?;
        }
        self.tell(database).await?;
        ledger::late_records(database).await
    }
}

/// Keeps these records in `rejected_records`, and counts them.
///
/// # Errors
/// If one of them cannot be kept.
pub(crate) async fn keep(delivery: &mut Delivery, records: &[Vec<u8>]) -> anyhow::Result<()> {
    let rejection = |record_index| Rejection {
        record_index,
        reason: REASON.to_owned(),
        logged: REASON.to_owned(),
    };
    let rejections: Vec<Rejection> = (0..records.len()).map(rejection).collect();
    let database = &delivery.projector().database;
    let storing = rejected::store(database, records, &rejections, Deadline::NONE);
    let Stored { failed, discarded, error } = Box::pin(storing).await?;
    match error {
        Some(error) => return Err(error.into()),
        None if !failed.is_empty() => bail!("{} records could not be kept", failed.len()),
        None => {}
    }
    let kept = records.len() - discarded.len();
    delivery.counts.records += records.len() as u64;
    delivery.counts.duplicate += discarded.len() as u64;
    delivery.counts.rejected += kept as u64;
    for _ in 0..kept {
        delivery.reasons.add(REASON.to_owned());
    }
    Ok(())
}
