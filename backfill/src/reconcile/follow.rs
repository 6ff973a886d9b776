//! One invocation follows the streams for all slices of a repair: it replays both from the trim
//! horizon to the beginning, and goes on. Each second it renews the lease and publishes how far
//! everything is stored. It returns before its deadline, and the next invocation resumes from its
//! checkpoints.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use projector::deadline::Deadline;
use projector::error::{Consequence, Error};
use time::OffsetDateTime;
use tokio::time::{Instant, MissedTickBehavior};

use super::Reconciler;
use super::event::{Answer, Follow};
use crate::repair::lease::{self, Published};
use crate::replay::background::{Background, Summary};

/// How often the lease is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(1);
/// What is left of the invocation for a batch that is under way.
const RESERVE: Range<Duration> = Duration::from_secs(1)..Duration::from_mins(1);

pub(super) async fn run(
    context: &Reconciler,
    follow: Follow,
    deadline: Deadline,
) -> anyhow::Result<Answer> {
    let Follow { repair, owner } = follow;
    let end = deadline.earlier_by(Instant::now(), 5, &RESERVE);
    let database = &context.projector.database;
    let row = lease::read(database, repair).await?;
    let row = row.filter(|row| row.owner.as_ref() == Some(&owner));
    let row = row.ok_or(Error::LeaseEnded { repair })?;
    if row.ended_at.is_some() {
        return Ok(Answer::Followed { done: true });
    }
    // The streams may take a while to be described.
    lease::renew(database, (repair, &owner), Published::default()).await?;
    let pace = (context.waits.pace(), row.following_since.is_some());
    let starting = Background::start(&context.aws, Arc::clone(&context.projector), pace);
    let mut streams = tokio::select! {
        biased;
        started = Box::pin(starting) => started?,
        () = end.passed() => return Ok(Answer::Followed { done: false }),
    };
    let followed = until_ended(context, (repair, &owner), &mut streams, end).await;
    // An environment that is frozen with the lock of the streams would keep it from the next call.
    let stopped = streams.stop().await;
    let done = followed?;
    let Summary { counts, lines } = stopped?;
    for line in lines {
        tracing::info!("{line}");
    }
    tracing::info!(repair, done, records = counts.records, applied = counts.applied, "followed");
    Ok(Answer::Followed { done })
}

/// Returns whether the repair has ended; otherwise the time was up.
async fn until_ended(
    context: &Reconciler,
    lease: (i64, &str),
    streams: &mut Background,
    end: Deadline,
) -> anyhow::Result<bool> {
    let database = &context.projector.database;
    let mut renew = tokio::time::interval(RENEW_EVERY);
    renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = end.passed() => return Ok(false),
            failed = streams.failed() => return Err(failed),
            _ = renew.tick() => {}
        }
        let published = Published {
            sessions: oldest(&streams.read_through(true)),
            scans: oldest(&streams.read_through(false)),
            following: true,
            caught_up: streams.has_reached_cutoff(),
        };
        match lease::renew(database, lease, published).await {
            Ok(true) => {}
            Ok(false) => return Ok(true),
            Err(error) if error.consequence() != Consequence::Fatal => {
                let error = projector::error::chain(&error);
                tracing::warn!(error, "the lease is not renewed; again in a second");
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Up to when all streams of a table are stored; `None` if nothing can be said of one of them, or
/// the table has none.
fn oldest(streams: &[Option<OffsetDateTime>]) -> Option<OffsetDateTime> {
    // `None` is less than any time.
    streams.iter().copied().min().flatten()
}
