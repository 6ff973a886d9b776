//! A slice that only compares: a nightly `verify` by slices. It writes nothing, and needs no lease.
//!
//! A part counts as differing if it differs at each of several looks while its row stays as it is:
//! the rule of `verify --tables`.

use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::{Instant, sleep};

use super::Reconciler;
use super::event::Slice;
use super::slice::Times;
use crate::compare_tables::look::Looker;
use crate::compare_tables::verdict::{Look, Verdict};
use crate::console::{Progress, line};
use crate::items::Key;
use crate::items::api::KEYS_PER_CALL;
use crate::items::slice_file::Found;
use crate::repair::file_lines::{FileLines, SeenLines};
use crate::verify::tables::pending::{AllPending, Settled};

/// What differs is looked at this often again.
const ROUNDS: u32 = 3;
/// How long after the look before, at most.
const WAIT: Duration = Duration::from_secs(5);
/// What differs is looked at again once it is this many parts, at the latest.
const PENDING_AT_MOST: usize = 20_000;
/// At most this many differences of an invocation are named in the log.
const NAMED: usize = 20;

/// Compares the lines from `next` on.
pub(super) async fn lines(
    context: &Reconciler,
    slice: Slice,
    found: &Found,
    times: Times,
) -> anyhow::Result<Slice> {
    let api = &context.api;
    let ttl_attributes = api.ttl_attributes(context.projector.ttl_removals).await?;
    let started = OffsetDateTime::now_utc();
    let looker = Looker { database: &context.connections.source, api, ttl_attributes, started };
    let whole = times.end - times.start;
    let mut comparing = Comparing {
        looker: &looker,
        wait: WAIT.min(whole / (4 * ROUNDS)),
        pending: AllPending::default(),
        slice,
        progress: Progress::start(0),
    };
    // The other half is for the looks at what differs.
    let read_until: Instant = times.end - whole / 2;
    let mut lines = FileLines::new(&looker, &found.file, comparing.slice.next, read_until);
    while let Some(seen) = lines.next().await? {
        comparing.add(seen);
        if comparing.pending.len() >= PENDING_AT_MOST {
            comparing.settle().await?;
        }
    }
    comparing.settle().await?;
    Ok(comparing.slice)
}

/// The comparison of some lines.
struct Comparing<'a> {
    looker: &'a Looker<'a>,
    wait: Duration,
    pending: AllPending,
    /// What it came to so far.
    slice: Slice,
    progress: Progress,
}

impl Comparing<'_> {
    fn add(&mut self, seen: SeenLines) {
        let SeenLines { looks, piece } = seen;
        self.slice.rejected += looks.without_key.len() as u64;
        for look in looks.of_parts {
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

    /// Looks at what differs until nothing does, or the rounds are over.
    async fn settle(&mut self) -> anyhow::Result<()> {
        for _ in 0..ROUNDS {
            if self.pending.len() == 0 {
                return Ok(());
            }
            sleep(self.wait).await;
            for keys in self.pending.keys().chunks(KEYS_PER_CALL) {
                let keys: Vec<&Key> = keys.iter().collect();
                for look in self.looker.again(&keys).await? {
                    self.look(look);
                }
            }
        }
        let (differences, _) = std::mem::take(&mut self.pending).into_differences();
        for difference in differences.iter().take(NAMED) {
            let part = difference.part.map_or("", projector::part::Part::name);
            line(&format!("{} {part} differs: {}", difference.session_id, difference.detail));
        }
        self.slice.differing += differences.len() as u64;
        Ok(())
    }

    fn look(&mut self, look: Look) {
        if let Settled::Malformed(_) = self.pending.look(look) {
            self.slice.rejected += 1;
        }
    }
}
