//! One object of a bucket of failures: a batch that Lambda gave up on. Each of its records is a key
//! to read again, as after a repair; none is applied. The object is deleted once all of them are
//! settled, and no other object in its place.
//!
//! A call may be killed at any moment and repeated: until the object is deleted, it names what is
//! to be read, and what was repaired already is equal then. Once it is gone, nothing is left to do,
//! and a repeated call says so.

mod object;
mod records;
mod sessions;

use std::time::Duration;

use anyhow::{Context as _, bail};
use projector::deadline::Deadline;
use projector::rejected::{self, Rejection};
use tokio::time::{Instant, sleep};

use self::object::FailureObject;
use self::records::{Records, WithoutKey};
use self::sessions::SessionLocks;
use super::Reconciler;
use super::event::{Answer, FailedBatch};
use super::slice::{Times, may_begin, read_until, until};
use crate::advisory_lock::{self, Held};
use crate::console::{Progress, line};
use crate::items::Key;
use crate::repair::conduct;
use crate::repair::lines::{Lines, Piece};
use crate::repair::look::Looker;
use crate::repair::run::{Limits, Repair};
use crate::repair::source::{KeyList, Source};
use crate::repair::streams::{Followed, Streams};
use crate::repair::tally::Tally;

/// How often sessions that another call reads are asked for again.
const ASK_EVERY: Duration = Duration::from_secs(1);

pub(super) async fn run(
    context: &Reconciler,
    batch: FailedBatch,
    deadline: Deadline,
) -> anyhow::Result<Answer> {
    let times = Times::until(deadline);
    if batch.done {
        return Ok(Answer::Failure(batch));
    }
    let (bucket, key) = (batch.bucket.clone(), batch.failure.clone());
    let object = FailureObject::named(&context.exports, &bucket, &key);
    let Some(object::Read { bytes, as_read }) = object.read().await? else {
        line(&format!("{} is gone: an earlier call has deleted it", object.name()));
        return Ok(Answer::Failure(FailedBatch { done: true, ..batch }));
    };
    let records = Records::of(&bytes, &context.projector.tables);
    drop(bytes);
    let problem = records.problem();
    if let Some(problem) = problem.as_deref().filter(|_| records.count == 0) {
        return Err(object.stays(problem).into());
    }
    let batch = of_object(batch, as_read.etag.clone(), records.count);
    let after = settled(context, (batch, &object.name()), records, times).await?;
    if after.next == after.records {
        if let Some(problem) = problem {
            return Err(object.stays(&problem).into());
        }
        object.delete(&as_read).await?;
    }
    let after = FailedBatch { done: after.next == after.records, ..after };
    let FailedBatch { done, next, records, reread, repaired, rejected, .. } = after;
    tracing::info!(
        object = object.name(),
        done,
        next,
        records,
        reread,
        repaired,
        rejected,
        "failure"
    );
    Ok(Answer::Failure(after))
}

/// The request as it is meant of this object: what was counted of another one says nothing.
fn of_object(batch: FailedBatch, etag: Option<String>, records: u64) -> FailedBatch {
    if batch.etag == etag && batch.records == records {
        return batch;
    }
    let FailedBatch { bucket, failure, repair, run, .. } = batch;
    let done = false;
    let (next, reread, repaired, rejected) = (0, 0, 0, 0);
    FailedBatch {
        bucket,
        failure,
        repair,
        run,
        next,
        etag,
        done,
        records,
        reread,
        repaired,
        rejected,
    }
}

/// Settles as many records as there is time for.
async fn settled(
    context: &Reconciler,
    (batch, name): (FailedBatch, &str),
    records: Records,
    times: Times,
) -> anyhow::Result<FailedBatch> {
    let (repair, timeout) = (batch.repair, context.waits.function_timeout);
    let read_until = read_until(times, timeout)?;
    let in_time = may_begin(context, repair, None, times.end).await? && Instant::now() < read_until;
    if !in_time {
        return Ok(batch);
    }
    let Records { keys, without_key, count, .. } = records;
    let is_left = |number: u64| number >= batch.next;
    let keys: Vec<(Key, u64)> = keys.into_iter().filter(|(_, number)| is_left(*number)).collect();
    let without_key: Vec<WithoutKey> =
        without_key.into_iter().filter(|one| is_left(one.number)).collect();
    let lock = advisory_lock::of_failure(repair, name);
    let mut lock = Held::take_over(lock, repair, &context.projector.database).await?;
    lock.connection().keep().await?;
    keep(context, &without_key).await?;

    let mut lines = Lines::from(batch.next);
    lines.add(Piece {
        keys: keys.clone(),
        without_key: without_key.iter().map(|one| one.number).collect(),
        end: count,
        is_last: true,
        ..Piece::default()
    });
    let looker = conduct::looker(&context.projector, &context.api, &context.connections).await?;
    let function_timeout = time::Duration::try_from(timeout)?;
    let limits = Limits { function_timeout, max_rate: None };
    let mut rereads = Rereads {
        context,
        repair,
        looker: &looker,
        limits,
        ends: (read_until, times.end),
        pending: keys.into_iter().map(|(key, _)| key).collect(),
        lines,
        reread: 0,
        repaired: 0,
        why: None,
    };
    rereads.all(lock).await?;
    rereads.answer(batch, name)
}

