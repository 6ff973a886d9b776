//! A connection that one command has to itself, because it needs a session: `backfill stream` holds
//! its lock with it, and `backfill migrate` changes the schema over it. Nothing here is repeated: a
//! session that was lost is lost.

#![expect(
    clippy::disallowed_methods,
    reason = "this is where a command's own statements get their time limit"
)]

use sqlx::error::BoxDynError;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::{Connection as _, Executor as _, FromRow, PgConnection};

use super::STATEMENT_TIMEOUT;
use crate::deadline;
use crate::error::Error;

/// A connection of a command's own, from [`super::Database::connect`].
#[derive(Debug)]
pub struct DedicatedConnection(PgConnection);

impl DedicatedConnection {
    pub(super) fn new(connection: PgConnection) -> Self {
        Self(connection)
    }

    /// Runs one statement, and returns its rows.
    ///
    /// # Errors
    /// [`Error::Database`], also if a row is not what `T` reads; [`Error::StatementTimeout`].
    pub async fn fetch<T>(
        &mut self,
        sql: &'static str,
        arguments: impl FnOnce() -> Result<PgArguments, BoxDynError>,
    ) -> Result<Vec<T>, Error>
    where
        T: for<'row> FromRow<'row, PgRow>,
    {
        let arguments = arguments().map_err(sqlx::Error::Encode).map_err(Error::Database)?;
        let rows = limited(sqlx::query_with(sql, arguments).fetch_all(&mut self.0)).await?;
        rows.iter().map(T::from_row).collect::<Result<_, _>>().map_err(Error::Database)
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
        limited(self.0.execute(sql)).await.map(drop)
    }

    /// Applies the pending migrations. They have no time limit but the one for locks: a migration
    /// may build an index, and somebody watches it. Sqlx runs the statements itself, because each
    /// must be one transaction with its entry in `_sqlx_migrations`.
    ///
    /// # Errors
    /// [`MigrateError`]; the migration that stopped is rolled back.
    pub async fn migrate(&mut self, migrator: &Migrator) -> Result<(), MigrateError> {
        migrator.run(&mut self.0).await
    }

    /// Closes the connection.
    ///
    /// # Errors
    /// If the server cannot be told, or not in time.
    pub async fn close(self) -> Result<(), Error> {
        limited(self.0.close()).await
    }
}

/// Waits for the server, but no longer than for any statement: a connection that has gone silent
/// must not hold a command for good.
async fn limited<T>(answer: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, Error> {
    let limit = STATEMENT_TIMEOUT;
    let answer = async { answer.await.map_err(Error::Database) };
    deadline::within(limit, answer, || Error::StatementTimeout { limit }).await
}
