//! All shards of one stream: which are read when, and when the stream is done.
//!
//! A task a stream knows the lineage, starts a reader for each shard that may be read, and describes the
//! stream again for what was not listed before.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::checkpoint::Checkpoint;
use crate::lineage::{Lineage, Shard};
use crate::position::Position;
use crate::progress::ShardCount;
use crate::reader::{End, Page, Reading, ShardReader};
use crate::source::Stream;

/// How often a stream is described while a closed shard's child is looked for, or when nothing is
/// under way any more; and otherwise.
const DESCRIBE_EVERY: Duration = Duration::from_secs(1);
const DESCRIBE_ANYWAY: Duration = Duration::from_secs(30);

/// A stream, and where it stood when the run began.
pub(crate) struct StreamRun {
    pub(crate) stream: Arc<Stream>,
    pub(crate) listed: Vec<Shard>,
    pub(crate) left: HashMap<String, Checkpoint>,
    pub(crate) shards: Arc<ShardCount>,
}

impl StreamRun {
    pub(crate) fn new(
        stream: Stream,
        listed: Vec<Shard>,
        left: HashMap<String, Checkpoint>,
    ) -> Self {
        let shards = ShardCount { listed: AtomicUsize::new(listed.len()), ..ShardCount::default() };
        Self { stream: Arc::new(stream), listed, left, shards: Arc::new(shards) }
    }

    /// Where a shard is read from: its checkpoint, or its beginning, behind what was read of its parent.
    fn beginning(
        &self,
        shard: &Shard,
        read_through: &HashMap<String, Option<OffsetDateTime>>,
    ) -> Position {
        match self.left.get(&shard.id) {
            Some(checkpoint) => checkpoint.position.clone(),
            None => {
                let parent = shard.parent.as_ref().and_then(|parent| read_through.get(parent));
                Position::behind(parent.copied().flatten())
            }
        }
    }
}

/// Reads all shards of a stream, parents before their children.
///
/// It ends only after a description that was asked for when nothing was under way any more, and that
/// shows nothing new: no shard that was not listed before, and none that only seemed idle.
pub(crate) async fn read_stream(
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
        let reader = ShardReader::new(
            Arc::clone(&reading),
            (index, Arc::clone(&run.stream)),
            shard,
            position,
            pages.clone(),
            Arc::clone(&run.shards),
        );
        readers.spawn(async move { (id, reader.read().await) });
    };
    let mut idle: HashMap<String, Position> = HashMap::new();
    let mut described = Instant::now();
    let mut shown_complete = false;
    loop {
        for shard in lineage.take_ready() {
            shown_complete = false;
            let position = run.beginning(&shard, &read_through);
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
                        // Where nothing was promised before this run, what its children begin with is not
                        // reckoned either.
                        if reading.snapshot_time.is_some() || read_through.contains_key(&id) {
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
                    let patient = since.elapsed() < child_patience;
                    let keep = !lineage.has_children(shard)
                        && waits_for_child(&run.stream, shard, description.enabled, patient);
                    if !keep {
                        run.shards.expected.fetch_sub(1, Ordering::SeqCst);
                    }
                    keep
                });
            }
        }
    }
}

/// Whether a child of a closed shard is still to come. It is not where the stream is disabled; and where
/// it has not come for long, that is said.
fn waits_for_child(stream: &Stream, shard: &str, enabled: bool, patient: bool) -> bool {
    if enabled && !patient {
        tracing::warn!(
            stream = stream.arn,
            shard,
            "closed, and DescribeStream names no child of it: taken for the end of its lineage, as where partitions were merged"
        );
    }
    enabled && patient
}
