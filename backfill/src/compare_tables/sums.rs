//! Which rows may hold a part whose item is gone, in bounded memory. Pure.
//!
//! Each key (a part of a session) hashes to a bucket and to a 64-bit number. A bucket has one sum:
//! plus the number of each key of which a look saw the item and the part in its row
//! ([`Buckets::seen`]), minus the number of each key that the rows hold at the end
//! ([`Buckets::held`]). A bucket whose sum is 0 holds no key that only the rows have: one such key,
//! whenever its row was written, leaves its number in the sum. The hash has a random key, so no
//! choice of session ids makes a sum vanish; by chance one does in 2^64.
//!
//! Writes during the run disturb a sum without being a fault: a part that came after the scan had
//! passed it is held and was not seen, and one that went is seen and no longer held. The rows that
//! changed since the run began are known, so each such bucket is *explained*: if leaving out some
//! of its recent keys makes the sum 0, then the rest of the bucket was seen, and of those left out
//! only the ones that the rows hold are to be checked. The last look at each of those is a question
//! to DynamoDB itself, so nothing depends on a clock: a wrong idea of "recent" costs reads and
//! loses nothing. What remains are buckets that no such choice explains. All keys that the rows
//! hold in them are checked.
//!
//! One look vouches for a key as it was then. What is removed after it, or a moment before it (a
//! Scan is eventually consistent), is the stream's to bring.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};

use projector::part::Part;

/// 32 MB of sums: at 3 × 10^8 parts some 70 keys per bucket, all of which are checked if it stays
/// unexplained.
const BUCKETS: usize = 1 << 22;
/// At most this many recent keys are remembered, 24 MB; those beyond leave their buckets
/// unexplained.
const RECENT_AT_MOST: usize = 1 << 20;
/// A bucket with more recent keys is not explained: the choices double with each.
const TRIED_AT_MOST: usize = 12;

/// What stands for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct KeyHash {
    bucket: u32,
    number: u64,
}

/// How keys become numbers.
#[derive(Clone, Debug)]
pub(crate) struct Hashes {
    of_bucket: RandomState,
    of_number: RandomState,
}

impl Hashes {
    /// By these two random keys.
    pub(crate) fn new(of_bucket: RandomState, of_number: RandomState) -> Self {
        Self { of_bucket, of_number }
    }

    /// What stands for a key.
    pub(crate) fn of(&self, part: Part, session_id: &str) -> KeyHash {
        let bucket = self.of_bucket.hash_one((part, session_id)) % BUCKETS as u64;
        let bucket = u32::try_from(bucket).expect("fewer buckets than that");
        KeyHash { bucket, number: self.of_number.hash_one((part, session_id)) }
    }
}

/// A key whose row changed since the run began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Recent {
    key: KeyHash,
    /// Whether the row holds the part; if not, it was removed.
    held: bool,
}

/// The sums of all buckets.
#[derive(Debug)]
pub(crate) struct Buckets {
    sums: Vec<u64>,
    recent: Vec<Recent>,
}

/// The keys of rows that have to be checked.
#[derive(Debug)]
pub(crate) struct Suspects {
    /// One bit per bucket: all its keys.
    unexplained: Vec<u64>,
    keys: HashSet<u64>,
    /// How many buckets are unexplained.
    pub(crate) buckets: u64,
}

impl Buckets {
    pub(crate) fn new() -> Self {
        Self { sums: vec![0; BUCKETS], recent: Vec::new() }
    }

    /// A look saw the item and, in its row, the part.
    pub(crate) fn seen(&mut self, key: KeyHash) {
        let sum = &mut self.sums[key.bucket as usize];
        *sum = sum.wrapping_add(key.number);
    }

    /// The row holds the part at the end; `recent` if it changed since the run began.
    pub(crate) fn held(&mut self, key: KeyHash, recent: bool) {
        let sum = &mut self.sums[key.bucket as usize];
        *sum = sum.wrapping_sub(key.number);
        if recent {
            self.remember(key, true);
        }
    }

    /// The part was removed since the run began.
    pub(crate) fn removed(&mut self, key: KeyHash) {
        self.remember(key, false);
    }

    fn remember(&mut self, key: KeyHash, held: bool) {
        if self.recent.len() < RECENT_AT_MOST {
            self.recent.push(Recent { key, held });
        }
    }

    /// Explains every bucket that it can, and says which keys are to be checked.
    pub(crate) fn suspects(mut self) -> Suspects {
        self.recent.sort_unstable();
        let mut suspects =
            Suspects { unexplained: vec![0; BUCKETS / 64], keys: HashSet::new(), buckets: 0 };
        let mut rest = self.recent.as_slice();
        for (bucket, sum) in self.sums.iter().enumerate() {
            let of_bucket = |recent: &Recent| recent.key.bucket as usize == bucket;
            let count = rest.iter().take_while(|recent| of_bucket(recent)).count();
            let (recent, others) = rest.split_at(count);
            rest = others;
            if *sum == 0 {
                continue;
            }
            if let Some(choice) = explain(*sum, recent) {
                let chosen =
                    recent.iter().enumerate().filter(|(index, _)| choice >> index & 1 == 1);
                let held = chosen.filter(|(_, recent)| recent.held);
                suspects.keys.extend(held.map(|(_, recent)| recent.key.number));
            } else {
                suspects.unexplained[bucket / 64] |= 1 << (bucket % 64);
                suspects.buckets += 1;
            }
        }
        suspects
    }
}

