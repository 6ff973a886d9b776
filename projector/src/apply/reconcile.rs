//! The object of a session is its row, and never an older one.
//!
//! Two invocations can commit in one order and PUT in the other. So no PUT is unconditional: a new
//! row's goes out with `If-None-Match: *` at once; any other after a HEAD, with the ETag that it
//! saw, or with `If-None-Match: *` if it saw none. Whoever loses the race reads the row again and
//! compares again. An object is never deleted here: a removed session's becomes a tombstone,
//! because an older PUT still in flight would bring a deleted one back.
//!
//! With `ARCHIVE_OBJECTS=complete` an object is first written once its row has a version of each
//! part ([`wants_object`]); from then on it follows its row.
//!
//! [`decide`] is the whole decision, and pure; [`reconcile`] is the loop around it that asks and
//! writes.

use std::time::Duration;

use crate::archive::{Archive, Condition, Described, Put, Seen};
use crate::config::ArchiveObjects;
use crate::database::Database;
use crate::deadline::Deadline;
use crate::error::Error;
use crate::fold::Patch;
use crate::measurement::{Measurement, Versions};
use crate::object::{self, FORMAT};
use crate::read_model::{self, Held, Upserted};

/// How often one object is compared and written at most, while others write it too.
const TRIES: u32 = 8;

/// What became of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reconciled {
    /// It was written.
    Written,
    /// It held the row, or something newer, already.
    UpToDate,
    /// It is not there, and not wanted yet.
    NotYet,
}

/// What to do about an object, given what a HEAD saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision<'a> {
    /// It holds at least the row.
    UpToDate,
    /// It is not there, and the row has not had all of its parts: none is wanted yet.
    NotYet,
    /// It is not there, or holds less than the row: write the row.
    Put(Condition<'a>),
    /// It holds some part better, because the projector of another database writes it too: the
    /// newer of each part.
    Merge(&'a str),
    /// It does not say what it holds. Its body may: a bucket that was restored by download and
    /// upload has lost the metadata.
    ReadBody(&'a str),
    /// It holds some part better, in a form that this version cannot read.
    ForeignFormat,
    /// It cannot be written conditionally now.
    AskAgain,
}

/// Whether an object that is not there is wanted for a row with these versions.
///
/// With `complete` it is once the row has a version of each part. A part that was removed counts,
/// although such a row is not complete: it may have been, and a PUT from that time may still be in
/// flight, sent by a process that is gone. Nothing but an object that is there keeps that PUT out.
/// Versions only grow, so a row that wants an object wants it for good. No PUT of an older row can
/// therefore arrive after somebody found that none is wanted yet.
#[must_use]
pub fn wants_object(row: &Versions, objects: ArchiveObjects) -> bool {
    objects == ArchiveObjects::Every || row.values().all(Option::is_some)
}

/// Decides what to do about the object of a row with these versions.
#[must_use]
pub fn decide<'a>(seen: Option<&'a Seen>, row: &Versions, objects: ArchiveObjects) -> Decision<'a> {
    let Some(seen) = seen else {
        return if wants_object(row, objects) {
            Decision::Put(Condition::Absent)
        } else {
            Decision::NotYet
        };
    };
    let Some(etag) = seen.etag.as_deref() else { return Decision::AskAgain };
    let Some(Described { versions, format }) = &seen.described else {
        return Decision::ReadBody(etag);
    };
    if object::dominates(versions, row) && *format >= FORMAT {
        Decision::UpToDate
    } else if object::dominates(row, versions) {
        Decision::Put(Condition::Matches(etag))
    } else if *format == FORMAT {
        Decision::Merge(etag)
    } else if object::dominates(versions, row) {
        // Of another format, and newer: not ours to take back.
        Decision::UpToDate
    } else {
        Decision::ForeignFormat
    }
}

/// What is known of a row and its object before the first comparison; nothing, if it is not said.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// There is probably no object, because the row or one of its parts is new; if that is wrong,
    /// the conditional PUT says so.
    no_object: bool,
    /// The row.
    row: Option<Box<Measurement>>,
    /// The versions that the row had when it was read. If it has moved on since, the invocation
    /// that moved it writes the object.
    versions: Option<Versions>,
}

impl From<Versions> for Known {
    /// A row that was read with these versions.
    fn from(versions: Versions) -> Self {
        Self { versions: Some(versions), ..Self::default() }
    }
}

