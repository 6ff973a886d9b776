//! Which sessions of a batch the next statement takes. Pure.
//!
//! Three queues. Sessions that were not tried yet, in the order of their records, so that what is
//! left at the deadline comes from the end of the batch. Suspects: pieces of statements that
//! failed, tried when nothing else is left, so that one bad session does not hold up the others.
//! Sessions that somebody has locked, tried last of all.

use std::collections::VecDeque;

use crate::fold::SessionChanges;

/// The sessions of a batch whose rows are not stored, and not under way.
pub(super) struct Queues<'a> {
    untried: VecDeque<SessionChanges<'a>>,
    suspects: VecDeque<Vec<SessionChanges<'a>>>,
    /// Sessions that waited in vain for a lock, alone.
    locked: Vec<SessionChanges<'a>>,
    /// Those are tried once more, and there is nothing else left.
    last_round: bool,
    /// Sessions per statement, if the database is not slow.
    chunk: usize,
    gave_up: bool,
}

impl<'a> Queues<'a> {
    /// A batch in statements of at most `chunk` sessions, and at most `limit` if the database is
    /// slow.
    pub(super) fn new(mut sessions: Vec<SessionChanges<'a>>, chunk: usize, limit: usize) -> Self {
        // What fits into one statement keeps the order of the keys. Of more, the oldest records go
        // first.
        if sessions.len() > chunk.min(limit) {
            sessions.sort_by_cached_key(|session| record_indices(session).min());
        }
        Self {
            untried: sessions.into(),
            suspects: VecDeque::new(),
            locked: Vec::new(),
            last_round: false,
            chunk,
            gave_up: false,
        }
    }

    /// Whether the locked sessions are being tried again: whatever fails now has failed.
    pub(super) fn last_round(&self) -> bool {
        self.last_round
    }

    /// The sessions of the next statement, sorted by key: two statements that lock the same rows in
    /// different orders deadlock.
    ///
    /// At most `limit` of them. The locked ones come when nothing else is left, or under way.
    pub(super) fn next(
        &mut self,
        limit: usize,
        statements_under_way: usize,
    ) -> Option<Vec<SessionChanges<'a>>> {
        if !self.untried.is_empty() {
            let count = self.untried.len().min(self.chunk).min(limit);
            let mut sessions: Vec<_> = self.untried.drain(..count).collect();
            sessions.sort_by_key(|session| session.session_id);
            return Some(sessions);
        }
        if self.suspects.is_empty() && !self.last_round && statements_under_way == 0 {
            self.last_round = true;
            self.suspects = self.locked.drain(..).map(|session| vec![session]).collect();
        }
        let mut sessions = self.suspects.pop_front()?;
        if sessions.len() > limit {
            self.suspects.push_front(sessions.split_off(limit));
        }
        Some(sessions)
    }

    /// Pieces of a statement that failed go before the other suspects: so single sessions are soon
    /// reached, and with them the bounds on what is tried in vain.
    pub(super) fn try_next(
        &mut self,
        pieces: impl DoubleEndedIterator<Item = Vec<SessionChanges<'a>>>,
    ) {
        for piece in pieces.rev() {
            self.suspects.push_front(piece);
        }
    }

    /// Pieces that go after the other suspects.
    pub(super) fn try_later(&mut self, pieces: impl IntoIterator<Item = Vec<SessionChanges<'a>>>) {
        self.suspects.extend(pieces);
    }

    /// Sessions that waited in vain for a lock, alone: they are tried once more, last of all.
    pub(super) fn try_last(&mut self, mut sessions: Vec<SessionChanges<'a>>) {
        self.locked.append(&mut sessions);
    }

    /// The next to be tried, the oldest records first.
    pub(super) fn put_back(&mut self, mut sessions: Vec<SessionChanges<'a>>) {
        sessions.sort_by_cached_key(|session| record_indices(session).min());
        for session in sessions.into_iter().rev() {
            self.untried.push_front(session);
        }
    }

    /// Those that were refused so far may stand beside each other. Before that is held against the
    /// table, some from elsewhere are tried: one of each piece at the end of the queue, and the
    /// last that was not tried.
    pub(super) fn try_others_next(&mut self, others_at_most: usize) {
        let mut others: Vec<_> = self.untried.pop_back().into_iter().collect();
        for piece in self.suspects.iter_mut().rev().take(others_at_most) {
            others.extend(piece.pop());
        }
        self.suspects.retain(|piece| !piece.is_empty());
        self.try_next(others.into_iter().map(|session| vec![session]));
    }

    /// The rest of the batch is not tried.
    pub(super) fn give_up(&mut self) {
        self.untried.clear();
        self.suspects.clear();
        self.locked.clear();
        self.gave_up = true;
    }

    /// Whether some of the batch may not have been tried.
    pub(super) fn gave_up(&self) -> bool {
        self.gave_up
    }
}

