//! What the parts of a replay share: its terms, its streams, and what it found out. No part of it
//! calls the API or the database.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::Semaphore;

use crate::replay::checkpoint::Checkpoint;
use crate::replay::lineage::Shard;
use crate::replay::position::{Lost, LostInRepair};
use crate::replay::progress::ShardCount;
use crate::replay::source::{ShardName, Source, Stream};
use crate::replay::through::Through;

/// The terms of a run, and what its tasks report to its summary.
#[derive(Debug)]
pub(crate) struct ReplayContext {
    pub(crate) source: Source,
    /// One permit per page that is asked for or in memory.
    pub(crate) permits: Arc<Semaphore>,
    /// When the run began: what was created before is applied when it ends.
    pub(crate) cutoff: OffsetDateTime,
    /// How long an open shard must return only empty pages to count as caught up.
    pub(crate) idle: Duration,
    /// The same for a shard that has returned no record at all yet.
    pub(crate) first_record: Duration,
    /// Goes on after the cutoff.
    pub(crate) follow: bool,
    /// How often the collector is told how far a quiet shard has been read, while it is followed.
    pub(crate) report_every: time::Duration,
    pub(crate) snapshot_time: Option<OffsetDateTime>,
    /// What was created before is in the database whatever the streams hold, or comes from
    /// elsewhere: that it is trimmed loses nothing.
    pub(crate) baseline: Option<OffsetDateTime>,
    /// Since when every change could be read as the run began, if that was checked: the time of the
    /// snapshot.
    pub(crate) complete_since: Option<OffsetDateTime>,
    pub(crate) if_lost: IfLost,
    pub(crate) findings: Mutex<Findings>,
    /// How far the streams have been read and stored.
    pub(crate) through: Mutex<Through>,
}

/// What becomes of a run that has lost records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IfLost {
    Fail,
    /// The operator allowed it.
    GoOn,
    /// It fails, and the remedy is another repair.
    FailRepair,
}

/// What a run found out that its summary has to name.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// The shards in which records can be lost, and since when.
    pub(crate) gaps: BTreeMap<ShardName, Option<OffsetDateTime>>,
    /// Open shards that returned only empty pages for long enough, and whether they returned a
    /// record before.
    pub(crate) assumed: BTreeMap<ShardName, bool>,
    /// Shards that only their children name, and that are not there: trimmed away, as a rule.
    pub(crate) not_there: BTreeSet<ShardName>,
    /// Shards that were gone before they were read to their end, which loses nothing that matters.
    pub(crate) gone: BTreeSet<ShardName>,
    /// What else the operator has to know at the end.
    pub(crate) remarks: Vec<String>,
}

/// After this many lost shards by name, the log only counts on; the summary has the number.
const GAPS_LOGGED: usize = 5;

impl ReplayContext {
    /// What was found out so far.
    pub(crate) fn findings(&self) -> MutexGuard<'_, Findings> {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far the streams have been read and stored.
    pub(crate) fn through(&self) -> MutexGuard<'_, Through> {
        self.through.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records were trimmed that nobody is known to have applied.
    ///
    /// # Errors
    /// [`Lost`] or [`LostInRepair`], unless the run may go on without them.
    pub(crate) fn lose(&self, lost: Lost) -> anyhow::Result<()> {
        match self.if_lost {
            IfLost::Fail => return Err(lost.into()),
            IfLost::FailRepair => return Err(LostInRepair(lost).into()),
            IfLost::GoOn => {}
        }
        let mut findings = self.findings();
        let new = findings.gaps.insert(lost.shard.clone(), lost.since).is_none();
        if new && findings.gaps.len() <= GAPS_LOGGED {
            tracing::error!("{}", lost.brief());
        } else if new && findings.gaps.len() == GAPS_LOGGED + 1 {
            tracing::error!("records can be lost in more shards; the summary says in how many");
        }
        Ok(())
    }
}

/// A stream, and how far it had been read when the run began.
#[derive(Debug)]
pub(crate) struct StreamRun {
    pub(crate) stream: Arc<Stream>,
    pub(crate) listed: Vec<Shard>,
    /// The checkpoints that the run resumes from, by shard.
    pub(crate) resumed: HashMap<String, Checkpoint>,
    /// The stream holds nothing from before then: it was enabled while the run was under way.
    pub(crate) enabled_during_run: Option<OffsetDateTime>,
    pub(crate) shards: Arc<ShardCount>,
}

impl StreamRun {
    pub(crate) fn new(
        stream: Stream,
        listed: Vec<Shard>,
        resumed: HashMap<String, Checkpoint>,
    ) -> Self {
        let shards = ShardCount { listed: AtomicUsize::new(listed.len()), ..ShardCount::default() };
        Self {
            stream: Arc::new(stream),
            listed,
            resumed,
            enabled_during_run: None,
            shards: Arc::new(shards),
        }
    }

    /// How many of the listed shards an earlier run finished.
    pub(crate) fn finished_before(&self) -> usize {
        let finished = |id: &str| self.resumed.get(id).is_some_and(|before| before.finished);
        self.listed.iter().filter(|shard| finished(&shard.id)).count()
    }
}
