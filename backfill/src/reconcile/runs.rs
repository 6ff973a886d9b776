//! PostgreSQL: the runs of the function, in the table `reconciliations`: one row per execution,
//! whether it repairs or only compares. What its pieces have recorded is summed up at its end.

use projector::bind;
use projector::change::Tables;
use projector::database::{Database, DedicatedConnection, Transaction};
use projector::deadline::Deadline;
use projector::error::Error;
use sqlx::FromRow;
use time::OffsetDateTime;

use super::event::{End, Ended};
use crate::compare_tables::sums::Hashes;
use crate::repair::lease::{self, Counted};

/// What changed this long before the oldest export may have been applied only after it.
const RECENT: time::Duration = time::Duration::minutes(15);

/// An owner that begins another repair begins anew.
const FORGET: &str =
    "DELETE FROM reconciliations WHERE owner = $1 AND repair IS DISTINCT FROM $2 RETURNING id";

const BEGIN: &str = "INSERT INTO reconciliations (owner, repair) VALUES ($1, $2)
ON CONFLICT (owner) DO UPDATE SET owner = excluded.owner
RETURNING id, started_at";

/// Nobody ends a run whose repair has ended, or whose execution was stopped. A run takes hours, and
/// the export of one that takes longer than a day is too old.
const END_DEAD: &str = "UPDATE reconciliations SET ended_at = clock_timestamp()
WHERE ended_at IS NULL AND id <> $1 AND (started_at < clock_timestamp() - interval '7 days'
    OR EXISTS (SELECT FROM repairs r WHERE r.id = reconciliations.repair AND r.ended_at IS NOT NULL))
RETURNING id";

const DROP_SUMS: &str = "DELETE FROM reconciliation_sums s USING reconciliations r
WHERE r.id = s.run AND r.ended_at IS NOT NULL RETURNING s.run";
const DROP_PIECES: &str = "DELETE FROM reconciliation_pieces p USING reconciliations r
WHERE r.id = p.run AND r.ended_at IS NOT NULL RETURNING p.run";

const READ: &str = "SELECT repair, hash_key, started_at, export_time, ended_at
FROM reconciliations WHERE id = $1";

/// Locks the run of an owner, if it has not ended.
const LOCK: &str = "SELECT id FROM reconciliations
WHERE id = $1 AND owner = $2 AND repair IS NOT DISTINCT FROM $3 AND ended_at IS NULL FOR UPDATE";

/// What the pieces come to. What a range of rows finds is beside what the files have.
const SUM_UP: &str = "WITH pieces AS (SELECT
    count(*) FILTER (WHERE kind IN ('slice', 'failure')) AS files,
    coalesce(sum(compared) FILTER (WHERE kind IN ('slice', 'failure')), 0)::bigint AS compared,
    coalesce(sum(differing), 0)::bigint AS differing,
    coalesce(sum(missing), 0)::bigint AS missing,
    coalesce(sum(repaired), 0)::bigint AS repaired,
    coalesce(sum(gone), 0)::bigint AS gone,
    coalesce(sum(removed), 0)::bigint AS removed,
    coalesce(sum(rejected), 0)::bigint AS rejected,
    coalesce(bool_and(done), true) AS all_done,
    count(*) FILTER (WHERE kind = 'slice') AS slices,
    count(*) FILTER (WHERE kind = 'count') AS counted,
    count(*) FILTER (WHERE kind = 'check') AS checked
FROM reconciliation_pieces WHERE run = $1)
UPDATE reconciliations r SET ended_at = clock_timestamp(),
    complete = $2 AND p.all_done AND p.counted = p.checked,
    files = p.files, compared = p.compared, differing = p.differing, repaired = p.repaired,
    gone = p.gone, removed = p.removed, rejected = p.rejected
FROM pieces p WHERE r.id = $1
RETURNING p.missing, p.slices + p.counted > 0, p.counted > 0";

const ENDED: &str = "SELECT id, repair, complete, files, compared, differing, repaired, gone,
    removed, rejected
FROM reconciliations WHERE id = $1 AND owner = $2 AND ended_at IS NOT NULL";

/// The row that `verify` would write. A repair leaves no difference but what it cannot apply.
const VERIFIED: &str = "INSERT INTO verifications
    (comparison, against, started_at, complete, compared, missing, extra, older, content)
SELECT 'tables', $2, least(started_at, export_time),
    complete AND $3 AND (repair IS NULL OR rejected = 0), compared,
    CASE WHEN repair IS NULL THEN $4 ELSE 0 END, CASE WHEN repair IS NULL THEN gone ELSE 0 END, 0,
    CASE WHEN repair IS NULL THEN differing - gone - $4 ELSE 0 END
FROM reconciliations WHERE id = $1 RETURNING id";

/// The run cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WrongRun {
    /// There is none, or nothing is recorded for it any more.
    #[error("run {0} has ended, or was never begun: begin a new one")]
    Ended(i64),
    /// A state machine has mixed up two runs.
    #[error("run {run} belongs to repair {is:?}, not to {asked:?}: send what `begin` has answered")]
    OfAnother {
        /// The run.
        run: i64,
        /// Its repair.
        is: Option<i64>,
        /// That of the request.
        asked: Option<i64>,
    },
}

