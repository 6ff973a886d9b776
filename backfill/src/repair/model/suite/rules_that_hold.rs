//! The rules that must hold in every history: those of the commands, and stricter and looser ones
//! beside them.

use super::super::rules::{
    Archive, FIRST, First, HOLDS, Lease, MERGED, Mark, OUR_MERGE, OUR_SLICES, OURS, OURS_RESTORED,
    Redrive, Rules, Second,
};
use super::Histories::{Exactly, UpTo};
use super::Of::{One, Two};
use super::{Histories, Of, Search, describe, is_deep};

/// States and ends.
type Size = [usize; 2];

/// A search, its size over all histories, how many of them (the shortest) are the sample, and its
/// size over those.
type Row = (Search, Size, usize, Size);

fn row(
    name: &'static str,
    of: Of,
    histories: Histories,
    rules: Rules,
    deep: Size,
    sample: usize,
    quick: Size,
) -> Row {
    (Search { name, of, histories, rules }, deep, sample, quick)
}

/// Every redriven record is re-read.
#[rustfmt::skip]
fn with_every_record_read_again() -> Vec<Row> {
    vec![
        row("one database", One, UpTo(3, 2), HOLDS, [167_909, 2_950], 6, [8_530, 328]),
        row("two parked", One, UpTo(3, 2), Rules { parked: 2, gaps: 1, ..HOLDS }, [168_233, 2_776],
            6, [5_670, 212]),
        row("two parked, two gaps, each redriven twice", One, UpTo(2, 1),
            Rules { parked: 2, redrives: 2, ..HOLDS }, [51_254, 1_654], 5, [3_424, 236]),
        row("a snapshot is restored, its bucket is new", One, UpTo(2, 2),
            Rules { restore: true, ..HOLDS }, [178_410, 8_724], 5, [8_613, 695]),
        row("with the object", One, UpTo(2, 1), Rules { objects: true, ..HOLDS }, [148_395, 464], 3,
            [4_578, 48]),
        row("a snapshot is restored, its bucket is the old one", One, UpTo(2, 1),
            Rules { objects: true, restore: true, archive: Archive::Floor, ..HOLDS },
            [721_711, 3_757], 3, [19_901, 270]),
        row("A and B are re-read, parked in both", Two, UpTo(2, 0), Rules { parked_a: 1, ..HOLDS },
            [1_083_105, 2_890], 3, [17_260, 102]),
        row("A and B are re-read, the clock of B is ahead", Two, UpTo(2, 1),
            Rules { clocks_us: [1, 2], ..HOLDS }, [140_020, 806], 4, [7_157, 86]),
        row("A and B are re-read, both clocks are equal", Two, UpTo(2, 1),
            Rules { clocks_us: [1, 1], ..HOLDS }, [140_020, 806], 4, [7_157, 86]),
        row("A and B are re-read, one bucket", Two, UpTo(1, 1), Rules { objects: true, ..HOLDS },
            [80_808, 130], 3, [24_107, 42]),
        row("A and B are re-read, one bucket, both clocks are equal", Two, UpTo(1, 1),
            Rules { objects: true, clocks_us: [0, 0], ..HOLDS }, [80_554, 130], 3, [23_931, 42]),
        row("A and B are re-read, one bucket, nothing is parked", Two, UpTo(2, 1),
            Rules { objects: true, parked: 0, ..HOLDS }, [227_215, 214], 3, [5_850, 18]),
        row("the same, and both write objects from the beginning", Two, UpTo(2, 0),
            Rules { objects: true, parked: 0, both_write: true, ..HOLDS }, [402_542, 182], 3,
            [9_559, 18]),
        row("A is re-read, B is merged", Two, UpTo(2, 1), MERGED, [45_745, 490], 5, [4_424, 82]),
        row("A is re-read, B is merged, three writes, nothing is parked", Two, Exactly(3),
            Rules { parked: 0, ..MERGED }, [46_463, 762], 1, [10_891, 227]),
        row("A is re-read, B is merged, parked in both", Two, UpTo(2, 0),
            Rules { parked_a: 1, ..MERGED }, [357_305, 1_955], 3, [6_722, 73]),
        row("A is re-read, B is re-read and merged in either order", Two, UpTo(2, 1),
            Rules { second: Second::Both, ..MERGED }, [166_686, 649], 4, [8_843, 65]),
        row("A is re-read, B is merged, one bucket", Two, UpTo(1, 1),
            Rules { objects: true, ..MERGED }, [41_336, 82], 3, [11_326, 27]),
    ]
}

