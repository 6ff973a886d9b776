//! Two databases, each with a mapping of its own to the same stream, and one bucket. A is repaired
//! by re-read; B so too, or by a merge of A's row, or by both.

use super::database::{Act, Database};
use super::object::{self, Object, Writer, Wrote};
use super::rules::{Archive, Mark, Merge, Rules, Second, Ver};
use super::search::{At, Machine, Problem, Step};
use super::steps::{Around, Change};
use crate::repair::reread::{self, FromPeer};

/// A history under these rules.
pub(super) struct Two<'a> {
    pub(super) rules: &'a Rules,
    pub(super) history: &'a [u8],
}

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Side {
    A,
    B,
}

/// Whether `backfill objects` has run for one side, once both rows had come to rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Objects {
    Before,
    Running(Writer),
    Done,
}

/// A merge under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Merging {
    /// It waits until A has applied everything up to this record.
    Waits { for_record: u8 },
    /// It has read A's row.
    Read { version: Ver, content: u8 },
}

/// Everything there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct State {
    committed: u8,
    databases: [Database; 2],
    /// B needs a merge.
    owed: bool,
    merging: Option<Merging>,
    object: Option<Object>,
    /// A writer that takes its time.
    late: Option<(Side, Writer)>,
    objects: [Objects; 2],
}

/// What happens to one of the three stores, or to two of them.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "its members are printed in a trace")]
pub(super) enum Action {
    Write(u8),
    Row(Side, Act),
    RowAndObject(Side, Act),
    RowAndLateWriter(Side, Act),
    LateWriter(Wrote),
    LateWriterIsLost,
    ObjectsStart,
    Objects(Side, Wrote),
}

type Steps = Vec<Step<State, Action>>;

impl State {
    /// This state with another database of one side.
    fn with(&self, side: Side, database: Database) -> Self {
        let mut state = *self;
        state.databases[side as usize] = database;
        state
    }

    fn of(&self, side: Side) -> &Database {
        &self.databases[side as usize]
    }

    /// Whether one side has had its gap, and was repaired.
    fn is_repaired(&self, side: Side) -> bool {
        let Database { gaps, need, .. } = *self.of(side);
        let repaired = gaps == 0 && !need && !self.of(side).repairing();
        repaired && !(side == Side::B && self.owed)
    }
}

impl Two<'_> {
    fn writes(&self) -> u8 {
        u8::try_from(self.history.len() - 1).expect("a short history")
    }

    fn is_at_rest(&self, state: &State) -> bool {
        let done = |side| state.is_repaired(side) && state.of(side).is_at_rest(self.writes());
        state.committed == self.writes()
            && state.merging.is_none()
            && [Side::A, Side::B].into_iter().all(done)
    }

    /// The late writer's steps.
    fn late(&self, state: &State, steps: &mut Steps) {
        let Some((side, writer)) = state.late else { return };
        let row = state.of(side).row;
        let (wrote, writer, object) = object::step(self.rules, writer, row, state.object);
        let late = writer.map(|writer| (side, writer));
        steps.push(Step {
            action: Action::LateWriter(wrote),
            state: State { object, late, ..*state },
            problem: object::judge(state.object, object),
        });
        let lost = State { late: None, ..*state };
        steps.push(Step { action: Action::LateWriterIsLost, state: lost, problem: None });
    }

    /// The steps of `backfill objects` for both.
    fn objects(&self, state: &State, steps: &mut Steps) {
        for side in [Side::A, Side::B] {
            let Objects::Running(writer) = state.objects[side as usize] else { continue };
            let row = state.of(side).row;
            let (wrote, writer, object) = object::step(self.rules, writer, row, state.object);
            let mut next = State { object, ..*state };
            next.objects[side as usize] = writer.map_or(Objects::Done, Objects::Running);
            let problem = object::judge(state.object, object);
            steps.push(Step { action: Action::Objects(side, wrote), state: next, problem });
        }
    }

    /// A step of one database, and what becomes of the object then.
    fn push(&self, before: &State, after: State, side: Side, change: &Change, steps: &mut Steps) {
        let Change { act, database, problem, to_archive } = *change;
        let after = after.with(side, database);
        steps.push(Step { action: Action::Row(side, act), state: after, problem });
        let writes = self.rules.both_write
            || side == Side::A
            || (before.is_repaired(Side::A) && before.is_repaired(Side::B));
        if !(to_archive && self.rules.objects && writes) {
            return;
        }
        if before.late.is_none() {
            let state = State { late: Some((side, Writer::Start)), ..after };
            steps.push(Step { action: Action::RowAndLateWriter(side, act), state, problem });
        }
        let row = &database.row;
        if row.version != Ver::default() && !object::is_up_to_date(before.object, row.version) {
            let state = State { object: Some(row.into()), ..after };
            steps.push(Step { action: Action::RowAndObject(side, act), state, problem });
        }
    }

    /// The stream of one mapping loses records, once.
    fn gap(&self, state: &State, side: Side, steps: &mut Steps) {
        let database = *state.of(side);
        if database.gaps == 0 {
            return;
        }
        let is_b = side == Side::B;
        let need = !is_b || self.rules.second != Second::Merge;
        let owed = state.owed || (is_b && self.rules.second != Second::ReRead);
        for to in database.delivered..=state.committed {
            let database = Database { delivered: to, lost: to, gaps: 0, need, ..database };
            let state = State { owed, ..state.with(side, database) };
            let action = Action::Row(side, Act::LostUpTo(to));
            steps.push(Step { action, state, problem: None });
        }
    }

    /// The merge of A's row into B.
    fn merge(&self, around: &Around<'_>, state: &State, steps: &mut Steps) {
        let (a, b) = (state.of(Side::A), *state.of(Side::B));
        let rules = self.rules;
        let row = |act| Action::Row(Side::B, act);
        match state.merging {
            None => {
                let locked = around.is_locked(&b) || (rules.lock && b.repair.is_some());
                if !state.owed || !state.is_repaired(Side::A) || locked {
                    return;
                }
                let for_record = if rules.peer_current { state.committed } else { b.lost };
                let mark = rules.merge_is_repair == Mark::ByRule
                    && reread::merge_is_repair(Some(a.repaired_at.is_some()));
                let repaired_at = if mark { Some(state.committed) } else { b.repaired_at };
                let merging = Some(Merging::Waits { for_record });
                let state = state.with(Side::B, Database { repaired_at, ..b });
                let state = State { merging, ..state };
                steps.push(Step { action: row(Act::MergeStarts), state, problem: None });
            }
            Some(Merging::Waits { for_record }) => {
                let drained = !rules.peer_current || a.drained(for_record);
                if a.delivered < for_record || !drained {
                    return;
                }
                let (version, content) = (a.row.version, a.row.content);
                let mark =
                    rules.merge_is_repair == Mark::IfImage && reread::is_image(version.text());
                let repaired_at = if mark { Some(state.committed) } else { b.repaired_at };
                let merging = Some(Merging::Read { version, content });
                let state = state.with(Side::B, Database { repaired_at, ..b });
                let state = State { merging, ..state };
                let action = row(Act::MergeReads { version, content });
                steps.push(Step { action, state, problem: None });
            }
            Some(Merging::Read { version, content }) => {
                if b.repair.is_none() {
                    self.merge_ends(around, state, (version, content), steps);
                }
            }
        }
    }

    /// The merge has read A's row.
    fn merge_ends(
        &self,
        around: &Around<'_>,
        state: &State,
        (version, content): (Ver, u8),
        steps: &mut Steps,
    ) {
        let mut b = *state.of(Side::B);
        let merge = self.rules.merge;
        let version = match merge {
            Merge::WithoutRepair => Ver::of_change(version.sequence),
            Merge::ByVersion | Merge::WithImages | Merge::OrReRead => version,
        };
        let ours = (b.row.version.text(), &b.row.content);
        let of_keys = merge == Merge::OrReRead && reread::is_image(version.text());
        let (act, put) = match reread::from_peer((version.text(), &content), ours) {
            FromPeer::Upsert if !of_keys => (Act::MergeUpserts, Some((version, content))),
            FromPeer::Upsert | FromPeer::ReRead
                if matches!(merge, Merge::OrReRead | Merge::WithImages) =>
            {
                // A repair of this key is another run.
                b.need = true;
                (Act::MergeNamesAKey, None)
            }
            _ => (Act::MergeTakesNothing, None),
        };
        let change = around.change(act, b, put, true);
        let after = State { merging: None, owed: false, ..*state };
        self.push(state, after, Side::B, &change, steps);
    }
}

