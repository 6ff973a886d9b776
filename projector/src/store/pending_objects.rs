//! PostgreSQL: the table `pending_objects`, for runs that store rows first and write objects
//! afterwards. It says only which sessions to look at; what an object holds is said by the object.

use sqlx::Row as _;
use sqlx::postgres::PgRow;

use crate::bind;
use crate::database::{Database, Lease};
use crate::deadline::Deadline;
use crate::error::Error;

const KEEP: &str = "INSERT INTO pending_objects (session_id, mark, is_new)
SELECT session_id, $2::bigint, NOT EXISTS (
    SELECT FROM measurements held WHERE held.session_id = given.session_id
)
FROM (SELECT unnest($1::text[]) COLLATE \"C\" AS session_id) given
ON CONFLICT (session_id) DO UPDATE SET mark = excluded.mark";

const NEXT: &str = "SELECT session_id, mark, is_new FROM pending_objects
WHERE session_id > $1 ORDER BY session_id LIMIT $2";

/// A key that another run has touched since it was read has another mark by now, and stays: its row
/// may be newer than the one that was compared. One that is locked is being touched right now.
const REMOVE: &str = "WITH compared AS (
    SELECT p.session_id FROM pending_objects p
    JOIN unnest($1::text[], $2::bigint[]) AS given (session_id, mark)
        ON p.session_id = given.session_id COLLATE \"C\" AND p.mark = given.mark
    FOR UPDATE OF p SKIP LOCKED
)
DELETE FROM pending_objects p USING compared WHERE p.session_id = compared.session_id";

const COUNT: &str = "SELECT count(*) FROM pending_objects";

/// A session whose object must still be compared with its row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingObject {
    /// The session.
    pub session_id: String,
    /// What the key's mark was when it was read.
    pub mark: i64,
    /// There was no row when the key was first kept, so there is probably no object either.
    pub is_new: bool,
}

/// The statement that keeps keys, as a part of another one that has the keys as its first
/// parameter and the mark as the one of this number.
pub(crate) fn keep_sql(mark_parameter: usize) -> String {
    KEEP.replace("$2", &format!("${mark_parameter}"))
}

/// A new mark: two runs that touch one key at the same time have two.
pub(crate) fn new_mark() -> i64 {
    fastrand::i64(..)
}

/// Keeps the keys of rows that are there, sorted.
///
/// # Errors
/// As [`Lease::fetch`].
pub(crate) async fn keep(lease: &Lease<'_>, session_ids: &[&str]) -> Result<(), Error> {
    if session_ids.is_empty() {
        return Ok(());
    }
    let mark = new_mark();
    lease.fetch(KEEP, bind![session_ids, mark]).await.map(drop)
}

/// Keeps the keys of rows that another statement has committed, in any order. Whoever is killed
/// between the two must look at these rows again.
///
/// # Errors
/// As [`Database::fetch`].
pub async fn keep_committed(database: &Database, session_ids: &[&str]) -> Result<(), Error> {
    let mut sorted = session_ids.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    if sorted.is_empty() {
        return Ok(());
    }
    let mark = new_mark();
    database.fetch(KEEP, bind![&sorted, mark], Deadline::NONE).await.map(drop)
}

/// The keys after this one, in order.
///
/// # Errors
/// As [`Database::fetch`].
pub async fn next(
    database: &Database,
    after: &str,
    limit: i64,
) -> Result<Vec<PendingObject>, Error> {
    let rows = database.fetch(NEXT, bind![after, limit], Deadline::NONE).await?;
    let pending = |row: &PgRow| {
        let (session_id, mark) = (row.try_get(0)?, row.try_get(1)?);
        Ok(PendingObject { session_id, mark, is_new: row.try_get(2)? })
    };
    rows.iter().map(pending).collect::<Result<_, _>>().map_err(Error::Database)
}

/// Removes keys whose objects have been compared, unless somebody has touched them since they were
/// read.
///
/// # Errors
/// As [`Database::fetch`].
pub async fn remove(database: &Database, compared: &[PendingObject]) -> Result<(), Error> {
    if compared.is_empty() {
        return Ok(());
    }
    let keys: Vec<&str> = compared.iter().map(|pending| pending.session_id.as_str()).collect();
    let marks: Vec<i64> = compared.iter().map(|pending| pending.mark).collect();
    database.fetch(REMOVE, bind![&keys, &marks], Deadline::NONE).await.map(drop)
}

/// How many keys there are.
///
/// # Errors
/// As [`Database::fetch`].
pub async fn count(database: &Database) -> Result<u64, Error> {
    let rows = database.fetch(COUNT, bind![], Deadline::NONE).await?;
    let count: i64 = rows.first().map_or(Ok(0), |row| row.try_get(0)).map_err(Error::Database)?;
    Ok(count.unsigned_abs())
}
