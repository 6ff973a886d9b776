//! Which rows may hold a part whose item is gone, in bounded memory. Pure.
//!
//! Each key (a part of a session) is a 64-bit number, by a hash with a random key, and has three
//! cells among many. A cell holds how many keys it has, the sum of their numbers, and a second sum
//! that tells whether the first is one number: each key of which a look saw the item and the part
//! counts plus one ([`Sums::seen`]), each key that the rows hold minus one ([`Sums::held`]). What
//! both sides have leaves nothing. What is left are the keys of one side alone. A cell that one
//! such key has to itself names it; without it, other cells may have one key only, and so on. If
//! every cell is 0 in the end, then every key of the difference was named. (This is an invertible
//! Bloom lookup table, Goodrich and Mitzenmacher, 2011.) Some 80 keys per 100 cells can be named.
//!
//! Writes during the run are keys of one side too: a part that came after its item could have been
//! seen is held alone, and one that went was seen alone. So a named key of the rows is a suspect,
//! and DynamoDB is asked for its item. Nothing depends on a clock. But if more was written than can
//! be named, the parts that changed lately may be left out ([`Sums::held`] keeps them apart) and
//! all be asked for instead. If even that is too much, every key whose three cells are not 0 is a
//! suspect: that may be all of them, and misses none.
//!
//! By chance two different sets of keys have the same sums once in 2^128.
//!
//! One look vouches for a key as it was then. What is removed after it, or a moment before it (a
//! Scan is eventually consistent), is the stream's to bring.

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};

use projector::part::Part;
use sha2::{Digest as _, Sha256};

/// The cells of a key, each in a third of its own.
const CELLS_PER_KEY: usize = 3;
/// Of a cell in bytes: a count and two sums.
const CELL_BYTES: usize = 24;
/// Tell the cells of a key apart, and its second number from its first.
const SALTS: [u64; CELLS_PER_KEY] =
    [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344, 0xa409_3822_299f_31d0];
const CHECK_SALT: u64 = 0x082e_fa98_ec4e_6c89;

/// What stands for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct KeyHash(u64);

/// How keys become numbers: the same in every process that has the key of the hash.
#[derive(Clone, Debug)]
pub(crate) struct Hashes {
    key: Vec<u8>,
}

/// How many cells there are: two to this power in each third.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(u32);

impl Size {
    /// In the memory of one process: 19 MB, and as much for what changed lately. Names 600,000
    /// keys.
    pub(crate) const OF_PROCESS: Self = Self(18);
    /// In the database, for many invocations: 4.7 MB. Names 150,000 keys.
    pub(crate) const SHARED: Self = Self(16);

    fn cells(self) -> usize {
        CELLS_PER_KEY << self.0
    }

