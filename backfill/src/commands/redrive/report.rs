//! What a run of `redrive` came to, as JSON: one form, whether it tries the records or discards
//! them. Pure.

use projector::counts::Counts;
use serde::Serialize;
use serde_json::Value as Json;

use crate::summary::{Reasons, counts_json};

/// The members are in docs/reference.md.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) ended: &'static str,
    pub(crate) dry_run: bool,
    pub(crate) seconds: f64,
    pub(crate) counts: Json,
    pub(crate) not_counted: u64,
    pub(crate) reasons: Json,
    pub(crate) removed: u64,
    pub(crate) overtaken: u64,
    pub(crate) untried: Json,
    pub(crate) not_stored: Vec<String>,
    pub(crate) discarded: u64,
}

impl Report {
    /// A run that has removed and discarded nothing.
    pub(crate) fn new(ended: &'static str, counts: &Counts, reasons: &Reasons) -> Self {
        Self {
            ended,
            dry_run: false,
            seconds: 0.0,
            counts: counts_json(counts),
            not_counted: 0,
            reasons: reasons.json(),
            removed: 0,
            overtaken: 0,
            untried: Json::Array(Vec::new()),
            not_stored: Vec::new(),
            discarded: 0,
        }
    }
}
