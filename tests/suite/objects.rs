//! `backfill objects`: the object of every row, whatever fails in between.

use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use testkit::gates::TcpGate;
use testkit::oracle;
use testkit::records::{LABEL, Record, session};
use testkit::runs::{assert_code, backfill, counted, output, signal, text, watched};
use testkit::s3_gate::{Fault, S3Gate};
use testkit::services::{Stores, apply_all, aws, parsed, service};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio::sync::Notify;

/// More than a page of rows, and no object.
async fn rows(count: u128) -> Stores {
    let stores = Stores::fresh().await;
    let records: Vec<Record> = (1..=count)
        .map(|number| session(&format!("s{number:04}"), "u").place(LABEL, number))
        .collect();
    let without_archive = stores.projector_without_archive(&stores.database_url, 1);
    apply_all(&without_archive, &records, 10_000).await;
    stores
}

async fn assert_all_objects(stores: &Stores) {
    assert!(parsed(&stores.objects().await) == oracle::objects(&stores.rows().await));
}

fn objects(stores: &Stores, s3_url: &str, arguments: &[&str]) -> Command {
    let mut command = watched(stores, &[&["objects"], arguments].concat());
    command.env("AWS_ENDPOINT_URL_S3", s3_url);
    command
}

/// The arguments with which the run said to resume, on a line below its cause, if it failed.
fn named(output: &Output) -> Vec<String> {
    let message = text(&output.stderr);
    let last = message.lines().last().expect("a line");
    assert!(last.contains("run the same command "), "{message}");
    match last.split_once(" with --after '") {
        Some((_, rest)) => {
            let (after, _) = rest.split_once('\'').expect("its end");
            vec!["--after".to_owned(), after.to_owned()]
        }
        None => Vec::new(),
    }
}

/// Runs the command that the run named.
async fn resume(stores: &Stores, ended: &Output) -> Output {
    let arguments = named(ended);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    output(objects(stores, &service("AWS_ENDPOINT_URL"), &arguments)).await
}

/// The hint named the page, and an object that was left before it was never written.
#[tokio::test(flavor = "multi_thread")]
async fn the_command_that_resumes_skips_no_remaining_object() {
    let stores = rows(1_050).await;
    let gate = S3Gate::open(&service("AWS_ENDPOINT_URL")).await;
    gate.set_rule(|seen| match (seen.method, seen.path.rsplit('/').next()) {
        ("PUT", Some("s0007.json")) => Fault::Refuse(500),
        ("PUT", Some("s1020.json")) => Fault::RefuseWith(404, "NoSuchBucket"),
        _ => Fault::Pass,
    });
    let ended = output(objects(&stores, &gate.url, &[])).await;
    assert_code(&ended, 2);
    assert!(text(&ended.stdout).starts_with("failed: "), "{ended:?}");
    assert_eq!(named(&ended), ["--after", "s0006"]);
    let cause = "\nbackfill: ARCHIVE_BUCKET ";
    assert!(text(&ended.stderr).contains(cause), "the cause comes first: {ended:?}");

    // Now only that object fails: the run is no success.
    gate.set_rule(|seen| {
        let refused = seen.method == "PUT" && seen.path.ends_with("/s0007.json");
        if refused { Fault::Refuse(500) } else { Fault::Pass }
    });
    let ended = output(objects(&stores, &gate.url, &["--after", "s0006"])).await;
    assert_code(&ended, 1);
    assert_eq!(named(&ended), ["--after", "s0006"]);
    assert_code(&resume(&stores, &ended).await, 0);
    assert_all_objects(&stores).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_what_would_be_written_and_writes_nothing() {
    let stores = rows(30).await;
    assert_code(&backfill(&stores, &["objects"]), 0);
    let s3 = testkit::services::s3(&service("AWS_ENDPOINT_URL")).await;
    for number in 1..=3 {
        let key = format!("measurements/s{number:04}.json");
        s3.delete_object().bucket(&stores.bucket).key(key).send().await.expect("deleted");
    }
    let newer =
        [4, 5].map(|number| session(&format!("s{number:04}"), "v").place(LABEL, 100 + number));
    let without_archive = stores.projector_without_archive(&stores.database_url, 1);
    apply_all(&without_archive, &newer, 10).await;
    let before = stores.objects().await;

    let gate = S3Gate::open(&service("AWS_ENDPOINT_URL")).await;
    let dry = output(objects(&stores, &gate.url, &["--dry-run"])).await;
    assert_code(&dry, 0);
    assert!(text(&dry.stdout).starts_with("dry run, nothing was written"), "{dry:?}");
    let count = |name| counted(&dry, name);
    assert_eq!(
        (count("objects missing"), count("objects behind"), count("objects current")),
        (3, 2, 25)
    );
    assert_eq!((gate.count("PUT"), gate.count("HEAD")), (0, 30));
    assert!(stores.objects().await == before);
    let written = backfill(&stores, &["objects"]);
    assert_code(&written, 0);
    assert_eq!(counted(&written, "objects written"), 5);
    assert_all_objects(&stores).await;
}

/// One connection, and one request for the secret, however many pages there are.
#[tokio::test(flavor = "multi_thread")]
async fn pages_share_their_connections() {
    let stores = rows(3_500).await;
    let endpoint = service("AWS_ENDPOINT_URL");
    let url = stores.database_url.strip_prefix("postgres://").expect("a URL");
    let (login, _) = url.split_once('@').expect("a login");
    let (user, password) = login.split_once(':').unwrap_or((login, "none"));
    let secret = json!({ "username": user, "password": password }).to_string();
    let secrets = aws_sdk_secretsmanager::Client::new(&aws(&endpoint).await);
    let created = secrets.create_secret().name(&stores.bucket).secret_string(secret).send().await;
    let arn = created.expect("a secret").arn.expect("an ARN");
    let gate = S3Gate::open(&endpoint).await;
    let mut command = objects(&stores, &endpoint, &[]);
    command
        .env("DATABASE_SECRET_ARN", arn)
        .env("DATABASE_CONNECTIONS", "1")
        .env("AWS_ENDPOINT_URL_SECRETS_MANAGER", &gate.url);
    let written = output(command).await;
    assert_code(&written, 0);
    assert_eq!(counted(&written, "objects written"), 3_500);
    assert_eq!(gate.count("POST"), 1);
}

/// It does not hold the run, and what is printed meanwhile speaks of objects.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_falls_silent_does_not_hold_the_run() {
    let stores = rows(1_050).await;
    let database = TcpGate::open(stores.database_host()).await;
    let gate = S3Gate::open(&service("AWS_ENDPOINT_URL")).await;
    let behind_gate = stores.with_database_at(&database.address.to_string());
    let child = objects(&behind_gate, &gate.url, &[]).spawn().expect("backfill runs");
    gate.until("PUT", 300).await;
    database.forget_connections();
    let ended = tokio::time::timeout(Duration::from_mins(3), child.wait_with_output()).await;
    let output = ended.expect("it hangs").expect("backfill runs");
    assert_code(&output, 0);
    let log = text(&output.stderr);
    assert!(log.contains("did not finish a statement within 25.0 s"), "{log}");
    assert!(log.contains(" objects compared (") && log.contains(" written"), "{log}");
    assert!(!log.contains("rejected"), "{log}");
    assert_all_objects(&stores).await;
}

