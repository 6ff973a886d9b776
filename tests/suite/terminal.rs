//! What the commands of `backfill` print: with `--json` one object, as docs/reference.md describes
//! it; and which settings a command takes.

use std::collections::{BTreeMap, BTreeSet};

use projector::counts::Counts;
use serde_json::Value as Json;
use testkit::records::{LABEL, Table, session};
use testkit::runs::{
    age_what_was_read, assert_code, command, label, now, output, rfc3339, stream, text,
};
use testkit::services::Stores;
use testkit::stream_server::StreamServer;
use tokio::process::Command;

/// The commands that have `--json`.
const COMMANDS: [&str; 11] = [
    "doctor", "status", "check", "migrate", "stream", "file", "merge", "verify", "ready",
    "redrive", "objects",
];

/// Members that no run here prints: shards that vanish while they are read (see `trimmed.rs`,
/// `listings.rs`), and what `verify --tables` has found (`verify_tables.rs`).
const NOT_SEEN: [(&str, &str); 9] = [
    ("check", "streams[].outage."),
    ("status", "lease."),
    ("stream", "gone[]"),
    ("stream", "named_and_not_there[]"),
    ("verify", "malformed"),
    ("verify", "still_changing"),
    ("verify", "unsettled"),
    ("verify", "asked_by_key"),
    ("verify", "read_units"),
];

/// The members of a section of the reference, and the type of each.
fn documented(heading: &str) -> BTreeMap<String, String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference.md");
    let reference = std::fs::read_to_string(path).expect("the reference");
    let (_, rest) = reference.split_once(&format!("\n### {heading}\n")).expect(heading);
    let section = rest.split("\n#").next().expect("its text");
    let mut members = BTreeMap::new();
    for row in section.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        for name in cells[0].split('`').skip(1).step_by(2) {
            assert!(members.insert(name.to_owned(), cells[1].to_owned()).is_none(), "{name} twice");
        }
    }
    members
}

/// What one command may print, and what it has printed.
pub(crate) struct Schema {
    command: &'static str,
    documented: BTreeMap<String, String>,
    seen: BTreeSet<String>,
}

impl Schema {
    pub(crate) fn of(command: &'static str) -> Self {
        let mut documented = documented(&format!("`{command} --json`"));
        documented.extend(self::documented("Every object"));
        Self { command, documented, seen: BTreeSet::new() }
    }

    /// Holds each member of an object, below a path, against the reference.
    pub(crate) fn check(&mut self, prefix: &str, json: &Json) {
        for (name, value) in json.as_object().expect("an object") {
            let path = format!("{prefix}{name}");
            let kind = self.documented.get(&path);
            let kind = kind.unwrap_or_else(|| panic!("{}: {path} is not documented", self.command));
            assert!(is_of_type(value, kind), "{}: {path} is no {kind}: {value}", self.command);
            let has_members =
                |below: &str| self.documented.keys().any(|known| known.starts_with(below));
            let (below, of_elements) = (format!("{path}."), format!("{path}[]."));
            if value.is_object() && has_members(&below) {
                self.check(&below, value);
            } else if has_members(&of_elements) {
                for element in value.as_array().expect("a list") {
                    self.check(&of_elements, element);
                }
            }
            self.seen.insert(path);
        }
    }

    /// Sees that a run printed one object and nothing else, and checks it. Returns the object.
    fn run(&mut self, run: &std::process::Output, code: i32) -> Json {
        assert_code(run, code);
        let json: Json = serde_json::from_slice(&run.stdout)
            .unwrap_or_else(|error| panic!("{}: {error}: {run:?}", self.command));
        self.check("", &json);
        assert_eq!(json["exit_code"], code, "{}", self.command);
        // A gap that --allow-gap allowed is no failure.
        let done = matches!(code, 0 | 3) || (code == 5 && json["ended"] == "done");
        assert_eq!(json["error"].is_null(), done, "{}: {json}", self.command);
        json
    }

