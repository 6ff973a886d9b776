//! Any history, duplicated, split and interleaved in any way over concurrent invocations, ends in
//! the rows that the oracle names; and on the way no row ever goes back.

use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::future::join_all;
use projector::apply::{Projector, wants_object};
use projector::config::ArchiveObjects;
use projector::deadline::Deadline;
use projector::error::Error;
use projector::{object, read_model};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::Value as Json;
use testkit::oracle;
use testkit::records::{Draft, LABEL, Record, removal, scan, session};
use testkit::services::{Stores, apply, service};

const LATER: &str = "2026-11-22T06:00:00.000";

/// One step in an item's life: which item of which session, what happens, on which stream.
#[derive(Clone, Debug)]
struct Step {
    session: usize,
    part: usize,
    removed: bool,
    later_stream: bool,
    value: u32,
}

/// A history, and how it is delivered: to which invocation each record goes, where it stands there,
/// and whether it comes twice.
#[derive(Clone, Debug)]
struct Delivery {
    steps: Vec<Step>,
    lanes: Vec<(usize, u32, bool)>,
    batch_size: usize,
}

fn delivery() -> impl Strategy<Value = Delivery> {
    let step =
        (0..3_usize, 0..3_usize, prop::bool::weighted(0.25), prop::bool::weighted(0.2), 1..999_u32);
    let step = step.prop_map(|(session, part, removed, later_stream, value)| Step {
        session,
        part,
        removed,
        later_stream,
        value,
    });
    let steps = prop::collection::vec(step, 1..24);
    (
        steps,
        prop::collection::vec((0..4_usize, any::<u32>(), prop::bool::weighted(0.3)), 24),
        1..6_usize,
    )
        .prop_map(|(steps, lanes, batch_size)| Delivery { steps, lanes, batch_size })
}

fn history(prefix: &str, steps: &[Step]) -> Vec<Record> {
    // Around a change of length of the sequence number.
    let first = 999_999_999_999_999_999_990_u128;
    let record = |(index, step): (usize, &Step)| {
        let session_id = format!("{prefix}-{}", step.session);
        let value = format!("{}.{}", step.value, index);
        let draft: Draft = match step.part {
            0 => session(&session_id, &value),
            1 => scan(&session_id, "left", &value),
            _ => scan(&session_id, "right", &value),
        };
        let draft = if step.removed { removal(&draft) } else { draft };
        draft.place(if step.later_stream { LATER } else { LABEL }, first + index as u128)
    };
    steps.iter().enumerate().map(record).collect()
}

async fn deliver(projectors: &[Projector], records: &[Record], delivery: &Delivery) {
    let mut lanes = vec![Vec::new(); projectors.len()];
    for (record, (lane, place, twice)) in records.iter().zip(&delivery.lanes) {
        lanes[*lane].push((*place, record));
        if *twice {
            lanes[(*lane + 1) % projectors.len()].push((place.wrapping_mul(31), record));
        }
    }
    let invocations = lanes.into_iter().zip(projectors).map(|(mut lane, projector)| async move {
        lane.sort_by_key(|(place, _)| *place);
        let records: Vec<Record> = lane.into_iter().map(|(_, record)| record.clone()).collect();
        for (number, batch) in records.chunks(delivery.batch_size).enumerate() {
            // Whichever is asked first, the rows are the same.
            projector.learned().expect_unchanged(number % 2 == 1);
            apply(projector, batch).await;
        }
    });
    join_all(invocations).await;
}

#[test]
fn any_history_split_over_concurrent_invocations_ends_in_the_same_rows_and_objects() {
    any_history_converges(ArchiveObjects::Every);
}

/// Sessions that have not had all parts have no object; those of which a part was removed have one.
#[test]
fn any_history_ends_in_the_same_rows_and_in_objects_of_those_that_had_all_parts() {
    any_history_converges(ArchiveObjects::Complete);
}

