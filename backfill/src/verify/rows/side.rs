//! PostgreSQL: one side of the comparison. Every statement may be repeated, and is: after a
//! failover, after a standby canceled it because it had to apply a change, and with fewer rows
//! after it took too long.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use projector::apply::Pace;
use projector::bind;
use projector::cause::sqlstate;
use projector::database::Database;
use projector::deadline::Deadline;
use projector::error::Error;
use projector::measurement::Versions;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::{Arguments as _, Row as _};
use time::OffsetDateTime;

use crate::retry::retry_transient;
use crate::statement;
use crate::verify::rows::chunks::{Chunk, Sum};
use crate::verify::rows::columns::Types;
use crate::verify::rows::judge::{Held, Listed};
use crate::verify::rows::statements::{Statements, just_above};

/// At most this many rows of a listing, or keys of a look, per statement.
const LISTED: usize = 10_000;
/// At most this many keys per look that reads values, each of which may be two meshes.
const LOOKED_AT: usize = 500;

const COLUMNS: &str = "SELECT attname::text, format_type(atttypid, NULL) FROM pg_attribute
WHERE attrelid = to_regclass('measurements') AND attnum > 0 AND NOT attisdropped";

/// The types of the columns of `measurements`, by name.
pub(crate) async fn types(database: &Database) -> anyhow::Result<Types> {
    let rows = retry_transient("read the columns of measurements", async || {
        database.fetch(COLUMNS, bind![], Deadline::NONE).await
    });
    let of_row = |row: &PgRow| Ok((row.try_get(0)?, row.try_get(1)?));
    let types: Result<Types, sqlx::Error> = rows.await?.iter().map(of_row).collect();
    Ok(types.map_err(Error::Database)?)
}

/// Which rows are compared, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope {
    /// How many rows per chunk.
    pub(crate) chunk: usize,
    /// Values are compared of the keys whose first 32 bits of md5 are below this.
    pub(crate) sampled_below: i64,
    pub(crate) since: Option<OffsetDateTime>,
}

/// One of the two databases.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Side<'a> {
    /// Which one, for messages.
    pub(crate) whose: &'a str,
    pub(crate) database: &'a Database,
    pub(crate) statements: Statements,
    pub(crate) scope: Scope,
}

/// An answer, or `None` if it was too much for one statement, with the time that this took.
pub(crate) struct Answer<T> {
    pub(crate) answer: Option<T>,
    pub(crate) took: Duration,
}

