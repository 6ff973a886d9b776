//! When `backfill stream` calls an open shard caught up, and what it says of that.

use serde_json::Value as Json;
use testkit::records::{LABEL, Record, Table, arn, session};
use testkit::runs::{assert_code, assert_equal, command, now, output, stream, text};
use testkit::services::Stores;
use testkit::stream_server::{Fault, StreamServer};

/// A server with an open shard of the sessions and records in it.
async fn one_shard(records: u128) -> (StreamServer, Vec<Record>) {
    let server = StreamServer::start().await;
    let arn = server.add_stream(Table::Sessions, LABEL);
    server.add_stream(Table::Scans, LABEL);
    server.open_shard(&arn, "shardId-a", None);
    let records: Vec<Record> =
        (1..=records).map(|index| session(&format!("s{index}"), "u").place(LABEL, index)).collect();
    server.put(&arn, "shardId-a", &records);
    (server, records)
}

/// More empty pages than count as the tip for a shard that has returned records.
#[tokio::test(flavor = "multi_thread")]
async fn a_shard_without_a_record_yet_is_asked_for_longer() {
    let stores = Stores::fresh().await;
    let (server, records) = one_shard(3).await;
    server.set_empty_pages(25);
    let arguments = ["stream", "--idle-seconds", "1", "--first-record-seconds", "20"];
    let run = output(command(&stores, &server, &arguments)).await;
    assert_code(&run, 0);
    assert_equal(&stores, &records).await;
    let summary = text(&run.stdout);
    assert!(summary.contains("1 open shard is assumed to be caught up"), "{summary}");
    assert!(summary.contains("sessions/shardId-a"), "{summary}");
    assert!(!summary.contains("every record created before"), "{summary}");
}

/// What is known is said, and what is assumed is named, to people and as JSON.
#[tokio::test(flavor = "multi_thread")]
async fn only_a_later_record_shows_that_a_shard_is_caught_up() {
    let stores = Stores::fresh().await;
    let (server, mut records) = one_shard(3).await;
    let json = async || -> Json {
        let run = output(stream(&stores, &server, &["--json"])).await;
        assert_code(&run, 0);
        serde_json::from_slice(&run.stdout).expect("JSON")
    };
    let assumed = json().await;
    assert_eq!(assumed["counts"]["applied"], 3);
    assert_eq!(assumed["assumed_caught_up"][0]["shard"], "shardId-a");
    assert_eq!(assumed["assumed_caught_up"][0]["returned_records"], true);

    let mut later = session("later", "u");
    later.created_at = Some(now() + 600);
    records.push(later.place(LABEL, 100));
    server.put(&arn("sessions", LABEL), "shardId-a", &records[3..]);
    let known = json().await;
    assert_eq!(known["assumed_caught_up"].as_array().map(Vec::len), Some(0), "{known}");
    assert_equal(&stores, &records).await;
    server.roll(&arn("sessions", LABEL), "shardId-a", "shardId-b");
    let mut last = session("last", "u");
    last.created_at = Some(now() + 600);
    let last = last.place(LABEL, 101);
    server.put(&arn("sessions", LABEL), "shardId-b", std::slice::from_ref(&last));
    let run = output(stream(&stores, &server, &[])).await;
    assert!(text(&run.stdout).contains("every record created before"), "{run:?}");
}

/// A new iterator walks through the empty part of the shard again.
#[tokio::test(flavor = "multi_thread")]
async fn an_expired_iterator_before_the_first_record_restarts_the_count() {
    let stores = Stores::fresh().await;
    let (server, records) = one_shard(3).await;
    // Ten count as the tip.
    server.set_empty_pages(8);
    server.set_rule(|call| match (call.operation, call.earlier) {
        ("GetRecords", 6) => Fault::Error(400, "ExpiredIteratorException"),
        _ => Fault::Pass,
    });
    let run = output(stream(&stores, &server, &[])).await;
    assert_code(&run, 0);
    assert_equal(&stores, &records).await;
}
