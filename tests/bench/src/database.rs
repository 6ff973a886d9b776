//! The database stage: a folded batch → committed rows known, against the same rows without any
//! guard.
//!
//! The ceiling is one `INSERT ... SELECT unnest(...) ON CONFLICT DO UPDATE SET column =
//! excluded.column` of the same arrays into a table of the same shape, over a warm connection with
//! the statement prepared. It has no versions to compare and no answer to give.

use std::fmt::Write as _;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use projector::apply::BatchOutcome;
use projector::change::{self, Decoded, Tables};
use projector::deadline::Deadline;
use projector::fold::{self, IndexedChange, SessionChanges};
use projector::measurement::{COLUMNS, ColumnKind};
use projector::part::Part;
use projector::read_model::{self, Returned};
use testkit::records::{LABEL, Record, scan, session};
use testkit::services::Stores;
use testkit::sql::Client;

use crate::measure::{median, median_of, quantile, ratios};
use crate::plot::{self, Plot};
use crate::report::{Aim, Section};

/// Sessions a batch, each with all three parts: 30,000 records.
const BATCH: usize = 10_000;
/// What the table holds before: the updates hit rows at random places.
const LOADED: usize = 100_000;

/// What a batch does to the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// Every row is new.
    Fresh,
    /// Every row is there.
    Updating,
    /// Half and half.
    Mixed,
    /// Every change is there already.
    Replay,
}

impl Shape {
    const ALL: [Self; 4] = [Self::Fresh, Self::Updating, Self::Mixed, Self::Replay];

    fn name(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Updating => "updating",
            Self::Mixed => "mixed",
            Self::Replay => "replay",
        }
    }
}

/// One shape's rounds, in rows a second.
#[derive(Debug, Default)]
struct Rounds {
    guarded: Vec<f64>,
    /// The same over two connections.
    guarded_by_two: Vec<f64>,
    /// The same over one, as it is sent where there is an archive: rows come back, of 1,000 a
    /// statement.
    returning: Vec<f64>,
    ceiling: Vec<f64>,
    /// Bytes of WAL that the guarded batch wrote, page images aside.
    wal_bytes: Vec<f64>,
}

