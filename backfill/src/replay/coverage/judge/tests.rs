//! The table of cases.

use time::macros::datetime;
use time::{Duration, OffsetDateTime};

use super::judge;
use crate::replay::coverage::{Found, FoundStream};
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
