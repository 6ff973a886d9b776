//! The table `repairs`: whether this database has had a repair, and how each one ended.

use projector::bind;
use projector::cause::sqlstate;
use projector::database::Database;
use projector::deadline::Deadline;
use projector::error::Error;
use sqlx::Row as _;

/// Where the keys of a repair came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Scan,
    Export,
    Keys,
    Redrive,
    Merge,
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Self::Scan => "scan",
            Self::Export => "export",
            Self::Keys => "keys",
            Self::Redrive => "redrive",
            Self::Merge => "merge",
        }
    }
}

const BEGIN: &str = "INSERT INTO repairs (source) VALUES ($1) RETURNING id";

const END: &str = "UPDATE repairs
SET ended_at = clock_timestamp(), complete = $2, candidates = $3, written = $4 WHERE id = $1";

const ANY: &str = "SELECT EXISTS (SELECT FROM repairs)";

/// A repair that something ended less than 20 hours ago, with none complete since. The checkpoints
/// that it left say how far the streams were read, and the streams still hold what came after.
const UNFINISHED: &str = "SELECT EXISTS (
    SELECT FROM repairs r WHERE NOT complete AND started_at > now() - interval '20 hours'
        AND source <> 'merge'
        AND NOT EXISTS (SELECT FROM repairs later WHERE later.id > r.id AND later.complete))";

/// Keeps that a repair begins. From then on this database has had one.
///
/// # Errors
/// As [`Database::fetch`].
pub(crate) async fn begin(database: &Database, source: Source) -> Result<i64, Error> {
    let rows = database.fetch(BEGIN, bind![source.name()], Deadline::NONE).await?;
    let id = rows.first().map_or(Err(sqlx::Error::RowNotFound), |row| row.try_get(0));
    id.map_err(Error::Database)
}

/// Keeps how a repair ended: whether it settled every candidate, how many there were, and how many
/// parts it wrote.
///
/// # Errors
/// As [`Database::fetch`].
pub(crate) async fn end(
    database: &Database,
    id: i64,
    complete: bool,
    candidates: u64,
    written: u64,
) -> Result<(), Error> {
    let (candidates, written) = (candidates.cast_signed(), written.cast_signed());
    let arguments = bind![id, complete, candidates, written];
    database.fetch(END, arguments, Deadline::NONE).await.map(drop)
}

/// Whether this database has had a repair, ended or not. One of an older schema has had none.
///
/// # Errors
/// As [`Database::fetch`].
pub(crate) async fn any(database: &Database) -> Result<bool, Error> {
    match asked(database, ANY).await {
        // There is no such table.
        Err(Error::Database(error)) if sqlstate(&error).as_deref() == Some("42P01") => Ok(false),
        answer => answer,
    }
}

/// Whether a repair has to be run again, and may continue with the checkpoints that it left.
///
/// # Errors
/// As [`Database::fetch`].
pub(crate) async fn is_unfinished(database: &Database) -> Result<bool, Error> {
    asked(database, UNFINISHED).await
}

async fn asked(database: &Database, sql: &'static str) -> Result<bool, Error> {
    let rows = database.fetch(sql, bind![], Deadline::NONE).await?;
    let answer = rows.first().map_or(Err(sqlx::Error::RowNotFound), |row| row.try_get(0));
    answer.map_err(Error::Database)
}