impl From<Upserted> for Known {
    fn from(upserted: Upserted) -> Self {
        match upserted {
            Upserted::Unchanged(versions) => Self::from(versions),
            Upserted::Written { inserted, held } => {
                let (row, versions) = match held {
                    Held::Row(row) => (Some(row), None),
                    // It is too large to have come with the others.
                    Held::Versions(versions) => (None, Some(versions)),
                    Held::AtLeastPatch => (None, None),
                };
                Self { no_object: inserted, row, versions }
            }
        }
    }
}

impl Known {
    /// What the upsert of this patch tells. With `complete`, the item that makes a row complete is
    /// new in most cases, and then the row has no object yet.
    #[must_use]
    pub fn of(upserted: Upserted, patch: &Patch<'_>, objects: ArchiveObjects) -> Self {
        let written = matches!(upserted, Upserted::Written { .. });
        let is_new = patch.values().flatten().any(|change| change.inserted);
        let mut known = Self::from(upserted);
        known.no_object |= objects == ArchiveObjects::Complete && written && is_new;
        known
    }

    /// A row as it was read. `no_object`: there is probably none.
    #[must_use]
    pub fn read(no_object: bool, held: Held) -> Self {
        Self::from(Upserted::Written { inserted: no_object, held })
    }

    /// Whether the first PUT may go out without a HEAD. If no object is wanted for the row, one
    /// that is there must be found.
    fn guesses(&self, objects: ArchiveObjects) -> bool {
        let versions = self.row.as_ref().map(|row| &row.versions).or(self.versions.as_ref());
        let wanted = versions
            .map_or(objects == ArchiveObjects::Every, |versions| wants_object(versions, objects));
        self.no_object && wanted
    }
}

/// Reconciles the object of one session with its row: writes it, or finds it up to date.
///
/// # Errors
/// [`Error::Archive`], [`Error::NoBucket`] or [`Error::Contended`], and those of reading the row.
pub async fn reconcile(
    database: &Database,
    archive: &Archive,
    session_id: &str,
    mut known: Known,
    deadline: Deadline,
) -> Result<Reconciled, Error> {
    let _permit = archive.permit().await;
    let key = archive.key(session_id);
    let mut guess = known.guesses(archive.objects());
    for tries in 1..=TRIES {
        let guessed = std::mem::take(&mut guess);
        let seen = if guessed { None } else { archive.head(&key).await? };
        if let Some(versions) = known.versions.take() {
            match decide(seen.as_ref(), &versions, archive.objects()) {
                Decision::UpToDate => return Ok(Reconciled::UpToDate),
                Decision::NotYet => return Ok(Reconciled::NotYet),
                _ => {}
            }
        }
        let row = known.row.take();
        if let Some(done) =
            try_once(database, archive, session_id, row, seen.as_ref(), deadline).await?
        {
            return Ok(done);
        }
        // The object was there all the time, or others are writing it.
        if !guessed {
            let pause_ms = fastrand::u64(5..25) << tries;
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        }
    }
    Err(archive.contended(&key, TRIES))
}

/// Compares the row, which is read if it is not known, with what a HEAD saw, and does what
/// [`decide`] says. `None` if somebody else has written the object meanwhile.
async fn try_once(
    database: &Database,
    archive: &Archive,
    session_id: &str,
    row: Option<Box<Measurement>>,
    seen: Option<&Seen>,
    deadline: Deadline,
) -> Result<Option<Reconciled>, Error> {
    let key = archive.key(session_id);
    // How large a row or an object is shows when it is here.
    let (row, large) = match row {
        Some(row) => (*row, None),
        None => {
            let large = archive.permit_for_large().await;
            (read_model::read(database, session_id, deadline).await?, Some(large))
        }
    };
    let put = match decide(seen, &row.versions, archive.objects()) {
        Decision::UpToDate => return Ok(Some(Reconciled::UpToDate)),
        Decision::NotYet => return Ok(Some(Reconciled::NotYet)),
        Decision::Put(condition) => {
            let _large = large.filter(|_| Archive::is_large(&row));
            archive.put(&key, &row, &condition).await?
        }
        Decision::Merge(etag) | Decision::ReadBody(etag) => {
            let _large = match large {
                Some(large) => large,
                None => archive.permit_for_large().await,
            };
            merge(archive, &key, etag, row, seen).await?
        }
        Decision::ForeignFormat => return Err(archive.foreign_format(&key)),
        Decision::AskAgain => Put::Lost,
    };
    Ok((put == Put::Done).then_some(Reconciled::Written))
}

/// What is the matter with an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It holds the row, or something newer.
    UpToDate,
    /// It is not there, and not wanted yet.
    NotYet,
    /// It is not there.
    Missing,
    /// It holds less than the row, at least in one part, or does not say what it holds.
    Behind,
}

