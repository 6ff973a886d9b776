//! `backfill verify --tables`: the items of two real tables and the rows of a real database, while
//! both move.

mod capacity;
mod export;

use std::collections::BTreeSet;
use std::process::Output;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value as Json, json};
use testkit::dynamodb::{DynamoDb, Kind, Write};
use testkit::records::{Draft, LABEL, Record, Table, removal, scan, session};
use testkit::runs::{assert_code, signal, text, until, with_tables};
use testkit::services::{Stores, apply, service};
use tokio::process::Command;

/// Two tables and the rows of their items.
struct World {
    stores: Stores,
    dynamodb: DynamoDb,
    tables: [String; 2],
    last_number: AtomicU64,
}

impl World {
    async fn new() -> Self {
        let dynamodb = DynamoDb::at(&service("DYNAMODB_LOCAL_URL"));
        let suffix = format!("{:016x}", fastrand::u64(..));
        let tables = [format!("sessions-{suffix}"), format!("scans-{suffix}")];
        dynamodb.create_table(&tables[0], Kind::Sessions, "NEW_IMAGE").await;
        dynamodb.create_table(&tables[1], Kind::Scans, "NEW_IMAGE").await;
        Self { stores: Stores::fresh().await, dynamodb, tables, last_number: AtomicU64::new(0) }
    }

    /// The same with sessions of all three parts, equal on both sides; some scans have a mesh.
    async fn with_sessions(count: usize) -> Self {
        let world = Self::new().await;
        let drafts: Vec<Draft> = (0..count).flat_map(of_session).collect();
        world.write_items(&drafts).await;
        world.write_rows(&drafts).await;
        world
    }

