//! One database: its row, its stream, its parked records and the one who repairs it. Each step
//! calls the functions that the commands call; a mutant is what the step does instead.

use time::{Duration, OffsetDateTime};

use super::object::Object;
use super::rules::{Archive, Redrive, Rules, Ver};
use super::search::Problem;
use crate::repair::reread::{self, AfterHold, AfterRead, Hold, Image, Replay, Seen};

/// At most this many records are parked.
const PARKED: usize = 2;

/// The part in the row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Row {
    pub(super) version: Ver,
    pub(super) content: u8,
    /// Where in the history a reader of the row is.
    pub(super) seen: u8,
}

/// Where a re-read is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ReRead {
    Start,
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
}

/// A record that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Parked {
    pub(super) sequence: u8,
    /// How often it was redriven; -1 as long as the invocation that failed may still commit.
    times: i8,
    process: Option<Redriven>,
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
    RedriveDecidesByVersion(u8),
    RedriveByVersion(u8),
    RedriveAsReRead(u8),
    Redrive(u8, Read),
    LostUpTo(u8),
    Snapshot,
    RestoredAndMappedAfter(u8),
    RepairIsKilled,
    MergeStarts,
    MergeReads { version: Ver, content: u8 },
    MergeUpserts,
    MergeReReads,
    MergeTakesNothing,
}

/// What a re-read does.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "its members are printed in a trace")]
pub(super) enum Read {
    Row { version: Ver, floor: Ver },
    Item { content: u8 },
    Equal,
    Moved,
    Compared,
    Upsert { content: u8, version: Ver },
}

/// A version and what is upserted with it.
pub(super) type Put = (Ver, u8);

/// A step of one database.
pub(super) struct Change {
    pub(super) act: Act,
    pub(super) database: Database,
    pub(super) problem: Option<Problem>,
    /// An object writer is due.
    pub(super) to_archive: bool,
}

/// What a database stands among.
pub(super) struct Around<'a> {
    pub(super) rules: &'a Rules,
    pub(super) history: &'a [u8],
    pub(super) committed: u8,
    pub(super) clock_us: u64,
    /// The object, if a re-read may look at it.
    pub(super) object: Option<Object>,
    /// How many records can be parked.
    pub(super) parked: u8,
    /// A merge is under way.
    pub(super) merging: bool,
}

impl Database {
    /// A new database, whose stream can lose records this often.
    pub(super) fn new(gaps: u8) -> Self {
        Self {
            delivered: 0,
            lost: 0,
            row: Row::default(),
            repaired_at: None,
            gaps,
            need: false,
            repair: None,
            parked: [None; PARKED],
        }
    }

    /// The parked records.
    fn records(&self) -> impl Iterator<Item = &Parked> {
        self.parked.iter().flatten()
    }

    /// Whether an invocation that has timed out may still commit.
    fn lane_lives(&self) -> bool {
        self.records().any(|parked| parked.times < 0)
    }

    /// Whether a redrive is under way.
    pub(super) fn redriving(&self) -> bool {
        self.records().any(|parked| parked.process.is_some())
    }

    /// Whether no record up to this one waits to be redriven.
    pub(super) fn drained(&self, through: u8) -> bool {
        let waits = |parked: &Parked| parked.times < 1 || parked.process.is_some();
        !self.records().any(|parked| parked.sequence <= through && waits(parked))
    }

