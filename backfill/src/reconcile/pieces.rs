//! PostgreSQL: how far each piece of a run has come, and what the pieces have added up together.
//!
//! A piece is a file or a range of rows, in one invocation after another. What an invocation came
//! to is recorded in one transaction at its end: it locks the row of the piece, sees that it is
//! still as the invocation found it, adds the keys from there on to the sums, and moves the row. So
//! a key is added once, whatever is killed, repeated, or answered to nobody. An invocation begins
//! where that row is, and not where its request is, if the row has come further.

use projector::bind;
use projector::database::{Database, DedicatedConnection, Transaction};
use projector::deadline::Deadline;
use projector::error::Error;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row as _};
use time::OffsetDateTime;

use super::Reconciler;
use super::runs::WrongRun;
use crate::compare_tables::sums::{Cells, Size, Sums};
use crate::compare_tables::sweep::RowRange;

/// The sums of a run are in at most this many rows, each of 4.7 MB or twice that.
const LANES: u64 = 4;

/// What is handled by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A file of an export.
    Slice,
    /// A range of rows whose keys are added up.
    Count,
    /// A range of rows of which some are asked for.
    Check,
    /// An object of a bucket of failures.
    Failure,
}

impl Kind {
    /// The name in the table.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Slice => "slice",
            Self::Count => "count",
            Self::Check => "check",
            Self::Failure => "failure",
        }
    }
}

/// One piece of a run.
#[derive(Clone, Debug)]
pub(super) struct Named {
    pub(super) run: i64,
    /// The key in the table, for people too.
    pub(super) piece: String,
    pub(super) kind: Kind,
}

/// How far a piece has come. The counts are those of all its invocations.
#[derive(Clone, Debug, Default, PartialEq, Eq, FromRow)]
pub(super) struct Progress {
    /// Up to where it is settled: a number of lines, or a session id.
    pub(super) next: String,
    /// Up to where it is in the sums.
    pub(super) added: String,
    pub(super) done: bool,
    pub(super) compared: i64,
    pub(super) differing: i64,
    pub(super) missing: i64,
    pub(super) repaired: i64,
    pub(super) asked: i64,
    pub(super) gone: i64,
    pub(super) removed: i64,
    pub(super) rejected: i64,
}

const READ: &str = "SELECT next, added, done, compared, differing, missing, repaired, asked, gone,
    removed, rejected
FROM reconciliation_pieces WHERE run = $1 AND piece = $2";

/// Whoever ends the run locks its row: nothing is recorded after that.
const LOCK_RUN: &str =
    "SELECT id FROM reconciliations WHERE id = $1 AND ended_at IS NULL FOR KEY SHARE";

/// The same, and nobody else at the same time.
const LOCK_RUN_ALONE: &str =
    "SELECT id FROM reconciliations WHERE id = $1 AND ended_at IS NULL FOR UPDATE";

const MAKE: &str = "INSERT INTO reconciliation_pieces (run, piece, kind) VALUES ($1, $2, $3)
ON CONFLICT DO NOTHING RETURNING run";

const LOCK: &str = "SELECT next, added, done, compared, differing, missing, repaired, asked, gone,
    removed, rejected
FROM reconciliation_pieces WHERE run = $1 AND piece = $2 FOR UPDATE";

const MOVE: &str = "UPDATE reconciliation_pieces SET next = $3, added = $4, done = $5,
    compared = $6, differing = $7, missing = $8, repaired = $9, asked = $10, gone = $11,
    removed = $12, rejected = $13
WHERE run = $1 AND piece = $2 RETURNING run";

const EXPORT_TIME: &str = "UPDATE reconciliations SET export_time = $2
WHERE id = $1 AND (export_time IS NULL OR export_time > $2) RETURNING id";

const MAKE_LANE: &str = "INSERT INTO reconciliation_sums (run, lane) VALUES ($1, $2)
ON CONFLICT DO NOTHING RETURNING run";
const LOCK_LANE: &str = "SELECT settled, CASE WHEN $3 THEN recent ELSE '' END
FROM reconciliation_sums WHERE run = $1 AND lane = $2 FOR UPDATE";
const ADD_TO_LANE: &str = "UPDATE reconciliation_sums
SET settled = $3, recent = coalesce($4, recent)
WHERE run = $1 AND lane = $2 RETURNING run";

