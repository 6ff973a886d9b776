//! Faults at every seam: nothing is lost, nothing is acknowledged early, and a redelivery
//! completes.

use std::sync::Arc;
use std::time::Duration;

use projector::apply::{BatchOutcome, Projector};
use projector::deadline::Deadline;
use projector::handler::{self, BatchResponse, StreamEvent};
use projector::start;
use testkit::emulator::event;
use testkit::gates::TcpGate;
use testkit::oracle;
use testkit::records::{LABEL, Record, scan, session};
use testkit::s3_gate::{Fault, S3Gate};
use testkit::services::{Stores, apply, parsed, service};

const FIRST: u128 = 999_999_999_999_999_999_998;

/// A session each, around a change of length of the sequence number.
fn records(count: u128) -> Vec<Record> {
    (0..count).map(|index| session(&format!("s{index}"), "u").place(LABEL, FIRST + index)).collect()
}

async fn handle(projector: &Projector, records: &[Record]) -> BatchResponse {
    let event: StreamEvent =
        serde_json::from_str(&event(records.iter().map(|record| record.json.as_str())))
            .expect("an event");
    handler::handle(projector, event, "test", Deadline::NONE).await.expect("an answer")
}

async fn try_apply(
    projector: &Projector,
    records: &[Record],
) -> Result<BatchOutcome, projector::error::Error> {
    let json: Vec<&[u8]> = records.iter().map(|record| record.json.as_bytes()).collect();
    projector.apply(&json, Deadline::NONE).await
}

fn reported(response: &BatchResponse) -> Vec<&str> {
    response.batch_item_failures.iter().map(|failure| failure.item_identifier.as_str()).collect()
}

#[tokio::test]
async fn an_outage_of_the_database_reports_the_lowest_record_and_a_redelivery_completes() {
    let stores = Stores::fresh().await;
    let gate = TcpGate::open(stores.database_host()).await;
    let gated = stores.with_database_at(&gate.address.to_string());
    let projector = gated.projector_without_archive(&gated.database_url, 1);
    let mut records = records(5);
    assert_eq!(reported(&handle(&projector, &records[..1]).await), [""; 0]);

    gate.set_open(false);
    // The lowest by number stands neither first in the batch nor first in text.
    records.swap(1, 3);
    assert_eq!(reported(&handle(&projector, &records[1..]).await), ["999999999999999999999"]);

    gate.set_open(true);
    assert_eq!(reported(&handle(&projector, &records[1..]).await), [""; 0]);
    assert_eq!(stores.rows().await, oracle::rows(&records));
}

/// Something takes the connection and never says a word: a firewall, a host that went down.
#[tokio::test]
async fn a_database_that_never_answers_is_given_up_and_reported() {
    let stores = Stores::fresh().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let silent = format!("postgres://u:p@{address}/d?sslmode=disable");
    let projector = stores.projector_without_archive(&silent, 1);
    let answer =
        tokio::time::timeout(Duration::from_secs(40), handle(&projector, &records(3))).await;
    assert_eq!(reported(&answer.expect("an answer in time")), ["999999999999999999998"]);
}

/// A failover closes the warm connection: the next batch makes a new one and does not fail.
#[tokio::test]
async fn a_connection_that_died_while_idle_is_replaced_without_a_failure() {
    let stores = Stores::fresh().await;
    let projector = stores.projector_without_archive(&stores.database_url, 1);
    let records = records(2);
    apply(&projector, &records[..1]).await;
    let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                WHERE datname = current_database() AND application_name = 'projector'";
    assert_eq!(stores.ask(kill).await, "1");
    apply(&projector, &records[1..]).await;
    assert_eq!(stores.rows().await, oracle::rows(&records));
}

