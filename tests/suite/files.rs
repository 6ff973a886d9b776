//! `backfill file`: what can be read is applied, the rest is named, and nothing is left out without
//! a word.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use tempfile::TempDir;
use testkit::emulator::{binary, event};
use testkit::oracle;
use testkit::records::{LABEL, Record, session};
use testkit::runs::{assert_code, backfill, counted, signal, text, until, watched};
use testkit::services::Stores;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _};
use tokio::process::Child;

/// The stream of the cases' records.
const STREAM: &str =
    "arn:aws:dynamodb:us-east-1:123456789012:table/sessions/stream/2026-11-22T00:00:00.000";

fn case(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases").join(name);
    path.to_str().expect("a path").to_owned()
}

/// One session per number.
fn sessions(numbers: std::ops::Range<u128>) -> Vec<Record> {
    numbers.map(|number| session(&format!("s{number:05}"), "u").place(LABEL, 1 + number)).collect()
}

fn lines(records: &[Record]) -> String {
    records.iter().flat_map(|record| [record.json.as_str(), "\n"]).collect()
}

fn gzip(content: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(content.as_bytes()).expect("gzip");
    encoder.finish().expect("gzip")
}

/// A folder to put files into.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("a path").to_owned()
    }

    fn put(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        fs::create_dir_all(self.path(name).parent().expect("a folder")).expect("a folder");
        fs::write(self.path(name), content).expect("a file");
        self.text(name)
    }
}

/// A run that connects to nothing.
fn dry(arguments: &[&str]) -> Output {
    Command::new(binary("backfill"))
        .args(["file", "--dry-run"])
        .args(arguments)
        .env_remove("DATABASE_URL")
        .stdin(Stdio::null())
        .output()
        .expect("backfill runs")
}

/// Sees that the log names this file, with this place and reason.
#[track_caller]
fn assert_named(output: &Output, file: &str, rest: &str) {
    let log = text(&output.stderr);
    let named = log.lines().any(|line| {
        line.split_once(file).is_some_and(|(_, line)| line.starts_with(": ") && line.contains(rest))
    });
    assert!(named, "{file}: {rest}\n{log}");
}

