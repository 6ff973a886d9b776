//! What failed of a long run, item by item: a line each as it happens, up to a limit, and the first
//! few for the summary.

use serde_json::{Value as Json, json};

use crate::console;

/// At most this many are named in a summary.
const NAMED: usize = 20;
/// At most this many get a line each while the run goes on.
const LINES: u64 = 1_000;

/// Failures of one kind.
#[derive(Clone, Debug)]
pub(crate) struct Failures {
    /// What their lines begin with.
    heading: &'static str,
    pub(crate) count: u64,
    named: Vec<(String, String)>,
}

impl Failures {
    /// None so far.
    pub(crate) fn new(heading: &'static str) -> Self {
        Self { heading, count: 0, named: Vec::new() }
    }

    /// Adds one.
    pub(crate) fn add(&mut self, name: &str, reason: &str) {
        let heading = self.heading;
        self.count += 1;
        if self.count <= LINES {
            console::line(&format!("{heading}: {name}: {reason}"));
        } else if self.count == LINES + 1 {
            console::line(&format!("{heading}: more, which get no line of their own"));
        }
        if self.named.len() < NAMED {
            self.named.push((name.to_owned(), reason.to_owned()));
        }
    }

    /// The first of them, in one line.
    pub(crate) fn names(&self) -> String {
        let more = if self.count > self.named.len() as u64 { ", ..." } else { "" };
        self.first().join(", ") + more
    }

    /// The names of the first.
    pub(crate) fn first(&self) -> Vec<&str> {
        self.named.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// The first of them, each with its reason.
    pub(crate) fn json(&self) -> Vec<Json> {
        let json = |(name, reason): &(String, String)| json!({ "name": name, "reason": reason });
        self.named.iter().map(json).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{Failures, LINES, NAMED};

    #[test]
    fn all_are_counted_and_the_first_are_named() {
        let mut failures = Failures::new("not done");
        failures.add("s1", "why");
        failures.add("s2", "why");
        assert_eq!((failures.count, failures.names().as_str()), (2, "s1, s2"));
        for number in 0..LINES {
            failures.add(&format!("t{number}"), "why");
        }
        assert_eq!(failures.count, LINES + 2);
        assert!(failures.names().ends_with(", ..."));
        assert_eq!(failures.json().len(), NAMED);
    }
}
