//! What a terminal shows while items and rows are compared.

use std::time::Duration;

use crate::console::{self, Bar, span};

/// The progress over the items of both tables.
pub(crate) struct Progress {
    bar: Bar,
    /// How many items there are; for tables an estimate, which may be hours old.
    total: u64,
    estimated: bool,
    done: u64,
}

impl Progress {
    /// Starts over this many items; `estimated` says that nobody counted them now.
    pub(crate) fn start(total: u64, estimated: bool) -> Self {
        let bar = Bar::start(total, "{bar:20} {percent:>3}%  {wide_msg}");
        Self { bar, total, estimated, done: 0 }
    }

    /// This many more items are compared.
    pub(crate) fn advance(&mut self, items: u64, differ: usize, read_units: Option<f64>) {
        self.done += items;
        let rate = self.bar.rate(self.done);
        let used = read_units.map(|units| {
            let per_second = units * rate / self.done.max(1) as f64;
            format!(", {units:.0} read units ({per_second:.0}/s)")
        });
        let used = used.unwrap_or_default();
        let remaining = self.remaining(rate);
        let done = self.done;
        let text =
            format!("{done} items ({rate:.0}/s){used}, {differ} to look at again{remaining}");
        let percent = self.done * 100 / self.total.max(self.done).max(1);
        self.bar.show(self.done, text, |text| format!("{percent:>3}%  {text}"));
    }

    fn remaining(&self, rate: f64) -> String {
        let items = self.total.saturating_sub(self.done) as f64;
        match Duration::try_from_secs_f64(items / rate) {
            Ok(left) if self.estimated => {
                format!(", about {} left by DynamoDB's count", span(left))
            }
            Ok(left) => format!(", {} left", span(left)),
            Err(_) => String::new(),
        }
    }
}

/// The progress over the keys of all rows, whose number is not asked for.
pub(crate) struct RowProgress {
    bar: Bar,
    what: &'static str,
    rows: u64,
}

impl RowProgress {
    pub(crate) fn start(what: &'static str) -> Self {
        Self { bar: Bar::start(0, "{spinner} {wide_msg}"), what, rows: 0 }
    }

    /// This many more rows are read.
    pub(crate) fn advance(&mut self, rows: usize) {
        self.rows += rows as u64;
        let text = format!("{}: {} rows ({:.0}/s)", self.what, self.rows, self.bar.rate(self.rows));
        self.bar.show(self.rows, text, str::to_owned);
    }
}

/// Says that what differs is read again.
pub(crate) fn round(number: u16, of: u16, pending: usize, wait: Duration) {
    console::line(&format!(
        "{pending} parts differ: look {number} of {of} at them in {}",
        span(wait)
    ));
}
