//! `verify --against` and `merge --from` a hot standby, while its primary is written and the
//! standby cancels what stands in the way of a change.

use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value as Json;
use testkit::records::{LABEL, Record, scan, session};
use testkit::runs::{assert_code, text, until, watched};
use testkit::services::{Stores, apply, apply_all};
use testkit::sql::Client;
use testkit::standby::Replicated;
use tokio::task::JoinHandle;

/// What a standby replays is this much behind its primary.
const DELAY: &str = "recovery_min_apply_delay=300ms";
/// The standby waits for no statement that needs the old state.
const NO_PATIENCE: &str = "max_standby_streaming_delay=0";

fn id(number: u32) -> String {
    format!("s{number:05}")
}

/// Each session with two parts, the same in every database; the scan has a mesh.
fn records(sessions: u32) -> Vec<Record> {
    let of = |number: u32| {
        let mut left = scan(&id(number), "left", "240.5");
        left.image.as_mut().expect("an image")["mesh"] =
            serde_json::json!({"B": "AAECAwQFBgcICQ=="});
        let place = u128::from(number);
        [session(&id(number), "u").place(LABEL, place), left.place(LABEL, place)]
    };
    (1..=sessions).flat_map(of).collect()
}

/// Newer versions of some parts.
fn changes(number: u128, sessions: u32) -> Vec<Record> {
    (0..20)
        .map(|place| {
            let id = id(fastrand::u32(1..=sessions));
            let draft = match fastrand::u8(0..3) {
                0 => session(&id, &format!("user {number}")),
                1 => scan(&id, "left", &format!("24{}.5", place % 10)),
                _ => scan(&id, "right", &format!("24{}.5", place % 10)),
            };
            draft.place(LABEL, 1_000_000 + number * 100 + place)
        })
        .collect()
}

async fn apply_to(stores: &Stores, records: &[Record]) {
    let projector = stores.projector_without_archive(&stores.database_url, 1);
    apply_all(&projector, records, 5_000).await;
}

/// Runs a command beside the standby: its result as text, and as JSON.
async fn run(ours: &Stores, standby: &Stores, arguments: &[&str]) -> (Output, Json) {
    let mut command = watched(ours, arguments);
    command.arg("--json").env_remove("ARCHIVE_BUCKET");
    let output = command.env("PEER_DATABASE_URL", &standby.database_url).output().await;
    let output = output.expect("backfill runs");
    let json = serde_json::from_slice(&output.stdout);
    let json = json.unwrap_or_else(|_| panic!("no JSON: {output:?}"));
    (output, json)
}

