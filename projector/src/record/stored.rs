//! A row, or the row that an object holds → the changes that made it. Pure.
//!
//! A row keeps the version of each part, so what another database holds is a patch like any other:
//! applied here, it wins only if it is newer.

use crate::change::{Change, Malformed, require_session_id};
use crate::measurement::Measurement;
use crate::part::Part;
use crate::version::{Version, VersionError};

/// Why a row is not made of changes.
#[derive(Debug, thiserror::Error)]
pub enum NotOfChanges {
    /// The key is none of a session.
    #[error(transparent)]
    SessionId(Malformed),
    /// The version of a part is none.
    #[error("its {part} part: {reason}")]
    Version {
        /// `session`, `left` or `right`.
        part: &'static str,
        /// What is wrong with it.
        reason: VersionError,
    },
    /// A part has values, and nothing says of which change.
    #[error("its {0} part has values and no version")]
    NoVersion(&'static str),
}

/// The changes of a row, one for each part that has a version; a part that is not there any more is
/// a removal. Applied to an empty database they give the same row.
///
/// A removal by time to live looks like any other here: whether it was to be applied was decided
/// when its record came.
///
/// # Errors
/// [`NotOfChanges`] if this or a newer projector never wrote such a row.
pub fn changes_of(row: Measurement) -> Result<Vec<Change>, NotOfChanges> {
    let Measurement { session_id, mut documents, versions, changed_at } = row;
    require_session_id(&session_id).map_err(NotOfChanges::SessionId)?;
    let mut changes = Vec::with_capacity(Part::ALL.len());
    for part in Part::ALL {
        let document = documents[part].take();
        let Some(version) = &versions[part] else {
            if document.is_some() {
                return Err(NotOfChanges::NoVersion(part.name()));
            }
            continue;
        };
        let version = Version::parse(version)
            .map_err(|reason| NotOfChanges::Version { part: part.name(), reason })?;
        changes.push(Change {
            session_id: session_id.clone(),
            part,
            version,
            changed_at: changed_at[part],
            document,
            inserted: false,
            expired: false,
        });
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::OffsetDateTime;

    use super::{NotOfChanges, changes_of};
    use crate::fold::{IndexedChange, fold};
    use crate::measurement::{Measurement, Value};
    use crate::part::{Part, PerPart};
    use crate::version::SEQUENCE_DIGITS;

    /// What an empty database holds after these changes: what the upsert does, told by `fold`
    /// alone.
    fn applied(session_id: &str, arrivals: &[IndexedChange]) -> Measurement {
        let mut row = Measurement {
            session_id: session_id.to_owned(),
            documents: PerPart::default(),
            versions: PerPart::default(),
            changed_at: PerPart::default(),
        };
        for session in fold(arrivals) {
            assert_eq!(session.session_id, session_id);
            for change in Part::ALL.into_iter().filter_map(|part| session.patch[part]) {
                row.documents[change.part].clone_from(&change.document);
                row.versions[change.part] = Some(change.version.as_str().to_owned());
                row.changed_at[change.part] = change.changed_at;
            }
        }
        row
    }

    type OfPart = Option<(String, Option<i64>, Option<u8>)>;

    fn row(session_id: String, parts: [OfPart; 3]) -> Measurement {
        let parts = PerPart::from(parts);
        let document = |part: Part, fill: u8| {
            let fields = part.fields().iter();
            let value = |field: &crate::measurement::Field| {
                (field.required || fill.is_multiple_of(2)).then(|| Value::Bytes(vec![fill; 3]))
            };
            fields.map(value).collect()
        };
        Measurement {
            session_id,
            documents: PerPart::from_fn(|part| {
                parts[part].as_ref().and_then(|(_, _, fill)| Some(document(part, (*fill)?)))
            }),
            versions: PerPart::from_fn(|part| {
                parts[part].as_ref().map(|(version, ..)| version.clone())
            }),
            changed_at: PerPart::from_fn(|part| {
                let seconds = parts[part].as_ref().and_then(|(_, at, _)| *at)?;
                Some(OffsetDateTime::from_unix_timestamp(seconds).expect("a time"))
            }),
        }
    }

    fn part() -> impl Strategy<Value = OfPart> {
        let repair = prop::option::of("\\+[0-9]{16}");
        let version =
            ("[0-9T:.-]{1,23}", "[0-9]{40}", repair).prop_map(|(label, number, repair)| {
                format!("{label}/{number}{}", repair.unwrap_or_default())
            });
        prop::option::of((
            version,
            prop::option::of(0..4_000_000_000_i64),
            prop::option::of(any::<u8>()),
        ))
    }

    proptest! {
        #[test]
        fn the_changes_of_a_row_give_the_same_row(
            session_id in "[A-Za-z0-9][A-Za-z0-9._-]{0,20}", parts in prop::array::uniform3(part()),
        ) {
            let row = row(session_id.clone(), parts);
            let changes = changes_of(row.clone()).expect("changes");
            let named = row.versions.values().flatten().count();
            prop_assert_eq!(changes.len(), named);
            // In whatever order they come.
            let numbered = changes.into_iter().rev().enumerate();
            let arrivals: Vec<_> =
                numbered.map(|(record_index, change)| IndexedChange { record_index, change }).collect();
            prop_assert_eq!(applied(&session_id, &arrivals), row);
        }
    }

    #[test]
    fn what_no_projector_writes_is_refused_by_name() {
        let version = format!("L/{:0width$}", 7, width = SEQUENCE_DIGITS);
        let good = || row("s1".to_owned(), [Some((version.clone(), None, Some(1))), None, None]);
        assert_eq!(changes_of(good()).expect("changes").len(), 1);
        let key = Measurement { session_id: "../s1".to_owned(), ..good() };
        let refused = changes_of(key).expect_err("no key of ours");
        assert!(matches!(refused, NotOfChanges::SessionId(_)), "{refused}");
        let versions = PerPart::from([None, Some("L/7".to_owned()), None]);
        let refused = changes_of(Measurement { versions, ..good() }).expect_err("no version");
        assert!(matches!(refused, NotOfChanges::NoVersion("session")), "{refused}");
        let versions = PerPart::from([Some("L/7".to_owned()), None, None]);
        let refused = changes_of(Measurement { versions, ..good() }).expect_err("no version");
        assert!(matches!(refused, NotOfChanges::Version { part: "session", .. }), "{refused}");
    }
}
