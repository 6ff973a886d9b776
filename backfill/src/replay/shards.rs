//! All shards of one stream: which are read when, and when the stream is done.
//!
//! One task per stream knows the lineage, starts a reader for each shard that may be read, and
//! describes the stream again for what was not listed before. A listing is no proof that a shard is
//! gone: what a checkpoint or a child names is asked for, listed or not.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, bail};
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use crate::replay::context::{ReplayContext, StreamRun};
use crate::replay::lineage::{Lineage, Shard};
use crate::replay::page::Message;
use crate::replay::position::Position;
use crate::replay::reader::{Known, ReadOutcome, ShardReader};
use crate::replay::source::{Description, Stream};
use crate::replay::through::StreamThrough;

/// How often a stream is described while a closed shard's child is looked for, or when nothing is
/// under way any more; and otherwise.
const DESCRIBE_EVERY: Duration = Duration::from_secs(1);
const DESCRIBE_ANYWAY: Duration = Duration::from_secs(30);
/// `DescribeStream` lists this many shards per call.
const SHARDS_PER_PAGE: usize = 100;

/// Reads all shards of a stream, parents before their children.
///
/// It ends only after a description that was asked for when nothing was under way any more, and
/// that shows nothing new: no shard that was not listed before, and none that was only assumed to
/// be caught up.
pub(crate) async fn read_stream(
    context: Arc<ReplayContext>,
    run: Arc<StreamRun>,
    child_patience: Duration,
    messages: mpsc::Sender<Message>,
) -> anyhow::Result<()> {
    let mut reading = StreamReading::new(context, run, child_patience, messages);
    loop {
        reading.start_ready();
        if reading.is_complete() {
            return reading.check_all_read();
        }
        let describe_at = reading.describe_at();
        tokio::select! {
            Some(ended) = reading.readers.join_next() => reading.on_ended(ended)?,
            () = tokio::time::sleep_until(describe_at) => reading.describe_again().await?,
        }
    }
}

type Ended = (String, anyhow::Result<ReadOutcome>);

/// How far the reading of one stream has come.
struct StreamReading {
    context: Arc<ReplayContext>,
    run: Arc<StreamRun>,
    /// How long to wait until a closed shard's child is listed.
    child_patience: Duration,
    messages: mpsc::Sender<Message>,
    lineage: Lineage,
    readers: JoinSet<Ended>,
    /// Up to when everything has been read, by shard: where its children begin.
    read_through: HashMap<String, Option<OffsetDateTime>>,
    /// Since when no change is missing, by shard; children inherit it.
    complete_since: HashMap<String, Option<OffsetDateTime>>,
    /// Shards that were read to their end and have no child yet, and since when.
    childless: BTreeMap<String, Instant>,
    /// Shards that were assumed to be caught up, and how far they were read.
    assumed: HashMap<String, Position>,
    /// Shards that only a child named, and that are not there.
    not_there: HashSet<String>,
    /// Shards that go on after the cutoff: what comes after them is not asked for.
    past_cutoff: HashSet<String>,
    described: Instant,
    /// Records are still added, as far as is known.
    enabled: bool,
    /// The last description came when nothing was under way, and showed nothing new.
    shown_complete: bool,
}

impl StreamReading {
    fn new(
        context: Arc<ReplayContext>,
        run: Arc<StreamRun>,
        child_patience: Duration,
        messages: mpsc::Sender<Message>,
    ) -> Self {
        let mut reading = Self {
            context,
            run,
            child_patience,
            messages,
            lineage: Lineage::default(),
            readers: JoinSet::new(),
            read_through: HashMap::new(),
            complete_since: HashMap::new(),
            childless: BTreeMap::new(),
            assumed: HashMap::new(),
            not_there: HashSet::new(),
            past_cutoff: HashSet::new(),
            described: Instant::now(),
            enabled: true,
            shown_complete: false,
        };
        let run = Arc::clone(&reading.run);
        let listed: HashSet<&str> = run.listed.iter().map(|shard| shard.id.as_str()).collect();
        // Not listed, and not read to its end by any run: it is read on, if it is there.
        let unlisted = run
            .resumed
            .iter()
            .filter(|(shard, checkpoint)| !checkpoint.finished && !listed.contains(shard.as_str()));
        let unlisted =
            unlisted.map(|(id, _)| Shard { id: id.clone(), parent: None, closed: false });
        reading.extend(run.listed.iter().cloned().chain(unlisted).collect());
        for (shard, checkpoint) in &run.resumed {
            reading.read_through.insert(shard.clone(), checkpoint.position.read_through);
            if reading.lineage.contains(shard) {
                reading.through(|of| of.stored(shard, &checkpoint.position, checkpoint.finished));
            }
            if checkpoint.finished && reading.lineage.contains(shard) {
                reading.lineage.finish(shard);
                if !reading.lineage.has_children(shard) {
                    run.shards.children_not_listed.fetch_add(1, Ordering::SeqCst);
                    reading.childless.insert(shard.clone(), Instant::now());
                }
            }
        }
        reading
    }

