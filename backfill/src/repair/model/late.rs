//! What becomes of the records that failed: rejected ones, and those of batches that Lambda gave up
//! on. In a database that has had a repair, `file` puts the second into `rejected_records`, where
//! they wait as before, for `redrive`.

use super::database::{Act, Database, PARKED, Parked, ReRead, Redriven};
use super::rules::{Late, Named, Redrive};
use super::steps::{Around, Change};
use crate::repair::reread::{self, Replay};

impl Around<'_> {
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
                    if self.rules.forgotten && sequence <= database.lost {
                        let mut forgotten = *database;
                        forgotten.parked[slot] = None;
                        let act = Act::LateAndInNoBucket(sequence);
                        changes.push(self.change(act, forgotten, image, true));
                    }
                }
                None => self.redrive_starts(database, parked, next, changes),
                Some(Redriven::ByVersion) if self.has_to_wait(database) => {}
                Some(Redriven::ByVersion) => {
                    let act = Act::RedriveByVersion(sequence);
                    changes.push(self.change(act, next(parked.times + 1, None), image, true));
                }
                Some(Redriven::ReRead(at)) => self.redrive_step(database, slot, at, changes),
                Some(Redriven::Lost(_)) if self.others_have_the_lock(database) => {}
                Some(Redriven::Lost(at)) => {
                    let next = next(parked.times, Some(Redriven::ReRead(at)));
                    changes.push(self.change(Act::LockIsTakenAgain, next, None, false));
                }
                Some(Redriven::Named) => {}
            }
        }
    }

    /// Whether a redrive has to wait for the lock of repairs.
    fn others_have_the_lock(&self, database: &Database) -> bool {
        self.is_locked(database) || (self.rules.lock && database.repair.is_some())
    }

    /// Whether a redrive that has decided to apply by version takes the lock only now.
    fn has_to_wait(&self, database: &Database) -> bool {
        self.rules.late == Late::LockAfterTheQuestion && self.others_have_the_lock(database)
    }

    /// A step of the re-read of a parked record, or what ends it.
    fn redrive_step(
        &self,
        database: &Database,
        slot: usize,
        at: ReRead,
        changes: &mut Vec<Change>,
    ) {
        let Some(Parked { sequence, times, .. }) = database.parked[slot] else { return };
        let with = |times, process| {
            let mut next = *database;
            next.parked[slot] = Some(Parked { sequence, times, process });
            next
        };
        if self.rules.redrive_dies {
            let next = with(times, None).without_named(0);
            changes.push(self.change(Act::RedriveIsKilled(sequence), next, None, false));
        }
        if at != ReRead::Start && database.losses > 0 {
            let lost = with(times, Some(Redriven::Lost(self.after_a_loss(at))));
            let next = Database { losses: database.losses - 1, ..lost };
            changes.push(self.change(Act::LockIsLost, next, None, false));
        }
        let may_join = match self.rules.named {
            Named::Never => false,
            Named::BeforeTheRead => matches!(at, ReRead::Start | ReRead::Candidate),
            Named::AtAnyTime => true,
        };
        for other in 0..PARKED {
            if let Some(named) = database.parked[other].filter(|named| {
                may_join
                    && named.process.is_none()
                    && (0..self.rules.redrives).contains(&named.times)
            }) {
                let mut next = *database;
                next.parked[other] = Some(Parked { process: Some(Redriven::Named), ..named });
                let act = Act::NamedByAnother(named.sequence);
                changes.push(self.change(act, next, None, false));
            }
        }
        let Some((read, at, put)) = self.reread(at, database) else { return };
        let next = match at {
            Some(at) => with(times, Some(Redriven::ReRead(at))),
            None => with(times + 1, None).without_named(1),
        };
        changes.push(self.change(Act::Redrive(sequence, read), next, put, at.is_none()));
    }

    /// A parked record is redriven, if the lock is free.
    fn redrive_starts(
        &self,
        database: &Database,
        Parked { sequence, times, .. }: Parked,
        next: impl Fn(i8, Option<Redriven>) -> Database,
        changes: &mut Vec<Change>,
    ) {
        let unsettled = self.rules.settled && database.lane_lives();
        if times >= self.rules.redrives || unsettled {
            return;
        }
        let (by_version, reread) = self.redrive_rule(database, sequence);
        let locked = self.others_have_the_lock(database);
        if by_version && self.rules.latch && (!locked || self.rules.late != Late::Lock) {
            let next = next(times, Some(Redriven::ByVersion));
            changes.push(self.change(Act::RedriveDecidesByVersion(sequence), next, None, false));
        }
        if locked {
            return;
        }
        if by_version && !self.rules.latch {
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
        let is_image = reread::is_image(database.row.version.text());
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
