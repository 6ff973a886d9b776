//! Mixed batches while the table grows: keys that are random (UUIDs of version 4), and keys in
//! order of time.

use std::fmt::Write as _;
use std::time::Instant;

use anyhow::ensure;
use projector::apply::BatchOutcome;
use projector::bind;
use projector::change::{self, Decoded};
use projector::deadline::Deadline;
use projector::fold::{self, IndexedChange};
use testkit::records::{LABEL, scan, session};
use testkit::services::Stores;
use testkit::sql::Client;

use crate::measure::median;
use crate::plot::{self, Plot};
use crate::report::Section;

/// Sessions a batch, half of them new.
const BATCH: usize = 5_000;

/// What the keys are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keys {
    Random,
    InOrder,
}

impl Keys {
    const ALL: [Self; 2] = [Self::Random, Self::InOrder];

    fn name(self) -> &'static str {
        match self {
            Self::Random => "random keys (UUID v4)",
            Self::InOrder => "keys in order of time",
        }
    }

    /// The key of the session of this number, in SQL and here.
    fn sql(self) -> &'static str {
        match self {
            Self::Random => "md5(n::text)::uuid::text",
            Self::InOrder => "'m-' || lpad(n::text, 16, '0')",
        }
    }
}

/// Lets the table grow to this many rows, on the server.
async fn grow(connection: &mut Client, keys: Keys, from: u64, to: u64) {
    let sql = format!(
        "INSERT INTO measurements (session_id, user_id, started_at, device_model, left_scanned_at, \
            left_foot_length_mm, left_foot_breadth_mm, left_ball_girth_mm, right_scanned_at, \
            right_foot_length_mm, right_foot_breadth_mm, right_ball_girth_mm, session_version, \
            left_version, right_version, session_changed_at, left_changed_at, right_changed_at) \
            SELECT {key}, 'user-' || n % 50000, t, 'iPhone16,2', t, 245.3, 98.7, 243.1, t, 246.1, \
            98.9, 243.5, v, v, v, t, t, t FROM generate_series({from}::bigint, {to}::bigint - 1) \
            n, LATERAL (SELECT timestamptz '2026-11-22T08:00Z' AS t, '{LABEL}/' || lpad('1', 40, \
            '0') AS v) given",
        key = keys.sql()
    );
    connection.run(&sql).await;
    connection.run("ANALYZE measurements").await;
}

/// Keys by their numbers.
async fn keys_of(
    connection: &mut Client,
    keys: Keys,
    numbers: &[i64],
) -> anyhow::Result<Vec<String>> {
    let sql = format!("SELECT {} FROM unnest($1::bigint[]) n", keys.sql());
    let numbers = bind![numbers]().map_err(|error| anyhow::anyhow!(error))?;
    let keys: Vec<(String,)> = connection.rows_with(&sql, numbers).await;
    Ok(keys.into_iter().map(|(key,)| key).collect())
}