/// Somebody's trigger can swallow a write without an error, or write the row as it was. The record
/// comes again until the trigger is gone; its neighbours are done.
#[tokio::test]
async fn a_change_that_does_not_get_into_its_row_is_not_acknowledged() {
    let stores = Stores::fresh().await;
    let projector = stores.projector().await;
    let mut connection = stores.connect().await;
    let swallow = "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN \
        NULL; END $$;
        CREATE TRIGGER swallow BEFORE INSERT ON measurements FOR EACH ROW
        WHEN (new.session_id = 's1') EXECUTE FUNCTION swallow();";
    connection.run(swallow).await;
    let records = records(3);
    let response = handle(&projector, &records).await;
    assert_eq!(reported(&response), ["999999999999999999999"]);
    assert_eq!((stores.rows().await.len(), stores.objects().await.len()), (2, 2));
    connection.run("DROP TRIGGER swallow ON measurements").await;
    assert_eq!(reported(&handle(&projector, &records).await), [""; 0]);
    assert_eq!((stores.rows().await.len(), stores.objects().await.len()), (3, 3));

    let undo =
        "CREATE FUNCTION undo() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN old; END $$;
        CREATE TRIGGER undo BEFORE UPDATE ON measurements FOR EACH ROW
        WHEN (new.session_id = 's1') EXECUTE FUNCTION undo();";
    connection.run(undo).await;
    let newer: Vec<Record> = (0..3)
        .map(|index| session(&format!("s{index}"), "newer").place(LABEL, 2 * FIRST + index))
        .collect();
    assert_eq!(reported(&handle(&projector, &newer).await), [(2 * FIRST + 1).to_string().as_str()]);
    connection.run("DROP TRIGGER undo ON measurements").await;
    assert_eq!(reported(&handle(&projector, &newer).await), [""; 0]);
    assert_eq!(stores.rows().await, oracle::rows(&[records, newer].concat()));
}

/// "Only from that record on is redelivered."
#[tokio::test]
async fn one_object_that_s3_refuses_is_reported_and_all_others_are_written() {
    let stores = Stores::fresh().await;
    let s3 = S3Gate::open(&service("AWS_ENDPOINT_URL")).await;
    let projector = stores.projector_at(&s3.url, 1).await;
    let records = records(5);
    s3.set_rule(|seen| match seen.method {
        "PUT" if seen.path.ends_with("/s2.json") => Fault::Refuse(403),
        _ => Fault::Pass,
    });
    assert_eq!(reported(&handle(&projector, &records).await), ["1000000000000000000000"]);
    assert_eq!(stores.objects().await.len(), 4);

    s3.set_rule(|_| Fault::Pass);
    let puts = s3.count("PUT");
    assert_eq!(reported(&handle(&projector, &records[2..]).await), [""; 0]);
    assert_eq!(stores.objects().await.len(), 5);
    assert_eq!(s3.count("PUT"), puts + 1, "what was written already is not written again");
}

/// A crash between the commit and the PUT: the row is there, the object is not, and the redelivery,
/// which finds nothing to write in the row, writes the object.
#[tokio::test]
async fn an_object_that_is_missing_behind_a_committed_row_is_written_by_the_redelivery() {
    let stores = Stores::fresh().await;
    let without_archive = stores.projector_without_archive(&stores.database_url, 1);
    let records = records(3);
    apply(&without_archive, &records).await;
    let applied = apply(&stores.projector().await, &records).await;
    assert_eq!((applied.counts.rows_written, applied.counts.objects_written), (0, 3));
    assert_eq!(parsed(&stores.objects().await), oracle::objects(&stores.rows().await));
}

/// S3 wrote, and the answer was lost; the SDK's own retry finds the object changed.
#[tokio::test]
async fn a_put_whose_answer_is_lost_is_not_a_failure() {
    let stores = Stores::fresh().await;
    let s3 = S3Gate::open(&service("AWS_ENDPOINT_URL")).await;
    let projector = stores.projector_at(&s3.url, 1).await;
    s3.set_rule(|seen| match seen.method {
        "PUT" if seen.earlier == 0 => Fault::HideAnswer,
        _ => Fault::Pass,
    });
    apply(&projector, &records(1)).await;
    apply(&projector, &[scan("s0", "left", "245.3").place(LABEL, FIRST)]).await;
    assert_eq!(parsed(&stores.objects().await), oracle::objects(&stores.rows().await));
}

