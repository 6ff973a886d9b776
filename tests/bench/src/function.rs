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
use crate::plot::{Kind, Plot, Series};
use crate::report::{Aim, Section};
use crate::servers::{self, MemoryS3};
use crate::template::{self, ONE_PROCESSOR_MB};

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
pub(crate) fn records(first: usize, count: usize) -> Vec<Record> {
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
    let processes: Vec<(i32,)> = connection.rows(sql).await;
    // Before the first batch it may not be connected yet.
    let (pid,) = processes.first().context("the function is not connected")?;
    Ok(u32::try_from(*pid)?)
}

/// How the function is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Setup {
    /// Rows alone.
    Rows,
    /// Rows alone, over TLS that is verified in full.
    Tls,
    /// Rows and objects.
    Objects,
    /// Rows alone, with memory that comes with a second processor.
    TwoProcessors,
}

impl Setup {
    const ALL: [Self; 4] = [Self::Rows, Self::Tls, Self::Objects, Self::TwoProcessors];

    fn name(self) -> &'static str {
        match self {
            Self::Rows => "rows",
            Self::Tls => "rows, over TLS",
            Self::Objects => "rows and objects",
            Self::TwoProcessors => "rows, with a second processor",
        }
    }

    fn memory_mb(self) -> anyhow::Result<u32> {
        match self {
            Self::TwoProcessors => Ok(2 * ONE_PROCESSOR_MB),
            Self::Rows | Self::Tls | Self::Objects => template::memory_mb(),
        }
    }
}

