//! `ARCHIVE_OBJECTS`: how many requests each mode costs, and what a change of mode leaves.

use std::process::Output;
use std::slice::from_ref;

use projector::apply::Projector;
use projector::config::ArchiveObjects::{Complete, Every};
use serde_json::Value as Json;
use testkit::oracle;
use testkit::records::{Draft, LABEL, removal, scan, session};
use testkit::runs::{assert_code, counted, output, text, watched};
use testkit::s3_gate::S3Gate;
use testkit::services::{Stores, apply, parsed, service};

/// The three parts of a session.
fn parts(session_id: &str) -> [Draft; 3] {
    let (left, right) = (scan(session_id, "left", "245.3"), scan(session_id, "right", "245.9"));
    [session(session_id, "u"), left, right]
}

/// Applies drafts one by one, and returns the PUTs and HEADs that each cost.
async fn costs(projector: &Projector, gate: &S3Gate, drafts: &[Draft]) -> Vec<(usize, usize)> {
    let mut costs = Vec::new();
    for draft in drafts {
        let before = (gate.count("PUT"), gate.count("HEAD"));
        let number = u128::try_from(before.0 + before.1 + 1).expect("a number");
        apply(projector, &[draft.place(LABEL, number)]).await;
        costs.push((gate.count("PUT") - before.0, gate.count("HEAD") - before.1));
    }
    costs
}

#[tokio::test]
async fn parts_that_come_apart_cost_one_put_if_only_whole_measurements_are_wanted() {
    let stores = Stores::fresh().await;
    let gate = S3Gate::open(&service("AWS_ENDPOINT_URL")).await;
    let every = stores.projector_writing(Every, &gate.url).await;
    assert_eq!(costs(&every, &gate, &parts("s1")).await, [(1, 0), (1, 1), (1, 1)]);
    let complete = stores.projector_writing(Complete, &gate.url).await;
    assert_eq!(costs(&complete, &gate, &parts("s2")).await, [(0, 1), (0, 1), (1, 0)]);
    // All at once.
    let all = parts("s3").map(|draft| draft.place(LABEL, 1));
    let (puts, heads) = (gate.count("PUT"), gate.count("HEAD"));
    assert_eq!(apply(&complete, &all).await.counts.objects_written, 1);
    assert_eq!((gate.count("PUT"), gate.count("HEAD")), (puts + 1, heads));
    // A redelivery looks, and writes nothing.
    assert_eq!(apply(&complete, &all).await.counts.objects_current, 1);
    assert_eq!((gate.count("PUT"), gate.count("HEAD")), (puts + 1, heads + 1));
    assert!(parsed(&stores.objects().await) == oracle::objects(&stores.rows().await));
}

/// The object was made by another database, or in the other mode.
#[tokio::test]
async fn an_object_that_exists_follows_its_row_whatever_the_row_lacks() {
    let stores = Stores::fresh().await;
    let gate = S3Gate::open(&service("AWS_ENDPOINT_URL")).await;
    let [whole, left, right] = parts("s1");
    let every = stores.projector_writing(Every, &gate.url).await;
    let complete = stores.projector_writing(Complete, &gate.url).await;
    costs(&every, &gate, from_ref(&whole)).await;
    assert_eq!(costs(&complete, &gate, from_ref(&left)).await, [(1, 1)]);
    // That a new part completes a row without an object is wrong here: the PUT is refused.
    assert_eq!(costs(&complete, &gate, from_ref(&right)).await, [(2, 1)]);
    let removals = [&left, &whole, &right].map(removal);
    costs(&complete, &gate, &removals).await;
    let objects = parsed(&stores.objects().await);
    assert_eq!(objects["measurements/s1.json"]["deleted"], true);
    assert!(objects == oracle::objects(&stores.rows().await));
    // What never had all parts has no object, removed or not.
    let of_part = [session("s2", "u"), removal(&session("s2", "u"))];
    assert_eq!(costs(&complete, &gate, &of_part).await, [(0, 1), (0, 1)]);
    assert_eq!(stores.objects().await.len(), 1);
}

async fn run(stores: &Stores, objects: &str, arguments: &[&str]) -> Output {
    let mut command = watched(stores, arguments);
    command.env("ARCHIVE_OBJECTS", objects);
    output(command).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_mode_heals_itself() {
    let stores = Stores::fresh().await;
    let complete = stores.projector_writing(Complete, &service("AWS_ENDPOINT_URL")).await;
    let whole = parts("s1").map(|draft| draft.place(LABEL, 1));
    apply(&complete, &whole).await;
    apply(&complete, &parts("s2")[..2].iter().map(|part| part.place(LABEL, 2)).collect::<Vec<_>>())
        .await;
    let verify = ["verify", "--objects", "--rounds", "1", "--wait", "0", "--json"];
    assert_code(&run(&stores, "complete", &verify).await, 0);
    let objects = run(&stores, "complete", &["objects"]).await;
    assert_code(&objects, 0);
    let count = |name| counted(&objects, name);
    assert_eq!((count("objects current"), count("objects not yet")), (1, 1), "{objects:?}");

    let missing = run(&stores, "every", &verify).await;
    assert_code(&missing, 7);
    let json: Json = serde_json::from_slice(&missing.stdout).expect("JSON");
    assert_eq!(json["first"][0]["session_id"], "s2", "{}", text(&missing.stdout));
    let objects = run(&stores, "every", &["objects"]).await;
    assert_code(&objects, 0);
    assert_eq!(counted(&objects, "objects written"), 1);
    assert!(parsed(&stores.objects().await) == oracle::objects(&stores.rows().await));
    // Back again, nothing is missing, and what exists follows.
    assert_code(&run(&stores, "complete", &verify).await, 0);
    apply(&complete, &[removal(&parts("s2")[1]).place(LABEL, 3)]).await;
    assert!(parsed(&stores.objects().await) == oracle::objects(&stores.rows().await));
}