/// Records are applied by version until the first repair.
#[rustfmt::skip]
fn with_records_by_version_until_the_first_repair() -> Vec<Row> {
    vec![
        row("by version first: one database", One, UpTo(2, 2),
            Rules { redrive: Redrive::AfterRepair, latch: true, ..HOLDS }, [44_032, 1_222], 6,
            [8_205, 326]),
        row("by version first: two parked", One, UpTo(2, 2),
            Rules { redrive: Redrive::AfterRepair, latch: true, parked: 2, gaps: 1, ..HOLDS },
            [28_942, 898], 7, [8_832, 312]),
        row("by version first: a snapshot is restored, its bucket is new", One, UpTo(2, 2),
            Rules { redrive: Redrive::AfterRepair, restore: true, ..HOLDS }, [168_188, 8_378], 5,
            [8_150, 683]),
        row("by version first: with the object", One, UpTo(2, 1),
            Rules { redrive: Redrive::AfterRepair, objects: true, ..HOLDS }, [142_379, 460], 3,
            [4_453, 48]),
        row("by version first: A is re-read, B is merged, which is a repair", Two, UpTo(2, 1),
            Rules { redrive: Redrive::AfterRepair,
            parked_a: 1, merge_is_repair: Mark::ByRule, ..MERGED }, [180_549, 1_745], 4,
            [7_315, 136]),
    ]
}

/// Other rules that would hold.
#[rustfmt::skip]
fn others() -> Vec<Row> {
    vec![
        row("no lock; compared in the upsert, begun again, equal is written", One, UpTo(2, 2),
            Rules { begin_again: true, touch: true, redrive: Redrive::Always, ..FIRST },
            [157_629, 2_040], 5, [7_058, 204]),
        row("the same, two parked", One, UpTo(2, 2), Rules { begin_again: true,
            touch: true, redrive: Redrive::Always, parked: 2, gaps: 1, ..FIRST }, [185_627, 1_268],
            5, [1_678, 76]),
        row("by version unless old or the row has an image; all are dated", One, UpTo(2, 2),
            Rules { redrive: Redrive::IfOldOrImage,
            undated: false, latch: true, settled: true, parked: 2, gaps: 1, ..HOLDS },
            [25_181, 880], 7, [7_660, 302]),
        row("B is merged, which is a repair; by version unless old", Two, UpTo(2, 1),
            Rules { redrive: Redrive::IfOld, merge_is_repair: Mark::ByRule, ..MERGED },
            [45_936, 431], 5, [4_417, 72]),
    ]
}

/// The rules of the commands, all at once.
#[rustfmt::skip]
fn ours() -> Vec<Row> {
    vec![
        row("ours: a snapshot is restored, its bucket is the old one", One, UpTo(2, 1),
            Rules { redrive: Redrive::AfterRepair,
            latch: true, objects: true, restore: true, archive: Archive::Floor, ..HOLDS },
            [684_568, 3_603], 3, [19_218, 264]),
        row("ours: A is re-read, B is merged, parked in both", Two, UpTo(2, 1),
            Rules { parked_a: 1, ..OUR_MERGE },
            [180_549, 1_745], 4, [7_315, 136]),
        row("ours: A is re-read, B is merged, one bucket", Two, UpTo(1, 1),
            Rules { objects: true, ..OUR_MERGE },
            [30_154, 72], 3, [7_880, 24]),
        row("ours: A is re-read, B is re-read and merged in either order", Two, UpTo(2, 1),
            Rules { second: Second::Both, ..OUR_MERGE },
            [135_996, 440], 4, [7_446, 51]),
        row("ours: A and B are re-read, one bucket", Two, UpTo(1, 1),
            Rules { redrive: Redrive::AfterRepair,
            objects: true, archive: Archive::Floor, ..HOLDS }, [88_618, 185], 3, [25_295, 59]),
        row("ours: A is re-read, B is merged, one bucket, versions above the object", Two,
            UpTo(1, 1), Rules { objects: true, archive: Archive::Floor, ..OUR_MERGE },
            [34_618, 90], 3, [8_214, 29]),
        row("ours: A has had no repair, B is merged, parked in both", Two, Exactly(2),
            Rules { parked_a: 1, gaps_a: 0, ..OUR_MERGE },
            [11_731, 181], 2, [11_731, 181]),
        row("ours: A has had no repair, B is merged, three writes", Two, Exactly(3),
            Rules { gaps_a: 0, ..OUR_MERGE },
            [30_443, 299], 1, [7_070, 79]),
    ]
}

