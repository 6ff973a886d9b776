//! What can be chosen in a search: the rules of a repair, and each mutant of them.

use std::sync::LazyLock;

use projector::version::{repair_us, without_repair};

/// The greatest sequence number and the greatest time of a repair that a search reaches, and one
/// more.
const SEQUENCES: u8 = 5;
const REPAIRS: u8 = 16;

/// The versions of a search as the row holds them. The clock stands still at 0, 1 or 2
/// microseconds.
static TEXTS: LazyLock<Vec<Option<String>>> = LazyLock::new(|| {
    let text = |sequence: u8, repair: u8| {
        let change = if sequence == 0 { String::new() } else { format!("L/{sequence:040}") };
        let repair = if repair == 0 { String::new() } else { format!("+{repair:016}") };
        Some(change + &repair).filter(|text| !text.is_empty())
    };
    (0..SEQUENCES).flat_map(|sequence| (0..REPAIRS).map(move |at| text(sequence, at))).collect()
});

/// A version as a state keeps it. It is compared as text, as everywhere else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Ver {
    pub(super) sequence: u8,
    pub(super) repair: u8,
}

impl Ver {
    /// The version of a change.
    pub(super) fn of_change(sequence: u8) -> Self {
        Self { sequence, repair: 0 }
    }

    /// The text that the row holds; `None` if it never held the part.
    pub(super) fn text(self) -> Option<&'static str> {
        assert!(self.sequence < SEQUENCES && self.repair < REPAIRS, "{self:?} is not in the table");
        TEXTS[usize::from(self.sequence * REPAIRS + self.repair)].as_deref()
    }

    /// The way back from the text.
    pub(super) fn read(text: Option<&str>) -> Self {
        let Some(text) = text else { return Self::default() };
        let repair = repair_us(text).unwrap_or_default().try_into().expect("a small time");
        let change = without_repair(text).strip_prefix("L/").unwrap_or("0");
        Self { sequence: change.parse().expect("a small number"), repair }
    }

    /// The guard of the upsert.
    pub(super) fn is_newer_than(self, other: Self) -> bool {
        self.text() > other.text()
    }
}

/// How a parked record is redriven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Redrive {
    /// Re-read, whether or not there was a repair.
    Always,
    /// By version until the first repair, re-read from then on: what we do.
    AfterRepair,
    /// By version if the record is newer than the last repair.
    IfOld,
    /// As `IfOld`, and re-read if the row's version is one of an image.
    IfOldOrImage,
    /// Always by version.
    Direct,
}

/// How the object comes into the version of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Archive {
    /// Not at all.
    Ignored,
    /// The version is above the object's too: what we do.
    Floor,
    /// The object is merged into the row first.
    Merged,
}

/// What a merge takes of the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Merge {
    /// Changes that are newer. An image that is newer is a key to re-read, and so is what is not
    /// newer and differs, which `verify` names: what we do.
    OrReRead,
    /// The same, but an image that is newer is upserted as it is.
    WithImages,
    /// What is newer, and nothing is re-read.
    ByVersion,
    /// What is newer, under its version without the repair.
    WithoutRepair,
}

/// What a first look at a candidate goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum First {
    /// There is none: a key of a file, of an incremental export or of a rejected record.
    Never,
    /// An item that was read after the repair began, or an export that is younger than what the
    /// streams have lost; the row after the streams were read up to the beginning, and one function
    /// timeout later: what we do.
    AfterStreams,
    /// The same, without the function timeout.
    BeforeTimeout,
    /// The same, before the streams were read up to the beginning, but after the timeout.
    BeforeStreams,
    /// An item as it was at any time.
    OfAnyAge,
    /// As `AfterStreams`; if it differs, its image is upserted, and not read again.
    UpsertsImage,
}

/// Of which parts a first look asks for the object. Each of these has those before it, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Heads {
    /// Of none.
    Never,
    /// Of those whose item is there and equals the row.
    OfItems,
    /// Of those, too, that neither a Scan or export nor the row holds: they may be in the bucket.
    OfUnheld,
    /// Of those, too, that only the row held, until the next look.
    OfAll,
}

/// When a rejected record counts as redriven by the read of its part for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// Never: each is read for by itself.
    Never,
    /// If it was seen before the row was read: what we do.
    BeforeTheRead,
    /// If it was seen before the read was done with.
    AtAnyTime,
}

/// What keeps a late record that is applied by version from applying after a repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Late {
    /// The lock, from before the question whether there was a repair.
    Lock,
    /// The lock, from after the question.
    LockAfterTheQuestion,
    /// Nothing, once the question is answered.
    Nothing,
}

/// When a merge writes a row into `repairs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// Never.
    Never,
    /// If the part that it reads is an image.
    IfImage,
    /// If the peer has had a repair: what we do.
    ByRule,
}

/// Who keeps others away while a repair is under way, and what becomes of it once it is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lease {
    /// The session that upserts has the lock, so both end together.
    OfTheSession,
    /// The row in `repairs` is the lock, until the repair is complete. A slice that was killed may
    /// still act, and is retried only once it cannot.
    RetriedOnceDead,
    /// The same, but the slice is retried at once: two slices of one key overlap.
    RetriedAtOnce,
    /// The slice is retried only once it cannot act, but others may begin meanwhile.
    Expires,
}

