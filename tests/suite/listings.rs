//! `backfill stream` beside listings, answers and checkpoints that do not tell the whole truth: one
//! of them alone is never a reason to take a shard for read, or for lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use testkit::oracle;
use testkit::records::{LABEL, Record, Table, arn, session};
use testkit::runs::{
    age_checkpoints, assert_code, assert_equal, label, now, output, rfc3339, stream, text,
    well_formed,
};
use testkit::services::Stores;
use testkit::stream_server::{Fault, StreamServer};

/// A server with an open shard of the sessions, which was enabled three days ago; and records
/// created this many minutes ago.
async fn one_shard(minutes_ago: &[i64]) -> (StreamServer, String, Vec<Record>) {
    let server = StreamServer::start().await;
    let enabled = label(now() - 3 * 24 * 3600);
    let arn = server.add_stream(Table::Sessions, &enabled);
    server.add_stream(Table::Scans, &enabled);
    server.open_shard(&arn, "shardId-a", None);
    let records = minutes_ago.iter().zip(1..).map(|(minutes, index)| {
        let mut draft = session(&format!("s{index}"), "u");
        draft.created_at = Some(now() - minutes * 60);
        draft.place(&enabled, index)
    });
    (server, arn, records.collect())
}

/// A server with a closed shard of four records, each a page of its own, and its child.
async fn one_closed_shard() -> (StreamServer, Vec<Record>) {
    let (server, arn, records) = one_shard(&[50, 40, 30, 20]).await;
    server.put(&arn, "shardId-a", &records);
    server.roll(&arn, "shardId-a", "shardId-b");
    server.set_page_size(1);
    (server, records)
}

/// A snapshot that is younger than what was read, and a listing that omits the shard: two runs in a
/// row.
#[tokio::test(flavor = "multi_thread")]
async fn a_shard_with_a_checkpoint_is_read_even_if_the_listing_omits_it() {
    let stores = Stores::fresh().await;
    let (server, arn, records) = one_shard(&[180, 30, 20]).await;
    server.put(&arn, "shardId-a", &records[..1]);
    server.set_rule(|call| match call.operation {
        "DescribeStream" => Fault::ShowOpen(vec!["shardId-a".to_owned()]),
        _ => Fault::Pass,
    });
    let snapshot = rfc3339(now() - 3600);
    let arguments = ["--snapshot-time", snapshot.as_str()];
    assert_code(&output(stream(&stores, &server, &arguments)).await, 0);
    // As after a run that was killed before it knew the shard to be at the cutoff.
    let behind = "UPDATE backfill_checkpoints SET read_through = last_created";
    assert_eq!(stores.change(behind).await, 1);
    server.put(&arn, "shardId-a", &records[1..]);
    server.set_rule(|call| match call.operation {
        "DescribeStream" => Fault::Hide(vec!["shardId-a".to_owned()]),
        _ => Fault::Pass,
    });
    for _ in 0..2 {
        assert_code(&output(stream(&stores, &server, &arguments)).await, 0);
        assert_equal(&stores, &records).await;
    }
    let finished = "SELECT count(*) FROM backfill_checkpoints WHERE finished";
    assert_eq!(stores.ask(finished).await, "0", "nobody saw its end");
}

/// A root that no listing of the run shows; only its child names it.
#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_the_listing_omits_is_read_too() {
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    let mut records = well_formed(20, 31);
    records.retain(|record| record.label == LABEL);
    server.fill(&records, 2, 2);
    server.set_rule(|call| match call.operation {
        "DescribeStream" => Fault::Hide(vec!["shardId-0000-0001".to_owned()]),
        _ => Fault::Pass,
    });
    let run = output(stream(&stores, &server, &[])).await;
    assert_code(&run, 0);
    assert_equal(&stores, &records).await;
    // One that is trimmed away in truth costs a call, and nobody misses it.
    let other = Stores::fresh().await;
    server.set_rule(|_| Fault::Pass);
    server.remove_shard(&arn("sessions", LABEL), "shardId-0000-0001");
    let run = output(stream(&other, &server, &[])).await;
    assert_code(&run, 0);
    assert!(text(&run.stdout).contains("sessions: 3 of 3 shards read"), "{run:?}");
}

