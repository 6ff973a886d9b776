//! `backfill check`, and what `stream` makes of it: which replay may begin, and which may go on.

use std::time::Duration;

use testkit::records::{Table, session};
use testkit::runs::{
    age_checkpoints, assert_code, assert_equal, command, counted, label, now, output, rfc3339,
    stream, text, well_formed,
};
use testkit::services::Stores;
use testkit::stream_server::{Fault, StreamServer};

/// A replay that has begun in time goes on although the margin is used up; a new one does not
/// begin.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_began_in_time_resumes_once_the_snapshot_is_too_old() {
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    let enabled = label(now() - 3 * 24 * 3600);
    let arn = server.add_stream(Table::Sessions, &enabled);
    server.add_stream(Table::Scans, &enabled);
    server.open_shard(&arn, "shardId-a", None);
    let records = [1, 2].map(|index| session(&format!("s{index}"), "u").place(&enabled, index));
    server.put(&arn, "shardId-a", &records[..1]);
    let snapshot = rfc3339(now() - 23 * 3600 - 1800);
    let arguments = ["--snapshot-time", &snapshot];
    let late = output(stream(&stores, &server, &arguments)).await;
    assert_code(&late, 4);
    assert!(text(&late.stderr).contains("--margin-minutes"), "{late:?}");
    let begun = [arguments[0], arguments[1], "--margin-minutes", "10"];
    assert_code(&output(stream(&stores, &server, &begun)).await, 0);
    server.put(&arn, "shardId-a", &records[1..]);
    let resumed = output(stream(&stores, &server, &arguments)).await;
    assert_code(&resumed, 0);
    assert!(text(&resumed.stderr).contains("resuming from its checkpoints"), "{resumed:?}");
    assert_equal(&stores, &records).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_check_says_whether_the_gap_is_covered_and_who_reads() {
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    let enabled = label(now() - 3 * 24 * 3600);
    let mut arns = Vec::new();
    for table in [Table::Sessions, Table::Scans] {
        let arn = server.add_stream(table, &enabled);
        server.open_shard(&arn, "shardId-a", None);
        server.roll(&arn, "shardId-a", "shardId-b");
        server.set_event_source_mappings(&arn, Some(1));
        arns.push(arn);
    }
    let check = async |hours_ago: i64, arguments: &[&str]| {
        let snapshot = rfc3339(now() - hours_ago * 3600);
        let arguments = [&["check", "--snapshot-time", snapshot.as_str()], arguments].concat();
        let mut command = command(&stores, &server, &arguments);
        // It needs none.
        command.env_remove("DATABASE_URL").env_remove("ARCHIVE_BUCKET");
        output(command).await
    };
    let safe = check(5, &[]).await;
    assert_code(&safe, 0);
    let table = text(&safe.stdout);
    for part in [
        "sessions  ENABLED",
        "covered",
        "1 open,",
        "1 closed",
        "1 mapping + backfill, limit 2",
        "safe: every change since",
    ] {
        assert!(table.contains(part), "{part}: {table}");
    }
    let json = check(5, &["--json"]).await;
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(
        (&json["safe"], &json["streams"][1]["readers_with_backfill"]),
        (&true.into(), &2.into())
    );
    assert_eq!(json["streams"][1]["covered"], true);

    for (hours_ago, arguments, part) in [
        (25, vec![], "has been trimmed"),
        (23, vec!["--margin-minutes", "90"], "less than the margin of 1 h 30 min"),
        (80, vec![], "after the snapshot"),
        (-1, vec![], "is in the future"),
    ] {
        let unsafe_ = check(hours_ago, &arguments).await;
        assert_code(&unsafe_, 4);
        assert!(text(&unsafe_.stdout).contains(part), "{part}: {unsafe_:?}");
    }
    server.set_event_source_mappings(&arns[1], Some(2));
    let crowded = check(5, &[]).await;
    assert_code(&crowded, 4);
    assert!(
        text(&crowded.stdout).contains("2 event source mappings read it already"),
        "{crowded:?}"
    );
    // A backfill beside two mappings is throttled, and still closes the gap.
    let snapshot = rfc3339(now() - 5 * 3600);
    assert_code(&output(stream(&stores, &server, &["--snapshot-time", &snapshot])).await, 0);
    server.set_event_source_mappings(&arns[1], None);
    let unknown = check(5, &[]).await;
    assert_code(&unknown, 0);
    assert!(text(&unknown.stdout).contains("unknown + backfill"), "{unknown:?}");
    assert!(text(&unknown.stdout).contains("AccessDenied"), "{unknown:?}");
}

