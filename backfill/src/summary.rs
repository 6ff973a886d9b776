//! What a run came to: its counts and reasons, as text and as JSON. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use projector::counts::{Count, Counts, Line};
use serde_json::{Value as Json, json};

/// The counts, under a first line such as `done: 161 records in 0.3 s (494/s)`. `not_counted` are
/// the records of batches that were not finished.
pub(crate) fn text(
    end: &str,
    counts: &Counts,
    not_counted: u64,
    reasons: &Reasons,
    duration: Duration,
) -> String {
    let seconds = duration.as_secs_f64();
    let records = counts.records;
    let rate = records as f64 / seconds.max(1e-9);
    let mut text = format!("{end}: {records} records in {seconds:.1} s ({rate:.0}/s)\n");
    for Count { line, value, .. } in counts.list() {
        let (label, meaning) = match line {
            Line::Always(label, meaning) => (label, meaning),
            Line::IfAny(label, meaning) if value > 0 => (label, meaning),
            Line::IfAny(..) | Line::Elsewhere => continue,
        };
        text += format!("  {label:<16}{value:>10}  {meaning}").trim_end();
        text.push('\n');
    }
    if not_counted > 0 {
        let meaning = "in a batch that was not finished: some can be stored";
        let _ = writeln!(text, "  {:<16}{not_counted:>10}  {meaning}", "not counted");
    }
    text + &reasons.text()
}

/// The counts as JSON.
pub(crate) fn counts_json(counts: &Counts) -> Json {
    counts.list().map(|count| (count.name.to_owned(), json!(count.value))).collect()
}

/// The end of a run that wrote nothing.
pub(crate) fn dry_text(records: u64, rejected: u64, reasons: &Reasons) -> String {
    let reasons = reasons.text();
    format!(
        "dry run, nothing was written: {records} records, {rejected} would be rejected\n{reasons}"
    )
}

/// Why records were rejected, and how many for each reason. At most [`Reasons::NAMED`] of them are
/// named.
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
    pub(crate) fn text(&self) -> String {
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

#[cfg(test)]
mod tests {
    use super::{Reasons, counts_json, text};
    use projector::counts::Counts;
    use std::time::Duration;

    #[test]
    fn a_count_has_a_line_if_it_is_not_0_and_applied_and_rejected_always() {
        let counts = Counts { records: 6, stale_created_later: 2, failed: 1, ..Counts::default() };
        let shown = text("done", &counts, 0, &Reasons::default(), Duration::from_secs(2));
        let expected = "done: 6 records in 2.0 s (3/s)
  applied                  0  newer than what the row held
  created later            2  of those: older by version, created later than what the row holds
  rejected                 0  stored in rejected_records
";
        assert_eq!(shown, expected);
        let json = counts_json(&counts);
        let members = json.as_object().expect("an object");
        assert_eq!(members.len(), counts.list().count());
        assert_eq!((&json["failed"], &json["rows_written"]), (&1.into(), &0.into()));
    }
}
