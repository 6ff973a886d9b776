//! `backfill verify --objects`: objects that are missing or behind are named, and nothing is
//! written.

use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value as Json;
use testkit::emulator::binary;
use testkit::records::{LABEL, session};
use testkit::runs::{assert_code, backfill, text};
use testkit::s3_gate::{Fault, S3Gate};
use testkit::services::{Stores, apply_all, s3, service};
use tokio::process::Command;

/// Rows with their objects, of which some are gone and some are behind.
async fn stores(count: u128, gone: &[u128], behind: &[u128]) -> Stores {
    let stores = Stores::fresh().await;
    let id = |number: &u128| format!("s{number:04}");
    let records: Vec<_> =
        (1..=count).map(|number| session(&id(&number), "u").place(LABEL, number)).collect();
    let without_archive = stores.projector_without_archive(&stores.database_url, 1);
    apply_all(&without_archive, &records, 10_000).await;
    assert_code(&backfill(&stores, &["objects"]), 0);
    let client = s3(&service("AWS_ENDPOINT_URL")).await;
    for number in gone {
        let key = format!("measurements/{}.json", id(number));
        client.delete_object().bucket(&stores.bucket).key(key).send().await.expect("deleted");
    }
    let newer: Vec<_> = behind
        .iter()
        .map(|number| session(&id(number), "v").place(LABEL, 10_000 + number))
        .collect();
    apply_all(&without_archive, &newer, 10).await;
    stores
}

async fn verify(stores: &Stores, s3_url: &str, arguments: &[&str]) -> Output {
    Command::new(binary("backfill"))
        .args(["verify", "--objects", "--wait", "0"])
        .args(arguments)
        .env("DATABASE_URL", &stores.database_url)
        .env("ARCHIVE_BUCKET", &stores.bucket)
        .env("AWS_ENDPOINT_URL", service("AWS_ENDPOINT_URL"))
        .env("AWS_ENDPOINT_URL_S3", s3_url)
        .output()
        .await
        .expect("backfill runs")
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_that_are_missing_or_behind_are_named_and_nothing_is_written() {
    let stores = stores(1_020, &[1, 1_001], &[2, 1_002]).await;
    let before = stores.objects().await;
    let gate = S3Gate::open(&service("AWS_ENDPOINT_URL")).await;
    let output = verify(&stores, &gate.url, &["--rounds", "2", "--json"]).await;
    assert_code(&output, 7);
    let json: Json = serde_json::from_slice(&output.stdout).expect("JSON");
    let named: Vec<_> = json["first"].as_array().expect("a list").iter().collect();
    let named: Vec<(&str, &str)> = named
        .iter()
        .map(|named| {
            (named["kind"].as_str().expect("a kind"), named["session_id"].as_str().expect("an id"))
        })
        .collect();
    let expected =
        [("missing", "s0001"), ("older", "s0002"), ("missing", "s1001"), ("older", "s1002")];
    assert_eq!(named, expected);
    assert_eq!((&json["compared"], &json["complete"]), (&1_020.into(), &true.into()));
    assert_eq!(json["against"], format!("s3://{}/measurements/", stores.bucket));
    // One HEAD per object, and two looks at the four.
    assert_eq!((gate.count("PUT"), gate.count("HEAD")), (0, 1_028));
    assert!(stores.objects().await == before);

    let output = verify(&stores, &gate.url, &["--rounds", "1", "--after", "s1001"]).await;
    assert_code(&output, 7);
    assert!(text(&output.stdout).contains("older   s1002"), "{output:?}");
    assert_code(&backfill(&stores, &["objects"]), 0);
    assert_code(&verify(&stores, &gate.url, &[]).await, 0);
    let saved = "SELECT string_agg(concat_ws(' ', comparison, complete, compared, missing, older), \
                 '; ' ORDER BY id) FROM verifications";
    assert_eq!(stores.ask(saved).await, "objects t 1020 2 2; objects f 19 0 1; objects t 1020 0 0");
}

/// The first looks see no object, as if it were on its way; a later one does.
#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_comes_meanwhile_is_no_difference() {
    let stores = stores(20, &[], &[]).await;
    let gate = S3Gate::open(&service("AWS_ENDPOINT_URL")).await;
    let looks = Arc::new(AtomicUsize::new(0));
    gate.set_rule(move |seen| {
        let late = seen.path.ends_with("/s0007.json") && looks.fetch_add(1, Ordering::Relaxed) < 3;
        if late { Fault::RefuseWith(404, "NoSuchKey") } else { Fault::Pass }
    });
    assert_code(&verify(&stores, &gate.url, &["--rounds", "5"]).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_cannot_be_asked_for_is_named_and_holds_up_no_other() {
    let stores = stores(20, &[3], &[]).await;
    let gate = S3Gate::open(&service("AWS_ENDPOINT_URL")).await;
    gate.set_rule(|seen| match seen.path.rsplit('/').next() {
        Some("s0007.json") => Fault::Refuse(500),
        _ => Fault::Pass,
    });
    let output = verify(&stores, &gate.url, &["--rounds", "1"]).await;
    assert_code(&output, 1);
    let printed = text(&output.stdout);
    assert!(printed.starts_with("different: 19 sessions"), "{printed}");
    assert!(printed.contains("missing s0003: the row has no object"), "{printed}");
    let message = text(&output.stderr);
    assert!(message.contains("1 objects could not be compared"), "{message}");
    assert!(message.contains("--after 's0006'"), "{message}");
}