async fn measure_size(setup: Setup, size: usize, batches: usize) -> anyhow::Result<Vec<Times>> {
    let stores = Stores::fresh().await;
    // Of its own: the ids are the same for each size, and an object that is there costs more.
    let s3 = MemoryS3::start().await?;
    let folder = tempfile::tempdir()?;
    let mut connection = stores.connect().await;
    let bare = "CREATE TABLE bare (LIKE measurements INCLUDING ALL)";
    connection.run(bare).await;
    let reached = match setup {
        Setup::Tls => servers::behind_tls(&stores, folder.path()).await?,
        Setup::Rows | Setup::Objects | Setup::TwoProcessors => stores.clone(),
    };
    let s3 = (setup == Setup::Objects).then_some(&s3);
    let program = servers::projector()?;
    let mut function = servers::function_of(program, &reached, s3, setup.memory_mb()?).await?;
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

/// What one setup and size came to.
struct Row {
    setup: Setup,
    size: usize,
    times: Vec<Times>,
}

impl Row {
    fn of(&self, get: impl Fn(&Times) -> f64) -> impl Iterator<Item = f64> {
        self.times.iter().map(get)
    }

    fn p50(&self) -> f64 {
        median(self.of(|times| times.function))
    }

    /// A bare COPY of its rows by it.
    fn by_copy(&self) -> f64 {
        median(self.of(|times| times.copy / times.function))
    }

    /// Its processor time by PostgreSQL's: below which a share of the batches stays.
    fn by_database_cpu(&self, share: f64) -> f64 {
        quantile(self.of(|times| times.cpu / times.database_cpu), share)
    }

    fn write(&self, table: &mut String) -> std::fmt::Result {
        let p50 = self.p50();
        writeln!(
            table,
            "| {} | {} | {:.0} | {p50:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} |",
            self.setup.name(),
            self.size,
            self.size as f64 * 1e3 / p50,
            quantile(self.of(|times| times.function), 0.99),
            median(self.of(|times| times.copy)),
            self.by_copy(),
            median(self.of(|times| times.cpu)),
            median(self.of(|times| times.database_cpu)),
        )
    }
}

/// The aims for batches of 10,000, rows alone.
fn aims(rows: &[Row]) -> Vec<Aim> {
    let mut aims = Vec::new();
    for row in rows.iter().filter(|row| row.size == 10_000) {
        match row.setup {
            Setup::TwoProcessors => aims.push(Aim::at_least(
                "function, 10,000 records, two processors: a bare COPY of its rows by it",
                0.4,
                row.by_copy(),
            )),
            Setup::Rows => aims.push(Aim::at_most(
                format!(
                    "function, 10,000 records: its CPU by PostgreSQL's (middle half {:.2} to \
                        {:.2})",
                    row.by_database_cpu(0.25),
                    row.by_database_cpu(0.75)
                ),
                0.8,
                row.by_database_cpu(0.5),
                "",
            )),
            Setup::Tls | Setup::Objects => {}
        }
    }
    aims
}

/// Measures all sizes in every setup.
///
/// # Errors
/// If a service refuses, or the results cannot be written.
pub(crate) async fn measure(quick: bool) -> anyhow::Result<Section> {
    let s3 = MemoryS3::start().await?;
    let mut rows = Vec::new();
    for setup in Setup::ALL {
        let sizes = if setup == Setup::TwoProcessors { &[10_000][..] } else { &SIZES };
        for &size in sizes {
            let times = measure_size(setup, size, batches(size, quick)).await?;
            rows.push(Row { setup, size, times });
        }
    }
    let mut table = String::from(
        "| | records a batch | records/s | p50, ms | p99, ms | COPY of its rows, ms | \
            COPY / function | CPU of the function, ms | of PostgreSQL, ms |\n\
            |---|---|---|---|---|---|---|---|---|\n",
    );
    for row in &rows {
        row.write(&mut table)?;
    }
    let mut aims = aims(&rows);
    let p50 = |setup: Setup, size: usize| {
        let row = rows.iter().find(|row| row.setup == setup && row.size == size);
        row.map_or(f64::NAN, Row::p50)
    };
    let one_record_ms = p50(Setup::Objects, 1);
    let (statement, put) = round_trips(&s3, if quick { 200 } else { 400 }).await?;
    let added = one_record_ms - statement - put;
    aims.push(Aim::at_most("function, one record: added to its two round trips", 1.0, added, "ms"));
    let text = format!(
        "The release binary over a Runtime API in this process \
(`tests/testkit/src/runtime_api.rs`), new sessions, one connection; objects go to an S3 in memory \
(`tests/testkit/src/memory_s3.rs`), for the tests' stand-in would be all that is measured. From \
handing out the event to the last byte of the answer; of 10,000 records the p99 is the slowest of \
a dozen. TLS ends in a relay before PostgreSQL, which has none here: what it adds is at most the \
difference. The S3 in memory has no TLS.\n\n{table}\nOne record with its object: \
{one_record_ms:.2} ms; its statement alone {statement:.2} ms, a bare PUT alone {put:.2} ms: \
{added:.2} ms are added.\n\n\
The function cannot come up to a COPY of the rows that it made: the guarded upsert of them costs \
PostgreSQL about twice that, and to read the event costs as much again; with a second processor \
one no longer waits for the other. With objects, the SDK's requests are nearly all of it.\n\n\
![records/s](function.svg)\n"
    );
    Ok(Section {
        order: 3,
        title: "The whole function".to_owned(),
        text,
        aims,
        figures: Vec::new(),
        plot: Some(plot(&rows)),
    })
}

/// Records per second by batch size, a line per setup.
fn plot(rows: &[Row]) -> Plot {
    let setups = Setup::ALL.into_iter().filter(|setup| *setup != Setup::TwoProcessors);
    let series: Vec<Series> = setups
        .map(|setup| {
            let of_setup = rows.iter().filter(|row| row.setup == setup);
            let rate = |row: &Row| (row.size as f64, row.size as f64 * 1e3 / row.p50());
            (setup.name().to_owned(), of_setup.map(rate).collect())
        })
        .collect();
    let first = series.first().map_or(&[][..], |(_, points)| points);
    let gain = match (first.first(), first.last()) {
        (Some(one), Some(most)) => most.1 / one.1,
        _ => f64::NAN,
    };
    Plot {
        file: "function.svg".to_owned(),
        kind: Kind::Lines,
        title: format!("Batches of 10,000 are {gain:.0} times as fast as single records"),
        x: "records per batch".to_owned(),
        y: "records/s".to_owned(),
        series,
        columns: Vec::new(),
    }
}
