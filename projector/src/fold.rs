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
    let mut patch: Patch<'a> = [None; 3];
    for arrival in arrivals {
        patch[arrival.change.part as usize] = Some(&arrival.change);
    }
    patch
}

impl SessionChanges<'_> {
    /// The oldest of the changes (of the first part that has any) and all others, each as if it had
    /// come alone; `None` where there is one only.
    #[must_use]
    pub fn split_first(&self) -> Option<(Self, Self)> {
        let of = |arrivals: &[_]| Self {
            session_id: self.session_id,
            patch: patch(arrivals),
            arrivals: arrivals.to_vec(),
        };
        (self.arrivals.len() > 1).then(|| (of(&self.arrivals[..1]), of(&self.arrivals[1..])))
    }
}
