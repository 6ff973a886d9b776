//! What an execution costs and how long it takes, estimated from what the tables say of themselves.
//! Pure.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value as Json, json};

use crate::console::span;
use crate::items::api::TableSize;

/// How long a slice takes per item and per byte of it, in seconds, on one processor (1769 MB):
/// measured, see docs/bench/slices.md.
const SECONDS_PER_ITEM: f64 = 37e-6;
const SECONDS_PER_BYTE: f64 = 4.2e-9;

/// List prices in us-east-1, in dollars (the pricing pages of DynamoDB, Lambda on x86, S3 and Step
/// Functions, November 2026): a GB of export, a GB-second, a thousand GETs, a million read request
/// units, a million state transitions of standard workflows, a GB and month of storage.
const EXPORT_GB: f64 = 0.10;
const GB_SECOND: f64 = 0.000_016_666_7;
const THOUSAND_GETS: f64 = 0.0004;
const MILLION_READ_UNITS: f64 = 0.125;
const MILLION_TRANSITIONS: f64 = 25.0;
const STORED_GB_MONTH: f64 = 0.023;

/// An export writes at least this many files per table, and some one per partition. A partition
/// holds at most 10 GB; half of that is taken for the average.
const FEWEST_FILES: u64 = 4;
const FILE_BYTES: u64 = 5_000_000_000;
/// What one child of the map and one more call of it take; and the rest of an execution, with its
/// waits for the exports.
const TRANSITIONS_PER_CALL: u64 = 6;
const TRANSITIONS_BESIDE: u64 = 500;
/// An invocation reads for this long, and leaves the rest of its 15 minutes for what differs.
const SECONDS_PER_CALL: f64 = 600.0;
/// A consistent read takes one unit per 4 KB of each item, or part of them.
const UNIT_BYTES: u64 = 4096;
/// A part that differs is read again to be sure, and once more to be written.
const READS_PER_DIFFERENCE: u64 = 2;

/// What is known of an execution before it runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) sizes: [TableSize; 2],
    pub(crate) repair: bool,
    /// Exports that exist are not paid for again.
    pub(crate) exports_exist: bool,
    pub(crate) memory_mb: u32,
    pub(crate) concurrency: u32,
}

/// An estimate.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Expense {
    pub(crate) items: u64,
    pub(crate) files: u64,
    pub(crate) export_gb: f64,
    pub(crate) gb_seconds: f64,
    pub(crate) gets: u64,
    pub(crate) transitions: u64,
    /// If one item in a hundred differs.
    pub(crate) read_units: u64,
    /// From the end of the exports on, without the rows whose item is gone.
    pub(crate) seconds: f64,
    /// What one slice compares, in items per second.
    items_per_second: f64,
    exports_exist: bool,
    memory_mb: u32,
    concurrency: u32,
}

/// The expense of a plan.
pub(crate) fn estimate(plan: Plan) -> Expense {
    let Plan { sizes, repair, exports_exist, memory_mb, concurrency } = plan;
    let items: u64 = sizes.iter().map(|size| size.items).sum();
    let bytes: u64 = sizes.iter().map(|size| size.bytes).sum();
    let files: u64 =
        sizes.iter().map(|size| size.bytes.div_ceil(FILE_BYTES).max(FEWEST_FILES)).sum();
    let work = items as f64 * SECONDS_PER_ITEM + bytes as f64 * SECONDS_PER_BYTE;
    // No file is read by two functions at a time.
    let seconds = work / f64::from(concurrency).min(files as f64);
    let follower = if repair { seconds } else { 0.0 };
    let calls = files * ceil(work / files as f64 / SECONDS_PER_CALL).max(1);
    let average = bytes.checked_div(items).unwrap_or(0).max(1);
    Expense {
        items,
        files,
        export_gb: if exports_exist { 0.0 } else { bytes as f64 / 1e9 },
        gb_seconds: (work + follower) * f64::from(memory_mb) / 1024.0,
        gets: calls,
        transitions: calls * TRANSITIONS_PER_CALL + TRANSITIONS_BESIDE,
        read_units: items.div_ceil(100) * READS_PER_DIFFERENCE * average.div_ceil(UNIT_BYTES),
        seconds,
        items_per_second: items as f64 / work.max(SECONDS_PER_ITEM),
        exports_exist,
        memory_mb,
        concurrency,
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "calls of one file: a small positive number"
)]
fn ceil(number: f64) -> u64 {
    number.ceil() as u64
}

