//! `backfill stream` against a stream server that does on command what DynamoDB Streams do when
//! they like: the real binary, the real SDK client, real stores.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use testkit::generate::{self, SMALL};
use testkit::oracle;
use testkit::records::{LABEL, Record, Table, arn, scan, session};
use testkit::runs::{assert_code, assert_equal, counted, now, output, stream, text, well_formed};
use testkit::services::Stores;
use testkit::stream_server::{Fault, StreamServer};

#[tokio::test(flavor = "multi_thread")]
async fn a_forest_of_shards_ends_in_its_rows_and_a_second_run_reads_only_what_is_new() {
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    stores.forbid_going_back().await;
    let mut records = well_formed(60, 11);
    server.fill(&records, 5, 4);
    server.set_page_size(7);
    server.set_empty_pages(3);
    server.set_shards_a_page(3);
    // A split, and a merge as the API tells it: the child names one of its two parents.
    let arn = arn("sessions", LABEL);
    server.split(&arn, "shardId-0003-0000", ["shardId-0004-a", "shardId-0004-b"]);
    server.merge(&arn, ["shardId-0003-0001", "shardId-0003-0002"], "shardId-0004-c");
    let more: Vec<Record> = ["a", "b", "c"]
        .into_iter()
        .enumerate()
        .map(|(index, shard)| {
            let record =
                session(&format!("late-{shard}"), "u").place(LABEL, (1 << 90) + index as u128);
            server.put(&arn, &format!("shardId-0004-{shard}"), std::slice::from_ref(&record));
            record
        })
        .collect();
    records.extend(more);
    // One bad record on the way, and one of a type that no SDK knows.
    let mut bad = session("bad", "u").place(LABEL, 1 << 91);
    bad.json = bad.json.replace("\"user_id\":{\"S\":\"u\"}", "\"user_id\":{\"N\":\"1\"}");
    let mut unknown = session("unknown", "u").place(LABEL, (1 << 91) + 1);
    unknown.json = unknown.json.replace("\"user_id\":{\"S\":\"u\"}", "\"user_id\":{\"XX\":\"1\"}");
    server.put(&arn, "shardId-0004-c", &[bad, unknown]);

    let first = output(stream(&stores, &server, &["--parallel", "4"])).await;
    assert_code(&first, 3);
    assert_equal(&stores, &records).await;
    assert_eq!(stores.rejected().await, 2);
    let reasons =
        stores.ask("SELECT string_agg(reason, '; ' ORDER BY reason) FROM rejected_records").await;
    assert!(reasons.contains("tagged N") && reasons.contains("user_id"), "{reasons}");
    assert!(server.most_at_once() <= 4, "{}", server.most_at_once());
    assert_parents_first(&server);
    // Nothing was written to the open shards since.
    assert!(text(&first.stdout).contains("are assumed to be caught up"), "{first:?}");

    // What is finished is not read again; what is open goes on behind its checkpoint.
    let (calls, places) = (server.calls().len(), stores.row_places().await);
    let new = session("new", "u").place(LABEL, 1 << 92);
    server.put(&arn, "shardId-0004-a", std::slice::from_ref(&new));
    records.push(new);
    let second = output(stream(&stores, &server, &[])).await;
    assert_code(&second, 0);
    assert_eq!(counted(&second, "applied"), 1);
    assert_equal(&stores, &records).await;
    let after = stores.row_places().await;
    assert!(places.iter().all(|place| after.contains(place)), "no other row was touched");
    for call in &server.calls()[calls..] {
        assert!(!call.shard.starts_with("shardId-0000"), "{call:?}");
    }
    // From the start again: all is held.
    let again = output(stream(&stores, &server, &["--restart"])).await;
    assert_eq!((again.status.code(), counted(&again, "applied")), (Some(3), 0), "{again:?}");
    assert_eq!(counted(&again, "objects written"), 0);
}

