//! `backfill repair`: two real tables whose streams have lost what a database lacks.

mod exports;
mod exports_in_s3;
mod large;
mod moving;
mod slices;
mod traps;

use std::process::Output;

use serde_json::{Value as Json, json};
use testkit::dynamodb::{DynamoDb, Kind, Write};
use testkit::oracle;
use testkit::records::{Draft, Table, removal, scan, session};
use testkit::runs::{assert_code, text, until, with_tables};
use testkit::services::{Stores, parsed, service};
use testkit::trim::TrimmedStreams;
use tokio::process::Command;

use crate::terminal::Schema;

/// Nothing waits longer than it must: nobody else writes to these stores.
pub(crate) const QUICK: [&str; 6] =
    ["--function-timeout-seconds", "1", "--idle-seconds", "1", "--first-record-seconds", "1"];

/// Two tables, their streams, and the stores of one side.
struct World {
    stores: Stores,
    dynamodb: DynamoDb,
    /// The sessions, then the scans.
    tables: [String; 2],
    arns: [String; 2],
    streams: TrimmedStreams,
}

impl World {
    /// Tables with these items, and stores that a replay of the streams has made equal to them.
    async fn with_items(drafts: &[Draft]) -> Self {
        let dynamodb = DynamoDb::at(&service("DYNAMODB_LOCAL_URL"));
        let suffix = format!("{:016x}", fastrand::u64(..));
        let tables = [format!("sessions-{suffix}"), format!("scans-{suffix}")];
        let arns = [
            dynamodb.create_table(&tables[0], Kind::Sessions, "NEW_IMAGE").await,
            dynamodb.create_table(&tables[1], Kind::Scans, "NEW_IMAGE").await,
        ];
        let streams = TrimmedStreams::start(&service("DYNAMODB_LOCAL_URL")).await;
        let stores = Stores::fresh().await;
        let world = Self { stores, dynamodb, tables, arns, streams };
        world.write(drafts).await;
        world.replay().await;
        world.stores.forbid_going_back().await;
        world
    }

    /// The same with sessions of all three parts.
    async fn with_sessions(count: usize) -> Self {
        Self::with_items(&(0..count).flat_map(of_session).collect::<Vec<_>>()).await
    }

    /// Writes and removes items. The functions are detached: the records wait in the streams.
    async fn write(&self, drafts: &[Draft]) {
        for (index, table) in self.tables.iter().enumerate() {
            let of_table =
                drafts.iter().filter(|draft| usize::from(draft.table == Table::Scans) == index);
            let write = |draft: &Draft| match draft.image {
                Some(_) => Write::Put(draft.item()),
                None => Write::Delete(draft.key()),
            };
            self.dynamodb.write_all(table, &of_table.map(write).collect::<Vec<_>>()).await;
        }
    }

    /// Writes and removes items, and the streams forget it.
    async fn write_and_forget(&self, drafts: &[Draft]) {
        self.write(drafts).await;
        self.forget().await;
    }

