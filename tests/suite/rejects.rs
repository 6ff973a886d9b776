//! A record that can never apply is rejected, alone; it blocks nothing and is not lost.

use projector::apply::Projector;
use projector::change::{self, Change, Decoded, Tables};
use projector::config::TtlRemovals;
use projector::deadline::Deadline;
use projector::measurement::Measurement;
use projector::object;
use projector::part::PerPart;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::Value as Json;
use testkit::generate::{self, SMALL};
use testkit::oracle;
use testkit::records::{Draft, LABEL, Record, removal, scan, session};
use testkit::services::{Stores, apply};

fn projector(stores: &Stores) -> Projector {
    stores.projector_without_archive(&stores.database_url, 2)
}

/// What the checks let through and PostgreSQL refuses: an index entry of more than 2704 bytes.
fn oversize(mut draft: Draft) -> Draft {
    let mut rng = fastrand::Rng::with_seed(1);
    let long: String = (0..20_000).map(|_| rng.alphanumeric()).collect();
    draft.image.as_mut().expect("an image")["user_id"] = serde_json::json!({ "S": long });
    draft
}

fn malformed(mut record: Record, from: &str, to: &str) -> Record {
    assert!(record.json.contains(from), "{from}");
    record.json = record.json.replace(from, to);
    record.malformed = true;
    record
}

#[tokio::test]
async fn one_bad_record_among_10_000_is_rejected_alone() {
    let good: Vec<Record> = (0..10_000)
        .map(|index| session(&format!("s{index:05}"), "u").place(LABEL, 1 + index))
        .collect();
    let spoil: [fn(Record) -> Record; 2] = [
        // One that the checks find.
        |record| malformed(record, "2026-11-22T08:00:00Z", "yesterday"),
        // One that only PostgreSQL finds.
        |record| Record {
            malformed: true,
            ..oversize(session("s05000", "u")).place(LABEL, record.sequence_number)
        },
    ];
    for spoil in spoil {
        let stores = Stores::fresh().await;
        let projector = projector(&stores);
        let mut records = good.clone();
        records[5_000] = spoil(records[5_000].clone());
        for delivery in 1..=2 {
            let applied = apply(&projector, &records).await;
            assert_eq!(applied.counts.rejected, 1);
            assert_eq!(applied.counts.applied, if delivery == 1 { 9_999 } else { 0 });
            assert_eq!(stores.ask("SELECT count(*) FROM measurements").await, "9999");
            assert_eq!(
                stores.rejected().await,
                1,
                "one row a record, however often it is delivered"
            );
        }
        let kept = stores.ask("SELECT record FROM rejected_records").await;
        assert_eq!(kept, records[5_000].json, "to the letter");
        let column = |name: &str| format!("SELECT {name} FROM rejected_records");
        assert_eq!(stores.ask(&column("table_name")).await, "sessions");
        assert_eq!(stores.ask(&column("stream_label")).await, LABEL);
        assert_eq!(stores.ask(&column("sequence_number")).await, "000000000000000005001");
        assert_eq!(stores.ask(&column("event_id")).await, format!("sessions-{LABEL}-5001"));
    }
}

/// The refused change had overtaken an older one in the batch, which must apply then; and the other
/// parts of the same session are no part of the trouble.
#[tokio::test]
async fn what_a_refused_change_had_overtaken_in_the_batch_still_applies() {
    let stores = Stores::fresh().await;
    let projector = projector(&stores);
    let mut records = vec![
        session("s1", "first").place(LABEL, 1),
        oversize(session("s1", "second")).place(LABEL, 2),
        scan("s1", "left", "245.3").place(LABEL, 3),
        session("s2", "other").place(LABEL, 4),
    ];
    records[1].malformed = true;
    let applied = apply(&projector, &records).await;
    assert_eq!((applied.counts.applied, applied.counts.rejected), (3, 1));
    assert_eq!(stores.rows().await, oracle::rows(&records));
    assert_eq!(stores.rows().await["s1"]["user_id"], "first");
}