/// How the second database is repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Second {
    ReRead,
    Merge,
    Both,
}

/// The rules of one search.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch by itself")]
pub(super) struct Rules {
    /// An image whose row has moved begins again; otherwise it is dropped.
    pub(super) begin_again: bool,
    /// Repair, redrive and merge of one database wait for each other.
    pub(super) lock: bool,
    /// Equal content gets a newer version too.
    pub(super) touch: bool,
    /// The row is compared and upserted in one statement.
    pub(super) atomic: bool,
    pub(super) redrive: Redrive,
    /// A redrive by version decides in one step, and applies in another.
    pub(super) latch: bool,
    /// The item is read before the row.
    pub(super) item_first: bool,
    pub(super) hold: bool,
    /// The hold waits for invocations that have timed out.
    pub(super) timeout: bool,
    /// The version of an image grows with each repair.
    pub(super) grows: bool,
    /// Objects are written under a condition.
    pub(super) conditional: bool,
    pub(super) archive: Archive,
    /// How many records can be parked (of B, in `two`).
    pub(super) parked: u8,
    pub(super) gaps: u8,
    pub(super) kills: u8,
    pub(super) restore: bool,
    pub(super) objects: bool,
    /// How often a parked record is redriven.
    pub(super) redrives: i8,
    /// A record that is newer than the repair may have no creation time to show it.
    pub(super) undated: bool,
    /// The old writers of objects have ended before a database is restored.
    pub(super) quiet: bool,
    /// A redrive begins one function timeout after the last failure.
    pub(super) settled: bool,
    pub(super) first: First,
    pub(super) heads: Heads,
    /// How often the lock is lost.
    pub(super) losses: u8,
    /// Whoever lost the lock continues with what it had, once it has the lock again.
    pub(super) goes_on: bool,
    pub(super) named: Named,
    pub(super) late: Late,
    /// A redrive is killed at any step, as often as may be, and run again.
    pub(super) redrive_dies: bool,
    /// A record that the stream lost while an invocation had it may be in no bucket.
    pub(super) forgotten: bool,
    /// A repair reads nothing until the invocations from before it have ended.
    pub(super) waits: bool,
    pub(super) lease: Lease,
    // Of `two` alone:
    pub(super) second: Second,
    pub(super) clocks_us: [u64; 2],
    pub(super) merge: Merge,
    /// Both write objects from the beginning; otherwise B writes once both are repaired.
    pub(super) both_write: bool,
    pub(super) merge_is_repair: Mark,
    /// The peer has applied what was created before the merge; otherwise only what B's stream no
    /// longer has.
    pub(super) peer_current: bool,
    /// How many records can be parked of A.
    pub(super) parked_a: u8,
    /// How many gaps A has. Without one it is never repaired.
    pub(super) gaps_a: u8,
}

/// The rules as first written.
pub(super) const FIRST: Rules = Rules {
    begin_again: false,
    lock: false,
    touch: false,
    atomic: true,
    redrive: Redrive::IfOld,
    latch: false,
    item_first: false,
    hold: true,
    timeout: true,
    grows: true,
    conditional: true,
    archive: Archive::Ignored,
    parked: 1,
    gaps: 2,
    kills: 1,
    restore: false,
    objects: false,
    redrives: 1,
    undated: true,
    quiet: true,
    settled: false,
    first: First::Never,
    heads: Heads::OfItems,
    losses: 0,
    goes_on: false,
    named: Named::Never,
    late: Late::Lock,
    redrive_dies: false,
    forgotten: false,
    waits: false,
    lease: Lease::OfTheSession,
    second: Second::ReRead,
    clocks_us: [2, 1],
    merge: Merge::ByVersion,
    both_write: false,
    merge_is_repair: Mark::Never,
    peer_current: false,
    parked_a: 0,
    gaps_a: 1,
};

/// The rules that hold, with every redriven record read again.
pub(super) const HOLDS: Rules =
    Rules { lock: true, redrive: Redrive::Always, atomic: false, ..FIRST };

/// The same, and B is merged from A.
pub(super) const MERGED: Rules =
    Rules { second: Second::Merge, merge: Merge::OrReRead, peer_current: true, ..HOLDS };

/// The merge of the commands.
pub(super) const OUR_MERGE: Rules =
    Rules { redrive: Redrive::AfterRepair, merge_is_repair: Mark::ByRule, ..MERGED };

/// The rules of the commands for one database, with a Scan or an export as the source of keys.
pub(super) const OURS: Rules = Rules {
    redrive: Redrive::AfterRepair,
    latch: true,
    atomic: true,
    first: First::AfterStreams,
    named: Named::BeforeTheRead,
    redrive_dies: true,
    forgotten: true,
    waits: true,
    ..HOLDS
};

/// The same, with the bucket that was there before a snapshot was restored.
pub(super) const OURS_RESTORED: Rules =
    Rules { heads: Heads::OfUnheld, objects: true, restore: true, archive: Archive::Floor, ..OURS };

/// The rules of a repair by slices, each an invocation of its own, for which one row in `repairs`
/// is the lock.
pub(super) const OUR_SLICES: Rules = Rules { lease: Lease::RetriedOnceDead, ..OURS };
