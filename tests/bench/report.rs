//! What was measured, as a table and a plot: `README.md` and `database.svg` in the folder of results.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;

use crate::database::{BATCH, LOADED, Measured};

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn ratios(measured: &Measured) -> Vec<f64> {
    measured
        .guarded
        .iter()
        .zip(&measured.ceiling)
        .map(|(guarded, ceiling)| guarded / ceiling)
        .collect()
}

/// Prints the table, and writes it with the plot.
///
/// # Errors
/// Where the folder cannot be written.
pub(crate) fn write(folder: &Path, measured: &[Measured]) -> anyhow::Result<()> {
    let mut table = String::from(
        "| batch | guarded, rows/s | ceiling, rows/s | ratio | quartiles | WAL, bytes a row |\n|---|---|---|---|---|---|\n",
    );
    for of_shape in measured {
        let mut ratios = ratios(of_shape);
        ratios.sort_by(f64::total_cmp);
        let quartile = |quarter: usize| ratios[(ratios.len() - 1) * quarter / 4];
        writeln!(
            table,
            "| {} | {:.0} | {:.0} | **{:.2}** | {:.2} to {:.2} | {:.1} |",
            of_shape.shape.name(),
            median(of_shape.guarded.iter().copied()),
            median(of_shape.ceiling.iter().copied()),
            quartile(2),
            quartile(1),
            quartile(3),
            median(of_shape.wal_bytes.iter().map(|bytes| *bytes as f64)) / BATCH as f64,
        )?;
    }
    print!("{table}");
    let rounds = measured.first().map_or(0, |measured| measured.guarded.len());
    let text = format!(
        "# Measured\n\nWritten by `make bench`; {machine}. Every figure is a ratio of two things measured in turns in one \
run, its median over {rounds} rounds with the middle half of them: the machine is shared.\n\n\
## The database stage\n\nA folded batch of {BATCH} sessions, each with its three parts, → committed rows known, over one warm \
connection, into a table of {LOADED} rows. The ceiling is the same arrays by the same kind of statement without any guard \
(`tests/bench/database.rs`).\n\n{table}\n![ratios](database.svg)\n",
        machine = machine()
    );
    let context = || format!("cannot write to {}", folder.display());
    std::fs::create_dir_all(folder).with_context(context)?;
    std::fs::write(folder.join("README.md"), text).with_context(context)?;
    std::fs::write(folder.join("database.svg"), plot(measured)).with_context(context)
}

/// Processors and memory, as the kernel says them.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (processors, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let after = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or_else(String::new, |(_, value)| value.trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let kilobytes: u64 =
        after(&memory, "MemTotal").trim_end_matches(" kB").parse().unwrap_or_default();
    format!("{cores} processors ({}), {} GiB", after(&processors, "model name"), kilobytes >> 20)
}

/// A dot a round, a bar at the median, for each shape; 1 is the ceiling.
fn plot(measured: &[Measured]) -> String {
    const WIDTH: f64 = 640.0;
    const HEIGHT: f64 = 300.0;
    let top = measured.iter().flat_map(ratios).fold(1.0, f64::max) * 1.1;
    let height = |ratio: f64| HEIGHT - 40.0 - ratio / top * (HEIGHT - 60.0);
    let column = (WIDTH - 60.0) / measured.len().max(1) as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" font-family=\"sans-serif\" \
font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let mut line = |text: String| {
        svg.push_str(&text);
        svg.push('\n');
    };
    let one = height(1.0);
    line(format!(
        "<line x1=\"50\" x2=\"{WIDTH}\" y1=\"{one:.0}\" y2=\"{one:.0}\" stroke=\"gray\" stroke-dasharray=\"4\"/>"
    ));
    line(format!("<text x=\"4\" y=\"{:.0}\">ceiling</text>", one + 4.0));
    for (index, of_shape) in measured.iter().enumerate() {
        let middle = 50.0 + column * (index as f64 + 0.5);
        for ratio in ratios(of_shape) {
            line(format!(
                "<circle cx=\"{middle:.0}\" cy=\"{:.1}\" r=\"3\" fill=\"#4a7\" fill-opacity=\"0.4\"/>",
                height(ratio)
            ));
        }
        let of_shape_median = median(ratios(of_shape));
        let y = height(of_shape_median);
        line(format!(
            "<line x1=\"{:.0}\" x2=\"{:.0}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"black\" stroke-width=\"2\"/>",
            middle - 30.0,
            middle + 30.0
        ));
        line(format!(
            "<text x=\"{:.0}\" y=\"{:.1}\">{of_shape_median:.2}</text>",
            middle + 34.0,
            y + 4.0
        ));
        line(format!(
            "<text x=\"{middle:.0}\" y=\"{:.0}\" text-anchor=\"middle\">{}</text>",
            HEIGHT - 16.0,
            of_shape.shape.name()
        ));
    }
    svg + "</svg>\n"
}
