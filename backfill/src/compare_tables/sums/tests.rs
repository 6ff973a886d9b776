//! What is named, what is asked for if it cannot be, and that nothing escapes.

use std::collections::HashSet;

use fastrand::Rng;
use projector::part::Part;

use super::{CELL_BYTES, Cell, Cells, Hashes, KeyHash, Size, Sums};

const SMALL: Size = Size(6);

fn key(number: u64) -> KeyHash {
    KeyHash(super::mix(number))
}

#[test]
fn the_memory_does_not_grow_with_the_tables() {
    let cells = Size::OF_PROCESS.cells();
    assert_eq!(size_of::<Cell>(), CELL_BYTES);
    // A copy is named while the other is kept. A set takes at most twice its numbers and a byte
    // each, rounded up to a power of two.
    let named = cells * 2 * (size_of::<KeyHash>() + 1);
    let waiting = cells * size_of::<usize>() * 2;
    let whole = 3 * cells * CELL_BYTES + named + waiting + cells / 8;
    assert!(whole < 96 << 20, "{} MB", whole >> 20);
    let mut sums = Sums::new(SMALL);
    for number in 0..100_000 {
        sums.seen(key(number));
    }
    assert_eq!(sums.settled.cells.len(), SMALL.cells());
    assert!(sums.recent.cells.is_empty());
}

#[test]
fn a_hash_is_the_same_in_every_process_and_another_with_another_key() {
    // printf '0123\x00s1' | sha256sum: a session; '\x02' is the right scan.
    let hashes = Hashes::new(b"0123".to_vec());
    let first: [KeyHash; 2] = [hashes.of(Part::Session, "s1"), hashes.of(Part::Right, "s1")];
    assert_eq!(first.map(|KeyHash(number)| number.to_le_bytes()), EXPECTED);
    assert_ne!(Hashes::new(b"0124".to_vec()).of(Part::Session, "s1"), first[0]);
    let (one, other) = (Hashes::random(), Hashes::random());
    assert_ne!(one.of(Part::Left, "s1"), other.of(Part::Left, "s1"));
    assert_eq!(one.of(Part::Left, "s1"), one.clone().of(Part::Left, "s1"));
}

const EXPECTED: [[u8; 8]; 2] =
    [[158, 5, 201, 190, 128, 40, 182, 40], [217, 162, 241, 251, 107, 250, 194, 239]];

#[test]
fn what_both_sides_hold_leaves_no_suspect() {
    let mut sums = Sums::new(SMALL);
    for number in 0..1000 {
        sums.seen(key(number));
        sums.held(key(number), number % 2 == 0);
    }
    let suspects = sums.suspects();
    assert!(suspects.is_empty() && !suspects.has(key(1), true) && !suspects.has(key(5), false));
}

/// A key that is named twice on one side has no cell to itself, and is not forgotten either.
#[test]
fn a_key_that_was_counted_twice_hides_no_other() {
    let mut sums = Sums::new(SMALL);
    for _ in 0..2 {
        sums.seen(key(1));
    }
    sums.held(key(2), false);
    let suspects = sums.suspects();
    assert!(!suspects.is_empty() && suspects.has(key(2), false));
}

#[test]
fn cells_that_were_kept_as_bytes_are_added_as_they_were() {
    let (mut one, mut other) = (Sums::new(SMALL), Sums::new(SMALL));
    for number in 0..50 {
        one.seen(key(number));
        other.held(key(number + 1), false);
    }
    let mut kept = Cells::new(SMALL);
    assert!(kept.to_bytes().is_empty());
    kept.add_bytes(&[]).expect("no cells are cells");
    for sums in [&one, &other] {
        kept.add_bytes(&sums.settled.to_bytes()).expect("of this size");
    }
    let error = kept.add_bytes(&[0; CELL_BYTES]).expect_err("another size").to_string();
    assert_eq!(error, "the sums of keys have 24 bytes, expected 4608 or none");
    let suspects = Sums { settled: kept, recent: Cells::new(SMALL) }.suspects();
    assert_eq!(suspects.keys, HashSet::from([key(50)]));
}

