//! PostgreSQL: the repairs of a database, in its table `repairs`. A row is written before the
//! repair reads anything, and says from then on that late records are re-read, never applied by
//! version.
//!
//! The rows of a run go over the connection that holds the lock of repairs: a run that has lost the
//! lock with its connection cannot begin another one.

use projector::bind;
use projector::cause::sqlstate;
use projector::database::{Database, DedicatedConnection, Transaction};
use projector::deadline::Deadline;
use projector::error::Error;
use sqlx::Row as _;
use time::OffsetDateTime;

use crate::repair::reread::{Replay, replay};
use crate::retry::retry_transient;

/// Where the keys of a repair come from, or which command repairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The items and the rows, all of them.
    Scan,
    /// The items of an export, and the rows that have changed since.
    Export,
    /// A file of keys.
    Keys,
    /// `rejected_records`.
    Redrive,
    /// Another database, or an archive.
    Merge,
    /// The files of exports, each in invocations of the function.
    Reconcile,
}

impl Source {
    /// The name in `repairs`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Scan => "scan",
            Self::Export => "export",
            Self::Keys => "keys",
            Self::Redrive => "redrive",
            Self::Merge => "merge",
            Self::Reconcile => "reconcile",
        }
    }
}

/// A repair that has its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Begun {
    /// The key of the row.
    pub(crate) id: i64,
    /// By the database's clock.
    pub(crate) started_at: OffsetDateTime,
}

const BEGIN: &str = "INSERT INTO repairs (source) VALUES ($1) RETURNING id, started_at";

const END: &str = "UPDATE repairs
SET ended_at = clock_timestamp(), complete = $2, candidates = $3, written = $4
WHERE id = $1
RETURNING id";

const ANY: &str = "SELECT EXISTS (SELECT FROM repairs)";

/// A merge reads no stream, so it leaves no checkpoints and needs none.
const UNFINISHED: &str = "SELECT max(started_at) FROM repairs AS unfinished
WHERE NOT complete AND source <> 'merge' AND started_at > clock_timestamp() - interval '20 hours'
    AND NOT EXISTS (
        SELECT FROM repairs AS completed WHERE completed.complete AND completed.source <> 'merge'
            AND completed.ended_at > unfinished.started_at)";

/// Writes the row of a repair, before the repair reads anything. It is committed when this returns.
///
/// # Errors
/// If the row cannot be written; if the answer was lost, there may be one, which does no harm.
pub(crate) async fn begin(
    connection: &mut DedicatedConnection,
    source: Source,
) -> Result<Begun, Error> {
    let (id, started_at) = connection.fetch_one(BEGIN, bind![source.name()]).await?;
    Ok(Begun { id, started_at })
}

/// Says what the repair came to. `complete`: it went through all its candidates.
///
/// # Errors
/// If the row cannot be written, or is not there: somebody has deleted it.
pub(crate) async fn end(
    connection: &mut DedicatedConnection,
    id: i64,
    complete: bool,
    candidates: u64,
    written: u64,
) -> Result<(), Error> {
    let mut transaction = connection.begin().await?;
    end_within(&mut transaction, id, complete, candidates, written).await?;
    transaction.commit().await
}

/// The same within a transaction.
///
/// # Errors
/// As [`end`].
pub(crate) async fn end_within(
    transaction: &mut Transaction<'_>,
    id: i64,
    complete: bool,
    candidates: u64,
    written: u64,
) -> Result<(), Error> {
    let arguments = bind![id, complete, i64::try_from(candidates)?, i64::try_from(written)?];
    let ended: Option<(i64,)> = transaction.fetch_first(END, arguments).await?;
    ended.map(drop).ok_or(Error::Database(sqlx::Error::RowNotFound))
}