    /// Whether all of this is done: everything delivered, repaired and redriven.
    pub(super) fn is_at_rest(&self, writes: u8) -> bool {
        self.delivered == writes && !self.need && self.repair.is_none() && self.drained(writes)
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
    fn upsert(&mut self, history: &[u8], put: Option<Put>) -> Option<Problem> {
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

impl Around<'_> {
    /// A step that ends in this database, once this is upserted.
    pub(super) fn change(
        &self,
        act: Act,
        mut database: Database,
        put: Option<Put>,
        to_archive: bool,
    ) -> Change {
        let problem = database.upsert(self.history, put);
        Change { act, database, problem, to_archive }
    }

    /// The change of this record.
    fn image(&self, sequence: u8) -> Put {
        (Ver::of_change(sequence), self.history[usize::from(sequence)])
    }

    /// Whether somebody has the lock of repairs.
    pub(super) fn is_locked(&self, database: &Database) -> bool {
        let repairing = database.repair.is_some_and(|repair| repair != ReRead::Start);
        self.rules.lock && (repairing || database.redriving() || self.merging)
    }

    /// What the stream brings, or brings again.
    pub(super) fn deliveries(&self, database: &Database, changes: &mut Vec<Change>) {
        if database.delivered < self.committed {
            let sequence = database.delivered + 1;
            let mut next = Database { delivered: sequence, ..*database };
            let image = Some(self.image(sequence));
            changes.push(self.change(Act::Deliver(sequence), next, image, true));
            let free = usize::from(self.parked).min(PARKED);
            if let Some(slot) = next.parked[..free].iter_mut().find(|slot| slot.is_none()) {
                *slot = Some(Parked { sequence, times: -1, process: None });
                changes.push(self.change(Act::FailsAndIsParked(sequence), next, None, false));
            }
        }
        for sequence in database.lost + 1..=database.delivered {
            if !database.records().any(|parked| parked.sequence == sequence) {
                let image = Some(self.image(sequence));
                changes.push(self.change(Act::Duplicate(sequence), *database, image, true));
            }
        }
    }

    /// The repair begins, or does its next step.
    pub(super) fn repair(&self, database: &Database, changes: &mut Vec<Change>) {
        let locked = self.is_locked(database);
        if database.need && database.repair.is_none() && !locked {
            let repaired_at = Some(self.committed);
            let next =
                Database { repaired_at, need: false, repair: Some(ReRead::Start), ..*database };
            changes.push(self.change(Act::RepairStarts, next, None, false));
        }
        let Some(repair) = database.repair else { return };
        let starts = repair == ReRead::Start;
        if starts && (Some(database.delivered) < database.repaired_at || locked) {
            return;
        }
        let merged = self.object.filter(|object| {
            let ahead = object.version.is_newer_than(database.row.version);
            self.rules.archive == Archive::Merged && starts && ahead
        });
        if let Some(Object { version, content }) = merged {
            let put = Some((version, content));
            changes.push(self.change(Act::ObjectIsMerged, *database, put, false));
        } else if let Some((read, repair, put)) = self.reread(repair, database) {
            let next = Database { repair, ..*database };
            changes.push(self.change(Act::Repair(read), next, put, repair.is_none()));
        }
    }

    /// One step of a re-read, where it is then, `None` if it has ended, and what it upserts; or it
    /// has to wait.
    fn reread(
        &self,
        at: ReRead,
        database: &Database,
    ) -> Option<(Read, Option<ReRead>, Option<Put>)> {
        let Database { row: Row { version, content, .. }, .. } = *database;
        match at {
            ReRead::Start if self.rules.item_first => {
                let item = self.history[usize::from(self.committed)];
                let next = ReRead::ItemFirst { committed: self.committed };
                Some((Read::Item { content: item }, Some(next), None))
            }
            ReRead::Start => {
                let object = self.object.filter(|_| self.rules.archive == Archive::Floor);
                let object = object.and_then(|object| object.version.text());
                let seen = Seen::new(version.text().map(str::to_owned), object, content);
                let floor = Ver::read(seen.floor.as_deref());
                let next = ReRead::Seen { row: version, content, floor };
                Some((Read::Row { version, floor }, Some(next), None))
            }
            ReRead::ItemFirst { committed } => {
                Some(self.compare(version, content, version, committed))
            }
            ReRead::Seen { row, content, floor } => {
                Some(self.compare(row, content, floor, self.committed))
            }
            ReRead::Held { row, image, floor, committed } if self.rules.hold => {
                if !database.hold_is_over(self.rules, committed) {
                    return None;
                }
                match reread::after_hold(row.text(), version.text()) {
                    AfterHold::Drop => {
                        let next = self.rules.begin_again.then_some(ReRead::Start);
                        Some((Read::Moved, next, None))
                    }
                    AfterHold::Upsert if self.rules.atomic => Some(self.upsert(image, floor)),
                    AfterHold::Upsert => {
                        let next = ReRead::Compared { image, floor, row };
                        Some((Read::Compared, Some(next), None))
                    }
                }
            }
            ReRead::Held { image, floor, .. } | ReRead::Compared { image, floor, .. } => {
                Some(self.upsert(image, floor))
            }
        }
    }

    /// Compares what the row held with the item, as it was when this was committed.
    fn compare(
        &self,
        row: Ver,
        content: u8,
        floor: Ver,
        committed: u8,
    ) -> (Read, Option<ReRead>, Option<Put>) {
        let text = |version: Ver| version.text().map(str::to_owned);
        let item = self.history[usize::from(committed)];
        let seen = Seen { row: text(row), floor: text(floor), content };
        let image = match seen.after_read(item) {
            AfterRead::Equal if !self.rules.touch => return (Read::Equal, None, None),
            AfterRead::Equal => item,
            AfterRead::Hold(Image { content, .. }) => content,
        };
        let next = ReRead::Held { row, image, floor, committed };
        (Read::Item { content: image }, Some(next), None)
    }

    /// Upserts an image.
    fn upsert(&self, content: u8, floor: Ver) -> (Read, Option<ReRead>, Option<Put>) {
        let version = if self.rules.grows {
            let version = reread::image_version(floor.text(), self.clock_us);
            Ver::read(Some(version.expect("the clock stands still").as_str()))
        } else {
            Ver { repair: 1, ..floor }
        };
        (Read::Upsert { content, version }, None, Some((version, content)))
    }

    /// What becomes of the parked records.
    pub(super) fn redrives(&self, database: &Database, changes: &mut Vec<Change>) {
        for slot in 0..PARKED {
            let Some(parked) = database.parked[slot] else { continue };
            let sequence = parked.sequence;
            let next = |times, process| {
                let mut next = *database;
                next.parked[slot] = Some(Parked { sequence, times, process });
                next
            };
            let image = Some(self.image(sequence));
            match parked.process {
                None if parked.times < 0 => {
                    let act = Act::TimedOutLaneCommits(sequence);
                    changes.push(self.change(act, next(0, None), image, true));
                    let act = Act::TimedOutLaneEnds(sequence);
                    changes.push(self.change(act, next(0, None), None, false));
                }
                None => self.redrive_starts(database, parked, next, changes),
                Some(Redriven::ByVersion) => {
                    let act = Act::RedriveByVersion(sequence);
                    changes.push(self.change(act, next(parked.times + 1, None), image, true));
                }
                Some(Redriven::ReRead(at)) => {
                    let Some((read, at, put)) = self.reread(at, database) else { continue };
                    let times = parked.times + i8::from(at.is_none());
                    let next = next(times, at.map(Redriven::ReRead));
                    let act = Act::Redrive(sequence, read);
                    changes.push(self.change(act, next, put, at.is_none()));
                }
            }
        }
    }

    /// A parked record is redriven, if the lock is free.
    fn redrive_starts(
        &self,
        database: &Database,
        Parked { sequence, times, .. }: Parked,
        next: impl Fn(i8, Option<Redriven>) -> Database,
        changes: &mut Vec<Change>,
    ) {
        let locked = self.is_locked(database) || (self.rules.lock && database.repair.is_some());
        let unsettled = self.rules.settled && database.lane_lives();
        if times >= self.rules.redrives || locked || unsettled {
            return;
        }
        let (by_version, reread) = self.redrive_rule(database, sequence);
        if by_version && self.rules.latch {
            let next = next(times, Some(Redriven::ByVersion));
            changes.push(self.change(Act::RedriveDecidesByVersion(sequence), next, None, false));
        } else if by_version {
            let (act, image) = (Act::RedriveByVersion(sequence), Some(self.image(sequence)));
            changes.push(self.change(act, next(times + 1, None), image, true));
        }
        if reread {
            let next = next(times, Some(Redriven::ReRead(ReRead::Start)));
            changes.push(self.change(Act::RedriveAsReRead(sequence), next, None, false));
        }
    }

    /// Whether a record can be redriven by its version, and whether it can be re-read.
    fn redrive_rule(&self, database: &Database, sequence: u8) -> (bool, bool) {
        let by_rule = |has_repair| match reread::replay(has_repair) {
            Replay::ApplyByVersion => (true, false),
            Replay::ReRead => (false, true),
        };
        let is_old = Some(sequence) <= database.repaired_at;
        let is_image = reread::counts_as_repair(database.row.version.text());
        match self.rules.redrive {
            Redrive::Always => by_rule(true),
            Redrive::AfterRepair => by_rule(database.repaired_at.is_some()),
            Redrive::IfOld => (!is_old, is_old || self.rules.undated),
            Redrive::IfOldOrImage => {
                (!is_old && !is_image, is_old || is_image || self.rules.undated)
            }
            Redrive::Direct => (true, false),
        }
    }
}
