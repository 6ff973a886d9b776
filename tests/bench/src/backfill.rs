//! A day from files into both stores, by the `backfill` binary.

use std::fmt::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use testkit::generate::{self, Day};
use testkit::records::Record;
use testkit::services::Stores;
use tokio::process::Command;

use crate::measure::{binary, cpu_s, cpu_s_of_family, status_mb};
use crate::report::Section;
use crate::servers::{MemoryS3, postmaster};

/// Measures a day, archive off and on, and again as a replay.
///
/// # Errors
/// Where a service refuses, or the binary fails.
pub(crate) async fn measure(quick: bool) -> anyhow::Result<Section> {
    let sessions = if quick { 20_000 } else { 100_000 };
    let (of_sessions, scans) =
        generate::day(Day { seed: 1, sessions, malformed: false, mesh_bytes: 0 });
    let folder = tempfile::tempdir()?;
    for (name, records) in [("sessions", &of_sessions), ("scans", &scans)] {
        let lines: String =
            records.iter().flat_map(|record: &Record| [record.json.as_str(), "\n"]).collect();
        std::fs::write(folder.path().join(format!("{name}.jsonl")), lines)?;
    }
    let records = of_sessions.len() + scans.len();
    let mut table = String::from(
        "| | records/s | seconds | CPU of backfill | of PostgreSQL | of S3 | memory of backfill \
            at its most |\n|---|---|---|---|---|---|---|\n",
    );
    for with_archive in [false, true] {
        let stores = Stores::fresh().await;
        let s3 = MemoryS3::start().await?;
        let postmaster = postmaster(&stores).await?;
        for run in ["the day", "the day again"] {
            let mut command = Command::new(binary("backfill")?);
            command
                .args(["file"])
                .arg(folder.path())
                .env("DATABASE_URL", &stores.database_url)
                .env("AWS_ENDPOINT_URL", &s3.url)
                .env_remove("ARCHIVE_BUCKET")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .kill_on_drop(true);
            if with_archive {
                command.env("ARCHIVE_BUCKET", "bench");
            }
            let s3_before = cpu_s(s3.pid())?;
            let start = Instant::now();
            let mut process = command.spawn()?;
            let pid = process.id().context("backfill has ended at once")?;
            // Its connections' processes end with it, so they are looked at all the time.
            let database_before = cpu_s_of_family(postmaster);
            let (mut cpu, mut database, mut memory) = (0.0, 0.0_f64, 0.0);
            let status = loop {
                if let Some(status) = process.try_wait()? {
                    break status;
                }
                cpu = cpu_s(pid).unwrap_or(cpu);
                memory = status_mb(pid, "VmHWM").unwrap_or(memory);
                database = database.max(cpu_s_of_family(postmaster) - database_before);
                tokio::time::sleep(Duration::from_millis(20)).await;
            };
            let seconds = start.elapsed().as_secs_f64();
            ensure!(status.success(), "backfill ended with {status}");
            let archive = if with_archive { "rows and objects" } else { "rows" };
            writeln!(
                table,
                "| {run}, {archive} | {:.0} | {seconds:.1} | {:.1} s | {:.1} s | {:.1} s | \
                    {memory:.0} MB |",
                records as f64 / seconds,
                cpu,
                database,
                cpu_s(s3.pid())? - s3_before,
            )?;
        }
    }
    let text = format!(
        "{sessions} sessions, {records} records with their updates and duplicates, as two `.jsonl` \
files, four connections; objects to an S3 in memory.\n\n{table}"
    );
    Ok(Section {
        order: 12,
        title: "Backfill of a day".to_owned(),
        text,
        aims: Vec::new(),
        figures: Vec::new(),
        plot: None,
    })
}
