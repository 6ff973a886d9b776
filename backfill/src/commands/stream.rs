//! `backfill stream`: replays the live streams of both tables, from the trim horizon or where an
//! earlier run ended, up to a cutoff. Checks first, takes the lock, and puts the parts together: a
//! task per stream that reads its shards, and one collector of their pages.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_config::SdkConfig;
use projector::change::Tables;
use projector::start;
use time::OffsetDateTime;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::cli::{Settings, StreamArguments};
use crate::console::{self, span};
use crate::deliver::Delivery;
use crate::outcome::Outcome;
use crate::output::Output;
use crate::replay::checkpoint::Checkpoints;
use crate::replay::collect::{Collector, Times, start_progress};
use crate::replay::context::{ReplayContext, StreamRun};
use crate::replay::coverage::{self, Report};
use crate::replay::follow::{self, Following};
use crate::replay::readers;
use crate::replay::resume::{self, Sorted};
use crate::replay::shards::read_stream;
use crate::replay::source::{Description, Source, Stream};
use crate::replay::tally::{RESUMES, Tally};
use crate::stop::Stop;

/// Between the two clocks are a few calls at the start.
const CLOCKS_APART: time::Duration = time::Duration::minutes(1);

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
        Prepared::Ready(replay) => replay.run(arguments, stop, output).await,
        Prepared::Refused(why) => {
            output.ended_early(why);
            Ok(Outcome::Unsafe)
        }
    }
}