/// Compares the object of a row that was read with these versions, and writes nothing: for
/// `backfill objects --dry-run`.
///
/// # Errors
/// [`Error::Archive`], [`Error::NoBucket`] or [`Error::Contended`].
pub async fn look_at_object(
    archive: &Archive,
    session_id: &str,
    versions: &Versions,
) -> Result<Found, Error> {
    let _permit = archive.permit().await;
    let key = archive.key(session_id);
    let seen = archive.head(&key).await?;
    match decide(seen.as_ref(), versions, archive.objects()) {
        Decision::UpToDate => Ok(Found::UpToDate),
        Decision::NotYet => Ok(Found::NotYet),
        Decision::Put(Condition::Absent) => Ok(Found::Missing),
        Decision::Put(Condition::Matches(_)) | Decision::Merge(_) | Decision::ReadBody(_) => {
            Ok(Found::Behind)
        }
        Decision::ForeignFormat => Err(archive.foreign_format(&key)),
        Decision::AskAgain => Err(archive.contended(&key, 1)),
    }
}

/// The versions that the object of a session says it holds; `None` if there is no object. One
/// without our metadata is read: its body says it.
///
/// # Errors
/// [`Error::Archive`] or [`Error::NoBucket`]; also if the object is none of ours, or was written
/// again and again meanwhile.
pub async fn object_versions(
    archive: &Archive,
    session_id: &str,
) -> Result<Option<Versions>, Error> {
    let _permit = archive.permit().await;
    let key = archive.key(session_id);
    for _ in 1..=TRIES {
        let Some(seen) = archive.head(&key).await? else { return Ok(None) };
        if let Some(Described { versions, .. }) = seen.described {
            return Ok(Some(versions));
        }
        let _large = archive.permit_for_large().await;
        let etag = seen.etag.as_deref().unwrap_or_default();
        if let Some((body, _)) = archive.get(&key, etag).await? {
            let versions = object::versions_of(&body);
            return versions.map_err(|error| archive.unreadable(&key, error));
        }
    }
    Err(archive.contended(&key, TRIES))
}

/// Writes the newer of each part of the row and of the object with this ETag.
async fn merge(
    archive: &Archive,
    key: &str,
    etag: &str,
    row: Measurement,
    seen: Option<&Seen>,
) -> Result<Put, Error> {
    let Some((body, metadata)) = archive.get(key, etag).await? else { return Ok(Put::Lost) };
    let described = seen.is_some_and(|seen| seen.described.is_some());
    let merged = match object::parse(&body, metadata.as_ref()) {
        Ok(other) if other.session_id == row.session_id => object::join(row, other),
        Ok(_) => return Err(archive.unreadable(key, "it is the object of another session")),
        Err(error) if described => return Err(archive.unreadable(key, error)),
        // Of another version of ours, or not ours: JSON says at least which versions it holds, if
        // any.
        Err(_) => match object::versions_of(&body) {
            Ok(Some(versions)) if !object::dominates(&row.versions, &versions) => {
                return Err(archive.foreign_format(key));
            }
            Ok(_) => row,
            Err(error) => return Err(archive.unreadable(key, error)),
        },
    };
    drop(body);
    archive.put(key, &merged, &Condition::Matches(etag)).await
}

#[cfg(test)]
mod tests {
    use super::{Decision, Known, decide};
    use crate::archive::{Condition, Described, Seen};
    use crate::change::Change;
    use crate::config::ArchiveObjects;
    use crate::measurement::{Measurement, Versions};
    use crate::object::FORMAT;
    use crate::part::{Part, PerPart};
    use crate::read_model::{Held, Upserted};
    use crate::version::Version;

    fn versions(parts: [u8; 3]) -> Versions {
        parts.map(|part| (part > 0).then(|| format!("l/{part}"))).into()
    }

    fn seen(described: Option<([u8; 3], u32)>) -> Seen {
        let described =
            described.map(|(parts, format)| Described { versions: versions(parts), format });
        Seen { etag: Some("e".to_owned()), described }
    }

