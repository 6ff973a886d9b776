//! Repairs of generated tables. Of very many items, so that every bound of the command is reached:
//! channels, connections, permits for objects. One that waits for itself never ends, so each run
//! has to show progress. And of a few hundred, which show that `--max-rate` holds.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};
use testkit::memory_s3::MemoryS3;
use testkit::records::Table;
use testkit::runs::{assert_code, command, output};
use testkit::s3_gate::{Fault, S3Gate};
use testkit::services::Stores;
use testkit::stream_server::StreamServer;
use testkit::table_server::{self, Items};
use tokio::process::Command;
use tokio::sync::Notify;

use super::QUICK;

/// Three items per session, more than 24,000 in all: with a third of them a loop that waits for
/// itself still came to its end.
const VERY_MANY: Items = Items { sessions: 8_100, mesh_bytes: 48 };
const SOME: Items = Items { sessions: 300, mesh_bytes: 48 };
/// A run that shows no progress for this long waits for itself.
const STALLED_AFTER: Duration = Duration::from_mins(1);

/// An empty database, tables of many items, and streams without records.
struct Large {
    stores: Stores,
    streams: StreamServer,
    items: Items,
    /// Where they are served.
    tables: String,
}

impl Large {
    async fn start(items: Items) -> Self {
        let streams = StreamServer::start().await;
        streams.fill(&[], 1, 1);
        let tables = table_server::start(items).await;
        Self { stores: Stores::fresh().await, streams, items, tables }
    }

    /// How many items both tables hold.
    fn items(&self) -> u64 {
        let items = self.items;
        let of = |table| (0..items.places(table)).filter_map(move |place| items.at(table, place));
        (of(Table::Sessions).count() + of(Table::Scans).count()) as u64
    }

    /// A repair by a scan.
    fn command(&self, flags: &[&str]) -> Command {
        let arguments = [&["repair", "--scan", "--json"], &QUICK[..], flags].concat();
        let mut command = command(&self.stores, &self.streams, &arguments);
        command.env("AWS_ENDPOINT_URL_DYNAMODB", &self.tables);
        command
    }