/// What the preparation of a replay came to.
enum Prepared {
    Ready(Box<Replay>),
    /// Changes can be missing: why nothing was read.
    Refused(&'static str),
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

/// Checks, connects, takes the lock and sorts the checkpoints.
async fn prepare(settings: &Settings, arguments: &StreamArguments) -> anyhow::Result<Prepared> {
    let started = OffsetDateTime::now_utc();
    let config = settings.config()?;
    let tables = config.tables.clone();
    let aws = start::aws_with_credentials().await?;
    let source = Source::new(&aws);

    let found = coverage::examine(&source, &tables).await?;
    let snapshot = arguments.snapshot_time;
    let report = coverage::judge(&found, snapshot, arguments.margin(), OffsetDateTime::now_utc());
    console::line(report.table(console::line_width()).trim_end());
    let may_begin = report.may_begin() || arguments.allow_gap;
    if !may_begin && (arguments.restart || !report.is_only_too_old()) {
        return Ok(Prepared::Refused(nothing_read(&report)));
    }

    let archive =
        config.archive.as_ref().map(|archive| format!("{}/{}", archive.bucket, archive.prefix));
    let delivery = Delivery::new(start::projector(config).await?);
    let database = &delivery.projector().database;
    let mut checkpoints = Checkpoints::open(database, archive).await?;
    let cutoff = latest(started, checkpoints.now().await?);
    let context = ReplayContext {
        source,
        permits: Arc::new(Semaphore::new(arguments.parallel.into())),
        cutoff,
        idle: Duration::from_secs(arguments.idle_seconds.into()),
        first_record: Duration::from_secs(arguments.first_record_seconds.into()),
        follow: arguments.follow,
        snapshot_time: snapshot,
        complete_since: snapshot.filter(|_| !arguments.allow_gap),
        allow_gap: arguments.allow_gap,
        findings: Mutex::default(),
    };

    let readable = found.readable()?;
    let restart = arguments.restart || is_truncated(&mut checkpoints).await?;
    let sorted = if restart {
        None
    } else {
        Some(sort_checkpoints(&mut checkpoints, &context, &readable).await?)
    };
    let resumed =
        sorted.iter().flat_map(|sorted| &sorted.streams).flat_map(|of| of.resumed.values());
    let began_in_time = resume::began_in_time(resumed, snapshot);
    if !may_begin {
        // A replay that has begun in time is judged shard by shard.
        if !began_in_time {
            return Ok(Prepared::Refused(nothing_read(&report)));
        }
        console::line("an earlier run began in time: resuming from its checkpoints");
    }
    let streams = begin(&mut checkpoints, readable, sorted).await?;
    let gap = snapshot.is_some() && !report.is_covered() && !began_in_time;
    let context = Arc::new(context);
    Ok(Prepared::Ready(Box::new(Replay {
        aws,
        tables,
        context,
        streams,
        delivery,
        checkpoints,
        gap,
    })))
}

/// The checkpoints of earlier runs, judged; none is deleted yet.
struct SortedCheckpoints {
    /// Those of each stream that is read, in the same order.
    streams: Vec<Sorted>,
    /// Those of streams that are gone, by stream and shard.
    old: Vec<(String, String)>,
}

async fn sort_checkpoints(
    checkpoints: &mut Checkpoints,
    context: &ReplayContext,
    readable: &[(&Stream, &Description)],
) -> anyhow::Result<SortedCheckpoints> {
    let all: Vec<&Stream> = readable.iter().map(|(stream, _)| *stream).collect();
    let old = resume::judge_gone_streams(checkpoints, context, &all).await?;
    let mut streams = Vec::new();
    for (stream, description) in readable {
        streams.push(resume::sort(checkpoints, context, stream, &description.shards).await?);
    }
    Ok(SortedCheckpoints { streams, old })
}

/// Deletes the checkpoints that do not hold, or all if none were sorted: from here on the run has
/// begun.
async fn begin(
    checkpoints: &mut Checkpoints,
    readable: Vec<(&Stream, &Description)>,
    sorted: Option<SortedCheckpoints>,
) -> anyhow::Result<Vec<Arc<StreamRun>>> {
    let mut of_streams = Vec::new();
    if let Some(SortedCheckpoints { streams, old }) = sorted {
        for (arn, shard) in &old {
            checkpoints.forget(arn, &[shard]).await?;
        }
        of_streams = streams;
    }
    let mut of_streams = of_streams.into_iter();
    let mut runs = Vec::new();
    for (stream, description) in readable {
        let resumed = match of_streams.next() {
            Some(sorted) => {
                sorted.delete_ignored(checkpoints, stream).await?;
                sorted.resumed
            }
            None => {
                checkpoints.forget_all(&stream.arn).await?;
                HashMap::new()
            }
        };
        let listed = description.shards.clone();
        runs.push(Arc::new(StreamRun::new(stream.clone(), listed, resumed)));
    }
    Ok(runs)
}

impl Replay {
    async fn run(
        mut self,
        arguments: &StreamArguments,
        stop: &Stop,
        output: &Output,
    ) -> anyhow::Result<Outcome> {
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
        output.result(|| tally.text(), || Ok(tally.json()))?;
        if outcome == Outcome::Interrupted {
            output.explain(RESUMES);
        }
        ended.map(|_| outcome)
    }
}

/// Says who else reads the streams, as soon as that is known.
async fn report_readers(aws: SdkConfig, streams: Vec<Stream>) {
    for (stream, readers) in streams.iter().zip(readers::ask(&aws, &streams).await) {
        let of_table = streams.iter().filter(|other| other.table == stream.table).count();
        let name = if of_table > 1 { stream.full_name() } else { stream.table.clone() };
        console::line(&format!("{name}: readers: {}", readers.brief()));
        for line in readers.problem().into_iter().chain(readers.notes()) {
            console::line(&format!("{name}: {line}"));
        }
    }
}

/// Why nothing is read, and how to go on.
fn nothing_read(report: &Report) -> &'static str {
    if report.is_only_short() {
        "nothing was read: nothing is missing yet, but the margin is short; --margin-minutes 0 \
            begins anyway"
    } else {
        "nothing was read: changes can be missing; --allow-gap reads what is left, without them"
    }
}

/// Whether the checkpoints say that records are stored, and the table says otherwise.
async fn is_truncated(checkpoints: &mut Checkpoints) -> anyhow::Result<bool> {
    let truncated = checkpoints.stand_beside_an_empty_table().await?;
    if truncated {
        console::line(
            "the table measurements is empty, so the checkpoints in backfill_checkpoints do not \
             hold: reading from the trim horizon",
        );
    }
    Ok(truncated)
}

/// The start of the run by this machine's clock or by the database's, whichever is later: a clock
/// that is slow must not end the run before its time.
fn latest(here: OffsetDateTime, database: OffsetDateTime) -> OffsetDateTime {
    let apart = (here - database).abs();
    if apart > CLOCKS_APART {
        console::line(&format!(
            "this machine's clock and the database's are {} apart: what is said of time left may \
                be wrong by that",
            span(apart.unsigned_abs())
        ));
    }
    here.max(database)
}
