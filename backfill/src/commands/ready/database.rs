//! PostgreSQL: what both databases, and the readers' login, say of themselves. Short statements,
//! each by itself.

use projector::bind;
use projector::config::{DatabaseConfig, Login, parse_url};
use projector::database::Database;
use projector::deadline::Deadline;
use projector::error::{self, Error};
use projector::pending_objects;
use sqlx::FromRow;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgRow};
use time::OffsetDateTime;

use super::condition::Asked;
use super::observed::{
    Full, Reader, Rejected, Relation, RelationKind, Setting, Statistics, Verified,
};

use crate::commands::migrate::schema::{self, Applied};

/// At most this many of the rejected records that the old side lacks are named.
const NAMED: usize = 5;
/// How many identities are looked up at once.
const PAGE: i64 = 1_000;

const IDENTITY: &str = "SELECT current_database() || ' ' || pg_postmaster_start_time()::text";

const OPEN: &str = "SELECT identity FROM rejected_records
WHERE discarded_at IS NULL AND identity > $1 ORDER BY identity LIMIT $2";

/// A record that the old side has discarded is known there, too.
const LACKING: &str = "SELECT identity FROM unnest($1::text[]) AS given (identity)
WHERE NOT EXISTS (SELECT FROM rejected_records r WHERE r.identity = given.identity COLLATE \"C\")";

const FULL: &str = "SELECT against, started_at, compared, missing + extra + older + content
FROM verifications
WHERE complete AND since IS NULL
    AND (comparison = 'tables' OR (comparison = 'rows' AND against = $1))
ORDER BY started_at DESC, id DESC LIMIT 1";

const AFTER: &str = "SELECT clock_timestamp(), (SELECT max(updated_at) FROM backfill_checkpoints),
    (SELECT max(started_at) FROM verifications
    WHERE started_at > $1 AND comparison IN ('rows', 'tables') AND missing + extra + older + content > 0)";

const STATISTICS: &str = "SELECT
    greatest(c.reltuples::float8, s.n_live_tup::float8, 0), coalesce(s.n_mod_since_analyze, 0),
    greatest(s.last_analyze, s.last_autoanalyze)
FROM pg_class c JOIN pg_stat_all_tables s ON s.relid = c.oid WHERE c.oid = 'measurements'::regclass";

/// The shares are those of the table itself: a row is written to each of its relations.
const RELATIONS: &str = "SELECT c.relname::text, c.relkind::text,
    pg_relation_size(c.oid) / current_setting('block_size')::bigint,
    greatest(pg_stat_get_blocks_fetched(c.oid) - pg_stat_get_blocks_hit(c.oid), 0),
    coalesce((t.n_tup_ins + t.n_tup_upd - t.n_tup_hot_upd)::float8
        / nullif(greatest(m.reltuples, t.n_live_tup), 0)::float8, 0)
FROM pg_class m
JOIN pg_stat_all_tables t ON t.relid = m.oid
JOIN pg_class c ON c.oid = m.oid OR c.oid = m.reltoastrelid
    OR c.oid IN (SELECT indexrelid FROM pg_index WHERE indrelid = m.oid)
WHERE m.oid = 'measurements'::regclass
ORDER BY c.relkind DESC, c.relname";

/// How a database is set up; infra/scripts/compare-settings asks the same.
const SETTINGS: &str = include_str!("../../../../infra/scripts/settings.sql");

const READ: &str = "SELECT current_user::text,
    (SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl),
    EXISTS (SELECT session_id FROM measurements)";

/// One statement, and its rows.
async fn ask<T>(
    database: &Database,
    sql: &'static str,
    arguments: impl Fn() -> Result<PgArguments, BoxDynError>,
) -> Asked<Vec<T>>
where
    T: for<'row> FromRow<'row, PgRow>,
{
    let rows = database.fetch(sql, arguments, Deadline::NONE).await;
    let rows = rows.and_then(|rows| {
        rows.iter().map(T::from_row).collect::<Result<Vec<T>, _>>().map_err(Error::Database)
    });
    rows.map_err(|error| error::chain(&error))
}

/// The first row of a statement that always has one.
async fn ask_one<T>(
    database: &Database,
    sql: &'static str,
    arguments: impl Fn() -> Result<PgArguments, BoxDynError>,
) -> Asked<T>
where
    T: for<'row> FromRow<'row, PgRow>,
{
    let first = ask(database, sql, arguments).await?.into_iter().next();
    first.ok_or_else(|| "there is no table measurements".to_owned())
}

/// The applied migrations.
pub(super) async fn applied(database: &Database) -> Asked<Vec<Applied>> {
    ask(database, schema::LEDGER, bind![]).await
}

/// The open rejected records of the new database, and which of them the old one lacks.
pub(super) async fn rejected(new: &Database, old: &Database) -> Asked<Rejected> {
    let mut rejected = Rejected::default();
    let mut after = String::new();
    loop {
        let open: Vec<(String,)> = ask(new, OPEN, bind![&after, PAGE]).await?;
        let open: Vec<String> = open.into_iter().map(|(identity,)| identity).collect();
        let Some(last) = open.last() else { return Ok(rejected) };
        after.clone_from(last);
        rejected.open += open.len();
        let lacking: Vec<(String,)> = ask(old, LACKING, bind![&open]).await?;
        rejected.unknown += lacking.len();
        let room = NAMED.saturating_sub(rejected.first.len());
        rejected.first.extend(lacking.into_iter().map(|(identity,)| identity).take(room));
    }
}

/// How many objects `backfill` has left pending.
pub(super) async fn pending_objects(database: &Database) -> Asked<u64> {
    pending_objects::count(database).await.map_err(|error| error::chain(&error))
}

/// The last full verify with this database or the tables.
pub(super) async fn verified(database: &Database, against: &str) -> Asked<Verified> {
    let full: Vec<(String, OffsetDateTime, i64, i64)> = ask(database, FULL, bind![against]).await?;
    let last = full.into_iter().next().map(|(against, started_at, compared, differences)| Full {
        against,
        started_at,
        compared,
        differences,
    });
    let after = last.as_ref().map_or(OffsetDateTime::UNIX_EPOCH, |full| full.started_at);
    let (now, checkpoint, found_later) = ask_one(database, AFTER, bind![after]).await?;
    Ok(Verified { now, last, found_later, checkpoint })
}

/// What the planner knows.
pub(super) async fn statistics(database: &Database) -> Asked<Statistics> {
    let (rows, changed_since, analyzed_at) = ask_one(database, STATISTICS, bind![]).await?;
    Ok(Statistics { rows, changed_since, analyzed_at })
}

/// How a database is set up.
pub(super) async fn settings(database: &Database) -> Asked<std::collections::BTreeSet<Setting>> {
    let rows: Vec<(String, String)> = ask(database, SETTINGS, bind![]).await?;
    Ok(rows.into_iter().map(|(name, value)| Setting { name, value }).collect())
}

/// The relations of `measurements`, and how much of each has been read.
pub(super) async fn relations(database: &Database) -> Asked<Vec<Relation>> {
    let rows: Vec<(String, String, i64, i64, f64)> = ask(database, RELATIONS, bind![]).await?;
    let relation = |(name, kind, blocks, blocks_read, written_here): (String, String, _, _, _)| {
        let kind = match kind.as_str() {
            "t" => RelationKind::Toast,
            "i" => RelationKind::Index,
            _ => RelationKind::Table,
        };
        Relation { name, kind, blocks, blocks_read, written_here }
    };
    Ok(rows.into_iter().map(relation).collect())
}

/// What the readers' login sees of the new database.
pub(super) async fn reader(url: &str, new: &Database) -> Asked<Reader> {
    let url: PgConnectOptions =
        parse_url(url).map_err(|problem| format!("the readers' URL {problem}"))?;
    let ssl_mode = url.get_ssl_mode();
    let config = DatabaseConfig { url: Some(url), login: Login::Url, connections: 1 };
    let database = Database::new(config, None);
    let (role, tls, row) = ask_one(&database, READ, bind![]).await?;
    let (here,): (String,) = ask_one(&database, IDENTITY, bind![]).await?;
    let (ours,): (String,) = ask_one(new, IDENTITY, bind![]).await?;
    Ok(Reader { role, same_database: here == ours, ssl_mode, tls, row })
}
