//! One database and its bucket: gaps, a repair that is killed, a snapshot that is restored.

use super::database::{Act, Database, ReRead, Row};
use super::object::{self, Object, Writer, Wrote};
use super::rules::{Archive, Lease, Rules, Ver};
use super::search::{At, Machine, Problem, Step};
use super::steps::{Around, Change};

/// A history under these rules.
pub(super) struct One<'a> {
    pub(super) rules: &'a Rules,
    pub(super) history: &'a [u8],
}

/// Whether `backfill objects` has run, once the row had come to rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Objects {
    Before,
    Running(Writer),
    Done,
}

/// What a restore goes back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Snapshot {
    row: Row,
    repaired_at: Option<u8>,
    delivered: u8,
}

/// Everything there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct State {
    committed: u8,
    database: Database,
    kills: u8,
    snapshot: Option<Snapshot>,
    object: Option<Object>,
    /// A writer that takes its time.
    late: Option<Writer>,
    objects: Objects,
}

/// What happens to one of the two stores, or to both.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "its members are printed in a trace")]
pub(super) enum Action {
    Write(u8),
    Row(Act),
    RowAndObject(Act),
    RowAndLateWriter(Act),
    LateWriter(Wrote),
    LateWriterIsLost,
    ObjectsStart,
    Objects(Wrote),
}

type Steps = Vec<Step<State, Action>>;

impl One<'_> {
    fn writes(&self) -> u8 {
        u8::try_from(self.history.len() - 1).expect("a short history")
    }

    fn is_at_rest(&self, state: &State) -> bool {
        let State { committed, database, .. } = state;
        *committed == self.writes()
            && database.repaired_at.is_some()
            && database.is_at_rest(self.writes())
    }

    /// The late writer's steps.
    fn late(&self, state: &State, steps: &mut Steps) {
        let Some(late) = state.late else { return };
        let (wrote, late, object) =
            object::step(self.rules, late, state.database.row, state.object);
        steps.push(Step {
            action: Action::LateWriter(wrote),
            state: State { object, late, ..*state },
            problem: object::judge(state.object, object),
        });
        let lost = State { late: None, ..*state };
        steps.push(Step { action: Action::LateWriterIsLost, state: lost, problem: None });
    }

    /// The steps of `backfill objects`.
    fn objects(&self, state: &State, steps: &mut Steps) {
        let Objects::Running(writer) = state.objects else { return };
        let (wrote, writer, object) =
            object::step(self.rules, writer, state.database.row, state.object);
        let objects = writer.map_or(Objects::Done, Objects::Running);
        steps.push(Step {
            action: Action::Objects(wrote),
            state: State { object, objects, ..*state },
            problem: object::judge(state.object, object),
        });
    }

    /// The step of the database, and what becomes of the object then.
    fn push(&self, before: &State, after: State, change: &Change, steps: &mut Steps) {
        let Change { act, problem, .. } = *change;
        steps.push(Step { action: Action::Row(act), state: after, problem });
        if !(change.to_archive && self.rules.objects) {
            return;
        }
        if before.late.is_none() {
            let state = State { late: Some(Writer::Start), ..after };
            steps.push(Step { action: Action::RowAndLateWriter(act), state, problem });
        }
        let row = &after.database.row;
        if row.version != Ver::default() && !object::is_up_to_date(before.object, row.version) {
            let state = State { object: Some(row.into()), ..after };
            steps.push(Step { action: Action::RowAndObject(act), state, problem });
        }
    }

    /// The stream loses records, or an earlier snapshot is restored.
    fn gaps(&self, state: &State, steps: &mut Steps) {
        let State { committed, database, .. } = *state;
        let gaps = database.gaps;
        let mut push = |act, state| {
            steps.push(Step { action: Action::Row(act), state, problem: None });
        };
        if gaps > 0 && !(self.rules.restore && gaps == 1) {
            for to in database.delivered..=committed {
                let database =
                    Database { delivered: to, lost: to, gaps: gaps - 1, need: true, ..database };
                push(Act::LostUpTo(to), State { database, ..*state });
            }
        }
        if !self.rules.restore || gaps == 0 {
            return;
        }
        let Database { row, repaired_at, delivered, .. } = database;
        let busy = database.repairing()
            || database.redriving()
            || (self.rules.quiet && state.late.is_some());
        match state.snapshot {
            None => {
                let snapshot = Some(Snapshot { row, repaired_at, delivered });
                push(Act::Snapshot, State { snapshot, ..*state });
            }
            Some(Snapshot { row, repaired_at, delivered }) if gaps == 1 && !busy => {
                for to in delivered..=committed {
                    let row = Row { seen: 0, ..row };
                    let database = Database {
                        delivered: to,
                        lost: to,
                        row,
                        repaired_at,
                        gaps: 0,
                        need: true,
                        ..database
                    };
                    push(Act::RestoredAndMappedAfter(to), State { database, ..*state });
                }
            }
            Some(_) => {}
        }
    }
}

