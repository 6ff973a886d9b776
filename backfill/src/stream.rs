//! `backfill stream`: replays the live streams of both tables, from the trim horizon or where an earlier
//! run was ended, up to a cutoff.
//!
//! A task a stream knows the lineage and starts a reader a shard; the readers' pages come together in
//! large batches here, in the order in which they were read; a batch goes to the projector, and when
//! all of it is in both stores the checkpoints are written. So whatever ends the run, each checkpoint
//! stands at or before what is stored.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use projector::config;
use projector::database::Database;
use time::OffsetDateTime;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use crate::Outcome;
use crate::check;
use crate::checkpoint::{Checkpoint, Checkpoints, Mark};
use crate::cli::{Settings, StreamArguments};
use crate::deliver::{BATCH_BYTES, Delivery};
use crate::lineage::{Lineage, Shard};
use crate::position::Position;
use crate::progress::{self, ShardCount, StreamProgress, note};
use crate::reader::{End, Page, Reading, ShardReader, Standing};
use crate::source::{Source, Stream};
use crate::summary::{self, clock, say, span};

/// A batch is not held back for longer than this for the sake of more records.
const LINGER: Duration = Duration::from_millis(500);
/// What is under way when the run is told to stop may take so long to come to its end.
const GRACE: Duration = Duration::from_secs(10);
/// Between the two clocks are a few calls at the start.
const CLOCKS_APART: time::Duration = time::Duration::minutes(1);
/// How often a stream is described while a closed shard's child is looked for, or when nothing is
/// under way any more; and otherwise.
const DESCRIBE_EVERY: Duration = Duration::from_secs(1);
const DESCRIBE_ANYWAY: Duration = Duration::from_secs(30);

