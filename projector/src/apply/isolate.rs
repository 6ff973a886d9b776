//! Which sessions to try next of those that failed together. Pure.
//!
//! One session that a corrupt page, a lock or a value keeps out must not keep out its neighbours. A
//! statement that failed is split, and what fails is split again, until it is one session; of one
//! session that PostgreSQL refuses, until it is one change.

use std::collections::{HashSet, VecDeque};

use crate::fold::SessionChanges;

/// A statement that failed is split into this many. To find one bad session among a thousand takes
/// four rounds of eight, each a wait if the session is locked; by halves it would take ten.
const WAYS: usize = 8;

/// Splits sessions that failed together, two at least, into nearly equal pieces.
pub(super) fn split(mut sessions: Vec<SessionChanges<'_>>) -> VecDeque<Vec<SessionChanges<'_>>> {
    let size = sessions.len().div_ceil(WAYS).max(1);
    let mut pieces = VecDeque::with_capacity(WAYS);
    while !sessions.is_empty() {
        let rest = sessions.split_off(sessions.len().min(size));
        pieces.push_back(std::mem::replace(&mut sessions, rest));
    }
    pieces
}

/// Splits sessions that waited in vain for a lock into those that nobody has locked, together, and
/// each of the locked ones alone. While a statement waits for one row it holds the rows before it,
/// and whoever waits for those waits as long; so the locked ones are not searched for by splitting
/// again and again.
pub(super) fn split_locked<'a>(
    sessions: Vec<SessionChanges<'a>>,
    locked: &HashSet<String>,
) -> (VecDeque<Vec<SessionChanges<'a>>>, Vec<Vec<SessionChanges<'a>>>) {
    let (locked, free): (Vec<_>, Vec<_>) =
        sessions.into_iter().partition(|session| locked.contains(session.session_id));
    if locked.is_empty() {
        return (split(free), Vec::new());
    }
    let free = (!free.is_empty()).then_some(free);
    (free.into_iter().collect(), locked.into_iter().map(|session| vec![session]).collect())
}

/// What to try next of one session that PostgreSQL refuses.
#[derive(Debug)]
pub(super) enum Bisected<'a> {
    /// Its parts, each by itself.
    Parts(Vec<SessionChanges<'a>>),
    /// The record with this index is refused. What it had overtaken in the batch may still apply.
    Refused(usize, Option<SessionChanges<'a>>),
}

/// Bisects a refused session: into its parts, and one part into its newest change, the only one
/// that was sent, and the rest. So it takes one statement per change that is refused, and one per
/// part.
pub(super) fn bisect(session: SessionChanges<'_>) -> Bisected<'_> {
    let parts = session.by_part();
    if parts.len() > 1 {
        return Bisected::Parts(parts);
    }
    match session.without_newest() {
        (rest, Some(newest)) => Bisected::Refused(newest.record_index, rest),
        (_, None) => Bisected::Parts(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Bisected, bisect, split, split_locked};
    use crate::change::Change;
    use crate::fold::{IndexedChange, SessionChanges, fold};
    use crate::part::Part;
    use crate::version::Version;
    use std::collections::{BTreeSet, HashSet, VecDeque};

    fn changes(sessions: usize, per_part: usize) -> Vec<IndexedChange> {
        let mut changes = Vec::new();
        for session in 0..sessions {
            for part in Part::ALL {
                for number in 1..=per_part {
                    let version = Version::new("l", &number.to_string()).expect("a version");
                    changes.push(IndexedChange {
                        record_index: changes.len(),
                        change: Change {
                            session_id: format!("s{session:05}"),
                            part,
                            version,
                            changed_at: None,
                            document: None,
                            inserted: false,
                            expired: false,
                        },
                    });
                }
            }
        }
        changes
    }

    /// Tries pieces until nothing is left, like the pipeline: `bad` records are refused. Returns
    /// the records found and the number of statements.
    fn search(changes: &[IndexedChange], bad: &BTreeSet<usize>) -> (BTreeSet<usize>, usize) {
        let mut pieces = VecDeque::from([fold(changes)]);
        let (mut found, mut statements) = (BTreeSet::new(), 0);
        let refused = |session: &SessionChanges<'_>| {
            let newest = session.by_part().into_iter().filter_map(|part| part.without_newest().1);
            newest.into_iter().any(|indexed| bad.contains(&indexed.record_index))
        };
        while let Some(mut piece) = pieces.pop_front() {
            statements += 1;
            if !piece.iter().any(refused) {
                continue;
            }
            if piece.len() > 1 {
                pieces.extend(split(piece));
                continue;
            }
            match bisect(piece.remove(0)) {
                Bisected::Parts(parts) => pieces.extend(parts.into_iter().map(|part| vec![part])),
                Bisected::Refused(index, rest) => {
                    found.insert(index);
                    pieces.extend(rest.map(|rest| vec![rest]));
                }
            }
        }
        (found, statements)
    }

    #[test]
    fn one_bad_session_among_ten_thousand_takes_some_forty_statements() {
        let changes = changes(10_000, 1);
        for bad in [0, 14_999, 29_999] {
            let bad = BTreeSet::from([bad]);
            let (found, statements) = search(&changes, &bad);
            assert_eq!(found, bad);
            assert!(statements <= 45, "{statements}");
        }
    }

    #[test]
    fn one_refused_change_among_a_thousand_of_its_part_takes_a_few_statements() {
        let changes = changes(1, 1_000);
        // The newest of the right foot: what it had overtaken is sent once.
        let bad = BTreeSet::from([2_999]);
        assert_eq!(search(&changes, &bad), (bad, 5));
    }

    #[test]
    fn locked_sessions_are_tried_alone_behind_all_others() {
        let changes = changes(5, 1);
        let locked = HashSet::from(["s00001".to_owned(), "s00003".to_owned()]);
        let (free, alone) = split_locked(fold(&changes), &locked);
        let ids: Vec<Vec<&str>> = free
            .iter()
            .chain(&alone)
            .map(|piece| piece.iter().map(|session| session.session_id).collect())
            .collect();
        assert_eq!(ids, [vec!["s00000", "s00002", "s00004"], vec!["s00001"], vec!["s00003"]]);
        let (free, alone) = split_locked(fold(&changes), &HashSet::new());
        assert_eq!((free.len(), alone.len()), (5, 0));
    }

    #[test]
    fn every_refused_change_that_is_sent_is_found_and_no_other() {
        let changes = changes(50, 3);
        // Newest ones, one with the change that it had overtaken, and one that is overtaken and
        // never sent.
        let bad = BTreeSet::from([2, 8, 7, 101, 440, 448]);
        let (found, _) = search(&changes, &bad);
        let sent: BTreeSet<usize> = bad.iter().copied().filter(|index| *index != 448).collect();
        assert_eq!(found, sent);
    }
}
