//! A connection that one command has to itself, because it needs a session: `backfill stream` holds
//! its lock with it, and `backfill migrate` changes the schema over it. Nothing here is repeated: a
//! session that was lost is lost.
//!
//! A *fenced* connection belongs to a repair whose row in `repairs` is its lease. Each statement is
//! a transaction that first locks that row with `FOR KEY SHARE`, if the repair has not ended.
//! Whoever ends it locks the row with `FOR UPDATE`, which waits for these transactions and lets no
//! other begin: so nothing is written for a repair that has ended, whatever any clock says. The
//! owner's heartbeat is an update of other columns, and conflicts with neither.

#![expect(
    clippy::disallowed_methods,
    reason = "this is where a command's own statements get their time limit"
)]

use sqlx::error::BoxDynError;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::{Connection as _, Executor as _, FromRow, PgConnection};

use super::STATEMENT_TIMEOUT;
use crate::error::Error;
use crate::{bind, deadline};

/// Locks the row of a repair that has not ended.
const FENCE: &str = "SELECT id FROM repairs WHERE id = $1 AND ended_at IS NULL FOR KEY SHARE";
/// A client that dies between the statements of a transaction must not hold its locks for long.
const FENCED_IDLE_LIMIT: &str = "SET idle_in_transaction_session_timeout = '10s'";

/// A connection of a command's own, from [`super::Database::connect`].
#[derive(Debug)]
pub struct DedicatedConnection {
    pg: PgConnection,
    /// The repair that each statement is written for, if the connection is fenced.
    fence: Option<i64>,
    /// A transaction was begun, and its end is not known.
    in_transaction: bool,
}

impl DedicatedConnection {
    pub(super) fn new(pg: PgConnection) -> Self {
        Self { pg, fence: None, in_transaction: false }
    }

    /// From now on no statement runs after this repair has ended.
    ///
    /// # Errors
    /// [`Error::LeaseEnded`] if it has ended already; and as [`DedicatedConnection::fetch`].
    pub async fn fenced(mut self, repair: i64) -> Result<Self, Error> {
        self.execute(FENCED_IDLE_LIMIT).await?;
        self.fence = Some(repair);
        self.keep().await?;
        Ok(self)
    }

    /// Whether each statement is fenced.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        self.fence.is_some()
    }

    /// Sees that the connection is there, and that the repair of a fenced one has not ended. By the
    /// time of the answer it may have.
    ///
    /// # Errors
    /// [`Error::LeaseEnded`]; and as [`DedicatedConnection::fetch`].
    pub async fn keep(&mut self) -> Result<(), Error> {
        self.fetch::<(i32,)>("SELECT 1", bind![]).await.map(drop)
    }

    /// Runs one statement, and returns its rows.
    ///
    /// # Errors
    /// [`Error::Database`], also if a row is not what `T` reads; [`Error::StatementTimeout`]; over
    /// a fenced connection [`Error::LeaseEnded`].
    pub async fn fetch<T>(
        &mut self,
        sql: &'static str,
        arguments: impl FnOnce() -> Result<PgArguments, BoxDynError>,
    ) -> Result<Vec<T>, Error>
    where
        T: for<'row> FromRow<'row, PgRow>,
    {
        let arguments = arguments().map_err(sqlx::Error::Encode).map_err(Error::Database)?;
        let rows = if self.fence.is_some() {
            self.fenced_rows(sql, arguments).await?
        } else {
            self.roll_back_what_is_open().await?;
            self.rows(sql, arguments).await?
        };
        rows.iter().map(T::from_row).collect::<Result<_, _>>().map_err(Error::Database)
    }

    async fn rows(
        &mut self,
        sql: &'static str,
        arguments: PgArguments,
    ) -> Result<Vec<PgRow>, Error> {
        limited(sqlx::query_with(sql, arguments).fetch_all(&mut self.pg)).await
    }

    /// One statement in a transaction that locks the repair's row before it.
    async fn fenced_rows(
        &mut self,
        sql: &'static str,
        arguments: PgArguments,
    ) -> Result<Vec<PgRow>, Error> {
        self.begin().await?;
        match self.rows(sql, arguments).await {
            Ok(rows) => self.end_transaction("COMMIT").await.map(|()| rows),
            Err(error) => {
                // If this fails too, the next statement tries it again.
                let _ = self.end_transaction("ROLLBACK").await;
                Err(error)
            }
        }
    }

    /// Begins a transaction of several statements. Over a fenced connection it locks the repair's
    /// row first. One that is dropped is rolled back by the next statement, or by the server once
    /// the connection is gone.
    ///
    /// # Errors
    /// [`Error::LeaseEnded`]; and as [`DedicatedConnection::fetch`].
    pub async fn begin(&mut self) -> Result<Transaction<'_>, Error> {
        self.roll_back_what_is_open().await?;
        self.in_transaction = true;
        self.execute("BEGIN").await?;
        if let Err(error) = self.lock_fence().await {
            // If this fails too, the next statement tries it again.
            let _ = self.end_transaction("ROLLBACK").await;
            return Err(error);
        }
        Ok(Transaction(self))
    }

    /// Locks the repair's row, over a fenced connection.
    async fn lock_fence(&mut self) -> Result<(), Error> {
        let Some(repair) = self.fence else { return Ok(()) };
        let fence = bind![repair];
        let fence = fence().map_err(sqlx::Error::Encode).map_err(Error::Database)?;
        let locked = self.rows(FENCE, fence).await?;
        if locked.is_empty() { Err(Error::LeaseEnded { repair }) } else { Ok(()) }
    }

    /// A transaction whose end could not be told, or that was dropped.
    async fn roll_back_what_is_open(&mut self) -> Result<(), Error> {
        if self.in_transaction { self.end_transaction("ROLLBACK").await } else { Ok(()) }
    }

    async fn end_transaction(&mut self, how: &str) -> Result<(), Error> {
        self.execute(how).await?;
        self.in_transaction = false;
        Ok(())
    }

    /// The same, and returns the first row; `None` if there is none.
    ///
    /// # Errors
    /// As [`DedicatedConnection::fetch`].
    pub async fn fetch_first<T>(
        &mut self,
        sql: &'static str,
        arguments: impl FnOnce() -> Result<PgArguments, BoxDynError>,
    ) -> Result<Option<T>, Error>
    where
        T: for<'row> FromRow<'row, PgRow>,
    {
        Ok(self.fetch(sql, arguments).await?.into_iter().next())
    }

    /// The same for a statement that always returns a row.
    ///
    /// # Errors
    /// As [`DedicatedConnection::fetch`]; also if there is no row.
    pub async fn fetch_one<T>(
        &mut self,
        sql: &'static str,
        arguments: impl FnOnce() -> Result<PgArguments, BoxDynError>,
    ) -> Result<T, Error>
    where
        T: for<'row> FromRow<'row, PgRow>,
    {
        let first = self.fetch_first(sql, arguments).await?;
        first.ok_or(Error::Database(sqlx::Error::RowNotFound))
    }

    /// Runs one statement whose text is made at run time, because it names a role or a setting:
    /// PostgreSQL takes no arguments in their place.
    ///
    /// # Errors
    /// [`Error::Database`] or [`Error::StatementTimeout`].
    pub async fn execute(&mut self, sql: &str) -> Result<(), Error> {
        limited(self.pg.execute(sql)).await.map(drop)
    }

    /// Applies the pending migrations. They have no time limit but the one for locks: a migration
    /// may build an index, and somebody watches it. Sqlx runs the statements itself, because each
    /// must be one transaction with its entry in `_sqlx_migrations`.
    ///
    /// # Errors
    /// [`MigrateError`]; the migration that stopped is rolled back.
    pub async fn migrate(&mut self, migrator: &Migrator) -> Result<(), MigrateError> {
        migrator.run(&mut self.pg).await
    }

    /// Closes the connection.
    ///
    /// # Errors
    /// If the server cannot be told, or not in time.
    pub async fn close(self) -> Result<(), Error> {
        limited(self.pg.close()).await
    }
}

