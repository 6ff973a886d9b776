//! The commands' own statements: each has a time limit, and takes less at a time if the database is
//! slow.

use std::time::Instant;

use projector::apply::Pace;
use projector::bind;
use projector::cause::sqlstate;
use projector::database::Database;
use projector::deadline::Deadline;
use projector::error::Error;
use sqlx::Row as _;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgRow};

use crate::retry::retry_transient;

/// Whether the login may not do what the statement does.
pub(crate) fn lacks_privilege(error: &sqlx::Error) -> bool {
    sqlstate(error).as_deref() == Some("42501")
}

/// PostgreSQL's own words alone: for `backfill migrate`, because the remedies of the projector's
/// statements would send the operator back to the command that has just failed.
pub(crate) fn without_remedy(error: Error) -> anyhow::Error {
    match error {
        Error::Database(error) => error.into(),
        error => error.into(),
    }
}

/// Runs a statement that takes a number of rows or keys at a time, fewer if that many take too
/// long. Returns how many it took at most, and its rows.
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

/// Runs a read for these keys, fewer at a time if that many take too long, and returns each answer.
/// Waits out what passes.
///
/// # Errors
/// What does not pass.
pub(crate) async fn by_key<T>(
    what: &str,
    pace: &mut Pace,
    mut keys: &[&str],
    read: impl AsyncFn(&[&str]) -> Result<T, Error>,
) -> anyhow::Result<Vec<T>> {
    let mut answers = Vec::new();
    while !keys.is_empty() {
        let some = retry_transient(what, async || {
            loop {
                let (limit, start) = (pace.limit().min(keys.len()), Instant::now());
                match read(&keys[..limit]).await {
                    Ok(answer) => {
                        pace.done(limit, start.elapsed());
                        return Ok((limit, answer));
                    }
                    Err(error) if error.too_much() && limit > 1 => {
                        pace.too_much(limit, start.elapsed());
                    }
                    Err(error) => return Err(error),
                }
            }
        });
        let (limit, answer) = some.await?;
        answers.push(answer);
        keys = &keys[limit..];
    }
    Ok(answers)
}

const ESTIMATE: &str =
    "SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = $1::text::regclass";

/// The number that a statement counts or, where that takes too long, PostgreSQL's estimate of the
/// table's rows. It is for a progress bar alone.
pub(crate) async fn count(
    database: &Database,
    table: &str,
    sql: &'static str,
    arguments: impl Fn() -> Result<PgArguments, BoxDynError>,
) -> Result<u64, Error> {
    let of_table = bind![table];
    let rows = match database.fetch(sql, arguments, Deadline::NONE).await {
        Err(error) if error.too_much() => {
            database.fetch(ESTIMATE, of_table, Deadline::NONE).await?
        }
        rows => rows?,
    };
    let count: i64 = rows.first().map_or(Ok(0), |row| row.try_get(0)).map_err(Error::Database)?;
    Ok(count.unsigned_abs())
}

const COUNT_ROWS: &str = "SELECT count(*) FROM measurements WHERE session_id > $1";

/// How many rows there are after this session, or an estimate of all where counting takes too long.
/// `what` says whose rows they are.
///
/// # Errors
/// If the database stays away.
pub(crate) async fn count_rows(
    database: &Database,
    what: &str,
    after: &str,
) -> anyhow::Result<u64> {
    retry_transient(what, async || count(database, "measurements", COUNT_ROWS, bind![after]).await)
        .await
}
