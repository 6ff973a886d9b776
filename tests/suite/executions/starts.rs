//! `reconcile start`.

use serde_json::{Value as Json, json};
use testkit::runs::{assert_code, text};
use testkit::states_server::{StatesServer, execution_arn};

use super::{input, object, run};

/// The inputs of the executions that were started.
fn inputs(server: &StatesServer) -> Vec<Json> {
    let parsed = |one: &Json| serde_json::from_str(one["input"].as_str().expect("an input"));
    server.change(|states| states.executions.iter().map(|one| parsed(one).expect("JSON")).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_flags_of_a_start_make_the_input_and_it_compares_unless_told_to_repair() {
    let export = |table: &str| {
        format!("arn:aws:dynamodb:us-east-1:123456789012:table/{table}/export/01690000000000-a")
    };
    let (sessions, scans) = (export("sessions"), export("scans"));
    let with_exports = ["--repair", "--export", sessions.as_str(), scans.as_str()];
    for (flags, expected) in [
        (&[][..], json!({ "repair": false, "exports": null, "failures": false })),
        (&["--compare-only"], json!({ "repair": false, "exports": null, "failures": false })),
        (
            &with_exports,
            json!({
                "repair": true, "failures": false,
                "exports": { "sessions": sessions, "scans": scans },
            }),
        ),
        (&["--failures"], json!({ "repair": true, "exports": null, "failures": true })),
    ] {
        let server = StatesServer::start().await;
        let started = run(&server, &[&["start"], flags].concat()).await;
        assert_code(&started, 0);
        assert_eq!(inputs(&server), [expected], "{flags:?}");
        let said = text(&started.stdout);
        let arn = server.change(|states| states.executions[0]["executionArn"].clone());
        let arn = arn.as_str().expect("an ARN");
        assert!(said.contains(&format!("backfill reconcile wait {arn}")), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_start_within_a_minute_makes_one_run() {
    let server = StatesServer::start().await;
    let first = object(&run(&server, &["start", "--repair", "--json"]).await, 0);
    let again = object(&run(&server, &["start", "--repair", "--json"]).await, 0);
    assert_eq!(first["execution"], again["execution"]);
    assert_eq!(
        (&first["already_started"], &again["already_started"]),
        (&false.into(), &true.into())
    );
    assert_eq!(inputs(&server).len(), 1);

    let other = run(&server, &["start"]).await;
    assert_code(&other, 1);
    let said = text(&other.stderr);
    assert!(said.contains("another run was started"), "{said}");
    assert!(said.contains("--name"), "{said}");
    assert_eq!(inputs(&server).len(), 1);
}

/// Both are started before either can see the other.
#[tokio::test(flavor = "multi_thread")]
async fn starts_at_the_same_moment_make_one_run() {
    let server = StatesServer::start().await;
    let start = || run(&server, &["start", "--repair", "--json"]);
    let (one, two, three) = tokio::join!(start(), start(), start());
    let executions = [one, two, three].map(|run| object(&run, 0)["execution"].clone());
    assert!(executions.iter().all(|one| *one == executions[0]), "{executions:?}");
    assert_eq!(inputs(&server).len(), 1);
}

/// Step Functions shows an execution a moment after it has started.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_cannot_be_seen_yet_is_not_made_twice() {
    let server = StatesServer::start().await;
    let first = object(&run(&server, &["start", "--repair", "--json"]).await, 0);
    for status in ["RUNNING", "SUCCEEDED"] {
        server.change(|states| {
            states.executions[0]["status"] = status.into();
            let unseen = ("ExecutionDoesNotExist".to_owned(), 2);
            states.errors.insert("DescribeExecution".to_owned(), unseen);
        });
        let again = object(&run(&server, &["start", "--repair", "--json"]).await, 0);
        assert_eq!(
            (&again["execution"], &again["already_started"]),
            (&first["execution"], &true.into()),
            "{status}"
        );
    }
    assert_eq!(inputs(&server).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_with_a_name_finds_its_run_at_any_time() {
    let server = StatesServer::start().await;
    let summary = super::summary(true, &json!({}));
    server.change(|states| {
        let more = json!({ "input": input(true), "status": "SUCCEEDED", "output": summary });
        states.add("nightly-1", 7_200.0, &more);
    });
    let named = ["start", "--repair", "--name", "nightly-1", "--json"];
    let found = object(&run(&server, &named).await, 0);
    assert_eq!(found["execution"], execution_arn("nightly-1"));
    assert_eq!(found["already_started"], true);
    // What a script repeats may wait, too.
    let waited = object(&run(&server, &[&named[..], &["--wait"]].concat()).await, 0);
    assert_eq!(
        (&waited["summary"]["files"], &waited["already_started"]),
        (&40.into(), &true.into())
    );

    let other = run(&server, &["start", "--name", "nightly-1"]).await;
    assert_code(&other, 2);
    let said = text(&other.stderr);
    assert!(said.contains("--name is refused: the name is taken by another run"), "{said}");
    assert_eq!(inputs(&server).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_beside_another_run_is_refused_unless_it_is_meant() {
    let server = StatesServer::start().await;
    server.change(|states| states.add("nightly", 3_600.0, &json!({ "input": input(false) })));
    let refused = run(&server, &["start", "--repair"]).await;
    assert_code(&refused, 1);
    let (said, running) = (text(&refused.stderr), execution_arn("nightly"));
    for part in [
        format!("backfill reconcile wait {running}"),
        format!("stop-execution --execution-arn {running}"),
        "--beside".to_owned(),
    ] {
        assert!(said.contains(&part), "{part}: {said}");
    }
    assert_eq!(inputs(&server).len(), 1);
    assert_code(&run(&server, &["start", "--repair", "--beside"]).await, 0);
    assert_eq!(inputs(&server).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_start_is_named_before_anything_is_called() {
    let server = StatesServer::start().await;
    let foreign = "arn:aws:dynamodb:us-east-1:123456789012:table/orders/export/01-a";
    for (arguments, said) in [
        (
            &["start", "--state-machine", "reconcile"][..],
            "RECONCILE_STATE_MACHINE is \"reconcile\"",
        ),
        (&["start", "--state-machine", ""], "RECONCILE_STATE_MACHINE is not set"),
        (&["start", "--export", foreign, foreign], "an export of table \"orders\""),
    ] {
        let refused = run(&server, arguments).await;
        assert_code(&refused, 2);
        assert!(text(&refused.stderr).contains(said), "{}", text(&refused.stderr));
    }
    assert_eq!(server.change(|states| states.calls.clone()), Vec::<String>::new());
    let gone = "arn:aws:states:us-east-1:123456789012:stateMachine:gone";
    let refused = run(&server, &["start", "--state-machine", gone]).await;
    assert_code(&refused, 2);
    assert!(text(&refused.stderr).contains("there is no such state machine"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_starts_nothing_and_says_what_a_run_would_cost() {
    let server = StatesServer::start().await;
    server.change(|states| {
        states.sizes.insert("sessions".to_owned(), (1_000_000, 400_000_000));
        states.sizes.insert("scans".to_owned(), (2_000_000, 40_000_000_000));
        states.memory_mb = 2_048;
        states.definition = json!({ "States": { "Files": {
            "MaxConcurrency": 20, "Resource": "arn:aws:lambda:us-east-1:1:function:reconcile",
        } } })
        .to_string();
    });
    let told = run(&server, &["start", "--repair", "--dry-run", "--json"]).await;
    let cost = object(&told, 0);
    for (member, expected) in
        [("items", 3_000_000), ("files", 12), ("memory_mb", 2_048), ("concurrency", 20)]
    {
        assert_eq!(cost[member], expected, "{member}: {cost}");
    }
    assert_eq!((&cost["export_gb"], &cost["dry_run"]), (&40.4.into(), &true.into()));
    let flags = ["start", "--dry-run", "--memory-mb", "512", "--concurrency", "4", "--json"];
    let cost = object(&run(&server, &flags).await, 0);
    assert_eq!((&cost["memory_mb"], &cost["concurrency"]), (&512.into(), &4.into()));

    // Without the right to see how it is deployed, the flags still serve.
    server.change(|states| {
        states.errors.insert("DescribeStateMachine".to_owned(), ("AccessDenied".to_owned(), 9));
    });
    let told = run(&server, &["start", "--dry-run"]).await;
    assert_code(&told, 0);
    let (said, notes) = (text(&told.stdout), text(&told.stderr));
    assert!(said.contains("list prices of us-east-1"), "{said}");
    assert!(notes.contains("give --memory-mb") && notes.contains("give --concurrency"), "{notes}");
    assert_eq!(inputs(&server), Vec::<Json>::new());
}
