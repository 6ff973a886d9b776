//! The replay beside a repair: it reads both tables' streams from the trim horizon, goes on as long
//! as the repair does, and says up to when everything is stored.
//!
//! What was trimmed before it began loses nothing, because the repair reads those items from the
//! tables. What is trimmed unread later ends it with an error.

use std::sync::{Arc, Mutex};

use anyhow::{Context as _, anyhow};
use aws_config::SdkConfig;
use projector::apply::Projector;
use projector::archive::Archive;
use projector::change::Tables;
use projector::counts::Counts;
use projector::database::Database;
use time::OffsetDateTime;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::advisory_lock::HeldByAnother;
use crate::console;
use crate::deliver::Delivery;
use crate::replay::checkpoint::Checkpoints;
use crate::replay::context::{Findings, IfLost, ReplayContext};
use crate::replay::coverage;
use crate::replay::prepare;
use crate::replay::run::{Pace, Replay};
use crate::replay::source::{Description, Source, Stream};
use crate::stop::{Stop, StopSwitch};

/// How often a quiet shard says how far it has been read. Whoever waits for it waits at most this
/// much longer.
const REPORT_EVERY: time::Duration = time::Duration::SECOND;

/// The replay beside a repair. Dropping it ends it at once.
pub(crate) struct Background {
    context: Arc<ReplayContext>,
    tables: Tables,
    reached_cutoff: watch::Receiver<bool>,
    stop: StopSwitch,
    task: JoinSet<Ended>,
    /// What it came to, once it has failed.
    failed: Option<Summary>,
}

/// What the replay came to, and why it ended if nobody stopped it.
type Ended = (Summary, Option<anyhow::Error>);

/// What the replay came to, for the summary of the repair.
pub(crate) struct Summary {
    pub(crate) counts: Counts,
    /// For people: a line per stream, and what else there is to know.
    pub(crate) lines: Vec<String>,
}

impl Background {
    /// Takes the lock of `stream`, begins at the trim horizon, and follows the streams.
    ///
    /// # Errors
    /// If a `backfill stream` runs on this database, a table has no stream that can be read, or the
    /// database is away.
    pub(crate) async fn start(
        aws: &SdkConfig,
        projector: Arc<Projector>,
        (pace, resume): (Pace, bool),
    ) -> anyhow::Result<Self> {
        let replay = Box::pin(prepare(aws, projector, (pace, resume))).await?;
        let (context, tables) = (Arc::clone(&replay.context), replay.tables.clone());
        let (reached, reached_cutoff) = watch::channel(false);
        let (stop, stopped) = Stop::by_hand();
        let mut task = JoinSet::new();
        task.spawn(run(replay, stopped, reached));
        Ok(Self { context, tables, reached_cutoff, stop, task, failed: None })
    }

    /// Waits until everything that was created before the cutoff is stored.
    ///
    /// # Errors
    /// If the replay fails before that.
    pub(crate) async fn reached_cutoff(&mut self) -> anyhow::Result<()> {
        // The sender goes away with the task.
        let reached = self.reached_cutoff.wait_for(|reached| *reached).await.is_ok();
        if reached { Ok(()) } else { Err(self.failed().await) }
    }

    /// Whether everything that was created before the cutoff is stored.
    pub(crate) fn has_reached_cutoff(&self) -> bool {
        *self.reached_cutoff.borrow()
    }

    /// Up to when everything of each stream of a table has been read and stored; `None` if nothing
    /// can be said of it.
    pub(crate) fn read_through(&self, of_sessions: bool) -> Vec<Option<OffsetDateTime>> {
        let Tables { sessions, scans } = &self.tables;
        self.context.through().read_through(if of_sessions { sessions } else { scans })
    }

    /// Returns only if the replay fails, with the reason. May be dropped and called again.
    pub(crate) async fn failed(&mut self) -> anyhow::Error {
        let Some(ended) = self.task.join_next().await else {
            return anyhow!("the replay of the streams has failed before");
        };
        match ended.context("the replay of the streams panicked") {
            Ok((summary, error)) => {
                self.failed = Some(summary);
                error.unwrap_or_else(|| anyhow!("the replay of the streams ended by itself"))
            }
            Err(panicked) => panicked,
        }
    }

    /// Ends it: a batch under way may still be stored, as after a signal. After a failure that was
    /// told, gives what it came to until then.
    ///
    /// # Errors
    /// If the replay has failed, and nobody was told.
    pub(crate) async fn stop(mut self) -> anyhow::Result<Summary> {
        self.stop.stop();
        if let Some(summary) = self.failed.take() {
            return Ok(summary);
        }
        let ended = self.task.join_next().await.context("the replay of the streams has failed")?;
        match ended.context("the replay of the streams panicked")? {
            (_, Some(error)) => Err(error),
            (summary, None) => Ok(summary),
        }
    }
}

