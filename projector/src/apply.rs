//! THE apply path: records → changes → fold → upsert → objects.
//!
//! The Lambda and every kind of backfill call [`Projector::apply`]; nothing else writes the read
//! model. A record is accounted for when it is in both stores or in `rejected_records`; what is not
//! is named in [`Applied::failed`] and may not be acknowledged.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use time::OffsetDateTime;

use crate::archive::{Archive, Archived};
use crate::change::{self, Decoded, Tables};
use crate::database::Database;
use crate::error::{self, Consequence, Error};
use crate::fold::{self, Arrival, SessionChanges};
use crate::measurement::Part;
use crate::read_model::{self, Returned, Upserted};
use crate::rejected::{self, Rejection};

/// A batch of fewer sessions is one statement; of more, one a connection, each its own commit.
const SPLIT_SESSIONS: usize = 500;

/// With an archive a statement takes no more sessions than this, so that objects go out while the
/// next ones are in the database; and no statement is sent while more of them wait for their objects.
const OVERLAP_SESSIONS: usize = 1_000;

/// The rows of a batch of so many sessions are returned whole whatever their size; of a larger one, only
/// the small ones, so that what waits for its object is bounded.
const WHOLE_ROWS: usize = 8;

/// After so many failures without a success between them the remaining objects of a batch are not
/// tried: they come again.
const GIVE_UP_AFTER: u32 = 16;

/// What to do with the removals that DynamoDB makes at the end of an item's time to live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TtlRemovals {
    /// They are removals like any other.
    Apply,
    /// The values stay in the read model; the removal is only counted.
    Keep,
}

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
    /// Whether most sessions of the last statement were held already: a replay, and the next one is
    /// likely to be held too. It decides what is asked first, never what is written.
    pub mostly_held: AtomicBool,
}

/// How many records of a batch went which way, and how many objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records delivered.
    pub records: u64,
    /// The newest changes, a part, of the sessions whose rows were written.
    pub applied: u64,
    /// Changes that a row not written, or another record of the batch, held already.
    pub duplicate: u64,
    /// Changes older than what a row not written held.
    pub stale: u64,
    /// Changes overtaken by a newer one of the same part within the batch.
    pub superseded: u64,
    /// Removals by time to live whose values were kept, as configured.
    pub ttl_kept: u64,
    /// Records set aside in `rejected_records`.
    pub rejected: u64,
    /// Records that are not in both stores; they come again.
    pub failed: u64,
    /// Rows inserted or updated.
    pub rows_written: u64,
    /// Objects written.
    pub objects_written: u64,
    /// Objects that held the row already.
    pub objects_current: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        // Destructured whole, so that a new count cannot be forgotten here.
        let Self {
            records,
            applied,
            duplicate,
            stale,
            superseded,
            ttl_kept,
            rejected,
            failed,
            rows_written,
            objects_written,
            objects_current,
        } = other;
        self.records += records;
        self.applied += applied;
        self.duplicate += duplicate;
        self.stale += stale;
        self.superseded += superseded;
        self.ttl_kept += ttl_kept;
        self.rejected += rejected;
        self.failed += failed;
        self.rows_written += rows_written;
        self.objects_written += objects_written;
        self.objects_current += objects_current;
    }
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
pub struct Applied {
    /// How many went which way.
    pub counts: Counts,
    /// The records that are not in both stores, by their index in the batch, in order.
    pub failed: Vec<usize>,
    /// What was set aside.
    pub rejections: Vec<Rejection>,
    /// The oldest creation time of a record in the batch.
    pub oldest: Option<OffsetDateTime>,
    /// Where the time went.
    pub durations: Durations,
}

/// What became of the sessions of a batch.
#[derive(Debug, Default)]
pub struct Stored {
    /// How many records went which way, without those that were set aside.
    pub counts: Counts,
    /// The records that are not in both stores, by their index in the batch.
    pub failed: Vec<usize>,
    /// What PostgreSQL refuses, and is yet to be set aside.
    pub rejections: Vec<Rejection>,
    /// Where the time went.
    pub durations: Durations,
}

impl Projector {
    /// Applies a batch: each record's JSON as Lambda delivers it.
    ///
    /// Passing failures are not an error of the call: they are in [`Applied::failed`], and were
    /// logged.
    ///
    /// # Errors
    /// Only what is [`Consequence::Fatal`]: the set-up is wrong, and nothing may be acknowledged.
    pub async fn apply<R: AsRef<[u8]>>(&self, records: &[R]) -> Result<Applied, Error> {
        let start = Instant::now();
        let mut batch = Applied::default();
        let arrivals = self.decode(records, &mut batch)?;
        batch.oldest = arrivals.iter().filter_map(|arrival| arrival.change.changed_at).min();
        let sessions = fold::fold(&arrivals);
        batch.durations.decode = start.elapsed();

        let stored = self.store(sessions).await?;
        batch.counts += stored.counts;
        batch.failed = stored.failed;
        batch.rejections.extend(stored.rejections);
        batch.durations += stored.durations;

        match rejected::set_aside(&self.database, records, &batch.rejections).await {
            Ok(()) => batch.counts.rejected = batch.rejections.len() as u64,
            Err(error) => {
                note(error)?;
                batch.failed.extend(batch.rejections.drain(..).map(|rejection| rejection.position));
            }
        }
        batch.failed.sort_unstable();
        batch.failed.dedup();
        batch.counts.failed = batch.failed.len() as u64;
        Ok(batch)
    }