/// A run that has not ended.
#[derive(Clone, Debug, FromRow)]
pub(super) struct Run {
    pub(super) repair: Option<i64>,
    hash_key: Vec<u8>,
    pub(super) started_at: OffsetDateTime,
    export_time: Option<OffsetDateTime>,
    ended_at: Option<OffsetDateTime>,
}

impl Run {
    /// How keys become numbers, in every invocation of the run.
    pub(super) fn hashes(&self) -> Hashes {
        Hashes::new(self.hash_key.clone())
    }

    /// Since when a row's change counts as recent. It never gets later.
    pub(super) fn recent_since(&self) -> OffsetDateTime {
        self.export_time.unwrap_or(self.started_at) - RECENT
    }
}

/// Writes the row of a run. The same owner gets the same row. Whoever begins drops what runs have
/// left that nobody will end.
///
/// # Errors
/// If the database stays away.
pub(super) async fn begin(
    connection: &mut DedicatedConnection,
    owner: &str,
    repair: Option<i64>,
) -> Result<(i64, OffsetDateTime), Error> {
    connection.fetch::<(i64,)>(FORGET, bind![owner, repair]).await?;
    let begun: (i64, OffsetDateTime) = connection.fetch_one(BEGIN, bind![owner, repair]).await?;
    for id in connection.fetch::<(i64,)>(END_DEAD, bind![begun.0]).await? {
        tracing::warn!(run = id.0, "a run that nobody will end is ended");
    }
    connection.fetch::<(i64,)>(DROP_SUMS, bind![]).await?;
    connection.fetch::<(i64,)>(DROP_PIECES, bind![]).await?;
    Ok(begun)
}

/// The run that a request names.
///
/// # Errors
/// [`WrongRun`]; and if the database stays away.
pub(super) async fn read(
    database: &Database,
    (id, repair): (i64, Option<i64>),
) -> anyhow::Result<Run> {
    let rows = database.fetch(READ, bind![id], Deadline::NONE).await?;
    let run = rows.first().map(Run::from_row).transpose().map_err(Error::Database)?;
    let run = run.filter(|run| run.ended_at.is_none()).ok_or(WrongRun::Ended(id))?;
    if run.repair != repair {
        return Err(WrongRun::OfAnother { run: id, is: run.repair, asked: repair }.into());
    }
    Ok(run)
}

/// Ends a run, and the lease of its repair: sums up what its pieces have recorded, writes the row
/// in `verifications`, and drops the rest. A repeated call answers the same.
///
/// # Errors
/// [`Error::LeaseEnded`]; [`WrongRun`]; and if the database stays away.
pub(super) async fn end(
    connection: &mut DedicatedConnection,
    end: &End,
    tables: &Tables,
) -> anyhow::Result<Ended> {
    if let Some(ended) = ended(connection, end).await? {
        return Ok(ended);
    }
    let mut transaction = connection.begin().await?;
    let ending = end_within(&mut transaction, end, tables).await;
    if let Err(error) = ending {
        transaction.roll_back().await?;
        // Another call of the same owner may have come first.
        return ended(connection, end).await?.ok_or(error);
    }
    transaction.commit().await?;
    let ended = ended(connection, end).await?;
    ended.ok_or_else(|| WrongRun::Ended(end.run).into())
}

async fn ended(connection: &mut DedicatedConnection, end: &End) -> Result<Option<Ended>, Error> {
    connection.fetch_first(ENDED, bind![end.run, &end.owner]).await
}

async fn end_within(
    transaction: &mut Transaction<'_>,
    end: &End,
    tables: &Tables,
) -> anyhow::Result<()> {
    let End { run, repair, owner, complete } = end;
    // In this order, as whoever records a piece: first the repair, then the run.
    if let Some(repair) = repair {
        lease::lock(transaction, (*repair, owner)).await?;
    }
    let locked: Option<(i64,)> = transaction.fetch_first(LOCK, bind![run, owner, repair]).await?;
    locked.ok_or(WrongRun::Ended(*run))?;
    let summed: Option<(i64, bool, bool)> =
        transaction.fetch_first(SUM_UP, bind![run, complete]).await?;
    let (missing, compares, is_counted) = summed.ok_or(WrongRun::Ended(*run))?;
    if compares {
        let Tables { sessions, scans } = tables;
        let against = format!("exports of the tables {sessions} and {scans}");
        let of_row = bind![run, against, is_counted, missing];
        transaction.fetch::<(i64,)>(VERIFIED, of_row).await?;
    }
    if let Some(repair) = repair {
        let summed: Option<Ended> = transaction.fetch_first(ENDED, bind![run, owner]).await?;
        let summed = summed.ok_or(WrongRun::Ended(*run))?;
        let counted = Counted {
            complete: summed.complete,
            candidates: summed.differing.unsigned_abs(),
            written: summed.repaired.unsigned_abs(),
        };
        lease::end(transaction, *repair, counted).await?;
    }
    transaction.fetch::<(i64,)>(DROP_SUMS, bind![]).await?;
    transaction.fetch::<(i64,)>(DROP_PIECES, bind![]).await?;
    Ok(())
}