/// A run, as random as its seed: how many keys there are of each kind.
struct Run {
    /// Held, and never seen: they must be found.
    gone: Vec<(KeyHash, bool)>,
    /// On both sides.
    equal: Vec<(KeyHash, bool)>,
    sums: Sums,
}

impl Run {
    fn new(random: &mut Rng, [equal, gone, came, went]: [usize; 4], moved: u8) -> Self {
        let mut sums = Sums::new(SMALL);
        let all = |count: usize, random: &mut Rng| -> Vec<(KeyHash, bool)> {
            (0..count).map(|_| (KeyHash(random.u64(..)), random.u8(..100) < moved)).collect()
        };
        let (equal, gone) = (all(equal, random), all(gone, random));
        let (came, went) = (all(came, random), all(went, random));
        for (key, _) in equal.iter().chain(&went) {
            sums.seen(*key);
        }
        for (key, recent) in equal.iter().chain(&gone) {
            sums.held(*key, *recent);
        }
        for (key, _) in &came {
            sums.held(*key, true);
        }
        Self { gone, equal, sums }
    }
}

/// Whatever was written meanwhile, and however much.
#[test]
fn no_key_that_only_the_rows_hold_escapes() {
    let seed = fastrand::u64(..);
    let mut random = Rng::with_seed(seed);
    let (mut named, mut recent, mut left) = (0, 0, 0);
    for _ in 0..2_000 {
        let counts = [1_000, 40, 400, 200].map(|most| {
            let most = random.usize(1..=most);
            random.usize(0..most)
        });
        let moved = random.u8(0..=100);
        let Run { gone, equal, sums } = Run::new(&mut random, counts, moved);
        let suspects = sums.suspects();
        for (key, recent) in &gone {
            assert!(suspects.has(*key, *recent), "seed {seed}: {counts:?}");
        }
        if !suspects.rest.is_empty() {
            left += 1;
        } else if suspects.all_recent {
            recent += 1;
            let asked = equal.iter().all(|(key, recent)| suspects.has(*key, *recent) == *recent);
            assert!(asked, "seed {seed}: {counts:?}");
        } else {
            named += 1;
            let asked = equal.iter().any(|(key, recent)| suspects.has(*key, *recent));
            assert!(!asked, "seed {seed}: {counts:?}");
            assert_eq!(suspects.keys.len(), gone.len() + counts[2], "seed {seed}");
        }
    }
    assert!(named > 100 && recent > 10 && left > 100, "{named} {recent} {left}: all three occur");
}

/// The documentation promises this.
#[test]
fn as_many_as_three_quarters_of_the_cells_are_named() {
    for (size, count) in [(Size::SHARED, 147_000_usize), (Size::OF_PROCESS, 590_000)] {
        let seed = fastrand::u64(..);
        let mut random = Rng::with_seed(seed);
        let mut sums = Sums::new(size);
        for number in 0..count {
            let key = KeyHash(random.u64(..));
            if number % 3 == 0 { sums.seen(key) } else { sums.held(key, false) }
        }
        let suspects = sums.suspects();
        assert!(suspects.rest.is_empty(), "seed {seed}: {size:?}");
        assert_eq!(suspects.keys.len(), count - count.div_ceil(3), "seed {seed}: {size:?}");
    }
}

/// Fewer reads if it was the rows that changed lately, and not much else.
#[test]
fn what_changed_lately_is_asked_for_if_it_is_too_much_to_be_named() {
    let mut sums = Sums::new(SMALL);
    for number in 0..10_000 {
        sums.seen(key(number));
        sums.held(key(number), false);
    }
    for number in 10_000..11_000 {
        sums.held(key(number), true);
    }
    sums.held(key(1 << 40), false);
    let suspects = sums.suspects();
    assert!(suspects.has(key(1 << 40), false) && suspects.has(key(10_500), true));
    assert!((0..10_000).all(|number| !suspects.has(key(number), false)));
    assert!(suspects.describe().starts_with("1 parts, and those that changed"));
}
