//! What the writers, the network and the bucket do: the loop of `apply/reconcile.rs`, one request
//! per step.

use projector::config::ArchiveObjects;

use super::machine::{
    Action, Change, Known, Machine, Must, Object, Parts, Request, State, Verdict, Writer, dominates,
};
use super::search::{Problem, Step};

impl Machine {
    /// Adds every step that can be taken.
    pub(super) fn steps(&self, state: &State, steps: &mut Vec<Step>) {
        for (writer, at) in state.writers.into_iter().enumerate() {
            if at != Writer::Done {
                steps.extend(self.goes_on(state, writer));
                Self::fails(state, writer, steps);
            }
            if state.statements[writer] {
                let mut after = *state;
                after.statements[writer] = false;
                self.commit(&mut after, writer);
                steps.push(right(Action::StatementCommits { writer }, after));
            }
        }
        for slot in 0..state.requests.len() {
            if state.requests[slot].is_some() {
                self.arrives(state, slot, steps);
            }
        }
    }

    /// The next step of a writer; `None` if it waits for an answer.
    fn goes_on(&self, state: &State, writer: usize) -> Option<Step> {
        let mut after = *state;
        let row = state.rows[self.changes[writer].database];
        let action = match state.writers[writer] {
            Writer::Waits => {
                let written = self.commit(&mut after, writer);
                let new = after.rows[self.changes[writer].database];
                match written {
                    // There is no object yet, in most cases: the PUT goes out at once.
                    Some(true) if self.wants_object(new) => {
                        self.decides(&mut after, writer, None, new);
                    }
                    Some(_) => after.writers[writer] = Writer::Asks(Known::Row(new)),
                    None => after.writers[writer] = Writer::Unchanged,
                }
                Action::Commits { writer }
            }
            Writer::Unchanged => {
                after.writers[writer] = Writer::Asks(Known::Versions(row));
                Action::ReadsVersions { writer }
            }
            Writer::Asks(known) => {
                after.writers[writer] = Writer::Compares(known, state.object);
                Action::Head { writer, seen: state.object }
            }
            Writer::Compares(known, seen) => {
                match known {
                    Known::Versions(versions) if self.is_settled(seen, versions) => {
                        after.writers[writer] = Writer::Done;
                    }
                    Known::Row(row) => self.decides(&mut after, writer, seen, row),
                    Known::Nothing | Known::Versions(_) => {
                        after.writers[writer] = Writer::ReadsRow(seen);
                    }
                }
                Action::Compares { writer }
            }
            Writer::ReadsRow(seen) => {
                self.decides(&mut after, writer, seen, row);
                Action::ReadsRow { writer, row }
            }
            Writer::Gets { etag, row } => {
                match state.object {
                    Some(object) if object.parts == etag => {
                        let parts = self.join(row, object.parts);
                        send(&mut after, writer, Must::Match(etag), parts);
                    }
                    _ => after.writers[writer] = Writer::Asks(Known::Nothing),
                }
                Action::Gets { writer }
            }
            Writer::Puts { .. } | Writer::Done => return None,
        };
        Some(self.judged(action, state, after))
    }

    /// Whether nothing is to be done about an object, for a row with these versions.
    fn is_settled(&self, seen: Option<Object>, row: Parts) -> bool {
        matches!(self.verdict(seen, row), Verdict::UpToDate | Verdict::NotYet)
    }

    /// The upsert of a writer's change: whether the row is new or, with `complete`, its part;
    /// `None` if the row has it already.
    fn commit(&self, state: &mut State, writer: usize) -> Option<bool> {
        let Change { database, part, version, .. } = self.changes[writer];
        let row = &mut state.rows[database];
        let part_is_new = self.rules.objects == ArchiveObjects::Complete && row[part] == 0;
        let is_new = *row == Parts::default() || part_is_new;
        (version > row[part]).then(|| {
            row[part] = version;
            is_new
        })
    }

    /// A writer does what the projector decides.
    fn decides(&self, state: &mut State, writer: usize, seen: Option<Object>, row: Parts) {
        // Only with real deletes: there is nothing to delete.
        if !self.rules.tombstones && seen.is_none() && self.is_removed(row) {
            state.writers[writer] = Writer::Done;
            return;
        }
        match self.verdict(seen, row) {
            Verdict::UpToDate | Verdict::NotYet => state.writers[writer] = Writer::Done,
            Verdict::Put(must) => send(state, writer, must, row),
            Verdict::Merge(etag) => state.writers[writer] = Writer::Gets { etag, row },
        }
    }

