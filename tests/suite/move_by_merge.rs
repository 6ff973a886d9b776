//! The move without a snapshot, on real parts: two tables that are written for as long as the test
//! runs, a live function on either database, `merge`, and both proofs.
//!
//! `MOVE_BY_MERGE_FACTOR=20` makes it longer: that many times the sessions and the proofs.

pub(crate) mod world;

use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value as Json;
use testkit::oracle;
use testkit::runs::{assert_code, backfill, with_tables};
use testkit::services::{Stores, parsed, service};
use tokio::process::Command;
use tokio::task::JoinHandle;

use crate::live::sample;
use world::{From, Side, World};

/// Written before the test begins.
const SESSIONS: usize = 100;
/// Batches of changes that a database of two days ago lacks.
const STEPS_OF_TWO_DAYS: usize = 20;

/// How much longer than in every run.
fn factor() -> usize {
    let factor = std::env::var("MOVE_BY_MERGE_FACTOR").ok();
    factor.map_or(1, |factor| factor.parse().expect("MOVE_BY_MERGE_FACTOR is a number"))
}

/// The tables, the old side, the new side, and everything that runs beside the move.
struct Move {
    start: Start,
    world: Arc<World>,
    old: Stores,
    new: Stores,
    sides: [Side; 2],
    writer: JoinHandle<()>,
    samplers: [JoinHandle<usize>; 2],
    done: Arc<AtomicBool>,
}

/// How the new database begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    Empty,
    /// From a dump that lacks what came since. The streams have lost that, too.
    OfTwoDaysAgo,
}

impl Move {
    /// Up to the moment at which the runbook merges: both mappings are attached, the tables are
    /// written, and the old side has read past the place at which the new one begins.
    async fn begin(start: Start) -> Self {
        let (world, old) = (World::new().await, Stores::fresh().await);
        let done = Arc::new(AtomicBool::new(false));
        let sessions = SESSIONS * factor();
        world.write_sessions(0..sessions).await;
        world.write(sessions, STEPS_OF_TWO_DAYS, &done).await;
        let old_side = Side::attach(&world, &old, From::Beginning, &done).await;
        old_side.has_read(world.tips().await).await;
        let new = match start {
            Start::Empty => Stores::fresh().await,
            Start::OfTwoDaysAgo => dumped(&old).await,
        };
        for stores in [&old, &new] {
            stores.forbid_going_back().await;
        }
        world.write(sessions, STEPS_OF_TWO_DAYS, &done).await;

        let writer = tokio::spawn({
            let (world, done) = (Arc::clone(&world), Arc::clone(&done));
            async move { world.write(sessions, usize::MAX, &done).await }
        });
        let samplers = [&old, &new].map(|stores| {
            let (stores, done) = (stores.clone(), Arc::clone(&done));
            tokio::spawn(sample(stores, done))
        });
        let new_side = Side::attach(&world, &new, From::Now, &done).await;
        // The old side is current: without this, a merge would miss what it has not read yet.
        old_side.has_read(world.tips().await).await;
        let sides = [old_side, new_side];
        Self { start, world, old, new, sides, writer, samplers, done }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = with_tables(&self.new, &self.world.tables, arguments);
        command.env("PEER_DATABASE_URL", &self.old.database_url);
        command
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().await.expect("backfill runs")
    }

    /// Merges to the end. The merge must have had something to do.
    async fn merge(&self, source: &[&str]) {
        let merged = self.run(&[&["merge", "--json"], source].concat()).await;
        assert_code(&merged, 0);
        let json: Json = serde_json::from_slice(&merged.stdout).expect("JSON");
        assert_eq!(json["not_merged"], 0, "{json}");
        assert!(json["rows_written"].as_u64() > Some(0), "{json}");
    }

    /// Sees that one comparison finds nothing, while everything is written.
    async fn prove(&self, comparison: &str) {
        let arguments = ["verify", comparison, "--json", "--wait", "1", "--rounds", "30"];
        let proof = self.run(&arguments).await;
        assert_code(&proof, 0);
        let json: Json = serde_json::from_slice(&proof.stdout).expect("JSON");
        assert_eq!(json["complete"], true, "{json}");
        assert!(json["compared"].as_u64() >= Some(100), "{json}");
    }