    fn decode<R: AsRef<[u8]>>(
        &self,
        records: &[R],
        batch: &mut Applied,
    ) -> Result<Vec<Arrival>, Error> {
        let mut arrivals = Vec::with_capacity(records.len());
        batch.counts.records = records.len() as u64;
        for (position, record) in records.iter().enumerate() {
            match change::decode(record.as_ref(), &self.tables)? {
                // Left out before the fold: the greatest version that remains must win.
                Decoded::Change(change)
                    if change.expired && self.ttl_removals == TtlRemovals::Keep =>
                {
                    batch.counts.ttl_kept += 1;
                }
                Decoded::Change(change) => arrivals.push(Arrival { position, change }),
                Decoded::Malformed(malformed) => {
                    batch.rejections.push(Rejection { position, reason: malformed.to_string() });
                }
            }
        }
        Ok(arrivals)
    }

    /// Both stores. As many chunks are in the database at once as there are connections; as one comes
    /// back, the objects of ALL its sessions are brought up, written or not (a crash between commit and
    /// PUT is repaired by the redelivery), while the next is in the database.
    ///
    /// # Errors
    /// As [`Projector::apply`].
    pub async fn store(&self, sessions: Vec<SessionChanges<'_>>) -> Result<Stored, Error> {
        let mut stored = Stored::default();
        let mut upserts = FuturesUnordered::new();
        let mut waiting = VecDeque::new();
        let mut objects = FuturesUnordered::new();
        let mut first_object: Option<Instant> = None;
        let mut failures_in_a_row = 0;
        let returned = match &self.archive {
            None => Returned::Nothing,
            Some(_) if sessions.len() <= WHOLE_ROWS => Returned::Rows,
            Some(_) => Returned::SmallRows,
        };
        let mut chunks = self.chunks(sessions);
        loop {
            while upserts.len() < self.database.connections()
                && waiting.len() <= OVERLAP_SESSIONS
                && let Some(chunk) = chunks.pop_front()
            {
                upserts.push(self.upsert(chunk, returned));
            }
            while let Some(archive) = &self.archive
                && objects.len() < archive.concurrency()
                && let Some((session, upserted)) = waiting.pop_front()
            {
                first_object.get_or_insert_with(Instant::now);
                objects.push(self.bring_up(archive, session, upserted));
            }
            tokio::select! {
                Some((chunk, duration, upserted)) = upserts.next() => {
                    stored.durations.database += duration;
                    match upserted {
                        Ok(upserted) => {
                            let mut not_written = Vec::new();
                            for (session, upserted) in chunk.into_iter().zip(upserted) {
                                let Some(upserted) = upserted else {
                                    not_written.push(session);
                                    continue;
                                };
                                count(&session, &upserted, &mut stored.counts);
                                if failures_in_a_row >= GIVE_UP_AFTER {
                                    stored.failed.extend(positions(&session));
                                } else if self.archive.is_some() {
                                    waiting.push_back((session, upserted));
                                }
                            }
                            if let [first, others @ ..] = not_written.as_slice() {
                                let session_id = first.session_id.to_owned();
                                note(Error::RowNotWritten { session_id, others: others.len() })?;
                                stored.failed.extend(not_written.iter().flat_map(positions));
                            }
                        }
                        Err(error) if error.consequence() == Consequence::Reject => {
                            match narrow(chunk) {
                                Narrowed::Parts(first, rest) => {
                                    chunks.push_front(rest);
                                    chunks.push_front(first);
                                }
                                Narrowed::One(position) => {
                                    let reason = refusal(&error);
                                    stored.rejections.push(Rejection { position, reason });
                                }
                            }
                        }
                        Err(error) => {
                            note(error)?;
                            // Those behind it would wait as long for the same.
                            let behind = chunks.drain(..).flatten();
                            for session in chunk.into_iter().chain(behind) {
                                stored.failed.extend(positions(&session));
                            }
                        }
                    }
                }
                Some((session, archived)) = objects.next() => {
                    failures_in_a_row += 1;
                    match archived {
                        Ok(Archived::Written) => {
                            failures_in_a_row = 0;
                            stored.counts.objects_written += 1;
                        }
                        Ok(Archived::Current) => {
                            failures_in_a_row = 0;
                            stored.counts.objects_current += 1;
                        }
                        Err(error) => {
                            note(error)?;
                            stored.failed.extend(positions(&session));
                        }
                    }
                    if failures_in_a_row == GIVE_UP_AFTER {
                        // S3 is away: what was not tried yet would fail one by one, for longer than a
                        // Lambda has. What is under way is brought to its end, and the rows go on.
                        for (session, _) in waiting.drain(..) {
                            stored.failed.extend(positions(&session));
                        }
                    }
                }
                else => break,
            }
        }
        stored.durations.archive = first_object.map(|start| start.elapsed()).unwrap_or_default();
        Ok(stored)
    }

