//! One at a time: an advisory lock of the database for commands that must not run beside each
//! other. `stream` has one of its own; `merge`, `redrive` and `repair` share another.
//!
//! The lock is a session's: it ends with its connection (PostgreSQL documentation, "Advisory
//! Locks"). So it needs a connection to the server itself, which is kept as long as the lock is
//! wanted.

use std::time::Duration;

use anyhow::Context as _;
use md5::{Digest as _, Md5};
use projector::bind;
use projector::database::{Database, DedicatedConnection};
use projector::deadline::Deadline;
use projector::error::Error;
use sqlx::Row as _;
use time::OffsetDateTime;

use crate::console;
use crate::repair::lease;

/// A run that was killed leaves its lock until the server notices that the connection is gone.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(250);

/// A lock, and who takes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lock {
    /// The advisory lock's key. It counts within one database.
    key: i64,
    /// The commands that take it, for the message to another one.
    commands: &'static str,
    /// The one that takes it now: the name of its session, by which another one knows the holder.
    command: Option<&'static str>,
}

impl Lock {
    /// The lock, as this command takes it: `backfill merge`.
    pub(crate) const fn by(self, command: &'static str) -> Self {
        Self { command: Some(command), ..self }
    }
}

/// Of the one run that replays the streams into a database.
pub(crate) const STREAM: Lock = Lock {
    key: i64::from_be_bytes(*b"backfill"),
    commands: "`backfill stream` or `repair`",
    command: None,
};

/// Of the one run that applies what was read elsewhere than from a stream.
pub(crate) const REPAIR: Lock = Lock {
    key: i64::from_be_bytes(*b"repairs\0"),
    commands: "`backfill merge`, `redrive` or `repair`",
    command: None,
};

/// Of the one slice that handles a file of an export for a repair.
pub(crate) fn of_slice(repair: i64, file: &str) -> Lock {
    let digest: [u8; 16] = Md5::digest(format!("slice {repair} {file}")).into();
    let (key, _) = digest.split_first_chunk().expect("a digest has 16 bytes");
    let key = i64::from_be_bytes(*key);
    Lock { key, commands: "slice of the same file", command: Some("backfill reconcile") }
}

/// Of the one call that handles an object of a bucket of failures for a repair.
pub(crate) fn of_failure(repair: i64, object: &str) -> Lock {
    Lock { commands: "call for the same object of failures", ..of_slice(repair, object) }
}

/// Another run holds the lock: which one, and how to end it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct HeldByAnother(String);

/// A lock that is held, over a connection of its own.
pub(crate) struct Held {
    lock: Lock,
    connection: DedicatedConnection,
    owner: Owner,
}

/// What tells a session of the server from all others, also after its process id was given anew.
#[derive(Clone, Copy, Debug)]
struct Owner {
    pid: i32,
    since: OffsetDateTime,
}

impl Held {
    /// Connects and takes the lock.
    ///
    /// # Errors
    /// If another run holds it: that one is named, with the way to end it.
    pub(crate) async fn take(lock: Lock, database: &Database) -> anyhow::Result<Self> {
        let mut connection = database.connect().await?;
        let owner = take(lock, &mut connection)
            .await
            .with_context(|| format!("cannot take the lock of {}", lock.commands))?
            .map_err(HeldByAnother)?;
        Ok(Self { lock, connection, owner })
    }

    /// Takes the lock from whoever has it, whose session is ended. With the session goes what it
    /// was about to write: a slice that is called again never runs beside its predecessor, whatever
    /// has become of that one. From then on the connection is fenced.
    ///
    /// # Errors
    /// [`Error::LeaseEnded`]; and if the other session cannot be ended.
    pub(crate) async fn take_over(
        lock: Lock,
        repair: i64,
        database: &Database,
    ) -> anyhow::Result<Self> {
        type Found = (i32, Option<String>, Option<OffsetDateTime>, Option<String>);
        let mut connection = database.connect().await?;
        let found: Option<Found> = connection.fetch_first(HOLDER, bind![lock.key]).await?;
        if let Some((pid, _, Some(since), _)) = found {
            end(&mut connection, Owner { pid, since }).await;
        }
        let owner = take(lock, &mut connection).await?.map_err(HeldByAnother)?;
        Ok(Self { lock, connection: connection.fenced(repair).await?, owner })
    }

    /// The same, or `None` behind a pooler, which has no session that could hold a lock: that is
    /// said.
    ///
    /// # Errors
    /// As [`Held::take`].
    pub(crate) async fn take_unless_pooled(
        lock: Lock,
        database: &Database,
    ) -> anyhow::Result<Option<Self>> {
        match Self::take(lock, database).await {
            Err(error) if matches!(error.downcast_ref(), Some(Error::Pooled)) => {
                if lock.key == REPAIR.key {
                    refuse_beside_lease(database).await?;
                }
                console::line(&format!(
                    "DATABASE_URL leads through a connection pooler, so nothing keeps another {} \
                     from running at the same time: see to it that none does",
                    lock.commands
                ));
                Ok(None)
            }
            held => held.map(Some),
        }
    }

    /// The connection that holds the lock: what is written over it is written with the lock held.
    pub(crate) fn connection(&mut self) -> &mut DedicatedConnection {
        &mut self.connection
    }