    /// The streams lose everything up to now.
    async fn forget(&self) {
        for (table, arn) in self.tables.iter().zip(&self.arns) {
            let mut newest = 0;
            for shard in self.dynamodb.shards(arn).await {
                let shard = shard["ShardId"].as_str().expect("an id");
                let (records, _) = self.dynamodb.records(arn, shard).await;
                let numbers = records.iter().filter_map(|record| {
                    record["dynamodb"]["SequenceNumber"].as_str()?.parse::<u128>().ok()
                });
                newest = numbers.fold(newest, u128::max);
            }
            self.streams.trim(table, newest);
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = with_tables(&self.stores, &self.tables, arguments);
        command.env("AWS_ENDPOINT_URL_DYNAMODB_STREAMS", &self.streams.url);
        command
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().await.expect("backfill runs")
    }

    /// What the streams still hold is applied, rejections allowed.
    async fn replay(&self) {
        let replay = self.run(&[
            "stream",
            "--restart",
            "--idle-seconds",
            "1",
            "--first-record-seconds",
            "1",
        ]);
        let code = replay.await;
        assert!(matches!(code.status.code(), Some(0 | 3)), "{}", text(&code.stderr));
    }

    /// Repairs, with this exit code, and gives the result.
    async fn repair(&self, arguments: &[&str], code: i32) -> Json {
        self.quick("repair", arguments, code).await
    }

    async fn quick(&self, command: &str, arguments: &[&str], code: i32) -> Json {
        let output = self.run(&[&[command, "--json"], &QUICK[..], arguments].concat()).await;
        assert_code(&output, code);
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// Seconds since 1970 by the clock of the stand-in, which is hours ahead.
    fn now() -> i64 {
        let ahead = std::fs::read(service("DYNAMODB_LOCAL_CLOCK")).expect("the clock");
        let ahead = i64::from_ne_bytes(ahead[..8].try_into().expect("eight bytes"));
        testkit::runs::now() + ahead
    }

    /// Sees that the rows are the items, and the objects the rows.
    async fn assert_equal(&self) {
        let proof = self.run(&["verify", "--tables", "--json", "--wait", "0", "--rounds", "1"]);
        let proof = proof.await;
        assert_code(&proof, 0);
        assert!(parsed(&self.stores.objects().await) == oracle::objects(&self.stores.rows().await));
    }

    /// What the row of a session holds in this column, or nothing.
    async fn row(&self, session_id: &str, column: &str) -> String {
        let sql = format!(
            "SELECT coalesce((SELECT {column}::text FROM measurements \
             WHERE session_id = '{session_id}'), '')"
        );
        self.stores.ask(&sql).await
    }
}

fn id(number: usize) -> String {
    format!("session-{number:04}")
}

fn of_session(number: usize) -> [Draft; 3] {
    let id = id(number);
    let length = format!("24{}.{}", number % 10, number % 7 + 1);
    let mut left = scan(&id, "left", &length);
    if number.is_multiple_of(5) {
        left.image.as_mut().expect("an image")["mesh"] = json!({"B": "AAECAwQFBgcICQ=="});
    }
    [session(&id, &format!("user-{number}")), left, scan(&id, "right", &length)]
}

/// An item with another value.
fn changed(draft: &Draft, value: &str) -> Draft {
    let mut changed = draft.clone();
    let image = changed.image.as_mut().expect("an image");
    match draft.table {
        Table::Sessions => image["app_version"] = json!({"S": value}),
        Table::Scans => image["foot_length_mm"] = json!({"N": value}),
    }
    changed
}

/// Every kind of difference, made while nobody read the streams: changed, new, removed.
async fn open_a_gap(world: &World) {
    let [first, left, _] = of_session(1);
    let [second, _, right] = of_session(2);
    let [whole, its_left, its_right] = of_session(3);
    world
        .write_and_forget(&[
            changed(&first, "9"),
            changed(&left, "251.5"),
            removal(&right),
            changed(&second, "9"),
            removal(&whole),
            removal(&its_left),
            removal(&its_right),
            session("new", "u"),
            scan("new", "left", "250"),
        ])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_finds_what_no_stream_holds_any_more_and_a_second_one_finds_nothing() {
    let world = World::with_sessions(30).await;
    open_a_gap(&world).await;
    let proof = world.run(&["verify", "--tables", "--wait", "0", "--rounds", "1"]).await;
    assert_code(&proof, 7);

    let json = world.repair(&["--scan", "--segments", "2"], 0).await;
    assert_eq!((&json["written"], &json["removed"]), (&json!(5), &json!(4)), "{json}");
    assert_eq!((&json["candidates"], &json["dropped"]), (&json!(9), &json!(0)), "{json}");
    world.assert_equal().await;
    // The version of an image is that of the row, and a time.
    assert!(world.row(&id(1), "left_version").await.contains('+'));
    assert!(world.row("new", "session_version").await.starts_with("+1"));
    assert_eq!(world.row(&id(3), "left_foot_length_mm").await, "");

    let again = world.repair(&["--scan"], 0).await;
    assert_eq!((&again["written"], &again["removed"]), (&json!(0), &json!(0)), "{again}");
    let repairs = "SELECT string_agg(concat_ws(' ', source, complete, candidates, written), ', ' \
                   ORDER BY id) FROM repairs WHERE ended_at >= started_at";
    assert_eq!(world.stores.ask(repairs).await, "scan t 9 9, scan t 0 0");

    // What the stream brings after that is newer.
    let [first, left, _] = of_session(1);
    world.write(&[changed(&left, "252"), removal(&first)]).await;
    world.replay().await;
    world.assert_equal().await;
    assert_eq!(world.row(&id(1), "left_foot_length_mm").await, "252");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_report_of_verify_and_a_list_of_sessions_name_the_keys() {
    let world = World::with_sessions(6).await;
    open_a_gap(&world).await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("a path").to_owned();
    let report = path("report.jsonl");
    let verify = ["verify", "--tables", "--wait", "0", "--rounds", "1", "--report", &report];
    assert_code(&world.run(&verify).await, 7);
    // A list of one session repairs that one, whole.
    let list = path("sessions.txt");
    std::fs::write(&list, format!("{}\n", id(1))).expect("a file");
    let json = world.repair(&["--keys", &list], 0).await;
    assert_eq!((&json["candidates"], &json["written"]), (&json!(3), &json!(2)), "{json}");
    let json = world.repair(&["--keys", &report], 0).await;
    assert_eq!((&json["written"], &json["removed"]), (&json!(3), &json!(4)), "{json}");
    world.assert_equal().await;
    std::fs::write(&list, "good\n{\"part\": \"middle\"}\n").expect("a file");
    let refused = world.run(&[&["repair", "--keys", &list], &QUICK[..]].concat()).await;
    assert_code(&refused, 2);
    assert!(text(&refused.stderr).contains("line 2"), "{}", text(&refused.stderr));
}

/// Nothing is read before it is asked for, and the price is said first.
#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_what_it_costs_and_leaves_no_trace() {
    let world = World::with_sessions(4).await;
    open_a_gap(&world).await;
    let output = world.run(&["repair", "--scan", "--dry-run"]).await;
    assert_code(&output, 0);
    let said = text(&output.stdout);
    assert!(said.contains("read units") && said.contains("dollars"), "{said}");
    let json = world.repair(&["--scan", "--dry-run"], 0).await;
    assert_eq!(json["dry_run"], true, "{json}");
    assert_eq!(world.stores.ask("SELECT count(*) FROM repairs").await, "0");
}

/// A malformed item is one row however often it is met, and blocks nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_item_is_rejected_once_and_applied_once_it_is_right() {
    let world = World::with_sessions(3).await;
    let [first, left, _] = of_session(1);
    let mut malformed = left.clone();
    malformed.image.as_mut().expect("an image")["foot_length_mm"] = json!({"N": "1000"});
    world.write_and_forget(&[malformed, changed(&first, "9")]).await;
    // What is printed is what the reference says.
    let mut schema = Schema::of("repair");
    schema.check("", &world.repair(&["--scan", "--dry-run"], 0).await);
    for _ in 0..2 {
        let json = world.repair(&["--scan"], 3).await;
        assert_eq!(json["malformed"], 1, "{json}");
        schema.check("", &json);
    }
    schema.everything_was_seen();
    assert_eq!(world.row(&id(1), "app_version").await, "9");
    let identities = "SELECT string_agg(identity, ' ') FROM rejected_records";
    let identity = format!("{}/{}/left/image", world.tables[1], id(1));
    assert_eq!(world.stores.ask(identities).await, identity);
    // It stays until its item is right.
    let json = world.quick("redrive", &[], 3).await;
    assert_eq!((&json["malformed"], &json["redriven"]), (&json!(1), &json!(0)), "{json}");
    world.write_and_forget(&[changed(&left, "251")]).await;
    let json = world.quick("redrive", &[], 0).await;
    assert_eq!(json["redriven"], 1, "{json}");
    assert_eq!(world.stores.ask("SELECT count(*) FROM rejected_records").await, "0");
    world.assert_equal().await;
}

/// Before a repair records apply by version; after it their items are read again, whatever the
/// record says.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_repair_a_rejected_record_is_a_key_whatever_its_age() {
    let world = World::with_sessions(4).await;
    // Both records were rejected while they were right: as if by an older projector.
    let [_, older, _] = of_session(1);
    let [_, newer, _] = of_session(2);
    world.write(&[changed(&older, "250.1")]).await;
    keep_as_rejected(&world, 1).await;
    world.forget().await;
    world.write_and_forget(&[removal(&older)]).await;
    world.repair(&["--scan"], 0).await;
    assert_eq!(world.row(&id(1), "left_foot_length_mm").await, "");
    world.write(&[changed(&newer, "250.2")]).await;
    keep_as_rejected(&world, 1).await;
    world.forget().await;
    assert_eq!(world.stores.ask("SELECT count(*) FROM rejected_records").await, "2");

    let json = world.quick("redrive", &[], 0).await;
    assert_eq!(json["redriven"], 2, "{json}");
    // The older one would have brought the removed scan back.
    assert_eq!(world.row(&id(1), "left_foot_length_mm").await, "");
    assert_eq!(world.row(&id(2), "left_foot_length_mm").await, "250.2");
    world.assert_equal().await;
}

/// Puts the last records of the scans' stream into `rejected_records`, as a function that rejects
/// them does.
async fn keep_as_rejected(world: &World, count: usize) -> Vec<Json> {
    let arn = &world.arns[1];
    let shard = world.dynamodb.shards(arn).await.pop().expect("a shard");
    let shard = shard["ShardId"].as_str().expect("an id").to_owned();
    let (mut records, _) = world.dynamodb.records(arn, &shard).await;
    let last = records.split_off(records.len() - count);
    let mut kept = Vec::new();
    for mut record in last {
        record["eventSourceARN"] = json!(arn);
        record["dynamodb"]["ApproximateCreationDateTime"] = json!(1_795_334_400);
        let number = record["dynamodb"]["SequenceNumber"].as_str().expect("a number");
        let identity = format!("{}/{number}", world.tables[1]);
        let sql = format!(
            "INSERT INTO rejected_records (identity, table_name, stream_label, sequence_number, \
             reason, record) VALUES ('{identity}', '{}', 'l', '{number}', 'by an older projector', \
             '{}')",
            world.tables[1],
            record.to_string().replace('\'', "''")
        );
        assert_eq!(world.stores.change(&sql).await, 1);
        kept.push(record);
    }
    kept
}

/// A database of yesterday beside the objects of today.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_database_on_the_old_bucket_gets_versions_above_its_objects() {
    let mut world = World::with_sessions(4).await;
    let [first, left, right] = of_session(1);
    let of_yesterday = world.stores.restored_with_its_bucket().await;
    // The old database is gone; what it wrote since is in the bucket.
    let of_today = Stores { bucket: of_yesterday.bucket.clone(), ..Stores::fresh().await };
    let yesterday = std::mem::replace(&mut world.stores, of_today);
    drop(yesterday);
    // This session came and went since yesterday: only the bucket has it.
    let ghost = session("ghost", "u");
    let writes = [changed(&first, "9"), changed(&left, "250.5"), removal(&right), ghost.clone()];
    world.write(&writes).await;
    world.replay().await;
    assert!(world.stores.objects().await.contains_key("measurements/ghost.json"));
    // One part changes back after that: its content is the one of yesterday.
    world.write(&[left.clone(), removal(&ghost)]).await;
    world.forget().await;
    world.stores = of_yesterday;

