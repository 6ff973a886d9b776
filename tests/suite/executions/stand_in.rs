//! The same commands with the Step Functions of the stand-in of AWS, which runs a state machine: a
//! Distributed Map whose children answer as slices do.

use std::process::Stdio;

use serde_json::{Value as Json, json};
use testkit::emulator::binary;
use testkit::runs::{assert_code, output, text, until};
use testkit::services::service;
use tokio::process::Command;

use super::object;

/// A state machine of three files. If one is damaged, its child fails.
fn definition(damaged: bool) -> Json {
    let file = |number: u32| {
        json!({
            "bucket": "exports", "key": format!("data/{number}.json.gz"),
            "damaged": damaged && number == 2,
        })
    };
    let files = [1, 2, 3].map(file);
    let answer = json!({
        "done": true, "compared": 5, "differing": 2, "repaired": 0, "rejected": 0,
    });
    let summary = json!({
        "run": 1, "repair": null, "complete": true, "files": 3, "compared": 15, "differing": 6,
        "repaired": 0, "gone": 0, "removed": 0, "rejected": 0,
    });
    json!({ "StartAt": "Begin", "States": {
        "Begin": { "Type": "Pass", "Result": files, "ResultPath": "$.files", "Next": "Files" },
        "Files": {
            "Type": "Map", "Label": "Files", "ItemsPath": "$.files", "MaxConcurrency": 1,
            "ResultPath": null, "Next": "End",
            "ItemProcessor": {
                "ProcessorConfig": { "Mode": "DISTRIBUTED", "ExecutionType": "STANDARD" },
                "StartAt": "Slice",
                "States": {
                    "Slice": { "Type": "Wait", "Seconds": 2, "Next": "Damaged" },
                    "Damaged": {
                        "Type": "Choice", "Default": "Done",
                        "Choices": [
                            { "Variable": "$.damaged", "BooleanEquals": true, "Next": "Fail" },
                        ],
                    },
                    "Fail": {
                        "Type": "Fail", "Error": "DamagedFile", "Cause": "its MD5 is another",
                    },
                    "Done": { "Type": "Pass", "Result": answer, "End": true },
                },
            },
        },
        "End": { "Type": "Pass", "Result": summary, "End": true },
    } })
}

/// Creates the state machine, and gives its ARN.
async fn create(damaged: bool) -> String {
    let name = format!("reconcile-{:08x}", fastrand::u32(..));
    let created = Command::new("aws")
        .args(["stepfunctions", "create-state-machine", "--output", "json", "--name", &name])
        .args(["--role-arn", "arn:aws:iam::000000000000:role/states"])
        .args(["--definition", &definition(damaged).to_string()])
        .output()
        .await
        .expect("aws is on the PATH: run this with scripts/with-services --with-sam");
    assert!(created.status.success(), "{}", text(&created.stderr));
    let created: Json = serde_json::from_slice(&created.stdout).expect("JSON");
    created["stateMachineArn"].as_str().expect("an ARN").to_owned()
}

fn command(machine: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("backfill"));
    command
        .arg("reconcile")
        .args(arguments)
        .env("AWS_ENDPOINT_URL", service("AWS_ENDPOINT_URL"))
        .env("RECONCILE_STATE_MACHINE", machine)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn an_execution_of_the_stand_in_is_started_seen_and_followed_to_its_end() {
    let machine = create(false).await;
    let started = object(&output(command(&machine, &["start", "--json"])).await, 0);
    let execution = started["execution"].as_str().expect("an ARN");
    let again = object(&output(command(&machine, &["start", "--json"])).await, 0);
    assert_eq!(
        (&again["execution"], &again["already_started"]),
        (&started["execution"], &true.into())
    );
    until("the map run", async || {
        let looked = output(command(&machine, &["status"])).await;
        assert_code(&looked, 0);
        let shown = text(&looked.stdout);
        assert!(shown.starts_with(execution), "{shown}");
        shown.contains("now comparing files") && shown.contains("/3 files")
    })
    .await;

    let waited = object(&output(command(&machine, &["wait", "--json"])).await, 7);
    assert_eq!(
        (&waited["status"], &waited["summary"]["differing"]),
        (&"SUCCEEDED".into(), &6.into())
    );
    let files = &waited["map_runs"][0];
    let numbers = ["total", "succeeded", "asked", "items", "differing"].map(|name| &files[name]);
    assert_eq!(numbers, [3, 3, 3, 15, 6].map(Json::from).each_ref(), "{files}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_fails_in_the_stand_in_is_named_with_its_remedy() {
    let machine = create(true).await;
    let waited = output(command(&machine, &["start", "--wait"])).await;
    assert_code(&waited, 1);
    let said = text(&waited.stderr);
    let why = "file s3://exports/data/2.json.gz failed: DamagedFile: its MD5 is another";
    assert!(said.contains(why) && said.contains("without --export"), "{said}");
}
