//! `backfill stream --follow`: it goes on as long as the tables do, and keeps its lock.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use testkit::gates::TcpGate;
use testkit::oracle;
use testkit::records::{LABEL, Record, Table, session};
use testkit::runs::{assert_code, label, now, output, signal, stream, text, until};
use testkit::services::Stores;
use testkit::stream_server::{Fault, StreamServer};

/// A stream that is turned off and on again is another stream.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_turned_off_and_on_is_followed() {
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    let old = server.add_stream(Table::Sessions, LABEL);
    server.add_stream(Table::Scans, LABEL);
    server.open_shard(&old, "shardId-a", None);
    let mut records: Vec<Record> = vec![session("before", "u").place(LABEL, 1)];
    server.put(&old, "shardId-a", &records);
    let following = stream(&stores, &server, &["--follow"]).spawn().expect("backfill runs");
    until("the first row", async || stores.rows().await == oracle::rows(&records)).await;

    server.disable(&old);
    let later = label(now());
    let new = server.add_stream(Table::Sessions, &later);
    server.open_shard(&new, "shardId-a", None);
    for index in 1..=10 {
        let record = session(&format!("after-{index}"), "u").place(&later, index);
        server.put(&new, "shardId-a", std::slice::from_ref(&record));
        records.push(record);
    }
    until("the later rows", async || stores.rows().await == oracle::rows(&records)).await;
    // It has a checkpoint of its own, and its shards are followed like those of the first.
    server.roll(&new, "shardId-a", "shardId-b");
    let last = session("last", "u").place(&later, 100);
    server.put(&new, "shardId-b", std::slice::from_ref(&last));
    records.push(last);
    until("the last row", async || stores.rows().await == oracle::rows(&records)).await;
    // Its record is days old: only empty pages show that the shard is read further than to the
    // moment at which its stream was enabled.
    let caught_up = format!(
        "SELECT count(*) FROM backfill_checkpoints WHERE shard_id = 'shardId-b' AND read_through > \
            '{later}Z'"
    );
    until("the cutoff", async || stores.ask(&caught_up).await == "1").await;

    signal(&following, "INT");
    let ended = following.wait_with_output().await.expect("it ends");
    assert_code(&ended, 0);
    let said = text(&ended.stdout);
    assert!(said.contains("is in no stream") && said.contains("backfill repair"), "{ended:?}");
}

/// A stream that is just being enabled lists its first shard a little later.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_whose_first_shard_comes_late_is_followed() {
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    let arn = server.add_stream(Table::Sessions, LABEL);
    server.add_stream(Table::Scans, LABEL);
    let _following = stream(&stores, &server, &["--follow"]).spawn().expect("backfill runs");
    // Each stream is described at the start, and once nothing is under way.
    until("the descriptions", async || server.count("DescribeStream") >= 4).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    server.open_shard(&arn, "shardId-a", None);
    server.put(&arn, "shardId-a", &[session("s1", "u").place(LABEL, 1)]);
    until("the row", async || stores.rows().await.len() == 1).await;
}

/// The tables are quiet, and the connection that holds the lock is ended by somebody.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_is_lost_while_nothing_comes_is_taken_again() {
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    let arn = server.add_stream(Table::Sessions, LABEL);
    server.add_stream(Table::Scans, LABEL);
    server.open_shard(&arn, "shardId-a", None);
    server.put(&arn, "shardId-a", &[session("s1", "u").place(LABEL, 1)]);
    let _following = stream(&stores, &server, &["--follow"]).spawn().expect("backfill runs");
    until("the row", async || stores.rows().await.len() == 1).await;
    let locks = "FROM pg_locks WHERE locktype = 'advisory' AND database = \
                 (SELECT oid FROM pg_database WHERE datname = current_database())";
    // The last checkpoint is stored: nothing is written that would notice.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(stores.ask(&format!("SELECT count(pg_terminate_backend(pid)) {locks}")).await, "1");
    let held = format!("SELECT count(*) {locks}");
    until("the end of the old lock", async || stores.ask(&held).await == "0").await;
    until("the lock", async || stores.ask(&held).await == "1").await;
    let second = output(stream(&stores, &server, &[])).await;
    assert_code(&second, 1);
    assert!(text(&second.stderr).contains("another `backfill stream`"), "{second:?}");
}

/// One answer that there is no such table is no proof, and one table does not stop the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_not_found_for_a_moment_does_not_end_the_run() {
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    let arn = server.add_stream(Table::Sessions, LABEL);
    server.add_stream(Table::Scans, LABEL);
    server.open_shard(&arn, "shardId-a", None);
    let listed = AtomicUsize::new(0);
    server.set_rule(move |call| match call.operation {
        // Two calls are of the start.
        "ListStreams" if (2..9).contains(&listed.fetch_add(1, Ordering::Relaxed)) => {
            Fault::Error(400, "ResourceNotFoundException")
        }
        _ => Fault::Pass,
    });
    let following = stream(&stores, &server, &["--follow"]).spawn().expect("backfill runs");
    until("the calls", async || server.count("ListStreams") > 11).await;
    let record = session("later", "u").place(LABEL, 1);
    server.put(&arn, "shardId-a", std::slice::from_ref(&record));
    until("the row", async || stores.rows().await.len() == 1).await;
    drop(following);
}

/// A database that is silent holds up neither the signal nor the summary.
#[tokio::test(flavor = "multi_thread")]
async fn a_signal_while_the_database_is_silent_ends_with_a_summary() {
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    let arn = server.add_stream(Table::Sessions, LABEL);
    server.add_stream(Table::Scans, LABEL);
    server.open_shard(&arn, "shardId-a", None);
    server.put(&arn, "shardId-a", &[session("s1", "u").place(LABEL, 1)]);
    let gate = TcpGate::open(stores.database_host()).await;
    let gated = stores.with_database_at(&gate.address.to_string());
    let following = stream(&gated, &server, &["--follow"]).spawn().expect("backfill runs");
    until("the row", async || stores.rows().await.len() == 1).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    gate.fall_silent();
    // The lock is looked after every ten seconds.
    tokio::time::sleep(Duration::from_secs(12)).await;
    signal(&following, "INT");
    let ended = following.wait_with_output().await.expect("it ends");
    assert!(text(&ended.stdout).contains("stopped by a signal: 1 records"), "{ended:?}");
}
