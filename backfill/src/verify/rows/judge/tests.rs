//! The table of what two reads of a session come to.

use projector::measurement::Versions;
use projector::part::Part;

use super::{Held, Listed, Suspect, Verdict, judge, suspects};
use crate::verify::difference::Kind;
use crate::verify::rows::columns::Column;

/// A version of a stream: 5 is `L/0…05`, 5.1 its first repair, 0.1 a repair of what was never
/// there; 0 is none.
fn version(number: f64) -> Option<String> {
    let (change, repair) = (number.trunc(), (number.fract() * 10.0).round());
    let change = if change > 0.0 { format!("L/{change:040}") } else { String::new() };
    let repair = if repair > 0.0 { format!("+{repair:016}") } else { String::new() };
    Some(change + &repair).filter(|version| !version.is_empty())
}

fn versions(of: [f64; 3]) -> Versions {
    of.map(version).into()
}

fn listed(session_id: &str, of: [f64; 3], digest: Option<&str>) -> Listed {
    let session_id = session_id.to_owned();
    Listed { session_id, versions: versions(of), digest: digest.map(str::to_owned) }
}

fn columns() -> Vec<Column> {
    let column =
        |name: &str, part, is_change_time| Column { name: name.to_owned(), part, is_change_time };
    vec![
        column("left_mesh", Some(Part::Left), false),
        column("left_changed_at", Some(Part::Left), true),
        column("user_id", Some(Part::Session), false),
        column("complete", None, false),
    ]
}

/// A row with these versions and the digests of `left_mesh`, `left_changed_at`, `user_id`,
/// `complete`.
fn held(of: [f64; 3], values: Option<&str>) -> Held {
    let digests =
        values.map(|values| values.chars().map(|value| Some(value.to_string())).collect());
    Held { versions: versions(of), digests }
}

fn suspect(ahead: [f64; 3], with_values: bool) -> Suspect {
    let session_id = "s".to_owned();
    Suspect { session_id, ahead: versions(ahead), with_values, by_repair_alone: false }
}

/// A verdict in words.
fn said(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Settled => "settled".to_owned(),
        Verdict::Moved(_) => "moved".to_owned(),
        Verdict::ReadValues => "read values".to_owned(),
        Verdict::Differs(differences) => {
            let said = differences.iter().map(|difference| {
                let part = difference.part.map_or("row", Part::name);
                format!("{} {part}: {}", difference.kind.name(), difference.detail)
            });
            said.collect::<Vec<_>>().join("; ")
        }
    }
}

#[test]
fn two_listings_give_the_sessions_that_differ() {
    let ours = [
        listed("a", [1.0, 0.0, 0.0], None),
        listed("b", [1.0, 2.0, 0.0], None),
        listed("c", [1.0, 1.0, 1.0], Some("x")),
        listed("d", [1.1, 1.0, 1.0], None),
        listed("e", [1.1, 1.0, 1.0], None),
        listed("g", [1.0, 1.0, 1.0], Some("x")),
    ];
    let theirs = [
        listed("b", [3.0, 1.0, 0.0], None),
        listed("c", [1.0, 1.0, 1.0], Some("y")),
        listed("d", [1.0, 1.0, 1.0], None),
        listed("e", [1.0, 2.0, 1.0], None),
        listed("f", [1.0, 0.0, 0.0], Some("x")),
        listed("g", [1.0, 1.0, 1.0], Some("x")),
    ];
    let (found, sessions) = suspects(&ours, &theirs);
    let found: Vec<_> = found
        .into_iter()
        .map(|s| (s.session_id, s.ahead, s.with_values, s.by_repair_alone))
        .collect();
    let expected = [
        ("a", [1.0, 0.0, 0.0], false, false),
        ("b", [3.0, 2.0, 0.0], false, false),
        ("c", [1.0, 1.0, 1.0], true, false),
        ("d", [1.1, 1.0, 1.0], true, true),
        ("e", [1.1, 2.0, 1.0], true, false),
        ("f", [1.0, 0.0, 0.0], true, false),
    ];
    let expected = expected.map(|(id, ahead, with_values, by_repair)| {
        (id.to_owned(), versions(ahead), with_values, by_repair)
    });
    assert_eq!(found, expected);
    assert_eq!(sessions, 7);
}

