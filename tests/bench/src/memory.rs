//! What a record costs by the memory of the function, which is also its share of a processor: from
//! this follows the template's `MemorySize`.

use std::fmt::Write as _;

use anyhow::Context as _;
use testkit::emulator::event;
use testkit::services::Stores;

use crate::cost::{Batch, lambda_dollars};
use crate::function::{SIZES, records};
use crate::measure::median;
use crate::plot::{Kind, Plot};
use crate::quota::{self, Quota};
use crate::report::Section;
use crate::servers::{self, MemoryS3};
use crate::template::{self, ONE_PROCESSOR_MB};

/// Shares of a processor; the one that comes with the template's memory is measured, too.
const SHARES: [f64; 4] = [0.25, 0.5, 1.0, 2.0];
/// The batch by which the memory is chosen: the template's default `BatchSize`.
const TYPICAL: usize = 1_000;

/// The name of a measured time, for the part that computes the dollars of a measurement.
pub(crate) fn figure(size: usize, objects: bool) -> String {
    format!("template_ms_{size}_{}", if objects { "objects" } else { "rows" })
}

/// The median milliseconds of a batch.
struct Measured {
    memory_mb: u32,
    objects: bool,
    size: usize,
    milliseconds: f64,
}

impl Measured {
    /// Lambda's dollars per million records, objects and S3's own time included.
    fn dollars(&self) -> f64 {
        let batch =
            Batch { size: self.size, milliseconds: self.milliseconds, memory_mb: self.memory_mb };
        lambda_dollars(&batch, self.objects) * 1e6 / self.size as f64
    }
}

fn batches(size: usize, quick: bool) -> usize {
    let batches = match size {
        1 => 200,
        10 => 100,
        100 => 50,
        1_000 => 20,
        _ => 6,
    };
    if quick { (batches / 4).max(3) } else { batches }
}

/// A function of this memory, with its share of a processor: the median milliseconds of each size.
async fn measure_memory(
    memory_mb: u32,
    objects: bool,
    quick: bool,
) -> anyhow::Result<Vec<Measured>> {
    let stores = Stores::fresh().await;
    // Of its own: the ids are the same for each memory, and an object that is there costs more.
    let s3 = MemoryS3::start().await?;
    let s3 = objects.then_some(&s3);
    let mut function = servers::function_of(servers::projector()?, &stores, s3, memory_mb).await?;
    function.first_poll().await?;
    let pid = function.pid().context("the function has ended")?;
    let share = Quota::of(pid, f64::from(memory_mb) / f64::from(ONE_PROCESSOR_MB))?;
    let mut next = 0;
    let mut measured = Vec::new();
    for size in SIZES {
        let mut times = Vec::new();
        for batch in 0..=batches(size, quick) {
            let records = records(next, size);
            next += size.max(3);
            let event = event(records.iter().map(|record| record.json.as_str()));
            let answered = function.invoke(event.into()).await?;
            if batch > 0 {
                times.push(answered.duration.as_secs_f64() * 1e3);
            }
        }
        let milliseconds = median(times);
        measured.push(Measured { memory_mb, objects, size, milliseconds });
    }
    function.stop().await?;
    drop(share);
    Ok(measured)
}

/// The memories to measure, in order.
fn memories() -> anyhow::Result<Vec<u32>> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few thousand")]
    let of = |share: &f64| (f64::from(ONE_PROCESSOR_MB) * share).round() as u32;
    let mut memories: Vec<u32> = SHARES.iter().map(of).collect();
    memories.push(template::memory_mb()?);
    memories.sort_unstable();
    memories.dedup();
    Ok(memories)
}

