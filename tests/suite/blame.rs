//! The right blame: a fault of the set-up stops loudly and acknowledges nothing; a fault of one
//! record is that record's, and it can always be stored.

use projector::apply::Projector;
use projector::cause::Consequence;
use projector::deadline::Deadline;
use projector::error::Error;
use projector::handler::{self, StreamEvent};
use projector::kept::decode;
use serde_json::{Value as Json, json};
use testkit::emulator::{Lambda, event};
use testkit::oracle;
use testkit::records::{LABEL, Record, scan, session};
use testkit::runs::{assert_code, backfill, text};
use testkit::s3_gate::{Fault, S3Gate};
use testkit::services::{Stores, apply, service};
use testkit::sql::Client;

fn sessions(count: usize) -> Vec<Record> {
    (0..count)
        .map(|index| session(&format!("s{index:04}"), "u").place(LABEL, 1 + index as u128))
        .collect()
}

async fn refused(projector: &Projector, records: &[Record]) -> Error {
    let json: Vec<&[u8]> = records.iter().map(|record| record.json.as_bytes()).collect();
    Box::pin(projector.apply(&json, Deadline::NONE)).await.expect_err("the set-up is wrong")
}

async fn sql(stores: &Stores, sql: &str) {
    stores.change(sql).await;
}

/// What a DBA may do to the table, and what the operator then reads. Before, each record was
/// rejected and acknowledged.
#[tokio::test]
async fn a_table_that_takes_no_row_stops_the_function_and_rejects_no_record() {
    let all = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'not % either', new.session_id; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON measurements FOR EACH ROW EXECUTE FUNCTION refuse();";
    let cases = [
        (
            "ALTER TABLE measurements ADD COLUMN tenant text NOT NULL DEFAULT ''; \
             ALTER TABLE measurements ALTER COLUMN tenant DROP DEFAULT",
            1,
            "the column measurements.tenant must not be NULL",
        ),
        ("ALTER TABLE measurements DROP CONSTRAINT measurements_pkey", 1, "lost its primary key"),
        ("ALTER TABLE measurements DROP COLUMN left_mesh", 1, "run `backfill migrate`"),
        (
            "ALTER TABLE measurements DROP COLUMN left_arch_length_mm; \
             ALTER TABLE measurements ADD COLUMN left_arch_length_mm boolean",
            1,
            "the table is not as the migrations made it",
        ),
        (
            "ALTER TABLE measurements ADD CHECK (user_id <> 'u')",
            2,
            "refuses every one of 2 sessions for the same reason (PostgreSQL refuses the row: \
                SQLSTATE 23514",
        ),
        (all, 60, "raised by refuse()"),
    ];
    for (change, count, says) in cases {
        let stores = Stores::fresh().await;
        sql(&stores, change).await;
        let projector = stores.projector_without_archive(&stores.database_url, 1);
        let error = refused(&projector, &sessions(count)).await;
        assert_eq!(error.consequence(), Consequence::Fatal);
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(stores.rejected().await, 0, "{change}");
    }
}