/// Several statements that are committed together, from [`DedicatedConnection::begin`].
#[derive(Debug)]
pub struct Transaction<'a>(&'a mut DedicatedConnection);

impl Transaction<'_> {
    /// Runs one statement, and returns its rows.
    ///
    /// # Errors
    /// As [`DedicatedConnection::fetch`]. The transaction is to be dropped then.
    pub async fn fetch<T>(
        &mut self,
        sql: &'static str,
        arguments: impl FnOnce() -> Result<PgArguments, BoxDynError>,
    ) -> Result<Vec<T>, Error>
    where
        T: for<'row> FromRow<'row, PgRow>,
    {
        let arguments = arguments().map_err(sqlx::Error::Encode).map_err(Error::Database)?;
        let rows = self.0.rows(sql, arguments).await?;
        rows.iter().map(T::from_row).collect::<Result<_, _>>().map_err(Error::Database)
    }

    /// The same, and returns the first row; `None` if there is none.
    ///
    /// # Errors
    /// As [`Transaction::fetch`].
    pub async fn fetch_first<T>(
        &mut self,
        sql: &'static str,
        arguments: impl FnOnce() -> Result<PgArguments, BoxDynError>,
    ) -> Result<Option<T>, Error>
    where
        T: for<'row> FromRow<'row, PgRow>,
    {
        Ok(self.fetch(sql, arguments).await?.into_iter().next())
    }

    /// Commits what the statements have done.
    ///
    /// # Errors
    /// As [`DedicatedConnection::fetch`]: nobody knows then whether it is committed.
    pub async fn commit(self) -> Result<(), Error> {
        self.0.end_transaction("COMMIT").await
    }

    /// Undoes what the statements have done.
    ///
    /// # Errors
    /// As [`DedicatedConnection::fetch`].
    pub async fn roll_back(self) -> Result<(), Error> {
        self.0.end_transaction("ROLLBACK").await
    }
}

/// Waits for the server, but no longer than for any statement: a connection that has gone silent
/// must not hold a command for good.
async fn limited<T>(answer: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, Error> {
    let limit = STATEMENT_TIMEOUT;
    let answer = async { answer.await.map_err(Error::Database) };
    deadline::within(limit, answer, || Error::StatementTimeout { limit }).await
}