/// Several refused records, at both ends and beside each other, and one that is refused twice.
#[tokio::test]
async fn several_refused_records_are_each_found() {
    let stores = Stores::fresh().await;
    let projector = projector(&stores);
    let records: Vec<Record> = (0..100)
        .map(|index| {
            let draft = session(&format!("s{index:03}"), "u");
            match index {
                0 | 49 | 50 | 99 => {
                    Record { malformed: true, ..oversize(draft).place(LABEL, 1 + index) }
                }
                _ => draft.place(LABEL, 1 + index),
            }
        })
        .collect();
    let mut delivered = records.clone();
    delivered.push(records[49].clone());
    let applied = apply(&projector, &delivered).await;
    assert_eq!((applied.counts.applied, applied.counts.rejected), (96, 5));
    assert_eq!(stores.rejected().await, 4);
    assert_eq!(stores.rows().await, oracle::rows(&records));
    let reason = stores.ask("SELECT reason FROM rejected_records LIMIT 1").await;
    assert!(
        reason.contains("PostgreSQL refuses the row: index row") && reason.len() < 200,
        "{reason}"
    );
}

#[tokio::test]
async fn what_is_not_even_a_record_is_kept_and_the_rest_applies() {
    let stores = Stores::fresh().await;
    let projector = projector(&stores);
    let good = session("s1", "u").place(LABEL, 1);
    let deep = format!("{}{}", "[".repeat(50_000), "]".repeat(50_000));
    let odd: [&[u8]; 8] = [
        b"",
        b"null",
        b"[]",
        b"{\"a\":",
        b"\xff\xfe\x00",
        deep.as_bytes(),
        b"{\"dynamodb\":7}",
        b"\"\\ud800\"",
    ];
    let mut batch = vec![good.json.as_bytes()];
    batch.extend(odd);
    for _ in 0..2 {
        let applied = projector.apply(&batch, Deadline::NONE).await.expect("no fatal error");
        assert_eq!((applied.failed.len(), applied.counts.rejected), (0, 8));
    }
    assert_eq!((stores.rows().await.len(), stores.rejected().await), (1, 8));
}

