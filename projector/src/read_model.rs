//! PostgreSQL: the guarded upsert of a folded batch, and the reading of rows.

mod statement;

use std::collections::HashMap;

use sqlx::Arguments as _;
use sqlx::Row as _;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgRow};
use time::OffsetDateTime;

use crate::database::Database;
use crate::error::Error;
use crate::fold::{Patch, SessionChanges};
use crate::measurement::{COLUMNS, Document, Kind, Measurement, Part, PerPart, Value, Versions};

/// Up to so many rows are returned whole whatever their size; of more, only the small ones.
const WHOLE_ROWS: usize = 8;

/// What the upsert made of one session of the batch.
#[derive(Debug)]
pub struct Upserted {
    /// The versions that the statement found in the row; all `None` where there was no row.
    pub held: Versions,
    /// What came of the patch.
    pub standing: Standing,
}

/// What came of one patch.
#[derive(Debug)]
pub enum Standing {
    /// The row was written.
    Written {
        /// Whether the row is new.
        inserted: bool,
        /// The row as it is now; `None` where it is too large to be returned along with others, or
        /// where rows were not asked for. Boxed: most sessions of a replay have none.
        row: Option<Box<Measurement>>,
    },
    /// Nothing in the patch was newer than what the row held.
    Held,
    /// The patch was newer than the row when the statement began, and not when it had the row's
    /// lock: another writer committed between. What the row holds now is not known here.
    Overtaken,
}

/// Writes what is newer than the rows, in one statement and one transaction.
///
/// `sessions` are sorted by `session_id`, without repetition, as [`crate::fold::fold`] gives them.
/// The answer has one entry a session, in the same order.
///
/// # Errors
/// [`Error::Database`] or [`Error::DatabaseTimeout`]. Where the server was lost in mid-statement it
/// may have committed all the same; the redelivery finds out.
pub async fn upsert(
    database: &Database,
    sessions: &[SessionChanges<'_>],
    returning_rows: bool,
) -> Result<Vec<Upserted>, Error> {
    let sql = if returning_rows { &statement::UPSERT_RETURNING_ROWS } else { &statement::UPSERT };
    let everything = returning_rows.then_some(sessions.len() <= WHOLE_ROWS);
    let rows = database.fetch(sql.as_str(), || upsert_arguments(sessions, everything)).await?;
    let mut held = HashMap::with_capacity(sessions.len());
    let mut written = HashMap::new();
    for row in &rows {
        let session_id: &str = row.try_get(0).map_err(Error::Database)?;
        match row.try_get(1).map_err(Error::Database)? {
            None => {
                held.insert(session_id.to_owned(), versions(row)?);
            }
            Some(inserted) => {
                let row = if returning_rows { measurement(row)?.map(Box::new) } else { None };
                written.insert(session_id.to_owned(), Standing::Written { inserted, row });
            }
        }
    }
    let upserted = |session: &SessionChanges<'_>| {
        let held = held.remove(session.session_id).unwrap_or_default();
        let standing = written.remove(session.session_id).unwrap_or_else(|| {
            if newer(&session.patch, &held) { Standing::Overtaken } else { Standing::Held }
        });
        Upserted { held, standing }
    };
    Ok(sessions.iter().map(upserted).collect())
}

/// Whether some part of the patch is newer than the versions held.
fn newer(patch: &Patch<'_>, held: &Versions) -> bool {
    Part::ALL.into_iter().any(|part| {
        let version = patch[part as usize].map(|change| change.version.as_str());
        version > held[part as usize].as_deref()
    })
}

/// The row of one session, whole.
///
/// # Errors
/// [`Error::Database`], or [`Error::RowVanished`] where there is none.
pub async fn read(database: &Database, session_id: &str) -> Result<Measurement, Error> {
    let arguments = || {
        let mut arguments = PgArguments::default();
        arguments.add([session_id].as_slice())?;
        arguments.add(true)?;
        Ok(arguments)
    };
    let rows = database.fetch(statement::READ.as_str(), arguments).await?;
    let row = rows.first().map(measurement).transpose()?.flatten();
    row.ok_or_else(|| Error::RowVanished(session_id.to_owned()))
}

