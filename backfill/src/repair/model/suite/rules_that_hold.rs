//! The rules that must hold in every history: those of the commands, and stricter and looser ones
//! beside them.

use super::super::rules::{Archive, FIRST, HOLDS, MERGED, Redrive, Rules, Second, When};
use super::Histories::{Exactly, UpTo};
use super::Of::{One, Two};
use super::{Search, describe, is_deep};

/// States and ends.
type Size = [usize; 2];

/// A search, its size over all histories, how many of them (the shortest) are the sample, and its
/// size over those.
type Row = (Search, Size, usize, Size);

/// Every redriven record is re-read.
#[expect(clippy::too_many_lines, reason = "a table: one line per rule")]
fn with_every_record_read_again() -> Vec<Row> {
    let row = |name, of, histories, rules| Search { name, of, histories, rules };
    vec![
        (row("one database", One, UpTo(3, 2), HOLDS), [167_909, 2_950], 6, [8_530, 328]),
        (
            row("two parked", One, UpTo(3, 2), Rules { parked: 2, gaps: 1, ..HOLDS }),
            [168_233, 2_776],
            6,
            [5_670, 212],
        ),
        (
            row(
                "two parked, two gaps, each redriven twice",
                One,
                UpTo(2, 1),
                Rules { parked: 2, redrives: 2, ..HOLDS },
            ),
            [51_254, 1_654],
            5,
            [3_424, 236],
        ),
        (
            row(
                "a snapshot is restored, its bucket is new",
                One,
                UpTo(2, 2),
                Rules { restore: true, ..HOLDS },
            ),
            [178_410, 8_724],
            5,
            [8_613, 695],
        ),
        (
            row("with the object", One, UpTo(2, 1), Rules { objects: true, ..HOLDS }),
            [148_395, 464],
            3,
            [4_578, 48],
        ),
        (
            row(
                "a snapshot is restored, its bucket is the old one",
                One,
                UpTo(2, 1),
                Rules { objects: true, restore: true, archive: Archive::Floor, ..HOLDS },
            ),
            [721_711, 3_757],
            2,
            [621, 28],
        ),
        (
            row(
                "A and B are re-read, parked in both",
                Two,
                UpTo(2, 0),
                Rules { parked_a: 1, ..HOLDS },
            ),
            [1_083_105, 2_890],
            2,
            [74, 2],
        ),
        (
            row(
                "A and B are re-read, the clock of B is ahead",
                Two,
                UpTo(2, 1),
                Rules { clocks_us: [1, 2], ..HOLDS },
            ),
            [140_020, 806],
            4,
            [7_157, 86],
        ),
        (
            row(
                "A and B are re-read, both clocks are equal",
                Two,
                UpTo(2, 1),
                Rules { clocks_us: [1, 1], ..HOLDS },
            ),
            [140_020, 806],
            4,
            [7_157, 86],
        ),
        (
            row(
                "A and B are re-read, one bucket",
                Two,
                UpTo(1, 1),
                Rules { objects: true, ..HOLDS },
            ),
            [80_808, 130],
            2,
            [201, 2],
        ),
        (
            row(
                "A and B are re-read, one bucket, both clocks are equal",
                Two,
                UpTo(1, 1),
                Rules { objects: true, clocks_us: [0, 0], ..HOLDS },
            ),
            [80_554, 130],
            2,
            [188, 2],
        ),
        (
            row(
                "A and B are re-read, one bucket, nothing is parked",
                Two,
                UpTo(2, 1),
                Rules { objects: true, parked: 0, ..HOLDS },
            ),
            [227_215, 214],
            3,
            [5_850, 18],
        ),
        (
            row(
                "the same, and both write objects from the beginning",
                Two,
                UpTo(2, 0),
                Rules { objects: true, parked: 0, both_write: true, ..HOLDS },
            ),
            [402_542, 182],
            2,
            [354, 2],
        ),
        (row("A is re-read, B is merged", Two, UpTo(2, 1), MERGED), [41_893, 326], 5, [3_979, 62]),
        (
            row(
                "A is re-read, B is merged, three writes, nothing is parked",
                Two,
                Exactly(3),
                Rules { parked: 0, ..MERGED },
            ),
            [43_385, 435],
            1,
            [10_121, 130],
        ),
        (
            row(
                "A is re-read, B is merged, parked in both",
                Two,
                UpTo(2, 0),
                Rules { parked_a: 1, ..MERGED },
            ),
            [329_537, 1_229],
            3,
            [6_334, 57],
        ),
        (
            row(
                "A is re-read, B is re-read and merged in either order",
                Two,
                UpTo(2, 1),
                Rules { second: Second::Both, ..MERGED },
            ),
            [163_910, 605],
            4,
            [8_624, 63],
        ),
        (
            row(
                "A is re-read, B is merged, one bucket",
                Two,
                UpTo(1, 1),
                Rules { objects: true, ..MERGED },
            ),
            [31_757, 62],
            2,
            [136, 2],
        ),
    ]
}

