//! What comes before a replay reads anything: the checks, the lock, and the checkpoints of earlier
//! runs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use aws_config::SdkConfig;
use projector::archive::Archive;
use projector::config::Config;
use projector::start;
use time::OffsetDateTime;
use tokio::sync::Semaphore;

use crate::console::{self, span};
use crate::deliver::Delivery;
use crate::replay::checkpoint::Checkpoints;
use crate::replay::context::{IfLost, ReplayContext, StreamRun};
use crate::replay::coverage;
use crate::replay::coverage::judge::{Report, judge};
use crate::replay::reader::CHECKPOINT_EVERY;
use crate::replay::resume::{self, Sorted};
use crate::replay::run::{Pace, Replay};
use crate::replay::source::{Description, Source, Stream};

/// Between the two clocks are a few calls at the start.
const CLOCKS_APART: time::Duration = time::Duration::minutes(1);

/// What an operator asks of `backfill stream`.
pub(crate) struct Plan {
    /// Every change since then is to be read.
    pub(crate) snapshot_time: Option<OffsetDateTime>,
    /// What must be left of the 24 hours for the run itself.
    pub(crate) margin: time::Duration,
    /// Goes on if changes can be missing.
    pub(crate) allow_gap: bool,
    /// Goes on after the cutoff.
    pub(crate) follow: bool,
    /// Begins at the trim horizon, without the checkpoints of earlier runs.
    pub(crate) restart: bool,
    pub(crate) pace: Pace,
}

/// What the preparation of a replay came to.
pub(crate) enum Prepared {
    /// `gap`: changes are known to be missing before anything is read, and that was allowed.
    Ready { replay: Box<Replay>, gap: bool },
    /// Changes can be missing: why nothing was read.
    Refused(&'static str),
}

/// Checks, connects, takes the lock and sorts the checkpoints.
///
/// # Errors
/// If the set-up is wrong, a store is away, or another run holds the lock.
pub(crate) async fn prepare(
    aws: SdkConfig,
    config: Config,
    plan: Plan,
    started: OffsetDateTime,
) -> anyhow::Result<Prepared> {
    let tables = config.tables.clone();
    let source = Source::new(&aws);
    let found = coverage::examine(&source, &tables).await?;
    let snapshot = plan.snapshot_time;
    let report = judge(&found, snapshot, plan.margin, OffsetDateTime::now_utc());
    console::line(report.table(console::line_width()).trim_end());
    let may_begin = report.may_begin() || plan.allow_gap;
    if !may_begin && (plan.restart || !report.is_only_too_old()) {
        return Ok(Prepared::Refused(nothing_read(&report)));
    }

    let delivery = Delivery::deferring(start::projector(config).await?);
    let archive = delivery.projector().archive.as_ref().map(Archive::place);
    let mut checkpoints = Checkpoints::open(&delivery.projector().database, archive).await?;
    let context = ReplayContext {
        source,
        permits: Arc::new(Semaphore::new(plan.pace.parallel)),
        cutoff: cutoff(started, &mut checkpoints).await?,
        idle: plan.pace.idle,
        first_record: plan.pace.first_record,
        follow: plan.follow,
        report_every: CHECKPOINT_EVERY,
        snapshot_time: snapshot,
        baseline: snapshot,
        complete_since: snapshot.filter(|_| !plan.allow_gap),
        if_lost: if plan.allow_gap { IfLost::GoOn } else { IfLost::Fail },
        findings: Mutex::default(),
        through: Mutex::default(),
    };

    let readable = found.readable()?;
    let sorted = sort_checkpoints(&mut checkpoints, &context, &readable, plan.restart).await?;
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
    let pace = plan.pace;
    let writes_objects = true;
    let replay =
        Replay { aws, tables, context, streams, delivery, checkpoints, pace, writes_objects };
    Ok(Prepared::Ready { replay: Box::new(replay), gap })
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

/// The checkpoints of earlier runs, judged; none is deleted yet.
pub(crate) struct SortedCheckpoints {
    /// Those of each stream that is read, in the same order.
    streams: Vec<Sorted>,
    /// Those of streams that are gone, by stream and shard.
    old: Vec<(String, String)>,
}

/// Judges the checkpoints of earlier runs. `None`: none of them holds, because the run begins anew
/// or the table was emptied.
pub(crate) async fn sort_checkpoints(
    checkpoints: &mut Checkpoints,
    context: &ReplayContext,
    readable: &[(&Stream, &Description)],
    restart: bool,
) -> anyhow::Result<Option<SortedCheckpoints>> {
    if restart || is_truncated(checkpoints).await? {
        return Ok(None);
    }
    let all: Vec<&Stream> = readable.iter().map(|(stream, _)| *stream).collect();
    let old = resume::judge_gone_streams(checkpoints, context, &all).await?;
    let mut streams = Vec::new();
    for (stream, description) in readable {
        streams.push(resume::sort(checkpoints, context, stream, &description.shards).await?);
    }
    Ok(Some(SortedCheckpoints { streams, old }))
}

/// Deletes the checkpoints that do not hold, or all if none were sorted: from here on the run has
/// begun.
pub(crate) async fn begin(
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
///
/// # Errors
/// If the connection to the database is lost.
pub(crate) async fn cutoff(
    here: OffsetDateTime,
    checkpoints: &mut Checkpoints,
) -> anyhow::Result<OffsetDateTime> {
    let database = checkpoints.now().await?;
    let apart = (here - database).abs();
    if apart > CLOCKS_APART {
        console::line(&format!(
            "this machine's clock and the database's are {} apart: what is said of time left may \
                be wrong by that",
            span(apart.unsigned_abs())
        ));
    }
    Ok(here.max(database))
}