/// S3 throttles for a while: the SDK's retries and the redelivery bring everything in.
#[tokio::test]
async fn a_throttled_s3_loses_nothing() {
    let stores = Stores::fresh().await;
    let s3 = Arc::new(S3Gate::open(&service("AWS_ENDPOINT_URL")).await);
    let projector = stores.projector_at(&s3.url, 1).await;
    s3.set_rule(|seen| if seen.earlier < 4 { Fault::Refuse(503) } else { Fault::Pass });
    let records = records(6);
    let mut pending = records.as_slice();
    let mut deliveries = 0;
    while !pending.is_empty() {
        deliveries += 1;
        assert!(deliveries < 20, "no end");
        let response = handle(&projector, pending).await;
        let Some(from) =
            reported(&response).first().map(|number| number.parse::<u128>().expect("a number"))
        else {
            break;
        };
        let index = pending
            .iter()
            .position(|record| record.sequence_number == from)
            .expect("a record of the batch");
        pending = &pending[index..];
    }
    assert_eq!(stores.objects().await.len(), 6);
}

/// S3 is away altogether: the batch fails soon, not object by object until the Lambda's time is up.
#[tokio::test]
async fn an_outage_of_s3_fails_the_batch_soon_and_whole() {
    let stores = Stores::fresh().await;
    let s3 = S3Gate::open(&service("AWS_ENDPOINT_URL")).await;
    let projector = stores.projector_at(&s3.url, 1).await;
    s3.set_rule(|_| Fault::Refuse(500));
    // More than one statement's: the rows go on without their objects.
    let records = records(1_200);
    assert_eq!(reported(&handle(&projector, &records).await), ["999999999999999999998"]);
    let tries = s3.count("PUT") + s3.count("HEAD");
    assert!(tries < 300, "{tries} requests");
    assert_eq!(stores.rows().await.len(), 1_200);
    s3.set_rule(|_| Fault::Pass);
    assert_eq!(reported(&handle(&projector, &records).await), [""; 0]);
    assert_eq!(stores.objects().await.len(), 1_200);
}

/// S3 takes every request and never answers. A batch of 1,000 sessions takes 40 s under the limits
/// of the real thing (measured; 20 s when it comes again, because the SDK has no retries left), not
/// the whole time of a function: the runbook says how soon 100 tries are over.
#[tokio::test]
async fn an_s3_that_never_answers_fails_the_batch_long_before_the_deadline() {
    let stores = Stores::fresh().await;
    let s3 = S3Gate::open(&service("AWS_ENDPOINT_URL")).await;
    let region = start::region().await.expect("a region");
    let limits = start::aws_in(region).await.timeout_config().expect("time limits").clone();
    let projector = stores.projector_at_within(&s3.url, 1, Some(limits)).await;
    let never = Arc::new(tokio::sync::Notify::new());
    s3.set_rule(move |_| Fault::Hold(Arc::clone(&never)));
    let records = records(1_000);
    let answer = tokio::time::timeout(Duration::from_mins(2), handle(&projector, &records)).await;
    assert_eq!(reported(&answer.expect("an answer in time")), ["999999999999999999998"]);
    assert_eq!((stores.rows().await.len(), stores.objects().await.len()), (1_000, 0));
}

/// A rejected record that cannot be stored is not acknowledged.
#[tokio::test]
async fn a_record_is_not_acknowledged_before_its_rejection_is_stored() {
    let stores = Stores::fresh().await;
    let projector = stores.projector_without_archive(&stores.database_url, 1);
    let mut records = records(3);
    records[1].json = records[1].json.replace("2026-11-22T08:00:00Z", "yesterday");
    let block = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE \
                 EXCEPTION 'disk full' USING ERRCODE = '53100'; END $$; CREATE TRIGGER refuse \
                 BEFORE INSERT ON rejected_records EXECUTE FUNCTION refuse();";
    stores.change(block).await;
    assert_eq!(reported(&handle(&projector, &records).await), ["999999999999999999999"]);
    stores.change("DROP TRIGGER refuse ON rejected_records").await;
    assert_eq!(reported(&handle(&projector, &records[1..]).await), [""; 0]);
    assert_eq!(stores.rejected().await, 1);
    assert_eq!(stores.rows().await.len(), 2);
}

