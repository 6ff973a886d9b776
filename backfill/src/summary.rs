//! What a run came to, on standard output.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use projector::apply::Counts;
use serde_json::{Value as Json, json};

use crate::console::say;

/// The counts, under a first line such as `done: 161 records in 0.3 s (494/s)`.
pub(crate) fn print(
    end: &str,
    counts: &Counts,
    not_counted: u64,
    reasons: &Reasons,
    duration: Duration,
) {
    say!("{}", text(end, counts, not_counted, reasons, duration).trim_end());
}

/// The same as text. `not_counted` are the records of batches that were not finished.
pub(crate) fn text(
    end: &str,
    counts: &Counts,
    not_counted: u64,
    reasons: &Reasons,
    duration: Duration,
) -> String {
    let Counts {
        records,
        applied,
        duplicate,
        stale,
        stale_created_later,
        superseded,
        ttl_kept,
        rejected,
        failed: _,
        rows_written,
        objects_written,
        objects_current,
    } = *counts;
    let seconds = duration.as_secs_f64();
    let rate = records as f64 / seconds.max(1e-9);
    let mut text = format!("{end}: {records} records in {seconds:.1} s ({rate:.0}/s)\n");
    for (name, count, meaning) in [
        ("applied", applied, "newer than what the row held"),
        ("duplicate", duplicate, "held already"),
        ("stale", stale, "older than what the row held"),
        (
            "created later",
            stale_created_later,
            "of those: older by version, created later than what the row holds",
        ),
        ("superseded", superseded, "overtaken by a newer change in the same batch"),
        ("ttl kept", ttl_kept, "removals by time to live, values kept as configured"),
        ("rejected", rejected, "set aside in rejected_records"),
        ("rows written", rows_written, ""),
        ("objects written", objects_written, ""),
        ("objects current", objects_current, "held the row already"),
        ("not counted", not_counted, "in a batch that was not finished: some can be stored"),
    ] {
        if count > 0 || matches!(name, "applied" | "rejected") {
            text += format!("  {name:<16}{count:>10}  {meaning}").trim_end();
            text.push('\n');
        }
    }
    text + &reasons.text()
}

/// The counts as JSON.
pub(crate) fn counts_json(counts: &Counts) -> Json {
    let Counts {
        records,
        applied,
        duplicate,
        stale,
        stale_created_later,
        superseded,
        ttl_kept,
        rejected,
        failed,
        rows_written,
        objects_written,
        objects_current,
    } = *counts;
    json!({
        "records": records,
        "applied": applied,
        "duplicate": duplicate,
        "stale": stale,
        "stale_created_later": stale_created_later,
        "superseded": superseded,
        "ttl_kept": ttl_kept,
        "rejected": rejected,
        "failed": failed,
        "rows_written": rows_written,
        "objects_written": objects_written,
        "objects_current": objects_current,
    })
}

/// The end of a run that wrote nothing.
pub(crate) fn print_dry(records: u64, rejected: u64, reasons: &Reasons) {
    say!("dry run, nothing was written: {records} records, {rejected} would be rejected");
    if !reasons.0.is_empty() {
        say!("{}", reasons.text().trim_end());
    }
}

/// Why records were rejected, and how many for each reason; the first so many reasons by name.
#[derive(Debug, Default)]
pub(crate) struct Reasons(BTreeMap<String, u64>);

const OTHER: &str = "for other reasons";

impl Reasons {
    const NAMED: usize = 50;

    pub(crate) fn add(&mut self, reason: String) {
        self.merge(Self(BTreeMap::from([(reason, 1)])));
    }

    pub(crate) fn merge(&mut self, other: Self) {
        for (reason, count) in other.0 {
            let known = self.0.len() < Self::NAMED || self.0.contains_key(&reason);
            let reason = if known { reason } else { OTHER.to_owned() };
            *self.0.entry(reason).or_default() += count;
        }
    }

    /// A line per reason.
    pub(crate) fn print(&self) {
        if !self.0.is_empty() {
            say!("{}", self.text().trim_end());
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (reason, count) in &self.0 {
            let _ = writeln!(text, "  {count:>6} × {reason}");
        }
        text
    }

    /// As JSON: how many records by reason.
    pub(crate) fn json(&self) -> Json {
        json!(self.0)
    }
}
