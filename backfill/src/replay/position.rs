//! How far a shard has been read, and whether records can have been trimmed unread. Pure.
//!
//! A stream keeps its records for 24 hours, and says nothing of what it drops: a shard opened at
//! the trim horizon simply begins later. So it is computed: what was created up to the snapshot is
//! in the database, what was created up to [`Position::read_through`] has been read, and what is
//! trimmed is older than 24 hours. Nothing is lost while the later of the first two is younger than
//! that.

use time::OffsetDateTime;

use crate::console::clock;
use crate::replay::source::ShardName;

/// Creation times are approximate, and rounded down to the second: only a record this much younger
/// than a time shows that all records from before that time have been read.
pub(crate) const CREATION_SLACK: time::Duration = time::Duration::seconds(5);

/// A stream keeps its records for 24 hours (DynamoDB Developer Guide, "Change data capture for
/// DynamoDB Streams").
pub(crate) const RETENTION: time::Duration = time::Duration::hours(24);

/// How far a shard has been read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    /// The last record read; reading begins at the trim horizon where there is none.
    pub(crate) sequence_number: Option<String>,
    /// The last known creation time of a record read.
    pub(crate) last_created: Option<OffsetDateTime>,
    /// Everything of the shard and its ancestors that was created up to then has been read: later
    /// than `last_created` where the shard was found empty after it.
    pub(crate) read_through: Option<OffsetDateTime>,
}

impl Position {
    /// The beginning of a shard whose ancestors have been read up to a time.
    pub(crate) fn after(read_through: Option<OffsetDateTime>) -> Self {
        Self { read_through, ..Self::default() }
    }

    /// A record that was created at this time has been read.
    pub(crate) fn created(&mut self, at: OffsetDateTime) {
        self.last_created = self.last_created.max(Some(at));
        self.through(at);
    }

    /// Everything created up to this time has been read.
    pub(crate) fn through(&mut self, time: OffsetDateTime) {
        self.read_through = self.read_through.max(Some(time));
    }

    /// The same as `read_through` without what only the approximate creation time of a record
    /// shows.
    pub(crate) fn surely_through(&self) -> Option<OffsetDateTime> {
        let by_records = self.last_created.map(|created| created - CREATION_SLACK);
        self.read_through.filter(|through| Some(*through) > self.last_created).max(by_records)
    }
}

/// Whether records can be lost that were trimmed behind a position. `refused`: the stream refused
/// to go on there, so that records which are younger than the last one read are gone, whatever the
/// clock says. Without a baseline (no snapshot is named and nothing was read) nothing counts as
/// lost.
pub(crate) fn can_be_lost(
    position: &Position,
    refused: bool,
    snapshot_time: Option<OffsetDateTime>,
    now: OffsetDateTime,
) -> bool {
    let Some(known) = position.read_through.max(snapshot_time) else { return false };
    let told = position.last_created.filter(|_| refused);
    known < now - RETENTION || told.is_some_and(|created| known <= created)
}

/// What it means that a shard cannot be found, again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// It cannot have been trimmed: its records are younger than 24 hours, so the API is at fault.
    /// Another run will find it.
    TooYoung,
    /// It is older than 24 hours by the clock, and records that matter can have gone with it.
    Lost,
    /// It is older than 24 hours, or has never given anything; nothing that matters can have gone
    /// with it.
    Trimmed,
}

/// What is known of a shard that cannot be found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Evidence {
    /// Its stream is still there.
    pub(crate) stream_exists: bool,
    /// When it was made, if its id says so.
    pub(crate) made_at: Option<OffsetDateTime>,
    /// When it was closed, if the id of a child says so: nothing in it is younger.
    pub(crate) closed_at: Option<OffsetDateTime>,
}

/// Judges a shard that cannot be found, by the clock: one answer of the API is no proof that it is
/// gone. `has_baseline`: a snapshot or a checkpoint says since when nothing may be missing.
pub(crate) fn judge_missing(
    position: &Position,
    has_baseline: bool,
    evidence: Evidence,
    snapshot_time: Option<OffsetDateTime>,
    now: OffsetDateTime,
) -> Missing {
    let Evidence { stream_exists, made_at, closed_at } = evidence;
    let known = position.read_through.max(snapshot_time);
    if closed_at.is_some_and(|closed| known.is_some_and(|known| known >= closed)) {
        return Missing::Trimmed;
    }
    if has_baseline && can_be_lost(position, false, snapshot_time, now) {
        return Missing::Lost;
    }
    let youngest = position.read_through.max(made_at).max(closed_at);
    match youngest {
        Some(youngest) if stream_exists && youngest >= now - RETENTION => Missing::TooYoung,
        _ => Missing::Trimmed,
    }
}

/// Records are gone before they could be read.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "{}. If another projector kept this database up to date, run this again with --restart; if it \
     was restored from a snapshot since, with --snapshot-time. Otherwise restore a newer snapshot, \
     or add --allow-gap to read what is left",
    self.brief()
)]
pub(crate) struct Lost {
    pub(crate) shard: ShardName,
    pub(crate) position: Position,
    /// The later of the snapshot and the time up to which all was read.
    pub(crate) since: Option<OffsetDateTime>,
}

/// The same of a run of `repair`, whose replay reads what was created since it began.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "{}. The replay of this repair fell more than 24 hours behind. Run `backfill repair` again: it \
     begins anew, and reads the items concerned from the tables",
    .0.brief()
)]
pub(crate) struct LostInRepair(pub(crate) Lost);

