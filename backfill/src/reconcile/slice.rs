//! One slice: the lines of a data file from `next` on, as many as the invocation has time for.
//!
//! An image waits until the streams are read past its read, and one timeout of the function more.
//! So no line is read any more once less time is left than that takes. What still waits at the end
//! is dropped, and the answer names the first line that is not settled: the next call reads on from
//! there, and finds equal what was repaired already.

use std::cell::RefCell;
use std::convert::Infallible;
use std::ops::Range;
use std::time::Duration;

use anyhow::{bail, ensure};
use projector::deadline::Deadline;
use projector::error::Error;
use tokio::time::{Instant, sleep, sleep_until};

use super::event::{Answer, Slice};
use super::recording::Recording;
use super::{Reconciler, compare};
use crate::advisory_lock::{self, Held};
use crate::console::{Progress, clock, span};
use crate::items::slice_file::{self, Found, Named};
use crate::repair::candidates::windows::{ENDED_WITHIN, is_too_old};
use crate::repair::conduct;
use crate::repair::file_lines::FileLines;
use crate::repair::lease::{self, Lease};
use crate::repair::lines::Lines;
use crate::repair::run::{Limits, Repair};
use crate::repair::source::Source;
use crate::repair::streams::{Followed, Streams};
use crate::repair::tally::Tally;
use crate::stop::Stop;

/// What is left of the invocation for what is under way at its end, a statement as a rule.
const RESERVE: Range<Duration> = Duration::from_millis(500)..Duration::from_secs(20);
/// How long it takes, beside the function's timeout, until a hold is over: the tables are asked for
/// new streams every 5 seconds, the streams are read past it, that is published, and it is seen.
const FOLLOWED_WITHIN: Range<Duration> = Duration::from_secs(10)..Duration::from_secs(30);
/// How often the row is asked whether the slices may begin.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// The longest invocation that Lambda allows.
const LONGEST: Duration = Duration::from_mins(15);

/// The times of an invocation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) start: Instant,
    /// The answer is due.
    pub(super) end: Instant,
}

impl Times {
    pub(super) fn until(deadline: Deadline) -> Self {
        let start = Instant::now();
        let end = start + deadline.earlier_by(start, 10, &RESERVE).limit(start, LONGEST);
        Self { start, end }
    }
}

pub(super) async fn run(
    context: &Reconciler,
    slice: Slice,
    deadline: Deadline,
) -> anyhow::Result<Answer> {
    let times = Times::until(deadline);
    let recording = Recording::of_slice(context, &slice).await?;
    let slice = recording.as_ref().map_or(slice.clone(), |recording| recording.resumed(slice));
    if slice.done {
        return Ok(Answer::Slice(slice));
    }
    let Slice { bucket, key, md5, items, .. } = &slice;
    let named = Named { bucket, key, md5, items: *items };
    let found = slice_file::find(named, &context.projector.tables, &context.exports).await?;
    let after = match slice.repair {
        Some(repair) => repaired(context, (slice, repair), &found, (times, recording)).await?,
        None => compare::lines(context, slice, &found, (times, recording)).await?,
    };
    let Slice { done, next, compared, differing, repaired, rejected, .. } = after;
    tracing::info!(file = found.name, done, next, compared, differing, repaired, rejected, "slice");
    Ok(Answer::Slice(after))
}

/// Repairs what differs.
async fn repaired(
    context: &Reconciler,
    (slice, repair): (Slice, i64),
    found: &Found,
    (times, recording): (Times, Option<Recording>),
) -> anyhow::Result<Slice> {
    let function_timeout = context.waits.function_timeout;
    let read_until = read_until(times, function_timeout)?;
    let in_time =
        may_begin(context, repair, Some(found), times.end).await? && Instant::now() < read_until;
    if !in_time {
        return Ok(slice);
    }
    let (projector, database) = (&context.projector, &context.projector.database);
    let lock = advisory_lock::of_slice(repair, &found.name);
    let lock = Held::take_over(lock, repair, database).await?;
    let mut looker = conduct::looker(projector, &context.api, &context.connections).await?;
    if let Some(recording) = &recording {
        looker.first.started = recording.run.started_at;
    }
    let adding = recording.as_ref().map(|recording| RefCell::new(recording.adding()));
    let lines = FileLines::new(&looker.first, &found.file, slice.next, read_until);
    let lines = lines.adding(adding.as_ref());
    let streams = Streams::Followed(Followed::new(database, repair));
    let function_timeout = time::Duration::try_from(function_timeout)?;
    let limits = Limits { function_timeout, max_rate: None };
    let progress = Progress::start(slice.items);
    let mut running = Repair::new(&looker, projector, (lock, streams), limits, progress)
        .of_lines(Lines::from(slice.next));
    until(times.end, &mut running, Source::FileLines(lines)).await?;
    let Repair { tally, lines, mut lock, .. } = running;
    let after = answer(slice, found, &tally, &lines.unwrap_or_default())?;
    if let Some((recording, adding)) = recording.zip(adding) {
        recording.slice(lock.connection(), (&after, 0), adding.into_inner(), found).await?;
    }
    Ok(after)
}

