//! How far the reading of each stream has come: counters, and the bar that shows them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use time::OffsetDateTime;

use crate::console::{Bar, clock, span};

/// How many shards a stream has; it grows while the stream is read.
#[derive(Debug, Default)]
pub(crate) struct ShardCount {
    pub(crate) listed: AtomicUsize,
    /// Children of shards that have been read to their end, not listed yet: counted up before that end
    /// is reported, so that nobody takes a stream for done that is not.
    pub(crate) children_not_listed: AtomicUsize,
}

/// Where a shard is after a page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ShardProgress {
    /// There is more to read before the cutoff.
    pub(crate) behind: bool,
    /// It is at the cutoff, and may go on.
    pub(crate) followed: bool,
}

/// The progress of one stream.
pub(crate) struct StreamProgress {
    bar: Bar,
    table: String,
    /// The table, or the table and the stream if the table has several.
    name: String,
    shards: Arc<ShardCount>,
    /// How many shards an earlier run finished.
    done_before: usize,
    done: HashSet<Arc<str>>,
    records: u64,
    /// The creation time of the last record of each shard that is being read.
    reached: HashMap<Arc<str>, OffsetDateTime>,
}

impl StreamProgress {
    /// `listed` shards are known, `done_before` of them finished by an earlier run.
    pub(crate) fn start(
        (table, name): (&str, String),
        listed: usize,
        done_before: usize,
        shards: Arc<ShardCount>,
    ) -> Self {
        let bar = Bar::start(listed as u64, "{prefix:>10} {bar:20} {pos}/{len} shards  {wide_msg}");
        bar.drawn.set_prefix(name.clone());
        Self {
            bar,
            table: table.to_owned(),
            name,
            shards,
            done_before,
            done: HashSet::new(),
            records: 0,
            reached: HashMap::new(),
        }
    }

    /// This many more records of a shard are in both stores, the last of them created at `reached`.
    pub(crate) fn advance(
        &mut self,
        shard: &Arc<str>,
        records: u64,
        reached: Option<OffsetDateTime>,
        state: ShardProgress,
    ) {
        let ShardProgress { behind, followed } = state;
        self.records += records;
        if !behind {
            self.done.insert(Arc::clone(shard));
        }
        match reached.filter(|_| records > 0) {
            // One that is followed after the cutoff still says where the stream is.
            Some(reached) if behind || followed => {
                self.reached.insert(Arc::clone(shard), reached);
            }
            _ if !behind => {
                self.reached.remove(shard);
            }
            _ => {}
        }
    }

    /// The shards that are read and those that are known, and the records that were read.
    pub(crate) fn totals(&self) -> (usize, usize, u64) {
        let total = self.shards.listed.load(Ordering::Relaxed);
        (self.done_before + self.done.len(), total, self.records)
    }

    pub(crate) fn table(&self) -> &str {
        &self.table
    }

    /// Every shard that is known is read, to its end or up to the cutoff.
    pub(crate) fn is_done(&self) -> bool {
        let not_listed = self.shards.children_not_listed.load(Ordering::SeqCst);
        let known = self.shards.listed.load(Ordering::SeqCst) + not_listed;
        self.done_before + self.done.len() >= known
    }

    pub(crate) fn show(&mut self) {
        let total = self.shards.listed.load(Ordering::Relaxed);
        let done = self.done_before + self.done.len();
        self.bar.drawn.set_length(total as u64);
        // The stream has come as far as the shard that is farthest behind.
        let position = self.reached.values().min().map_or_else(
            || if done >= total { "all read".to_owned() } else { "no record yet".to_owned() },
            |reached| {
                let lag = (OffsetDateTime::now_utc() - *reached).max(time::Duration::ZERO);
                format!("at {}, {} behind now", clock(*reached), span(lag.unsigned_abs()))
            },
        );
        let text =
            format!("{} records ({:.0}/s)  {position}", self.records, self.bar.rate(self.records));
        let name = &self.name;
        self.bar.show(done as u64, text, |text| format!("{name}: {done}/{total} shards, {text}"));
    }
}
