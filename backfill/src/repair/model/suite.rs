//! The searches, and how they are run: a sample of the histories in every run, all of them if
//! `REPAIR_SEARCH=deep`.
//!
//! The numbers of states and of ends are written down: a step that got lost would change them.
//! Those of the searches without a merge and without the rules of `OURS` are also those of an
//! independent search in another language.

mod mutants;
mod rules_that_hold;

use std::fmt::Write as _;

use super::one::One;
use super::rules::Rules;
use super::search::{Found, Problem, search};
use super::two::Two;

/// How many databases a search is of.
#[derive(Clone, Copy, Debug)]
enum Of {
    One,
    Two,
}

/// The histories of a search.
#[derive(Clone, Copy, Debug)]
enum Histories {
    /// Those of at most this many writes to an item that is absent first, and to one that is older
    /// than the stream.
    UpTo(usize, usize),
    /// Those of this many writes to an item that is absent first.
    Exactly(usize),
}

/// One search.
struct Search {
    name: &'static str,
    of: Of,
    histories: Histories,
    rules: Rules,
}

/// All histories of this many writes. Images are named in the order of their appearance.
fn of_writes(writes: usize, first: u8) -> Vec<Vec<u8>> {
    let mut histories = vec![vec![first]];
    for _ in 0..writes {
        let longer = |history: &Vec<u8>| {
            let newest = history.iter().copied().max().unwrap_or_default() + 1;
            let last = history.last().copied();
            let next = (0..=newest).filter(move |content| Some(*content) != last);
            let history = history.clone();
            next.map(move |content| [history.as_slice(), &[content]].concat()).collect::<Vec<_>>()
        };
        histories = histories.iter().flat_map(longer).collect();
    }
    histories
}

impl Histories {
    /// The histories, the shortest first.
    fn all(self) -> Vec<Vec<u8>> {
        match self {
            Self::Exactly(writes) => of_writes(writes, 0),
            Self::UpTo(absent, older) => {
                let all = (0..=absent).map(|writes| of_writes(writes, 0));
                let all = all.chain((0..=older).map(|writes| of_writes(writes, 1)));
                let mut all: Vec<_> = all.flatten().collect();
                all.sort_by_key(Vec::len);
                all
            }
        }
    }
}

impl Search {
    /// Searches these histories.
    fn run(&self, histories: &[Vec<u8>]) -> Found {
        let mut found = Found::default();
        let rules = &self.rules;
        for history in histories {
            found.add(match self.of {
                Of::One => search(&One { rules, history }),
                Of::Two => search(&Two { rules, history }),
            });
        }
        found
    }
}

/// What a search has found, for whoever reads the output.
fn describe(search: &Search, found: &Found) -> String {
    let mut text = format!("{}: {} states, {} ends", search.name, found.states, found.ends);
    for (problem, (histories, trace)) in &found.problems {
        let _ = write!(text, "\n  {problem:?} in {histories} histories, at the shortest by:");
        for action in trace {
            let _ = write!(text, "\n    {action}");
        }
    }
    text
}

/// Whether to search all histories.
fn is_deep() -> bool {
    std::env::var("REPAIR_SEARCH").is_ok_and(|depth| depth == "deep")
}

/// Whether rows are right at rest, and yet some reader was led back.
fn only_goes_back(found: &Found) -> bool {
    found.problems.keys().eq(&[Problem::RowWentBack])
}

#[test]
fn histories_are_canonical_and_complete() {
    let counts = [
        (Histories::UpTo(1, 1), 5),
        (Histories::UpTo(2, 1), 7),
        (Histories::UpTo(3, 2), 17),
        (Histories::Exactly(3), 5),
    ];
    for (histories, count) in counts {
        assert_eq!(histories.all().len(), count, "{histories:?}");
    }
    assert_eq!(of_writes(2, 0), [[0, 1, 0], [0, 1, 2]]);
}
