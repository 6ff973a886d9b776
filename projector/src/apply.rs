//! THE apply path: records → changes → fold → upsert → objects.
//!
//! The Lambda and every kind of backfill call [`Projector::apply`], or [`Projector::apply_changes`]
//! for what is decoded already. The one other writer of the read model is a repair, which writes
//! images by [`crate::read_model::upsert_unmoved`]. A record is accounted for when it is in both
//! stores or in `rejected_records`; what is not is named in [`BatchOutcome::failed`] and may not be
//! acknowledged.

mod attempt;
mod classify;
mod decoded;
mod isolate;
mod learned;
mod pace;
mod pipeline;
mod queues;
mod reconcile;
mod refusals;
mod regions;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use self::decoded::DecodedRecords;

pub use self::learned::Learned;
pub use self::pace::Pace;
pub use self::reconcile::{
    Decision, Found, Known, Reconciled, decide, look_at_object, object_versions, reconcile,
    wants_object,
};
use crate::archive::Archive;
use crate::cause;
use crate::change::Tables;
use crate::config::TtlRemovals;
use crate::counts::Counts;
use crate::database::Database;
use crate::deadline::Deadline;
use crate::error::Error;
use crate::fold::{self, IndexedChange, SessionChanges};
use crate::rejected::{self, Rejection};

/// The function stops if PostgreSQL refuses every session of a batch, at least two, for the same
/// reason. The event source mapping then halves the batch, and a record that is at fault is
/// rejected when it comes alone.
const ALL_REFUSED_AT_LEAST: usize = 2;

/// A batch of fewer records is decoded as a whole before anything is stored: a second statement
/// would cost more than is won.
const OVERLAP_AT_LEAST: usize = 4_000;
/// Of a larger one, this share is decoded and sent first, and the rest is decoded meanwhile. To
/// decode a record takes less than half as long as PostgreSQL needs to store it, so the rest is
/// ready when the first part is stored.
const FIRST_SHARE: (usize, usize) = (3, 10);

/// Both stores, and how records are read.
#[derive(Debug)]
pub struct Projector {
    /// Whose streams are read.
    pub tables: Tables,
    /// What becomes of removals by time to live.
    pub ttl_removals: TtlRemovals,
    /// PostgreSQL.
    pub database: Database,
    /// S3, where objects are wanted.
    pub archive: Option<Archive>,
    /// Objects are not written along with the rows. Their sessions are kept in `pending_objects`,
    /// in the same commit, and the caller writes the objects afterwards: once per session, however
    /// many of its records came. For long runs of `backfill`.
    pub defers_objects: bool,
    /// If at least this many sessions of a batch are all refused by PostgreSQL, for one and the
    /// same reason, the table is at fault and not the records: the batch fails as a whole.
    pub all_refused_at_least: usize,
    /// Whether there is a second processor, so that records can be decoded while others are in the
    /// database.
    pub overlaps: bool,
    learned: Learned,
}

/// Where the time of a batch went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Durations {
    /// From bytes to folded patches.
    pub decode: Duration,
    /// The upserts, summed over the connections.
    pub database: Duration,
    /// The objects, from the first comparison to the last answer. The database works meanwhile.
    pub archive: Duration,
}

impl std::ops::AddAssign for Durations {
    fn add_assign(&mut self, other: Self) {
        let Self { decode, database, archive } = other;
        self.decode += decode;
        self.database += database;
        self.archive += archive;
    }
}

/// What became of a batch.
#[derive(Debug, Default)]
pub struct BatchOutcome {
    /// How many went which way.
    pub counts: Counts,
    /// The records that are not in both stores, by their index in the batch, in order.
    pub failed: Vec<usize>,
    /// What was rejected, and is open.
    pub rejections: Vec<Rejection>,
    /// The records that are rejected again and that somebody has discarded, by their index in the
    /// batch.
    pub discarded: Vec<usize>,
    /// The oldest creation time of a record in the batch.
    pub oldest: Option<OffsetDateTime>,
    /// The table of all its changes; `None` if they are of several, as no event source mapping
    /// delivers them.
    pub table: Option<String>,
    /// Where the time went.
    pub durations: Durations,
    /// The stores are away, or the time is up: not everything was tried.
    pub gave_up: bool,
}

impl Projector {
    /// A projector of these stores, as the function sends batches to it. It has learned nothing
    /// yet.
    #[must_use]
    pub fn new(
        tables: Tables,
        ttl_removals: TtlRemovals,
        database: Database,
        archive: Option<Archive>,
    ) -> Self {
        Self {
            tables,
            ttl_removals,
            database,
            archive,
            defers_objects: false,
            all_refused_at_least: ALL_REFUSED_AT_LEAST,
            overlaps: false,
            learned: Learned::default(),
        }
    }

