//! Breadth-first search, which ends in a shortest trace for each kind of problem.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;

use super::machine::{Action, Machine, State};

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Problem {
    /// A PUT took a part of the object back.
    WentBack,
    /// A writer is done, and its change is not in its row and in the object.
    AcknowledgedEarly,
    /// All writers are done, and the object is not the join of all rows.
    WrongAtRest,
}

/// A step, its end, and what is wrong with it.
pub(super) struct Step {
    pub(super) action: Action,
    pub(super) state: State,
    pub(super) problem: Option<Problem>,
}

/// What a search, or several, came to.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) states: usize,
    /// States in which all writers are done.
    pub(super) ends: usize,
    /// The shortest way to each kind of problem.
    pub(super) problems: BTreeMap<Problem, Vec<Action>>,
}

impl Found {
    /// Adds what was found in another scenario.
    pub(super) fn add(&mut self, other: Self) {
        self.states += other.states;
        self.ends += other.ends;
        for (problem, trace) in other.problems {
            let shortest = self.problems.entry(problem).or_insert_with(|| trace.clone());
            if trace.len() < shortest.len() {
                *shortest = trace;
            }
        }
    }

    /// For whoever reads the output.
    pub(super) fn describe(&self) -> String {
        let mut text = format!("{} states, {} ends", self.states, self.ends);
        for (problem, trace) in &self.problems {
            let _ = write!(text, "\n  {problem:?}, at the shortest by:");
            for action in trace {
                let _ = write!(text, "\n    {action:?}");
            }
        }
        text
    }
}

/// A state, and the way to it: the index of the state before, and the action.
type Reached = (State, Option<(usize, Action)>);

/// Searches all states.
pub(super) fn search(machine: &Machine) -> Found {
    let mut found = Found::default();
    let initial = machine.initial();
    let mut known = HashSet::from([initial]);
    let mut states: Vec<Reached> = vec![(initial, None)];
    let mut steps = Vec::new();
    let mut next = 0;
    while let Some((state, _)) = states.get(next).copied() {
        if state.is_at_rest() {
            found.ends += 1;
            if !machine.is_right_at_rest(&state) {
                found.problems.entry(Problem::WrongAtRest).or_insert_with(|| trace(&states, next));
            }
        }
        machine.steps(&state, &mut steps);
        for Step { action, state, problem } in steps.drain(..) {
            if let Some(problem) = problem {
                found.problems.entry(problem).or_insert_with(|| {
                    let mut trace = trace(&states, next);
                    trace.push(action);
                    trace
                });
            }
            if known.insert(state) {
                states.push((state, Some((next, action))));
            }
        }
        next += 1;
    }
    found.states = states.len();
    found
}

/// The actions that lead to a state.
fn trace(states: &[Reached], mut at: usize) -> Vec<Action> {
    let mut actions = Vec::new();
    while let Some((before, action)) = states[at].1 {
        actions.push(action);
        at = before;
    }
    actions.reverse();
    actions
}
