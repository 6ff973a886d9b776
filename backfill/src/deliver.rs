//! Delivers batches to the projector until every record of them is accounted for: what Lambda does
//! for the live function, with patience and an end. Files, streams, `redrive` and `merge` share it.
//! Only `redrive` and `merge` may leave records that cannot be stored, since they are kept where
//! they came from.

use std::future::Future;
use std::sync::Arc;

use anyhow::bail;
use projector::apply::{BatchOutcome, Durations, Projector};
use projector::change::{self, Decoded, Tables};
use projector::counts::Counts;
use projector::deadline::Deadline;
use projector::error::Error;
use projector::fold::IndexedChange;
use tokio::task::JoinHandle;

use crate::console;
use crate::pending_objects;

use crate::retry::{MAX_TRIES, pause_after};
use crate::summary::Reasons;

/// A batch ends here too, however few its records are: it bounds the memory that meshes take.
pub(crate) const BATCH_BYTES: usize = 32 << 20;
/// How often the rest of a batch is delivered without any progress before it is left, if others
/// passed: they show that the stores are there, and the rest has a trouble of its own.
const TRIES_OF_THE_REST: u32 = 4;
/// The run ends if PostgreSQL refuses at least this many sessions of a batch, all for the same
/// reason, and takes none: the table is at fault. Nobody halves our batches, so a few records may
/// well be at fault themselves.
const ALL_REFUSED_AT_LEAST: usize = 20;

/// What a batch is made of.
pub(crate) trait Deliverable: Sized + Send {
    /// Applies a batch. The outcome names its members by their index in it.
    fn apply(
        projector: &Projector,
        batch: &mut [Self],
    ) -> impl Future<Output = Result<BatchOutcome, Error>> + Send;
}

/// A record, as Lambda delivers it.
impl Deliverable for Vec<u8> {
    async fn apply(projector: &Projector, batch: &mut [Self]) -> Result<BatchOutcome, Error> {
        Box::pin(projector.apply(batch, Deadline::NONE)).await
    }
}

/// A change that is decoded already.
impl Deliverable for IndexedChange {
    async fn apply(projector: &Projector, batch: &mut [Self]) -> Result<BatchOutcome, Error> {
        for (index, arrival) in batch.iter_mut().enumerate() {
            arrival.record_index = index;
        }
        Box::pin(projector.apply_changes(batch, Deadline::NONE)).await
    }
}

/// The projector, and what came of all batches so far.
pub(crate) struct Delivery {
    projector: Arc<Projector>,
    pub(crate) counts: Counts,
    pub(crate) reasons: Reasons,
    pub(crate) durations: Durations,
    /// The records of batches that were begun and are not accounted for: a run that ends meanwhile
    /// does not know how many of them are stored.
    pub(crate) not_counted: u64,
    /// How many objects were still pending when the run ended; `None` if that is not known.
    pub(crate) objects_pending: Option<u64>,
}

/// What came of one batch.
#[derive(Default)]
pub(crate) struct Delivered {
    /// How many records it had, stored or not.
    records: u64,
    counts: Counts,
    reasons: Reasons,
    durations: Durations,
    /// The indices of the records that have rows in `rejected_records`, in order: open ones and
    /// discarded ones.
    rejected: Vec<usize>,
    /// Why, by the indices of the open ones.
    refused: Vec<(usize, String)>,
    /// The indices of the records that could not be stored, in order.
    failed: Vec<usize>,
}

impl Delivered {
    /// What PostgreSQL refuses of a batch of changes: the index of each, and why.
    pub(crate) fn refused(&self) -> &[(usize, String)] {
        &self.refused
    }

    /// What could not be stored while others could, by index.
    pub(crate) fn failed(&self) -> &[usize] {
        &self.failed
    }
}

