//! THE apply path: records → changes → fold → upsert → objects.
//!
//! The Lambda and every kind of backfill call [`Projector::apply`], or [`Projector::apply_changes`]
//! for what is decoded already. The one other writer of the read model is a repair, which writes
//! images by [`crate::read_model::upsert_unmoved`]. A record is accounted for when it is in both
//! stores or in `rejected_records`; what is not is named in [`BatchOutcome::failed`] and may not be
//! acknowledged.

mod attempt;
mod classify;
mod isolate;
mod learned;
mod pace;
mod pipeline;
mod queues;
mod reconcile;
mod refusals;
mod regions;

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use time::OffsetDateTime;

pub use self::learned::Learned;
pub use self::pace::Pace;
pub use self::reconcile::{
    Decision, Found, Known, Reconciled, decide, look_at_object, object_versions, reconcile,
    wants_object,
};
use crate::archive::Archive;
use crate::cause;
use crate::change::{self, Decoded, Tables};
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
        let start = Instant::now();
        let mut batch = BatchOutcome::default();
        let (changes, malformed) = self.decode(records, &mut batch)?;
        batch.oldest = changes.iter().filter_map(|indexed| indexed.change.changed_at).min();
        batch.table = self.only_table(&changes).map(str::to_owned);
        let sessions = fold::fold(&changes);
        batch.durations.decode = start.elapsed();

        // First: the stores may use up all the time there is.
        self.reject(records, malformed, &mut batch, deadline).await?;
        // What PostgreSQL refuses is rejected after them, and wants time, too.
        let now = tokio::time::Instant::now();
        let reserve = Duration::from_millis(600)..Duration::from_secs(1);
        let earlier = deadline.earlier_by(now, 20, &reserve);
        let refused = self.store(sessions, &mut batch, earlier).await?;
        self.reject(records, refused, &mut batch, deadline).await?;

        log_rejections(&batch.rejections);
        batch.failed.sort_unstable();
        batch.failed.dedup();
        batch.counts.failed = batch.failed.len() as u64;
        Ok(batch)
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
        batch.failed.sort_unstable();
        batch.failed.dedup();
        batch.counts.failed = batch.failed.len() as u64;
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

    fn decode<R: AsRef<[u8]>>(
        &self,
        records: &[R],
        batch: &mut BatchOutcome,
    ) -> Result<(Vec<IndexedChange>, Vec<Rejection>), Error> {
        let mut changes = Vec::with_capacity(records.len());
        let mut malformed = Vec::new();
        batch.counts.records = records.len() as u64;
        for (record_index, record) in records.iter().enumerate() {
            match change::decode(record.as_ref(), &self.tables)? {
                // Left out before the fold: the greatest version that remains must win.
                Decoded::Change(change)
                    if change.expired && self.ttl_removals == TtlRemovals::Keep =>
                {
                    batch.counts.ttl_kept += 1;
                }
                Decoded::Change(change) => changes.push(IndexedChange { record_index, change }),
                Decoded::Malformed(why) => {
                    let (reason, logged) = (why.to_string(), why.without_values());
                    malformed.push(Rejection { record_index, reason, logged });
                }
            }
        }
        Ok((changes, malformed))
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