const LANE: &str = "SELECT settled, recent FROM reconciliation_sums WHERE run = $1 AND lane = $2";

/// In the order of their rows.
const RANGES: &str = "SELECT after, through FROM reconciliation_pieces
WHERE run = $1 AND kind = 'count' ORDER BY after";

const MAKE_RANGES: &str = "INSERT INTO reconciliation_pieces (run, piece, kind, after, through)
SELECT $1, piece, 'count', after, through
FROM unnest($2::text[], $3::text[], $4::text[]) AS ranges (piece, after, through)
WHERE NOT EXISTS (SELECT FROM reconciliation_pieces WHERE run = $1 AND kind = 'count')
RETURNING run";

/// How many of the slices and ranges whose sums a check needs are not done.
const UNDONE: &str = "SELECT count(*) FROM reconciliation_pieces
WHERE run = $1 AND kind IN ('slice', 'count') AND NOT done";

/// Another invocation of the same piece has recorded something meanwhile.
#[derive(Debug, thiserror::Error)]
#[error(
    "another invocation has handled {0} meanwhile: call it again, and never two at a time for one \
     piece"
)]
struct Overtaken(String);

/// The key of a range's row.
pub(super) fn piece_of(kind: Kind, after: &str) -> String {
    format!("{} {after}", kind.name())
}

/// How far a piece has come; `None` if nothing is recorded.
///
/// # Errors
/// If the database stays away.
pub(super) async fn read(database: &Database, of: &Named) -> anyhow::Result<Option<Progress>> {
    let rows = database.fetch(READ, bind![of.run, &of.piece], Deadline::NONE).await?;
    Ok(rows.first().map(Progress::from_row).transpose().map_err(Error::Database)?)
}

/// The ranges that the rows of a run were split into; none if they were not.
///
/// # Errors
/// If the database stays away.
pub(super) async fn ranges(database: &Database, run: i64) -> anyhow::Result<Vec<RowRange>> {
    let rows = database.fetch(RANGES, bind![run], Deadline::NONE).await?;
    let range = |row: &PgRow| Ok(RowRange { after: row.try_get(0)?, through: row.try_get(1)? });
    let ranges: Result<_, sqlx::Error> = rows.iter().map(range).collect();
    Ok(ranges.map_err(Error::Database)?)
}

/// Keeps the ranges of a run, unless there are some: two calls at once must not split the rows in
/// two ways.
///
/// # Errors
/// If the run or its repair has ended, or the database stays away.
pub(super) async fn make_ranges(
    connection: &mut DedicatedConnection,
    run: i64,
    ranges: &[RowRange],
) -> anyhow::Result<()> {
    let piece = |range: &RowRange| piece_of(Kind::Count, &range.after);
    let pieces: Vec<String> = ranges.iter().map(piece).collect();
    let (after, through): (Vec<&str>, Vec<Option<&str>>) =
        ranges.iter().map(|range| (range.after.as_str(), range.through.as_deref())).unzip();
    let mut transaction = connection.begin().await?;
    // Not FOR KEY SHARE: another call waits, and sees these.
    let locked: Option<(i64,)> = transaction.fetch_first(LOCK_RUN_ALONE, bind![run]).await?;
    locked.ok_or(WrongRun::Ended(run))?;
    let made = bind![run, pieces, after, through];
    transaction.fetch::<(i64,)>(MAKE_RANGES, made).await?;
    Ok(transaction.commit().await?)
}

/// How many slices and ranges of a run are not in its sums to their ends.
///
/// # Errors
/// If the database stays away.
pub(super) async fn undone(database: &Database, run: i64) -> anyhow::Result<i64> {
    let rows = database.fetch(UNDONE, bind![run], Deadline::NONE).await?;
    let count = rows.first().map_or(Ok(0), |row| row.try_get(0));
    Ok(count.map_err(Error::Database)?)
}

/// A connection over which a piece of this repair, or of a comparison, is recorded.
///
/// # Errors
/// [`Error::LeaseEnded`]; and if the database stays away.
pub(super) async fn connect(
    context: &Reconciler,
    repair: Option<i64>,
) -> Result<DedicatedConnection, Error> {
    let connection = context.projector.database.connect().await?;
    match repair {
        Some(repair) => connection.fenced(repair).await,
        None => Ok(connection),
    }
}