/// Connects, takes the lock and begins with the checkpoints.
async fn prepare(
    aws: &SdkConfig,
    projector: Arc<Projector>,
    (pace, resume): (Pace, bool),
) -> anyhow::Result<Replay> {
    let started = OffsetDateTime::now_utc();
    let (source, tables) = (Source::new(aws), projector.tables.clone());
    let found = coverage::examine(&source, &tables).await?;
    let readable = found.readable()?;
    let archive = projector.archive.as_ref().map(Archive::place);
    let mut checkpoints = open(&projector.database, archive).await?;
    let findings = Findings { remarks: disabled(&readable), ..Findings::default() };
    for remark in &findings.remarks {
        console::line(remark);
    }
    let context = ReplayContext {
        source,
        permits: Arc::new(Semaphore::new(pace.parallel)),
        cutoff: prepare::cutoff(started, &mut checkpoints).await?,
        idle: pace.idle,
        first_record: pace.first_record,
        follow: true,
        report_every: REPORT_EVERY,
        snapshot_time: None,
        baseline: Some(started),
        complete_since: None,
        if_lost: IfLost::FailRepair,
        findings: Mutex::new(findings),
        through: Mutex::default(),
    };
    let sorted = prepare::sort_checkpoints(&mut checkpoints, &context, &readable, !resume).await?;
    let streams = prepare::begin(&mut checkpoints, readable, sorted).await?;
    Ok(Replay {
        aws: aws.clone(),
        tables,
        context: Arc::new(context),
        streams,
        delivery: Delivery::shared(projector),
        checkpoints,
        pace,
        // The repair does, at its end.
        writes_objects: false,
    })
}

/// Takes the lock of `stream`.
async fn open(database: &Database, archive: Option<String>) -> anyhow::Result<Checkpoints> {
    Checkpoints::open(database, archive).await.map_err(|error| {
        if !error.is::<HeldByAnother>() {
            return error;
        }
        error.context(
            "a repair follows the streams itself: end the `backfill stream` that runs on this \
                database, and run the repair again",
        )
    })
}

/// What is written to a table whose newest stream is disabled is in no stream.
fn disabled(readable: &[(&Stream, &Description)]) -> Vec<String> {
    let has_newer = |of: &Stream| {
        let newer = |stream: &Stream| stream.table == of.table && stream.label > of.label;
        readable.iter().any(|(stream, _)| newer(stream))
    };
    let disabled =
        readable.iter().filter(|(stream, description)| !description.enabled && !has_newer(stream));
    let remark = |(stream, description): &(&Stream, &Description)| {
        format!(
            "{}: the stream is {}, so what is written from now on is in no stream: enable it, and \
                run the repair again after that",
            stream.table, description.status
        )
    };
    disabled.map(remark).collect()
}

/// Runs until it fails or is stopped.
async fn run(mut replay: Replay, stop: Stop, reached_cutoff: watch::Sender<bool>) -> Ended {
    let ran = replay.run(&stop, &reached_cutoff).await;
    let mut lines = replay.tally(&ran, false).streams();
    lines.extend(replay.context.findings().remarks.iter().cloned());
    (Summary { counts: replay.delivery.counts, lines }, ran.ended.err())
}

#[cfg(test)]
mod tests {
    use super::disabled;
    use crate::replay::source::{Description, Stream};

    #[test]
    fn only_a_newest_stream_that_is_disabled_is_named() {
        let stream = |table: &str, label: &str, status: &str| {
            let (table, label) = (table.to_owned(), label.to_owned());
            let stream = Stream { arn: format!("{table}/{label}"), table, label };
            let description = Description {
                enabled: status == "ENABLED",
                status: status.to_owned(),
                view_type: "NEW_IMAGE".to_owned(),
                enabled_since: None,
                shards: Vec::new(),
            };
            (stream, description)
        };
        let streams = [
            stream("sessions", "1", "DISABLED"),
            stream("sessions", "2", "ENABLED"),
            stream("scans", "1", "DISABLED"),
        ];
        let remarks = disabled(&streams.each_ref().map(|(stream, of)| (stream, of)));
        assert_eq!(remarks.len(), 1, "{remarks:?}");
        assert!(remarks[0].starts_with("scans: the stream is DISABLED"), "{remarks:?}");
    }
}