pub(crate) async fn run(
    settings: &Settings,
    arguments: &StreamArguments,
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
    if !may_begin && !report.is_only_too_old() {
        note("nothing was read; --allow-gap goes on without the changes that are missing");
        return Ok(Outcome::Unsafe);
    }

    let archive =
        config.archive.as_ref().map(|archive| format!("{}/{}", archive.bucket, archive.prefix));
    let mut delivery = Delivery::new(config.projector().await?);
    let mut checkpoints = Checkpoints::open(&delivery.projector().database, archive).await?;
    let cutoff = latest(started, checkpoints.now().await?);
    let reading = Arc::new(Reading {
        source,
        permits: Arc::new(Semaphore::new(arguments.parallel as usize)),
        cutoff,
        idle: Duration::from_secs(arguments.idle_seconds.into()),
        follow: arguments.follow,
        snapshot_time: arguments.snapshot_time,
        allow_gap: arguments.allow_gap,
    });

    let mut streams = Vec::new();
    for (stream, description) in found.readable()? {
        let left = if arguments.restart {
            forget_all(&mut checkpoints, stream).await?;
            HashMap::new()
        } else {
            let database = &delivery.projector().database;
            usable(&mut checkpoints, database, &reading, stream, &description.shards).await?
        };
        streams.push(Arc::new(StreamRun::new(stream.clone(), description.shards.clone(), left)));
    }
    if !may_begin {
        // A replay that has begun in time is judged shard by shard.
        if streams.iter().all(|stream| stream.left.is_empty()) {
            note("nothing was read; --allow-gap goes on without the changes that are missing");
            return Ok(Outcome::Unsafe);
        }
        note("an earlier run began in time: going on from its checkpoints");
    }
    let mut progress: Vec<StreamProgress> = streams
        .iter()
        .map(|stream| {
            let is_done = |shard: &&Shard| {
                stream.left.get(&shard.id).is_some_and(|checkpoint| checkpoint.finished)
            };
            let done = stream.listed.iter().filter(is_done).count();
            StreamProgress::start(&stream.stream.table, Arc::clone(&stream.shards), done)
        })
        .collect();

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
    let ended = collector.run_to_the_end(&mut pages, readers, stop_signals()?).await;
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
    let at_cutoff = match ended? {
        Ended::Complete => true,
        // Only one that follows goes on behind the cutoff; another was not at its end.
        Ended::Stopped { at_cutoff } => at_cutoff && arguments.follow,
    };
    if at_cutoff {
        say!("every record created before {} is applied", clock(cutoff));
    } else {
        say!("not all records are applied yet: the same command goes on from here");
        return Ok(Outcome::Interrupted);
    }
    Ok(Outcome::of(&delivery.counts))
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

/// Forgets all checkpoints of a stream.
async fn forget_all(checkpoints: &mut Checkpoints, stream: &Stream) -> anyhow::Result<()> {
    let left = checkpoints.load(&stream.arn).await?;
    let shards: Vec<&str> = left.keys().map(String::as_str).collect();
    checkpoints.forget(&stream.arn, &shards).await
}

/// The checkpoints of a stream that hold for this run; the others are deleted.
async fn usable(
    checkpoints: &mut Checkpoints,
    database: &Database,
    reading: &Reading,
    stream: &Stream,
    listed: &[Shard],
) -> anyhow::Result<HashMap<String, Checkpoint>> {
    let mut left = checkpoints.load(&stream.arn).await?;
    let listed: HashSet<&str> = listed.iter().map(|shard| shard.id.as_str()).collect();
    let mut forgotten = Vec::new();
    let mut trimmed_away = Vec::new();
    for (shard, checkpoint) in &left {
        // Written before the snapshot was taken: it came with it, from an earlier backfill.
        if reading.snapshot_time.is_some_and(|snapshot| checkpoint.updated_at < snapshot) {
            forgotten.push(shard.clone());
            continue;
        }
        if !checkpoint.finished && !listed.contains(shard.as_str()) {
            reading.check_trimmed(stream, shard, &checkpoint.position, true)?;
            trimmed_away.push(Mark {
                stream_arn: stream.arn.clone(),
                shard_id: shard.clone(),
                position: checkpoint.position.clone(),
                finished: true,
            });
        }
        // The records behind it went to another archive, or to none.
        let archive = checkpoints.archive();
        if archive.is_some_and(|archive| checkpoint.archive.as_deref() != Some(archive)) {
            forgotten.push(shard.clone());
        }
    }
    checkpoints.save(database, &trimmed_away).await?;
    let shards: Vec<&str> = forgotten.iter().map(String::as_str).collect();
    checkpoints.forget(&stream.arn, &shards).await?;
    left.retain(|shard, _| !forgotten.contains(shard));
    let of_another_life = forgotten.len();
    if of_another_life > 0 {
        note(&format!(
            "{}: {of_another_life} checkpoints are not used: they came with the snapshot, or belong to another archive",
            stream.table
        ));
    }
    if !left.is_empty() {
        let newest = left.values().map(|checkpoint| checkpoint.updated_at).max();
        note(&format!(
            "{}: goes on from the checkpoints of {} shards, last written at {}",
            stream.table,
            left.len(),
            newest.map(clock).unwrap_or_default()
        ));
    }
    Ok(left)
}

/// A stream, and where it stood when the run began.
struct StreamRun {
    stream: Arc<Stream>,
    listed: Vec<Shard>,
    left: HashMap<String, Checkpoint>,
    shards: Arc<ShardCount>,
}

impl StreamRun {
    fn new(stream: Stream, listed: Vec<Shard>, left: HashMap<String, Checkpoint>) -> Self {
        let shards = ShardCount { listed: AtomicUsize::new(listed.len()), ..ShardCount::default() };
        Self { stream: Arc::new(stream), listed, left, shards: Arc::new(shards) }
    }
}

/// Reads all shards of a stream, parents before their children.
///
/// It ends only after a description that was asked for when nothing was under way any more, and that
/// shows nothing new: no shard that was not listed before, and none that only seemed idle.
async fn read_stream(
    reading: Arc<Reading>,
    run: Arc<StreamRun>,
    index: usize,
    child_patience: Duration,
    pages: mpsc::Sender<Page>,
) -> anyhow::Result<()> {
    let mut lineage = Lineage::default();
    lineage.extend(run.listed.iter().cloned());
    // Up to when everything has been read, by shard: where its children begin.
    let mut read_through: HashMap<String, Option<OffsetDateTime>> = HashMap::new();
    let mut childless = BTreeMap::new();
    for (shard, checkpoint) in &run.left {
        read_through.insert(shard.clone(), checkpoint.position.read_through);
        if checkpoint.finished && lineage.contains(shard) {
            lineage.finish(shard);
            if !lineage.has_children(shard) {
                run.shards.expected.fetch_add(1, Ordering::SeqCst);
                childless.insert(shard.clone(), Instant::now());
            }
        }
    }
    let mut readers = JoinSet::new();
    let read = |readers: &mut JoinSet<_>, shard: Shard, position: Position| {
        let id = shard.id.clone();
        let reader = ShardReader {
            reading: Arc::clone(&reading),
            stream: Arc::clone(&run.stream),
            stream_index: index,
            shard: Arc::from(shard.id),
            closed: shard.closed,
            position,
            pages: pages.clone(),
            shards: Arc::clone(&run.shards),
            opened: false,
        };
        readers.spawn(async move { (id, reader.read().await) });
    };
    let mut idle: HashMap<String, Position> = HashMap::new();
    let mut described = Instant::now();
    let mut shown_complete = false;
    loop {
        for shard in lineage.take_ready() {
            shown_complete = false;
            let position = run.left.get(&shard.id).map_or_else(
                || {
                    let parent = shard.parent.as_ref().and_then(|parent| read_through.get(parent));
                    Position::behind(parent.copied().flatten())
                },
                |checkpoint| checkpoint.position.clone(),
            );
            read(&mut readers, shard, position);
        }
        let nothing_under_way = readers.is_empty();
        if nothing_under_way && childless.is_empty() && shown_complete {
            return Ok(());
        }
        let urgent = nothing_under_way || !childless.is_empty();
        let describe_at = described + if urgent { DESCRIBE_EVERY } else { DESCRIBE_ANYWAY };
        tokio::select! {
            Some(ended) = readers.join_next() => {
                shown_complete = false;
                let (id, end) = ended.context("a reader panicked")?;
                match end? {
                    End::PastCutoff => {}
                    End::Idle(position) => {
                        idle.insert(id, position);
                    }
                    End::Finished(position) => {
                        // Its children are opened at once. Only where a snapshot's changes are promised does
                        // it matter that they can begin later by then.
                        if reading.snapshot_time.is_some() {
                            read_through.insert(id.clone(), position.read_through);
                        }
                        lineage.finish(&id);
                        if lineage.has_children(&id) {
                            run.shards.expected.fetch_sub(1, Ordering::SeqCst);
                        } else {
                            childless.insert(id, Instant::now());
                        }
                    }
                }
            }
            () = tokio::time::sleep_until(describe_at) => {
                let description = reading.source.describe(&run.stream).await?;
                described = Instant::now();
                shown_complete = nothing_under_way;
                let enabled = description.enabled;
                lineage.extend(description.shards.iter().cloned());
                run.shards.listed.store(lineage.len(), Ordering::SeqCst);
                for shard in description.shards {
                    // An open one with a child is a closed one on another page.
                    if (shard.closed || lineage.has_children(&shard.id))
                        && let Some(position) = idle.remove(&shard.id)
                    {
                        shown_complete = false;
                        read(&mut readers, Shard { closed: true, ..shard }, position);
                    }
                }
                childless.retain(|shard, since: &mut Instant| {
                    let has_children = lineage.has_children(shard);
                    let waits = enabled && since.elapsed() < child_patience;
                    if enabled && !has_children && !waits {
                        tracing::warn!(
                            stream = run.stream.arn,
                            shard,
                            "closed, and DescribeStream names no child of it: taken for the end of its lineage, as where partitions were merged"
                        );
                    }
                    let keep = !has_children && waits;
                    if !keep {
                        run.shards.expected.fetch_sub(1, Ordering::SeqCst);
                    }
                    keep
                });
            }
        }
    }
}

/// How the reading ended, where nothing failed.
enum Ended {
    /// All is read.
    Complete,
    /// A signal came.
    Stopped { at_cutoff: bool },
}

/// Where the time went, as the task that applies the batches saw it.
#[derive(Default)]
struct Times {
    waiting: Duration,
    applying: Duration,
    checkpoints: Duration,
}

impl Times {
    fn print(&self, delivery: &Delivery, duration: Duration) {
        let percent =
            |part: Duration| part.as_secs_f64() * 100.0 / duration.as_secs_f64().max(1e-9);
        say!(
            "  time: {:.0} % waiting for records, {:.0} % applying them, {:.0} % storing checkpoints",
            percent(self.waiting),
            percent(self.applying),
            percent(self.checkpoints)
        );
        let spent = &delivery.durations;
        say!(
            "  of the applying (summed over connections): decode {:.1} s, database {:.1} s, objects {:.1} s",
            spent.decode.as_secs_f64(),
            spent.database.as_secs_f64(),
            spent.archive.as_secs_f64()
        );
    }
}

/// Pages → batches → both stores → checkpoints.
struct Collector<'a> {
    streams: &'a [Arc<StreamRun>],
    batch_size: usize,
    delivery: &'a mut Delivery,
    checkpoints: &'a mut Checkpoints,
    progress: &'a mut [StreamProgress],
    times: &'a mut Times,
    /// All that was created before the cutoff is stored, whatever comes after.
    reached_cutoff: bool,
}