/// Whether this database has had a repair, begun or ended. A schema without the table has had none.
///
/// # Errors
/// If the database cannot be asked, or the login may not read the table: then nobody knows.
pub(crate) async fn any(database: &Database) -> Result<bool, Error> {
    match database.fetch(ANY, bind![], Deadline::NONE).await {
        Ok(rows) => {
            let any = rows.first().map_or(Ok(false), |row| row.try_get(0));
            any.map_err(Error::Database)
        }
        Err(Error::Database(error)) if is_no_table(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// What becomes of late records in this database now; it waits out what passes. Whoever applies
/// them asks with the lock of repairs held.
///
/// # Errors
/// If the database stays away.
pub(crate) async fn late_records(database: &Database) -> anyhow::Result<Replay> {
    let had =
        retry_transient("ask whether this database has had a repair", async || any(database).await);
    Ok(replay(had.await?))
}

/// When the last repair that did not go through all its candidates began, if that was less than 20
/// hours ago and no repair has completed since. A run asks before it begins its own.
///
/// # Errors
/// If the database cannot be asked.
pub(crate) async fn unfinished(
    connection: &mut DedicatedConnection,
) -> Result<Option<OffsetDateTime>, Error> {
    let (started_at,) = connection.fetch_one(UNFINISHED, bind![]).await?;
    Ok(started_at)
}

/// SQLSTATE 42P01 (PostgreSQL documentation, "PostgreSQL Error Codes").
fn is_no_table(error: &sqlx::Error) -> bool {
    sqlstate(error).as_deref() == Some("42P01")
}

#[cfg(test)]
mod tests {
    use projector::config::{DatabaseConfig, Login, parse_url};
    use projector::database::{Database, DedicatedConnection};

    use super::{BEGIN, Source, any, begin, end, unfinished};
    use crate::commands::migrate::schema::MIGRATOR;

    /// A new database of the server that `scripts/with-services` starts, without a schema.
    async fn empty_database() -> Database {
        let url =
            std::env::var("DATABASE_URL").expect("DATABASE_URL, as scripts/with-services sets");
        let at = |database: Option<&str>| {
            let url = parse_url(&url).expect("a URL");
            let url = database.map_or(url.clone(), |name| url.database(name));
            Database::new(
                DatabaseConfig { url: Some(url), login: Login::Url, connections: 1 },
                None,
            )
        };
        let name = format!("ledger-{:016x}", fastrand::u64(..));
        let mut admin = at(None).connect().await.expect("a connection");
        admin.execute(&format!("CREATE DATABASE {name:?}")).await.expect("a database");
        at(Some(&name))
    }

    async fn run(connection: &mut DedicatedConnection, sql: &str) {
        connection.execute(sql).await.expect(sql);
    }

    #[tokio::test]
    async fn a_repair_counts_from_the_moment_its_row_is_there() {
        let database = empty_database().await;
        assert!(!any(&database).await.expect("an answer"), "without a schema there was none");
        let mut connection = database.connect().await.expect("a connection");
        connection.migrate(&MIGRATOR).await.expect("a schema");
        assert!(!any(&database).await.expect("an answer"));
        let connection = &mut connection;

        let sources = [
            Source::Scan,
            Source::Export,
            Source::Keys,
            Source::Redrive,
            Source::Reconcile,
            Source::Merge,
        ];
        let mut last = 0;
        for source in sources {
            let begun = begin(connection, source).await.expect("the schema takes every source");
            assert!(begun.id > last, "{source:?}");
            last = begun.id;
            assert!(any(&database).await.expect("an answer"), "before it has ended");
        }
        end(connection, last, true, 5, 3).await.expect("it ends");
        let sql = "SELECT source, complete, candidates, written, ended_at >= started_at
            FROM repairs ORDER BY id DESC LIMIT 1";
        let row: (String, bool, i64, i64, bool) =
            connection.fetch_one(sql, projector::bind![]).await.expect("the row");
        assert_eq!(row, ("merge".to_owned(), true, 5, 3, true));
        assert!(end(connection, last + 1, true, 0, 0).await.is_err(), "there is no such row");
    }

    #[tokio::test]
    async fn a_repair_is_unfinished_until_one_completes_or_a_day_is_nearly_over() {
        let database = empty_database().await;
        let mut connection = database.connect().await.expect("a connection");
        connection.migrate(&MIGRATOR).await.expect("a schema");
        let connection = &mut connection;
        assert_eq!(unfinished(connection).await.expect("an answer"), None);

        // Killed, and ended before it was through.
        let killed = begin(connection, Source::Scan).await.expect("a row");
        assert_eq!(unfinished(connection).await.expect("an answer"), Some(killed.started_at));
        let stopped = begin(connection, Source::Scan).await.expect("a row");
        end(connection, stopped.id, false, 9, 1).await.expect("it ends");
        assert_eq!(unfinished(connection).await.expect("an answer"), Some(stopped.started_at));

        let complete = begin(connection, Source::Scan).await.expect("a row");
        end(connection, complete.id, true, 9, 1).await.expect("it ends");
        assert_eq!(unfinished(connection).await.expect("an answer"), None);

        run(
            connection,
            "INSERT INTO repairs (source, started_at)
            VALUES ('scan', clock_timestamp() - interval '20 hours 1 second')",
        )
        .await;
        run(connection, "DELETE FROM repairs WHERE complete").await;
        assert_eq!(unfinished(connection).await.expect("an answer"), Some(stopped.started_at));
        run(connection, "DELETE FROM repairs WHERE started_at > now() - interval '20 hours'").await;
        assert_eq!(unfinished(connection).await.expect("an answer"), None);
        assert!(any(&database).await.expect("an answer"), "{BEGIN}");
    }
}
