//! What stands in the way of a repair, each ending right.

use std::time::Duration;

use serde_json::json;
use testkit::aws_server::{Account, AwsServer};
use testkit::records::{Draft, removal, session};
use testkit::runs::{assert_code, text};

use super::{QUICK, World, changed, id, keep_as_rejected, of_session, open_a_gap};

/// With `TTL_REMOVALS=keep`, a part whose item is gone stays only if its own time to live has
/// passed.
#[tokio::test(flavor = "multi_thread")]
async fn what_expired_is_kept_if_rows_keep_it_and_what_was_removed_is_not() {
    let with = |session_id: &str, seconds: i64| -> Draft {
        let mut draft = session(session_id, "u");
        draft.image.as_mut().expect("an image")["expires"] = json!({"N": seconds.to_string()});
        draft
    };
    let now = testkit::runs::now();
    let (expired, alive) = (with("expired", now - 60), with("alive", now + 7 * 24 * 3600));
    let world = World::with_items(&[expired.clone(), alive.clone()]).await;
    let enable = json!({"TableName": world.tables[0],
        "TimeToLiveSpecification": {"AttributeName": "expires", "Enabled": true}});
    world.dynamodb.call("UpdateTimeToLive", &enable).await.expect("a time to live");
    world.write_and_forget(&[removal(&expired), removal(&alive)]).await;
    let json = world.repair(&["--scan", "--ttl-removals", "keep"], 0).await;
    assert_eq!((&json["written"], &json["removed"]), (&json!(0), &json!(1)), "{json}");
    assert_eq!(world.row("expired", "user_id").await, "u");
    assert_eq!(world.row("alive", "user_id").await, "");
    let json = world.repair(&["--scan"], 0).await;
    assert_eq!(json["removed"], 1, "{json}");
}

/// What was written while the stream was off is in no stream; the new stream is followed.
#[tokio::test(flavor = "multi_thread")]
async fn writes_made_while_a_stream_was_off_come_from_the_table() {
    let mut world = World::with_sessions(4).await;
    let table = world.tables[1].clone();
    let switch = async |world: &World, on: bool| {
        let mut specification = json!({"StreamEnabled": on});
        if on {
            specification["StreamViewType"] = json!("NEW_IMAGE");
        }
        let update = json!({"TableName": table, "StreamSpecification": specification});
        let answer = world.dynamodb.call("UpdateTable", &update).await.expect("it is switched");
        answer["TableDescription"]["LatestStreamArn"].as_str().map(str::to_owned)
    };
    switch(&world, false).await;
    let [_, left, right] = of_session(1);
    world.write(&[changed(&left, "250.5"), removal(&right)]).await;
    let arn = switch(&world, true).await.expect("a stream");
    world.arns[1] = arn;
    world.replay().await;
    assert_ne!(world.row(&id(1), "left_foot_length_mm").await, "250.5", "no stream has it");
    // This one has a record, in the new stream.
    let [_, other, _] = of_session(2);
    world.write(&[changed(&other, "249.5")]).await;
    let json = world.repair(&["--scan"], 0).await;
    assert_eq!((&json["written"], &json["removed"]), (&json!(1), &json!(1)), "{json}");
    world.assert_equal().await;
    assert!(!world.row(&id(2), "left_version").await.contains('+'), "the stream brought it");
}

/// Lambda gave up on a batch before the repair. Its records come late: one is overtaken by a
/// removal that no stream has any more, and the other is as new as the table.
#[tokio::test(flavor = "multi_thread")]
async fn batches_that_lambda_gave_up_on_are_keys_after_a_repair() {
    let world = World::with_sessions(3).await;
    let [_, left, _] = of_session(1);
    world.write(&[changed(&left, "250.1")]).await;
    let batch = keep_as_rejected(&world, 1).await;
    world.stores.change("DELETE FROM rejected_records").await;
    world.write_and_forget(&[removal(&left)]).await;
    world.repair(&["--scan"], 0).await;

    let failure = json!({
        "requestContext": {"condition": "RetryAttemptsExhausted"},
        "version": "1.0",
        "DDBStreamBatchInfo": {"shardId": "s", "streamArn": world.arns[1]},
        "payload": json!({"Records": batch}).to_string(),
    });
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("failure.json");
    std::fs::write(&path, failure.to_string()).expect("a file");
    let path = path.to_str().expect("a path");
    for _ in 0..2 {
        let kept = world.run(&["file", path]).await;
        assert_code(&kept, 3);
        assert!(text(&kept.stdout).contains("`backfill redrive` reads its item"), "{kept:?}");
    }
    assert_eq!(world.stores.ask("SELECT count(*) FROM rejected_records").await, "1");
    assert_eq!(world.row(&id(1), "left_foot_length_mm").await, "", "it is not brought back");
    let json = world.quick("redrive", &[], 0).await;
    assert_eq!((&json["redriven"], &json["written"]), (&json!(1), &json!(0)), "{json}");
    world.assert_equal().await;
}