    fn positions(self, KeyHash(number): KeyHash) -> [usize; CELLS_PER_KEY] {
        std::array::from_fn(|third| {
            let within = mix(number ^ SALTS[third]) >> (u64::BITS - self.0);
            (third << self.0) + usize::try_from(within).expect("fewer cells than that")
        })
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cell {
    count: i64,
    sum: u64,
    check: u64,
}

impl Cell {
    fn add(&mut self, KeyHash(number): KeyHash, times: i64) {
        let factor = times.cast_unsigned();
        self.count = self.count.wrapping_add(times);
        self.sum = self.sum.wrapping_add(number.wrapping_mul(factor));
        self.check = self.check.wrapping_add(check(number).wrapping_mul(factor));
    }

    /// The one key that the cell has, and on which side, if it has one only.
    fn only(&self) -> Option<(KeyHash, i64)> {
        if self.count.unsigned_abs() != 1 {
            return None;
        }
        let number = self.sum.wrapping_mul(self.count.cast_unsigned());
        let expected = check(number).wrapping_mul(self.count.cast_unsigned());
        (expected == self.check).then_some((KeyHash(number), self.count))
    }
}

/// Spreads a number over all 64 bits (the finalizer of `SplitMix64`).
fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

fn check(number: u64) -> u64 {
    mix(number ^ CHECK_SALT)
}

impl Hashes {
    /// By this key, which nobody who chooses session ids knows.
    pub(crate) fn new(key: Vec<u8>) -> Self {
        Self { key }
    }

    /// By a new random key.
    pub(crate) fn random() -> Self {
        let random = RandomState::new();
        Self { key: (0..4_u8).flat_map(|number| random.hash_one(number).to_le_bytes()).collect() }
    }

    /// What stands for a key.
    pub(crate) fn of(&self, part: Part, session_id: &str) -> KeyHash {
        let hash = Sha256::new().chain_update(&self.key).chain_update([part as u8]);
        let digest: [u8; 32] = hash.chain_update(session_id).finalize().into();
        let (number, _) = digest.split_first_chunk().expect("a digest has 32 bytes");
        KeyHash(u64::from_le_bytes(*number))
    }
}

/// Cells; those of a table that nothing was added to take no memory.
#[derive(Clone, Debug)]
pub(crate) struct Cells {
    size: Size,
    cells: Vec<Cell>,
}

/// The text is no table of cells, or one of another size.
#[derive(Debug, thiserror::Error)]
#[error("the sums of keys have {bytes} bytes, expected {expected} or none")]
pub(crate) struct WrongSize {
    bytes: usize,
    expected: usize,
}

impl Cells {
    /// All of them 0.
    pub(crate) fn new(size: Size) -> Self {
        Self { size, cells: Vec::new() }
    }

    fn add(&mut self, key: KeyHash, times: i64) {
        self.cells.resize(self.size.cells(), Cell::default());
        for position in self.size.positions(key) {
            self.cells[position].add(key, times);
        }
    }

    /// Whether nothing was added.
    pub(crate) fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// The cells as bytes.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.cells.len() * CELL_BYTES);
        for Cell { count, sum, check } in &self.cells {
            for number in [count.cast_unsigned(), *sum, *check] {
                bytes.extend(number.to_le_bytes());
            }
        }
        bytes
    }

    /// Adds cells that were kept as bytes.
    ///
    /// # Errors
    /// [`WrongSize`].
    pub(crate) fn add_bytes(&mut self, bytes: &[u8]) -> Result<(), WrongSize> {
        let expected = self.size.cells() * CELL_BYTES;
        if bytes.is_empty() {
            return Ok(());
        }
        if bytes.len() != expected {
            return Err(WrongSize { bytes: bytes.len(), expected });
        }
        self.cells.resize(self.size.cells(), Cell::default());
        for (cell, bytes) in self.cells.iter_mut().zip(bytes.chunks_exact(CELL_BYTES)) {
            let [count, sum, check] = std::array::from_fn(|index| {
                let bytes = bytes[index * 8..].first_chunk().expect("a cell has 24 bytes");
                u64::from_le_bytes(*bytes)
            });
            cell.count = cell.count.wrapping_add(count.cast_signed());
            cell.sum = cell.sum.wrapping_add(sum);
            cell.check = cell.check.wrapping_add(check);
        }
        Ok(())
    }

    /// Adds other cells.
    fn merge(&mut self, other: &Self) {
        if other.is_empty() {
            return;
        }
        self.cells.resize(self.size.cells(), Cell::default());
        for (cell, other) in self.cells.iter_mut().zip(&other.cells) {
            cell.count = cell.count.wrapping_add(other.count);
            cell.sum = cell.sum.wrapping_add(other.sum);
            cell.check = cell.check.wrapping_add(other.check);
        }
    }

    /// Names one key after the other.
    fn name(mut self) -> Named {
        let mut only_held = HashSet::new();
        let mut waiting: Vec<usize> = (0..self.cells.len()).collect();
        let mut named = 0;
        while let Some(index) = waiting.pop() {
            let Some((key, side)) = self.cells[index].only() else { continue };
            let positions = self.size.positions(key);
            // A number that has no place here is none of a key. More keys than cells cannot be told
            // apart.
            if !positions.contains(&index) || named == self.cells.len() {
                continue;
            }
            named += 1;
            if side < 0 {
                only_held.insert(key);
            }
            for position in positions {
                self.cells[position].add(key, -side);
                waiting.push(position);
            }
        }
        let mut rest = Vec::new();
        for (index, cell) in self.cells.iter().enumerate() {
            if *cell != Cell::default() {
                rest.resize(self.cells.len().div_ceil(64), 0);
                rest[index / 64] |= 1 << (index % 64);
            }
        }
        Named { only_held, rest }
    }
}

/// What cells came to.
struct Named {
    /// The keys that are held and were not seen.
    only_held: HashSet<KeyHash>,
    /// One bit per cell that is not 0 in the end; none if all are.
    rest: Vec<u64>,
}

/// The keys that were seen, minus those that are held.
#[derive(Clone, Debug)]
pub(crate) struct Sums {
    /// Without those that are held and had changed lately.
    pub(crate) settled: Cells,
    /// Those alone.
    pub(crate) recent: Cells,
}

/// The keys of rows that have to be checked.
#[derive(Debug)]
pub(crate) struct Suspects {
    size: Size,
    keys: HashSet<KeyHash>,
    /// As in [`Named`].
    rest: Vec<u64>,
    /// All that changed lately.
    all_recent: bool,
}

impl Sums {
    /// Nothing was seen, and nothing is held.
    pub(crate) fn new(size: Size) -> Self {
        Self { settled: Cells::new(size), recent: Cells::new(size) }
    }

