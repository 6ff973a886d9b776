//! PostgreSQL: the guarded upsert of a folded batch, and the reading of rows.

mod statement;
mod unmoved;

use std::collections::{HashMap, HashSet};

use sqlx::Arguments as _;
use sqlx::Row as _;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgRow};
use time::OffsetDateTime;

pub use self::unmoved::upsert_unmoved;
use crate::bind;
use crate::database::{Database, Lease};
use crate::deadline::Deadline;
use crate::error::Error;
use crate::fold::{Patch, SessionChanges};
use crate::measurement::{COLUMNS, ColumnKind, Document, Measurement, Value, Versions};
use crate::part::{Part, PerPart};
use crate::pending_objects;

/// What comes back of the rows that were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Returned {
    /// No more than which they are.
    Nothing,
    /// The same; and every session of the statement, written or not, is kept in `pending_objects`.
    PendingObjects,
    /// The rows, of a large one only its versions.
    SmallRows,
    /// The rows, each whole.
    Rows,
}

/// What a written row was seen to hold.
#[derive(Debug)]
pub enum Held {
    /// The whole row. Boxed: most sessions of a replay have none.
    Row(Box<Measurement>),
    /// Its versions alone: it is too large to come with others, or it holds a part of a later
    /// stream.
    Versions(Versions),
    /// Not looked at, because there is no archive. The row holds the patch; any part that differs
    /// is newer.
    AtLeastPatch,
}

/// What the upsert made of one session of the batch.
#[derive(Debug)]
pub enum Upserted {
    /// The row was written. If rows were asked for, it was seen to hold at least the patch.
    Written {
        /// Whether the row is known to be new; not where rows were not asked for.
        inserted: bool,
        /// The row as it is now.
        held: Held,
    },
    /// Nothing was newer than what the row holds: these versions, each at least the patch's.
    Unchanged(Versions),
}

impl Upserted {
    /// The versions that the row was seen to hold, if it was looked at.
    #[must_use]
    pub fn versions(&self) -> Option<&Versions> {
        match self {
            Self::Written { held: Held::Row(row), .. } => Some(&row.versions),
            Self::Written { held: Held::Versions(versions), .. } | Self::Unchanged(versions) => {
                Some(versions)
            }
            Self::Written { held: Held::AtLeastPatch, .. } => None,
        }
    }
}

