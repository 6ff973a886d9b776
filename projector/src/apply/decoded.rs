//! Records → changes, and what is malformed among them: a batch, or a part of one.

use std::time::{Duration, Instant};

use crate::change::{self, Decoded, Misconfigured, Tables};
use crate::config::TtlRemovals;
use crate::fold::IndexedChange;
use crate::rejected::Rejection;

/// What some records say.
pub(super) struct DecodedRecords {
    /// How many there were.
    pub(super) records: u64,
    /// In the order of the records.
    pub(super) changes: Vec<IndexedChange>,
    /// The records that can never apply.
    pub(super) malformed: Vec<Rejection>,
    /// Removals by time to live that are kept.
    pub(super) ttl_kept: u64,
    /// How long it took.
    pub(super) took: Duration,
}

impl DecodedRecords {
    /// Decodes records, the first of which stands at this index in the batch.
    ///
    /// # Errors
    /// [`Misconfigured`] if the wrong stream is read.
    pub(super) fn of<R: AsRef<[u8]>>(
        records: &[R],
        first_index: usize,
        tables: &Tables,
        ttl_removals: TtlRemovals,
    ) -> Result<Self, Misconfigured> {
        let start = Instant::now();
        let mut changes = Vec::with_capacity(records.len());
        let (mut malformed, mut ttl_kept) = (Vec::new(), 0);
        for (record_index, record) in (first_index..).zip(records) {
            match change::decode(record.as_ref(), tables)? {
                // Left out before the fold: the greatest version that remains must win.
                Decoded::Change(change) if change.expired && ttl_removals == TtlRemovals::Keep => {
                    ttl_kept += 1;
                }
                Decoded::Change(change) => changes.push(IndexedChange { record_index, change }),
                Decoded::Malformed(why) => {
                    let (reason, logged) = (why.to_string(), why.without_values());
                    malformed.push(Rejection { record_index, reason, logged });
                }
            }
        }
        let records = records.len() as u64;
        Ok(Self { records, changes, malformed, ttl_kept, took: start.elapsed() })
    }
}