    /// The statements that a batch becomes.
    fn chunks<'a>(&self, sessions: Vec<SessionChanges<'a>>) -> VecDeque<Vec<SessionChanges<'a>>> {
        let mut size = sessions.len().div_ceil(self.database.connections()).max(SPLIT_SESSIONS);
        if self.archive.is_some() {
            size = size.min(OVERLAP_SESSIONS);
        }
        let mut sessions = sessions.into_iter();
        let mut chunks = VecDeque::new();
        while sessions.len() > 0 {
            chunks.push_back(sessions.by_ref().take(size).collect());
        }
        chunks
    }

    async fn upsert<'a>(
        &self,
        sessions: Vec<SessionChanges<'a>>,
        returned: Returned,
    ) -> (Vec<SessionChanges<'a>>, Duration, Result<Vec<Option<Upserted>>, Error>) {
        let start = Instant::now();
        let ask_first = self.mostly_held.load(Ordering::Relaxed);
        let upserted = read_model::upsert(&self.database, &sessions, returned, ask_first).await;
        if let Ok(upserted) = &upserted {
            let held = |upserted: &&Option<Upserted>| matches!(upserted, Some(Upserted::Held(_)));
            let mostly_held = upserted.iter().filter(held).count() > upserted.len() / 2;
            self.mostly_held.store(mostly_held, Ordering::Relaxed);
        }
        (sessions, start.elapsed(), upserted)
    }

    async fn bring_up<'a>(
        &self,
        archive: &Archive,
        session: SessionChanges<'a>,
        upserted: Upserted,
    ) -> (SessionChanges<'a>, Result<Archived, Error>) {
        let archived = archive.bring_up(&self.database, session.session_id, upserted).await;
        (session, archived)
    }
}

/// What to try next of sessions that PostgreSQL refused together.
enum Narrowed<'a> {
    /// Two parts, in this order.
    Parts(Vec<SessionChanges<'a>>, Vec<SessionChanges<'a>>),
    /// It was one change, the record at this position, that is refused.
    One(usize),
}

/// Halves the sessions; of one session, takes the oldest change apart from those after it, so that
/// only what is refused is set aside, and a change that it had overtaken in the batch still applies.
fn narrow(mut refused: Vec<SessionChanges<'_>>) -> Narrowed<'_> {
    if let [session] = refused.as_slice() {
        return match session.split_first() {
            Some((first, rest)) => Narrowed::Parts(vec![first], vec![rest]),
            None => Narrowed::One(session.arrivals[0].position),
        };
    }
    let rest = refused.split_off(refused.len() / 2);
    Narrowed::Parts(refused, rest)
}

fn positions(session: &SessionChanges<'_>) -> impl Iterator<Item = usize> {
    session.arrivals.iter().map(|arrival| arrival.position)
}

/// Logs a passing failure, once; gives back what is not passing.
fn note(error: Error) -> Result<(), Error> {
    if error.consequence() == Consequence::Fatal {
        return Err(error);
    }
    tracing::warn!(error = error::chain(&error), "not applied, will be delivered again");
    Ok(())
}

/// Why PostgreSQL refused: its message without its detail, which quotes values.
fn refusal(error: &Error) -> String {
    match error {
        Error::Database(error) => match error.as_database_error() {
            Some(error) => format!("PostgreSQL refuses the row: {}", error.message()),
            None => format!("the row cannot be sent to PostgreSQL: {error}"),
        },
        other => other.to_string(),
    }
}

/// Says of each record of a session what it came to. Where the row was written, the newest change of
/// each part counts as applied, also one that the row held already, or held newer, and that came along
/// with a newer one of another part.
fn count(session: &SessionChanges<'_>, upserted: &Upserted, counts: &mut Counts) {
    counts.rows_written += u64::from(matches!(upserted, Upserted::Written { .. }));
    for part in Part::ALL {
        let newest = session.patch[part as usize].map(|change| change.version.as_str());
        let mut applied = false;
        let of_part = |arrival: &&&Arrival| arrival.change.part == part;
        for arrival in session.arrivals.iter().filter(of_part) {
            let version = Some(arrival.change.version.as_str());
            match upserted {
                Upserted::Written { .. } if version != newest => counts.superseded += 1,
                Upserted::Written { .. } if applied => counts.duplicate += 1,
                Upserted::Written { .. } => {
                    applied = true;
                    counts.applied += 1;
                }
                Upserted::Held(held) if version == held[part as usize].as_deref() => {
                    counts.duplicate += 1;
                }
                Upserted::Held(_) => counts.stale += 1,
            }
        }
    }
}