    /// Adds what is listed, and what a listed shard names as its parent without its being listed.
    fn extend(&mut self, shards: Vec<Shard>) {
        self.through(|of| {
            for shard in shards.iter().filter(|shard| !self.not_there.contains(&shard.id)) {
                of.list(&shard.id, shard.parent.as_deref());
            }
        });
        self.lineage.extend(shards);
        for id in self.lineage.unlisted_parents() {
            let finished = self.run.resumed.get(&id).is_some_and(|before| before.finished);
            if !finished {
                self.through(|of| of.list(&id, None));
                self.lineage.start_named(&id);
                self.read(id, Known::AsParent, Position::default());
            }
        }
        self.count_listed();
    }

    /// Says something of the stream to who asks up to when all of it is stored.
    fn through(&self, say: impl FnOnce(&mut StreamThrough)) {
        say(self.context.through().of(&self.run.stream));
    }

    fn count_listed(&self) {
        let listed = self.lineage.len() - self.not_there.len();
        self.run.shards.listed.store(listed, Ordering::SeqCst);
    }

    fn start_ready(&mut self) {
        for shard in self.lineage.take_ready() {
            let position = self.beginning(&shard);
            self.complete_since.insert(shard.id.clone(), self.complete_since_of(&shard));
            let known = if shard.closed { Known::Closed } else { Known::Open };
            self.read(shard.id, known, position);
        }
    }

    /// Where a shard is read from: its checkpoint, or its beginning, after what was read of its
    /// parent.
    fn beginning(&self, shard: &Shard) -> Position {
        if let Some(checkpoint) = self.run.resumed.get(&shard.id) {
            return checkpoint.position.clone();
        }
        let of_parent = shard.parent.as_ref().and_then(|parent| self.read_through.get(parent));
        Position::after(of_parent.copied().flatten().max(self.run.enabled_during_run))
    }

    /// Since when no change of a shard is missing: since this run's snapshot, or since the time
    /// that an earlier run kept of it or of its parent.
    fn complete_since_of(&self, shard: &Shard) -> Option<OffsetDateTime> {
        let of_earlier_run =
            |id: &String| self.run.resumed.get(id).map(|before| before.complete_since);
        let of_parent = |parent: &String| {
            self.complete_since.get(parent).copied().or_else(|| of_earlier_run(parent)).flatten()
        };
        let inherited = || {
            of_earlier_run(&shard.id).unwrap_or_else(|| shard.parent.as_ref().and_then(of_parent))
        };
        self.context.complete_since.or_else(inherited)
    }

    fn read(&mut self, id: String, known: Known, position: Position) {
        self.shown_complete = false;
        let reader = ShardReader::new(
            Arc::clone(&self.context),
            Arc::clone(&self.run),
            (id.clone(), known),
            (
                position,
                self.complete_since.get(&id).copied().flatten().or(self.context.complete_since),
            ),
            self.messages.clone(),
        );
        self.readers.spawn(async move { (id, reader.read().await) });
    }

    fn nothing_under_way(&self) -> bool {
        self.readers.is_empty()
    }

    fn is_complete(&self) -> bool {
        // A stream that is just being enabled lists its first shard a little later.
        let goes_on = self.context.follow && self.enabled;
        !goes_on && self.nothing_under_way() && self.childless.is_empty() && self.shown_complete
    }

    /// Sees that no shard is left that nobody will read.
    fn check_all_read(&self) -> anyhow::Result<()> {
        match self.lineage.stuck(|shard| self.past_cutoff.contains(shard)) {
            None => Ok(()),
            Some((shard, parent)) => bail!(
                "shard {shard} of {} was not read, because its parent {parent} did not end: run \
                    the same command again",
                self.run.stream.arn
            ),
        }
    }

