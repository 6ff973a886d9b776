//! Batches that Lambda gave up on, in a database that has had a repair: above an image, the version
//! of a late record proves nothing. So they become rejected records, and `redrive` reads their
//! items again.

use anyhow::bail;
use projector::database::Database;
use projector::deadline::Deadline;
use projector::rejected::{self, Rejection, Stored};

use crate::console;
use crate::deliver::Delivery;
use crate::repair::ledger;
use crate::repair::reread::{Replay, replay};
use crate::retry::retry_transient;

const REASON: &str = "Lambda gave up on it, and this database has had a repair: `backfill redrive` \
    reads its item again";

/// Whether this database has had a repair.
///
/// # Errors
/// If the database stays away.
pub(crate) async fn are_kept(database: &Database) -> anyhow::Result<bool> {
    let had = retry_transient("ask whether this database has had a repair", async || {
        ledger::any(database).await
    });
    let re_read = replay(had.await?) == Replay::ReRead;
    if re_read {
        console::line(
            "this database has had a repair: batches that Lambda gave up on go to rejected_records, \
             and `backfill redrive` reads their items again. Records of any other file are applied \
             by their versions, which can bring back what the repair removed: run `backfill verify \
             --tables` after them",
        );
    }
    Ok(re_read)
}

/// Keeps these records in `rejected_records`, and counts them.
///
/// # Errors
/// If one of them cannot be kept.
pub(crate) async fn keep(delivery: &mut Delivery, records: &[Vec<u8>]) -> anyhow::Result<()> {
    if records.is_empty() {
        return Ok(());
    }
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
