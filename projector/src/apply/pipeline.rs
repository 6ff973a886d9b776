//! Both stores for one batch: sessions → statements → objects, each step as soon as the one before
//! it allows.
//!
//! A record counts as failed until it is settled: in both stores, or found to be refused. So
//! whatever ends the work early (an outage, the deadline), nothing is acknowledged that is not
//! stored.
//!
//! `queues.rs` says which sessions are next; here is what follows from each answer.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, StreamExt as _};

use super::attempt::{Statement, upsert};
use super::isolate::{Bisected, bisect, split, split_locked};
use super::queues::{Queues, record_indices};
use super::reconcile::{Known, Reconciled, reconcile};
use super::refusals::{ENOUGH_REFUSED, OTHERS, Refusals};
use super::regions::OvertakenByLabel;
use super::{BatchOutcome, Projector, classify, refusal};
use crate::archive::Archive;
use crate::deadline::Deadline;
use crate::error::{self, Consequence, Error};
use crate::fold::SessionChanges;
use crate::read_model::{Returned, Upserted};
use crate::rejected::Rejection;

/// A batch of fewer sessions is one statement; of more, one per connection, each its own commit.
const SPLIT_SESSIONS: usize = 500;
/// With an archive a statement takes no more sessions than this, so that objects go out while the
/// next ones are in the database; and no statement is sent while more of them wait for their
/// objects.
const OVERLAP_SESSIONS: usize = 1_000;
/// The rows of a batch of so few sessions are returned whole whatever their size; of a larger one,
/// only the small ones, so that what waits for its object is bounded.
const WHOLE_ROWS: usize = 8;
/// After this many failures in a row the rest of a batch is not tried: it comes again.
const GIVE_UP_AFTER: u32 = 16;
/// A session that fails alone at a time limit counts as this many failures: each costs its whole
/// limit.
const TIMEOUT_WEIGHT: u32 = 4;
/// A statement that took so long before its connection was lost may be why it was.
const LONG: Duration = Duration::from_secs(1);
/// A refused batch of at least this many sessions is remembered until some row is written.
const REMEMBERED: usize = 10;

/// The state of one batch.
struct Pipeline<'p, 'a> {
    projector: &'p Projector,
    outcome: &'p mut BatchOutcome,
    deadline: Deadline,
    /// Sessions whose rows are not stored.
    queues: Queues<'a>,
    /// Sessions whose rows are stored, and whose objects are not reconciled.
    waiting: VecDeque<(SessionChanges<'a>, Upserted)>,
    returned: Returned,
    /// By record index: not settled.
    pending: Vec<bool>,
    refusals: Refusals,
    overtaken: OvertakenByLabel<'a>,
    /// Sessions that failed alone, without a success between them.
    failed_alone: u32,
    /// Objects that failed, without a success between them.
    failed_objects: u32,
    first_object: Option<Instant>,
    /// What PostgreSQL refuses.
    refused: Vec<Rejection>,
}

/// Stores the sessions of a batch, and returns what PostgreSQL refuses.
///
/// As many statements are in the database at once as there are connections. As one comes back, the
/// objects of ALL its sessions are reconciled, written or not, while the next is in the database: a
/// crash between commit and PUT is repaired by the redelivery.
///
/// # Errors
/// Only what is [`Consequence::Fatal`].
pub(super) async fn store(
    projector: &Projector,
    sessions: Vec<SessionChanges<'_>>,
    outcome: &mut BatchOutcome,
    deadline: Deadline,
) -> Result<Vec<Rejection>, Error> {
    let total = sessions.len();
    let mut pipeline = Pipeline::new(projector, sessions, outcome, deadline);
    let (mut upserts, mut objects) = (FuturesUnordered::new(), FuturesUnordered::new());
    loop {
        while let Some(sessions) = pipeline.next_statement(upserts.len()) {
            upserts.push(upsert(projector, sessions, pipeline.returned, deadline));
        }
        while let Some((archive, session, upserted)) = pipeline.next_object(objects.len()) {
            objects.push(reconcile_session(projector, archive, session, upserted, deadline));
        }
        tokio::select! {
            Some(statement) = upserts.next() => pipeline.on_upsert(statement)?,
            Some((session, done)) = objects.next() => pipeline.on_object(&session, done)?,
            () = deadline.passed(), if !(upserts.is_empty() && objects.is_empty()) => {
                log_unless_fatal(Error::OutOfTime { waiting_for: "the stores" })?;
                pipeline.queues.give_up();
                break;
            }
            else => break,
        }
    }
    // They hold connections.
    drop((upserts, objects));
    pipeline.finish(total).await
}

async fn reconcile_session<'a>(
    projector: &Projector,
    archive: &Archive,
    session: SessionChanges<'a>,
    upserted: Upserted,
    deadline: Deadline,
) -> (SessionChanges<'a>, Result<Reconciled, Error>) {
    let session_id = session.session_id;
    let known = Known::of(upserted, &session.patch, archive.objects());
    let done = reconcile(&projector.database, archive, session_id, known, deadline).await;
    (session, done)
}

