//! Do the streams hold every change since a snapshot, for how long, and who reads them? What is
//! found out is apart from what is concluded: [`judge`] is pure.

use std::time::Duration;

use projector::change::{Misconfigured, Tables};
use serde::Serialize;
use time::OffsetDateTime;

use crate::console::{clock, span};
use crate::layout;
use crate::replay::outage::Outage;
use crate::replay::position::RETENTION;
use crate::replay::readers::Readers;
use crate::replay::source::{Description, Source, Stream};

/// What the streams of both tables look like.
pub(crate) struct Found(Vec<FoundStream>);

#[derive(Clone)]
struct FoundStream {
    stream: Stream,
    description: Description,
    /// Who reads it, once that is known.
    readers: Option<Readers>,
    /// The table has a later stream.
    replaced: bool,
}

impl Found {
    /// Each stream and its shards, the older streams of a table before its newest. Older ones
    /// without new images are left out: they were enabled anew because nothing can be read from
    /// them.
    ///
    /// # Errors
    /// [`Misconfigured::NoNewImages`] of a table's newest stream.
    pub(crate) fn readable(&self) -> Result<Vec<(&Stream, &Description)>, Misconfigured> {
        let mut readable = Vec::new();
        for FoundStream { stream, description, replaced, .. } in &self.0 {
            if description.has_new_images() {
                readable.push((stream, description));
            } else if !replaced {
                let (table, view_type) = (stream.table.clone(), description.view_type.clone());
                return Err(Misconfigured::NoNewImages { table, view_type });
            }
        }
        Ok(readable)
    }

    /// The time without a stream before the stream at this index: its table's streams are listed
    /// one after another, the oldest first.
    fn outage_before(&self, index: usize) -> Option<Outage> {
        let older = &self.0[index.checked_sub(1)?];
        let newer = &self.0[index];
        (older.stream.table == newer.stream.table)
            .then(|| Outage::between(&older.description, &newer.description))
    }

    /// All streams, in order.
    pub(crate) fn streams(&self) -> Vec<Stream> {
        self.0.iter().map(|found| found.stream.clone()).collect()
    }

    /// The table of each newest stream, and when that stream was enabled.
    pub(crate) fn newest_streams(&self) -> impl Iterator<Item = (&str, Option<OffsetDateTime>)> {
        let newest = self.0.iter().filter(|found| !found.replaced);
        newest.map(|found| (found.stream.table.as_str(), found.description.enabled_since))
    }

    /// Adds who reads each stream, in the order of [`Found::streams`].
    pub(crate) fn set_readers(&mut self, readers: Vec<Readers>) {
        for (found, readers) in self.0.iter_mut().zip(readers) {
            found.readers = Some(readers);
        }
    }
}

/// Asks for the streams of both tables and their shards.
pub(crate) async fn examine(source: &Source, tables: &Tables) -> anyhow::Result<Found> {
    let Tables { sessions, scans } = tables;
    let (mut sessions, scans) = tokio::try_join!(
        streams_of(source, "SESSIONS_TABLE", sessions),
        streams_of(source, "SCANS_TABLE", scans),
    )?;
    sessions.extend(scans);
    Ok(Found(sessions))
}

async fn streams_of(
    source: &Source,
    variable: &'static str,
    table: &str,
) -> anyhow::Result<Vec<FoundStream>> {
    let streams = source.streams_of(variable, table).await?;
    let newest = streams.len() - 1;
    let mut found = Vec::new();
    for (index, stream) in streams.into_iter().enumerate() {
        let replaced = index < newest;
        match source.describe(&stream).await? {
            Some(description) => {
                found.push(FoundStream { stream, description, readers: None, replaced });
            }
            // AWS deletes a stream 24 hours after it was disabled, also between two calls.
            None if replaced => {}
            None => anyhow::bail!(
                "ListStreams names {}, and DescribeStream does not find it: run this again",
                stream.arn
            ),
        }
    }
    Ok(found)
}

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

impl Description {
    pub(crate) fn has_new_images(&self) -> bool {
        matches!(self.view_type.as_str(), "NEW_IMAGE" | "NEW_AND_OLD_IMAGES")
    }
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

#[cfg(test)]
mod tests {
    use time::macros::datetime;
    use time::{Duration, OffsetDateTime};

    use super::{Found, FoundStream, judge};
    use crate::replay::lineage::Shard;
    use crate::replay::readers::Readers;
    use crate::replay::source::{Description, Stream};

