//! Pages → batches → rows → checkpoints, and objects from time to time.
//!
//! The pages of all shards come together here, in the order in which they were read. Up to two
//! batches are under way, so that one is decoded while the other is in the database, and the next
//! one is gathered meanwhile. A batch may be stored before an earlier one; its checkpoints are
//! written only after those of all earlier ones. A batch is stored once its rows are, and its
//! sessions are in `pending_objects`. So whatever ends the run, each checkpoint stands at or before
//! what is stored, and no object is forgotten.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::console;
use crate::deliver::{Delivered, Delivery};
use crate::replay::batch::{Reached, checkpoint_updates};
use crate::replay::checkpoint::Checkpoints;
use crate::replay::context::{ReplayContext, StreamRun};
use crate::replay::page::{Message, ShardStatus};
use crate::replay::progress::{ShardProgress, StreamProgress};
use crate::replay::under_way::{Batches, Event};
use crate::stop::{GRACE, Stop};

/// While the streams are followed, an object is written at most this much after its row ...
const OBJECTS_EVERY: Duration = Duration::from_mins(1);
/// ... or after this many records.
const OBJECTS_AFTER_RECORDS: u64 = 50_000;

/// How the reading ended, where nothing failed.
pub(crate) enum Ended {
    /// All is read.
    Complete,
    /// All is read and its rows are stored; a signal came while objects were written.
    RowsStored,
    /// A signal came.
    Stopped { at_cutoff: bool },
}

/// Where the time went, as the task that applies the batches saw it.
#[derive(Default)]
pub(crate) struct Times {
    /// While no batch was under way.
    waiting: Duration,
    /// While one or two were.
    applying: Duration,
    checkpoints: Duration,
}

impl Times {
    /// For people: where the time of a run of this duration went.
    pub(crate) fn lines(&self, delivery: &Delivery, duration: Duration) -> [String; 2] {
        let percent =
            |part: Duration| part.as_secs_f64() * 100.0 / duration.as_secs_f64().max(1e-9);
        let spent = &delivery.durations;
        [
            format!(
                "time: {:.0} % waiting for records, {:.0} % applying them, {:.0} % storing \
                    checkpoints",
                percent(self.waiting),
                percent(self.applying),
                percent(self.checkpoints)
            ),
            format!(
                "of the applying (summed over connections): decode {:.1} s, database {:.1} s, \
                    objects {:.1} s",
                spent.decode.as_secs_f64(),
                spent.database.as_secs_f64(),
                spent.archive.as_secs_f64()
            ),
        ]
    }
}

/// Pages → batches → rows → checkpoints.
pub(crate) struct Collector<'a> {
    pub(crate) batch_size: usize,
    pub(crate) delivery: &'a mut Delivery,
    pub(crate) checkpoints: &'a mut Checkpoints,
    /// By the stream's ARN, in the order in which the streams were found.
    pub(crate) progress: &'a mut Vec<(String, StreamProgress)>,
    pub(crate) times: &'a mut Times,
    pub(crate) context: &'a ReplayContext,
    /// All that was created before the cutoff is stored, whatever comes after.
    pub(crate) reached_cutoff: &'a watch::Sender<bool>,
    /// When the connection that holds the lock was last heard from.
    pub(crate) lock_seen: Instant,
    pub(crate) batches: Batches,
    /// Whether pending objects are written while the streams are followed.
    pub(crate) writes_objects: bool,
    /// When they were last written; `None` before the cutoff is reached.
    pub(crate) objects_written: Option<Instant>,
    /// How many records were stored since.
    pub(crate) records_since: u64,
}

/// The progress of the streams that a run begins with.
pub(crate) fn start_progress(streams: &[Arc<StreamRun>]) -> Vec<(String, StreamProgress)> {
    let of_table = |table: &str| streams.iter().filter(|run| run.stream.table == table).count();
    let progress = |run: &Arc<StreamRun>| progress_of(run, of_table(&run.stream.table) > 1);
    streams.iter().map(|run| (run.stream.arn.clone(), progress(run))).collect()
}

/// `one_of_several`: its table has other streams, too.
fn progress_of(run: &StreamRun, one_of_several: bool) -> StreamProgress {
    let stream = &run.stream;
    let (name, short_name) = if one_of_several {
        (stream.full_name(), stream.short_name())
    } else {
        (stream.table.clone(), stream.table.clone())
    };
    let (listed, finished) = (run.listed.len(), run.finished_before());
    StreamProgress::start(
        (&stream.table, name, &short_name),
        listed,
        finished,
        Arc::clone(&run.shards),
    )
}

