//! One database: its row, its stream, its parked records and the one who repairs it. `steps` has
//! what they do.

use time::{Duration, OffsetDateTime};

use super::rules::{Late, Rules, Ver};
use super::search::Problem;
use crate::repair::reread::Hold;

/// At most this many records are parked.
pub(super) const PARKED: usize = 2;

/// The part in the row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Row {
    pub(super) version: Ver,
    pub(super) content: u8,
    /// Where in the history a reader of the row is.
    pub(super) seen: u8,
}

/// Where a first look is. Content 0 is absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum FirstLook {
    /// What a Scan or an export has of it.
    Item { content: u8 },
    /// Item and row are equal. The object may be ahead of this version.
    Equal { row: Ver },
    /// Neither the Scan nor the export has it, and the row does.
    OnlyInRow,
    /// It was asked for by key, and is not there.
    Gone,
    /// The row was read again.
    RowAgain { version: Ver, content: u8 },
}

/// Where a re-read is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ReRead {
    Start,
    First(FirstLook),
    /// It is to be read from the row on.
    Candidate,
    /// The item is read before the row: a mutant.
    ItemFirst {
        committed: u8,
    },
    Seen {
        row: Ver,
        content: u8,
        floor: Ver,
    },
    Held {
        row: Ver,
        image: u8,
        floor: Ver,
        committed: u8,
    },
    /// The row was compared, and is upserted by another statement.
    Compared {
        image: u8,
        floor: Ver,
        row: Ver,
    },
}

/// What a redrive has decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Redriven {
    ByVersion,
    ReRead(ReRead),
    /// It re-reads, and has lost the lock.
    Lost(ReRead),
    /// The read for another record is one for this record too.
    Named,
}

/// A record that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Parked {
    pub(super) sequence: u8,
    /// How often it was redriven; -1 as long as the invocation that failed may still commit.
    pub(super) times: i8,
    pub(super) process: Option<Redriven>,
}

/// One database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Database {
    /// Up to which record the stream was delivered.
    pub(super) delivered: u8,
    /// Up to which record the stream has lost what it had.
    pub(super) lost: u8,
    pub(super) row: Row,
    /// What was committed when the last repair began.
    pub(super) repaired_at: Option<u8>,
    pub(super) gaps: u8,
    /// A repair is needed.
    pub(super) need: bool,
    pub(super) repair: Option<ReRead>,
    /// A repair that has lost the lock.
    pub(super) lost_repair: Option<ReRead>,
    /// A slice of a repair that was killed, and may still act.
    pub(super) dead: Option<ReRead>,
    /// A slice was killed, and its repair is not complete.
    pub(super) leased: bool,
    /// How often the lock can still be lost.
    pub(super) losses: u8,
    pub(super) parked: [Option<Parked>; PARKED],
}

/// What happens.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "its members are printed in a trace")]
pub(super) enum Act {
    Deliver(u8),
    FailsAndIsParked(u8),
    Duplicate(u8),
    RepairStarts,
    ObjectIsMerged,
    Repair(Read),
    TimedOutLaneCommits(u8),
    TimedOutLaneEnds(u8),
    /// It commits, and the record is in no bucket.
    LateAndInNoBucket(u8),
    SliceIsRetried,
    DeadSlice(Read),
    DeadSliceEnds,
    LockIsLost,
    LockIsTakenAgain,
    AnotherRepairStarts,
    RedriveDecidesByVersion(u8),
    RedriveIsKilled(u8),
    NamedByAnother(u8),
    RedriveByVersion(u8),
    RedriveAsReRead(u8),
    Redrive(u8, Read),
    LostUpTo(u8),
    Snapshot,
    RestoredAndMappedAfter(u8),
    RepairIsKilled,
    MergeStarts,
    MergeReads {
        version: Ver,
        content: u8,
    },
    MergeUpserts,
    MergeNamesAKey,
    MergeTakesNothing,
}

/// What a re-read does.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "its members are printed in a trace")]
pub(super) enum Read {
    First(Saw),
    Row { version: Ver, floor: Ver },
    Item { content: u8 },
    Equal,
    Moved,
    Compared,
    Upsert { content: u8, version: Ver },
}

/// What a first look sees.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "its members are printed in a trace")]
pub(super) enum Saw {
    Item { content: u8 },
    Row { version: Ver, content: u8 },
    Object,
    ItemByKey { content: u8 },
}