    const NOW: OffsetDateTime = datetime!(2026-11-23 20:00 UTC);
    const MARGIN: Duration = Duration::hours(1);

    fn stream(enabled_since: OffsetDateTime) -> FoundStream {
        FoundStream {
            stream: Stream {
                arn: "arn".to_owned(),
                table: "sessions".to_owned(),
                label: "label".to_owned(),
            },
            description: Description {
                enabled: true,
                status: "ENABLED".to_owned(),
                view_type: "NEW_IMAGE".to_owned(),
                enabled_since: Some(enabled_since),
                shards: vec![
                    Shard { id: "a".to_owned(), parent: None, closed: true },
                    Shard { id: "b".to_owned(), parent: Some("a".to_owned()), closed: false },
                ],
            },
            readers: Some(Readers { mappings: Ok(1), replicas: Ok(0) }),
            replaced: false,
        }
    }

    #[test]
    fn the_gap_is_covered_only_where_all_of_it_can_be_read_with_the_margin() {
        let snapshot = NOW - Duration::hours(5);
        let long_ago = NOW - Duration::days(30);
        for (name, enabled_since, snapshot_time, safe) in [
            ("within the day", long_ago, snapshot, true),
            ("the margin to the second", long_ago, NOW - Duration::hours(23), true),
            ("a second less", long_ago, NOW - Duration::hours(23) - Duration::SECOND, false),
            ("older than the day", long_ago, NOW - Duration::hours(25), false),
            ("enabled after the snapshot", snapshot + Duration::SECOND, snapshot, false),
            ("enabled at the snapshot", snapshot, snapshot, false),
            ("enabled just before", snapshot - Duration::SECOND, snapshot, true),
            ("a snapshot of the future", long_ago, NOW + Duration::SECOND, false),
        ] {
            let found = Found(vec![stream(long_ago), stream(enabled_since)]);
            let report = judge(&found, Some(snapshot_time), MARGIN, NOW);
            assert_eq!((report.safe, report.may_begin()), (Some(safe), safe), "{name}");
            let aged = name == "a second less" || name == "older than the day";
            assert_eq!(report.is_only_too_old(), safe || aged, "{name}");
            assert_eq!(report.table(100).contains("NOT SAFE"), !safe, "{name}");
        }
    }

    #[test]
    fn every_other_fault_is_a_problem_with_a_remedy() {
        let snapshot = Some(NOW - Duration::hours(5));
        let long_ago = NOW - Duration::days(30);
        let problem = |change: fn(&mut FoundStream)| {
            let mut found = stream(long_ago);
            change(&mut found);
            let report = judge(&Found(vec![found]), snapshot, MARGIN, NOW);
            assert_eq!(report.safe, Some(report.streams[0].problems.is_empty()));
            (report.streams[0].problems.join("; "), report.may_begin())
        };
        assert_eq!(problem(|_| {}), (String::new(), true));
        assert!(
            problem(|found| found.description.view_type = "KEYS_ONLY".to_owned())
                .0
                .contains("NEW_IMAGE")
        );
        assert!(problem(|found| found.description.enabled_since = None).0.contains("when"));
        let disabled = problem(|found| {
            found.description.enabled = false;
            found.description.status = "DISABLED".to_owned();
        });
        assert!(disabled.0.contains("it is DISABLED"));
        // Too many readers are no reason not to close the gap, and not safe either.
        let (readers, covered) = problem(|found| {
            found.readers = Some(Readers { mappings: Ok(2), replicas: Ok(0) });
        });
        assert!(readers.contains("2 event source mappings read it already") && covered);
        let unknown = Readers { mappings: Err("denied".to_owned()), replicas: Ok(0) };
        let mut found = stream(long_ago);
        found.readers = Some(unknown);
        assert_eq!(judge(&Found(vec![found]), snapshot, MARGIN, NOW).safe, Some(true));
    }

    #[test]
    fn a_stream_that_was_enabled_anew_is_judged_by_the_newest() {
        let mut old = stream(NOW - Duration::days(30));
        old.replaced = true;
        old.description.enabled = false;
        let found = Found(vec![old, stream(NOW - Duration::hours(2))]);
        let report = judge(&found, Some(NOW - Duration::hours(5)), MARGIN, NOW);
        assert!(report.safe == Some(false) && report.streams[0].problems.is_empty());
        assert!(report.streams[1].problems[0].contains("after the snapshot"));
    }

