//! The object of the row, and its writers: each step is one call, and the decision is the
//! projector's own.

use projector::apply::{Decision, decide};
use projector::archive::{Condition, Described, Seen};
use projector::config::ArchiveObjects;
use projector::measurement::Versions;
use projector::object::FORMAT;

use super::database::Row;
use super::rules::{Rules, Ver};
use super::search::Problem;

/// What the bucket holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Object {
    pub(super) version: Ver,
    pub(super) content: u8,
}

/// Where a writer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Writer {
    Start,
    /// It has read the row.
    Row {
        version: Ver,
        content: u8,
    },
    /// It has asked for the object, too.
    Head {
        version: Ver,
        content: u8,
        seen: Option<Object>,
    },
}

/// A step of a writer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wrote {
    NoRow,
    ReadsRow,
    UpToDate,
    Head,
    Put,
    LostTheRace,
}

impl From<&Row> for Object {
    fn from(row: &Row) -> Self {
        Self { version: row.version, content: row.content }
    }
}

/// The versions of a row or an object that has one part.
fn versions(version: Ver) -> Versions {
    [version.text().map(str::to_owned), None, None].into()
}

/// What a HEAD sees. An ETag is one of the body, which holds the version and the content.
fn head(object: Object) -> Seen {
    let Object { version, content } = object;
    Seen {
        etag: Some(format!("{}.{}.{content}", version.sequence, version.repair)),
        described: Some(Described { versions: versions(version), format: FORMAT }),
    }
}

/// Whether a row has an object that is up to date.
pub(super) fn is_up_to_date(object: Option<Object>, row: Ver) -> bool {
    decide(object.map(head).as_ref(), &versions(row), ArchiveObjects::Every) == Decision::UpToDate
}

/// Whether the object is as it was when a writer saw it, by the condition of the PUT.
fn condition_holds(seen: Option<Object>, row: Ver, object: Option<Object>) -> bool {
    let seen = seen.map(head);
    let etag = object.and_then(|object| head(object).etag);
    match decide(seen.as_ref(), &versions(row), ArchiveObjects::Every) {
        Decision::Put(Condition::Absent) => etag.is_none(),
        Decision::Put(Condition::Matches(expected)) => etag.as_deref() == Some(expected),
        other => panic!("{other:?} is decided of one part whose metadata is there"),
    }
}

/// One step of a writer, what it is then, `None` if it has ended, and the object.
pub(super) fn step(
    rules: &Rules,
    writer: Writer,
    row: Row,
    object: Option<Object>,
) -> (Wrote, Option<Writer>, Option<Object>) {
    match writer {
        Writer::Start if row.version == Ver::default() => (Wrote::NoRow, None, object),
        Writer::Start => {
            let Row { version, content, .. } = row;
            (Wrote::ReadsRow, Some(Writer::Row { version, content }), object)
        }
        Writer::Row { version, .. } if is_up_to_date(object, version) => {
            (Wrote::UpToDate, None, object)
        }
        Writer::Row { version, content } => {
            (Wrote::Head, Some(Writer::Head { version, content, seen: object }), object)
        }
        Writer::Head { version, content, seen } => {
            if !rules.conditional || condition_holds(seen, version, object) {
                (Wrote::Put, None, Some(Object { version, content }))
            } else {
                (Wrote::LostTheRace, Some(Writer::Start), object)
            }
        }
    }
}

/// What is wrong with a PUT.
pub(super) fn judge(before: Option<Object>, after: Option<Object>) -> Option<Problem> {
    let (before, after) = before.zip(after)?;
    before.version.is_newer_than(after.version).then_some(Problem::ObjectWentBack)
}
