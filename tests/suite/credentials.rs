//! AWS credentials that cannot be found: every command that needs them says so in one line, and
//! does not try the same for minutes first.

use std::process::{Output, Stdio};
use std::time::Duration;

use testkit::emulator::binary;
use testkit::runs::{assert_code, text};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::time::timeout;

/// No test waits for it; a command that retries a call whose credentials are missing takes longer.
const HANGS: Duration = Duration::from_mins(1);

/// Runs `backfill` where nothing but the instance metadata, at this address, could give
/// credentials.
async fn without_credentials(metadata: &str, region: Option<&str>, arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(binary("backfill"));
    command
        .args(arguments)
        .env_clear()
        .env("HOME", folder.path())
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", format!("http://{metadata}"))
        .env("DATABASE_URL", "postgres://u:p@127.0.0.1:1/d?sslmode=disable")
        .env("ARCHIVE_BUCKET", "feet")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    if let Some(region) = region {
        command.env("AWS_REGION", region);
    }
    timeout(HANGS, command.output()).await.expect("it does not hang").expect("backfill runs")
}

fn record_file(folder: &tempfile::TempDir) -> String {
    let path = folder.path().join("empty.jsonl");
    std::fs::write(&path, "").expect("a file");
    path.to_str().expect("a path").to_owned()
}

/// A service that takes connections and never answers, as the metadata service is on many networks.
#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_cannot_be_found_are_one_line_with_the_remedy() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let closed_at = closed.local_addr().expect("an address").to_string();
    drop(closed);
    let silent_at = silent.local_addr().expect("an address").to_string();
    let folder = tempfile::tempdir().expect("a folder");
    let file = record_file(&folder);
    let machine = testkit::states_server::MACHINE;
    let commands: [&[&str]; 6] = [
        &["check", "--snapshot-time", "2026-11-23T14:00:00Z"],
        &["stream"],
        &["objects"],
        &["redrive"],
        &["file", &file],
        &["reconcile", "status", "--state-machine", machine],
    ];
    for metadata in [&silent_at, &closed_at] {
        for arguments in commands {
            let output = without_credentials(metadata, Some("eu-central-1"), arguments).await;
            assert_code(&output, 2);
            let message = text(&output.stderr);
            assert_eq!(message.trim_end().lines().count(), 1, "{message}");
            for part in ["AWS credentials cannot be found (", "AWS_PROFILE", "AWS_ACCESS_KEY_ID"] {
                assert!(message.contains(part), "{part}: {message}");
            }
        }
    }
    let output = without_credentials(&silent_at, None, commands[0]).await;
    assert_code(&output, 2);
    assert!(text(&output.stderr).contains("AWS_REGION is not set"), "{output:?}");
}

/// The doctor says the same of both, and goes on with the rest.
#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_works_when_everything_is_broken() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let metadata = silent.local_addr().expect("an address").to_string();
    let output = without_credentials(&metadata, None, &["doctor", "--json"]).await;
    assert_code(&output, 2);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let findings = report["checks"].as_array().expect("a list");
    let failed = |check: &str| {
        let finding = findings.iter().find(|finding| finding["check"] == check);
        let finding = finding.unwrap_or_else(|| panic!("no {check} in {findings:?}"));
        assert_eq!(finding["ok"], false, "{finding}");
        finding["remedy"].as_str().expect("a remedy").to_owned()
    };
    assert!(failed("AWS region").contains("AWS_REGION"));
    assert!(failed("AWS credentials").contains("AWS_PROFILE"));
    assert!(failed("database login").contains("security group"));
}
