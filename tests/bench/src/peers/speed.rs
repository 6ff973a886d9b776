//! Speed and memory of every handler when nothing goes wrong, and what bounds the ratios.

use std::fmt::Write as _;

use anyhow::{Context as _, ensure};
use serde_json::Value as Json;
use testkit::emulator::event;
use testkit::generate::{self, Day};
use testkit::records::Record;
use testkit::runtime_api::Function;
use testkit::services::Stores;

use super::Handler;
use super::history::{once, with_times};
use crate::measure::{cpu_ms, cpu_ms_of_family, median, ratios, status_mb};
use crate::plot::{Kind, Plot};
use crate::report::{Aim, Section};
use crate::servers::{self, MemoryS3, postmaster};

/// The most memory that we want beside a batched peer's.
const MEMORY_AIM: f64 = 0.25;

/// The records, and others that come before them and do not count.
struct Load {
    before: Vec<Record>,
    records: Vec<Record>,
}

impl Load {
    fn new(sessions: usize) -> anyhow::Result<Self> {
        let of = |seed, sessions| {
            let (of_sessions, scans) =
                generate::day(Day { seed, sessions, malformed: false, mesh_bytes: 0 });
            anyhow::Ok(once(&with_times([of_sessions, scans].concat())?))
        };
        Ok(Self { before: of(4, sessions / 4)?, records: of(3, sessions)? })
    }
}

/// Delivers the records in batches, and gives the milliseconds that the function took for them.
async fn deliver(function: &mut Function, records: &[Record], batch: usize) -> anyhow::Result<f64> {
    let mut milliseconds = 0.0;
    for batch in records.chunks(batch) {
        let event = event(batch.iter().map(|record| record.json.as_str()));
        let answered = function.invoke(event.into()).await?;
        let answer: Json = serde_json::from_slice(&answered.answer)?;
        ensure!(answer["batchItemFailures"].as_array().is_some_and(Vec::is_empty), "{answer}");
        milliseconds += answered.duration.as_secs_f64() * 1e3;
    }
    Ok(milliseconds)
}

/// One round of one handler, per record.
#[derive(Clone, Copy, Debug)]
struct Round {
    rate: f64,
    memory_mb: f64,
    /// Microseconds of processor time.
    function_us: f64,
    database_us: f64,
}

async fn round(
    handler: Handler,
    load: &Load,
    batch: usize,
    with_objects: bool,
) -> anyhow::Result<Round> {
    let stores = Stores::fresh().await;
    let database = postmaster(&stores).await?;
    // A bucket of a day that is new to everyone: the ids are the same in each round.
    let s3 = MemoryS3::start().await?;
    let mut function =
        servers::function(handler.command()?, &stores, with_objects.then_some(&s3)).await?;
    deliver(&mut function, &load.before, batch).await?;
    let pid = function.pid().context("the function has ended")?;
    let (cpu, database_cpu) = (cpu_ms(pid)?, cpu_ms_of_family(database));
    let milliseconds = deliver(&mut function, &load.records, batch).await?;
    let records = load.records.len() as f64;
    let round = Round {
        rate: records * 1e3 / milliseconds,
        memory_mb: status_mb(pid, "VmHWM")?,
        function_us: (cpu_ms(pid)? - cpu) * 1e3 / records,
        database_us: (cpu_ms_of_family(database) - database_cpu) * 1e3 / records,
    };
    function.stop().await?;
    Ok(round)
}

/// All rounds of one handler in one cell.
struct Cell {
    handler: Handler,
    batch: usize,
    with_objects: bool,
    rounds: Vec<Round>,
}

impl Cell {
    fn of(&self, get: fn(&Round) -> f64) -> Vec<f64> {
        self.rounds.iter().map(get).collect()
    }

    fn median(&self, get: fn(&Round) -> f64) -> f64 {
        median(self.of(get))
    }

    fn memory_mb(&self) -> f64 {
        self.of(|round| round.memory_mb).into_iter().fold(0.0, f64::max)
    }

    fn name(&self) -> String {
        let objects = if self.with_objects { "with objects" } else { "rows alone" };
        format!("{objects}, batches of {}", self.batch)
    }

    fn is_beside(&self, ours: &Self) -> bool {
        self.batch == ours.batch && self.with_objects == ours.with_objects
    }

    /// How many times as fast as this one ours is.
    fn slower_than(&self, ours: &Self) -> f64 {
        median(ratios(&ours.of(|round| round.rate), &self.of(|round| round.rate)))
    }
}

/// The cells, with the one of the projector beside each.
fn beside(cells: &[Cell]) -> impl Iterator<Item = (&Cell, &Cell)> {
    let ours = |cell: &Cell| {
        cells.iter().find(|ours| ours.handler == Handler::Projector && ours.is_beside(cell))
    };
    cells.iter().filter_map(move |cell| Some((ours(cell)?, cell)))
}

fn table(cells: &[Cell]) -> Result<String, std::fmt::Error> {
    let mut table = String::from(
        "| handler | objects | records a batch | records/s | projector by it | memory, MB | CPU of \
            the handler, µs a record | of PostgreSQL |\n|---|---|---|---|---|---|---|---|\n",
    );
    for (ours, cell) in beside(cells) {
        writeln!(
            table,
            "| {} | {} | {} | {:.0} | {:.1} | {:.0} | {:.1} | {:.1} |",
            cell.handler.name(),
            if cell.with_objects { "on" } else { "off" },
            cell.batch,
            cell.median(|round| round.rate),
            cell.slower_than(ours),
            cell.memory_mb(),
            cell.median(|round| round.function_us),
            cell.median(|round| round.database_us),
        )?;
    }
    Ok(table)
}