/// The records of a batch that are not in both stores, by their indices, in order.
#[derive(Debug, Default)]
pub(crate) struct NotStored {
    /// They are rejected again, or were discarded meanwhile.
    pub(crate) rejected: Vec<usize>,
    /// They could not be stored while others could.
    pub(crate) failed: Vec<usize>,
}

impl Delivery {
    pub(crate) fn new(projector: Projector) -> Self {
        Self::shared(Self::share(projector))
    }

    /// The same, where rows come first: [`Delivery::write_objects`] writes the objects.
    pub(crate) fn deferring(mut projector: Projector) -> Self {
        projector.defers_objects = true;
        Self::new(projector)
    }

    /// A projector for several users of one command, one of which delivers records of a stream.
    pub(crate) fn share(mut projector: Projector) -> Arc<Projector> {
        projector.all_refused_at_least = ALL_REFUSED_AT_LEAST;
        Arc::new(projector)
    }

    /// The delivery of one user of [`Delivery::share`].
    pub(crate) fn shared(projector: Arc<Projector>) -> Self {
        Self {
            projector,
            counts: Counts::default(),
            reasons: Reasons::default(),
            durations: Durations::default(),
            not_counted: 0,
            objects_pending: None,
        }
    }

    /// For records that may have been refused before: that all are refused says nothing of the
    /// table.
    pub(crate) fn of_rejected(mut projector: Projector) -> Self {
        projector.all_refused_at_least = usize::MAX;
        Self::shared(Arc::new(projector))
    }

    pub(crate) fn projector(&self) -> &Projector {
        &self.projector
    }

    /// The same, for who goes on to use it while batches are delivered.
    pub(crate) fn shared_projector(&self) -> Arc<Projector> {
        Arc::clone(&self.projector)
    }

    /// Writes the objects of all pending sessions, unless `end` comes first. `false` if it did.
    ///
    /// # Errors
    /// As [`pending_objects::write`].
    pub(crate) async fn write_objects(
        &mut self,
        end: impl Future<Output = ()>,
    ) -> anyhow::Result<bool> {
        tokio::select! {
            biased;
            () = end => Ok(false),
            written = pending_objects::write(&self.projector, &mut self.counts) => {
                written.map(|()| true)
            }
        }
    }

    /// Counts the objects that are still pending, for the summary.
    pub(crate) async fn count_pending_objects(&mut self) {
        self.objects_pending = pending_objects::count(&self.projector).await;
    }

    /// Delivers a batch of records that are kept elsewhere: what cannot be stored while others can
    /// is left there.
    ///
    /// # Errors
    /// If the set-up is wrong, or not a single record could be stored for some minutes.
    pub(crate) async fn deliver_or_leave(
        &mut self,
        records: Vec<Vec<u8>>,
    ) -> anyhow::Result<NotStored> {
        let count = records.len();
        self.not_counted += count as u64;
        let mut delivered = deliver_until_settled(&self.projector, records, TRIES_OF_THE_REST)
            .await?
            .require_any(count)?;
        let failed = std::mem::take(&mut delivered.failed);
        Ok(NotStored { rejected: self.add(delivered), failed })
    }

    /// Delivers a batch on a task of its own, so that one batch is decoded while another is in the
    /// database: once the task has ended, every record is in both stores, or is rejected.
    ///
    /// The task fails if the set-up is wrong, or records could not be stored for some minutes.
    pub(crate) fn start(&mut self, records: Vec<Vec<u8>>) -> JoinHandle<anyhow::Result<Delivered>> {
        self.not_counted += records.len() as u64;
        let projector = Arc::clone(&self.projector);
        tokio::spawn(async move {
            deliver_until_settled(&projector, records, MAX_TRIES).await?.require_all()
        })
    }

    /// Delivers changes on a task of its own. What cannot be stored while others can is left where
    /// it came from.
    pub(crate) fn start_changes(
        &mut self,
        changes: Vec<IndexedChange>,
    ) -> JoinHandle<anyhow::Result<Delivered>> {
        let count = changes.len();
        self.not_counted += count as u64;
        let projector = Arc::clone(&self.projector);
        tokio::spawn(async move {
            deliver_until_settled(&projector, changes, TRIES_OF_THE_REST).await?.require_any(count)
        })
    }

