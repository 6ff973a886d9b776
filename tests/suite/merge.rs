//! `backfill merge`: from another database and from objects, while both sides move, whatever ends a
//! run.

mod overlap;
mod without_s3;

use std::process::Output;
use std::time::Duration;

use projector::deadline::Deadline;
use serde_json::Value as Json;
use testkit::emulator::binary;
use testkit::generate::{Day, day};
use testkit::oracle;
use testkit::records::{LABEL, Record, removal, scan, session};
use testkit::runs::{assert_code, counted, output, signal, text, until, watched};
use testkit::services::{Stores, apply, apply_all, parsed, s3, service};
use tokio::process::Command;

/// The key of the lock that `merge` and `redrive` share, as SQL.
const LOCK: &str = "('x' || encode('repairs\\000'::bytea, 'hex'))::bit(64)::bigint";

fn merge(ours: &Stores, arguments: &[&str]) -> Command {
    let mut command = watched(ours, &["merge"]);
    command.args(arguments);
    command
}

async fn merged(ours: &Stores, arguments: &[&str]) -> Output {
    output(merge(ours, arguments)).await
}

/// A day's records, well-formed: sessions, then scans.
fn records(sessions: usize, seed: u64, mesh_bytes: usize) -> Vec<Record> {
    let (of_sessions, scans) = day(Day { seed, sessions, malformed: false, mesh_bytes });
    [of_sessions, scans].concat()
}

async fn of_records(records: &[Record]) -> Stores {
    let stores = Stores::fresh().await;
    apply_all(&stores.projector().await, records, 2_000).await;
    stores
}

/// Whole rows are no message.
async fn assert_same_rows(ours: &Stores, peer: &Stores) {
    let (ours_rows, theirs) = (ours.rows().await, peer.rows().await);
    let wrong: Vec<&String> = ours_rows
        .keys()
        .chain(theirs.keys())
        .filter(|id| ours_rows.get(*id) != theirs.get(*id))
        .collect();
    assert!(wrong.is_empty(), "{} of {} differ: {wrong:?}", wrong.len(), theirs.len());
}

async fn assert_objects_of_rows(stores: &Stores) {
    assert!(parsed(&stores.objects().await) == oracle::objects(&stores.rows().await));
}

/// The objects of a bucket as files, as `aws s3 sync` leaves them.
async fn folder_of(stores: &Stores) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (key, body) in stores.objects().await {
        let name = key.strip_prefix("measurements/").expect("the prefix");
        std::fs::write(folder.path().join(name), body).expect("a file");
    }
    folder
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_and_an_older_database_become_equal_to_the_peer_by_rows_and_by_objects() {
    let records = records(40, 3, 3_000);
    let peer = of_records(&records).await;
    let folder = folder_of(&peer).await;
    let bucket = format!("s3://{}/measurements/", peer.bucket);
    let sources = [
        ["--from", &peer.database_url],
        ["--from-archive", &bucket],
        ["--from-archive", folder.path().to_str().expect("a path")],
    ];
    for source in sources {
        for older in [0, records.len() / 3, records.len() * 2 / 3] {
            let ours = of_records(&records[..older]).await;
            ours.forbid_going_back().await;
            let done = merged(&ours, &source).await;
            assert_code(&done, 0);
            let log = text(&done.stderr);
            assert!(log.contains("current: "), "it says what it assumes: {log}");
            if source[0] == "--from" {
                assert_same_rows(&ours, &peer).await;
            } else {
                // A file has no metadata, in which a tombstone's change times are.
                assert_same_but_times_of_tombstones(&ours, &peer).await;
            }
            assert_objects_of_rows(&ours).await;
            assert!(counted(&done, "rows written") > 0);
            let places = ours.row_places().await;
            let again = merged(&ours, &source).await;
            assert_code(&again, 0);
            assert_eq!(counted(&again, "newer there"), 0);
            assert_eq!(counted(&again, "unchanged"), places.len() as u64);
            assert!(ours.row_places().await == places, "nothing is written or locked");
        }
    }
}