    /// What can go wrong with a writer.
    fn fails(state: &State, writer: usize, steps: &mut Vec<Step>) {
        if state.faults == 0 {
            return;
        }
        let mut after = State { faults: state.faults - 1, ..*state };
        match state.writers[writer] {
            Writer::Waits => {
                if !state.statements[writer] {
                    after.statements[writer] = true;
                    steps.push(right(Action::IsKilledWhileItsStatementRuns { writer }, after));
                }
            }
            Writer::Puts { must, parts } => {
                give_up(&mut after, writer);
                let mut again = after;
                after.writers[writer] = Writer::Waits;
                steps.push(right(Action::TimesOut { writer, sent_again: false }, after));
                send(&mut again, writer, must, parts);
                steps.push(right(Action::TimesOut { writer, sent_again: true }, again));
            }
            _ => {
                after.writers[writer] = Writer::Waits;
                steps.push(right(Action::IsKilled { writer }, after));
            }
        }
    }

    /// A request arrives, and is answered, or its answer is lost.
    fn arrives(&self, state: &State, slot: usize, steps: &mut Vec<Step>) {
        let request = state.requests[slot].expect("the caller has looked");
        let Request { sender, must, parts } = request;
        let mut after = *state;
        after.requests[slot] = None;
        after.requests.sort_unstable();
        let taken = self.is_taken(must, state.object);
        if taken {
            let object = Object { parts, described: true };
            after.object = (self.rules.tombstones || !self.is_removed(parts)).then_some(object);
        }
        let Some(writer) = sender else {
            steps.push(self.judged(Action::PutArrives { request, taken }, state, after));
            return;
        };
        if state.faults > 0 {
            let mut lost = State { faults: state.faults - 1, ..after };
            lost.writers[writer] = Writer::Waits;
            let action = |sent_again| Action::AnswerIsLost { request, taken, sent_again };
            steps.push(self.judged(action(false), state, lost));
            send(&mut lost, writer, must, parts);
            steps.push(self.judged(action(true), state, lost));
        }
        after.writers[writer] = if taken || self.rules.refusal_is_success {
            Writer::Done
        } else {
            Writer::Asks(Known::Nothing)
        };
        steps.push(self.judged(Action::PutArrives { request, taken }, state, after));
    }

    /// Whether the bucket carries a request out.
    fn is_taken(&self, must: Must, object: Option<Object>) -> bool {
        match must {
            Must::Absent => object.is_none() || !self.rules.if_none_match,
            Must::Match(etag) => {
                object.is_some_and(|object| object.parts == etag) || !self.rules.if_match
            }
        }
    }

    /// Whether the object must hold the change of a writer that is done.
    ///
    /// With `complete` it need not as long as none is wanted. Whoever brings the part that the row
    /// lacked writes it, and is not done before.
    fn owes_an_object(&self, state: &State, writer: usize) -> bool {
        let database = self.changes[writer].database;
        let is_another = |(other, change): (usize, &Change)| {
            change.database == database && state.writers[other] != Writer::Done
        };
        let every = self.rules.objects == ArchiveObjects::Every || self.had_an_object();
        let left_to_another = || self.changes.iter().enumerate().any(is_another);
        let wanted = every || (self.wants_object(state.rows[database]) && !left_to_another());
        self.rules.tombstones && wanted
    }

    /// A step with what is wrong about it.
    fn judged(&self, action: Action, before: &State, state: State) -> Step {
        let went_back = match (before.object, state.object) {
            (Some(before), Some(after)) => !dominates(after.parts, before.parts),
            _ => false,
        };
        let is_missing = |writer: usize| {
            let Change { database, part, version, .. } = self.changes[writer];
            let held = state.object.map_or(0, |object| object.parts[part]);
            let row = state.rows[database];
            row[part] < version || (held < version && self.owes_an_object(&state, writer))
        };
        let is_newly_done = |writer: &usize| {
            state.writers[*writer] == Writer::Done && before.writers[*writer] != Writer::Done
        };
        let early = (0..self.changes.len()).filter(is_newly_done).any(is_missing);
        let problem = if went_back {
            Some(Problem::WentBack)
        } else {
            early.then_some(Problem::AcknowledgedEarly)
        };
        Step { action, state, problem }
    }
}

/// A step about which nothing can be wrong.
fn right(action: Action, state: State) -> Step {
    Step { action, state, problem: None }
}

/// A writer sends a PUT.
fn send(state: &mut State, writer: usize, must: Must, parts: Parts) {
    let request = Request { sender: Some(writer), must, parts };
    let slot = state.requests.iter_mut().find(|slot| slot.is_none());
    *slot.expect("a request per writer and per fault") = Some(request);
    state.requests.sort_unstable();
    state.writers[writer] = Writer::Puts { must, parts };
}

/// A writer no longer waits for its request, which is still under way.
fn give_up(state: &mut State, writer: usize) {
    for request in state.requests.iter_mut().flatten() {
        if request.sender == Some(writer) {
            request.sender = None;
        }
    }
    state.requests.sort_unstable();
}
