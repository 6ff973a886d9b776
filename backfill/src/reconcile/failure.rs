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
use super::event::{Answer, FailedBatch};
use super::recording::Recording;
use super::slice::{Times, may_begin, read_until, until};
use super::{Reconciler, pieces};
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
    let recording = Recording::of_failure(context, &batch).await?;
    let batch = match &recording {
        Some(recording) => recording.counted(batch),
        None => batch,
    };
    let (bucket, key) = (batch.bucket.clone(), batch.failure.clone());
    let object = FailureObject::named(&context.exports, &bucket, &key);
    let Some(read) = object.read().await? else {
        line(&format!("{} is gone: an earlier call has deleted it", object.name()));
        if let Some(recording) = recording {
            recording.gone(context, batch.repair).await?;
        }
        return Ok(Answer::Failure(FailedBatch { done: true, ..batch }));
    };
    let after = drained(context, (batch, &object), (read, recording), times).await?;
    let FailedBatch { done, next, records, reread, repaired, rejected, .. } = after;
    let name = object.name();
    tracing::info!(object = name, done, next, records, reread, repaired, rejected, "failure");
    Ok(Answer::Failure(after))
}

/// Settles the records of an object, and deletes it once there is none left.
async fn drained(
    context: &Reconciler,
    (batch, object): (FailedBatch, &FailureObject<'_>),
    (read, mut recording): (object::Read, Option<Recording>),
    times: Times,
) -> anyhow::Result<FailedBatch> {
    let object::Read { bytes, as_read } = read;
    let records = Records::of(&bytes, &context.projector.tables);
    drop(bytes);
    let problem = records.problem();
    let batch = of_object(batch, as_read.etag.clone(), records.count);
    if let Some(problem) = problem.as_deref().filter(|_| records.count == 0) {
        // A run that leaves something is not complete.
        if let Some(mut recording) = recording {
            let mut connection = pieces::connect(context, Some(batch.repair)).await?;
            recording.failure(&mut connection, &batch).await?;
        }
        return Err(object.stays(problem).into());
    }
    let in_time = may_begin(context, batch.repair, None, times.end).await?;
    let read_until = read_until(times, context.waits.function_timeout)?;
    if !in_time || Instant::now() >= read_until {
        return Ok(batch);
    }
    let name = object.name();
    let settling = settled(context, (batch, &name), records, (read_until, times.end));
    let (mut after, mut lock) = Box::pin(settling).await?;
    // Before the object goes: after that nobody can count its records any more.
    if let Some(recording) = &mut recording {
        recording.failure(lock.connection(), &after).await?;
    }
    if after.next < after.records {
        return Ok(after);
    }
    if let Some(problem) = problem {
        return Err(object.stays(&problem).into());
    }
    object.delete(&as_read).await?;
    after.done = true;
    if let Some(recording) = &mut recording {
        recording.failure(lock.connection(), &after).await?;
    }
    Ok(after)
}

/// The request as it is meant of this object: that records of another one are settled says nothing.
fn of_object(batch: FailedBatch, etag: Option<String>, records: u64) -> FailedBatch {
    if batch.etag == etag && batch.records == records {
        return batch;
    }
    FailedBatch { next: 0, rejected: 0, etag, records, ..batch }
}

/// Settles as many records as there is time for, and gives back the lock of the object.
async fn settled(
    context: &Reconciler,
    (batch, name): (FailedBatch, &str),
    records: Records,
    ends: (Instant, Instant),
) -> anyhow::Result<(FailedBatch, Held)> {
    let repair = batch.repair;
    let Records { keys, without_key, count, .. } = records;
    let is_left = |number: u64| number >= batch.next;
    let keys: Vec<(Key, u64)> = keys.into_iter().filter(|(_, number)| is_left(*number)).collect();
    let without_key: Vec<WithoutKey> =
        without_key.into_iter().filter(|one| is_left(one.number)).collect();
    let lock = advisory_lock::of_failure(repair, name);
    let lock = Held::take_over(lock, repair, &context.projector.database).await?;
    keep(context, &without_key).await?;

    let pending = keys.iter().map(|(key, _)| key.clone()).collect();
    let mut lines = Lines::from(batch.next);
    lines.add(Piece {
        keys,
        without_key: without_key.iter().map(|one| one.number).collect(),
        end: count,
        is_last: true,
        ..Piece::default()
    });
    let looker = conduct::looker(&context.projector, &context.api, &context.connections).await?;
    let function_timeout = time::Duration::try_from(context.waits.function_timeout)?;
    let limits = Limits { function_timeout, max_rate: None };
    let looker = &looker;
    let (reread, repaired, why) = (0, 0, None);
    let mut rereads =
        Rereads { context, repair, looker, limits, ends, pending, lines, reread, repaired, why };
    let lock = rereads.all(lock).await?;
    Ok((rereads.answer(batch, name)?, lock))
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
    /// Reads the parts again, as their sessions become free, and gives the lock back.
    async fn all(&mut self, mut lock: Held) -> anyhow::Result<Held> {
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
        Ok(lock)
    }

    /// Reads these parts again, to the end of their holds.
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

#[cfg(test)]
mod tests {
    use super::of_object;
    use crate::reconcile::event::{Answer, Event, FailedBatch, parse};

    fn batch() -> FailedBatch {
        FailedBatch {
            bucket: "b".to_owned(),
            failure: "aws/lambda/1/shardId-1/2026/11/25/x".to_owned(),
            repair: 7,
            run: Some(3),
            next: 2,
            etag: Some("\"e\"".to_owned()),
            done: false,
            records: 5,
            reread: 2,
            repaired: 1,
            rejected: 1,
        }
    }

    #[test]
    fn a_request_is_read_and_its_answer_can_be_sent_back_as_it_is() {
        let json = r#"{"reconcile": {"bucket": "b", "failure": "k", "repair": 7}}"#;
        let Ok(Event::Failure(request)) = parse(json) else { panic!("a failure") };
        assert_eq!((request.failure.as_str(), request.run, request.next), ("k", None, 0));
        let answer = serde_json::to_string(&Answer::Failure(batch())).expect("JSON");
        let again = parse(&format!(r#"{{"reconcile": {answer}}}"#));
        assert_eq!(again.expect("a failure"), Event::Failure(batch()));
        for (json, said) in [
            (r#"{"failure": "k", "repair": 7}"#, "missing field `bucket`"),
            (r#"{"bucket": "b", "failure": "k", "repair": null}"#, "invalid type: null"),
            (r#"{"bucket": "b", "failure": "k", "repair": 7, "key": "k"}"#, "unknown field"),
            (
                r#"{"bucket": "b", "failure": "k", "repair": 7, "next": 1}"#,
                "next is 1, and the object has 0 records",
            ),
        ] {
            let error = parse(&format!(r#"{{"reconcile": {json}}}"#)).expect_err(json).to_string();
            assert!(error.contains("a failure: ") && error.contains(said), "{error}");
        }
    }

    #[test]
    fn an_object_that_came_in_the_place_of_another_one_is_begun_anew() {
        let etag = batch().etag;
        assert_eq!(of_object(batch(), etag.clone(), 5), batch());
        let anew = of_object(batch(), Some("\"other\"".to_owned()), 5);
        assert_eq!((anew.next, anew.records, anew.run), (0, 5, Some(3)));
        let first = FailedBatch { next: 0, etag: None, records: 0, ..batch() };
        assert_eq!((of_object(first, etag.clone(), 5)).etag, etag);
    }
}
