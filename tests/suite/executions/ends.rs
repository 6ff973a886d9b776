//! Each end of an execution: the exit code, the reason and the remedy.

use serde_json::{Value as Json, json};
use testkit::runs::{assert_code, text};
use testkit::states_server::{StatesServer, execution_arn};

use super::{input, object, run, summary};

/// A server with one execution that has ended.
async fn ended(repair: bool, more: Json) -> StatesServer {
    let server = StatesServer::start().await;
    let mut members = more;
    members["input"] = input(repair);
    server.change(|states| states.add("one", 300.0, &members));
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn an_execution_that_succeeded_ends_as_verify_or_repair_does() {
    for (repair, sums, code, said) in [
        (false, json!({}), 0, "equal: 200000 items compared in 40 files"),
        (false, json!({ "differing": 3 }), 7, "different: 200000 items"),
        (false, json!({ "gone": 1 }), 7, "different: 200000 items"),
        (false, json!({ "rejected": 2 }), 0, "equal: 200000 items"),
        (true, json!({ "differing": 3, "repaired": 3 }), 0, "done: 200000 items"),
        (true, json!({ "rejected": 2 }), 3, "done: 200000 items"),
        (true, json!({ "complete": false }), 1, "not complete: 200000 items"),
    ] {
        let output = summary(repair, &sums);
        let server = ended(repair, json!({ "status": "SUCCEEDED", "output": output })).await;
        for arguments in [&["wait"][..], &["status"], &["wait", "one"]] {
            let run = run(&server, arguments).await;
            assert_code(&run, code);
            let (text, notes) = (text(&run.stdout), text(&run.stderr));
            assert!(text.contains(said), "{arguments:?}: {text}");
            assert!(code != 1 || notes.contains("start again"), "{notes}");
        }
        let json = object(&run(&server, &["wait", "--json"]).await, code);
        assert_eq!(json["summary"]["compared"], 200_000, "{json}");
        assert_eq!(json["error"].is_null(), matches!(code, 0 | 3), "{json}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_execution_that_did_not_succeed_names_the_file_its_error_and_the_remedy() {
    let server = ended(
        false,
        json!({
            "status": "FAILED", "error": "States.ExceedToleratedFailureThreshold",
            "cause": "The specified tolerated failure threshold was exceeded",
        }),
    )
    .await;
    server.change(|states| {
        let files = states.add_map_run(("one", "CompareScans"), [38, 2, 0], "FAILED");
        let cause = json!({
            "errorType": "Failed", "errorMessage": "PostgreSQL refuses connections",
        });
        for (name, key) in [("child-1", "data/a.json.gz"), ("child-2", "data/b.json.gz")] {
            let more = json!({
                "mapRunArn": files, "status": "FAILED", "error": "Failed",
                "cause": cause.to_string(),
                "input": json!({ "bucket": "exports", "key": key }).to_string(),
            });
            states.add(name, 100.0, &more);
        }
    });
    let failed = run(&server, &["wait", "one"]).await;
    assert_code(&failed, 1);
    let (said, shown) = (text(&failed.stderr), text(&failed.stdout));
    for part in [
        "the execution failed after",
        "data/b.json.gz failed: Failed: PostgreSQL refuses connections",
        "fix what the message names, and go on where it failed",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(shown.contains("CompareScans        40/40 files, 2 failed"), "{shown}");
    assert!(shown.contains("failed: file s3://exports/data/a.json.gz: Failed: "), "{shown}");
    let json = object(&run(&server, &["status", "--json"]).await, 1);
    assert_eq!(json["failed"].as_array().map(Vec::len), Some(2), "{json}");
    assert_eq!(json["failed"][0]["cause"], "PostgreSQL refuses connections");
    assert!(json["error"].as_str().is_some_and(|error| error.contains("PostgreSQL")), "{json}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_execution_that_was_stopped_or_timed_out_says_what_to_do() {
    for (status, error, cause, said, remedy) in [
        ("ABORTED", "", "by hand", "the execution was stopped after 5 min", "ten minutes after"),
        ("TIMED_OUT", "States.Timeout", "", "the execution timed out after 5 min", "was slow"),
        ("FAILED", "HeldByAnother", "repair 7 runs", "repair 7 runs", "wait for the run that"),
        ("FAILED", "LeaseEnded", "taken over", "LeaseEnded: taken over", "start again"),
    ] {
        let more = json!({ "status": status, "error": error, "cause": cause });
        let server = ended(true, more).await;
        let run = run(&server, &["wait"]).await;
        assert_code(&run, 1);
        let notes = text(&run.stderr);
        assert!(notes.contains(said) && notes.contains(remedy), "{status} {error}: {notes}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_that_is_no_summary_is_no_success() {
    let server = ended(false, json!({ "status": "SUCCEEDED", "output": "{\"ok\": true}" })).await;
    let run = run(&server, &["wait"]).await;
    assert_code(&run, 1);
    assert!(text(&run.stderr).contains("its output is not the answer to `end`"), "{run:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_execution_that_is_not_there_is_an_error_of_the_command() {
    let server = StatesServer::start().await;
    for (arguments, said) in [
        (&["status"][..], "which has no execution: start one"),
        (&["wait", "gone"], "and there is none"),
        (&["wait", "arn:aws:states:nonsense"], "neither an ARN of an execution"),
        (&["status", "--state-machine", ""], "RECONCILE_STATE_MACHINE is not set"),
    ] {
        let refused = run(&server, arguments).await;
        assert_code(&refused, 2);
        assert!(text(&refused.stderr).contains(said), "{}", text(&refused.stderr));
    }
    // An ARN needs no state machine.
    server.change(|states| {
        let output = summary(false, &json!({}));
        let more = json!({ "input": input(false), "status": "SUCCEEDED", "output": output });
        states.add("one", 60.0, &more);
    });
    let mut command = super::command(&server, &["status", &execution_arn("one")]);
    command.env_remove("RECONCILE_STATE_MACHINE");
    assert_code(&testkit::runs::output(command).await, 0);
}
