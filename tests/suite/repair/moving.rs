//! The whole of it while everything moves: two tables that are written for as long as the test
//! runs, a live function, and a database that lacks two days which the streams have lost.

use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value as Json;
use testkit::oracle;
use testkit::runs::{assert_code, with_tables};
use testkit::services::{Stores, parsed};
use testkit::trim::TrimmedStreams;
use tokio::process::Command;
use tokio::task::JoinHandle;

use super::QUICK;
use crate::live::sample;
use crate::move_by_merge::world::{From, Side, World};

/// Written before the test begins.
const SESSIONS: usize = 60;
/// Batches of changes that the database lacks.
const STEPS_OF_TWO_DAYS: usize = 20;
/// Sessions that nobody writes again: removed while nobody read the streams.
const REMOVED: std::ops::Range<usize> = SESSIONS..SESSIONS + 10;

/// The tables, the side that is repaired, and everything that runs beside it.
struct Moving {
    world: Arc<World>,
    stores: Stores,
    streams: TrimmedStreams,
    side: Side,
    writer: JoinHandle<()>,
    sampler: JoinHandle<usize>,
    done: Arc<AtomicBool>,
}

impl Moving {
    async fn begin() -> Self {
        let (world, stores) = (World::new().await, Stores::fresh().await);
        world.write_sessions(0..REMOVED.end).await;
        // The function of two days ago, which ends after what it had got.
        Side::apply_so_far(&world, &stores).await;
        stores.forbid_going_back().await;

        world.write(SESSIONS, STEPS_OF_TWO_DAYS, &AtomicBool::new(false)).await;
        world.remove_sessions(REMOVED).await;
        let streams = world.trimmed_streams().await;
        let done = Arc::new(AtomicBool::new(false));
        let side = Side::attach(&world, &stores, From::Now, &done).await;
        let writer = world.write_in_bursts(SESSIONS, &done);
        let sampler = tokio::spawn(sample(stores.clone(), Arc::clone(&done)));
        Self { world, stores, streams, side, writer, sampler, done }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = with_tables(&self.stores, &self.world.tables, arguments);
        command.env("AWS_ENDPOINT_URL_DYNAMODB_STREAMS", &self.streams.url);
        command
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().await.expect("backfill runs")
    }

    /// Repairs to the end.
    async fn repair(&self) -> Json {
        let repaired = self.run(&[&["repair", "--scan", "--json"], &QUICK[..]].concat()).await;
        assert_code(&repaired, 0);
        serde_json::from_slice(&repaired.stdout).expect("JSON")
    }

    /// The proof while all moves; then everything stops, and both stores are what the tables are.
    async fn end(self) {
        let proof = ["verify", "--tables", "--json", "--wait", "1", "--rounds", "30"];
        assert_code(&self.run(&proof).await, 0);
        assert!(!self.writer.is_finished(), "the tables were written all the time");
        self.done.store(true, Ordering::Relaxed);
        self.writer.await.expect("it writes");
        self.side.drained().await;
        assert!(self.sampler.await.expect("no row goes back") > 3);
        let proof = ["verify", "--tables", "--wait", "0", "--rounds", "1"];
        let mut command = with_tables(&self.stores, &self.world.tables, &proof);
        assert_code(&command.output().await.expect("backfill runs"), 0);
        let rows = self.stores.rows().await;
        assert!(parsed(&self.stores.objects().await) == oracle::objects(&rows));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_two_days_ago_without_a_peer_becomes_equal_while_everything_moves() {
    let moving = Moving::begin().await;
    let proof = ["verify", "--tables", "--json", "--wait", "1", "--rounds", "2"];
    assert_code(&moving.run(&proof).await, 7);
    let json = moving.repair().await;
    assert!(json["written"].as_u64() > Some(0) && json["removed"].as_u64() > Some(0), "{json}");
    moving.end().await;
}

/// kill -9 at ten moments: the same command ends it.
#[tokio::test(flavor = "multi_thread")]
async fn a_repair_that_is_killed_at_ten_moments_and_run_again_ends_equal() {
    let moving = Moving::begin().await;
    for moment in 1..=10 {
        let repair = [&["repair", "--scan"], &QUICK[..]].concat();
        let mut child = moving.command(&repair).spawn().expect("backfill runs");
        tokio::time::sleep(Duration::from_millis(1_500 + moment * 400)).await;
        child.kill().await.expect("it is killed");
    }
    moving.repair().await;
    moving.end().await;
}