impl Collector<'_> {
    /// Until all readers are done, one fails, or a signal comes. What was read before a failure is
    /// still applied.
    pub(crate) async fn run_to_the_end(
        &mut self,
        messages: &mut mpsc::Receiver<Message>,
        mut readers: JoinSet<anyhow::Result<()>>,
        stop: &Stop,
    ) -> anyhow::Result<Ended> {
        let collecting = self.collect(messages, stop);
        tokio::pin!(collecting);
        loop {
            tokio::select! {
                // First: the channel closes when a reader has failed, too.
                biased;
                Some(ended) = readers.join_next() => {
                    let Err(error) = ended.context("a reader \
                        panicked").and_then(|ended| ended) else {
                        continue;
                    };
                    readers.shutdown().await;
                    // The channel closes behind what has been read.
                    let stored = timeout(GRACE, &mut collecting).await;
                    if let Ok(Err(second)) = stored {
                        let second = projector::error::chain(second.as_ref());
                        tracing::error!(error = second, "what was read before the failure is not \
                            stored");
                    }
                    return Err(error);
                }
                ended = &mut collecting => {
                    // Complete means that all readers have ended, none of them by a failure that is
                    // not told yet.
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
        messages: &mut mpsc::Receiver<Message>,
        stop: &Stop,
    ) -> anyhow::Result<Ended> {
        let mut tick = Instant::now() + console::LINE_EVERY;
        loop {
            self.batches.begin_if_due(self.batch_size, self.delivery);
            if self.batches.are_done() {
                break;
            }
            let (idle, waiting) = (self.batches.none_under_way(), Instant::now());
            let event = self.batches.next_event(self.batch_size, messages, tick, stop).await;
            let times = &mut *self.times;
            *(if idle { &mut times.waiting } else { &mut times.applying }) += waiting.elapsed();
            match event {
                Event::Message(Some(message)) => self.take(message),
                Event::Message(None) => self.batches.all_read(),
                Event::Lingered => {}
                Event::Signal => self.batches.stop(),
                Event::GraceOver => return Ok(self.stopped()),
                Event::Tick => {
                    self.keep_lock(stop).await?;
                    self.update_progress();
                    tick = Instant::now() + console::LINE_EVERY;
                }
                Event::Applied(delivered) => {
                    let delivered = delivered?;
                    tokio::select! {
                        settled = self.settle_oldest(delivered) => settled?,
                        // What is not stored by then is read again by the next run.
                        () = stop.grace_over() => return Ok(self.stopped()),
                    }
                    self.update_progress();
                }
            }
            if self.objects_are_due() {
                tokio::select! {
                    written = self.delivery.write_objects(stop.wait()) => drop(written?),
                    // What is not written by then is pending.
                    () = stop.grace_over() => return Ok(self.stopped()),
                }
                (self.objects_written, self.records_since) = (Some(Instant::now()), 0);
            }
        }
        Ok(if self.batches.are_stopped() { self.stopped() } else { Ended::Complete })
    }

    /// Sees to it that the lock is held, unless a batch is under way, whose checkpoints will.
    async fn keep_lock(&mut self, stop: &Stop) -> anyhow::Result<()> {
        let seen_lately = self.lock_seen.elapsed() < console::LINE_EVERY;
        if seen_lately || !self.batches.none_under_way() {
            return Ok(());
        }
        tokio::select! {
            kept = self.checkpoints.keep_lock(&self.delivery.projector().database) => kept?,
            () = stop.wait() => {}
        }
        self.lock_seen = Instant::now();
        Ok(())
    }

    /// Once the streams are followed, objects are written at once, then every minute, or sooner
    /// after many records.
    fn objects_are_due(&self) -> bool {
        let since = self.objects_written.map(|written| written.elapsed());
        let due = since.is_none_or(|since| since >= OBJECTS_EVERY && self.records_since > 0);
        self.writes_objects
            && *self.reached_cutoff.borrow()
            && (due || self.records_since >= OBJECTS_AFTER_RECORDS)
    }

    fn stopped(&self) -> Ended {
        Ended::Stopped { at_cutoff: *self.reached_cutoff.borrow() }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Page(page) => self.batches.add(page),
            Message::NewStream(run) => {
                self.progress.push((run.stream.arn.clone(), progress_of(&run, true)));
            }
        }
    }

    fn is_done(&self) -> bool {
        self.progress.iter().all(|(_, progress)| progress.is_done())
    }

    /// The oldest batch is stored: its checkpoints are due.
    async fn settle_oldest(&mut self, delivered: Option<Delivered>) -> anyhow::Result<()> {
        let Some(reached) = self.batches.pop_oldest() else { return Ok(()) };
        if let Some(delivered) = delivered {
            self.delivery.add(delivered);
        }
        // The database is not left without work while the checkpoints are written.
        self.batches.begin_if_due(self.batch_size, self.delivery);
        self.records_since += reached.values().map(|(_, records)| records).sum::<u64>();
        let start = Instant::now();
        let updates = checkpoint_updates(&reached);
        if !updates.is_empty() {
            self.checkpoints.save(&self.delivery.projector().database, &updates).await?;
            self.lock_seen = Instant::now();
        }
        self.times.checkpoints += start.elapsed();
        self.report(reached);
        Ok(())
    }

    /// Tells the rest of the run what is stored, with its checkpoints.
    fn report(&mut self, reached: Reached) {
        let mut through = self.context.through();
        for (page, _) in reached.values() {
            let (finished, of) = (page.status.is_finished(), through.of(&page.run.stream));
            of.stored(&page.shard, &page.position, finished);
        }
        drop(through);
        for ((arn, shard), (page, records)) in reached {
            let created = page.position.last_created;
            let progress = self.progress.iter_mut().find(|(of, _)| *of == arn);
            if let Some((_, progress)) = progress {
                let followed = page.status == ShardStatus::AtCutoff;
                let behind = page.status == ShardStatus::Behind;
                progress.advance(&shard, records, created, ShardProgress { behind, followed });
            }
        }
    }

    /// Sees whether the cutoff is reached, and shows how far the streams are.
    fn update_progress(&mut self) {
        let is_done = self.is_done();
        self.reached_cutoff.send_if_modified(|reached| {
            let reaches = is_done && !*reached;
            *reached |= is_done;
            reaches
        });
        for (_, progress) in self.progress.iter_mut() {
            progress.show();
        }
    }
}
