//! Dollars per million measurements, computed from measured times and list prices.

use std::fmt::Write as _;

use anyhow::Context as _;

use crate::function::SIZES;
use crate::memory;
use crate::report::{Report, Section};
use crate::template;

/// us-east-1, x86, list prices of 2026-11: AWS Lambda pricing, Amazon S3 pricing (Standard).
const GB_SECOND: f64 = 0.000_016_666_7;
const INVOCATION: f64 = 0.20 / 1e6;
const PUT: f64 = 0.005 / 1e3;
const HEAD: f64 = 0.000_4 / 1e3;
/// What S3 takes for a request of a few kilobytes (Amazon S3 User Guide, "Performance guidelines":
/// 100 to 200 ms are named as typical for small objects; much less is common within a region), and
/// how many go at once.
const S3_SECONDS: f64 = 0.1;
const OBJECTS_AT_ONCE: f64 = 32.0;
/// Records of a measurement.
const RECORDS: f64 = 3.0;

/// A batch of whole measurements, as it was measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batch {
    /// Records.
    pub(crate) size: usize,
    /// Its time, without S3's own.
    pub(crate) milliseconds: f64,
    /// The function's memory.
    pub(crate) memory_mb: u32,
}

impl Batch {
    /// Its sessions: one object each.
    fn sessions(&self) -> f64 {
        (self.size as f64 / RECORDS).max(1.0)
    }

    /// GB-seconds of what was measured plus this many S3 requests in turn. Lambda bills each
    /// started millisecond.
    fn gb_seconds(&self, milliseconds: f64, requests_in_turn: f64) -> f64 {
        let billed = (milliseconds + S3_SECONDS * 1e3 * requests_in_turn).ceil();
        billed / 1e3 * f64::from(self.memory_mb) / 1_024.0
    }
}

/// What Lambda takes for the invocation of a batch.
pub(crate) fn lambda_dollars(batch: &Batch, objects: bool) -> f64 {
    let in_turn = if objects { (batch.sessions() / OBJECTS_AT_ONCE).ceil() } else { 0.0 };
    batch.gb_seconds(batch.milliseconds, in_turn) * GB_SECOND + INVOCATION
}

/// How the three records of a measurement arrive, and what its object takes for that.
struct Arrival {
    name: &'static str,
    /// Batches that touch a measurement.
    visits: f64,
    puts: f64,
    heads: f64,
}

const ARRIVALS: [Arrival; 3] = [
    // One object, new.
    Arrival { name: "together", visits: 1.0, puts: 1.0, heads: 0.0 },
    // Three writes of the object, two of them after a look at it.
    Arrival { name: "apart", visits: RECORDS, puts: RECORDS, heads: RECORDS - 1.0 },
    // At most two looks, and one write once the row is complete.
    Arrival { name: "apart, `complete`", visits: RECORDS, puts: 1.0, heads: RECORDS - 1.0 },
];

/// A line of the table: a million measurements in batches of a size.
fn line(arrival: &Arrival, rows: Batch, objects: Batch) -> String {
    let invocations = 1e6 * RECORDS / rows.size as f64;
    // A batch touches each of its sessions once; together, with all three records.
    let touched = rows.size as f64 * arrival.visits / RECORDS;
    let requests_per_touch = (arrival.puts + arrival.heads) / arrival.visits;
    let in_turn = requests_per_touch * (touched.max(1.0) / OBJECTS_AT_ONCE).ceil();
    // What was measured is one PUT for each three records.
    let requests = touched.max(1.0) * requests_per_touch / rows.sessions();
    let of_objects = objects.milliseconds - rows.milliseconds;
    let gb_seconds =
        invocations * rows.gb_seconds(rows.milliseconds + of_objects * requests, in_turn);
    let lambda = gb_seconds * GB_SECOND + invocations * INVOCATION;
    let s3 = 1e6 * (arrival.puts * PUT + arrival.heads * HEAD);
    format!(
        "| {} | {} | {invocations:.0} | {gb_seconds:.0} | ${lambda:.2} | ${s3:.2} | **${:.2}** |",
        rows.size,
        arrival.name,
        lambda + s3
    )
}

/// Computes what a million measurements cost.
///
/// # Errors
/// If the function has not been measured at the template's memory yet.
pub(crate) fn compute(report: &Report) -> anyhow::Result<Section> {
    let memory_mb = template::memory_mb()?;
    let mut table = String::from(
        "| records a batch | parts | invocations | Lambda, GB-s | Lambda | S3 requests | together \
            |\n|---|---|---|---|---|---|---|\n",
    );
    for size in SIZES {
        let measured = |objects: bool| {
            let milliseconds = report.figure(&memory::figure(size, objects)).context(
                "the template's memory has not been measured: run `make bench PART=memory` first",
            )?;
            anyhow::Ok(Batch { size, milliseconds, memory_mb })
        };
        let (rows, objects) = (measured(false)?, measured(true)?);
        for arrival in &ARRIVALS {
            // One record a batch cannot have its parts together.
            if size > 1 || arrival.visits > 1.0 {
                writeln!(table, "{}", line(arrival, rows, objects))?;
            }
        }
    }
    Ok(Section {
        order: 13,
        title: "Cost".to_owned(),
        text: format!("{}\n\n{table}\n{}", introduction(memory_mb), formula()),
        aims: Vec::new(),
        figures: Vec::new(),
        plot: None,
    })
}

fn introduction(memory_mb: u32) -> String {
    format!(
        "A million measurements of three records each at {memory_mb} MB, the default of \
`MemorySize` in `infra/projector.yaml`, in list prices of us-east-1; the database and storage are \
not in it. The times are those of that memory's share of a processor (\"Cost by memory\"). \
\"complete\" is `ARCHIVE_OBJECTS=complete`, at its most."
    )
}

fn formula() -> String {
    format!(
        "Lambda = invocations × (measured ms of the batch, that of its objects as often as it has \
requests, + S3's own time) × GB × ${GB_SECOND:.10} + invocations × $0.20 / 10^6. S3's own time, \
which this machine cannot measure, is taken as {S3_SECONDS} s a request, {OBJECTS_AT_ONCE} at \
once. Requests = 10^6 × (PUTs × $5 / 10^6 + HEADs × $0.40 / 10^6): one PUT if the three parts come \
in one batch, three PUTs and two HEADs if each comes alone. Lambda's reads of DynamoDB Streams are \
free; a `backfill stream` pays $0.02 for each 100,000 GetRecords of up to 1 MB (Amazon DynamoDB \
pricing). S3 is most of it: a longer batching window, so that the parts of a measurement come \
together, saves more than anything in the function.\n"
    )
}
