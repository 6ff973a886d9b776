//! `backfill stream` where records are trimmed away: nothing is lost in silence, and nothing is
//! called lost that is not.

use testkit::oracle;
use testkit::records::{LABEL, Record, Table, session};
use testkit::runs::{
    age_what_was_read, assert_code, assert_equal, label, now, output, rfc3339, stream, text,
    well_formed,
};
use testkit::services::Stores;
use testkit::stream_server::{Fault, StreamServer};

#[tokio::test(flavor = "multi_thread")]
async fn trimmed_records_stop_the_run_and_are_named() {
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    let arn = server.add_stream(Table::Sessions, LABEL);
    server.add_stream(Table::Scans, LABEL);
    server.open_shard(&arn, "shardId-a", None);
    let record = |index: u128, created_at: i64| {
        let mut draft = session(&format!("s{index}"), "u");
        draft.created_at = Some(created_at);
        draft.place(LABEL, index)
    };
    let long_ago = now() - 40 * 3600;
    let records: Vec<Record> = (1..=10).map(|index| record(index, long_ago)).collect();
    server.put(&arn, "shardId-a", &records[..5]);
    assert_code(&output(stream(&stores, &server, &[])).await, 0);
    age_what_was_read(&stores, 40).await;
    server.put(&arn, "shardId-a", &records[5..]);
    server.trim(&arn, "shardId-a", 8);

    let stopped = output(stream(&stores, &server, &[])).await;
    assert_code(&stopped, 5);
    let error = text(&stopped.stderr);
    let since = "SELECT to_char(read_through AT TIME ZONE 'utc', 'YYYY-MM-DD HH24:MI:SS') FROM \
        backfill_checkpoints";
    let since = stores.ask(since).await;
    for part in ["shardId-a", "sequence number 000000000000000000005", &since, "--allow-gap"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    // Nothing was skipped.
    assert_eq!(stores.rows().await, oracle::rows(&records[..5]));

    let allowed = output(stream(&stores, &server, &["--allow-gap"])).await;
    assert_code(&allowed, 5);
    assert!(text(&allowed.stderr).contains("records can be lost"), "{allowed:?}");
    assert!(!text(&allowed.stderr).contains("--allow-gap"), "it is given: {allowed:?}");
    let summary = text(&allowed.stdout);
    assert!(summary.contains("records can be lost in 1 shard: sessions/shardId-a"), "{summary}");
    let expected: Vec<Record> = [&records[..5], &records[8..]].concat();
    assert_eq!(stores.rows().await, oracle::rows(&expected));

    // A shard with a checkpoint that is gone whole.
    age_what_was_read(&stores, 30).await;
    server.remove_shard(&arn, "shardId-a");
    server.open_shard(&arn, "shardId-b", Some("shardId-a"));
    let stopped = output(stream(&stores, &server, &[])).await;
    assert_code(&stopped, 5);
    assert!(text(&stopped.stderr).contains("shardId-a"), "{stopped:?}");
}

/// The trim horizon says nothing: a shard that was empty when it was last looked at begins later
/// now.
#[tokio::test(flavor = "multi_thread")]
async fn a_shard_whose_beginning_was_trimmed_in_silence_stops_the_run() {
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    let arn = server.add_stream(Table::Sessions, LABEL);
    server.add_stream(Table::Scans, LABEL);
    let records: Vec<Record> =
        (1..=4).map(|index| session(&format!("s{index}"), "u").place(LABEL, index)).collect();
    server.open_shard(&arn, "shardId-a", None);
    server.put(&arn, "shardId-a", &records[..1]);
    server.roll(&arn, "shardId-a", "shardId-b");
    assert_code(&output(stream(&stores, &server, &[])).await, 0);
    // A day later: the parent is gone, the child was written to, closed, and trimmed in part.
    age_what_was_read(&stores, 25).await;
    server.put(&arn, "shardId-b", &records[1..]);
    server.roll(&arn, "shardId-b", "shardId-c");
    server.remove_shard(&arn, "shardId-a");
    server.trim(&arn, "shardId-b", 2);
    let stopped = output(stream(&stores, &server, &[])).await;
    assert_code(&stopped, 5);
    assert!(text(&stopped.stderr).contains("shard shardId-b"), "{stopped:?}");
    // A database that others kept up to date begins anew.
    let anew = output(stream(&stores, &server, &["--restart"])).await;
    assert_code(&anew, 0);
    assert_eq!(stores.rows().await.len(), 2, "what is left");
}

/// The horizon and the listing are not of one moment: what is refused once is tried again.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_at_the_trim_horizon_that_passes_loses_nothing() {
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    let records = well_formed(10, 24);
    server.fill(&records, 2, 2);
    server.set_rule(|call| match (call.operation, call.earlier) {
        ("GetRecords", 0..=2) => Fault::Error(400, "TrimmedDataAccessException"),
        ("GetShardIterator", 1..=2) => Fault::Error(400, "ResourceNotFoundException"),
        _ => Fault::Pass,
    });
    let run = output(stream(&stores, &server, &[])).await;
    assert_code(&run, 0);
    assert_equal(&stores, &records).await;
}

/// What was trimmed is older than the snapshot: the database has it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_trimmed_and_older_than_the_snapshot_is_not_lost() {
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    let enabled = label(now() - 48 * 3600);
    let arn = server.add_stream(Table::Sessions, &enabled);
    server.add_stream(Table::Scans, &enabled);
    server.open_shard(&arn, "shardId-a", None);
    let records: Vec<Record> = (1..=4)
        .map(|index| {
            let mut draft = session(&format!("s{index}"), "u");
            draft.created_at = Some(now() - 22 * 3600);
            draft.place(&enabled, index)
        })
        .collect();
    server.put(&arn, "shardId-a", &records[..1]);
    let snapshot = rfc3339(now() - 3600);
    let arguments = ["--snapshot-time", &snapshot];
    assert_code(&output(stream(&stores, &server, &arguments)).await, 0);
    server.put(&arn, "shardId-a", &records[1..]);
    server.trim(&arn, "shardId-a", 3);
    let run = output(stream(&stores, &server, &arguments)).await;
    assert_code(&run, 0);
    assert!(text(&run.stderr).contains("nothing is lost"), "{run:?}");
    let expected: Vec<Record> = [&records[..1], &records[3..]].concat();
    assert_eq!(stores.rows().await, oracle::rows(&expected));
}
