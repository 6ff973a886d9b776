//! The records that `redrive` does not try: which they are, and what to do with each. Pure.

use std::fmt::Write as _;

use projector::change::Misconfigured;
use serde_json::{Value as Json, json};

/// At most this many are named for people.
const NAMED: usize = 20;

/// The records that cannot be tried: of another table, or without a new image.
#[derive(Default)]
pub(crate) struct Untried {
    /// Of neither `SESSIONS_TABLE` nor `SCANS_TABLE`.
    pub(crate) foreign: u64,
    /// Of one of the two, but without the item as it was written.
    pub(crate) without_image: u64,
    /// All of them, and why.
    named: Vec<(String, Misconfigured)>,
}

impl Untried {
    /// This record is not tried.
    pub(crate) fn add(&mut self, identity: String, why: Misconfigured) {
        *match why {
            Misconfigured::NotAStream(_) | Misconfigured::UnknownTable { .. } => &mut self.foreign,
            Misconfigured::NoNewImages { .. } => &mut self.without_image,
        } += 1;
        self.named.push((identity, why));
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.foreign + self.without_image
    }

    /// For people: which they are, and what to do with each.
    pub(crate) fn text(&self) -> String {
        if self.count() == 0 {
            return String::new();
        }
        let discard = "`backfill redrive --discard --identity ID --why TEXT` discards one";
        let mut text = format!("{} records stay untried ({discard}):\n", self.count());
        for (identity, why) in self.named.iter().take(NAMED) {
            let _ = writeln!(text, "  {identity}: {}", why_untried(why));
        }
        if self.count() > NAMED as u64 {
            text += "  ... (--json names all)\n";
        }
        text
    }

    /// As JSON: all of them.
    pub(crate) fn json(&self) -> Json {
        let one = |(identity, why): &(String, Misconfigured)| json!({ "identity": identity, "why": why_untried(why) });
        self.named.iter().map(one).collect()
    }
}

/// Why a record is not tried, and what to do with it. ([`Misconfigured`] itself speaks of a stream
/// that is read.)
fn why_untried(why: &Misconfigured) -> String {
    match why {
        Misconfigured::NotAStream(arn) => {
            format!("of {arn:?}, which is no stream of a DynamoDB table: discard it")
        }
        Misconfigured::UnknownTable { table, sessions, scans } => format!(
            "of table {table:?}, which is neither SESSIONS_TABLE ({sessions:?}) nor SCANS_TABLE \
             ({scans:?}): discard it, or correct the variable"
        ),
        Misconfigured::NoNewImages { table, view_type } => format!(
            "of table {table:?}, without a new image (its stream had view type {view_type}): write \
             its item again, so that a stream with new images carries it, and discard the record"
        ),
    }
}
