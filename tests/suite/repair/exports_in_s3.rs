//! A repair by exports in S3, where DynamoDB writes them, and what can be wrong with them there.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};
use testkit::exports::{self, Files};
use testkit::records::{Draft, removal};
use testkit::runs::{assert_code, rfc3339, text};
use testkit::s3_gate::{Fault, S3Gate};
use testkit::services::{s3, service};

use super::exports::{arguments, lines};
use super::{QUICK, World, changed, id, of_session, open_a_gap};

const HOUR: i64 = 3600;
const KMS_KEY: &str = "arn:aws:kms:eu-central-1:123456789012:key/12345678-abcd";

/// Both tables' changes within one window.
type Window<'a> = ((i64, i64), [&'a [&'a Draft]; 2]);

/// A window that begins then names no row by the time of its last change: what a repair reads, it
/// has from the files.
fn after_all_changes() -> i64 {
    World::now() + HOUR
}

/// Exports in a bucket of their own.
pub(super) struct Exports {
    pub(super) bucket: String,
    /// Every file, by its key.
    pub(super) files: BTreeMap<String, Vec<u8>>,
    /// The flags that name each export.
    flags: Vec<String>,
}

impl Exports {
    pub(super) async fn none() -> Self {
        let bucket = format!("exports-{:016x}", fastrand::u64(..));
        let client = s3(&service("AWS_ENDPOINT_URL")).await;
        client.create_bucket().bucket(&bucket).send().await.expect("a bucket");
        Self { bucket, files: BTreeMap::new(), flags: Vec::new() }
    }

    /// Incremental exports of these windows.
    async fn of(world: &World, windows: &[Window<'_>], prefix: &str, key: Option<&str>) -> Self {
        let mut exports = Self::none().await;
        for (number, (window, of_tables)) in windows.iter().enumerate() {
            for (table, drafts) in world.tables.iter().zip(of_tables) {
                let id = format!("0179533440{number:04}-{:08x}", fastrand::u32(..));
                let files = exports::incremental(table, &id, *window, &lines(drafts));
                exports.add(&files, prefix, key).await;
            }
        }
        exports
    }

    pub(super) async fn add(&mut self, files: &Files, prefix: &str, kms_key: Option<&str>) {
        let (folder, files) = exports::in_bucket(files, (&self.bucket, prefix), kms_key);
        self.flags.extend(["--export".to_owned(), format!("s3://{}/{folder}", self.bucket)]);
        for (key, bytes) in files {
            self.put(&key, bytes.clone()).await;
            self.files.insert(key, bytes);
        }
    }

    pub(super) async fn put(&self, key: &str, bytes: Vec<u8>) {
        let client = s3(&service("AWS_ENDPOINT_URL")).await;
        let put = client.put_object().bucket(&self.bucket).key(key).body(bytes.into());
        put.send().await.expect("an object");
    }

    pub(super) async fn remove(&self, key: &str) {
        let client = s3(&service("AWS_ENDPOINT_URL")).await;
        client.delete_object().bucket(&self.bucket).key(key).send().await.expect("it is gone");
    }

    /// Changes the manifest of the export that lists this data file.
    pub(super) async fn change_listed(&self, data: &str, member: &str, value: Json) {
        for (key, bytes) in self.files.iter().filter(|(key, _)| key.ends_with("-files.json")) {
            let of_manifest = text(bytes);
            let mut lists = false;
            let line = |line: &str| {
                let mut json: Json = serde_json::from_str(line).expect("JSON");
                if json["dataFileS3Key"] == data {
                    json[member] = value.clone();
                    lists = true;
                }
                format!("{json}\n")
            };
            let changed: String = of_manifest.lines().map(line).collect();
            if lists {
                self.put(key, changed.into_bytes()).await;
            }
        }
    }

    /// The keys of all data files.
    pub(super) fn data(&self) -> Vec<&String> {
        self.files.keys().filter(|key| key.ends_with(".json.gz")).collect()
    }

    /// The name of an object, as messages have it.
    pub(super) fn name(&self, key: &str) -> String {
        format!("s3://{}/{key}", self.bucket)
    }
}

/// Three windows per table that join, at the root of a bucket, and below a prefix with a KMS key.
#[tokio::test(flavor = "multi_thread")]
async fn exports_in_s3_that_join_over_the_gap_close_it_and_a_hole_is_named() {
    let world = World::with_sessions(6).await;
    for (round, prefix, key) in [(1, "", None), (2, "team a/exports+1/2026", Some(KMS_KEY))] {
        let [first, left, right] = of_session(round);
        let (early, late) = (changed(&first, "9"), changed(&first, "10"));
        let (left, right) = (changed(&left, "251"), removal(&right));
        world.write(std::slice::from_ref(&early)).await;
        world.write_and_forget(&[late.clone(), left.clone(), right.clone()]).await;
        let ends = after_all_changes() + 30 * HOUR;
        let times = [30, 20, 10, 0].map(|hours| ends - hours * HOUR);
        let windows: [Window<'_>; 3] = [
            ((times[0], times[1]), [&[&early], &[&left]]),
            ((times[1], times[2]), [&[], &[&right]]),
            ((times[2], times[3]), [&[&late], &[]]),
        ];
        let exports = Exports::of(&world, &windows, prefix, key).await;

        // Without the second window of the scans.
        let flags = [&exports.flags[..6], &exports.flags[8..]].concat();
        let refused = world.run(&arguments(&[&["repair"], &QUICK[..]].concat(), &flags)).await;
        assert_code(&refused, 2);
        let [from, to] = [times[1], times[2]].map(rfc3339);
        let hole = format!(
            "names exports of table {:?} with a hole: none shows what changed from {from} until {to}",
            world.tables[1]
        );
        assert!(text(&refused.stderr).contains(&hole), "{hole}: {refused:?}");

        let json = world.repair(&arguments(&[], &exports.flags), 0).await;
        assert_eq!((&json["written"], &json["removed"]), (&json!(2), &json!(1)), "{json}");
        assert_eq!(world.row(&id(round), "app_version").await, "10");
        world.assert_equal().await;
    }
}

/// One full export of each table, both below one prefix, encrypted with a key.
#[tokio::test(flavor = "multi_thread")]
async fn full_exports_in_s3_are_found_by_their_folders_and_no_prefix_is_taken_for_one() {
    let world = World::with_sessions(12).await;
    open_a_gap(&world).await;
    let mut exports = Exports::none().await;
    for table in &world.tables {
        let mut files = exports::full(table, &world.dynamodb.scan(table).await);
        let (_, summary) = files.last_mut().expect("a summary");
        let mut json: Json = serde_json::from_slice(summary).expect("JSON");
        json["exportTime"] = json!(rfc3339(World::now() + 1));
        *summary = json.to_string().into_bytes();
        exports.add(&files, "exports", Some(KMS_KEY)).await;
    }
    // What the export was made with is not where it is.
    let prefix = exports.name("exports");
    let refused = world.run(&["repair", "--export", &prefix]).await;
    assert_code(&refused, 2);
    let said = text(&refused.stderr);
    assert!(said.contains(&format!("there is no {prefix}/manifest-summary.json")), "{said}");
    assert!(said.contains("AWSDynamoDB/EXPORT-ID"), "{said}");
    let json = world.repair(&arguments(&[], &exports.flags), 0).await;
    assert_eq!((&json["written"], &json["removed"]), (&json!(5), &json!(4)), "{json}");
    world.assert_equal().await;
}

/// A wrong MD5, a gzip that is cut off and an object that is gone, at once: each is named with the
/// remedy, and what the others name is repaired.
#[tokio::test(flavor = "multi_thread")]
async fn a_data_file_that_is_damaged_cut_off_or_missing_holds_up_no_other() {
    let world = World::with_sessions(10).await;
    let changes: Vec<Draft> = (0..10)
        .flat_map(|number| {
            let [first, left, _] = of_session(number);
            [changed(&first, "9"), changed(&left, "251")]
        })
        .collect();
    world.write_and_forget(&changes).await;
    let ends = after_all_changes() + 20 * HOUR;
    let (sessions, scans): (Vec<&Draft>, Vec<&Draft>) =
        changes.iter().partition(|draft| draft.table == testkit::records::Table::Sessions);
    let (middle, start) = (ends - 10 * HOUR, ends - 20 * HOUR);
    let windows: [Window<'_>; 2] = [
        ((start, middle), [&sessions[..5], &scans[..5]]),
        ((middle, ends), [&sessions[5..], &scans[5..]]),
    ];
    let exports = Exports::of(&world, &windows, "exports", None).await;
    let data = exports.data();
    assert_eq!(data.len(), 8, "two files per export");
    let [damaged, cut_off, missing] = [data[0], data[1], data[2]];
    exports.change_listed(damaged, "md5Checksum", json!("AAAAAAAAAAAAAAAAAAAAAA==")).await;
    let whole = &exports.files[cut_off];
    let cut = whole[..whole.len() - 12].to_vec();
    exports.change_listed(cut_off, "md5Checksum", json!(exports::md5(&cut))).await;
    exports.put(cut_off, cut).await;
    exports.remove(missing).await;

    let quick = [&["repair", "--json"], &QUICK[..]].concat();
    let arguments = arguments(&quick, &exports.flags);
    let output = world.run(&arguments).await;
    assert_code(&output, 1);
    let (said, json) = (text(&output.stderr), text(&output.stdout));
    let json: Json = serde_json::from_str(&json).expect("JSON");
    for (key, why) in [
        (damaged, "is damaged: its MD5 is not the one of the manifest. Copy it again"),
        (cut_off, "is damaged: "),
        (missing, "is missing: copy the whole export, or make a new one"),
    ] {
        let line = format!("file not read: {}: {why}", exports.name(key));
        assert!(said.contains(&line), "{line}: {said}");
    }
    assert!(said.contains("copy these files again"), "{said}");
    assert_eq!((&json["files_not_read"], &json["ended"]), (&json!(3), &json!("failed")), "{json}");
    assert_eq!(json["written"], 11, "what the other files name, and no more: {json}");
    let kept = "SELECT concat_ws(' ', complete, ended_at IS NOT NULL) FROM repairs";
    assert_eq!(world.stores.ask(kept).await, "f t");

    for (key, bytes) in &exports.files {
        exports.put(key, bytes.clone()).await;
    }
    let output = world.run(&arguments).await;
    assert_code(&output, 0);
    let json: Json = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(json["written"], 9, "{json}");
    world.assert_equal().await;
}

/// The rows whose items the missing file held are asked for by key; nothing is removed for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_export_without_one_of_its_files_removes_nothing_that_the_table_holds() {
    let world = World::with_sessions(12).await;
    open_a_gap(&world).await;
    let mut exports = Exports::none().await;
    for table in &world.tables {
        let mut files = exports::full(table, &world.dynamodb.scan(table).await);
        let (_, summary) = files.last_mut().expect("a summary");
        let mut json: Json = serde_json::from_slice(summary).expect("JSON");
        json["exportTime"] = json!(rfc3339(World::now() + 1));
        *summary = json.to_string().into_bytes();
        exports.add(&files, "exports", None).await;
    }
    let missing = exports.data()[0].clone();
    exports.remove(&missing).await;
    let json = world.repair(&arguments(&[], &exports.flags), 1).await;
    assert_eq!(json["first_files_not_read"], json!([exports.name(&missing)]), "{json}");
    assert_eq!(json["removed"], 4, "the four parts whose items are gone: {json}");
    exports.put(&missing, exports.files[&missing].clone()).await;
    let json = world.repair(&arguments(&[], &exports.flags), 0).await;
    assert_eq!(json["removed"], 0, "{json}");
    world.assert_equal().await;
}

/// S3 throttles every object for longer than the SDK tries; then the role may not read one.
#[tokio::test(flavor = "multi_thread")]
async fn s3_that_throttles_is_waited_for_and_a_forbidden_object_is_named() {
    let world = World::with_sessions(4).await;
    let [first, left, _] = of_session(1);
    let changes = [changed(&first, "9"), changed(&left, "251")];
    world.write_and_forget(&changes).await;
    let ends = World::now() + 1;
    let windows: [Window<'_>; 1] = [((ends - 20 * HOUR, ends), [&[&changes[0]], &[&changes[1]]])];
    let exports = Exports::of(&world, &windows, "exports", None).await;
    let gate = S3Gate::open(&service("AWS_ENDPOINT_URL")).await;
    let repair = async || {
        let quick = [&["repair"], &QUICK[..]].concat();
        let arguments = arguments(&quick, &exports.flags);
        let mut command = world.command(&arguments);
        command.env("AWS_ENDPOINT_URL_S3", &gate.url).output().await.expect("backfill runs")
    };
    let data = exports.data()[0].clone();
    let forbidden = format!("/{}/{data}", exports.bucket);
    gate.set_rule(move |seen| {
        if seen.path == forbidden { Fault::RefuseWith(403, "AccessDenied") } else { Fault::Pass }
    });
    let refused = repair().await;
    assert_code(&refused, 1);
    let said = text(&refused.stderr);
    let line = format!("cannot read {}: AccessDenied", exports.name(&data));
    assert!(said.contains(&line) && said.contains("kms:Decrypt"), "{line}: {said}");
    assert!(said.contains("run the same command again"), "{said}");

    gate.set_rule(|seen| {
        let throttled = seen.path.contains("AWSDynamoDB") && seen.earlier < 5;
        if throttled { Fault::RefuseWith(503, "SlowDown") } else { Fault::Pass }
    });
    let repaired = repair().await;
    assert_code(&repaired, 0);
    let said = text(&repaired.stderr);
    let line =
        format!("cannot read {}/manifest-summary.json (S3 asks to slow down", exports.flags[1]);
    assert!(said.contains(&line) && said.contains("again in 2 s"), "{line}: {said}");
    world.assert_equal().await;
}
