//! How long a record waits from its arrival until its row and its object are stored, under a steady
//! load: alone, and while a backfill of another day runs.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use testkit::emulator::event;
use testkit::generate::{self, Day};
use testkit::records::Record;
use testkit::runtime_api::Function;
use testkit::services::Stores;
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::function::records;
use crate::measure::{binary, median, quantile};
use crate::plot::{Kind, Plot};
use crate::report::Section;
use crate::servers::{self, MemoryS3};

/// Records per second.
const LOADS: [u32; 2] = [100, 1_000];
/// The template's default `BatchSize`.
const BATCH_SIZE: usize = 1_000;
/// Before the load counts: connections are made, statements are planned.
const WARM_UP: usize = 50;

/// What a load came to.
struct Measured {
    per_second: u32,
    with_backfill: bool,
    /// Of each record, in ms.
    latencies: Vec<f64>,
    /// Records of each invocation.
    batches: Vec<f64>,
    /// Records that the backfill read meanwhile.
    backfilled: i64,
}

impl Measured {
    fn name(&self) -> String {
        let beside = if self.with_backfill { "beside a backfill" } else { "alone" };
        format!("{}/s, {beside}", crate::plot::thousands(f64::from(self.per_second)))
    }

    fn quantile(&self, share: f64) -> f64 {
        quantile(self.latencies.iter().copied(), share)
    }
}

/// Hands out records as they become due: all that wait, in one batch, as soon as the function is
/// free.
async fn steady(
    function: &mut Function,
    records: &[Record],
    per_second: u32,
) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    let interval = Duration::from_secs(1) / per_second;
    let start = Instant::now();
    let due = |index: usize| start + interval.mul_f64(index as f64);
    let (mut latencies, mut batches) = (Vec::with_capacity(records.len()), Vec::new());
    let mut next = 0;
    while next < records.len() {
        tokio::time::sleep_until(due(next)).await;
        let now = Instant::now();
        let most = records.len().min(next + BATCH_SIZE);
        let end = (next + 1..most).find(|index| due(*index) > now).unwrap_or(most);
        let batch = &records[next..end];
        function.invoke(event(batch.iter().map(|record| record.json.as_str())).into()).await?;
        let stored = Instant::now();
        latencies.extend((next..end).map(|index| (stored - due(index)).as_secs_f64() * 1e3));
        batches.push((end - next) as f64);
        next = end;
    }
    Ok((latencies, batches))
}

/// Days for the backfill, each in a folder of its own.
fn write_days(folder: &Path, days: u64, sessions: usize) -> anyhow::Result<()> {
    for seed in 0..days {
        let day = Day { seed: 100 + seed, sessions, malformed: false, mesh_bytes: 0 };
        let (of_sessions, scans) = generate::day(day);
        let records = of_sessions.iter().chain(&scans);
        let lines: String = records.flat_map(|record| [record.json.as_str(), "\n"]).collect();
        std::fs::write(folder.join(format!("day-{seed}.jsonl")), lines)?;
    }
    Ok(())
}

/// `backfill file` of the days, into the same stores.
fn start_backfill(days: &Path, stores: &Stores, s3: &MemoryS3) -> anyhow::Result<Child> {
    Command::new(binary("backfill")?)
        .arg("file")
        .arg(days)
        .env("DATABASE_URL", &stores.database_url)
        .env("AWS_ENDPOINT_URL", &s3.url)
        .env("ARCHIVE_BUCKET", "bench")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("cannot start backfill")
}

async fn rows(stores: &Stores) -> anyhow::Result<i64> {
    Ok(stores.ask("SELECT count(*) FROM measurements").await.parse()?)
}

