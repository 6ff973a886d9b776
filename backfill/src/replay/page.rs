//! What goes from the readers to the collector.

use std::sync::Arc;

use time::OffsetDateTime;
use tokio::sync::OwnedSemaphorePermit;

use crate::replay::context::StreamRun;
use crate::replay::position::Position;

/// A shard's state after a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShardStatus {
    /// There is more to read before the cutoff.
    Behind,
    /// Everything from before the cutoff has been read; it may go on.
    AtCutoff,
    /// It was closed and has been read to its end.
    Finished,
    /// Nothing of it can be read any more, which loses nothing.
    TrimmedAway,
}

impl ShardStatus {
    /// Nothing more of it will come.
    pub(crate) fn is_finished(self) -> bool {
        matches!(self, Self::Finished | Self::TrimmedAway)
    }
}

/// Some records of a shard, in order.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) run: Arc<StreamRun>,
    pub(crate) shard: Arc<str>,
    /// Each record's JSON as Lambda delivers it.
    pub(crate) records: Vec<Vec<u8>>,
    /// How far the shard has been read with this page.
    pub(crate) position: Position,
    /// Since when no change of the shard and its ancestors is missing, if that is known.
    pub(crate) complete_since: Option<OffsetDateTime>,
    pub(crate) status: ShardStatus,
    /// The position is to be kept as a checkpoint, beside being known to this run.
    pub(crate) checkpoint: bool,
    /// Given back when the page is part of a batch.
    pub(crate) permit: Option<OwnedSemaphorePermit>,
}

/// What the readers tell the collector.
#[derive(Debug)]
pub(crate) enum Message {
    Page(Page),
    /// A stream that was not there when the run began.
    NewStream(Arc<StreamRun>),
}
