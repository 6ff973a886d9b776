//! Connections to PostgreSQL: few, kept warm, replaced when broken, and every wait bounded, on both
//! sides.
//!
//! Not a pool of sqlx's: that one pings before each use (a round trip per batch), and hides a
//! refused connection until a time-out. Here a statement runs at once; because every statement of
//! ours may be repeated without harm, a connection that turns out to be dead is replaced and the
//! statement run again.

mod connect;
mod dedicated;
mod login;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_config::SdkConfig;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgRow};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use self::connect::{Backend, Connection, Purpose, Route};
pub use self::connect::{Between, ROLE_SETTINGS};
pub use self::dedicated::{DedicatedConnection, Transaction};
use crate::cause;
use crate::config::{DatabaseConfig, Login};
use crate::deadline::{Deadline, within};
use crate::error::{Consequence, Error};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long we wait for a statement. The server gives up earlier, if it still answers at all.
pub const STATEMENT_TIMEOUT: Duration = Duration::from_secs(25);
/// How long a cancel request may take.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(3);
/// What a cancel request has before a deadline.
const CANCEL_BEFORE_DEADLINE: Duration = Duration::from_millis(300);
/// With less time than this no statement is begun.
const LEAST_STATEMENT_TIME: Duration = Duration::from_millis(100);
/// A connection that was idle for longer is not used again: something between us and the server may
/// have forgotten it without a word (a NAT gateway does after 350 s), and a statement would hang.
const MAX_IDLE: Duration = Duration::from_mins(5);
/// How often a statement is run at most: once, and again after a dead connection or a deadlock.
const TRIES: u32 = 4;

/// The arguments of a statement, as [`Database::fetch`] takes them: it binds these values anew for
/// each try.
#[macro_export]
macro_rules! bind {
    ($($value:expr),* $(,)?) => {
        || -> Result<::sqlx::postgres::PgArguments, ::sqlx::error::BoxDynError> {
            #[allow(unused_mut, reason = "a statement may have no arguments")]
            let mut arguments = ::sqlx::postgres::PgArguments::default();
            $(::sqlx::Arguments::add(&mut arguments, $value)?;)*
            Ok(arguments)
        }
    };
}

/// The database, with what is needed to make one more connection to it.
#[derive(Debug)]
pub struct Database {
    config: DatabaseConfig,
    aws: Option<SdkConfig>,
    idle: Mutex<Vec<Connection>>,
    permits: Semaphore,
    /// What is between us and the server, where a connection has shown it.
    between: Mutex<Option<Between>>,
    /// The last time that nobody could connect, and why.
    failed: Mutex<Option<(Instant, Arc<Error>)>>,
}

/// What follows a failed statement.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Run it again, over the same connection.
    Again,
    /// Run it again, over a new connection.
    Reconnect,
    /// It has failed; the connection lives.
    FailAndKeep,
    /// It has failed, and perhaps the connection with it.
    Fail,
}

/// Decides what follows when try number `tries` failed. `was_warm`: the connection had been idle,
/// so that its loss says nothing about the statement.
fn next(error: &sqlx::Error, was_warm: bool, tries: u32) -> Next {
    let again = tries < TRIES;
    if cause::rolled_back_for_another(error) {
        return if again { Next::Again } else { Next::FailAndKeep };
    }
    match cause::of_database(error).consequence {
        // A statement over which the server itself goes down is not sent over and over.
        Consequence::Reconnect if again && (was_warm || cause::stale_statement(error)) => {
            Next::Reconnect
        }
        // Only an error that the server sent, and that did not end the connection, shows that it
        // lives.
        Consequence::Split | Consequence::Reject if !cause::ended_connection(error) => {
            Next::FailAndKeep
        }
        _ => Next::Fail,
    }
}

/// How long a statement may take before the deadline; with `half`, no more than half of that, so
/// that one which turns out to be too much leaves time for a smaller one. `None` where there is too
/// little left for any.
fn statement_limit(deadline: Deadline, now: tokio::time::Instant, half: bool) -> Option<Duration> {
    let share = if half { 2 } else { 1 };
    let most = STATEMENT_TIMEOUT * share + CANCEL_BEFORE_DEADLINE;
    let limit = deadline.limit(now, most).saturating_sub(CANCEL_BEFORE_DEADLINE) / share;
    (limit >= LEAST_STATEMENT_TIME).then_some(limit)
}