async fn measure_load(
    per_second: u32,
    seconds: u32,
    days: Option<&Path>,
) -> anyhow::Result<Measured> {
    let stores = Stores::fresh().await;
    let s3 = MemoryS3::start().await?;
    let mut function = servers::function(servers::projector()?, &stores, Some(&s3)).await?;
    let all = records(0, WARM_UP * 3 + (per_second * seconds) as usize);
    let (warm_up, records) = all.split_at(WARM_UP * 3);
    for batch in warm_up.chunks(3) {
        function.invoke(event(batch.iter().map(|record| record.json.as_str())).into()).await?;
    }
    let mut backfill = days.map(|days| start_backfill(days, &stores, &s3)).transpose()?;
    if let Some(backfill) = &mut backfill {
        while rows(&stores).await? < 1_000 {
            ensure!(backfill.try_wait()?.is_none(), "the backfill ended at once");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let (latencies, batches) = steady(&mut function, records, per_second).await?;
    let ours = i64::try_from(all.len().div_ceil(3))?;
    let backfilled = (rows(&stores).await? - ours).max(0);
    if let Some(backfill) = &mut backfill {
        ensure!(backfill.try_wait()?.is_none(), "the backfill ended before the load: more days");
        backfill.kill().await?;
    }
    function.stop().await?;
    let with_backfill = days.is_some();
    Ok(Measured { per_second, with_backfill, latencies, batches, backfilled })
}

/// Measures both loads, alone and beside a backfill.
///
/// # Errors
/// If a service refuses, or a program fails.
pub(crate) async fn measure(quick: bool) -> anyhow::Result<Section> {
    let (seconds, days) = if quick { (8, 3) } else { (30, 8) };
    let folder = tempfile::tempdir()?;
    write_days(folder.path(), days, 40_000)?;
    let mut measured = Vec::new();
    for per_second in LOADS {
        for days in [None, Some(folder.path())] {
            measured.push(measure_load(per_second, seconds, days).await?);
        }
    }
    let mut table = String::from(
        "| load | p50, ms | p99, ms | slowest, ms | records per invocation | sessions by the \
            backfill |\n|---|---|---|---|---|---|\n",
    );
    for load in &measured {
        writeln!(
            table,
            "| {} | {:.1} | {:.1} | {:.1} | {:.0} | {} |",
            load.name(),
            load.quantile(0.5),
            load.quantile(0.99),
            load.quantile(1.0),
            median(load.batches.iter().copied()),
            load.backfilled
        )?;
    }
    let text = format!(
        "From a record's arrival until its row and its object are stored, for {seconds} s of \
records at even intervals. One function takes all that wait, up to {BATCH_SIZE}, as soon as it is \
free; what a mapping gathers first (`BatchingWindowSeconds`) and polls is not in it. Beside it, \
`backfill file` writes other days into the same database and S3, as fast as it can, over four \
connections; the function, the backfill, PostgreSQL, S3 and the load share this machine's \
processors.\n\n{table}\n![latency](latency.svg)\n"
    );
    Ok(Section {
        order: 6,
        title: "Latency under a steady load".to_owned(),
        text,
        aims: Vec::new(),
        figures: Vec::new(),
        plot: Some(plot(&measured)),
    })
}

/// A bar to p50 and a whisker to p99 per load.
fn plot(measured: &[Measured]) -> Plot {
    let bar = |load: &Measured| {
        (load.name(), vec![(0.0, load.quantile(0.5)), (1.0, load.quantile(0.99))])
    };
    let alone = measured.iter().filter(|load| !load.with_backfill);
    let beside = measured.iter().filter(|load| load.with_backfill);
    let worst = |loads: &mut dyn Iterator<Item = &Measured>| {
        loads.map(|load| load.quantile(0.99)).fold(0.0, f64::max)
    };
    let (alone, beside) = (worst(&mut { alone }), worst(&mut { beside }));
    Plot {
        file: "latency.svg".to_owned(),
        kind: Kind::Bars,
        title: format!(
            "99 of 100 records are stored within {alone:.0} ms, beside a backfill {beside:.0} ms"
        ),
        x: "ms from arrival to row and object: bar to p50, line to p99".to_owned(),
        y: String::new(),
        series: measured.iter().map(bar).collect(),
        columns: Vec::new(),
    }
}
