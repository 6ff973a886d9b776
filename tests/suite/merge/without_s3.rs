//! `backfill merge` while S3 fails: what is not written is named, and the next run writes it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use testkit::runs::{assert_code, counted, output, text};
use testkit::s3_gate::{Fault, S3Gate};
use testkit::services::{Stores, service};
use tokio::process::Command;
use tokio::sync::Notify;

use super::{assert_objects_of_rows, assert_same_rows, merge, merged, of_records, records};

fn merge_at(ours: &Stores, peer: &Stores, gate: &S3Gate) -> Command {
    let mut command = merge(ours, &["--from", &peer.database_url]);
    command.env("AWS_ENDPOINT_URL_S3", &gate.url);
    command
}

/// The rows are as new as there by now; the objects are still pending.
async fn assert_completed_by_a_rerun(ours: &Stores, peer: &Stores) {
    assert!(ours.objects().await.len() < ours.rows().await.len(), "nothing is left to write");
    assert_code(&merged(ours, &["--from", &peer.database_url]).await, 0);
    assert_same_rows(ours, peer).await;
    assert_objects_of_rows(ours).await;
}

/// S3 goes away after some objects and comes back; one object it never takes.
#[tokio::test(flavor = "multi_thread")]
async fn what_s3_does_not_take_is_named_and_an_outage_is_waited_out() {
    let (peer, ours) = (of_records(&records(60, 17, 0)).await, Stores::fresh().await);
    let gate = S3Gate::open(&service("AWS_ENDPOINT_URL")).await;
    let refused = peer.ask("SELECT max(session_id) FROM measurements").await;
    let (key, puts) = (format!("/{refused}.json"), AtomicUsize::new(0));
    gate.set_rule(move |seen| {
        let of_put = || puts.fetch_add(1, Ordering::Relaxed);
        match seen.method {
            "PUT" if seen.path.ends_with(&key) => Fault::Refuse(500),
            "PUT" if (20..60).contains(&of_put()) => Fault::Refuse(503),
            _ => Fault::Pass,
        }
    });
    let ended = output(merge_at(&ours, &peer, &gate)).await;
    assert_code(&ended, 1);
    assert_eq!(counted(&ended, "objects pending"), 1);
    let log = text(&ended.stderr);
    assert!(
        log.contains(&format!("1 object could not be written, the log above says why: {refused}")),
        "{log}"
    );
    assert!(log.contains("run `backfill objects --pending`"), "{log}");
    let (rows, objects) = (ours.rows().await, ours.objects().await);
    assert_eq!(objects.len(), rows.len() - 1, "all others have their objects");
    assert_completed_by_a_rerun(&ours, &peer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_that_is_killed_between_rows_and_objects_is_completed_by_a_rerun() {
    let (peer, ours) = (of_records(&records(60, 19, 0)).await, Stores::fresh().await);
    let gate = S3Gate::open(&service("AWS_ENDPOINT_URL")).await;
    let held = Arc::new(Notify::new());
    gate.set_rule(move |seen| match seen.method {
        "PUT" => Fault::Hold(Arc::clone(&held)),
        _ => Fault::Pass,
    });
    let mut child = merge_at(&ours, &peer, &gate).spawn().expect("backfill runs");
    gate.until("PUT", 10).await;
    child.kill().await.expect("it is killed");
    assert_completed_by_a_rerun(&ours, &peer).await;
}
