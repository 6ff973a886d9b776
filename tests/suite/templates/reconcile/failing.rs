//! Every way in which an execution may end, on the stand-in, with a function that says what a test
//! has told it to: which requests come, in which order, and what follows an error.
//!
//! The stand-in ignores `ResultWriter`, and a branch that fails does not stop the other one.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value as Json, json};
use testkit::records::{scan, session};
use testkit::runs::until;
use testkit::services::{s3, service};

use super::super::deployed::{folder, json_of, run};
use super::machine::{self, Account, call, text};

/// The function: it writes each request down, and answers as the real one does, or with the error
/// that `FAILING` names for this kind of request.
const FUNCTION: &str = r#"#!/usr/bin/env python3
import json, os, time, urllib.request
ROOT = "http://" + os.environ["AWS_LAMBDA_RUNTIME_API"] + "/2018-06-01/runtime/invocation/"
FAILING, LOG = json.loads(os.environ["FAILING"]), os.environ["LOG"]

def requests():
    with open(LOG) as log:
        return [json.loads(line) for line in log]

def kind_of(request):
    names = ("begin", "follow", "ranges", "end", "failure", "step", "key")
    name = next(name for name in names if name in request)
    return request["step"] if name == "step" else name

def answer(request, kind):
    if kind == "begin":
        repair = 7 if request["begin"]["repair"] else None
        return {"run": 3, "repair": repair, "started_at": "2026-11-25T08:00:00Z"}
    if kind == "follow":
        # AWS ends this branch with the other one; here it sees that nothing is asked for any more.
        while time.time() - os.stat(LOG).st_mtime < 4 and not any("end" in one for one in requests()):
            time.sleep(0.1)
        return {"done": True}
    if kind == "ranges":
        of_run = {"run": request["ranges"]["run"], "repair": request["ranges"]["repair"]}
        return {"ranges": [{**of_run, "step": "count", "after": "", "through": "m"},
                           {**of_run, "step": "count", "after": "m", "through": None}]}
    if kind == "end":
        counts = dict.fromkeys(
            ("files", "compared", "differing", "repaired", "gone", "removed", "rejected"), 1)
        return {"run": 3, "repair": request["end"]["repair"], "complete": "failure" not in FAILING,
                **counts}
    # Each slice wants two calls.
    if kind == "key" and request["next"] < request["items"]:
        return {**request, "done": False, "next": request["items"]}
    return {**request, "done": True}

while True:
    with urllib.request.urlopen(ROOT + "next") as invocation:
        id, event = invocation.headers["Lambda-Runtime-Aws-Request-Id"], json.load(invocation)
    request = event["reconcile"]
    kind = kind_of(request)
    with open(LOG, "a") as log:
        log.write(json.dumps({**request, "kind": kind}) + "\n")
    error = FAILING.get(kind)
    body, what = ({"errorType": error, "errorMessage": "as told"}, "error") if error else (
        answer(request, kind), "response")
    urllib.request.urlopen(ROOT + id + "/" + what, json.dumps(body).encode()).close()
"#;

/// Makes the zip of a file that stays executable.
const ZIP: &str = "python3 -c \"
import zipfile
with zipfile.ZipFile('function.zip', 'w') as archive:
    bootstrap = zipfile.ZipInfo('bootstrap')
    bootstrap.external_attr = 0o755 << 16
    archive.writestr(bootstrap, open('bootstrap').read())\"";

/// A state machine over that function.
struct Told {
    machine: String,
    log: std::path::PathBuf,
}