/// Fifty are enough to know; the others of a large batch are not tried one by one.
#[tokio::test]
async fn the_fault_of_the_table_is_found_without_trying_a_thousand_records() {
    let stores = Stores::fresh().await;
    sql(&stores, "CREATE SEQUENCE tried; CREATE FUNCTION refuse() RETURNS trigger LANGUAGE \
        plpgsql AS $$
        BEGIN PERFORM nextval('tried'); RAISE EXCEPTION 'no'; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON measurements FOR EACH ROW EXECUTE FUNCTION refuse();").await;
    let projector = stores.projector_without_archive(&stores.database_url, 1);
    refused(&projector, &sessions(3_000)).await;
    let tried: u32 = stores.ask("SELECT last_value FROM tried").await.parse().expect("a number");
    assert!(tried < 1_000, "{tried} statements");
}

/// A record that is refused alone, or for a reason of its own, is the record's fault.
#[tokio::test]
async fn records_that_are_refused_beside_good_ones_or_alone_are_rejected() {
    let stores = Stores::fresh().await;
    sql(&stores, "ALTER TABLE measurements ADD CONSTRAINT no_u CHECK (user_id <> 'u')").await;
    let projector = stores.projector_without_archive(&stores.database_url, 1);
    let mut records = sessions(60);
    assert_eq!(apply(&projector, &records[..1]).await.counts.rejected, 1);
    records.push(session("good", "v").place(LABEL, 100));
    let applied = apply(&projector, &records).await;
    assert_eq!((applied.counts.rejected, applied.counts.applied), (60, 1));
    assert_eq!(stores.rejected().await, 60);
}

/// Refused before, and refused again: that is no news about the table.
#[tokio::test]
async fn rejected_records_that_are_all_refused_again_stay_rejected() {
    let stores = Stores::fresh().await;
    sql(&stores, "ALTER TABLE measurements ADD CONSTRAINT no_u CHECK (user_id <> 'u')").await;
    let projector = stores.projector_without_archive(&stores.database_url, 1);
    for record in sessions(30) {
        apply(&projector, &[record]).await;
    }
    assert_code(&backfill(&stores, &["redrive"]), 3);
    assert_eq!(stores.rejected().await, 30);
}

#[tokio::test]
async fn every_rejection_is_a_warning_one_line_per_reason_and_batch() {
    let stores = Stores::fresh().await;
    let lambda = Lambda::start(&[("DATABASE_URL", &stores.database_url)]).await;
    let mut records = sessions(5);
    for record in &mut records[..3] {
        record.json = record.json.replace("2026-11-22T08:00:00Z", "yesterday");
    }
    records[3].json = records[3].json.replace("\"user_id\"", "\"user\"");
    lambda.invoke(&event(records.iter().map(|record| record.json.as_str()))).await;
    let lines: Vec<Json> =
        lambda.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let warnings: Vec<(&str, u64)> = lines
        .iter()
        .filter(|line| line["level"] == "WARN")
        .map(|line| {
            (line["reason"].as_str().unwrap_or("none"), line["records"].as_u64().unwrap_or(0))
        })
        .collect();
    assert_eq!(warnings.len(), 2, "{}", lambda.log());
    assert!(
        warnings.iter().any(|(reason, records)| reason.contains("started_at") && *records == 3)
    );
    assert!(
        warnings
            .iter()
            .any(|(reason, records)| reason.contains("user_id is missing") && *records == 1)
    );
}

/// A trigger that swallows the insert lost the record: it was acknowledged, and stood nowhere.
#[tokio::test]
async fn a_rejection_that_is_swallowed_is_not_acknowledged() {
    let stores = Stores::fresh().await;
    sql(&stores, "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
        CREATE TRIGGER swallow BEFORE INSERT ON rejected_records FOR EACH ROW EXECUTE FUNCTION swallow();").await;
    let projector = stores.projector_without_archive(&stores.database_url, 1);
    let mut records = sessions(2);
    records[1].json = records[1].json.replace("2026-11-22T08:00:00Z", "yesterday");
    let json: Vec<&[u8]> = records.iter().map(|record| record.json.as_bytes()).collect();
    let applied = projector.apply(&json, Deadline::NONE).await.expect("no fatal error");
    assert_eq!((applied.failed, applied.counts.rejected), (vec![1], 0));
    sql(&stores, "DROP TRIGGER swallow ON rejected_records").await;
    assert_eq!(apply(&projector, &records).await.counts.rejected, 1);
    assert_eq!(stores.rejected().await, 1);
}

/// A database of another encoding, which somebody made before `migrate` refused it.
#[tokio::test]
async fn a_rejection_is_stored_whatever_the_encoding_of_the_database() {
    let stores = Stores::unmigrated().await;
    let name = format!("{}-latin", stores.bucket);
    let mut admin = Client::connect(&service("DATABASE_URL")).await;
    let create =
        format!("CREATE DATABASE {name:?} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0");
    admin.run(&create).await;
    let database_url = stores.database_url.replace(&stores.bucket, &name);
    let stores = Stores { database_url, ..stores };

    let output = backfill(&stores, &["migrate"]);
    assert_code(&output, 2);
    let message = text(&output.stderr);
    assert!(
        message.contains("LATIN1") && message.contains("ENCODING 'UTF8' TEMPLATE template0"),
        "{message}"
    );

    stores.migrate().await;
    let projector = stores.projector_without_archive(&stores.database_url, 1);
    let mut draft = session("s1", "u");
    draft.image.as_mut().expect("an image")["device_model"] = json!({ "S": "足 👣 é" });
    let mut bad = draft.clone().place(LABEL, 1);
    bad.json = bad.json.replace("2026-11-22T08:00:00Z", "gestern 👣");
    // One that is malformed, and one that only this database refuses.
    let records = [
        bad,
        Record { item: "s2".to_owned(), ..draft.place(LABEL, 2) },
        session("s3", "u").place(LABEL, 3),
    ];
    let applied = apply(&projector, &records).await;
    assert_eq!((applied.counts.rejected, applied.counts.applied), (2, 1));
    let kept = "SELECT record::text FROM rejected_records ORDER BY sequence_number";
    let kept: Vec<(String,)> = stores.connect().await.rows(kept).await;
    for ((kept,), record) in kept.iter().zip(&records) {
        assert_eq!(decode(kept), record.json.as_bytes(), "to the letter");
    }

    // One that is known by its digest alone, and so by every byte of it.
    let odd = "{\"eventID\":\"\u{e9}\u{8db3}\"}".as_bytes();
    let applied = projector.apply(&[odd], Deadline::NONE).await.expect("no fatal error");
    assert_eq!(applied.counts.rejected, 1);
    assert_code(&backfill(&stores, &["redrive"]), 3);
    assert_eq!(stores.rejected().await, 3);
}

/// Stored as `\u0000` it made every later query of that column fail.
#[tokio::test]
async fn a_nul_in_an_attribute_that_the_model_does_not_name_is_rejected() {
    let stores = Stores::fresh().await;
    let projector = stores.projector_without_archive(&stores.database_url, 1);
    let with = |id: &str, name: &str, value: Json, number| {
        let mut draft = session(id, "u");
        draft.image.as_mut().expect("an image")[name] = value;
        draft.place(LABEL, number)
    };
    let records = [
        with("s1", "note", json!({ "S": "a\0b" }), 1),
        with("s2", "note", json!({ "M": { "deep": { "L": [{ "S": "\0" }] } } }), 2),
        with("s3", "no\0te", json!({ "S": "a" }), 3),
        with("s4", "note", json!({ "S": "a\\u0000b" }), 4),
    ];
    let applied = apply(&projector, &records).await;
    assert_eq!((applied.counts.rejected, applied.counts.applied), (3, 1));
    let note = stores.ask("SELECT session_attributes::jsonb ->> 'note' FROM measurements").await;
    assert_eq!(note, "a\\u0000b");
    let reasons = stores.ask("SELECT string_agg(reason, '; ') FROM rejected_records").await;
    assert!(reasons.contains("the attribute note holds a NUL character"), "{reasons}");
}

/// Binary that is none is the record's fault, and the reason names the attribute.
#[tokio::test]
async fn binary_in_any_other_form_is_rejected_alone_by_the_name_of_its_attribute() {
    let stores = Stores::fresh().await;
    let projector = stores.projector_without_archive(&stores.database_url, 1);
    let forms = [
        json!("AAECAw=="),
        json!("\0\u{1}ðbinary!"),
        json!({ "type": "Buffer", "data": [1, 2, 3] }),
        json!("_-8"),
        json!("AAECAw"),
    ];
    let records: Vec<Record> = forms
        .iter()
        .enumerate()
        .map(|(index, form)| {
            let mut draft = scan(&format!("s{index}"), "left", "245.3");
            draft.image.as_mut().expect("an image")["mesh"] = json!({ "B": form });
            draft.place(LABEL, 1 + index as u128)
        })
        .collect();
    let applied = apply(&projector, &records).await;
    assert_eq!((applied.counts.rejected, applied.counts.applied), (4, 1));
    let named = "SELECT count(*) FROM rejected_records WHERE reason LIKE '%the attribute mesh%'";
    assert_eq!(stores.ask(named).await, "4");
}

/// EventBridge Pipes sends an array; a mapping with a tumbling window sends members beside the
/// records, before or after them, and at the end of the window an event without any.
#[tokio::test]
async fn an_event_is_taken_in_each_form_that_aws_sends() {
    let stores = Stores::fresh().await;
    let projector = stores.projector_without_archive(&stores.database_url, 1);
    let records = sessions(3);
    let [pipes, before, after] = [0, 1, 2].map(|index| records[index].json.as_str());
    let window = r#""window":{"start":"2026-11-22T08:00:00Z"},"state":{"Records":"1"},"isFinalInvokeForWindow":false"#;
    let events = [
        format!("[{pipes}]"),
        format!("{{{window},\"Records\":[{before}]}}"),
        format!("{{\"Records\":[{after}],{window}}}"),
        format!("{{{window},\"Records\":[]}}"),
    ];
    for event in events {
        let event: StreamEvent = serde_json::from_str(&event).expect("an event");
        let answer =
            handler::handle(&projector, event, "test", Deadline::NONE).await.expect("an answer");
        assert_eq!(answer.batch_item_failures, []);
    }
    assert_eq!(stores.rows().await, oracle::rows(&records));
}

#[tokio::test]
async fn answers_of_s3_are_told_apart_by_their_code() {
    let stores = Stores::fresh().await;
    let s3 = S3Gate::open(&service("AWS_ENDPOINT_URL")).await;
    let projector = stores.projector_at(&s3.url, 1).await;
    let cases = [
        (307, "TemporaryRedirect", false),
        (403, "RequestTimeTooSkewed", false),
        (400, "ExpiredToken", false),
        (503, "SlowDown", false),
        (400, "AuthorizationHeaderMalformed", true),
        (301, "PermanentRedirect", true),
        (501, "NotImplemented", true),
        (404, "NoSuchBucket", true),
    ];
    for ((status, code, fatal), number) in cases.into_iter().zip(1..) {
        s3.set_rule(move |_| Fault::RefuseWith(status, code));
        let records = [session(&format!("s{number}"), "u").place(LABEL, number)];
        let json: Vec<&[u8]> = records.iter().map(|record| record.json.as_bytes()).collect();
        match projector.apply(&json, Deadline::NONE).await {
            Ok(applied) => assert!(!fatal && applied.failed == [0], "{code}"),
            Err(error) => {
                assert!(fatal && matches!(error, Error::NoBucket { .. }), "{code}: {error}");
            }
        }
        s3.set_rule(|_| Fault::Pass);
        apply(&projector, &records).await;
    }
    assert_eq!(stores.objects().await.len(), 8);
}

const OLDER: &str = "2026-10-01T00:00:00.000";

/// A failover to a replica of a global table whose stream is older than the first one's.
#[tokio::test]
async fn a_newer_change_with_an_older_version_is_counted_and_logged() {
    let stores = Stores::fresh().await;
    let projector = stores.projector_without_archive(&stores.database_url, 1);
    let at = |label: &str, number: u128, created_at: i64, user: &str| {
        let mut draft = session("s1", user);
        draft.created_at = Some(created_at);
        draft.place(label, number)
    };
    apply(&projector, &[at(LABEL, 5, 1_000_000, "first region")]).await;
    // The replica's change is newer, whatever its label says.
    let counts = apply(&projector, &[at(OLDER, 9, 1_000_060, "replica")]).await.counts;
    assert_eq!((counts.stale, counts.stale_created_later), (1, 1));
    // Beside a change of another part that is written, too.
    let beside = [at(OLDER, 10, 1_000_061, "replica"), scan("s1", "left", "245.3").place(OLDER, 1)];
    let counts = apply(&projector, &beside).await.counts;
    assert_eq!((counts.applied, counts.stale, counts.stale_created_later), (1, 1, 1));
    // A replay of the older stream is no news, and neither is an old change of the same stream.
    let replay = [at(OLDER, 3, 900_000, "long ago"), at(LABEL, 4, 1_000_100, "its clock is odd")];
    for record in replay {
        let counts = apply(&projector, &[record]).await.counts;
        assert_eq!((counts.stale, counts.stale_created_later), (1, 0));
    }
    // The version still decides.
    assert_eq!(stores.rows().await["s1"]["user_id"], "first region");
}
