//! What `backfill repair` is made of: rows are compared with the items of the tables, read one by
//! one, and corrected.

pub(crate) mod reread;

#[cfg(test)]
mod model;
