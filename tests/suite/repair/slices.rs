//! A repair by slices: the function in its second form takes the files of full exports, a slice per
//! invocation, over the real Runtime API. What a state machine does is done here.

mod damaged;
mod failures;
mod gone;
mod lease;
mod moving;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value as Json, json};
use testkit::dynamodb::DynamoDb;
use testkit::emulator::binary;
use testkit::exports;
use testkit::records::Draft;
use testkit::runs::{self, rfc3339, until};
use testkit::runtime_api::{Function, Limit};
use testkit::s3_gate::{Fault, S3Gate};
use testkit::services::{Stores, service};
use tokio::process::Command;
use tokio::task::JoinHandle;

use super::exports_in_s3::Exports;
use super::{World, changed, id, of_session};

/// Longer than one hold, and short enough for a test.
const TIMEOUT: Duration = Duration::from_mins(1);
/// A slice may fail this often in a row.
const FAILURES_AT_MOST: usize = 5;

/// The function over these stores and tables. Nothing waits longer than it must.
fn function(stores: &Stores, tables: &[String; 2], streams_url: &str) -> Command {
    let mut command = Command::new(binary("projector"));
    command
        .env("EVENTS", "reconcile")
        .env("DATABASE_URL", &stores.database_url)
        .env("ARCHIVE_BUCKET", &stores.bucket)
        .env("AWS_ENDPOINT_URL", service("AWS_ENDPOINT_URL"))
        // The clock of the streams is hours ahead: so must be that of who reads them.
        .env("LD_PRELOAD", service("DYNAMODB_LOCAL_PRELOAD"))
        .env("SESSIONS_TABLE", &tables[0])
        .env("SCANS_TABLE", &tables[1])
        .env("AWS_ENDPOINT_URL_DYNAMODB", service("DYNAMODB_LOCAL_URL"))
        .env("AWS_ENDPOINT_URL_DYNAMODB_STREAMS", streams_url)
        .env("FUNCTION_TIMEOUT_SECONDS", "1")
        .env("IDLE_SECONDS", "1")
        .env("FIRST_RECORD_SECONDS", "1");
    command
}

/// A process of the function.
struct Caller(Function);

impl Caller {
    /// Starts one whose invocations have this much time.
    async fn with_timeout(command: Command, timeout: Duration) -> Self {
        let function = Function::start(command).await.expect("it starts");
        let clock_ahead_s = World::now() - runs::now();
        function.set_limit(Limit { timeout, clock_ahead_s });
        Self(function)
    }

    async fn start(command: Command) -> Self {
        Self::with_timeout(command, TIMEOUT).await
    }

    /// The answer to a request, or the error.
    async fn try_ask(&mut self, request: &Json) -> Result<Json, Json> {
        self.send(&json!({ "reconcile": request })).await
    }

    /// The same of any event.
    async fn send(&mut self, event: &Json) -> Result<Json, Json> {
        let event = event.to_string();
        let json = |bytes: bytes::Bytes| serde_json::from_slice(&bytes).expect("JSON");
        let answered = self.0.call(event.into()).await.expect("it answers in time");
        answered.map(json).map_err(json)
    }

    async fn ask(&mut self, request: &Json) -> Json {
        self.try_ask(request).await.unwrap_or_else(|error| panic!("{request}: {error}"))
    }

    /// The message of the error that a request must come to, with this name.
    async fn refused(&mut self, request: &Json, name: &str) -> String {
        let error = self.try_ask(request).await.expect_err("it is refused");
        assert_eq!(error["errorType"], name, "{error}");
        error["errorMessage"].as_str().expect("a message").to_owned()
    }

    /// Begins a repair, or a comparison alone.
    async fn begin_run(&mut self, owner: &str, repair: bool) -> Begun {
        let begin = json!({"begin": {"source": "reconcile", "owner": owner, "repair": repair}});
        let answer = self.ask(&begin).await;
        assert_eq!(answer["repair"].is_null(), !repair, "{answer}");
        Begun { run: answer["run"].as_i64().expect("an id"), repair: answer["repair"].as_i64() }
    }

    async fn begin(&mut self, owner: &str) -> Begun {
        self.begin_run(owner, true).await
    }

