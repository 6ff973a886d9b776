//! The machine's clock is set back and forth by an hour while a program runs: versions order
//! changes, and no clock does. Linux only, because the clock is a preloaded library.

use std::io::{Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use serde_json::json;
use testkit::emulator::{binary, event};
use testkit::records::Record;
use testkit::runs::{assert_code, well_formed};
use testkit::runtime_api::Function;
use testkit::stream_server::{Fault, StreamServer};
use tokio::process::Command;

use super::world::World;
use super::{amount, report, seed};

/// The clock of the programs under test.
struct Clock {
    folder: tempfile::TempDir,
    file: std::fs::File,
}

impl Clock {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("suite/soak/clock.c");
        let library = folder.path().join("clock.so");
        let mut compiler = std::process::Command::new("cc");
        compiler.args(["-O1", "-shared", "-fPIC", "-o"]).arg(library).arg(source);
        assert!(compiler.status().expect("a C compiler").success());
        let file = std::fs::File::create(folder.path().join("ahead")).expect("a file");
        let mut clock = Self { folder, file };
        clock.set(0);
        clock
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// How many seconds it is ahead.
    fn set(&mut self, ahead: i64) {
        self.file.rewind().expect("a file");
        self.file.write_all(&ahead.to_ne_bytes()).expect("a file");
    }

    /// A program with this clock, on these stores.
    fn program(&self, name: &str, arguments: &[&str], world: &World) -> Command {
        let mut command = Command::new(binary(name));
        command
            .args(arguments)
            .env("LD_PRELOAD", self.path("clock.so"))
            .env("SOAK_CLOCK", self.path("ahead"))
            .env("DATABASE_URL", &world.stores.database_url)
            .env("ARCHIVE_BUCKET", &world.stores.bucket)
            .env("AWS_ENDPOINT_URL", &world.s3.url)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .kill_on_drop(true);
        command
    }
}

/// Sets the clock at random moments until `done`, and gives how often.
async fn set_back_and_forth<T>(
    clock: &mut Clock,
    rng: &mut Rng,
    done: impl Future<Output = T>,
) -> (T, u64) {
    let mut done = std::pin::pin!(done);
    let mut times = 0;
    loop {
        clock.set([-3_600, 0, 3_600][rng.usize(..3)]);
        times += 1;
        let pause = Duration::from_millis(rng.u64(5..60));
        if let Ok(value) = tokio::time::timeout(pause, &mut done).await {
            return (value, times);
        }
    }
}

async fn replay(clock: &mut Clock, rng: &mut Rng) -> u64 {
    let (world, server) = (World::new(rng.u64(..), 2).await, StreamServer::start().await);
    let records = well_formed(60, rng.u64(..));
    server.fill(&records, 3, 2);
    server.set_page_size(8);
    server.set_rule(|call| match call.operation {
        "GetRecords" => Fault::Delay(Duration::from_millis(20)),
        _ => Fault::Pass,
    });
    let quick = ["stream", "--idle-seconds", "0", "--first-record-seconds", "0"];
    let arguments = [&quick[..], &["--child-wait-seconds", "1", "--batch-size", "40"]].concat();
    let mut command = clock.program("backfill", &arguments, &world);
    command
        .env("AWS_ENDPOINT_URL_DYNAMODB_STREAMS", &server.url)
        .env("AWS_ENDPOINT_URL_LAMBDA", &server.url)
        .env("AWS_ENDPOINT_URL_DYNAMODB", &server.url);
    let child = command.spawn().expect("backfill runs");
    let (output, times) = set_back_and_forth(clock, rng, child.wait_with_output()).await;
    assert_code(&output.expect("it ends"), 0);
    world.assert_equal(&records).await;
    times
}

async fn function(clock: &mut Clock, rng: &mut Rng) -> u64 {
    let world = World::new(rng.u64(..), 2).await;
    let records = well_formed(60, rng.u64(..));
    let command = clock.program("projector", &[], &world);
    let invocations = async {
        let mut function = Function::start(command).await.expect("it starts");
        for batch in records.chunks(12) {
            deliver(&mut function, batch).await;
            world.assert_stored(&batch.iter().collect::<Vec<_>>()).await;
        }
        function.stop().await.expect("it ends");
    };
    let ((), times) = set_back_and_forth(clock, rng, invocations).await;
    world.assert_equal(&records).await;
    times
}

/// Until all of a batch is acknowledged: S3 fails now and then.
async fn deliver(function: &mut Function, batch: &[Record]) {
    for _ in 0..10 {
        let event = event(batch.iter().map(|record| record.json.as_str()));
        let answered = function.invoke(Bytes::from(event)).await.expect("an answer");
        if *answered.answer == *br#"{"batchItemFailures":[]}"# {
            return;
        }
    }
    panic!("a batch never gets through");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_back_and_forth_by_an_hour_changes_nothing() {
    if !cfg!(target_os = "linux") {
        return;
    }
    let (seed, wanted) = (seed(), amount(40, 2_000));
    let mut rng = Rng::with_seed(seed);
    let mut clock = Clock::new();
    let (mut times, mut runs) = (0, 0);
    while times < wanted {
        times += replay(&mut clock, &mut rng).await;
        times += function(&mut clock, &mut rng).await;
        runs += 2;
    }
    report("clock", seed, &json!({ "times set": times, "runs": runs }));
}