impl Lost {
    /// What is lost, without the remedy.
    pub(crate) fn brief(&self) -> String {
        let ShardName { table, shard, .. } = &self.shard;
        let read = match &self.position.sequence_number {
            Some(number) => format!("was read up to sequence number {number}"),
            None => "has given no record yet".to_owned(),
        };
        let since = self.since.map_or_else(|| "an unknown time".to_owned(), clock);
        format!(
            "records can be lost: shard {shard} of table {table} {read}, the stream keeps nothing \
             older than 24 hours, and changes from {since} on can be missing"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{
        CREATION_SLACK, Evidence, Missing, Position, RETENTION, can_be_lost, judge_missing,
    };
    use time::Duration;
    use time::macros::datetime;

    #[test]
    fn trimmed_records_are_lost_unless_the_snapshot_or_the_reading_is_younger() {
        let now = datetime!(2026-11-23 20:00 UTC);
        let horizon = now - RETENTION;
        let (older, younger) = (horizon - Duration::HOUR, horizon + Duration::HOUR);
        for (name, last_created, read_through, refused, snapshot, expected) in [
            ("no snapshot, nothing read", None, None, true, None, false),
            ("the snapshot has what is trimmed", None, None, true, Some(younger), false),
            ("the horizon passed the snapshot", None, None, false, Some(older), true),
            (
                "read, and younger than what is trimmed",
                Some(younger),
                Some(younger),
                false,
                None,
                false,
            ),
            ("read, and older", Some(older), Some(older), false, None, true),
            (
                "read, older, but the snapshot is younger",
                Some(older),
                Some(older),
                true,
                Some(younger),
                false,
            ),
            (
                "a quiet shard, known to be empty since",
                Some(older),
                Some(younger),
                true,
                None,
                false,
            ),
            (
                "the clock says no, the stream says yes",
                Some(younger),
                Some(younger),
                true,
                None,
                true,
            ),
            ("… of what the snapshot has", Some(younger), Some(younger), true, Some(now), false),
        ] {
            let position = Position { sequence_number: None, last_created, read_through };
            assert_eq!(can_be_lost(&position, refused, snapshot, now), expected, "{name}");
        }
    }

    #[test]
    fn a_missing_shard_is_judged_by_the_clock() {
        let now = datetime!(2026-11-23 20:00 UTC);
        let horizon = now - RETENTION;
        let (older, younger) = (Some(horizon - Duration::HOUR), Some(horizon + Duration::HOUR));
        for (name, read_through, has_baseline, stream_exists, snapshot, expected) in [
            ("read an hour ago", younger, true, true, None, Missing::TooYoung),
            ("read an hour ago, no baseline", younger, false, true, None, Missing::TooYoung),
            ("a snapshot since", younger, true, true, Some(now), Missing::TooYoung),
            ("the stream is gone too", younger, true, false, None, Missing::Trimmed),
            ("read a day ago", older, true, true, None, Missing::Lost),
            ("the stream is gone, read a day ago", older, true, false, None, Missing::Lost),
            ("read a day ago, no baseline", older, false, true, None, Missing::Trimmed),
            ("read a day ago, a snapshot since", older, true, true, younger, Missing::Trimmed),
            ("never read", None, false, true, None, Missing::Trimmed),
            ("never read, a young snapshot", None, true, true, younger, Missing::Trimmed),
            ("never read, an old snapshot", None, true, true, older, Missing::Lost),
        ] {
            let position = Position { read_through, ..Position::default() };
            let evidence = Evidence { stream_exists, made_at: None, closed_at: None };
            let judged = judge_missing(&position, has_baseline, evidence, snapshot, now);
            assert_eq!(judged, expected, "{name}");
        }
        for (name, made_at, closed_at, snapshot, expected) in [
            ("made an hour ago", Some(now - Duration::HOUR), None, younger, Missing::TooYoung),
            ("made two days ago", older, None, younger, Missing::Trimmed),
            ("closed after the snapshot", older, Some(now), younger, Missing::TooYoung),
            ("closed before the snapshot", older, younger, Some(now), Missing::Trimmed),
            ("closed a day ago", older, older, None, Missing::Trimmed),
        ] {
            let evidence = Evidence { stream_exists: true, made_at, closed_at };
            let judged =
                judge_missing(&Position::default(), snapshot.is_some(), evidence, snapshot, now);
            assert_eq!(judged, expected, "{name}");
        }
    }

    #[test]
    fn times_only_grow() {
        let (early, late) = (datetime!(2026-11-23 10:00 UTC), datetime!(2026-11-23 11:00 UTC));
        let mut position = Position::after(Some(early));
        position.created(late);
        position.created(early);
        assert_eq!((position.last_created, position.read_through), (Some(late), Some(late)));
        position.through(early);
        assert_eq!(position.read_through, Some(late));
    }

    #[test]
    fn a_record_shows_less_for_certain_than_an_empty_page() {
        let created = datetime!(2026-11-23 10:00 UTC);
        let mut position = Position::default();
        assert_eq!(position.surely_through(), None);
        position.created(created);
        assert_eq!(position.surely_through(), Some(created - CREATION_SLACK));
        let empty_up_to = created + Duration::SECOND;
        position.through(empty_up_to);
        assert_eq!(position.surely_through(), Some(empty_up_to));
    }
}