/// The indices of a session's records in the batch.
pub(super) fn record_indices(session: &SessionChanges<'_>) -> impl Iterator<Item = usize> {
    session.changes.iter().map(|indexed| indexed.record_index)
}

#[cfg(test)]
mod tests {
    use super::Queues;
    use crate::change::Change;
    use crate::fold::{IndexedChange, SessionChanges, fold};
    use crate::part::Part;
    use crate::version::Version;

    /// One record of each session, in this order.
    fn changes(sessions: &[&str]) -> Vec<IndexedChange> {
        let change = |(record_index, session_id): (usize, &&str)| IndexedChange {
            record_index,
            change: Change {
                session_id: (*session_id).to_owned(),
                part: Part::Session,
                version: Version::new("l", "1").expect("a version"),
                changed_at: None,
                document: None,
                inserted: false,
                expired: false,
            },
        };
        sessions.iter().enumerate().map(change).collect()
    }

    fn ids<'a>(sessions: &[SessionChanges<'a>]) -> Vec<&'a str> {
        sessions.iter().map(|session| session.session_id).collect()
    }

    #[test]
    fn the_oldest_records_go_first_and_each_statement_is_in_the_order_of_the_keys() {
        let changes = changes(&["d", "b", "c", "a"]);
        let mut queues = Queues::new(fold(&changes), 2, 100);
        let first = queues.next(100, 0).expect("a statement");
        assert_eq!(ids(&first), ["b", "d"]);
        // Too many for the database: they come again before what is younger, fewer at a time.
        queues.put_back(first);
        assert_eq!(ids(&queues.next(1, 0).expect("a statement")), ["d"]);
        assert_eq!(ids(&queues.next(100, 0).expect("a statement")), ["b", "c"]);
        assert_eq!(ids(&queues.next(100, 0).expect("a statement")), ["a"]);
        assert!(queues.next(100, 0).is_none());
        let mut whole = Queues::new(fold(&changes), 4, 100);
        assert_eq!(ids(&whole.next(100, 0).expect("a statement")), ["a", "b", "c", "d"]);
    }

    #[test]
    fn suspects_wait_for_what_was_not_tried_and_the_locked_for_all_others() {
        let changes = changes(&["a", "b", "c", "d", "e"]);
        let mut queues = Queues::new(fold(&changes), 2, 100);
        let suspects = queues.next(100, 0).expect("a statement");
        let locked = queues.next(100, 0).expect("a statement");
        queues.try_last(locked);
        queues.try_later([suspects]);
        assert_eq!(ids(&queues.next(100, 0).expect("a statement")), ["e"]);
        // A piece of more sessions than the database takes goes out in parts.
        assert_eq!(ids(&queues.next(1, 0).expect("a statement")), ["a"]);
        assert_eq!(ids(&queues.next(1, 0).expect("a statement")), ["b"]);
        assert!(queues.next(100, 1).is_none() && !queues.last_round());
        assert_eq!(ids(&queues.next(100, 0).expect("a statement")), ["c"]);
        assert!(queues.last_round());
        assert!(!queues.gave_up());
        queues.give_up();
        assert!(queues.next(100, 0).is_none() && queues.gave_up());
    }
}
