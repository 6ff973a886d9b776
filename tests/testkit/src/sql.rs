//! SQL of the tests and the benchmark: a connection that looks at a database from outside, as its
//! owner or as another client. This is the one place that goes around the projector's `Database`,
//! whose time limits and settings are what the tests look at.

#![expect(
    clippy::disallowed_methods,
    reason = "a test is another client: it holds locks, makes triggers and measures without the \
        projector's limits"
)]

use std::ops::{Deref, DerefMut};

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::{Connection as _, Executor as _, FromRow, PgConnection};

/// A connection of a test's own.
#[derive(Debug)]
pub struct Client(PgConnection);

impl From<PgConnection> for Client {
    fn from(connection: PgConnection) -> Self {
        Self(connection)
    }
}

/// For what is no statement, such as `COPY`.
impl Deref for Client {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.0
    }
}

impl DerefMut for Client {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.0
    }
}

impl Client {
    /// Connects to the database of this URL.
    ///
    /// # Panics
    /// If PostgreSQL refuses.
    pub async fn connect(url: &str) -> Self {
        Self(PgConnection::connect(url).await.expect("PostgreSQL answers"))
    }

    /// Runs one statement or several, none of them prepared, and returns how many rows they
    /// changed.
    ///
    /// # Errors
    /// If PostgreSQL refuses.
    pub async fn try_run(&mut self, sql: &str) -> Result<u64, sqlx::Error> {
        Ok(self.0.execute(sql).await?.rows_affected())
    }

    /// As [`Client::try_run`].
    ///
    /// # Panics
    /// If PostgreSQL refuses.
    pub async fn run(&mut self, sql: &str) -> u64 {
        self.try_run(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// The first column of the first row as text; not prepared, so that a pooler can answer, too.
    ///
    /// # Panics
    /// If PostgreSQL refuses.
    pub async fn ask(&mut self, sql: &str) -> String {
        let text = format!("SELECT ({sql})::text");
        let row = self.0.fetch_one(text.as_str()).await;
        let row = row.unwrap_or_else(|error| panic!("{sql}: {error}"));
        let (text,) = <(Option<String>,)>::from_row(&row).expect("a text");
        text.unwrap_or_default()
    }

    /// The rows of a query.
    ///
    /// # Panics
    /// If PostgreSQL refuses.
    pub async fn rows<T>(&mut self, sql: &str) -> Vec<T>
    where
        T: for<'row> FromRow<'row, PgRow> + Send + Unpin,
    {
        self.rows_with(sql, PgArguments::default()).await
    }

    /// The rows of a query with arguments.
    ///
    /// # Panics
    /// If PostgreSQL refuses.
    pub async fn rows_with<T>(&mut self, sql: &str, arguments: PgArguments) -> Vec<T>
    where
        T: for<'row> FromRow<'row, PgRow> + Send + Unpin,
    {
        let rows = sqlx::query_as_with(sql, arguments).fetch_all(&mut self.0).await;
        rows.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// The only row of a query.
    ///
    /// # Panics
    /// If PostgreSQL refuses, or there is another number of rows.
    pub async fn row<T>(&mut self, sql: &str) -> T
    where
        T: for<'row> FromRow<'row, PgRow> + Send + Unpin,
    {
        let mut rows = self.rows(sql).await;
        assert_eq!(rows.len(), 1, "{sql}");
        rows.remove(0)
    }

    /// Runs one statement with arguments, prepared, and returns how many rows it changed.
    ///
    /// # Panics
    /// If PostgreSQL refuses.
    pub async fn change_with(&mut self, sql: &str, arguments: PgArguments) -> u64 {
        let done = sqlx::query_with(sql, arguments).execute(&mut self.0).await;
        done.unwrap_or_else(|error| panic!("{sql}: {error}")).rows_affected()
    }

    /// Runs the migrations of this workspace; a second time they change nothing.
    ///
    /// # Panics
    /// If PostgreSQL refuses them.
    pub async fn migrate(&mut self) {
        sqlx::migrate!("../../migrations").run(&mut self.0).await.expect("the migrations run");
    }

    /// Ends the session: PostgreSQL then counts what it did.
    ///
    /// # Panics
    /// If PostgreSQL cannot be told.
    pub async fn close(self) {
        self.0.close().await.expect("an end");
    }
}