impl Told {
    /// `failing`: the name of the error by the kind of request.
    async fn new(folder: &Path, account: &Account, failing: &Json) -> Self {
        let name = format!("told-{:012x}", fastrand::u64(..1 << 48));
        let own = folder.join(&name);
        std::fs::create_dir(&own).expect("a folder");
        std::fs::write(own.join("bootstrap"), FUNCTION).expect("a file");
        let log = own.join("log");
        std::fs::write(&log, "").expect("a file");
        let variables = json!({ "Variables": {
            "LOG": log, "FAILING": failing.to_string(),
        } });
        std::fs::write(own.join("environment"), variables.to_string()).expect("a file");
        run(&own, ZIP);
        let role = "arn:aws:iam::000000000000:role/any";
        let function = json_of(
            &own,
            &format!(
                "lambda create-function --function-name {name} --runtime provided.al2023 --timeout 900 \
                 --handler bootstrap --role {role} --zip-file fileb://function.zip \
                 --environment file://environment"
            ),
        );
        let names = [
            ("Name", name.clone()),
            ("Partition", "aws".to_owned()),
            ("FunctionArn", text(&function["FunctionArn"])),
            ("ExportBucket", account.exports.clone()),
            ("FailureBucket", account.failures.clone()),
            ("SessionsTableArn", arn_of(&account.tables[0])),
            ("ScansTableArn", arn_of(&account.tables[1])),
            ("TopicArn", account.topic.clone()),
            ("MaxConcurrency", "2".to_owned()),
        ];
        let states = names.iter().fold(machine::states(0, 3), |states, (name, value)| {
            states.replace(&format!("${{{name}}}"), value)
        });
        let asked = json!({ "name": name, "roleArn": role, "definition": states });
        let machine = call("AWSStepFunctions.CreateStateMachine", &asked).await;
        Self { machine: text(&machine["stateMachineArn"]), log }
    }

    /// The requests so far, with their kinds.
    fn requests(&self) -> Vec<Json> {
        let log = std::fs::read_to_string(&self.log).expect("the log");
        log.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// How many there were of each kind.
    fn counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for request in self.requests() {
            *counts.entry(text(&request["kind"])).or_default() += 1;
        }
        counts
    }
}

fn arn_of(table: &str) -> String {
    format!("arn:aws:dynamodb:us-east-1:000000000000:table/{table}")
}

fn counts(expected: &[(&str, usize)]) -> BTreeMap<String, usize> {
    expected.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect()
}

/// An account whose tables have been exported, in two files each.
async fn exported(folder: &Path) -> (Account, Json) {
    let account = Account::new(folder).await;
    for number in 0..4 {
        let id = format!("s{number}");
        account.dynamodb.put_item(&account.tables[0], &session(&id, "u").item()).await;
        account.dynamodb.put_item(&account.tables[1], &scan(&id, "left", "245.3").item()).await;
    }
    let [sessions, scans] = account.export(2).await;
    (account, json!({ "sessions": sessions, "scans": scans }))
}

fn input(repair: bool, exports: &Json) -> Json {
    json!({ "repair": repair, "exports": exports, "failures": false })
}

/// The files first, then the ranges' counts, then their checks, then the end.
#[tokio::test(flavor = "multi_thread")]
async fn an_execution_asks_for_everything_once_and_in_order() {
    let folder = folder();
    let folder = folder.path();
    let (account, exports) = exported(folder).await;
    for repair in [false, true] {
        let told = Told::new(folder, &account, &json!({})).await;
        let execution = machine::execute(&told.machine, &input(repair, &exports)).await;
        let id = if repair { json!(7) } else { Json::Null };
        let answer = json!({ "run": 3, "repair": id, "complete": true, "files": 1, "compared": 1,
                             "differing": 1, "repaired": 1, "gone": 1, "removed": 1, "rejected": 1 });
        assert_eq!(machine::output(&execution), answer, "the answer of `end`");

        let requests = told.requests();
        let kinds: Vec<&str> = requests
            .iter()
            .filter_map(|request| request["kind"].as_str())
            .filter(|kind| *kind != "follow")
            .collect();
        // Of four files two calls each.
        let expected =
            [&["begin"][..], &["key"; 8], &["ranges"], &["count"; 2], &["check"; 2], &["end"]];
        assert_eq!(kinds, expected.concat());
        assert_eq!(
            requests.iter().filter(|request| request["kind"] == "follow").count(),
            usize::from(repair),
            "a comparison has no lease to renew"
        );
        let of_run = requests.iter().filter(|request| request.get("run").is_some());
        for request in of_run {
            assert_eq!((&request["run"], &request["repair"]), (&json!(3), &id), "{request}");
        }
        let ranges = |kind| {
            let of_kind = requests.iter().filter(move |request| request["kind"] == kind);
            let mut bounds: Vec<_> = of_kind
                .map(|request| (text(&request["after"]), request["through"].clone()))
                .collect();
            bounds.sort_by(|one, other| one.0.cmp(&other.0));
            bounds
        };
        let both = [(String::new(), json!("m")), ("m".to_owned(), Json::Null)];
        assert_eq!((ranges("count"), ranges("check")), (both.to_vec(), both.to_vec()));
        let (subject, message) = account.told().await.pop().expect("a message");
        assert!(subject.ends_with("reconciliation complete"), "{subject}");
        assert!(message.contains("parts that differed: 1"), "{message}");
        let owner = &requests.iter().find(|request| request["kind"] == "end").expect("an end")["end"]
            ["owner"];
        assert_eq!(owner, &execution["executionArn"]);
    }
}

