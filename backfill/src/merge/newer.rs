//! What another side knows better than we do, by versions alone. Pure.

use projector::change::Change;
use projector::measurement::{Measurement, Versions};
use projector::part::{Part, PerPart};
use projector::stored::{NotOfChanges, changes_of};
use projector::version::without_repair;
use time::OffsetDateTime;

/// How many parts are newer there than what our row holds.
pub(crate) fn newer_parts(theirs: &Versions, held: Option<&Versions>) -> u64 {
    Part::ALL.into_iter().filter(|part| is_newer(theirs, *part, held)).count() as u64
}

fn is_newer(theirs: &Versions, part: Part, held: Option<&Versions>) -> bool {
    theirs[part] > held.and_then(|held| held[part].clone())
}

/// The changes of a row that are newer than what our row holds.
///
/// # Errors
/// As [`changes_of`].
pub(crate) fn newer_changes(
    row: Measurement,
    held: Option<&Versions>,
) -> Result<Vec<Change>, NotOfChanges> {
    let versions = row.versions.clone();
    let mut changes = changes_of(row)?;
    changes.retain(|change| is_newer(&versions, change.part, held));
    Ok(changes)
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

/// A repair has written this session: its version says so.
#[derive(Debug, thiserror::Error)]
#[error(
    "the other side has had a repair: session {session_id:?} has the version {version:?}. Merging \
     repaired versions is not supported by this version of backfill; every session before it is \
     merged, and nothing written is harmful"
)]
pub(crate) struct Repaired {
    session_id: String,
    version: String,
}

/// Refuses versions of a repair: they may be merged only once the stream has been read past the
/// repair, and then count as a repair here.
///
/// # Errors
/// [`Repaired`] for the first part that has one.
pub(crate) fn refuse_repaired(session_id: &str, versions: &Versions) -> Result<(), Repaired> {
    let repaired = |version: &&String| without_repair(version) != version.as_str();
    match versions.values().flatten().find(repaired) {
        None => Ok(()),
        Some(version) => {
            Err(Repaired { session_id: session_id.to_owned(), version: version.clone() })
        }
    }
}

#[cfg(test)]
mod tests {
    use projector::measurement::{Measurement, Versions};
    use projector::part::PerPart;
    use time::OffsetDateTime;

    use super::{changed_after, newer_changes, newer_parts, refuse_repaired};

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
            assert_eq!(changes.len() as u64, newer, "{held:?}");
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
    fn a_repaired_version_is_refused_by_name() {
        refuse_repaired("s1", &versions([Some(1), None, None])).expect("no repair");
        // A label may have a plus sign, too.
        let label = PerPart::from([Some(format!("+1/{:040}", 1)), None, None]);
        refuse_repaired("s1", &label).expect("no repair");
        let repaired = PerPart::from([None, Some(version(1) + "+1795334400000000"), None]);
        let error = refuse_repaired("s1", &repaired).expect_err("a repair").to_string();
        assert!(error.contains("\"s1\"") && error.contains("+1795334400000000"), "{error}");
    }
}
