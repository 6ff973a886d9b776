//! What `backfill repair` is made of: rows are compared with the items of the tables, read one by
//! one, and corrected.

pub(crate) mod candidates;
pub(crate) mod conduct;
pub(crate) mod cost;
pub(crate) mod file_lines;
pub(crate) mod function;
pub(crate) mod lease;
pub(crate) mod ledger;
pub(crate) mod lines;
pub(crate) mod look;
pub(crate) mod range_keys;
pub(crate) mod reread;
pub(crate) mod run;
pub(crate) mod source;
pub(crate) mod streams;
pub(crate) mod tally;
pub(crate) mod unheld;
pub(crate) mod upsert;
pub(crate) mod waiting;

#[cfg(test)]
mod model;