/// The kind of request that fails, its error, that of the execution, and the requests until then.
type Case<'a> = (&'a str, &'a str, &'a str, &'a [(&'a str, usize)]);

/// What does not pass is asked once, what may pass as often as the state machine says. No `end`
/// follows an error: the run and its lease are what a redrive goes on with.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_fails_the_execution_and_ends_no_run() {
    const THRESHOLD: &str = "States.ExceedToleratedFailureThreshold";
    let folder = folder();
    let folder = folder.path();
    let (account, exports) = exported(folder).await;
    let cases: [Case<'_>; 7] = [
        ("begin", "WrongEvent", "WrongEvent", &[("begin", 1)]),
        ("key", "DamagedFile", THRESHOLD, &[("begin", 1), ("follow", 1), ("key", 2)]),
        ("key", "Failed", THRESHOLD, &[("begin", 1), ("follow", 1), ("key", 26)]),
        (
            "ranges",
            "LeaseEnded",
            "LeaseEnded",
            &[("begin", 1), ("follow", 1), ("key", 8), ("ranges", 1)],
        ),
        (
            "check",
            "Failed",
            THRESHOLD,
            &[("begin", 1), ("follow", 1), ("key", 8), ("ranges", 1), ("count", 2), ("check", 26)],
        ),
        (
            "end",
            "Failed",
            "Failed",
            &[
                ("begin", 1),
                ("follow", 1),
                ("key", 8),
                ("ranges", 1),
                ("count", 2),
                ("check", 2),
                ("end", 21),
            ],
        ),
        // The stand-in lets the work go on to its end.
        (
            "follow",
            "LeaseEnded",
            "LeaseEnded",
            &[
                ("begin", 1),
                ("follow", 1),
                ("key", 8),
                ("ranges", 1),
                ("count", 2),
                ("check", 2),
                ("end", 1),
            ],
        ),
    ];
    for (kind, error, ends_with, asked) in cases {
        let told = Told::new(folder, &account, &json!({ kind: error })).await;
        let execution = machine::execute(&told.machine, &input(true, &exports)).await;
        assert_eq!(execution["status"], "FAILED", "{kind} {error}: {execution}");
        assert_eq!(execution["error"], ends_with, "{kind} {error}: {execution}");
        assert_eq!(told.counts(), counts(asked), "{kind} {error}");
        // The alarm on failed executions tells it.
        assert_eq!(account.told().await, [], "{kind} {error}");
    }
}

/// Without exports it asks for both, once, and waits until they are complete. What the stand-in
/// does not write, this test does.
#[tokio::test(flavor = "multi_thread")]
async fn both_tables_are_exported_if_no_exports_are_given() {
    let folder = folder();
    let folder = folder.path();
    let account = Account::new(folder).await;
    account.dynamodb.put_item(&account.tables[0], &session("s", "u").item()).await;
    account.dynamodb.put_item(&account.tables[1], &scan("s", "left", "245.3").item()).await;
    let told = Told::new(folder, &account, &json!({})).await;
    let execution = machine::start(&told.machine, &input(false, &Json::Null)).await;
    for table in &account.tables {
        let listing = json!({ "TableArn": arn_of(table) });
        let mut arn = None;
        until("the export", async || {
            let exports = account.dynamodb.call("ListExports", &listing).await.expect("a list");
            arn = exports["ExportSummaries"][0]["ExportArn"].as_str().map(str::to_owned);
            arn.is_some()
        })
        .await;
        let arn = arn.expect("an ARN");
        account.write_export(&account.exports, (table, &arn), 1).await;
    }
    machine::output(&machine::ended(&execution).await);
    // Of each file two calls.
    assert_eq!(told.counts()["key"], 4, "{:?}", told.requests());
    for table in &account.tables {
        let listing = json!({ "TableArn": arn_of(table) });
        let exports = account.dynamodb.call("ListExports", &listing).await.expect("a list");
        assert_eq!(exports["ExportSummaries"].as_array().map(Vec::len), Some(1), "{exports}");
    }
}

