//! The real binary under an event source mapping with retries, bisecting, partial failures and an
//! on-failure destination: whatever fails, nothing is lost and nothing is acknowledged early.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use projector::bind;
use testkit::emulator::Lambda;
use testkit::gates::TcpGate;
use testkit::generate::{self, Day};
use testkit::mapping::Mapping;
use testkit::oracle;
use testkit::records::{Record, Table};
use testkit::runs::{assert_code, assert_equal, backfill, counted, text};
use testkit::s3_gate::{Fault, S3Gate};
use testkit::services::{Stores, s3, service};

fn mapping(destination: &str) -> Mapping {
    Mapping {
        batch_size: 20,
        maximum_retry_attempts: 3,
        bisect_batch_on_function_error: true,
        destination: destination.to_owned(),
        pause: Duration::from_millis(50),
    }
}

/// One stream of a small day; `mapping`'s lanes make of it what two streams do, too: no order
/// between items.
fn shard(sessions: usize, seed: u64) -> Vec<Record> {
    let day = Day { seed, sessions, malformed: true, mesh_bytes: 0 };
    let (sessions, scans) = generate::day(day);
    let mut records = [sessions, scans].concat();
    records.sort_by_key(|record| record.sequence_number);
    records
}

async fn lanes(count: usize, variables: &[(&str, &str)]) -> Vec<Lambda> {
    let mut lanes = Vec::new();
    for _ in 0..count {
        lanes.push(Lambda::start(variables).await);
    }
    lanes
}

type Row = (String, Option<String>, Option<String>, Option<String>);

/// Sees that both stores hold these records, or newer ones of their items, or that they are
/// rejected.
async fn assert_held(stores: &Stores, records: &[Record]) {
    let sessions: BTreeSet<&str> =
        records.iter().map(|record| record.item.split('/').next().expect("a session")).collect();
    let sql = "SELECT session_id, session_version, left_version, right_version FROM measurements \
               WHERE session_id = ANY($1)";
    let sessions: Vec<&str> = sessions.into_iter().collect();
    let mut connection = stores.connect().await;
    let arguments = bind![&sessions]().expect("a list of texts");
    let rows: Vec<Row> = connection.rows_with(sql, arguments).await;
    let rows: BTreeMap<_, _> = rows.into_iter().map(|(id, s, l, r)| (id, [s, l, r])).collect();
    let rejected: Vec<(String,)> =
        connection.rows("SELECT record::text FROM rejected_records").await;
    let s3 = s3(&service("AWS_ENDPOINT_URL")).await;
    for record in records {
        if record.malformed {
            assert!(
                rejected.iter().any(|(kept,)| *kept == record.json),
                "acknowledged and not rejected: {}",
                record.json
            );
            continue;
        }
        let (session_id, part) = match (record.table, record.item.split_once('/')) {
            (Table::Sessions, _) => (record.item.as_str(), 0),
            (Table::Scans, Some((session_id, "left"))) => (session_id, 1),
            (Table::Scans, Some((session_id, _))) => (session_id, 2),
            (Table::Scans, None) => panic!("no side"),
        };
        let version = format!("{}/{:040}", record.label, record.sequence_number);
        let row = rows.get(session_id).and_then(|versions| versions[part].clone());
        assert!(row.as_ref() >= Some(&version), "acknowledged and not in the row: {}", record.json);
        let object = s3
            .head_object()
            .bucket(&stores.bucket)
            .key(format!("measurements/{session_id}.json"))
            .send()
            .await
            .unwrap_or_else(|_| panic!("acknowledged and no object: {}", record.json));
        let name = ["session-version", "left-version", "right-version"][part];
        let object = object.metadata().and_then(|metadata| metadata.get(name));
        assert!(object >= Some(&version), "acknowledged and not in the object: {}", record.json);
    }
}

