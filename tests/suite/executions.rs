//! `backfill reconcile`: starts that are repeated, what is shown of an execution, and each of its
//! ends with its exit code. Step Functions is a server that answers what a test wrote.

mod ends;
mod sight;
mod stand_in;
mod starts;

use std::process::{Output, Stdio};

use serde_json::{Value as Json, json};
use testkit::emulator::binary;
use testkit::runs::{assert_code, output, text};
use testkit::states_server::{MACHINE, StatesServer};
use tokio::process::Command;

/// `backfill reconcile` at this server, and at nothing else.
fn command(server: &StatesServer, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("backfill"));
    command
        .arg("reconcile")
        .args(arguments)
        .env_clear()
        .env("AWS_REGION", "us-east-1")
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test")
        .env("AWS_ENDPOINT_URL", &server.url)
        .env("RECONCILE_STATE_MACHINE", MACHINE)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

async fn run(server: &StatesServer, arguments: &[&str]) -> Output {
    output(command(server, arguments)).await
}

/// The object that a run with `--json` prints.
#[track_caller]
fn object(run: &Output, code: i32) -> Json {
    assert_code(run, code);
    serde_json::from_slice(&run.stdout).unwrap_or_else(|error| {
        panic!("{error}: {} {}", text(&run.stdout), text(&run.stderr));
    })
}

/// The input of an execution.
fn input(repair: bool) -> Json {
    json!({ "repair": repair, "exports": null, "failures": false }).to_string().into()
}

/// The answer of the function's `end`.
fn summary(repair: bool, more: &Json) -> Json {
    let mut summary = json!({
        "run": 1, "repair": repair.then_some(7), "complete": true, "files": 40,
        "compared": 200_000, "differing": 0, "repaired": 0, "gone": 0, "removed": 0, "rejected": 0,
    });
    for (member, value) in more.as_object().expect("an object") {
        summary[member] = value.clone();
    }
    summary.to_string().into()
}
