//! `backfill stream` against a stream server that does on command what DynamoDB Streams do when they
//! like: the real binary, the real SDK client, real stores.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use fastrand::Rng;
use testkit::emulator::{Lambda, event};
use testkit::gates::TcpGate;
use testkit::generate::{self, SMALL};
use testkit::oracle;
use testkit::records::{LABEL, Record, Table, arn, removal, scan, session};
use testkit::runs::{
    assert_code, assert_equal, counted, now, output, signal, stream, text, until, well_formed,
};
use testkit::services::{Stores, parsed};
use testkit::stream_server::{Fault, StreamServer, lineage_of};

/// What a checkpoint says is in both stores: of each shard with one, every record up to it.
async fn assert_no_checkpoint_ahead(
    stores: &Stores,
    records_by_shard: &HashMap<(String, String), Vec<Record>>,
) {
    let checkpoints: Vec<(String, String, Option<String>, bool)> = sqlx::query_as(
        "SELECT stream_arn, shard_id, sequence_number, finished FROM backfill_checkpoints",
    )
    .fetch_all(&mut stores.connect().await)
    .await
    .expect("the checkpoints");
    let rows = stores.rows().await;
    let objects = parsed(&stores.objects().await);
    for (arn, shard, last, finished) in checkpoints {
        let last: u128 = last.map_or(0, |last| last.parse().expect("a number"));
        for record in &records_by_shard[&(arn.clone(), shard.clone())] {
            if record.sequence_number > last && !finished {
                continue;
            }
            let (session, part) = record.item.split_once('/').unwrap_or((&record.item, "session"));
            let version = format!("{}/{:040}", record.label, record.sequence_number);
            let row = rows[session][format!("{part}_version")].as_str().unwrap_or_default();
            assert!(row >= version.as_str(), "{shard} is ahead of the row of {}", record.item);
            let object = &objects[&format!("measurements/{session}.json")]["versions"][part];
            let object = object.as_str().unwrap_or_default();
            assert!(
                object >= version.as_str(),
                "{shard} is ahead of the object of {}",
                record.item
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forest_of_shards_comes_to_the_rows_and_a_second_run_reads_what_is_new() {
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
async fn throttling_failures_cut_connections_and_expired_iterators_are_gone_on_from() {
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
async fn a_child_that_is_listed_late_is_read_all_the_same() {
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

/// An open shard that gives empty pages for long before its records, and was closed in truth: the last
/// description shows it.
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
async fn a_sibling_that_is_listed_late_is_read_all_the_same() {
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

/// The tables are written to all the time: the run ends all the same, with everything from before it.
#[tokio::test(flavor = "multi_thread")]
async fn the_run_ends_at_its_start_although_the_shards_go_on() {
    let (stores, server) = (Stores::fresh().await, Arc::new(StreamServer::start().await));
    let mut records = well_formed(20, 15);
    records.retain(|record| record.label == LABEL);
    server.fill(&records, 2, 2);
    let arn = arn("sessions", LABEL);
    let live = Arc::clone(&server);
    let writer = tokio::spawn(async move {
        for index in 0..u128::MAX {
            let mut draft = session("live", &index.to_string());
            draft.created_at = Some(now());
            live.put(&arn, "shardId-0001-0000", &[draft.place(LABEL, (1 << 90) + index)]);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    // As long as the shard gives records, it is not idle: what ends it is a record from after the start.
    let run = tokio::time::timeout(
        Duration::from_mins(1),
        output(stream(&stores, &server, &["--idle-seconds", "5"])),
    );
    let run = run.await.expect("it ends");
    writer.abort();
    assert_code(&run, 0);
    let rows = stores.rows().await;
    for (session, row) in oracle::rows(&records) {
        assert_eq!(rows[&session], row);
    }
    let applied: u128 =
        rows["live"]["user_id"].as_str().and_then(|index| index.parse().ok()).expect("live");
    assert!(applied > 250, "5 s at a record every 10 ms are in it: {applied}");
}

#[tokio::test(flavor = "multi_thread")]
async fn following_goes_on_until_a_signal_and_one_run_at_a_time_works_on_a_database() {
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    let mut records = well_formed(20, 16);
    records.retain(|record| record.label == LABEL);
    server.fill(&records, 2, 2);
    let arn = arn("sessions", LABEL);
    let following = stream(&stores, &server, &["--follow"]).spawn().expect("backfill runs");
    let rows = async |expected: &[Record]| {
        until("the rows", async || stores.rows().await == oracle::rows(expected)).await;
    };
    rows(&records).await;

    let second = output(stream(&stores, &server, &[])).await;
    assert_code(&second, 1);
    let error = text(&second.stderr);
    assert!(
        error.contains("another `backfill stream` is at work on this database (server process"),
        "{error}"
    );

    // The shard it follows is closed and has a child; the lock's session is ended by somebody.
    let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE locktype = 'advisory'
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    assert_eq!(stores.ask(sql).await, "1");
    server.roll(&arn, "shardId-0001-0000", "shardId-0002-0000");
    let late = session("late", "u").place(LABEL, 1 << 90);
    server.put(&arn, "shardId-0002-0000", std::slice::from_ref(&late));
    records.push(late);
    rows(&records).await;
    let checkpoint =
        "SELECT count(*) FROM backfill_checkpoints WHERE shard_id = 'shardId-0002-0000'";
    until("the checkpoint", async || stores.ask(checkpoint).await == "1").await;

    signal(&following, "TERM");
    let ended = following.wait_with_output().await.expect("it ends");
    assert_code(&ended, 0);
    assert!(text(&ended.stdout).contains("stopped by a signal"), "{ended:?}");
    assert!(counted(&ended, "applied") > 0, "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_a_signal_cuts_off_is_said_not_to_be_counted() {
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    let records = [session("s1", "u"), session("s2", "u")];
    let records: Vec<Record> =
        (1..).zip(&records).map(|(n, draft)| draft.place(LABEL, n)).collect();
    server.fill(&records, 1, 1);
    let mut owner = stores.connect().await;
    sqlx::raw_sql("INSERT INTO measurements (session_id) VALUES ('s2')")
        .execute(&mut owner)
        .await
        .expect("a row");
    let lock = "BEGIN; SELECT 1 FROM measurements WHERE session_id = 's2' FOR UPDATE";
    sqlx::raw_sql(lock).execute(&mut owner).await.expect("a lock");
    let run = stream(&stores, &server, &["--json"]).spawn().expect("backfill runs");
    until("the other row", async || stores.rows().await.len() == 2).await;
    signal(&run, "INT");
    let ended = run.wait_with_output().await.expect("it ends");
    assert_code(&ended, 6);
    let summary: serde_json::Value = serde_json::from_slice(&ended.stdout).expect("JSON");
    assert_eq!(summary["not_counted"], 2, "{summary}");
    assert_eq!(summary["counts"]["records"], 0, "{summary}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_before_the_end_leaves_checkpoints_to_go_on_from() {
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    let records = well_formed(60, 17);
    server.fill(&records, 2, 3);
    server.set_page_size(3);
    server.set_rule(|call| match call.operation {
        "GetRecords" => Fault::Delay(Duration::from_millis(50)),
        _ => Fault::Pass,
    });
    let mut run = stream(&stores, &server, &["--batch-size", "10", "--parallel", "2"]);
    let mut child = run.spawn().expect("backfill runs");
    let checkpoints = "SELECT count(*) FROM backfill_checkpoints";
    until("a checkpoint", async || stores.ask(checkpoints).await != "0").await;
    signal(&child, "INT");
    let ended = tokio::time::timeout(Duration::from_secs(15), child.wait()).await;
    assert_eq!(ended.expect("it ends").expect("it ends").code(), Some(6));
    let output_of_it = child.wait_with_output().await.expect("its output");
    assert!(
        text(&output_of_it.stdout).contains("the same command resumes from here"),
        "{output_of_it:?}"
    );
    assert!(stores.rows().await != oracle::rows(&records), "it was ended before the end");
    server.set_rule(|_| Fault::Pass);
    let calls = server.calls().len();
    assert_code(&output(stream(&stores, &server, &[])).await, 0);
    assert_equal(&stores, &records).await;
    assert!(server.calls()[calls..].iter().any(|call| call.sequence_number.is_some()));
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_twenty_moments_of_one_replay_it_ends_as_if_it_had_not_been() {
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    stores.forbid_going_back().await;
    let records = well_formed(250, 18);
    server.fill(&records, 6, 3);
    server.set_page_size(8);
    server.set_rule(|call| match call.operation {
        "GetRecords" => Fault::Delay(Duration::from_millis(25)),
        _ => Fault::Pass,
    });
    let by_shard = server.records_by_shard();
    let mut rng = Rng::with_seed(20);
    let mut killed = 0;
    let arguments = ["--parallel", "3", "--batch-size", "100"];
    let resumed = || server.calls().iter().any(|call| call.sequence_number.is_some());
    // A loaded machine may need longer to its first checkpoint.
    for longest_ms in (1_500..6_000).step_by(100) {
        if killed >= 20 && resumed() {
            break;
        }
        let mut child = stream(&stores, &server, &arguments).spawn().expect("backfill runs");
        let moment =
            Duration::from_millis(rng.u64(100..if resumed() { 1_500 } else { longest_ms }));
        if tokio::time::timeout(moment, child.wait()).await.is_err() {
            child.kill().await.expect("it is killed");
            killed += 1;
        }
        assert_no_checkpoint_ahead(&stores, &by_shard).await;
    }
    assert!(killed >= 20, "the replay was too short to be killed so often: {killed}");
    assert!(resumed(), "it resumed from checkpoints");
    server.set_rule(|_| Fault::Pass);
    assert_code(&output(stream(&stores, &server, &[])).await, 0);
    assert_equal(&stores, &records).await;
}

/// The database is away for some seconds in the middle; what is not stored has no checkpoint.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_goes_away_is_waited_for() {
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    let records = well_formed(100, 19);
    server.fill(&records, 3, 2);
    server.set_page_size(10);
    server.set_rule(|call| match call.operation {
        "GetRecords" => Fault::Delay(Duration::from_millis(30)),
        _ => Fault::Pass,
    });
    let gate = TcpGate::open(stores.database_host()).await;
    let gated = stores.with_database_at(&gate.address.to_string());
    let child = stream(&gated, &server, &["--batch-size", "50"]).spawn().expect("backfill runs");
    let checkpoints = "SELECT count(*) FROM backfill_checkpoints";
    until("a checkpoint", async || stores.ask(checkpoints).await != "0").await;
    gate.set_open(false);
    tokio::time::sleep(Duration::from_secs(2)).await;
    gate.set_open(true);
    let ended = child.wait_with_output().await.expect("it ends");
    assert_code(&ended, 0);
    assert!(text(&ended.stderr).contains("in 2 s"), "{ended:?}");
    assert_equal(&stores, &records).await;
    assert_no_checkpoint_ahead(&stores, &server.records_by_shard()).await;
}

/// The move: both databases have their live function, the new one was restored from a snapshot of the
/// old one, and the backfill closes the gap meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn the_live_functions_of_both_databases_and_a_backfill_end_in_equal_rows() {
    let (old, server) = (Stores::fresh().await, Arc::new(StreamServer::start().await));
    old.forbid_going_back().await;
    let mut records = well_formed(400, 21);
    records.retain(|record| record.label == LABEL);
    // Each stream in its order, both mixed.
    records.sort_by_key(|record| (record.sequence_number, record.table));
    records.dedup_by_key(|record| (record.sequence_number, record.table));
    let before = records.len() / 3;
    let gap = records.len() * 2 / 3;
    let start = async |stores: &Stores| {
        Lambda::start(&[("DATABASE_URL", &stores.database_url), ("ARCHIVE_BUCKET", &stores.bucket)])
            .await
    };
    let deliver = async |lambda: &Lambda, records: &[Record]| {
        let answer = lambda.invoke(&event(records.iter().map(|record| record.json.as_str()))).await;
        assert_eq!(answer, serde_json::json!({ "batchItemFailures": [] }));
    };
    let old_lambda = start(&old).await;
    deliver(&old_lambda, &records[..before]).await;
    // Nobody may be connected while the copy is made.
    drop(old_lambda);
    until("the end of the old function", async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
        old.ask(sql).await == "0"
    }).await;
    let new = old.restored().await;
    let old_lambda = start(&old).await;
    deliver(&old_lambda, &records[before..gap]).await;
    server.fill(&records[..gap], 4, 3);
    server.set_page_size(25);
    server.set_rule(|call| match call.operation {
        "GetRecords" => Fault::Delay(Duration::from_millis(20)),
        _ => Fault::Pass,
    });

    let new_lambda = start(&new).await;
    let mut run = stream(&new, &server, &["--parallel", "2", "--batch-size", "60"]);
    let child = run.spawn().expect("backfill runs");
    let done = Arc::new(AtomicBool::new(false));
    let sampler = tokio::spawn(sample(new.clone(), Arc::clone(&done)));
    for batch in records[gap..].chunks(20) {
        for record in batch {
            let arn = arn(record.table.name(), LABEL);
            let lineage = lineage_of(record, 4);
            server.put(&arn, &format!("shardId-0002-{lineage:04}"), std::slice::from_ref(record));
        }
        deliver(&old_lambda, batch).await;
        deliver(&new_lambda, batch).await;
    }
    let ended = child.wait_with_output().await.expect("it ends");
    assert_code(&ended, 0);
    assert!(counted(&ended, "applied") > 0, "{ended:?}");
    done.store(true, Ordering::Relaxed);
    assert!(sampler.await.expect("no row went back") > 3);
    let expected = oracle::rows(&records);
    assert_eq!(old.rows().await, expected);
    assert_eq!(new.rows().await, expected);
    assert_eq!(parsed(&new.objects().await), oracle::objects(&expected));
}

/// Looks at all rows again and again: no version ever goes back. Gives how often it looked.
async fn sample(stores: Stores, done: Arc<AtomicBool>) -> usize {
    let mut seen: HashMap<(String, &str), String> = HashMap::new();
    let mut looks = 0;
    while !done.load(Ordering::Relaxed) {
        for (session, row) in stores.rows().await {
            for part in ["session_version", "left_version", "right_version"] {
                let version = row[part].as_str().unwrap_or_default().to_owned();
                let earlier =
                    seen.insert((session.clone(), part), version.clone()).unwrap_or_default();
                assert!(earlier <= version, "{session}: {part} went from {earlier} to {version}");
            }
        }
        looks += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    looks
}

/// A thousand shards whose meshes are many times the memory it may take: peak resident memory counted
/// in bytes by the kernel.
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
async fn the_stream_before_a_table_was_enabled_anew_is_read_too() {
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

/// An item removed, and an older record of it that comes with the replay.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_does_not_bring_back_what_a_live_function_removed() {
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    let draft = session("s1", "u");
    let records = [draft.place(LABEL, 1), removal(&draft).place(LABEL, 2)];
    testkit::services::apply(&stores.projector().await, &records[1..]).await;
    server.fill(&records[..1], 1, 1);
    let run = output(stream(&stores, &server, &[])).await;
    assert_eq!((run.status.code(), counted(&run, "stale")), (Some(0), 1), "{run:?}");
    assert_equal(&stores, &records).await;
}