/// Records are applied by version until the first repair.
fn with_records_by_version_until_the_first_repair() -> Vec<Row> {
    let row = |name, of, histories, rules| Search { name, of, histories, rules };
    vec![
        (
            row(
                "by version first: one database",
                One,
                UpTo(2, 2),
                Rules { redrive: Redrive::AfterRepair, latch: true, ..HOLDS },
            ),
            [44_032, 1_222],
            6,
            [8_205, 326],
        ),
        (
            row(
                "by version first: two parked",
                One,
                UpTo(2, 2),
                Rules { redrive: Redrive::AfterRepair, latch: true, parked: 2, gaps: 1, ..HOLDS },
            ),
            [28_942, 898],
            7,
            [8_832, 312],
        ),
        (
            row(
                "by version first: a snapshot is restored, its bucket is new",
                One,
                UpTo(2, 2),
                Rules { redrive: Redrive::AfterRepair, restore: true, ..HOLDS },
            ),
            [168_188, 8_378],
            5,
            [8_150, 683],
        ),
        (
            row(
                "by version first: with the object",
                One,
                UpTo(2, 1),
                Rules { redrive: Redrive::AfterRepair, objects: true, ..HOLDS },
            ),
            [142_379, 460],
            3,
            [4_453, 48],
        ),
        (
            row(
                "by version first: A is re-read, B is merged, which is a repair",
                Two,
                UpTo(2, 1),
                Rules {
                    redrive: Redrive::AfterRepair,
                    parked_a: 1,
                    merge_is_repair: When::Always,
                    ..MERGED
                },
            ),
            [153_898, 1_609],
            4,
            [6_200, 132],
        ),
    ]
}

/// Other rules that would hold.
fn others() -> Vec<Row> {
    let row = |name, of, histories, rules| Search { name, of, histories, rules };
    vec![
        (
            row(
                "no lock; compared in the upsert, begun again, equal is written",
                One,
                UpTo(2, 2),
                Rules { begin_again: true, touch: true, redrive: Redrive::Always, ..FIRST },
            ),
            [157_629, 2_040],
            5,
            [7_058, 204],
        ),
        (
            row(
                "the same, two parked",
                One,
                UpTo(2, 2),
                Rules {
                    begin_again: true,
                    touch: true,
                    redrive: Redrive::Always,
                    parked: 2,
                    gaps: 1,
                    ..FIRST
                },
            ),
            [185_627, 1_268],
            5,
            [1_678, 76],
        ),
        (
            row(
                "by version unless old or the row has an image; all are dated",
                One,
                UpTo(2, 2),
                Rules {
                    redrive: Redrive::IfOldOrImage,
                    undated: false,
                    latch: true,
                    settled: true,
                    parked: 2,
                    gaps: 1,
                    ..HOLDS
                },
            ),
            [25_181, 880],
            7,
            [7_660, 302],
        ),
        (
            row(
                "B is merged, which is a repair; by version unless old",
                Two,
                UpTo(2, 1),
                Rules { redrive: Redrive::IfOld, merge_is_repair: When::Always, ..MERGED },
            ),
            [42_529, 389],
            5,
            [4_009, 68],
        ),
    ]
}

/// The rules of the commands, all at once.
fn ours() -> Vec<Row> {
    let row = |name, of, histories, rules| Search { name, of, histories, rules };
    vec![
        (
            row(
                "a snapshot is restored, its bucket is the old one",
                One,
                UpTo(2, 1),
                Rules {
                    redrive: Redrive::AfterRepair,
                    latch: true,
                    objects: true,
                    restore: true,
                    archive: Archive::Floor,
                    ..HOLDS
                },
            ),
            [684_568, 3_603],
            2,
            [621, 28],
        ),
        (
            row(
                "A is re-read, B is merged, parked in both",
                Two,
                UpTo(2, 1),
                Rules {
                    redrive: Redrive::AfterRepair,
                    parked_a: 1,
                    merge_is_repair: When::IfImage,
                    merge_holds: When::IfImage,
                    ..MERGED
                },
            ),
            [115_630, 701],
            4,
            [6_236, 122],
        ),
        (
            row(
                "A is re-read, B is merged, one bucket",
                Two,
                UpTo(1, 1),
                Rules {
                    redrive: Redrive::AfterRepair,
                    objects: true,
                    merge_is_repair: When::IfImage,
                    merge_holds: When::IfImage,
                    ..MERGED
                },
            ),
            [26_911, 69],
            3,
            [6_496, 21],
        ),
        (
            row(
                "A is re-read, B is re-read and merged in either order",
                Two,
                UpTo(2, 1),
                Rules {
                    redrive: Redrive::AfterRepair,
                    second: Second::Both,
                    merge_is_repair: When::IfImage,
                    merge_holds: When::IfImage,
                    ..MERGED
                },
            ),
            [138_383, 587],
            4,
            [7_456, 60],
        ),
    ]
}

/// Runs the searches, and names what is wrong with them.
fn run(rows: Vec<Row>) {
    let mut wrong = Vec::new();
    for (search, deep, sample, quick) in rows {
        let histories = search.histories.all();
        let (histories, size) =
            if is_deep() { (&histories[..], deep) } else { (&histories[..sample], quick) };
        let found = search.run(histories);
        println!("{}", describe(&search, &found));
        if !found.problems.is_empty() || [found.states, found.ends] != size {
            wrong.push(format!("expected {size:?}, {}", describe(&search, &found)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_order_of_events_ends_right_and_no_reader_is_led_back() {
    run(with_every_record_read_again());
}

#[test]
fn records_may_be_applied_by_version_until_the_first_repair() {
    run(with_records_by_version_until_the_first_repair());
}

#[test]
fn other_rules_hold_too() {
    run(others());
}

#[test]
fn the_rules_of_the_commands_hold_together() {
    run(ours());
}
