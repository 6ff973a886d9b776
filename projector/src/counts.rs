//! How many records of a batch went which way: THE list of counts. Pure.
//!
//! [`for_each_count!`] has one entry per count. The addition, the log line, the metrics and the
//! summary of a replay are made of it, so a new count is one entry here, and a place that
//! increments it.

/// Calls a macro with every count: its doc comment, its field, its metric if it has one, and its
/// line in the summary.
macro_rules! for_each_count {
    ($make:ident) => {
        $make! {
            /// Records delivered.
            records: Some("Records"), Line::Elsewhere;
            /// Changes that the rows written now hold.
            applied: Some("Applied"), Line::Always("applied", "newer than what the row held");
            /// Changes already present in an unchanged row, or repeated in this batch, and records
            /// that are discarded.
            duplicate: Some("Duplicate"), Line::IfAny("duplicate", "held already");
            /// Changes older than what their row holds.
            stale: Some("Stale"), Line::IfAny("stale", "older than what the row held");
            /// Of those, the ones that were created later than what their row holds: see
            /// `apply/regions.rs`.
            stale_created_later: Some("StaleCreatedLater"), Line::IfAny(
                "created later",
                "of those: older by version, created later than what the row holds"
            );
            /// Changes overtaken by a newer one of the same part within the batch.
            superseded: Some("Superseded"), Line::IfAny(
                "superseded",
                "overtaken by a newer change in the same batch"
            );
            /// Removals by time to live whose values were kept, as configured.
            ttl_kept: Some("TtlKept"), Line::IfAny(
                "ttl kept",
                "removals by time to live, values kept as configured"
            );
            /// Records rejected, and stored in `rejected_records`, where they are open.
            rejected: Some("Rejected"), Line::Always("rejected", "stored in rejected_records");
            /// Records that are not in both stores; they come again.
            failed: Some("Failures"), Line::Elsewhere;
            /// Rows inserted or updated.
            rows_written: None, Line::IfAny("rows written", "");
            /// Objects written.
            objects_written: Some("ObjectsWritten"), Line::IfAny("objects written", "");
            /// Objects that held the row already.
            objects_current: Some("ObjectsCurrent"), Line::IfAny(
                "objects current",
                "held the row already"
            );
            /// Objects not wanted yet, because their rows have not had all parts.
            objects_not_yet: None, Line::IfAny(
                "objects not yet",
                "their rows have not had all parts (ARCHIVE_OBJECTS=complete)"
            );
        }
    };
}
pub(crate) use for_each_count;

/// The line of a count in the summary of a replay: a label, and what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// Shown even if it is 0.
    Always(&'static str, &'static str),
    /// Shown unless it is 0.
    IfAny(&'static str, &'static str),
    /// The summary says it elsewhere.
    Elsewhere,
}

/// One count, with all that is said of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// Its name in the log line and in JSON.
    pub name: &'static str,
    /// Its metric in CloudWatch.
    pub metric: Option<&'static str>,
    /// Its line in the summary.
    pub line: Line,
    /// How many.
    pub value: u64,
}

macro_rules! define_counts {
    ($($(#[$doc:meta])+ $name:ident: $metric:expr, $line:expr;)+) => {
        /// How many records of a batch went which way, and how many objects.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counts {
            $($(#[$doc])+ pub $name: u64,)+
        }

        impl Counts {
            /// Every count, in the order of the list.
            pub fn list(&self) -> impl Iterator<Item = Count> {
                [$(Count { name: stringify!($name), metric: $metric, line: $line, value: self.$name }),+]
                    .into_iter()
            }
        }

        impl std::ops::AddAssign for Counts {
            fn add_assign(&mut self, other: Self) {
                $(self.$name += other.$name;)+
            }
        }
    };
}
for_each_count!(define_counts);

#[cfg(test)]
mod tests {
    use super::{Count, Counts};
    use std::collections::BTreeSet;

    #[test]
    fn no_two_counts_share_a_metric() {
        let metrics: Vec<_> = Counts::default().list().filter_map(|count| count.metric).collect();
        assert_eq!(metrics.iter().collect::<BTreeSet<_>>().len(), metrics.len());
    }

    #[test]
    fn every_count_is_added_and_listed_under_its_own_name() {
        let one = Counts { applied: 2, objects_current: 3, ..Counts::default() };
        let mut sum = Counts { applied: 1, rows_written: 5, ..Counts::default() };
        sum += one;
        let shown: Vec<_> = sum
            .list()
            .filter(|count| count.value > 0)
            .map(|Count { name, value, .. }| (name, value))
            .collect();
        assert_eq!(shown, [("applied", 3), ("rows_written", 5), ("objects_current", 3)]);
    }
}
