//! PostgreSQL: the lease of a repair by slices. Its parts are invocations of a function, so no
//! session lives as long as the repair does. The unfinished row in `repairs` that names an owner is
//! the lock instead, and the owner's heartbeat keeps it alive.
//!
//! - Whoever takes the lock of repairs refuses while a lease lives, and ends one that is dead.
//! - Whoever ends a lease locks its row with `FOR UPDATE` first. A slice writes with that row
//!   locked with `FOR KEY SHARE` (`projector::database::DedicatedConnection::fenced`), so it writes
//!   before the end or not at all.
//!
//! A clock decides when others may take over, and never whether a write is right.

use std::time::Duration;

use projector::bind;
use projector::cause::sqlstate;
use projector::database::{Database, DedicatedConnection, Transaction};
use projector::deadline::Deadline;
use projector::error::Error;
use sqlx::FromRow;
use sqlx::error::BoxDynError;
use sqlx::postgres::PgArguments;
use time::OffsetDateTime;

use crate::console::{self, clock, span};
use crate::repair::ledger::{self, Begun, Source};

/// A lease without a heartbeat for longer than this is dead: `STANDING` and `LOCK_DEAD` say the
/// same.
pub(crate) const LIVES_FOR: Duration = Duration::from_mins(10);

/// The unfinished rows that name an owner. Ages are by the database's clock, which wrote the
/// heartbeats.
const STANDING: &str = "SELECT id, owner, started_at,
    greatest(extract(epoch FROM clock_timestamp() - heartbeat_at), 0)::float8 AS silent_seconds,
    heartbeat_at > clock_timestamp() - interval '10 minutes' AS is_alive
FROM repairs WHERE ended_at IS NULL AND owner IS NOT NULL ORDER BY id";

/// Locks a dead lease. One that came alive again, or has ended, returns no row.
const LOCK_DEAD: &str = "SELECT id FROM repairs
WHERE id = $1 AND ended_at IS NULL AND heartbeat_at <= clock_timestamp() - interval '10 minutes'
FOR UPDATE";

/// Locks the owner's own lease.
const LOCK_OWN: &str = "SELECT id FROM repairs
WHERE id = $1 AND owner = $2 AND ended_at IS NULL FOR UPDATE";

const BEGIN: &str = "INSERT INTO repairs (source, owner, heartbeat_at, streams_since)
VALUES ($1, $2, clock_timestamp(), $3) RETURNING id, started_at";

const HEARTBEAT: &str = "UPDATE repairs
SET heartbeat_at = clock_timestamp(),
    read_through_sessions = greatest(read_through_sessions, $3),
    read_through_scans = greatest(read_through_scans, $4),
    following_since = coalesce(following_since, CASE WHEN $5 THEN clock_timestamp() END),
    caught_up_at = coalesce(caught_up_at, CASE WHEN $6 THEN clock_timestamp() END)
WHERE id = $1 AND owner = $2 AND ended_at IS NULL RETURNING id";

const READ: &str = "SELECT owner, started_at, ended_at, streams_since, following_since,
    read_through_sessions, read_through_scans,
    extract(epoch FROM clock_timestamp() - caught_up_at)::float8 AS caught_up_for_seconds,
    greatest(extract(epoch FROM clock_timestamp() - heartbeat_at), 0)::float8 AS silent_seconds
FROM repairs WHERE id = $1";

/// An unfinished repair by slices, as others see it.
#[derive(Clone, Debug, FromRow, serde::Serialize)]
pub(crate) struct Standing {
    pub(crate) id: i64,
    pub(crate) owner: String,
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) started_at: OffsetDateTime,
    /// The time since its last heartbeat.
    pub(crate) silent_seconds: f64,
    /// Whether nobody may take over.
    pub(crate) is_alive: bool,
}