async fn assert_same_but_times_of_tombstones(ours: &Stores, peer: &Stores) {
    let clear = "UPDATE measurements SET session_changed_at = NULL, left_changed_at = NULL, \
        right_changed_at = NULL WHERE started_at IS NULL AND left_scanned_at IS NULL \
        AND right_scanned_at IS NULL";
    let (ours, peer) = (ours.restored().await, peer.restored().await);
    ours.change(clear).await;
    peer.change(clear).await;
    assert_same_rows(&ours, &peer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn newer_parts_here_stay_and_what_is_removed_stays_removed() {
    let (peer, ours) = (Stores::fresh().await, Stores::fresh().await);
    let left = |mm: &str, number| scan("s1", "left", mm).place(LABEL, number);
    let right = |mm: &str, number| scan("s1", "right", mm).place(LABEL, number);
    let gone = removal(&session("s1", "u")).place(LABEL, 9);
    let never = removal(&scan("s2", "left", "1")).place(LABEL, 5);
    let ours_has = [session("s1", "u").place(LABEL, 3), left("201.5", 7), right("101.5", 1)];
    let peer_has = [gone, left("200.5", 6), right("202.5", 8), never];
    apply(&ours.projector().await, &ours_has).await;
    apply(&peer.projector().await, &peer_has).await;
    let done = merged(&ours, &["--from", &peer.database_url]).await;
    assert_code(&done, 0);
    let all: Vec<Record> = ours_has.into_iter().chain(peer_has).collect();
    assert_eq!(ours.rows().await, oracle::rows(&all));
    assert_objects_of_rows(&ours).await;
    assert_eq!((counted(&done, "newer there"), counted(&done, "parts newer")), (2, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_row_goes_back_while_live_functions_write_both_sides() {
    let records = records(400, 5, 0);
    let half = records.len() / 2;
    let (peer, ours) = (of_records(&records[..half]).await, Stores::fresh().await);
    for stores in [&peer, &ours] {
        stores.forbid_going_back().await;
    }
    let write = async |stores: &Stores, records: Vec<&Record>| {
        let projector = stores.projector_without_archive(&stores.database_url, 1);
        for batch in records.chunks(10) {
            let batch: Vec<Record> = batch.iter().map(|record| (*record).clone()).collect();
            apply(&projector, &batch).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let merging = async {
        for _ in 0..4 {
            assert_code(&merged(&ours, &["--from", &peer.database_url]).await, 0);
        }
    };
    // The mapping of the new side follows from now on; the old one does as before, in another
    // order.
    let late = records[half..].iter();
    tokio::join!(write(&ours, late.clone().collect()), write(&peer, late.rev().collect()), merging);
    assert_code(&merged(&ours, &["--from", &peer.database_url]).await, 0);
    assert_eq!(ours.rows().await, oracle::rows(&records));
    assert_same_rows(&ours, &peer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_that_is_killed_at_any_moment_and_run_again_ends_equal() {
    let records = records(1_500, 7, 0);
    let (peer, ours) = (Stores::fresh().await, Stores::fresh().await);
    let without_archive = peer.projector_without_archive(&peer.database_url, 2);
    apply_all(&without_archive, &records, 5_000).await;
    ours.forbid_going_back().await;
    let total: u64 = peer.ask("SELECT count(*) FROM measurements").await.parse().expect("a number");
    let count = async || -> u64 {
        ours.ask("SELECT count(*) FROM measurements").await.parse().expect("a number")
    };
    let mut between = 0;
    for moment in 0..10_u32 {
        let before = count().await;
        let mut command = merge(&ours, &["--from", &peer.database_url, "--max-rate", "300"]);
        command.env_remove("ARCHIVE_BUCKET");
        let mut child = command.spawn().expect("backfill runs");
        // Every other one in the middle of a batch: before it sees that one is stored.
        for _ in 0..if moment % 2 == 0 { 300 } else { 10 } {
            if before == total || count().await > before {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_millis(u64::from(moment) * 20)).await;
        child.kill().await.expect("it is killed");
        let rows = count().await;
        between += u32::from(rows > 0 && rows < total);
    }
    assert!(between > 0, "no run was killed between two batches");
    let mut last = merge(&ours, &["--from", &peer.database_url]);
    last.env_remove("ARCHIVE_BUCKET");
    assert_code(&output(last).await, 0);
    assert_same_rows(&ours, &peer).await;
    assert_eq!(ours.rows().await, oracle::rows(&records));
}

#[tokio::test(flavor = "multi_thread")]
async fn since_merges_what_changed_after_it_or_at_an_unknown_time() {
    let (peer, bucket) = {
        let peer = Stores::fresh().await;
        let bucket = format!("s3://{}/measurements/", peer.bucket);
        (peer, bucket)
    };
    let at = |id: &str, created_at, number| {
        let mut draft = session(id, "u");
        draft.created_at = created_at;
        draft.place(LABEL, number)
    };
    // 2026-11-22T08:00:00Z
    let since = 1_795_334_400;
    let old = at("old", Some(since), 1);
    let new = [at("new", Some(since + 1), 2), at("unknown", None, 3)];
    apply(&peer.projector().await, &[&[old], &new[..]].concat()).await;
    for source in [["--from", &peer.database_url], ["--from-archive", &bucket]] {
        let ours = Stores::fresh().await;
        let arguments = [&source[..], &["--since", "2026-11-22T08:00:00Z"]].concat();
        let done = merged(&ours, &arguments).await;
        assert_code(&done, 0);
        assert_eq!(ours.rows().await, oracle::rows(&new));
        assert_eq!(counted(&done, "skipped"), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_counts_what_is_newer_and_writes_nothing() {
    let records = records(60, 9, 0);
    let (peer, ours) = (of_records(&records).await, of_records(&records[..100]).await);
    let (before, objects) = (ours.row_places().await, ours.objects().await);
    let bucket = format!("s3://{}/measurements/", peer.bucket);
    let mut counts = Vec::new();
    for source in [["--from", &peer.database_url], ["--from-archive", &bucket]] {
        let dry = merged(&ours, &[&source[..], &["--dry-run"]].concat()).await;
        assert_code(&dry, 0);
        assert!(text(&dry.stdout).starts_with("dry run, nothing was written"), "{dry:?}");
        counts.push((counted(&dry, "newer there"), counted(&dry, "parts newer")));
    }
    assert!(ours.row_places().await == before && ours.objects().await == objects);
    assert_eq!(counts[0], counts[1]);
    let done = merged(&ours, &["--from", &peer.database_url, "--json"]).await;
    assert_code(&done, 0);
    let json: Json = serde_json::from_slice(&done.stdout).expect("JSON");
    assert_eq!(json["ended"], "done");
    assert_eq!(
        (&json["sessions_newer"], &json["parts_newer"]),
        (&counts[0].0.into(), &counts[0].1.into())
    );
    assert_eq!(json["rows_written"], json["sessions_newer"]);
    assert_eq!(json["parts_applied"], json["parts_newer"]);
    let last = ours.ask("SELECT max(session_id) FROM measurements").await;
    assert_eq!(json["merged_through"], last);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_with_other_columns_is_refused_before_anything_is_read() {
    let (peer, ours) = (Stores::fresh().await, Stores::fresh().await);
    apply(&peer.projector().await, &[session("s1", "u").place(LABEL, 1)]).await;
    let refused = async |says: [&str; 2]| {
        let done = merged(&ours, &["--from", &peer.database_url]).await;
        assert_code(&done, 2);
        for says in says {
            assert!(text(&done.stderr).contains(says), "{says}: {done:?}");
        }
        assert!(ours.rows().await.is_empty());
    };
    peer.change("ALTER TABLE measurements ADD COLUMN left_width_mm numeric").await;
    refused(["the column left_width_mm", "use the backfill of its version"]).await;
    peer.change(
        "ALTER TABLE measurements DROP COLUMN left_width_mm, DROP COLUMN right_arch_length_mm",
    )
    .await;
    refused(["no column right_arch_length_mm", "run `backfill migrate` there"]).await;
    let itself = merged(&ours, &["--from", &ours.database_url]).await;
    assert_code(&itself, 2);
    let neither = merged(&ours, &["--from-archive", "/nowhere/at/all"]).await;
    assert_code(&neither, 2);
    assert!(text(&neither.stderr).contains("--from-archive names /nowhere/at/all"), "{neither:?}");
    let no_bucket = merged(&ours, &["--from-archive", "s3://no-such-bucket-here/"]).await;
    assert_code(&no_bucket, 2);
    assert!(text(&no_bucket.stderr).contains("--from-archive names the bucket"), "{no_bucket:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_repair_of_the_other_side_wrote_is_named_and_becomes_a_key_to_read() {
    let peer = Stores::fresh().await;
    let records = [session("s1", "u").place(LABEL, 1), session("s2", "u").place(LABEL, 2)];
    apply(&peer.projector().await, &records).await;
    let repair = "UPDATE measurements SET session_version = session_version || '+1795334400000000' \
        WHERE session_id = 's2'";
    assert_eq!(peer.change(repair).await, 1);
    // The object has it, too.
    let projector = peer.projector().await;
    let row = projector::read_model::read(&projector.database, "s2", Deadline::NONE).await;
    let (row, archive) = (row.expect("the row"), projector.archive.expect("an archive"));
    let key = archive.key("s2");
    let etag = archive.head(&key).await.expect("an answer").and_then(|seen| seen.etag);
    let etag = etag.expect("an ETag");
    let condition = projector::archive::Condition::Matches(&etag);
    archive.put(&key, &row, &condition).await.expect("it is written");
    let bucket = format!("s3://{}/measurements/", peer.bucket);
    let folder = tempfile::tempdir().expect("a folder");
    let keys = folder.path().join("keys.jsonl");
    let keys = keys.to_str().expect("a path");
    for source in [["--from", &peer.database_url], ["--from-archive", &bucket]] {
        let ours = Stores::fresh().await;
        let named = merged(&ours, &source).await;
        assert_code(&named, 1);
        let log = text(&named.stderr);
        assert!(log.contains("s2: a repair of the other side wrote its session part"), "{log}");
        assert!(ours.rows().await.contains_key("s1") && !ours.rows().await.contains_key("s2"));

        let kept = merged(&ours, &[&source[..], &["--repaired", keys]].concat()).await;
        assert_code(&kept, 0);
        assert!(text(&kept.stderr).contains("run `backfill repair --keys"), "{kept:?}");
        let line = std::fs::read_to_string(keys).expect("the keys");
        assert_eq!(line, "{\"part\":\"session\",\"session_id\":\"s2\"}\n");
    }
}

/// A repair that wrote nothing leaves no version behind, and a late record could bring back what it
/// saw removed.
#[tokio::test(flavor = "multi_thread")]
async fn a_merge_from_a_side_that_had_a_repair_or_cannot_say_counts_as_one() {
    let (peer, ours) = (Stores::fresh().await, Stores::fresh().await);
    apply(&peer.projector().await, &[session("s1", "u").place(LABEL, 1)]).await;
    let repairs = "SELECT count(*) || ' ' || count(*) FILTER (WHERE complete) FROM repairs";
    assert_code(&merged(&ours, &["--from", &peer.database_url]).await, 0);
    assert_eq!(ours.ask(repairs).await, "0 0");
    peer.change("INSERT INTO repairs (source) VALUES ('scan')").await;
    assert_code(&merged(&ours, &["--from", &peer.database_url, "--dry-run"]).await, 0);
    assert_eq!(ours.ask(repairs).await, "0 0");
    assert_code(&merged(&ours, &["--from", &peer.database_url]).await, 0);
    assert_eq!(ours.ask(repairs).await, "1 1");
    let bucket = format!("s3://{}/measurements/", peer.bucket);
    assert_code(&merged(&ours, &["--from-archive", &bucket]).await, 0);
    assert_eq!(ours.ask(repairs).await, "2 2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_postgresql_refuses_is_named_and_holds_up_no_other() {
    let records: Vec<Record> = (1..=60_u128)
        .flat_map(|number| {
            let id = format!("s{number:02}");
            let user = if number % 2 == 0 { "bad" } else { "good" };
            [
                session(&id, user).place(LABEL, number),
                scan(&id, "left", "240.5").place(LABEL, number),
            ]
        })
        .collect();
    let (peer, ours) = (of_records(&records).await, Stores::fresh().await);
    ours.change("ALTER TABLE measurements ADD CONSTRAINT no_bad CHECK (user_id <> 'bad')").await;
    // The second time there is nothing but what is refused.
    for newer in [60, 30] {
        let done = merged(&ours, &["--from", &peer.database_url]).await;
        assert_code(&done, 1);
        assert_eq!(counted(&done, "newer there"), newer);
        assert_eq!(counted(&done, "not merged"), 30);
        let log = text(&done.stderr);
        assert!(
            log.contains("not merged: s02: PostgreSQL refuses the row") && log.contains("no_bad"),
            "{log}"
        );
        assert!(log.contains("30 sessions or objects are not merged"), "{log}");
        assert_eq!(ours.ask("SELECT count(user_id) FROM measurements").await, "30");
        // The other part of the same session is merged.
        assert_eq!(ours.ask("SELECT count(left_scanned_at) FROM measurements").await, "60");
        assert_eq!(ours.rejected().await, 0, "there is no record to keep");
    }
    ours.change("ALTER TABLE measurements DROP CONSTRAINT no_bad").await;
    assert_code(&merged(&ours, &["--from", &peer.database_url]).await, 0);
    assert_same_rows(&ours, &peer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_object_of_ours_is_named_and_holds_up_no_other() {
    let records = records(30, 11, 0);
    let peer = of_records(&records).await;
    let objects = peer.objects().await;
    let (key, body) = objects.iter().find(|(_, body)| body.len() > 300).expect("an object");
    let body = String::from_utf8(body.clone()).expect("JSON");
    let foreign = [
        ("notes.txt", "hello".to_owned()),
        ("a/b.json", body.clone()),
        ("broken.json", body[..100].to_owned()),
        ("another.json", body.clone()),
        ("zero.json", String::new()),
        ("newer.json", body.replacen('{', "{\"left_width_mm\":1.5,", 1)),
    ];
    let client = s3(&service("AWS_ENDPOINT_URL")).await;
    for (name, body) in &foreign {
        let put = client.put_object().bucket(&peer.bucket).key(format!("measurements/{name}"));
        put.body(body.clone().into_bytes().into()).send().await.expect("an object");
    }
    let put = client.put_object().bucket(&peer.bucket).key("measurements/format2.json");
    let put = put.metadata("format", "2").metadata("session-version", "L/1");
    put.body(body.clone().into_bytes().into()).send().await.expect("an object");
    let bucket = format!("s3://{}/measurements/", peer.bucket);
    let ours = Stores::fresh().await;
    let done = merged(&ours, &["--from-archive", &bucket, "--json"]).await;
    assert_code(&done, 1);
    let json: Json = serde_json::from_slice(&done.stdout).expect("JSON");
    assert_eq!(json["not_merged"], foreign.len() + 1);
    assert_eq!(json["ended"], "failed");
    let log = text(&done.stderr);
    for (name, _) in &foreign {
        assert!(log.contains(&format!("not merged: measurements/{name}: ")), "{name}: {log}");
    }
    assert!(log.contains("measurements/format2.json: it has format 2"), "{log}");
    assert!(
        log.contains("newer.json: not an object of ours: it has the member \"left_width_mm\""),
        "{log}"
    );
    assert!(log.contains("another.json: it is the object of session"), "{log}");
    assert_eq!(json["sessions_read"], objects.len());
    assert_same_rows(&ours, &peer).await;

    let folder = tempfile::tempdir().expect("a folder");
    let name = key.strip_prefix("measurements/").expect("the prefix");
    std::fs::create_dir(folder.path().join("a")).expect("a folder in it");
    for (name, body) in foreign.iter().filter(|(name, _)| !name.contains('/')) {
        std::fs::write(folder.path().join(name), body).expect("a file");
    }
    std::fs::write(folder.path().join(name), &body).expect("a file");
    let ours = Stores::fresh().await;
    let done = merged(&ours, &["--from-archive", folder.path().to_str().expect("a path")]).await;
    assert_code(&done, 1);
    assert_eq!(counted(&done, "not merged"), foreign.len() as u64);
    assert_eq!(ours.rows().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_merge_or_redrive_runs_at_a_time_and_the_holder_is_named() {
    let (peer, ours) = (Stores::fresh().await, Stores::fresh().await);
    let mut holder = ours.connect().await;
    let pid = holder.ask(&format!("SELECT pg_backend_pid() FROM pg_advisory_lock({LOCK})")).await;
    let redrive = async || {
        let mut command = Command::new(binary("backfill"));
        command.arg("redrive").env("DATABASE_URL", &ours.database_url);
        output(command).await
    };
    let way_out = format!("end it with SELECT pg_terminate_backend({pid})");
    for refused in [merged(&ours, &["--from", &peer.database_url]).await, redrive().await] {
        assert_code(&refused, 1);
        let log = text(&refused.stderr);
        assert!(
            log.contains("another `backfill merge`, `redrive` or `repair` is at work"),
            "{log}"
        );
        assert!(log.contains(&way_out), "{log}");
        assert!(!log.contains("(`"), "nobody knows which command holds it: {log}");
    }
    // As a command of ours names its session.
    holder.run("SET application_name = 'backfill repair'").await;
    let log = text(&redrive().await.stderr);
    assert!(log.contains(&format!("(`backfill repair`, server process {pid} ")), "{log}");
    assert_code(&merged(&ours, &["--from", &peer.database_url, "--dry-run"]).await, 0);
    ours.ask(&format!("SELECT pg_terminate_backend({pid})")).await;
    assert_code(&merged(&ours, &["--from", &peer.database_url]).await, 0);
    assert_code(&redrive().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_that_holds_the_lock_is_named_as_the_holder() {
    let (peer, ours) =
        (of_records(&[session("s1", "u").place(LABEL, 1)]).await, Stores::fresh().await);
    // It waits for the peer's rows, with the lock of ours held.
    let mut user = peer.connect().await;
    user.run("BEGIN; LOCK TABLE measurements IN ACCESS EXCLUSIVE MODE").await;
    let merging = merge(&ours, &["--from", &peer.database_url]).spawn().expect("it starts");
    let named = "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = \
        'advisory' AND granted AND application_name = 'backfill merge' AND datname = current_database()";
    until("the merge holds its lock", async || ours.ask(named).await == "1").await;
    let refused = merged(&ours, &["--from", &peer.database_url]).await;
    assert_code(&refused, 1);
    let log = text(&refused.stderr);
    assert!(log.contains("(`backfill merge`, server process "), "{log}");
    user.run("COMMIT").await;
    assert_code(&merging.wait_with_output().await.expect("it ends"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_names_the_session_after_which_the_same_command_resumes() {
    let records = records(600, 13, 0);
    let (peer, ours) = (of_records(&records).await, Stores::fresh().await);
    let mut arguments = vec!["--from", &peer.database_url, "--max-rate", "100"];
    let child = merge(&ours, &arguments).spawn().expect("backfill runs");
    until("the first batch", async || ours.ask("SELECT count(*) FROM measurements").await != "0")
        .await;
    signal(&child, "INT");
    let stopped = child.wait_with_output().await.expect("backfill runs");
    assert_code(&stopped, 6);
    assert!(text(&stopped.stdout).starts_with("stopped: "), "{stopped:?}");
    let log = text(&stopped.stderr);
    let last = log.lines().last().expect("a line");
    arguments.truncate(2);
    let after = last
        .split_once("--after '")
        .and_then(|(_, rest)| rest.split_once('\''))
        .map(|(id, _)| id.to_owned());
    let after = after.expect("the session after which it resumes");
    let there = format!("SELECT count(*) FROM measurements WHERE session_id <= '{after}'");
    assert_eq!(ours.ask(&there).await, peer.ask(&there).await, "{after}: all up to it is merged");
    arguments.extend(["--after", &after]);
    let resumed = merged(&ours, &arguments).await;
    assert_code(&resumed, 0);
    let rest = format!("SELECT count(*) FROM measurements WHERE session_id > '{after}'");
    let read = text(&resumed.stdout);
    assert!(read.starts_with(&format!("done: {} sessions read", peer.ask(&rest).await)), "{read}");
    assert_same_rows(&ours, &peer).await;
}
