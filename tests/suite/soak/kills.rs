//! kill -9 at random moments: of the function while it has an event, and of each command of
//! `backfill` that writes. What was acknowledged before a kill is in both stores after it, and the
//! same command, run again to its end, leaves what it leaves without a kill.
//!
//! `repair` has its own test, with real tables and streams (`repair/moving.rs`): it takes seconds
//! to its first image, so it is killed at fewer moments.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fastrand::Rng;
use projector::apply::Projector;
use projector::deadline::Deadline;
use serde_json::{Value as Json, json};
use testkit::emulator::{binary, event};
use testkit::records::Record;
use testkit::runs::{assert_code, well_formed};
use testkit::runtime_api::Function;
use testkit::services::Stores;
use testkit::stream_server::{Fault, StreamServer};
use tokio::process::{Child, Command};

use super::world::World;
use super::{amount, report, seed};
use crate::interrupted::assert_no_checkpoint_ahead;

/// A run ends after so many kills, so that each is in a state of its own.
const KILLS_PER_WORLD: u64 = 5;

/// No command is killed later than this after its start, however slow the machine is.
const LATEST: Duration = Duration::from_secs(5);

/// A program on these stores.
fn program(name: &str, arguments: &[&str], world: &World) -> Command {
    let mut command = Command::new(binary(name));
    command
        .args(arguments)
        .env("DATABASE_URL", &world.stores.database_url)
        .env("ARCHIVE_BUCKET", &world.stores.bucket)
        .env("AWS_ENDPOINT_URL", &world.s3.url)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true);
    command
}

/// What Lambda does with a shard: each batch until it is acknowledged, from the first record that
/// failed on.
struct Shard {
    batches: VecDeque<Vec<Record>>,
    acknowledged: Vec<Record>,
}

impl Shard {
    fn new(records: &[Record], batch_size: usize) -> Self {
        let batches = records.chunks(batch_size).map(<[Record]>::to_vec).collect();
        Self { batches, acknowledged: Vec::new() }
    }

    fn event(&self) -> Option<Bytes> {
        let batch = self.batches.front()?;
        Some(Bytes::from(event(batch.iter().map(|record| record.json.as_str()))))
    }

    /// Takes what the function answered.
    fn answered(&mut self, answer: &[u8]) {
        let answer: Json = serde_json::from_slice(answer).expect("an answer");
        let failures = answer["batchItemFailures"].as_array().expect("a list of failures");
        let numbers = failures.iter().filter_map(|failure| failure["itemIdentifier"].as_str());
        let lowest = numbers.map(|number| number.parse::<u128>().expect("a number")).min();
        let mut batch = self.batches.pop_front().expect("the batch of the answer");
        let is_failed = |record: &Record| Some(record.sequence_number) == lowest;
        let first = batch.iter().position(is_failed).unwrap_or(batch.len());
        let failed = batch.split_off(first);
        self.acknowledged.extend(batch);
        if !failed.is_empty() {
            self.batches.push_front(failed);
        }
    }
}

/// How long the function has an event before it is killed, at most.
const EVENT_MS: u64 = 120;

