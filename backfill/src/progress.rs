//! What a person sees: a bar on a terminal, plain lines elsewhere, and a summary at the end.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use projector::apply::Counts;

/// A line on standard output. That its reader has gone (`| head`) is no failure of the run.
macro_rules! say {
    ($($argument:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($argument)*);
    }};
}
pub(crate) use say;

/// How often a line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// The progress of a replay of known length in bytes.
pub(crate) struct Progress {
    /// `None` where standard error is no terminal.
    bar: Option<ProgressBar>,
    start: Instant,
    last_line: Instant,
    bytes: u64,
    bytes_done: u64,
}

impl Progress {
    pub(crate) fn start(bytes: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let template = "{bar:30} {percent:>3}%  {msg}  eta {eta}";
            let style = ProgressStyle::with_template(template).expect("the template is constant");
            ProgressBar::new(bytes).with_style(style)
        });
        let now = Instant::now();
        Self { bar, start: now, last_line: now, bytes, bytes_done: 0 }
    }

    /// `bytes` more of the files are through.
    pub(crate) fn advance(&mut self, bytes: u64, counts: &Counts) {
        self.bytes_done += bytes;
        let text = format!(
            "{} records ({:.0}/s), {} rejected",
            counts.records,
            counts.records as f64 / self.start.elapsed().as_secs_f64(),
            counts.rejected
        );
        match &self.bar {
            Some(bar) => {
                bar.set_message(text);
                bar.set_position(self.bytes_done);
            }
            None if self.last_line.elapsed() >= LINE_EVERY => {
                self.last_line = Instant::now();
                eprintln!("{:>3}%  {text}", self.bytes_done * 100 / self.bytes.max(1));
            }
            None => {}
        }
    }

    /// A line for the operator, above the bar.
    pub(crate) fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// The summary, on standard output.
pub(crate) fn print_summary(counts: &Counts, reasons: &Reasons, duration: Duration) {
    let Counts {
        records,
        applied,
        duplicate,
        stale,
        superseded,
        ttl_kept,
        rejected,
        failed: _,
        rows_written,
        objects_written,
        objects_current,
    } = *counts;
    let seconds = duration.as_secs_f64();
    say!("done: {records} records in {seconds:.1} s ({:.0}/s)", records as f64 / seconds.max(1e-9));
    for (name, count, meaning) in [
        ("applied", applied, "newer than what the row held"),
        ("duplicate", duplicate, "held already"),
        ("stale", stale, "older than what the row held"),
        ("superseded", superseded, "overtaken by a newer change in the same batch"),
        ("ttl kept", ttl_kept, "removals by time to live, values kept as configured"),
        ("rejected", rejected, "set aside in rejected_records"),
        ("rows written", rows_written, ""),
        ("objects written", objects_written, ""),
        ("objects current", objects_current, "held the row already"),
    ] {
        if count > 0 || matches!(name, "applied" | "rejected") {
            say!("{}", format!("  {name:<16}{count:>10}  {meaning}").trim_end());
        }
    }
    print_reasons(reasons);
}

/// The end of a run that wrote nothing.
pub(crate) fn print_dry_summary(counts: &Counts, reasons: &Reasons) {
    say!(
        "dry run, nothing was written: {} records, {} would be rejected",
        counts.records,
        counts.rejected
    );
    print_reasons(reasons);
}

/// Why records were rejected, and how many for each reason; the first so many reasons by name.
#[derive(Debug, Default)]
pub(crate) struct Reasons(BTreeMap<String, u64>);

impl Reasons {
    const NAMED: usize = 50;

    pub(crate) fn add(&mut self, reason: String) {
        let known = self.0.len() < Self::NAMED || self.0.contains_key(&reason);
        let reason = if known { reason } else { "for other reasons".to_owned() };
        *self.0.entry(reason).or_default() += 1;
    }
}

fn print_reasons(reasons: &Reasons) {
    for (reason, count) in &reasons.0 {
        say!("  {count:>6} × {reason}");
    }
}
