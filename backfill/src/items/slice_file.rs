//! One data file of a full export, found by its key alone: the summary of its export, beside the
//! folder that it is in, says of which table and of what time it is.

use anyhow::{Context as _, bail};
use aws_sdk_s3::Client;
use projector::change::Tables;
use time::OffsetDateTime;

use crate::items::export::ExportFile;
use crate::items::manifest::{self, Covers, DataFile};
use crate::items::place::{FileFault, Place};

/// What comes between the folder of an export and the name of a data file.
const DATA: &str = "/data/";

/// A file as a line of `manifest-files.json` names it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Named<'a> {
    pub(crate) bucket: &'a str,
    pub(crate) key: &'a str,
    /// In base64.
    pub(crate) md5: &'a str,
    pub(crate) items: u64,
}

/// A file that was found.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) file: ExportFile,
    /// Its export has every change up to then.
    pub(crate) export_time: OffsetDateTime,
    /// For messages.
    pub(crate) name: String,
}

/// Finds what a file is. Of the file itself nothing is read yet.
///
/// # Errors
/// If it is no data file of a full export of one of the tables, or S3 does not answer. Each error
/// names the file and the remedy.
pub(crate) async fn find(
    named: Named<'_>,
    tables: &Tables,
    client: &Client,
) -> anyhow::Result<Found> {
    let Named { bucket, key, md5, items } = named;
    let name = format!("s3://{bucket}/{key}");
    let Some((folder, file)) = key.rsplit_once(DATA) else {
        bail!(
            "{name} is no data file of an export: name one of manifest-files.json, which is in the \
             folder data/ of its export"
        );
    };
    let place = Place::Bucket(client.clone(), bucket.to_owned(), format!("{folder}/"));
    let of_export = || place.name(manifest::SUMMARY);
    let json = match place.read(manifest::SUMMARY).await {
        Err(error) if error.downcast_ref::<FileFault>().is_some_and(|fault| fault.is_missing) => {
            bail!(
                "{name} has no {} beside its folder, so it is no file of a full export: a \
                 reconciliation reads full exports, at the place where DynamoDB wrote them",
                manifest::SUMMARY
            );
        }
        read => read?,
    };
    let summary = manifest::summary(&json).with_context(of_export)?;
    let Covers::AllUntil(export_time) = summary.covers else {
        bail!("{} is of type INCREMENTAL_EXPORT: make a full export", of_export());
    };
    let Tables { sessions, scans } = tables;
    if ![sessions, scans].contains(&&summary.table) {
        bail!(
            "{} is of table {:?}, but SESSIONS_TABLE is {sessions:?} and SCANS_TABLE is {scans:?}",
            of_export(),
            summary.table
        );
    }
    let path = format!("data/{file}");
    let data = DataFile { path, items, md5: md5.to_owned() };
    let file = ExportFile::new(place, data, summary.table == *sessions);
    Ok(Found { file, export_time, name })
}
