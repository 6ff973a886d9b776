//! Everything that a terminal shows: lines and bars on standard error, results on standard output,
//! and how times read. Bars on a terminal, plain lines every ten seconds elsewhere. Logs and lines
//! go above the bars, through here, or they would tear them. It knows nothing of what is shown.

use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::layout;

/// How often a line is printed where there is no terminal.
pub(crate) const LINE_EVERY: Duration = Duration::from_secs(10);
/// How wide a table is where there is no terminal.
const WITHOUT_TERMINAL: usize = 100;
/// Nothing can be read on a terminal that is narrower.
const NARROWEST: usize = 40;

static BARS: LazyLock<MultiProgress> = LazyLock::new(|| {
    // Not `hidden` of the library's own choosing: what draws nothing must not hold lines back.
    let target =
        if is_interactive() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    MultiProgress::with_draw_target(target)
});

/// Whether lines are part of a log.
static TO_LOG: AtomicBool = AtomicBool::new(false);

/// From now on lines go to the log: nobody looks on, and what reads the log takes no plain text.
pub(crate) fn lines_to_log() {
    TO_LOG.store(true, Ordering::Relaxed);
}

/// Whether somebody looks on at a terminal that can draw bars; `TERM=dumb` cannot.
fn is_interactive() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Whether the log is colored: on such a terminal, unless `NO_COLOR` is set (no-color.org).
pub(crate) fn has_color() -> bool {
    is_interactive() && std::env::var_os("NO_COLOR").is_none_or(|no_color| no_color.is_empty())
}