    /// Repairs by a scan, and gives the result. With S3 if it is given.
    async fn repair(&self, what: &str, flags: &[&str], s3: Option<&MemoryS3>) -> Json {
        let mut command = self.command(flags);
        match s3 {
            Some(s3) => command.env("AWS_ENDPOINT_URL_S3", &s3.url),
            None => command.env_remove("ARCHIVE_BUCKET"),
        };
        // In a file, so that it can be read while the run goes on.
        let log = tempfile::NamedTempFile::new().expect("a file");
        command.stderr(Stdio::from(File::create(log.path()).expect("a file")));
        let run = command.spawn().expect("backfill runs").wait_with_output();
        let output = tokio::select! {
            output = run => output.expect("it ends"),
            log = stalled(log.path(), s3) => {
                panic!("{what} shows no progress for {STALLED_AFTER:?}: it waits for itself\n{log}")
            }
        };
        let log = std::fs::read_to_string(log.path()).expect("a log");
        assert_eq!(output.status.code(), Some(0), "{what}: {log}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }
}

/// Ends, with the log, once neither the counts in it nor the requests to S3 have changed for too
/// long.
async fn stalled(log: &Path, s3: Option<&MemoryS3>) -> String {
    let (mut last, mut since) = (None, Instant::now());
    loop {
        let text = std::fs::read_to_string(log).expect("a log");
        let counts = text.lines().rfind(|line| line.contains(" items looked at ("));
        // The rate in brackets changes while nothing else does.
        let counts = counts.and_then(|line| {
            let (items, rest) = line.split_once(" (")?;
            Some(format!("{items}{}", rest.split_once(')')?.1))
        });
        let seen = Some((counts, s3.map(MemoryS3::requests)));
        if seen != last {
            (last, since) = (seen, Instant::now());
        } else if since.elapsed() > STALLED_AFTER {
            return text;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// The loop writes rows while its source and its looks wait for connections.
#[tokio::test(flavor = "multi_thread")]
async fn a_repair_of_very_many_items_that_all_differ_ends() {
    let large = Large::start(VERY_MANY).await;
    let (items, s3) = (large.items(), MemoryS3::start(0, 0).await);
    let json = large.repair("a repair in which every item differs", &[], Some(&s3)).await;
    assert_eq!((&json["items"], &json["written"]), (&json!(items), &json!(items)), "{json}");
}

/// No item differs; then no object is there, and the run writes each of them at its end; then
/// nothing is to be done at all.
#[tokio::test(flavor = "multi_thread")]
async fn a_repair_of_very_many_items_of_which_none_differs_ends() {
    let large = Large::start(VERY_MANY).await;
    let (items, s3) = (large.items(), MemoryS3::start(0, 0).await);
    let json = large.repair("a repair without an archive", &[], None).await;
    assert_eq!((&json["items"], &json["written"]), (&json!(items), &json!(items)), "{json}");
    let none = (json!(items), json!(0), json!(0));
    for (what, s3, objects) in [
        ("a repair without an archive in which nothing differs", None, false),
        ("a repair in which every object is missing", Some(&s3), true),
        ("a repair in which nothing differs", Some(&s3), false),
    ] {
        let json = large.repair(what, &[], s3).await;
        let found = (json["equal"].clone(), json["candidates"].clone(), json["written"].clone());
        assert_eq!(found, none, "{what}: {json}");
        let least = if objects { items / 3 } else { 0 };
        assert!(json["objects"].as_u64() >= Some(least), "{what}: {json}");
        assert!(objects || json["objects"] == 0, "{what}: {json}");
    }
}

/// What is asserted holds on a slow machine, too: rows come later there.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_per_second_stay_below_the_limit() {
    const RATE: u64 = 60;
    let some = Large::start(SOME).await;
    let flags = ["--max-rate", "60"];
    let repair = some.repair("a repair with a limit", &flags, None);
    let written = "SELECT count(session_version) + count(left_version) FROM measurements";
    let (mut none_at, mut seen) = (Instant::now(), 0);
    let watch = async {
        let mut connection = some.stores.connect().await;
        loop {
            let asked = Instant::now();
            let parts: u64 = connection.ask(written).await.parse().expect("a number");
            if parts == 0 {
                none_at = asked;
            }
            // One second's worth is taken in advance, and a batch of at most 100 sessions.
            let allowed = none_at.elapsed().as_secs_f64() * RATE as f64 + (RATE + 100) as f64;
            assert!(parts as f64 <= allowed, "{parts} parts, and {allowed} are allowed by then");
            seen += u64::from(parts > 0);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let json =
        tokio::select! { json = repair => json, () = watch => unreachable!("it never ends") };
    assert_eq!(json["written"], some.items(), "{json}");
    assert!(seen > 10, "the rows were looked at {seen} times while they came");

    // Nothing is written now, and each session is looked at in both tables.
    let json = some.repair("another one", &flags, None).await;
    assert_eq!((&json["equal"], &json["written"]), (&json!(some.items()), &json!(0)), "{json}");
    let least = (2 * SOME.sessions - 2 * RATE) as f64 / RATE as f64;
    assert!(json["seconds"].as_f64() >= Some(least), "less than {least} s: {json}");
}

/// The three parts of a session come from two tables, in batches of at most 100 parts. Killed when
/// all rows are there and no object is, a run leaves the keys of all of them; and without the keys,
/// as if it had been killed before it kept them, the same repair finds the objects.
#[tokio::test(flavor = "multi_thread")]
async fn each_object_is_written_once_and_at_the_end_whatever_ends_the_run() {
    let (some, s3) = (Large::start(SOME).await, MemoryS3::start(0, 0).await);
    let gate = S3Gate::open(&s3.url).await;
    let repair = || {
        let mut command = some.command(&[]);
        command.env("AWS_ENDPOINT_URL_S3", &gate.url);
        command
    };
    gate.set_rule(|seen| match seen.method {
        "PUT" => Fault::Hold(Arc::new(Notify::new())),
        _ => Fault::Pass,
    });
    let mut run = repair().spawn().expect("backfill runs");
    tokio::select! {
        () = gate.until("PUT", 1) => {}
        ended = run.wait() => panic!("it has ended without an object: {ended:?}"),
    }
    let parts = "SELECT count(session_version) + count(left_version) + count(right_version) \
                 FROM measurements";
    assert_eq!(some.stores.ask(parts).await, some.items().to_string(), "rows come first");
    run.kill().await.expect("it is killed");
    gate.set_rule(|_| Fault::Pass);
    let rows = some.stores.rows().await;
    let pending = "SELECT count(*) FROM pending_objects";
    assert_eq!(some.stores.ask(pending).await, rows.len().to_string());
    assert_eq!(s3.objects(&some.stores.bucket).len(), 0);

    some.stores.change("DELETE FROM pending_objects").await;
    let puts = s3.count("PUT");
    assert_code(&output(repair()).await, 0);
    assert_eq!(s3.count("PUT") - puts, rows.len() as u64, "one per session");
    assert_eq!(s3.objects(&some.stores.bucket).len(), rows.len());
    assert_eq!(some.stores.ask(pending).await, "0");
}