    fn describe_at(&self) -> Instant {
        let urgent = self.nothing_under_way() || !self.childless.is_empty();
        self.described + if urgent { DESCRIBE_EVERY } else { DESCRIBE_ANYWAY }
    }

    fn on_ended(&mut self, ended: Result<Ended, JoinError>) -> anyhow::Result<()> {
        self.shown_complete = false;
        let (id, outcome) = ended.context("a reader panicked")?;
        match outcome? {
            ReadOutcome::PastCutoff => {
                self.past_cutoff.insert(id);
            }
            ReadOutcome::AssumedCaughtUp(position) => {
                self.assumed.insert(id, position);
            }
            ReadOutcome::NotThere => {
                self.lineage.finish(&id);
                self.through(|of| of.not_there(&id));
                self.not_there.insert(id);
                self.count_listed();
            }
            ReadOutcome::Finished(position) => {
                // Without a baseline or checkpoint, children inherit no time up to which all was
                // read.
                if self.context.baseline.is_some() || self.read_through.contains_key(&id) {
                    self.read_through.insert(id.clone(), position.read_through);
                }
                self.lineage.finish(&id);
                if self.lineage.has_children(&id) {
                    self.run.shards.children_not_listed.fetch_sub(1, Ordering::SeqCst);
                } else {
                    self.childless.insert(id, Instant::now());
                }
            }
        }
        Ok(())
    }

    /// Asks for what is new: the children of the shards that wait for one, if that is less work
    /// than all shards.
    async fn describe_again(&mut self) -> anyhow::Result<()> {
        let nothing_under_way = self.nothing_under_way();
        let few = self.childless.len() <= self.lineage.len().div_ceil(SHARDS_PER_PAGE);
        if self.childless.is_empty() || !few || !self.describe_children().await {
            // A shard is listed within the time that is allowed for its first record.
            let complete_up_to = OffsetDateTime::now_utc() - self.context.first_record;
            let described = self.context.source.describe(&self.run.stream).await?;
            self.shown_complete = nothing_under_way;
            self.on_described(described);
            self.through(|of| of.all_listed(complete_up_to));
        }
        self.described = Instant::now();
        Ok(())
    }

    /// Asks for the children of each shard that waits for one. False if it is not answered: a full
    /// description says why, or does as well.
    async fn describe_children(&mut self) -> bool {
        let parents: Vec<String> = self.childless.keys().cloned().collect();
        for parent in parents {
            let described = self.context.source.describe_children(&self.run.stream, &parent).await;
            let Ok(Some(description)) = described else { return false };
            self.on_described(Some(description));
        }
        true
    }

    /// `None`: AWS has deleted the stream, as it does 24 hours after it was disabled. What is being
    /// read of it ends by itself.
    fn on_described(&mut self, description: Option<Description>) {
        let enabled = description.as_ref().is_some_and(|description| description.enabled);
        self.enabled = enabled;
        self.through(|of| of.enabled(enabled));
        let shards = description.map(|description| description.shards).unwrap_or_default();
        self.extend(shards);
        // Listed or not: a shard that is closed now is read to its end after all.
        let closed: Vec<String> =
            self.assumed.keys().filter(|id| self.lineage.is_closed(id)).cloned().collect();
        for id in closed {
            if let Some(position) = self.assumed.remove(&id) {
                self.read(id, Known::Closed, position);
            }
        }
        let (lineage, run, patience) = (&self.lineage, &self.run, self.child_patience);
        let mut through = self.context.through();
        self.childless.retain(|shard, since| {
            let patient = since.elapsed() < patience;
            let keep = !lineage.has_children(shard)
                && waits_for_child(&run.stream, shard, enabled, patient);
            if !keep {
                run.shards.children_not_listed.fetch_sub(1, Ordering::SeqCst);
                through.of(&run.stream).is_last(shard);
            }
            keep
        });
    }
}

/// Whether a child of a closed shard is still to come. A stream that is disabled has no more
/// children to come; and if one has not come for long, that is logged.
fn waits_for_child(stream: &Stream, shard: &str, enabled: bool, patient: bool) -> bool {
    if enabled && !patient {
        tracing::warn!(
            stream = stream.arn,
            shard,
            "closed, and DescribeStream names no child of it: taken for the end of its lineage, as \
             after a merge of partitions"
        );
    }
    enabled && patient
}