/// Measures every memory, rows alone and with objects.
///
/// # Errors
/// If a service refuses, or no share of a processor can be given.
pub(crate) async fn measure(quick: bool) -> anyhow::Result<Section> {
    let mut measured = Vec::new();
    for memory_mb in memories()? {
        for objects in [false, true] {
            measured.extend(measure_memory(memory_mb, objects, quick).await?);
        }
    }
    let template_mb = template::memory_mb()?;
    let figures = measured
        .iter()
        .filter(|measured| measured.memory_mb == template_mb)
        .map(|measured| (figure(measured.size, measured.objects), measured.milliseconds))
        .collect();
    let means = means().await?;
    let text = format!(
        "The same function with the share of a processor that Lambda gives with its memory \
({ONE_PROCESSOR_MB} MB: one processor), by {means}. PostgreSQL and S3 keep this machine's \
processors, so two for the function are shared with them. Milliseconds of a batch (the median), \
and Lambda's dollars per million records, by the formula below (\"Cost\"), S3's own time \
included.\n\n{}\n{}\n\n![dollars by memory](memory.svg)\n",
        table(&measured)?,
        recommendation(&measured, template_mb)
    );
    Ok(Section {
        order: 5,
        title: "Cost by memory".to_owned(),
        text,
        aims: Vec::new(),
        figures,
        plot: Some(plot(&measured)),
    })
}

/// How the shares were given, and that they were.
async fn means() -> anyhow::Result<String> {
    let (means, used) = quota::of_a_busy_process(SHARES[0]).await?;
    Ok(format!("{means} (a busy process got {used:.2} of a processor for {})", SHARES[0]))
}

fn processors(memory_mb: u32) -> f64 {
    f64::from(memory_mb) / f64::from(ONE_PROCESSOR_MB)
}

fn table(measured: &[Measured]) -> Result<String, std::fmt::Error> {
    let mut table = String::from("| memory, MB | processors | |");
    for size in SIZES {
        write!(table, " {size} |")?;
    }
    writeln!(table, "\n|---|---|---|{}", "---|".repeat(SIZES.len()))?;
    for row in measured.chunks(SIZES.len()) {
        let memory_mb = row[0].memory_mb;
        let what = if row[0].objects { "rows and objects" } else { "rows" };
        write!(table, "| {memory_mb} | {:.2} | {what} |", processors(memory_mb))?;
        for cell in row {
            write!(table, " {:.1} ms, ${:.4} |", cell.milliseconds, cell.dollars())?;
        }
        writeln!(table)?;
    }
    Ok(table)
}

/// The cells of the typical batch with objects, by memory.
fn typical(measured: &[Measured]) -> impl Iterator<Item = &Measured> {
    measured.iter().filter(|measured| measured.objects && measured.size == TYPICAL)
}

fn cheapest(measured: &[Measured]) -> Option<&Measured> {
    typical(measured).min_by(|one, other| one.dollars().total_cmp(&other.dollars()))
}

/// What follows for the template.
fn recommendation(measured: &[Measured], template_mb: u32) -> String {
    let of_template = typical(measured).find(|measured| measured.memory_mb == template_mb);
    let (Some(cheapest), Some(chosen)) = (cheapest(measured), of_template) else {
        return String::new();
    };
    let whole = typical(measured).find(|measured| measured.memory_mb == ONE_PROCESSOR_MB);
    let faster = whole.map_or(f64::NAN, |whole| chosen.milliseconds / whole.milliseconds);
    let dearer = whole.map_or(f64::NAN, |whole| whole.dollars() / chosen.dollars());
    format!(
        "In batches of {TYPICAL} with objects, {} MB is the cheapest, at ${:.4} per million \
records. The template's default, {template_mb} MB, costs ${:.4}; a whole processor answers \
{faster:.1} times as fast and costs {dearer:.1} times as much.",
        cheapest.memory_mb,
        cheapest.dollars(),
        chosen.dollars(),
    )
}

/// Dollars by memory, a line per batch size, with objects.
fn plot(measured: &[Measured]) -> Plot {
    let series = SIZES[1..].iter().map(|size| {
        let of_size = measured.iter().filter(|of| of.objects && of.size == *size);
        let points = of_size.map(|of| (f64::from(of.memory_mb), of.dollars())).collect();
        (format!("batches of {}", crate::plot::thousands(*size as f64)), points)
    });
    let cheapest = cheapest(measured).map_or(0, |measured| measured.memory_mb);
    Plot {
        file: "memory.svg".to_owned(),
        kind: Kind::Lines,
        title: format!("{cheapest} MB is the cheapest memory for batches of 1,000 with objects"),
        x: "memory, MB".to_owned(),
        y: "dollars per million records".to_owned(),
        series: series.collect(),
        columns: Vec::new(),
    }
}
