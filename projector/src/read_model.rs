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
    /// The versions that the row held before; all `None` where there was no row.
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
    /// The patch was newer than the row when its versions were asked for, and not when the statement
    /// had the row's lock: another writer committed between. What the row holds now is not known here.
    Overtaken,
}

/// Writes what is newer than the rows: asks for the versions that they hold, and sends what is newer
/// in one statement and one transaction.
///
/// What is not newer ends with the question: a replay sends no values, locks no row and writes no WAL.
/// That is safe because versions only grow, and because the guard is checked again under the row's
/// lock.
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
    let held = versions(database, sessions).await?;
    let pairs = sessions.iter().zip(&held);
    let newer: Vec<&SessionChanges<'_>> = pairs
        .filter_map(|(session, held)| newer(&session.patch, held).then_some(session))
        .collect();
    let mut written = write(database, &newer, returning_rows).await?;
    let mut newer = newer.into_iter().peekable();
    let upserted = |(session, held): (&SessionChanges<'_>, Versions)| {
        let sent = newer.next_if(|newer| newer.session_id == session.session_id).is_some();
        let standing = match written.remove(session.session_id) {
            Some(standing) => standing,
            None if sent => Standing::Overtaken,
            None => Standing::Held,
        };
        Upserted { held, standing }
    };
    Ok(sessions.iter().zip(held).map(upserted).collect())
}

/// What the row of each session holds.
async fn versions(
    database: &Database,
    sessions: &[SessionChanges<'_>],
) -> Result<Vec<Versions>, Error> {
    let keys: Vec<&str> = sessions.iter().map(|session| session.session_id).collect();
    let arguments = || {
        let mut arguments = PgArguments::default();
        arguments.add(keys.as_slice())?;
        Ok(arguments)
    };
    let rows = database.fetch(statement::VERSIONS, arguments).await?;
    let mut held = vec![Versions::default(); sessions.len()];
    for row in &rows {
        // All are NULL where there is none of the rows.
        let found = row.try_get::<Option<Vec<String>>, _>(0).map_err(Error::Database)?;
        let found = found.unwrap_or_default();
        let places: Vec<_> =
            found.iter().map(|session_id| keys.binary_search(&session_id.as_str())).collect();
        for part in Part::ALL {
            let of_part: Option<Vec<Option<String>>> =
                row.try_get(1 + part as usize).map_err(Error::Database)?;
            for (place, version) in places.iter().zip(of_part.unwrap_or_default()) {
                if let Ok(place) = place {
                    held[*place][part as usize] = version;
                }
            }
        }
    }
    Ok(held)
}

/// Sends the sessions, and gives those whose rows were written.
async fn write(
    database: &Database,
    sessions: &[&SessionChanges<'_>],
    returning_rows: bool,
) -> Result<HashMap<String, Standing>, Error> {
    if sessions.is_empty() {
        return Ok(HashMap::new());
    }
    let sql = if returning_rows { &statement::UPSERT_RETURNING_ROWS } else { &statement::UPSERT };
    let everything = returning_rows.then_some(sessions.len() <= WHOLE_ROWS);
    let rows = database.fetch(sql.as_str(), || upsert_arguments(sessions, everything)).await?;
    let written = |row: &PgRow| {
        let inserted = row.try_get(1).map_err(Error::Database)?;
        let measurement = if returning_rows { measurement(row)?.map(Box::new) } else { None };
        let session_id = row.try_get(0).map_err(Error::Database)?;
        Ok((session_id, Standing::Written { inserted, row: measurement }))
    };
    rows.iter().map(written).collect()
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
    sessions: &[&SessionChanges<'_>],
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
        let versions = sessions
            .iter()
            .map(|session| session.patch[part as usize].map(|change| change.version.as_str()));
        arguments.add(versions.collect::<Vec<_>>())?;
    }
    for part in Part::ALL {
        let times = sessions
            .iter()
            .map(|session| session.patch[part as usize].and_then(|change| change.changed_at));
        arguments.add(times.collect::<Vec<_>>())?;
    }
    if let Some(everything) = everything {
        arguments.add(everything)?;
    }
    Ok(arguments)
}

fn cell<'a>(patch: &Patch<'a>, part: Part, position: usize) -> Option<&'a Value> {
    patch[part as usize]?.document.as_ref()?.get(position)?.as_ref()
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
