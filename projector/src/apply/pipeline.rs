//! Both stores for one batch: sessions → statements → objects, each step as soon as the one before it allows.
//!
//! A record counts as failed until it is settled: in both stores, or found to be refused. So whatever ends
//! the work early (an outage, the deadline), nothing is acknowledged that is not stored.
//!
//! Four queues. Sessions that were not tried yet, in the order of their records, so that what is left at
//! the deadline comes from the end of the batch. Suspects: pieces of statements that failed, tried when
//! nothing else is left, so that one bad session does not hold up the others. Sessions that somebody has
//! locked, tried last of all. And sessions whose row is stored and whose object is not yet reconciled.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, StreamExt as _};

use super::isolate::{Narrowed, narrow, split, split_locked};
use super::reconcile::{Reconciled, reconcile};
use super::refusals::{ENOUGH_REFUSED, OTHERS, Refusals};
use super::regions::OvertakenByLabel;
use super::{BatchOutcome, Projector, classify, refusal};
use crate::archive::Archive;
use crate::deadline::Deadline;
use crate::error::{self, Consequence, Error};
use crate::fold::SessionChanges;
use crate::read_model::{self, Returned, Upserted};
use crate::rejected::Rejection;

/// A batch of fewer sessions is one statement; of more, one per connection, each its own commit.
const SPLIT_SESSIONS: usize = 500;
/// With an archive a statement takes no more sessions than this, so that objects go out while the
/// next ones are in the database; and no statement is sent while more of them wait for their objects.
const OVERLAP_SESSIONS: usize = 1_000;
/// The rows of a batch of so few sessions are returned whole whatever their size; of a larger one, only
/// the small ones, so that what waits for its object is bounded.
const WHOLE_ROWS: usize = 8;
/// After this many failures in a row the rest of a batch is not tried: it comes again.
const GIVE_UP_AFTER: u32 = 16;
/// A session that fails alone at a time limit counts as this many failures: each costs its whole limit.
const TIMEOUT_WEIGHT: u32 = 4;
/// A statement that took so long before its connection was lost may be why it was.
const LONG: Duration = Duration::from_secs(1);
/// A refused batch of at least this many sessions is remembered until some row is written.
const REMEMBERED: usize = 10;

/// What came of one statement.
struct Statement<'a> {
    sessions: Vec<SessionChanges<'a>>,
    took: Duration,
    /// `None` if it was not sent: while it waited for a connection, others of its size were too much.
    upserted: Option<Result<Vec<Option<Upserted>>, Error>>,
    /// Sessions whose rows somebody else has locked, if it waited for one in vain; `None` if that cannot be
    /// found out, because the whole table is locked.
    locked: Option<HashSet<String>>,
}

/// The state of one batch.
struct Pipeline<'p, 'a> {
    projector: &'p Projector,
    outcome: &'p mut BatchOutcome,
    deadline: Deadline,
    untried: VecDeque<SessionChanges<'a>>,
    suspects: VecDeque<Vec<SessionChanges<'a>>>,
    /// Sessions that waited in vain for a lock, alone.
    locked: Vec<SessionChanges<'a>>,
    /// Those are tried once more, and there is nothing else left.
    last_round: bool,
    waiting: VecDeque<(SessionChanges<'a>, Upserted)>,
    /// Sessions per statement, if the database is not slow.
    chunk: usize,
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

/// Stores the sessions of a batch, and returns what PostgreSQL refuses. As many statements are in the database at once as there are connections;
/// as one comes back, the objects of ALL its sessions are reconciled, written or not (a crash between commit
/// and PUT is repaired by the redelivery), while the next is in the database.
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
    let mut upserts = FuturesUnordered::new();
    let mut objects = FuturesUnordered::new();
    loop {
        while upserts.len() < projector.database.connections()
            && let Some(sessions) = pipeline.next_statement(upserts.len())
        {
            upserts.push(upsert(projector, sessions, pipeline.returned, deadline));
        }
        while let Some(archive) = &projector.archive
            && objects.len() < archive.concurrency()
            && let Some((session, upserted)) = pipeline.waiting.pop_front()
        {
            pipeline.first_object.get_or_insert_with(Instant::now);
            objects.push(reconcile_session(projector, archive, session, upserted, deadline));
        }
        if upserts.is_empty() && objects.is_empty() {
            break;
        }
        tokio::select! {
            Some(statement) = upserts.next() => pipeline.on_upsert(statement)?,
            Some((session, done)) = objects.next() => pipeline.on_object(&session, done)?,
            () = deadline.passed() => {
                log_unless_fatal(Error::OutOfTime { waiting_for: "the stores" })?;
                break;
            }
        }
    }
    // They hold connections.
    drop((upserts, objects));
    pipeline.finish(total).await
}

async fn upsert<'a>(
    projector: &Projector,
    sessions: Vec<SessionChanges<'a>>,
    returned: Returned,
    deadline: Deadline,
) -> Statement<'a> {
    let mut locked = Some(HashSet::new());
    let lease = match projector.database.lease(deadline).await {
        Ok(lease) => lease,
        Err(error) => {
            let upserted = Some(Err(error));
            return Statement { sessions, took: Duration::ZERO, upserted, locked };
        }
    };
    if sessions.len() > projector.learned.sessions_per_statement() {
        return Statement { sessions, took: Duration::ZERO, upserted: None, locked };
    }
    // What can be tried again in smaller pieces leaves time for them.
    let lease = if sessions.len() > 1 { lease.halved() } else { lease };
    // The wait for a connection says nothing of the statement.
    let start = Instant::now();
    let ask_first = projector.learned.mostly_unchanged();
    let upserted = read_model::upsert(&lease, &sessions, returned, ask_first).await;
    if let Ok(upserted) = &upserted {
        projector.learned.see(upserted);
    }
    let took = start.elapsed();
    if let Err(error) = &upserted
        && error.locked()
        && sessions.len() > 1
    {
        locked = read_model::locked(&lease, &sessions).await.ok();
    }
    Statement { sessions, took, upserted: Some(upserted), locked }
}

