//! A slice that only compares: a nightly `verify` by slices. It writes nothing, and needs no lease.
//!
//! A part counts as differing if it differs at each of several looks while its row stays as it is:
//! the rule of `verify --tables`.

use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::{Instant, sleep};

use super::Reconciler;
use super::event::Slice;
use super::pieces;
use super::recording::Recording;
use super::slice::Times;
use crate::compare_tables::look::Looker;
use crate::compare_tables::verdict::Verdict;
use crate::compare_tables::without_items::SeenParts;
use crate::console::{Progress, line};
use crate::items::Key;
use crate::items::api::KEYS_PER_CALL;
use crate::items::slice_file::Found;
use crate::repair::file_lines::{AddedLines, FileLines, SeenLines};
use crate::verify::difference::{Difference, Kind};
use crate::verify::tables::pending::{AllPending, Settled};

/// What differs is found at this often again.
const ROUNDS: u32 = 3;
/// How long after the look before, at most.
const WAIT: Duration = Duration::from_secs(5);
/// What differs is looked at again once it is this many parts, at the latest.
pub(super) const PENDING_AT_MOST: usize = 20_000;
/// At most this many differences of an invocation are named in the log.
const NAMED: usize = 20;

/// Compares the lines from `next` on.
pub(super) async fn lines(
    context: &Reconciler,
    slice: Slice,
    found: &Found,
    (times, recording): (Times, Option<Recording>),
) -> anyhow::Result<Slice> {
    let api = &context.api;
    let ttl_attributes = api.ttl_attributes(context.projector.ttl_removals).await?;
    let now = OffsetDateTime::now_utc();
    let started = recording.as_ref().map_or(now, |recording| recording.run.started_at);
    let looker = Looker { database: &context.connections.source, api, ttl_attributes, started };
    let mut comparing = Comparing {
        looker: &looker,
        wait: wait(times),
        pending: AllPending::default(),
        slice,
        missing: 0,
        seen: recording.as_ref().map(|recording| recording.adding().seen),
        progress: Progress::start(0),
    };
    let mut lines = FileLines::new(&looker, &found.file, comparing.slice.next, looked_until(times));
    while let Some(seen) = lines.next().await? {
        comparing.add(seen);
        if comparing.pending.len() >= PENDING_AT_MOST {
            comparing.settle().await?;
        }
    }
    comparing.settle().await?;
    let Comparing { slice, missing, seen, .. } = comparing;
    if let Some((recording, seen)) = recording.zip(seen) {
        let mut connection = pieces::connect(context, None).await?;
        let added = AddedLines { seen, end: slice.next };
        recording.slice(&mut connection, (&slice, missing), added, found).await?;
    }
    Ok(slice)
}

/// Until when something may be looked at for the first time: the other half of an invocation is for
/// the looks at what differs.
pub(super) fn looked_until(times: Times) -> Instant {
    times.end - (times.end - times.start) / 2
}

/// How long to wait between two looks.
pub(super) fn wait(times: Times) -> Duration {
    WAIT.min((times.end - times.start) / (4 * ROUNDS))
}

/// What became of parts that differed.
#[derive(Default)]
pub(super) struct Looked {
    /// They still differ, and their rows stay as they are.
    pub(super) differences: Vec<Difference>,
    /// How many are malformed by now.
    pub(super) malformed: u64,
    /// They are equal, and were not seen on both sides before.
    newly_in_both: Vec<Key>,
}

/// Looks at what differs until nothing does, or the rounds are over.
pub(super) async fn look_until_settled(
    looker: &Looker<'_>,
    mut pending: AllPending,
    wait: Duration,
) -> anyhow::Result<Looked> {
    let mut found = Looked::default();
    for _ in 0..ROUNDS {
        if pending.len() == 0 {
            return Ok(found);
        }
        sleep(wait).await;
        for keys in pending.keys().chunks(KEYS_PER_CALL) {
            let keys: Vec<&Key> = keys.iter().collect();
            for look in looker.again(&keys).await? {
                let key = look.key.clone();
                match pending.look(look) {
                    Settled::Malformed(_) => found.malformed += 1,
                    Settled::Equal { newly_in_both: true } => found.newly_in_both.push(key),
                    Settled::No | Settled::Equal { newly_in_both: false } => {}
                }
            }
        }
    }
    found.differences = pending.into_differences().0;
    for difference in found.differences.iter().take(NAMED) {
        let part = difference.part.map_or("", projector::part::Part::name);
        line(&format!("{} {part} differs: {}", difference.session_id, difference.detail));
    }
    Ok(found)
}

/// The comparison of some lines.
struct Comparing<'a> {
    looker: &'a Looker<'a>,
    wait: Duration,
    pending: AllPending,
    /// What it came to so far.
    slice: Slice,
    /// How many parts of this invocation no row holds.
    missing: u64,
    /// Those that were seen on both sides.
    seen: Option<SeenParts>,
    progress: Progress,
}

impl Comparing<'_> {
    fn add(&mut self, lines: SeenLines) {
        let SeenLines { looks, piece } = lines;
        self.slice.rejected += looks.without_key.len() as u64;
        for look in looks.of_parts {
            if let Some(seen) = self.seen.as_mut().filter(|_| look.in_both) {
                seen.add(&look.key);
            }
            match &look.verdict {
                Verdict::Equal => {}
                Verdict::Malformed(_) => self.slice.rejected += 1,
                Verdict::Differs(kind, detail) => {
                    let (kind, detail) = (*kind, detail.clone());
                    self.pending.add(look, kind, detail);
                }
            }
        }
        let lines = piece.end - self.slice.next;
        self.slice.compared += lines;
        self.slice.next = piece.end;
        self.slice.done = piece.is_last;
        let text = format!("{} parts differ", self.pending.len());
        self.progress.advance_items(lines, self.slice.compared, &text);
    }

    /// What differs is looked at again, and counted if it still does.
    async fn settle(&mut self) -> anyhow::Result<()> {
        let pending = std::mem::take(&mut self.pending);
        let found = look_until_settled(self.looker, pending, self.wait).await?;
        let Looked { differences, malformed, newly_in_both } = found;
        if let Some(seen) = &mut self.seen {
            for key in &newly_in_both {
                seen.add(key);
            }
        }
        self.slice.rejected += malformed;
        self.slice.differing += differences.len() as u64;
        let missing = differences.iter().filter(|found| found.kind == Kind::Missing);
        self.missing += missing.count() as u64;
        Ok(())
    }
}