/// Delivers a day to a function that is killed now and then. Gives how often.
async fn kill_function(rng: &mut Rng) -> u64 {
    let world = World::new(rng.u64(..), 2).await;
    let day =
        testkit::generate::Day { seed: rng.u64(..), sessions: 30, malformed: true, mesh_bytes: 0 };
    let (sessions, scans) = testkit::generate::day(day);
    let all = [sessions.clone(), scans.clone()].concat();
    let mut kills = 0;
    for records in [scans, sessions] {
        let mut shard = Shard::new(&records, 12);
        let start = async || Function::start(program("projector", &[], &world)).await;
        let mut function = start().await.expect("it starts");
        function.first_poll().await.expect("it polls");
        while let Some(event) = shard.event() {
            let moment = Duration::from_micros(rng.u64(..EVENT_MS * 1_000));
            let may_kill = rng.bool();
            let invoked = {
                let invoke = function.invoke(event);
                if may_kill { tokio::time::timeout(moment, invoke).await } else { Ok(invoke.await) }
            };
            if let Ok(answered) = invoked {
                shard.answered(&answered.expect("an answer").answer);
            } else {
                function.stop().await.expect("it is killed");
                kills += 1;
                function = start().await.expect("it starts");
            }
            world.assert_stored(&shard.acknowledged.iter().collect::<Vec<_>>()).await;
        }
        function.stop().await.expect("it ends");
    }
    world.assert_equal(&all).await;
    kills
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_is_killed_at_any_moment_acknowledges_nothing_early() {
    let (seed, wanted) = (seed(), amount(12, 400));
    let mut rng = Rng::with_seed(seed);
    let (mut kills, mut worlds) = (0, 0);
    while kills < wanted {
        kills += kill_function(&mut rng).await;
        worlds += 1;
    }
    report("kills of the function", seed, &json!({ "kills": kills, "databases": worlds }));
}

/// A command of `backfill`, and what it needs.
struct Scenario {
    world: World,
    records: Vec<Record>,
    arguments: Vec<String>,
    /// Kept as long as the command runs.
    server: Option<StreamServer>,
    peer: Option<Stores>,
    folder: tempfile::TempDir,
}

/// The commands.
const COMMANDS: [&str; 5] = ["file", "stream", "merge", "redrive", "objects"];

impl Scenario {
    async fn new(command: &str, rng: &mut Rng) -> Self {
        let world = World::new(rng.u64(..), 0).await;
        let records = well_formed(60, rng.u64(..));
        let folder = tempfile::tempdir().expect("a folder");
        let mut scenario =
            Self { world, records, arguments: Vec::new(), server: None, peer: None, folder };
        let arguments = match command {
            "file" => scenario.of_file(),
            "stream" => scenario.of_streams().await,
            "merge" => scenario.of_peer().await,
            "redrive" => scenario.of_rejected().await,
            _ => scenario.of_rows().await,
        };
        scenario.arguments = std::iter::once(command.to_owned()).chain(arguments).collect();
        scenario
    }

    fn of_file(&self) -> Vec<String> {
        let path = self.folder.path().join("day.jsonl");
        let lines: Vec<&str> = self.records.iter().map(|record| record.json.as_str()).collect();
        std::fs::write(&path, lines.join("\n")).expect("a file");
        vec![path.display().to_string(), "--batch-size".to_owned(), "20".to_owned()]
    }

    async fn of_streams(&mut self) -> Vec<String> {
        let server = StreamServer::start().await;
        server.fill(&self.records, 3, 2);
        server.set_page_size(8);
        server.set_rule(|call| match call.operation {
            "GetRecords" => Fault::Delay(Duration::from_millis(15)),
            _ => Fault::Pass,
        });
        self.server = Some(server);
        let quick = ["--idle-seconds", "0", "--first-record-seconds", "0"];
        let quick = [&quick[..], &["--child-wait-seconds", "1", "--batch-size", "40"]].concat();
        quick.into_iter().map(str::to_owned).collect()
    }

    async fn of_peer(&mut self) -> Vec<String> {
        let peer = Stores::fresh().await;
        let projector = peer.projector_without_archive(&peer.database_url, 1);
        store(&projector, &self.records).await;
        let from = vec!["--from".to_owned(), peer.database_url.clone()];
        self.peer = Some(peer);
        from
    }

    /// Every record was rejected once, and is good now.
    async fn of_rejected(&self) -> Vec<String> {
        let mut identities = BTreeMap::new();
        for record in &self.records {
            identities.insert(identity(record), &record.json);
        }
        let values = identities.iter().map(|(id, json)| format!("('{id}', 'once', $j${json}$j$)"));
        let values = values.collect::<Vec<_>>().join(", ");
        let insert =
            format!("INSERT INTO rejected_records (identity, reason, record) VALUES {values}");
        self.world.stores.change(&insert).await;
        Vec::new()
    }

    /// Rows that have no object yet.
    async fn of_rows(&self) -> Vec<String> {
        let stores = &self.world.stores;
        let projector = stores.projector_without_archive(&stores.database_url, 1);
        store(&projector, &self.records).await;
        Vec::new()
    }

    fn spawn(&self) -> Child {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        self.spawn_with(&arguments)
    }

    fn spawn_with(&self, arguments: &[&str]) -> Child {
        let mut command = program("backfill", arguments, &self.world);
        if let Some(server) = &self.server {
            command
                .env("AWS_ENDPOINT_URL_DYNAMODB_STREAMS", &server.url)
                .env("AWS_ENDPOINT_URL_LAMBDA", &server.url)
                .env("AWS_ENDPOINT_URL_DYNAMODB", &server.url);
        }
        command.spawn().expect("backfill runs")
    }

    /// After a kill: what a checkpoint or a removed rejection stands for is in both stores.
    async fn assert_nothing_early(&self) {
        let stores = &self.world.stores;
        if let Some(server) = &self.server {
            let objects = self.world.s3.objects(&stores.bucket);
            assert_no_checkpoint_ahead(stores, &server.records_by_shard(), &objects).await;
        }
        if self.arguments[0] == "redrive" {
            let sql = "SELECT identity, '' FROM rejected_records";
            let open: Vec<(String, String)> = stores.connect().await.rows(sql).await;
            let is_open = |record: &&Record| open.iter().any(|(open, _)| *open == identity(record));
            let closed: Vec<&Record> =
                self.records.iter().filter(|record| !is_open(record)).collect();
            self.world.assert_stored(&closed).await;
        }
    }
}

/// Stores records, however often they must be delivered on a machine that is busy.
async fn store(projector: &Projector, records: &[Record]) {
    let json: Vec<&[u8]> = records.iter().map(|record| record.json.as_bytes()).collect();
    for _ in 0..10 {
        let applied = Box::pin(projector.apply(&json, Deadline::NONE)).await;
        if applied.expect("no fatal error").failed.is_empty() {
            return;
        }
    }
    panic!("the records never get through");
}

/// As `rejected_records` knows it.
fn identity(record: &Record) -> String {
    let table = record.table.name();
    format!("{table}/{}/{}/{}", record.item, record.label, record.sequence_number)
}

/// Kills a command some times, and runs it to its end. Gives how often it was killed; `longest` is
/// how long it takes.
async fn kill_command(command: &str, longest: &mut Duration, rng: &mut Rng) -> u64 {
    let scenario = Scenario::new(command, rng).await;
    let mut kills = 0;
    for _ in 0..KILLS_PER_WORLD {
        let mut child = scenario.spawn();
        let moment = longest.mul_f64(rng.f64());
        if tokio::time::timeout(moment, child.wait()).await.is_err() {
            child.kill().await.expect("it is killed");
            kills += 1;
        }
        scenario.assert_nothing_early().await;
    }
    let started = Instant::now();
    let output = scenario.spawn().wait_with_output().await.expect("it ends");
    assert_code(&output, 0);
    *longest = (*longest).max(started.elapsed()).min(LATEST);
    if command == "merge" {
        // A row that a killed merge stored is as new here as there, so the next one passes over it;
        // its help says what writes the object.
        let output = scenario.spawn_with(&["objects"]).wait_with_output().await;
        assert_code(&output.expect("it ends"), 0);
    }
    scenario.world.assert_equal(&scenario.records).await;
    if command == "redrive" {
        assert_eq!(scenario.world.stores.rejected().await, 0, "every rejection is closed");
    }
    kills
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_killed_at_any_moment_and_run_again_ends_right() {
    let (seed, wanted) = (seed(), amount(10, 600));
    let mut rng = Rng::with_seed(seed);
    let mut kills: BTreeMap<&str, u64> = BTreeMap::new();
    let mut longest = COMMANDS.map(|_| Duration::from_millis(300));
    while kills.values().sum::<u64>() < wanted {
        for (command, longest) in COMMANDS.into_iter().zip(&mut longest) {
            let killed = Box::pin(kill_command(command, longest, &mut rng)).await;
            *kills.entry(command).or_default() += killed;
        }
    }
    report("kills of the commands", seed, &json!(kills));
}
