//! Each rule taken away: the search must find a problem.

use super::super::rules::{
    Archive, FIRST, First, HOLDS, Heads, Late, Lease, MERGED, Mark, Merge, Named, OUR_MERGE,
    OUR_SLICES, OURS, OURS_RESTORED, Redrive, Rules,
};
use super::Histories::UpTo;
use super::Of::{One, Two};
use super::{Histories, Of, Search, describe, is_deep, only_goes_back};

/// What must be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// A row or an object is wrong at rest, or an object goes back.
    Wrong,
    /// Everything is right at rest, and a reader of the row was led back. Over all histories there
    /// are this many states, and this many ends.
    GoesBack(usize, usize),
}

/// A search, and a history in which it finds the problem.
type Row = (Search, Expected, &'static [u8]);

fn row(
    name: &'static str,
    of: Of,
    histories: Histories,
    rules: Rules,
    expected: Expected,
    witness: &'static [u8],
) -> Row {
    (Search { name, of, histories, rules }, expected, witness)
}

/// The rules as first written.
#[rustfmt::skip]
fn as_first_written() -> Vec<Row> {
    use Expected::{GoesBack, Wrong};
    vec![
        row("as first written, all are dated", One, UpTo(2, 2),
            Rules { undated: false, ..FIRST }, Wrong, &[1, 2, 0]),
        row("as first written", One, UpTo(2, 2),
            FIRST, Wrong, &[1, 0]),
        row("a redrive decides before a repair and applies after it", One, UpTo(2, 1),
            Rules { latch: true, undated: false, gaps: 1, kills: 0, ..FIRST }, Wrong, &[0, 1, 0]),
        row("one gap, two parked, all are dated", One, UpTo(2, 2),
            Rules { undated: false, gaps: 1, parked: 2, ..FIRST }, Wrong, &[1, 2, 0]),
        row("with the lock, all are dated", One, UpTo(2, 2),
            Rules { undated: false, lock: true, ..FIRST }, GoesBack(35_299, 1_048), &[0, 1, 2]),
        row("with the lock, two parked", One, UpTo(2, 2),
            Rules { lock: true, parked: 2, gaps: 1, ..FIRST }, Wrong, &[1, 2, 0]),
    ]
}

/// A rule of one database or of its bucket is taken away.
#[rustfmt::skip]
fn of_one() -> Vec<Row> {
    use Expected::{GoesBack, Wrong};
    vec![
        row("records are applied by version after a repair", One, UpTo(2, 1),
            Rules { redrive: Redrive::Direct, ..HOLDS }, Wrong, &[0, 1, 0]),
        row("the item is read before the row", One, UpTo(2, 1),
            Rules { item_first: true, ..HOLDS }, Wrong, &[0, 1]),
        row("no hold", One, UpTo(2, 1),
            Rules { hold: false, ..HOLDS }, GoesBack(14_227, 464), &[0, 1, 2]),
        row("versions do not grow between two repairs", One, UpTo(2, 1),
            Rules { grows: false, ..HOLDS }, Wrong, &[1, 0]),
        row("no lock", One, UpTo(2, 1),
            Rules { lock: false, ..HOLDS }, Wrong, &[1, 0]),
        row("no lock, compared in the upsert", One, UpTo(2, 1),
            Rules { lock: false, atomic: true, ..HOLDS }, Wrong, &[1, 0]),
        row("no lock, compared in the upsert, begun again", One, UpTo(2, 1),
            Rules { lock: false, atomic: true, begin_again: true, ..HOLDS }, Wrong, &[1, 0]),
        row("the hold without the function timeout", One, UpTo(2, 1),
            Rules { timeout: false, ..HOLDS }, GoesBack(15_201, 464), &[0, 1, 2]),
        row("a bucket is ahead, and versions are made from the row alone", One, UpTo(2, 1),
            Rules { objects: true, restore: true, ..HOLDS }, Wrong, &[1, 0]),
        row("a writer of the old database still lives", One, UpTo(1, 1),
            Rules { objects: true, restore: true, archive: Archive::Floor, quiet: false, ..HOLDS },
            Wrong, &[1, 0]),
        row("the object is merged into the row first", One, UpTo(1, 1),
            Rules { objects: true, restore: true, archive: Archive::Merged, ..HOLDS },
            Wrong, &[1, 2]),
        row("a plain PUT", One, UpTo(1, 1),
            Rules { objects: true, conditional: false, ..HOLDS }, Wrong, &[1, 0]),
    ]
}

/// A rule of a merge is taken away.
#[rustfmt::skip]
fn of_a_merge() -> Vec<Row> {
    use Expected::{GoesBack, Wrong};
    vec![
        row("by version first, and a merge is no repair", Two, UpTo(2, 1),
            Rules { redrive: Redrive::AfterRepair, parked_a: 1, ..MERGED }, Wrong, &[0, 1, 0]),
        row("a merge is a repair only if it brings an image", Two, UpTo(2, 1),
            Rules { parked_a: 1, merge_is_repair: Mark::IfImage, ..OUR_MERGE }, Wrong, &[0, 1, 0]),
        row("a merge drops what the repair added to the version", Two, UpTo(2, 1),
            Rules { merge: Merge::WithoutRepair, ..MERGED }, Wrong, &[1]),
        row("a merge goes by version alone", Two, UpTo(2, 1),
            Rules { merge: Merge::ByVersion, ..MERGED }, Wrong, &[0, 1, 0]),
        row("a merge reads a peer that is not current", Two, UpTo(2, 1),
            Rules { peer_current: false, ..MERGED }, Wrong, &[0, 1, 0]),
        row("a merge upserts images", Two, UpTo(2, 1),
            Rules { merge: Merge::WithImages, ..MERGED }, GoesBack(43_608, 431), &[0, 1, 2]),
        row("by version unless old, and a merge is no repair", Two, UpTo(2, 1),
            Rules { redrive: Redrive::IfOld, ..MERGED }, Wrong, &[0, 1, 0]),
    ]
}

/// A rule of the first look, of the lock or of late records is taken away.
#[rustfmt::skip]
fn of_ours() -> Vec<Row> {
    use Expected::Wrong;
    vec![
        row("the first look has an item from before what the streams lost", One, UpTo(2, 1),
            Rules { first: First::OfAnyAge, ..OURS }, Wrong, &[1, 0]),
        row("the first look comes before the function timeout", One, UpTo(2, 1),
            Rules { first: First::BeforeTimeout, ..OURS }, Wrong, &[0, 1, 0]),
        row("nothing waits for the function timeout", One, UpTo(2, 1),
            Rules { first: First::Never, waits: false, ..OURS }, Wrong, &[0, 1, 0]),
        row("the image of the first look is upserted", One, UpTo(2, 1),
            Rules { first: First::UpsertsImage, ..OURS }, Wrong, &[1, 2]),
        row("an equal part is dismissed although its object is ahead", One, UpTo(2, 1),
            Rules { heads: Heads::Never, parked: 0, kills: 0, ..OURS_RESTORED }, Wrong, &[1, 2, 1]),
        row("no object is asked for of a part that only the bucket holds", One, UpTo(2, 1),
            Rules { heads: Heads::OfItems, kills: 0, ..OURS_RESTORED }, Wrong, &[0, 1, 0]),
        row("a repair that lost the lock continues with what it had", One, UpTo(2, 1),
            Rules { losses: 1, goes_on: true, first: First::Never, ..OURS }, Wrong, &[1, 2, 1]),
        row("a record is removed by a read from before it was seen", One, UpTo(2, 1),
            Rules { named: Named::AtAnyTime, parked: 2, first: First::Never, gaps: 1, ..OURS },
            Wrong, &[0, 1, 2]),
        row("a redrive asks for a repair before it takes the lock", One, UpTo(2, 1),
            Rules { late: Late::LockAfterTheQuestion, ..OURS }, Wrong, &[0, 1, 0]),
        row("a replay of failures takes no lock", One, UpTo(2, 1),
            Rules { late: Late::Nothing, ..OURS }, Wrong, &[0, 1, 0]),
    ]
}

/// A rule of slices is taken away.
#[rustfmt::skip]
fn of_slices() -> Vec<Row> {
    use Expected::Wrong;
    vec![
        row("a slice is retried while its predecessor may act", One, UpTo(2, 1),
            Rules { lease: Lease::RetriedAtOnce, first: First::Never, ..OUR_SLICES },
            Wrong, &[0, 1, 0]),
        row("the same, compared in one statement and upserted in another", One, UpTo(2, 1),
            Rules { lease: Lease::RetriedAtOnce, atomic: false, first: First::Never, ..OUR_SLICES },
            Wrong, &[0, 1, 0]),
        row("others may begin while a slice that was killed may act", One, UpTo(2, 1),
            Rules { lease: Lease::Expires, ..OUR_SLICES }, Wrong, &[0, 1, 0]),
    ]
}

/// Runs the searches, and names those that do not find what they must.
fn run(rows: Vec<Row>) {
    let mut missed = Vec::new();
    for (search, expected, witness) in rows {
        let histories = if is_deep() { search.histories.all() } else { vec![witness.to_vec()] };
        let found = search.run(&histories);
        println!("{}", describe(&search, &found));
        let is_found = match expected {
            Expected::Wrong => !found.problems.is_empty() && !only_goes_back(&found),
            Expected::GoesBack(states, ends) => {
                only_goes_back(&found)
                    && (!is_deep() || (found.states, found.ends) == (states, ends))
            }
        };
        if !is_found {
            missed.push(format!("expected {expected:?}, {}", describe(&search, &found)));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[test]
fn the_rules_as_first_written_fail() {
    run(as_first_written());
}

#[test]
fn a_repair_that_lacks_one_rule_fails() {
    run(of_one());
}

#[test]
fn the_rules_of_the_commands_fail_if_one_is_lacking() {
    run(of_ours());
}

#[test]
fn a_merge_that_lacks_one_rule_fails() {
    run(of_a_merge());
}

#[test]
fn each_rule_of_slices_is_needed() {
    run(of_slices());
}
