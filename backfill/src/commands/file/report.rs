//! What became of each file of `file`, and of all together: nothing is left out without a word.

use std::fmt;

use projector::config::ConfigError;

use crate::commands::file::document::Refusal;
use crate::commands::file::values::{Broken, Place};
use crate::console::{self, say};

/// How many different problems of a file are kept; the others are counted.
const KEPT: usize = 10;
/// How many files are named again at the end.
const NAMED: usize = 20;

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

    /// A line per problem: the file, the place, the reason.
    fn tell(&self) {
        for problem in &self.problems {
            console::line(&format!("{}: {problem}", self.name));
        }
        if self.other_problems > 0 {
            console::line(&format!(
                "{}: {} more for other reasons",
                self.name, self.other_problems
            ));
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
    /// The first of those that are not read, or in part.
    bad: Vec<String>,
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
        if bad && self.bad.len() < NAMED {
            self.bad.push(report.name.clone());
        }
        let of_tables = report.problems.iter().find(|problem| problem.of_tables);
        if let (None, Some(problem)) = (&self.of_tables, of_tables) {
            self.of_tables = Some(problem.reason.clone());
        }
        self.other |= report.problems.iter().any(|problem| !problem.of_tables);
    }

    /// On standard output: how many files were read, and which were not.
    pub(crate) fn print(&self, hidden: u64) {
        say!("files: {} of {} read in full", self.whole + self.empty, self.files());
        for (count, meaning) in [
            (self.empty, "of those empty"),
            (self.part, "read in part"),
            (self.nothing, "not read"),
        ] {
            if count > 0 {
                say!("  {count:>6} {meaning}");
            }
        }
        if hidden > 0 {
            say!("  {hidden:>6} left out, because their names begin with a dot");
        }
        for name in &self.bad {
            say!("  not read, or in part: {name}");
        }
        let others = self.part + self.nothing - self.bad.len();
        if others > 0 {
            say!("  and {others} more, each named above");
        }
        if self.records == 0 && self.documents > 0 && self.part + self.nothing == 0 {
            say!("there are no records in these files: is this the right path?");
        }
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
                "{bad} of {} files could not be read in full: each is named above with the reason. Correct them \
                 and run the same command again, which is harmless: what is stored already counts as duplicate",
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
