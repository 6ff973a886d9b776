//! Start, size and memory of the function.

use std::io::Write as _;
use std::time::Instant;

use anyhow::Context as _;
use flate2::Compression;
use flate2::write::DeflateEncoder;
use support::emulator::event;
use support::records::{LABEL, scan, session};
use support::services::Stores;

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

/// What is deployed, and its size in MB: the zip of `make lambda` where it is there. This run's own binary is
/// somewhat larger, for it is built together with the tests' crates.
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

/// Measures starts, the zip and memory.
///
/// # Errors
/// Where a service refuses.
pub(crate) async fn measure(quick: bool) -> anyhow::Result<Section> {
    let rounds = if quick { 10 } else { 40 };
    let s3 = MemoryS3::start().await?;
    let stores = Stores::fresh().await;
    let (mut polls, mut answers, mut handshakes) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=rounds {
        let start = Instant::now();
        let connection = stores.connect().await;
        let handshake = start.elapsed();
        drop(connection);
        let record = session(&format!("cold-{round}"), "user").place(LABEL, 1);
        let event = event([record.json.as_str()]);
        let mut function = servers::function(servers::projector()?, &stores, Some(&s3)).await?;
        let poll = function.first_poll().await?;
        function.invoke(event.into()).await?;
        let answer = function.age();
        function.stop().await?;
        if round > 0 {
            polls.push(poll.as_secs_f64() * 1e3);
            answers.push(answer.as_secs_f64() * 1e3);
            handshakes.push(handshake.as_secs_f64() * 1e3);
        }
    }
    let large = six_megabytes();
    let megabytes = large.len() as f64 / 1e6;
    let mut function = servers::function(servers::projector()?, &stores, None).await?;
    let large_answer = function.invoke(large.into()).await?;
    let pid = function.pid().context("the function has ended")?;
    let (idle_mb, peak_mb) = (status_mb(pid, "VmRSS")?, status_mb(pid, "VmHWM")?);
    function.stop().await?;

    let (zip, zip_mb) = zip()?;
    let (poll, answer, handshake) =
        (median(polls.iter().copied()), median(answers.iter().copied()), median(handshakes));
    let text = format!(
        "{rounds} starts of the release binary, archive on, a database without TLS.\n\n\
| | median | 9 of 10 |\n|---|---|---|\n\
| start to first poll | {poll:.1} ms | {:.1} ms |\n| start to the answer of a one-record event | {answer:.1} ms | {:.1} ms |\n\
| a bare connection to the same database | {handshake:.1} ms | |\n\n\
An event of {megabytes:.2} MB was answered in {:.0} ms, start of the connection included; memory then {idle_mb:.0} MB resident, \
{peak_mb:.0} MB at its most. {zip}: {zip_mb:.2} MB.\n",
        quantile(polls.iter().copied(), 0.9),
        quantile(answers.iter().copied(), 0.9),
        large_answer.duration.as_secs_f64() * 1e3,
    );
    let aims = vec![
        Aim::at_most("start to first poll", 15.0, poll, "ms"),
        Aim::at_most(
            "start to first answer, above a bare connection",
            60.0,
            answer - handshake,
            "ms",
        ),
        Aim::at_most("the zip", 6.0, zip_mb, "MB"),
        Aim::at_most("resident memory after an event of 6 MB", 96.0, peak_mb, "MB"),
    ];
    let figures = vec![("memory_mb".to_owned(), peak_mb)];
    Ok(Section { order: 5, title: "Cold start, size, memory".to_owned(), text, aims, figures })
}