impl Expense {
    /// The lines of the estimate: a name, how much, a unit, and dollars.
    fn lines(&self) -> [(&'static str, String, &'static str, f64); 5] {
        let whole = |number: f64| format!("{number:.0}");
        [
            (
                "export",
                format!("{:.1}", self.export_gb),
                "GB of both tables",
                self.export_gb * EXPORT_GB,
            ),
            ("Lambda", whole(self.gb_seconds), "GB-seconds", self.gb_seconds * GB_SECOND),
            ("S3", self.gets.to_string(), "GETs", self.gets as f64 / 1e3 * THOUSAND_GETS),
            (
                "read units",
                self.read_units.to_string(),
                "if 1 % of the items differ",
                self.read_units as f64 / 1e6 * MILLION_READ_UNITS,
            ),
            (
                "transitions",
                self.transitions.to_string(),
                "of states",
                self.transitions as f64 / 1e6 * MILLION_TRANSITIONS,
            ),
        ]
    }

    /// Dollars for all of it.
    pub(crate) fn dollars(&self) -> f64 {
        self.lines().iter().map(|(.., dollars)| dollars).sum()
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let Self { items, files, seconds, items_per_second, memory_mb, concurrency, .. } = self;
        let mut text = format!(
            "dry run, nothing was started: {items} items, as the tables last counted them, in \
             some {files} files\n"
        );
        for (name, amount, unit, dollars) in self.lines() {
            let _ = writeln!(text, "  {name:<12}{amount:>14}  {unit:<28}{dollars:>12.2} dollars");
        }
        let _ =
            writeln!(text, "  {:<12}{:>14}  {:<28}{:>12.2} dollars", "all", "", "", self.dollars());
        let took = span(Duration::try_from_secs_f64(seconds.max(1.0)).unwrap_or(Duration::MAX));
        let exports = if self.exports_exist { "" } else { ", after the exports are made" };
        let _ = writeln!(
            text,
            "It takes about {took}{exports}: {concurrency} files at a time, each at \
             {items_per_second:.0} items per second, by functions of {memory_mb} MB. A database \
             that is slower sets the pace."
        );
        text += "Prices are list prices of us-east-1. Not in them: what the database costs, logs, \
                 and rows whose item is gone.\n";
        if !self.exports_exist {
            let month = self.export_gb * STORED_GB_MONTH;
            let _ = writeln!(
                text,
                "The files of the exports cost at most {month:.2} dollars per month until they \
                 expire."
            );
        }
        text
    }

    /// As the members of the result.
    pub(crate) fn json(&self) -> Json {
        json!({
            "dry_run": true,
            "items": self.items,
            "files": self.files,
            "export_gb": self.export_gb,
            "gb_seconds": self.gb_seconds,
            "gets": self.gets,
            "read_units": self.read_units,
            "transitions": self.transitions,
            "seconds": self.seconds,
            "memory_mb": self.memory_mb,
            "concurrency": self.concurrency,
            "dollars": self.dollars(),
        })
    }
}

/// What a state machine's definition says of its maps and its function: the highest concurrency of
/// its Distributed Maps, and the function's ARN.
pub(crate) fn of_definition(definition: &str) -> (Option<u32>, Option<String>) {
    let (mut concurrency, mut function) = (None, None);
    if let Ok(definition) = serde_json::from_str(definition) {
        search(&definition, &mut concurrency, &mut function);
    }
    (concurrency, function)
}

