//! Pages → batches → both stores → checkpoints.
//!
//! The pages of all shards come together here, in the order in which they were read. A batch goes to the
//! projector, and when all of it is in both stores its checkpoints are written. So whatever ends the run,
//! each checkpoint stands at or before what is stored.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use crate::checkpoint::{Checkpoints, Mark};
use crate::deliver::{BATCH_BYTES, Delivery};
use crate::progress::{self, StreamProgress};
use crate::reader::{Page, Standing};
use crate::shards::StreamRun;
use crate::stop::{GRACE, Stop};
use crate::summary::say;

/// A batch is not held back for longer than this for the sake of more records.
const LINGER: Duration = Duration::from_millis(500);

/// How the reading ended, where nothing failed.
pub(crate) enum Ended {
    /// All is read.
    Complete,
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
    pub(crate) fn print(&self, delivery: &Delivery, duration: Duration) {
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
pub(crate) struct Collector<'a> {
    pub(crate) streams: &'a [Arc<StreamRun>],
    pub(crate) batch_size: usize,
    pub(crate) delivery: &'a mut Delivery,
    pub(crate) checkpoints: &'a mut Checkpoints,
    pub(crate) progress: &'a mut [StreamProgress],
    pub(crate) times: &'a mut Times,
    /// All that was created before the cutoff is stored, whatever comes after.
    pub(crate) reached_cutoff: bool,
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
    pub(crate) async fn run_to_the_end(
        &mut self,
        pages: &mut mpsc::Receiver<Page>,
        mut readers: JoinSet<anyhow::Result<()>>,
        stop: &Stop,
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
        stop: &Stop,
    ) -> anyhow::Result<Ended> {
        loop {
            let waiting = Instant::now();
            let first = tokio::select! {
                biased;
                () = stop.wait() => {
                    return Ok(Ended::Stopped { at_cutoff: self.reached_cutoff });
                }
                first = timeout(progress::LINE_EVERY, pages.recv()) => first,
            };
            self.times.waiting += waiting.elapsed();
            let page = match first {
                Ok(Some(page)) => page,
                Ok(None) => return Ok(Ended::Complete),
                Err(_) => {
                    self.reached_cutoff |= self.progress.iter().all(StreamProgress::is_done);
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
                () = stop.grace_over() => {
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
            // What was trimmed away unread is looked for again by the next run.
            .filter(|(page, _)| {
                page.standing != Standing::TrimmedAway
                    || self.streams[page.stream].left.contains_key(&*page.shard)
            })
            .map(|(page, _)| Mark {
                stream_arn: self.streams[page.stream].stream.arn.clone(),
                shard_id: page.shard.to_string(),
                position: page.position.clone(),
                finished: matches!(page.standing, Standing::Finished | Standing::TrimmedAway),
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
