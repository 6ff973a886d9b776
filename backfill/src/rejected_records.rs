//! The open rows of `rejected_records`: which ones a command means, and its statements over them.
//! `redrive`, `redrive --discard` and a
//! repair share it.
//!
//! Every statement may be repeated without harm and says the same then, so that a lost answer
//! changes no count.

use projector::apply::Pace;
use projector::bind;
use projector::change::Place;
use projector::database::Database;
use projector::error::Error;
use projector::measurement::Versions;
use projector::rejected::record_of;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::{Arguments as _, Row as _};

use crate::outcome::Remedy;
use crate::retry::retry_transient;
use crate::statement::{self, lacks_privilege};

/// At most this many records are held at once; each may have a mesh of 400 KB.
pub(crate) const BATCH: usize = 100;

/// By identity, so that rows that stay are not asked for twice.
const NEXT: &str = "SELECT identity, reason, record::text FROM rejected_records
WHERE discarded_at IS NULL AND identity > $1
    AND ($2::text IS NULL OR reason LIKE $2) AND ($3::text IS NULL OR identity = $3)
ORDER BY identity LIMIT $4";
const NEXT_REASONS: &str = "SELECT identity, reason FROM rejected_records
WHERE discarded_at IS NULL AND identity > $1
    AND ($2::text IS NULL OR reason LIKE $2) AND ($3::text IS NULL OR identity = $3)
ORDER BY identity LIMIT $4";
const COUNT: &str = "SELECT count(*) FROM rejected_records
WHERE discarded_at IS NULL
    AND ($1::text IS NULL OR reason LIKE $1) AND ($2::text IS NULL OR identity = $2)";
/// A record that was discarded since it was read stays.
const REMOVE: &str =
    "DELETE FROM rejected_records WHERE identity = ANY($1) AND discarded_at IS NULL";
const DISCARD: &str = "UPDATE rejected_records
SET discarded_at = coalesce(discarded_at, now()), discarded_why = $2
WHERE identity = ANY($1) AND (discarded_at IS NULL OR discarded_why = $2)
RETURNING identity";
const HELD: &str = "SELECT session_id, session_version, left_version, right_version
FROM measurements WHERE session_id = ANY($1)";

/// Which of the open records a command means; all without a filter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Filter<'a> {
    /// A pattern of LIKE.
    pub(crate) reason: Option<&'a str>,
    /// One record.
    pub(crate) identity: Option<&'a str>,
}

/// A rejected record.
#[derive(Debug)]
pub(crate) struct Rejected {
    /// What its row is known by.
    pub(crate) identity: String,
    /// Its bytes, as they arrived.
    pub(crate) record: Vec<u8>,
}

/// How many records the filter means, or an estimate of all where counting takes too long.
pub(crate) async fn count(database: &Database, filter: Filter<'_>) -> anyhow::Result<u64> {
    let arguments = bind![filter.reason, filter.identity];
    retry_transient("count the rejected records", async || {
        statement::count(database, "rejected_records", COUNT, arguments).await
    })
    .await
}

/// The records after this identity, in order.
pub(crate) async fn next(
    database: &Database,
    after: &str,
    filter: Filter<'_>,
    pace: &mut Pace,
) -> anyhow::Result<Vec<Rejected>> {
    let rows = rows(database, NEXT, after, filter, pace).await?;
    let rejected = |row: &PgRow| {
        let (identity, kept): (String, String) = (row.try_get(0)?, row.try_get(2)?);
        let record = record_of(&identity, &kept);
        Ok::<_, sqlx::Error>(Rejected { identity, record })
    };
    Ok(rows.iter().map(rejected).collect::<Result<_, _>>()?)
}

/// The identities and the reasons of the records after this identity, in order.
pub(crate) async fn next_reasons(
    database: &Database,
    after: &str,
    filter: Filter<'_>,
    pace: &mut Pace,
) -> anyhow::Result<Vec<(String, String)>> {
    let rows = rows(database, NEXT_REASONS, after, filter, pace).await?;
    let reason = |row: &PgRow| Ok::<_, sqlx::Error>((row.try_get(0)?, row.try_get(1)?));
    Ok(rows.iter().map(reason).collect::<Result<_, _>>()?)
}

