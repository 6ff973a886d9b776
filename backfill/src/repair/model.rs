//! Every order of events of a repair, searched exhaustively over the decision functions of
//! `reread`, of the object (`projector::apply::decide`) and of versions (`projector::version`). For
//! tests alone.
//!
//! One part of one session. A history is what the item holds after each write, the state before the
//! stream first: 0 is absent, 1, 2, 3 are different images. Two writes in a row never hold the
//! same, since a stream has no record of such; a, b, a and a, absent, a occur. Everything is one
//! nondeterministic machine, searched breadth first, so that a trace is a shortest one:
//! - a write is committed; the stream delivers it, or it fails and is parked; the invocation that
//!   failed may still commit later; any record that was delivered comes again; the stream loses
//!   records (`one` and `two` say how often);
//! - an earlier snapshot of the row is restored, and a mapping begins at any position after it;
//! - a repair starts, and is killed at any step and run again; it has its keys from a Scan, from
//!   an export or from a list; it loses the lock, and another repair runs before it has it again;
//! - a repair by slices: a slice that was killed may still act, and is begun again once it cannot;
//! - parked records are redriven, one read for several of them; a peer is merged;
//! - an object writer runs at once after each upsert, or late, step by step, or is lost.
//!
//! At every step, what a reader of the row sees is a run through the history that never turns back,
//! and the object's version never decreases. At rest, the row holds the item, and the object is the
//! row.
//!
//! Not modelled: several parts of one row, malformed items, `TTL_REMOVALS=keep`, a record that a
//! lane still holds when it is trimmed and that it commits later than one timeout after that, a
//! merge that loses the lock, and a writer of objects whose database is never repaired. The clock
//! stands still, which is the worst case: versions must grow without it.

mod database;
mod first_look;
mod late;
mod object;
mod one;
mod rules;
mod search;
mod steps;
mod suite;
mod two;