async fn reconcile_session<'a>(
    projector: &Projector,
    archive: &Archive,
    session: SessionChanges<'a>,
    upserted: Upserted,
    deadline: Deadline,
) -> (SessionChanges<'a>, Result<Reconciled, Error>) {
    let session_id = session.session_id;
    let done = reconcile(&projector.database, archive, session_id, upserted.into(), deadline).await;
    (session, done)
}

impl<'p, 'a> Pipeline<'p, 'a> {
    fn new(
        projector: &'p Projector,
        mut sessions: Vec<SessionChanges<'a>>,
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
        let returned = match &projector.archive {
            None => Returned::Nothing,
            Some(_) if sessions.len() <= WHOLE_ROWS => Returned::Rows,
            Some(_) => Returned::SmallRows,
        };
        if projector.archive.is_some() {
            chunk = chunk.min(OVERLAP_SESSIONS);
        }
        // What fits into one statement keeps the order of the keys. Of more, the oldest records go first.
        if sessions.len() > chunk.min(projector.learned.sessions_per_statement()) {
            sessions.sort_by_cached_key(|session| record_indices(session).min());
        }
        Self {
            projector,
            outcome,
            deadline,
            untried: sessions.into(),
            suspects: VecDeque::new(),
            locked: Vec::new(),
            last_round: false,
            waiting: VecDeque::new(),
            chunk,
            returned,
            pending,
            refusals: Refusals::default(),
            overtaken: OvertakenByLabel::default(),
            failed_alone: 0,
            failed_objects: 0,
            first_object: None,
            refused: Vec::new(),
        }
    }

