//! Pure: which sessions of two listings may differ, and whether they still do when they are read
//! again.
//!
//! While both sides are written, two reads of one row rarely see the same moment. A part differs
//! only if the side that was behind at first sight still lacks what the other side had then. If
//! both sides have that or something newer, the part has moved on, and a row under constant writes
//! is no difference.

use std::cmp::Ordering;

use projector::measurement::Versions;
use projector::part::{Part, PerPart};
use projector::version::without_repair;

use crate::verify::difference::{Difference, Kind};
use crate::verify::rows::columns::Column;

/// One row of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) session_id: String,
    pub(crate) versions: Versions,
    /// A digest of all values, if the row is sampled.
    pub(crate) digest: Option<String>,
}

/// What a side holds of a session when it is read again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) versions: Versions,
    /// A digest of each value, in the order of the columns; `None` if the values were not read.
    pub(crate) digests: Option<Vec<Option<String>>>,
}

/// A session that differed at first sight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Suspect {
    pub(crate) session_id: String,
    /// The newer version of each part at first sight.
    pub(crate) ahead: Versions,
    /// Whether the values are compared, too.
    pub(crate) with_values: bool,
    /// No version differs but by a repair, so only the values can.
    pub(crate) by_repair_alone: bool,
}

/// What a look at a suspect shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Equal, or both sides have what one of them had at first sight.
    Settled,
    /// The same, but the values were to be compared, and the look did not see both sides at one
    /// version: by now the newer versions are these.
    Moved(Versions),
    /// Only the values can say.
    ReadValues,
    /// It still differs.
    Differs(Vec<Difference>),
}

/// The sessions that differ between two listings of the same keys, both in order, and how many
/// sessions there are in all.
pub(crate) fn suspects(ours: &[Listed], theirs: &[Listed]) -> (Vec<Suspect>, u64) {
    let (mut ours, mut theirs) = (ours.iter().peekable(), theirs.iter().peekable());
    let (mut suspects, mut sessions) = (Vec::new(), 0);
    loop {
        let order = match (ours.peek(), theirs.peek()) {
            (Some(our), Some(their)) => our.session_id.cmp(&their.session_id),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return (suspects, sessions),
        };
        let our = if order == Ordering::Greater { None } else { ours.next() };
        let their = if order == Ordering::Less { None } else { theirs.next() };
        sessions += 1;
        if let Some(suspect) = suspect(our, their) {
            suspects.push(suspect);
        }
    }
}

fn suspect(ours: Option<&Listed>, theirs: Option<&Listed>) -> Option<Suspect> {
    let session_id = ours.or(theirs)?.session_id.clone();
    let sampled = |listed: Option<&Listed>| listed.is_some_and(|listed| listed.digest.is_some());
    let with_values = sampled(ours) || sampled(theirs);
    let (Some(our), Some(their)) = (ours, theirs) else {
        let ahead = ours.or(theirs)?.versions.clone();
        return Some(Suspect { session_id, ahead, with_values, by_repair_alone: false });
    };
    if our == their {
        return None;
    }
    let by_repair = |part: Part| {
        let (ours, theirs) = (&our.versions[part], &their.versions[part]);
        ours != theirs && same_change(ours.as_deref(), theirs.as_deref())
    };
    let is_newer = |part: Part| {
        let (ours, theirs) = (&our.versions[part], &their.versions[part]);
        !same_change(ours.as_deref(), theirs.as_deref())
    };
    let repaired = Part::ALL.into_iter().any(by_repair);
    Some(Suspect {
        session_id,
        ahead: newer_of_each(&our.versions, &their.versions),
        with_values: with_values || repaired,
        by_repair_alone: repaired && !Part::ALL.into_iter().any(is_newer),
    })
}

/// The newer version of each part.
fn newer_of_each(ours: &Versions, theirs: &Versions) -> Versions {
    PerPart::from_fn(|part| ours[part].clone().max(theirs[part].clone()))
}

/// Whether two versions differ by a repair at most. A part that was never seen counts as one that a
/// repair found absent.
fn same_change(ours: Option<&str>, theirs: Option<&str>) -> bool {
    let change = |version: Option<&str>| version.map_or("", without_repair).to_owned();
    change(ours) == change(theirs)
}

