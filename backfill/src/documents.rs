//! JSON documents with change records, from wherever they lie: a file of `backfill file`, or an
//! object of the bucket of failures.

pub(crate) mod document;
pub(crate) mod dump;
pub(crate) mod outline;
pub(crate) mod scan;
pub(crate) mod values;