/// `ResourceNotFoundException` in the middle of a shard, with a snapshot named.
#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_is_not_found_for_a_moment_is_asked_for_again() {
    let stores = Stores::fresh().await;
    let (server, records) = one_closed_shard().await;
    server.set_rule(|call| match (call.operation, call.earlier) {
        ("GetRecords", 2..=3) => Fault::Error(400, "ResourceNotFoundException"),
        _ => Fault::Pass,
    });
    let snapshot = rfc3339(now() - 3600);
    let run = output(stream(&stores, &server, &["--snapshot-time", &snapshot])).await;
    assert_code(&run, 0);
    assert_equal(&stores, &records).await;
}

/// It is not found for longer than anybody waits: it cannot have been trimmed, so it is neither
/// finished nor lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_young_shard_that_is_not_found_fails_the_run_and_is_read_by_the_next() {
    let stores = Stores::fresh().await;
    let (server, records) = one_closed_shard().await;
    server.set_rule(|call| match (call.operation, call.earlier) {
        ("GetRecords" | "GetShardIterator", 2..) => Fault::Error(400, "ResourceNotFoundException"),
        _ => Fault::Pass,
    });
    let snapshot = rfc3339(now() - 3600);
    let arguments = ["--snapshot-time", snapshot.as_str()];
    let failed = output(stream(&stores, &server, &arguments)).await;
    assert_code(&failed, 1);
    let error = text(&failed.stderr);
    assert!(error.contains("younger than 24 hours"), "{error}");
    server.set_rule(|_| Fault::Pass);
    assert_code(&output(stream(&stores, &server, &arguments)).await, 0);
    assert_equal(&stores, &records).await;
}