    /// Both proofs while all moves; then everything stops, and both sides are equal to the letter.
    async fn end(self) {
        for _ in 0..factor() {
            self.prove("--against").await;
            self.prove("--tables").await;
        }
        assert!(!self.writer.is_finished(), "the tables were written all the time");
        self.done.store(true, Ordering::Relaxed);
        self.writer.await.expect("it writes");
        for side in self.sides {
            side.drained().await;
        }
        for sampler in self.samplers {
            assert!(sampler.await.expect("no row goes back") > 3);
        }
        let (old, new) = (self.old.rows().await, self.new.rows().await);
        let wrong: Vec<_> =
            old.keys().chain(new.keys()).filter(|id| old.get(*id) != new.get(*id)).collect();
        assert!(wrong.is_empty(), "{} of {} differ: {wrong:?}", wrong.len(), old.len());
        if self.start == Start::OfTwoDaysAgo {
            // A row that came with the dump, and did not change since, has no object in a new
            // bucket.
            assert_code(&backfill(&self.new, &["objects"]), 0);
        }
        assert!(parsed(&self.new.objects().await) == oracle::objects(&new));
    }
}

/// Another database with the content of this one, from a dump.
async fn dumped(stores: &Stores) -> Stores {
    let copy = Stores::unmigrated().await;
    let dump = r#"pg_dump "$0" | psql --quiet --no-psqlrc -v ON_ERROR_STOP=1 "$1" >/dev/null"#;
    let path = format!("{}:{}", service("POSTGRES_BIN"), service("PATH"));
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", dump, &stores.database_url, &copy.database_url]);
    assert!(command.env("PATH", path).status().await.expect("pg_dump runs").success());
    copy
}

/// kill -9 at ten moments: the same command continues.
#[tokio::test(flavor = "multi_thread")]
async fn an_empty_database_becomes_equal_by_a_merge_that_is_killed_at_ten_moments() {
    let moving = Move::begin(Start::Empty).await;
    let count = async |stores: &Stores| -> usize {
        let count = stores.ask("SELECT count(*) FROM measurements").await;
        count.parse().expect("a number")
    };
    let mut in_the_middle = 0;
    for moment in 1..=10 {
        // Slow enough that it takes longer than the last moment.
        let rate = (SESSIONS * factor() / 4).to_string();
        let merge = ["merge", "--from", "--max-rate", &rate];
        let mut child = moving.command(&merge).spawn().expect("backfill runs");
        tokio::time::sleep(Duration::from_millis(moment * 150)).await;
        let running = child.try_wait().expect("its state").is_none();
        child.kill().await.expect("it is killed");
        let (old, new) = (count(&moving.old).await, count(&moving.new).await);
        eprintln!("killed: {running}, {new} of {old} rows");
        in_the_middle += usize::from(running && new < old);
    }
    assert!(in_the_middle > 5, "{in_the_middle} of ten runs were killed at work");
    moving.merge(&["--from"]).await;
    moving.end().await;
}

/// Before the merge, both proofs say what is missing: they can fail.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_two_days_ago_becomes_equal_although_the_streams_have_lost_the_gap() {
    let moving = Move::begin(Start::OfTwoDaysAgo).await;
    for comparison in ["--against", "--tables"] {
        let arguments = ["verify", comparison, "--json", "--wait", "1", "--rounds", "2"];
        let proof = moving.run(&arguments).await;
        assert_code(&proof, 7);
        let json: Json = serde_json::from_slice(&proof.stdout).expect("JSON");
        assert!(json["differences"]["missing"].as_u64() > Some(0), "{json}");
    }
    moving.merge(&["--from"]).await;
    moving.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_database_becomes_equal_by_the_objects_of_the_old_one() {
    let moving = Move::begin(Start::Empty).await;
    let bucket = format!("s3://{}/measurements/", moving.old.bucket);
    moving.merge(&["--from-archive", &bucket]).await;
    moving.end().await;
}