/// How a part compares at a look.
enum Compared {
    Equal,
    ReadValues,
    Moved,
    Differs(Kind, String),
}

/// Judges a suspect by what both sides hold now.
pub(crate) fn judge(
    suspect: &Suspect,
    ours: Option<&Held>,
    theirs: Option<&Held>,
    columns: &[Column],
) -> Verdict {
    let (our, their) = match (ours, theirs) {
        (None, None) => return Verdict::Settled,
        (Some(_), None) => return Verdict::Differs(vec![whole(suspect, Kind::Extra)]),
        (None, Some(_)) => return Verdict::Differs(vec![whole(suspect, Kind::Missing)]),
        (Some(our), Some(their)) => (our, their),
    };
    let mut differences = Vec::new();
    let (mut read_values, mut moved) = (false, false);
    for part in Part::ALL.map(Some).into_iter().chain([None]) {
        match compare(suspect, part, our, their, columns) {
            Compared::Equal => {}
            Compared::ReadValues => read_values = true,
            Compared::Moved => moved = true,
            Compared::Differs(kind, detail) => {
                let version = |held: &Held| part.and_then(|part| held.versions[part].clone());
                differences.push(Difference {
                    session_id: suspect.session_id.clone(),
                    part,
                    kind,
                    ours: version(our),
                    theirs: version(their),
                    detail,
                });
            }
        }
    }
    match (differences.is_empty(), read_values, moved && suspect.with_values) {
        (false, ..) => Verdict::Differs(differences),
        (true, true, _) => Verdict::ReadValues,
        (true, false, true) => Verdict::Moved(newer_of_each(&our.versions, &their.versions)),
        (true, false, false) => Verdict::Settled,
    }
}

fn whole(suspect: &Suspect, kind: Kind) -> Difference {
    let detail = match kind {
        Kind::Missing => "only the other database has the row",
        _ => "only our database has the row",
    };
    Difference {
        session_id: suspect.session_id.clone(),
        part: None,
        kind,
        ours: None,
        theirs: None,
        detail: detail.to_owned(),
    }
}

/// Compares a part or, with `None`, the columns that depend on several parts.
fn compare(
    suspect: &Suspect,
    part: Option<Part>,
    our: &Held,
    their: &Held,
    columns: &[Column],
) -> Compared {
    let Some(one) = part else {
        let derived = our.versions == their.versions && suspect.with_values;
        return if derived { values(None, false, our, their, columns) } else { Compared::Equal };
    };
    let (ours, theirs) = (&our.versions[one], &their.versions[one]);
    if same_change(ours.as_deref(), theirs.as_deref()) {
        return match (ours == theirs, suspect.with_values) {
            (true, false) => Compared::Equal,
            (same_version, _) => values(part, !same_version, our, their, columns),
        };
    }
    if ours >= &suspect.ahead[one] && theirs >= &suspect.ahead[one] {
        return Compared::Moved;
    }
    let behind = if ours < theirs { "our row" } else { "the other row" };
    let lacks = ours.is_none() || theirs.is_none();
    let what = if lacks { "has never had this part" } else { "is older" };
    Compared::Differs(Kind::Older, format!("{behind} {what}"))
}

/// Compares the values of a part. After a repair, the time of the change is the repair's own.
fn values(
    part: Option<Part>,
    repaired: bool,
    our: &Held,
    their: &Held,
    columns: &[Column],
) -> Compared {
    let (Some(ours), Some(theirs)) = (&our.digests, &their.digests) else {
        return Compared::ReadValues;
    };
    let digests = columns.iter().zip(ours.iter().zip(theirs));
    let differing: Vec<&str> = digests
        .filter(|(column, _)| column.part == part && !(repaired && column.is_change_time))
        .filter(|(_, (ours, theirs))| ours != theirs)
        .map(|(column, _)| column.name.as_str())
        .collect();
    if differing.is_empty() {
        Compared::Equal
    } else {
        Compared::Differs(Kind::Content, differing.join(", "))
    }
}

#[cfg(test)]
mod tests;