/// The rules of the commands for one database: first looks, a lock that is lost, one read for
/// several records, and an invocation that commits late what is in no bucket.
#[rustfmt::skip]
fn of_the_commands_around_it() -> Vec<Row> {
    vec![
        row("ours: keys from a Scan or an export", One, UpTo(2, 2), OURS,
            [55_221, 1_228], 5, [3_249, 148]),
        row("ours: keys from a file", One, UpTo(2, 2), Rules { first: First::Never, ..OURS },
            [37_114, 1_228], 5, [2_226, 148]),
        row("ours: two parked, each redriven twice", One, UpTo(2, 1),
            Rules { parked: 2, redrives: 2, gaps: 1, kills: 0, ..OURS },
            [7_950, 403], 7, [7_950, 403]),
        row("ours: with the object", One, UpTo(2, 1),
            Rules { objects: true, archive: Archive::Floor, ..OURS },
            [202_152, 462], 3, [6_065, 48]),
        row("ours: from a Scan, a snapshot is restored, its bucket is the old one", One,
            UpTo(2, 1), OURS_RESTORED, [952_091, 3_912], 3, [24_202, 278]),
        row("ours: the lock is lost twice", One, UpTo(2, 1), Rules { losses: 2, ..OURS },
            [241_533, 1_402], 3, [11_265, 144]),
        row("ours: the lock is lost, two parked", One, UpTo(2, 1),
            Rules { losses: 1, parked: 2, gaps: 1, kills: 0, ..OURS },
            [29_698, 348], 4, [1_474, 47]),
        row("ours: A and B from a Scan, one bucket", Two, UpTo(1, 1),
            Rules { objects: true, archive: Archive::Floor, ..OURS },
            [134_218, 185], 3, [45_109, 59]),
        row("first looks before the streams were read", One, UpTo(2, 1),
            Rules { first: First::BeforeStreams, ..OURS }, [22_034, 462], 4, [2_406, 98]),
    ]
}

/// A repair by slices, some of which are killed and may still act.
#[rustfmt::skip]
fn by_slices() -> Vec<Row> {
    vec![
        row("slices: keys from an export", One, UpTo(2, 2), OUR_SLICES,
            [81_380, 1_238], 5, [4_799, 148]),
        row("slices: two are killed", One, UpTo(2, 1), Rules { kills: 2, ..OUR_SLICES },
            [43_559, 693], 5, [8_315, 222]),
        row("slices: two parked", One, UpTo(2, 1),
            Rules { parked: 2, gaps: 1, ..OUR_SLICES }, [11_779, 340], 5, [1_163, 68]),
        row("slices: a snapshot is restored, its bucket is the old one", One, UpTo(2, 1),
            Rules { lease: Lease::RetriedOnceDead, ..OURS_RESTORED },
            [1_259_603, 3_740], 3, [31_875, 270]),
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
fn first_looks_lost_locks_and_shared_reads_change_nothing() {
    run(of_the_commands_around_it());
}

#[test]
fn the_rules_of_the_commands_hold_together() {
    run(ours());
}

#[test]
fn a_slice_that_was_killed_may_act_until_it_is_retried() {
    run(by_slices());
}
