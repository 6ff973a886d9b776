//! Runs of the `backfill` binary, and what they leave in the stores.

use std::collections::BTreeSet;
use std::process::{Output, Stdio};

use time::OffsetDateTime;
use tokio::process::Command;

use crate::emulator::binary;
use crate::generate::{self, Day};
use crate::oracle;
use crate::records::Record;
use crate::services::{Stores, parsed, service};
use crate::stream_server::StreamServer;

/// Runs `backfill` with these arguments, on these stores, to its end.
///
/// # Panics
/// Where it cannot be run.
#[must_use]
pub fn backfill(stores: &Stores, arguments: &[&str]) -> Output {
    std::process::Command::new(binary("backfill"))
        .args(arguments)
        .env("DATABASE_URL", &stores.database_url)
        .env("ARCHIVE_BUCKET", &stores.bucket)
        .env("AWS_ENDPOINT_URL", service("AWS_ENDPOINT_URL"))
        .output()
        .expect("backfill runs")
}

/// A command of `backfill` on these stores, to start and to watch. It ends with the test.
#[must_use]
pub fn watched(stores: &Stores, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("backfill"));
    command
        .args(arguments)
        .env("DATABASE_URL", &stores.database_url)
        .env("ARCHIVE_BUCKET", &stores.bucket)
        .env("AWS_ENDPOINT_URL", service("AWS_ENDPOINT_URL"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// A command of `backfill` whose streams are this server's.
#[must_use]
pub fn command(stores: &Stores, server: &StreamServer, arguments: &[&str]) -> Command {
    let mut command = watched(stores, arguments);
    command
        .env("AWS_ENDPOINT_URL_DYNAMODB_STREAMS", &server.url)
        .env("AWS_ENDPOINT_URL_LAMBDA", &server.url)
        .env("AWS_ENDPOINT_URL_DYNAMODB", &server.url);
    command
}

/// A command of `backfill` on these stores and on two tables of DynamoDB Local: the sessions, and
/// the scans.
#[must_use]
pub fn with_tables(stores: &Stores, tables: &[String; 2], arguments: &[&str]) -> Command {
    let dynamodb = service("DYNAMODB_LOCAL_URL");
    let mut command = watched(stores, arguments);
    command
        // The clock of the streams is hours ahead: so must be that of who reads them.
        .env("LD_PRELOAD", service("DYNAMODB_LOCAL_PRELOAD"))
        .env("SESSIONS_TABLE", &tables[0])
        .env("SCANS_TABLE", &tables[1])
        .env("AWS_ENDPOINT_URL_DYNAMODB", &dynamodb)
        .env("AWS_ENDPOINT_URL_DYNAMODB_STREAMS", dynamodb);
    command
}

/// `backfill stream` that does not wait long for what is idle or missing.
#[must_use]
pub fn stream(stores: &Stores, server: &StreamServer, arguments: &[&str]) -> Command {
    let quick = ["stream", "--idle-seconds", "0", "--first-record-seconds", "0"];
    command(stores, server, &[&quick[..], &["--child-wait-seconds", "1"], arguments].concat())
}

/// Runs a command to its end.
///
/// # Panics
/// Where it cannot be run.
pub async fn output(mut command: Command) -> Output {
    command.output().await.expect("backfill runs")
}

/// Sends a signal (`TERM`, `INT`) to a process that this test started.
///
/// # Panics
/// Where it has ended already.
pub fn signal(child: &tokio::process::Child, name: &str) {
    let pid = child.id().expect("it runs").to_string();
    let sent = std::process::Command::new("kill").args(["-s", name, &pid]).status();
    assert!(sent.expect("kill runs").success());
}

/// Waits up to half a minute.
///
/// # Panics
/// If it does not come.
pub async fn until(what: &str, mut met: impl AsyncFnMut() -> bool) {
    for _ in 0..600 {
        if met().await {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("{what} does not come");
}

/// What was printed.
#[must_use]
pub fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

/// Sees that a run ended with this exit code.
///
/// # Panics
/// With what it printed, where it did not.
#[track_caller]
pub fn assert_code(output: &Output, code: i32) {
    let (out, log) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{out}\n{log}");
}

/// The number behind a name in the summary.
///
/// # Panics
/// Where it is none.
#[must_use]
pub fn counted(output: &Output, name: &str) -> u64 {
    let summary = text(&output.stdout);
    let line = summary.lines().find_map(|line| line.trim().strip_prefix(name)).unwrap_or("0");
    line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> i64 {
    OffsetDateTime::now_utc().unix_timestamp()
}

/// A time, given in seconds since 1970.
///
/// # Panics
/// Where it is none.
#[must_use]
pub fn rfc3339(seconds: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(seconds).expect("a time");
    time.format(&time::format_description::well_known::Rfc3339).expect("a time")
}

/// A label, and with it the time at which a stream was enabled.
#[must_use]
pub fn label(seconds: i64) -> String {
    rfc3339(seconds).replace('Z', ".000")
}

/// A day that ended a minute ago, without malformed records.
#[must_use]
pub fn well_formed(sessions: usize, seed: u64) -> Vec<Record> {
    let day = Day { seed, sessions, malformed: false, mesh_bytes: 0 };
    let (sessions, scans) = generate::day(day);
    generate::recent([sessions, scans].concat(), now() - 60)
}

/// Sees that both stores hold what these records come to.
///
/// # Panics
/// Where they do not.
pub async fn assert_equal(stores: &Stores, records: &[Record]) {
    let (rows, expected) = (stores.rows().await, oracle::rows(records));
    // Whole rows of a day are no message.
    let sessions = rows.keys().chain(expected.keys());
    let wrong: BTreeSet<_> = sessions.filter(|id| rows.get(*id) != expected.get(*id)).collect();
    assert!(wrong.is_empty(), "{} of {} rows: {wrong:?}", wrong.len(), expected.len());
    assert_eq!(parsed(&stores.objects().await), oracle::objects(&rows));
}

/// As if what the checkpoints stand for had been stored this many hours ago, and the checkpoints
/// written just now.
///
/// # Panics
/// Where there are none.
pub async fn age_what_was_read(stores: &Stores, hours: u32) {
    age_checkpoints(stores, hours).await;
    assert_ne!(stores.change("UPDATE backfill_checkpoints SET updated_at = now()").await, 0);
}

/// As if the checkpoints had been written this many hours ago, and what they stand for stored then.
///
/// # Panics
/// Where there are none.
pub async fn age_checkpoints(stores: &Stores, hours: u32) {
    let aged = format!(
        "WITH aged AS (UPDATE backfill_checkpoints SET updated_at = now() - interval '{hours} h', \
         last_created = least(last_created, now() - interval '{hours} h'), \
         read_through = now() - interval '{hours} h' RETURNING 1) SELECT count(*) FROM aged"
    );
    let (aged,): (i64,) = stores.connect().await.row(&aged).await;
    assert!(aged > 0);
}
