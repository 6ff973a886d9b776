//! Which checkpoints of earlier runs hold for this one. The others are deleted once the run begins,
//! with a line that says why.

use std::collections::{HashMap, HashSet};

use time::OffsetDateTime;

use crate::console::{self, clock};
use crate::replay::checkpoint::{Checkpoint, Checkpoints};
use crate::replay::context::ReplayContext;
use crate::replay::lineage::Shard;
use crate::replay::position::{Lost, RETENTION, can_be_lost};
use crate::replay::source::{ShardName, Stream};

/// Whether checkpoints, at least one, are all of runs that began when every change since this
/// snapshot could be read.
pub(crate) fn began_in_time<'a>(
    checkpoints: impl IntoIterator<Item = &'a Checkpoint>,
    snapshot_time: Option<OffsetDateTime>,
) -> bool {
    let mut checkpoints = checkpoints.into_iter().peekable();
    checkpoints.peek().is_some()
        && checkpoints.all(|checkpoint| {
            let since = checkpoint.complete_since;
            since.is_some() && since <= snapshot_time
        })
}

/// Why a checkpoint does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Ignored {
    /// It came with the snapshot, from an earlier backfill.
    BeforeSnapshot,
    /// What came after it can be trimmed. No snapshot is named, so there is no baseline to judge it
    /// by.
    Old,
    /// The shard was read to its end, and is not listed any more: nobody will ask for it again.
    NoLongerNeeded,
    /// The records before it are in another archive, or in none.
    OtherArchive,
}

/// What a checkpoint is judged by.
struct Rules<'a> {
    snapshot_time: Option<OffsetDateTime>,
    archive: Option<&'a str>,
    now: OffsetDateTime,
}

impl Rules<'_> {
    /// Why a checkpoint does not hold, if it does not.
    fn ignored(&self, checkpoint: &Checkpoint, listed: bool) -> Option<Ignored> {
        let old = checkpoint.updated_at < self.now - RETENTION;
        if self.snapshot_time.is_some_and(|snapshot| checkpoint.updated_at < snapshot) {
            return Some(Ignored::BeforeSnapshot);
        }
        if old && checkpoint.finished && !listed {
            return Some(Ignored::NoLongerNeeded);
        }
        if old && self.snapshot_time.is_none() {
            return Some(Ignored::Old);
        }
        let other = |archive: &str| checkpoint.archive.as_deref() != Some(archive);
        self.archive.is_some_and(other).then_some(Ignored::OtherArchive)
    }
}

/// The checkpoints of a stream, sorted.
pub(crate) struct Sorted {
    /// Those that hold for this run.
    pub(crate) resumed: HashMap<String, Checkpoint>,
    ignored: HashMap<Ignored, Vec<String>>,
}

/// Sorts the checkpoints of a stream, and deletes none: the run may still be refused, and another
/// command may resume from those that do not hold for this one.
pub(crate) async fn sort(
    checkpoints: &mut Checkpoints,
    context: &ReplayContext,
    stream: &Stream,
    listed: &[Shard],
) -> anyhow::Result<Sorted> {
    let mut resumed = checkpoints.load(&stream.arn).await?;
    let listed: HashSet<&str> = listed.iter().map(|shard| shard.id.as_str()).collect();
    let rules = Rules {
        snapshot_time: context.snapshot_time,
        archive: checkpoints.archive(),
        now: OffsetDateTime::now_utc(),
    };
    let mut ignored: HashMap<Ignored, Vec<String>> = HashMap::new();
    resumed.retain(|shard, checkpoint| {
        match rules.ignored(checkpoint, listed.contains(shard.as_str())) {
            Some(why) => {
                ignored.entry(why).or_default().push(shard.clone());
                false
            }
            None => true,
        }
    });
    Ok(Sorted { resumed, ignored })
}

