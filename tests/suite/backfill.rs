//! The `backfill` binary, as an operator runs it.

use projector::deadline::Deadline;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;
use testkit::emulator::{binary, event};
use testkit::generate::{self, SMALL};
use testkit::mapping;
use testkit::oracle;
use testkit::records::{LABEL, Record, Table, session};
use testkit::runs::{assert_code, backfill, command, counted, label, now, output, stream, text};
use testkit::s3_gate::{Fault, S3Gate};
use testkit::services::{Stores, parsed, service};
use testkit::stream_server::StreamServer;

fn fixture(name: &str) -> String {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name);
    path.to_str().expect("a path").to_owned()
}

#[tokio::test]
async fn the_small_fixture_from_files_ends_in_its_rows_and_a_replay_changes_nothing() {
    let stores = Stores::unmigrated().await;
    let files = [fixture("small/sessions.jsonl"), fixture("small/scans.jsonl")];
    let arguments = ["file", &files[0], &files[1]];

    let unmigrated = backfill(&stores, &arguments);
    assert_code(&unmigrated, 2);
    assert!(
        text(&unmigrated.stderr).contains("run `backfill migrate` against it"),
        "{}",
        text(&unmigrated.stderr)
    );
    // The cause, and how to resume.
    assert_eq!(
        text(&unmigrated.stderr).trim_end().lines().count(),
        2,
        "{}",
        text(&unmigrated.stderr)
    );

    let pending = backfill(&stores, &["migrate", "--dry-run"]);
    assert!(text(&pending.stdout).contains("pending"), "{pending:?}");
    for expected in ["applied   ", "already applied"] {
        let migrated = backfill(&stores, &["migrate"]);
        assert!(migrated.status.success(), "{migrated:?}");
        assert!(text(&migrated.stdout).contains(expected), "{migrated:?}");
    }

    let (sessions, scans) = generate::day(SMALL);
    let records = [sessions, scans].concat();
    let first = backfill(&stores, &arguments);
    assert_eq!(first.status.code(), Some(3), "some records are malformed: {first:?}");
    assert_eq!(stores.rows().await, oracle::rows(&records));
    assert!(counted(&first, "rows written") >= stores.rows().await.len() as u64, "{first:?}");
    assert!(counted(&first, "rejected") > 10, "{first:?}");
    assert!(
        text(&first.stdout).contains("× the attribute started_at is not an RFC 3339 time"),
        "{first:?}"
    );

    let (places, objects) = (stores.row_places().await, stores.objects().await);
    let again = backfill(&stores, &arguments);
    for name in ["applied", "rows written", "objects written"] {
        assert_eq!(counted(&again, name), 0, "{name}");
    }
    assert_eq!(stores.row_places().await, places);
    assert!(stores.objects().await == objects);
}