#[test]
fn every_rule_has_a_reason_that_names_it() {
    let tables = Tables { sessions: "sessions".to_owned(), scans: "scans".to_owned() };
    let who = session("s1", "u").place(LABEL, 7);
    let foot = scan("s1", "left", "245.3").place(LABEL, 7);
    let cases = [
        (&who, "\"S\":\"u\"", "\"N\":\"5\"", "the attribute user_id is tagged N, expected S"),
        (&who, "\"user_id\":", "\"user\":", "the attribute user_id is missing"),
        (&who, "{\"S\":\"u\"}", "{\"NULL\":true}", "the attribute user_id is missing"),
        (&who, "{\"S\":\"u\"}", "{\"Q\":\"u\"}", "the attribute user_id is tagged Q, expected S"),
        (
            &who,
            "\"device_model\":{\"S\"",
            "\"weather\":{\"Q\"",
            "the attribute weather has or holds the type \"Q\"",
        ),
        (&who, "iPhone16,2", "iPhone\\u0000", "the attribute device_model holds a NUL character"),
        (&who, "1795334400", "-1", "ApproximateCreationDateTime is not"),
        (&who, "08:00:00Z", "08:00", "the attribute started_at is not an RFC 3339 time"),
        (
            &who,
            "2026-11-22T08:00:00Z",
            "9999-12-31T23:59:59-23:59",
            "the attribute started_at is not an RFC 3339",
        ),
        (
            &who,
            "\"Keys\":{\"session_id\":{\"S\":\"s1\"",
            "\"Keys\":{\"session_id\":{\"S\":\"../s\"",
            "the key session_id is not",
        ),
        (
            &who,
            "\"Keys\":{\"session_id\":{\"S\":\"s1\"",
            "\"Keys\":{\"session_id\":{\"S\":\"s2\"",
            "the image's session_id is not the one",
        ),
        (&who, "\"Keys\"", "\"keys\"", "the record has no dynamodb.Keys"),
        (&who, "\"NewImage\"", "\"Image\"", "the record has no dynamodb.NewImage"),
        (&who, "\"INSERT\"", "\"UPSERT\"", "eventName \"UPSERT\" is none of"),
        (&who, "\"SequenceNumber\":\"0", "\"SequenceNumber\":\"x", "the sequence number is not"),
        (&who, "\"SequenceNumber\"", "\"Number\"", "the record has no dynamodb.SequenceNumber"),
        (&who, "1795334400", "1e300", "ApproximateCreationDateTime is not"),
        (&who, "\"eventSourceARN\"", "\"arn\"", "the record has no eventSourceARN"),
        (
            &foot,
            "245.3",
            "0",
            "the attribute foot_length_mm is not more than 0 and less than 1000 mm",
        ),
        (&foot, "245.3", "1000", "the attribute foot_length_mm is not more than 0"),
        (&foot, "245.3", "-1", "the attribute foot_length_mm is not more than 0"),
        (&foot, "245.3", "1E999999999", "the attribute foot_length_mm is tagged N and is not"),
        (
            &foot,
            "\"side\":{\"S\":\"left\"}",
            "\"side\":{\"S\":\"both\"}",
            "the key side is neither left nor right",
        ),
        (
            &foot,
            "\"ball_girth_mm\":{\"N\"",
            "\"ball_girth_mm\":{\"B\"",
            "the attribute ball_girth_mm is tagged B, expected N",
        ),
    ];
    for (record, from, to, expected) in cases {
        let record = malformed(record.clone(), from, to);
        let Ok(Decoded::Malformed(reason)) = change::decode(record.json.as_bytes(), &tables) else {
            panic!("taken: {}", record.json);
        };
        assert!(reason.to_string().starts_with(expected), "{reason}");
    }
    for record in [who, foot] {
        assert!(matches!(change::decode(record.json.as_bytes(), &tables), Ok(Decoded::Change(_))));
    }
}

#[tokio::test]
async fn values_near_the_limits_keep_every_digit() {
    let stores = Stores::fresh().await;
    let projector = stores.projector().await;
    let lengths = [
        "999.99999999999999999999999999999999999",
        "0.00000000000000000000000000000000000001",
        "1E2",
        "245.30",
        "2.453E+2",
    ];
    let records: Vec<Record> = lengths
        .iter()
        .zip(1_u128..)
        .map(|(length, index)| scan(&format!("s{index}"), "left", length).place(LABEL, index))
        .collect();
    apply(&projector, &records).await;
    let objects = stores.objects().await;
    let plain = [
        "999.99999999999999999999999999999999999",
        "0.00000000000000000000000000000000000001",
        "100",
        "245.3",
        "245.3",
    ];
    for (length, index) in plain.iter().zip(1..) {
        let object: Json =
            serde_json::from_slice(&objects[&format!("measurements/s{index}.json")]).expect("JSON");
        assert_eq!(object["left_foot_length_mm"].to_string(), *length);
        assert_eq!(
            &stores.rows().await[&format!("s{index}")]["left_foot_length_mm"].to_string(),
            length
        );
    }
}

#[tokio::test]
async fn removals_by_time_to_live_are_kept_or_applied_as_configured() {
    let written = session("s1", "u");
    let expired = Draft { expired: true, ..removal(&written) };
    // In one batch too: the removal that is left out must not hide the change before it.
    let records = [written.place(LABEL, 1), expired.place(LABEL, 2)];
    for (setting, user_id, kept) in [(TtlRemovals::Keep, "u", 1), (TtlRemovals::Apply, "", 0)] {
        for batch_size in [1, 2] {
            let stores = Stores::fresh().await;
            let mut projector = projector(&stores);
            projector.ttl_removals = setting;
            let mut counted = 0;
            for batch in records.chunks(batch_size) {
                counted += apply(&projector, batch).await.counts.ttl_kept;
            }
            assert_eq!(stores.ask("SELECT user_id FROM measurements").await, user_id);
            assert_eq!(counted, kept);
        }
    }
}

