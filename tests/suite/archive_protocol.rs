//! The archive protocol, searched exhaustively: several writers of one object, their rows, and
//! every order in which requests, answers and crashes can come. The decision, the order of versions
//! and the merge of two rows are the projector's own functions; the loop around them is modelled
//! step by step (`steps.rs`).
//!
//! A writer is one delivery of one change to one database. Everything is one nondeterministic
//! machine:
//! - a writer commits, asks for the object, reads its row, decides, and sends a PUT; between any
//!   two of these steps any other writer takes any of its own;
//! - a PUT arrives whenever it likes, also after whoever sent it has given up; its answer is lost
//!   after it was carried out; the SDK sends it again while the first one is still under way;
//! - a writer is killed at any step and its change is delivered again; a statement of a killed one
//!   commits later, and nobody will write the object for it.
//!
//! No PUT may take any part of the object back, no change may be acknowledged that is not in its
//! row and in the object, and when all writers are done, the object is the join of all rows. With
//! `ARCHIVE_OBJECTS=complete` the last two hold of rows that have had all their parts, and of
//! objects that are there. Each rule of the protocol that is taken away must break one of these.
//!
//! Every run searches the smaller scenarios; `ARCHIVE_SEARCH=deep` searches all of them.

mod machine;
mod search;
mod steps;

use machine::{Change, Machine, Rules, Start};
use search::{Found, Problem, search};

/// Both parts of a session that are modelled: a third one adds nothing but states.
const SESSION: usize = 0;
const LEFT: usize = 1;

fn put(database: usize, part: usize, version: u8) -> Change {
    Change { database, part, version, removed: false }
}

fn removal(database: usize, part: usize, version: u8) -> Change {
    Change { removed: true, ..put(database, part, version) }
}