/// Writers of both databases, which get the same changes. Ends once told, and both have all then.
fn writers(
    ours: &Stores,
    primary: &Stores,
    sessions: u32,
    done: &Arc<AtomicBool>,
) -> JoinHandle<()> {
    let [ours, primary] =
        [ours, primary].map(|of| of.projector_without_archive(&of.database_url, 1));
    let done = Arc::clone(done);
    tokio::spawn(async move {
        for number in 0.. {
            if done.load(Ordering::Relaxed) {
                return;
            }
            let records = changes(number, sessions);
            apply(&ours, &records).await;
            apply(&primary, &records).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
}

/// How many statements on this database the standby has canceled because of a conflict with a
/// change. It is asked in another database, where nothing changes: this question must not be
/// canceled, nor counted.
async fn canceled(standby: &Stores) -> u64 {
    let url = &standby.database_url;
    let (_, after_host) =
        url.split_once('@').and_then(|(_, at)| at.split_once('/')).expect("a URL");
    let (database, _) = after_host.split_once('?').expect("parameters");
    let elsewhere = url.replace(&format!("/{database}?"), "/template1?");
    let mut connection = Client::connect(&elsewhere).await;
    let of_database = format!(
        "SELECT confl_snapshot FROM pg_stat_database_conflicts WHERE datname = '{database}'"
    );
    connection.ask(&of_database).await.parse().expect("a number")
}

/// Changes one row of the primary again and again. PostgreSQL prunes the row's old versions several
/// times a second, and each time the standby, without patience, cancels every statement whose
/// snapshot could see them, whatever table it reads.
fn churn(primary: &Stores, done: &Arc<AtomicBool>) -> JoinHandle<()> {
    let (primary, done) = (primary.clone(), Arc::clone(done));
    tokio::spawn(async move {
        let mut connection = primary.connect().await;
        connection.run("CREATE TABLE churn AS SELECT 0 AS changes").await;
        while !done.load(Ordering::Relaxed) {
            connection.run("UPDATE churn SET changes = changes + 1").await;
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_on_their_way_to_a_standby_are_no_difference_and_a_fault_among_them_is_one() {
    let (replicated, ours) = (Replicated::start(&[DELAY]).await, Stores::fresh().await);
    let (primary, standby) = (&replicated.primary, &replicated.standby);
    let sessions = 2_000;
    for stores in [&ours, primary] {
        apply_to(stores, &records(sessions)).await;
    }
    replicated.until_caught_up().await;
    let done = Arc::new(AtomicBool::new(false));
    let writing = writers(&ours, primary, sessions, &done);
    let verify = ["verify", "--against", "--wait", "1", "--rounds", "6"];
    for mode in [&["--sample", "0"][..], &["--deep"]] {
        let (output, json) = run(&ours, standby, &[&verify[..], mode].concat()).await;
        assert_code(&output, 0);
        assert_eq!(json["result"], "equal", "{json}");
        let log = text(&output.stderr);
        assert!(log.contains(" differ, and may be on their way"), "nothing was late: {log}");
    }
    let fault = format!("DELETE FROM measurements WHERE session_id = '{}'", id(2_001));
    apply_to(primary, &[session(&id(2_001), "u").place(LABEL, 1)]).await;
    // It is on its way, too: a run that ends before it comes cannot find it.
    let has_it = format!("SELECT count(*) FROM measurements WHERE session_id = '{}'", id(2_001));
    until("the fault", async || standby.ask(&has_it).await == "1").await;
    let (output, json) = run(&ours, standby, &[&verify[..], &["--deep"]].concat()).await;
    assert_code(&output, 7);
    let first = json["first"].as_array().expect("a list");
    let named: Vec<_> = first.iter().map(|found| &found["session_id"]).collect();
    assert_eq!(named, [&id(2_001)], "{json}");
    assert_eq!(json["differences"]["missing"], 1, "{json}");
    assert_eq!(primary.change(&fault).await, 1);
    done.store(true, Ordering::Relaxed);
    writing.await.expect("it writes");
    replicated.until_caught_up().await;
    let (output, _) = run(&ours, standby, &["verify", "--against", "--deep", "--wait", "0"]).await;
    assert_code(&output, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_standby_cancels_to_apply_a_change_is_asked_again() {
    let (replicated, ours) = (Replicated::start(&[NO_PATIENCE]).await, Stores::fresh().await);
    let (primary, standby) = (&replicated.primary, &replicated.standby);
    let sessions = 6_000;
    let all = records(sessions);
    apply_to(primary, &all).await;
    replicated.until_caught_up().await;
    let done = Arc::new(AtomicBool::new(false));
    let churning = churn(primary, &done);
    let ended_while_canceled = async |arguments: &[&str]| {
        // Each command must be hit at least once. On a busy machine that takes a while.
        let start = Instant::now();
        while start.elapsed() < Duration::from_mins(2) {
            let before = canceled(standby).await;
            let (output, json) = run(&ours, standby, arguments).await;
            assert_code(&output, 0);
            if canceled(standby).await > before {
                return json;
            }
        }
        panic!("no statement of {arguments:?} was canceled");
    };
    let merged = ended_while_canceled(&["merge", "--from"]).await;
    assert_eq!(merged["not_merged"], 0, "{merged}");
    assert_eq!(ours.ask("SELECT count(*) FROM measurements").await, sessions.to_string());
    let quick = ["verify", "--against", "--deep", "--wait", "1"];
    let verified = ended_while_canceled(&quick).await;
    assert_eq!((&verified["result"], &verified["compared"]), (&"equal".into(), &sessions.into()));
    done.store(true, Ordering::Relaxed);
    churning.await.expect("it writes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_from_a_standby_ends_in_the_rows_of_its_primary() {
    let (replicated, ours) = (Replicated::start(&[DELAY]).await, Stores::fresh().await);
    let (primary, standby) = (&replicated.primary, &replicated.standby);
    ours.forbid_going_back().await;
    let sessions = 500;
    apply_to(primary, &records(sessions)).await;
    // A part that is newer here, and one that the standby does not have yet.
    let newer = scan(&id(1), "right", "251.5").place(LABEL, 5_000_000);
    apply_to(&ours, std::slice::from_ref(&newer)).await;
    replicated.until_caught_up().await;
    let done = Arc::new(AtomicBool::new(false));
    let (write_primary, stop) = (primary.clone(), Arc::clone(&done));
    let writing = tokio::spawn(async move {
        let projector = write_primary.projector_without_archive(&write_primary.database_url, 1);
        for number in 0.. {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            apply(&projector, &changes(number, sessions)).await;
        }
    });
    let (output, json) = run(&ours, standby, &["merge", "--from"]).await;
    assert_code(&output, 0);
    assert_eq!(json["sessions_newer"], sessions, "{json}");
    let log = text(&output.stderr);
    assert!(log.contains("is a replica, and the last transaction in it is "), "{log}");
    done.store(true, Ordering::Relaxed);
    writing.await.expect("it writes");
    replicated.until_caught_up().await;
    assert_code(&run(&ours, standby, &["merge", "--from"]).await.0, 0);
    apply_to(primary, &[newer]).await;
    assert!(ours.rows().await == primary.rows().await);
}