/// What is refused has begun nothing.
#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused_before_anything_begins() {
    let folder = folder();
    let folder = folder.path();
    let (account, exports) = exported(folder).await;
    let (sessions, scans) = (&exports["sessions"], &exports["scans"]);
    let elsewhere = account.export_to(&account.failures, 1).await;
    let told = Told::new(folder, &account, &json!({})).await;
    let unfit = "ExportUnusable";
    for (input, error, said) in [
        (json!({ "repair": false, "exports": null, "failures": true }), "WrongInput", "repair"),
        (json!({ "repair": true, "exports": exports, "failures": true }), "WrongInput", "exports"),
        (input(true, &json!({ "sessions": scans, "scans": sessions })), unfit, "of the table"),
        (input(true, &json!({ "sessions": sessions, "scans": sessions })), unfit, "of the table"),
        (input(true, &json!({ "sessions": elsewhere[0], "scans": scans })), unfit, "/exports/"),
        (
            input(
                true,
                &json!({ "sessions": "arn:aws:dynamodb:us-east-1:000000000000:table/t/export/1",
                              "scans": scans }),
            ),
            "DynamoDb.ExportNotFoundException",
            "not found",
        ),
    ] {
        let execution = machine::execute(&told.machine, &input).await;
        assert_eq!(execution["status"], "FAILED", "{execution}");
        assert_eq!(execution["error"], error, "{execution}");
        assert!(text(&execution["cause"]).contains(said), "{execution}");
    }
    assert_eq!(told.requests(), [] as [Json; 0]);
}

/// Each object is one request, and an empty bucket is no error.
#[tokio::test(flavor = "multi_thread")]
async fn the_bucket_of_failures_is_drained_object_by_object() {
    let folder = folder();
    let folder = folder.path();
    let account = Account::new(folder).await;
    let drain = json!({ "repair": true, "exports": null, "failures": true });
    let told = Told::new(folder, &account, &json!({})).await;
    machine::output(&machine::execute(&told.machine, &drain).await);
    assert_eq!(told.counts(), counts(&[("begin", 1), ("follow", 1), ("end", 1)]));

    let client = s3(&service("AWS_ENDPOINT_URL")).await;
    let keys = ["aws/lambda/m/shard-1/a", "aws/lambda/m/shard-1/b", "aws/lambda/m/shard-2/c"];
    for key in [&keys[..], &["notes/of-somebody"]].concat() {
        let put = client.put_object().bucket(&account.failures).key(key);
        put.body(b"{}".to_vec().into()).send().await.expect("an object");
    }
    let told = Told::new(folder, &account, &json!({})).await;
    machine::output(&machine::execute(&told.machine, &drain).await);
    let requests = told.requests();
    let mut drained: Vec<String> = requests
        .iter()
        .filter(|request| request["kind"] == "failure")
        .inspect(|request| assert_eq!(request["bucket"], json!(account.failures)))
        .map(|request| text(&request["failure"]))
        .collect();
    drained.sort();
    assert_eq!(drained, keys);
    assert_eq!(requests.last().map(|request| request["kind"].clone()), Some(json!("end")));

    // What is no failure stays, is named, and keeps no other object from being asked for.
    let told = Told::new(folder, &account, &json!({ "failure": "DamagedFile" })).await;
    let execution = machine::execute(&told.machine, &drain).await;
    assert_eq!(execution["status"], "FAILED", "{execution}");
    assert_eq!(execution["error"], "DamagedFile", "{execution}");
    assert!(text(&execution["cause"]).contains("they were left"), "{execution}");
    assert_eq!(told.counts(), counts(&[("begin", 1), ("follow", 1), ("failure", 3), ("end", 1)]));
}