/// No shard was read before the end of its parent was given out.
fn assert_parents_first(server: &StreamServer) {
    let calls = server.calls();
    let mut last_read: HashMap<(&str, &str), usize> = HashMap::new();
    for (index, call) in calls.iter().enumerate() {
        last_read.insert((&call.arn, &call.shard), index);
    }
    let mut checked = 0;
    for (index, call) in calls.iter().enumerate() {
        let mut parts = call.shard.splitn(3, '-').skip(1);
        let generation = parts.next().and_then(|generation| generation.parse::<usize>().ok());
        let (Some(generation), Some(lineage)) = (generation, parts.next()) else { continue };
        let Some(before) = generation.checked_sub(1) else { continue };
        let parent = format!("shardId-{before:04}-{lineage}");
        if let Some(parent_read) = last_read.get(&(call.arn.as_str(), parent.as_str())) {
            assert!(*parent_read < index, "{call:?} before the end of {parent}");
            checked += 1;
        }
    }
    assert!(checked > 50, "{checked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_resumes_after_throttling_failures_cuts_and_expired_iterators() {
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    let records = well_formed(40, 12);
    server.fill(&records, 3, 2);
    server.set_page_size(5);
    let calls = AtomicUsize::new(0);
    server.set_rule(move |call| match (call.operation, calls.fetch_add(1, Ordering::Relaxed)) {
        ("GetRecords", index) if index % 9 == 0 => Fault::Error(400, "ExpiredIteratorException"),
        ("GetRecords", index) if index % 9 == 2 => Fault::Cut,
        (_, index) if index % 9 == 4 => Fault::Error(400, "LimitExceededException"),
        (_, index) if index % 9 == 6 => Fault::Error(500, "InternalServerError"),
        _ => Fault::Pass,
    });
    let run = output(stream(&stores, &server, &[])).await;
    assert_code(&run, 0);
    assert_equal(&stores, &records).await;
    let summary = text(&run.stdout);
    for what in ["calls throttled", "calls failed and repeated", "iterators expired"] {
        assert!(summary.contains(what), "{summary}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_api_refuses_ends_the_run_with_the_remedy() {
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    server.fill(&well_formed(3, 1), 1, 1);
    server.set_rule(|call| match call.operation {
        "GetRecords" => Fault::Error(400, "AccessDeniedException"),
        _ => Fault::Pass,
    });
    let run = output(stream(&stores, &server, &[])).await;
    assert_code(&run, 1);
    assert!(text(&run.stderr).contains("dynamodb:ListStreams"), "{run:?}");

    server.set_view_type(&arn("scans", generate::LATER_LABEL), "KEYS_ONLY");
    let run = output(stream(&stores, &server, &[])).await;
    assert_code(&run, 2);
    assert!(text(&run.stderr).contains("enable it with NEW_IMAGE"), "{run:?}");

    let mut command = stream(&stores, &server, &[]);
    command.env("SCANS_TABLE", "no-such-table");
    let run = output(command).await;
    assert_code(&run, 2);
    assert!(text(&run.stderr).contains("SCANS_TABLE is \"no-such-table\""), "{run:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_a_description_that_disagree_are_asked_for_again() {
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    let records = well_formed(40, 13);
    server.fill(&records, 3, 3);
    server.set_shards_a_page(2);
    // Once a child is missing, once its parent is shown as open still.
    server.set_rule(|call| match (call.operation, call.earlier) {
        ("DescribeStream", 0..=4) => Fault::Hide(vec!["shardId-0002-0001".to_owned()]),
        ("DescribeStream", 5..=9) => Fault::ShowOpen(vec!["shardId-0001-0002".to_owned()]),
        _ => Fault::Pass,
    });
    let run = output(stream(&stores, &server, &[])).await;
    assert_code(&run, 0);
    assert_equal(&stores, &records).await;
    assert!(text(&run.stdout).contains("descriptions asked for again"), "{run:?}");
}

/// A child that is listed only after its parent was read to the end.
#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_is_listed_late_is_still_read() {
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    let records = well_formed(30, 14);
    server.fill(&records, 2, 3);
    let listed = Arc::new(AtomicBool::new(false));
    let shown = Arc::clone(&listed);
    server.set_rule(move |call| match call.operation {
        "DescribeStream" if !shown.load(Ordering::Relaxed) => {
            Fault::Hide(vec!["shardId-0002-0000".to_owned(), "shardId-0002-0001".to_owned()])
        }
        _ => Fault::Pass,
    });
    let run = stream(&stores, &server, &["--child-wait-seconds", "30"]);
    let show = async {
        while !server.calls().iter().any(|call| call.shard.starts_with("shardId-0001")) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        listed.store(true, Ordering::Relaxed);
    };
    let (run, ()) = tokio::join!(output(run), show);
    assert_code(&run, 0);
    assert_equal(&stores, &records).await;
}

/// An open shard that gives empty pages for long before its records, and was closed in truth: the
/// last description shows it.
#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_seemed_idle_and_was_closed_is_read_to_its_end() {
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    let mut records = well_formed(20, 23);
    records.retain(|record| record.label == LABEL);
    server.fill(&records, 1, 1);
    for table in ["sessions", "scans"] {
        server.roll(&arn(table, LABEL), "shardId-0000-0000", "shardId-0001-0000");
    }
    // Longer than it takes to seem idle.
    server.set_empty_pages(40);
    server.set_rule(|call| match (call.operation, call.earlier) {
        // At the start, for both tables and as often as they are asked: open.
        ("DescribeStream", 0..=9) => Fault::ShowOpen(vec!["shardId-0000-0000".to_owned()]),
        _ => Fault::Pass,
    });
    let run = output(stream(&stores, &server, &[])).await;
    assert_code(&run, 0);
    assert_equal(&stores, &records).await;
}

/// A split of which one child is not listed yet, while the other one is written to.
#[tokio::test(flavor = "multi_thread")]
async fn a_sibling_that_is_listed_late_is_still_read() {
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    let mut records = well_formed(10, 25);
    records.retain(|record| record.label == LABEL);
    server.fill(&records, 1, 1);
    let arn = arn("sessions", LABEL);
    server.split(&arn, "shardId-0000-0000", ["shardId-0001-a", "shardId-0001-b"]);
    let late = [("a", now() + 60), ("b", now() - 60)].map(|(shard, created_at)| {
        let mut draft = session(&format!("late-{shard}"), "u");
        draft.created_at = Some(created_at);
        let record = draft.place(LABEL, 1 << 90);
        server.put(&arn, &format!("shardId-0001-{shard}"), std::slice::from_ref(&record));
        record
    });
    records.extend(late);
    server.set_rule(|call| match (call.operation, call.earlier) {
        // The first description of each stream.
        ("DescribeStream", 0..=1) => Fault::Hide(vec!["shardId-0001-b".to_owned()]),
        _ => Fault::Pass,
    });
    let run = output(stream(&stores, &server, &[])).await;
    assert_code(&run, 0);
    assert_equal(&stores, &records).await;
}

/// A thousand shards whose meshes are many times the memory it may take: peak resident memory
/// counted in bytes by the kernel.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_shards_are_read_in_bounded_memory() {
    const MESH_BYTES: usize = 150_000;
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    let arn = server.add_stream(Table::Scans, LABEL);
    server.add_stream(Table::Sessions, LABEL);
    let mesh = "A".repeat(MESH_BYTES / 3 * 4);
    let mut records = Vec::new();
    for index in 0..1_000_u128 {
        // No shard waits for another: all of them may be read at once.
        let shard = format!("shardId-{index:04}");
        server.open_shard(&arn, &shard, None);
        let mut draft =
            scan(&format!("s{}", index % 100), "left", &format!("{}.5", 100 + index / 100));
        if let Some(image) = &mut draft.image {
            image["mesh"] = serde_json::json!({ "B": mesh });
        }
        let record = draft.place(LABEL, index + 1);
        server.put(&arn, &shard, std::slice::from_ref(&record));
        records.push(record);
    }
    let mut run = stream(&stores, &server, &["--parallel", "8"]);
    run.env_remove("ARCHIVE_BUCKET");
    let child = run.spawn().expect("backfill runs");
    let status = format!("/proc/{}/status", child.id().expect("it runs"));
    let ended = tokio::spawn(child.wait_with_output());
    let mut peak_kib = 0;
    while !ended.is_finished() {
        let status = std::fs::read_to_string(&status).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
        peak_kib = peak.unwrap_or(0).max(peak_kib);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let ended = ended.await.expect("no panic").expect("it ends");
    assert_code(&ended, 0);
    assert_eq!(stores.rows().await, oracle::rows(&records));
    assert!(server.most_at_once() <= 8);
    let megabytes = peak_kib / 1024;
    println!(
        "peak resident memory {megabytes} MiB for {} MiB of records",
        (1_000 * MESH_BYTES) >> 20
    );
    assert!((10..150).contains(&megabytes), "{megabytes} MiB");
}

/// A stream that was disabled can be read for a day; its shards are all closed.
#[tokio::test(flavor = "multi_thread")]
async fn the_older_stream_of_a_table_is_read_too() {
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    let records = well_formed(SMALL.sessions, SMALL.seed);
    assert!(records.iter().any(|record| record.label == generate::LATER_LABEL));
    server.fill(&records, 2, 2);
    server.disable(&arn("scans", LABEL));
    let run = output(stream(&stores, &server, &[])).await;
    assert_code(&run, 0);
    assert!(text(&run.stderr).contains("an older stream of the table"), "{run:?}");
    assert_equal(&stores, &records).await;
}
