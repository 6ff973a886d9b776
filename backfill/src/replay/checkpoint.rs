//! How far each shard has come, kept in the target database, beside the lock that lets one run at a
//! time at it.
//!
//! A checkpoint is written after the records up to it are in both stores, never before. It is
//! written over the connection that holds the lock: a run that has lost the lock with its
//! connection notices before it writes, and takes the lock anew or stops.

use std::collections::HashMap;

use anyhow::Context as _;
use projector::bind;
use projector::database::Database;
use projector::error::{Consequence, Error};
use time::OffsetDateTime;

use crate::advisory_lock::{self, Held};
use crate::console;
use crate::replay::position::Position;
use crate::retry::{MAX_TRIES, pause_after};

/// Where a run resumes a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub(crate) position: Position,
    /// Nothing more of it can be read: its end was reached, or the rest is trimmed.
    pub(crate) finished: bool,
    /// The bucket and prefix that the records are in as well.
    pub(crate) archive: Option<String>,
    /// No change made after this time is missing: the run that wrote the checkpoint could still
    /// read them all. (Column `snapshot_time`.)
    pub(crate) complete_since: Option<OffsetDateTime>,
    pub(crate) updated_at: OffsetDateTime,
}

/// How far a shard has come with the batch just stored.
#[derive(Clone, Debug)]
pub(crate) struct CheckpointUpdate {
    pub(crate) stream_arn: String,
    pub(crate) shard_id: String,
    pub(crate) position: Position,
    pub(crate) finished: bool,
    pub(crate) complete_since: Option<OffsetDateTime>,
}

/// The checkpoints of one database, with the lock held.
pub(crate) struct Checkpoints {
    lock: Held,
    archive: Option<String>,
}

const LOAD: &str =
    "SELECT stream_arn, shard_id, sequence_number, last_created, read_through, finished, archive,
    snapshot_time, updated_at
FROM backfill_checkpoints WHERE stream_arn = $1";

const LOAD_OTHERS: &str =
    "SELECT stream_arn, shard_id, sequence_number, last_created, read_through, finished, archive,
    snapshot_time, updated_at
FROM backfill_checkpoints WHERE stream_arn <> ALL ($1)";

/// Sorted, so that two statements never wait for each other.
const SAVE: &str = "INSERT INTO backfill_checkpoints
    (stream_arn, shard_id, sequence_number, last_created, read_through, finished, archive,
    snapshot_time)
SELECT stream_arn, shard_id, sequence_number, last_created, read_through, finished, $8, snapshot_time
FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[], $5::timestamptz[], $6::boolean[],
        $7::timestamptz[])
    AS given (stream_arn, shard_id, sequence_number, last_created, read_through, finished, snapshot_time)
ORDER BY stream_arn, shard_id
ON CONFLICT (stream_arn, shard_id) DO UPDATE SET
    sequence_number = excluded.sequence_number,
    last_created = excluded.last_created,
    read_through = excluded.read_through,
    finished = excluded.finished,
    archive = excluded.archive,
    snapshot_time = excluded.snapshot_time,
    updated_at = now()";

const EMPTY: &str =
    "SELECT EXISTS (SELECT FROM backfill_checkpoints WHERE sequence_number IS NOT NULL)
    AND NOT EXISTS (SELECT FROM measurements)";

const FORGET_ALL: &str = "DELETE FROM backfill_checkpoints WHERE stream_arn = $1";

const FORGET: &str =
    "DELETE FROM backfill_checkpoints WHERE stream_arn = $1 AND shard_id = ANY($2)";

impl Checkpoints {
    /// Connects and takes the lock. `archive` is where the objects of this run go.
    ///
    /// # Errors
    /// Where another run holds the lock: it is named, with the way to end it.
    pub(crate) async fn open(database: &Database, archive: Option<String>) -> anyhow::Result<Self> {
        Ok(Self { lock: Held::take(advisory_lock::STREAM, database).await?, archive })
    }

    /// The database's clock.
    ///
    /// # Errors
    /// If the connection is lost.
    pub(crate) async fn now(&mut self) -> Result<OffsetDateTime, Error> {
        let (now,) = self.lock.connection().fetch_one("SELECT clock_timestamp()", bind![]).await?;
        Ok(now)
    }

    /// As [`Held::keep`].
    ///
    /// # Errors
    /// If another run has taken the lock meanwhile.
    pub(crate) async fn keep_lock(&mut self, database: &Database) -> anyhow::Result<()> {
        self.lock.keep(database).await
    }

    pub(crate) fn archive(&self) -> Option<&str> {
        self.archive.as_deref()
    }

    /// The checkpoints of a stream, by shard.
    pub(crate) async fn load(
        &mut self,
        stream_arn: &str,
    ) -> anyhow::Result<HashMap<String, Checkpoint>> {
        let loading = self.lock.connection().fetch(LOAD, bind![stream_arn]);
        let rows = loading.await.context("cannot read the checkpoints")?;
        let of_shard = |(_, shard, checkpoint)| (shard, checkpoint);
        Ok(rows.into_iter().map(checkpoint).map(of_shard).collect())
    }