/// Keeps the records that name no part, before they count as settled.
async fn keep(context: &Reconciler, without_key: &[WithoutKey]) -> anyhow::Result<()> {
    let rejection = |(record_index, one): (usize, &WithoutKey)| Rejection {
        record_index,
        reason: one.fault.reason.clone(),
        logged: one.fault.logged.clone(),
    };
    let rejections: Vec<Rejection> = without_key.iter().enumerate().map(rejection).collect();
    let records: Vec<&[u8]> = without_key.iter().map(|one| one.record.as_slice()).collect();
    let database = &context.projector.database;
    let storing = rejected::store(database, &records, &rejections, Deadline::NONE);
    let stored = Box::pin(storing).await.context("cannot store records in rejected_records")?;
    match stored.error {
        Some(error) => Err(error).context("cannot store records in rejected_records"),
        None if !stored.failed.is_empty() => {
            bail!("{} records could not be stored in rejected_records", stored.failed.len())
        }
        None => Ok(()),
    }
}

/// The re-reads of one object, in one invocation.
struct Rereads<'a> {
    context: &'a Reconciler,
    repair: i64,
    looker: &'a Looker<'a>,
    limits: Limits,
    /// Until when a part may be read, and when the answer is due.
    ends: (Instant, Instant),
    /// The parts whose sessions another call may have.
    pending: Vec<Key>,
    /// The records, by their numbers.
    lines: Lines,
    reread: u64,
    repaired: u64,
    /// Why parts stay that were read.
    why: Option<String>,
}

impl Rereads<'_> {
    /// Reads the parts again, as their sessions become free.
    async fn all(&mut self, mut lock: Held) -> anyhow::Result<()> {
        let sessions = SessionLocks::of(self.repair);
        while !self.pending.is_empty() && Instant::now() < self.ends.0 {
            let (keys, taken) = sessions.take(&mut lock, &mut self.pending).await?;
            if keys.is_empty() {
                sleep(ASK_EVERY).await;
                continue;
            }
            lock = self.some(lock, keys).await?;
            sessions.give_back(&mut lock, taken).await?;
        }
        Ok(())
    }

    /// Reads these parts, and gives the lock back.
    async fn some(&mut self, lock: Held, keys: Vec<Key>) -> anyhow::Result<Held> {
        let (read_until, end) = self.ends;
        let projector = &self.context.projector;
        let streams = Streams::Followed(Followed::new(&projector.database, self.repair));
        let progress = Progress::start(keys.len() as u64);
        let source = Source::Keys(KeyList::new(keys, read_until));
        let mut running =
            Repair::new(self.looker, projector, (lock, streams), self.limits, progress)
                .of_lines(std::mem::take(&mut self.lines));
        until(end, &mut running, source).await?;
        let Repair { lock, tally, lines, .. } = running;
        self.lines = lines.unwrap_or_default();
        let Tally { candidates, written, removed, .. } = tally;
        self.reread += candidates;
        self.repaired += written + removed;
        self.why.get_or_insert_with(|| tally.why_unsettled());
        Ok(lock)
    }

    /// What the invocation came to.
    ///
    /// # Errors
    /// If it got nowhere, and no other call is in its way: the same call would come to the same.
    fn answer(self, batch: FailedBatch, name: &str) -> anyhow::Result<FailedBatch> {
        let Self { lines, pending, reread, repaired, why, .. } = self;
        let next = lines.next();
        if next == batch.next && !lines.is_done() && repaired == 0 && pending.is_empty() {
            bail!(
                "{name}: record {} could not be settled within this invocation ({}). Fix the \
                 cause, and call again",
                next + 1,
                why.unwrap_or_default()
            );
        }
        Ok(FailedBatch {
            next,
            reread: batch.reread + reread,
            repaired: batch.repaired + repaired,
            rejected: batch.rejected + lines.rejected(),
            ..batch
        })
    }
}