/// A day after a run, with a database that the live function has kept current.
#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_older_than_a_day_are_no_reason_to_read_nothing() {
    let stores = Stores::fresh().await;
    let (server, arn, records) = one_shard(&[50, 40, 30]).await;
    server.put(&arn, "shardId-a", &records[..1]);
    assert_code(&output(stream(&stores, &server, &[])).await, 0);
    age_checkpoints(&stores, 25).await;
    let of_another_stream = "INSERT INTO backfill_checkpoints SELECT replace(stream_arn, \
         '/stream/', '/stream/1'), shard_id, sequence_number, last_created, read_through, \
         finished, archive, snapshot_time, updated_at FROM backfill_checkpoints";
    assert_eq!(stores.change(of_another_stream).await, 1);
    server.put(&arn, "shardId-a", &records[1..]);
    server.trim(&arn, "shardId-a", 1);
    let run = output(stream(&stores, &server, &[])).await;
    assert_code(&run, 0);
    assert_equal(&stores, &records).await;
    let log = text(&run.stderr);
    assert_eq!(
        log.matches("checkpoints are deleted: they are older than 24 hours").count(),
        1,
        "{log}"
    );
    assert!(text(&run.stdout).contains("no --snapshot-time was given"), "{run:?}");
    // Those of a stream that is not there any more are deleted too.
    assert_eq!(stores.ask("SELECT count(*) FROM backfill_checkpoints").await, "1");
    // If a snapshot is named, the gap is a gap.
    age_checkpoints(&stores, 25).await;
    let snapshot = rfc3339(now() - 26 * 3600);
    assert_code(&output(stream(&stores, &server, &["--snapshot-time", &snapshot])).await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_beside_an_emptied_table_are_not_resumed_from() {
    let stores = Stores::fresh().await;
    let (server, arn, records) = one_shard(&[50, 40]).await;
    server.put(&arn, "shardId-a", &records);
    assert_code(&output(stream(&stores, &server, &[])).await, 0);
    assert_eq!(stores.change("DELETE FROM measurements").await, 2);
    let run = output(stream(&stores, &server, &[])).await;
    assert_code(&run, 0);
    assert!(text(&run.stderr).contains("measurements is empty"), "{run:?}");
    assert_eq!(stores.rows().await, oracle::rows(&records));
}

/// The old stream of a table that was enabled anew is deleted while the run goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_deleted_in_mid_run_does_not_fail_it() {
    let (stores, server) = (Stores::fresh().await, Arc::new(StreamServer::start().await));
    let (old, new) = (label(now() - 48 * 3600), label(now() - 24 * 3600 - 60));
    let old_arn = server.add_stream(Table::Sessions, &old);
    let new_arn = server.add_stream(Table::Sessions, &new);
    server.add_stream(Table::Scans, &new);
    let records: Vec<Record> = [(&old, &old_arn), (&new, &new_arn)]
        .into_iter()
        .flat_map(|(label, arn)| {
            server.open_shard(arn, "shardId-a", None);
            let day = &label[..10];
            let records: Vec<Record> = (1..=20)
                .map(|index| session(&format!("{day}-{index}"), "u").place(label, index))
                .collect();
            server.put(arn, "shardId-a", &records);
            records
        })
        .collect();
    server.disable(&old_arn);
    server.set_page_size(1);
    let (read, deleted) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let counted = Arc::clone(&read);
    server.set_rule(move |call| match call.operation {
        "GetRecords" => {
            counted.fetch_add(1, Ordering::Relaxed);
            Fault::Delay(Duration::from_millis(100))
        }
        _ => Fault::Pass,
    });
    let delete = async {
        while read.load(Ordering::Relaxed) < 10 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server.remove_stream(&old_arn);
        deleted.store(true, Ordering::Relaxed);
    };
    let (run, ()) = tokio::join!(output(stream(&stores, &server, &[])), delete);
    assert_code(&run, 0);
    assert!(deleted.load(Ordering::Relaxed));
    let rows = stores.rows().await;
    for (session, row) in oracle::rows(&records[20..]) {
        assert_eq!(rows[&session], row);
    }
    assert!(rows.len() < 40, "it was deleted before it was read");
    assert!(
        text(&run.stdout).contains("1 shard was gone before it was read to its end"),
        "{run:?}"
    );
}

/// A parent that no listing shows, and that fails at first: it is asked for again, and its records
/// are not skipped.
#[tokio::test(flavor = "multi_thread")]
async fn an_omitted_parent_that_fails_at_first_is_asked_for_again() {
    let stores = Stores::fresh().await;
    let (server, arn, records) = one_shard(&[50, 40]).await;
    server.put(&arn, "shardId-a", &records[..1]);
    server.roll(&arn, "shardId-a", "shardId-b");
    server.put(&arn, "shardId-b", &records[1..]);
    server.set_rule(|call| match (call.operation, call.earlier) {
        ("DescribeStream", _) => Fault::Hide(vec!["shardId-a".to_owned()]),
        ("GetShardIterator", 0..=2) => Fault::Error(400, "ResourceNotFoundException"),
        _ => Fault::Pass,
    });
    let snapshot = rfc3339(now() - 5 * 3600);
    let run = output(stream(&stores, &server, &["--snapshot-time", &snapshot])).await;
    assert_code(&run, 0);
    assert_equal(&stores, &records).await;
    // An answer that says nothing of it ends the run.
    let other = Stores::fresh().await;
    server.set_rule(|call| match call.operation {
        "DescribeStream" => Fault::Hide(vec!["shardId-a".to_owned()]),
        "GetShardIterator" => Fault::Error(400, "AccessDeniedException"),
        _ => Fault::Pass,
    });
    assert_code(&output(stream(&other, &server, &["--snapshot-time", &snapshot])).await, 1);
}