    /// Keeps a quiet connection, and so the lock, alive: some networks forget an idle connection.
    /// If it is lost, takes the lock again over a new one; if the database is away, the next call
    /// tries again.
    ///
    /// # Errors
    /// If another run has taken the lock meanwhile.
    pub(crate) async fn keep(&mut self, database: &Database) -> anyhow::Result<()> {
        let asking = self.connection.fetch::<(i32,)>("SELECT 1", bind![]);
        let Err(lost) = asking.await else { return Ok(()) };
        let lost = projector::error::chain(&lost);
        match self.retake(database).await {
            Ok(Ok(())) => {
                console::line(
                    "the connection that held the lock was lost; the lock is taken again",
                );
                Ok(())
            }
            Ok(Err(holder)) => Err(anyhow::Error::msg(holder))
                .context("the connection that held the lock was lost, and the lock with it"),
            Err(error) => {
                let error = projector::error::chain(&error);
                tracing::warn!(lost, error, "the lock is lost, and cannot be taken again yet");
                Ok(())
            }
        }
    }

    /// Makes the connection anew: with it the lock may be lost. Until both are there the old
    /// connection stays, over which nothing can be written without the lock. The inner error says
    /// who else holds it.
    ///
    /// # Errors
    /// If the database is away.
    pub(crate) async fn retake(
        &mut self,
        database: &Database,
    ) -> Result<Result<(), String>, Error> {
        let mut connection = database.connect().await?;
        end(&mut connection, self.owner).await;
        Ok(take(self.lock, &mut connection).await?.map(|owner| {
            self.connection = connection;
            self.owner = owner;
        }))
    }
}

/// Behind a pooler nothing can end a lease that is dead.
///
/// # Errors
/// [`HeldByAnother`] if a lease stands.
async fn refuse_beside_lease(database: &Database) -> anyhow::Result<()> {
    let standing = lease::standing(database).await.context("cannot read the table repairs")?;
    let Some(lease) = standing.first() else { return Ok(()) };
    let why = if lease.is_alive {
        lease.refusal()
    } else {
        format!(
            "the lease of {} is dead, and only a session can end it: name the database instance \
             itself in DATABASE_URL, and run the same command again",
            lease.name()
        )
    };
    Err(HeldByAnother(why).into())
}

/// Takes the lock; the inner error says who holds it.
async fn take(
    lock: Lock,
    connection: &mut DedicatedConnection,
) -> Result<Result<Owner, String>, Error> {
    let sql = "SELECT pg_try_advisory_lock($1), pid, backend_start,
        set_config('application_name', coalesce($2, application_name), false)
        FROM pg_stat_activity WHERE pid = pg_backend_pid()";
    let start = tokio::time::Instant::now();
    loop {
        let (taken, pid, since, _): (bool, i32, OffsetDateTime, String) =
            connection.fetch_one(sql, bind![lock.key, lock.command]).await?;
        if taken {
            let owner = Owner { pid, since };
            return Ok(refused_by_lease(lock, connection).await?.map_or(Ok(owner), Err));
        }
        if start.elapsed() >= PATIENCE {
            return Ok(Err(format!(
                "another {} is at work on this database{}",
                lock.commands,
                holder_text(lock, connection).await.unwrap_or_default()
            )));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Why a lease keeps the lock of repairs from who has just taken it. A dead one is ended. (The lock
/// is free again once its connection is dropped.)
async fn refused_by_lease(
    lock: Lock,
    connection: &mut DedicatedConnection,
) -> Result<Option<String>, Error> {
    if lock.key != REPAIR.key {
        return Ok(None);
    }
    Ok(lease::clear(connection).await?.map(|standing| standing.refusal()))
}

/// Ends a session of our own whose connection is lost, which the server may not have noticed: it
/// would hold the lock against us. That it is gone already is as good.
async fn end(connection: &mut DedicatedConnection, owner: Owner) {
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE pid = $1 AND backend_start = $2";
    let _ = connection.fetch::<(bool,)>(sql, bind![owner.pid, owner.since]).await;
}

/// Who holds the lock, and how to end it.
async fn holder_text(lock: Lock, connection: &mut DedicatedConnection) -> Option<String> {
    type Found = (i32, Option<String>, Option<OffsetDateTime>, Option<String>);
    let (pid, address, since, name): Found =
        connection.fetch_first(HOLDER, bind![lock.key]).await.ok()??;
    let command = name.filter(|name| name.starts_with("backfill "));
    let command = command.map(|command| format!("`{command}`, ")).unwrap_or_default();
    let address = address.map(|address| format!(" from {address}")).unwrap_or_default();
    let since = since.map(|since| format!(" since {}", console::clock(since))).unwrap_or_default();
    Some(format!(
        " ({command}server process {pid}{address}{since}): wait until it ends, or end it with SELECT \
            pg_terminate_backend({pid})"
    ))
}

/// Who holds a lock. A key of 64 bits is in two columns (PostgreSQL documentation, `pg_locks`).
const HOLDER: &str = "SELECT l.pid, host(a.client_addr), a.backend_start,
    a.application_name FROM pg_locks l
    LEFT JOIN pg_stat_activity a USING (pid)
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND l.classid::bigint = $1 >> 32 AND l.objid::bigint = $1 & 4294967295";

/// The server process that holds a lock.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct Holder {
    pub(crate) pid: i32,
    /// The address of its client; `None` for a Unix socket, or if this login may not see it.
    pub(crate) address: Option<String>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub(crate) connected_at: Option<OffsetDateTime>,
}

/// Who holds the lock on this database. Takes no lock itself.
///
/// # Errors
/// If the database cannot be asked.
pub(crate) async fn holder(lock: Lock, database: &Database) -> Result<Option<Holder>, Error> {
    let rows = database.fetch(HOLDER, bind![lock.key], Deadline::NONE).await?;
    let holder = rows.first().map(|row| {
        let (pid, address, connected_at) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        Ok(Holder { pid, address, connected_at })
    });
    holder.transpose().map_err(Error::Database)
}
