//! How many records went which way.

use crate::fold::{Arrival, SessionChanges};
use crate::measurement::Part;
use crate::read_model::Upserted;

/// How many records of a batch went which way, and how many objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records delivered.
    pub records: u64,
    /// Changes that the rows written now hold.
    pub applied: u64,
    /// Changes already present in an unchanged row, or repeated in this batch.
    pub duplicate: u64,
    /// Changes older than what their row holds.
    pub stale: u64,
    /// Of those, the ones that were created later than what their row holds: see `apply/regions.rs`.
    pub stale_created_later: u64,
    /// Changes overtaken by a newer one of the same part within the batch.
    pub superseded: u64,
    /// Removals by time to live whose values were kept, as configured.
    pub ttl_kept: u64,
    /// Records rejected, and stored in `rejected_records`.
    pub rejected: u64,
    /// Records that are not in both stores; they come again.
    pub failed: u64,
    /// Rows inserted or updated.
    pub rows_written: u64,
    /// Objects written.
    pub objects_written: u64,
    /// Objects that held the row already.
    pub objects_current: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        // Destructured whole, so that a new count cannot be forgotten here.
        let Self {
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
        } = other;
        self.records += records;
        self.applied += applied;
        self.duplicate += duplicate;
        self.stale += stale;
        self.stale_created_later += stale_created_later;
        self.superseded += superseded;
        self.ttl_kept += ttl_kept;
        self.rejected += rejected;
        self.failed += failed;
        self.rows_written += rows_written;
        self.objects_written += objects_written;
        self.objects_current += objects_current;
    }
}

/// Counts what each record of a session came to. If the row was written, a change that it holds counts as applied,
/// also one that it held already.
pub(super) fn count(session: &SessionChanges<'_>, upserted: &Upserted, counts: &mut Counts) {
    let written = matches!(upserted, Upserted::Written { .. });
    counts.rows_written += u64::from(written);
    let held = upserted.versions();
    for part in Part::ALL {
        let newest = session.patch[part].map(|change| change.version.as_str());
        // A row that was not looked at holds what was sent.
        let held = held.map_or(newest, |held| held[part].as_deref());
        let mut applied = false;
        let of_part = |arrival: &&&Arrival| arrival.change.part == part;
        for arrival in session.arrivals.iter().filter(of_part) {
            let version = Some(arrival.change.version.as_str());
            let count = if version == held {
                if written && !applied {
                    applied = true;
                    &mut counts.applied
                } else {
                    &mut counts.duplicate
                }
            } else if written && version != newest {
                &mut counts.superseded
            } else {
                &mut counts.stale
            };
            *count += 1;
        }
    }
}
