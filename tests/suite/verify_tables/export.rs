//! `backfill verify --tables --export`: the files of a point-in-time export, in a folder and in S3.

use std::path::Path;

use serde_json::json;
use testkit::exports::{self, Files};
use testkit::records::{removal, scan, session};
use testkit::runs::{assert_code, text};
use testkit::services::{s3, service};

use super::{World, id, of_session};

/// Both exports, below a folder of their own each.
async fn both(world: &World) -> Files {
    let mut all = Files::new();
    for (table, folder) in world.tables.iter().zip(["sessions", "scans"]) {
        let files = exports::full(table, &world.dynamodb.scan(table).await);
        all.extend(files.into_iter().map(|(path, bytes)| (format!("{folder}/{path}"), bytes)));
    }
    all
}

fn write(root: &Path, files: &[(String, Vec<u8>)]) -> [String; 2] {
    exports::write(root, files);
    ["sessions", "scans"].map(|folder| root.join(folder).to_str().expect("a path").to_owned())
}

/// Both sides went on since the exports: what that changed is read again by key.
#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_is_older_than_the_rows_finds_the_faults_and_nothing_else() {
    let world = World::with_sessions(50).await;
    let files = both(&world).await;
    let folder = tempfile::tempdir().expect("a folder");
    let in_folder = write(folder.path(), &files);
    let client = s3(&service("AWS_ENDPOINT_URL")).await;
    let bucket = &world.stores.bucket;
    for (path, bytes) in &files {
        let put = client.put_object().bucket(bucket).key(format!("copied/{path}"));
        put.body(bytes.clone().into()).send().await.expect("an object");
    }
    let in_s3 = ["sessions", "scans/"].map(|folder| format!("s3://{bucket}/copied/{folder}"));

    let [mut changed, left, _] = of_session(1);
    changed.image.as_mut().expect("an image")["app_version"] = json!({"S": "9"});
    let since = [changed, removal(&left), session("new", "u"), scan("new", "left", "250.5")];
    world.write_items(&since).await;
    world.write_rows(&since).await;
    let wrong =
        format!("UPDATE measurements SET right_mesh = '\\x00' WHERE session_id = '{}'", id(7));
    for [sessions, scans] in [&in_folder, &in_s3] {
        let arguments = ["--export", sessions, "--export", scans];
        let json = world.assert_equal(&arguments).await;
        assert_eq!(json["compared"], 150);
        assert!(json["against"].as_str().expect("a name").contains(sessions.trim_end_matches('/')));
    }
    // The result is as old as the exports.
    let old = "SELECT count(*) FROM verifications WHERE started_at < now() - interval '50 min'";
    assert_eq!(world.stores.ask(old).await, "2");
    world.stores.change(&wrong).await;
    world.write_rows(&[session("only-a-row", "u")]).await;
    for [sessions, scans] in [&in_folder, &in_s3] {
        let (output, json) = world.verified(&["--export", scans, "--export", sessions]).await;
        assert_code(&output, 7);
        let expected = json!({"missing": 0, "extra": 1, "older": 0, "content": 1});
        assert_eq!(json["differences"], expected, "{json}");
    }
}

/// Each ends the run, and the message names the file or what is wrong.
#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_is_damaged_or_unfit_is_refused_by_name() {
    let world = World::with_sessions(10).await;
    let files = both(&world).await;
    let damaged = |name: &str, damage: &dyn Fn(&mut Vec<u8>)| {
        let mut files = files.clone();
        let (_, bytes) = files.iter_mut().find(|(path, _)| path == name).expect("the file");
        damage(bytes);
        files
    };
    let replaced = |name: &str, from: &str, to: &str| {
        damaged(name, &|bytes| {
            let text = String::from_utf8(bytes.clone()).expect("text");
            assert!(text.contains(from), "{text}");
            *bytes = text.replace(from, to).into_bytes();
        })
    };
    let data = "scans/data/1abcdefghijklmnop.json.gz";
    let summary = "sessions/manifest-summary.json";
    let manifest = "scans/manifest-files.json";
    let missing = files.iter().filter(|(path, _)| path != data).cloned().collect();
    let incremental = "\"exportType\":\"INCREMENTAL_EXPORT\",\
        \"exportFromTime\":\"2026-11-22T00:00:00Z\",\
        \"exportToTime\":\"2026-11-23T00:00:00Z\",\"version\"";
    for (files, code, named, said) in [
        (damaged(data, &|bytes| bytes[20] ^= 1), 1, data, "is damaged"),
        (damaged(data, &|bytes| bytes.truncate(60)), 1, data, "is damaged"),
        // The header's operating system: nothing but the MD5 shows it.
        (damaged(data, &|bytes| bytes[9] ^= 1), 1, data, "its MD5 is not the one of the manifest"),
        (missing, 1, data, "is missing: copy the whole export"),
        (
            replaced(manifest, "\"itemCount\":10", "\"itemCount\":9"),
            1,
            manifest,
            "18 items, and the summary says 20",
        ),
        (replaced(summary, "\"version\"", incremental), 2, summary, "verify needs a full export"),
        (replaced(summary, &world.tables[0], "foreign"), 2, "sessions", "of table \"foreign\""),
        (
            replaced(summary, &world.tables[0], &world.tables[1]),
            2,
            "",
            "names two exports of table",
        ),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let [sessions, scans] = write(folder.path(), &files);
        let mut command = world.verify(&["--export", &sessions, "--export", &scans]);
        let run = command.output().await.expect("backfill runs");
        assert_code(&run, code);
        let stderr = text(&run.stderr);
        assert!(stderr.contains(said) && stderr.contains(named), "{said}: {stderr}");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let [sessions, _] = write(folder.path(), &files);
    let run = world.verify(&["--export", &sessions]).output().await.expect("backfill runs");
    assert_code(&run, 2);
    let said = format!("names no export of table {:?}", world.tables[1]);
    assert!(text(&run.stderr).contains(&said), "{run:?}");
}