    async fn write_items(&self, drafts: &[Draft]) {
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

    async fn write_rows(&self, drafts: &[Draft]) {
        let place = |draft: &Draft| {
            let number = self.last_number.fetch_add(1, Ordering::Relaxed) + 1;
            draft.place(LABEL, number.into())
        };
        let records: Vec<Record> = drafts.iter().map(place).collect();
        apply(&self.stores.projector().await, &records).await;
    }

    fn backfill(&self, arguments: &[&str]) -> Command {
        let mut command = with_tables(&self.stores, &self.tables, arguments);
        command.env_remove("ARCHIVE_BUCKET");
        command
    }

    fn verify(&self, arguments: &[&str]) -> Command {
        let quick = ["verify", "--tables", "--json", "--wait", "0", "--rounds", "2"];
        self.backfill(&[&quick[..], arguments].concat())
    }

    /// What a run comes to, and its JSON.
    async fn verified(&self, arguments: &[&str]) -> (Output, Json) {
        let output = self.verify(arguments).output().await.expect("backfill runs");
        let json = text(&output.stdout);
        let json = serde_json::from_str(&json).unwrap_or_else(|_| panic!("no JSON: {output:?}"));
        (output, json)
    }

    /// Sees that nothing differs.
    async fn assert_equal(&self, arguments: &[&str]) -> Json {
        let (output, json) = self.verified(arguments).await;
        assert_code(&output, 0);
        assert_eq!(json["complete"], true, "{json}");
        json
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
        left.image.as_mut().expect("an image")["tags"] =
            json!({"M": {"b": {"N": "1.50"}, "a": {"SS": ["y", "x"]}}});
    }
    [session(&id, &format!("user-{number}")), left, scan(&id, "right", &length)]
}

/// What was reported: session, part, kind and detail, in order.
fn reported(lines: &str) -> BTreeSet<[String; 4]> {
    let member = |json: &Json, name: &str| json[name].as_str().expect("a string").to_owned();
    let of = |line: &str| {
        let json: Json = serde_json::from_str(line).expect("JSON");
        ["session_id", "part", "kind", "detail"].map(|name| member(&json, name))
    };
    lines.lines().map(of).collect()
}

/// A removed item, malformed ones, and everything that the oracle knows, read from the real
/// streams.
#[tokio::test(flavor = "multi_thread")]
async fn the_rows_of_a_replay_equal_the_tables() {
    let world = World::new().await;
    let drafts: Vec<Draft> = (0..300).flat_map(of_session).collect();
    world.write_items(&drafts).await;
    world.write_items(&[removal(&drafts[0]), removal(&drafts[4])]).await;
    let mut malformed = scan("malformed", "left", "245");
    malformed.image.as_mut().expect("an image")["foot_length_mm"] = json!({"N": "1000"});
    let broken = json!({"session_id": {"S": "no key of ours"}});
    world.write_items(&[malformed]).await;
    world.dynamodb.put_item(&world.tables[0], &broken).await;
    let stream = ["stream", "--idle-seconds", "1", "--first-record-seconds", "1"];
    let replay = world.backfill(&stream).output().await.expect("backfill runs");
    assert_code(&replay, 3);

    let json = world.assert_equal(&["--segments", "3"]).await;
    assert_eq!(json["comparison"], "tables");
    assert_eq!(json["compared"], 900 - 2 + 2);
    assert_eq!(json["malformed"], 2);
    assert_eq!(json["differences"], json!({"missing": 0, "extra": 0, "older": 0, "content": 0}));
    assert!(json["read_units"].as_f64().expect("a number") > 0.0, "{json}");
    // Everything is accounted for without a question by key.
    assert_eq!(json["asked_by_key"], 0);
    for member in ["against", "first", "compared_through", "seconds", "still_changing", "unsettled"]
    {
        assert!(json.get(member).is_some(), "{member}");
    }
    let kept = "SELECT concat_ws(' ', comparison, complete, compared, against) FROM verifications";
    let against = format!("the tables {} and {}", world.tables[0], world.tables[1]);
    assert_eq!(world.stores.ask(kept).await, format!("tables t 900 {against}"));
}

/// For people, too.
#[tokio::test(flavor = "multi_thread")]
async fn every_planted_fault_is_found_and_named_and_nothing_else() {
    let world = World::with_sessions(60).await;
    world.assert_equal(&[]).await;
    let set = async |number: usize, what: &str| {
        let sql = format!("UPDATE measurements SET {what} WHERE session_id = '{}'", id(number));
        assert_eq!(world.stores.change(&sql).await, 1);
    };
    set(1, "left_foot_length_mm = left_foot_length_mm + 0.0000000001").await;
    set(5, "left_mesh = set_byte(left_mesh, 9, 8)").await;
    set(2, "session_attributes = '{\"new\": 1}'").await;
    set(10, "left_attributes = replace(left_attributes::text, '1.50', '1.51')::json").await;
    set(3, "right_scanned_at = right_scanned_at + interval '1 microsecond'").await;
    set(4, "device_model = NULL, user_id = 'another'").await;
    set(6, "left_scanned_at = NULL, left_foot_length_mm = NULL").await;
    // The forms differ, and not the values.
    set(15, "left_attributes = '{\"tags\": {\"b\": 1.5, \"a\": [\"x\", \"y\"]}}'").await;
    set(7, "left_foot_length_mm = left_foot_length_mm + 0.000").await;
    let gone = format!("DELETE FROM measurements WHERE session_id = '{}'", id(8));
    assert_eq!(world.stores.change(&gone).await, 1);
    world.write_items(&[session("unknown", "u"), scan("unknown", "right", "245")]).await;
    // The items go, and the rows do not hear of it: an old part, one that changed just now, and a
    // whole row.
    let [_, left, _] = of_session(9);
    let [_, _, right] = of_session(11);
    world.write_items(&[removal(&left), removal(&right)]).await;
    set(11, "right_changed_at = now() + interval '1 day'").await;
    world.write_rows(&[session("only-a-row", "u"), scan("only-a-row", "left", "245")]).await;

    let folder = tempfile::tempdir().expect("a folder");
    let report = folder.path().join("report.jsonl");
    let path = report.to_str().expect("a path").to_owned();
    let (output, json) = world.verified(&["--report", &path]).await;
    assert_code(&output, 7);
    let found = reported(&std::fs::read_to_string(&report).expect("the report"));
    let (removed, no_row) = ("the row says that the item was removed", "the session has no row");
    let expected = [
        (1, "left", "content", "left_foot_length_mm"),
        (5, "left", "content", "left_mesh"),
        (2, "session", "content", "session_attributes"),
        (10, "left", "content", "left_attributes"),
        (3, "right", "content", "right_scanned_at"),
        (4, "session", "content", "user_id, device_model"),
        (6, "left", "missing", removed),
        (8, "session", "missing", no_row),
        (8, "left", "missing", no_row),
        (8, "right", "missing", no_row),
        (9, "left", "extra", "the item is gone"),
        (11, "right", "extra", "the item is gone"),
    ];
    let named = |(number, part, kind, detail): (usize, &str, &str, &str)| {
        [id(number), part.to_owned(), kind.to_owned(), detail.to_owned()]
    };
    let mut expected: BTreeSet<[String; 4]> = expected.into_iter().map(named).collect();
    for (session, part, kind, detail) in [
        ("unknown", "session", "missing", no_row),
        ("unknown", "right", "missing", no_row),
        ("only-a-row", "session", "extra", "the item is gone"),
        ("only-a-row", "left", "extra", "the item is gone"),
    ] {
        expected.insert([session, part, kind, detail].map(str::to_owned));
    }
    assert_eq!(found, expected);
    assert_eq!(json["differences"], json!({"missing": 6, "extra": 4, "older": 0, "content": 6}));
    let first = json["first"].as_array().expect("a list");
    assert!(first.iter().all(|difference| difference["theirs"].is_null()));
    assert!(json["asked_by_key"].as_u64().expect("a number") < 20, "{json}");

    let arguments = ["verify", "--tables", "--wait", "0", "--rounds", "1"];
    let for_people = world.backfill(&arguments).output().await.expect("backfill runs");
    assert_code(&for_people, 7);
    let shown = text(&for_people.stdout);
    assert!(shown.starts_with("different: 180 items compared"), "{shown}");
    assert!(shown.contains("extra   session-0009 left: the item is gone"), "{shown}");
    let kept = "SELECT string_agg(extra || ' ' || complete, ', ' ORDER BY id) FROM verifications";
    assert_eq!(world.stores.ask(kept).await, "0 true, 4 true, 4 true");
}

/// Writers at work on all parts of some sessions, and a replay that follows them.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_differs_falsely_while_both_sides_move() {
    let world = World::new().await;
    let drafts: Vec<Draft> = (0..200).flat_map(of_session).collect();
    world.write_items(&drafts).await;
    let follow = ["stream", "--follow", "--idle-seconds", "1", "--first-record-seconds", "1"];
    let following = world.backfill(&follow).spawn().expect("backfill runs");
    until("the rows", async || {
        world.stores.ask("SELECT count(*) FROM measurements WHERE complete").await == "200"
    })
    .await;
    let writing = async {
        let mut rng = fastrand::Rng::with_seed(5);
        for step in 0_usize.. {
            // New ones, changed ones, removed ones and those that come back.
            let number = if step.is_multiple_of(4) { 200 + step } else { rng.usize(..200) };
            let mut draft = of_session(number)[rng.usize(..3)].clone();
            match rng.u32(..4) {
                0 => draft = removal(&draft),
                _ => {
                    draft.image.as_mut().expect("an image")["step"] =
                        json!({"N": step.to_string()});
                }
            }
            world.write_items(&[draft]).await;
        }
    };
    let verifying = async {
        let start = std::time::Instant::now();
        let mut runs = 0;
        while start.elapsed() < Duration::from_secs(6) {
            world.assert_equal(&["--wait", "1", "--rounds", "15"]).await;
            runs += 1;
        }
        assert!(runs > 0);
        // A fault is still found, and no other.
        world.write_rows(&[scan("only-a-row", "left", "245")]).await;
        let (output, json) = world.verified(&["--wait", "1", "--rounds", "8"]).await;
        assert_code(&output, 7);
        let first = json["first"].as_array().expect("a list");
        let named: Vec<_> = first.iter().map(|difference| &difference["session_id"]).collect();
        assert_eq!(named, ["only-a-row"], "{json}");
    };
    tokio::select! {
        () = writing => unreachable!("it writes for ever"),
        () = verifying => {}
    }
    drop(following);
}

