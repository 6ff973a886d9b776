//! The whole function through the Runtime API: against a bare COPY of the rows that it made, and
//! against its own round trips made alone.

use std::fmt::Write as _;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use projector::apply::Projector;
use projector::change::{self, Decoded};
use projector::deadline::Deadline;
use projector::fold::{self, IndexedChange};
use projector::object;
use projector::read_model::{self, Returned};
use testkit::emulator::event;
use testkit::records::{LABEL, Record, scan, session};
use testkit::runtime_api::Function;
use testkit::services::{Stores, s3};
use testkit::sql::Client;

use crate::measure::{cpu_ms, median, quantile};
use crate::plot::{self, Plot};
use crate::report::{Aim, Section};
use crate::servers::{self, MemoryS3};

/// Records a batch.
pub(crate) const SIZES: [usize; 5] = [1, 10, 100, 1_000, 10_000];

/// Batches of a size, after one that does not count.
fn batches(size: usize, quick: bool) -> usize {
    let batches = match size {
        1 => 400,
        10 => 200,
        100 => 100,
        1_000 => 30,
        _ => 12,
    };
    if quick { batches / 2 } else { batches }
}

/// One batch's times, in ms.
#[derive(Clone, Copy, Debug, Default)]
struct Times {
    function: f64,
    copy: f64,
    /// Processor time of the function.
    cpu: f64,
    /// Processor time of its connection's server process.
    database_cpu: f64,
}

