//! Start, size and memory of the function.

use std::io::Write as _;
use std::time::Instant;

use anyhow::Context as _;
use flate2::Compression;
use flate2::write::DeflateEncoder;
use testkit::emulator::event;
use testkit::records::{LABEL, scan, session};
use testkit::services::Stores;

use crate::measure::{binary, median, quantile, status_mb};
use crate::report::{Aim, Section};
use crate::servers::{self, MemoryS3};

/// Records of an event of 6 MB.
fn six_megabytes() -> String {
    let mut records = Vec::new();
    let mut bytes = 0;
    for index in 0.. {
        let id = format!("m-{index:08}");
        for record in [
            session(&id, "user").place(LABEL, index),
            scan(&id, "left", "245.3").place(LABEL, index),
            scan(&id, "right", "246.1").place(LABEL, index),
        ] {
            bytes += record.json.len() + 1;
            if bytes > 6_290_000 {
                return event(records.iter().map(String::as_str));
            }
            records.push(record.json);
        }
    }
    unreachable!("the loop has no end of its own")
}

/// What is deployed, and its size in MB: the zip of `make lambda` where it is there. This run's own
/// binary is somewhat larger, for it is built together with the tests' crates.
fn zip() -> anyhow::Result<(&'static str, f64)> {
    if let Ok(zip) = std::fs::metadata("target/lambda/projector/bootstrap.zip") {
        return Ok(("The zip that `make lambda` made", zip.len() as f64 / 1e6));
    }
    let mut deflated = DeflateEncoder::new(Vec::new(), Compression::new(6));
    deflated.write_all(&std::fs::read(binary("projector")?)?)?;
    Ok((
        "The binary of this run, deflated (there is no zip of `make lambda`)",
        deflated.finish()?.len() as f64 / 1e6,
    ))
}

/// Starts of one kind, in ms.
#[derive(Debug, Default)]
struct Starts {
    polls: Vec<f64>,
    answers: Vec<f64>,
    /// A bare connection, from a process that is warm.
    handshakes: Vec<f64>,
}

async fn starts(rounds: usize, stores: &Stores, s3: &MemoryS3) -> anyhow::Result<Starts> {
    let mut starts = Starts::default();
    for round in 0..=rounds {
        let start = Instant::now();
        let connection = stores.connect().await;
        let handshake = start.elapsed();
        drop(connection);
        let record = session(&format!("cold-{round}"), "user").place(LABEL, 1);
        let event = event([record.json.as_str()]);
        let mut function = servers::function(servers::projector()?, stores, Some(s3)).await?;
        let poll = function.first_poll().await?;
        function.invoke(event.into()).await?;
        let answer = function.age();
        function.stop().await?;
        if round > 0 {
            starts.polls.push(poll.as_secs_f64() * 1e3);
            starts.answers.push(answer.as_secs_f64() * 1e3);
            starts.handshakes.push(handshake.as_secs_f64() * 1e3);
        }
    }
    Ok(starts)
}

/// Measures starts, the zip and memory.
///
/// # Errors
/// Where a service refuses.
pub(crate) async fn measure(quick: bool) -> anyhow::Result<Section> {
    let rounds = if quick { 10 } else { 40 };
    let s3 = MemoryS3::start().await?;
    let stores = Stores::fresh().await;
    let folder = tempfile::tempdir()?;
    let bare = starts(rounds, &stores, &s3).await?;
    let tls = starts(rounds, &servers::behind_tls(&stores, folder.path()).await?, &s3).await?;
    let large = six_megabytes();
    let megabytes = large.len() as f64 / 1e6;
    let mut function = servers::function(servers::projector()?, &stores, None).await?;
    let large_answer = function.invoke(large.into()).await?;
    let pid = function.pid().context("the function has ended")?;
    let (idle_mb, peak_mb) = (status_mb(pid, "VmRSS")?, status_mb(pid, "VmHWM")?);
    function.stop().await?;

    let (zip, zip_mb) = zip()?;
    let line = |what: &str, of: fn(&Starts) -> &Vec<f64>| {
        let ms = |starts, share| quantile(of(starts).iter().copied(), share);
        format!(
            "| {what} | {:.1} ms | {:.1} ms | {:.1} ms | {:.1} ms |\n",
            ms(&bare, 0.5),
            ms(&bare, 0.9),
            ms(&tls, 0.5),
            ms(&tls, 0.9)
        )
    };
    let text = format!(
        "{rounds} starts of the release binary, archive on; the median, and what 9 of 10 stay below.\n\n\
| | without TLS | 9 of 10 | TLS, verified in full | 9 of 10 |\n|---|---|---|---|---|\n{}{}{}\n\
An event of {megabytes:.2} MB was answered in {:.0} ms, start of the connection included; memory \
then {idle_mb:.0} MB resident, {peak_mb:.0} MB at its most. {zip}: {zip_mb:.2} MB.\n\n\
What was dropped for that: the 30 ms of processor time in which aws-lc gathers jitter before a \
first handshake, and the 40 ms a time that a handshake and a long statement wait where sqlx leaves \
Nagle's algorithm on. The S3 client takes its region and credentials from Lambda's environment and \
asks nobody for them.\n",
        line("start to first poll", |starts| &starts.polls),
        line("start to the answer of a one-record event", |starts| &starts.answers),
        line("a bare connection to the same database", |starts| &starts.handshakes),
        large_answer.duration.as_secs_f64() * 1e3,
    );
    let answer_after_handshake =
        median(tls.answers.iter().copied()) - median(tls.handshakes.iter().copied());
    let aims = vec![
        Aim::at_most("start to first poll", 15.0, median(tls.polls.iter().copied()), "ms"),
        Aim::at_most(
            "start to first answer over TLS, above a bare connection",
            60.0,
            answer_after_handshake,
            "ms",
        ),
        Aim::at_most("the zip", 6.0, zip_mb, "MB"),
        Aim::at_most("resident memory after an event of 6 MB", 96.0, peak_mb, "MB"),
    ];
    let figures = vec![("memory_mb".to_owned(), peak_mb)];
    Ok(Section {
        order: 10,
        title: "Cold start, size, memory".to_owned(),
        text,
        aims,
        figures,
        plot: None,
    })
}