#[tokio::test]
async fn a_wrong_set_up_is_one_line_with_the_remedy_and_nothing_is_acknowledged() {
    let stores = Stores::fresh().await;
    let projector = stores.projector().await;
    let good = session("s1", "u").place(LABEL, 1);
    let with = |from: &str, to: &str| {
        let mut record = good.clone();
        record.json = record.json.replace(from, to);
        [good.clone(), record]
    };
    let cases = [
        (
            with("table/sessions/", "table/orders/"),
            "SESSIONS_TABLE is \"sessions\" and SCANS_TABLE is \"scans\"",
        ),
        (
            with("\"NEW_IMAGE\"", "\"KEYS_ONLY\""),
            "has view type KEYS_ONLY: enable it with NEW_IMAGE",
        ),
        (with("arn:aws:dynamodb:", "arn:aws:sqs:"), "is not a DynamoDB stream"),
    ];
    for (records, expected) in cases {
        let message = try_apply(&projector, &records).await.expect_err(expected).to_string();
        assert!(message.contains(expected) && !message.contains('\n'), "{message}");
    }
    assert_eq!(stores.rows().await.len(), 0, "not even the good record of the batch");

    let empty = Stores::unmigrated().await;
    let error = try_apply(&empty.projector().await, std::slice::from_ref(&good))
        .await
        .expect_err("no tables");
    assert_eq!(
        error.to_string(),
        "the database lacks today's schema: run `backfill migrate` against it"
    );

    let nowhere = Stores { bucket: "no-such-bucket".to_owned(), ..stores.clone() };
    let error = try_apply(&nowhere.projector().await, std::slice::from_ref(&good))
        .await
        .expect_err("no bucket");
    assert_eq!(
        error.to_string(),
        "ARCHIVE_BUCKET \"no-such-bucket\" cannot be used: it does not exist: correct \
         ARCHIVE_BUCKET, or create the bucket"
    );

    let url = stores.database_url.replace("postgres://postgres:", "postgres://postgres:x");
    let error = try_apply(&stores.projector_without_archive(&url, 1), &[good])
        .await
        .expect_err("a wrong password");
    assert!(
        error.to_string().starts_with("the database refused the user or its password"),
        "{error}"
    );
}

/// The role of the Lambda needs SELECT, INSERT, UPDATE on two tables and nothing else.
#[tokio::test]
async fn the_granted_privileges_suffice_and_a_missing_one_is_named() {
    let stores = Stores::fresh().await;
    let role = format!("lambda_{:08x}", fastrand::u32(..));
    let mut owner = stores.connect().await;
    owner.run(&format!("CREATE ROLE {role} LOGIN PASSWORD 'p'")).await;
    let (_, rest) = stores.database_url.split_once('@').expect("a host");
    let url = format!("postgres://{role}:p@{rest}");
    let as_role = Stores { database_url: url.clone(), ..stores.clone() };
    let mut records = records(3);
    records[1].json = records[1].json.replace("2026-11-22T08:00:00Z", "yesterday");

    let error = try_apply(&as_role.projector().await, &records).await.expect_err("no privilege");
    assert!(error.to_string().contains("run `backfill migrate --grant-to ROLE`"), "{error}");

    let status = std::process::Command::new(testkit::emulator::binary("backfill"))
        .args(["migrate", "--grant-to", &role])
        .env("DATABASE_URL", &stores.database_url)
        .output()
        .expect("backfill runs");
    assert!(status.status.success(), "{status:?}");
    // Behind a proxy these are all the limits that there are.
    let settings =
        format!("SELECT array_to_string(rolconfig, ' ') FROM pg_roles WHERE rolname = '{role}'");
    assert_eq!(
        stores.ask(&settings).await,
        "synchronous_commit=on statement_timeout=20s lock_timeout=5s idle_session_timeout=10min"
    );
    apply(&as_role.projector().await, &records).await;
    apply(&as_role.projector().await, &records).await;
    assert_eq!((stores.rows().await.len(), stores.rejected().await), (2, 1));
    let mut connection = as_role.connect().await;
    for forbidden in
        ["DELETE FROM measurements", "TRUNCATE rejected_records", "DROP TABLE measurements"]
    {
        assert!(connection.try_run(forbidden).await.is_err(), "{forbidden}");
    }
}
