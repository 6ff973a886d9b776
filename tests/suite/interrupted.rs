//! `backfill stream` that a signal, kill -9 or an outage interrupts: no checkpoint is ahead of the
//! stores, and the next run resumes.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use fastrand::Rng;
use serde_json::Value as Json;
use testkit::gates::TcpGate;
use testkit::oracle;
use testkit::records::{LABEL, Record, arn, session};
use testkit::runs::{
    assert_code, assert_equal, counted, output, signal, stream, text, until, well_formed,
};
use testkit::services::Stores;
use testkit::stream_server::{Fault, StreamServer};

/// What a checkpoint says is in both stores: of each shard with one, every record up to it.
pub(crate) async fn assert_no_checkpoint_ahead<B: AsRef<[u8]>>(
    stores: &Stores,
    records_by_shard: &HashMap<(String, String), Vec<Record>>,
    objects: &BTreeMap<String, B>,
) {
    let sql = "SELECT stream_arn, shard_id, sequence_number, finished FROM backfill_checkpoints";
    let checkpoints: Vec<(String, String, Option<String>, bool)> =
        stores.connect().await.rows(sql).await;
    let rows = stores.rows().await;
    let json = |body: &B| serde_json::from_slice::<Json>(body.as_ref()).expect("JSON");
    let objects: BTreeMap<&String, Json> =
        objects.iter().map(|(key, body)| (key, json(body))).collect();
    let pending = "SELECT session_id, mark::text FROM pending_objects";
    let pending: HashMap<String, String> =
        stores.connect().await.rows(pending).await.into_iter().collect();
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
            // Its object is written, or known to be missing.
            if pending.contains_key(session) {
                continue;
            }
            let key = format!("measurements/{session}.json");
            let object = &objects[&key]["versions"][part];
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
async fn following_ends_by_a_signal_and_a_database_takes_one_run_at_a_time() {
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
        error.contains(
            "another `backfill stream` or `repair` is at work on this database (server process"
        ),
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
async fn a_batch_that_a_signal_cuts_off_is_reported_as_not_counted() {
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    let records = [session("s1", "u"), session("s2", "u")];
    let records: Vec<Record> =
        (1..).zip(&records).map(|(n, draft)| draft.place(LABEL, n)).collect();
    server.fill(&records, 1, 1);
    let mut owner = stores.connect().await;
    owner.run("INSERT INTO measurements (session_id) VALUES ('s2')").await;
    let lock = "BEGIN; SELECT 1 FROM measurements WHERE session_id = 's2' FOR UPDATE";
    owner.run(lock).await;
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
async fn a_run_resumes_from_the_checkpoints_that_a_signal_left() {
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
async fn a_replay_killed_twenty_times_ends_like_one_that_was_not() {
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
        assert_no_checkpoint_ahead(&stores, &by_shard, &stores.objects().await).await;
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
    let objects = stores.objects().await;
    assert_no_checkpoint_ahead(&stores, &server.records_by_shard(), &objects).await;
}