    pub(crate) fn everything_was_seen(&self) {
        let unseen = |(command, prefix): &(&str, &str), path: &str| {
            *command == self.command && path.starts_with(prefix)
        };
        for path in self.documented.keys() {
            let expected = !NOT_SEEN.iter().any(|not_seen| unseen(not_seen, path));
            assert_eq!(self.seen.contains(path), expected, "{}: {path}", self.command);
        }
    }
}

fn is_of_type(value: &Json, kind: &str) -> bool {
    kind.split(" or ").any(|kind| match kind {
        "null" => value.is_null(),
        "string" => value.is_string(),
        "time" => value
            .as_str()
            .is_some_and(|text| text.len() >= 20 && &text[10..11] == "T" && text.ends_with('Z')),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "object" => value.is_object(),
        "list" => value.as_array().is_some_and(|list| list.iter().all(Json::is_object)),
        "list of strings" => value.as_array().is_some_and(|list| list.iter().all(Json::is_string)),
        other => panic!("no type: {other}"),
    })
}

/// A read model, and the streams of both tables: one record each, of which that of the scans was
/// never read.
struct Account {
    stores: Stores,
    server: StreamServer,
    arns: [String; 2],
}

impl Account {
    async fn new() -> Self {
        let (stores, server) = (Stores::fresh().await, StreamServer::start().await);
        let enabled = label(now() - 3 * 24 * 3600);
        let arns = [Table::Sessions, Table::Scans].map(|table| server.add_stream(table, &enabled));
        for arn in &arns {
            server.open_shard(arn, "shardId-a", None);
            server.set_event_source_mappings(arn, Some(1));
        }
        let records = [1, 2].map(|index| session(&format!("s{index}"), "u").place(&enabled, index));
        server.put(&arns[0], "shardId-a", &records);
        Self { stores, server, arns }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        command(&self.stores, &self.server, &[arguments, &["--json"]].concat())
    }

    async fn run(&self, arguments: &[&str]) -> std::process::Output {
        output(self.command(arguments)).await
    }

    /// The same without a database.
    async fn fail(&self, arguments: &[&str]) -> std::process::Output {
        let mut command = self.command(arguments);
        command.env_remove("DATABASE_URL");
        output(command).await
    }
}

/// Every key that comes out is documented, and every documented key comes out; also if a command
/// fails.
#[tokio::test(flavor = "multi_thread")]
async fn stream_check_status_and_doctor_print_what_the_reference_says() {
    let account = Account::new().await;
    let mut doctor = Schema::of("doctor");
    doctor.run(&account.run(&["doctor"]).await, 0);
    doctor.run(&account.fail(&["doctor"]).await, 2);
    doctor.everything_was_seen();

    let mut check = Schema::of("check");
    let snapshot = rfc3339(now() - 5 * 3600);
    check.run(&account.run(&["check", "--snapshot-time", &snapshot]).await, 0);
    account.server.set_event_source_mappings(&account.arns[1], Some(2));
    check.run(&account.run(&["check"]).await, 4);
    check.everything_was_seen();

    let mut run = Schema::of("stream");
    run.run(&account.fail(&["stream"]).await, 2);
    let old = rfc3339(now() - 30 * 3600);
    run.run(&account.run(&["stream", "--snapshot-time", &old]).await, 4);
    let complete = output(stream(&account.stores, &account.server, &["--json"])).await;
    let complete = run.run(&complete, 0);
    let counts: BTreeSet<&str> =
        complete["counts"].as_object().expect("counts").keys().map(String::as_str).collect();
    assert_eq!(counts, Counts::default().list().map(|count| count.name).collect());
    age_what_was_read(&account.stores, 40).await;
    let more = [3, 4].map(|index| session("s3", "u").place(LABEL, index));
    account.server.put(&account.arns[0], "shardId-a", &more);
    account.server.trim(&account.arns[0], "shardId-a", 3);
    let gap = output(stream(&account.stores, &account.server, &["--json"])).await;
    run.run(&gap, 5);
    let gap = stream(&account.stores, &account.server, &["--json", "--allow-gap"]);
    let gap = run.run(&output(gap).await, 5);
    assert_ne!(gap["records_can_be_lost"], Json::Array(Vec::new()));
    run.everything_was_seen();

    let mut status = Schema::of("status");
    status.run(&account.fail(&["status"]).await, 2);
    let mut other_run = account.stores.connect().await;
    let lock = format!("SELECT pg_advisory_lock({})", i64::from_be_bytes(*b"backfill"));
    other_run.run(&lock).await;
    let rejected =
        "INSERT INTO rejected_records (identity, reason, record) VALUES ('i', 'why', '{}')";
    assert_eq!(account.stores.change(rejected).await, 1);
    status.run(&account.run(&["status"]).await, 0);
    status.everything_was_seen();
}

