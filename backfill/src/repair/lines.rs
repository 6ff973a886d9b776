//! Which lines of a data file are settled, or which parts of a range of rows: for an answer from
//! which the next invocation goes on. Pure.
//!
//! Lines count from 0. A line is open from when it was read until nothing is left to do for its
//! item. What is kept in memory is the open lines, and those after the first open one whose items
//! are rejected.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::compare_tables::without_items::RowsDone;
use crate::items::Key;

/// Some lines that were read together.
#[derive(Debug, Default)]
pub(crate) struct Piece {
    /// The keys of their items, each with its line.
    pub(crate) keys: Vec<(Key, u64)>,
    /// The lines without a valid key: no row can hold them.
    pub(crate) without_key: Vec<u64>,
    /// The line after the last one.
    pub(crate) end: u64,
    /// The file has no more, and is the one that was asked for.
    pub(crate) is_last: bool,
    /// Of a range of rows: how many parts were asked for, and the rows that are done with once
    /// these lines are settled, and those before.
    pub(crate) asked: u64,
    pub(crate) rows: Option<RowsDone>,
}

/// The lines of one file, from the first that an invocation was asked for.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    open: HashMap<Key, u64>,
    /// Those lines, in order.
    numbers: BTreeSet<u64>,
    /// Those after the first open line.
    rejected: BTreeSet<u64>,
    /// How many were rejected before it.
    rejected_before: u64,
    /// The line after the last one that was read.
    end: u64,
    is_whole: bool,
    /// Their objects could not be written: their lines stay open.
    left: HashSet<String>,
    /// By the line after the last one that must be settled.
    rows: BTreeMap<u64, Pages>,
    settled_rows: Pages,
}

/// Rows, page by page.
#[derive(Debug, Default)]
struct Pages {
    rows: u64,
    asked: u64,
    through: Option<String>,
}

impl Pages {
    fn add(&mut self, later: Self) {
        self.rows += later.rows;
        self.asked += later.asked;
        self.through = later.through.or_else(|| self.through.take());
    }
}

impl Lines {
    /// Nothing is read before this line.
    pub(crate) fn from(next: u64) -> Self {
        Self { end: next, ..Self::default() }
    }

    /// These lines were read, and are open.
    pub(crate) fn add(&mut self, piece: Piece) {
        let Piece { keys, without_key, end, is_last, asked, rows } = piece;
        for (key, line) in keys {
            // A key that is named twice is settled with its first line.
            if let Entry::Vacant(open) = self.open.entry(key) {
                open.insert(line);
                self.numbers.insert(line);
            }
        }
        self.rejected.extend(without_key);
        let (rows, through) =
            rows.map_or((0, None), |RowsDone { count, through }| (count as u64, Some(through)));
        self.rows.entry(end).or_default().add(Pages { rows, asked, through });
        self.end = self.end.max(end);
        self.is_whole |= is_last;
        self.advance();
    }

    /// Whether something is still to be done for this item of the file.
    pub(crate) fn is_open(&self, key: &Key) -> bool {
        self.open.contains_key(key)
    }

    /// Nothing is left to do for this item.
    pub(crate) fn settle(&mut self, key: &Key) {
        if !self.left.contains(&key.1)
            && let Some(line) = self.open.remove(key)
        {
            self.numbers.remove(&line);
            self.advance();
        }
    }

    /// This item cannot be applied, and is in `rejected_records`.
    pub(crate) fn reject(&mut self, key: &Key) {
        if let Some(line) = self.open.remove(key) {
            self.numbers.remove(&line);
            self.rejected.insert(line);
            self.advance();
        }
    }

    /// The object of this session could not be written: its lines stay open.
    pub(crate) fn leave(&mut self, session_id: &str) {
        self.left.insert(session_id.to_owned());
    }

    /// The first line for which something is left to do.
    pub(crate) fn next(&self) -> u64 {
        self.numbers.first().copied().unwrap_or(self.end)
    }

    /// How many lines before [`Lines::next`] were rejected.
    pub(crate) fn rejected(&self) -> u64 {
        self.rejected_before
    }

    /// Whether the file was read to its end, and every line is settled.
    pub(crate) fn is_done(&self) -> bool {
        self.is_whole && self.numbers.is_empty()
    }

