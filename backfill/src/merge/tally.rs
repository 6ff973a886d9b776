//! What a merge came to: for people, and as JSON.

use std::collections::BTreeSet;
use std::time::Duration;

use projector::counts::Counts;
use serde_json::{Value as Json, json};

use crate::console::span;
use crate::failures::Failures;
use crate::merge::Found;
use crate::pending_objects;

/// What came of a run.
#[derive(Debug)]
pub(crate) struct Tally {
    pub(crate) found: Found,
    /// By session id, key or file name.
    pub(crate) not_merged: Failures,
    /// What the projector counted.
    pub(crate) counts: Counts,
    /// How many objects were still pending at the end; `None` if that is not known.
    pub(crate) objects_pending: Option<u64>,
}

/// How a run ended, for the summary.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended<'a> {
    /// The other side, without credentials.
    pub(crate) from: &'a str,
    /// `done`, `stopped` or `failed`.
    pub(crate) how: &'static str,
    pub(crate) dry_run: bool,
    /// Every session up to this one is done; empty: none.
    pub(crate) through: &'a str,
    pub(crate) took: Duration,
}

impl Default for Tally {
    fn default() -> Self {
        let (found, counts) = (Found::default(), Counts::default());
        let not_merged = Failures::new("not merged");
        Self { found, not_merged, counts, objects_pending: None }
    }
}

impl Tally {
    /// Names what cannot be merged of a batch, once for each session.
    pub(crate) fn add_not_merged(&mut self, refused: impl IntoIterator<Item = (String, String)>) {
        let mut seen = BTreeSet::new();
        for (name, reason) in refused {
            if seen.insert(name.clone()) {
                self.not_merged.add(&name, &reason);
            }
        }
    }

    /// Sessions that are as new here.
    fn unchanged(&self) -> u64 {
        let Found { read, skipped, newer, newer_parts: _ } = self.found;
        read.saturating_sub(skipped + newer)
    }

    /// In a few words, for the progress.
    pub(crate) fn text(&self) -> String {
        let newer = self.found.newer;
        match self.not_merged.count {
            0 => format!("{newer} newer there"),
            count => format!("{newer} newer there, {count} not merged"),
        }
    }

    /// The summary, for people.
    pub(crate) fn summary(&self, ended: &Ended<'_>) -> String {
        let Found { read, skipped, newer, newer_parts } = self.found;
        let Ended { from, how, dry_run, took, .. } = *ended;
        let rate = read as f64 / took.as_secs_f64().max(1e-9);
        let how =
            if dry_run { format!("dry run, nothing was written, {how}") } else { how.to_owned() };
        let took = span(took.max(Duration::from_secs(1)));
        let mut text = format!("{how}: {read} sessions read from {from} in {took} ({rate:.0}/s)\n");
        let always = |count: u64| (count, true);
        let if_any = |count: u64| (count, count > 0);
        let if_written = |count: u64| (count, !dry_run);
        for (name, (count, shown), meaning) in [
            ("newer there", always(newer), "sessions with a part that is newer than here"),
            ("parts newer", always(newer_parts), "the parts of those"),
            ("applied", if_written(self.counts.applied), "parts that the rows written now hold"),
            ("rows written", if_written(self.counts.rows_written), ""),
            ("unchanged", always(self.unchanged()), "sessions as new here"),
            ("skipped", if_any(skipped), "sessions that have not changed since the time given"),
            ("objects written", if_any(self.counts.objects_written), ""),
            ("objects current", if_any(self.counts.objects_current), "held the row already"),
            (
                "objects not yet",
                if_any(self.counts.objects_not_yet),
                "their rows have not had all parts (ARCHIVE_OBJECTS=complete)",
            ),
            ("not merged", if_any(self.not_merged.count), "named above"),
        ] {
            if shown {
                text += format!("  {name:<16}{count:>10}  {meaning}").trim_end();
                text.push('\n');
            }
        }
        text + &pending_objects::line(self.objects_pending)
    }

    /// The same as the members of the result.
    pub(crate) fn json(&self, ended: &Ended<'_>) -> Json {
        let Found { read, skipped, newer, newer_parts } = self.found;
        let Ended { from, how, dry_run, through, took } = *ended;
        json!({
            "from": from,
            "ended": how,
            "dry_run": dry_run,
            "seconds": took.as_secs_f64(),
            "sessions_read": read,
            "sessions_skipped": skipped,
            "sessions_newer": newer,
            "parts_newer": newer_parts,
            "parts_applied": self.counts.applied,
            "rows_written": self.counts.rows_written,
            "objects_written": self.counts.objects_written,
            "objects_current": self.counts.objects_current,
            "objects_not_yet": self.counts.objects_not_yet,
            "objects_pending": self.objects_pending,
            "sessions_unchanged": self.unchanged(),
            "not_merged": self.not_merged.count,
            "first_not_merged": self.not_merged.json(),
            "merged_through": (!through.is_empty()).then_some(through),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Tally;
    use crate::merge::Found;

    #[test]
    fn a_session_that_is_refused_part_by_part_counts_once() {
        let mut tally = Tally::default();
        let of = |name: &str, reason: &str| (name.to_owned(), reason.to_owned());
        tally.add_not_merged([of("s1", "left"), of("s1", "right"), of("s2", "left")]);
        assert_eq!((tally.not_merged.count, tally.not_merged.names().as_str()), (2, "s1, s2"));
    }

    #[test]
    fn what_is_neither_newer_nor_skipped_is_unchanged() {
        let found = Found { read: 10, skipped: 3, newer: 2, newer_parts: 5 };
        let tally = Tally { found, ..Tally::default() };
        assert_eq!(tally.unchanged(), 5);
    }
}
