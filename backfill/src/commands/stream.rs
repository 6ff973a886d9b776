//! `backfill stream`: replays the live streams of both tables, from the trim horizon or where an
//! earlier run ended, up to a cutoff. `replay` has what it is made of.

use projector::start;
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::cli::{Settings, StreamArguments};
use crate::outcome::Outcome;
use crate::output::Output;
use crate::replay::collect::Ended;
use crate::replay::prepare::{self, Plan, Prepared};
use crate::replay::run::{Pace, Replay};
use crate::replay::tally::{OBJECTS_REMAIN, RESUMES};
use crate::stop::Stop;

pub(crate) async fn run(
    settings: &Settings,
    arguments: &StreamArguments,
    stop: &Stop,
    output: &Output,
) -> anyhow::Result<Outcome> {
    let prepared = tokio::select! {
        biased;
        prepared = Box::pin(prepare(settings, arguments)) => prepared,
        () = stop.wait() => {
            let why = "stopped by a signal before anything was read: run the same command again";
            output.ended_early(why);
            return Ok(Outcome::Interrupted);
        }
    };
    match prepared? {
        Prepared::Ready { replay, gap } => replay_to_the_end(*replay, gap, stop, output).await,
        Prepared::Refused(why) => {
            output.ended_early(why);
            Ok(Outcome::Unsafe)
        }
    }
}

async fn prepare(settings: &Settings, arguments: &StreamArguments) -> anyhow::Result<Prepared> {
    let started = OffsetDateTime::now_utc();
    let config = settings.config()?;
    let aws = start::aws_with_credentials().await?;
    prepare::prepare(aws, config, plan(arguments), started).await
}

/// What the flags ask for.
fn plan(arguments: &StreamArguments) -> Plan {
    Plan {
        snapshot_time: arguments.snapshot_time,
        margin: arguments.margin(),
        allow_gap: arguments.allow_gap,
        follow: arguments.follow,
        restart: arguments.restart,
        pace: Pace::of(&arguments.replay, arguments.batch_size as usize),
    }
}

/// Runs it, and says what it came to.
async fn replay_to_the_end(
    mut replay: Replay,
    gap: bool,
    stop: &Stop,
    output: &Output,
) -> anyhow::Result<Outcome> {
    let ran = replay.run(stop, &watch::Sender::new(false)).await;
    let tally = replay.tally(&ran, gap);
    let outcome = tally.outcome();
    output.result(|| tally.text(), || Ok(tally.json()))?;
    if outcome == Outcome::Interrupted {
        let rows_stored = matches!(ran.ended, Ok(Ended::RowsStored));
        output.explain(if rows_stored { OBJECTS_REMAIN } else { RESUMES });
    }
    ran.ended.map(|_| outcome)
}