async fn rows(
    database: &Database,
    sql: &'static str,
    after: &str,
    filter: Filter<'_>,
    pace: &mut Pace,
) -> anyhow::Result<Vec<PgRow>> {
    let arguments = |limit| {
        let mut arguments = PgArguments::default();
        arguments.add(after)?;
        arguments.add(filter.reason)?;
        arguments.add(filter.identity)?;
        arguments.add(i64::try_from(limit)?)?;
        Ok(arguments)
    };
    let reading = retry_transient("read the rejected records", async || {
        statement::page(database, pace, sql, arguments).await
    });
    Ok(reading.await?.1)
}

/// Removes these records.
pub(crate) async fn remove(
    database: &Database,
    identities: &[String],
    pace: &mut Pace,
) -> anyhow::Result<()> {
    let of = |identities: &[String]| {
        let mut arguments = PgArguments::default();
        arguments.add(identities)?;
        Ok(arguments)
    };
    let what = "remove records from rejected_records";
    let removing = in_pieces(database, REMOVE, what, identities, pace, of).await;
    removing.map(drop).map_err(|error| match error.downcast_ref() {
        Some(Error::Database(cause)) if lacks_privilege(cause) => {
            let remedy = "a role that redrives needs DELETE on rejected_records: `backfill migrate \
                --grant-backfill-to ROLE` grants it";
            error.context(Remedy(remedy.to_owned()))
        }
        _ => error,
    })
}

/// Marks these records as discarded, and returns how many are.
pub(crate) async fn discard(
    database: &Database,
    identities: &[String],
    why: &str,
    pace: &mut Pace,
) -> anyhow::Result<u64> {
    let of = |identities: &[String]| {
        let mut arguments = PgArguments::default();
        arguments.add(identities)?;
        arguments.add(why)?;
        Ok(arguments)
    };
    let what = "discard rejected records";
    Ok(in_pieces(database, DISCARD, what, identities, pace, of).await?.len() as u64)
}

/// Which of these changes are overtaken: a later change of the same stream is in the row.
pub(crate) async fn overtaken(
    database: &Database,
    places: &[Place],
    pace: &mut Pace,
) -> anyhow::Result<Vec<bool>> {
    let sessions: Vec<String> = places.iter().map(|place| place.session_id.clone()).collect();
    let of = |sessions: &[String]| {
        let mut arguments = PgArguments::default();
        arguments.add(sessions)?;
        Ok(arguments)
    };
    let what = "read the versions in the rows";
    let mut held: std::collections::HashMap<String, Versions> = std::collections::HashMap::new();
    for row in in_pieces(database, HELD, what, &sessions, pace, of).await? {
        held.insert(row.try_get(0)?, [row.try_get(1)?, row.try_get(2)?, row.try_get(3)?].into());
    }
    let overtaken = |place: &Place| {
        let held = held.get(&place.session_id).and_then(|held| held[place.part].as_ref());
        held.is_some_and(|held| place.is_overtaken_by(held))
    };
    Ok(places.iter().map(overtaken).collect())
}

/// Runs a statement over these keys, as many at a time as the database takes, and returns all rows.
async fn in_pieces(
    database: &Database,
    sql: &'static str,
    what: &str,
    keys: &[String],
    pace: &mut Pace,
    arguments: impl Fn(&[String]) -> Result<PgArguments, sqlx::error::BoxDynError>,
) -> anyhow::Result<Vec<PgRow>> {
    let (mut remaining, mut all) = (keys, Vec::new());
    while !remaining.is_empty() {
        let of_piece = |limit: usize| arguments(&remaining[..limit.min(remaining.len())]);
        let running =
            retry_transient(what, async || statement::page(database, pace, sql, of_piece).await);
        let (limit, mut rows) = running.await?;
        all.append(&mut rows);
        remaining = &remaining[limit.min(remaining.len())..];
    }
    Ok(all)
}