    /// Ends a run, and gives what it came to.
    async fn end(&mut self, begun: Begun, owner: &str) -> Json {
        let Begun { run, repair } = begun;
        let end = json!({"run": run, "repair": repair, "owner": owner, "complete": true});
        let ended = self.ask(&json!({ "end": end })).await;
        assert_eq!([&ended["run"], &ended["repair"]], [&json!(run), &json!(repair)], "{ended}");
        assert_eq!(ended["complete"], true, "{ended}");
        ended
    }

    /// Calls a slice, or a range of rows, until it is done, and gives its last answer and how many
    /// calls it took. As a state machine does, it calls a few times more after an error that may
    /// pass: on a busy machine the streams may be read too late for an invocation of seconds.
    async fn until_done(&mut self, slice: &Json) -> (Json, usize) {
        let (mut slice, mut failures) = (slice.clone(), 0);
        for calls in 1..100 {
            match self.try_ask(&slice).await {
                Ok(answer) => (slice, failures) = (answer, 0),
                Err(error) if error["errorType"] == "Failed" && failures < FAILURES_AT_MOST => {
                    failures += 1;
                }
                Err(error) => panic!("{slice}: {error}"),
            }
            if slice["done"] == true {
                return (slice, calls);
            }
        }
        panic!("it does not end: {slice}");
    }
}

/// A run, as it was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Begun {
    run: i64,
    repair: Option<i64>,
}

impl Begun {
    /// The id of its repair.
    fn id(self) -> i64 {
        self.repair.expect("it repairs")
    }
}

/// Compared, differing, repaired, rejected.
type Sums = [u64; 4];

fn sums(slice: &Json) -> Sums {
    ["compared", "differing", "repaired", "rejected"]
        .map(|name| slice[name].as_u64().unwrap_or_else(|| panic!("{name}: {slice}")))
}

fn add(sums: &mut Sums, slice: &Json) {
    for (sum, more) in sums.iter_mut().zip(self::sums(slice)) {
        *sum += more;
    }
}

/// An invocation that follows the streams for a repair until it has ended.
struct Following {
    task: JoinHandle<usize>,
    stop: Arc<AtomicBool>,
}

impl Following {
    /// `timeout`: of each call.
    fn start(
        command: impl Fn() -> Command + Send + 'static,
        (repair, owner): (i64, &str),
        timeout: Duration,
    ) -> Self {
        let follow = json!({"follow": {"repair": repair, "owner": owner}});
        let stop = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn({
            let stop = Arc::clone(&stop);
            async move {
                let mut calls = 0;
                let mut caller = Caller::with_timeout(command(), timeout).await;
                loop {
                    calls += 1;
                    if caller.ask(&follow).await["done"] == true || stop.load(Ordering::Relaxed) {
                        return calls;
                    }
                }
            }
        });
        Self { task, stop }
    }

    /// The repair has ended, so this does. Gives the number of its calls.
    async fn ended(self) -> usize {
        self.task.await.expect("it follows")
    }

    /// Ends it with the call that is under way.
    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.abort();
        let _ = self.task.await;
    }
}

/// Full exports of both tables as they are now, and the slices of all their files.
struct Files {
    exports: Exports,
    slices: Vec<Json>,
}

impl Files {
    async fn of(tables: &[String; 2]) -> Self {
        let dynamodb = DynamoDb::at(&service("DYNAMODB_LOCAL_URL"));
        let items = [dynamodb.scan(&tables[0]).await, dynamodb.scan(&tables[1]).await];
        Self::with(tables, items).await
    }

    /// Exports that have these items.
    async fn with(tables: &[String; 2], items: [Vec<Json>; 2]) -> Self {
        let mut exports = Exports::none().await;
        for (table, items) in tables.iter().zip(items) {
            let mut files = exports::full(table, &items);
            let (_, summary) = files.last_mut().expect("a summary");
            let mut json: Json = serde_json::from_slice(summary).expect("JSON");
            json["exportTime"] = json!(rfc3339(World::now() + 1));
            *summary = json.to_string().into_bytes();
            exports.add(&files, "exports", None).await;
        }
        let mut files = Self { exports, slices: Vec::new() };
        files.list();
        files
    }

    /// Reads the slices from the manifests, as a state machine does.
    fn list(&mut self) {
        let manifests =
            self.exports.files.iter().filter(|(key, _)| key.ends_with("manifest-files.json"));
        let lines = manifests.flat_map(|(_, bytes)| {
            let lines = String::from_utf8_lossy(bytes).into_owned();
            lines.lines().map(str::to_owned).collect::<Vec<_>>()
        });
        let slice = |line: String| {
            let line: Json = serde_json::from_str(&line).expect("JSON");
            json!({
                "bucket": self.exports.bucket,
                "key": line["dataFileS3Key"],
                "md5": line["md5Checksum"],
                "items": line["itemCount"],
            })
        };
        self.slices = lines.map(slice).collect();
    }