/// Downloads the destination, as the runbook says, and replays it.
async fn replay_destination(stores: &Stores, destination: &str) -> Output {
    let folder = tempfile::tempdir().expect("a folder");
    let s3 = s3(&service("AWS_ENDPOINT_URL")).await;
    let listed = s3
        .list_objects_v2()
        .bucket(destination)
        .prefix("aws/lambda/")
        .send()
        .await
        .expect("a list");
    for object in listed.contents() {
        let key = object.key().expect("a key");
        let path = folder.path().join(key);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        let body =
            s3.get_object().bucket(destination).key(key).send().await.expect("an object").body;
        std::fs::write(path, body.collect().await.expect("a body").to_vec()).expect("a file");
    }
    backfill(stores, &["file", folder.path().to_str().expect("a path")])
}

#[tokio::test]
async fn a_record_that_fails_its_invocation_is_given_up_alone() {
    let (stores, destination) = (Stores::fresh().await, Stores::unmigrated().await.bucket);
    let mut records = shard(40, 31);
    let poison = records.len() / 2;
    // Wrong wiring, which fails an invocation as a whole: nothing of its batch is acknowledged.
    records[poison].json = records[poison].json.replace("table/scans/", "table/orders/");
    records[poison].json = records[poison].json.replace("table/sessions/", "table/orders/");
    let variables = [("DATABASE_URL", &*stores.database_url), ("ARCHIVE_BUCKET", &stores.bucket)];
    let functions = lanes(3, &variables).await;
    let held = async |records: &[Record]| assert_held(&stores, records).await;
    let seen = mapping(&destination).deliver(&records, &functions, held).await;
    let given_up: Vec<&str> = seen.given_up.iter().map(|record| record.json.as_str()).collect();
    assert_eq!(given_up, [records[poison].json.as_str()]);
    assert!(seen.errors >= 4, "{} errors", seen.errors);
    // What is in the bucket is the whole record, and says why it was given up.
    let output = replay_destination(&stores, &destination).await;
    assert_code(&output, 2);
    assert!(text(&output.stderr).contains("orders"), "{}", text(&output.stderr));
    records.remove(poison);
    assert_equal(&stores, &records).await;
}

#[tokio::test]
async fn a_session_that_a_store_refuses_holds_its_batch_up_and_is_applied_from_the_destination() {
    let (stores, destination) = (Stores::fresh().await, Stores::unmigrated().await.bucket);
    let records = shard(40, 32);
    let poison = records.iter().find(|record| !record.malformed).expect("a record");
    let session_id = poison.item.split('/').next().expect("a session");
    // Neither a passing failure nor a refused value, as a failed disk would say it.
    let trigger = format!(
        "CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'broken' USING ERRCODE = '58030'; END $$;
        CREATE TRIGGER broken BEFORE INSERT ON measurements FOR EACH ROW
        WHEN (new.session_id = '{session_id}') EXECUTE FUNCTION broken()"
    );
    let mut owner = stores.connect().await;
    owner.run(&trigger).await;
    let variables = [("DATABASE_URL", &*stores.database_url), ("ARCHIVE_BUCKET", &stores.bucket)];
    let functions = lanes(2, &variables).await;
    let held = async |records: &[Record]| assert_held(&stores, records).await;
    let seen = mapping(&destination).deliver(&records, &functions, held).await;
    assert!(
        !seen.given_up.is_empty() && seen.given_up.len() < records.len() / 2,
        "{}",
        seen.given_up.len()
    );
    assert!(seen.partial_failures >= 4, "{} partial failures", seen.partial_failures);

    owner.run("DROP TRIGGER broken ON measurements").await;
    let output = replay_destination(&stores, &destination).await;
    let rejected = seen.given_up.iter().any(|record| record.malformed);
    assert_code(&output, if rejected { 3 } else { 0 });
    assert!(counted(&output, "applied") > 0);
    assert_equal(&stores, &records).await;
}