/// Its row is written between any two looks, and never equals the item.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_still_changes_is_named_and_is_no_difference() {
    let world = World::with_sessions(3).await;
    let changing = async {
        for version in 0_u64.. {
            let version = format!("{LABEL}/{:040}", version + 1_000);
            let sql = format!(
                "UPDATE measurements SET user_id = 'late', session_version = '{version}' \
                 WHERE session_id = '{}'",
                id(1)
            );
            world.stores.change(&sql).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let verifying = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let json = world.assert_equal(&["--wait", "1"]).await;
        assert_eq!(json["still_changing"], 1, "{json}");
    };
    tokio::select! {
        () = changing => unreachable!("it writes for ever"),
        () = verifying => {}
    }
    let (output, json) = world.verified(&[]).await;
    assert_code(&output, 7);
    assert_eq!((&json["still_changing"], &json["differences"]["content"]), (&json!(0), &json!(1)));
}

/// With `keep`, a row may hold an expired item; not one whose time to live has not come.
#[tokio::test(flavor = "multi_thread")]
async fn an_expired_item_may_be_kept_and_any_other_may_not() {
    let world = World::with_sessions(3).await;
    let enable = json!({"TableName": world.tables[0],
        "TimeToLiveSpecification": {"AttributeName": "expires", "Enabled": true}});
    world.dynamodb.call("UpdateTimeToLive", &enable).await.expect("a time to live");
    let with = |session_id: &str, seconds: i64| {
        let mut draft = session(session_id, "u");
        draft.image.as_mut().expect("an image")["expires"] = json!({"N": seconds.to_string()});
        draft
    };
    let now = testkit::runs::now();
    world.write_rows(&[with("expired", now - 60), with("alive", now + 7 * 24 * 3600)]).await;
    let (output, json) = world.verified(&[]).await;
    assert_code(&output, 7);
    assert_eq!(json["differences"]["extra"], 2, "{json}");
    let (output, json) = world.verified(&["--ttl-removals", "keep"]).await;
    assert_code(&output, 7);
    assert_eq!(json["differences"]["extra"], 1, "{json}");
    assert_eq!(json["first"][0]["session_id"], "alive");
    // What may be kept is not even asked for.
    assert_eq!(json["asked_by_key"], 1, "{json}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_it_with_what_is_known() {
    let world = World::with_sessions(20).await;
    world.write_items(&[session("unknown", "u")]).await;
    for arguments in [&["--max-rate", "1"][..], &["--wait", "600"]] {
        let running = world.verify(arguments).spawn().expect("backfill runs");
        tokio::time::sleep(Duration::from_secs(3)).await;
        signal(&running, "INT");
        let ended = running.wait_with_output().await.expect("it ends");
        assert_code(&ended, 6);
        let json: Json = serde_json::from_slice(&ended.stdout).expect("JSON");
        assert_eq!(json["complete"], false, "{json}");
        assert!(json["compared"].as_u64().expect("a number") > 0, "{json}");
        assert!(text(&ended.stderr).contains("begins anew"), "{ended:?}");
    }
    assert_eq!(
        world.stores.ask("SELECT count(*) FROM verifications WHERE NOT complete").await,
        "2"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_not_there_is_a_fault_of_the_configuration() {
    let world = World::with_sessions(1).await;
    let run = world.verify(&["--scans-table", "nowhere"]).output().await.expect("backfill runs");
    assert_code(&run, 2);
    let said = text(&run.stderr);
    assert!(said.contains("SCANS_TABLE is \"nowhere\", and there is no such table here"), "{said}");
}
