//! A large batch whose rest is decoded while its beginning is in the database comes to what the
//! same batch comes to as a whole.

use std::sync::Arc;

use projector::apply::{BatchOutcome, Projector};
use projector::cause::Consequence;
use projector::deadline::Deadline;
use projector::error::Error;
use testkit::oracle;
use testkit::records::{LABEL, Record, session};
use testkit::services::Stores;

/// The batch is applied in two parts: 1,350 records and the rest.
const COUNT: u128 = 4_500;

fn records() -> Vec<Record> {
    let record = |place| session(&format!("s{place:05}"), "u").place(LABEL, place);
    (1..=COUNT).map(record).collect()
}

/// A projector without an archive, with a second processor or as if there was none.
fn projector(stores: &Stores, overlaps: bool) -> Projector {
    let mut projector = stores.projector_without_archive(&stores.database_url, 1);
    projector.overlaps = overlaps;
    projector
}

async fn apply(projector: &Projector, records: &[Record]) -> Result<BatchOutcome, Error> {
    let json = records.iter().map(|record| record.json.clone().into_bytes()).collect();
    Box::pin(projector.apply_overlapping(&Arc::new(json), Deadline::NONE)).await
}

/// Malformed records and refused ones in both parts, and a session with a change in each.
#[tokio::test]
async fn a_batch_in_two_parts_comes_to_the_same_rows_and_rejections() {
    let mut records = records();
    for index in [7, 1_349, 1_350, 4_000] {
        let json = &mut records[index].json;
        *json = json.replace("\"user_id\":{\"S\"", "\"user_id\":{\"N\"");
        records[index].malformed = true;
    }
    for index in [8, 4_499] {
        records[index].json = records[index].json.replace("iPhone16,2", "refused");
        records[index].malformed = true;
    }
    let newer = session("s00001", "newer").place(LABEL, COUNT + 1);
    records.push(newer);
    let (whole, parts) = (Stores::fresh().await, Stores::fresh().await);
    for stores in [&whole, &parts] {
        let refuse = "ALTER TABLE measurements ADD CHECK (device_model <> 'refused')";
        stores.connect().await.run(refuse).await;
    }
    let of_whole = apply(&projector(&whole, false), &records).await.expect("no fatal error");
    let of_parts = apply(&projector(&parts, true), &records).await.expect("no fatal error");
    assert_eq!(parts.rows().await, oracle::rows(&records));
    assert_eq!(whole.rows().await, parts.rows().await);
    assert_eq!((of_parts.failed.len(), parts.rejected().await), (0, 6));
    let rejected = |outcome: &BatchOutcome| {
        let mut of: Vec<_> =
            outcome.rejections.iter().map(|one| (one.record_index, one.reason.clone())).collect();
        of.sort_unstable();
        of
    };
    assert_eq!(rejected(&of_whole), rejected(&of_parts));
    assert_eq!((of_parts.oldest, &of_parts.table), (of_whole.oldest, &of_whole.table));
    let (of_whole, of_parts) = (of_whole.counts, of_parts.counts);
    assert_eq!((of_parts.records, of_parts.rejected), (of_whole.records, of_whole.rejected));
    // What a later part overtakes has been applied by then.
    assert_eq!((of_whole.superseded, of_parts.superseded), (1, 0));
    assert_eq!(of_parts.applied, of_whole.applied + 1);
}

#[tokio::test]
async fn a_database_that_is_away_is_tried_once_and_all_has_failed() {
    let stores = Stores::fresh().await;
    let mut projector = stores.projector_without_archive("postgres://u@127.0.0.1:1/none", 1);
    projector.overlaps = true;
    let outcome = apply(&projector, &records()).await.expect("no fatal error");
    let all: Vec<usize> = (0..usize::try_from(COUNT).expect("a few thousand")).collect();
    assert!(outcome.failed == all, "{} have failed", outcome.failed.len());
    assert_eq!((outcome.counts.records, outcome.counts.failed), (4_500, 4_500));
    assert!(outcome.gave_up);
}

/// The error comes out whichever part it is in, and never as a rejection.
#[tokio::test]
async fn what_is_wrong_with_the_set_up_is_an_error_in_either_part() {
    for index in [0, 4_499] {
        let stores = Stores::fresh().await;
        let mut records = records();
        records[index].json = records[index].json.replace("NEW_IMAGE", "KEYS_ONLY");
        let error = apply(&projector(&stores, true), &records).await.expect_err("the set-up");
        assert_eq!(error.consequence(), Consequence::Fatal, "{error}");
    }
    let stores = Stores::fresh().await;
    let refuse = "ALTER TABLE measurements ADD CHECK (user_id <> 'u')";
    stores.connect().await.run(refuse).await;
    let error = apply(&projector(&stores, true), &records()).await.expect_err("the table");
    assert!(error.to_string().contains("for the same reason"), "{error}");
    assert_eq!(stores.rejected().await, 0);
}

/// PostgreSQL refuses every change of the second part, and has taken the first part: the records
/// are at fault, as they are in a batch that is applied as a whole.
#[tokio::test]
async fn a_part_that_is_refused_after_another_was_taken_is_rejected() {
    let stores = Stores::fresh().await;
    let mut records = records();
    let (malformed, refused) = records[1_350..].split_at_mut(3_090);
    for record in malformed {
        record.json = record.json.replace("\"user_id\":{\"S\"", "\"user_id\":{\"N\"");
    }
    for record in refused {
        record.json = record.json.replace("\"u\"", "\"bad\"");
    }
    let refuse = "ALTER TABLE measurements ADD CHECK (user_id <> 'bad')";
    stores.connect().await.run(refuse).await;
    let outcome = apply(&projector(&stores, true), &records).await.expect("no fatal error");
    assert_eq!((outcome.counts.applied, outcome.counts.rejected), (1_350, 3_150));
    assert_eq!(stores.rows().await.len(), 1_350);
}

/// PostgreSQL refuses every change of the first part, for one reason, and takes those of the second
/// one: the whole batch shows that the table is not at fault.
#[tokio::test]
async fn a_first_part_that_is_refused_as_a_whole_is_judged_by_the_whole_batch() {
    let stores = Stores::fresh().await;
    let mut records = records();
    for record in &mut records[..1_350] {
        record.json = record.json.replace("\"u\"", "\"bad\"");
    }
    let refuse = "ALTER TABLE measurements ADD CHECK (user_id <> 'bad')";
    stores.connect().await.run(refuse).await;
    let outcome = apply(&projector(&stores, true), &records).await.expect("no fatal error");
    assert_eq!((outcome.counts.applied, outcome.counts.rejected), (3_150, 1_350));
    assert_eq!(outcome.failed.len(), 0);
    assert_eq!((stores.rows().await.len(), stores.rejected().await), (3_150, 1_350));
}