impl Database {
    /// Connects to nothing yet. `aws` is needed where the login asks an AWS service.
    #[must_use]
    pub fn new(config: DatabaseConfig, aws: Option<SdkConfig>) -> Self {
        Self {
            permits: Semaphore::new(config.connections),
            idle: Mutex::default(),
            between: Mutex::default(),
            failed: Mutex::default(),
            config,
            aws,
        }
    }

    /// The same database with connections of its own, for work that must not wait for that of the
    /// other one.
    #[must_use]
    pub fn apart(&self) -> Self {
        Self::new(self.config.clone(), self.aws.clone())
    }

    /// How many connections may be open at once.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.config.connections
    }

    /// What the last connection showed to be between us and the server; `None` if it led to the
    /// server itself, or there was no connection yet.
    #[must_use]
    pub fn between(&self) -> Option<Between> {
        *self.between.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens one more connection, for a command that needs a session of its own. A statement on it
    /// has no time limit in the server, but one for locks; we wait for it no longer than for any
    /// other.
    ///
    /// # Errors
    /// [`Error::Pooled`] where there is a pooler before the database, and what keeps one from
    /// connecting.
    pub async fn connect(&self) -> Result<DedicatedConnection, Error> {
        let connection = self.open(Purpose::Session, Deadline::NONE).await?;
        match connection.route {
            Route::Direct(_) => Ok(DedicatedConnection::new(connection.pg)),
            Route::Pooler | Route::Proxy => Err(Error::Pooled),
        }
    }

    /// Waits for one of the connections.
    ///
    /// # Errors
    /// [`Error::OutOfTime`] at the deadline.
    pub async fn lease(&self, deadline: Deadline) -> Result<Lease<'_>, Error> {
        let asked = Instant::now();
        tokio::select! {
            permit = self.permits.acquire() => {
                let permit = permit.expect("the semaphore is never closed");
                Ok(Lease { database: self, asked, deadline, half: false, _permit: permit })
            }
            () = deadline.passed() => Err(Error::OutOfTime { waiting_for: "a free connection" }),
        }
    }

    /// Waits for one of the connections, and runs one statement over it.
    ///
    /// # Errors
    /// As [`Database::lease`] and [`Lease::fetch`].
    pub async fn fetch(
        &self,
        sql: &'static str,
        arguments: impl Fn() -> Result<PgArguments, BoxDynError>,
        deadline: Deadline,
    ) -> Result<Vec<PgRow>, Error> {
        self.lease(deadline).await?.fetch(sql, arguments).await
    }

    /// Opens a connection, unless somebody has failed to since `asked`: whoever waited for a
    /// connection then fails with the one who tried, instead of waiting for the same once more.
    async fn open_or_fail_together(
        &self,
        asked: Instant,
        deadline: Deadline,
    ) -> Result<Connection, Error> {
        let failed = || self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, error)) = &*failed()
            && *at >= asked
        {
            return Err(Error::Connect(Arc::clone(error)));
        }
        match self.open(Purpose::Statements, deadline).await {
            Ok(connection) => Ok(connection),
            Err(error @ Error::OutOfTime { .. }) => Err(error),
            Err(error) => {
                let error = Arc::new(error);
                *failed() = Some((Instant::now(), Arc::clone(&error)));
                Err(Error::Connect(error))
            }
        }
    }

    async fn open(&self, purpose: Purpose, deadline: Deadline) -> Result<Connection, Error> {
        let opening = async {
            let options = self.options().await?;
            let asked_anew = self.config.login != Login::Url;
            let known = *self.between.lock().unwrap_or_else(PoisonError::into_inner);
            connect::open(&options, asked_anew, known, purpose).await
        };
        let limit = deadline.limit(tokio::time::Instant::now(), CONNECT_TIMEOUT);
        let silent = || {
            if limit < CONNECT_TIMEOUT {
                Error::OutOfTime { waiting_for: "the database to accept a connection" }
            } else {
                Error::ConnectTimeout { seconds: CONNECT_TIMEOUT.as_secs() }
            }
        };
        // Boxed: every future of the apply path has this one in it.
        let connection = within(limit, Box::pin(opening), silent).await?;
        *self.between.lock().unwrap_or_else(PoisonError::into_inner) = match connection.route {
            Route::Direct(_) => None,
            Route::Pooler => Some(Between::Pooler),
            Route::Proxy => Some(Between::Proxy),
        };
        Ok(connection)
    }

    /// Asks the server to end what we have given up on. That this fails is no more than a lock held
    /// longer: the server has a time limit of its own.
    async fn cancel(&self, backend: &Backend, deadline: Deadline) {
        let canceling = async {
            connect::cancel(&self.options().await?, backend).await.map_err(Error::Database)
        };
        let limit = deadline.limit(tokio::time::Instant::now(), CANCEL_TIMEOUT);
        if let Ok(Err(error)) = timeout(limit, canceling).await {
            let error = crate::error::chain(&error);
            tracing::debug!(error, "a statement that was given up could not be canceled");
        }
    }

    async fn options(&self) -> Result<PgConnectOptions, Error> {
        self.config.login.options(self.config.url.clone(), self.aws.as_ref()).await
    }

    fn keep(&self, connection: Connection) {
        let connection = Connection { idle_since: Instant::now(), ..connection };
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
    }

    fn warm(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|connection| connection.idle_since.elapsed() < MAX_IDLE);
        idle.pop()
    }
}

