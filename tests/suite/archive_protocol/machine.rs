//! What there is: rows, one object, writers, and requests that are under way. The questions that
//! the protocol asks are answered by the projector.

use std::cell::RefCell;
use std::collections::HashMap;

use projector::apply::{Decision, decide, wants_object};
use projector::archive::{Condition, Described, Seen};
use projector::config::ArchiveObjects;
use projector::measurement::{Measurement, Versions};
use projector::object::{self, FORMAT};
use projector::part::{Part, PerPart};

/// The versions of both parts; 0 if a part was never seen. What a part holds follows from its
/// version, so this is a whole row or a whole object.
pub(super) type Parts = [u8; 2];

/// At most this many writers.
pub(super) const WRITERS: usize = 4;
/// At most this many requests are under way: one per writer, and one per fault.
pub(super) const REQUESTS: usize = 7;

/// A change, and the database that it is delivered to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    pub(super) database: usize,
    pub(super) part: usize,
    pub(super) version: u8,
    pub(super) removed: bool,
}

/// What the bucket holds first.
#[derive(Clone, Copy, Debug)]
pub(super) enum Start {
    Empty,
    Described(Parts),
    /// As a bucket that was restored by download and upload.
    WithoutMetadata(Parts),
}

/// The rules of the protocol, each of which can be taken away.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "one per rule")]
pub(super) struct Rules {
    /// A PUT over an object names the ETag that was seen.
    pub(super) if_match: bool,
    /// A PUT where no object was seen must find none.
    pub(super) if_none_match: bool,
    /// A PUT that is refused counts as done: a mutant.
    pub(super) refusal_is_success: bool,
    /// A removed session's object becomes a tombstone; otherwise it is deleted.
    pub(super) tombstones: bool,
    /// An object that is newer in one part is merged with the row; otherwise it is written over.
    pub(super) merges: bool,
    /// Which rows get an object.
    pub(super) objects: ArchiveObjects,
    /// Of rows that get one only once they have had all their parts: a removed part counts.
    pub(super) removed_counts: bool,
}

impl Rules {
    /// Those of the projector.
    pub(super) const OURS: Self = Self {
        if_match: true,
        if_none_match: true,
        refusal_is_success: false,
        tombstones: true,
        merges: true,
        objects: ArchiveObjects::Every,
        removed_counts: true,
    };

    /// The same, with an object once a row has had all its parts.
    pub(super) const OURS_COMPLETE: Self = Self { objects: ArchiveObjects::Complete, ..Self::OURS };
}

/// The object. Its ETag is one of its body, and so of its versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Object {
    pub(super) parts: Parts,
    /// Whether its metadata says what it holds.
    pub(super) described: bool,
}

/// What a writer knows before it asks for the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Known {
    Nothing,
    /// The row as it was written.
    Row(Parts),
    /// The versions of a row that was not written.
    Versions(Parts),
}

/// What a request must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Must {
    Absent,
    Match(Parts),
}

/// Where a writer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Writer {
    /// Its change is still to be delivered, or to be delivered again.
    Waits,
    /// Its row was not written: it reads the versions that the row has.
    Unchanged,
    Asks(Known),
    Compares(Known, Option<Object>),
    ReadsRow(Option<Object>),
    /// It reads the object with this ETag, to merge it with this row.
    Gets {
        etag: Parts,
        row: Parts,
    },
    /// It has sent a PUT, and waits for the answer.
    Puts {
        must: Must,
        parts: Parts,
    },
    Done,
}

/// A PUT that is under way, or with real deletes a DELETE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Request {
    /// Who waits for its answer; nobody, if whoever sent it has given up.
    pub(super) sender: Option<usize>,
    pub(super) must: Must,
    pub(super) parts: Parts,
}

/// Everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct State {
    pub(super) rows: [Parts; 2],
    pub(super) object: Option<Object>,
    pub(super) writers: [Writer; WRITERS],
    /// The statement of a writer that was killed still runs.
    pub(super) statements: [bool; WRITERS],
    /// Sorted, so that the order of sending makes no difference.
    pub(super) requests: [Option<Request>; REQUESTS],
    /// How many faults can still happen.
    pub(super) faults: u8,
}

/// What happens.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "its members are printed in a trace")]
pub(super) enum Action {
    Commits { writer: usize },
    ReadsVersions { writer: usize },
    Head { writer: usize, seen: Option<Object> },
    Compares { writer: usize },
    ReadsRow { writer: usize, row: Parts },
    Gets { writer: usize },
    PutArrives { request: Request, taken: bool },
    AnswerIsLost { request: Request, taken: bool, sent_again: bool },
    TimesOut { writer: usize, sent_again: bool },
    IsKilled { writer: usize },
    IsKilledWhileItsStatementRuns { writer: usize },
    StatementCommits { writer: usize },
}

/// What the decision asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    UpToDate,
    NotYet,
    Put(Must),
    Merge(Parts),
}

impl State {
    /// Whether every change is acknowledged. Requests may still be under way.
    pub(super) fn is_at_rest(&self) -> bool {
        self.writers.iter().all(|writer| *writer == Writer::Done)
    }
}

/// A scenario under rules.
pub(super) struct Machine {
    pub(super) rules: Rules,
    pub(super) changes: Vec<Change>,
    start: Start,
    faults: u8,
    /// The projector's answers are of texts; each question is asked once.
    verdicts: RefCell<HashMap<(Option<Object>, Parts), Verdict>>,
    joins: RefCell<HashMap<(Parts, Parts), Parts>>,
}

