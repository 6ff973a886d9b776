//! The commands' own statements: each has a time limit, and takes less at a time if the database is slow.

use std::time::Instant;

use projector::apply::Pace;
use projector::cause::sqlstate;
use projector::database::Database;
use projector::deadline::Deadline;
use projector::error::Error;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::{Arguments as _, Row as _};

/// Whether the login may not do what the statement does.
pub(crate) fn lacks_privilege(error: &sqlx::Error) -> bool {
    sqlstate(error).as_deref() == Some("42501")
}

/// PostgreSQL's own words alone: for `backfill migrate`, because the remedies of the projector's statements would send
/// the operator back to the command that has just failed.
pub(crate) fn without_remedy(error: Error) -> anyhow::Error {
    match error {
        Error::Database(error) => error.into(),
        error => error.into(),
    }
}

/// Runs a statement that takes a number of rows or keys at a time, fewer if that many take too long. Returns
/// how many it took at most, and its rows.
pub(crate) async fn page(
    database: &Database,
    pace: &mut Pace,
    sql: &'static str,
    arguments: impl Fn(usize) -> Result<PgArguments, BoxDynError>,
) -> Result<(usize, Vec<PgRow>), Error> {
    loop {
        let (limit, start) = (pace.limit(), Instant::now());
        match database.fetch(sql, || arguments(limit), Deadline::NONE).await {
            Ok(rows) => {
                pace.done(rows.len(), start.elapsed());
                return Ok((limit, rows));
            }
            Err(error) if error.too_much() && limit > 1 => pace.too_much(limit, start.elapsed()),
            Err(error) => return Err(error),
        }
    }
}

const ESTIMATE: &str =
    "SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = $1::text::regclass";

/// The number that a statement counts or, where that takes too long, PostgreSQL's estimate of the table's rows.
/// It is for a progress bar alone.
pub(crate) async fn count(
    database: &Database,
    table: &str,
    sql: &'static str,
    arguments: impl Fn() -> Result<PgArguments, BoxDynError>,
) -> Result<u64, Error> {
    let of_table = || {
        let mut arguments = PgArguments::default();
        arguments.add(table)?;
        Ok(arguments)
    };
    let rows = match database.fetch(sql, arguments, Deadline::NONE).await {
        Err(error) if error.too_much() => {
            database.fetch(ESTIMATE, of_table, Deadline::NONE).await?
        }
        rows => rows?,
    };
    let count: i64 = rows.first().map_or(Ok(0), |row| row.try_get(0)).map_err(Error::Database)?;
    Ok(count.unsigned_abs())
}