    /// Adds what came of a batch, and gives the indices of the records that were rejected.
    pub(crate) fn add(&mut self, delivered: Delivered) -> Vec<usize> {
        self.not_counted -= delivered.records;
        self.counts += delivered.counts;
        self.durations += delivered.durations;
        self.reasons.merge(delivered.reasons);
        delivered.rejected
    }
}

impl Delivered {
    /// Of a batch of this many, one at least must be through: otherwise the stores are away.
    fn require_any(self, count: usize) -> anyhow::Result<Self> {
        if self.failed.len() == count { self.require_all() } else { Ok(self) }
    }

    fn require_all(self) -> anyhow::Result<Self> {
        if self.failed.is_empty() {
            return Ok(self);
        }
        bail!(
            "{} records could still not be stored after {MAX_TRIES} deliveries: fix the cause and \
                run the same command again, which is harmless",
            self.failed.len()
        )
    }
}

/// Delivers a batch until nothing more can be stored: [`MAX_TRIES`] in vain or, once some of it is
/// through, `deliveries_of_the_rest`.
async fn deliver_until_settled<T: Deliverable>(
    projector: &Projector,
    mut records: Vec<T>,
    deliveries_of_the_rest: u32,
) -> anyhow::Result<Delivered> {
    let mut delivered = Delivered { records: records.len() as u64, ..Delivered::default() };
    let mut indices: Vec<usize> = (0..records.len()).collect();
    let (mut delivery, mut most) = (0, MAX_TRIES);
    while delivery < most {
        delivery += 1;
        let batch = T::apply(projector, &mut records).await?;
        // A record counts once it is through. (A change whose object failed was applied then; it
        // comes again as a duplicate.)
        let mut counts = batch.counts;
        counts.records -= counts.failed;
        counts.failed = 0;
        delivered.counts += counts;
        delivered.durations += batch.durations;
        delivered.rejected.extend(batch.discarded.iter().map(|index| indices[*index]));
        for rejection in batch.rejections {
            let index = indices[rejection.record_index];
            delivered.rejected.push(index);
            delivered.reasons.add(rejection.reason.clone());
            delivered.refused.push((index, rejection.reason));
        }
        if batch.failed.is_empty() {
            delivered.rejected.sort_unstable();
            return Ok(delivered);
        }
        // Slow progress is progress: only deliveries in vain are counted.
        if batch.failed.len() < records.len() {
            (delivery, most) = (1, deliveries_of_the_rest);
        }
        indices = batch.failed.iter().map(|index| indices[*index]).collect();
        let mut failed = batch.failed.into_iter().peekable();
        let mut record_index = 0;
        records.retain(|_| {
            let keep = failed.next_if_eq(&record_index).is_some();
            record_index += 1;
            keep
        });
        if delivery < most {
            let pause = pause_after(delivery);
            console::line(&format!(
                "{} records could not be stored (see the log above); delivery {} of {most} in {} s",
                records.len(),
                delivery + 1,
                pause.as_secs()
            ));
            tokio::time::sleep(pause).await;
        }
    }
    delivered.rejected.sort_unstable();
    delivered.failed = indices;
    Ok(delivered)
}

/// Decodes a batch and counts; writes nothing.
pub(crate) fn validate(
    records: &[Vec<u8>],
    tables: &Tables,
    counts: &mut Counts,
    reasons: &mut Reasons,
) -> anyhow::Result<()> {
    for record in records {
        counts.records += 1;
        if let Decoded::Malformed(malformed) = change::decode(record, tables)? {
            counts.rejected += 1;
            reasons.add(malformed.to_string());
        }
    }
    Ok(())
}
