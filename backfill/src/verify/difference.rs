//! What a difference between two sides is, for people and as JSON. Pure.

use projector::part::Part;
use serde_json::{Value as Json, json};

/// How the two sides differ. `ours` are the rows of `DATABASE_URL`; `theirs` is what they are
/// compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// The side that is verified lacks it: a row that only the peer has, an item that no row holds,
    /// a row without its object.
    Missing,
    /// Only our rows have it: the peer has no such row, or the item is gone.
    Extra,
    /// One side holds an older version of a part.
    Older,
    /// Both sides hold the same version, or the item has none, and the values differ.
    Content,
}

impl Kind {
    /// All kinds, in the order in which they are reported.
    pub(crate) const ALL: [Self; 4] = [Self::Missing, Self::Extra, Self::Older, Self::Content];

    /// The name in reports and in the columns of `verifications`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Extra => "extra",
            Self::Older => "older",
            Self::Content => "content",
        }
    }
}

/// One session, or one part of it, that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) session_id: String,
    /// The part; `None` if it is the row or object as a whole.
    pub(crate) part: Option<Part>,
    pub(crate) kind: Kind,
    /// The version that our row holds.
    pub(crate) ours: Option<String>,
    /// The version that the other side holds; items have none.
    pub(crate) theirs: Option<String>,
    /// What differs, without values: the columns, say.
    pub(crate) detail: String,
}

impl Difference {
    /// One object of a report.
    pub(crate) fn json(&self) -> Json {
        let Self { session_id, part, kind, ours, theirs, detail } = self;
        json!({
            "session_id": session_id,
            "part": part.map(Part::name),
            "kind": kind.name(),
            "ours": ours,
            "theirs": theirs,
            "detail": detail,
        })
    }

    /// The same in one line for people.
    pub(crate) fn text(&self) -> String {
        let Self { session_id, part, kind, detail, .. } = self;
        let part = part.map(|part| format!(" {}", part.name())).unwrap_or_default();
        format!("{:<8}{session_id}{part}: {detail}", kind.name())
    }
}

/// How many sessions were compared, and how many differences were found of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) compared: u64,
    pub(crate) missing: u64,
    pub(crate) extra: u64,
    pub(crate) older: u64,
    pub(crate) content: u64,
}

impl Tally {
    /// Counts one difference.
    pub(crate) fn add(&mut self, kind: Kind) {
        *match kind {
            Kind::Missing => &mut self.missing,
            Kind::Extra => &mut self.extra,
            Kind::Older => &mut self.older,
            Kind::Content => &mut self.content,
        } += 1;
    }

    /// How many there are of a kind.
    pub(crate) fn of(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Missing => self.missing,
            Kind::Extra => self.extra,
            Kind::Older => self.older,
            Kind::Content => self.content,
        }
    }

    /// All of them.
    pub(crate) fn differences(&self) -> u64 {
        Kind::ALL.into_iter().map(|kind| self.of(kind)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::{Difference, Kind, Tally};
    use projector::part::Part;
    use serde_json::json;

    #[test]
    fn a_difference_reads_the_same_for_people_and_as_json() {
        let difference = Difference {
            session_id: "s1".to_owned(),
            part: Some(Part::Left),
            kind: Kind::Content,
            ours: Some("L/1".to_owned()),
            theirs: None,
            detail: "left_mesh".to_owned(),
        };
        assert_eq!(difference.text(), "content s1 left: left_mesh");
        let expected = json!({ "session_id": "s1", "part": "left", "kind": "content",
            "ours": "L/1", "theirs": null, "detail": "left_mesh" });
        assert_eq!(difference.json(), expected);
    }

    #[test]
    fn every_kind_counts_by_itself() {
        let mut tally = Tally::default();
        for (count, kind) in Kind::ALL.into_iter().enumerate() {
            for _ in 0..=count {
                tally.add(kind);
            }
        }
        assert_eq!(Kind::ALL.map(|kind| tally.of(kind)), [1, 2, 3, 4]);
        assert_eq!(tally.differences(), 10);
    }
}
