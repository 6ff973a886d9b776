//! Under pressure: a slow database, locked and corrupt rows, a database that falls silent, an S3
//! that crawls. The function and every command make progress, stay within their time, and blame
//! only what fails.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use projector::apply::{BatchOutcome, Projector};
use projector::deadline::Deadline;
use testkit::gates::TcpGate;
use testkit::oracle;
use testkit::records::{LABEL, Record, scan, session};
use testkit::runs::{self, assert_code, backfill};
use testkit::s3_gate::{Fault, S3Gate};
use testkit::services::{Stores, apply, parsed, service};
use testkit::sql::Client;
use testkit::stream_server::StreamServer;

fn sessions(count: usize) -> Vec<Record> {
    (0..count)
        .map(|index| session(&format!("s{index:04}"), "u").place(LABEL, 1 + index as u128))
        .collect()
}

/// The deadline of an invocation that has this many seconds left.
fn within(seconds: u64) -> Deadline {
    Deadline::of_invocation(tokio::time::Instant::now(), Duration::from_secs(seconds))
}

async fn try_apply(projector: &Projector, records: &[Record], deadline: Deadline) -> BatchOutcome {
    let json: Vec<&[u8]> = records.iter().map(|record| record.json.as_bytes()).collect();
    Box::pin(projector.apply(&json, deadline)).await.expect("no fatal error")
}

/// Each row that is written takes so long, as on a database whose blocks are still in the snapshot.
async fn slow_down(stores: &Stores, row_ms: u32) {
    let sql = format!(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN PERFORM pg_sleep({row_ms} / 1000.0); RETURN new; END $$;
         CREATE TRIGGER slow BEFORE INSERT OR UPDATE ON measurements FOR EACH ROW EXECUTE FUNCTION slow();"
    );
    stores.change(&sql).await;
}

/// A setting of the database, for connections from now on.
async fn set(stores: &Stores, setting: &str) {
    let sql = format!("ALTER DATABASE {:?} SET {setting}", stores.bucket);
    stores.change(&sql).await;
}

/// If a statement that timed out is sent again unchanged, no row is ever written.
#[tokio::test]
async fn a_slow_database_means_slow_progress_in_the_function() {
    let stores = Stores::fresh().await;
    slow_down(&stores, 10).await;
    set(&stores, "statement_timeout = '1s'").await;
    let projector = stores.projector_without_archive(&stores.database_url, 1);
    let records = sessions(300);
    let applied = try_apply(&projector, &records, within(60)).await;
    assert_eq!(applied.failed, [0; 0]);
    assert_eq!(stores.rows().await, oracle::rows(&records));
    // The size that worked is remembered, and is neither the first nor one.
    let limit = projector.learned().sessions_per_statement();
    assert!((5..100).contains(&limit), "{limit} sessions per statement");
}

