//! What a repair came to: for people, and as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value as Json, json};

use crate::console::span;
use crate::failures::Failures;
use crate::outcome::Outcome;
use crate::pending_objects;

/// At most this many rejected records without a key are named in the summary.
const NAMED: usize = 20;
/// What came of the candidates.
#[derive(Clone, Debug)]
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
    /// Files of the exports that are missing or damaged.
    pub(crate) unreadable: Failures,
    /// Items that the projector or PostgreSQL refuses.
    pub(crate) malformed: Failures,
    /// Objects that were looked at after their rows, and hold at least them now.
    pub(crate) objects: u64,
    /// Objects that could not be written.
    pub(crate) failed_objects: Failures,
    /// How many objects were still pending at the end; `None` if that is not known.
    pub(crate) objects_pending: Option<u64>,
    /// Parts whose rows were locked each time.
    pub(crate) locked: Failures,
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

impl Default for Tally {
    fn default() -> Self {
        Self {
            items: 0,
            candidates: 0,
            equal: 0,
            waiting: 0,
            written: 0,
            removed: 0,
            dropped: 0,
            unreadable: Failures::new("file not read"),
            malformed: Failures::new("cannot be applied"),
            objects: 0,
            failed_objects: Failures::new("object not written"),
            objects_pending: None,
            locked: Failures::new("not written"),
            redriven: 0,
            untried: 0,
            named_untried: Vec::new(),
        }
    }
}

impl Tally {
    /// Rejected records whose keys cannot be read: nobody knows which item to read.
    pub(crate) fn add_untried(&mut self, identities: Vec<String>) {
        self.untried += identities.len() as u64;
        let room = NAMED.saturating_sub(self.named_untried.len());
        self.named_untried.extend(identities.into_iter().take(room));
    }

    /// In a few words, for the progress.
    pub(crate) fn progress(&self) -> String {
        let Self { waiting, written, removed, .. } = self;
        format!("{waiting} parts wait for the streams, {} written", written + removed)
    }

    /// Why a part stays that the source names, of an invocation that got nowhere.
    pub(crate) fn why_unsettled(&self) -> String {
        if self.locked.count > 0 {
            format!("rows stay locked: {}", self.locked.names())
        } else if self.failed_objects.count > 0 {
            format!("objects cannot be written: {}", self.failed_objects.names())
        } else {
            "the streams were not read past it in time".to_owned()
        }
    }

    /// Whether everything that the source names was looked at, and no row and no object failed.
    pub(crate) fn is_whole(&self) -> bool {
        self.unreadable.count + self.locked.count + self.failed_objects.count == 0
    }

    /// What a run came to that settled every candidate.
    pub(crate) fn outcome(&self) -> Outcome {
        if self.malformed.count + self.untried > 0 {
            Outcome::DoneWithRejections
        } else {
            Outcome::Done
        }
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
            ("files not read", if_any(self.unreadable.count), "files of the exports"),
            ("cannot apply", if_any(self.malformed.count), "items, in rejected_records"),
            ("locked", if_any(self.locked.count), "parts whose rows were locked each time"),
            ("redriven", if_any(self.redriven), "records removed from rejected_records"),
            ("untried", if_any(self.untried), "rejected records whose keys cannot be read"),
            ("objects", if_any(self.objects), "objects compared with their rows after that"),
            ("objects failed", if_any(self.failed_objects.count), "objects that are not written"),
            ("records", if_any(records), "change records from the streams"),
        ] {
            if shown {
                text += format!("  {name:<16}{count:>10}  {meaning}").trim_end();
                text.push('\n');
            }
        }
        text += &pending_objects::line(self.objects_pending);
        let name = "read units";
        let _ = writeln!(text, "  {name:<16}{read_units:>10.0}  consumed on both tables");
        text
    }

    /// The same as the members of the result.
    pub(crate) fn json(&self, ended: &Ended) -> Json {
        let Ended { how, source, took, read_units, records } = *ended;
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
            "files_not_read": self.unreadable.count,
            "first_files_not_read": self.unreadable.first(),
            "malformed": self.malformed.count,
            "first_malformed": self.malformed.json(),
            "locked": self.locked.count,
            "first_locked": self.locked.first(),
            "redriven": self.redriven,
            "untried": self.untried,
            "first_untried": self.named_untried,
            "objects": self.objects,
            "objects_pending": self.objects_pending,
            "objects_failed": self.failed_objects.count,
            "first_objects_failed": self.failed_objects.first(),
            "records": records,
            "read_units": read_units,
        })
    }
}