    /// Of a range: the session of the last row up to which nothing is left to do.
    pub(crate) fn through(&self) -> Option<&str> {
        self.settled_rows.through.as_deref()
    }

    /// How many rows there are up to that one, and how many of their parts were asked for.
    pub(crate) fn rows(&self) -> (u64, u64) {
        (self.settled_rows.rows, self.settled_rows.asked)
    }

    fn advance(&mut self) {
        let next = self.next();
        while let Some(rows) = self.rows.first_entry().filter(|rows| *rows.key() <= next) {
            let rows = rows.remove();
            self.settled_rows.add(rows);
        }
        while self.rejected.first().is_some_and(|line| *line < next) {
            self.rejected.pop_first();
            self.rejected_before += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use projector::part::Part;

    use super::{Lines, Piece};
    use crate::compare_tables::without_items::RowsDone;
    use crate::items::Key;

    fn key(name: &str) -> Key {
        (Part::Left, name.to_owned())
    }

    fn piece(from: u64, names: &[&str]) -> Piece {
        let end = from + names.len() as u64;
        let keyed = |(name, line): (&&str, u64)| (!name.is_empty()).then(|| (key(name), line));
        let keys = names.iter().zip(from..).filter_map(keyed).collect();
        let lines = names.iter().zip(from..).filter(|(name, _)| name.is_empty());
        let without_key = lines.map(|(_, line)| line).collect();
        Piece { keys, without_key, end, ..Piece::default() }
    }

    #[test]
    fn the_next_line_is_the_first_that_is_open_in_whatever_order_they_are_settled() {
        let mut lines = Lines::from(10);
        assert_eq!((lines.next(), lines.is_done()), (10, false));
        lines.add(piece(10, &["a", "b", "", "c"]));
        assert_eq!((lines.next(), lines.rejected()), (10, 0));
        lines.settle(&key("b"));
        lines.reject(&key("c"));
        assert_eq!((lines.next(), lines.rejected()), (10, 0), "what comes again is counted then");
        assert!(lines.is_open(&key("a")) && !lines.is_open(&key("b")));
        lines.settle(&key("a"));
        assert_eq!((lines.next(), lines.rejected()), (14, 2));
        assert!(!lines.is_done(), "there may be more");
        lines.add(Piece { end: 14, is_last: true, ..Piece::default() });
        assert!(lines.is_done());
    }

    /// A page of rows is settled once all its parts are, and those of the pages before.
    #[test]
    fn rows_are_settled_page_by_page() {
        let mut lines = Lines::from(0);
        let rows =
            |count: usize, through: &str| Some(RowsDone { count, through: through.to_owned() });
        let of_page =
            |from, names: &[&str], asked, rows| Piece { asked, rows, ..piece(from, names) };
        lines.add(of_page(0, &[], 5, rows(10, "k")));
        assert_eq!((lines.through(), lines.rows()), (Some("k"), (10, 5)));
        lines.add(of_page(0, &["a"], 100, None));
        lines.add(of_page(1, &["b"], 20, rows(10, "m")));
        lines.add(of_page(2, &[], 0, rows(10, "o")));
        lines.settle(&key("b"));
        assert_eq!((lines.through(), lines.rows()), (Some("k"), (10, 5)), "a is open");
        lines.settle(&key("a"));
        assert_eq!((lines.through(), lines.rows()), (Some("o"), (30, 125)));
        lines.add(of_page(2, &["c"], 7, rows(10, "q")));
        lines.leave("c");
        lines.settle(&key("c"));
        assert_eq!((lines.through(), lines.is_done()), (Some("o"), false));
    }

    #[test]
    fn a_line_whose_object_failed_stays_open() {
        let mut lines = Lines::from(0);
        lines.add(piece(0, &["a", "b"]));
        lines.add(Piece { end: 2, is_last: true, ..Piece::default() });
        lines.leave("b");
        lines.settle(&key("b"));
        lines.settle(&key("a"));
        assert_eq!((lines.next(), lines.is_done()), (1, false));
    }

    #[test]
    fn a_key_that_is_named_twice_is_settled_once() {
        let mut lines = Lines::from(0);
        lines.add(piece(0, &["a", "a"]));
        lines.settle(&key("a"));
        lines.settle(&key("a"));
        assert_eq!(lines.next(), 2);
    }
}