#[tokio::test]
async fn an_outage_of_the_database_of_a_minute_is_waited_out() {
    let (stores, destination) = (Stores::fresh().await, Stores::unmigrated().await.bucket);
    let gate = TcpGate::open(stores.database_host()).await;
    let gated = stores.with_database_at(&gate.address.to_string());
    let records = shard(60, 33);
    let functions =
        lanes(2, &[("DATABASE_URL", &*gated.database_url), ("ARCHIVE_BUCKET", &stores.bucket)])
            .await;
    let mapping = Mapping {
        maximum_retry_attempts: 1_000,
        pause: Duration::from_secs(1),
        ..mapping(&destination)
    };
    let down = AtomicBool::new(false);
    let acknowledged = AtomicUsize::new(0);
    let held = async |records: &[Record]| {
        assert!(!down.load(Ordering::SeqCst), "acknowledged while the database was away");
        assert_held(&stores, records).await;
        if acknowledged.fetch_add(records.len(), Ordering::SeqCst) == 0 {
            // In the middle of the work, and nothing that was under way then gets through.
            gate.set_open(false);
            // The other lane may be at its objects, behind its commit.
            tokio::time::sleep(Duration::from_secs(5)).await;
            down.store(true, Ordering::SeqCst);
        }
    };
    let start = Instant::now();
    let outage = async {
        while !down.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_mins(1)).await;
        down.store(false, Ordering::SeqCst);
        gate.set_open(true);
    };
    let (seen, ()) = tokio::join!(mapping.deliver(&records, &functions, held), outage);
    assert!(start.elapsed() >= Duration::from_mins(1));
    assert!(seen.partial_failures >= 20, "{} partial failures", seen.partial_failures);
    assert!(seen.given_up.is_empty() && seen.errors == 0, "{seen:?}");
    assert_eq!(acknowledged.into_inner(), records.len());
    assert_equal(&stores, &records).await;
}

#[tokio::test]
async fn a_throttled_s3_loses_nothing_and_nothing_is_acknowledged_early() {
    let (stores, destination) = (Stores::fresh().await, Stores::unmigrated().await.bucket);
    let gate = S3Gate::open(&service("AWS_ENDPOINT_URL")).await;
    let requests = Arc::new(AtomicUsize::new(0));
    let seen_requests = Arc::clone(&requests);
    // Four of five requests are refused for a while, as a cold partition does; then fewer.
    gate.set_rule(move |_| {
        let count = seen_requests.fetch_add(1, Ordering::SeqCst);
        let refused = if count < 600 { !count.is_multiple_of(5) } else { count.is_multiple_of(4) };
        if refused { Fault::Refuse(503) } else { Fault::Pass }
    });
    let records = shard(40, 34);
    let variables = [
        ("DATABASE_URL", &*stores.database_url),
        ("ARCHIVE_BUCKET", &stores.bucket),
        ("AWS_ENDPOINT_URL_S3", &gate.url),
    ];
    let functions = lanes(2, &variables).await;
    let mapping = Mapping { maximum_retry_attempts: 1_000, ..mapping(&destination) };
    let held = async |records: &[Record]| assert_held(&stores, records).await;
    let seen = mapping.deliver(&records, &functions, held).await;
    assert!(requests.load(Ordering::SeqCst) > 600);
    assert!(seen.partial_failures > 0, "{seen:?}");
    assert!(seen.given_up.is_empty() && seen.errors == 0, "{seen:?}");
    assert_equal(&stores, &records).await;
}

#[tokio::test]
async fn functions_that_are_killed_at_any_moment_lose_nothing() {
    let (stores, destination) = (Stores::fresh().await, Stores::unmigrated().await.bucket);
    let records = shard(40, 35);
    let variables = [("DATABASE_URL", &*stores.database_url), ("ARCHIVE_BUCKET", &stores.bucket)];
    let functions = lanes(2, &variables).await;
    let mapping = Mapping { maximum_retry_attempts: 1_000, ..mapping(&destination) };
    let held = async |records: &[Record]| assert_held(&stores, records).await;
    let mut killed = 0;
    let killing = async {
        let mut rng = fastrand::Rng::with_seed(35);
        while killed < 12 {
            tokio::time::sleep(Duration::from_millis(rng.u64(20..200))).await;
            killed += functions[rng.usize(..functions.len())].kill_function();
        }
        std::future::pending().await
    };
    let seen = tokio::select! {
        seen = mapping.deliver(&records, &functions, held) => seen,
        never = killing => never,
    };
    assert!(seen.errors >= 3 && killed >= 3, "{} errors of {killed} killed", seen.errors);
    assert!(seen.given_up.is_empty(), "{seen:?}");
    assert_equal(&stores, &records).await;
}