    let json = world.repair(&["--scan"], 0).await;
    // The part with equal content, too: its object is ahead, and nobody knows what it holds.
    assert_eq!((&json["written"], &json["removed"]), (&json!(2), &json!(2)), "{json}");
    assert!(world.row("ghost", "session_version").await.contains('+'));
    world.assert_equal().await;
}

/// One at a time: the second one is refused, and says how to go on.
#[tokio::test(flavor = "multi_thread")]
async fn beside_a_repair_no_other_repair_redrive_or_merge_runs() {
    let world = World::with_sessions(3).await;
    let peer = Stores::fresh().await;
    let mut first = world
        .command(&["repair", "--scan", "--function-timeout-seconds", "60"])
        .spawn()
        .expect("backfill runs");
    until("the repair", async || world.stores.ask("SELECT count(*) FROM repairs").await == "1")
        .await;
    let from = ["merge", "--from", &peer.database_url];
    let record = session("late", "u").place(testkit::records::LABEL, 1);
    let record: Json = serde_json::from_str(&record.json).expect("JSON");
    let folder = tempfile::tempdir().expect("a folder");
    let failure = folder.path().join("failure.json");
    let batch = json!({"DDBStreamBatchInfo": {}, "payload": json!({"Records": [record]})});
    let of_table = format!("table/{}/", world.tables[0]);
    let batch = batch.to_string().replace("table/sessions/", &of_table);
    std::fs::write(&failure, batch).expect("a file");
    let failure = failure.to_str().expect("a path");
    for command in [&["repair", "--scan"][..], &["redrive"], &["file", failure], &from] {
        let refused = world.run(command).await;
        assert_code(&refused, 1);
        let said = text(&refused.stderr);
        assert!(said.contains("`backfill repair`, server process"), "{command:?}: {said}");
        assert!(said.contains("pg_terminate_backend"), "{command:?}: {said}");
    }
    first.kill().await.expect("it is killed");
    // Its row stays, so that records are read again from now on.
    let open = "SELECT count(*) FROM repairs WHERE ended_at IS NULL AND NOT complete";
    assert_eq!(world.stores.ask(open).await, "1");
}
