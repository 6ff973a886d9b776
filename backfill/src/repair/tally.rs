//! What a repair came to: for people, and as JSON. Pure, but for the lines that name what failed.

use std::fmt::Write as _;
use std::time::Duration;

use projector::error::{self, Error};
use serde_json::{Value as Json, json};

use crate::console::{self, span};
use crate::outcome::Outcome;

/// At most this many items that cannot be applied, and objects that were not written, are named in
/// the summary.
const NAMED: usize = 20;
/// At most this many get a line each while the run goes on.
const LINES: u64 = 1_000;

/// What came of the candidates.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// Items, or keys, that were looked at.
    pub(crate) items: u64,
    /// Parts that may have differed, and were read with their rows.
    pub(crate) candidates: u64,
    /// Parts that were equal.
    pub(crate) equal: u64,
    /// Parts whose hold is not over yet.
    pub(crate) waiting: u64,
    /// Parts whose item is in the row now.
    pub(crate) written: u64,
    /// Parts that the row has no more, since their item is gone.
    pub(crate) removed: u64,
    /// Parts that the streams brought meanwhile.
    pub(crate) dropped: u64,
    pub(crate) malformed: u64,
    named_malformed: Vec<(String, String)>,
    /// Objects that were looked at after their rows, and hold at least them now.
    pub(crate) objects: u64,
    pub(crate) failed_objects: u64,
    named_objects: Vec<String>,
    /// Parts whose rows were locked each time.
    pub(crate) locked: u64,
    named_locked: Vec<String>,
    /// Rejected records that are removed, since their parts are settled.
    pub(crate) redriven: u64,
    /// Rejected records whose keys cannot be read.
    untried: u64,
    named_untried: Vec<String>,
}

/// How a run ended, for the summary.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    /// `done`, `stopped` or `failed`.
    pub(crate) how: &'static str,
    /// Where the candidates came from.
    pub(crate) source: &'static str,
    pub(crate) took: Duration,
    /// What the tables charged for.
    pub(crate) read_units: f64,
    /// Records that the streams brought meanwhile.
    pub(crate) records: u64,
}

impl Tally {
    /// An item that the projector or PostgreSQL refuses.
    pub(crate) fn add_malformed(&mut self, name: &str, reason: &str) {
        self.malformed += 1;
        if self.malformed <= LINES {
            console::line(&format!("cannot be applied: {name}: {reason}"));
        } else if self.malformed == LINES + 1 {
            console::line("cannot be applied: more items, which get no line of their own");
        }
        if self.named_malformed.len() < NAMED {
            self.named_malformed.push((name.to_owned(), reason.to_owned()));
        }
    }

    /// A part that could not be written, because its row was locked each time.
    pub(crate) fn add_locked(&mut self, name: &str, why: &str) {
        self.locked += 1;
        if self.locked <= LINES {
            console::line(&format!("not written: {name}: {why}"));
        }
        if self.named_locked.len() < NAMED {
            self.named_locked.push(name.to_owned());
        }
    }

    /// The parts that were locked each time, the first by name.
    pub(crate) fn locked(&self) -> String {
        let more = if self.locked > NAMED as u64 { ", ..." } else { "" };
        self.named_locked.join(", ") + more
    }

    /// An object that could not be written.
    pub(crate) fn add_failed_object(&mut self, session_id: &str, error: &Error) {
        self.failed_objects += 1;
        if self.failed_objects <= LINES {
            let error = error::chain(error);
            console::line(&format!("the object of {session_id} is not written: {error}"));
        }
        if self.named_objects.len() < NAMED {
            self.named_objects.push(session_id.to_owned());
        }
    }

    /// Rejected records whose keys cannot be read: nobody knows which item to read.
    pub(crate) fn add_untried(&mut self, identities: Vec<String>) {
        self.untried += identities.len() as u64;
        let room = NAMED.saturating_sub(self.named_untried.len());
        self.named_untried.extend(identities.into_iter().take(room));
    }

    /// The objects that could not be written, the first by name.
    pub(crate) fn failed_objects(&self) -> String {
        let more = if self.failed_objects > NAMED as u64 { ", ..." } else { "" };
        self.named_objects.join(", ") + more
    }

    /// In a few words, for the progress.
    pub(crate) fn progress(&self) -> String {
        let Self { waiting, written, removed, .. } = self;
        format!("{waiting} parts wait for the streams, {} written", written + removed)
    }

    /// What a run came to that settled every candidate.
    pub(crate) fn outcome(&self) -> Outcome {
        if self.malformed + self.untried > 0 { Outcome::DoneWithRejections } else { Outcome::Done }
    }

    /// The summary, for people.
    pub(crate) fn text(&self, ended: &Ended) -> String {
        let Ended { how, source, took, read_units, records } = *ended;
        let rate = self.items as f64 / took.as_secs_f64().max(1e-9);
        let took = span(took.max(Duration::from_secs(1)));
        let mut text =
            format!("{how}: {} items looked at ({source}) in {took} ({rate:.0}/s)\n", self.items);
        let always = |count: u64| (count, true);
        let if_any = |count: u64| (count, count > 0);
        for (name, (count, shown), meaning) in [
            (
                "candidates",
                always(self.candidates),
                "parts that were read together with their rows",
            ),
            ("written", always(self.written), "parts that the rows hold now as the table does"),
            ("removed", always(self.removed), "parts whose item is gone"),
            ("dropped", if_any(self.dropped), "parts that the streams brought meanwhile"),
            ("not settled", if_any(self.waiting), "parts that still waited for the streams"),
            ("cannot apply", if_any(self.malformed), "items, in rejected_records"),
            ("locked", if_any(self.locked), "parts whose rows were locked each time"),
            ("redriven", if_any(self.redriven), "records removed from rejected_records"),
            ("untried", if_any(self.untried), "rejected records whose keys cannot be read"),
            ("objects", if_any(self.objects), "objects compared with their rows after that"),
            ("objects failed", if_any(self.failed_objects), "objects that are not written"),
            ("records", if_any(records), "change records from the streams"),
        ] {
            if shown {
                text += format!("  {name:<16}{count:>10}  {meaning}").trim_end();
                text.push('\n');
            }
        }
        let name = "read units";
        let _ = writeln!(text, "  {name:<16}{read_units:>10.0}  consumed on both tables");
        text
    }

    /// The same as the members of the result.
    pub(crate) fn json(&self, ended: &Ended) -> Json {
        let Ended { how, source, took, read_units, records } = *ended;
        let first: Vec<Json> = self
            .named_malformed
            .iter()
            .map(|(name, reason)| json!({ "name": name, "reason": reason }))
            .collect();
        json!({
            "ended": how,
            "source": source,
            "dry_run": false,
            "seconds": took.as_secs_f64(),
            "items": self.items,
            "candidates": self.candidates,
            "equal": self.equal,
            "written": self.written,
            "removed": self.removed,
            "dropped": self.dropped,
            "not_settled": self.waiting,
            "malformed": self.malformed,
            "first_malformed": first,
            "locked": self.locked,
            "first_locked": self.named_locked,
            "redriven": self.redriven,
            "untried": self.untried,
            "first_untried": self.named_untried,
            "objects": self.objects,
            "objects_failed": self.failed_objects,
            "first_objects_failed": self.named_objects,
            "records": records,
            "read_units": read_units,
        })
    }
}
