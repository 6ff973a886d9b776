//! A batch of changes → one patch a session. Pure.
//!
//! Per session and part only the greatest version survives; the sessions come out sorted by their
//! key, because two batches that lock the same rows in different orders deadlock.

use crate::change::Change;
use crate::measurement::PerPart;

/// A change and where its record stands in the batch.
#[derive(Debug)]
pub struct Arrival {
    /// The record's index in the batch.
    pub position: usize,
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
    pub arrivals: Vec<&'a Arrival>,
    /// What is left of them.
    pub patch: Patch<'a>,
}

/// Groups a batch by session, sorted by `session_id` in byte order.
#[must_use]
pub fn fold(arrivals: &[Arrival]) -> Vec<SessionChanges<'_>> {
    let mut sorted: Vec<&Arrival> = arrivals.iter().collect();
    sorted.sort_by(|a, b| {
        let (a, b) = (&a.change, &b.change);
        (&a.session_id, a.part, &a.version).cmp(&(&b.session_id, b.part, &b.version))
    });
    sorted
        .chunk_by(|a, b| a.change.session_id == b.change.session_id)
        .map(|arrivals| SessionChanges {
            session_id: &arrivals[0].change.session_id,
            patch: patch(arrivals),
            arrivals: arrivals.to_vec(),
        })
        .collect()
}

/// The newest change of each part; `arrivals` stand oldest first in each part.
fn patch<'a>(arrivals: &[&'a Arrival]) -> Patch<'a> {
    let mut patch: Patch<'a> = PerPart::default();
    for arrival in arrivals {
        patch[arrival.change.part] = Some(&arrival.change);
    }
    patch
}

impl<'a> SessionChanges<'a> {
    fn of(session_id: &'a str, arrivals: Vec<&'a Arrival>) -> Self {
        Self { session_id, patch: patch(&arrivals), arrivals }
    }

    /// The changes of each part by themselves, as if they had come alone; one entry per part that has any.
    #[must_use]
    pub fn by_part(&self) -> Vec<Self> {
        let of_part = self.arrivals.chunk_by(|a, b| a.change.part == b.change.part);
        of_part.map(|arrivals| Self::of(self.session_id, arrivals.to_vec())).collect()
    }

    /// All changes but the newest, as if it had not come, and the newest; of changes of one part alone.
    /// `None` instead of the rest where there is none.
    #[must_use]
    pub fn without_newest(mut self) -> (Option<Self>, Option<&'a Arrival>) {
        let newest = self.arrivals.pop();
        let rest = (!self.arrivals.is_empty()).then(|| Self::of(self.session_id, self.arrivals));
        (rest, newest)
    }
}
