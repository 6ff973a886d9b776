//! Rows first, objects after: each object is written once, and whatever ends a run, the next one
//! writes what is missing.

use std::sync::Arc;

use projector::config::ArchiveObjects::Every;
use projector::deadline::Deadline;
use projector::pending_objects::{count, next, remove};
use serde_json::Value as Json;
use tempfile::TempDir;
use testkit::oracle;
use testkit::records::{LABEL, Record, scan, session};
use testkit::runs::{
    assert_code, counted, output, signal, stream, text, until, watched, well_formed,
};
use testkit::s3_gate::{Fault, S3Gate};
use testkit::services::{Stores, apply, parsed, service};
use testkit::stream_server::StreamServer;
use tokio::process::Command;
use tokio::sync::Notify;

/// A database, a bucket behind a gate, and a file with records of more sessions than a few.
struct Run {
    stores: Stores,
    gate: S3Gate,
    folder: TempDir,
    sessions: usize,
}

impl Run {
    /// The parts of each session come apart.
    async fn of(sessions: usize) -> Self {
        let (stores, folder) = (Stores::fresh().await, tempfile::tempdir().expect("a folder"));
        let gate = S3Gate::open(&service("AWS_ENDPOINT_URL")).await;
        let ids = || (0..sessions).map(|number| format!("s{number:04}"));
        let mut records: Vec<Record> = Vec::new();
        for id in ids() {
            records.push(session(&id, "u").place(LABEL, 1));
        }
        for (number, side) in [(2, "left"), (3, "right")] {
            records.extend(ids().map(|id| scan(&id, side, "245.3").place(LABEL, number)));
        }
        let lines: String = records.iter().map(|record| record.json.clone() + "\n").collect();
        std::fs::write(folder.path().join("day.jsonl"), lines).expect("a file");
        Self { stores, gate, folder, sessions }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = watched(&self.stores, arguments);
        command.env("AWS_ENDPOINT_URL_S3", &self.gate.url).current_dir(self.folder.path());
        command
    }

    /// Small batches, so that the parts of a session are applied apart.
    fn file(&self) -> Command {
        self.command(&["file", "day.jsonl", "--batch-size", "50", "--json"])
    }

    async fn pending(&self) -> usize {
        let pending = self.stores.ask("SELECT count(*) FROM pending_objects").await;
        pending.parse().expect("a number")
    }

    async fn assert_done(&self) {
        assert_eq!(self.pending().await, 0);
        assert!(parsed(&self.stores.objects().await) == oracle::objects(&self.stores.rows().await));
    }

