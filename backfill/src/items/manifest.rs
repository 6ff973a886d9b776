//! What the two manifests of a point-in-time export say. Pure.
//!
//! `manifest-summary.json` names the table, the time and the other manifest; `manifest-files.json`
//! has one line per data file (Amazon DynamoDB Developer Guide, "DynamoDB table export output
//! format"). Keys in them are those of the bucket that DynamoDB wrote to; an export may have been
//! copied since, so files are found by their place beside the summary. All incremental exports of a
//! prefix share one folder `data`, which is beside the folders of their summaries.

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// How the path of a file begins that is beside the folder of the summary.
pub(crate) const BESIDE: &str = "../";

/// The file that says what an export is.
pub(crate) const SUMMARY: &str = "manifest-summary.json";

/// What an export is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    /// The table's name.
    pub(crate) table: String,
    pub(crate) covers: Covers,
    pub(crate) items: u64,
    /// The manifest of the files, relative to the summary.
    pub(crate) files: String,
    /// What comes before it, and before the data files, in a key.
    root: String,
}

/// Which changes an export shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Covers {
    /// A full export: every item, with every change up to this time and none after it.
    AllUntil(OffsetDateTime),
    /// An incremental one: the items that changed from the first time on and before the second one.
    Changes { from: OffsetDateTime, to: OffsetDateTime },
}

