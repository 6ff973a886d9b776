//! `backfill doctor`: every part is checked, one that fails keeps no other from being checked, and
//! nothing is written.

use std::process::Output;

use serde_json::Value as Json;
use testkit::records::{Table, session};
use testkit::runs::{assert_code, backfill, command, label, now, output, text};
use testkit::services::Stores;
use testkit::stream_server::{Fault, StreamServer};
use tokio::net::TcpListener;

/// Both tables' streams with a record, as a healthy account has them.
async fn account() -> (Stores, StreamServer, [String; 2]) {
    let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
    let enabled = label(now() - 3 * 24 * 3600);
    let arns = [Table::Sessions, Table::Scans].map(|table| server.add_stream(table, &enabled));
    for arn in &arns {
        server.open_shard(arn, "shardId-a", None);
    }
    server.put(&arns[0], "shardId-a", &[session("s1", "u").place(&enabled, 1)]);
    (stores, server, arns)
}

async fn doctor(stores: &Stores, server: &StreamServer) -> (Output, Vec<Json>) {
    let output = output(command(stores, server, &["doctor", "--json"])).await;
    let findings = checks(&output);
    (output, findings)
}

/// The checks of a report in JSON.
fn checks(output: &Output) -> Vec<Json> {
    let report: Json = serde_json::from_slice(&output.stdout).expect("JSON");
    report["checks"].as_array().expect("a list").clone()
}

/// The names of the checks that failed.
fn failed(findings: &[Json]) -> Vec<&str> {
    let failed = findings.iter().filter(|finding| finding["ok"] == false);
    failed.map(|finding| finding["check"].as_str().expect("a name")).collect()
}

#[track_caller]
fn finding<'a>(findings: &'a [Json], check: &str) -> &'a Json {
    let found = findings.iter().find(|finding| finding["check"] == check);
    found.unwrap_or_else(|| panic!("no {check} in {findings:#?}"))
}

