//! `backfill verify --against`: two real databases, faults planted in one of them, and writers that
//! do not stop.

use std::collections::BTreeMap;
use std::process::Output;
use std::time::{Duration, Instant};

use serde_json::Value as Json;
use testkit::records::{LABEL, Record, scan, session};
use testkit::runs::{assert_code, backfill, signal, text};
use testkit::services::{Stores, apply};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

/// Rows `s0001`, `s0002` and so on, the same in every database.
fn rows(count: u32) -> String {
    format!(
        "INSERT INTO measurements (session_id, user_id, device_model, started_at, \
            session_attributes,
            left_scanned_at, left_foot_length_mm, left_foot_breadth_mm, left_ball_girth_mm, left_mesh,
            left_attributes, right_scanned_at, right_foot_length_mm, right_foot_breadth_mm,
            right_ball_girth_mm, session_version, left_version, right_version,
            session_changed_at, left_changed_at, right_changed_at)
        SELECT 's' || lpad(i::text, 4, '0'), 'u' || i, 'iPhone17,1', '2026-11-22 08:00Z',
            '{{\"n\": 1.5, \"tags\": [\"a\", \"b\"]}}', '2026-11-22 08:01Z', 245.3, 98.7, 243.1,
            decode(repeat('00ff', 3000), 'hex'), '{{\"zero\": \"\\u0000\"}}', '2026-11-22 \
                08:01Z', 245.3, 98.7, 243.1,
            v, v, v, t, t, t
        FROM generate_series(1, {count}) i, LATERAL (SELECT {LABEL_SQL} || lpad((i * 10)::text, 40, '0') AS v) AS v,
            LATERAL (SELECT '2026-11-22 09:00Z'::timestamptz AS t) AS t"
    )
}

const LABEL_SQL: &str = "'2026-11-22T00:00:00.000/'";

async fn two(count: u32) -> (Stores, Stores) {
    let (ours, theirs) = (Stores::fresh().await, Stores::fresh().await);
    for stores in [&ours, &theirs] {
        stores.change(&rows(count)).await;
    }
    (ours, theirs)
}

/// The version whose number is this much off.
fn moved(column: &str, by: i32) -> String {
    format!(
        "{column} = left({column}, 24) || lpad((substr({column}, 25)::numeric + {by})::text, 40, \
            '0')"
    )
}

fn update(session_id: &str, sets: &str) -> String {
    format!("UPDATE measurements SET {sets} WHERE session_id = '{session_id}'")
}

/// Removes a part: its values are gone, and its version says so.
const WITHOUT_RIGHT: &str = "right_scanned_at = NULL, right_foot_length_mm = NULL, \
    right_foot_breadth_mm = NULL, right_ball_girth_mm = NULL";

fn verify(ours: &Stores, theirs: &Stores, arguments: &[&str]) -> Output {
    let against = ["verify", "--against", &theirs.database_url];
    backfill(ours, &[&against[..], arguments].concat())
}

/// The differences of a run that reads again without a wait, as `kind part: detail` by session.
fn differences(
    ours: &Stores,
    theirs: &Stores,
    arguments: &[&str],
) -> BTreeMap<String, Vec<String>> {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let path = file.path().to_string_lossy().into_owned();
    let quick = ["--wait", "0", "--rounds", "2", "--report", &path];
    let output = verify(ours, theirs, &[&quick[..], arguments].concat());
    let report = std::fs::read_to_string(&path).expect("the report");
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in report.lines() {
        let difference: Json = serde_json::from_str(line).expect("a line of JSON");
        let member = |name: &str| difference[name].as_str().unwrap_or("row").to_owned();
        let said = format!("{} {}: {}", member("kind"), member("part"), member("detail"));
        found.entry(member("session_id")).or_default().push(said);
    }
    assert_code(&output, if found.is_empty() { 0 } else { 7 });
    found
}