impl Machine for Two<'_> {
    type State = State;
    type Action = Action;

    fn initial(&self) -> State {
        State {
            committed: 0,
            databases: [
                Database::new(self.rules.gaps_a, self.rules.losses),
                Database::new(1, self.rules.losses),
            ],
            owed: false,
            merging: None,
            object: None,
            late: None,
            objects: [Objects::Before; 2],
        }
    }

    fn at(&self, state: &State) -> At {
        let archived = !self.rules.objects || state.objects == [Objects::Done; 2];
        if !self.is_at_rest(state) || state.late.is_some() || !archived {
            return At::Work;
        }
        let rows = state.databases.map(|database| database.row);
        if rows.iter().any(|row| Some(&row.content) != self.history.last()) {
            return At::Rest(Some(Problem::RowWrongAtRest));
        }
        let [a, b] = rows;
        let newer = if b.version.is_newer_than(a.version) { b } else { a };
        let nothing = Object { version: Ver::default(), content: 0 };
        if self.rules.objects && state.object.unwrap_or(nothing) != Object::from(&newer) {
            return At::Rest(Some(Problem::ObjectWrongAtRest));
        }
        At::Rest(None)
    }

    fn steps(&self, state: &State, steps: &mut Steps) {
        self.late(state, steps);
        if state.objects != [Objects::Before; 2] {
            self.objects(state, steps);
            return;
        }
        let committed = state.committed;
        if committed < self.writes() {
            let state = State { committed: committed + 1, ..*state };
            steps.push(Step { action: Action::Write(committed + 1), state, problem: None });
        }
        for side in [Side::A, Side::B] {
            let is_b = side == Side::B;
            let around = Around {
                rules: self.rules,
                history: self.history,
                committed,
                clock_us: self.rules.clocks_us[side as usize],
                object: state.object.filter(|_| self.rules.archive != Archive::Ignored),
                parked: if is_b { self.rules.parked } else { self.rules.parked_a },
                merging: is_b && state.merging.is_some(),
            };
            let database = state.of(side);
            let mut changes = Vec::new();
            around.deliveries(database, &mut changes);
            self.gap(state, side, steps);
            around.repair(database, &mut changes);
            around.lost_lock(database, &mut changes);
            around.redrives(database, &mut changes);
            for change in &changes {
                self.push(state, *state, side, change, steps);
            }
            if is_b {
                self.merge(&around, state, steps);
            }
        }
        if self.rules.objects && self.is_at_rest(state) {
            let objects = [Objects::Running(Writer::Start); 2];
            let state = State { objects, ..*state };
            steps.push(Step { action: Action::ObjectsStart, state, problem: None });
        }
    }
}