/// The sessions of a batch, with versions of this round.
fn records(sessions: impl Iterator<Item = usize>, round: usize) -> Vec<Record> {
    let mut records = Vec::with_capacity(3 * BATCH);
    for index in sessions {
        // As random as the ids of a real service, and the same in every run.
        let id = format!("m-{:016x}", (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let version = 1_000_000 * (round as u128 + 1) + index as u128;
        let length = format!("{}.{}", 220 + (index + round) % 80, index % 10);
        records.push(session(&id, &format!("user-{}", index % 5_000)).place(LABEL, version));
        records.push(scan(&id, "left", &length).place(LABEL, version));
        records.push(scan(&id, "right", &length).place(LABEL, version));
    }
    records
}

fn decoded(records: &[Record]) -> anyhow::Result<Vec<IndexedChange>> {
    let tables = Tables { sessions: "sessions".to_owned(), scans: "scans".to_owned() };
    let indexed = |(record_index, record): (usize, &Record)| match change::decode(
        record.json.as_bytes(),
        &tables,
    )? {
        Decoded::Change(change) => Ok(IndexedChange { record_index, change }),
        Decoded::Malformed(reason) => anyhow::bail!("{reason}"),
    };
    records.iter().enumerate().map(indexed).collect()
}

/// The upsert without any guard.
fn unguarded() -> String {
    let mut given = vec!["unnest($1::text[])".to_owned()];
    let mut targets = vec!["session_id".to_owned()];
    for column in COLUMNS.iter() {
        let number = given.len() + 1;
        given.push(match column.kind {
            ColumnKind::Text => format!("unnest(${number}::text[])"),
            ColumnKind::Millimetres => format!("unnest(${number}::text[])::numeric"),
            ColumnKind::Attributes => format!("unnest(${number}::text[])::json"),
            ColumnKind::Timestamp => format!("unnest(${number}::timestamptz[])"),
            ColumnKind::Bytes => format!("unnest(${number}::bytea[])"),
        });
        targets.push(column.name.clone());
    }
    for (suffix, of) in [("version", "text[]"), ("changed_at", "timestamptz[]")] {
        for part in Part::ALL {
            given.push(format!("unnest(${}::{of})", given.len() + 1));
            targets.push(format!("{}_{suffix}", part.name()));
        }
    }
    let sets: Vec<String> =
        targets[1..].iter().map(|name| format!("{name} = excluded.{name}")).collect();
    format!(
        "INSERT INTO measurements ({}) SELECT {} ON CONFLICT (session_id) DO UPDATE SET {}",
        targets.join(", "),
        given.join(", "),
        sets.join(", ")
    )
}

async fn run_unguarded(
    connection: &mut Client,
    sql: &str,
    sessions: &[SessionChanges<'_>],
) -> anyhow::Result<f64> {
    let start = Instant::now();
    let sessions: Vec<&SessionChanges<'_>> = sessions.iter().collect();
    let arguments =
        read_model::upsert_arguments(&sessions).map_err(|error| anyhow::anyhow!(error))?;
    let written = connection.change_with(sql, arguments).await;
    let seconds = start.elapsed().as_secs_f64();
    ensure!(written == sessions.len() as u64, "{written} rows written");
    Ok(sessions.len() as f64 / seconds)
}

/// Where the cluster's WAL ends.
async fn wal_position(observer: &mut Client) -> i64 {
    let sql = "SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint";
    let (position,) = observer.row(sql).await;
    position
}

/// Bytes of WAL about pages of the observer's database from `start` on, page images aside: those
/// follow a checkpoint, or the first reader of a page, and not what a statement writes.
async fn wal_bytes_since(start: i64, observer: &mut Client) -> i64 {
    // pg_walinspect reads only what is flushed.
    let flush = "SELECT pg_logical_emit_message(false, 'bench', '', flush => true)";
    observer.run(flush).await;
    let bytes = format!("SELECT coalesce(sum(bytes), 0)::bigint FROM (
        SELECT max(record_length) - sum(block_fpi_length) AS bytes
        FROM pg_get_wal_block_info('0/0'::pg_lsn + {start}, pg_current_wal_flush_lsn(), show_data => false)
        WHERE reldatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND resource_manager <> 'XLOG'
        GROUP BY start_lsn)");
    let (bytes,) = observer.row(&bytes).await;
    bytes
}

/// One guarded batch: rows a second.
async fn run_guarded(
    projector: &projector::apply::Projector,
    sessions: &[SessionChanges<'_>],
) -> anyhow::Result<f64> {
    let sessions = sessions.to_vec();
    let start = Instant::now();
    let mut batch = BatchOutcome::default();
    let refused = projector.store(sessions, &mut batch, Deadline::NONE).await?;
    let seconds = start.elapsed().as_secs_f64();
    ensure!(batch.failed.is_empty() && refused.is_empty());
    Ok(BATCH as f64 / seconds)
}

/// The statements of a batch whose rows come back for their objects: rows a second.
async fn run_returning(
    projector: &projector::apply::Projector,
    sessions: &[SessionChanges<'_>],
    ask_first: bool,
) -> anyhow::Result<f64> {
    let start = Instant::now();
    for sessions in sessions.chunks(1_000) {
        let lease = projector.database.lease(Deadline::NONE).await?;
        let upserted = read_model::upsert(&lease, sessions, Returned::SmallRows, ask_first).await?;
        ensure!(upserted.iter().all(Option::is_some));
    }
    Ok(sessions.len() as f64 / start.elapsed().as_secs_f64())
}

async fn rounds_of(shape: Shape, rounds: usize) -> anyhow::Result<Rounds> {
    let (guarded, by_two, with_rows, bare) = (
        Stores::fresh().await,
        Stores::fresh().await,
        Stores::fresh().await,
        Stores::fresh().await,
    );
    let one = guarded.projector_without_archive(&guarded.database_url, 1);
    let two = by_two.projector_without_archive(&by_two.database_url, 2);
    let returning = with_rows.projector_without_archive(&with_rows.database_url, 1);
    let mut connection = bare.connect().await;
    let mut observer = guarded.connect().await;
    observer.run("CREATE EXTENSION pg_walinspect").await;
    let sql = unguarded();
    for first in (0..LOADED).step_by(BATCH) {
        let changes = decoded(&records(first..first + BATCH, 0))?;
        let sessions = fold::fold(&changes);
        run_guarded(&one, &sessions).await?;
        run_guarded(&two, &sessions).await?;
        run_returning(&returning, &sessions, false).await?;
        run_unguarded(&mut connection, &sql, &sessions).await?;
    }
    let mut next_new = LOADED;
    let mut measured = Rounds::default();
    for round in 0..=rounds {
        let version = 1 + round;
        let old = (0..LOADED).skip(round % (LOADED / BATCH)).step_by(LOADED / BATCH);
        let records = match shape {
            Shape::Fresh => records(next_new..next_new + BATCH, version),
            Shape::Updating => records(old, version),
            Shape::Mixed => {
                let new = next_new..next_new + BATCH / 2;
                records(old.take(BATCH / 2).chain(new), version)
            }
            // As they were loaded.
            Shape::Replay => records(old, 0),
        };
        next_new += BATCH;
        let changes = decoded(&records)?;
        let sessions = fold::fold(&changes);
        ensure!(sessions.len() == BATCH);
        let before = wal_position(&mut observer).await;
        let rate = run_guarded(&one, &sessions).await?;
        let wal_bytes = wal_bytes_since(before, &mut observer).await;
        let ceiling = run_unguarded(&mut connection, &sql, &sessions)
            .await
            .with_context(|| format!("the ceiling of {}", shape.name()))?;
        let rate_of_two = run_guarded(&two, &sessions).await?;
        let rate_returning = run_returning(&returning, &sessions, shape == Shape::Replay).await?;
        // The first one plans its statements.
        if round > 0 {
            measured.guarded.push(rate);
            measured.guarded_by_two.push(rate_of_two);
            measured.returning.push(rate_returning);
            measured.ceiling.push(ceiling);
            measured.wal_bytes.push(wal_bytes as f64);
        }
    }
    Ok(measured)
}

/// Measures all shapes, each on tables of its own.
///
/// # Errors
/// Where a service refuses, or the results cannot be written.
pub(crate) async fn measure(quick: bool) -> anyhow::Result<Section> {
    let rounds = if quick { 9 } else { 25 };
    let mut table = String::from(
        "| batch | guarded, rows/s | ceiling, rows/s | ratio | middle half | over two connections | rows returned | WAL, bytes a row |\n|---|---|---|---|---|---|---|---|\n",
    );
    let (mut aims, mut series) = (Vec::new(), Vec::<plot::Series>::new());
    for shape in Shape::ALL {
        let of_shape = Box::pin(rounds_of(shape, rounds)).await?;
        let by_ceiling = |rates: &[f64]| ratios(rates, &of_shape.ceiling);
        let one = by_ceiling(&of_shape.guarded);
        let two = median(by_ceiling(&of_shape.guarded_by_two));
        let with_rows = median(by_ceiling(&of_shape.returning));
        let middle = |share| quantile(one.iter().copied(), share);
        let wal_bytes = median(of_shape.wal_bytes.iter().copied());
        writeln!(
            table,
            "| {} | {:.0} | {:.0} | **{:.2}** | {:.2} to {:.2} | {two:.2} | {with_rows:.2} | {:.1} |",
            shape.name(),
            median(of_shape.guarded.iter().copied()),
            median(of_shape.ceiling.iter().copied()),
            middle(0.5),
            middle(0.25),
            middle(0.75),
            wal_bytes / BATCH as f64,
        )?;
        let aim = if shape == Shape::Replay { 2.5 } else { 0.75 };
        let what = format!("database, {} batch: rows/s by those of the ceiling", shape.name());
        aims.push(Aim::at_least(what, aim, middle(0.5)));
        if shape == Shape::Replay {
            aims.push(Aim::at_most("database, replay: WAL written", 0.0, wal_bytes, "bytes"));
        }
        series.push((shape.name().to_owned(), one.iter().map(|ratio| (0.0, *ratio)).collect()));
    }
    let medians: Vec<f64> = series.iter().map(|(_, points)| median_of(points)).collect();
    let title = format!(
        "The guard costs at most {:.0} % of an upsert; a replay is {:.1} times as fast",
        100.0 * (1.0 - medians.iter().copied().fold(f64::MAX, f64::min)),
        medians.last().copied().unwrap_or(f64::NAN)
    );
    let plot = Plot {
        file: "database.svg".to_owned(),
        kind: plot::Kind::Ratios,
        title,
        x: "batch of 10,000 sessions".to_owned(),
        y: "rows/s by those without any guard (dashed)".to_owned(),
        series,
        columns: Vec::new(),
    };
    let text = format!(
        "A folded batch of {BATCH} sessions, each with its three parts, → committed rows known, over one warm connection, \
into a table of {LOADED} rows; {rounds} rounds. The ceiling is the same arrays by the same kind of statement without any \
guard and without an answer (`tests/bench/src/database.rs`). \"Rows returned\" is the statement that is sent where there is an archive, 1,000 sessions each. \
The WAL is that of pages, without commits and page images.\n\n{table}\n![ratios](database.svg)\n"
    );
    Ok(Section {
        order: 8,
        title: "The database stage".to_owned(),
        text,
        aims,
        figures: Vec::new(),
        plot: Some(plot),
    })
}
