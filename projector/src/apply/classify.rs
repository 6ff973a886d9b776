//! What each record of a session came to, by the versions alone: applied, duplicate, stale or
//! superseded. Pure.

use crate::counts::Counts;
use crate::fold::{IndexedChange, SessionChanges};
use crate::part::Part;
use crate::read_model::Upserted;

/// Counts what each record of a session came to. If the row was written, a change that it holds
/// counts as applied, also one that it held already.
pub(super) fn count(session: &SessionChanges<'_>, upserted: &Upserted, counts: &mut Counts) {
    let written = matches!(upserted, Upserted::Written { .. });
    counts.rows_written += u64::from(written);
    let held = upserted.versions();
    for part in Part::ALL {
        let newest = session.patch[part].map(|change| change.version.as_str());
        // A row that was not looked at holds what was sent.
        let held = held.map_or(newest, |held| held[part].as_deref());
        let mut applied = false;
        let of_part = |indexed: &&&IndexedChange| indexed.change.part == part;
        for indexed in session.changes.iter().filter(of_part) {
            let version = Some(indexed.change.version.as_str());
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
