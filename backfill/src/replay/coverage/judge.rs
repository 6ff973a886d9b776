//! Do the streams hold every change since a snapshot, for how long, and does a backfill have room
//! among their readers? What was found comes to a report, for people and as JSON. Pure.

use std::time::Duration;

use serde::Serialize;
use time::OffsetDateTime;

use crate::console::{clock, span};
use crate::layout;
use crate::replay::coverage::{Found, FoundStream};
use crate::replay::outage::Outage;
use crate::replay::position::RETENTION;
use crate::replay::readers::Readers;
use crate::replay::source::Description;

#[cfg(test)]
mod tests;

/// What is concluded. `--json` prints it as it stands here.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// The gap is covered, and a backfill is not one reader too many. `null`: no snapshot time was
    /// given.
    pub(crate) safe: Option<bool>,
    #[serde(with = "time::serde::rfc3339::option")]
    snapshot_time: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339")]
    checked_at: OffsetDateTime,
    /// What must be left of the 24 hours for the run itself.
    margin_wanted_seconds: i64,
    /// What is left until the first change after the snapshot is trimmed; negative where it has
    /// been.
    #[serde(skip_serializing_if = "Option::is_none")]
    margin_seconds: Option<i64>,
    streams: Vec<StreamReport>,
}

#[derive(Debug, Serialize)]
struct StreamReport {
    table: String,
    arn: String,
    status: String,
    view_type: String,
    #[serde(with = "time::serde::rfc3339::option")]
    enabled_since: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    oldest_readable: Option<OffsetDateTime>,
    /// Every change since the snapshot can be read now. `null`: no snapshot time was given, or the
    /// table has a newer stream, which counts instead.
    covered: Option<bool>,
    /// It will be for less than the margin.
    margin_is_short: bool,
    /// The age of the snapshot is the only thing against it.
    #[serde(skip)]
    only_too_old: bool,
    shards_open: usize,
    shards_closed: usize,
    /// `null`: unknown.
    event_source_mappings: Option<usize>,
    readers_with_backfill: Option<usize>,
    readers_limit: Option<usize>,
    /// The table has replicas in other Regions. `null`: unknown.
    global_table: Option<bool>,
    /// Before it was enabled the table had an older stream, and then none. `null`: it is the oldest
    /// that AWS still lists.
    outage: Option<Outage>,
    #[serde(skip)]
    full_name: String,
    #[serde(skip)]
    readers: Option<String>,
    /// What makes it unsafe.
    problems: Vec<String>,
    /// What is good to know.
    notes: Vec<String>,
}

/// What the findings come to at a time.
pub(crate) fn judge(
    found: &Found,
    snapshot_time: Option<OffsetDateTime>,
    margin: time::Duration,
    now: OffsetDateTime,
) -> Report {
    let left = snapshot_time.map(|snapshot| snapshot + RETENTION - now);
    let judged = |(index, stream): (usize, &FoundStream)| {
        let outage = found.outage_before(index);
        judge_stream(stream, outage, snapshot_time, margin, now)
    };
    let streams: Vec<StreamReport> = found.0.iter().enumerate().map(judged).collect();
    Report {
        safe: snapshot_time.map(|_| streams.iter().all(|stream| stream.problems.is_empty())),
        snapshot_time,
        checked_at: now.replace_nanosecond(0).unwrap_or(now),
        margin_wanted_seconds: margin.whole_seconds(),
        margin_seconds: left.map(time::Duration::whole_seconds),
        streams,
    }
}

