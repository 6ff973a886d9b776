//! Against handlers as a user would write them (`tests/peers/`): what is wrong at the end, then
//! speed and memory, on the same events, the same servers, the same Runtime API.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;

use anyhow::{Context as _, ensure};
use fastrand::Rng;
use serde_json::Value as Json;
use testkit::emulator::event;
use testkit::generate::{self, Day};
use testkit::oracle::{self, Rows};
use testkit::records::Record;
use testkit::runtime_api::Function;
use testkit::services::{Stores, service};
use tokio::process::Command;

use crate::measure::{self, median, ratios, status_mb};
use crate::plot::{self, Plot};
use crate::report::{Aim, Section};
use crate::servers::{self, MemoryS3};

/// A handler, and how it is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Handler {
    Projector,
    RecordByRecord,
    BatchedPython,
    BatchedNode,
}

impl Handler {
    const ALL: [Self; 4] =
        [Self::Projector, Self::RecordByRecord, Self::BatchedPython, Self::BatchedNode];

    fn name(self) -> &'static str {
        match self {
            Self::Projector => "projector",
            Self::RecordByRecord => "record_by_record.py",
            Self::BatchedPython => "batched.py",
            Self::BatchedNode => "batched.cjs",
        }
    }

    fn command(self) -> anyhow::Result<Command> {
        let mut command = match self {
            Self::Projector => return servers::projector(),
            Self::RecordByRecord | Self::BatchedPython => Command::new(service("PEERS_PYTHON")),
            Self::BatchedNode => Command::new("node"),
        };
        command.arg(measure::peers().join(self.name()));
        Ok(command)
    }
}

/// What arrives in the test of correctness.
#[derive(Clone, Copy, Debug)]
enum History {
    /// In order and once.
    InOrder,
    /// As at-least-once delivery may have it: some records come twice, some of them behind later
    /// ones.
    Duplicates,
    /// Every tenth batch once more at the end: what lay in an on-failure destination, or a replay
    /// that stopped midway.
    Redriven,
    /// The batches come in any order: lanes at once, retries.
    Shuffled,
}

impl History {
    const ALL: [Self; 4] = [Self::InOrder, Self::Duplicates, Self::Redriven, Self::Shuffled];

    fn name(self) -> &'static str {
        match self {
            Self::InOrder => "in order and once",
            Self::Duplicates => "late duplicates",
            Self::Redriven => "every tenth batch again at the end",
            Self::Shuffled => "batches shuffled",
        }
    }

    fn of(self, delivered: &[Record], batch: usize) -> Vec<Vec<Record>> {
        let records = match self {
            Self::Duplicates => delivered.to_vec(),
            Self::InOrder | Self::Redriven | Self::Shuffled => once(delivered),
        };
        let mut batches: Vec<_> = records.chunks(batch).map(<[Record]>::to_vec).collect();
        match self {
            Self::InOrder | Self::Duplicates => {}
            Self::Redriven => {
                let again: Vec<_> = batches.iter().step_by(10).cloned().collect();
                batches.extend(again);
            }
            Self::Shuffled => Rng::with_seed(5).shuffle(&mut batches),
        }
        batches
    }
}

/// Without what came before: each item's records in order and once.
fn once(delivered: &[Record]) -> Vec<Record> {
    let mut newest = HashMap::new();
    let mut once = Vec::new();
    for record in delivered {
        let place = (&record.label, record.sequence_number);
        if newest.get(&record.item).is_none_or(|before| *before < place) {
            newest.insert(&record.item, place);
            once.push(record.clone());
        }
    }
    once
}

/// Delivers the batches, and gives the milliseconds that the function took for them.
async fn deliver(function: &mut Function, batches: &[Vec<Record>]) -> anyhow::Result<f64> {
    let mut milliseconds = 0.0;
    for batch in batches {
        let event = event(batch.iter().map(|record| record.json.as_str()));
        let answered = function.invoke(event.into()).await?;
        let answer: Json = serde_json::from_slice(&answered.answer)?;
        ensure!(answer["batchItemFailures"].as_array().is_some_and(Vec::is_empty), "{answer}");
        milliseconds += answered.duration.as_secs_f64() * 1e3;
    }
    Ok(milliseconds)
}

/// A value whatever its form: 245.3 and 245.30 are the same foot, and a set has no order.
fn value(json: &Json) -> Json {
    match json {
        Json::Number(_) => json.as_f64().map_or_else(|| json.clone(), Json::from),
        Json::Array(values) => {
            let mut values: Vec<Json> = values.iter().map(value).collect();
            values.sort_by_key(Json::to_string);
            Json::Array(values)
        }
        Json::Object(members) => {
            members.iter().map(|(name, member)| (name.clone(), value(member))).collect()
        }
        Json::Null | Json::Bool(_) | Json::String(_) => json.clone(),
    }
}

/// The rows whose values are wrong; the peers keep no versions.
fn wrong(rows: &Rows, expected: &Rows) -> usize {
    let values = |row: Option<&Json>| {
        let row = row.and_then(Json::as_object)?;
        let of_values = |name: &str| !name.ends_with("_version") && !name.ends_with("_changed_at");
        Some(
            row.iter()
                .filter(|(name, _)| of_values(name))
                .map(|(_, json)| value(json))
                .collect::<Vec<_>>(),
        )
    };
    let sessions: BTreeSet<&String> = rows.keys().chain(expected.keys()).collect();
    sessions
        .into_iter()
        .filter(|session| values(rows.get(*session)) != values(expected.get(*session)))
        .count()
}