#[tokio::test(flavor = "multi_thread")]
async fn migrate_file_redrive_and_objects_print_what_the_reference_says() {
    let account = Account::new().await;
    let empty = Account { stores: Stores::unmigrated().await, ..Account::new().await };
    let role = format!("terminal_{:08x}", fastrand::u32(..));
    let sql = format!("CREATE ROLE {role} LOGIN; ALTER ROLE {role} SET statement_timeout = '1s'");
    account.stores.change(&sql).await;
    let mut migrate = Schema::of("migrate");
    migrate.run(&account.fail(&["migrate"]).await, 2);
    let planned = migrate.run(&empty.run(&["migrate", "--dry-run"]).await, 0);
    assert_ne!(planned["pending"], Json::Array(Vec::new()));
    let done = migrate.run(&empty.run(&["migrate", "--grant-to", &role]).await, 0);
    assert_eq!(
        (&done["applied"], &done["statements"][0]["result"]),
        (&planned["pending"], &"granted".into())
    );
    migrate.run(&empty.run(&["migrate"]).await, 0);
    migrate.everything_was_seen();

    let folder = tempfile::tempdir().expect("a folder");
    let record = session("f", "u").place(LABEL, 1);
    let good = folder.path().join("good.jsonl");
    std::fs::write(&good, &record.json).expect("a file");
    let bad = folder.path().join("bad.jsonl");
    std::fs::write(&bad, format!("{{\n{}\n", record.json)).expect("a file");
    let path = |path: &std::path::Path| path.to_str().expect("a path").to_owned();
    let mut file = Schema::of("file");
    file.run(&account.run(&["file", &path(&good)]).await, 0);
    let partly = file.run(&account.run(&["file", &path(folder.path())]).await, 1);
    assert_eq!(partly["files"]["with_problems"][0]["file"], path(&bad), "{partly}");
    assert_eq!(partly["counts"]["duplicate"], 2, "{partly}");
    file.run(&account.run(&["file", "--dry-run", &path(&good)]).await, 0);
    file.run(&account.run(&["file", "/no/such/file"]).await, 1);
    file.everything_was_seen();

    let foreign = record.json.replace("table/sessions/", "table/orders/");
    let sql = format!(
        "INSERT INTO rejected_records (identity, reason, record)
         VALUES ('foreign', 'why', '{foreign}'), ('good', 'why', '{}')",
        record.json
    );
    assert_eq!(account.stores.change(&sql).await, 2);
    let mut redrive = Schema::of("redrive");
    redrive.run(&account.fail(&["redrive"]).await, 2);
    let tried = redrive.run(&account.run(&["redrive"]).await, 3);
    assert_eq!(
        (&tried["removed"], &tried["untried"][0]["identity"]),
        (&1.into(), &"foreign".into())
    );
    let discard = ["redrive", "--discard", "--why", "foreign", "--identity", "foreign"];
    assert_eq!(redrive.run(&account.run(&discard).await, 0)["discarded"], 1);
    redrive.run(&account.run(&discard).await, 1);
    redrive.everything_was_seen();

    let mut objects = Schema::of("objects");
    objects.run(&account.run(&["objects"]).await, 0);
    let mut unset = account.command(&["objects"]);
    unset.env_remove("ARCHIVE_BUCKET");
    objects.run(&output(unset).await, 2);
    objects.everything_was_seen();
}

