//! Measurements with two meshes, end to end: event → row → object, by every handler.

use std::fmt::Write as _;

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value as Json, json};
use testkit::emulator::event;
use testkit::records::{LABEL, scan, session};
use testkit::services::{Stores, s3};

use crate::measure::{cpu_ms, median, quantile, status_mb};
use crate::peers::Handler;
use crate::report::Section;
use crate::servers::{self, MemoryS3};

/// A mesh that leaves its item room within DynamoDB's 400 KB.
const MESH_BYTES: usize = 390_000;
/// Measurements of an event: 3.2 MB.
const MEASUREMENTS: usize = 3;

/// The event of the measurements from this number on.
fn event_of(first: usize) -> String {
    let mesh = |index: usize| {
        // Compressed at its source, so no two bytes alike.
        let mut rng = fastrand::Rng::with_seed(index as u64);
        let bytes: Vec<u8> = (0..MESH_BYTES).map(|_| rng.u8(..)).collect();
        BASE64.encode(bytes)
    };
    let mut records = Vec::new();
    for index in first..first + MEASUREMENTS {
        let (id, place) = (format!("mesh-{index:06}"), index as u128 + 1);
        records.push(session(&id, "user").place(LABEL, place).json);
        for side in ["left", "right"] {
            let mut scan = scan(&id, side, "245.3");
            if let Some(image) = &mut scan.image {
                image["mesh"] = json!({ "B": mesh(index) });
            }
            records.push(scan.place(LABEL, place).json);
        }
    }
    event(records.iter().map(String::as_str))
}

/// What one handler took.
struct Taken {
    milliseconds: Vec<f64>,
    cpu: f64,
    memory_mb: f64,
}

async fn measure_handler(handler: Handler, events: usize) -> anyhow::Result<Taken> {
    let stores = Stores::fresh().await;
    let s3_server = MemoryS3::start().await?;
    let mut function = servers::function(handler.command()?, &stores, Some(&s3_server)).await?;
    function.invoke(event_of(0).into()).await?;
    let pid = function.pid().context("the function has ended")?;
    let before = cpu_ms(pid)?;
    let mut milliseconds = Vec::new();
    for index in 1..=events {
        let answered = function.invoke(event_of(index * MEASUREMENTS).into()).await?;
        milliseconds.push(answered.duration.as_secs_f64() * 1e3 / MEASUREMENTS as f64);
    }
    let cpu = (cpu_ms(pid)? - before) / (events * MEASUREMENTS) as f64;
    let memory_mb = status_mb(pid, "VmHWM")?;
    function.stop().await?;
    check(handler, &stores, &s3_server, (events + 1) * MEASUREMENTS).await?;
    Ok(Taken { milliseconds, cpu, memory_mb })
}

/// Every row and the last object have both meshes, or the figures say nothing.
async fn check(
    handler: Handler,
    stores: &Stores,
    s3_server: &MemoryS3,
    measurements: usize,
) -> anyhow::Result<()> {
    let whole = format!(
        "SELECT count(*) FROM measurements WHERE complete AND octet_length(left_mesh) = \
            {MESH_BYTES} AND octet_length(right_mesh) = {MESH_BYTES}"
    );
    let rows = stores.ask(&whole).await;
    ensure!(rows == measurements.to_string(), "{}: {rows} whole rows", handler.name());
    let key = format!("measurements/mesh-{:06}.json", measurements - 1);
    let object = s3(&s3_server.url).await.get_object().bucket("bench").key(key).send().await?;
    let body: Json = serde_json::from_slice(&object.body.collect().await?.into_bytes())?;
    let mesh = body["left_mesh"].as_str().unwrap_or_default();
    ensure!(mesh.len() > MESH_BYTES, "{}: the object has no mesh", handler.name());
    Ok(())
}

/// Measures every handler.
///
/// # Errors
/// If a handler fails, or a row or an object lacks its meshes.
pub(crate) async fn measure(quick: bool) -> anyhow::Result<Section> {
    let events = if quick { 6 } else { 30 };
    let mut table = String::from(
        "| handler | ms per measurement | slowest | CPU of the handler, ms | memory, MB |\n\
            |---|---|---|---|---|\n",
    );
    for handler in Handler::ALL {
        let taken = measure_handler(handler, events)
            .await
            .with_context(|| format!("{} with meshes", handler.name()))?;
        let quantile = |share| quantile(taken.milliseconds.iter().copied(), share);
        writeln!(
            table,
            "| {} | {:.1} | {:.1} | {:.1} | {:.0} |",
            handler.name(),
            median(taken.milliseconds.iter().copied()),
            quantile(1.0),
            taken.cpu,
            taken.memory_mb
        )?;
    }
    Ok(Section {
        order: 7,
        title: "With meshes".to_owned(),
        text: format!(
            "A session and two scans with a mesh of {MESH_BYTES} bytes each, {MEASUREMENTS} \
measurements per event, {events} events, from handing out the event to the answer: the row and its \
object, of about 1 MB, are stored. Every row and an object are looked at.\n\n{table}"
        ),
        aims: Vec::new(),
        figures: Vec::new(),
        plot: None,
    })
}
