//! How far the reading of each stream has come: counters, and the bar that shows them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use time::OffsetDateTime;

use crate::console::{self, Bar, clock, span};

/// How many shards a stream has; it grows while the stream is read.
#[derive(Debug, Default)]
pub(crate) struct ShardCount {
    pub(crate) listed: AtomicUsize,
    /// Children of shards that have been read to their end, not listed yet: counted up before that
    /// end is reported, so that nobody takes a stream for done that is not.
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
    /// `listed` shards are known, `done_before` of them finished by an earlier run. The short name
    /// is for the bar.
    pub(crate) fn start(
        (table, name, short_name): (&str, String, &str),
        listed: usize,
        done_before: usize,
        shards: Arc<ShardCount>,
    ) -> Self {
        let template = if console::is_narrow() {
            "{prefix} {pos}/{len} shards  {wide_msg}"
        } else {
            "{prefix:>10} {bar:20} {pos}/{len} shards  {wide_msg}"
        };
        let bar = Bar::start(listed as u64, template);
        bar.drawn.set_prefix(short_name.to_owned());
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
        let reached = self.reached.values().min().map(|reached| {
            let lag = (OffsetDateTime::now_utc() - *reached).max(time::Duration::ZERO);
            (*reached, lag.unsigned_abs())
        });
        let (records, rate) = (self.records, self.bar.rate(self.records));
        let all_read = done >= total;
        let beside = beside_the_bar((records, rate), reached, all_read, console::is_narrow());
        let name = &self.name;
        self.bar.show(done as u64, beside, |_| {
            let position = position(reached, all_read);
            format!("{name}: {done}/{total} shards, {records} records ({rate:.0}/s)  {position}")
        });
    }
}

/// Up to when all is read.
fn position(reached: Option<(OffsetDateTime, Duration)>, all_read: bool) -> String {
    match reached {
        Some((reached, lag)) => format!("at {}, {} behind now", clock(reached), span(lag)),
        None if all_read => "all read".to_owned(),
        None => "no record yet".to_owned(),
    }
}

/// What stands beside the bar: how many records, how many per second, and the lag.
fn beside_the_bar(
    (records, rate): (u64, f64),
    reached: Option<(OffsetDateTime, Duration)>,
    all_read: bool,
    narrow: bool,
) -> String {
    let lag = match reached {
        Some((_, lag)) => format!("{} behind", span(lag)),
        None => position(None, all_read),
    };
    if narrow {
        format!("{lag}, {records} records")
    } else {
        format!("{lag}, {records} records ({rate:.0}/s)")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use time::macros::datetime;

    use super::beside_the_bar;

    /// The bar library cuts what does not fit: the lag of one of two streams of a table must not be
    /// cut.
    #[test]
    fn a_bar_fits_terminals_of_80_and_110_columns() {
        let reached = Some((datetime!(2026-11-23 20:00 UTC), Duration::from_mins(23 * 60 + 59)));
        let text = |narrow| beside_the_bar((12_345_678, 5_432.0), reached, false, narrow);
        let narrow = format!("sessions 11-22T00:00:00 104/260 shards  {}", text(true));
        assert!(narrow.len() <= 80 && narrow.contains("23 h 59 min"), "{narrow}");
        let wide = format!("sessions 11-22T00:00:00 {:20} 52/60 shards  {}", "", text(false));
        assert!(wide.len() <= 110, "{wide}");
    }
}
