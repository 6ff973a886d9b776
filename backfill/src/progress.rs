//! What a person sees while it runs: bars on a terminal, plain lines every ten seconds elsewhere, all
//! on standard error. Logs and notes go above the bars, through here, or they would tear them.

use std::collections::{HashMap, HashSet};
use std::io::{IsTerminal as _, Write};
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use projector::apply::Counts;
use time::OffsetDateTime;

use crate::summary::{clock, span};

/// How often a line is printed where there is no terminal.
pub(crate) const LINE_EVERY: Duration = Duration::from_secs(10);

static BARS: LazyLock<MultiProgress> = LazyLock::new(|| {
    // Not `hidden` of the library's own choosing: what draws nothing must not hold lines back.
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    MultiProgress::with_draw_target(target)
});

/// A line for the operator, above the bars.
pub(crate) fn note(text: &str) {
    BARS.suspend(|| {
        let _ = writeln!(std::io::stderr(), "{text}");
    });
}

/// Where the log goes: above the bars.
pub(crate) struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        BARS.suspend(|| std::io::stderr().write_all(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// A bar, and whether it is time for a line.
struct Bar {
    drawn: ProgressBar,
    start: Instant,
    last_line: Instant,
}

impl Bar {
    fn start(length: u64, template: &str) -> Self {
        let style = ProgressStyle::with_template(template).expect("the template is constant");
        let drawn = BARS.add(ProgressBar::new(length).with_style(style));
        let now = Instant::now();
        Self { drawn, start: now, last_line: now }
    }

    fn rate(&self, records: u64) -> f64 {
        records as f64 / self.start.elapsed().as_secs_f64().max(1e-9)
    }

    /// Shows where it stands; `line` is what is printed instead where there is no terminal.
    fn show(&mut self, position: u64, text: String, line: impl FnOnce(&str) -> String) {
        if std::io::stderr().is_terminal() {
            self.drawn.set_message(text);
            self.drawn.set_position(position);
        } else if self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            note(&line(&text));
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.drawn.finish_and_clear();
    }
}

/// The progress over something of known length: the bytes of files, the rows of a table.
pub(crate) struct Progress {
    bar: Bar,
    length: u64,
    done: u64,
}

impl Progress {
    pub(crate) fn start(length: u64) -> Self {
        let bar = Bar::start(length, "{bar:30} {percent:>3}%  {msg}  eta {eta}");
        Self { bar, length, done: 0 }
    }

    /// So much more is through.
    pub(crate) fn advance(&mut self, by: u64, counts: &Counts) {
        let (records, rejected) = (counts.records, counts.rejected);
        let rate = self.bar.rate(records);
        self.show(by, format!("{records} records ({rate:.0}/s), {rejected} rejected"));
    }

    /// The same of bytes, and of files: `files` says how many of how many.
    pub(crate) fn advance_files(&mut self, by: u64, counts: &Counts, files: &str) {
        let done = HumanBytes(self.done + by);
        // The length of standard input is not known.
        let of = match self.length {
            0 => String::new(),
            length => format!(" of {}", HumanBytes(length)),
        };
        let (records, rejected) = (counts.records, counts.rejected);
        let rate = self.bar.rate(records);
        let counted = format!("{records} records ({rate:.0}/s), {rejected} rejected");
        self.show(by, format!("{files}, {done}{of}, {counted}"));
    }

    /// The same for the objects of rows: `text` says what came of them.
    pub(crate) fn advance_objects(&mut self, by: u64, compared: u64, text: &str) {
        let rate = self.bar.rate(compared);
        self.show(by, format!("{compared} objects compared ({rate:.0}/s), {text}"));
    }

    fn show(&mut self, by: u64, text: String) {
        self.done += by;
        let percent = match self.length {
            0 => String::new(),
            length => format!("{:>3}%  ", self.done * 100 / length),
        };
        self.bar.show(self.done, text, |text| format!("{percent}{text}"));
    }
}

/// How many shards a stream has; it grows while the stream is read.
#[derive(Debug, Default)]
pub(crate) struct ShardCount {
    pub(crate) listed: AtomicUsize,
    /// Children of shards that have been read to their end, not listed yet: counted up before that end
    /// is reported, so that nobody takes a stream for done that is not.
    pub(crate) expected: AtomicUsize,
}

/// Where a shard is after a page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ShardProgress {
    /// There is more to read before the cutoff.
    pub(crate) behind: bool,
    /// It is at the cutoff, and may go on.
    pub(crate) followed: bool,
}

/// The progress of one stream.
pub(crate) struct StreamProgress {
    bar: Bar,
    name: String,
    shards: Arc<ShardCount>,
    /// How many shards an earlier run finished.
    done_before: usize,
    done: HashSet<Arc<str>>,
    records: u64,
    /// The creation time of the last record of each shard that is being read.
    reached: HashMap<Arc<str>, OffsetDateTime>,
}

impl StreamProgress {
    /// `listed` shards are known, `done_before` of them finished by an earlier run.
    pub(crate) fn start(
        table: &str,
        listed: usize,
        done_before: usize,
        shards: Arc<ShardCount>,
    ) -> Self {
        let bar = Bar::start(listed as u64, "{prefix:>10} {bar:20} {pos}/{len} shards  {msg}");
        bar.drawn.set_prefix(table.to_owned());
        Self {
            bar,
            name: table.to_owned(),
            shards,
            done_before,
            done: HashSet::new(),
            records: 0,
            reached: HashMap::new(),
        }
    }

    /// This many more records of a shard are in both stores, the last of them created at `reached`.
    pub(crate) fn advance(
        &mut self,
        shard: &Arc<str>,
        records: u64,
        reached: Option<OffsetDateTime>,
        state: ShardProgress,
    ) {
        let ShardProgress { behind, followed } = state;
        self.records += records;
        if !behind {
            self.done.insert(Arc::clone(shard));
        }
        match reached.filter(|_| records > 0) {
            // One that is followed after the cutoff still says where the stream is.
            Some(reached) if behind || followed => {
                self.reached.insert(Arc::clone(shard), reached);
            }
            _ if !behind => {
                self.reached.remove(shard);
            }
            _ => {}
        }
    }

    /// The shards that are read and those that are known, and the records that were read.
    pub(crate) fn totals(&self) -> (usize, usize, u64) {
        let total = self.shards.listed.load(Ordering::Relaxed);
        (self.done_before + self.done.len(), total, self.records)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Every shard that is known is read, to its end or up to the cutoff.
    pub(crate) fn is_done(&self) -> bool {
        let expected = self.shards.expected.load(Ordering::SeqCst);
        self.done_before + self.done.len() >= self.shards.listed.load(Ordering::SeqCst) + expected
    }

    pub(crate) fn show(&mut self) {
        let total = self.shards.listed.load(Ordering::Relaxed);
        let done = self.done_before + self.done.len();
        self.bar.drawn.set_length(total as u64);
        // The stream has come as far as the shard that is farthest behind.
        let position = self.reached.values().min().map_or_else(
            || if done >= total { "all read".to_owned() } else { "no record yet".to_owned() },
            |reached| {
                let lag = (OffsetDateTime::now_utc() - *reached).max(time::Duration::ZERO);
                format!("at {}, {} behind now", clock(*reached), span(lag.unsigned_abs()))
            },
        );
        let text =
            format!("{} records ({:.0}/s)  {position}", self.records, self.bar.rate(self.records));
        let name = &self.name;
        self.bar.show(done as u64, text, |text| format!("{name}: {done}/{total} shards, {text}"));
    }
}