#[test]
fn a_row_of_one_side_alone_is_missing_or_extra() {
    let (suspect, row) = (suspect([1.0, 0.0, 0.0], false), held([1.0, 0.0, 0.0], None));
    let kind = |ours, theirs| match judge(&suspect, ours, theirs, &columns()) {
        Verdict::Differs(differences) => Some(differences[0].kind),
        _ => None,
    };
    assert_eq!(kind(Some(&row), None), Some(Kind::Extra));
    assert_eq!(kind(None, Some(&row)), Some(Kind::Missing));
    assert_eq!(judge(&suspect, None, None, &columns()), Verdict::Settled);
}

#[test]
fn a_part_differs_only_while_one_side_lacks_what_the_other_had_at_first_sight() {
    let cases = [
        ([5.0, 1.0, 0.0], [5.0, 1.0, 0.0], "settled"),
        ([5.0, 1.0, 0.0], [4.0, 1.0, 0.0], "older session: the other row is older"),
        ([4.0, 1.0, 0.0], [5.0, 1.0, 0.0], "older session: our row is older"),
        ([0.0, 1.0, 0.0], [5.0, 1.0, 0.0], "older session: our row has never had this part"),
        // Both have what one had, and one is newer again.
        ([5.0, 1.0, 0.0], [6.0, 1.0, 0.0], "settled"),
        ([9.0, 1.0, 0.0], [7.0, 1.0, 0.0], "settled"),
        // The session moves on, and the left part stays behind.
        ([9.0, 1.0, 0.0], [7.0, 0.0, 0.0], "older left: the other row has never had this part"),
        (
            [9.0, 1.0, 2.0],
            [4.0, 0.0, 2.0],
            "older session: the other row is older; older left: the other row has never had this part",
        ),
        // A part that came after first sight is on its way.
        ([5.0, 1.0, 3.0], [5.0, 1.0, 0.0], "settled"),
    ];
    for (ours, theirs, expected) in cases {
        let suspect = suspect([5.0, 1.0, 0.0], false);
        let verdict =
            judge(&suspect, Some(&held(ours, None)), Some(&held(theirs, None)), &columns());
        assert_eq!(said(&verdict), expected, "{ours:?} {theirs:?}");
    }
}

#[test]
fn values_are_compared_of_parts_at_the_same_change() {
    let same = [5.0, 5.0, 5.0];
    let cases = [
        (same, Some("mcuc"), same, Some("mcuc"), "settled"),
        (same, Some("mcuc"), same, Some("ncuc"), "content left: left_mesh"),
        (
            same,
            Some("mcuc"),
            same,
            Some("ndvc"),
            "content session: user_id; content left: left_mesh, left_changed_at",
        ),
        (same, Some("mcuc"), same, Some("mcud"), "content row: complete"),
        (same, None, same, Some("mcuc"), "read values"),
        // Only a repair lies between them: its time is its own.
        ([5.0, 5.1, 5.0], Some("mcuc"), [5.0, 5.2, 5.0], Some("mduc"), "settled"),
        ([5.0, 5.1, 5.0], Some("mcuc"), same, Some("ncuc"), "content left: left_mesh"),
        ([5.0, 0.1, 5.0], Some("mcuc"), [5.0, 0.0, 5.0], Some("mcuc"), "settled"),
        ([5.0, 5.1, 5.0], None, same, None, "read values"),
        // One part has moved on; the other one is compared.
        ([9.0, 5.0, 5.0], Some("mcuc"), [7.0, 5.0, 5.0], Some("mcvd"), "moved"),
        ([9.0, 5.0, 5.0], Some("mcuc"), [7.0, 5.0, 5.0], Some("ncvd"), "content left: left_mesh"),
    ];
    for (ours, our_values, theirs, their_values, expected) in cases {
        let (suspect, ours) = (suspect(same, true), held(ours, our_values));
        let verdict = judge(&suspect, Some(&ours), Some(&held(theirs, their_values)), &columns());
        assert_eq!(said(&verdict), expected, "{ours:?} {theirs:?}");
    }
}