/// A name, what is delivered, what the bucket holds first, and how many faults happen at most: lost
/// answers, requests that time out, crashes.
type Scenario = (&'static str, Vec<Change>, Start, u8);

/// Scenarios of every run.
fn quick() -> Vec<Scenario> {
    vec![
        ("two changes of one part", vec![put(0, SESSION, 1), put(0, SESSION, 2)], Start::Empty, 2),
        ("two parts of a new session", vec![put(0, SESSION, 1), put(0, LEFT, 1)], Start::Empty, 2),
        (
            "a put, a removal and a put",
            vec![put(0, SESSION, 1), removal(0, SESSION, 2), put(0, SESSION, 3)],
            Start::Empty,
            1,
        ),
        (
            "two parts, of which one changes again",
            vec![put(0, SESSION, 1), put(0, LEFT, 1), put(0, LEFT, 2)],
            Start::Empty,
            1,
        ),
        (
            "a session whose parts are removed",
            vec![put(0, SESSION, 1), removal(0, SESSION, 2), removal(0, LEFT, 1)],
            Start::Empty,
            1,
        ),
        (
            "two databases, one bucket, each with a part of its own",
            vec![put(0, SESSION, 1), put(1, LEFT, 1)],
            Start::Empty,
            2,
        ),
        (
            "two databases, one bucket, the same change and another one",
            vec![put(0, SESSION, 1), put(1, SESSION, 1), put(1, LEFT, 2)],
            Start::Empty,
            1,
        ),
        (
            "two databases, one removes what the other has not seen",
            vec![put(0, LEFT, 1), put(1, SESSION, 1), removal(1, SESSION, 2)],
            Start::Empty,
            1,
        ),
        (
            "an object that lost its metadata",
            vec![put(0, SESSION, 2), put(0, LEFT, 1)],
            Start::WithoutMetadata([1, 2]),
            2,
        ),
        (
            "an object of another database, newer in one part",
            vec![put(0, SESSION, 2), put(0, LEFT, 1)],
            Start::Described([1, 2]),
            2,
        ),
    ]
}

/// More writers and more faults.
fn deep() -> Vec<Scenario> {
    let mut all: Vec<Scenario> = quick();
    for (_, _, _, faults) in &mut all {
        *faults += 1;
    }
    all.push((
        "two databases, one bucket, both get both parts",
        vec![put(0, SESSION, 1), put(0, LEFT, 1), put(1, SESSION, 1), put(1, LEFT, 1)],
        Start::Empty,
        1,
    ));
    all.push((
        "two databases, one bucket, a removal in both",
        vec![
            put(0, SESSION, 1),
            removal(0, SESSION, 2),
            put(1, SESSION, 1),
            removal(1, SESSION, 2),
        ],
        Start::Empty,
        1,
    ));
    all
}

fn is_deep() -> bool {
    std::env::var("ARCHIVE_SEARCH").is_ok_and(|depth| depth == "deep")
}

fn scenarios() -> Vec<Scenario> {
    if is_deep() { deep() } else { quick() }
}

fn run(rules: Rules, (name, changes, start, faults): &Scenario) -> Found {
    let found = search(&Machine::new(rules, changes, *start, *faults));
    println!("{name}: {}", found.describe());
    found
}

fn holds(rules: Rules) {
    let mut wrong = Vec::new();
    let mut states = 0;
    for scenario in scenarios() {
        let found = run(rules, &scenario);
        // A machine that stands still finds nothing wrong.
        assert!(found.states > 100 && found.ends > 0, "{}: {}", scenario.0, found.describe());
        states += found.states;
        if !found.problems.is_empty() {
            wrong.push(format!("{}: {}", scenario.0, found.describe()));
        }
    }
    println!("{states} states");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_order_of_requests_and_crashes_ends_in_the_newest_object() {
    holds(Rules::OURS);
}

#[test]
fn an_object_of_whole_measurements_alone_follows_its_row_in_every_order() {
    holds(Rules::OURS_COMPLETE);
}

/// Sees that some scenario finds each of these problems once a rule is gone.
fn fails(rules: Rules, problems: &[Problem]) {
    let mut found = Found::default();
    for scenario in quick() {
        found.add(run(rules, &scenario));
    }
    for problem in problems {
        assert!(found.problems.contains_key(problem), "{problem:?} is not found");
    }
}

#[test]
fn without_if_match_an_object_goes_back() {
    fails(Rules { if_match: false, ..Rules::OURS }, &[Problem::WentBack, Problem::WrongAtRest]);
}

#[test]
fn without_if_none_match_an_object_goes_back() {
    fails(
        Rules { if_none_match: false, ..Rules::OURS },
        &[Problem::WentBack, Problem::WrongAtRest],
    );
}

#[test]
fn a_refusal_that_passes_for_success_acknowledges_what_is_not_there() {
    fails(
        Rules { refusal_is_success: true, ..Rules::OURS },
        &[Problem::AcknowledgedEarly, Problem::WrongAtRest],
    );
}

#[test]
fn an_object_that_is_really_deleted_comes_back() {
    fails(Rules { tombstones: false, ..Rules::OURS }, &[Problem::WrongAtRest]);
}

/// Not one of the rules that people name, and yet one: the row of another database is not ours to
/// write over.
#[test]
fn without_the_merge_the_newer_part_of_another_database_is_lost() {
    fails(Rules { merges: false, ..Rules::OURS }, &[Problem::WentBack]);
}

#[test]
fn the_rules_are_needed_with_objects_of_whole_measurements_alone_too() {
    let complete = Rules::OURS_COMPLETE;
    fails(Rules { if_match: false, ..complete }, &[Problem::WentBack]);
    fails(Rules { if_none_match: false, ..complete }, &[Problem::WentBack]);
    fails(Rules { refusal_is_success: true, ..complete }, &[Problem::AcknowledgedEarly]);
    fails(Rules { merges: false, ..complete }, &[Problem::WentBack]);
}

/// A PUT from before the removal may still be under way, and only an object keeps it out.
#[test]
fn a_row_whose_part_was_removed_before_its_object_was_written_gets_one() {
    fails(Rules { removed_counts: false, ..Rules::OURS_COMPLETE }, &[Problem::WrongAtRest]);
}
