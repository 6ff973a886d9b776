//! What can happen in one database. Each step calls the function that the commands call; a mutant
//! is what is done instead.

use super::database::{Act, Database, PARKED, Parked, Put, ReRead, Read, Row};
use super::object::Object;
use super::rules::{Archive, Lease, Rules, Ver};
use super::search::Problem;
use crate::repair::reread::{self, AfterHold, AfterRead, Image, Seen};

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
    pub(super) fn image(&self, sequence: u8) -> Put {
        (Ver::of_change(sequence), self.history[usize::from(sequence)])
    }

    /// Whether somebody has the lock of repairs, or a slice that was killed still keeps the others
    /// away.
    pub(super) fn is_locked(&self, database: &Database) -> bool {
        let leased = database.leased && self.rules.lease != Lease::Expires;
        leased || self.is_taken(database)
    }

    /// Whether somebody who lives has the lock of repairs.
    fn is_taken(&self, database: &Database) -> bool {
        let repairing = database.repair.is_some_and(|repair| repair != ReRead::Start);
        self.rules.lock && (repairing || database.redrive_is_locked(self.rules) || self.merging)
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
        let locked = self.is_taken(database);
        if database.need && database.repair.is_none() && !database.leased && !locked {
            let repaired_at = Some(self.committed);
            let next =
                Database { repaired_at, need: false, repair: Some(ReRead::Start), ..*database };
            changes.push(self.change(Act::RepairStarts, next, None, false));
        }
        let Some(repair) = database.repair else { return };
        let starts = repair == ReRead::Start;
        if starts && locked {
            return;
        }
        if starts {
            self.first_looks(database, changes);
        }
        let waits = Some(database.delivered) < database.repaired_at
            || (self.rules.waits && database.old_lane_lives());
        if starts && waits {
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
            let leased = database.leased && repair.is_some();
            let next = Database { repair, leased, ..*database };
            changes.push(self.change(Act::Repair(read), next, put, repair.is_none()));
        }
    }

    /// What a slice that was killed still does, and the slice that is begun in its place: it reads
    /// anew, of the same repair.
    pub(super) fn slices(&self, database: &Database, changes: &mut Vec<Change>) {
        let mut push = |act, next, put, to_archive| {
            changes.push(self.change(act, next, put, to_archive));
        };
        if let Some(at) = database.dead {
            push(Act::DeadSliceEnds, Database { dead: None, ..*database }, None, false);
            if let Some((read, dead, put)) = self.reread(at, database) {
                let next = Database { dead, ..*database };
                push(Act::DeadSlice(read), next, put, dead.is_none());
            }
        }
        let waits = database.dead.is_some() && self.rules.lease != Lease::RetriedAtOnce;
        let others = self.rules.lease == Lease::Expires && self.is_taken(database);
        if database.leased && database.repair.is_none() && !waits && !others {
            let next = Database { repair: Some(ReRead::Start), ..*database };
            push(Act::SliceIsRetried, next, None, false);
        }
    }

    /// Whoever repairs loses the lock with its connection, and takes it again; another repair may
    /// run in between.
    pub(super) fn lost_lock(&self, database: &Database, changes: &mut Vec<Change>) {
        let mut push = |act, next| changes.push(self.change(act, next, None, false));
        if let Some(at) = database.repair.filter(|at| *at != ReRead::Start)
            && let Some(losses) = database.losses.checked_sub(1)
        {
            let lost_repair = Some(self.after_a_loss(at));
            push(Act::LockIsLost, Database { repair: None, lost_repair, losses, ..*database });
        }
        if database.lost_repair.is_none() || database.repair.is_some() || self.is_locked(database) {
            return;
        }
        let again = Database { repair: database.lost_repair, lost_repair: None, ..*database };
        push(Act::LockIsTakenAgain, again);
        let repaired_at = Some(self.committed);
        let repair = Some(ReRead::Start);
        push(Act::AnotherRepairStarts, Database { repaired_at, need: false, repair, ..*database });
    }

    /// Where a re-read continues after it has lost the lock. A first look writes nothing, and goes
    /// on.
    pub(super) fn after_a_loss(&self, at: ReRead) -> ReRead {
        match at {
            ReRead::First(_) => at,
            _ if self.rules.goes_on => at,
            _ => ReRead::Candidate,
        }
    }

    /// One step of a re-read, where it is then, `None` if it has ended, and what it upserts; or it
    /// has to wait.
    pub(super) fn reread(
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
            ReRead::First(at) => Some(self.first_look(at, database)),
            ReRead::Start | ReRead::Candidate => {
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
}