impl<'p, 'a> Pipeline<'p, 'a> {
    fn new(
        projector: &'p Projector,
        sessions: Vec<SessionChanges<'a>>,
        outcome: &'p mut BatchOutcome,
        deadline: Deadline,
    ) -> Self {
        let indices = || sessions.iter().flat_map(record_indices);
        let mut pending = vec![false; indices().max().map_or(0, |last| last + 1)];
        for index in indices() {
            pending[index] = true;
        }
        let mut chunk =
            sessions.len().div_ceil(projector.database.connections()).max(SPLIT_SESSIONS);
        let returned = match projector.archive_at_once() {
            None if projector.archive.is_some() => Returned::PendingObjects,
            None => Returned::Nothing,
            Some(_) if sessions.len() <= WHOLE_ROWS => Returned::Rows,
            Some(_) => Returned::SmallRows,
        };
        if projector.archive_at_once().is_some() {
            chunk = chunk.min(OVERLAP_SESSIONS);
        }
        let limit = projector.learned.sessions_per_statement();
        // By an earlier part of the batch.
        let refusals = Refusals::after(outcome.counts.rows_written > 0);
        Self {
            projector,
            outcome,
            deadline,
            queues: Queues::new(sessions, chunk, limit),
            waiting: VecDeque::new(),
            returned,
            pending,
            refusals,
            overtaken: OvertakenByLabel::default(),
            failed_alone: 0,
            failed_objects: 0,
            first_object: None,
            refused: Vec::new(),
        }
    }

