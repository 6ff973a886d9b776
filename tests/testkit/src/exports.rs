//! Point-in-time exports of a table, file by file, as DynamoDB writes them to a bucket.

use std::io::Write as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use flate2::Compression;
use flate2::write::GzEncoder;
use md5::{Digest as _, Md5};
use serde_json::{Value as Json, json};

use crate::runs::{now, rfc3339};

/// Files by their path.
pub type Files = Vec<(String, Vec<u8>)>;

/// The file that lists the data files.
const FILES: &str = "manifest-files.json";
/// The file that says what an export is.
const SUMMARY: &str = "manifest-summary.json";
/// What comes before the folders of all exports in a key.
const PREFIX: &str = "exports/AWSDynamoDB";

/// A full export that is an hour old: its files by their path beside the summary.
#[must_use]
pub fn full(table: &str, items: &[Json]) -> Files {
    full_of(table, &id_of(table), items, 2)
}

/// The same with an id of its own, and with as many data files as this, if there are items for all.
#[must_use]
pub fn full_of(table: &str, id: &str, items: &[Json], count: usize) -> Files {
    let lines: Vec<Json> = items.iter().map(|item| json!({ "Item": item })).collect();
    let (mut files, listed) = data_files(&format!("{PREFIX}/{id}"), "", &lines, count);
    let mut summary = summary(table, id, items.len());
    summary["version"] = json!("2020-06-30");
    summary["exportTime"] = json!(rfc3339(now() - 3600));
    files.push(("manifest-files.json".to_owned(), listed));
    files.push(("manifest-summary.json".to_owned(), summary.to_string().into_bytes()));
    files
}

/// An incremental export of the changes between two times: its files by their path in the folder
/// that it shares with others. The summary is in a folder named by the export's id.
#[must_use]
pub fn incremental(table: &str, id: &str, (from, to): (i64, i64), changes: &[Json]) -> Files {
    let (mut files, listed) = data_files(PREFIX, id, changes, 2);
    let mut summary = summary(table, id, changes.len());
    for (member, value) in [
        ("version", json!("2023-08-01")),
        ("exportFromTime", json!(rfc3339(from))),
        ("exportToTime", json!(rfc3339(to))),
        ("outputView", json!("NEW_AND_OLD_IMAGES")),
        ("exportType", json!("INCREMENTAL_EXPORT")),
    ] {
        summary[member] = value;
    }
    files.push((format!("{id}/manifest-files.json"), listed));
    files.push((format!("{id}/manifest-summary.json"), summary.to_string().into_bytes()));
    files
}

/// A line of an incremental export. Without a new image the item was removed.
#[must_use]
pub fn change(keys: &Json, new_image: Option<&Json>, old_image: Option<&Json>) -> Json {
    let mut change = json!({
        "Metadata": { "WriteTimestampMicros": { "N": "1795334400000000" } },
        "Keys": keys,
    });
    for (member, image) in [("NewImage", new_image), ("OldImage", old_image)] {
        if let Some(image) = image {
            change[member] = image.clone();
        }
    }
    change
}

/// An id of an export; two tables have two.
fn id_of(table: &str) -> String {
    let digest = Md5::digest(table);
    let end = digest.iter().take(4).fold(0, |end, byte| end << 8 | u32::from(*byte));
    format!("01795334400000-{end:08x}")
}