    /// Where objects are written along with the rows.
    fn archive_at_once(&self) -> Option<&Archive> {
        self.archive.as_ref().filter(|_| !self.defers_objects)
    }

    /// What earlier statements have taught.
    #[must_use]
    pub fn learned(&self) -> &Learned {
        &self.learned
    }

    /// Applies a batch: each record's JSON as Lambda delivers it.
    ///
    /// Passing failures are not an error of the call: they are in [`BatchOutcome::failed`], and
    /// were logged. So is what was not in both stores by the deadline.
    ///
    /// # Errors
    /// Only what is [`Fatal`](crate::error::Consequence::Fatal): the set-up is wrong, and nothing
    /// may be acknowledged.
    pub async fn apply<R: AsRef<[u8]>>(
        &self,
        records: &[R],
        deadline: Deadline,
    ) -> Result<BatchOutcome, Error> {
        let decoded = DecodedRecords::of(records, 0, &self.tables, self.ttl_removals)?;
        let mut batch = BatchOutcome::default();
        self.see(&decoded, &mut batch);
        self.apply_decoded(records, decoded, &mut batch, deadline).await?;
        Ok(batch.end())
    }

    /// The same as [`Projector::apply`]. With a second processor, the rest of a large batch is
    /// decoded while its beginning is in the database.
    ///
    /// Each of the two is folded by itself: a change that a later one of the other part overtakes
    /// counts as applied, not as superseded. With an archive, objects take nearly all the time, and
    /// there is nothing to win.
    ///
    /// # Errors
    /// As [`Projector::apply`]. Some of the batch may be stored then.
    pub async fn apply_overlapping(
        &self,
        records: &Arc<Vec<Vec<u8>>>,
        deadline: Deadline,
    ) -> Result<BatchOutcome, Error> {
        if !self.overlaps || self.archive.is_some() || records.len() < OVERLAP_AT_LEAST {
            return self.apply(records, deadline).await;
        }
        let (share, of) = FIRST_SHARE;
        let middle = records.len() * share / of;
        let first = DecodedRecords::of(&records[..middle], 0, &self.tables, self.ttl_removals)?;
        let rest = {
            let (records, tables, ttl) =
                (Arc::clone(records), self.tables.clone(), self.ttl_removals);
            tokio::task::spawn_blocking(move || {
                DecodedRecords::of(&records[middle..], middle, &tables, ttl)
            })
        };
        let mut batch = BatchOutcome::default();
        self.see(&first, &mut batch);
        let stored = self.apply_decoded(records, first, &mut batch, deadline).await;
        let rest = match rest.await {
            Ok(rest) => rest?,
            Err(failed) => std::panic::resume_unwind(failed.into_panic()),
        };
        if stored.is_err() {
            // Whether the table is at fault is judged by the whole batch.
            return self.apply(records, deadline).await;
        }
        self.see(&rest, &mut batch);
        if batch.gave_up {
            batch.failed.extend(middle..records.len());
        } else {
            self.apply_decoded(records, rest, &mut batch, deadline).await?;
        }
        Ok(batch.end())
    }

    /// Adds to the outcome what is known of records before they are stored.
    fn see(&self, decoded: &DecodedRecords, batch: &mut BatchOutcome) {
        let oldest = decoded.changes.iter().filter_map(|indexed| indexed.change.changed_at).min();
        batch.oldest = batch.oldest.into_iter().chain(oldest).min();
        if !decoded.changes.is_empty() {
            let is_first = batch.counts.records == 0;
            let table = self.only_table(&decoded.changes).map(str::to_owned);
            batch.table = table.filter(|table| is_first || batch.table.as_ref() == Some(table));
        }
        batch.counts.records += decoded.records;
        batch.counts.ttl_kept += decoded.ttl_kept;
        batch.durations.decode += decoded.took;
    }

    /// Both stores, and rejections, for records that are decoded.
    async fn apply_decoded<R: AsRef<[u8]>>(
        &self,
        records: &[R],
        decoded: DecodedRecords,
        batch: &mut BatchOutcome,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let DecodedRecords { changes, malformed, .. } = decoded;
        // First: the stores may use up all the time there is.
        self.reject(records, malformed, batch, deadline).await?;
        // What PostgreSQL refuses is rejected after them, and wants time, too.
        let now = tokio::time::Instant::now();
        let reserve = Duration::from_millis(600)..Duration::from_secs(1);
        let earlier = deadline.earlier_by(now, 20, &reserve);
        let refused = self.store(fold::fold(&changes), batch, earlier).await?;
        self.reject(records, refused, batch, deadline).await
    }