/// Per peer the cell in which we are the least ahead, and the one in which our memory is the
/// greatest beside its.
fn aims(cells: &[Cell]) -> Vec<Aim> {
    let mut aims = Vec::new();
    for handler in &Handler::ALL[1..] {
        let of_handler = || beside(cells).filter(|(_, cell)| cell.handler == *handler);
        let slowest = of_handler()
            .map(|(ours, cell)| (cell.slower_than(ours), cell))
            .min_by(|one, other| one.0.total_cmp(&other.0));
        let largest = of_handler()
            .map(|(ours, cell)| (ours.memory_mb() / cell.memory_mb(), cell))
            .max_by(|one, other| one.0.total_cmp(&other.0));
        if let Some((times, cell)) = slowest {
            let what = format!("projector by {}, at the least ({})", handler.name(), cell.name());
            aims.push(Aim::at_least(what, handler.aim(), times));
        }
        if let Some((share, cell)) = largest {
            let what =
                format!("memory: projector by {}, at the most ({})", handler.name(), cell.name());
            aims.push(Aim::at_most(what, MEMORY_AIM, share, ""));
        }
    }
    aims
}

/// Of each cell that missed its aim: what a record takes, and how far a function that takes no
/// processor time at all would come.
fn missed(cells: &[Cell]) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    for (ours, cell) in beside(cells).filter(|(_, cell)| cell.handler != Handler::Projector) {
        let times = cell.slower_than(ours);
        if times >= cell.handler.aim() {
            continue;
        }
        let (wall, theirs) =
            (1e6 / ours.median(|round| round.rate), 1e6 / cell.median(|round| round.rate));
        let function = ours.median(|round| round.function_us);
        let without_function = (wall - function).max(f64::MIN_POSITIVE);
        writeln!(
            text,
            "| {} | {} | {times:.1}, not {:.0} | {wall:.1} | {function:.1} | {:.1} | {theirs:.1} | \
                {:.1} |",
            cell.handler.name(),
            cell.name(),
            cell.handler.aim(),
            ours.median(|round| round.database_us),
            theirs / without_function,
        )?;
    }
    if text.is_empty() {
        return Ok("Every cell reaches its aim.\n".to_owned());
    }
    Ok(format!(
        "Where a cell misses its aim, by processor time: what a record takes of ours in all, in the \
function and in PostgreSQL, what it takes of theirs in all (µs), and how many times as fast a \
function would be that took no processor time. The rest of ours is waiting: for \
the disk at each commit, for S3, for a processor.\n\n| peer | cell | times | ours, µs a record | in the \
function | in PostgreSQL | theirs | limit |\n|---|---|---|---|---|---|---|---|\n{text}"
    ))
}

/// Measures every handler in every cell, in turns.
///
/// # Errors
/// If a handler does not start or fails.
pub(crate) async fn measure(quick: bool) -> anyhow::Result<Section> {
    let load = Load::new(if quick { 400 } else { 2_000 })?;
    let rounds = if quick { 1 } else { 3 };
    let mut cells = Vec::new();
    for with_objects in [true, false] {
        for batch in [100, 1_000, load.records.len()] {
            let mut of_cell = Handler::ALL.map(|handler| Cell {
                handler,
                batch,
                with_objects,
                rounds: Vec::new(),
            });
            for _ in 0..rounds {
                for cell in &mut of_cell {
                    let round = round(cell.handler, &load, batch, with_objects).await;
                    let round = round.with_context(|| cell.handler.name())?;
                    cell.rounds.push(round);
                }
            }
            cells.extend(of_cell);
        }
    }
    let text = format!(
        "{} records in order and once, after a quarter as many of another day, objects to an S3 in \
memory, {rounds} round(s) in turns. Theirs are in `tests/peers/`.\n\n{}\n{}\n\
![records/s](peers.svg)\n",
        load.records.len(),
        table(&cells)?,
        missed(&cells)?,
    );
    Ok(Section {
        order: 2,
        title: "Speed and memory beside others".to_owned(),
        text,
        aims: aims(&cells),
        figures: Vec::new(),
        plot: Some(plot(&cells)),
    })
}

/// A bar per handler: batches of 1,000 with objects, as the template has them.
fn plot(cells: &[Cell]) -> Plot {
    let typical = || beside(cells).filter(|(_, cell)| cell.batch == 1_000 && cell.with_objects);
    let times = typical()
        .filter(|(_, cell)| cell.handler != Handler::Projector)
        .map(|(ours, cell)| cell.slower_than(ours));
    let (least, most) =
        times.fold((f64::MAX, f64::MIN), |(least, most), of| (least.min(of), most.max(of)));
    let bar = |(_, cell): (&Cell, &Cell)| {
        (cell.handler.name().to_owned(), vec![(0.0, cell.median(|round| round.rate))])
    };
    Plot {
        file: "peers.svg".to_owned(),
        kind: Kind::Bars,
        title: format!(
            "The projector stores {least:.1} to {most:.0} times as many records per second"
        ),
        x: "records per second, rows and objects, batches of 1,000".to_owned(),
        y: String::new(),
        series: typical().map(bar).collect(),
        columns: Vec::new(),
    }
}