/// A line for the operator, above the bars.
pub(crate) fn line(text: &str) {
    if TO_LOG.load(Ordering::Relaxed) {
        tracing::info!("{text}");
        return;
    }
    let fitted = terminal_width(&std::io::stderr()).map(|width| layout::fit(text, width));
    let text = fitted.as_deref().unwrap_or(text);
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
pub(crate) struct Bar {
    pub(crate) drawn: ProgressBar,
    start: Instant,
    last_line: Instant,
}

impl Bar {
    pub(crate) fn start(length: u64, template: &str) -> Self {
        let style = ProgressStyle::with_template(template).expect("the template is constant");
        let drawn = BARS.add(ProgressBar::new(length).with_style(style));
        let now = Instant::now();
        Self { drawn, start: now, last_line: now }
    }

    pub(crate) fn rate(&self, records: u64) -> f64 {
        records as f64 / self.start.elapsed().as_secs_f64().max(1e-9)
    }

    /// Shows where it stands; `as_line` is what is printed instead where there is no terminal.
    pub(crate) fn show(
        &mut self,
        position: u64,
        text: String,
        as_line: impl FnOnce(&str) -> String,
    ) {
        if is_interactive() {
            self.drawn.set_message(text);
            self.drawn.set_position(position);
        } else if self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            line(&as_line(&text));
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
        let template = if is_narrow() {
            "{percent:>3}%  eta {eta}  {wide_msg}"
        } else {
            "{bar:20} {percent:>3}%  eta {eta}  {wide_msg}"
        };
        let bar = Bar::start(length, template);
        Self { bar, length, done: 0 }
    }

    /// This much more is done, with this many records in all.
    pub(crate) fn advance(&mut self, by: u64, records: u64, rejected: u64) {
        let rate = self.bar.rate(records);
        self.show(by, format!("{records} records ({rate:.0}/s), {rejected} rejected"));
    }

    /// The same of bytes, and of files: `files` says how many of how many.
    pub(crate) fn advance_files(&mut self, by: u64, (records, rejected): (u64, u64), files: &str) {
        let done = HumanBytes(self.done + by);
        // The length of standard input is not known.
        let of = match self.length {
            0 => String::new(),
            length => format!(" of {}", HumanBytes(length)),
        };
        let rate = self.bar.rate(records);
        let counted = format!("{records} records ({rate:.0}/s), {rejected} rejected");
        // A narrow terminal cuts the end.
        self.show(by, format!("{files}, {counted}, {done}{of}"));
    }

    /// The same for the objects of rows: `text` says what came of them.
    pub(crate) fn advance_objects(&mut self, by: u64, compared: u64, text: &str) {
        let rate = self.bar.rate(compared);
        self.show(by, format!("{compared} objects compared ({rate:.0}/s), {text}"));
    }

    /// The same for sessions: how many, what was done with them, and what came of it. A line has
    /// the remaining time, too, at the rate of the whole run so far.
    pub(crate) fn advance_sessions(&mut self, by: u64, (sessions, done): (u64, &str), text: &str) {
        let rate = self.bar.rate(sessions);
        let remaining = self.length.saturating_sub(self.done + by) as f64;
        let pace = self.bar.rate(self.done + by);
        let remaining = Duration::try_from_secs_f64(remaining / pace).unwrap_or_default();
        let remaining = match remaining.as_secs() {
            0 => String::new(),
            _ => format!(", about {} remain", span(remaining)),
        };
        self.show(by, format!("{sessions} sessions {done} ({rate:.0}/s), {text}{remaining}"));
    }

    /// The same for items of the tables: how many were looked at, and what came of them.
    pub(crate) fn advance_items(&mut self, by: u64, items: u64, text: &str) {
        let rate = self.bar.rate(items);
        self.show(by, format!("{items} items looked at ({rate:.0}/s), {text}"));
    }

    /// Takes the bar away: what follows has no known length.
    pub(crate) fn finish(&self) {
        self.bar.drawn.finish_and_clear();
    }

    fn show(&mut self, by: u64, text: String) {
        self.done += by;
        let percent = match self.length {
            0 => String::new(),
            // A length that was estimated can be too short.
            length => format!("{:>3}%  ", (self.done * 100 / length).min(100)),
        };
        self.bar.show(self.done, text, |text| format!("{percent}{text}"));
    }
}

/// Lines on standard output, for people.
pub(crate) fn say(text: &str) {
    match terminal_width(&std::io::stdout()) {
        Some(width) => print(&layout::fit(text, width)),
        // What reads a pipe looks for words, and they stay on their line.
        None => print(text),
    }
}

/// The same to the letter, above the bars. That its reader has gone (`| head`) is no failure of the
/// run.
pub(crate) fn print(text: &str) {
    BARS.suspend(|| {
        let _ = writeln!(std::io::stdout(), "{text}");
    });
}

/// Clears the terminal, and goes to its upper left corner (ECMA-48: ED, CUP).
const CLEAR: &str = "\x1b[2J\x1b[H";

/// A text on standard output that somebody watches, with the time: on a terminal it stays in its
/// place; elsewhere it is printed again only if it changed.
pub(crate) fn board(text: &str, changed: bool) {
    let now = clock(time::OffsetDateTime::now_utc());
    if is_interactive() && std::io::stdout().is_terminal() {
        print(&format!("{CLEAR}{now}\n{text}"));
    } else if changed {
        print(&format!("{now}\n{text}\n"));
    }
}

/// How wide a table on standard output may be.
pub(crate) fn table_width() -> usize {
    terminal_width(&std::io::stdout()).unwrap_or(WITHOUT_TERMINAL)
}

/// The same on standard error, where lines and bars are.
pub(crate) fn line_width() -> usize {
    terminal_width(&std::io::stderr()).unwrap_or(WITHOUT_TERMINAL)
}

/// Whether lines on standard error have no room for a bar beside their words.
pub(crate) fn is_narrow() -> bool {
    line_width() < WITHOUT_TERMINAL
}

fn terminal_width(stream: &(impl AsFd + IsTerminal)) -> Option<usize> {
    if !stream.is_terminal() {
        return None;
    }
    let (terminal_size::Width(columns), _) = terminal_size::terminal_size_of(stream)?;
    // One that does not know its width says 0.
    (columns > 0).then_some(usize::from(columns).max(NARROWEST))
}

/// `3 h 20 min`, `4 min 5 s`, `12 s`; the sign of what is negative is left to the caller.
pub(crate) fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest} s"),
        (0, minutes) => format!("{minutes} min {rest} s"),
        (hours, minutes) if hours < 48 => format!("{hours} h {minutes} min"),
        (hours, _) => format!("{} d {} h", hours / 24, hours % 24),
    }
}

/// `2026-11-23 14:05:09Z`.
pub(crate) fn clock(time: time::OffsetDateTime) -> String {
    let format =
        time::macros::format_description!("[year]-[month]-[day] [hour]:[minute]:[second]Z");
    let utc =
        time.checked_to_offset(time::UtcOffset::UTC).and_then(|time| time.format(format).ok());
    utc.unwrap_or_else(|| time.to_string())
}