    /// A look saw the item and, in its row, the part; or the row is about to get it.
    pub(crate) fn seen(&mut self, key: KeyHash) {
        self.settled.add(key, 1);
    }

    /// The row holds the part; `recent` if it changed lately. Whoever calls what changed since some
    /// time recent must go on doing so.
    pub(crate) fn held(&mut self, key: KeyHash, recent: bool) {
        let cells = if recent { &mut self.recent } else { &mut self.settled };
        cells.add(key, -1);
    }

    /// Says which keys are to be checked.
    pub(crate) fn suspects(self) -> Suspects {
        let Self { settled, recent } = self;
        let size = settled.size;
        let mut all = settled.clone();
        all.merge(&recent);
        let Named { only_held, rest } = all.name();
        if rest.is_empty() {
            return Suspects { size, keys: only_held, rest, all_recent: false };
        }
        if !recent.is_empty() {
            let without_recent = settled.name();
            if without_recent.rest.is_empty() {
                let Named { only_held: keys, rest } = without_recent;
                return Suspects { size, keys, rest, all_recent: true };
            }
        }
        Suspects { size, keys: only_held, rest, all_recent: false }
    }
}

impl Suspects {
    /// Whether nothing is to be checked.
    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.rest.is_empty() && !self.all_recent
    }

    /// Whether this key is to be checked; `recent` as in [`Sums::held`].
    pub(crate) fn has(&self, key: KeyHash, recent: bool) -> bool {
        let is_left = |position: usize| {
            self.rest.get(position / 64).is_some_and(|bits| bits >> (position % 64) & 1 == 1)
        };
        self.all_recent && recent
            || self.keys.contains(&key)
            || !self.rest.is_empty() && self.size.positions(key).into_iter().all(is_left)
    }

    /// What is to be checked, for people.
    pub(crate) fn describe(&self) -> String {
        let named = self.keys.len();
        if !self.rest.is_empty() {
            "more parts were written meanwhile than can be told apart, so most are asked for by key"
                .to_owned()
        } else if self.all_recent {
            format!("{named} parts, and those that changed since the items were read")
        } else {
            format!("{named} parts")
        }
    }
}
