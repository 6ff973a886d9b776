//! The rows of another database, or the objects of an archive → the changes in them that are newer
//! than here, in batches. One file per source; `run.rs` applies what they give.

pub(crate) mod archive;
pub(crate) mod newer;
pub(crate) mod repaired;
pub(crate) mod rows;
pub(crate) mod run;
pub(crate) mod tally;

use projector::fold::IndexedChange;
use projector::part::Part;

use crate::merge::newer::Newer;

/// At most this many sessions are applied together.
pub(crate) const BATCH_SESSIONS: usize = 3_000;
/// A batch ends here too: it bounds the memory that meshes take. Two batches are being applied
/// while one more is read.
pub(crate) const BATCH_BYTES: u64 = 16 << 20;

/// What was read since the step before, and what of it is to be applied.
#[derive(Debug, Default)]
pub(crate) struct Step {
    pub(crate) found: Found,
    /// What is newer there; none in a dry run.
    pub(crate) changes: Vec<IndexedChange>,
    /// Parts that are newer there, and that a repair there wrote.
    pub(crate) repaired: Vec<(Part, String)>,
    /// What cannot be merged, by session id, key or file name, and why.
    pub(crate) unreadable: Vec<(String, String)>,
    /// Once the changes are stored, every session up to this one is done.
    pub(crate) through: Option<String>,
}

impl Step {
    /// Takes what is newer there.
    fn take(&mut self, newer: Newer) {
        let Newer { changes, mut repaired } = newer;
        let indexed = |change| IndexedChange { record_index: 0, change };
        self.changes.extend(changes.into_iter().map(indexed));
        self.repaired.append(&mut repaired);
    }
}

/// What was found on the other side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Sessions that were read, those that were skipped too.
    pub(crate) read: u64,
    /// Sessions that have not changed since the time that was given.
    pub(crate) skipped: u64,
    /// Sessions with a part that is newer there.
    pub(crate) newer: u64,
    /// The parts of those that are newer.
    pub(crate) newer_parts: u64,
}

impl std::ops::AddAssign for Found {
    fn add_assign(&mut self, other: Self) {
        let Self { read, skipped, newer, newer_parts } = other;
        self.read += read;
        self.skipped += skipped;
        self.newer += newer;
        self.newer_parts += newer_parts;
    }
}
