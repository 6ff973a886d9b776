//! Breadth-first search, which ends in a shortest trace for each kind of problem.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Debug;
use std::hash::Hash;

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Problem {
    /// A reader of the row was led back. At rest it may be right again.
    RowWentBack,
    RowWrongAtRest,
    ObjectWrongAtRest,
    ObjectWentBack,
}

/// A step, its end, and what is wrong with it.
pub(super) struct Step<S, A> {
    pub(super) action: A,
    pub(super) state: S,
    pub(super) problem: Option<Problem>,
}

/// What a state is.
pub(super) enum At {
    Work,
    Rest(Option<Problem>),
}

/// A machine that is searched.
pub(super) trait Machine {
    type State: Copy + Eq + Hash;
    type Action: Copy + Debug;
    fn initial(&self) -> Self::State;
    /// Adds every step that can be taken.
    fn steps(&self, state: &Self::State, steps: &mut Vec<Step<Self::State, Self::Action>>);
    fn at(&self, state: &Self::State) -> At;
}

/// What a search, or several, came to.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) states: usize,
    /// States at rest.
    pub(super) ends: usize,
    /// The shortest way to each kind of problem, and how many histories have it.
    pub(super) problems: BTreeMap<Problem, (usize, Vec<String>)>,
}

impl Found {
    /// Adds what was found in another history.
    pub(super) fn add(&mut self, other: Self) {
        self.states += other.states;
        self.ends += other.ends;
        for (problem, (histories, trace)) in other.problems {
            let (count, shortest) = self.problems.entry(problem).or_default();
            *count += histories;
            if shortest.is_empty() || trace.len() < shortest.len() {
                *shortest = trace;
            }
        }
    }
}

/// Searches all states, or those until the first wrong one at rest.
pub(super) fn search<M: Machine>(machine: &M) -> Found {
    let mut found = Found::default();
    let initial = machine.initial();
    let mut known = HashSet::from([initial]);
    let mut states: Vec<Reached<M::State, M::Action>> = vec![(initial, None)];
    let mut steps = Vec::new();
    let mut next = 0;
    while let Some((state, _)) = states.get(next).copied() {
        if let At::Rest(problem) = machine.at(&state) {
            found.ends += 1;
            if let Some(problem) = problem {
                found.problems.insert(problem, (1, trace(&states, next)));
                break;
            }
        }
        machine.steps(&state, &mut steps);
        for Step { action, state, problem } in steps.drain(..) {
            if let Some(problem) = problem {
                found.problems.entry(problem).or_insert_with(|| {
                    let mut trace = trace(&states, next);
                    trace.push(format!("{action:?}"));
                    (1, trace)
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

/// A state, and the way to it: the index of the state before, and the action.
type Reached<S, A> = (S, Option<(usize, A)>);

/// The actions that lead to a state.
fn trace<S, A: Copy + Debug>(states: &[Reached<S, A>], mut at: usize) -> Vec<String> {
    let mut actions = Vec::new();
    while let Some((before, action)) = states[at].1 {
        actions.push(format!("{action:?}"));
        at = before;
    }
    actions.reverse();
    actions
}