fn judge_stream(
    found: &FoundStream,
    outage: Option<Outage>,
    snapshot_time: Option<OffsetDateTime>,
    margin: time::Duration,
    now: OffsetDateTime,
) -> StreamReport {
    let FoundStream { stream, description, readers, replaced } = found;
    let mut problems = Vec::new();
    let mut notes = Vec::new();
    let judged = snapshot_time.filter(|_| !replaced);
    let faults = judged.map(|snapshot| stream_faults(Some(snapshot), description, now));
    let too_old = judged.and_then(|snapshot| too_old(snapshot, now));
    let short = judged.and_then(|snapshot| short(snapshot, margin, now));
    let only_too_old = faults.as_ref().is_some_and(Vec::is_empty);
    let covered = faults.as_ref().map(|faults| faults.is_empty() && too_old.is_none());
    let margin_is_short = short.is_some();
    problems.extend(faults.into_iter().flatten().chain(too_old).chain(short));
    if *replaced {
        notes.push(if description.has_new_images() {
            "an older stream of the table: what is left in it is read too".to_owned()
        } else {
            format!("an older stream of the table, of {}: it is not read", description.view_type)
        });
    }
    notes.extend(outage.map(Outage::text));
    if snapshot_time.is_none() && !replaced {
        problems.extend(stream_faults(None, description, now));
    }
    if let Some(readers) = readers {
        problems.extend(readers.problem());
        notes.extend(readers.notes());
    }
    let mappings = readers.as_ref().and_then(|readers| readers.mappings.as_ref().ok().copied());
    let shards_open = description.shards.iter().filter(|shard| !shard.closed).count();
    StreamReport {
        table: stream.table.clone(),
        arn: stream.arn.clone(),
        status: description.status.clone(),
        view_type: description.view_type.clone(),
        enabled_since: description.enabled_since,
        oldest_readable: description.enabled_since.map(|since| {
            let oldest = since.max(now - RETENTION);
            oldest.replace_nanosecond(0).unwrap_or(oldest)
        }),
        covered,
        margin_is_short,
        only_too_old,
        shards_open,
        shards_closed: description.shards.len() - shards_open,
        event_source_mappings: mappings,
        readers_with_backfill: mappings.map(|mappings| mappings + 1),
        readers_limit: readers.as_ref().map(Readers::limit),
        global_table: readers
            .as_ref()
            .and_then(|readers| readers.replicas.as_ref().ok().map(|replicas| *replicas > 0)),
        outage,
        full_name: stream.full_name(),
        readers: readers.as_ref().map(Readers::brief),
        problems,
        notes,
    }
}

/// What is wrong with a table's newest stream, whatever the age of the snapshot.
fn stream_faults(
    snapshot_time: Option<OffsetDateTime>,
    description: &Description,
    now: OffsetDateTime,
) -> Vec<String> {
    let mut faults = Vec::new();
    if let Some(snapshot_time) = snapshot_time {
        if snapshot_time > now {
            faults.push(format!(
                "the snapshot's time {} is in the future: check it, and this machine's clock",
                clock(snapshot_time)
            ));
        }
        match description.enabled_since {
            Some(since) if since < snapshot_time => {}
            Some(since) => faults.push(format!(
                "it was enabled at {}, after the snapshot: no stream holds everything that \
                    changed before that; `backfill repair --scan` closes that gap",
                clock(since)
            )),
            None => faults.push("it does not say when it was enabled".to_owned()),
        }
    }
    if !description.enabled {
        faults.push(format!(
            "it is {}: what changes now is in no stream; enable the stream, and run `backfill \
                repair --scan` or take a new snapshot after that",
            description.status
        ));
    }
    if !description.has_new_images() {
        faults.push(format!(
            "its view type is {}: it must be NEW_IMAGE or NEW_AND_OLD_IMAGES",
            description.view_type
        ));
    }
    faults
}

/// Says so where the first changes after the snapshot are trimmed.
fn too_old(snapshot_time: OffsetDateTime, now: OffsetDateTime) -> Option<String> {
    (snapshot_time + RETENTION < now).then(|| {
        format!(
            "what changed from {} to {} has been trimmed: a stream keeps 24 hours; take a newer \
                snapshot",
            clock(snapshot_time),
            clock(now - RETENTION)
        )
    })
}