/// Faults: the session, who has it, the statement, and what is said of it. Those of `CONTENT` show
/// only in values.
fn faults() -> Vec<(&'static str, bool, String, &'static [&'static str])> {
    let delete = |id: &str| format!("DELETE FROM measurements WHERE session_id = '{id}'");
    let add = |id: &str| {
        format!("INSERT INTO measurements (session_id, left_version) VALUES ('{id}', 'L/1')")
    };
    let (ours, theirs) = (true, false);
    vec![
        ("s0001", theirs, delete("s0001"), &["extra row: only our database has the row"]),
        ("s0002", ours, delete("s0002"), &["missing row: only the other database has the row"]),
        (
            "s0003",
            ours,
            update("s0003", &moved("left_version", -1)),
            &["older left: our row is older"],
        ),
        (
            "s0004",
            theirs,
            update("s0004", &moved("session_version", -1)),
            &["older session: the other row is older"],
        ),
        (
            "s0005",
            theirs,
            update("s0005", &format!("{WITHOUT_RIGHT}, {}", moved("right_version", 1))),
            &["older right: our row is older"],
        ),
        (
            "s0006",
            theirs,
            update("s0006", &format!("{WITHOUT_RIGHT}, right_version = NULL")),
            &["older right: the other row has never had this part"],
        ),
        ("A", theirs, add("A"), &["missing row: only the other database has the row"]),
        ("s1000a", ours, add("s1000a"), &["extra row: only our database has the row"]),
        ("z", theirs, add("z"), &["missing row: only the other database has the row"]),
        ("zz", ours, add("zz"), &["extra row: only our database has the row"]),
        // Only a repair lies between the versions, so the values are always compared.
        (
            "s0014",
            theirs,
            update(
                "s0014",
                "left_version = left_version || '+1795334400000000', left_foot_length_mm = 1",
            ),
            &["content left: left_foot_length_mm"],
        ),
    ]
}

/// Faults under equal versions.
fn faults_in_values() -> Vec<(&'static str, String, &'static [&'static str])> {
    vec![
        (
            "s0007",
            update("s0007", "left_foot_length_mm = 245.4"),
            &["content left: left_foot_length_mm"],
        ),
        (
            "s0008",
            update("s0008", "left_mesh = set_byte(left_mesh, 5999, 1)"),
            &["content left: left_mesh"],
        ),
        (
            "s0009",
            update("s0009", r#"session_attributes = '{"n": 1.5, "tags": ["b", "a"]}'"#),
            &["content session: session_attributes"],
        ),
        (
            "s0010",
            update("s0010", "left_changed_at = left_changed_at + interval '1 second'"),
            &["content left: left_changed_at"],
        ),
        (
            "s0011",
            update("s0011", &format!("{WITHOUT_RIGHT}, user_id = NULL")),
            &[
                "content session: user_id",
                "content right: right_ball_girth_mm, right_foot_breadth_mm, right_foot_length_mm, \
                    right_scanned_at",
                "content row: complete",
            ],
        ),
        ("s0012", update("s0012", "app_version = ''"), &["content session: app_version"]),
        (
            "s0017",
            update("s0017", "user_id = 'u1', device_model = '7,10:iPhone17,1'"),
            &["content session: device_model, user_id"],
        ),
        (
            "s0018",
            update("s0018", "right_scanned_at = right_scanned_at + interval '1 microsecond'"),
            &["content right: right_scanned_at"],
        ),
        (
            "s0019",
            update("s0019", r#"left_attributes = '{"one": "\u0000"}'"#),
            &["content left: left_attributes"],
        ),
        ("s0020", update("s0020", "started_at = 'infinity'"), &["content session: started_at"]),
        (
            "s2500",
            update("s2500", "right_foot_length_mm = 245.31"),
            &["content right: right_foot_length_mm"],
        ),
    ]
}

/// What differs in form alone, or by a repair with the same values.
fn no_faults() -> Vec<String> {
    vec![
        update("s0013", "left_version = left_version || '+1795334400000000', left_changed_at = \
            NULL"),
        update("s0015", r#"session_attributes = '{"tags": [ "a", "b" ], "n": 1.5}'"#),
        update("s0016", "left_foot_length_mm = 245.300"),
        // The servers may differ in whatever changes how a value is written.
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET timezone = ''Asia/Tokyo''', \
            current_database());
            EXECUTE format('ALTER DATABASE %I SET bytea_output = ''escape''', current_database());
            EXECUTE format('ALTER DATABASE %I SET datestyle = ''SQL, DMY''', current_database()); END $$"
            .to_owned(),
    ]
}

#[tokio::test]
async fn every_planted_fault_is_found_and_named() {
    let (ours, theirs) = two(2_500).await;
    for harmless in no_faults() {
        theirs.change(&harmless).await;
    }
    for arguments in [&["--sample", "0"], &["--sample", "1"]] {
        assert_eq!(differences(&ours, &theirs, arguments), BTreeMap::new(), "{arguments:?}");
    }
    assert_eq!(differences(&ours, &theirs, &["--deep"]), BTreeMap::new());

    let said = |said: &[&str]| said.iter().map(|said| (*said).to_owned()).collect::<Vec<_>>();
    let mut expected = BTreeMap::new();
    for (session_id, in_ours, statement, expected_of_it) in faults() {
        let changed = if in_ours { &ours } else { &theirs }.change(&statement).await;
        assert_eq!(changed, 1, "{statement}");
        expected.insert(session_id.to_owned(), said(expected_of_it));
    }
    for (_, statement, _) in faults_in_values() {
        assert_eq!(theirs.change(&statement).await, 1, "{statement}");
    }
    assert_eq!(differences(&ours, &theirs, &["--sample", "0"]), expected);
    for (session_id, _, expected_of_it) in faults_in_values() {
        expected.insert(session_id.to_owned(), said(expected_of_it));
    }
    assert_eq!(differences(&ours, &theirs, &["--sample", "1"]), expected);
    assert_eq!(differences(&ours, &theirs, &["--deep"]), expected);
}

/// Blocks of meshes that PostgreSQL has read, as it counts them once a session has ended.
async fn mesh_blocks_read(stores: &Stores) -> String {
    let sql = "SELECT coalesce(toast_blks_read + toast_blks_hit, 0) FROM pg_statio_user_tables \
               WHERE relname = 'measurements'";
    stores.ask(sql).await
}

#[tokio::test]
async fn meshes_are_read_only_if_their_values_are_compared() {
    let (ours, theirs) = two(20).await;
    theirs.change(&update("s0007", &moved("left_version", 1))).await;
    let before = mesh_blocks_read(&ours).await;
    assert_eq!(differences(&ours, &theirs, &["--sample", "0"]).len(), 1);
    assert_eq!(mesh_blocks_read(&ours).await, before, "no mesh is read");
    differences(&ours, &theirs, &["--deep"]);
    assert_ne!(mesh_blocks_read(&ours).await, before);
}

/// The share is of the same sessions on both sides, and about as large as it says.
#[tokio::test]
async fn a_sample_compares_the_values_of_its_share() {
    let (ours, theirs) = two(2_000).await;
    theirs.change("UPDATE measurements SET right_foot_length_mm = 1").await;
    let found = differences(&ours, &theirs, &["--sample", "0.1"]).len();
    // By md5, so it is the same each time.
    assert!((150..250).contains(&found), "{found}");
}

#[tokio::test]
async fn a_column_of_one_side_alone_is_named_and_not_compared() {
    let (ours, theirs) = two(5).await;
    theirs
        .change("ALTER TABLE measurements ADD COLUMN left_arch_height_mm numeric DEFAULT 7")
        .await;
    let output = verify(&ours, &theirs, &["--deep", "--wait", "0"]);
    assert_code(&output, 0);
    let line = "not compared, since one database alone has it: left_arch_height_mm";
    assert!(text(&output.stderr).lines().any(|said| said == line), "{output:?}");

    theirs.change("ALTER TABLE measurements DROP COLUMN left_version").await;
    let output = verify(&ours, &theirs, &[]);
    assert_code(&output, 1);
    assert!(text(&output.stderr).contains("another schema: it lacks left_version"), "{output:?}");
}

#[tokio::test]
async fn since_compares_what_changed_after_that_time_on_either_side_or_at_no_known_time() {
    let (ours, theirs) = two(10).await;
    let newer = moved("left_version", 1);
    let at = |time: &str| format!("{newer}, left_changed_at = {time}");
    for (session_id, stores, time) in [
        ("s0001", &ours, "'2026-11-22 10:00Z'"),
        ("s0002", &theirs, "'2026-11-22 10:00Z'"),
        ("s0003", &ours, "NULL"),
        ("s0004", &ours, "'2026-11-22 09:30Z'"),
    ] {
        stores.change(&update(session_id, &at(time))).await;
    }
    theirs.change("DELETE FROM measurements WHERE session_id = 's0005'").await;
    let found = differences(&ours, &theirs, &["--since", "2026-11-22T09:30:00Z"]);
    let found: Vec<&str> = found.keys().map(String::as_str).collect();
    assert_eq!(found, ["s0001", "s0002", "s0003"]);
    let saved = "SELECT concat_ws(' ', complete, since AT TIME ZONE 'UTC', compared, older) FROM \
        verifications";
    assert_eq!(ours.ask(saved).await, "t 2026-11-22 09:30:00 3 3");
}

#[tokio::test]
async fn the_result_is_kept_and_printed() {
    let (ours, theirs) = two(3).await;
    let output = verify(&ours, &theirs, &[]);
    assert_code(&output, 0);
    let printed = text(&output.stdout);
    assert!(printed.starts_with("equal: 3 sessions compared with "), "{printed}");
    theirs.change(&update("s0002", &moved("left_version", 1))).await;
    let output = verify(&ours, &theirs, &["--json", "--wait", "0", "--after", "s0001"]);
    assert_code(&output, 7);
    let json: Json = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&json["result"], &json["comparison"]), (&"different".into(), &"rows".into()));
    assert_eq!((&json["compared"], &json["differences"]["older"]), (&2.into(), &1.into()));
    assert_eq!(json["first"][0]["session_id"], "s0002");

    let (_, name) = theirs.database_url.split_once('@').expect("a host");
    let against = name.split('?').next().expect("a name");
    let saved = "SELECT string_agg(concat_ws(' ', comparison, against, complete, compared, \
                 missing, extra, older, content), '; ' ORDER BY id) FROM verifications";
    let expected = format!("rows {against} t 3 0 0 0 0; rows {against} f 2 0 0 1 0");
    assert_eq!(ours.ask(saved).await, expected);
}

#[tokio::test]
async fn a_database_that_can_only_be_read_is_compared_and_keeps_no_result() {
    let (ours, theirs) = two(3).await;
    let read_only = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET \
                     default_transaction_read_only = on', current_database()); END $$";
    theirs.change(read_only).await;
    let role = format!("reader_{:08x}", fastrand::u32(..));
    ours.change(&format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'p'; GRANT SELECT ON measurements TO {role}"
    ))
    .await;
    let (_, rest) = ours.database_url.split_once('@').expect("a host");
    let as_reader = Stores { database_url: format!("postgres://{role}:p@{rest}"), ..ours.clone() };
    let output = verify(&as_reader, &theirs, &[]);
    assert_code(&output, 0);
    let line = "no row in verifications keeps this result: the login may not write there";
    assert!(text(&output.stderr).contains(line), "{output:?}");

    ours.change(read_only).await;
    let output = verify(&ours, &theirs, &[]);
    assert_code(&output, 0);
    let line = "no row in verifications keeps this result: the database is read-only";
    assert!(text(&output.stderr).contains(line), "{output:?}");
    assert_eq!(ours.ask("SELECT count(*) FROM verifications").await, "0");
}

/// A range ends at a key of one side, and the other one may have very many rows up to there.
#[tokio::test]
async fn rows_of_one_side_alone_are_found_wherever_they_lie() {
    let (ours, theirs) = two(5_000).await;
    let last = "DELETE FROM measurements WHERE session_id > 's4990'";
    assert_eq!(ours.change(last).await, 10);
    assert_eq!(differences(&ours, &theirs, &[]).len(), 10, "only the other side has the last ones");
    let sides = [(&ours, "'s0001', 's4000'", "missing"), (&theirs, "'s0002', 's4999'", "extra")];
    for (emptied, kept, kind) in sides {
        let others = format!("DELETE FROM measurements WHERE session_id NOT IN ({kept})");
        emptied.change(&others).await;
        let found = differences(&ours, &theirs, &["--max-rate", "1500"]);
        assert_eq!(found.len(), 4_998, "{kind}");
        assert!(found.values().flatten().all(|said| said.starts_with(kind)), "{kind}");
        emptied.change("DELETE FROM measurements").await;
        emptied.change(&rows(5_000)).await;
    }
}

#[tokio::test]
async fn more_differences_than_can_be_kept_end_the_run_with_the_remedy() {
    let (ours, theirs) = (Stores::fresh().await, Stores::fresh().await);
    let many =
        "INSERT INTO measurements (session_id) SELECT 's' || i FROM generate_series(1, 160000) i";
    ours.change(many).await;
    let output = verify(&ours, &theirs, &["--wait", "0"]);
    assert_code(&output, 7);
    let message = text(&output.stderr);
    assert!(message.contains("more than 100000 sessions differ"), "{message}");
    assert!(message.contains("`backfill merge`"), "{message}");
    assert!(text(&output.stdout).starts_with("different: "), "{output:?}");
    assert_eq!(ours.ask("SELECT complete FROM verifications").await, "false");
}

fn running(ours: &Stores, theirs: &Stores, arguments: &[&str]) -> Command {
    let mut command = Command::new(testkit::emulator::binary("backfill"));
    command
        .args(["verify", "--against", &theirs.database_url])
        .args(arguments)
        .env("DATABASE_URL", &ours.database_url)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true);
    command
}