#[tokio::test]
async fn every_form_of_file_is_read() {
    let stores = Stores::fresh().await;
    let records: Vec<Record> =
        (1..=14).map(|index| session(&format!("s{index}"), "u").place(LABEL, index)).collect();
    let json: Vec<&str> = records.iter().map(|record| record.json.as_str()).collect();
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("a path").to_owned();
    let gzip = |content: &str| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(content.as_bytes()).expect("gzip");
        encoder.finish().expect("gzip")
    };
    let pretty: serde_json::Value =
        serde_json::from_str(&event(json[2..4].iter().copied())).expect("JSON");
    let gave_up = mapping::failure(100, &records[12..]);
    let files: [(&str, Vec<u8>); 9] = [
        ("event.json", event(json[..2].iter().copied()).into_bytes()),
        ("pretty.json", serde_json::to_string_pretty(&pretty).expect("JSON").into_bytes()),
        ("records.jsonl", format!("{}\r\n\n{}\n", json[4], json[5]).into_bytes()),
        ("records.jsonl.gz", gzip(&json[6..8].join("\n"))),
        ("events.jsonl", event(json[8..10].iter().copied()).into_bytes()),
        ("event.json.gz", gzip(&event(json[10..11].iter().copied()))),
        ("records", json[11..12].join("\n").into_bytes()),
        // As Lambda names and writes them, and as somebody formats them to have a look.
        ("2026/11/22/2026-11-22T08.10.00-1b2c", gave_up.to_string().into_bytes()),
        ("2026/11/22/2026-11-22T08.10.01-3d4e", serde_json::to_vec_pretty(&gave_up).expect("JSON")),
    ];
    let mut arguments = vec!["file".to_owned(), "--batch-size".to_owned(), "3".to_owned()];
    for (name, content) in files {
        let folder = Path::new(&path(name)).parent().map(Path::to_owned).expect("a folder");
        std::fs::create_dir_all(folder).expect("a folder");
        std::fs::write(path(name), content).expect("a file");
        // A folder stands for all below it.
        let argument = path(name.split('/').next().expect("a name"));
        if !arguments.contains(&argument) {
            arguments.push(argument);
        }
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = backfill(&stores, &arguments);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(counted(&output, "applied"), 14);
    // Those that Lambda gave up on twice; the two files are on their way at the same time.
    assert_eq!(counted(&output, "duplicate") + counted(&output, "stale"), 2);
    assert_eq!(stores.rows().await, oracle::rows(&records));

    // A queue or a topic gets no records: they must not vanish without a word.
    let mut without_records = gave_up;
    without_records.as_object_mut().expect("an object").remove("payload");
    std::fs::write(path("from-a-queue.json"), without_records.to_string()).expect("a file");
    let output = backfill(&stores, &["file", &path("from-a-queue.json")]);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(
        message.contains("without its records")
            && message.contains("shardId-00000001795305600000-1b2c3d4e"),
        "{message}"
    );
    assert!(message.contains("`backfill stream` reads them again"), "{message}");
    std::fs::write(path("notes.txt"), "not a stream\nat all\n").expect("a file");
    let output = backfill(&stores, &["file", &path("notes.txt")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("neither a Lambda event"), "{output:?}");
    let output = backfill(&stores, &["file", &path("no-such-file.jsonl")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no-such-file.jsonl"), "{output:?}");
}

#[test]
fn a_dry_run_needs_no_database_and_says_what_would_be_rejected() {
    let output = Command::new(binary("backfill"))
        .args(["file", "--dry-run", &fixture("small/scans.jsonl")])
        .env_remove("DATABASE_URL")
        .output()
        .expect("backfill runs");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(text(&output.stdout).contains("dry run, nothing was written"), "{output:?}");
    assert!(text(&output.stdout).contains("foot_length_mm is not more than 0"), "{output:?}");
}

#[test]
fn wrong_flags_and_variables_end_with_code_2_and_name_themselves() {
    let run = |arguments: &[&str], variable: (&str, &str)| {
        let output = Command::new(binary("backfill"))
            .args(arguments)
            .env_remove("DATABASE_URL")
            .env(variable.0, variable.1)
            .output()
            .expect("backfill runs");
        (output.status.code(), text(&output.stderr))
    };
    let file = fixture("small/scans.jsonl");
    let none = ("UNUSED", "");
    let (code, message) = run(&["file", &file], none);
    assert_eq!(
        (code, message.starts_with("backfill: DATABASE_URL is not set")),
        (Some(2), true),
        "{message}"
    );
    let (code, message) = run(&["file", &file], ("DATABASE_CONNECTIONS", "many"));
    assert_eq!(code, Some(2));
    assert!(message.contains("DATABASE_URL is not set"), "{message}");
    let (code, message) =
        run(&["file", &file, "--database-url", "postgres://h/d", "--ttl-removals", "x"], none);
    assert_eq!(code, Some(2));
    assert!(message.starts_with("backfill: TTL_REMOVALS is \"x\""), "{message}");
    let (code, message) = run(&["file"], none);
    assert_eq!(code, Some(2));
    assert!(message.contains("<PATH>"), "{message}");
    let (code, message) = run(&["replay"], none);
    assert_eq!((code, message.contains("unrecognized subcommand")), (Some(2), true), "{message}");
}

/// A record that PostgreSQL refused is applied after the rule that forbade it is gone; what is bad
/// stays, whatever form it came in.
#[tokio::test]
async fn redrive_applies_what_can_be_applied_now_and_keeps_the_rest() {
    let stores = Stores::fresh().await;
    let (sessions, scans) = generate::day(SMALL);
    let records = [sessions, scans].concat();
    let json: Vec<&[u8]> = records.iter().map(|record| record.json.as_bytes()).collect();
    let projector = stores.projector().await;
    let run = async |sql: &'static str| {
        stores.change(sql).await;
    };
    run("ALTER TABLE measurements ADD CONSTRAINT too_strict CHECK (left_foot_length_mm < 250)")
        .await;
    let applied = projector.apply(&json, Deadline::NONE).await.expect("no fatal error");
    let bad = records.iter().filter(|record| record.malformed).count();
    let refused =
        stores.ask("SELECT count(*) FROM rejected_records WHERE reason LIKE '%too_strict%'").await;
    let refused: usize = refused.parse().expect("a number");
    assert!(refused > 5 && applied.failed.is_empty(), "{refused}");
    let rejected = stores.rejected().await;

    // Nothing is fixed yet: all of them stay, but for malformed ones that newer changes have
    // overtaken.
    let again = backfill(&stores, &["redrive"]);
    assert_eq!(again.status.code(), Some(3), "{again:?}");
    let overtaken = rejected - stores.rejected().await;
    let removed = format!(
        "{overtaken} records removed from rejected_records\n  {overtaken} of them were not applied"
    );
    assert!(overtaken > 0 && text(&again.stdout).contains(&removed), "{again:?}");
    assert_eq!(counted(&again, "applied"), 0, "{again:?}");
    let rejected = stores.rejected().await;
    run("ALTER TABLE measurements DROP CONSTRAINT too_strict").await;
    // A dry run decodes only, and changes nothing.
    let dry = backfill(&stores, &["redrive", "--dry-run", "--reason", "%too_strict%"]);
    assert_eq!(dry.status.code(), Some(0), "{dry:?}");
    assert!(
        text(&dry.stdout).contains(&format!("{refused} records, 0 would be rejected")),
        "{dry:?}"
    );
    assert_eq!(stores.rejected().await, rejected);

    let fixed = backfill(&stores, &["redrive", "--reason", "%too_strict%"]);
    assert_eq!(fixed.status.code(), Some(0), "{fixed:?}");
    assert!(text(&fixed.stdout).contains(&format!("{refused} records removed")), "{fixed:?}");
    assert_eq!(stores.rows().await, oracle::rows(&records));
    assert_eq!(parsed(&stores.objects().await), oracle::objects(&stores.rows().await));
    assert!(stores.rejected().await <= bad && stores.rejected().await > 10);

    // What is bad is tried, stored as the same row, and kept to the letter.
    assert_code(&backfill(&stores, &["redrive"]), 3);
    let kept = stores
        .ask("SELECT string_agg(identity || record, '' ORDER BY identity) FROM rejected_records")
        .await;
    let rest = backfill(&stores, &["redrive"]);
    assert_eq!(rest.status.code(), Some(3), "{rest:?}");
    assert!(text(&rest.stdout).contains("0 records removed"), "{rest:?}");
    let still = stores
        .ask("SELECT string_agg(identity || record, '' ORDER BY identity) FROM rejected_records")
        .await;
    assert_eq!(kept, still);
}

/// A role with what `migrate --grant-backfill-to` grants redrives; one with the Lambda's does not.
#[tokio::test]
async fn the_role_of_a_backfill_may_remove_rejected_records_and_no_rows() {
    let stores = Stores::fresh().await;
    let role = format!("backfill_{:08x}", fastrand::u32(..));
    let create = format!("CREATE ROLE {role} LOGIN PASSWORD 'p'");
    stores.change(&create).await;
    let (_, rest) = stores.database_url.split_once('@').expect("a host");
    let as_role = Stores { database_url: format!("postgres://{role}:p@{rest}"), ..stores.clone() };
    let refused =
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
        CREATE TRIGGER no BEFORE INSERT ON measurements FOR EACH ROW EXECUTE FUNCTION no()";
    stores.change(refused).await;
    let record = session("s1", "u").place(LABEL, 1);
    let projector = stores.projector().await;
    projector.apply(&[record.json.as_bytes()], Deadline::NONE).await.expect("no fatal error");
    let drop = "DROP TRIGGER no ON measurements";
    stores.change(drop).await;

    assert!(backfill(&stores, &["migrate", "--grant-to", &role]).status.success());
    let denied = backfill(&as_role, &["redrive"]);
    assert_code(&denied, 2);
    assert!(text(&denied.stderr).contains("--grant-backfill-to"), "{denied:?}");
    assert_eq!(stores.rejected().await, 1);
    let granted = backfill(&stores, &["migrate", "--grant-backfill-to", &role]);
    assert!(
        text(&granted.stdout).contains("backfill_checkpoints, pending_objects TO"),
        "{granted:?}"
    );
    let redriven = backfill(&as_role, &["redrive"]);
    assert_eq!((redriven.status.code(), stores.rejected().await), (Some(0), 0), "{redriven:?}");
    assert_eq!(stores.rows().await, oracle::rows(&[record]));
    as_role.change("INSERT INTO repairs (source) VALUES ('scan')").await;
    as_role.change("UPDATE repairs SET ended_at = now(), complete = true").await;
    for forbidden in
        ["DELETE FROM measurements", "TRUNCATE rejected_records", "DELETE FROM repairs"]
    {
        assert!(as_role.connect().await.try_run(forbidden).await.is_err(), "{forbidden}");
    }
}

#[tokio::test]
async fn objects_are_updated_from_their_rows_after_a_bucket_was_restored() {
    let stores = Stores::fresh().await;
    let (sessions, scans) = generate::day(SMALL);
    let records = [sessions, scans].concat();
    let (before, after) = records.split_at(records.len() / 2);
    let json = |records: &[Record]| {
        records.iter().map(|record| record.json.clone()).collect::<Vec<_>>().join("\n")
    };
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("records.jsonl");
    let path = file.to_str().expect("a path");
    std::fs::write(&file, json(before)).expect("a file");
    assert_eq!(backfill(&stores, &["file", path]).status.code(), Some(3));
    let s3 = testkit::services::s3(&service("AWS_ENDPOINT_URL")).await;
    let mut old = Vec::new();
    for key in stores.objects().await.into_keys() {
        let object =
            s3.get_object().bucket(&stores.bucket).key(&key).send().await.expect("an object");
        old.push((key, object.metadata, object.body.collect().await.expect("a body").to_vec()));
    }
    std::fs::write(&file, json(after)).expect("a file");
    assert_eq!(backfill(&stores, &["file", path]).status.code(), Some(3));
    let rows = stores.rows().await;
    let current = parsed(&stores.objects().await);

    // The bucket as it was then: what came since is gone, the rest is older.
    for key in current.keys() {
        s3.delete_object().bucket(&stores.bucket).key(key).send().await.expect("deleted");
    }
    for (key, metadata, body) in old {
        let put = s3.put_object().bucket(&stores.bucket).key(key).set_metadata(metadata);
        put.body(body.into()).send().await.expect("an older object");
    }
    assert_ne!(parsed(&stores.objects().await), current);
    let other = Stores { bucket: Stores::unmigrated().await.bucket, ..stores.clone() };
    for stores in [&stores, &other] {
        let output = backfill(stores, &["objects"]);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(
            counted(&output, "objects written") + counted(&output, "objects current"),
            rows.len() as u64
        );
        assert_eq!(parsed(&stores.objects().await), current);
        let again = backfill(stores, &["objects"]);
        assert_code(&again, 0);
        assert_eq!(counted(&again, "objects written"), 0, "{again:?}");
    }
    assert_eq!(stores.rows().await, rows);

    let (middle, behind) = (rows.len() / 2, rows.len() - rows.len() / 2 - 1);
    let after = rows.keys().nth(middle).expect("a row").as_str();
    let rest = backfill(&stores, &["objects", "--after", after]);
    assert_code(&rest, 0);
    assert_eq!(counted(&rest, "objects current"), behind as u64);
    let without = Command::new(binary("backfill"))
        .arg("objects")
        .env("DATABASE_URL", &stores.database_url)
        .env_remove("ARCHIVE_BUCKET")
        .output()
        .expect("backfill runs");
    assert_code(&without, 2);
    assert!(text(&without.stderr).contains("ARCHIVE_BUCKET is not set"), "{without:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_object_that_cannot_be_written_holds_up_no_other() {
    let stores = Stores::fresh().await;
    // More than a page, and the refused one on the first.
    let records: Vec<Record> = (0..1_050)
        .map(|index| session(&format!("s{index:04}"), "u").place(LABEL, 1 + index))
        .collect();
    let without_objects = stores.projector_without_archive(&stores.database_url, 1);
    testkit::services::apply_all(&without_objects, &records, 1_050).await;
    let gate = S3Gate::open(&service("AWS_ENDPOINT_URL")).await;
    gate.set_rule(|seen| {
        let refused = seen.method == "PUT" && seen.path.ends_with("/s0007.json");
        if refused { Fault::Refuse(500) } else { Fault::Pass }
    });
    let mut command = tokio::process::Command::new(binary("backfill"));
    command
        .arg("objects")
        .env("DATABASE_URL", &stores.database_url)
        .env("ARCHIVE_BUCKET", &stores.bucket)
        .env("AWS_ENDPOINT_URL_S3", &gate.url);
    let output = command.output().await.expect("backfill runs");
    assert_code(&output, 1);
    assert_eq!(counted(&output, "objects written"), 1_049);
    let message = text(&output.stderr);
    assert!(
        message.contains("1 object could not be written")
            && message.contains(": s0007. All others are written\n"),
        "{message}"
    );

    gate.set_rule(|_| Fault::Pass);
    let output = command.output().await.expect("backfill runs");
    assert_code(&output, 0);
    assert_eq!(
        (counted(&output, "objects written"), counted(&output, "objects current")),
        (1, 1_049)
    );
}

/// A script tells a set-up that only a person can correct from a failure that another run may cure.
#[tokio::test(flavor = "multi_thread")]
async fn a_fault_of_the_database_has_the_same_exit_code_in_every_command() {
    let server = StreamServer::start().await;
    let enabled = label(now() - 3 * 24 * 3600);
    for table in [Table::Sessions, Table::Scans] {
        let arn = server.add_stream(table, &enabled);
        server.open_shard(&arn, "shardId-a", None);
    }
    let unmigrated = Stores::unmigrated().await;
    let migrated = Stores::fresh().await;
    let role = format!("stranger_{:08x}", fastrand::u32(..));
    migrated.change(&format!("CREATE ROLE {role} LOGIN PASSWORD 'p'")).await;
    let (_, rest) = migrated.database_url.split_once('@').expect("a host");
    let login = |password: &str| Stores {
        database_url: format!("postgres://{role}:{password}@{rest}"),
        ..migrated.clone()
    };
    let missing = Stores {
        database_url: migrated.database_url.replace(&migrated.bucket, "no-such-database"),
        ..migrated.clone()
    };
    let snapshot = testkit::runs::rfc3339(now() - 3600);
    let file = fixture("small/sessions.jsonl");
    for (fault, stores, remedy) in [
        ("not migrated", unmigrated, "run `backfill migrate`"),
        ("no privilege", login("p"), "--grant-backfill-to"),
        ("a wrong password", login("wrong"), "check DATABASE_URL"),
        ("no such database", missing, "DATABASE_URL"),
    ] {
        let status = command(&stores, &server, &["status"]);
        let redrive = command(&stores, &server, &["redrive"]);
        let objects = command(&stores, &server, &["objects"]);
        let file = command(&stores, &server, &["file", &file]);
        let stream = stream(&stores, &server, &["--snapshot-time", &snapshot]);
        let commands = [
            ("status", status),
            ("redrive", redrive),
            ("objects", objects),
            ("file", file),
            ("stream", stream),
        ];
        for (name, command) in commands {
            let output = output(command).await;
            assert_eq!(output.status.code(), Some(2), "{name}, {fault}: {output:?}");
            assert!(text(&output.stderr).contains(remedy), "{name}, {fault}: {output:?}");
        }
    }
}
