//! The real binary over the real Runtime API: AWS's own emulator drives it.

use std::process::{Command, Output};

use serde_json::{Value as Json, json};
use testkit::emulator::{Lambda, binary, event};
use testkit::gates::TcpGate;
use testkit::generate::{self, SMALL};
use testkit::oracle;
use testkit::records::{LABEL, Record, scan, session};
use testkit::services::{Stores, parsed};

fn event_of(records: &[Record]) -> String {
    event(records.iter().map(|record| record.json.as_str()))
}

async fn start(stores: &Stores) -> Lambda {
    Lambda::start(&[
        ("DATABASE_URL", &stores.database_url),
        ("ARCHIVE_BUCKET", &stores.bucket),
        ("AWS_LAMBDA_FUNCTION_NAME", "projector-test"),
    ])
    .await
}

fn log_lines(lambda: &Lambda) -> Vec<Json> {
    lambda.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[tokio::test]
async fn the_small_fixture_through_the_runtime_api_ends_in_its_rows_and_objects() {
    let stores = Stores::fresh().await;
    let lambda = start(&stores).await;
    let (sessions, scans) = generate::day(SMALL);
    for stream in [&scans, &sessions] {
        for batch in stream.chunks(25) {
            assert_eq!(lambda.invoke(&event_of(batch)).await, json!({ "batchItemFailures": [] }));
        }
    }
    let rows = stores.rows().await;
    assert_eq!(rows, oracle::rows(scans.iter().chain(&sessions)));
    assert_eq!(parsed(&stores.objects().await), oracle::objects(&rows));
}

#[tokio::test]
async fn a_batch_leaves_one_log_line_and_one_metric_line_without_values_or_users() {
    let stores = Stores::fresh().await;
    let lambda = start(&stores).await;
    let records =
        [session("s1", "user-4711").place(LABEL, 1), scan("s1", "left", "245.3").place(LABEL, 2)];
    lambda.invoke(&event_of(&records)).await;
    let lines = log_lines(&lambda);
    let batches: Vec<&Json> = lines.iter().filter(|line| line["message"] == "batch").collect();
    assert_eq!(batches.len(), 1, "{}", lambda.log());
    assert_eq!(batches[0]["applied"], 2);
    assert!(batches[0]["duration_ms"].as_f64().is_some_and(|duration| duration > 0.0));
    let metrics: Vec<&Json> = lines.iter().filter(|line| line.get("_aws").is_some()).collect();
    assert_eq!(metrics.len(), 1, "{}", lambda.log());
    assert_eq!(metrics[0]["FunctionName"], "projector-test");
    assert_eq!((&metrics[0]["Records"], &metrics[0]["ObjectsWritten"]), (&json!(2), &json!(1)));
    assert!(!lambda.log().contains("user-4711") && !lambda.log().contains("245.3"));
}

#[tokio::test]
async fn one_record_that_cannot_be_parsed_does_not_fail_the_event() {
    let stores = Stores::fresh().await;
    let lambda = start(&stores).await;
    let good = session("s1", "u").place(LABEL, 1);
    let odd = [r#"{"dynamodb":{"SequenceNumber":7}}"#, "null", r#"{"eventName":{"a":[1,2]}}"#];
    let event = event([odd[0], &good.json, odd[1], odd[2]]);
    assert_eq!(lambda.invoke(&event).await, json!({ "batchItemFailures": [] }));
    assert_eq!((stores.rows().await.len(), stores.rejected().await), (1, 3));
}

#[tokio::test]
async fn a_dead_database_is_reported_and_the_same_process_recovers() {
    let stores = Stores::fresh().await;
    let gate = TcpGate::open(stores.database_host()).await;
    let gated = stores.with_database_at(&gate.address.to_string());
    let lambda = start(&gated).await;
    let records = [session("s1", "u").place(LABEL, 999), session("s2", "u").place(LABEL, 1000)];
    gate.set_open(false);
    let failure = json!({ "batchItemFailures": [{ "itemIdentifier": "000000000000000000999" }] });
    assert_eq!(lambda.invoke(&event_of(&records)).await, failure);
    assert!(lambda.log().contains("the database cannot be reached"), "{}", lambda.log());
    gate.set_open(true);
    assert_eq!(lambda.invoke(&event_of(&records)).await, json!({ "batchItemFailures": [] }));
    assert_eq!(stores.rows().await.len(), 2);
}

#[tokio::test]
async fn a_wrong_table_fails_the_invocation_and_names_the_variables() {
    let stores = Stores::fresh().await;
    let lambda = start(&stores).await;
    let record =
        session("s1", "u").place(LABEL, 1).json.replace("table/sessions/", "table/orders/");
    let answer = lambda.invoke(&event([record.as_str()])).await;
    let message = answer["errorMessage"].as_str().unwrap_or_default();
    assert!(message.contains("SESSIONS_TABLE") && message.contains("orders"), "{answer}");
    assert_eq!(stores.rows().await.len(), 0);

    let answer = lambda.invoke(r#"{"hello":"world"}"#).await;
    assert!(
        answer["errorMessage"].as_str().is_some_and(|message| message.contains("Records")),
        "{answer}"
    );
    assert_eq!(lambda.invoke(r#"{"Records":[]}"#).await, json!({ "batchItemFailures": [] }));
}

/// The event of a tumbling window has more members than `Records`, in whatever order, and its last
/// one has no records; EventBridge Pipes sends a list. None is taken for one record.
#[tokio::test]
async fn events_of_a_window_and_of_pipes_are_applied() {
    let stores = Stores::fresh().await;
    let lambda = start(&stores).await;
    for (name, rows) in [
        ("E13-window-before.json", 1),
        ("E13-window-after.json", 2),
        ("E13-window-final.json", 2),
        ("E07-pipes-one-line.json", 4),
        ("E07-pipes-pretty.json", 4),
    ] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("cases").join(name);
        let event = std::fs::read_to_string(path).expect("a case");
        assert_eq!(lambda.invoke(&event).await, json!({ "batchItemFailures": [] }), "{name}");
        assert_eq!((stores.rows().await.len(), stores.rejected().await), (rows, 0), "{name}");
    }
}

/// The name of our own error, by which an operator searches; and what was no event is told apart.
#[tokio::test]
async fn the_error_type_is_the_name_of_the_error() {
    let stores = Stores::fresh().await;
    let lambda = start(&stores).await;
    let record =
        session("s1", "u").place(LABEL, 1).json.replace("table/sessions/", "table/orders/");
    assert_eq!(lambda.invoke(&event([record.as_str()])).await["errorType"], "Misconfigured");
    assert_eq!(lambda.invoke(r#"{"hello":"world"}"#).await["errorType"], "NotAnEvent");
    let nowhere = Stores { bucket: "no-such-bucket".to_owned(), ..stores.clone() };
    let lambda = start(&nowhere).await;
    let records = [session("s1", "u").place(LABEL, 1)];
    assert_eq!(lambda.invoke(&event_of(&records)).await["errorType"], "NoBucket");
}

/// Whoever writes the log: at `trace` the runtime prints the raw event, and the SDK its requests'
/// bodies.
#[tokio::test]
async fn no_user_no_value_and_no_password_reaches_the_log_at_any_level() {
    let stores = Stores::fresh().await;
    let password = stores.database_url.split(':').nth(2).and_then(|rest| rest.split('@').next());
    let password = password.expect("a password").to_owned();
    for filter in [
        "trace",
        "lambda_runtime=trace,aws_smithy_runtime=trace,aws_sigv4=trace,sqlx=trace,hyper=trace",
    ] {
        let lambda = Lambda::start(&[
            ("DATABASE_URL", &stores.database_url),
            ("ARCHIVE_BUCKET", &stores.bucket),
            ("RUST_LOG", filter),
        ])
        .await;
        let mut refused = session("s2", "user-4712").place(LABEL, 2);
        refused.json = refused.json.replace("2026-11-22T08:00:00Z", "yesterday-4713");
        let records = [
            session("s1", "user-4711").place(LABEL, 1),
            scan("s1", "left", "245.31").place(LABEL, 2),
            refused,
        ];
        lambda.invoke(&event_of(&records)).await;
        let wrong = records[0].json.replace("table/sessions/", "table/orders/");
        lambda.invoke(&event([wrong.as_str()])).await;
        for secret in ["user-471", "245.31", "yesterday-4713", password.as_str()] {
            assert!(
                !lambda.log().contains(secret),
                "{filter}: {secret} is in the log:\n{}",
                lambda.log()
            );
        }
    }
}

/// The deadline that Lambda sends with the event; here the emulator does.
#[tokio::test]
async fn an_invocation_answers_before_its_deadline_when_the_database_says_nothing() {
    let stores = Stores::fresh().await;
    let gate = TcpGate::open(stores.database_host()).await;
    gate.fall_silent();
    let gated = stores.with_database_at(&gate.address.to_string());
    let lambda = Lambda::start(&[
        ("DATABASE_URL", &gated.database_url),
        ("ARCHIVE_BUCKET", &gated.bucket),
        ("AWS_LAMBDA_FUNCTION_TIMEOUT", "6"),
    ])
    .await;
    let records = [session("s1", "u").place(LABEL, 999), session("s2", "u").place(LABEL, 1000)];
    let failure = json!({ "batchItemFailures": [{ "itemIdentifier": "000000000000000000999" }] });
    assert_eq!(lambda.invoke(&event_of(&records)).await, failure);
    assert!(lambda.log().contains("the time of this invocation is up"), "{}", lambda.log());
}

/// Lambda's largest payload: 6 MB, here of 10,000 records and some.
#[tokio::test]
async fn an_event_of_6_mb_goes_through() {
    let stores = Stores::fresh().await;
    // Without the archive: this is about the payload, not about 10,000 objects.
    let lambda = Lambda::start(&[("DATABASE_URL", &stores.database_url)]).await;
    let records: Vec<Record> = (0..10_000)
        .map(|index| session(&format!("s{index}"), "u").place(LABEL, 1 + index))
        .collect();
    let event = event_of(&records);
    assert!(event.len() > 5_000_000, "{}", event.len());
    assert_eq!(lambda.invoke(&event).await, json!({ "batchItemFailures": [] }));
    assert_eq!(stores.ask("SELECT count(*) FROM measurements").await, "10000");
}

fn start_without_runtime(variables: &[(&str, &str)]) -> Output {
    Command::new(binary("projector"))
        .env_clear()
        .envs(variables.iter().copied())
        .output()
        .expect("the projector runs")
}

#[test]
fn a_wrong_configuration_stops_the_start_with_one_line_that_names_it() {
    let url = ("DATABASE_URL", "postgres://u:secret@h/d");
    let cases: [(&[(&str, &str)], &str); 7] = [
        (&[], "projector: DATABASE_URL is not set"),
        (
            &[("DATABASE_URL", "postgres://u:secret?more@h/d")],
            "projector: DATABASE_URL cannot be read as a URL: percent-encode the password",
        ),
        (
            &[url, ("ARCHIVE_BUCKET", "My_Feet")],
            "projector: ARCHIVE_BUCKET is \"My_Feet\", expected lowercase letters",
        ),
        (
            &[url, ("TTL_REMOVALS", "never")],
            "projector: TTL_REMOVALS is \"never\", expected apply or keep",
        ),
        (&[url, ("DATABASE_AUTH", "magic")], "projector: DATABASE_AUTH is \"magic\""),
        (&[url, ("RUST_LOG", "pro=jec=tor")], "projector: RUST_LOG cannot be read"),
        (
            &[url],
            "projector: AWS_LAMBDA_RUNTIME_API is not set: this program runs inside AWS Lambda",
        ),
    ];
    for (variables, expected) in cases {
        let output = start_without_runtime(variables);
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success());
        assert!(message.starts_with(expected), "{message}");
        assert_eq!(message.trim_end().lines().count(), 1, "{message}");
        assert!(!message.contains("secret"), "{message}");
    }
}
