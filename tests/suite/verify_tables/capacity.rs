//! `backfill verify --tables` and the tables' capacity: a limit is kept, and throttling is waited
//! out. And the end of a run in which nearly everything differs.

use std::collections::BTreeSet;

use serde_json::{Value as Json, json};
use testkit::dynamodb_gate::{DynamoDbGate, Fault};
use testkit::records::{removal, session};
use testkit::runs::{assert_code, text};
use testkit::services::service;
use tokio::process::Command;

use super::{World, id, of_session};

async fn gate() -> DynamoDbGate {
    DynamoDbGate::open(&service("DYNAMODB_LOCAL_URL")).await
}

fn verify(world: &World, gate: &DynamoDbGate, arguments: &[&str]) -> Command {
    let mut command = world.verify(arguments);
    command.env("AWS_ENDPOINT_URL_DYNAMODB", &gate.url);
    command
}

async fn verified(mut command: Command, code: i32) -> (String, Json) {
    let output = command.output().await.expect("backfill runs");
    assert_code(&output, code);
    (text(&output.stderr), serde_json::from_slice(&output.stdout).expect("JSON"))
}

/// Three items with large meshes fill a page. What is asserted holds on a slow machine, too: units
/// come later there.
#[tokio::test(flavor = "multi_thread")]
async fn read_units_per_second_stay_below_the_limit() {
    let (world, gate) = (World::new().await, gate().await);
    let mesh = "AAECAwQFBgcICQoL".repeat(25_000);
    let scans = (0..24).map(|number| {
        let mut left = of_session(number)[1].clone();
        left.image.as_mut().expect("an image")["mesh"] = json!({ "B": mesh });
        left
    });
    let scans: Vec<_> = scans.collect();
    for scan in &scans {
        world.write_items(std::slice::from_ref(scan)).await;
    }
    world.write_rows(&scans).await;
    let limit = 100.0;
    let arguments = ["--segments", "1", "--read-units", "100"];
    let (_, json) = verified(verify(&world, &gate, &arguments), 0).await;
    let consumed = gate.consumed();
    let all: f64 = consumed.iter().map(|(_, units)| units).sum();
    assert_eq!(json["read_units"], all);
    // A page of each table is under way at once, and one second's worth is taken in advance.
    let largest = consumed.iter().map(|(_, units)| *units).fold(0.0, f64::max);
    let most_at_once = 2.0 * largest + limit;
    assert!(all > 2.0 * most_at_once, "{all} units are too few to show the limit");
    let (first, _) = consumed[0];
    let mut so_far = 0.0;
    for (at, units) in &consumed {
        so_far += units;
        let allowed = limit * at.duration_since(first).as_secs_f64() + most_at_once;
        assert!(so_far <= allowed, "{so_far} units, and {allowed} are allowed by then");
    }
}

/// Of each call the first tries are throttled, and then of a batch nearly all keys are left.
#[tokio::test(flavor = "multi_thread")]
async fn throttled_calls_and_keys_that_are_not_processed_are_asked_for_again() {
    let (world, gate) = (World::with_sessions(30).await, gate().await);
    // A part of each kind of fault for many sessions: by key they are asked for in few calls.
    let gone: Vec<_> = (0..25).map(|number| removal(&of_session(number)[1])).collect();
    world.write_items(&gone).await;
    world.write_items(&(100..120).map(|n| session(&id(n), "u")).collect::<Vec<_>>()).await;
    gate.set_rule(|seen| match seen.operation {
        "Scan" | "BatchGetItem" if seen.earlier < 4 => Fault::Throttle,
        "BatchGetItem" => Fault::Process(1),
        _ => Fault::Pass,
    });
    let folder = tempfile::tempdir().expect("a folder");
    let report = folder.path().join("report.jsonl");
    let path = report.to_str().expect("a path");
    let (_, json) = verified(verify(&world, &gate, &["--report", path]), 7).await;
    assert_eq!(json["complete"], true, "{json}");
    let expected = json!({"missing": 20, "extra": 25, "older": 0, "content": 0});
    assert_eq!(json["differences"], expected);
    let report = std::fs::read_to_string(&report).expect("the report");
    let named = report.lines().map(|line| {
        let json: Json = serde_json::from_str(line).expect("JSON");
        json["session_id"].as_str().expect("an id").to_owned()
    });
    let expected: BTreeSet<String> = (0..25).chain(100..120).map(id).collect();
    assert_eq!(named.collect::<BTreeSet<_>>(), expected);
    assert!(gate.calls("BatchGetItem") > 45, "one key per table and call");
    // People see why it took long.
    let before = gate.calls("Scan");
    gate.set_rule(move |seen| match seen.operation {
        "Scan" if seen.earlier < before + 3 => Fault::Throttle,
        _ => Fault::Pass,
    });
    let mut for_people = world.backfill(&["verify", "--tables", "--wait", "0", "--rounds", "1"]);
    for_people.env("AWS_ENDPOINT_URL_DYNAMODB", &gate.url);
    let shown = for_people.output().await.expect("backfill runs");
    assert_code(&shown, 7);
    assert!(text(&shown.stdout).contains("3 calls throttled"), "{shown:?}");
}

/// Rows that no item accounts for, more than are looked at again. DynamoDB would say of each key
/// that there is nothing: the gate says so, because DynamoDB Local takes minutes for it.
#[tokio::test(flavor = "multi_thread")]
async fn more_differences_than_can_be_kept_end_the_run_with_the_remedy() {
    let (world, gate) = (World::with_sessions(3).await, gate().await);
    let many = "INSERT INTO measurements (session_id, user_id, started_at, session_version) \
        SELECT 'row-' || i, 'u', now(), 'L/' || lpad(i::text, 40, '0') \
        FROM generate_series(1, 120000) i";
    assert_eq!(world.stores.change(many).await, 120_000);
    gate.set_rule(|seen| match seen.operation {
        "BatchGetItem" => Fault::Answer(json!({"Responses": {}, "UnprocessedKeys": {}})),
        _ => Fault::Pass,
    });
    let (log, json) = verified(verify(&world, &gate, &["--rounds", "1"]), 7).await;
    assert!(log.contains("too many parts differ to name them all"), "{log}");
    assert!(log.contains("`backfill merge`"), "{log}");
    assert_eq!((&json["result"], &json["complete"]), (&json!("different"), &json!(false)));
    assert!(json["differences"]["extra"].as_u64() > Some(100_000), "{json}");
    let kept = "SELECT concat_ws(' ', complete, extra > 100000) FROM verifications";
    assert_eq!(world.stores.ask(kept).await, "f t");
}