/// The right to use one connection.
#[derive(Debug)]
pub struct Lease<'a> {
    database: &'a Database,
    asked: Instant,
    deadline: Deadline,
    half: bool,
    _permit: SemaphorePermit<'a>,
}

impl Lease<'_> {
    /// A statement of it gets no more than half of the time before the deadline: what can be tried
    /// again in smaller pieces.
    #[must_use]
    pub fn halved(self) -> Self {
        Self { half: true, ..self }
    }

    /// Runs one statement that may be repeated without harm, and gives its rows.
    ///
    /// # Errors
    /// [`Error::Database`] or [`Error::StatementTimeout`] of the last try; [`Error::Connect`] where
    /// there is no connection, also to whoever waited while another found that out;
    /// [`Error::OutOfTime`] shortly before the deadline.
    pub async fn fetch(
        &self,
        sql: &'static str,
        arguments: impl Fn() -> Result<PgArguments, BoxDynError>,
    ) -> Result<Vec<PgRow>, Error> {
        let Self { database, asked, deadline, half, .. } = *self;
        let mut tries = 0;
        loop {
            tries += 1;
            let arguments =
                arguments().map_err(|error| Error::Database(sqlx::Error::Encode(error)))?;
            let (mut connection, was_warm) = match database.warm() {
                Some(connection) => (connection, true),
                None => (database.open_or_fail_together(asked, deadline).await?, false),
            };
            let now = tokio::time::Instant::now();
            let Some(limit) = statement_limit(deadline, now, half) else {
                database.keep(connection);
                return Err(Error::OutOfTime { waiting_for: "a statement" });
            };
            let Ok(answer) = timeout(limit, connection.run(sql, arguments, limit)).await else {
                let backend = connection.backend();
                // Closed first: the server may take no more connections.
                drop(connection);
                if let Some(backend) = backend {
                    database.cancel(&backend, deadline).await;
                }
                return Err(Error::StatementTimeout { limit });
            };
            let error = match answer {
                Ok(rows) => {
                    database.keep(connection);
                    return Ok(rows);
                }
                Err(error) => error,
            };
            match next(&error, was_warm, tries) {
                Next::Again => {
                    database.keep(connection);
                    let pause_ms = fastrand::u64(5..50) << tries;
                    tokio::time::sleep(Duration::from_millis(pause_ms)).await;
                }
                Next::Reconnect => {
                    // The server closes idle connections when it restarts or fails over, so the
                    // others are no better.
                    database.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
                }
                Next::FailAndKeep => {
                    database.keep(connection);
                    return Err(Error::Database(error));
                }
                Next::Fail => return Err(Error::Database(error)),
            }
        }
    }
}
