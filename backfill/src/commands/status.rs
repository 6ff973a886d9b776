//! `backfill status`: how far `stream` has come, who runs it, and which records are rejected. It
//! reads only the database, and takes no lock.

mod view;

use anyhow::Context as _;
use projector::bind;
use projector::config::ConfigError;
use projector::database::Database;
use projector::deadline::Deadline;
use projector::error::Error;
use projector::pending_objects;
use projector::start;
use serde::Serialize;
use sqlx::FromRow;
use sqlx::postgres::PgRow;
use time::OffsetDateTime;

use crate::advisory_lock::{self, Holder};
use crate::cli::Settings;
use crate::console;
use crate::outcome::Outcome;
use crate::output::Output;
use crate::repair::lease::{self, Standing};

const DISCARDED: &str = "SELECT count(*) FROM rejected_records WHERE discarded_at IS NOT NULL";

const TABLES: &str =
    "SELECT name FROM unnest(ARRAY['measurements', 'rejected_records', 'backfill_checkpoints', 'pending_objects'])
    AS needed (name) WHERE to_regclass(name) IS NULL";

/// The lag is computed by the database's clock, which also wrote the checkpoint.
const CHECKPOINTS: &str =
    "SELECT stream_arn, shard_id, sequence_number, read_through, finished, archive,
    snapshot_time, updated_at,
    CASE WHEN NOT finished THEN extract(epoch FROM now() - read_through)::bigint END AS lag_seconds
FROM backfill_checkpoints ORDER BY stream_arn, finished, read_through NULLS FIRST, shard_id";

/// The reasons with the most open records.
const REJECTED: &str =
    "SELECT reason, count(*) AS records, min(rejected_at) AS oldest, max(rejected_at) AS newest,
    sum(count(*)) OVER ()::bigint AS all_records, count(*) OVER () AS all_reasons
FROM rejected_records WHERE discarded_at IS NULL GROUP BY reason ORDER BY count(*) DESC, reason LIMIT 20";

/// PostgreSQL's estimates, from its last ANALYZE: counting would read the whole table.
const ROWS: &str = "SELECT CASE WHEN reltuples >= 0 THEN reltuples::bigint END AS estimate,
    (SELECT CASE WHEN count(*) > 0 THEN coalesce(sum(frequency) FILTER (WHERE value), 0) END
        FROM pg_stats s, unnest(s.most_common_vals::text::boolean[], s.most_common_freqs) AS c (value, frequency)
        WHERE s.schemaname = n.nspname AND s.tablename = 'measurements' AND s.attname = 'complete'
    )::float8 AS complete_share
FROM pg_class t JOIN pg_namespace n ON n.oid = t.relnamespace WHERE t.oid = to_regclass('measurements')";

/// Everything that the command says; `--json` prints it as it is.
#[derive(Debug, Serialize)]
struct Status {
    /// Who holds the lock of `stream`; `null`: nobody.
    lock: Option<Holder>,
    /// The repair by slices that has not ended; `null`: there is none.
    lease: Option<Standing>,
    checkpoints: Vec<Checkpoint>,
    rejected: Rejected,
    /// How many objects `file`, `stream`, `merge` and `repair` have left pending.
    objects_pending: u64,
    rows: Rows,
}

/// How far a shard has come.
#[derive(Clone, Debug, FromRow, Serialize)]
struct Checkpoint {
    stream_arn: String,
    shard_id: String,
    sequence_number: Option<String>,
    #[serde(with = "time::serde::rfc3339::option")]
    read_through: Option<OffsetDateTime>,
    finished: bool,
    archive: Option<String>,
    #[serde(with = "time::serde::rfc3339::option")]
    snapshot_time: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339")]
    updated_at: OffsetDateTime,
    /// The time since `read_through`; `null` for a shard that is finished.
    lag_seconds: Option<i64>,
}

/// The rejected records that are open: nobody has discarded them.
#[derive(Debug, Default, Serialize)]
struct Rejected {
    records: i64,
    reasons: i64,
    /// Those with the most records.
    by_reason: Vec<RejectedFor>,
    /// How many records are discarded.
    discarded: i64,
}

#[derive(Clone, Debug, FromRow, Serialize)]
struct RejectedFor {
    reason: String,
    records: i64,
    #[serde(with = "time::serde::rfc3339")]
    oldest: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    newest: OffsetDateTime,
    #[serde(skip)]
    all_records: i64,
    #[serde(skip)]
    all_reasons: i64,
}

/// Estimates of `measurements`; `null`: the table was never analyzed.
#[derive(Clone, Debug, Default, FromRow, Serialize)]
struct Rows {
    estimate: Option<i64>,
    /// The share of rows that have all three parts, from 0 to 1.
    complete_share: Option<f64>,
}

pub(crate) async fn run(settings: &Settings, output: &Output) -> anyhow::Result<Outcome> {
    let status = find_out(settings).await?;
    let width = console::table_width();
    output.result(|| view::render(&status, width), || serde_json::to_value(&status))?;
    Ok(Outcome::Done)
}

async fn find_out(settings: &Settings) -> anyhow::Result<Status> {
    let mut config = settings.config()?;
    // A login may need AWS, the rest does not.
    config.archive = None;
    let database = start::projector_with_credentials(config).await?.database;
    read(&database).await
}

async fn read(database: &Database) -> anyhow::Result<Status> {
    let missing = fetch::<(String,)>(database, TABLES).await.context("cannot read the database")?;
    if !missing.is_empty() {
        let names: Vec<&str> = missing.iter().map(|(name,)| name.as_str()).collect();
        let problem = format!(
            "names a database without {}: run `backfill migrate` against it, or name the right \
                database",
            names.join(", ")
        );
        return Err(ConfigError { variable: "DATABASE_URL", problem }.into());
    }
    let lock = advisory_lock::holder(advisory_lock::STREAM, database)
        .await
        .context("cannot read who holds the lock")?;
    let checkpoints =
        fetch(database, CHECKPOINTS).await.context("cannot read backfill_checkpoints")?;
    let by_reason: Vec<RejectedFor> =
        fetch(database, REJECTED).await.with_context(rejected_records)?;
    let discarded = fetch::<(i64,)>(database, DISCARDED).await.with_context(rejected_records)?;
    let discarded = discarded.first().map_or(0, |(count,)| *count);
    let rows = fetch(database, ROWS).await.context("cannot read the estimates of measurements")?;
    let objects_pending =
        pending_objects::count(database).await.context("cannot read pending_objects")?;
    let (records, reasons) =
        by_reason.first().map_or((0, 0), |first| (first.all_records, first.all_reasons));
    let leases = lease::standing(database).await.context("cannot read the table repairs")?;
    Ok(Status {
        lock,
        lease: leases.into_iter().next(),
        checkpoints,
        rejected: Rejected { records, reasons, by_reason, discarded },
        objects_pending,
        rows: rows.into_iter().next().unwrap_or_default(),
    })
}

fn rejected_records() -> &'static str {
    "cannot read rejected_records; if its column discarded_at is missing, run `backfill migrate`"
}

async fn fetch<T>(database: &Database, sql: &'static str) -> Result<Vec<T>, Error>
where
    T: for<'a> FromRow<'a, PgRow>,
{
    let none = bind![];
    let rows = database.fetch(sql, none, Deadline::NONE).await?;
    rows.iter().map(T::from_row).collect::<Result<_, _>>().map_err(Error::Database)
}