/// Measures tables of each size.
///
/// # Errors
/// Where PostgreSQL refuses, or the results cannot be written.
pub(crate) async fn measure(quick: bool) -> anyhow::Result<Section> {
    let sizes: &[u64] =
        if quick { &[30_000, 100_000, 300_000] } else { &[100_000, 1_000_000, 10_000_000] };
    let rounds = if quick { 5 } else { 12 };
    let mut table = String::from(
        "| rows | keys | rows/s, half of them new | heap, MB | indexes, MB | pages read from \
            outside shared_buffers, a row |\n|---|---|---|---|---|---|\n",
    );
    let mut series: Vec<plot::Series> = Vec::new();
    for keys in Keys::ALL {
        let stores = Stores::fresh().await;
        let projector = stores.projector_without_archive(&stores.database_url, 1);
        let mut connection = stores.connect().await;
        let (mut rows, mut version) = (0, 1_000_u128);
        let mut points = Vec::new();
        for size in sizes {
            grow(&mut connection, keys, rows, *size).await;
            rows = *size;
            let (mut rates, mut reads) = (Vec::new(), Vec::new());
            for round in 0..=rounds {
                let old = (0..BATCH / 2).map(|_| fastrand::u64(..*size));
                let new = rows..rows + BATCH as u64 / 2;
                rows = new.end;
                let numbers: Vec<i64> = old.chain(new).map(u64::cast_signed).collect();
                version += 1;
                let mut changes = Vec::new();
                for key in keys_of(&mut connection, keys, &numbers).await? {
                    for record in [
                        session(&key, "user").place(LABEL, version),
                        scan(&key, "left", "251.2").place(LABEL, version),
                        scan(&key, "right", "252.2").place(LABEL, version),
                    ] {
                        let decoded = change::decode(record.json.as_bytes(), &projector.tables)?;
                        let Decoded::Change(change) = decoded else { anyhow::bail!("malformed") };
                        changes.push(IndexedChange { record_index: changes.len(), change });
                    }
                }
                let sessions = fold::fold(&changes);
                let before = pages_read(&mut connection).await;
                let start = Instant::now();
                let count = sessions.len() as f64;
                let mut batch = BatchOutcome::default();
                projector.store(sessions, &mut batch, Deadline::NONE).await?;
                let seconds = start.elapsed().as_secs_f64();
                ensure!(batch.failed.is_empty());
                if round > 0 {
                    rates.push(count / seconds);
                    reads.push((pages_read(&mut connection).await - before) as f64 / count);
                }
            }
            let in_mb = "SELECT pg_table_size('measurements') / 1000000, \
                pg_indexes_size('measurements') / 1000000";
            let (heap, indexes): (i64, i64) = connection.row(in_mb).await;
            let rate = median(rates);
            writeln!(
                table,
                "| {size} | {} | {rate:.0} | {heap} | {indexes} | {:.2} |",
                keys.name(),
                median(reads)
            )?;
            points.push((*size as f64, rate));
        }
        series.push((keys.name().to_owned(), points));
    }
    let kept = |(_, points): &plot::Series| match (points.first(), points.last()) {
        (Some(small), Some(large)) => large.1 / small.1,
        _ => f64::NAN,
    };
    let least = series.iter().map(kept).fold(f64::MAX, f64::min);
    let most = sizes.last().zip(sizes.first()).map_or(0, |(last, first)| last / first);
    let title =
        format!("{most} times as many rows: still {:.0} % of the rate or more", 100.0 * least);
    let plot = Plot {
        file: "growth.svg".to_owned(),
        kind: plot::Kind::Lines,
        title,
        x: "rows in the table".to_owned(),
        y: "rows/s".to_owned(),
        series,
        columns: Vec::new(),
    };
    let text = format!(
        "Batches of {BATCH} sessions, half of them new, the others anywhere in the table; \
shared_buffers 256 MB, everything in the machine's memory.\n\n{table}\n![rows/s](growth.svg)\n\n\
The slope is that of the pages: a row that is updated lies on a page of its own, and with random \
keys so does each entry of the primary key, so that from the size of shared_buffers on nearly \
every row costs a read of both, and from that of memory on a read from disk. Keys in order of time \
keep the new entries on few pages. fillfactor 70 keeps updates on their row's page and out of the \
indexes. Partitions would cut the depth of the index and not the number of pages: they do not \
pay.\n"
    );
    Ok(Section {
        order: 11,
        title: "While the table grows".to_owned(),
        text,
        aims: Vec::new(),
        figures: Vec::new(),
        plot: Some(plot),
    })
}

/// Pages of the table and its indexes that were not in `shared_buffers`, so far.
async fn pages_read(connection: &mut Client) -> i64 {
    // What the other connection counted comes to the view when it is idle, a second late at most.
    tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
    let sql = "SELECT heap_blks_read + idx_blks_read FROM pg_statio_user_tables WHERE relname = \
        'measurements'";
    let (pages,) = connection.row(sql).await;
    pages
}