    /// Applies changes that are decoded already: those of the rows of another database, or of
    /// objects. Each stands at its own [`IndexedChange::record_index`], by which the outcome names
    /// it.
    ///
    /// What PostgreSQL refuses is in [`BatchOutcome::rejections`], and nowhere else: there is no
    /// record that `rejected_records` could keep.
    ///
    /// # Errors
    /// As [`Projector::apply`].
    pub async fn apply_changes(
        &self,
        arrivals: &[IndexedChange],
        deadline: Deadline,
    ) -> Result<BatchOutcome, Error> {
        let mut batch = BatchOutcome::default();
        batch.counts.records = arrivals.len() as u64;
        batch.oldest = arrivals.iter().filter_map(|arrival| arrival.change.changed_at).min();
        batch.rejections = self.store(fold::fold(arrivals), &mut batch, deadline).await?;
        batch.counts.rejected = batch.rejections.len() as u64;
        batch.sum_up_failed();
        Ok(batch)
    }

    /// The table of all these changes, if it is one.
    fn only_table(&self, changes: &[IndexedChange]) -> Option<&str> {
        let mut names = changes.iter().map(|indexed| self.tables.of_part(indexed.change.part));
        let first = names.next()?;
        names.all(|name| name == first).then_some(first)
    }

    /// Stores rejections; what cannot be stored has failed.
    async fn reject<R: AsRef<[u8]>>(
        &self,
        records: &[R],
        rejections: Vec<Rejection>,
        batch: &mut BatchOutcome,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let storing = Box::pin(rejected::store(&self.database, records, &rejections, deadline));
        let rejected::Stored { failed, discarded, error } = storing.await?;
        // Nobody has to look at a discarded record again: like a change that its row holds already,
        // it is a duplicate.
        batch.counts.duplicate += discarded.len() as u64;
        let settled = failed.iter().chain(&discarded).copied().collect::<HashSet<usize>>();
        let open = rejections.into_iter().filter(|one| !settled.contains(&one.record_index));
        batch.rejections.extend(open);
        batch.failed.extend(failed);
        batch.discarded.extend(discarded);
        batch.counts.rejected = batch.rejections.len() as u64;
        error.map_or(Ok(()), pipeline::log_unless_fatal)
    }

    /// Both stores, for sessions that are decoded and folded already. Adds to the outcome what
    /// became of them, and returns what PostgreSQL refuses, which is not in `rejected_records` yet.
    ///
    /// # Errors
    /// As [`Projector::apply`].
    pub async fn store(
        &self,
        sessions: Vec<SessionChanges<'_>>,
        batch: &mut BatchOutcome,
        deadline: Deadline,
    ) -> Result<Vec<Rejection>, Error> {
        // Boxed: the futures below it are deeply nested, and the compiler has a limit.
        Box::pin(pipeline::store(self, sessions, batch, deadline)).await
    }
}

impl BatchOutcome {
    /// Nothing more comes of the batch.
    fn end(mut self) -> Self {
        log_rejections(&self.rejections);
        self.sum_up_failed();
        self
    }

    fn sum_up_failed(&mut self) {
        self.failed.sort_unstable();
        self.failed.dedup();
        self.counts.failed = self.failed.len() as u64;
    }
}

/// At most this many reasons of one batch get a log line each; the others share one.
const REASONS: usize = 10;

/// One line per reason and batch: what is rejected and acknowledged never goes by in silence.
fn log_rejections(rejections: &[Rejection]) {
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for rejection in rejections {
        let known = reasons.len() < REASONS || reasons.contains_key(rejection.logged.as_str());
        *reasons.entry(if known { &rejection.logged } else { "other reasons" }).or_default() += 1;
    }
    for (reason, records) in reasons {
        tracing::warn!(records, reason, "records are rejected, and stored in rejected_records");
    }
}

/// Why PostgreSQL refused: for `rejected_records` its message without its detail, which quotes
/// values; for the log not even that, since somebody's trigger may quote them, too.
#[must_use]
pub fn refusal(error: &Error) -> (String, String) {
    let Error::Database(error) = error else { return (error.to_string(), error.to_string()) };
    let message = match error.as_database_error() {
        Some(error) => format!("PostgreSQL refuses the row: {}", error.message()),
        None => format!("the row cannot be sent to PostgreSQL: {error}"),
    };
    let logged = match cause::without_values(error) {
        Some(error) => format!("PostgreSQL refuses the row: {error}"),
        None => "the row cannot be sent to PostgreSQL".to_owned(),
    };
    (message, logged)
}