/// The recent keys, as bits, that make the sum 0 if they are left out.
fn explain(sum: u64, recent: &[Recent]) -> Option<u32> {
    if recent.len() > TRIED_AT_MOST {
        return None;
    }
    (1..1_u32 << recent.len()).find(|choice| {
        let chosen = recent.iter().enumerate().filter(|(index, _)| choice >> index & 1 == 1);
        let rest = chosen.fold(sum, |sum, (_, recent)| {
            if recent.held {
                sum.wrapping_add(recent.key.number)
            } else {
                sum.wrapping_sub(recent.key.number)
            }
        });
        rest == 0
    })
}

impl Suspects {
    /// Whether nothing is to be checked.
    pub(crate) fn is_empty(&self) -> bool {
        self.buckets == 0 && self.keys.is_empty()
    }

    /// Whether this key is to be checked.
    pub(crate) fn has(&self, key: KeyHash) -> bool {
        let bucket = key.bucket as usize;
        self.unexplained[bucket / 64] >> (bucket % 64) & 1 == 1 || self.keys.contains(&key.number)
    }
}

#[cfg(test)]
mod tests {
    use std::hash::RandomState;

    use projector::part::Part;

    use super::{BUCKETS, Buckets, Hashes, KeyHash, RECENT_AT_MOST, Recent, TRIED_AT_MOST};

    fn hashes() -> Hashes {
        Hashes::new(RandomState::new(), RandomState::new())
    }

    fn key(bucket: u32, number: u64) -> KeyHash {
        KeyHash { bucket, number }
    }

    #[test]
    fn the_memory_does_not_grow_with_the_tables() {
        let sums = BUCKETS * size_of::<u64>();
        let recent = RECENT_AT_MOST * size_of::<Recent>();
        // A set of numbers takes at most twice their size and a byte each, rounded up to a power of
        // two.
        let suspects = BUCKETS / 8 + RECENT_AT_MOST * 2 * (size_of::<u64>() + 1);
        assert!(sums + recent + suspects < 80 << 20, "{} MB", (sums + recent + suspects) >> 20);
        let mut buckets = Buckets::new();
        for number in 0..2 * RECENT_AT_MOST as u64 {
            buckets.held(key(0, number), true);
        }
        assert_eq!((buckets.sums.len(), buckets.recent.len()), (BUCKETS, RECENT_AT_MOST));
    }

    #[test]
    fn what_only_the_rows_hold_is_suspected_and_what_both_hold_is_not() {
        let (hashes, mut buckets) = (hashes(), Buckets::new());
        let keys = Part::ALL.map(|part| {
            (0..20_000)
                .map(|number| hashes.of(part, &format!("session-{number}")))
                .collect::<Vec<_>>()
        });
        for key in keys.iter().flatten() {
            buckets.seen(*key);
        }
        let extra = Part::ALL.map(|part| hashes.of(part, "extra"));
        for key in keys.iter().flatten().chain(&extra) {
            buckets.held(*key, false);
        }
        let suspects = buckets.suspects();
        assert!(extra.iter().all(|key| suspects.has(*key)));
        let others = keys.iter().flatten().filter(|key| suspects.has(**key)).count();
        assert!(others < 100, "{others} share a bucket with one of three");
    }

    #[test]
    fn equal_sides_leave_no_suspect() {
        let mut buckets = Buckets::new();
        for number in 1..1000 {
            buckets.seen(key(7, number << 54));
            buckets.held(key(7, number << 54), number % 2 == 0);
        }
        assert!(buckets.suspects().is_empty());
    }

    #[test]
    fn writes_during_the_run_explain_their_buckets() {
        let mut buckets = Buckets::new();
        // Of bucket 1: old and seen; updated since; new since; removed since.
        for number in [1 << 60, 2 << 60, 4 << 40] {
            buckets.seen(key(1, number));
        }
        buckets.held(key(1, 1 << 60), false);
        buckets.held(key(1, 2 << 60), true);
        buckets.held(key(1, 7 << 20), true);
        buckets.removed(key(1, 4 << 40));
        let suspects = buckets.suspects();
        assert_eq!(suspects.buckets, 0);
        assert!(suspects.has(key(1, 7 << 20)), "it was not seen");
        for number in [1 << 60, 2 << 60, 4 << 40] {
            assert!(!suspects.has(key(1, number)), "{number}");
        }
    }

    #[test]
    fn an_old_extra_key_is_found_among_recent_ones() {
        for recent in [0, 3, TRIED_AT_MOST as u64 + 1] {
            let mut buckets = Buckets::new();
            buckets.held(key(1, 0x1234_5678_9abc_def1), false);
            for number in 0..recent {
                buckets.held(key(1, 1 << (number + 10)), true);
            }
            let suspects = buckets.suspects();
            assert_eq!(suspects.buckets, 1, "{recent}");
            assert!(suspects.has(key(1, 0x1234_5678_9abc_def1)));
            assert!(!suspects.has(key(2, 0x1234_5678_9abc_def1)));
        }
    }
}