/// New sessions, each with its three records one after another.
fn records(first: usize, count: usize) -> Vec<Record> {
    let mut records = Vec::with_capacity(count + 2);
    for index in first.. {
        if records.len() >= count {
            break;
        }
        let id = format!("m-{:016x}", (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let place = 1_000_000 + index as u128;
        records.push(session(&id, &format!("user-{}", index % 5_000)).place(LABEL, place));
        for side in ["left", "right"] {
            records.push(
                scan(&id, side, &format!("2{}.{}", 20 + index % 80, index % 10))
                    .place(LABEL, place),
            );
        }
    }
    records.truncate(count);
    records
}

fn keys(records: &[Record]) -> Vec<String> {
    let mut keys: Vec<String> = records
        .iter()
        .map(|record| record.item.split('/').next().unwrap_or_default().to_owned())
        .collect();
    keys.dedup();
    keys
}

/// Copies the rows of these sessions into `bare`, a table of the same shape, and gives the
/// milliseconds of that.
async fn copy(connection: &mut Client, keys: &[String]) -> anyhow::Result<f64> {
    let columns = "SELECT string_agg(column_name, ', ' ORDER BY ordinal_position) FROM \
                   information_schema.columns WHERE table_name = 'measurements' AND is_generated = \
                   'NEVER'";
    let (columns,): (String,) = connection.row(columns).await;
    let list: Vec<String> = keys.iter().map(|key| format!("'{key}'")).collect();
    let rows = format!(
        "COPY (SELECT {columns} FROM measurements WHERE session_id IN ({})) TO STDOUT (FORMAT \
            binary)",
        list.join(", ")
    );
    let chunks: Vec<Bytes> = connection.copy_out_raw(&rows).await?.try_collect().await?;
    let rows = chunks.concat();
    let start = Instant::now();
    let into = format!("COPY bare ({columns}) FROM STDIN (FORMAT binary)");
    let mut copying = connection.copy_in_raw(&into).await?;
    copying.send(rows).await?;
    let copied = copying.finish().await?;
    let duration = start.elapsed();
    ensure!(copied == keys.len() as u64, "{copied} of {} rows copied", keys.len());
    Ok(duration.as_secs_f64() * 1e3)
}

async fn server_process(connection: &mut Client) -> anyhow::Result<u32> {
    let sql = "SELECT pid FROM pg_stat_activity \
               WHERE datname = current_database() AND application_name = 'projector'";
    let (pid,): (i32,) = connection.row(sql).await;
    Ok(u32::try_from(pid)?)
}

async fn measure_size(
    size: usize,
    batches: usize,
    s3: Option<&MemoryS3>,
) -> anyhow::Result<Vec<Times>> {
    let stores = Stores::fresh().await;
    let mut connection = stores.connect().await;
    let bare = "CREATE TABLE bare (LIKE measurements INCLUDING ALL)";
    connection.run(bare).await;
    let mut function = servers::function(servers::projector()?, &stores, s3).await?;
    let mut measured = Vec::with_capacity(batches);
    for batch in 0..=batches {
        let records = records(batch * size.max(3), size);
        let times = invoke(&mut function, &mut connection, &records).await?;
        if batch > 0 {
            measured.push(times);
        }
    }
    function.stop().await?;
    Ok(measured)
}

async fn invoke(
    function: &mut Function,
    connection: &mut Client,
    records: &[Record],
) -> anyhow::Result<Times> {
    let event = event(records.iter().map(|record| record.json.as_str()));
    function.first_poll().await?;
    let pid = function.pid().context("the function has ended")?;
    let server = server_process(connection).await.ok();
    let database_cpu = |server: Option<u32>| server.map_or(Ok(0.0), cpu_ms);
    let (before, database_before) = (cpu_ms(pid)?, database_cpu(server)?);
    let answered = function.invoke(event.into()).await?;
    ensure!(answered.answer.as_ref() == br#"{"batchItemFailures":[]}"#, "{:?}", answered.answer);
    let (cpu, database_cpu) = (cpu_ms(pid)? - before, database_cpu(server)? - database_before);
    let copy = copy(connection, &keys(records)).await?;
    Ok(Times { function: answered.duration.as_secs_f64() * 1e3, copy, cpu, database_cpu })
}

/// A one-record batch's round trips alone: its statement, and a PUT of its object; milliseconds
/// each.
async fn round_trips(s3_server: &MemoryS3, rounds: usize) -> anyhow::Result<(f64, f64)> {
    let stores = Stores::fresh().await;
    let projector: Projector = stores.projector_without_archive(&stores.database_url, 1);
    let client = s3(&s3_server.url).await;
    let (mut statements, mut puts) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        let records = records(round * 3, 1);
        let Decoded::Change(change) =
            change::decode(records[0].json.as_bytes(), &projector.tables)?
        else {
            anyhow::bail!("a malformed record");
        };
        let changes = [IndexedChange { record_index: 0, change }];
        let sessions = fold::fold(&changes);
        let start = Instant::now();
        let lease = projector.database.lease(Deadline::NONE).await?;
        read_model::upsert(&lease, &sessions, Returned::Rows, false).await?;
        drop(lease);
        let statement = start.elapsed();
        let row =
            read_model::read(&projector.database, sessions[0].session_id, Deadline::NONE).await?;
        let (body, metadata) = (object::body(&row)?, object::metadata(&row)?);
        let start = Instant::now();
        client
            .put_object()
            .bucket("bare")
            .key(format!("{}.json", row.session_id))
            .content_type("application/json")
            .set_metadata(Some(metadata))
            .if_none_match("*")
            .body(body.into())
            .send()
            .await
            .context("a bare PUT")?;
        if round > 0 {
            statements.push(statement.as_secs_f64() * 1e3);
            puts.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok((median(statements), median(puts)))
}

/// Measures all sizes, archive off and on.
///
/// # Errors
/// Where a service refuses, or the results cannot be written.
pub(crate) async fn measure(quick: bool) -> anyhow::Result<Section> {
    let s3 = MemoryS3::start().await?;
    let mut table = String::from(
        "| records a batch | archive | records/s | p50, ms | p99, ms | COPY of its rows, ms | \
            COPY / function | CPU of the function, ms | of PostgreSQL, ms |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    let (mut aims, mut figures, mut series) = (Vec::new(), Vec::new(), Vec::new());
    let mut one_record_ms = f64::NAN;
    for with_archive in [false, true] {
        let name = if with_archive { "on" } else { "off" };
        let mut points = Vec::new();
        for size in SIZES {
            let s3 = with_archive.then_some(&s3);
            let times = measure_size(size, batches(size, quick), s3).await?;
            let of = |of: fn(&Times) -> f64| times.iter().map(of);
            let p50 = median(of(|times| times.function));
            let ratio = median(of(|times| times.copy / times.function));
            let (cpu, database_cpu) =
                (median(of(|times| times.cpu)), median(of(|times| times.database_cpu)));
            writeln!(
                table,
                "| {size} | {name} | {:.0} | {p50:.2} | {:.2} | {:.2} | {ratio:.2} | {cpu:.2} | \
                    {database_cpu:.2} |",
                size as f64 * 1e3 / p50,
                quantile(of(|times| times.function), 0.99),
                median(of(|times| times.copy)),
            )?;
            points.push((size as f64, size as f64 * 1e3 / p50));
            figures.push((format!("function_ms_{size}_{name}"), p50));
            if size == 10_000 && !with_archive {
                aims.push(Aim::at_least(
                    "function, 10,000 records, no archive: a bare COPY of its rows by it",
                    0.7,
                    ratio,
                ));
                aims.push(Aim::at_most(
                    "function, 10,000 records: its CPU by PostgreSQL's",
                    1.0,
                    cpu / database_cpu,
                    "",
                ));
            }
            if size == 1 && with_archive {
                one_record_ms = p50;
            }
        }
        series.push((format!("archive {name}"), points));
    }
    let (statement, put) = round_trips(&s3, if quick { 200 } else { 400 }).await?;
    let added = one_record_ms - statement - put;
    aims.push(Aim::at_most("function, one record: added to its two round trips", 1.0, added, "ms"));
    let plot = Plot {
        file: "function.svg".to_owned(),
        kind: plot::Kind::Lines,
        title: "The whole function".to_owned(),
        x: "records per batch".to_owned(),
        y: "records/s".to_owned(),
        series,
    };
    let text = format!(
        "The release binary over a Runtime API in this process \
(`tests/testkit/src/runtime_api.rs`), new sessions, one connection; objects go to an S3 in memory \
(`tests/testkit/src/memory_s3.rs`), for the tests' stand-in would be all that is measured. From \
handing out the event to the last byte of the answer; of 10,000 records the p99 is the slowest of \
a dozen.\n\n{table}\nOne record with its object: {one_record_ms:.2} ms; its statement alone \
{statement:.2} ms, a bare PUT alone {put:.2} ms: {added:.2} ms are added.\n\n\
The function cannot come up to a COPY of the rows that it made: the guarded upsert of them costs \
PostgreSQL about twice that, to read the event costs as much again, and one waits for the other. \
With the archive on, the SDK's requests are nearly all of it.\n\n\
![records/s](function.svg)\n"
    );
    Ok(Section {
        order: 2,
        title: "The whole function".to_owned(),
        text,
        aims,
        figures,
        plot: Some(plot),
    })
}