/// Each of the 36 tries of a page waited for every object of the page: five minutes, without a
/// line.
#[tokio::test(flavor = "multi_thread")]
async fn an_s3_that_falls_silent_ends_a_try_early_and_the_run_says_so() {
    let stores = rows(1_050).await;
    let gate = S3Gate::open(&service("AWS_ENDPOINT_URL")).await;
    gate.set_rule(|_| Fault::Hold(Arc::new(Notify::new())));
    let mut child = objects(&stores, &gate.url, &[]).spawn().expect("backfill runs");
    let mut log = BufReader::new(child.stderr.take().expect("its log")).lines();
    let (mut shown, mut left) = (0, None);
    let reading = async {
        while let Some(line) = log.next_line().await.expect("its log") {
            shown += usize::from(line.contains("0 objects compared (0/s), 0 written"));
            if line.starts_with("no object was compared or written for 15 s: ") {
                left = Some(line);
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_mins(2), reading).await.expect("the try goes on");
    let left = left.expect("it says so");
    let untried: usize =
        left.split(' ').find_map(|word| word.parse().ok().filter(|n| *n > 15)).expect(&left);
    assert!((800..1_000).contains(&untried), "{left}");
    assert!(shown > 0, "it says how far it is while nothing passes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_the_run_with_a_summary_and_the_command_that_resumes() {
    let stores = rows(1_050).await;
    let gate = S3Gate::open(&service("AWS_ENDPOINT_URL")).await;
    let child = objects(&stores, &gate.url, &[]).spawn().expect("backfill runs");
    gate.until("PUT", 300).await;
    signal(&child, "INT");
    let stopped = child.wait_with_output().await.expect("backfill runs");
    assert_code(&stopped, 6);
    assert!(text(&stopped.stdout).starts_with("stopped: "), "{stopped:?}");
    let written = counted(&stopped, "objects written");
    assert!((300..1_000).contains(&written), "the page is not finished first: {written}");
    assert_eq!(stores.objects().await.len() as u64, written, "all that were begun are finished");
    let resumed = resume(&stores, &stopped).await;
    assert_code(&resumed, 0);
    assert_eq!(counted(&resumed, "objects written"), 1_050 - written);
    assert_all_objects(&stores).await;
}
