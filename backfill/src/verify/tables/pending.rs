//! The parts that differed when they were looked at, and what becomes of them. Pure.
//!
//! A part is a difference if it differs at every look and its row stays as it is between the last
//! two. If the row moved in that time, then its stream is at work on it: it is counted as still
//! changing, and is no difference.

use std::collections::BTreeMap;

use crate::compare_tables::verdict::{Look, Verdict};
use crate::items::Key;
use crate::verify::difference::{Difference, Kind};

/// If more parts than this differ at once, comparing the rest says nothing new.
pub(crate) const PENDING_AT_MOST: usize = 100_000;

/// A part that differed at the last look.
#[derive(Clone, Debug)]
struct Pending {
    kind: Kind,
    detail: String,
    /// What the row held at that look.
    version: Option<String>,
    /// The row was written between the last two looks.
    moved: bool,
    in_both: bool,
}

/// What a look at a part shows that differed before.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// It still differs.
    No,
    /// Both sides are equal now. `newly_in_both`: it is the first look that saw the part on both
    /// sides.
    Equal { newly_in_both: bool },
    /// The item is malformed by now, for this reason.
    Malformed(String),
}

/// All of them, in order.
#[derive(Debug, Default)]
pub(crate) struct AllPending(BTreeMap<Key, Pending>);

impl AllPending {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Their keys.
    pub(crate) fn keys(&self) -> Vec<Key> {
        self.0.keys().cloned().collect()
    }

    /// A part differs at its first look.
    pub(crate) fn add(&mut self, look: Look, kind: Kind, detail: String) {
        let Look { key, version, in_both, verdict: _ } = look;
        self.0.insert(key, Pending { kind, detail, version, moved: false, in_both });
    }

    /// Another look at a part.
    pub(crate) fn look(&mut self, look: Look) -> Settled {
        let Look { key, verdict, version, in_both } = look;
        let Some(pending) = self.0.get_mut(&key) else { return Settled::No };
        let settled = match verdict {
            Verdict::Differs(kind, detail) => {
                let moved = pending.version != version;
                let in_both = pending.in_both || in_both;
                *pending = Pending { kind, detail, version, moved, in_both };
                return Settled::No;
            }
            Verdict::Equal => Settled::Equal { newly_in_both: in_both && !pending.in_both },
            Verdict::Malformed(reason) => Settled::Malformed(reason),
        };
        self.0.remove(&key);
        settled
    }

    /// After the last look: the differences, by session, and the parts whose rows still change.
    pub(crate) fn into_differences(self) -> (Vec<Difference>, Vec<Key>) {
        let (mut differences, mut changing) = (Vec::new(), Vec::new());
        for (key, pending) in self.0 {
            let Pending { kind, detail, version: ours, moved, in_both: _ } = pending;
            if moved {
                changing.push(key);
                continue;
            }
            let (part, session_id) = key;
            let part = Some(part);
            differences.push(Difference { session_id, part, kind, ours, theirs: None, detail });
        }
        differences.sort_by(|a, b| (&a.session_id, a.part).cmp(&(&b.session_id, b.part)));
        (differences, changing)
    }
}

#[cfg(test)]
mod tests {
    use projector::part::Part;

    use super::{AllPending, Settled};
    use crate::compare_tables::verdict::{Look, Verdict};
    use crate::verify::difference::Kind;

    fn look(session_id: &str, verdict: Verdict, version: &str) -> Look {
        let in_both = verdict != Verdict::Differs(Kind::Missing, "missing".to_owned());
        let key = (Part::Left, session_id.to_owned());
        Look { key, verdict, version: Some(version.to_owned()), in_both }
    }

    fn content() -> Verdict {
        Verdict::Differs(Kind::Content, "left_mesh".to_owned())
    }

    #[test]
    fn only_what_differs_at_every_look_while_its_row_stays_is_a_difference() {
        let mut pending = AllPending::default();
        let missing = || Verdict::Differs(Kind::Missing, "missing".to_owned());
        for session in ["stays", "moves", "moved-early", "catches-up"] {
            pending.add(look(session, content(), "1"), Kind::Content, "left_mesh".to_owned());
        }
        pending.add(look("comes", missing(), "1"), Kind::Missing, "missing".to_owned());
        pending.add(look("broken", content(), "1"), Kind::Content, "left_mesh".to_owned());
        assert_eq!(
            pending.look(look("comes", Verdict::Equal, "2")),
            Settled::Equal { newly_in_both: true }
        );
        let equal = pending.look(look("catches-up", Verdict::Equal, "2"));
        assert_eq!(equal, Settled::Equal { newly_in_both: false });
        let malformed = Verdict::Malformed("why".to_owned());
        let settled = pending.look(look("broken", malformed, "1"));
        assert_eq!(settled, Settled::Malformed("why".to_owned()));
        for (session, versions) in
            [("stays", ["1", "1"]), ("moves", ["1", "2"]), ("moved-early", ["2", "2"])]
        {
            for version in versions {
                assert_eq!(pending.look(look(session, content(), version)), Settled::No);
            }
        }
        let (differences, changing) = pending.into_differences();
        let named: Vec<_> = differences.iter().map(|found| found.session_id.as_str()).collect();
        assert_eq!(named, ["moved-early", "stays"]);
        assert_eq!(changing, [(Part::Left, "moves".to_owned())]);
        assert_eq!(differences[0].ours.as_deref(), Some("2"));
    }

    #[test]
    fn a_part_that_nobody_waits_for_settles_nothing() {
        assert_eq!(AllPending::default().look(look("s", Verdict::Equal, "1")), Settled::No);
    }
}
