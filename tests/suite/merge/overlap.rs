//! `backfill merge` applies two batches at once: a run that ends meanwhile resumes before the older
//! one, although the later one is stored.

use testkit::records::{LABEL, Record, session};
use testkit::runs::{assert_code, signal, text, until};

use super::{assert_same_rows, merge, merged, of_records};

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_ends_while_an_older_batch_waits_resumes_before_it() {
    let of = |id: &str, user: &str, place| session(id, user).place(LABEL, place);
    let newer: Vec<Record> = ["m1", "m2", "m3"].into_iter().map(|id| of(id, "new", 2)).collect();
    let (peer, ours) = (of_records(&newer).await, of_records(&[of("m1", "old", 1)]).await);
    let mut owner = ours.connect().await;
    owner.run("BEGIN; SELECT 1 FROM measurements WHERE session_id = 'm1' FOR UPDATE").await;
    // A session per batch.
    let arguments = ["--from", &peer.database_url, "--max-rate", "1"];
    let run = merge(&ours, &arguments).spawn().expect("backfill runs");
    until("the later batch", async || ours.rows().await.contains_key("m2")).await;
    signal(&run, "TERM");
    let stopped = run.wait_with_output().await.expect("it ends");
    assert_code(&stopped, 6);
    let log = text(&stopped.stderr);
    assert!(log.contains("batches were not finished within"), "{log}");
    assert!(log.contains("stopped by a signal: run the same command again"), "{log}");
    assert!(!log.contains("--after"), "m1 is not stored: {log}");
    owner.close().await;
    assert_code(&merged(&ours, &arguments).await, 0);
    assert_same_rows(&ours, &peer).await;
}