    /// The sessions of the next statement, if there is a connection for it.
    fn next_statement(&mut self, under_way: usize) -> Option<Vec<SessionChanges<'a>>> {
        let connections = self.projector.database.connections();
        if under_way == connections || self.waiting.len() > OVERLAP_SESSIONS {
            return None;
        }
        self.queues.next(self.projector.learned.sessions_per_statement(), under_way)
    }

    /// The next session whose object is to be reconciled, if there is a place for it.
    fn next_object(
        &mut self,
        under_way: usize,
    ) -> Option<(&'p Archive, SessionChanges<'a>, Upserted)> {
        let archive = self.projector.archive_at_once()?;
        if under_way == archive.concurrency() {
            return None;
        }
        let (session, upserted) = self.waiting.pop_front()?;
        self.first_object.get_or_insert_with(Instant::now);
        Some((archive, session, upserted))
    }

    fn on_upsert(&mut self, statement: Statement<'a>) -> Result<(), Error> {
        let Statement { sessions, took, upserted, locked } = statement;
        self.outcome.durations.database += took;
        let Some(upserted) = upserted else {
            self.queues.put_back(sessions);
            return Ok(());
        };
        match upserted {
            Ok(upserted) => {
                self.projector.learned.pace().done(sessions.len(), took);
                self.failed_alone = 0;
                // What is unchanged was not written, and says nothing of what the table takes.
                let written =
                    |one: &Option<Upserted>| matches!(one, Some(Upserted::Written { .. }));
                if upserted.iter().any(written) {
                    self.refusals.passed = true;
                    *self.projector.learned.refusing() = None;
                }
                self.on_stored(sessions, upserted)
            }
            Err(error) => match error.consequence() {
                Consequence::Fatal => Err(error),
                Consequence::Split if error.locked() => {
                    self.on_locked(sessions, locked.as_ref(), error)
                }
                Consequence::Split => self.on_split(sessions, took, error),
                Consequence::Reject => self.on_refused(sessions, &error),
                // A server that goes down over a large statement, or a pooler that cuts it off.
                Consequence::Reconnect if sessions.len() > 1 && took >= LONG => {
                    self.on_too_much(sessions, took, &error);
                    Ok(())
                }
                Consequence::Retry | Consequence::Reconnect => {
                    // Those behind it would wait as long for the same.
                    self.queues.give_up();
                    log_unless_fatal(error)
                }
            },
        }
    }

    fn on_stored(
        &mut self,
        sessions: Vec<SessionChanges<'a>>,
        upserted: Vec<Option<Upserted>>,
    ) -> Result<(), Error> {
        let mut not_written: Option<(&str, usize)> = None;
        for (session, upserted) in sessions.into_iter().zip(upserted) {
            let Some(upserted) = upserted else {
                let (_, others) = not_written.get_or_insert((session.session_id, 0));
                *others += 1;
                continue;
            };
            classify::count(&session, &upserted, &mut self.outcome.counts);
            if let Some(held) = upserted.versions() {
                self.overtaken.add(&session, held);
            }
            if self.projector.archive_at_once().is_none() {
                self.settle(&session);
            } else if self.failed_objects < GIVE_UP_AFTER {
                self.waiting.push_back((session, upserted));
            }
        }
        match not_written {
            None => Ok(()),
            Some((session_id, count)) => log_unless_fatal(Error::RowNotWritten {
                session_id: session_id.to_owned(),
                others: count - 1,
            }),
        }
    }

    /// The statement failed and the connection lives: smaller statements, down to one session,
    /// which fails alone.
    fn on_split(
        &mut self,
        sessions: Vec<SessionChanges<'a>>,
        took: Duration,
        error: Error,
    ) -> Result<(), Error> {
        if sessions.len() > 1 && error.too_much() {
            self.on_too_much(sessions, took, &error);
            return Ok(());
        }
        if sessions.len() > 1 {
            self.queues.try_next(split(sessions).into_iter());
            return Ok(());
        }
        let weight = if error.too_much() { TIMEOUT_WEIGHT } else { 1 };
        self.on_failed_alone(error, weight)
    }

    fn on_too_much(&mut self, sessions: Vec<SessionChanges<'a>>, took: Duration, error: &Error) {
        self.projector.learned.pace().too_much(sessions.len(), took);
        tracing::info!(
            error = error::chain(error),
            sessions = sessions.len(),
            next = self.projector.learned.pace().limit(),
            "statement too slow or too large: reducing sessions per statement"
        );
        self.queues.put_back(sessions);
    }

    /// Somebody has locked a row. That may be another lane, which itself waits for a third: what
    /// fails alone is tried once more, last of all.
    fn on_locked(
        &mut self,
        sessions: Vec<SessionChanges<'a>>,
        locked: Option<&HashSet<String>>,
        error: Error,
    ) -> Result<(), Error> {
        let Some(locked) = locked else {
            // The table is locked, or there is no time left.
            self.queues.give_up();
            return log_unless_fatal(error);
        };
        if sessions.len() > 1 && locked.is_empty() {
            // Somebody inserts one of these rows, or the table is locked against writes: an index
            // is built.
            self.failed_alone += TIMEOUT_WEIGHT;
            if self.failed_alone >= GIVE_UP_AFTER {
                self.queues.give_up();
                return log_unless_fatal(error);
            }
        }
        if sessions.len() > 1 {
            let (free, locked) = split_locked(sessions, locked);
            self.queues.try_next(free.into_iter());
            self.queues.try_later(locked);
            return Ok(());
        }
        if self.queues.last_round() {
            return self.on_failed_alone(error, 1);
        }
        self.queues.try_last(sessions);
        self.failed_alone += 1;
        if self.failed_alone >= GIVE_UP_AFTER {
            self.queues.give_up();
            return log_unless_fatal(error);
        }
        Ok(())
    }

    /// One session failed alone. After some in a row the rest is not tried.
    fn on_failed_alone(&mut self, error: Error, weight: u32) -> Result<(), Error> {
        self.failed_alone += weight;
        if self.failed_alone >= GIVE_UP_AFTER {
            self.queues.give_up();
        }
        log_unless_fatal(error)
    }

    fn on_refused(
        &mut self,
        mut sessions: Vec<SessionChanges<'a>>,
        error: &Error,
    ) -> Result<(), Error> {
        if sessions.len() > 1 {
            self.queues.try_next(split(sessions).into_iter());
            return Ok(());
        }
        let Some(session) = sessions.pop() else { return Ok(()) };
        let session_id = session.session_id;
        match bisect(session) {
            Bisected::Parts(parts) => {
                self.queues.try_next(parts.into_iter().map(|part| vec![part]));
            }
            Bisected::Refused(record_index, rest) => {
                self.queues.try_next(rest.map(|rest| vec![rest]).into_iter());
                self.pending[record_index] = false;
                let (reason, logged) = refusal(error);
                self.refusals.add(session_id, &logged);
                self.refused.push(Rejection { record_index, reason, logged });
                if self.refusals.sessions.len() == ENOUGH_REFUSED {
                    self.queues.try_others_next(OTHERS);
                }
                if let Some(error) = self.refusals.set_up_at_fault(ENOUGH_REFUSED + OTHERS)
                    && self.projector.all_refused_at_least <= ENOUGH_REFUSED
                {
                    self.projector.learned.refusing().clone_from(&self.refusals.same);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn on_object(
        &mut self,
        session: &SessionChanges<'a>,
        done: Result<Reconciled, Error>,
    ) -> Result<(), Error> {
        match done {
            Ok(reconciled) => {
                self.failed_objects = 0;
                self.settle(session);
                match reconciled {
                    Reconciled::Written => self.outcome.counts.objects_written += 1,
                    Reconciled::UpToDate => self.outcome.counts.objects_current += 1,
                    Reconciled::NotYet => self.outcome.counts.objects_not_yet += 1,
                }
                Ok(())
            }
            Err(error) => {
                self.failed_objects += 1;
                if self.failed_objects == GIVE_UP_AFTER {
                    // S3 is away: what was not tried yet would fail one by one, for longer than a
                    // Lambda has. What is under way is brought to its end, and the rows go on.
                    self.waiting.clear();
                }
                log_unless_fatal(error)
            }
        }
    }

    fn settle(&mut self, session: &SessionChanges<'_>) {
        for index in record_indices(session) {
            self.pending[index] = false;
        }
    }

    /// Whether what PostgreSQL refused is the table's fault: every session of the batch, for one
    /// reason; or the sessions of a batch that Lambda has halved out of such a one.
    fn set_up_at_fault(&self, total: usize) -> Option<Error> {
        let at_least = self.projector.all_refused_at_least;
        if self.refusals.sessions.len() != total || at_least == usize::MAX {
            return None;
        }
        let remembered = self.refusals.same.is_some()
            && *self.projector.learned.refusing() == self.refusals.same;
        self.refusals.set_up_at_fault(if remembered { 1 } else { at_least })
    }

    async fn finish(mut self, total: usize) -> Result<Vec<Rejection>, Error> {
        if let Some(error) = self.set_up_at_fault(total) {
            if total >= REMEMBERED {
                self.projector.learned.refusing().clone_from(&self.refusals.same);
            }
            return Err(error);
        }
        match self.overtaken.created_later(&self.projector.database, self.deadline).await {
            Ok(later) => self.outcome.counts.stale_created_later += later,
            Err(unknown) => unknown.into_iter().for_each(|index| self.pending[index] = true),
        }
        self.outcome.gave_up |= self.queues.gave_up();
        let pending = self.pending.iter().enumerate().filter(|(_, pending)| **pending);
        self.outcome.failed.extend(pending.map(|(index, _)| index));
        self.outcome.durations.archive +=
            self.first_object.map(|start| start.elapsed()).unwrap_or_default();
        Ok(self.refused)
    }
}

/// Logs a failure that does not concern the set-up, once; gives back one that does.
pub(super) fn log_unless_fatal(error: Error) -> Result<(), Error> {
    if error.consequence() == Consequence::Fatal {
        return Err(error);
    }
    tracing::warn!(error = error::chain(&error), "not in both stores, will be delivered again");
    Ok(())
}
