//! `backfill stream`: replays the live streams of both tables, from the trim horizon or where an earlier
//! run was ended, up to a cutoff. Checks first, takes the lock, and puts the parts together: a task a
//! stream that reads its shards, and one collector of their pages.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use projector::config;
use time::OffsetDateTime;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::Outcome;
use crate::check;
use crate::checkpoint::Checkpoints;
use crate::cli::{Settings, StreamArguments};
use crate::collect::{Collector, Ended, Times};
use crate::deliver::Delivery;
use crate::progress::{StreamProgress, note};
use crate::reader::Reading;
use crate::resume;
use crate::shards::{StreamRun, read_stream};
use crate::source::Source;
use crate::stop::Stop;
use crate::summary::{self, clock, say, span};

/// Between the two clocks are a few calls at the start.
const CLOCKS_APART: time::Duration = time::Duration::minutes(1);
const NOTHING_READ: &str =
    "nothing was read; --allow-gap goes on without the changes that are missing";

pub(crate) async fn run(
    settings: &Settings,
    arguments: &StreamArguments,
    stop: &Stop,
) -> anyhow::Result<Outcome> {
    let started = OffsetDateTime::now_utc();
    let config = settings.config()?;
    let aws = config::aws().await?;
    let source = Source::new(&aws);

    let found = check::examine(&source, &aws, &config.tables).await?;
    let report = check::judge(
        &found,
        arguments.snapshot_time,
        arguments.margin(),
        OffsetDateTime::now_utc(),
    );
    note(report.table().trim_end());
    let may_begin = report.may_begin() || arguments.allow_gap;
    if !may_begin && (arguments.restart || !report.is_only_too_old()) {
        note(NOTHING_READ);
        return Ok(Outcome::Unsafe);
    }

    let archive =
        config.archive.as_ref().map(|archive| format!("{}/{}", archive.bucket, archive.prefix));
    let mut delivery = Delivery::new(config.projector().await?);
    let promised = arguments.snapshot_time.filter(|_| !arguments.allow_gap);
    let database = &delivery.projector().database;
    let mut checkpoints = Checkpoints::open(database, archive, promised).await?;
    let cutoff = latest(started, checkpoints.now().await?);
    let reading = Arc::new(Reading {
        source,
        permits: Arc::new(Semaphore::new(arguments.parallel as usize)),
        cutoff,
        idle: Duration::from_secs(arguments.idle_seconds.into()),
        follow: arguments.follow,
        snapshot_time: arguments.snapshot_time,
        allow_gap: arguments.allow_gap,
        gaps: Mutex::default(),
    });

    let mut streams = Vec::new();
    for (stream, description) in found.readable()? {
        let left = if arguments.restart {
            resume::forget_all(&mut checkpoints, stream).await?;
            HashMap::new()
        } else {
            let database = &delivery.projector().database;
            resume::usable(&mut checkpoints, database, &reading, stream, &description.shards)
                .await?
        };
        streams.push(Arc::new(StreamRun::new(stream.clone(), description.shards.clone(), left)));
    }
    if !may_begin {
        // A replay that has begun in time is judged shard by shard.
        let left = streams.iter().flat_map(|stream| stream.left.values());
        if !resume::began_in_time(left, arguments.snapshot_time) {
            note(NOTHING_READ);
            return Ok(Outcome::Unsafe);
        }
        note("an earlier run began in time: going on from its checkpoints");
    }
    let mut progress: Vec<StreamProgress> =
        streams.iter().map(|stream| StreamProgress::start(stream)).collect();

    let start = Instant::now();
    let (sender, mut pages) = mpsc::channel(arguments.parallel as usize);
    let mut readers = JoinSet::new();
    for (index, stream) in streams.iter().enumerate() {
        let (reading, stream) = (Arc::clone(&reading), Arc::clone(stream));
        let wait = Duration::from_secs(arguments.child_wait_seconds.into());
        readers.spawn(read_stream(reading, stream, index, wait, sender.clone()));
    }
    drop(sender);

    let mut times = Times::default();
    let mut collector = Collector {
        streams: &streams,
        batch_size: arguments.batch_size as usize,
        delivery: &mut delivery,
        checkpoints: &mut checkpoints,
        progress: &mut progress,
        times: &mut times,
        reached_cutoff: false,
    };
    let ended = collector.run_to_the_end(&mut pages, readers, stop).await;
    drop(progress);

    let end = match &ended {
        Ok(Ended::Complete) => "done",
        Ok(Ended::Stopped { .. }) => "stopped by a signal",
        Err(_) => "failed",
    };
    summary::print(end, &delivery.counts, &delivery.reasons, start.elapsed());
    times.print(&delivery, start.elapsed());
    if let Some(troubles) = reading.troubles() {
        say!("  the streams: {troubles}");
    }
    Ok(outcome(&ended?, &reading, &delivery))
}

/// What a run that did not fail came to, which it says.
fn outcome(ended: &Ended, reading: &Reading, delivery: &Delivery) -> Outcome {
    let at_cutoff = match *ended {
        Ended::Complete => true,
        // Only one that follows goes on behind the cutoff; another was not at its end.
        Ended::Stopped { at_cutoff } => at_cutoff && reading.follow,
    };
    if !at_cutoff {
        say!("not all records are applied yet: the same command goes on from here");
        return Outcome::Interrupted;
    }
    let gaps = reading.gaps.lock().unwrap_or_else(PoisonError::into_inner).len();
    let except = match gaps {
        0 => String::new(),
        gaps => format!(", except what is lost in {gaps} shards (see the log above)"),
    };
    say!("every record created before {} is applied{except}", clock(reading.cutoff));
    Outcome::of(&delivery.counts)
}

/// The start of the run by this machine's clock or by the database's, whichever is later: a clock that
/// is slow must not end the run before its time.
fn latest(here: OffsetDateTime, database: OffsetDateTime) -> OffsetDateTime {
    let apart = (here - database).abs();
    if apart > CLOCKS_APART {
        note(&format!(
            "this machine's clock and the database's are {} apart: what is said of time left may be wrong by that",
            span(apart.unsigned_abs())
        ));
    }
    here.max(database)
}