/// A password on a command line is seen by everybody on the machine.
#[tokio::test]
async fn the_peer_may_come_from_its_variable_and_is_not_our_own_database() {
    let (ours, theirs) = two(3).await;
    let run = async |url: &str| {
        let mut command = Command::new(testkit::emulator::binary("backfill"));
        command.args(["verify", "--against"]).env("DATABASE_URL", &ours.database_url);
        command.env("PEER_DATABASE_URL", url).output().await.expect("backfill runs")
    };
    assert_code(&run(&theirs.database_url).await, 0);
    for (url, named) in
        [("", "is not set"), (&ours.database_url, "is the database of DATABASE_URL")]
    {
        let output = run(url).await;
        assert_code(&output, 2);
        let message = text(&output.stderr);
        assert!(message.contains("PEER_DATABASE_URL") && message.contains(named), "{message}");
        assert_eq!(text(&output.stdout), "");
    }
}

#[tokio::test]
async fn a_signal_ends_the_run_with_what_is_known_and_the_rest_is_compared_after_it() {
    let (ours, theirs) = two(2_500).await;
    theirs.change(&update("s1500", &moved("left_version", 1))).await;
    let mut child = running(&ours, &theirs, &["--wait", "600"]).spawn().expect("backfill runs");
    let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    let mut message = String::new();
    while let Some(line) = lines.next_line().await.expect("text") {
        if line.contains("read again in 600 s") {
            signal(&child, "INT");
        }
        message = message + &line + "\n";
    }
    let output = child.wait_with_output().await.expect("its output");
    assert_code(&output, 6);
    let printed = text(&output.stdout);
    assert!(printed.starts_with("stopped, no difference so far: "), "{printed}");
    assert!(printed.contains("not confirmed: 1 sessions"), "{printed}");
    assert!(printed.contains(": s1500\n"), "{printed}");
    let (_, after) = message.split_once("--after '").expect("where to resume");
    let (after, _) = after.split_once('\'').expect("its end");
    assert_eq!(after, "s1000", "{message}");
    let rest = differences(&ours, &theirs, &["--after", after]);
    assert_eq!(rest.into_keys().collect::<Vec<_>>(), ["s1500"]);
    let after_it = differences(&ours, &theirs, &["--after", "s1500"]);
    assert_eq!(after_it, BTreeMap::new());
}