    #[test]
    fn an_object_is_written_only_where_it_holds_less_than_the_row() {
        let row = versions([2, 2, 0]);
        let put = Decision::Put(Condition::Matches("e"));
        let newer = FORMAT + 1;
        let cases = [
            (Some(([2, 2, 0], FORMAT)), Decision::UpToDate),
            (Some(([3, 2, 1], FORMAT)), Decision::UpToDate),
            (Some(([2, 2, 0], newer)), Decision::UpToDate),
            (Some(([3, 3, 0], newer)), Decision::UpToDate),
            (Some(([1, 2, 0], FORMAT)), put.clone()),
            (Some(([0, 0, 0], FORMAT)), put.clone()),
            (Some(([1, 2, 0], newer)), put.clone()),
            // An older form of the same is written anew; a newer row in it is left alone.
            (Some(([2, 2, 0], 0)), put),
            (Some(([3, 2, 0], 0)), Decision::UpToDate),
            (Some(([3, 1, 0], FORMAT)), Decision::Merge("e")),
            (Some(([2, 1, 1], FORMAT)), Decision::Merge("e")),
            (Some(([3, 1, 0], newer)), Decision::ForeignFormat),
            (Some(([3, 1, 0], 0)), Decision::ForeignFormat),
            (None, Decision::ReadBody("e")),
        ];
        // An object that is there follows its row in both modes, also a row that lacks a part.
        for objects in [ArchiveObjects::Every, ArchiveObjects::Complete] {
            for (described, expected) in &cases {
                let seen = seen(*described);
                assert_eq!(decide(Some(&seen), &row, objects), *expected, "{described:?}");
            }
            let without_etag = Seen { etag: None, described: None };
            assert_eq!(decide(Some(&without_etag), &row, objects), Decision::AskAgain);
        }
    }

    #[test]
    fn an_object_that_is_not_there_is_wanted_from_the_first_or_from_the_last_part_on() {
        let put = Decision::Put(Condition::Absent);
        for parts in [[1, 0, 0], [0, 2, 1], [1, 1, 0], [3, 2, 1]] {
            let row = versions(parts);
            assert_eq!(decide(None, &row, ArchiveObjects::Every), put);
            let complete = if parts.contains(&0) { Decision::NotYet } else { put.clone() };
            assert_eq!(decide(None, &row, ArchiveObjects::Complete), complete, "{parts:?}");
        }
    }

    #[test]
    fn a_put_without_a_head_is_tried_only_for_a_row_that_wants_an_object_and_is_likely_new() {
        let change = |inserted| Change {
            session_id: "s1".to_owned(),
            part: Part::Right,
            version: Version::new("l", "3").expect("a version"),
            changed_at: None,
            document: None,
            inserted,
            expired: false,
        };
        let (new, old) = (change(true), change(false));
        let written =
            |inserted, parts| Upserted::Written { inserted, held: Held::Versions(versions(parts)) };
        let guesses = |upserted, change, objects| {
            let patch = [None, None, Some(change)].into();
            Known::of(upserted, &patch, objects).guesses(objects)
        };
        let (every, complete) = (ArchiveObjects::Every, ArchiveObjects::Complete);
        // The row is new.
        assert!(guesses(written(true, [0, 0, 3]), &new, every));
        assert!(!guesses(written(true, [0, 0, 3]), &new, complete));
        assert!(guesses(written(true, [1, 2, 3]), &old, complete));
        // Its last part is.
        assert!(!guesses(written(false, [1, 2, 3]), &new, every));
        assert!(guesses(written(false, [1, 2, 3]), &new, complete));
        assert!(!guesses(written(false, [1, 0, 3]), &new, complete));
        assert!(!guesses(written(false, [1, 2, 3]), &old, complete));
        // A redelivery.
        assert!(!guesses(Upserted::Unchanged(versions([1, 2, 3])), &new, complete));
    }

    #[test]
    fn what_the_upsert_knows_is_not_asked_for_again() {
        let held = versions([1, 2, 0]);
        let row = Box::new(Measurement {
            session_id: "s1".to_owned(),
            documents: PerPart::default(),
            versions: held.clone(),
            changed_at: PerPart::default(),
        });
        let written = |inserted, held| Known::from(Upserted::Written { inserted, held });
        let known = |no_object, row| Known { no_object, row, versions: None };
        let of_row = || Held::Row(row.clone());
        assert_eq!(written(true, of_row()), known(true, Some(row.clone())));
        assert_eq!(written(false, of_row()), known(false, Some(row.clone())));
        let large = Known { versions: Some(held.clone()), ..known(true, None) };
        assert_eq!(written(true, Held::Versions(held.clone())), large);
        assert_eq!(written(false, Held::AtLeastPatch), known(false, None));
        let unchanged = Known::from(Upserted::Unchanged(held.clone()));
        assert_eq!(unchanged, Known { versions: Some(held), ..Known::default() });
    }
}