/// The rows that are wrong at the end of each history, as a table.
async fn correctness(records: &[Record]) -> anyhow::Result<String> {
    let expected = oracle::rows(records);
    let names = History::ALL.map(History::name).join(" | ");
    let mut table = format!("| handler | {names} |\n|---|{}\n", "---|".repeat(History::ALL.len()));
    for handler in Handler::ALL {
        write!(table, "| {} |", handler.name())?;
        for history in History::ALL {
            let stores = Stores::fresh().await;
            let mut function = servers::function(handler.command()?, &stores, None).await?;
            deliver(&mut function, &history.of(records, 100))
                .await
                .with_context(|| format!("{}, {}", handler.name(), history.name()))?;
            function.stop().await?;
            let wrong = wrong(&stores.rows().await, &expected);
            ensure!(
                handler != Handler::Projector || wrong == 0,
                "the projector has {wrong} rows wrong"
            );
            write!(table, " {wrong} |")?;
        }
        writeln!(table)?;
    }
    Ok(table)
}

/// Speeds in records/s, a round each, and the most memory that was resident, in MB.
#[derive(Debug, Default)]
struct Speeds {
    rates: Vec<f64>,
    memory_mb: f64,
}

/// Measures all handlers.
///
/// # Errors
/// Where one does not start or fails, or the results cannot be written.
pub(crate) async fn measure(quick: bool) -> anyhow::Result<Section> {
    let sessions = if quick { 400 } else { 2_000 };
    let (of_sessions, scans) =
        generate::day(Day { seed: 3, sessions, malformed: false, mesh_bytes: 0 });
    let delivered = [of_sessions, scans].concat();
    let correctness = correctness(&delivered).await?;
    let records = once(&delivered);
    // Not counted: it connects, and compiles what is compiled as it runs.
    let (of_sessions, scans) =
        generate::day(Day { seed: 4, sessions: sessions / 4, malformed: false, mesh_bytes: 0 });
    let before = [of_sessions, scans].concat();
    let rounds = if quick { 1 } else { 3 };
    let mut table = String::from(
        "| handler | archive | records a batch | records/s | projector by it | memory, MB |\n|---|---|---|---|---|---|\n",
    );
    let (mut aims, mut series) = (Vec::new(), Vec::new());
    for with_archive in [true, false] {
        for batch in [100, 1_000, records.len()] {
            let mut speeds: Vec<Speeds> = Handler::ALL.iter().map(|_| Speeds::default()).collect();
            for _ in 0..rounds {
                for (handler, speeds) in Handler::ALL.into_iter().zip(&mut speeds) {
                    let stores = Stores::fresh().await;
                    // A bucket of a day that is new to everyone: the ids are the same in each
                    // round.
                    let fresh = MemoryS3::start().await?;
                    let mut function = servers::function(
                        handler.command()?,
                        &stores,
                        with_archive.then_some(&fresh),
                    )
                    .await?;
                    deliver(&mut function, &History::InOrder.of(&before, batch)).await?;
                    let milliseconds =
                        deliver(&mut function, &History::InOrder.of(&records, batch)).await?;
                    let pid = function.pid().context("the function has ended")?;
                    speeds.memory_mb = speeds.memory_mb.max(status_mb(pid, "VmHWM")?);
                    speeds.rates.push(records.len() as f64 * 1e3 / milliseconds);
                    function.stop().await?;
                }
            }
            let ours = &speeds[0];
            for (handler, theirs) in Handler::ALL.into_iter().zip(&speeds) {
                let times = median(ratios(&ours.rates, &theirs.rates));
                let archive = if with_archive { "on" } else { "off" };
                writeln!(
                    table,
                    "| {} | {archive} | {batch} | {:.0} | {times:.1} | {:.0} |",
                    handler.name(),
                    median(theirs.rates.iter().copied()),
                    theirs.memory_mb
                )?;
                let label = format!("archive {archive}, batches of {batch}");
                let aim = match handler {
                    Handler::Projector => continue,
                    Handler::RecordByRecord => 20.0,
                    Handler::BatchedPython | Handler::BatchedNode => 4.0,
                };
                let what = format!("projector by {}, {label}", handler.name());
                aims.push(Aim::at_least(what, aim, times));
                if batch == records.len() && with_archive {
                    let what = format!("memory: projector by {}", handler.name());
                    aims.push(Aim::at_most(what, 0.25, ours.memory_mb / theirs.memory_mb, ""));
                }
            }
            for (place, (handler, theirs)) in Handler::ALL.into_iter().zip(&speeds).enumerate() {
                if with_archive {
                    if series.len() <= place {
                        series.push((handler.name().to_owned(), Vec::new()));
                    }
                    series[place].1.push((batch as f64, median(theirs.rates.iter().copied())));
                }
            }
        }
    }
    let plot = Plot {
        file: "peers.svg".to_owned(),
        kind: plot::Kind::Lines,
        title: "Rows and objects, in order".to_owned(),
        x: "records per batch".to_owned(),
        y: "records/s".to_owned(),
        series,
    };
    let text = format!(
        "A day of {sessions} sessions, {} records in order and once, in batches of 100 for the \
first table. Rows that are wrong at the end:\n\n{correctness}\nTheirs are in `tests/peers/`, with \
what else they do not defend against. Speed where nothing goes wrong, after a quarter as many \
records of another day, objects to an S3 in memory, {rounds} round(s) in \
turns:\n\n{table}\n![records/s](peers.svg)\n",
        records.len()
    );
    Ok(Section {
        order: 4,
        title: "Against what a user would write".to_owned(),
        text,
        aims,
        figures: Vec::new(),
        plot: Some(plot),
    })
}