impl Standing {
    /// Who it is, for people.
    pub(crate) fn name(&self) -> String {
        let Self { id, owner, started_at, silent_seconds, .. } = self;
        let silent = span(Duration::try_from_secs_f64(*silent_seconds).unwrap_or_default());
        format!(
            "repair {id} of {owner:?}, since {}, last heartbeat {silent} ago",
            clock(*started_at)
        )
    }

    /// Why nobody else may repair now, and the remedy.
    pub(crate) fn refusal(&self) -> String {
        format!(
            "a repair by slices is under way on this database ({}): wait until it ends, or stop \
             its execution. Its lease ends {} after its last heartbeat",
            self.name(),
            span(LIVES_FOR)
        )
    }
}

/// The row of a repair by slices, as its own parts see it.
#[derive(Clone, Debug, FromRow)]
pub(crate) struct Lease {
    pub(crate) owner: Option<String>,
    pub(crate) started_at: OffsetDateTime,
    pub(crate) ended_at: Option<OffsetDateTime>,
    /// From this time on the streams of both tables hold every change.
    pub(crate) streams_since: Option<OffsetDateTime>,
    /// When the streams were first replayed for it.
    pub(crate) following_since: Option<OffsetDateTime>,
    pub(crate) read_through_sessions: Option<OffsetDateTime>,
    pub(crate) read_through_scans: Option<OffsetDateTime>,
    /// For how long the streams have been read through to its beginning.
    caught_up_for_seconds: Option<f64>,
    silent_seconds: Option<f64>,
}

impl Lease {
    /// Whether no invocation from before its beginning can still write.
    pub(crate) fn may_read(&self, function_timeout: Duration) -> bool {
        self.caught_up_for_seconds.is_some_and(|seconds| seconds >= function_timeout.as_secs_f64())
    }

    /// For how long nobody has renewed it, if that is too long.
    pub(crate) fn dead_for(&self) -> Option<Duration> {
        let silent = Duration::try_from_secs_f64(self.silent_seconds?).ok()?;
        (silent >= LIVES_FOR).then_some(silent)
    }
}

/// How far the streams of both tables are read and stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Published {
    pub(crate) sessions: Option<OffsetDateTime>,
    pub(crate) scans: Option<OffsetDateTime>,
    /// A replay of them has begun.
    pub(crate) following: bool,
    /// Everything from before the beginning is stored.
    pub(crate) caught_up: bool,
}

/// What a repair by slices came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    /// It went through all its candidates.
    pub(crate) complete: bool,
    /// The parts that differed.
    pub(crate) candidates: u64,
    /// Those among them that it wrote.
    pub(crate) written: u64,
}

/// Whoever holds the lock of repairs sees that no lease lives, and ends those that are dead.
/// Returns the one that lives.
///
/// # Errors
/// If the database stays away, or a slice of a dead lease is writing: the next try may find it
/// done.
pub(crate) async fn clear(connection: &mut DedicatedConnection) -> Result<Option<Standing>, Error> {
    let standing: Vec<Standing> = match connection.fetch(STANDING, bind![]).await {
        Err(error) if knows_no_lease(&error) => return Ok(None),
        standing => standing?,
    };
    for lease in standing {
        let id = lease.id;
        if lease.is_alive || !end_dead(connection, id).await? {
            return Ok(Some(lease));
        }
        console::line(&format!("the lease of {} is dead, and is ended", lease.name()));
    }
    Ok(None)
}

/// Ends a dead lease. `false`: it came alive again, or somebody else has ended it.
async fn end_dead(connection: &mut DedicatedConnection, id: i64) -> Result<bool, Error> {
    let mut transaction = connection.begin().await?;
    let counted = Counted::default();
    let ended = end_locked(&mut transaction, LOCK_DEAD, bind![id], (id, counted)).await?;
    transaction.commit().await?;
    Ok(ended)
}

