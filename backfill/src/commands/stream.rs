//! `backfill stream`: replays the live streams of both tables, from the trim horizon or where an earlier run ended, up
//! to a cutoff. Checks first, takes the lock, and puts the parts together: a task per stream that reads its shards, and
//! one collector of their pages.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_config::SdkConfig;
use projector::change::Tables;
use projector::config;
use time::OffsetDateTime;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::cli::{Settings, StreamArguments};
use crate::console::{self, span};
use crate::deliver::Delivery;
use crate::outcome::Outcome;
use crate::replay::checkpoint::Checkpoints;
use crate::replay::collect::{Collector, Times, start_progress};
use crate::replay::context::{ReplayContext, StreamRun};
use crate::replay::coverage::{self, Report};
use crate::replay::follow::{self, Following};
use crate::replay::shards::read_stream;
use crate::replay::source::{Source, Stream};
use crate::replay::tally::Tally;
use crate::replay::{readers, resume};
use crate::stop::Stop;

/// Between the two clocks are a few calls at the start.
const CLOCKS_APART: time::Duration = time::Duration::minutes(1);

pub(crate) async fn run(
    settings: &Settings,
    arguments: &StreamArguments,
    stop: &Stop,
) -> anyhow::Result<Outcome> {
    let prepared = tokio::select! {
        biased;
        prepared = Box::pin(prepare(settings, arguments)) => prepared?,
        () = stop.wait() => {
            console::line("stopped by a signal before anything was read: run the same command again");
            return Ok(Outcome::Interrupted);
        }
    };
    match prepared {
        Some(replay) => replay.run(arguments, stop).await,
        None => Ok(Outcome::Unsafe),
    }
}

/// A replay that may begin.
struct Replay {
    aws: SdkConfig,
    tables: Tables,
    context: Arc<ReplayContext>,
    streams: Vec<Arc<StreamRun>>,
    delivery: Delivery,
    checkpoints: Checkpoints,
    /// A gap that is known before anything is read, and was allowed.
    gap: bool,
}

/// Checks, connects, takes the lock and sorts the checkpoints. `None`: changes can be missing, which it says.
async fn prepare(
    settings: &Settings,
    arguments: &StreamArguments,
) -> anyhow::Result<Option<Replay>> {
    let started = OffsetDateTime::now_utc();
    let config = settings.config()?;
    let tables = config.tables.clone();
    let aws = config::aws_with_credentials().await?;
    let source = Source::new(&aws);

    let found = coverage::examine(&source, &tables).await?;
    let snapshot = arguments.snapshot_time;
    let report = coverage::judge(&found, snapshot, arguments.margin(), OffsetDateTime::now_utc());
    console::line(report.table().trim_end());
    let may_begin = report.may_begin() || arguments.allow_gap;
    if !may_begin && (arguments.restart || !report.is_only_too_old()) {
        console::line(nothing_read(&report));
        return Ok(None);
    }

    let archive =
        config.archive.as_ref().map(|archive| format!("{}/{}", archive.bucket, archive.prefix));
    let delivery = Delivery::new(config.projector().await?);
    let promised = snapshot.filter(|_| !arguments.allow_gap);
    let database = &delivery.projector().database;
    let mut checkpoints = Checkpoints::open(database, archive, promised).await?;
    let cutoff = latest(started, checkpoints.now().await?);
    let context = ReplayContext {
        source,
        permits: Arc::new(Semaphore::new(arguments.parallel.into())),
        cutoff,
        idle: Duration::from_secs(arguments.idle_seconds.into()),
        first_record: Duration::from_secs(arguments.first_record_seconds.into()),
        follow: arguments.follow,
        snapshot_time: snapshot,
        allow_gap: arguments.allow_gap,
        findings: Mutex::default(),
    };

    let readable = found.readable()?;
    let readable_streams: Vec<&Stream> = readable.iter().map(|(stream, _)| *stream).collect();
    let restart = arguments.restart || is_truncated(&mut checkpoints).await?;
    if !restart {
        resume::settle_gone_streams(&mut checkpoints, &context, &readable_streams).await?;
    }
    let mut streams = Vec::new();
    for (stream, description) in readable {
        let resumed = if restart {
            checkpoints.forget_all(&stream.arn).await?;
            HashMap::new()
        } else {
            resume::usable(&mut checkpoints, &context, stream, &description.shards).await?
        };
        streams.push(Arc::new(StreamRun::new(stream.clone(), description.shards.clone(), resumed)));
    }
    let resumed = streams.iter().flat_map(|stream| stream.resumed.values());
    let began_in_time = resume::began_in_time(resumed, snapshot);
    if !may_begin {
        // A replay that has begun in time is judged shard by shard.
        if !began_in_time {
            console::line(nothing_read(&report));
            return Ok(None);
        }
        console::line("an earlier run began in time: resuming from its checkpoints");
    }
    let gap = snapshot.is_some() && !report.is_covered() && !began_in_time;
    let context = Arc::new(context);
    Ok(Some(Replay { aws, tables, context, streams, delivery, checkpoints, gap }))
}

