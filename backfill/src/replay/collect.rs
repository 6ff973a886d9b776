//! Pages → batches → rows → checkpoints, and objects from time to time.
//!
//! The pages of all shards come together here, in the order in which they were read. A batch goes
//! to the projector. When its rows are stored, and its sessions are in `pending_objects`, its
//! checkpoints are written. So whatever ends the run, each checkpoint stands at or before what is
//! stored, and no object is forgotten.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use crate::console;
use crate::deliver::{BATCH_BYTES, Delivery};
use crate::replay::checkpoint::{CheckpointUpdate, Checkpoints};
use crate::replay::context::{ReplayContext, StreamRun};
use crate::replay::page::{Message, Page, ShardStatus};
use crate::replay::progress::{ShardProgress, StreamProgress};
use crate::stop::{GRACE, Stop};

/// A batch is not held back for longer than this for the sake of more records.
const LINGER: Duration = Duration::from_millis(500);

/// While the streams are followed, an object is written at most this much after its row ...
const OBJECTS_EVERY: Duration = Duration::from_mins(1);
/// ... or after this many records.
const OBJECTS_AFTER_RECORDS: usize = 50_000;

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
    waiting: Duration,
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
    /// Whether pending objects are written while the streams are followed.
    pub(crate) writes_objects: bool,
    /// When they were last written; `None` before the cutoff is reached.
    pub(crate) objects_written: Option<Instant>,
    /// How many records were stored since.
    pub(crate) records_since: usize,
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

/// Records of many shards, each shard's in order, and where each shard then stands.
#[derive(Default)]
struct Batch {
    records: Vec<Vec<u8>>,
    bytes: usize,
    /// By the stream's ARN and shard: the last page without its records, and how many records there
    /// were.
    shards: HashMap<(String, Arc<str>), (Page, u64)>,
}

impl Batch {
    fn add(&mut self, mut page: Page) {
        let records = std::mem::take(&mut page.records);
        // What is in a batch does not hold up the readers: the batch has bounds of its own.
        page.permit = None;
        let count = records.len() as u64;
        self.bytes += records.iter().map(Vec::len).sum::<usize>();
        self.records.extend(records);
        let key = (page.run.stream.arn.clone(), Arc::clone(&page.shard));
        let mut earlier = 0;
        if let Some((before, count)) = self.shards.get(&key) {
            page.checkpoint |= before.checkpoint;
            earlier = *count;
        }
        self.shards.insert(key, (page, earlier + count));
    }
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
        loop {
            let waiting = Instant::now();
            let first = tokio::select! {
                biased;
                () = stop.wait() => return Ok(self.stopped()),
                first = timeout(console::LINE_EVERY, messages.recv()) => first,
            };
            self.times.waiting += waiting.elapsed();
            let mut batch = Batch::default();
            match first {
                Ok(Some(message)) => self.take(message, &mut batch),
                Ok(None) => return Ok(Ended::Complete),
                Err(_) => {}
            }
            if self.lock_seen.elapsed() >= console::LINE_EVERY {
                tokio::select! {
                    kept = self.checkpoints.keep_lock(&self.delivery.projector().database) => kept?,
                    () = stop.wait() => {}
                }
                self.lock_seen = Instant::now();
            }
            if self.objects_are_due() {
                tokio::select! {
                    written = self.delivery.write_objects(stop.wait()) => drop(written?),
                    // What is not written by then is pending.
                    () = stop.grace_over() => return Ok(self.stopped()),
                }
                (self.objects_written, self.records_since) = (Some(Instant::now()), 0);
            }
            if batch.shards.is_empty() {
                self.update_progress();
                continue;
            }
            let waiting = Instant::now();
            while batch.records.len() < self.batch_size && batch.bytes < BATCH_BYTES {
                let Ok(Some(message)) = timeout_at(waiting + LINGER, messages.recv()).await else {
                    break;
                };
                self.take(message, &mut batch);
            }
            self.times.waiting += waiting.elapsed();
            let store = self.store(batch);
            tokio::select! {
                stored = store => stored?,
                // What is not stored by then is read again by the next run.
                () = stop.grace_over() => return Ok(self.stopped()),
            }
            self.update_progress();
        }
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