/// Ends the row of a repair, if this statement locks it: nothing is written for it any more once
/// that is committed. `false`: the statement found no such row.
async fn end_locked(
    transaction: &mut Transaction<'_>,
    lock: &'static str,
    of_lock: impl FnOnce() -> Result<PgArguments, BoxDynError>,
    (id, counted): (i64, Counted),
) -> Result<bool, Error> {
    let Counted { complete, candidates, written } = counted;
    let locked: Option<(i64,)> = transaction.fetch_first(lock, of_lock).await?;
    if locked.is_some() {
        ledger::end_within(transaction, id, complete, candidates, written).await?;
    }
    Ok(locked.is_some())
}

/// The unfinished leases, also without a session: behind a pooler, and for `status` and `doctor`.
///
/// # Errors
/// If the database cannot be asked.
pub(crate) async fn standing(database: &Database) -> Result<Vec<Standing>, Error> {
    match database.fetch(STANDING, bind![], Deadline::NONE).await {
        Err(error) if knows_no_lease(&error) => Ok(Vec::new()),
        rows => {
            let rows = rows?;
            rows.iter().map(Standing::from_row).collect::<Result<_, _>>().map_err(Error::Database)
        }
    }
}

/// Writes the row of a repair by slices, which is its lease. The caller holds the lock of repairs,
/// and has seen that no other lease stands. A repeated call of the same owner gets the same row.
///
/// # Errors
/// If the row cannot be written.
pub(crate) async fn begin(
    connection: &mut DedicatedConnection,
    owner: &str,
    streams_since: Option<OffsetDateTime>,
) -> Result<Begun, Error> {
    let arguments = bind![Source::Reconcile.name(), owner, streams_since];
    let (id, started_at) = connection.fetch_one(BEGIN, arguments).await?;
    Ok(Begun { id, started_at })
}

/// Renews a lease, and publishes how far the streams are read through. `false`: it has ended, or is
/// another owner's.
///
/// # Errors
/// If the database stays away.
pub(crate) async fn renew(
    database: &Database,
    (id, owner): (i64, &str),
    published: Published,
) -> Result<bool, Error> {
    let Published { sessions, scans, following, caught_up } = published;
    let arguments = bind![id, owner, sessions, scans, following, caught_up];
    Ok(!database.fetch(HEARTBEAT, arguments, Deadline::NONE).await?.is_empty())
}

/// The row of a repair; `None` if there is none.
///
/// # Errors
/// If the database cannot be asked.
pub(crate) async fn read(database: &Database, id: i64) -> Result<Option<Lease>, Error> {
    let rows = database.fetch(READ, bind![id], Deadline::NONE).await?;
    rows.first().map(Lease::from_row).transpose().map_err(Error::Database)
}

/// Locks the owner's own lease: until the transaction ends, no slice writes for it.
///
/// # Errors
/// [`Error::LeaseEnded`] if it has ended, or is another owner's.
pub(crate) async fn lock(
    transaction: &mut Transaction<'_>,
    (id, owner): (i64, &str),
) -> Result<(), Error> {
    let locked: Option<(i64,)> = transaction.fetch_first(LOCK_OWN, bind![id, owner]).await?;
    locked.map(drop).ok_or(Error::LeaseEnded { repair: id })
}

/// Ends a lease that is locked, and says what its repair came to.
///
/// # Errors
/// If the database stays away.
pub(crate) async fn end(
    transaction: &mut Transaction<'_>,
    id: i64,
    counted: Counted,
) -> Result<(), Error> {
    let Counted { complete, candidates, written } = counted;
    ledger::end_within(transaction, id, complete, candidates, written).await
}

/// A schema from before there were leases: SQLSTATE 42P01 and 42703 (PostgreSQL documentation,
/// "PostgreSQL Error Codes").
fn knows_no_lease(error: &Error) -> bool {
    let Error::Database(error) = error else { return false };
    matches!(sqlstate(error).as_deref(), Some("42P01" | "42703"))
}
