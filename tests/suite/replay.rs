//! The small fixture, in every order and cut, comes to the same rows and the same bytes; and a pure
//! replay writes nothing at all.

use std::collections::BTreeSet;

use fastrand::Rng;
use testkit::generate::{self, MESH, SMALL};
use testkit::oracle;
use testkit::records::{LABEL, Record, session};
use testkit::s3_gate::S3Gate;
use testkit::services::{Stores, apply, apply_all, parsed, service};

/// Shuffled, but each item's records in the order of its stream.
fn shuffled(records: &[Record], seed: u64) -> Vec<Record> {
    let mut rng = Rng::with_seed(seed);
    let mut keyed: Vec<(u64, &Record)> =
        records.iter().map(|record| (rng.u64(..), record)).collect();
    // Each item's keys are dealt to its records in ascending order.
    for index in 0..keyed.len() {
        for later in index + 1..keyed.len() {
            if keyed[later].1.item == keyed[index].1.item && keyed[later].0 < keyed[index].0 {
                let key = keyed[index].0;
                keyed[index].0 = keyed[later].0;
                keyed[later].0 = key;
            }
        }
    }
    keyed.sort_by_key(|(key, _)| *key);
    keyed.into_iter().map(|(_, record)| record.clone()).collect()
}

fn small() -> Vec<Record> {
    let (sessions, scans) = generate::day(SMALL);
    [sessions, scans].concat()
}

#[tokio::test]
async fn every_order_and_cut_ends_in_the_same_rows_and_the_same_bytes() {
    let given = small();
    let (sessions, scans) = generate::day(SMALL);
    let reversed_by_table = [scans, sessions].concat();
    let mut across_tables = given.clone();
    across_tables.sort_by_key(|record| record.json.len());

    let expected = oracle::rows(&given);
    let mut first_objects = None;
    for (name, order) in [
        ("given", given.clone()),
        ("reversed by table", reversed_by_table),
        ("shuffled, items in order", shuffled(&given, 1)),
        ("shuffled without any order", across_tables),
    ] {
        for batch_size in [1, 7, 10_000] {
            let stores = Stores::fresh().await;
            let projector = stores.projector().await;
            for batch in order.chunks(batch_size) {
                apply(&projector, batch).await;
                apply(&projector, batch).await;
            }
            let rows = stores.rows().await;
            assert_eq!(rows, expected, "{name}, batches of {batch_size}");
            let objects = stores.objects().await;
            assert_eq!(parsed(&objects), oracle::objects(&rows), "{name}, batches of {batch_size}");
            apply_all(&projector, &order, batch_size).await;
            assert_eq!(stores.rows().await, expected, "replayed: {name}, batches of {batch_size}");
            assert!(stores.objects().await == objects, "replayed: {name}, batches of {batch_size}");
            let first = first_objects.get_or_insert_with(|| objects.clone());
            assert!(*first == objects, "other bytes: {name}, batches of {batch_size}");
            assert_rejected(&stores, &given, batch_size).await;
        }
    }
}

/// Each malformed record once.
async fn assert_rejected(stores: &Stores, records: &[Record], batch_size: usize) {
    let malformed: BTreeSet<&String> =
        records.iter().filter(|record| record.malformed).map(|record| &record.json).collect();
    assert_eq!(stores.rejected().await, malformed.len(), "batches of {batch_size}");
}

#[tokio::test]
async fn a_pure_replay_writes_no_row_and_no_object() {
    let stores = Stores::fresh().await;
    let s3 = S3Gate::open(&service("AWS_ENDPOINT_URL")).await;
    let projector = stores.projector_at(&s3.url, 1).await;
    let records = small();
    apply_all(&projector, &records, 50).await;
    let (places, puts) = (stores.row_places().await, s3.count("PUT"));
    assert!(puts >= places.len());

    let (heads, mut applied, mut written) = (s3.count("HEAD"), 0, 0);
    for batch in apply_all(&projector, &records, 50).await {
        applied += batch.counts.applied;
        written += batch.counts.rows_written + batch.counts.objects_written;
    }
    assert_eq!((applied, written), (0, 0));
    assert_eq!(stores.row_places().await, places);
    assert_eq!(s3.count("PUT"), puts);
    // The comparison itself did take place, for every session of every batch.
    assert!(s3.count("HEAD") > heads);
}