    /// The slices of a run.
    fn slices(&self, Begun { run, repair }: Begun) -> Vec<Json> {
        let of_run = |slice: &Json| {
            let mut slice = slice.clone();
            slice["run"] = json!(run);
            slice["repair"] = json!(repair);
            slice["next"] = json!(0);
            slice
        };
        self.slices.iter().map(of_run).collect()
    }
}

impl World {
    fn function(&self) -> Command {
        function(&self.stores, &self.tables, &self.streams.url)
    }

    /// How to start the function, for a task of its own.
    fn starter(&self) -> impl Fn() -> Command + Send + 'static {
        let (stores, tables) = (self.stores.clone(), self.tables.clone());
        let streams_url = self.streams.url.clone();
        move || function(&stores, &tables, &streams_url)
    }

    /// Waits until slices may look at something.
    async fn streams_are_read(&self) {
        let sql = "SELECT count(*) FROM repairs WHERE ended_at IS NULL \
                   AND caught_up_at < clock_timestamp() - interval '1 second'";
        until("the streams are read", async || self.stores.ask(sql).await == "1").await;
    }

    /// A whole repair by slices, to its end.
    async fn reconcile(&self, files: &Files, owner: &str) -> Sums {
        let mut caller = Caller::start(self.function()).await;
        let begun = caller.begin(owner).await;
        let following = Following::start(self.starter(), (begun.id(), owner), TIMEOUT);
        let mut all = Sums::default();
        for slice in files.slices(begun) {
            add(&mut all, &caller.until_done(&slice).await.0);
        }
        assert_eq!(sums(&caller.end(begun, owner).await), all);
        following.ended().await;
        all
    }
}

/// Items that the streams have lost: one in ten of the sessions has another value in each part.
fn changes(sessions: std::ops::Range<usize>) -> Vec<Draft> {
    let of_one = |number: usize| {
        let [first, left, right] = of_session(number);
        [changed(&first, "9"), changed(&left, "251"), changed(&right, "252.5")]
    };
    sessions.step_by(10).flat_map(of_one).collect()
}

/// Compares without a lease, repairs with one, and finds nothing any more.
#[tokio::test(flavor = "multi_thread")]
async fn what_no_stream_holds_is_found_by_a_comparison_and_repaired_by_slices() {
    let world = World::with_sessions(40).await;
    world.write_and_forget(&changes(0..40)).await;
    let files = Files::of(&world.tables).await;
    let mut caller = Caller::start(world.function()).await;
    let nightly = caller.begin_run("nightly", false).await;
    assert_eq!(caller.begin_run("nightly", false).await, nightly, "a call that is repeated");
    let mut compared = Sums::default();
    for slice in files.slices(nightly) {
        add(&mut compared, &caller.until_done(&slice).await.0);
    }
    assert_eq!(compared, [120, 12, 0, 0]);
    let ended = caller.end(nightly, "nightly").await;
    assert_eq!(sums(&ended), compared);
    assert_eq!(caller.end(nightly, "nightly").await, ended, "a call that is repeated");
    assert_eq!(world.stores.ask("SELECT count(*) FROM repairs").await, "0");

    assert_eq!(world.reconcile(&files, "first").await, [120, 12, 12, 0]);
    world.assert_equal().await;
    assert_eq!(world.reconcile(&files, "second").await, [120, 0, 0, 0]);
    let repairs = "SELECT string_agg(concat_ws(' ', source, owner, complete, candidates, written), \
                   ', ' ORDER BY id) FROM repairs WHERE ended_at >= started_at";
    let expected = "reconcile first t 12 12, reconcile second t 0 0";
    assert_eq!(world.stores.ask(repairs).await, expected);
    // What comes late from now on is read again.
    assert!(world.row(&id(10), "left_version").await.contains('+'));
}