/// The next batch of changes of some hot sessions.
fn batch(number: u128) -> Vec<Record> {
    let mut records = Vec::new();
    for place in 0..20 {
        let id = format!("s{:04}", fastrand::u32(1..=200));
        let sequence_number = 1_000_000 + number * 100 + place;
        let draft = match fastrand::u8(0..4) {
            0 => session(&id, &format!("user {sequence_number}")),
            1 => testkit::records::removal(&scan(&id, "right", "1")),
            2 => scan(&id, "right", &format!("{}.{}", fastrand::u8(1..), fastrand::u8(..))),
            _ => scan(&id, "left", &format!("{}.{}", fastrand::u8(1..), fastrand::u8(..))),
        };
        records.push(draft.place(LABEL, sequence_number));
    }
    records
}

/// A side is at most this many batches behind the other one.
const BATCHES_BEHIND: usize = 3;

/// How long writers write: some seconds, or as many minutes' worth as `VERIFY_TEST_SECONDS` says.
fn duration() -> Duration {
    let seconds = std::env::var("VERIFY_TEST_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(12))
}

/// Both databases get the same changes, each side now and then a second later than the other one.
#[tokio::test(flavor = "multi_thread")]
async fn rows_under_constant_writes_are_no_difference_and_a_fault_among_them_is_one() {
    let (ours, theirs) = two(3_000).await;
    theirs.change(&update("s2000", &moved("right_version", 5))).await;
    let start = Instant::now();
    // Bounded: on a busy machine the sides must not drift apart further and further, since then
    // differences do persist.
    let (sender_ours, receiver_ours) = tokio::sync::mpsc::channel(BATCHES_BEHIND);
    let (sender_theirs, receiver_theirs) = tokio::sync::mpsc::channel(BATCHES_BEHIND);
    let writer = |stores: &Stores, mut receiver: tokio::sync::mpsc::Receiver<Vec<Record>>, turn| {
        let projector = stores.projector_without_archive(&stores.database_url, 1);
        tokio::spawn(async move {
            while let Some(records) = receiver.recv().await {
                if start.elapsed().as_secs() % 4 == turn {
                    tokio::time::sleep(Duration::from_millis(400)).await;
                }
                apply(&projector, &records).await;
            }
        })
    };
    let writers = [writer(&ours, receiver_ours, 0), writer(&theirs, receiver_theirs, 2)];
    let writing = tokio::spawn(async move {
        for number in 0.. {
            if start.elapsed() > duration() {
                break;
            }
            let records = batch(number);
            sender_ours.send(records.clone()).await.expect("a writer");
            sender_theirs.send(records).await.expect("a writer");
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    });
    let mut runs = 0;
    while !writing.is_finished() {
        for mode in [&["--sample", "0"][..], &["--deep"]] {
            let arguments = [&["--wait", "1", "--rounds", "8"][..], mode].concat();
            let output = running(&ours, &theirs, &arguments).output().await.expect("backfill runs");
            assert_code(&output, 7);
            let printed = text(&output.stdout);
            let named = "older   s2000 right: our row is older";
            assert!(printed.contains(named), "{printed}");
            assert!(printed.contains("older              1\n"), "{printed}");
            assert_eq!(printed.lines().count(), 6, "no other difference: {printed}");
            runs += 1;
        }
    }
    writing.await.expect("all is written");
    for writer in writers {
        writer.await.expect("all is applied");
    }
    assert!(runs >= 2);
    ours.change(&update("s2000", &moved("right_version", 5))).await;
    assert_code(&verify(&ours, &theirs, &["--deep", "--wait", "1"]), 0);
}