/// Records of many shards, each shard's in order, and where each shard then stands.
#[derive(Default)]
struct Batch {
    records: Vec<Vec<u8>>,
    bytes: usize,
    /// By stream and shard: the last page without its records, and how many records there were.
    shards: HashMap<(usize, Arc<str>), (Page, u64)>,
}

impl Batch {
    fn add(&mut self, mut page: Page) {
        let records = std::mem::take(&mut page.records);
        // What is in a batch does not hold up the readers: the batch has bounds of its own.
        page.permit = None;
        let count = records.len() as u64;
        self.bytes += records.iter().map(Vec::len).sum::<usize>();
        self.records.extend(records);
        let key = (page.stream, Arc::clone(&page.shard));
        let earlier = self.shards.get(&key).map_or(0, |(_, count)| *count);
        self.shards.insert(key, (page, earlier + count));
    }
}

impl Collector<'_> {
    /// Until all readers are done, one fails, or a signal comes. What was read before a failure is
    /// applied all the same.
    async fn run_to_the_end(
        &mut self,
        pages: &mut mpsc::Receiver<Page>,
        mut readers: JoinSet<anyhow::Result<()>>,
        stop: watch::Receiver<bool>,
    ) -> anyhow::Result<Ended> {
        let collecting = self.collect(pages, stop);
        tokio::pin!(collecting);
        loop {
            tokio::select! {
                // First: the channel closes when a reader has failed, too.
                biased;
                Some(ended) = readers.join_next() => {
                    let Err(error) = ended.context("a reader panicked").and_then(|ended| ended) else {
                        continue;
                    };
                    readers.shutdown().await;
                    // The channel closes behind what has been read.
                    let stored = timeout(GRACE, &mut collecting).await;
                    if let Ok(Err(second)) = stored {
                        let second = projector::error::chain(second.as_ref());
                        tracing::error!(error = second, "what was read before the failure is not stored");
                    }
                    return Err(error);
                }
                ended = &mut collecting => {
                    // Complete means that all readers have ended, none of them by a failure that is not
                    // told yet.
                    if matches!(ended, Ok(Ended::Complete)) {
                        while let Some(ended) = readers.join_next().await {
                            ended.context("a reader panicked")??;
                        }
                    }
                    return ended;
                }
            }
        }
    }

    async fn collect(
        &mut self,
        pages: &mut mpsc::Receiver<Page>,
        mut stop: watch::Receiver<bool>,
    ) -> anyhow::Result<Ended> {
        loop {
            let waiting = Instant::now();
            let first = tokio::select! {
                biased;
                () = stopped(&mut stop) => {
                    return Ok(Ended::Stopped { at_cutoff: self.reached_cutoff });
                }
                first = timeout(progress::LINE_EVERY, pages.recv()) => first,
            };
            self.times.waiting += waiting.elapsed();
            let page = match first {
                Ok(Some(page)) => page,
                Ok(None) => return Ok(Ended::Complete),
                Err(_) => {
                    self.show();
                    // An idle connection is forgotten on the way by some networks, the lock with it.
                    if let Err(error) = self.checkpoints.now().await {
                        let error = projector::error::chain(&error);
                        tracing::warn!(error, "the connection that holds the lock is lost");
                    }
                    continue;
                }
            };
            let mut batch = Batch::default();
            batch.add(page);
            let waiting = Instant::now();
            while batch.records.len() < self.batch_size && batch.bytes < BATCH_BYTES {
                let Ok(Some(page)) = timeout_at(waiting + LINGER, pages.recv()).await else {
                    break;
                };
                batch.add(page);
            }
            self.times.waiting += waiting.elapsed();
            let store = self.store(batch);
            tokio::select! {
                stored = store => stored?,
                // What is not stored by then is read again by the next run.
                () = async { stopped(&mut stop.clone()).await; tokio::time::sleep(GRACE).await } => {
                    return Ok(Ended::Stopped { at_cutoff: self.reached_cutoff });
                }
            }
            self.reached_cutoff |= self.progress.iter().all(StreamProgress::is_done);
            self.show();
        }
    }

    /// Both stores, then the checkpoints.
    async fn store(&mut self, batch: Batch) -> anyhow::Result<()> {
        let start = Instant::now();
        if !batch.records.is_empty() {
            self.delivery.deliver(batch.records).await?;
        }
        self.times.applying += start.elapsed();
        let start = Instant::now();
        let marks: Vec<Mark> = batch
            .shards
            .values()
            // What was trimmed away is looked for again by the next run.
            .filter(|(page, _)| page.standing != Standing::TrimmedAway)
            .map(|(page, _)| Mark {
                stream_arn: self.streams[page.stream].stream.arn.clone(),
                shard_id: page.shard.to_string(),
                position: page.position.clone(),
                finished: page.standing == Standing::Finished,
            })
            .collect();
        self.checkpoints.save(&self.delivery.projector().database, &marks).await?;
        self.times.checkpoints += start.elapsed();
        for ((stream, shard), (page, records)) in batch.shards {
            let reached = page.position.last_created;
            self.progress[stream].advance(&shard, records, reached, page.standing);
        }
        Ok(())
    }

    fn show(&mut self) {
        for progress in self.progress.iter_mut() {
            progress.show();
        }
    }
}

/// Turns true at the first SIGINT or SIGTERM; a second one ends the process at once.
fn stop_signals() -> anyhow::Result<watch::Receiver<bool>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (stop, stopped) = watch::channel(false);
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if stop.send_replace(true) {
                std::process::exit(130);
            }
            note(&format!(
                "stopping when the batch under way is stored, in {} at most; again to stop at once",
                span(GRACE)
            ));
        }
    });
    Ok(stopped)
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}
