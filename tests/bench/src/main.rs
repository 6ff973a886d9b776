//! `make bench`: how fast the projector is, as ratios within one run: the machine is shared, and so
//! is its noise.
//!
//! Each part compares with what nothing could beat on the same servers (the ceiling), or with what
//! a user would write instead, in turns, round by round; the figure is the median of the rounds'
//! ratios. Results go to `docs/bench/`, those of parts that were not run stay.

mod archive;
mod backfill;
mod cold_start;
mod cost;
mod database;
mod durability;
mod function;
mod growth;
mod latency;
mod measure;
mod memory;
mod mesh;
mod peers;
mod plot;
mod quota;
mod report;
mod servers;
mod template;

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::report::Report;

/// Measures, and writes tables and plots.
#[derive(Debug, Parser)]
struct Arguments {
    /// What to measure; without any, all.
    parts: Vec<Part>,
    /// Fewer rounds, smaller tables: all parts in about ten minutes.
    #[arg(long)]
    quick: bool,
    /// Measures nothing, and draws the plots again from the results.
    #[arg(long, conflicts_with_all = ["parts", "quick"])]
    plots_only: bool,
    /// Where the results go.
    #[arg(long, value_name = "FOLDER", default_value = "docs/bench")]
    out: PathBuf,
    /// Serves an S3 that is held in memory until standard input ends: for the parts above.
    #[arg(long, hide = true)]
    serve_s3: bool,
}

/// What can be measured, in the order of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Which rows are wrong at the end, ours and those of handlers as a user would write them.
    Wrong,
    /// Speed and memory beside those handlers.
    Peers,
    /// The whole function through the Runtime API, against a bare COPY and its own round trips.
    Function,
    /// What fsync and full-page writes cost.
    Durability,
    /// The function at shares of a processor.
    Memory,
    /// From a record's arrival to its row and object, under a steady load.
    Latency,
    /// Measurements with meshes, end to end.
    Mesh,
    /// The upsert, against one without any guard.
    Database,
    /// The objects, against a bare client.
    Archive,
    /// Start, size, memory.
    ColdStart,
    /// While the table grows.
    Growth,
    /// A day from files into both stores.
    Backfill,
    /// Dollars per million measurements, from what was measured.
    Cost,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if arguments.serve_s3 {
        return testkit::memory_s3::serve_until_stdin_ends().await;
    }
    let mut parts = arguments.parts;
    if parts.is_empty() {
        parts = Part::value_variants().to_vec();
    }
    let quick = arguments.quick;
    let mut report = Report::open(&arguments.out)?;
    if arguments.plots_only {
        return report.draw();
    }
    durability::require().await?;
    for part in parts {
        eprintln!("measuring: {part:?} ...");
        let mut section = match part {
            Part::Wrong => Box::pin(peers::wrong::measure(quick)).await?,
            Part::Peers => Box::pin(peers::speed::measure(quick)).await?,
            Part::Function => function::measure(quick).await?,
            Part::Durability => durability::measure(quick).await?,
            Part::Memory => memory::measure(quick).await?,
            Part::Latency => latency::measure(quick).await?,
            Part::Mesh => mesh::measure(quick).await?,
            Part::Database => Box::pin(database::measure(quick)).await?,
            Part::Archive => archive::measure(quick).await?,
            Part::ColdStart => cold_start::measure(quick).await?,
            Part::Growth => growth::measure(quick).await?,
            Part::Backfill => backfill::measure(quick).await?,
            Part::Cost => cost::compute(&report)?,
        };
        if quick {
            section.title.push_str(" (quick form)");
        }
        println!("{}", section.text);
        for aim in &section.aims {
            println!("{}: {} (aim: {})", aim.what, aim.reached, aim.wanted);
        }
        report.put(section)?;
    }
    Ok(())
}
