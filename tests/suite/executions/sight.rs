//! What is seen of an execution that runs: the phase, the files, items and differences; under
//! throttling, without rights, after a signal, and on a terminal.

use std::time::Duration;

use serde_json::{Value as Json, json};
use testkit::runs::{assert_code, signal, text, until};
use testkit::states_server::{StatesServer, execution_arn};
use tokio::process::Command;
use tokio::time::timeout;

use super::{command, input, object, run, summary};
use crate::terminal::Schema;

const HANGS: Duration = Duration::from_mins(1);

/// An execution that compares files: 12 of 40 are done.
async fn comparing() -> StatesServer {
    let server = StatesServer::start().await;
    server.change(|states| {
        states.add("one", 65.0, &json!({ "input": input(true) }));
        let files = states.add_map_run(("one", "Files"), [12, 0, 28], "RUNNING");
        for child in 0..12 {
            let output = json!({ "compared": 5_000, "differing": 50, "repaired": 40 }).to_string();
            let more = json!({ "mapRunArn": files, "status": "SUCCEEDED", "output": output });
            states.add(&format!("child-{child}"), 30.0, &more);
        }
    });
    server
}

/// What the map run's execution comes to in the end.
fn succeed(server: &StatesServer) {
    server.change(|states| {
        states.map_runs[0]["status"] = "SUCCEEDED".into();
        let output = summary(true, &json!({ "differing": 9, "repaired": 9 }));
        states.executions[0]["status"] = "SUCCEEDED".into();
        states.executions[0]["stopDate"] = states.executions[0]["startDate"].clone();
        states.executions[0]["output"] = output;
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_says_what_runs_and_how_far_it_is() {
    let server = comparing().await;
    let looked = run(&server, &["status"]).await;
    assert_code(&looked, 0);
    let shown = text(&looked.stdout);
    assert!(shown.contains("running: a repair since "), "{shown}");
    assert!(shown.contains("now comparing files"), "{shown}");
    assert!(shown.contains("12/40 files, 600 differ, 60000 items ("), "{shown}");
    let json = object(&run(&server, &["status", "--json"]).await, 0);
    assert_eq!(json["map_runs"][0]["items"], 60_000, "{json}");
    assert_eq!(json["map_runs"][0]["repaired"], 480, "{json}");
    assert_eq!((&json["status"], &json["summary"]), (&"RUNNING".into(), &Json::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_says_what_runs_between_the_map_runs() {
    let server = StatesServer::start().await;
    server.change(|states| {
        states.add("old", 9_000.0, &json!({ "status": "FAILED" }));
        states.add("one", 65.0, &json!({ "input": input(true) }));
        // Listed first, as one that has just ended is.
        states.add("older", 99_000.0, &json!({ "status": "FAILED" }));
    });
    for (entered, doing) in [
        (vec![], "now running"),
        (vec!["ExportSessions", "WaitForExports"], "now exporting"),
        (vec!["ExportSessions", "Begin", "Follow", "Choose"], "now beginning"),
        (vec!["Files", "Follow", "End"], "now ending"),
        (vec!["Notify"], "now in state Notify"),
    ] {
        server.change(|states| {
            states.entered = entered.iter().map(|&name| name.to_owned()).collect();
        });
        let shown = text(&run(&server, &["status"]).await.stdout);
        assert!(shown.starts_with(&execution_arn("one")), "the newest: {shown}");
        assert!(shown.contains(doing), "{entered:?}: {shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_with_the_execution_and_outlasts_throttling() {
    let server = comparing().await;
    server.change(|states| {
        for operation in ["DescribeExecution", "ListMapRuns", "DescribeMapRun", "ListExecutions"] {
            let throttled = ("ThrottlingException".to_owned(), 2);
            states.errors.insert(operation.to_owned(), throttled);
        }
    });
    let mut waiting = command(&server, &["wait", "one", "--json"]);
    let waiting = waiting.spawn().expect("backfill runs");
    let looks =
        || server.change(|states| states.calls.iter().filter(|c| *c == "ListMapRuns").count());
    until("the second look", async || looks() >= 4).await;
    server.change(|states| {
        let output = json!({ "compared": 5_000, "differing": 50 }).to_string();
        let run = states.map_runs[0]["mapRunArn"].clone();
        let more = json!({ "mapRunArn": run, "status": "SUCCEEDED", "output": output });
        states.add("child-12", 1.0, &more);
        states.map_runs[0]["executionCounts"]["succeeded"] = 13.into();
    });
    succeed(&server);
    let waited =
        timeout(HANGS, waiting.wait_with_output()).await.expect("it ends").expect("it ran");
    let json = object(&waited, 0);
    assert_eq!(json["summary"]["repaired"], 9, "{json}");
    let notes = text(&waited.stderr);
    assert!(notes.starts_with("following arn:") && !notes.contains('\u{1b}'), "{notes:?}");
    // Each child is asked once, however often somebody looks.
    assert_eq!(json["map_runs"][0]["items"], 65_000, "{json}");
    let described = |states: &mut testkit::states_server::States| {
        states.calls.iter().filter(|call| *call == "DescribeExecution").count()
    };
    let (described, looks) = (server.change(described), looks());
    assert!(described <= 13 + looks + 2, "{described} in {looks} looks");
}

/// Whoever may not see the children still sees the end.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_role_may_not_see_is_left_out_and_named() {
    let server = comparing().await;
    server.change(|states| {
        for operation in ["ListExecutions", "GetExecutionHistory"] {
            let denied = ("AccessDeniedException".to_owned(), 99);
            states.errors.insert(operation.to_owned(), denied);
        }
    });
    let looked = run(&server, &["status", "one"]).await;
    assert_code(&looked, 0);
    let (shown, notes) = (text(&looked.stdout), text(&looked.stderr));
    assert!(shown.contains("12/40 files\n"), "{shown}");
    assert!(notes.contains("cannot see items (states:ListExecutions"), "{notes}");
    succeed(&server);
    assert_code(&run(&server, &["wait", "one"]).await, 0);

    server.change(|states| {
        let denied = ("AccessDeniedException".to_owned(), 1);
        states.errors.insert("DescribeExecution".to_owned(), denied);
    });
    let refused = run(&server, &["wait", "one"]).await;
    assert_code(&refused, 1);
    let notes = text(&refused.stderr);
    assert!(notes.contains("DescribeExecution was refused: the role needs"), "{notes}");
    assert!(notes.contains("follows it again"), "{notes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_the_command_and_not_the_execution() {
    let server = comparing().await;
    let waiting = command(&server, &["wait", "--json"]).spawn().expect("backfill runs");
    let called = |name: &str| server.change(|states| states.calls.iter().any(|call| call == name));
    until("a look", async || called("DescribeMapRun")).await;
    signal(&waiting, "INT");
    let stopped =
        timeout(HANGS, waiting.wait_with_output()).await.expect("it ends").expect("it ran");
    let json = object(&stopped, 6);
    let (error, arn) = (json["error"].as_str().expect("a reason"), execution_arn("one"));
    assert!(error.contains("the execution runs on"), "{error}");
    assert!(error.contains(&format!("backfill reconcile wait {arn}")), "{error}");
    assert!(error.contains(&format!("stop-execution --execution-arn {arn}")), "{error}");
    assert!(!called("StopExecution"), "the execution was stopped");
}

/// A terminal of 80 columns: the bar is one line, and has no colour.
#[tokio::test(flavor = "multi_thread")]
async fn the_bar_fits_a_terminal_of_80_columns() {
    let server = comparing().await;
    let plain = command(&server, &["wait", "one"]);
    let line = format!(
        "stty cols 80 rows 24; exec {} reconcile wait one",
        plain.as_std().get_program().to_str().expect("a path")
    );
    let mut terminal = Command::new("script");
    terminal.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    for (name, value) in plain.as_std().get_envs().filter_map(|(name, value)| Some((name, value?)))
    {
        terminal.env(name, value);
    }
    terminal.env("NO_COLOR", "1").env("TERM", "xterm").kill_on_drop(true);
    terminal.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped());
    let shown = terminal.spawn().expect("util-linux has script");
    let looks = |states: &mut testkit::states_server::States| {
        states.calls.iter().filter(|call| *call == "DescribeMapRun").count()
    };
    until("the second look", async || server.change(looks) >= 2).await;
    succeed(&server);
    let shown = timeout(HANGS, shown.wait_with_output()).await.expect("it ends").expect("it ran");
    assert_code(&shown, 0);
    let shown = text(&shown.stdout);
    let bar = shown.split(['\r', '\n']).find(|line| line.contains("12/40 files"));
    let bar = bar.unwrap_or_else(|| panic!("no bar: {shown:?}"));
    // Control sequences move the cursor, and none of them colours.
    let visible: String = bar.split("\u{1b}[").map(|part| part.trim_start_matches("2K")).collect();
    let visible = visible.trim_end();
    assert!(visible.chars().count() <= 80 && visible.ends_with("60000 items"), "{visible:?}");
    assert!(!shown.contains("\u{1b}[3"), "{shown:?}");
}

/// Every key that comes out is documented, and every documented key comes out.
#[tokio::test(flavor = "multi_thread")]
async fn start_status_and_wait_print_what_the_reference_says() {
    let server = comparing().await;
    let mut status = Schema::of("reconcile status");
    status.check("", &object(&run(&server, &["status", "--json"]).await, 0));
    status.check("", &object(&run(&server, &["status", "gone", "--json"]).await, 2));
    server.change(|states| {
        let more = json!({
            "mapRunArn": states.map_runs[0]["mapRunArn"], "status": "FAILED", "error": "Failed",
            "cause": "why", "input": "{}",
        });
        states.add("bad", 9.0, &more);
        states.map_runs[0]["executionCounts"]["failed"] = 1.into();
    });
    status.check("", &object(&run(&server, &["status", "--json"]).await, 0));
    succeed(&server);
    status.check("", &object(&run(&server, &["wait", "one", "--json"]).await, 0));
    status.everything_was_seen();

    let mut start = Schema::of("reconcile start");
    start.check("", &object(&run(&server, &["start", "--json", "--beside"]).await, 0));
    server.change(|states| {
        for table in ["sessions", "scans"] {
            states.sizes.insert(table.to_owned(), (10, 1_000));
        }
    });
    start.check("", &object(&run(&server, &["start", "--dry-run", "--json"]).await, 0));
    let wrong = run(&server, &["start", "--no-such-flag", "--json"]).await;
    start.check("", &object(&wrong, 2));
    start.everything_was_seen();
}