/// What is not stored by the deadline comes from the end of the batch: Lambda delivers from the
/// first of it on, and a few deliveries are enough.
#[tokio::test]
async fn each_delivery_to_a_slow_database_acknowledges_more() {
    let stores = Stores::fresh().await;
    slow_down(&stores, 10).await;
    let projector = stores.projector_without_archive(&stores.database_url, 1);
    // Keys in another order than the records.
    let mut keys: Vec<usize> = (0..500).collect();
    fastrand::Rng::with_seed(1).shuffle(&mut keys);
    let records: Vec<Record> = keys
        .iter()
        .zip(1_u128..)
        .map(|(key, number)| session(&format!("s{key:04}"), "u").place(LABEL, number))
        .collect();
    let mut pending = records.as_slice();
    let mut deliveries = 0;
    while !pending.is_empty() {
        deliveries += 1;
        assert!(deliveries <= 6, "{} records are left", pending.len());
        let start = Instant::now();
        let applied = try_apply(&projector, pending, within(4)).await;
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
        let first = applied.failed.first().copied().unwrap_or(pending.len());
        // The first one may spend its time on finding out how slow the database is.
        assert!(first > 0 || deliveries == 1, "a delivery in vain");
        pending = &pending[first..];
    }
    assert_eq!(stores.rows().await, oracle::rows(&records));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_database_means_slow_progress_in_every_command() {
    let stores = Stores::fresh().await;
    slow_down(&stores, 10).await;
    set(&stores, "statement_timeout = '500ms'").await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("records.jsonl");
    let records = sessions(200);
    let text: Vec<&str> = records.iter().map(|record| record.json.as_str()).collect();
    std::fs::write(&path, text.join("\n")).expect("a file");
    let output = backfill(&stores, &["file", path.to_str().expect("a path")]);
    assert_code(&output, 0);
    assert_eq!(stores.rows().await, oracle::rows(&records));

    // Rejected once, and good by now.
    let good: Vec<Record> = records
        .iter()
        .map(|record| scan(&record.item, "left", "245.3").place(LABEL, record.sequence_number))
        .collect();
    for record in &good {
        let insert = format!(
            "INSERT INTO rejected_records (identity, reason, record) VALUES ('{}', 'once', $j${}$j$)",
            record.item, record.json
        );
        stores.change(&insert).await;
    }
    assert_code(&backfill(&stores, &["redrive"]), 0);
    assert_eq!(stores.rejected().await, 0);
    assert_eq!(stores.rows().await, oracle::rows(&[records, good].concat()));

    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    slow_down(&stores, 10).await;
    set(&stores, "statement_timeout = '500ms'").await;
    let records = runs::well_formed(100, 12);
    server.fill(&records, 2, 2);
    let output = runs::output(runs::stream(&stores, &server, &[])).await;
    assert_code(&output, 0);
    runs::assert_equal(&stores, &records).await;
}

/// Six lanes over the same rows, one of which somebody has locked.
#[tokio::test(flavor = "multi_thread")]
async fn one_locked_row_blocks_no_other_and_no_connections_pile_up() {
    let stores = Stores::fresh().await;
    let records = sessions(100);
    apply(&stores.projector_without_archive(&stores.database_url, 1), &records).await;
    set(&stores, "lock_timeout = '1s'").await;
    let mut owner = stores.connect().await;
    let lock = "BEGIN; SELECT 1 FROM measurements WHERE session_id = 's0017' FOR UPDATE";
    owner.run(lock).await;

    let lanes: Vec<Projector> =
        (0..6).map(|_| stores.projector_without_archive(&stores.database_url, 1)).collect();
    let most = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let watching = {
        let (stores, most) = (stores.clone(), Arc::clone(&most));
        tokio::spawn(async move {
            loop {
                let count = stores.ask(BACKENDS).await.parse().expect("a number");
                most.fetch_max(count, std::sync::atomic::Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
    };
    let update = |lane: usize| -> Vec<Record> {
        let version = |index: usize| 1_000 * (lane as u128 + 1) + index as u128;
        (0..100)
            .map(|index| session(&format!("s{index:04}"), "v").place(LABEL, version(index)))
            .collect()
    };
    let updates: Vec<Vec<Record>> = (0..6).map(update).collect();
    let deliveries =
        lanes.iter().zip(&updates).map(|(lane, records)| try_apply(lane, records, within(60)));
    for applied in join_all(deliveries).await {
        assert_eq!(applied.failed, [17], "the locked session alone");
    }
    watching.abort();
    let most = most.load(std::sync::atomic::Ordering::Relaxed);
    assert!(most <= 6, "{most} connections for six lanes");

    owner.run("ROLLBACK").await;
    assert_eq!(try_apply(&lanes[5], &updates[5], within(60)).await.failed, [0; 0]);
    assert_eq!(stores.rows().await, oracle::rows(&updates[5]));
}

/// With a `statement_timeout` of a few seconds a wait for a lock would end as a statement that is
/// too slow, and make all the next ones small.
#[tokio::test]
async fn a_locked_row_is_not_taken_for_a_slow_database() {
    let stores = Stores::fresh().await;
    let records = sessions(100);
    set(&stores, "statement_timeout = '2s'").await;
    let projector = stores.projector_without_archive(&stores.database_url, 1);
    apply(&projector, &records).await;
    let mut owner = stores.connect().await;
    let lock = "BEGIN; SELECT 1 FROM measurements WHERE session_id = 's0017' FOR UPDATE";
    owner.run(lock).await;
    let updates: Vec<Record> = (0..100)
        .map(|index| session(&format!("s{index:04}"), "v").place(LABEL, 1_000 + index))
        .collect();
    assert_eq!(try_apply(&projector, &updates, within(60)).await.failed, [17]);
    let limit = projector.learned().sessions_per_statement();
    assert_eq!(limit, 10_000, "the database is not slow");
}

/// An index is built, or somebody updates every row: the batch is given up soon, not session by
/// session.
#[tokio::test]
async fn a_locked_table_fails_the_batch_soon() {
    let stores = Stores::fresh().await;
    let records = sessions(500);
    set(&stores, "lock_timeout = '500ms'").await;
    let projector = stores.projector_without_archive(&stores.database_url, 1);
    apply(&projector, &records).await;
    let mut owner = stores.connect().await;
    let updates: Vec<Record> = (0..500)
        .map(|index| session(&format!("s{index:04}"), "v").place(LABEL, 1_000 + index))
        .collect();
    for (lock, seconds) in [
        ("LOCK TABLE measurements IN SHARE MODE", 6),
        ("SELECT 1 FROM measurements FOR UPDATE", 20),
    ] {
        owner.run(&format!("BEGIN; {lock}")).await;
        let start = Instant::now();
        let applied = try_apply(&projector, &updates, Deadline::NONE).await;
        assert_eq!(applied.failed.len(), 500);
        assert!(start.elapsed() < Duration::from_secs(seconds), "{lock}: {:?}", start.elapsed());
        owner.run("ROLLBACK").await;
    }
    apply(&projector, &updates).await;
}

/// The other table may be as slow, and one rejection that it does not take keeps no other out.
#[tokio::test]
async fn rejections_make_slow_progress_too_and_block_each_other_from_nothing() {
    let stores = Stores::fresh().await;
    let slow = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF new.sequence_number LIKE '%00017' THEN RAISE EXCEPTION 'corrupt' USING ERRCODE = 'XX001'; END IF;
            PERFORM pg_sleep(0.01); RETURN new; END $$;
        CREATE TRIGGER slow BEFORE INSERT ON rejected_records FOR EACH ROW EXECUTE FUNCTION slow();";
    stores.change(slow).await;
    set(&stores, "statement_timeout = '500ms'").await;
    let mut records = sessions(200);
    for record in &mut records {
        record.json = record.json.replace("2026-11-22T08:00:00Z", "yesterday");
    }
    let projector = stores.projector_without_archive(&stores.database_url, 1);
    let applied = try_apply(&projector, &records, Deadline::NONE).await;
    assert_eq!((applied.failed, applied.counts.rejected), (vec![16], 199));
    assert_eq!(stores.rejected().await, 199);
}

/// Connections of projectors to this database, other than those of a cancel request.
const BACKENDS: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
    AND application_name = 'projector'";
const ACTIVE: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
    AND application_name = 'projector' AND state = 'active'";

/// A client that drops its socket leaves the statement running, with its locks and its backend.
#[tokio::test]
async fn the_server_stops_what_was_given_up_at_the_deadline() {
    let stores = Stores::fresh().await;
    slow_down(&stores, 15_000).await;
    let projector = stores.projector_without_archive(&stores.database_url, 1);
    let applied = try_apply(&projector, &sessions(1), within(3)).await;
    assert_eq!(applied.failed, [0]);
    for _ in 0..10 {
        if stores.ask(ACTIVE).await == "0" {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the statement runs on");
}

/// The server's limits, which end what the client gives up on; and commits that survive a crash.
#[tokio::test]
async fn limits_and_durability_are_set_on_each_connection() {
    let stores = Stores::fresh().await;
    set(&stores, "synchronous_commit = off").await;
    let note = "CREATE TABLE seen (name text, setting text);
        CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO seen SELECT name, setting FROM pg_settings WHERE name IN ('synchronous_commit',
                'statement_timeout', 'lock_timeout', 'idle_session_timeout', 'client_connection_check_interval');
            RETURN new; END $$;
        CREATE TRIGGER note BEFORE INSERT ON measurements FOR EACH ROW EXECUTE FUNCTION note();";
    stores.change(note).await;
    let seen = async || {
        let sql = "SELECT string_agg(name || '=' || setting, ' ' ORDER BY name) FROM seen";
        stores.ask(sql).await
    };
    apply(&stores.projector_without_archive(&stores.database_url, 1), &sessions(1)).await;
    assert_eq!(
        seen().await,
        "client_connection_check_interval=5000 idle_session_timeout=600000 lock_timeout=5000 \
         statement_timeout=20000 synchronous_commit=on"
    );
    // A lower limit, and a commit that waits for more, are somebody's intention.
    for setting in
        ["statement_timeout = '3s'", "lock_timeout = 70", "synchronous_commit = remote_apply"]
    {
        set(&stores, setting).await;
    }
    stores.change("TRUNCATE seen; TRUNCATE measurements").await;
    apply(&stores.projector_without_archive(&stores.database_url, 1), &sessions(1)).await;
    assert_eq!(
        seen().await,
        "client_connection_check_interval=5000 idle_session_timeout=600000 lock_timeout=70 \
         statement_timeout=3000 synchronous_commit=remote_apply"
    );
}

/// One row that cannot be read kept 39 healthy sessions out.
#[tokio::test]
async fn one_corrupt_row_blocks_no_other() {
    let stores = Stores::fresh().await;
    let corrupt = "CREATE FUNCTION corrupt() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'invalid page in block 7' USING ERRCODE = 'XX001'; END $$;
        CREATE TRIGGER corrupt BEFORE INSERT ON measurements FOR EACH ROW
        WHEN (new.session_id = 's0017') EXECUTE FUNCTION corrupt();";
    stores.change(corrupt).await;
    let applied = try_apply(&stores.projector().await, &sessions(40), within(60)).await;
    assert_eq!((applied.failed, applied.counts.rejected), (vec![17], 0));
    assert_eq!((stores.rows().await.len(), stores.objects().await.len()), (39, 39));
}

/// Only the newest change is sent, so only that one is to be found; it cost 999 statements and 160
/// PUTs.
#[tokio::test]
async fn a_refused_newest_change_of_a_thousand_costs_one_more_write() {
    let stores = Stores::fresh().await;
    let s3 = S3Gate::open(&service("AWS_ENDPOINT_URL")).await;
    let projector = stores.projector_at(&s3.url, 1).await;
    let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '23514'; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON measurements FOR EACH ROW
        WHEN (new.user_id = 'u999') EXECUTE FUNCTION refuse();";
    stores.change(refuse).await;
    let mut records: Vec<Record> =
        (1..=999).map(|number| session("s1", &format!("u{number}")).place(LABEL, number)).collect();
    records.push(session("s2", "other").place(LABEL, 1_000));
    let applied = try_apply(&projector, &records, within(60)).await;
    assert_eq!((applied.failed, applied.counts.rejected), (Vec::new(), 1));
    assert_eq!((applied.counts.rows_written, s3.count("PUT")), (2, 2));
    assert_eq!(stores.rows().await["s1"]["user_id"], "u998");
}

/// A database that takes connections and never says a word, from the start or in the middle of the
/// work.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_falls_silent_does_not_hold_an_invocation_beyond_its_time() {
    let stores = Stores::fresh().await;
    let gate = TcpGate::open(stores.database_host()).await;
    let gated = stores.with_database_at(&gate.address.to_string());
    let warm = gated.projector().await;
    let cold = gated.projector().await;
    // Rows without objects, each of which is read for its object.
    let records = sessions(200);
    apply(&stores.projector_without_archive(&stores.database_url, 1), &records).await;
    apply(&warm, &records[..1]).await;
    gate.fall_silent();
    for projector in [&warm, &cold] {
        let start = Instant::now();
        let applied = try_apply(projector, &records, within(4)).await;
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
        assert_eq!(applied.failed.len(), 200);
    }
    gate.set_open(true);
    assert_eq!(try_apply(&warm, &records, within(60)).await.failed, [0; 0]);
    assert_eq!(parsed(&stores.objects().await), oracle::objects(&stores.rows().await));
}

/// Twenty batches over one connection, to a database that never answers: one waits, and all fail
/// with it.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_connection_fails_with_the_one_who_tried() {
    let stores = Stores::fresh().await;
    let gate = TcpGate::open(stores.database_host()).await;
    gate.fall_silent();
    let gated = stores.with_database_at(&gate.address.to_string());
    let projector = gated.projector_without_archive(&gated.database_url, 1);
    let records = sessions(20);
    let start = Instant::now();
    let batches = records.chunks(1).map(|batch| try_apply(&projector, batch, Deadline::NONE));
    let failed = join_all(batches).await.iter().filter(|applied| applied.failed == [0]).count();
    assert_eq!(failed, 20);
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
}

/// S3 takes a second per request. What is not written in time is reported, and what is written is
/// not.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_s3_does_not_hold_an_invocation_beyond_its_time() {
    let stores = Stores::fresh().await;
    let s3 = S3Gate::open(&service("AWS_ENDPOINT_URL")).await;
    let projector = stores.projector_at(&s3.url, 1).await;
    s3.set_rule(|_| Fault::Delay(Duration::from_secs(1)));
    let records = sessions(500);
    let start = Instant::now();
    let applied = try_apply(&projector, &records, within(5)).await;
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let objects = stores.objects().await.len();
    assert!((1..500).contains(&applied.failed.len()), "{}", applied.failed.len());
    // Some may be written and not yet answered for.
    assert!(500 - applied.failed.len() <= objects, "{objects} objects");
    s3.set_rule(|_| Fault::Pass);
    assert_eq!(try_apply(&projector, &records, within(60)).await.failed, [0; 0]);
    assert_eq!(stores.objects().await.len(), 500);
}

/// Rolled back for another, a statement of another server connection, a table that was altered
/// under a prepared statement: the same statement goes through at the next try.
#[tokio::test]
async fn transient_errors_are_retried_in_place() {
    let stores = Stores::fresh().await;
    let projector = stores.projector().await;
    let mut owner = stores.connect().await;
    let twice = "CREATE SEQUENCE tries;
        CREATE FUNCTION twice() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF nextval('tries') <= 2 THEN RAISE EXCEPTION 'not now' USING ERRCODE = TG_ARGV[0]; END IF;
            RETURN new; END $$";
    owner.run(twice).await;
    for (number, code) in [(1, "40P01"), (2, "40001"), (3, "26000"), (4, "42P05")] {
        let trigger = format!(
            "ALTER SEQUENCE tries RESTART; DROP TRIGGER IF EXISTS twice ON measurements;
             CREATE TRIGGER twice BEFORE INSERT ON measurements FOR EACH ROW EXECUTE FUNCTION twice('{code}')"
        );
        owner.run(&trigger).await;
        apply(&projector, &[session(code, "u").place(LABEL, number)]).await;
    }
    owner.run("DROP TRIGGER twice ON measurements").await;

    // 0A000, "cached plan must not change result type".
    let alter = "ALTER TABLE measurements ALTER COLUMN device_model TYPE varchar(500)";
    owner.run(alter).await;
    apply(&projector, &[session("altered", "u").place(LABEL, 5)]).await;
    assert_eq!(stores.rows().await.len(), 5);
}

/// After a failover the warm connection leads to the old primary, which is read-only.
#[tokio::test]
async fn a_connection_to_a_read_only_database_is_replaced() {
    let stores = Stores::fresh().await;
    let records = sessions(2);
    apply(&stores.projector_without_archive(&stores.database_url, 1), &records[..1]).await;
    set(&stores, "default_transaction_read_only = on").await;
    let projector = stores.projector_without_archive(&stores.database_url, 1);
    // Nothing is newer, so nothing is written, and the connection stays warm.
    projector.learned().expect_unchanged(true);
    apply(&projector, &records[..1]).await;
    let applied = try_apply(&projector, &records[1..], Deadline::NONE).await;
    assert_eq!(applied.failed, [0], "it is read-only still");
    projector.learned().expect_unchanged(true);
    apply(&projector, &records[..1]).await;
    let mut admin = Client::connect(&service("DATABASE_URL")).await;
    let reset = format!("ALTER DATABASE {:?} RESET default_transaction_read_only", stores.bucket);
    admin.run(&reset).await;
    apply(&projector, &records[1..]).await;
    assert_eq!(stores.rows().await, oracle::rows(&records));
}