#[tokio::test(flavor = "multi_thread")]
async fn merge_and_verify_print_what_the_reference_says() {
    let (account, peer) = (Account::new().await, Stores::fresh().await);
    let insert = "INSERT INTO measurements (session_id, session_version) VALUES
        ('m1', 'L/0000000000000000000000000000000000000001'), ('m2', 'no version')";
    assert_eq!(peer.change(insert).await, 2);
    let url = peer.database_url.as_str();
    let mut verify = Schema::of("verify");
    let at_once = ["verify", "--against", url, "--wait", "0", "--rounds", "1"];
    let different = verify.run(&account.run(&at_once).await, 7);
    assert_eq!(
        (&different["result"], &different["differences"]["missing"]),
        (&"different".into(), &2.into())
    );
    verify.run(&account.run(&["verify", "--against", &account.stores.database_url]).await, 2);

    let mut merge = Schema::of("merge");
    let partly = merge.run(&account.run(&["merge", "--from", url]).await, 1);
    assert_eq!((&partly["rows_written"], &partly["not_merged"]), (&1.into(), &1.into()));
    assert_eq!(peer.change("DELETE FROM measurements WHERE session_id = 'm2'").await, 1);
    merge.run(&account.run(&["merge", "--from", url]).await, 0);
    merge.everything_was_seen();

    verify.run(&account.run(&at_once).await, 0);
    verify.everything_was_seen();
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_prints_what_the_reference_says() {
    let account = Account::new().await;
    let mut ready = Schema::of("ready");
    ready.run(&account.fail(&["ready"]).await, 2);
    let looked = ready.run(&account.run(&["ready", "--no-archive"]).await, 4);
    let verdicts: BTreeSet<&str> = looked["conditions"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|condition| condition["verdict"].as_str().expect("text"))
        .collect();
    assert_eq!(verdicts, ["fail", "out_of_scope", "pass"].into());
    ready.everything_was_seen();
}

/// A script that asked for JSON gets JSON, also if it has misspelt a flag.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_flag_is_json_too() {
    let account = Account::new().await;
    for name in COMMANDS {
        let run = account.run(&[name, "--no-such-flag"]).await;
        let json = Schema::of(name).run(&run, 2);
        assert!(json["error"].as_str().is_some_and(|why| why.contains("--no-such-flag")), "{json}");
        assert!(text(&run.stderr).contains("Usage: backfill"), "{run:?}");
    }
}

/// A variable that does not concern a command is not read, whatever it holds; a flag of its name is
/// refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_variable_that_does_not_concern_a_command_is_harmless() {
    let account = Account::new().await;
    for (name, variables) in [
        ("status", ["SCANS_TABLE", "TTL_REMOVALS", "ARCHIVE_PREFIX"]),
        ("migrate", ["SCANS_TABLE", "TTL_REMOVALS", "ARCHIVE_PREFIX"]),
        ("check", ["DATABASE_AUTH", "TTL_REMOVALS", "ARCHIVE_PREFIX"]),
        ("objects", ["SCANS_TABLE", "TTL_REMOVALS", "SESSIONS_TABLE"]),
    ] {
        let mut command = account.command(&[name]);
        for variable in variables {
            command.env(variable, "/wrong");
        }
        assert_code(&output(command).await, 0);
        let flag = format!("--{}", variables[1].to_lowercase().replace('_', "-"));
        assert_code(&account.run(&[name, &flag, "keep"]).await, 2);
    }
}