/// What an invocation adds to its run.
#[derive(Default)]
pub(super) struct Added {
    pub(super) sums: Option<Sums>,
    pub(super) export_time: Option<OffsetDateTime>,
}

/// Records what an invocation came to, if the piece is still as the invocation found it.
///
/// # Errors
/// If the run or its repair has ended, the piece was handled by another invocation, or the database
/// stays away. If its answer is lost, the next invocation finds out what was recorded.
pub(super) async fn record(
    connection: &mut DedicatedConnection,
    of: &Named,
    (before, after): (&Progress, &Progress),
    added: Added,
) -> anyhow::Result<()> {
    let Named { run, piece, kind } = of;
    let mut transaction = connection.begin().await?;
    let locked: Option<(i64,)> = transaction.fetch_first(LOCK_RUN, bind![run]).await?;
    locked.ok_or(WrongRun::Ended(*run))?;
    transaction.fetch::<(i64,)>(MAKE, bind![run, piece, kind.name()]).await?;
    let found: Option<Progress> = transaction.fetch_first(LOCK, bind![run, piece]).await?;
    if found.as_ref() != Some(before) {
        return Err(Overtaken(piece.clone()).into());
    }
    let Added { sums, export_time } = added;
    if let Some(export_time) = export_time {
        transaction.fetch::<(i64,)>(EXPORT_TIME, bind![run, export_time]).await?;
    }
    if let Some(sums) = sums {
        add(&mut transaction, of, sums).await?;
    }
    let Progress { next, added, done, compared, differing, missing, .. } = after;
    let Progress { repaired, asked, gone, removed, rejected, .. } = after;
    let counts = bind![
        run, piece, next, added, done, compared, differing, missing, repaired, asked, gone,
        removed, rejected
    ];
    transaction.fetch::<(i64,)>(MOVE, counts).await?;
    Ok(transaction.commit().await?)
}

/// Adds sums to those of one lane.
async fn add(transaction: &mut Transaction<'_>, of: &Named, sums: Sums) -> anyhow::Result<()> {
    let Sums { mut settled, mut recent } = sums;
    if settled.is_empty() && recent.is_empty() {
        return Ok(());
    }
    let lane = lane(&of.piece);
    transaction.fetch::<(i64,)>(MAKE_LANE, bind![of.run, lane]).await?;
    let has_recent = !recent.is_empty();
    let kept: Option<(Vec<u8>, Vec<u8>)> =
        transaction.fetch_first(LOCK_LANE, bind![of.run, lane, has_recent]).await?;
    let (of_settled, of_recent) = kept.ok_or(WrongRun::Ended(of.run))?;
    settled.add_bytes(&of_settled)?;
    recent.add_bytes(&of_recent)?;
    let bytes = (settled.to_bytes(), has_recent.then(|| recent.to_bytes()));
    transaction.fetch::<(i64,)>(ADD_TO_LANE, bind![of.run, lane, bytes.0, bytes.1]).await?;
    Ok(())
}

/// The lane of a piece: any, and always the same.
fn lane(piece: &str) -> i16 {
    let sum =
        piece.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
    i16::try_from(sum % LANES).expect("less than the lanes")
}

/// All that the pieces of a run have added up.
///
/// # Errors
/// If the database stays away.
pub(super) async fn sums(database: &Database, run: i64) -> anyhow::Result<Sums> {
    let mut sums = Sums::new(Size::SHARED);
    for lane in 0..i16::try_from(LANES)? {
        let rows = database.fetch(LANE, bind![run, lane], Deadline::NONE).await?;
        let kept = rows.first().map(<(Vec<u8>, Vec<u8>)>::from_row);
        let Some((settled, recent)) = kept.transpose().map_err(Error::Database)? else { continue };
        add_bytes(&mut sums.settled, &settled)?;
        add_bytes(&mut sums.recent, &recent)?;
    }
    Ok(sums)
}

fn add_bytes(cells: &mut Cells, bytes: &[u8]) -> anyhow::Result<()> {
    Ok(cells.add_bytes(bytes)?)
}