    #[test]
    fn what_was_written_between_two_streams_of_a_table_is_said_to_be_in_none() {
        let streams = |table: &'static str, count: i64| {
            (0..count).map(move |index| {
                let mut found = stream(NOW - Duration::days(9 - index));
                found.stream.table = table.to_owned();
                found.replaced = index + 1 < count;
                found
            })
        };
        for (name, sessions, scans, expected) in [
            ("one each", 1, 1, vec![false, false]),
            ("sessions anew", 2, 1, vec![false, true, false]),
            ("scans anew, twice", 1, 3, vec![false, false, true, true]),
        ] {
            let of = streams("sessions", sessions).chain(streams("scans", scans));
            let found = Found(of.collect());
            for snapshot in [None, Some(NOW - Duration::HOUR)] {
                let report = judge(&found, snapshot, MARGIN, NOW);
                let said = |stream: &super::StreamReport| {
                    let said = stream.notes.iter().any(|note| note.contains("repair --scan"));
                    assert_eq!(said, stream.outage.is_some(), "{name}: {:?}", stream.notes);
                    said
                };
                assert_eq!(report.streams.iter().map(said).collect::<Vec<_>>(), expected, "{name}");
                // It may be closed already: a check that is safe stays so.
                assert_eq!(report.safe, snapshot.map(|_| true), "{name}");
            }
        }
    }

    #[test]
    fn the_table_fits_the_terminal_and_tells_two_streams_of_one_table_apart() {
        let mut old = stream(NOW - Duration::days(30));
        (old.replaced, old.stream.label) = (true, "2026-10-24T20:00:00.000".to_owned());
        let mut newest = stream(NOW - Duration::days(2));
        newest.stream.label = "2026-11-21T20:00:00.000".to_owned();
        for width in [80, 110] {
            for found in [Found(vec![stream(NOW)]), Found(vec![old.clone(), newest.clone()])] {
                let report = judge(&found, None, MARGIN, NOW);
                let text = report.table(width);
                let (table, _) = text.split_once("note: ").unwrap_or((&text, ""));
                assert!(table.lines().all(|line| line.len() <= width), "{width}: {text}");
                let labels = ["2026-10-24T20:00:00.000", "2026-11-21T20:00:00.000"];
                let named = labels.iter().all(|label| table.contains(label));
                assert_eq!(named, found.streams().len() > 1, "{text}");
            }
        }
    }

    #[test]
    fn an_older_stream_without_new_images_is_left_out_and_the_newest_is_refused() {
        let keys_only = |replaced| {
            let mut found = stream(NOW - Duration::days(30));
            found.description.view_type = "KEYS_ONLY".to_owned();
            found.replaced = replaced;
            found
        };
        let found = Found(vec![keys_only(true), stream(NOW - Duration::days(2))]);
        assert_eq!(found.readable().map(|readable| readable.len()).ok(), Some(1));
        assert!(Found(vec![keys_only(false)]).readable().is_err());
    }

    #[test]
    fn the_report_is_json_and_a_table() {
        let found = Found(vec![stream(NOW - Duration::days(30))]);
        let report = judge(&found, Some(NOW - Duration::hours(5)), MARGIN, NOW);
        let json: serde_json::Value =
            serde_json::from_str(&serde_json::to_string(&report).expect("JSON")).expect("JSON");
        assert_eq!(json["safe"], true);
        assert_eq!(json["margin_seconds"], 19 * 3600);
        assert_eq!(json["streams"][0]["oldest_readable"], "2026-11-22T20:00:00Z");
        assert_eq!(json["streams"][0]["readers_with_backfill"], 2);
        let expected = "\
TABLE     STATUS   ENABLED SINCE         OLDEST READABLE       GAP      SHARDS            READERS
sessions  ENABLED  2026-10-24 20:00:00Z  2026-11-22 20:00:00Z  covered  1 open, 1 closed  1 mapping + backfill, limit 2
safe: every change since 2026-11-23 15:00:00Z can be read, for 19 h 0 min more (until 2026-11-24 15:00:00Z)
";
        assert_eq!(report.table(120), expected);
        let unknown = judge(&found, None, MARGIN, NOW);
        assert!(unknown.table(100).contains("the gap is not checked") && unknown.may_begin());
        assert_eq!((unknown.safe, unknown.has_problems()), (None, false));
    }
}
