//! `make bench`: how fast the projector is, as ratios within one run: the machine is shared, and so is its noise.
//!
//! So far: the database stage. Each part compares with what nothing could beat on the same servers (the ceiling), in turns, round by round; the
//! figure is the median of the rounds' ratios. Results go to `docs/bench/`.

mod database;
mod report;

use std::path::PathBuf;

use clap::Parser;

/// Measures, and writes a table and a plot.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where the results go.
    #[arg(long, value_name = "FOLDER", default_value = "docs/bench")]
    out: PathBuf,
    /// Rounds of each measurement, after one that does not count.
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u32).range(3..=1000))]
    rounds: u32,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let database = database::measure(arguments.rounds as usize).await?;
    report::write(&arguments.out, &database)
}
