//! How far a shard has been read, and whether records can have been trimmed unread. Pure.
//!
//! A stream keeps its records for 24 hours, and says nothing of what it drops: a shard opened at the
//! trim horizon simply begins later. So it is reckoned: what was created up to the snapshot is in the
//! database, what was created up to [`Position::read_through`] has been read, and what is trimmed is
//! older than 24 hours. Nothing is lost while the later of the first two is younger than that.

use time::OffsetDateTime;

use crate::summary::clock;

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
    /// Everything of the shard and its ancestors that was created up to then has been read: later than
    /// `last_created` where the shard was found empty after it.
    pub(crate) read_through: Option<OffsetDateTime>,
}

impl Position {
    /// The beginning of a shard whose ancestors have been read up to a time.
    pub(crate) fn behind(read_through: Option<OffsetDateTime>) -> Self {
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
}

/// Whether records can be lost that were trimmed behind a position. `refused`: the stream refused to
/// go on there, so that records which are younger than the last one read are gone, whatever the clock
/// says. Where nothing is known of a snapshot and nothing was read, nothing was promised.
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

/// Records are gone before they could be read.
#[derive(Debug, thiserror::Error)]
#[error(
    "records can be lost: shard {shard} of {stream_arn} {}, what came after that can have been trimmed away, \
     and changes from {} on can be missing. Where the database has been kept up to date by others \
     since, forget the checkpoints (--restart) or name the snapshot (--snapshot-time); else begin again \
     with a newer snapshot, or go on without those changes: --allow-gap",
    read_up_to(.position), .since.map_or_else(|| "an unknown time".to_owned(), clock)
)]
pub(crate) struct Lost {
    pub(crate) shard: String,
    pub(crate) stream_arn: String,
    pub(crate) position: Position,
    /// The later of the snapshot and the time up to which all was read.
    pub(crate) since: Option<OffsetDateTime>,
}

fn read_up_to(position: &Position) -> String {
    match &position.sequence_number {
        Some(number) => format!("was read up to sequence number {number}"),
        None => "has given no record yet".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Position, RETENTION, can_be_lost};
    use time::Duration;
    use time::macros::datetime;

    #[test]
    fn trimmed_records_are_lost_unless_the_snapshot_or_the_reading_is_younger() {
        let now = datetime!(2026-11-23 20:00 UTC);
        let horizon = now - RETENTION;
        let (older, younger) = (horizon - Duration::HOUR, horizon + Duration::HOUR);
        for (name, last_created, read_through, refused, snapshot, expected) in [
            ("nothing was promised", None, None, true, None, false),
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
    fn times_only_grow() {
        let (early, late) = (datetime!(2026-11-23 10:00 UTC), datetime!(2026-11-23 11:00 UTC));
        let mut position = Position::behind(Some(early));
        position.created(late);
        position.created(early);
        assert_eq!((position.last_created, position.read_through), (Some(late), Some(late)));
        position.through(early);
        assert_eq!(position.read_through, Some(late));
    }
}
