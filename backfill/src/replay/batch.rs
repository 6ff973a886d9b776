//! Pages → one batch: the records of many shards, and where each shard stands after them. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use crate::replay::checkpoint::CheckpointUpdate;
use crate::replay::page::{Page, ShardStatus};

/// A batch ends here too, however few its records are. Three batches may be in memory: two under
/// way, and the next.
const BATCH_BYTES: usize = 8 << 20;

/// Records of many shards, each shard's in order.
#[derive(Default)]
pub(crate) struct Batch {
    records: Vec<Vec<u8>>,
    bytes: usize,
    reached: Reached,
}

/// Where each shard stands after a batch: by the stream's ARN and shard, the last page without its
/// records, and how many records there were.
pub(crate) type Reached = HashMap<(String, Arc<str>), (Page, u64)>;

impl Batch {
    /// Adds a page. Those of a shard come in their order.
    pub(crate) fn add(&mut self, mut page: Page) {
        let records = std::mem::take(&mut page.records);
        // What is in a batch does not hold up the readers: the batch has bounds of its own.
        page.permit = None;
        let count = records.len() as u64;
        self.bytes += records.iter().map(Vec::len).sum::<usize>();
        self.records.extend(records);
        let key = (page.run.stream.arn.clone(), Arc::clone(&page.shard));
        let mut earlier = 0;
        if let Some((before, count)) = self.reached.get(&key) {
            page.checkpoint |= before.checkpoint;
            earlier = *count;
        }
        self.reached.insert(key, (page, earlier + count));
    }

    /// No page was added: there is nothing to store, and nothing to report.
    pub(crate) fn is_empty(&self) -> bool {
        self.reached.is_empty()
    }

    /// It takes no more pages.
    pub(crate) fn is_full(&self, batch_size: usize) -> bool {
        self.records.len() >= batch_size || self.bytes >= BATCH_BYTES
    }

    /// Its records, and what follows from their being stored.
    pub(crate) fn into_parts(self) -> (Vec<Vec<u8>>, Reached) {
        (self.records, self.reached)
    }
}

/// The checkpoints that are due once a batch is stored.
pub(crate) fn checkpoint_updates(reached: &Reached) -> Vec<CheckpointUpdate> {
    let due = reached.values().map(|(page, _)| page).filter(|page| {
        // What was trimmed away unread is looked for again by the next run.
        page.checkpoint
            && (page.status != ShardStatus::TrimmedAway
                || page.run.resumed.contains_key(&*page.shard))
    });
    due.map(|page| CheckpointUpdate {
        stream_arn: page.run.stream.arn.clone(),
        shard_id: page.shard.to_string(),
        position: page.position.clone(),
        complete_since: page.complete_since,
        finished: page.status.is_finished(),
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use super::{BATCH_BYTES, Batch, checkpoint_updates};
    use crate::replay::context::StreamRun;
    use crate::replay::page::{Page, ShardStatus};
    use crate::replay::position::Position;
    use crate::replay::source::Stream;

    fn run() -> Arc<StreamRun> {
        let (arn, table, label) = ("arn".to_owned(), "sessions".to_owned(), "1".to_owned());
        Arc::new(StreamRun::new(Stream { arn, table, label }, Vec::new(), HashMap::new()))
    }

    fn page(run: &Arc<StreamRun>, shard: &str, records: Vec<Vec<u8>>, checkpoint: bool) -> Page {
        Page {
            run: Arc::clone(run),
            shard: Arc::from(shard),
            records,
            position: Position::default(),
            complete_since: None,
            status: ShardStatus::AtCutoff,
            checkpoint,
            permit: None,
        }
    }

    /// A shard that only reports after its records still needs their checkpoint.
    #[test]
    fn a_checkpoint_that_is_due_stays_due_until_the_batch_is_stored() {
        let (run, mut batch) = (run(), Batch::default());
        for (shard, records, checkpoint) in [("a", 2, true), ("b", 0, false), ("a", 0, false)] {
            batch.add(page(&run, shard, vec![b"{}".to_vec(); records], checkpoint));
        }
        let (records, reached) = batch.into_parts();
        let mut shards: Vec<(&str, bool, u64)> = reached
            .iter()
            .map(|((_, shard), (page, records))| (&**shard, page.checkpoint, *records))
            .collect();
        shards.sort_unstable();
        assert_eq!(shards, [("a", true, 2), ("b", false, 0)]);
        assert_eq!(records.len(), 2);
        let due: Vec<_> = checkpoint_updates(&reached).into_iter().map(|of| of.shard_id).collect();
        assert_eq!(due, ["a"]);
    }

    #[test]
    fn a_batch_is_full_by_its_records_or_by_their_bytes() {
        let run = run();
        let mut batch = Batch::default();
        assert!(batch.is_empty() && !batch.is_full(2));
        batch.add(page(&run, "a", vec![b"{}".to_vec()], true));
        assert!(!batch.is_empty() && !batch.is_full(2));
        batch.add(page(&run, "a", vec![b"{}".to_vec()], true));
        assert!(batch.is_full(2));
        let mut heavy = Batch::default();
        heavy.add(page(&run, "a", vec![vec![b' '; BATCH_BYTES]], true));
        assert!(heavy.is_full(2));
    }
}
