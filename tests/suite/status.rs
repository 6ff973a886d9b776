//! `backfill status`: what it says of the checkpoints, the lock and the rejected records, from the
//! database alone.

use std::process::Output;

use testkit::emulator::binary;
use testkit::records::{LABEL, session};
use testkit::runs::{assert_code, backfill, text};
use testkit::services::{Stores, apply_all};

/// Nothing of AWS is configured, and none of it is asked.
fn status(stores: &Stores, arguments: &[&str]) -> Output {
    let mut command = std::process::Command::new(binary("backfill"));
    command.arg("status").args(arguments).env("DATABASE_URL", &stores.database_url);
    command.env("ARCHIVE_BUCKET", "feet");
    for variable in ["AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL"] {
        command.env_remove(variable);
    }
    command.output().expect("backfill runs")
}

async fn run_sql(stores: &Stores, sql: &str) {
    stores.change(sql).await;
}

const CHECKPOINTS: &str = "INSERT INTO backfill_checkpoints
    (stream_arn, shard_id, sequence_number, last_created, read_through, finished) VALUES
    ('arn:a', 'shardId-1', '100000000000000000001', now(), now() - interval '2 h', true),
    ('arn:a', 'shardId-2', '100000000000000000002', now(), now() - interval '90 min', false),
    ('arn:b', 'shardId-3', null, null, null, false)";
const REJECTED: &str = "INSERT INTO rejected_records (identity, reason, record, rejected_at)
    SELECT 'i' || n, CASE WHEN n <= 2 THEN 'the attribute user_id is missing' ELSE 'reason ' || n END, '{}',
        now() - n * interval '1 h' FROM generate_series(1, 30) AS n";

#[tokio::test]
async fn a_database_without_the_tables_says_what_to_run() {
    let stores = Stores::unmigrated().await;
    let output = status(&stores, &[]);
    assert_code(&output, 2);
    let message = text(&output.stderr);
    assert!(
        message.contains(
            "without measurements, rejected_records, backfill_checkpoints, pending_objects: run \
             `backfill migrate`"
        ),
        "{message}"
    );
    assert_eq!(message.trim_end().lines().count(), 1, "{message}");
}

/// A script that reads JSON gets JSON, whatever is wrong.
#[tokio::test]
async fn the_json_is_valid_even_if_the_database_cannot_be_read() {
    let stores = Stores::unmigrated().await;
    let nowhere = stores.with_database_at("127.0.0.1:1");
    for (stores, code, problem) in
        [(&stores, 2, "run `backfill migrate`"), (&nowhere, 1, "the database cannot be reached")]
    {
        let output = status(stores, &["--json"]);
        assert_code(&output, code);
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let error = json["error"].as_str().expect("an error");
        assert!(error.contains(problem), "{error}");
        assert!(text(&output.stderr).contains(error), "{output:?}");
    }
}

#[tokio::test]
async fn it_shows_checkpoints_the_lock_rejected_records_and_an_estimate() {
    let stores = Stores::fresh().await;
    let records = [1, 2, 3].map(|n| session(&format!("s{n}"), "u").place(LABEL, n));
    apply_all(&stores.projector().await, &records, 10).await;
    for sql in [CHECKPOINTS, REJECTED, "ANALYZE measurements"] {
        run_sql(&stores, sql).await;
    }
    let mut other_run = stores.connect().await;
    let lock = format!("SELECT pg_advisory_lock({})", i64::from_be_bytes(*b"backfill"));
    other_run.run(&lock).await;

    let discarded = "INSERT INTO rejected_records (identity, reason, record, discarded_at, \
                     discarded_why) VALUES ('discarded', 'nobody wants it', '{}', now(), \
                     'corrected at its source')";
    assert_eq!(stores.change(discarded).await, 1);
    let output = status(&stores, &["--json"]);
    assert_code(&output, 0);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let (pid,): (i64,) = other_run.row("SELECT pg_backend_pid()::bigint").await;
    assert_eq!(json["lock"]["pid"], pid);
    let shards = json["checkpoints"].as_array().expect("a list");
    let of = |id: &str| shards.iter().find(|shard| shard["shard_id"] == id).expect("a shard");
    assert_eq!(of("shardId-1")["finished"], true);
    assert_eq!(of("shardId-1")["lag_seconds"], serde_json::Value::Null);
    assert_eq!(of("shardId-2")["sequence_number"], "100000000000000000002");
    let lag = of("shardId-2")["lag_seconds"].as_i64().expect("a lag");
    assert!((5_400..9_000).contains(&lag), "{lag}");
    assert_eq!(of("shardId-3")["read_through"], serde_json::Value::Null);
    let rejected = &json["rejected"];
    assert_eq!((&rejected["records"], &rejected["reasons"]), (&30.into(), &29.into()));
    assert_eq!(rejected["discarded"], 1);
    assert_eq!(rejected["by_reason"].as_array().map(Vec::len), Some(20));
    assert_eq!(rejected["by_reason"][0]["reason"], "the attribute user_id is missing");
    assert_eq!(rejected["by_reason"][0]["records"], 2);
    assert_eq!(
        (&json["rows"]["estimate"], &json["rows"]["complete_share"]),
        (&3.into(), &0.0.into())
    );

    let output = status(&stores, &[]);
    let shown = text(&output.stdout);
    for part in [
        &format!("SELECT pg_terminate_backend({pid})"),
        "checkpoints of arn:a: 2 shards, 1 finished",
        "1 h 30 min",
        "2 × the attribute user_id is missing",
        "and 9 reasons more",
        "about 3, 0 % of them complete",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    drop(other_run);
    let free = status(&stores, &[]);
    assert_code(&free, 0);
}

/// What `--grant-backfill-to` grants is enough; what the projector's role has is not, and the
/// message says so.
#[tokio::test]
async fn the_role_of_a_backfill_may_ask() {
    let stores = Stores::fresh().await;
    let role = format!("status_{:08x}", fastrand::u32(..));
    run_sql(&stores, &format!("CREATE ROLE {role} LOGIN PASSWORD 'p'")).await;
    let (_, rest) = stores.database_url.split_once('@').expect("a host");
    let as_role = Stores { database_url: format!("postgres://{role}:p@{rest}"), ..stores.clone() };
    assert_code(&backfill(&stores, &["migrate", "--grant-to", &role]), 0);
    let denied = status(&as_role, &[]);
    assert_code(&denied, 2);
    assert!(text(&denied.stderr).contains("--grant-backfill-to"), "{denied:?}");
    assert_code(&backfill(&stores, &["migrate", "--grant-backfill-to", &role]), 0);
    assert_code(&status(&as_role, &[]), 0);
}