impl Sorted {
    /// Deletes the checkpoints that do not hold, and says so. Called once the run begins.
    pub(crate) async fn delete_ignored(
        &self,
        checkpoints: &mut Checkpoints,
        stream: &Stream,
    ) -> anyhow::Result<()> {
        let table = &stream.table;
        for (why, shards) in &self.ignored {
            let count = shards.len();
            let why = match why {
                Ignored::NoLongerNeeded => None,
                Ignored::BeforeSnapshot => {
                    Some("they are older than the snapshot, and came with it")
                }
                Ignored::Old => Some(
                    "they are older than 24 hours; their shards are read from the trim horizon",
                ),
                Ignored::OtherArchive => Some(
                    "their records are in another archive, or in none; their shards are read again",
                ),
            };
            if let Some(why) = why {
                console::line(&format!("{table}: {count} checkpoints are deleted: {why}"));
            }
            let ids: Vec<&str> = shards.iter().map(String::as_str).collect();
            checkpoints.forget(&stream.arn, &ids).await?;
        }
        if !self.resumed.is_empty() {
            let newest = self.resumed.values().map(|checkpoint| checkpoint.updated_at).max();
            console::line(&format!(
                "{table}: resuming from the checkpoints of {} shards, last written at {}",
                self.resumed.len(),
                newest.map(clock).unwrap_or_default()
            ));
        }
        Ok(())
    }
}

/// Judges the checkpoints of streams that do not exist any more: records after them are gone for
/// good. Returns those that are too old to be of use, by stream and shard.
///
/// # Errors
/// [`Lost`] if a snapshot is named, and changes since then went with such a stream.
pub(crate) async fn judge_gone_streams(
    checkpoints: &mut Checkpoints,
    context: &ReplayContext,
    streams: &[&Stream],
) -> anyhow::Result<Vec<(String, String)>> {
    let mut old = Vec::new();
    let arns: Vec<&str> = streams.iter().map(|stream| stream.arn.as_str()).collect();
    let now = OffsetDateTime::now_utc();
    for (arn, shard, checkpoint) in checkpoints.load_others(&arns).await? {
        let Some((table, label)) = projector::change::stream_of(&arn) else { continue };
        if !streams.iter().any(|stream| stream.table == table) {
            continue;
        }
        let snapshot = context.snapshot_time.filter(|snapshot| checkpoint.updated_at >= *snapshot);
        let position = checkpoint.position;
        if !checkpoint.finished
            && snapshot.is_some()
            && can_be_lost(&position, false, snapshot, now)
        {
            let stream =
                Stream { arn: arn.clone(), table: table.to_owned(), label: label.to_owned() };
            let since = position.read_through.max(snapshot);
            context.lose(Lost { shard: ShardName::new(&stream, &shard), position, since })?;
        }
        if checkpoint.updated_at < now - RETENTION {
            old.push((arn, shard));
        }
    }
    Ok(old)
}

#[cfg(test)]
mod tests {
    use time::Duration;
    use time::macros::datetime;

    use super::{Ignored, Rules};
    use crate::replay::checkpoint::Checkpoint;
    use crate::replay::position::Position;

    #[test]
    fn checkpoints_of_another_snapshot_or_archive_and_old_ones_are_ignored() {
        let now = datetime!(2026-11-23 20:00 UTC);
        let (hour, day) = (Duration::HOUR, Duration::DAY);
        for (name, age, finished, listed, archive, snapshot_age, expected) in [
            ("fresh", hour, false, true, Some("b/p"), None, None),
            ("not listed, fresh", hour, false, false, Some("b/p"), None, None),
            ("not listed, finished, fresh", hour, true, false, Some("b/p"), None, None),
            ("since the snapshot", hour, false, true, Some("b/p"), Some(2 * hour), None),
            (
                "before the snapshot",
                3 * hour,
                true,
                true,
                Some("b/p"),
                Some(2 * hour),
                Some(Ignored::BeforeSnapshot),
            ),
            ("old", 2 * day, false, true, Some("b/p"), None, Some(Ignored::Old)),
            ("old, a snapshot is named", 2 * day, false, true, Some("b/p"), Some(3 * day), None),
            (
                "old, finished, not listed",
                2 * day,
                true,
                false,
                Some("b/p"),
                Some(3 * day),
                Some(Ignored::NoLongerNeeded),
            ),
            ("another archive", hour, false, true, Some("a"), None, Some(Ignored::OtherArchive)),
            ("no archive then", hour, false, true, None, None, Some(Ignored::OtherArchive)),
        ] {
            let checkpoint = Checkpoint {
                position: Position::default(),
                finished,
                archive: archive.map(str::to_owned),
                complete_since: None,
                updated_at: now - age,
            };
            let snapshot_time = snapshot_age.map(|age| now - age);
            let rules = Rules { snapshot_time, archive: Some("b/p"), now };
            assert_eq!(rules.ignored(&checkpoint, listed), expected, "{name}");
        }
    }
}