/// A slice has some twenty seconds, and S3 answers so slowly that it needs more.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_larger_than_an_invocation_is_ended_by_the_next_ones() {
    let world = World::with_sessions(40).await;
    world.write_and_forget(&changes(0..40)).await;
    let gate = S3Gate::open(&service("AWS_ENDPOINT_URL")).await;
    gate.set_rule(|seen| match seen.method {
        "HEAD" => Fault::Delay(Duration::from_millis(500)),
        _ => Fault::Pass,
    });
    let dynamodb = DynamoDb::at(&service("DYNAMODB_LOCAL_URL"));
    let mut sessions = dynamodb.scan(&world.tables[0]).await;
    // Of these neither the table nor the database has any more: each is asked for by key.
    sessions.extend((1_000..5_000).map(|number| of_session(number)[0].item()));
    let files = Files::with(&world.tables, [sessions, Vec::new()]).await;
    let mut command = world.function();
    command.env("AWS_ENDPOINT_URL_S3", &gate.url);
    let mut caller = Caller::with_timeout(command, Duration::from_secs(25)).await;
    let begun = caller.begin("slow").await;
    let following = Following::start(world.starter(), (begun.id(), "slow"), TIMEOUT);
    world.streams_are_read().await;
    let (mut all, mut calls) = (Sums::default(), 0);
    for slice in files.slices(begun) {
        let (slice, of_file) = caller.until_done(&slice).await;
        add(&mut all, &slice);
        calls = calls.max(of_file);
    }
    assert_eq!(all, [4_040, 4, 4, 0]);
    assert!(calls > 1, "{calls}");
    // A line that was read twice, since it was not settled, was added up once.
    assert_eq!(gone::added_up(&world.stores, begun.run).await.0, 4_040);
    assert_eq!(sums(&caller.end(begun, "slow").await), all);
    following.ended().await;
    assert_eq!(world.row(&id(30), "app_version").await, "9");
}

/// The slice of a file that was killed is called again, at once: its session is ended first.
#[tokio::test(flavor = "multi_thread")]
async fn a_slice_that_is_killed_at_any_moment_and_called_again_ends_equal() {
    let world = World::with_sessions(60).await;
    world.write_and_forget(&changes(0..60)).await;
    let files = Files::of(&world.tables).await;
    let mut caller = Caller::start(world.function()).await;
    let begun = caller.begin("killed").await;
    let timeout = Duration::from_secs(15);
    let following = Following::start(world.starter(), (begun.id(), "killed"), timeout);
    for slice in files.slices(begun) {
        for _ in 0..3 {
            let mut killed = Caller::start(world.function()).await;
            let moment = Duration::from_millis(fastrand::u64(200..4_000));
            if tokio::time::timeout(moment, killed.ask(&slice)).await.is_ok() {
                break;
            }
            killed.0.stop().await.expect("it is killed");
        }
        caller.until_done(&slice).await;
    }
    assert_eq!(caller.end(begun, "killed").await["compared"], 180);
    assert!(following.ended().await > 1, "it resumes from its checkpoints");
    world.assert_equal().await;
    assert_eq!(world.reconcile(&files, "again").await[1..], [0, 0, 0]);
}

/// An event that comes to the wrong form, and a form that there is not.
#[tokio::test(flavor = "multi_thread")]
async fn each_form_of_the_function_refuses_what_is_meant_for_the_other() {
    let world = World::with_sessions(1).await;
    let (records, follow) = (json!({"Records": []}), json!({"repair": 1, "owner": "o"}));
    let mut requests = Caller::start(world.function()).await;
    let error = requests.send(&records).await.expect_err("records");
    assert_eq!(error["errorType"], "WrongEvent", "{error}");
    let said = error["errorMessage"].as_str().expect("a message");
    assert!(said.contains("set EVENTS to streams"), "{said}");
    // There is no such repair.
    requests.refused(&json!({ "follow": follow }), "LeaseEnded").await;

    for events in ["", "streams"] {
        let mut command = world.function();
        command.env("EVENTS", events);
        let mut streams = Caller::start(command).await;
        assert_eq!(streams.send(&records).await, Ok(json!({"batchItemFailures": []})));
        let said = streams.refused(&json!({ "follow": follow }), "NotAnEvent").await;
        assert!(said.contains("the event has no Records"), "{said}");
    }
    for (variable, value, expected) in [
        ("EVENTS", "both", "EVENTS is \"both\", expected streams or reconcile"),
        ("IDLE_SECONDS", "soon", "IDLE_SECONDS is \"soon\", expected a number of seconds"),
    ] {
        let mut command = world.function();
        command.env(variable, value).env("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:9");
        let output = command.output().await.expect("it ends");
        let said = runs::text(&output.stderr);
        assert!(!output.status.success() && said.contains(expected), "{said}");
    }
}