/// Where the shard's records are those of the tables' history, whatever order the lanes made of
/// them.
#[test]
fn a_shard_keeps_the_order_of_each_item() {
    let records = shard(40, 31);
    let mut last: BTreeMap<(&str, &str), u128> = BTreeMap::new();
    for record in &records {
        let before = last.insert((&record.item, &record.label), record.sequence_number);
        assert!(before <= Some(record.sequence_number));
    }
    assert!(oracle::rows(&records).len() > 30);
}

/// Stores that are too slow for a function of a few seconds: it answers in time, what is done is
/// acknowledged, and no invocation is ended by Lambda.
#[tokio::test(flavor = "multi_thread")]
async fn slow_stores_make_no_function_time_out() {
    let (stores, destination) = (Stores::fresh().await, Stores::unmigrated().await.bucket);
    let gate = S3Gate::open(&service("AWS_ENDPOINT_URL")).await;
    gate.set_rule(|_| Fault::Delay(Duration::from_millis(1500)));
    let slow = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM pg_sleep(0.1); RETURN new; END $$;
        CREATE TRIGGER slow BEFORE INSERT OR UPDATE ON measurements FOR EACH ROW EXECUTE FUNCTION slow();";
    stores.change(slow).await;
    let functions = lanes(
        2,
        &[
            ("DATABASE_URL", &stores.database_url),
            ("ARCHIVE_BUCKET", &stores.bucket),
            ("AWS_ENDPOINT_URL_S3", &gate.url),
            // The emulator's own: it ends the function then.
            ("AWS_LAMBDA_FUNCTION_TIMEOUT", "6"),
        ],
    )
    .await;
    let records = shard(40, 31);
    let mapping = Mapping { batch_size: 60, maximum_retry_attempts: 30, ..mapping(&destination) };
    let seen = mapping
        .deliver(&records, &functions, async |records| assert_held(&stores, records).await)
        .await;
    assert_eq!((seen.timeouts, seen.errors, seen.given_up.len()), (0, 0, 0), "{seen:?}");
    assert!(seen.partial_failures > 0, "nothing was too slow: {seen:?}");
    assert_equal(&stores, &records).await;
}

/// Somebody's trigger refuses every row. Lambda halves the batch down to single records, and not
/// even those are taken for the ones at fault: they lie in the bucket of failures, and apply when
/// the trigger is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_takes_no_row_rejects_nothing_however_the_batch_is_halved() {
    let (stores, destination) = (Stores::fresh().await, Stores::unmigrated().await.bucket);
    let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'not %', new.session_id; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON measurements FOR EACH ROW EXECUTE FUNCTION refuse();";
    let mut owner = stores.connect().await;
    owner.run(refuse).await;
    let variables = [("DATABASE_URL", &*stores.database_url), ("ARCHIVE_BUCKET", &stores.bucket)];
    let functions = lanes(1, &variables).await;
    let records: Vec<Record> =
        shard(20, 36).into_iter().filter(|record| !record.malformed).take(40).collect();
    let mapping = Mapping { batch_size: 40, maximum_retry_attempts: 1, ..mapping(&destination) };
    let seen = mapping
        .deliver(&records, &functions, async |records| assert_held(&stores, records).await)
        .await;
    assert_eq!((seen.given_up.len(), stores.rejected().await), (records.len(), 0), "{seen:?}");

    owner.run("DROP TRIGGER refuse ON measurements").await;
    assert_code(&replay_destination(&stores, &destination).await, 0);
    assert_equal(&stores, &records).await;
}