/// A data file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DataFile {
    /// Relative to the summary.
    pub(crate) path: String,
    pub(crate) items: u64,
    /// Of its bytes as they are stored, in base64.
    pub(crate) md5: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SummaryJson {
    table_arn: String,
    manifest_files_s3_key: String,
    output_format: String,
    #[serde(default)]
    item_count: u64,
    export_time: Option<String>,
    export_from_time: Option<String>,
    export_to_time: Option<String>,
    export_type: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileJson {
    item_count: u64,
    md5_checksum: String,
    data_file_s3_key: String,
}

/// Reads `manifest-summary.json`.
///
/// # Errors
/// If it is none, or that of an export that cannot be compared.
pub(crate) fn summary(json: &[u8]) -> anyhow::Result<Summary> {
    let summary: SummaryJson =
        serde_json::from_slice(json).context("it is no summary of an export")?;
    let format = &summary.output_format;
    ensure!(
        format == "DYNAMODB_JSON",
        "its format is {format}: export again with the format DYNAMODB_JSON"
    );
    let table = summary.table_arn.split_once(":table/").map(|(_, table)| table);
    let table =
        table.with_context(|| format!("{:?} is not the ARN of a table", summary.table_arn))?;
    let covers = covers(&summary)?;
    let key = &summary.manifest_files_s3_key;
    let (root, files) = match key.rsplit_once('/') {
        Some((root, files)) => (format!("{root}/"), files),
        None => (String::new(), key.as_str()),
    };
    Ok(Summary {
        table: table.to_owned(),
        covers,
        items: summary.item_count,
        files: files.to_owned(),
        root,
    })
}

impl Summary {
    /// The path of a key, relative to the summary; `None` if the file is no part of the export.
    /// Incremental exports share one folder for their data, beside their own ones.
    fn path_of(&self, key: &str) -> Option<String> {
        if key.split('/').any(|step| step == "..") {
            return None;
        }
        if let Some(path) = key.strip_prefix(&self.root) {
            return Some(path.to_owned());
        }
        let own = self.root.trim_end_matches('/');
        let beside = own.rsplit_once('/').map_or("", |(beside, _)| beside);
        let path = key.strip_prefix(beside)?.trim_start_matches('/');
        let shared = matches!(self.covers, Covers::Changes { .. }) && path.starts_with("data/");
        shared.then(|| format!("{BESIDE}{path}"))
    }
}

fn covers(summary: &SummaryJson) -> anyhow::Result<Covers> {
    let time = |name: &str, text: &Option<String>| {
        let text = text.as_deref().with_context(|| format!("it has no {name}"))?;
        OffsetDateTime::parse(text, &Rfc3339)
            .with_context(|| format!("its {name} is not an RFC 3339 time"))
    };
    match summary.export_type.as_deref() {
        // An export without a type is from before there were incremental ones.
        None | Some("FULL_EXPORT") => {
            Ok(Covers::AllUntil(time("exportTime", &summary.export_time)?))
        }
        Some("INCREMENTAL_EXPORT") => {
            let from = time("exportFromTime", &summary.export_from_time)?;
            let to = time("exportToTime", &summary.export_to_time)?;
            ensure!(from < to, "its exportToTime is not after its exportFromTime");
            Ok(Covers::Changes { from, to })
        }
        Some(kind) => bail!("it is of type {kind}, which this version does not know"),
    }
}

/// Reads `manifest-files.json`.
///
/// # Errors
/// If a line is none of it, or names a file outside the export.
pub(crate) fn files(lines: &[u8], summary: &Summary) -> anyhow::Result<Vec<DataFile>> {
    let lines = std::str::from_utf8(lines).context("it is not UTF-8")?;
    let file = |(index, line): (usize, &str)| {
        let place = || format!("line {}", index + 1);
        let file: FileJson = serde_json::from_str(line).with_context(place)?;
        let key = &file.data_file_s3_key;
        let path = summary.path_of(key).with_context(|| {
            format!("line {}: {key:?} is not below {:?}", index + 1, summary.root)
        })?;
        Ok(DataFile { path, items: file.item_count, md5: file.md5_checksum })
    };
    let lines = lines.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let files = lines.map(file).collect::<anyhow::Result<Vec<_>>>()?;
    let (listed, counted) = (files.iter().map(|file| file.items).sum::<u64>(), summary.items);
    ensure!(listed == counted, "its files have {listed} items, and the summary says {counted}");
    Ok(files)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::{Covers, files, summary};

    const SUMMARY: &str = r#"{"version":"2020-06-30","exportArn":"arn:aws:dynamodb:r:1:table/scans/export/01-a",
        "tableArn":"arn:aws:dynamodb:r:1:table/scans","exportTime":"2026-11-22T08:00:00.000Z","s3Bucket":"b",
        "s3Prefix":"p","manifestFilesS3Key":"p/AWSDynamoDB/01-a/manifest-files.json","itemCount":3,
        "outputFormat":"DYNAMODB_JSON"}"#;
    const INCREMENTAL: &str = r#"{"version":"2023-08-01","exportArn":"arn:aws:dynamodb:r:1:table/scans/export/01-a",
        "tableArn":"arn:aws:dynamodb:r:1:table/scans","exportFromTime":"2026-11-22T08:00:00.000Z",
        "exportToTime":"2026-11-22T09:00:00.000Z","s3Bucket":"b","s3Prefix":"p",
        "manifestFilesS3Key":"p/AWSDynamoDB/01-a/manifest-files.json","itemCount":3,
        "outputFormat":"DYNAMODB_JSON","outputView":"NEW_AND_OLD_IMAGES",
        "exportType":"INCREMENTAL_EXPORT"}"#;
    const FILES: &str = "{\"itemCount\":1,\"md5Checksum\":\"x==\",\"etag\":\"e-1\",\"dataFileS3Key\":\"p/AWSDynamoDB/01-a/data/a.json.gz\"}\n{\"itemCount\":2,\"md5Checksum\":\"y==\",\"etag\":\"f-1\",\"dataFileS3Key\":\"p/AWSDynamoDB/01-a/data/b.json.gz\"}\n";

    #[test]
    fn a_full_export_is_found_beside_its_summary() {
        let summary = summary(SUMMARY.as_bytes()).expect("a summary");
        assert_eq!((summary.table.as_str(), summary.items), ("scans", 3));
        assert_eq!(summary.files, "manifest-files.json");
        assert_eq!(summary.covers, Covers::AllUntil(datetime!(2026-11-22 08:00 UTC)));
        let files = files(FILES.as_bytes(), &summary).expect("files");
        let listed: Vec<_> = files.iter().map(|file| (file.path.as_str(), file.items)).collect();
        assert_eq!(listed, [("data/a.json.gz", 1), ("data/b.json.gz", 2)]);
    }

    #[test]
    fn an_incremental_export_has_its_data_beside_its_folder() {
        let summary = summary(INCREMENTAL.as_bytes()).expect("a summary");
        let (from, to) = (datetime!(2026-11-22 08:00 UTC), datetime!(2026-11-22 09:00 UTC));
        assert_eq!(summary.covers, Covers::Changes { from, to });
        let lines = FILES.replace("01-a/data", "data");
        let found = files(lines.as_bytes(), &summary).expect("files");
        assert_eq!(found[1].path, "../data/b.json.gz");
        let mut full = summary.clone();
        full.covers = Covers::AllUntil(to);
        for (lines, summary) in [
            (&lines, &full),
            (&lines.replace("AWSDynamoDB/data", "AWSDynamoDB/01-b"), &summary),
            (&lines.replace("AWSDynamoDB/data", "data"), &summary),
            (&lines.replace("data/b", "data/../01-b/data/b"), &summary),
        ] {
            let error = files(lines.as_bytes(), summary).expect_err("not of this export");
            assert!(format!("{error:#}").contains("is not below"), "{error:#}");
        }
    }

    #[test]
    fn an_export_that_cannot_be_compared_is_refused_with_its_reason() {
        let json = |from: &str, to: &str| SUMMARY.replace(from, to);
        for (json, said) in [
            (json("\"version\"", "\"exportType\":\"NEW_EXPORT\",\"version\""), "type NEW_EXPORT"),
            (INCREMENTAL.replace("exportToTime", "exportTime"), "no exportToTime"),
            (INCREMENTAL.replace("09:00:00", "08:00:00"), "not after its exportFromTime"),
            (INCREMENTAL.replace("09:00:00", "nine"), "exportToTime is not an RFC 3339 time"),
            (json("DYNAMODB_JSON", "ION"), "format is ION"),
            (json("exportTime", "exportFromTime"), "no exportTime"),
            (json("table/scans\",\"exportTime", "scans\",\"exportTime"), "not the ARN"),
            ("[]".to_owned(), "no summary"),
        ] {
            let error = summary(json.as_bytes()).expect_err(said);
            assert!(format!("{error:#}").contains(said), "{error:#}");
        }
        summary(json("\"version\"", "\"exportType\":\"FULL_EXPORT\",\"version\"").as_bytes())
            .expect("full");
    }

    #[test]
    fn files_are_refused_outside_the_export_and_if_they_are_too_few() {
        let summary = summary(SUMMARY.as_bytes()).expect("a summary");
        for (lines, said) in [
            (FILES.replace("01-a/data/b", "02-b/data/b"), "is not below"),
            (FILES.replace("data/b", "../b"), "is not below"),
            (FILES.lines().next().expect("a line").to_owned(), "1 items, and the summary says 3"),
            (FILES.replace("itemCount", "items"), "line 1"),
        ] {
            let error = files(lines.as_bytes(), &summary).expect_err(said);
            assert!(format!("{error:#}").contains(said), "{error:#}");
        }
    }
}