fn search(json: &Json, concurrency: &mut Option<u32>, function: &mut Option<String>) {
    match json {
        Json::Object(members) => {
            let most = members.get("MaxConcurrency").and_then(Json::as_u64);
            // 0 is as many as Step Functions allows.
            if let Some(most) = most.and_then(|most| u32::try_from(most).ok()).filter(|it| *it > 0)
            {
                *concurrency = (*concurrency).max(Some(most));
            }
            for member in members.values() {
                search(member, concurrency, function);
            }
        }
        Json::Array(elements) => {
            for element in elements {
                search(element, concurrency, function);
            }
        }
        Json::String(text) if text.contains(":function:") && function.is_none() => {
            *function = Some(text.clone());
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::{Plan, SECONDS_PER_BYTE, SECONDS_PER_ITEM, TableSize, estimate, of_definition};

    fn plan() -> Plan {
        Plan {
            sizes: [
                TableSize { items: 1_000_000, bytes: 400_000_000 },
                TableSize { items: 2_000_000, bytes: 40_000_000_000 },
            ],
            repair: false,
            exports_exist: false,
            memory_mb: 2_048,
            concurrency: 10,
        }
    }

    #[test]
    fn the_sizes_of_the_tables_make_the_expense() {
        let expense = estimate(plan());
        // 4 files at least, and one per 5 GB.
        assert_eq!((expense.items, expense.files), (3_000_000, 4 + 8));
        assert!((expense.export_gb - 40.4).abs() < 1e-9);
        let work = 3_000_000.0 * SECONDS_PER_ITEM + 40_400_000_000.0 * SECONDS_PER_BYTE;
        assert!((expense.gb_seconds - work * 2.0).abs() < 1e-6, "{expense:?}");
        assert!((expense.seconds - work / 10.0).abs() < 1e-6, "{expense:?}");
        // An item has 13,466 bytes on average, four units, and is read twice.
        assert_eq!(expense.read_units, 30_000 * 2 * 4);
        let calls = expense.gets;
        assert!(calls >= expense.files && calls.is_multiple_of(expense.files), "{calls}");
        assert_eq!(expense.transitions, calls * 6 + 500);
        let parts = 40.4 * 0.1
            + work * 2.0 * 0.000_016_666_7
            + calls as f64 * 4e-7
            + 0.24 * 0.125
            + expense.transitions as f64 * 25e-6;
        assert!((expense.dollars() - parts).abs() < 1e-6, "{}", expense.dollars());
    }

    #[test]
    fn an_export_that_exists_is_free_and_a_repair_pays_for_its_follower() {
        let exists = estimate(Plan { exports_exist: true, ..plan() });
        assert!(exists.export_gb == 0.0 && !exists.text().contains("after the exports"));
        let (compares, repairs) = (estimate(plan()), estimate(Plan { repair: true, ..plan() }));
        let follower = compares.seconds * 2.0;
        assert!((repairs.gb_seconds - compares.gb_seconds - follower).abs() < 1e-6);
    }

    #[test]
    fn more_functions_than_files_make_it_no_faster() {
        let (twelve, hundred) = (
            estimate(Plan { concurrency: 12, ..plan() }),
            estimate(Plan { concurrency: 100, ..plan() }),
        );
        assert!((twelve.seconds - hundred.seconds).abs() < 1e-9);
        let empty = estimate(Plan { sizes: [TableSize::default(); 2], ..plan() });
        assert_eq!((empty.items, empty.files, empty.read_units), (0, 8, 0));
        assert!(empty.text().contains("It takes about 1 s"), "{}", empty.text());
    }

    #[test]
    fn the_text_says_whose_prices_they_are_and_fits_a_terminal() {
        let text = estimate(plan()).text();
        assert!(text.contains("list prices of us-east-1"), "{text}");
        let table = text.lines().filter(|line| line.starts_with("  "));
        assert!(table.clone().count() == 6 && table.clone().all(|line| line.len() <= 80), "{text}");
    }

    #[test]
    fn a_definition_names_its_concurrency_and_its_function() {
        let definition = r#"{"StartAt": "Files", "States": {
            "Files": {"Type": "Map", "MaxConcurrency": 20, "ItemProcessor": {"States": {
                "Slice": {"Type": "Task", "Resource": "arn:aws:states:::lambda:invoke",
                    "Parameters": {"FunctionName": "arn:aws:lambda:r:1:function:reconcile:live"}}}}},
            "Ranges": {"Type": "Map", "MaxConcurrency": 5}}}"#;
        let (concurrency, function) = of_definition(definition);
        assert_eq!(concurrency, Some(20));
        assert_eq!(function.as_deref(), Some("arn:aws:lambda:r:1:function:reconcile:live"));
        assert_eq!(of_definition("no JSON"), (None, None));
    }
}