/// The same export as DynamoDB writes it to a bucket, below a prefix (which may be empty) and with
/// this KMS key: its files by their key. Gives the prefix of the summary, too.
///
/// # Panics
/// If the files are no export.
#[must_use]
pub fn in_bucket(
    files: &[(String, Vec<u8>)],
    (bucket, prefix): (&str, &str),
    kms_key: Option<&str>,
) -> (String, Files) {
    let is_manifest = |path: &str| path.ends_with(SUMMARY) || path.ends_with(FILES);
    let summary = files.iter().find(|(path, _)| path.ends_with(SUMMARY)).expect("a summary");
    let json: Json = serde_json::from_slice(&summary.1).expect("JSON");
    let id = json["exportArn"].as_str().and_then(|arn| arn.rsplit('/').next()).expect("an id");
    let root = format!("{prefix}/AWSDynamoDB").trim_start_matches('/').to_owned();
    let folder = format!("{root}/{id}");
    // The data of a full export is in its folder, that of incremental ones is beside it.
    let base = if summary.0 == SUMMARY { &folder } else { &root };
    let mut written = Files::new();
    for (path, bytes) in files {
        let mut bytes = bytes.clone();
        if path.ends_with(SUMMARY) {
            let mut json = json.clone();
            let manifest = json["manifestFilesS3Key"].as_str().expect("a key");
            json["manifestFilesS3Key"] = manifest.replace(PREFIX, &root).into();
            json["s3Bucket"] = bucket.into();
            json["s3Prefix"] = if prefix.is_empty() { Json::Null } else { prefix.into() };
            json["s3SseAlgorithm"] = if kms_key.is_some() { "KMS" } else { "AES256" }.into();
            json["s3SseKmsKeyId"] = kms_key.into();
            bytes = json.to_string().into_bytes();
        } else if is_manifest(path) {
            let text = String::from_utf8(bytes).expect("text");
            bytes = text.replace(&format!("{PREFIX}/"), &format!("{root}/")).into_bytes();
        }
        if is_manifest(path) {
            let path = path.replace(".json", ".md5");
            written.push((format!("{base}/{path}"), md5(&bytes).into_bytes()));
        }
        written.push((format!("{base}/{path}"), bytes));
    }
    written.push((format!("{folder}/_started"), Vec::new()));
    (folder, written)
}

/// Writes files below a folder.
///
/// # Panics
/// Where they cannot be written.
pub fn write(root: &Path, files: &[(String, Vec<u8>)]) {
    for (path, bytes) in files {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, bytes).expect("a file");
    }
}

/// What a manifest says of a file.
#[must_use]
pub fn md5(bytes: &[u8]) -> String {
    BASE64.encode(Md5::digest(bytes))
}

/// Some data files, whose keys begin with `root`, and the manifest that lists them.
fn data_files(root: &str, name: &str, lines: &[Json], count: usize) -> (Files, Vec<u8>) {
    let mut files = Files::new();
    let mut listed = String::new();
    for (number, lines) in lines.chunks(lines.len().div_ceil(count).max(1)).enumerate() {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
        for line in lines {
            writeln!(gzip, "{line}").expect("a vector takes all");
        }
        let bytes = gzip.finish().expect("a vector takes all");
        let path = format!("data/{number}{name}abcdefghijklmnop.json.gz");
        let file = json!({
            "itemCount": lines.len(),
            "md5Checksum": md5(&bytes),
            "etag": format!("{number}-1"),
            "dataFileS3Key": format!("{root}/{path}"),
        });
        listed.push_str(&file.to_string());
        listed.push('\n');
        files.push((path, bytes));
    }
    (files, listed.into_bytes())
}

/// What the summaries of both kinds of export say.
fn summary(table: &str, id: &str, items: usize) -> Json {
    let arn = format!("arn:aws:dynamodb:eu-central-1:123456789012:table/{table}");
    json!({
        "exportArn": format!("{arn}/export/{id}"),
        "startTime": rfc3339(now()),
        "endTime": rfc3339(now()),
        "tableArn": arn,
        "tableId": "12345a12-abcd-123a-ab12-1234abc12345",
        "s3Bucket": "exports-of-production",
        "s3Prefix": "exports",
        "s3SseAlgorithm": "AES256",
        "s3SseKmsKeyId": null,
        "manifestFilesS3Key": format!("{PREFIX}/{id}/manifest-files.json"),
        "billedSizeBytes": 0,
        "itemCount": items,
        "outputFormat": "DYNAMODB_JSON",
    })
}