impl Replay {
    async fn run(mut self, arguments: &StreamArguments, stop: &Stop) -> anyhow::Result<Outcome> {
        let start = Instant::now();
        let mut progress = start_progress(&self.streams);
        let (sender, mut messages) = mpsc::channel(arguments.parallel.into());
        let child_patience = Duration::from_secs(arguments.child_wait_seconds.into());
        let mut readers = JoinSet::new();
        for run in &self.streams {
            let (context, run) = (Arc::clone(&self.context), Arc::clone(run));
            readers.spawn(read_stream(context, run, child_patience, sender.clone()));
        }
        if arguments.follow {
            readers.spawn(follow::new_streams(Following {
                context: Arc::clone(&self.context),
                tables: self.tables.clone(),
                known: self.streams.iter().map(|run| (*run.stream).clone()).collect(),
                child_patience,
                messages: sender.clone(),
            }));
        }
        drop(sender);
        let streams = self.streams.iter().map(|run| (*run.stream).clone()).collect();
        let asking = tokio::spawn(report_readers(self.aws.clone(), streams));

        let mut times = Times::default();
        let mut collector = Collector {
            batch_size: arguments.batch_size as usize,
            delivery: &mut self.delivery,
            checkpoints: &mut self.checkpoints,
            progress: &mut progress,
            times: &mut times,
            reached_cutoff: false,
        };
        let ended = collector.run_to_the_end(&mut messages, readers, stop).await;
        asking.abort();
        let tally = Tally {
            ended: &ended,
            context: &self.context,
            delivery: &self.delivery,
            progress: &progress,
            times: &times,
            duration: start.elapsed(),
            gap: self.gap,
        };
        let outcome = tally.outcome();
        let json = arguments.json.then(|| tally.json());
        let text = tally.text();
        drop(progress);
        match json {
            Some(json) => crate::console::say!("{json:#}"),
            None => crate::console::say!("{text}"),
        }
        ended.map(|_| outcome)
    }
}

/// Says who else reads the streams, as soon as that is known.
async fn report_readers(aws: SdkConfig, streams: Vec<Stream>) {
    for (stream, readers) in streams.iter().zip(readers::ask(&aws, &streams).await) {
        console::line(&format!("{}: readers: {}", stream.table, readers.brief()));
        for line in readers.problem().into_iter().chain(readers.notes()) {
            console::line(&format!("{}: {line}", stream.table));
        }
    }
}

/// Why nothing is read, and how to go on.
fn nothing_read(report: &Report) -> &'static str {
    if report.is_only_short() {
        "nothing was read: nothing is missing yet, but the margin is short; --margin-minutes 0 begins anyway"
    } else {
        "nothing was read: changes can be missing; --allow-gap reads what is left, without them"
    }
}

/// Whether the checkpoints say that records are stored, and the table says otherwise.
async fn is_truncated(checkpoints: &mut Checkpoints) -> anyhow::Result<bool> {
    let truncated = checkpoints.stand_beside_an_empty_table().await?;
    if truncated {
        console::line(
            "the table measurements is empty, so the checkpoints in backfill_checkpoints are ignored: reading from the \
             trim horizon",
        );
    }
    Ok(truncated)
}

/// The start of the run by this machine's clock or by the database's, whichever is later: a clock that
/// is slow must not end the run before its time.
fn latest(here: OffsetDateTime, database: OffsetDateTime) -> OffsetDateTime {
    let apart = (here - database).abs();
    if apart > CLOCKS_APART {
        console::line(&format!(
            "this machine's clock and the database's are {} apart: what is said of time left may be wrong by that",
            span(apart.unsigned_abs())
        ));
    }
    here.max(database)
}