async fn run_sql(stores: &Stores, sql: &str) {
    stores.change(sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_account_passes_and_nothing_is_written() {
    let (stores, server, arns) = account().await;
    let (output, findings) = doctor(&stores, &server).await;
    assert_code(&output, 0);
    for check in [
        "settings",
        "database login",
        "database route",
        "database role",
        "database encoding",
        "database limits",
        "pending objects",
        "repair leases",
        "clock: database",
        "database schema",
        "database privileges",
        "AWS region",
        "AWS credentials",
        "bucket",
        "table sessions",
        "readers of sessions",
        "table scans",
        "readers of scans",
        "clock: AWS",
    ] {
        let finding = finding(&findings, check);
        assert_eq!((&finding["ok"], &finding["remedy"]), (&true.into(), &Json::Null), "{finding}");
        assert!(finding["ms"].is_u64(), "{finding}");
    }
    // The URL of the tests says sslmode=disable.
    let tls = finding(&findings, "database TLS");
    assert_eq!(tls["ok"], Json::Null, "{tls}");
    assert!(tls["detail"].as_str().expect("text").contains("not verified"), "{tls}");
    assert_eq!((stores.rows().await.len(), stores.objects().await.len()), (0, 0));
    assert_eq!(stores.ask("SELECT count(*) FROM backfill_checkpoints").await, "0");
    // One call per table proves the right to read.
    assert_eq!((server.count("GetRecords"), server.count("GetShardIterator")), (2, 2));

    // That the readers may not be asked for is good to know, and no failure.
    server.set_event_source_mappings(&arns[1], None);
    let (output, findings) = doctor(&stores, &server).await;
    assert_code(&output, 0);
    assert_eq!(finding(&findings, "readers of scans")["ok"], Json::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_of_the_streams_and_the_bucket_is_found_beside_the_others() {
    let (stores, server, arns) = account().await;
    let without_bucket = Stores { bucket: "no-such-bucket".to_owned(), ..stores.clone() };
    server.set_view_type(&arns[0], "KEYS_ONLY");
    server.disable(&arns[1]);
    let (output, findings) = doctor(&without_bucket, &server).await;
    assert_code(&output, 2);
    assert_eq!(failed(&findings), ["bucket", "table sessions", "table scans"]);
    for (check, detail, remedy) in [
        ("bucket", "NoSuchBucket", "create the bucket"),
        ("table sessions", "KEYS_ONLY", "NEW_AND_OLD_IMAGES"),
        ("table scans", "DISABLED", "enable the table's stream"),
    ] {
        let finding = finding(&findings, check);
        assert!(finding["detail"].as_str().expect("text").contains(detail), "{finding}");
        assert!(finding["remedy"].as_str().expect("text").contains(remedy), "{finding}");
    }
    let output = output_as_text(&without_bucket, &server).await;
    for part in ["✗ bucket", "✓ database login", "remedy: ", "3 of 19 checks failed"] {
        assert!(output.contains(part), "{part}: {output}");
    }
}

async fn output_as_text(stores: &Stores, server: &StreamServer) -> String {
    text(&output(command(stores, server, &["doctor"])).await.stdout)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permission_that_is_missing_is_named() {
    for operation in ["ListStreams", "DescribeStream", "GetShardIterator", "GetRecords"] {
        let (stores, server, _) = account().await;
        server.set_rule(move |call| {
            let refused = call.operation == operation;
            if refused { Fault::Error(400, "AccessDeniedException") } else { Fault::Pass }
        });
        let (output, findings) = doctor(&stores, &server).await;
        assert_code(&output, 2);
        assert_eq!(failed(&findings), ["table sessions", "table scans"]);
        let remedy = finding(&findings, "table scans")["remedy"].as_str().expect("text");
        assert!(remedy.contains(&format!("dynamodb:{operation}")), "{remedy}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_of_the_database_is_found() {
    let (stores, server, _) = account().await;
    let role = format!("doctor_{:08x}", fastrand::u32(..));
    run_sql(&stores, &format!("CREATE ROLE {role} LOGIN PASSWORD 'p'")).await;
    let (_, rest) = stores.database_url.split_once('@').expect("a host");
    let as_role = |stores: &Stores, password: &str| Stores {
        database_url: format!("postgres://{role}:{password}@{rest}"),
        ..stores.clone()
    };
    let (output, findings) = doctor(&as_role(&stores, "p"), &server).await;
    assert_code(&output, 2);
    assert_eq!(failed(&findings), ["database privileges"]);
    let lacking = finding(&findings, "database privileges");
    assert!(lacking["detail"].as_str().expect("text").contains("DELETE on rejected_records"));
    assert!(lacking["remedy"].as_str().expect("text").contains("--grant-backfill-to doctor_"));

    assert_code(&backfill(&stores, &["migrate", "--grant-backfill-to", &role]), 0);
    let (output, findings) = doctor(&as_role(&stores, "p"), &server).await;
    assert_code(&output, 0);
    // It may not read the list of migrations, so that they are not called complete.
    assert_eq!(finding(&findings, "database schema")["ok"], Json::Null);

    let (output, findings) = doctor(&as_role(&stores, "hunter2"), &server).await;
    assert_code(&output, 2);
    assert_eq!(failed(&findings), ["database login"]);
    let login = finding(&findings, "database login");
    assert!(login["remedy"].as_str().expect("text").contains("check DATABASE_URL"), "{login}");
    assert!(!text(&output.stdout).contains("hunter2"), "{login}");

    // The rest is not known without a login; the streams and the bucket are.
    let closed = stores.with_database_at("127.0.0.1:1");
    let (output, findings) = doctor(&closed, &server).await;
    assert_code(&output, 2);
    assert_eq!(failed(&findings), ["database login"]);
    assert_eq!(finding(&findings, "database schema")["ok"], Json::Null);
    assert_eq!(finding(&findings, "table sessions")["ok"], true);

    let read_only =
        format!("ALTER DATABASE {:?} SET default_transaction_read_only = on", stores.bucket);
    run_sql(&stores, &read_only).await;
    let (output, findings) = doctor(&stores, &server).await;
    assert_code(&output, 2);
    assert_eq!(failed(&findings), ["database role"]);

    let unmigrated = Stores::unmigrated().await;
    let (output, findings) = doctor(&unmigrated, &server).await;
    assert_code(&output, 2);
    assert_eq!(failed(&findings), ["database schema"]);
    // Of tables that do not exist nothing is said.
    assert_eq!(finding(&findings, "database privileges")["ok"], Json::Null);
    let missing = stores.database_url.replace(&stores.bucket, "no-such-database");
    let missing = Stores { database_url: missing, ..stores.clone() };
    let (_, nowhere) = doctor(&missing, &server).await;
    let login = finding(&nowhere, "database login");
    assert!(login["detail"].as_str().expect("text").contains("does not exist"), "{login}");
    let remedy = login["remedy"].as_str().expect("text");
    assert!(remedy.contains("create the database") && !remedy.contains("port"), "{remedy}");
    let remedy = &finding(&findings, "database schema")["remedy"];
    assert!(remedy.as_str().expect("text").contains("run `backfill migrate`"), "{remedy}");
}

/// Takes connections and never answers.
async fn silent() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    (listener, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_never_answers_ends_at_its_limit_and_keeps_nothing_else_waiting() {
    let (stores, server, _) = account().await;
    let (_listener, address) = silent().await;
    let mut lambda = command(&stores, &server, &["doctor", "--json"]);
    lambda.env("AWS_ENDPOINT_URL_LAMBDA", format!("http://{address}"));
    let output = testkit::runs::output(lambda).await;
    // Who reads the streams is good to know, and no run depends on it.
    assert_code(&output, 0);
    let findings = checks(&output);
    assert_eq!(finding(&findings, "readers of scans")["ok"], Json::Null);

    let mut command = command(&stores.with_database_at(&address), &server, &["doctor", "--json"]);
    command.env("AWS_ENDPOINT_URL_S3", format!("http://{address}"));
    let output = testkit::runs::output(command).await;
    assert_code(&output, 2);
    let findings = checks(&output);
    assert_eq!(failed(&findings), ["database login", "bucket"]);
    for (check, remedy) in
        [("database login", "check the host and port"), ("bucket", "check the route to S3")]
    {
        let told = finding(&findings, check)["remedy"].as_str().expect("text");
        assert!(told.contains(remedy), "{check}: {told}");
    }
    assert_eq!(finding(&findings, "table sessions")["ok"], true);
}

/// A setting that is wrong keeps only its own part from being checked.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_setting_is_one_finding_and_the_rest_is_checked() {
    let (stores, server, _) = account().await;
    let mut command = command(&stores, &server, &["doctor", "--json"]);
    command.env("ARCHIVE_BUCKET", "s3://feet").env("TTL_REMOVALS", "drop");
    let output = output(command).await;
    assert_code(&output, 2);
    let findings = checks(&output);
    assert_eq!(failed(&findings), ["settings", "settings"]);
    assert_eq!(finding(&findings, "bucket")["ok"], Json::Null);
    assert_eq!(finding(&findings, "database schema")["ok"], true);
    assert_eq!(finding(&findings, "table sessions")["ok"], true);
}