    /// The checkpoints of all other streams: their ARN, shard and checkpoint.
    pub(crate) async fn load_others(
        &mut self,
        stream_arns: &[&str],
    ) -> anyhow::Result<Vec<(String, String, Checkpoint)>> {
        let loading = self.lock.connection().fetch(LOAD_OTHERS, bind![stream_arns]);
        let rows = loading.await.context("cannot read the checkpoints of other streams")?;
        Ok(rows.into_iter().map(checkpoint).collect())
    }

    /// Whether there is a checkpoint of any stream, and not one row in `measurements`: somebody
    /// emptied the table.
    pub(crate) async fn stand_beside_an_empty_table(&mut self) -> anyhow::Result<bool> {
        let asking = self.lock.connection().fetch_one(EMPTY, bind![]);
        let (empty,) = asking.await.context("cannot see whether measurements has rows")?;
        Ok(empty)
    }

    /// Deletes all checkpoints of a stream.
    pub(crate) async fn forget_all(&mut self, stream_arn: &str) -> anyhow::Result<()> {
        let deleting = self.lock.connection().fetch::<()>(FORGET_ALL, bind![stream_arn]);
        deleting.await.context("cannot delete the checkpoints").map(drop)
    }

    /// Deletes the checkpoints of these shards.
    pub(crate) async fn forget(&mut self, stream_arn: &str, shards: &[&str]) -> anyhow::Result<()> {
        if shards.is_empty() {
            return Ok(());
        }
        let deleting = self.lock.connection().fetch::<()>(FORGET, bind![stream_arn, shards]);
        deleting.await.context("cannot delete checkpoints that are of no use any more").map(drop)
    }

    /// Writes how far the shards have come, one update per shard. A database that is away is waited
    /// for, as long as for a batch.
    ///
    /// # Errors
    /// Where it stays away, or another run has taken the lock meanwhile.
    pub(crate) async fn save(
        &mut self,
        database: &Database,
        updates: &[CheckpointUpdate],
    ) -> anyhow::Result<()> {
        if updates.is_empty() {
            return Ok(());
        }
        for tries in 1..=MAX_TRIES {
            let Err(error) = self.save_once(updates).await else { return Ok(()) };
            if error.consequence() == Consequence::Fatal || tries == MAX_TRIES {
                return Err(error)
                    .context("cannot store a checkpoint; what it stands for is stored");
            }
            tracing::warn!(
                error = projector::error::chain(&error),
                "no checkpoint stored, will be tried again"
            );
            let pause = pause_after(tries);
            console::line(&format!(
                "a checkpoint could not be stored (see the log above); try {} of {MAX_TRIES} in \
                    {} s",
                tries + 1,
                pause.as_secs()
            ));
            tokio::time::sleep(pause).await;
            // That the database is away still is tried again; that another run has the lock is not.
            if let Ok(locked) = self.lock.retake(database).await {
                locked.map_err(anyhow::Error::msg)?;
            }
        }
        unreachable!("the last try returns")
    }

    async fn save_once(&mut self, updates: &[CheckpointUpdate]) -> Result<(), Error> {
        let column = |of: fn(&CheckpointUpdate) -> &str| updates.iter().map(of).collect::<Vec<_>>();
        let positions = || updates.iter().map(|update| &update.position);
        let last: Vec<_> = positions().map(|at| at.sequence_number.as_deref()).collect();
        let created: Vec<_> = positions().map(|at| at.last_created).collect();
        let through: Vec<_> = positions().map(|at| at.read_through).collect();
        let complete_since: Vec<_> = updates.iter().map(|update| update.complete_since).collect();
        let finished: Vec<_> = updates.iter().map(|update| update.finished).collect();
        let arguments = bind![
            column(|update| &update.stream_arn),
            column(|update| &update.shard_id),
            last,
            created,
            through,
            finished,
            complete_since,
            self.archive.as_deref(),
        ];
        self.lock.connection().fetch::<()>(SAVE, arguments).await.map(drop)
    }
}

type Time = Option<OffsetDateTime>;
/// The columns of [`LOAD`] and [`LOAD_OTHERS`].
type Row = (String, String, Option<String>, Time, Time, bool, Option<String>, Time, OffsetDateTime);

/// The stream's ARN, the shard and its checkpoint.
fn checkpoint(row: Row) -> (String, String, Checkpoint) {
    let (arn, shard, sequence_number, last_created, read_through, ..) = row;
    let (.., finished, archive, complete_since, updated_at) = row;
    let position = Position { sequence_number, last_created, read_through };
    (arn, shard, Checkpoint { position, finished, archive, complete_since, updated_at })
}
