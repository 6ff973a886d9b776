//! What a difference between two sides is, for people and as JSON. Pure.

use projector::part::Part;
use serde::Deserialize;
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

#[derive(Deserialize)]
struct Reported {
    session_id: String,
    part: Option<String>,
}

/// The session that an object of a report names, and its part; `None` if that is the row or object
/// as a whole. What else the object holds is not asked for.
///
/// # Errors
/// Why it is none.
pub(crate) fn reported_key(json: &[u8]) -> Result<(String, Option<Part>), String> {
    let Reported { session_id, part } = serde_json::from_slice(json)
        .map_err(|error| format!("it is not JSON with a session_id, as in a report: {error}"))?;
    let named = |name: String| {
        let part = Part::ALL.into_iter().find(|part| part.name() == name);
        part.ok_or("its part is none of session, left, right, null")
    };
    Ok((session_id, part.map(named).transpose()?))
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
    use super::{Difference, Kind, Tally, reported_key};
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
    fn a_report_names_each_key_so_that_it_can_be_read_back() {
        let parts = Part::ALL.map(Some).into_iter().chain([None]);
        for (part, kind) in parts.flat_map(|part| Kind::ALL.map(|kind| (part, kind))) {
            let session_id = "s-1.a_b".to_owned();
            let (ours, theirs) = (Some("L/1".to_owned()), None);
            let detail = "a \"quote\" and a\nline".to_owned();
            let difference = Difference { session_id, part, kind, ours, theirs, detail };
            let line = difference.json().to_string();
            assert!(!line.contains('\n'), "{line}");
            assert_eq!(reported_key(line.as_bytes()), Ok(("s-1.a_b".to_owned(), part)));
        }
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