/// Says so where less than the margin is left until they are.
fn short(
    snapshot_time: OffsetDateTime,
    margin: time::Duration,
    now: OffsetDateTime,
) -> Option<String> {
    let left = snapshot_time + RETENTION - now;
    (time::Duration::ZERO <= left && left < margin).then(|| {
        format!(
            "only {} are left until the first change after the snapshot is trimmed, less than the \
             margin of {}; --margin-minutes 0 begins anyway",
            span(left.unsigned_abs()),
            span(margin.unsigned_abs())
        )
    })
}

impl Report {
    /// Whether a replay may begin: all changes since the snapshot can be read, with the margin, or
    /// no snapshot's time was given.
    pub(crate) fn may_begin(&self) -> bool {
        self.streams.iter().all(|stream| stream.covered != Some(false) && !stream.margin_is_short)
    }

    /// Whether only the snapshot's age is against it: a replay that has begun in time may go on.
    pub(crate) fn is_only_too_old(&self) -> bool {
        self.streams.iter().all(|stream| stream.covered.is_none() || stream.only_too_old)
    }

    /// Whether all that is against it is a margin that is too short: nothing is missing yet.
    pub(crate) fn is_only_short(&self) -> bool {
        self.is_covered() && !self.may_begin()
    }

    /// Whether anything makes it unsafe.
    pub(crate) fn has_problems(&self) -> bool {
        self.streams.iter().any(|stream| !stream.problems.is_empty())
    }

    /// Whether every change since the snapshot can be read now.
    pub(crate) fn is_covered(&self) -> bool {
        self.streams.iter().all(|stream| stream.covered != Some(false))
    }

    /// For people, on a terminal of this width.
    pub(crate) fn table(&self, width: usize) -> String {
        let mut headings =
            vec!["TABLE", "STATUS", "ENABLED SINCE", "OLDEST READABLE", "GAP", "SHARDS", "READERS"];
        if self.streams.iter().all(|stream| stream.readers.is_none()) {
            headings.pop();
        }
        let mut rows: Vec<Vec<String>> =
            self.streams.iter().map(|stream| stream.row(self.name(stream))).collect();
        for row in &mut rows {
            row.truncate(headings.len());
        }
        let mut text = layout::table(&headings, &rows, width);
        for stream in &self.streams {
            let name = self.name(stream);
            for problem in &stream.problems {
                text += &["problem: ", &name, ": ", problem, "\n"].concat();
            }
            for note in &stream.notes {
                text += &["note: ", &name, ": ", note, "\n"].concat();
            }
        }
        text + &self.verdict()
    }

    /// The table, and the stream if the table has several.
    fn name(&self, stream: &StreamReport) -> String {
        let of_table = self.streams.iter().filter(|other| other.table == stream.table).count();
        if of_table > 1 { stream.full_name.clone() } else { stream.table.clone() }
    }

    fn verdict(&self) -> String {
        let Some((snapshot_time, left)) = self.snapshot_time.zip(self.margin_seconds) else {
            return "the gap is not checked: give --snapshot-time to have it checked\n".to_owned();
        };
        let margin = span(Duration::from_secs(left.unsigned_abs()));
        let snapshot = clock(snapshot_time);
        if !self.is_covered() {
            return format!("NOT SAFE: not every change since {snapshot} can be read\n");
        }
        let covered = format!(
            "every change since {snapshot} can be read, for {margin} more (until {})",
            clock(snapshot_time + RETENTION)
        );
        if self.safe == Some(true) {
            format!("safe: {covered}\n")
        } else {
            format!("NOT SAFE: {covered}, but see the problems above\n")
        }
    }
}

impl StreamReport {
    /// Its row in the table, under this name.
    fn row(&self, name: String) -> Vec<String> {
        let time = |time: Option<OffsetDateTime>| time.map_or_else(|| "unknown".to_owned(), clock);
        let gap = match self.covered {
            Some(true) => "covered",
            Some(false) => "NOT COVERED",
            None => "-",
        };
        vec![
            name,
            self.status.clone(),
            time(self.enabled_since),
            time(self.oldest_readable),
            gap.to_owned(),
            format!("{} open, {} closed", self.shards_open, self.shards_closed),
            self.readers.clone().unwrap_or_default(),
        ]
    }
}
