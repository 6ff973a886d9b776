//! A replay of the live streams: who reads which shard when, how far, and what is known of it in
//! the end. `stream` runs it, and a repair beside itself; `check` and `doctor` ask its pure parts.

pub(crate) mod background;
pub(crate) mod batch;
pub(crate) mod checkpoint;
pub(crate) mod collect;
pub(crate) mod context;
pub(crate) mod coverage;
pub(crate) mod follow;
pub(crate) mod lineage;
pub(crate) mod outage;
pub(crate) mod page;
pub(crate) mod position;
pub(crate) mod prepare;
pub(crate) mod progress;
pub(crate) mod reader;
pub(crate) mod readers;
pub(crate) mod record;
pub(crate) mod resume;
pub(crate) mod run;
pub(crate) mod shards;
pub(crate) mod source;
pub(crate) mod tally;
pub(crate) mod through;
pub(crate) mod tip;
pub(crate) mod under_way;
