//! What became of each file of `file`, and of all together: nothing is left out without a word.

use std::fmt::{self, Write as _};

use projector::config::ConfigError;
use serde_json::{Value as Json, json};

use crate::console;
use crate::documents::document::Refusal;
use crate::documents::values::{Broken, Place};

/// How many different problems of a file are kept; the others are counted.
const KEPT: usize = 10;
/// How many files are named again at the end.
const NAMED: usize = 20;
/// How many files `--json` names.
const LISTED: usize = 1_000;

/// What became of one file.
#[derive(Debug, Default)]
pub(crate) struct FileReport {
    pub(crate) name: String,
    /// How many JSON documents it holds, applied or not.
    pub(crate) documents: u64,
    /// How many records of it are applied or rejected.
    pub(crate) records: u64,
    problems: Vec<Problem>,
    /// Those that are not kept.
    other_problems: u64,
}

/// What is not applied, and why.
#[derive(Debug)]
struct Problem {
    /// The first place, and the last line that was skipped there.
    place: Option<(Place, u64)>,
    reason: String,
    /// Whether a variable is to blame.
    of_tables: bool,
    /// How many more there are with the same reason.
    more: u64,
}

impl FileReport {
    pub(crate) fn new(name: String) -> Self {
        Self { name, ..Self::default() }
    }

    /// The whole of it cannot be read.
    pub(crate) fn unreadable(name: String, reason: String) -> Self {
        let mut report = Self::new(name);
        report.add(None, reason, false);
        report
    }

    pub(crate) fn add_broken(&mut self, broken: &Broken) {
        self.add(Some((broken.place, broken.last_line)), broken.fault.to_string(), false);
    }

    pub(crate) fn add_refused(&mut self, place: Place, refusal: &Refusal) {
        let of_tables = matches!(refusal, Refusal::OtherTable { .. });
        self.add(Some((place, place.line)), refusal.to_string(), of_tables);
    }

    fn add(&mut self, place: Option<(Place, u64)>, reason: String, of_tables: bool) {
        if let Some(known) = self.problems.iter_mut().find(|problem| problem.reason == reason) {
            known.more += 1;
        } else if self.problems.len() < KEPT {
            self.problems.push(Problem { place, reason, of_tables, more: 0 });
        } else {
            self.other_problems += 1;
        }
    }

    fn state(&self) -> State {
        match (self.problems.is_empty(), self.records) {
            (true, _) if self.documents == 0 => State::Empty,
            (true, _) => State::Whole,
            (false, 0) => State::Nothing,
            (false, _) => State::Part,
        }
    }

    /// The problems, each with its place and reason.
    fn problems(&self) -> Vec<String> {
        let others = match self.other_problems {
            0 => None,
            count => Some(format!("{count} more for other reasons")),
        };
        self.problems.iter().map(ToString::to_string).chain(others).collect()
    }

    /// A line per problem, after the name of the file.
    fn tell(&self) {
        for problem in self.problems() {
            console::line(&format!("{}: {problem}", self.name));
        }
        if self.state() == State::Empty {
            console::line(&format!("{}: empty", self.name));
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((place, last_line)) = self.place {
            if last_line > place.line {
                write!(f, "lines {} to {last_line}, byte offset {}: ", place.line, place.byte)?;
            } else {
                write!(f, "{place}: ")?;
            }
        }
        f.write_str(&self.reason)?;
        if self.more > 0 {
            write!(f, " (and {} more for this reason)", self.more)?;
        }
        Ok(())
    }
}

/// How much of a file was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Whole,
    /// No document at all, and nothing wrong.
    Empty,
    Part,
    Nothing,
}

/// What became of all files so far.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    whole: usize,
    empty: usize,
    part: usize,
    nothing: usize,
    documents: u64,
    records: u64,
    /// The first of those that are not read, or in part, and why.
    bad: Vec<(String, Vec<String>)>,
    /// A problem that a variable is to blame for.
    of_tables: Option<String>,
    /// Whether there is any other.
    other: bool,
}

impl Tally {
    /// Counts a file, and tells what is wrong with it.
    pub(crate) fn add(&mut self, report: &FileReport) {
        report.tell();
        self.documents += report.documents;
        self.records += report.records;
        let (count, bad) = match report.state() {
            State::Whole => (&mut self.whole, false),
            State::Empty => (&mut self.empty, false),
            State::Part => (&mut self.part, true),
            State::Nothing => (&mut self.nothing, true),
        };
        *count += 1;
        if bad && self.bad.len() < LISTED {
            self.bad.push((report.name.clone(), report.problems()));
        }
        let of_tables = report.problems.iter().find(|problem| problem.of_tables);
        if let (None, Some(problem)) = (&self.of_tables, of_tables) {
            self.of_tables = Some(problem.reason.clone());
        }
        self.other |= report.problems.iter().any(|problem| !problem.of_tables);
    }

    /// For people: how many files were read, and which were not.
    pub(crate) fn text(&self, hidden: u64) -> String {
        let mut text =
            format!("files: {} of {} read in full\n", self.whole + self.empty, self.files());
        for (count, meaning) in [
            (self.empty, "of those empty"),
            (self.part, "read in part"),
            (self.nothing, "not read"),
        ] {
            if count > 0 {
                let _ = writeln!(text, "  {count:>6} {meaning}");
            }
        }
        if hidden > 0 {
            let _ = writeln!(text, "  {hidden:>6} left out, because their names begin with a dot");
        }
        for (name, _) in self.bad.iter().take(NAMED) {
            let _ = writeln!(text, "  not read, or in part: {name}");
        }
        let others = (self.part + self.nothing).saturating_sub(NAMED);
        if others > 0 {
            let _ = writeln!(text, "  and {others} more, each named above");
        }
        if self.records == 0 && self.documents > 0 && self.part + self.nothing == 0 {
            text += "there are no records in these files: is this the right path?\n";
        }
        text
    }

    /// As JSON.
    pub(crate) fn json(&self, hidden: u64) -> Json {
        let bad = |(name, problems): &(String, Vec<String>)| json!({ "file": name, "problems": problems });
        json!({
            "found": self.files(),
            "read_in_full": self.whole + self.empty,
            "empty": self.empty,
            "read_in_part": self.part,
            "not_read": self.nothing,
            "left_out": hidden,
            "with_problems": self.bad.iter().map(bad).collect::<Json>(),
        })
    }

    /// # Errors
    /// If not all was read.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let bad = self.part + self.nothing;
        if let (Some(problem), false, 0) = (&self.of_tables, self.other, self.records) {
            let problem =
                format!("or SCANS_TABLE is wrong, or the path: every record is {problem}");
            return Err(ConfigError { variable: "SESSIONS_TABLE", problem }.into());
        }
        if bad > 0 {
            anyhow::bail!(
                "{bad} of {} files could not be read in full: each is named above with the reason. \
                 Correct them and run the same command again, which is harmless: what is stored \
                 already counts as duplicate",
                self.files()
            );
        }
        if self.documents == 0 {
            anyhow::bail!(
                "no document in any file ({} read): is this the right path?",
                self.files()
            );
        }
        Ok(())
    }

    fn files(&self) -> usize {
        self.whole + self.empty + self.part + self.nothing
    }
}