impl Side<'_> {
    /// The next rows after a key, up to a limit, in chunks; none after the last row.
    pub(crate) async fn lead(
        &self,
        after: &str,
        limit: usize,
    ) -> anyhow::Result<Answer<Vec<Chunk>>> {
        let Self { statements, scope, .. } = *self;
        let arguments = || {
            let mut arguments = PgArguments::default();
            arguments.add(after)?;
            arguments.add(i64::try_from(limit)?)?;
            arguments.add(i64::try_from(scope.chunk)?)?;
            self.add_scope(&mut arguments)?;
            Ok(arguments)
        };
        let chunk = |row: &PgRow| Ok(Chunk { last: row.try_get(0)?, sum: sum(row)? });
        self.unless_too_much(statements.lead, arguments, limit > 1, chunk).await
    }

    /// The rows after a key in the chunks of the other side, by the place of the chunk; at most so
    /// many rows in all. `divisible`: the caller can ask for fewer if this is too much.
    pub(crate) async fn follow(
        &self,
        after: &str,
        chunks: &[Chunk],
        limit: usize,
        divisible: bool,
    ) -> anyhow::Result<Answer<BTreeMap<usize, Sum>>> {
        let Some((through, ends)) = chunks.split_last() else {
            return Ok(Answer { answer: Some(BTreeMap::new()), took: Duration::ZERO });
        };
        let ends: Vec<String> = ends.iter().map(|chunk| just_above(&chunk.last)).collect();
        let arguments = || {
            let mut arguments = PgArguments::default();
            arguments.add(after)?;
            arguments.add(through.last.as_str())?;
            arguments.add(i64::try_from(limit)?)?;
            arguments.add(ends.as_slice())?;
            self.add_scope(&mut arguments)?;
            Ok(arguments)
        };
        let sum = |row: &PgRow| {
            let place: i32 = row.try_get(0)?;
            Ok((place.unsigned_abs() as usize, sum(row)?))
        };
        let found = self.unless_too_much(self.statements.follow, arguments, divisible, sum).await?;
        let answer = found.answer.map(|sums| sums.into_iter().collect());
        Ok(Answer { answer, took: found.took })
    }

    /// All rows after a key, up to another one.
    pub(crate) async fn list(&self, after: &str, through: &str) -> anyhow::Result<Vec<Listed>> {
        let mut pace = Pace::new(LISTED.min(self.scope.chunk * 10));
        let mut listed: Vec<Listed> = Vec::new();
        loop {
            let last = listed.last().map_or(after, |listed| &listed.session_id).to_owned();
            let arguments = |limit| {
                let mut arguments = PgArguments::default();
                arguments.add(last.as_str())?;
                arguments.add(through)?;
                arguments.add(i64::try_from(limit)?)?;
                self.add_scope(&mut arguments)?;
                Ok(arguments)
            };
            let what = format!("list the rows of {} that differ", self.whose);
            let reading = retry_transient(&what, async || {
                statement::page(self.database, &mut pace, self.statements.list, arguments).await
            });
            let (limit, rows) = reading.await?;
            for row in &rows {
                listed.push(listed_of(row).map_err(Error::Database)?);
            }
            if rows.len() < limit {
                return Ok(listed);
            }
        }
    }

    /// What the rows of these keys hold, with a digest of each value if `with_values`.
    pub(crate) async fn look(
        &self,
        mut keys: &[&str],
        with_values: bool,
    ) -> anyhow::Result<HashMap<String, Held>> {
        let (sql, most) = if with_values {
            (self.statements.look_values, LOOKED_AT)
        } else {
            (self.statements.look, LISTED)
        };
        let (mut pace, mut found) = (Pace::new(most), HashMap::new());
        while !keys.is_empty() {
            let arguments = |limit: usize| {
                let mut arguments = PgArguments::default();
                arguments.add(&keys[..limit.min(keys.len())])?;
                Ok(arguments)
            };
            let what = format!("read again what differs in {}", self.whose);
            let reading = retry_transient(&what, async || {
                statement::page(self.database, &mut pace, sql, arguments).await
            });
            let (limit, rows) = reading.await?;
            for row in &rows {
                let (key, held) = held_of(row, with_values).map_err(Error::Database)?;
                found.insert(key, held);
            }
            keys = &keys[limit.min(keys.len())..];
        }
        Ok(found)
    }

    fn add_scope(&self, arguments: &mut PgArguments) -> Result<(), BoxDynError> {
        arguments.add(self.scope.sampled_below)?;
        match self.scope.since {
            Some(since) => arguments.add(since),
            None => Ok(()),
        }
    }

    /// Runs a statement and waits out what passes. Only one that is `divisible` may be too much.
    async fn unless_too_much<T>(
        &self,
        sql: &'static str,
        arguments: impl Fn() -> Result<PgArguments, BoxDynError>,
        divisible: bool,
        of_row: impl Fn(&PgRow) -> Result<T, sqlx::Error>,
    ) -> anyhow::Result<Answer<Vec<T>>> {
        let start = Instant::now();
        let what = format!("compare the rows of {}", self.whose);
        let asked = retry_transient(&what, async || {
            match self.database.fetch(sql, &arguments, Deadline::NONE).await {
                Err(error) if divisible && is_too_much(&error) => Ok(None),
                rows => rows.map(Some),
            }
        });
        let rows = asked.await?;
        let decode = |rows: Vec<PgRow>| rows.iter().map(&of_row).collect::<Result<_, _>>();
        let answer = rows.map(decode).transpose().map_err(Error::Database)?;
        Ok(Answer { answer, took: start.elapsed() })
    }
}

/// A standby that cannot wait any longer to apply a change cancels what still needs the old state
/// (40001): a shorter statement needs it for a shorter time.
fn is_too_much(error: &Error) -> bool {
    let conflicts = |error: &sqlx::Error| sqlstate(error).as_deref() == Some("40001");
    error.too_much() || matches!(error, Error::Database(error) if conflicts(error))
}

/// Rows, rows compared and digests stand after the first column.
fn sum(row: &PgRow) -> Result<Sum, sqlx::Error> {
    let count = |index| row.try_get(index).map(i64::unsigned_abs);
    Ok(Sum { rows: count(1)?, compared: count(2)?, digests: row.try_get(3)? })
}

/// The versions stand after the key.
fn versions(row: &PgRow) -> Result<Versions, sqlx::Error> {
    Ok([row.try_get(1)?, row.try_get(2)?, row.try_get(3)?].into())
}

fn listed_of(row: &PgRow) -> Result<Listed, sqlx::Error> {
    Ok(Listed { session_id: row.try_get(0)?, versions: versions(row)?, digest: row.try_get(4)? })
}

fn held_of(row: &PgRow, with_values: bool) -> Result<(String, Held), sqlx::Error> {
    let digests = if with_values { Some(row.try_get(4)?) } else { None };
    Ok((row.try_get(0)?, Held { versions: versions(row)?, digests }))
}