/// An open shard that seemed caught up, and that later listings show only as the parent of its
/// child.
#[tokio::test(flavor = "multi_thread")]
async fn an_assumed_shard_that_the_listing_drops_is_still_read_and_so_is_its_child() {
    let stores = Stores::fresh().await;
    let (server, arn, records) = one_shard(&[50, 40]).await;
    server.put(&arn, "shardId-a", &records[..1]);
    server.set_empty_pages(15);
    let read = stream(&stores, &server, &["--child-wait-seconds", "20"]);
    let closing = async {
        // It was assumed to be caught up after ten pages.
        while server.count("GetRecords") < 10 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        server.set_empty_pages(0);
        server.roll(&arn, "shardId-a", "shardId-b");
        server.put(&arn, "shardId-b", &records[1..]);
        server.set_rule(|call| match call.operation {
            "DescribeStream" => Fault::Hide(vec!["shardId-a".to_owned()]),
            _ => Fault::Pass,
        });
    };
    let (run, ()) = tokio::join!(output(read), closing);
    assert_code(&run, 0);
    assert_equal(&stores, &records).await;
}

/// Its id says that it was made an hour ago: whatever the API answers, it cannot have been trimmed.
#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_is_young_by_its_id_is_not_taken_for_trimmed() {
    let stores = Stores::fresh().await;
    let (server, arn, records) = one_shard(&[50]).await;
    let id = format!("shardId-{:020}-0a", (now() - 3600) * 1000);
    server.open_shard(&arn, &id, None);
    server.put(&arn, &id, &records);
    server.roll(&arn, &id, "shardId-z");
    server.set_rule(|call| match call.operation {
        "GetShardIterator" => Fault::Error(400, "ResourceNotFoundException"),
        _ => Fault::Pass,
    });
    let snapshot = rfc3339(now() - 5 * 3600);
    let failed = output(stream(&stores, &server, &["--snapshot-time", &snapshot])).await;
    assert_code(&failed, 1);
    server.set_rule(|_| Fault::Pass);
    assert_code(&output(stream(&stores, &server, &["--snapshot-time", &snapshot])).await, 0);
    assert_equal(&stores, &records).await;
}

/// A variable that is mistyped in the night, when only checkpoints can still close the gap.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_refused_deletes_no_checkpoint() {
    let stores = Stores::fresh().await;
    let (server, arn, records) = one_shard(&[50, 40]).await;
    server.put(&arn, "shardId-a", &records[..1]);
    let hours_ago = |hours: i64| rfc3339(now() - hours * 3600);
    let begun = hours_ago(5);
    assert_code(&output(stream(&stores, &server, &["--snapshot-time", &begun])).await, 0);
    let aged = "UPDATE backfill_checkpoints SET snapshot_time = now() - interval '26 hours'";
    assert_eq!(stores.change(aged).await, 1);
    let late = hours_ago(25);
    let wrong = ["--archive-prefix", "wrong/", "--snapshot-time", &late];
    assert_code(&output(stream(&stores, &server, &wrong)).await, 4);
    server.put(&arn, "shardId-a", &records[1..]);
    // A run that names no snapshot keeps the promise of the one that did.
    assert_code(&output(stream(&stores, &server, &[])).await, 0);
    let right = output(stream(&stores, &server, &["--snapshot-time", &late])).await;
    assert_code(&right, 0);
    assert_equal(&stores, &records).await;
}

/// At the start, too: one answer is no proof that `SESSIONS_TABLE` is wrong.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_not_found_for_a_moment_is_asked_for_again() {
    let stores = Stores::fresh().await;
    let (server, arn, records) = one_shard(&[30]).await;
    server.put(&arn, "shardId-a", &records);
    let listed = AtomicUsize::new(0);
    server.set_rule(move |call| match call.operation {
        "ListStreams" if listed.fetch_add(1, Ordering::Relaxed) < 3 => {
            Fault::Error(400, "ResourceNotFoundException")
        }
        _ => Fault::Pass,
    });
    assert_code(&output(stream(&stores, &server, &[])).await, 0);
    assert_equal(&stores, &records).await;
    assert!(server.count("ListStreams") >= 5, "{}", server.count("ListStreams"));
}
