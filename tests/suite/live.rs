//! `backfill stream` while the tables are written, and beside live functions.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use testkit::emulator::{Lambda, event};
use testkit::oracle;
use testkit::records::{LABEL, Record, arn, removal, session};
use testkit::runs::{assert_code, assert_equal, counted, now, output, stream, until, well_formed};
use testkit::services::{Stores, parsed};
use testkit::stream_server::{Fault, StreamServer, lineage_of};

/// The tables are written to all the time: the run still ends, with everything from before it.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_ends_while_its_shards_are_still_written() {
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
    // As long as the shard gives records, it is not idle: what ends it is a record from after the
    // start.
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

/// The move: both databases have their live function, the new one was restored from a snapshot of
/// the old one, and the backfill closes the gap meanwhile.
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
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND \
            pid <> pg_backend_pid()";
        old.ask(sql).await == "0"
    })
    .await;
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
pub(crate) async fn sample(stores: Stores, done: Arc<AtomicBool>) -> usize {
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
