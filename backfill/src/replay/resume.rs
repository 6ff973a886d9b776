//! Which checkpoints of earlier runs hold for this one. The others are deleted, with a line that says why.

use std::collections::{HashMap, HashSet};

use time::OffsetDateTime;

use crate::console::{self, clock};
use crate::replay::checkpoint::{Checkpoint, Checkpoints};
use crate::replay::context::ReplayContext;
use crate::replay::lineage::Shard;
use crate::replay::position::{Lost, RETENTION, can_be_lost};
use crate::replay::source::{ShardName, Stream};

/// Whether checkpoints, at least one, are all of runs that began when every change since this snapshot could be read.
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

/// Why a checkpoint does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Ignored {
    /// It came with the snapshot, from an earlier backfill.
    BeforeSnapshot,
    /// What came after it can be trimmed. No snapshot is named, so nothing is promised.
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

/// The checkpoints of a stream that hold for this run.
pub(crate) async fn usable(
    checkpoints: &mut Checkpoints,
    context: &ReplayContext,
    stream: &Stream,
    listed: &[Shard],
) -> anyhow::Result<HashMap<String, Checkpoint>> {
    let mut resumed = checkpoints.load(&stream.arn).await?;
    let listed: HashSet<&str> = listed.iter().map(|shard| shard.id.as_str()).collect();
    let rules = Rules {
        snapshot_time: context.snapshot_time,
        archive: checkpoints.archive(),
        now: OffsetDateTime::now_utc(),
    };
    let mut ignored: HashMap<Ignored, Vec<String>> = HashMap::new();
    for (shard, checkpoint) in &resumed {
        if let Some(why) = rules.ignored(checkpoint, listed.contains(shard.as_str())) {
            ignored.entry(why).or_default().push(shard.clone());
        }
    }
    for (why, shards) in &ignored {
        let count = shards.len();
        let table = &stream.table;
        match why {
            Ignored::NoLongerNeeded => {}
            Ignored::BeforeSnapshot => console::line(&format!(
                "{table}: {count} checkpoints are ignored: they are older than the snapshot, and came with it"
            )),
            Ignored::Old => console::line(&format!(
                "{table}: {count} checkpoints are ignored: they are older than 24 hours; reading from the trim horizon"
            )),
            Ignored::OtherArchive => console::line(&format!(
                "{table}: {count} checkpoints are ignored: their records are in another archive, or in none"
            )),
        }
        let ids: Vec<&str> = shards.iter().map(String::as_str).collect();
        checkpoints.forget(&stream.arn, &ids).await?;
        resumed.retain(|shard, _| !shards.contains(shard));
    }
    if !resumed.is_empty() {
        let newest = resumed.values().map(|checkpoint| checkpoint.updated_at).max();
        console::line(&format!(
            "{}: resuming from the checkpoints of {} shards, last written at {}",
            stream.table,
            resumed.len(),
            newest.map(clock).unwrap_or_default()
        ));
    }
    Ok(resumed)
}

/// Deals with the checkpoints of streams that do not exist any more: records after them are gone for good.
///
/// # Errors
/// [`Lost`] if a snapshot is named, and changes since then went with such a stream.
pub(crate) async fn settle_gone_streams(
    checkpoints: &mut Checkpoints,
    context: &ReplayContext,
    streams: &[&Stream],
) -> anyhow::Result<()> {
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
            checkpoints.forget(&arn, &[&shard]).await?;
        }
    }
    Ok(())
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
                snapshot_time: None,
                updated_at: now - age,
            };
            let snapshot_time = snapshot_age.map(|age| now - age);
            let rules = Rules { snapshot_time, archive: Some("b/p"), now };
            assert_eq!(rules.ignored(&checkpoint, listed), expected, "{name}");
        }
    }
}