/// A row that somebody has locked is tried again, and holds up no other.
#[tokio::test(flavor = "multi_thread")]
async fn a_locked_row_is_tried_again_and_holds_up_no_other() {
    let world = World::with_sessions(5).await;
    open_a_gap(&world).await;
    let mut blocker = world.stores.connect().await;
    blocker.run("BEGIN").await;
    let lock = format!("SELECT 1 FROM measurements WHERE session_id = '{}' FOR UPDATE", id(1));
    blocker.run(&lock).await;
    let arguments = [&["repair", "--scan", "--json"], &QUICK[..]].concat();
    let repair = world.command(&arguments).spawn().expect("backfill runs");
    testkit::runs::until("the other rows", async || {
        world.row("new", "session_version").await.starts_with('+')
    })
    .await;
    // Longer than a row lock is waited for.
    tokio::time::sleep(Duration::from_secs(6)).await;
    blocker.run("ROLLBACK").await;
    let output = repair.wait_with_output().await.expect("it ends");
    assert_code(&output, 0);
    world.assert_equal().await;
}

/// The connection that holds the lock is lost while images wait: everything is looked at anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_is_lost_and_taken_again_costs_nothing_but_another_look() {
    let world = World::with_sessions(5).await;
    open_a_gap(&world).await;
    let arguments = ["repair", "--scan", "--json", "--idle-seconds", "1", "--first-record-seconds"];
    let arguments = [&arguments[..], &["1", "--function-timeout-seconds", "4"]].concat();
    let repair = world.command(&arguments).spawn().expect("backfill runs");
    testkit::runs::until("the repair", async || {
        world.stores.ask("SELECT count(*) FROM repairs").await == "1"
    })
    .await;
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
        WHERE application_name = 'backfill repair' AND datname = current_database()";
    // Past the first wait, and before the hold is over.
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert_eq!(world.stores.ask(end).await, "1");
    let output = repair.wait_with_output().await.expect("it ends");
    assert_code(&output, 0);
    world.assert_equal().await;
}

/// A record that is trimmed while the function still has it would be lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_is_a_day_behind_is_refused_and_its_timeout_is_used() {
    let world = World::with_sessions(3).await;
    open_a_gap(&world).await;
    let name = "projector-new".to_owned();
    let account = Account {
        variables: [(name.clone(), json!({}))].into(),
        metrics: [(format!("IteratorAge/{name}"), [(1, 21.0 * 3_600_000.0)].into())].into(),
        ..Account::default()
    };
    let server = AwsServer::start(account).await;
    let repair = async || {
        let quick = ["--idle-seconds", "1", "--first-record-seconds", "1", "--function", &name];
        let mut command = world.command(&[&["repair", "--scan"], &quick[..]].concat());
        command
            .env("AWS_ENDPOINT_URL_LAMBDA", &server.url)
            .env("AWS_ENDPOINT_URL_CLOUDWATCH", &server.url);
        command.output().await.expect("backfill runs")
    };
    let refused = repair().await;
    assert_code(&refused, 1);
    assert!(text(&refused.stderr).contains("is 21 h 0 min behind its streams"), "{refused:?}");
    assert_eq!(world.stores.ask("SELECT count(*) FROM repairs").await, "0");
    let caught_up = |account: &mut Account| {
        account.metrics.insert(format!("IteratorAge/{name}"), [(1, 900.0)].into());
    };
    server.change(caught_up);
    let repaired = repair().await;
    assert_code(&repaired, 0);
    // The function says 3 s.
    assert!(text(&repaired.stderr).contains("waiting 3 s"), "{repaired:?}");
    world.assert_equal().await;
}