    fn take(&mut self, message: Message, batch: &mut Batch) {
        match message {
            Message::Page(page) => batch.add(page),
            Message::NewStream(run) => {
                self.progress.push((run.stream.arn.clone(), progress_of(&run, true)));
            }
        }
    }

    fn is_done(&self) -> bool {
        self.progress.iter().all(|(_, progress)| progress.is_done())
    }

    /// The rows and the keys of their objects, then the checkpoints.
    async fn store(&mut self, batch: Batch) -> anyhow::Result<()> {
        let start = Instant::now();
        self.records_since += batch.records.len();
        if !batch.records.is_empty() {
            self.delivery.deliver(batch.records).await?;
        }
        self.times.applying += start.elapsed();
        let start = Instant::now();
        let updates: Vec<CheckpointUpdate> = batch
            .shards
            .values()
            // What was trimmed away unread is looked for again by the next run.
            .filter(|(page, _)| {
                page.checkpoint
                    && (page.status != ShardStatus::TrimmedAway
                        || page.run.resumed.contains_key(&*page.shard))
            })
            .map(|(page, _)| CheckpointUpdate {
                stream_arn: page.run.stream.arn.clone(),
                shard_id: page.shard.to_string(),
                position: page.position.clone(),
                complete_since: page.complete_since,
                finished: page.status.is_finished(),
            })
            .collect();
        if !updates.is_empty() {
            self.checkpoints.save(&self.delivery.projector().database, &updates).await?;
            self.lock_seen = Instant::now();
        }
        self.times.checkpoints += start.elapsed();
        let mut through = self.context.through();
        for (page, _) in batch.shards.values() {
            let (finished, of) = (page.status.is_finished(), through.of(&page.run.stream));
            of.stored(&page.shard, &page.position, finished);
        }
        drop(through);
        for ((arn, shard), (page, records)) in batch.shards {
            let reached = page.position.last_created;
            let progress = self.progress.iter_mut().find(|(of, _)| *of == arn);
            if let Some((_, progress)) = progress {
                let followed = page.status == ShardStatus::AtCutoff;
                let behind = page.status == ShardStatus::Behind;
                progress.advance(&shard, records, reached, ShardProgress { behind, followed });
            }
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use super::Batch;
    use crate::replay::context::StreamRun;
    use crate::replay::page::{Page, ShardStatus};
    use crate::replay::position::Position;
    use crate::replay::source::Stream;

    /// A shard that only reports after its records still needs their checkpoint.
    #[test]
    fn a_checkpoint_that_is_due_stays_due_until_the_batch_is_stored() {
        let (arn, table, label) = ("arn".to_owned(), "sessions".to_owned(), "1".to_owned());
        let stream = Stream { arn, table, label };
        let run = Arc::new(StreamRun::new(stream, Vec::new(), HashMap::new()));
        let page = |shard: &str, records: usize, checkpoint| Page {
            run: Arc::clone(&run),
            shard: Arc::from(shard),
            records: vec![b"{}".to_vec(); records],
            position: Position::default(),
            complete_since: None,
            status: ShardStatus::AtCutoff,
            checkpoint,
            permit: None,
        };
        let mut batch = Batch::default();
        for page in [page("a", 2, true), page("b", 0, false), page("a", 0, false)] {
            batch.add(page);
        }
        let mut shards: Vec<(&str, bool, u64)> = batch
            .shards
            .iter()
            .map(|((_, shard), (page, records))| (&**shard, page.checkpoint, *records))
            .collect();
        shards.sort_unstable();
        assert_eq!(shards, [("a", true, 2), ("b", false, 0)]);
        assert_eq!(batch.records.len(), 2);
    }
}