impl Machine {
    pub(super) fn new(rules: Rules, changes: &[Change], start: Start, faults: u8) -> Self {
        assert!(changes.len() <= WRITERS && changes.len() + usize::from(faults) <= REQUESTS);
        let (verdicts, joins) = (RefCell::default(), RefCell::default());
        Self { rules, changes: changes.to_vec(), start, faults, verdicts, joins }
    }

    pub(super) fn initial(&self) -> State {
        let mut writers = [Writer::Done; WRITERS];
        writers[..self.changes.len()].fill(Writer::Waits);
        let object = match self.start {
            Start::Empty => None,
            Start::Described(parts) => Some(Object { parts, described: true }),
            Start::WithoutMetadata(parts) => Some(Object { parts, described: false }),
        };
        State {
            rows: [[0; 2]; 2],
            object,
            writers,
            statements: [false; WRITERS],
            requests: [None; REQUESTS],
            faults: self.faults,
        }
    }

    /// Whether the object is what it must be once all writers are done: the newest of everything
    /// that any row holds and that the bucket held first.
    ///
    /// With `complete` a row that has not had all its parts may be newer than an object that the
    /// other database made meanwhile, until its next part comes.
    pub(super) fn is_right_at_rest(&self, state: &State) -> bool {
        let wanting: Vec<Parts> =
            state.rows.into_iter().filter(|row| self.wants_object(*row)).collect();
        let follows = self.rules.objects == ArchiveObjects::Every || self.had_an_object();
        if !follows && wanting.len() < state.rows.len() {
            let least = wanting.iter().fold([0; 2], |all, row| self.join(all, *row));
            let most = self.join(state.rows[0], state.rows[1]);
            return match state.object {
                None => wanting.is_empty(),
                Some(Object { parts, .. }) => dominates(parts, least) && dominates(most, parts),
            };
        }
        let newest = self.join(state.rows[0], state.rows[1]);
        let newest = match self.start {
            Start::Empty => newest,
            Start::Described(parts) | Start::WithoutMetadata(parts) => self.join(newest, parts),
        };
        let expected = (self.rules.tombstones || !self.is_removed(newest)).then_some(newest);
        state.object.map(|object| object.parts) == expected
    }

    /// Whether the bucket held an object from the beginning, which every writer finds.
    pub(super) fn had_an_object(&self) -> bool {
        !matches!(self.start, Start::Empty)
    }

    /// Whether an object that is not there is wanted for this row.
    pub(super) fn wants_object(&self, row: Parts) -> bool {
        wants_object(&versions(row), self.rules.objects)
    }

    /// Whether this version of a part is a removal.
    fn is_removal(&self, part: usize, version: u8) -> bool {
        let is_this =
            |change: &Change| change.part == part && change.version == version && change.removed;
        self.changes.iter().any(is_this)
    }

    /// Whether no part of a row is there.
    pub(super) fn is_removed(&self, parts: Parts) -> bool {
        (0..2).all(|part| parts[part] == 0 || self.is_removal(part, parts[part]))
    }

    /// What the projector decides about this object and a row with these versions.
    pub(super) fn verdict(&self, seen: Option<Object>, row: Parts) -> Verdict {
        let mut known = self.verdicts.borrow_mut();
        *known.entry((seen, row)).or_insert_with(|| {
            let etag = seen.map(|object| object.parts);
            let must = || etag.map_or(Must::Absent, Must::Match);
            let is_removed = |part: usize| self.is_removal(part, row[part]);
            let lacks_one = self.rules.objects == ArchiveObjects::Complete
                && !self.rules.removed_counts
                && (0..2).any(is_removed);
            if seen.is_none() && lacks_one {
                return Verdict::NotYet;
            }
            match decide(seen.map(head).as_ref(), &versions(row), self.rules.objects) {
                Decision::UpToDate => Verdict::UpToDate,
                Decision::NotYet => Verdict::NotYet,
                Decision::Put(Condition::Absent) => Verdict::Put(Must::Absent),
                Decision::Put(Condition::Matches(_)) => Verdict::Put(must()),
                Decision::Merge(_) | Decision::ReadBody(_) if !self.rules.merges => {
                    Verdict::Put(must())
                }
                Decision::Merge(_) | Decision::ReadBody(_) => {
                    Verdict::Merge(etag.expect("it was seen"))
                }
                other => panic!("{other:?} is decided of an object of today's form"),
            }
        })
    }

    /// The newer of each part.
    pub(super) fn join(&self, row: Parts, other: Parts) -> Parts {
        let mut known = self.joins.borrow_mut();
        *known.entry((row, other)).or_insert_with(|| {
            let joined = object::join(measurement(row), measurement(other)).versions;
            let number = |version: &Option<String>| {
                let is_this = |number: &u8| text(*number) == *version;
                [row, other].concat().into_iter().find(is_this).expect("of one of the two")
            };
            [number(&joined[Part::Session]), number(&joined[Part::Left])]
        })
    }
}

fn text(version: u8) -> Option<String> {
    (version > 0).then(|| format!("l/{version:040}"))
}

/// The third part came before everything else, and stays: a row is whole once it has both others.
fn versions(parts: Parts) -> Versions {
    [text(parts[0]), text(parts[1]), text(1)].into()
}

fn measurement(parts: Parts) -> Measurement {
    Measurement {
        session_id: "s1".to_owned(),
        documents: PerPart::default(),
        versions: versions(parts),
        changed_at: PerPart::default(),
    }
}

/// What a HEAD sees.
fn head(object: Object) -> Seen {
    let Object { parts, described } = object;
    let described = described.then(|| Described { versions: versions(parts), format: FORMAT });
    Seen { etag: Some(format!("{parts:?}")), described }
}

/// Whether `a` holds at least what `b` holds, by the projector's order.
pub(super) fn dominates(a: Parts, b: Parts) -> bool {
    object::dominates(&versions(a), &versions(b))
}