/// The object of a session; `None` if there is none.
async fn object_of(projector: &Projector, session_id: &str) -> Option<Vec<u8>> {
    let archive = projector.archive.as_ref().expect("an archive");
    let object = archive.get_current(&archive.key(session_id)).await.expect("S3 answers");
    object.map(|(body, _)| body.to_vec())
}

/// The object that a session is to have; `None` if it is to have none.
async fn wanted_object(
    projector: &Projector,
    session_id: &str,
    objects: ArchiveObjects,
) -> Result<Option<Vec<u8>>, Error> {
    let row = read_model::read(&projector.database, session_id, Deadline::NONE).await?;
    Ok(wants_object(&row.versions, objects).then(|| object::body(&row).expect("a body")))
}

fn any_history_converges(objects_mode: ArchiveObjects) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let stores = runtime.block_on(Stores::fresh());
    let projectors: Vec<Projector> = runtime.block_on(async {
        stores.forbid_going_back().await;
        let s3_url = service("AWS_ENDPOINT_URL");
        join_all((0..4).map(|_| stores.projector_writing(objects_mode, &s3_url))).await
    });
    let case = AtomicU32::new(0);
    let cases =
        std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(64);
    let mut runner = TestRunner::new(Config {
        cases,
        max_shrink_iters: 200,
        failure_persistence: None,
        ..Config::default()
    });
    runner
        .run(&delivery(), |delivery| {
            let prefix = format!("case-{}", case.fetch_add(1, Ordering::Relaxed));
            let records = history(&prefix, &delivery.steps);
            let expected = oracle::rows(&records);
            let (rows, objects, bytes) = runtime.block_on(async {
                deliver(&projectors, &records, &delivery).await;
                let mut rows = stores.rows().await;
                rows.retain(|session_id, _| session_id.starts_with(&format!("{prefix}-")));
                let (mut objects, mut bytes) = (Vec::new(), Vec::new());
                for session_id in rows.keys() {
                    let wanted = wanted_object(&projectors[0], session_id, objects_mode).await;
                    bytes.push(wanted.expect("a row"));
                    objects.push(object_of(&projectors[0], session_id).await);
                }
                (rows, objects, bytes)
            });
            prop_assert_eq!(&rows, &expected);
            // To the byte, whoever wrote it and whether the row came back with the statement or was
            // read.
            prop_assert_eq!(&objects, &bytes);
            for (row, object) in rows.values().zip(objects) {
                let Some(object) = object else { continue };
                let object = serde_json::from_slice::<Json>(&object).expect("JSON");
                prop_assert_eq!(object, oracle::object(row));
            }
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
}

/// Large batches over the same keys at once, each in its own order: sorted statements do not
/// deadlock, and nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn large_concurrent_batches_over_the_same_rows_do_not_deadlock() {
    let stores = Stores::fresh().await;
    stores.forbid_going_back().await;
    let day = testkit::generate::Day { seed: 9, sessions: 1500, malformed: false, mesh_bytes: 0 };
    let (sessions, scans) = testkit::generate::day(day);
    let records = [sessions, scans].concat();
    let lanes = (0..4).map(|lane| {
        let mut records = records.clone();
        fastrand::Rng::with_seed(lane).shuffle(&mut records);
        let projector = stores.projector_without_archive(&stores.database_url, 2);
        tokio::spawn(async move {
            for batch in records.chunks(2000) {
                apply(&projector, batch).await;
            }
        })
    });
    for lane in join_all(lanes).await {
        lane.expect("no failure");
    }
    assert_eq!(stores.rows().await, oracle::rows(&records));
    // A backend adds to the statistics when it ends at the latest.
    let backends = "SELECT count(*) FROM pg_stat_activity \
                    WHERE datname = current_database() AND application_name = 'projector'";
    while stores.ask(backends).await != "0" {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    assert_eq!(stores.ask(deadlocks).await, "0");
}