/// Runs until all that was read is settled, or the time is up.
pub(super) async fn until(
    end: Instant,
    running: &mut Repair<'_>,
    source: Source<'_>,
) -> anyhow::Result<()> {
    let (switch, stop) = Stop::by_hand();
    let time_is_up = async {
        sleep_until(end).await;
        switch.stop();
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        ended = Box::pin(running.all(source, &stop)) => ended.map(drop),
        never = time_is_up => match never {},
    }
}

/// Until when lines may be read, so that what they name can still be written.
///
/// # Errors
/// If an invocation is too short for one hold.
pub(super) fn read_until(times: Times, function_timeout: Duration) -> anyhow::Result<Instant> {
    let whole = times.end - times.start;
    let followed_within = (whole / 5).clamp(FOLLOWED_WITHIN.start, FOLLOWED_WITHIN.end);
    let hold = function_timeout + followed_within;
    ensure!(
        whole > hold,
        "an invocation has {} here, and what it reads waits {} before it is written: set the \
         timeout of this function to at least twice that (FUNCTION_TIMEOUT_SECONDS is the timeout \
         of the function that reads the streams, {})",
        span(whole),
        span(hold),
        span(function_timeout)
    );
    Ok(times.end - hold)
}

/// Waits until the streams are read through to the beginning of the repair, and one timeout of the
/// function is over since. `false`: not within this invocation.
///
/// # Errors
/// If the repair has ended, nobody follows the streams for it, or the export cannot be used with
/// it.
pub(super) async fn may_begin(
    context: &Reconciler,
    repair: i64,
    found: Option<&Found>,
    end: Instant,
) -> anyhow::Result<bool> {
    loop {
        let row = lease::read(&context.projector.database, repair).await?;
        let row = row.filter(|row| row.ended_at.is_none() && row.owner.is_some());
        let row = row.ok_or(Error::LeaseEnded { repair })?;
        found.map_or(Ok(()), |found| require_fit(&row, found))?;
        if row.may_read(context.waits.function_timeout) {
            return Ok(true);
        }
        if let Some(dead_for) = row.dead_for() {
            bail!(
                "nobody follows the streams for repair {repair}: its last heartbeat was {} ago. \
                 Let `follow` run beside the slices",
                span(dead_for)
            );
        }
        if Instant::now() + ASK_EVERY >= end {
            return Ok(false);
        }
        sleep(ASK_EVERY).await;
    }
}

/// What changed after the export must be in the streams: an item that is equal in it is not looked
/// at again.
fn require_fit(row: &Lease, found: &Found) -> anyhow::Result<()> {
    let export_time = found.export_time;
    ensure!(
        !is_too_old(export_time, row.started_at),
        "{} is of an export of {}, more than {} hours before this repair began at {}, and the \
         streams do not hold all that came after it: make a new export",
        found.name,
        clock(export_time),
        ENDED_WITHIN.whole_hours(),
        clock(row.started_at)
    );
    if let Some(since) = row.streams_since.filter(|since| *since > export_time) {
        bail!(
            "{} is of an export of {}, and a stream was enabled only at {}: what was written in \
             between is in neither. Make a new export",
            found.name,
            clock(export_time),
            clock(since)
        );
    }
    Ok(())
}

/// What the invocation came to.
///
/// # Errors
/// If it got nowhere: the same call would come to the same.
fn answer(slice: Slice, found: &Found, tally: &Tally, lines: &Lines) -> anyhow::Result<Slice> {
    let (next, done) = (lines.next(), lines.is_done());
    let repaired = tally.written + tally.removed;
    if !done && next == slice.next && repaired == 0 {
        bail!(
            "{}: line {} could not be settled within this invocation ({}). Fix the cause, and \
             call the slice again",
            found.name,
            next + 1,
            tally.why_unsettled()
        );
    }
    Ok(Slice {
        done,
        next,
        compared: slice.compared + (next - slice.next),
        differing: slice.differing + repaired,
        repaired: slice.repaired + repaired,
        rejected: slice.rejected + lines.rejected(),
        ..slice
    })
}
