//! How far the streams are read while a repair runs: it follows them itself, or another invocation
//! does, which publishes that in the repair's row.

use projector::database::Database;
use projector::error::{Consequence, Error};

use crate::console::span;
use crate::repair::lease;
use crate::repair::waiting::ReadThrough;
use crate::replay::background::Background;

/// Who follows the streams.
pub(crate) enum Streams<'a> {
    /// The repair itself.
    Own(&'a mut Background),
    /// Another invocation.
    Followed(Followed<'a>),
}

/// What another invocation publishes of the streams.
pub(crate) struct Followed<'a> {
    database: &'a Database,
    repair: i64,
    /// What was read last. It stays true: what is stored stays stored.
    through: ReadThrough,
}

impl<'a> Followed<'a> {
    pub(crate) fn new(database: &'a Database, repair: i64) -> Self {
        let through = ReadThrough { sessions: vec![None], scans: vec![None] };
        Self { database, repair, through }
    }

    async fn read(&mut self) -> anyhow::Result<ReadThrough> {
        let repair = self.repair;
        match lease::read(self.database, repair).await {
            Ok(Some(row)) if row.ended_at.is_none() => {
                if let Some(dead_for) = row.dead_for() {
                    anyhow::bail!(
                        "nobody follows the streams for repair {repair}: its last heartbeat was {} \
                         ago. Let `follow` run beside the slices, and call the slice again",
                        span(dead_for)
                    );
                }
                self.through = ReadThrough {
                    sessions: vec![row.read_through_sessions],
                    scans: vec![row.read_through_scans],
                };
            }
            Ok(_) => return Err(Error::LeaseEnded { repair }.into()),
            // The holds last a little longer.
            Err(error) if error.consequence() != Consequence::Fatal => {}
            Err(error) => return Err(error.into()),
        }
        Ok(self.through.clone())
    }
}

impl Streams<'_> {
    /// Waits until everything is stored that was created before the repair began.
    ///
    /// # Errors
    /// If the replay fails before that.
    pub(crate) async fn reached_cutoff(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Own(streams) => streams.reached_cutoff().await,
            // A slice looks at nothing before its row says so.
            Self::Followed(_) => Ok(()),
        }
    }

    /// Returns only if the replay fails, with the reason. May be dropped and called again.
    pub(crate) async fn failed(&mut self) -> anyhow::Error {
        match self {
            Self::Own(streams) => streams.failed().await,
            Self::Followed(_) => std::future::pending().await,
        }
    }

    /// Up to when everything of each table's streams is stored.
    ///
    /// # Errors
    /// If the repair has ended, or nobody follows the streams for it any more.
    pub(crate) async fn read_through(&mut self) -> anyhow::Result<ReadThrough> {
        match self {
            Self::Own(streams) => Ok(ReadThrough {
                sessions: streams.read_through(true),
                scans: streams.read_through(false),
            }),
            Self::Followed(followed) => followed.read().await,
        }
    }
}