impl Machine for One<'_> {
    type State = State;
    type Action = Action;

    fn initial(&self) -> State {
        State {
            committed: 0,
            database: Database::new(self.rules.gaps, self.rules.losses),
            kills: self.rules.kills,
            snapshot: None,
            object: None,
            late: None,
            objects: Objects::Before,
        }
    }

    fn at(&self, state: &State) -> At {
        let rules = self.rules;
        if !self.is_at_rest(state)
            || state.late.is_some()
            || (rules.objects && state.objects != Objects::Done)
        {
            return At::Work;
        }
        let row = &state.database.row;
        if Some(&row.content) != self.history.last() {
            return At::Rest(Some(Problem::RowWrongAtRest));
        }
        let nothing = Object { version: Ver::default(), content: 0 };
        if rules.objects && state.object.unwrap_or(nothing) != row.into() {
            return At::Rest(Some(Problem::ObjectWrongAtRest));
        }
        At::Rest(None)
    }

    fn steps(&self, state: &State, steps: &mut Steps) {
        self.late(state, steps);
        if state.objects != Objects::Before {
            self.objects(state, steps);
            return;
        }
        let State { committed, database, kills, .. } = *state;
        let rules = self.rules;
        if committed < self.writes() {
            let state = State { committed: committed + 1, ..*state };
            steps.push(Step { action: Action::Write(committed + 1), state, problem: None });
        }
        self.gaps(state, steps);
        let around = Around {
            rules: self.rules,
            history: self.history,
            committed,
            clock_us: 0,
            object: state.object.filter(|_| self.rules.archive != Archive::Ignored),
            parked: self.rules.parked,
            merging: false,
        };
        let mut changes = Vec::new();
        around.deliveries(&database, &mut changes);
        around.repair(&database, &mut changes);
        around.slices(&database, &mut changes);
        around.lost_lock(&database, &mut changes);
        around.redrives(&database, &mut changes);
        for change in &changes {
            let after = State { database: change.database, ..*state };
            self.push(state, after, change, steps);
        }
        let running = database.repair.filter(|at| *at != ReRead::Start && database.dead.is_none());
        if let Some(at) = running.filter(|_| kills > 0) {
            let database = match rules.lease {
                Lease::OfTheSession => Database { repair: None, need: true, ..database },
                Lease::RetriedOnceDead | Lease::RetriedAtOnce | Lease::Expires => {
                    Database { repair: None, dead: Some(at), leased: true, ..database }
                }
            };
            let state = State { database, kills: kills - 1, ..*state };
            steps.push(Step { action: Action::Row(Act::RepairIsKilled), state, problem: None });
        }
        if self.rules.objects && self.is_at_rest(state) {
            let state = State { objects: Objects::Running(Writer::Start), ..*state };
            steps.push(Step { action: Action::ObjectsStart, state, problem: None });
        }
    }
}