/// What becomes of a case: its arguments, the exit code, how many records are applied and rejected,
/// and a reason.
type Case = (&'static str, &'static [&'static str], i32, u64, u64, &'static str);

const CASES: [Case; 23] = [
    ("E06-binary-forms.json", &[], 3, 2, 5, "the attribute mesh"),
    ("E07-pipes-one-line.json", &[], 0, 2, 0, ""),
    ("E07-pipes-pretty.json", &[], 0, 2, 0, ""),
    ("E07-pipes.jsonl", &[], 0, 2, 0, ""),
    ("E13-window-before.json", &[], 0, 1, 0, ""),
    ("E13-window-after.json", &[], 0, 1, 0, ""),
    ("E13-window-final.json", &[], 0, 0, 0, "there are no records in these files"),
    ("E16-ttl-on-replica.json", &[], 0, 2, 0, ""),
    ("E19-cli.json", &[], 1, 0, 0, "line 3, byte offset 27: records without eventSourceARN"),
    ("E19-cli.json", &["--stream-arn", STREAM], 0, 2, 0, ""),
    ("E19-event-sorted-one-line.json", &[], 0, 2, 0, ""),
    ("E19-event-sorted-one-line.jsonl", &["--stream-arn", STREAM], 0, 2, 0, ""),
    ("E20-export-full.json", &[], 1, 0, 0, "line 1, byte offset 0: an item of an export"),
    ("E20-export-incremental.jsonl", &[], 1, 0, 0, "line 1, byte offset 0: an item of an export"),
    ("E21-bom-event.json", &[], 0, 1, 0, ""),
    ("E21-bom.jsonl", &[], 0, 2, 0, ""),
    ("E21-crlf.jsonl", &[], 0, 2, 0, ""),
    ("E21-gzip-unnamed.json", &[], 0, 1, 0, ""),
    ("E21-no-breaks.json", &[], 0, 2, 0, ""),
    ("E21-no-breaks.jsonl", &[], 0, 2, 0, ""),
    ("E21-pretty-record.json", &[], 0, 1, 0, ""),
    ("E21-pretty-records.json", &[], 0, 2, 0, ""),
    ("E21-utf16.json", &[], 1, 0, 0, "UTF-16: convert it with `iconv -f UTF-16 -t UTF-8`"),
];

/// A run on the database alone.
fn without_archive(stores: &Stores, arguments: &[&str]) -> Output {
    Command::new(binary("backfill"))
        .args(arguments)
        .env("DATABASE_URL", &stores.database_url)
        .env_remove("ARCHIVE_BUCKET")
        .output()
        .expect("backfill runs")
}

#[tokio::test]
async fn every_case_ends_as_it_should() {
    for entry in fs::read_dir(case("")).expect("the cases") {
        let name = entry.expect("a case").file_name().into_string().expect("a name");
        let known = CASES.iter().any(|(case, ..)| *case == name);
        assert!(known || name == "README.md", "{name} is in no case");
    }
    let stores = Stores::fresh().await;
    for (name, more, code, applied, rejected, reason) in CASES {
        let empty = "TRUNCATE measurements, rejected_records";
        stores.change(empty).await;
        let path = case(name);
        let arguments = [&["file", path.as_str()], more].concat();
        let output = without_archive(&stores, &arguments);
        assert_code(&output, code);
        let (said, log) = (text(&output.stdout), text(&output.stderr));
        assert!(said.contains(reason) || log.contains(reason), "{name}: {said}\n{log}");
        let records = if name.starts_with("E16") { applied + 2 } else { applied };
        let counts = ["applied", "superseded", "rejected"].map(|count| counted(&output, count));
        assert_eq!((counts[0] + counts[1], counts[2]), (records, rejected), "{name}: {said}");
        assert_eq!(stores.rows().await.len() as u64, applied, "{name}");
        assert_eq!(stores.rejected().await as u64, rejected, "{name}");
        // A dry run comes to the same.
        assert_code(&dry(&[&[path.as_str()], more].concat()), code);
    }
}

#[tokio::test]
async fn a_malformed_binary_is_rejected_and_the_reason_names_its_attribute() {
    let stores = Stores::fresh().await;
    assert_code(&backfill(&stores, &["file", &case("E06-binary-forms.json")]), 3);
    let named = "SELECT count(*) FROM rejected_records WHERE reason LIKE '%the attribute mesh%'";
    assert_eq!(stores.ask(named).await, "5");
}

#[tokio::test]
async fn a_bad_file_holds_up_no_other() {
    let (stores, folder) = (Stores::fresh().await, Folder::new());
    let records = sessions(0..6);
    folder.put("a.jsonl", lines(&records[..2]));
    folder.put("b.json", "{\"Records\": [");
    folder.put("c.log", "2026-11-22T08:00:00Z START\n2026-11-22T08:00:01Z END\n");
    folder.put("d/e.json", event(records[2..4].iter().map(|record| record.json.as_str())));
    // A link to nowhere, and a file that opens and cannot be read.
    symlink("nowhere", folder.path("f.json")).expect("a link");
    symlink("/proc/self/mem", folder.path("g.json")).expect("a link");
    folder.put("h.json", "{\"ping\":1}");
    symlink(".", folder.path("i")).expect("a link");
    folder.put(".hidden", "{");
    folder.put("z.jsonl.gz", gzip(&lines(&records[4..])));

    for dry_run in [true, false] {
        let path = folder.text("");
        let output =
            if dry_run { dry(&[&path]) } else { backfill(&stores, &["file", path.as_str()]) };
        assert_code(&output, 1);
        assert_named(&output, "b.json", "line 1, byte offset 0: the input ends in the middle of");
        assert_named(&output, "c.log", "lines 1 to 2, byte offset 0: no JSON object or list");
        assert_named(&output, "f.json", "No such file");
        assert_named(&output, "g.json", "rror");
        assert_named(&output, "h.json", "line 1, byte offset 0: neither a change record nor");
        let said = text(&output.stdout);
        assert!(said.contains("files: 3 of 8 read in full\n       5 not read\n"), "{said}");
        assert!(said.contains("1 left out, because their names begin with a dot"), "{said}");
        assert!(
            text(&output.stderr).contains("5 of 8 files could not be read in full"),
            "{output:?}"
        );
        assert!(said.contains("6 records"), "{said}");
    }
    assert_eq!(stores.rows().await, oracle::rows(&records));
    assert_eq!(stores.rejected().await, 0, "what is no record is not rejected");
}

#[tokio::test]
async fn a_misspelt_path_ends_the_run_before_anything_is_written() {
    let (stores, folder) = (Stores::fresh().await, Folder::new());
    let good = folder.put("a.jsonl", lines(&sessions(0..2)));
    let output = backfill(&stores, &["file", &good, &folder.text("b.jsonl")]);
    assert_code(&output, 1);
    assert!(text(&output.stderr).contains("b.jsonl: No such file"), "{output:?}");
    assert_eq!(stores.rows().await.len(), 0);
}

#[tokio::test]
async fn a_broken_line_costs_that_line_and_is_named() {
    let (stores, folder) = (Stores::fresh().await, Folder::new());
    let records = sessions(0..5);
    let cut = &records[1].json[..records[1].json.len() / 2];
    let export = r#"{"Item":{"session_id":{"S":"x"}}}"#;
    let first = lines(&records[..1]);
    let content = format!(
        "{first}{cut}\n{}{export}\n{export}\n{}",
        lines(&records[2..3]),
        lines(&records[3..]).trim_end()
    );
    let output = backfill(&stores, &["file", &folder.put("a.jsonl", &content)]);
    assert_code(&output, 1);
    let second = first.len();
    assert_named(&output, "a.jsonl", &format!("line 2, byte offset {second}: not JSON"));
    let fourth = content.find(export).expect("an export");
    assert_named(
        &output,
        "a.jsonl",
        &format!("line 4, byte offset {fourth}: an item of an export"),
    );
    assert_named(&output, "a.jsonl", "(and 1 more for this reason)");
    let said = text(&output.stdout);
    assert!(said.contains("files: 0 of 1 read in full\n       1 read in part\n"), "{said}");
    let good = records.iter().enumerate().filter(|(index, _)| *index != 1);
    assert_eq!(stores.rows().await, oracle::rows(good.map(|(_, record)| record)));
    assert_eq!(stores.rejected().await, 0);
}

#[tokio::test]
async fn a_truncated_gzip_is_applied_up_to_its_end() {
    let (stores, folder) = (Stores::fresh().await, Folder::new());
    let records = sessions(0..5_000);
    let mut packed = gzip(&lines(&records));
    packed.truncate(packed.len() / 2);
    let mut plain = Vec::new();
    std::io::copy(&mut flate2::read::GzDecoder::new(&packed[..]), &mut plain)
        .expect_err("it is truncated");
    let whole = String::from_utf8_lossy(&plain).matches('\n').count();
    assert!(whole > 1_000, "{whole}");
    let output = without_archive(&stores, &["file", &folder.put("a.jsonl.gz", packed)]);
    assert_code(&output, 1);
    assert_named(&output, "a.jsonl.gz", &format!("line {}, byte offset", whole + 1));
    assert_named(&output, "a.jsonl.gz", "the gzip file is truncated here");
    assert_eq!(counted(&output, "applied"), whole as u64);
    assert_eq!(stores.rows().await, oracle::rows(&records[..whole]));

    // Of an event, on one line, the records that are complete.
    let mut packed = gzip(&event(records.iter().map(|record| record.json.as_str())));
    packed.truncate(packed.len() / 2);
    let mut plain = Vec::new();
    std::io::copy(&mut flate2::read::GzDecoder::new(&packed[..]), &mut plain)
        .expect_err("it is truncated");
    let mut end = r#"{"Records":["#.len();
    let whole = records.iter().take_while(|record| {
        end += record.json.len();
        let complete = end <= plain.len();
        end += ",".len();
        complete
    });
    let whole = whole.count();
    assert!(whole > 1_000, "{whole}");
    let output = dry(&[&folder.put("event", packed)]);
    assert_code(&output, 1);
    assert_named(&output, "event", "line 1, byte offset 0: the gzip file is truncated here");
    let said = text(&output.stdout);
    assert!(said.contains(&format!("{whole} records, 0 would be rejected")), "{said}");

    // Of several members, the last is truncated.
    let mut members = [gzip(&lines(&records[..2])), gzip(&lines(&records[2..4]))].concat();
    assert_code(&dry(&[&folder.put("b", &members)]), 0);
    members.truncate(members.len() - 3);
    let output = dry(&[&folder.put("b", members)]);
    assert_code(&output, 1);
    assert!(text(&output.stdout).contains("4 records, 0 would be rejected"), "{output:?}");
}

/// Counted by the statements that the database sees, so that no clock plays a part.
#[tokio::test]
async fn a_batch_spans_files() {
    let (stores, folder) = (Stores::fresh().await, Folder::new());
    let counter = "CREATE SEQUENCE statements;
        CREATE FUNCTION counted() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM nextval('statements'); RETURN NULL; END $$;
        CREATE TRIGGER counted AFTER INSERT ON measurements FOR EACH STATEMENT EXECUTE FUNCTION counted()";
    stores.change(counter).await;
    let records = sessions(0..600);
    for (index, record) in records.iter().enumerate() {
        folder.put(&format!("{index:04}.json"), &record.json);
    }
    let output = without_archive(&stores, &["file", &folder.text("")]);
    assert_code(&output, 0);
    assert_eq!(stores.rows().await, oracle::rows(&records));
    let statements: u64 =
        stores.ask("SELECT last_value FROM statements").await.parse().expect("a number");
    assert!(statements <= 5, "{statements} statements for 600 records in 600 files");
    assert!(text(&output.stdout).contains("files: 600 of 600 read in full"), "{output:?}");
}

/// A file without an end would take all memory, if it were read as one line.
#[test]
fn a_file_without_line_breaks_takes_bounded_memory() {
    let folder = Folder::new();
    let record = &sessions(0..1)[0].json;
    let huge = folder.put("a.json", "{\"a\":\"");
    let file = fs::File::options().append(true).open(&huge).expect("a file");
    file.set_len(8 << 30).expect("a sparse file");
    let good = folder.put("b.json", record);
    let script = "ulimit -v 2000000; exec \"$@\"";
    let output = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(binary("backfill"))
        .args(["file", "--dry-run", &huge, &good])
        .env_remove("DATABASE_URL")
        .output()
        .expect("backfill runs");
    assert_code(&output, 1);
    assert_named(&output, "a.json", "line 1, byte offset 0: not JSON: control character");
    assert_named(&output, "a.json", "the rest is not read");
    assert!(text(&output.stdout).contains("1 records, 0 would be rejected"), "{output:?}");
}

#[tokio::test]
async fn standard_input_is_read_plain_and_compressed() {
    let stores = Stores::fresh().await;
    let records = sessions(0..4);
    for (content, of) in [
        (lines(&records[..2]).into_bytes(), &records[..2]),
        (gzip(&lines(&records[2..])), &records[2..]),
    ] {
        let mut run = Command::new(binary("backfill"))
            .args(["file", "-"])
            .env("DATABASE_URL", &stores.database_url)
            .env_remove("ARCHIVE_BUCKET")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("backfill runs");
        run.stdin.take().expect("its input").write_all(&content).expect("written");
        let output = run.wait_with_output().expect("it ends");
        assert_code(&output, 0);
        assert_eq!(counted(&output, "applied"), of.len() as u64);
    }
    assert_eq!(stores.rows().await, oracle::rows(&records));
    assert_code(&dry(&["-", "-"]), 1);
    let nothing = dry(&["-"]);
    assert_code(&nothing, 1);
    assert_named(&nothing, "standard input", "empty");
}

#[test]
fn no_files_no_documents_and_no_records_are_told_apart() {
    let folder = Folder::new();
    fs::create_dir(folder.path("none")).expect("a folder");
    folder.put("hidden/.a", "{}");
    for (path, hint) in
        [("none", ""), ("hidden", " (1 left out, because their names begin with a dot)")]
    {
        let output = dry(&[&folder.text(path)]);
        assert_code(&output, 1);
        let expected = format!(
            "no files in {}{hidden}: is this the right path?",
            folder.text(path),
            hidden = hint
        );
        assert!(text(&output.stderr).contains(&expected), "{output:?}");
        assert_eq!(text(&output.stdout), "");
    }
    // Beside a path with files it is said, and holds nothing up.
    let good = folder.put("a.jsonl", lines(&sessions(0..1)));
    let output = dry(&[&folder.text("none"), &good]);
    assert_code(&output, 0);
    let expected = format!("no files in {}", folder.text("none"));
    assert!(text(&output.stderr).contains(&expected), "{output:?}");
    folder.put("empty/a", "");
    folder.put("empty/b", "\n \n");
    let output = dry(&[&folder.text("empty")]);
    assert_code(&output, 1);
    assert!(text(&output.stderr).contains("no document in any file (2 read)"), "{output:?}");
    assert!(
        text(&output.stdout).contains("files: 2 of 2 read in full\n       2 of those empty"),
        "{output:?}"
    );
    // The last call of a window: a document, with nothing to do.
    folder.put("final/a.json", r#"{"window":{},"Records":[]}"#);
    let output = dry(&[&folder.text("final")]);
    assert_code(&output, 0);
    assert!(text(&output.stdout).contains("there are no records in these files"), "{output:?}");
}

/// Its files are read once, as those of the folder around it.
#[test]
fn a_folder_given_beside_its_parent_is_not_taken_for_empty() {
    let folder = Folder::new();
    folder.put("day/sub/deep/a.jsonl", lines(&sessions(0..1)));
    fs::create_dir(folder.path("day/none")).expect("a folder");
    let [day, sub, deep, none] =
        ["day", "day/sub", "day/sub/deep", "day/none"].map(|name| folder.text(name));
    for paths in [[&day, &sub], [&sub, &day], [&deep, &sub]] {
        let output = dry(&paths.map(String::as_str));
        assert_code(&output, 0);
        assert!(text(&output.stdout).contains("files: 1 of 1 read in full"), "{output:?}");
        assert!(!text(&output.stderr).contains("no files in"), "{output:?}");
    }
    let output = dry(&[&day, &none]);
    assert_code(&output, 0);
    assert!(text(&output.stderr).contains(&format!("no files in {none}: ")), "{output:?}");
}

#[tokio::test]
async fn foreign_records_hold_up_no_others_and_alone_mean_a_wrong_variable() {
    let (stores, folder) = (Stores::fresh().await, Folder::new());
    let records = sessions(0..2);
    let foreign = records[0].json.replace("table/sessions/", "table/orders/");
    let other = folder.put("a/a.json", &foreign);
    folder.put("a/b.json", &records[1].json);
    let output = backfill(&stores, &["file", &folder.text("a")]);
    assert_code(&output, 1);
    assert_named(&output, "a.json", "of table \"orders\", but SESSIONS_TABLE is \"sessions\"");
    assert_eq!(stores.rows().await, oracle::rows(&records[1..]));
    let output = backfill(&stores, &["file", &other]);
    assert_code(&output, 2);
    assert!(
        text(&output.stderr).contains("SESSIONS_TABLE or SCANS_TABLE is wrong, or the path"),
        "{output:?}"
    );
    let wrong = dry(&[&other, "--stream-arn", &STREAM.replace("sessions", "orders")]);
    assert_code(&wrong, 2);
    assert!(
        text(&wrong.stderr).contains("--stream-arn names a stream of table \"orders\""),
        "{wrong:?}"
    );
}

/// Waits for this many rows.
async fn rows(stores: &Stores, count: usize) {
    let start = Instant::now();
    while stores.rows().await.len() < count {
        assert!(start.elapsed() < Duration::from_mins(1), "no {count} rows");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn from_standard_input(stores: &Stores) -> Child {
    watched(stores, &["file", "--batch-size", "2", "-"])
        .env_remove("ARCHIVE_BUCKET")
        .stdin(Stdio::piped())
        .spawn()
        .expect("backfill runs")
}

/// The input stays open, and a thread waits for it.
#[tokio::test]
async fn a_signal_ends_a_run_that_waits_for_its_input() {
    for name in ["TERM", "INT"] {
        let stores = Stores::fresh().await;
        let mut run = from_standard_input(&stores);
        let mut input = run.stdin.take().expect("its input");
        input.write_all(lines(&sessions(0..3)).as_bytes()).await.expect("written");
        input.flush().await.expect("written");
        rows(&stores, 2).await;
        signal(&run, name);
        let output = tokio::time::timeout(Duration::from_mins(1), run.wait_with_output()).await;
        let output = output.expect("it ends").expect("it ends");
        assert_code(&output, 6);
        let said = text(&output.stdout);
        assert!(said.contains("stopped by a signal: 2 records"), "{said}");
        let log = text(&output.stderr);
        assert!(log.contains("what is stored already counts as duplicate"), "{log}");
        drop(input);
    }
}

#[tokio::test]
async fn after_a_signal_the_batches_under_way_are_finished_and_none_is_begun() {
    let (stores, folder) = (Stores::fresh().await, Folder::new());
    let records = sessions(0..100);
    let path = folder.put("a.jsonl", lines(&records));
    // The first batch waits for this lock, and the second one, too.
    let mut holder = stores.connect().await;
    let lock = "BEGIN; LOCK TABLE measurements IN EXCLUSIVE MODE";
    holder.run(lock).await;
    let mut run = watched(&stores, &["file", "--batch-size", "10", &path])
        .env_remove("ARCHIVE_BUCKET")
        .spawn()
        .expect("backfill runs");
    let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted \
                   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    until("two batches that wait", async || stores.ask(waiting).await == "2").await;
    signal(&run, "TERM");
    // Once it has seen the signal, the batches may go on.
    let mut log = tokio::io::BufReader::new(run.stderr.take().expect("its log")).lines();
    let seen = async {
        while let Some(line) = log.next_line().await.expect("its log") {
            if line.starts_with("stopping once the work under way is stored") {
                return;
            }
        }
        panic!("it does not say that it stops");
    };
    tokio::time::timeout(Duration::from_mins(1), seen).await.expect("it sees the signal");
    holder.run("COMMIT").await;
    let output = run.wait_with_output().await.expect("it ends");
    assert_code(&output, 6);
    assert_eq!(counted(&output, "applied"), 20, "{}", text(&output.stdout));
    assert_eq!(stores.rows().await, oracle::rows(&records[..20]));
    // The same command goes on.
    let again = without_archive(&stores, &["file", &path]);
    assert_code(&again, 0);
    assert_eq!((counted(&again, "applied"), counted(&again, "duplicate")), (80, 20));
}

/// A batch that finishes after the signal gave the next one the whole grace period again, and the
/// run was killed without its summary.
#[tokio::test]
async fn a_batch_that_finishes_after_a_signal_does_not_delay_the_end() {
    let (stores, folder) = (Stores::fresh().await, Folder::new());
    let path = folder.put("a.jsonl", lines(&sessions(0..2)));
    let slow = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_sleep(CASE new.session_id WHEN 's00000' THEN 4 ELSE 18 END);
            RETURN new;
        END $$;
        CREATE TRIGGER slow BEFORE INSERT ON measurements FOR EACH ROW EXECUTE FUNCTION slow()";
    stores.change(slow).await;
    let run = watched(&stores, &["file", "--batch-size", "1", &path])
        .env_remove("ARCHIVE_BUCKET")
        .spawn()
        .expect("backfill runs");
    let sleeping = "SELECT count(*) FROM pg_stat_activity \
        WHERE wait_event = 'PgSleep' AND datname = current_database()";
    until("two batches in the database", async || stores.ask(sleeping).await == "2").await;
    signal(&run, "INT");
    let output = run.wait_with_output().await.expect("it ends");
    assert_code(&output, 6);
    let said = text(&output.stdout);
    assert!(said.starts_with("stopped by a signal: 1 records"), "{output:?}");
    assert_eq!(counted(&output, "not counted"), 1, "{said}");
    let log = text(&output.stderr);
    assert!(log.contains("1 batches were not finished within 10 s"), "{log}");
}

#[tokio::test]
async fn a_run_that_an_error_stops_names_the_files_that_are_done() {
    let (stores, folder) = (Stores::fresh().await, Folder::new());
    let records = sessions(0..4);
    for (index, record) in records.iter().enumerate() {
        folder.put(&format!("{index}.json"), &record.json);
    }
    let refuse = "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE 'no' USING ERRCODE = '42501'; END $$;
        CREATE TRIGGER no BEFORE INSERT ON measurements FOR EACH ROW
        WHEN (new.session_id >= 's00002') EXECUTE FUNCTION no()";
    stores.change(refuse).await;
    let output = backfill(&stores, &["file", "--batch-size", "1", &folder.text("")]);
    assert_code(&output, 2);
    let log = text(&output.stderr);
    let third = folder.text("2.json");
    let (cause, resume) = log.trim_end().rsplit_once('\n').expect("two lines");
    assert!(cause.lines().last().expect("a cause").starts_with("backfill: "), "{log}");
    let stopped = format!("stopped in the batch that ends at record 1 of {third}; 2 of 4 files");
    assert!(resume.starts_with(&stopped), "{log}");
    assert!(log.contains(&format!("2 of 4 files are done (all before {third})")), "{log}");
    assert!(text(&output.stdout).contains("stopped by an error: 2 records"), "{output:?}");
    assert_eq!(stores.rows().await, oracle::rows(&records[..2]));
}