/// One array a column, in the order of the statement's parameters. Public for the benchmark, whose
/// ceiling sends the same arrays.
///
/// # Errors
/// Where a value cannot be sent.
pub fn upsert_arguments(
    sessions: &[SessionChanges<'_>],
    everything: Option<bool>,
) -> Result<PgArguments, BoxDynError> {
    let mut arguments = PgArguments::default();
    arguments.add(sessions.iter().map(|session| session.session_id).collect::<Vec<_>>())?;
    for column in COLUMNS.iter() {
        let cells =
            sessions.iter().map(|session| cell(&session.patch, column.part, column.position));
        match column.kind {
            Kind::Text | Kind::Millimetres | Kind::Attributes => {
                arguments.add(
                    cells
                        .map(|cell| match cell {
                            Some(Value::Text(text)) => Some(text.as_str()),
                            _ => None,
                        })
                        .collect::<Vec<_>>(),
                )?;
            }
            Kind::Timestamp => {
                arguments.add(
                    cells
                        .map(|cell| match cell {
                            Some(Value::Timestamp(time)) => Some(*time),
                            _ => None,
                        })
                        .collect::<Vec<_>>(),
                )?;
            }
            Kind::Bytes => {
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
        let version = |session: &SessionChanges<'_>| {
            session.patch[part as usize].map(|change| change.version.as_str().to_owned())
        };
        arguments.add(sessions.iter().map(version).collect::<Vec<_>>())?;
    }
    for part in Part::ALL {
        let changed_at = |session: &SessionChanges<'_>| {
            session.patch[part as usize].and_then(|change| change.changed_at)
        };
        arguments.add(sessions.iter().map(changed_at).collect::<Vec<_>>())?;
    }
    if let Some(everything) = everything {
        arguments.add(everything)?;
    }
    Ok(arguments)
}

fn cell<'a>(patch: &Patch<'a>, part: Part, position: usize) -> Option<&'a Value> {
    patch[part as usize]?.document.as_ref()?.get(position)?.as_ref()
}

fn versions(row: &PgRow) -> Result<Versions, Error> {
    let version = |part: Part| row.try_get(2 + part as usize).map_err(Error::Database);
    Ok([version(Part::Session)?, version(Part::Left)?, version(Part::Right)?])
}

/// Decodes what `row_columns` of the statement selects; `None` where the row is not whole.
fn measurement(row: &PgRow) -> Result<Option<Measurement>, Error> {
    measurement_of(row).map_err(Error::Database)
}

fn measurement_of(row: &PgRow) -> Result<Option<Measurement>, sqlx::Error> {
    const WHOLE: usize = 5;
    if !row.try_get::<bool, _>(WHOLE)? {
        return Ok(None);
    }
    let mut index = WHOLE;
    let mut documents: PerPart<Option<Document>> = [const { None }; 3];
    for part in Part::ALL {
        let mut present = true;
        let mut document = Document::with_capacity(part.fields().len());
        for field in part.fields() {
            index += 1;
            let value = match field.kind {
                Kind::Text | Kind::Millimetres | Kind::Attributes => {
                    row.try_get::<Option<String>, _>(index)?.map(Value::Text)
                }
                Kind::Timestamp => {
                    row.try_get::<Option<OffsetDateTime>, _>(index)?.map(Value::Timestamp)
                }
                Kind::Bytes => row.try_get::<Option<Vec<u8>>, _>(index)?.map(Value::Bytes),
            };
            present &= value.is_some() || !field.required;
            document.push(value);
        }
        documents[part as usize] = present.then_some(document);
    }
    let mut changed_at = [None; 3];
    for part in Part::ALL {
        index += 1;
        changed_at[part as usize] = row.try_get(index)?;
    }
    let version = |part: Part| row.try_get(2 + part as usize);
    Ok(Some(Measurement {
        session_id: row.try_get(0)?,
        documents,
        versions: [version(Part::Session)?, version(Part::Left)?, version(Part::Right)?],
        changed_at,
    }))
}