/// Writes what is newer than the rows, in one statement and one transaction.
///
/// With `ask_first` the versions that the rows hold are asked for before, and only the sessions
/// with something newer are sent. Use it if most rows are expected to hold the changes already, as
/// in a replay: then hardly any values are sent. Without it, the versions are asked for afterwards,
/// for the sessions that were not written.
///
/// `sessions` are sorted by `session_id`, without repetition, as [`crate::fold::fold`] gives them.
/// The answer has one entry per session, in the same order; `None` where the row stays older than
/// the patch, because something in the database keeps it from being written: a trigger, a rule.
/// (One that writes older versions than were sent is noticed only if rows come back.)
///
/// # Errors
/// As [`Database::fetch`]. If the server was lost in mid-statement it may have committed anyway;
/// the redelivery finds out.
pub async fn upsert(
    lease: &Lease<'_>,
    sessions: &[SessionChanges<'_>],
    returned: Returned,
    ask_first: bool,
) -> Result<Vec<Option<Upserted>>, Error> {
    let mut upserted: Vec<Option<Upserted>> = sessions.iter().map(|_| None).collect();
    if ask_first {
        ask(lease, sessions, &mut upserted).await?;
        if returned == Returned::PendingObjects {
            let unchanged =
                sessions.iter().zip(&upserted).filter(|(_, upserted)| upserted.is_some());
            let keys: Vec<&str> = unchanged.map(|(session, _)| session.session_id).collect();
            pending_objects::keep(lease, &keys).await?;
        }
    }
    write(lease, sessions, returned, &mut upserted).await?;
    // Asked for after the statement: whoever kept it from writing a row has committed by now.
    ask(lease, sessions, &mut upserted).await?;
    Ok(upserted)
}

/// Marks as unchanged each pending session whose row already has every version in its patch.
async fn ask(
    lease: &Lease<'_>,
    sessions: &[SessionChanges<'_>],
    upserted: &mut [Option<Upserted>],
) -> Result<(), Error> {
    let open = sessions.iter().zip(&*upserted).filter(|(_, upserted)| upserted.is_none());
    let keys: Vec<&str> = open.map(|(session, _)| session.session_id).collect();
    if keys.is_empty() {
        return Ok(());
    }
    let arguments = bind![keys.as_slice()];
    let rows = lease.fetch(&statement::VERSIONS, arguments).await?;
    mark(sessions, &rows, upserted, Upserted::Unchanged)
}

/// Marks each session that the arrays of an answer name, and whose versions there are at least its
/// patch.
fn mark(
    sessions: &[SessionChanges<'_>],
    rows: &[PgRow],
    upserted: &mut [Option<Upserted>],
    marked: impl Fn(Versions) -> Upserted,
) -> Result<(), Error> {
    for (session_id, held) in found_versions(rows).map_err(Error::Database)? {
        if let Some(place) = place_of(sessions, &session_id)
            && !row_is_behind(&sessions[place].patch, &held.as_deref())
        {
            upserted[place] = Some(marked(held));
        }
    }
    Ok(())
}

/// The sessions that the arrays of an answer name, and their versions.
fn found_versions(rows: &[PgRow]) -> Result<Vec<(String, Versions)>, sqlx::Error> {
    let mut found = Vec::new();
    for row in rows {
        let (keys, versions) = versions(row)?;
        let mut versions = versions.map(Vec::into_iter);
        for session_id in keys {
            // The arrays are equally long.
            let held = Versions::from_fn(|part| versions[part].next().flatten());
            found.push((session_id, held));
        }
    }
    Ok(found)
}

/// The keys found, and the versions of each part in their order.
type FoundVersions = (Vec<String>, PerPart<Vec<Option<String>>>);

/// Decodes the arrays of the versions; they are NULL where there is none of the rows.
fn versions(row: &PgRow) -> Result<FoundVersions, sqlx::Error> {
    let keys: Option<Vec<String>> = row.try_get(0)?;
    let of_part = |part: Part| {
        row.try_get::<Option<Vec<Option<String>>>, _>(1 + part as usize)
            .map(Option::unwrap_or_default)
    };
    Ok((keys.unwrap_or_default(), PerPart::try_from_fn(of_part)?))
}

/// Which of these sessions have a row that somebody else has locked right now.
///
/// # Errors
/// As [`Database::fetch`].
pub async fn locked(
    lease: &Lease<'_>,
    sessions: &[SessionChanges<'_>],
) -> Result<HashSet<String>, Error> {
    let keys: Vec<String> = sessions.iter().map(|session| session.session_id.to_owned()).collect();
    let arguments = bind![keys.as_slice()];
    let rows = lease.fetch(statement::LOCKED, arguments).await?;
    rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(Error::Database)
}

/// When the changes that rows hold were made, part by part, of these sessions.
///
/// # Errors
/// As [`Database::fetch`].
pub async fn change_times(
    database: &Database,
    session_ids: &[String],
    deadline: Deadline,
) -> Result<HashMap<String, PerPart<Option<OffsetDateTime>>>, Error> {
    let arguments = bind![session_ids];
    let rows = database.fetch(&statement::CHANGE_TIMES, arguments, deadline).await?;
    let times = |row: &PgRow| {
        let times = PerPart::try_from_fn(|part| row.try_get(1 + part as usize))?;
        Ok((row.try_get(0)?, times))
    };
    rows.iter().map(times).collect::<Result<_, _>>().map_err(Error::Database)
}

/// The versions that the rows of these sessions hold; a session without a row has no entry.
///
/// # Errors
/// As [`Database::fetch`].
pub async fn versions_by_key(
    database: &Database,
    session_ids: &[&str],
    deadline: Deadline,
) -> Result<HashMap<String, Versions>, Error> {
    let arguments = bind![session_ids];
    let rows = database.fetch(statement::VERSIONS.as_str(), arguments, deadline).await?;
    Ok(found_versions(&rows).map_err(Error::Database)?.into_iter().collect())
}

fn place_of(sessions: &[SessionChanges<'_>], session_id: &str) -> Option<usize> {
    sessions.binary_search_by(|session| session.session_id.cmp(session_id)).ok()
}

/// Sends the sessions that are open yet, and answers those whose rows were written.
async fn write(
    lease: &Lease<'_>,
    sessions: &[SessionChanges<'_>],
    returned: Returned,
    upserted: &mut [Option<Upserted>],
) -> Result<(), Error> {
    let open = sessions.iter().zip(&*upserted).filter(|(_, upserted)| upserted.is_none());
    let open: Vec<&SessionChanges<'_>> = open.map(|(session, _)| session).collect();
    if open.is_empty() {
        return Ok(());
    }
    if matches!(returned, Returned::Nothing | Returned::PendingObjects) {
        let keeps = returned == Returned::PendingObjects;
        return write_returning_nothing(lease, sessions, &open, keeps, upserted).await;
    }
    let arguments = || {
        let mut arguments = upsert_arguments(&open)?;
        arguments.add(returned == Returned::Rows)?;
        Ok(arguments)
    };
    let rows = lease.fetch(statement::UPSERT_RETURNING_ROWS.as_str(), arguments).await?;
    for row in &rows {
        let session_id = row.try_get(0).map_err(Error::Database)?;
        let inserted = row.try_get(1).map_err(Error::Database)?;
        let versions = versions_of(row).map_err(Error::Database)?;
        // A trigger can write something else than was sent.
        if let Some(place) = place_of(sessions, session_id)
            && !row_is_behind(&sessions[place].patch, &versions)
        {
            let held = match measurement(row)? {
                Some(row) => Held::Row(Box::new(row)),
                None => Held::Versions(versions.map(|version| version.map(str::to_owned))),
            };
            upserted[place] = Some(Upserted::Written { inserted, held });
        }
    }
    Ok(())
}

async fn write_returning_nothing(
    lease: &Lease<'_>,
    sessions: &[SessionChanges<'_>],
    open: &[&SessionChanges<'_>],
    keeps_pending: bool,
    upserted: &mut [Option<Upserted>],
) -> Result<(), Error> {
    let key_mark = pending_objects::new_mark();
    let arguments = || {
        let mut arguments = upsert_arguments(open)?;
        for part in Part::ALL {
            let sent = open.iter().filter_map(|session| session.patch[part]);
            // The character after the one that ends a label.
            let label = sent.map(|change| change.version.label()).min();
            arguments.add(label.map(|label| format!("{label}0")))?;
        }
        if keeps_pending {
            arguments.add(key_mark)?;
        }
        Ok(arguments)
    };
    let sql = if keeps_pending { &statement::UPSERT_PENDING } else { &statement::UPSERT };
    let rows = lease.fetch(sql.as_str(), arguments).await?;
    let mut of_later_stream: Vec<String> = Vec::new();
    for row in &rows {
        // NULL where there is none.
        let written: Option<Vec<String>> = row.try_get(0).map_err(Error::Database)?;
        for session_id in written.unwrap_or_default() {
            if let Some(place) = place_of(sessions, &session_id) {
                let held = Held::AtLeastPatch;
                upserted[place] = Some(Upserted::Written { inserted: false, held });
            }
        }
        let later: Option<Vec<String>> = row.try_get(1).map_err(Error::Database)?;
        of_later_stream.extend(later.unwrap_or_default());
    }
    if of_later_stream.is_empty() {
        return Ok(());
    }
    let keys = bind![of_later_stream.as_slice()];
    let rows = lease.fetch(&statement::VERSIONS, keys).await?;
    let written = |versions| Upserted::Written { inserted: false, held: Held::Versions(versions) };
    mark(sessions, &rows, upserted, written)
}

/// Whether the row is behind the patch: some part of the patch is newer than the version held.
fn row_is_behind(patch: &Patch<'_>, held: &PerPart<Option<&str>>) -> bool {
    Part::ALL.into_iter().any(|part| {
        let version = patch[part].map(|change| change.version.as_str());
        version > held[part]
    })
}

/// The row of one session, whole.
///
/// # Errors
/// [`Error::Database`], or [`Error::RowVanished`] where there is none.
pub async fn read(
    database: &Database,
    session_id: &str,
    deadline: Deadline,
) -> Result<Measurement, Error> {
    let rows = read_by_key(database, &[session_id], deadline).await?;
    rows.into_iter().next().ok_or_else(|| Error::RowVanished(session_id.to_owned()))
}

/// The rows of these sessions, each whole, in no order; a session without a row has none. The
/// caller bounds what they take.
///
/// # Errors
/// As [`Database::fetch`].
pub async fn read_by_key(
    database: &Database,
    session_ids: &[&str],
    deadline: Deadline,
) -> Result<Vec<Measurement>, Error> {
    let arguments = bind![session_ids, true];
    let rows = database.fetch(statement::READ.as_str(), arguments, deadline).await?;
    rows.iter().filter_map(|row| measurement(row).transpose()).collect()
}

/// The rows of these sessions, of a large one only its versions; a session without a row has none.
///
/// # Errors
/// As [`Database::fetch`].
pub async fn read_small(
    database: &Database,
    session_ids: &[&str],
    deadline: Deadline,
) -> Result<HashMap<String, Held>, Error> {
    let arguments = bind![session_ids, false];
    let rows = database.fetch(statement::READ.as_str(), arguments, deadline).await?;
    let held = |row: &PgRow| {
        let held = match measurement_of(row)? {
            Some(row) => Held::Row(Box::new(row)),
            None => Held::Versions(versions_of(row)?.map(|version| version.map(str::to_owned))),
        };
        Ok((row.try_get(0)?, held))
    };
    rows.iter().map(held).collect::<Result<_, _>>().map_err(Error::Database)
}

/// One array a column, in the order of the statement's parameters. Public for the benchmark, whose
/// ceiling sends the same arrays.
///
/// # Errors
/// Where a value cannot be sent.
pub fn upsert_arguments(sessions: &[&SessionChanges<'_>]) -> Result<PgArguments, BoxDynError> {
    let mut arguments = PgArguments::default();
    arguments.add(sessions.iter().map(|session| session.session_id).collect::<Vec<_>>())?;
    for column in COLUMNS.iter() {
        let cells =
            sessions.iter().map(|session| cell(&session.patch, column.part, column.field_index));
        match column.kind {
            ColumnKind::Text | ColumnKind::Millimetres | ColumnKind::Attributes => {
                arguments.add(
                    cells
                        .map(|cell| match cell {
                            Some(Value::Text(text)) => Some(text.as_str()),
                            _ => None,
                        })
                        .collect::<Vec<_>>(),
                )?;
            }
            ColumnKind::Timestamp => {
                arguments.add(
                    cells
                        .map(|cell| match cell {
                            Some(Value::Timestamp(time)) => Some(*time),
                            _ => None,
                        })
                        .collect::<Vec<_>>(),
                )?;
            }
            ColumnKind::Bytes => {
                arguments.add(
                    cells
                        .map(|cell| match cell {
                            Some(Value::Bytes(bytes)) => Some(bytes.as_slice()),
                            _ => None,
                        })
                        .collect::<Vec<_>>(),
                )?;
            }
        }
    }
    for part in Part::ALL {
        let versions = sessions
            .iter()
            .map(|session| session.patch[part].map(|change| change.version.as_str()));
        arguments.add(versions.collect::<Vec<_>>())?;
    }
    for part in Part::ALL {
        let times =
            sessions.iter().map(|session| session.patch[part].and_then(|change| change.changed_at));
        arguments.add(times.collect::<Vec<_>>())?;
    }
    Ok(arguments)
}

fn cell<'a>(patch: &Patch<'a>, part: Part, field_index: usize) -> Option<&'a Value> {
    patch[part]?.document.as_ref()?.get(field_index)?.as_ref()
}

/// Decodes what `row_columns` of the statement selects; `None` where the row is not whole.
fn measurement(row: &PgRow) -> Result<Option<Measurement>, Error> {
    measurement_of(row).map_err(Error::Database)
}

fn measurement_of(row: &PgRow) -> Result<Option<Measurement>, sqlx::Error> {
    if !row.try_get::<bool, _>(statement::WHOLE)? {
        return Ok(None);
    }
    let mut index = statement::WHOLE;
    let mut documents = PerPart::<Option<Document>>::default();
    for part in Part::ALL {
        let mut present = true;
        let mut document = Document::with_capacity(part.fields().len());
        for field in part.fields() {
            index += 1;
            let value = match field.kind {
                ColumnKind::Text | ColumnKind::Millimetres | ColumnKind::Attributes => {
                    row.try_get::<Option<String>, _>(index)?.map(Value::Text)
                }
                ColumnKind::Timestamp => {
                    row.try_get::<Option<OffsetDateTime>, _>(index)?.map(Value::Timestamp)
                }
                ColumnKind::Bytes => row.try_get::<Option<Vec<u8>>, _>(index)?.map(Value::Bytes),
            };
            present &= value.is_some() || !field.required;
            document.push(value);
        }
        documents[part] = present.then_some(document);
    }
    let mut changed_at = PerPart::default();
    for part in Part::ALL {
        index += 1;
        changed_at[part] = row.try_get(index)?;
    }
    Ok(Some(Measurement {
        session_id: row.try_get(0)?,
        documents,
        versions: versions_of(row)?.map(|version| version.map(str::to_owned)),
        changed_at,
    }))
}

/// The versions of a row that `row_columns` of the statement selects, whole or not.
fn versions_of(row: &PgRow) -> Result<PerPart<Option<&str>>, sqlx::Error> {
    PerPart::try_from_fn(|part| row.try_get(statement::FIRST_VERSION + part as usize))
}