    /// The rows are stored, and the objects are not: the process is killed with all of its PUTs
    /// under way.
    async fn kill_before_the_objects(&self, mut command: Command) {
        self.gate.set_rule(|seen| match seen.method {
            "PUT" => Fault::Hold(Arc::new(Notify::new())),
            _ => Fault::Pass,
        });
        let mut child = command.spawn().expect("backfill runs");
        self.gate.until("PUT", 1).await;
        child.kill().await.expect("it is killed");
        self.gate.set_rule(|_| Fault::Pass);
        assert_eq!(self.pending().await, self.sessions);
        assert_eq!(self.stores.objects().await.len(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_object_is_written_once_and_a_second_run_looks_at_each_once() {
    let run = Run::of(120).await;
    let first = output(run.file()).await;
    assert_code(&first, 0);
    let json: Json = serde_json::from_slice(&first.stdout).expect("JSON");
    assert_eq!(
        (&json["counts"]["objects_written"], &json["objects_pending"]),
        (&120.into(), &0.into())
    );
    assert_eq!((run.gate.count("PUT"), run.gate.count("HEAD")), (120, 0));
    run.assert_done().await;

    let second = output(run.file()).await;
    assert_code(&second, 0);
    let json: Json = serde_json::from_slice(&second.stdout).expect("JSON");
    assert_eq!(json["counts"]["objects_current"], 120);
    assert_eq!((run.gate.count("PUT"), run.gate.count("HEAD")), (120, 120));
    run.assert_done().await;
}

/// An empty database beside a full bucket: soon nobody guesses any more.
#[tokio::test(flavor = "multi_thread")]
async fn wrong_guesses_end_soon() {
    let run = Run::of(150).await;
    assert_code(&output(run.file()).await, 0);
    let puts = run.gate.count("PUT");
    let anew = Run {
        stores: Stores { bucket: run.stores.bucket.clone(), ..Stores::fresh().await },
        ..run
    };
    let again = output(anew.file()).await;
    assert_code(&again, 0);
    let wrong = anew.gate.count("PUT") - puts;
    assert!((17..=64).contains(&wrong), "{wrong}");
    assert_eq!(anew.gate.count("HEAD"), 150);
    anew.assert_done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_comes_after_kill_9_writes_the_objects() {
    for next in [&["file", "day.jsonl"][..], &["objects", "--pending"], &["objects"]] {
        let run = Run::of(20).await;
        run.kill_before_the_objects(run.file()).await;
        let status = output(run.command(&["status"])).await;
        assert!(text(&status.stdout).contains("objects pending: 20;"), "{status:?}");
        assert_code(&output(run.command(next)).await, 0);
        run.assert_done().await;
    }
}

/// Its checkpoints are ahead of the objects, but not of their keys.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_was_killed_before_its_objects_writes_them_in_the_next_run() {
    let (run, server) = (Run::of(0).await, StreamServer::start().await);
    let mut records = well_formed(20, 16);
    records.retain(|record| record.label == LABEL);
    server.fill(&records, 2, 2);
    let sessions = oracle::rows(&records).len();
    let run = Run { sessions, ..run };
    let command = || {
        let mut command = stream(&run.stores, &server, &["--json"]);
        command.env("AWS_ENDPOINT_URL_S3", &run.gate.url);
        command
    };
    run.kill_before_the_objects(command()).await;
    assert_ne!(run.stores.ask("SELECT count(*) FROM backfill_checkpoints").await, "0");
    let ended = output(command()).await;
    assert_code(&ended, 0);
    let json: Json = serde_json::from_slice(&ended.stdout).expect("JSON");
    assert_eq!(json["counts"]["objects_written"], sessions);
    run.assert_done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_while_objects_are_written_leaves_them_pending_and_says_so() {
    let run = Run::of(20).await;
    run.gate.set_rule(|seen| match seen.method {
        "PUT" => Fault::Hold(Arc::new(Notify::new())),
        _ => Fault::Pass,
    });
    let child = run.file().spawn().expect("backfill runs");
    run.gate.until("PUT", 1).await;
    signal(&child, "INT");
    let ended = child.wait_with_output().await.expect("it ends");
    assert_code(&ended, 6);
    assert!(text(&ended.stderr).contains("all rows are stored"), "{ended:?}");
    let json: Json = serde_json::from_slice(&ended.stdout).expect("JSON");
    assert_eq!((&json["ended"], &json["objects_pending"]), (&"stopped".into(), &20.into()));
    run.gate.set_rule(|_| Fault::Pass);
    assert_code(&output(run.file()).await, 0);
    run.assert_done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_cannot_be_written_is_named_and_an_s3_that_is_away_costs_no_row() {
    let run = Run::of(20).await;
    run.gate.set_rule(|seen| match (seen.method, seen.path.rsplit('/').next()) {
        ("PUT", Some("s0003.json")) => Fault::Refuse(403),
        _ => Fault::Pass,
    });
    let failed = output(run.file()).await;
    assert_code(&failed, 1);
    let message = text(&failed.stderr);
    let named = "1 object could not be written, the log above says why: s0003. All others are";
    assert!(
        message.contains(named) && message.contains("`backfill objects --pending`"),
        "{message}"
    );
    assert_eq!((run.pending().await, run.stores.objects().await.len()), (1, 19));

    run.gate.set_rule(|_| Fault::RefuseWith(404, "NoSuchBucket"));
    let away = output(run.command(&["objects", "--pending"])).await;
    assert_code(&away, 2);
    assert!(text(&away.stderr).contains("`backfill objects --pending`"), "{away:?}");
    assert_eq!(run.pending().await, 1);

    run.gate.set_rule(|_| Fault::Pass);
    let written = output(run.command(&["objects", "--pending"])).await;
    assert_code(&written, 0);
    assert_eq!(counted(&written, "objects written"), 1);
    run.assert_done().await;
}

/// Another run touches the key after it was read, with a newer row than the one that was compared.
#[tokio::test]
async fn a_key_that_was_touched_since_it_was_read_stays() {
    let stores = Stores::fresh().await;
    let mut projector = stores.projector_writing(Every, &service("AWS_ENDPOINT_URL")).await;
    projector.defers_objects = true;
    apply(&projector, &[session("s1", "old").place(LABEL, 1)]).await;
    let read = next(&projector.database, "", 10).await.expect("a page");
    assert!(read.len() == 1 && read[0].is_new, "{read:?}");
    apply(&projector, &[session("s1", "new").place(LABEL, 2)]).await;
    remove(&projector.database, &read).await.expect("PostgreSQL answers");
    let again = next(&projector.database, "", 10).await.expect("a page");
    assert!(again.len() == 1 && again[0].is_new, "still without an object: {again:?}");
    remove(&projector.database, &again).await.expect("PostgreSQL answers");
    assert_eq!(count(&projector.database).await.expect("a count"), 0);
    // A replay keeps what is unchanged as well, whichever is asked first, and knows its row.
    for expects_unchanged in [false, true] {
        projector.learned().expect_unchanged(expects_unchanged);
        apply(&projector, &[session("s1", "new").place(LABEL, 2)]).await;
        let kept = next(&projector.database, "", 10).await.expect("a page");
        assert!(kept.len() == 1 && !kept[0].is_new, "{kept:?}");
        remove(&projector.database, &kept).await.expect("PostgreSQL answers");
    }
}

/// If the key came first, who writes pending objects could read it, find the row of before and
/// remove it: then nobody would know of the row that is written after that.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_seen_together_with_its_row() {
    let stores = Stores::fresh().await;
    let mut projector = stores.projector_writing(Every, &service("AWS_ENDPOINT_URL")).await;
    projector.defers_objects = true;
    apply(&projector, &[session("s1", "old").place(LABEL, 1)]).await;
    let pages = next(&projector.database, "", 10).await.expect("a page");
    remove(&projector.database, &pages).await.expect("PostgreSQL answers");
    // The row is locked, so the statement waits.
    let mut other = stores.connect().await;
    other.run("BEGIN").await;
    other.run("UPDATE measurements SET os_version = 'x' WHERE session_id = 's1'").await;
    let newer = [session("s1", "new").place(LABEL, 2)];
    let applying = apply(&projector, &newer);
    let looking = async {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                       AND datname = current_database()";
        until("the wait", async || stores.ask(waiting).await == "1").await;
        assert_eq!(stores.ask("SELECT count(*) FROM pending_objects").await, "0");
        other.run("ROLLBACK").await;
    };
    futures_util::future::join(applying, looking).await;
    assert_eq!(count(&projector.database).await.expect("a count"), 1);
    let row = projector::read_model::read(&projector.database, "s1", Deadline::NONE).await;
    assert!(row.expect("a row").versions.values().flatten().any(|version| version.ends_with('2')));
}
