//! A batch of changes → one patch a session. Pure.
//!
//! Per session and part only the greatest version survives; the sessions come out sorted by their
//! key, because two batches that lock the same rows in different orders deadlock.

use crate::change::Change;
use crate::part::PerPart;

/// A change and where its record stands in the batch.
#[derive(Debug)]
pub struct IndexedChange {
    /// The record's index in the batch.
    pub record_index: usize,
    /// What it says.
    pub change: Change,
}

/// The newest change of each part of one session.
pub type Patch<'a> = PerPart<Option<&'a Change>>;

/// Everything that a batch says of one session.
#[derive(Clone, Debug)]
pub struct SessionChanges<'a> {
    /// The session.
    pub session_id: &'a str,
    /// All its changes, those overtaken within the batch too: oldest version first in each part.
    pub changes: Vec<&'a IndexedChange>,
    /// What is left of them.
    pub patch: Patch<'a>,
}

/// Groups a batch by session, sorted by `session_id` in byte order.
#[must_use]
pub fn fold(changes: &[IndexedChange]) -> Vec<SessionChanges<'_>> {
    let mut sorted: Vec<&IndexedChange> = changes.iter().collect();
    sorted.sort_by(|a, b| {
        let (a, b) = (&a.change, &b.change);
        (&a.session_id, a.part, &a.version).cmp(&(&b.session_id, b.part, &b.version))
    });
    sorted
        .chunk_by(|a, b| a.change.session_id == b.change.session_id)
        .map(|changes| SessionChanges {
            session_id: &changes[0].change.session_id,
            patch: patch(changes),
            changes: changes.to_vec(),
        })
        .collect()
}

/// The newest change of each part; `changes` stand oldest first in each part.
fn patch<'a>(changes: &[&'a IndexedChange]) -> Patch<'a> {
    let mut patch: Patch<'a> = PerPart::default();
    for indexed in changes {
        patch[indexed.change.part] = Some(&indexed.change);
    }
    patch
}

impl<'a> SessionChanges<'a> {
    fn of(session_id: &'a str, changes: Vec<&'a IndexedChange>) -> Self {
        Self { session_id, patch: patch(&changes), changes }
    }

    /// The changes of each part by themselves, as if they had come alone; one entry per part that
    /// has any.
    #[must_use]
    pub fn by_part(&self) -> Vec<Self> {
        let of_part = self.changes.chunk_by(|a, b| a.change.part == b.change.part);
        of_part.map(|changes| Self::of(self.session_id, changes.to_vec())).collect()
    }

    /// All changes but the newest, as if it had not come, and the newest; of changes of one part
    /// alone. `None` instead of the rest where there is none.
    #[must_use]
    pub fn without_newest(mut self) -> (Option<Self>, Option<&'a IndexedChange>) {
        let newest = self.changes.pop();
        let rest = (!self.changes.is_empty()).then(|| Self::of(self.session_id, self.changes));
        (rest, newest)
    }
}
