//! The objects of the rows that a repair has written or has found ahead of theirs.
//!
//! A repair leaves objects for its end, where each is written once. The key of such an object is
//! kept after its row is committed. If the run is killed between the two, nobody knows the key; the
//! same repair again, which has to follow anyway, finds the object behind its row, as it would find
//! one whose PUT was never sent.

use futures_util::stream::{self, StreamExt as _};
use projector::apply::{Known, reconcile};
use projector::archive::Archive;
use projector::deadline::Deadline;
use projector::error;
use projector::pending_objects;

use super::Repair;
use crate::retry::{pause_after, retry_transient};

/// How often an object is tried. One that fails is named, and holds up no other.
const TRIES: u32 = 3;
/// If more objects than this cannot be written, S3 is away.
const FAILED_AT_MOST: u64 = 10_000;

impl Repair<'_> {
    /// The objects of these rows hold less than the rows. They are left for the end of the run,
    /// where each is written once, or are written now.
    pub(super) async fn on_objects_behind(
        &mut self,
        sessions: impl IntoIterator<Item = String>,
    ) -> anyhow::Result<()> {
        let Some(archive) = self.looker.archive else { return Ok(()) };
        if !self.projector.defers_objects {
            return self.write_objects(archive, sessions).await;
        }
        let sessions: Vec<String> = sessions.into_iter().collect();
        let keys: Vec<&str> = sessions.iter().map(String::as_str).collect();
        retry_transient("keep keys in pending_objects", async || {
            pending_objects::keep_committed(&self.projector.database, &keys).await
        })
        .await
    }

    /// Writes the objects of rows that hold more.
    async fn write_objects(
        &mut self,
        archive: &Archive,
        sessions: impl IntoIterator<Item = String>,
    ) -> anyhow::Result<()> {
        let database = &self.projector.database;
        let write = |session_id: String| async move {
            let mut tries = 0;
            loop {
                tries += 1;
                let writing =
                    reconcile(database, archive, &session_id, Known::default(), Deadline::NONE);
                match Box::pin(writing).await {
                    Ok(_) => return None,
                    Err(error) if tries == TRIES => return Some((session_id, error)),
                    Err(_) => tokio::time::sleep(pause_after(tries)).await,
                }
            }
        };
        let mut writes = stream::iter(sessions).map(write).buffer_unordered(archive.concurrency());
        while let Some(failed) = writes.next().await {
            match failed {
                None => self.tally.objects += 1,
                Some((session_id, error)) => {
                    self.tally.failed_objects.add(&session_id, &error::chain(&error));
                    if let Some(lines) = &mut self.lines {
                        lines.leave(&session_id);
                    }
                    anyhow::ensure!(
                        self.tally.failed_objects.count <= FAILED_AT_MOST,
                        "more than {FAILED_AT_MOST} objects could not be written, the \
                            lines above say why. Their rows are written: once S3 takes objects \
                            again, run `backfill objects`, and this command again"
                    );
                }
            }
        }
        Ok(())
    }
}
