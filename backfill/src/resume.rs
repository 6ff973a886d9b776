//! Which checkpoints of earlier runs hold for this one.

use std::collections::{HashMap, HashSet};

use projector::database::Database;
use time::OffsetDateTime;

use crate::checkpoint::{Checkpoint, Checkpoints, Mark};
use crate::lineage::Shard;
use crate::position::RETENTION;
use crate::progress::note;
use crate::reader::Reading;
use crate::source::Stream;
use crate::summary::clock;

/// Whether checkpoints, at least one, are all of runs that began when every change since this snapshot
/// could be read.
pub(crate) fn began_in_time<'a>(
    checkpoints: impl IntoIterator<Item = &'a Checkpoint>,
    snapshot_time: Option<OffsetDateTime>,
) -> bool {
    let mut checkpoints = checkpoints.into_iter().peekable();
    checkpoints.peek().is_some()
        && checkpoints.all(|checkpoint| {
            let promised = checkpoint.snapshot_time;
            promised.is_some() && promised <= snapshot_time
        })
}

/// Forgets all checkpoints of a stream.
pub(crate) async fn forget_all(
    checkpoints: &mut Checkpoints,
    stream: &Stream,
) -> anyhow::Result<()> {
    let left = checkpoints.load(&stream.arn).await?;
    let shards: Vec<&str> = left.keys().map(String::as_str).collect();
    checkpoints.forget(&stream.arn, &shards).await
}

/// The checkpoints of a stream that hold for this run; the others are deleted.
pub(crate) async fn usable(
    checkpoints: &mut Checkpoints,
    database: &Database,
    reading: &Reading,
    stream: &Stream,
    listed: &[Shard],
) -> anyhow::Result<HashMap<String, Checkpoint>> {
    let mut left = checkpoints.load(&stream.arn).await?;
    // An earlier run was through with these, or it would not have begun with their children.
    let parents_of_left: HashSet<&str> = listed
        .iter()
        .filter(|shard| left.contains_key(&shard.id))
        .filter_map(|shard| shard.parent.as_deref())
        .collect();
    let listed: HashSet<&str> = listed.iter().map(|shard| shard.id.as_str()).collect();
    let mut forgotten = Vec::new();
    let mut trimmed_away = Vec::new();
    for (shard, checkpoint) in &left {
        // Written before the snapshot was taken: it came with it, from an earlier backfill.
        if reading.snapshot_time.is_some_and(|snapshot| checkpoint.updated_at < snapshot) {
            forgotten.push(shard.clone());
            continue;
        }
        if !checkpoint.finished && !listed.contains(shard.as_str()) {
            let position = &checkpoint.position;
            let went_on = parents_of_left.contains(shard.as_str());
            if !went_on {
                reading.check_trimmed(stream, shard, position, true)?;
            }
            // One that is too young to be gone is only missing in this listing.
            let horizon = OffsetDateTime::now_utc() - RETENTION;
            if went_on
                || position.read_through.is_none_or(|through| through < horizon)
                || reading.snapshot_time > position.read_through
            {
                trimmed_away.push(Mark {
                    stream_arn: stream.arn.clone(),
                    shard_id: shard.clone(),
                    position: position.clone(),
                    finished: true,
                });
            }
        }
        // The records behind it went to another archive, or to none.
        let archive = checkpoints.archive();
        if archive.is_some_and(|archive| checkpoint.archive.as_deref() != Some(archive)) {
            forgotten.push(shard.clone());
        }
    }
    checkpoints.save(database, &trimmed_away).await?;
    let shards: Vec<&str> = forgotten.iter().map(String::as_str).collect();
    checkpoints.forget(&stream.arn, &shards).await?;
    left.retain(|shard, _| !forgotten.contains(shard));
    let of_another_life = forgotten.len();
    if of_another_life > 0 {
        note(&format!(
            "{}: {of_another_life} checkpoints are not used: they came with the snapshot, or belong to another archive",
            stream.table
        ));
    }
    if !left.is_empty() {
        let newest = left.values().map(|checkpoint| checkpoint.updated_at).max();
        note(&format!(
            "{}: goes on from the checkpoints of {} shards, last written at {}",
            stream.table,
            left.len(),
            newest.map(clock).unwrap_or_default()
        ));
    }
    Ok(left)
}