/// Writes made while a stream was off are in no stream; nobody would look for them otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn the_time_between_two_streams_of_a_table_is_named_with_its_remedy() {
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    let (enabled, anew) = (now() - 3 * 24 * 3600, now() - 2 * 3600);
    let old = server.add_stream(Table::Sessions, &label(enabled));
    let last_made = now() - 5 * 3600;
    server.open_shard(&old, &format!("shardId-{:020}-a", last_made * 1000), None);
    server.disable(&old);
    server.add_stream(Table::Sessions, &label(anew));
    server.add_stream(Table::Scans, &label(enabled));

    let check = output(command(&stores, &server, &["check"])).await;
    assert_code(&check, 0);
    let said = text(&check.stdout);
    let clock = |time| rfc3339(time).replace('T', " ");
    for part in [
        format!("not before {}", clock(last_made)),
        format!("this one at {}", clock(anew)),
        "`backfill repair --scan` closes that gap".to_owned(),
    ] {
        assert!(said.contains(&part), "{part}: {said}");
    }
    let json = output(command(&stores, &server, &["check", "--json"])).await;
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    let outages: Vec<_> = (0..3).map(|index| &json["streams"][index]["outage"]).collect();
    assert_eq!((outages[0], outages[2]), (&serde_json::Value::Null, &serde_json::Value::Null));
    assert_eq!(outages[1]["after"], rfc3339(last_made));
    assert_eq!(outages[1]["until"], rfc3339(anew));
    // The replay says so as well, before it reads.
    let replay = output(stream(&stores, &server, &[])).await;
    assert_code(&replay, 0);
    assert!(text(&replay.stderr).contains("`backfill repair --scan`"), "{replay:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_that_is_not_covered_is_refused_before_anything_is_read() {
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    let records = well_formed(5, 22);
    server.fill(&records, 1, 1);
    let snapshot = rfc3339(now() - 30 * 3600);
    let refused = output(stream(&stores, &server, &["--snapshot-time", &snapshot])).await;
    assert_code(&refused, 4);
    assert!(text(&refused.stderr).contains("--allow-gap"), "{refused:?}");
    assert_eq!((server.count("GetShardIterator"), stores.rows().await.len()), (0, 0));
    let allowed =
        output(stream(&stores, &server, &["--snapshot-time", &snapshot, "--allow-gap"])).await;
    assert_code(&allowed, 5);
    assert_equal(&stores, &records).await;
}

/// A database restored from a snapshot has the checkpoints of an earlier backfill of its own;
/// another archive lacks the objects of what is behind a checkpoint.
#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_of_another_snapshot_or_archive_are_ignored() {
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    let enabled = label(now() - 3 * 24 * 3600);
    let record = session("s1", "u").place(&enabled, 1);
    let arn = server.add_stream(Table::Sessions, &enabled);
    server.add_stream(Table::Scans, &enabled);
    server.open_shard(&arn, "shardId-a", None);
    server.put(&arn, "shardId-a", std::slice::from_ref(&record));
    let mut without_archive = stream(&stores, &server, &[]);
    without_archive.env_remove("ARCHIVE_BUCKET");
    assert_code(&output(without_archive).await, 0);
    let archived = output(stream(&stores, &server, &[])).await;
    assert_eq!(counted(&archived, "objects written"), 1, "{archived:?}");
    assert!(text(&archived.stderr).contains("1 checkpoints are deleted"), "{archived:?}");
    assert_eq!(counted(&output(stream(&stores, &server, &[])).await, "duplicate"), 0);

    // Written before the snapshot: it came with it.
    age_checkpoints(&stores, 3).await;
    let snapshot = rfc3339(now() - 2 * 3600);
    let run = output(stream(&stores, &server, &["--snapshot-time", &snapshot])).await;
    assert_eq!((run.status.code(), counted(&run, "duplicate")), (Some(0), 1), "{run:?}");
}