#[tokio::test]
async fn a_mesh_of_300_kb_reaches_both_stores_and_replays() {
    let stores = Stores::fresh().await;
    let projector = stores.projector().await;
    let (sessions, scans) = generate::day(MESH);
    let records = [scans, sessions].concat();
    for batch_size in [1, 10_000, 1] {
        apply_all(&projector, &records, batch_size).await;
        let rows = stores.rows().await;
        assert_eq!(rows, oracle::rows(&records));
        assert_eq!(parsed(&stores.objects().await), oracle::objects(&rows));
    }
}

/// More rows than are returned whole, each too large to be returned with the others: their objects
/// are made of rows read one by one.
#[tokio::test]
async fn large_rows_are_read_when_their_object_is_written() {
    let stores = Stores::fresh().await;
    let projector = stores.projector().await;
    let day = generate::Day { seed: 3, sessions: 12, malformed: false, mesh_bytes: 20_000 };
    let (sessions, scans) = generate::day(day);
    let records = [sessions, scans].concat();
    apply(&projector, &records).await;
    let rows = stores.rows().await;
    assert_eq!(rows, oracle::rows(&records));
    assert_eq!(parsed(&stores.objects().await), oracle::objects(&rows));
}

/// The counts tell what became of each record, and add up.
#[tokio::test]
async fn every_record_is_counted_once() {
    let stores = Stores::fresh().await;
    let projector = stores.projector().await;
    let records = small();
    for batch_size in [9, 10_000] {
        for batch in apply_all(&projector, &records, batch_size).await {
            let counts = batch.counts;
            assert_eq!(
                counts.records,
                counts.applied
                    + counts.duplicate
                    + counts.stale
                    + counts.superseded
                    + counts.rejected,
                "{counts:?}"
            );
        }
    }
}

/// A time is kept to the microsecond, in UTC, and has one form in row and object, whatever its
/// offset.
#[tokio::test]
async fn times_keep_their_fraction_and_lose_their_offset() {
    let stores = Stores::fresh().await;
    let projector = stores.projector().await;
    let times = [
        ("2026-11-22T09:30:00.123456789+05:30", "2026-11-22T04:00:00.123456Z"),
        ("2026-11-22T00:00:00.5-12:00", "2026-11-22T12:00:00.5Z"),
        ("2026-11-22T08:00:00.000001Z", "2026-11-22T08:00:00.000001Z"),
        ("1999-12-31T23:59:59.999999999Z", "1999-12-31T23:59:59.999999Z"),
    ];
    let records: Vec<Record> = times
        .iter()
        .zip(1_u128..)
        .map(|((time, _), number)| {
            let mut draft = session(&format!("s{number}"), "u");
            draft.image.as_mut().expect("an image")["started_at"] =
                serde_json::json!({ "S": time });
            let mut record = draft.place(LABEL, number);
            // A stream cuts to the second; a record made by hand may not.
            record.json = record.json.replace("1795334400", "1795334400.25");
            record
        })
        .collect();
    for batch_size in [1, 4] {
        apply_all(&projector, &records, batch_size).await;
        let objects = parsed(&stores.objects().await);
        for ((_, expected), number) in times.iter().zip(1..) {
            let object = &objects[&format!("measurements/s{number}.json")];
            assert_eq!(object["started_at"], *expected);
            assert_eq!(object["session_changed_at"], "2026-11-22T08:00:00.25Z");
            let utc = "to_char(started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')";
            let row = stores
                .ask(&format!("SELECT {utc} FROM measurements WHERE session_id = 's{number}'"))
                .await;
            let fraction = expected[20..].trim_end_matches('Z');
            assert_eq!(row, format!("{} {}.{fraction:0<6}", &expected[..10], &expected[11..19]));
        }
    }
}