    /// The sessions of the next statement, sorted by key: two statements that lock the same rows in
    /// different orders deadlock.
    fn next_statement(&mut self, statements_under_way: usize) -> Option<Vec<SessionChanges<'a>>> {
        if self.waiting.len() > OVERLAP_SESSIONS {
            return None;
        }
        let limit = self.projector.learned.sessions_per_statement();
        if !self.untried.is_empty() {
            let count = self.untried.len().min(self.chunk).min(limit);
            let mut sessions: Vec<_> = self.untried.drain(..count).collect();
            sessions.sort_by_key(|session| session.session_id);
            return Some(sessions);
        }
        if self.suspects.is_empty() && !self.last_round && statements_under_way == 0 {
            self.last_round = true;
            self.suspects = self.locked.drain(..).map(|session| vec![session]).collect();
        }
        let mut sessions = self.suspects.pop_front()?;
        if sessions.len() > limit {
            self.suspects.push_front(sessions.split_off(limit));
        }
        Some(sessions)
    }

    fn on_upsert(&mut self, statement: Statement<'a>) -> Result<(), Error> {
        let Statement { sessions, took, upserted, locked } = statement;
        self.outcome.durations.database += took;
        let Some(upserted) = upserted else {
            self.put_back(sessions);
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
                    self.give_up_rows();
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
            if self.projector.archive.is_none() {
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

    /// The statement failed and the connection lives: smaller statements, down to one session, which fails
    /// alone.
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
            self.try_next(split(sessions).into_iter());
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
        self.put_back(sessions);
    }

    /// Pieces of a statement that failed go before the other suspects: so single sessions are soon reached, and
    /// with them the bounds on what is tried in vain.
    fn try_next(&mut self, pieces: impl DoubleEndedIterator<Item = Vec<SessionChanges<'a>>>) {
        for piece in pieces.rev() {
            self.suspects.push_front(piece);
        }
    }

    /// Somebody has locked a row. That may be another lane, which itself waits for a third: what fails alone
    /// is tried once more, last of all.
    fn on_locked(
        &mut self,
        mut sessions: Vec<SessionChanges<'a>>,
        locked: Option<&HashSet<String>>,
        error: Error,
    ) -> Result<(), Error> {
        let Some(locked) = locked else {
            // The table is locked, or there is no time left.
            self.give_up_rows();
            return log_unless_fatal(error);
        };
        if sessions.len() > 1 && locked.is_empty() {
            // Somebody inserts one of these rows, or the table is locked against writes: an index is built.
            self.failed_alone += TIMEOUT_WEIGHT;
            if self.failed_alone >= GIVE_UP_AFTER {
                self.give_up_rows();
                return log_unless_fatal(error);
            }
        }
        if sessions.len() > 1 {
            let (free, locked) = split_locked(sessions, locked);
            self.try_next(free.into_iter());
            self.suspects.extend(locked);
            return Ok(());
        }
        if self.last_round {
            return self.on_failed_alone(error, 1);
        }
        self.locked.append(&mut sessions);
        self.failed_alone += 1;
        if self.failed_alone >= GIVE_UP_AFTER {
            self.give_up_rows();
            return log_unless_fatal(error);
        }
        Ok(())
    }

    /// One session failed alone. After some in a row the rest is not tried.
    fn on_failed_alone(&mut self, error: Error, weight: u32) -> Result<(), Error> {
        self.failed_alone += weight;
        if self.failed_alone >= GIVE_UP_AFTER {
            self.give_up_rows();
        }
        log_unless_fatal(error)
    }

    /// The next to be tried, the oldest records first.
    fn put_back(&mut self, mut sessions: Vec<SessionChanges<'a>>) {
        sessions.sort_by_cached_key(|session| record_indices(session).min());
        for session in sessions.into_iter().rev() {
            self.untried.push_front(session);
        }
    }

    fn on_refused(
        &mut self,
        mut sessions: Vec<SessionChanges<'a>>,
        error: &Error,
    ) -> Result<(), Error> {
        if sessions.len() > 1 {
            self.try_next(split(sessions).into_iter());
            return Ok(());
        }
        let Some(session) = sessions.pop() else { return Ok(()) };
        let session_id = session.session_id;
        match narrow(session) {
            Narrowed::Parts(parts) => self.try_next(parts.into_iter().map(|part| vec![part])),
            Narrowed::Refused(position, rest) => {
                self.try_next(rest.map(|rest| vec![rest]).into_iter());
                self.pending[position] = false;
                let (reason, logged) = refusal(error);
                self.refusals.add(session_id, &logged);
                self.refused.push(Rejection { position, reason, logged });
                if self.refusals.sessions.len() == ENOUGH_REFUSED {
                    self.try_others_next();
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

    /// Those that were refused so far may stand beside each other. Before that is held against the table, some
    /// from elsewhere are tried: one of each piece at the end of the queue, and the last that was not tried.
    fn try_others_next(&mut self) {
        let mut others: Vec<_> = self.untried.pop_back().into_iter().collect();
        for piece in self.suspects.iter_mut().rev().take(OTHERS) {
            others.extend(piece.pop());
        }
        self.suspects.retain(|piece| !piece.is_empty());
        self.try_next(others.into_iter().map(|session| vec![session]));
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
                }
                Ok(())
            }
            Err(error) => {
                self.failed_objects += 1;
                if self.failed_objects == GIVE_UP_AFTER {
                    // S3 is away: what was not tried yet would fail one by one, for longer than a Lambda
                    // has. What is under way is brought to its end, and the rows go on.
                    self.waiting.clear();
                }
                log_unless_fatal(error)
            }
        }
    }

    fn give_up_rows(&mut self) {
        self.untried.clear();
        self.suspects.clear();
        self.locked.clear();
    }

    fn settle(&mut self, session: &SessionChanges<'_>) {
        for index in record_indices(session) {
            self.pending[index] = false;
        }
    }

    /// Whether what PostgreSQL refused is the table's fault: every session of the batch, for one reason; or the
    /// sessions of a batch that Lambda has halved out of such a one.
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
        let pending = self.pending.iter().enumerate().filter(|(_, pending)| **pending);
        self.outcome.failed.extend(pending.map(|(index, _)| index));
        self.outcome.durations.archive +=
            self.first_object.map(|start| start.elapsed()).unwrap_or_default();
        Ok(self.refused)
    }
}

fn record_indices(session: &SessionChanges<'_>) -> impl Iterator<Item = usize> {
    session.arrivals.iter().map(|arrival| arrival.position)
}

/// Logs a failure that does not concern the set-up, once; gives back one that does.
pub(super) fn log_unless_fatal(error: Error) -> Result<(), Error> {
    if error.consequence() == Consequence::Fatal {
        return Err(error);
    }
    tracing::warn!(error = error::chain(&error), "not applied, will be delivered again");
    Ok(())
}