/// Checkpoints of a run that promised nothing do not show that it began in time.
#[tokio::test(flavor = "multi_thread")]
async fn a_gap_that_was_too_old_from_the_start_is_refused_whatever_was_read_since() {
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    let enabled = label(now() - 3 * 24 * 3600);
    let arn = server.add_stream(Table::Sessions, &enabled);
    server.add_stream(Table::Scans, &enabled);
    server.open_shard(&arn, "shardId-a", None);
    server.put(&arn, "shardId-a", &[session("s1", "u").place(&enabled, 1)]);
    assert_code(&output(stream(&stores, &server, &[])).await, 0);
    let snapshot = rfc3339(now() - 30 * 3600);
    let arguments = ["--snapshot-time", &snapshot];
    let refused = output(stream(&stores, &server, &arguments)).await;
    assert_code(&refused, 4);
    // Nor does a new beginning take away what another run may go on from.
    let begun = rfc3339(now() - 23 * 3600 - 1800);
    let begun = ["--snapshot-time", &begun, "--margin-minutes", "10"];
    assert_code(&output(stream(&stores, &server, &[&begun[..], &["--restart"]].concat())).await, 0);
    let refused = output(stream(&stores, &server, &["--restart", begun[0], begun[1]])).await;
    assert_code(&refused, 4);
    assert_eq!(stores.ask("SELECT count(*) FROM backfill_checkpoints").await, "1");
    assert_code(&output(stream(&stores, &server, &begun[..2])).await, 0);
    // What was lost with a will is said at the end.
    let lost = output(stream(&stores, &server, &["--allow-gap", arguments[0], arguments[1]])).await;
    assert_code(&lost, 5);
}

/// A global table's replication reads too; and no endpoint of Lambda is no reason to wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_global_table_has_one_reader_to_spare_and_nothing_waits_for_the_count() {
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    let records = well_formed(5, 32);
    server.fill(&records, 1, 1);
    let json = async |arguments: &[&str]| -> (Option<i32>, serde_json::Value) {
        let run =
            output(command(&stores, &server, &[&["check", "--json"], arguments].concat())).await;
        (run.status.code(), serde_json::from_slice(&run.stdout).expect("JSON"))
    };
    // Without a snapshot it says who reads, and how far back can be read.
    let (code, report) = json(&[]).await;
    assert_eq!((code, &report["safe"]), (Some(0), &serde_json::Value::Null), "{report}");
    assert!(report["streams"][0]["oldest_readable"].is_string(), "{report}");
    assert_eq!(report["streams"][0]["readers_limit"], 2);
    server.set_replicas(Table::Sessions, 2);
    for stream in report["streams"].as_array().expect("streams") {
        server.set_event_source_mappings(stream["arn"].as_str().expect("an ARN"), Some(1));
    }
    let (code, report) = json(&[]).await;
    let sessions = &report["streams"][0];
    assert_eq!((code, &sessions["readers_limit"]), (Some(4), &1.into()), "{report}");
    assert!(sessions["notes"][0].as_str().is_some_and(|note| note.contains("TTL_REMOVALS=keep")));
    assert_eq!(report["streams"][1]["problems"].as_array().map(Vec::len), Some(0), "{report}");

    // A Lambda API that does not answer: the replay is done before the question is given up.
    server.set_rule(|call| match call.operation {
        "ListEventSourceMappings" => Fault::Delay(Duration::from_mins(1)),
        _ => Fault::Pass,
    });
    let run = output(stream(&stores, &server, &[])).await;
    assert_code(&run, 0);
    assert_equal(&stores, &records).await;
    assert!(!text(&run.stderr).contains("does not answer"), "it waited: {run:?}");
    let (_, report) = json(&[]).await;
    let notes = report["streams"][0]["notes"].to_string();
    assert!(notes.contains("cannot be reached") || notes.contains("does not answer"), "{notes}");
}

/// A script that asked for JSON gets JSON, also if a table has no stream.
#[tokio::test(flavor = "multi_thread")]
async fn the_report_is_json_whatever_is_wrong() {
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    let run = output(command(&stores, &server, &["check", "--json"])).await;
    assert_code(&run, 2);
    let report: serde_json::Value = serde_json::from_slice(&run.stdout).expect("JSON");
    assert_eq!((&report["safe"], &report["exit_code"]), (&serde_json::Value::Null, &2.into()));
    assert!(
        report["error"].as_str().is_some_and(|error| error.contains("has no stream")),
        "{report}"
    );
}

/// A margin that is short is not a gap, and the remedy is another.
#[tokio::test(flavor = "multi_thread")]
async fn a_short_margin_is_not_called_a_gap() {
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    let enabled = label(now() - 3 * 24 * 3600);
    server.add_stream(Table::Sessions, &enabled);
    server.add_stream(Table::Scans, &enabled);
    let snapshot = rfc3339(now() - 23 * 3600 - 1800);
    let short = output(stream(&stores, &server, &["--snapshot-time", &snapshot])).await;
    assert_code(&short, 4);
    let log = text(&short.stderr);
    assert!(log.contains("nothing is missing yet") && log.contains("--margin-minutes 0"), "{log}");
    assert!(!log.contains("--allow-gap"), "{log}");
}
