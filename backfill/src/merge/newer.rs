//! What another side knows better than we do, by versions alone. Pure.

use projector::change::Change;
use projector::measurement::{Measurement, Versions};
use projector::part::{Part, PerPart};
use projector::stored::{NotOfChanges, changes_of};
use time::OffsetDateTime;

use crate::repair::reread::{FromPeer, from_peer, is_image};

/// How many parts are newer there than what our row holds.
pub(crate) fn newer_parts(theirs: &Versions, held: Option<&Versions>) -> u64 {
    Part::ALL.into_iter().filter(|part| is_newer(theirs, *part, held)).count() as u64
}

fn is_newer(theirs: &Versions, part: Part, held: Option<&Versions>) -> bool {
    let ours = held.and_then(|held| held[part].as_deref());
    from_peer((theirs[part].as_deref(), &()), (ours, &())) == FromPeer::Upsert
}

/// What a row there has that is newer than what our row holds.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Newer {
    /// Changes with a place in a stream, to be applied.
    pub(crate) changes: Vec<Change>,
    /// Parts that a repair there wrote: their items are to be read again. Applied as they are, they
    /// could be written over what our stream has not brought yet.
    pub(crate) repaired: Vec<(Part, String)>,
}

/// The changes of a row that are newer than what our row holds.
///
/// # Errors
/// As [`changes_of`].
pub(crate) fn newer_changes(
    row: Measurement,
    held: Option<&Versions>,
) -> Result<Newer, NotOfChanges> {
    let versions = row.versions.clone();
    let mut newer = Newer::default();
    for change in changes_of(row)? {
        if !is_newer(&versions, change.part, held) {
            continue;
        }
        if is_image(Some(change.version.as_str())) {
            newer.repaired.push((change.part, change.session_id));
        } else {
            newer.changes.push(change);
        }
    }
    Ok(newer)
}

/// Whether some part changed after this time, or nobody knows when it did. A part that was never
/// seen did not change.
pub(crate) fn changed_after(
    since: OffsetDateTime,
    versions: &Versions,
    changed_at: &PerPart<Option<OffsetDateTime>>,
) -> bool {
    Part::ALL.into_iter().any(|part| {
        versions[part].is_some() && changed_at[part].is_none_or(|changed_at| changed_at > since)
    })
}

#[cfg(test)]
mod tests {
    use projector::measurement::{Measurement, Versions};
    use projector::part::{Part, PerPart};
    use time::OffsetDateTime;

    use super::{changed_after, newer_changes, newer_parts};

    fn version(number: u32) -> String {
        format!("L/{number:040}")
    }

    fn versions(numbers: [Option<u32>; 3]) -> Versions {
        numbers.map(|number| number.map(version)).into()
    }

    #[test]
    fn only_a_greater_version_is_newer() {
        let theirs = versions([Some(2), Some(2), None]);
        let cases = [
            (None, 2),
            (Some([None, None, None]), 2),
            (Some([Some(1), Some(2), Some(3)]), 1),
            (Some([Some(2), Some(3), None]), 0),
        ];
        for (held, newer) in cases {
            let held = held.map(versions);
            assert_eq!(newer_parts(&theirs, held.as_ref()), newer, "{held:?}");
            let row = Measurement {
                session_id: "s1".to_owned(),
                documents: PerPart::default(),
                versions: theirs.clone(),
                changed_at: PerPart::default(),
            };
            let changes = newer_changes(row, held.as_ref()).expect("changes");
            assert_eq!(changes.changes.len() as u64, newer, "{held:?}");
        }
    }

    #[test]
    fn a_part_counts_as_changed_if_it_has_no_time_and_not_if_it_was_never_seen() {
        let at = |seconds| Some(OffsetDateTime::from_unix_timestamp(seconds).expect("a time"));
        let since = at(100).expect("a time");
        let seen = versions([Some(1), Some(1), None]);
        assert!(!changed_after(since, &seen, &[at(100), at(99), None].into()));
        assert!(changed_after(since, &seen, &[at(101), at(99), None].into()));
        assert!(changed_after(since, &seen, &[at(1), None, None].into()));
        assert!(!changed_after(since, &versions([None; 3]), &PerPart::default()));
    }

    #[test]
    fn what_a_repair_wrote_is_named_and_not_applied() {
        // A label may have a plus sign, too.
        let label = format!("+1/{:040}", 1);
        let repaired = version(1) + "+1795334400000000";
        let row = Measurement {
            session_id: "s1".to_owned(),
            documents: PerPart::default(),
            versions: PerPart::from([Some(label), Some(repaired), None]),
            changed_at: PerPart::default(),
        };
        let newer = newer_changes(row, None).expect("changes");
        assert_eq!(newer.repaired, [(Part::Left, "s1".to_owned())]);
        let parts: Vec<Part> = newer.changes.iter().map(|change| change.part).collect();
        assert_eq!(parts, [Part::Session]);
    }
}