/// A version and what is upserted with it.
pub(super) type Put = (Ver, u8);

impl Database {
    /// A new database, whose stream can lose records this often, and its repairs the lock.
    pub(super) fn new(gaps: u8, losses: u8) -> Self {
        Self {
            delivered: 0,
            lost: 0,
            row: Row::default(),
            repaired_at: None,
            gaps,
            need: false,
            repair: None,
            lost_repair: None,
            dead: None,
            leased: false,
            losses,
            parked: [None; PARKED],
        }
    }

    /// The parked records.
    pub(super) fn records(&self) -> impl Iterator<Item = &Parked> {
        self.parked.iter().flatten()
    }

    /// Whether an invocation that has timed out may still commit.
    pub(super) fn lane_lives(&self) -> bool {
        self.records().any(|parked| parked.times < 0)
    }

    /// Whether an invocation from before the last repair may still commit.
    pub(super) fn old_lane_lives(&self) -> bool {
        let is_old = |parked: &Parked| Some(parked.sequence) <= self.repaired_at;
        self.records().any(|parked| parked.times < 0 && is_old(parked))
    }

    /// Whether a redrive is under way, one too that has lost the lock.
    pub(super) fn redriving(&self) -> bool {
        self.records().any(|parked| parked.process.is_some())
    }

    /// The same, if every record that is named by another one was redriven this often more.
    pub(super) fn without_named(mut self, more: i8) -> Self {
        for parked in self.parked.iter_mut().flatten() {
            if parked.process == Some(Redriven::Named) {
                parked.process = None;
                parked.times += more;
            }
        }
        self
    }

    /// Whether a redrive has the lock.
    pub(super) fn redrive_is_locked(&self, rules: &Rules) -> bool {
        self.records().any(|parked| match parked.process {
            Some(Redriven::ReRead(_)) => true,
            Some(Redriven::ByVersion) => rules.late == Late::Lock,
            Some(Redriven::Lost(_) | Redriven::Named) | None => false,
        })
    }

    /// Whether a repair is under way, one too that has lost the lock.
    pub(super) fn repairing(&self) -> bool {
        self.repair.is_some() || self.lost_repair.is_some() || self.leased || self.dead.is_some()
    }

    /// Whether no record up to this one waits to be redriven.
    pub(super) fn drained(&self, through: u8) -> bool {
        let waits = |parked: &Parked| parked.times < 1 || parked.process.is_some();
        !self.records().any(|parked| parked.sequence <= through && waits(parked))
    }

    /// Whether all of this is done: everything delivered, repaired and redriven.
    pub(super) fn is_at_rest(&self, writes: u8) -> bool {
        self.delivered == writes && !self.need && !self.repairing() && self.drained(writes)
    }

    /// Whether the stream has been read past a read of the item at which this was committed, and
    /// whoever had a record from before has ended. A write is committed at its number of seconds, a
    /// read half a second later.
    pub(super) fn hold_is_over(&self, rules: &Rules, committed: u8) -> bool {
        let at = |seconds: u8| OffsetDateTime::UNIX_EPOCH + Duration::seconds(seconds.into());
        let timeout = Duration::seconds(if rules.timeout { 30 } else { 0 });
        let mut hold = Hold::new(at(committed) + Duration::milliseconds(500));
        // Everything before the first write that is not delivered has been read.
        let read_through = [Some(at(self.delivered + 1))];
        let passed_at = at(100);
        let now = if self.lane_lives() { passed_at } else { passed_at + timeout };
        hold.is_over(&read_through, timeout, passed_at) || hold.is_over(&read_through, timeout, now)
    }

    /// The upsert: whatever is newer.
    pub(super) fn upsert(&mut self, history: &[u8], put: Option<Put>) -> Option<Problem> {
        let (version, content) = put?;
        if !version.is_newer_than(self.row.version) {
            return None;
        }
        let shows = |from: u8| {
            let mut points = (0_u8..).zip(history).skip(usize::from(from));
            points.find(|(_, held)| **held == content).map(|(point, _)| point)
        };
        let ahead = shows(self.row.seen);
        let seen = ahead.or_else(|| shows(0)).expect("every image is of the history");
        self.row = Row { version, content, seen };
        ahead.is_none().then_some(Problem::RowWentBack)
    }
}