/// A mutated event: some bytes of some records are changed, cut out, doubled or swapped.
fn mutation() -> impl Strategy<Value = Vec<(usize, usize, u8, u8)>> {
    prop::collection::vec((any::<usize>(), any::<usize>(), any::<u8>(), 0..5_u8), 1..12)
}

fn mutate(records: &[Vec<u8>], mutations: &[(usize, usize, u8, u8)]) -> Vec<Vec<u8>> {
    let mut records = records.to_vec();
    for (record, place, byte, kind) in mutations {
        let count = records.len();
        let record = &mut records[record % count];
        if record.is_empty() {
            continue;
        }
        let place = place % record.len();
        match kind {
            0 => record[place] = *byte,
            1 => record.truncate(place),
            2 => drop(record.drain(place..(place + usize::from(*byte)).min(record.len()))),
            3 => {
                let copy = record[place..(place + usize::from(*byte)).min(record.len())].to_vec();
                record.splice(place..place, copy);
            }
            // A structural byte, which does more harm than a random one.
            _ => record[place] = b"{}[]\",:0\\e"[usize::from(*byte) % 10],
        }
    }
    records
}

fn fuzz_cases(default: u32) -> Config {
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(default);
    Config { cases, failure_persistence: None, ..Config::default() }
}

fn samples() -> Vec<Vec<u8>> {
    let (sessions, scans) = generate::day(SMALL);
    let (_, meshes) = generate::day(generate::Day { mesh_bytes: 60, ..generate::MESH });
    let of = |records: &[Record]| -> Vec<Vec<u8>> {
        records.iter().step_by(11).map(|record| record.json.clone().into_bytes()).collect()
    };
    [of(&scans), of(&sessions), of(&meshes)].concat()
}

/// Whatever the decoder takes can be written as an object, or a record would be stuck behind it.
fn assert_has_an_object(change: Change) {
    let mut row = Measurement {
        session_id: change.session_id,
        documents: PerPart::default(),
        versions: PerPart::default(),
        changed_at: PerPart::default(),
    };
    let part = change.part;
    row.documents[part] = change.document;
    row.versions[part] = Some(change.version.to_string());
    row.changed_at[part] = change.changed_at;
    object::body(&row).expect("a body");
    object::metadata(&row).expect("metadata");
}

#[test]
fn no_bytes_make_the_decoder_panic() {
    let tables = Tables { sessions: "sessions".to_owned(), scans: "scans".to_owned() };
    let samples = samples();
    TestRunner::new(fuzz_cases(8_000))
        .run(&(mutation(), any::<usize>()), |(mutations, first)| {
            let first = first % samples.len();
            for record in mutate(&samples[first..samples.len().min(first + 3)], &mutations) {
                if let Ok(Decoded::Change(change)) = change::decode(&record, &tables) {
                    assert_has_an_object(change);
                }
                let _ = projector::rejected::sequence_number(&record);
            }
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
}

/// Mutated records against the real database: each is applied, or rejected; or its stream is not
/// one of ours, and then nothing is acknowledged. None gets stuck.
#[test]
fn every_mutated_record_is_accounted_for() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let stores = runtime.block_on(Stores::fresh());
    let projector = projector(&stores);
    let samples = samples();
    TestRunner::new(fuzz_cases(150))
        .run(&mutation(), |mutations| {
            let records = mutate(&samples, &mutations);
            match runtime.block_on(projector.apply(&records, Deadline::NONE)) {
                Ok(applied) => {
                    let counts = applied.counts;
                    prop_assert_eq!(&applied.failed, &[0_usize; 0]);
                    let told = counts.applied
                        + counts.duplicate
                        + counts.stale
                        + counts.superseded
                        + counts.rejected;
                    prop_assert_eq!(told, records.len() as u64);
                }
                Err(error) => {
                    let wiring = matches!(error, projector::error::Error::Misconfigured(_));
                    prop_assert!(wiring, "{}", error);
                }
            }
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
}
