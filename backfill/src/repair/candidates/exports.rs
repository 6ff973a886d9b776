//! The exports that a repair reads: one full export of each table, or incremental ones that hold
//! the gap. All of it is checked before anything is compared.

use aws_sdk_s3::Client;
use projector::change::Tables;
use time::{Duration, OffsetDateTime};

use crate::items::export::{self, Export, ExportFile, Exports, wrong};
use crate::items::manifest::Covers;
use crate::repair::candidates::windows::{self, Window};

/// A change just before the window may have a creation time within it, and the other way round: it
/// is approximate. Rows that changed this long before the window are candidates, too.
const MARGIN: Duration = Duration::minutes(15);

/// Exports that hold the gap.
pub(crate) struct OpenExports {
    /// Where they are, for people and for `repairs`.
    pub(crate) name: String,
    /// How many items, or changed keys, they hold.
    pub(crate) items: u64,
    /// What came after this time is not in all of them.
    pub(crate) until: OffsetDateTime,
    pub(super) shows: Shows,
}

/// What exports show.
pub(super) enum Shows {
    /// One full export of each table.
    AllItems(Exports),
    /// Incremental exports. The parts of rows that changed since this time are candidates, too.
    Changes { files: Vec<ExportFile>, since: OffsetDateTime },
}

/// Reads the manifests of exports and checks that they hold a gap which began at `gap_start`, if
/// that is known, and that the streams hold what came after them.
///
/// # Errors
/// [`projector::config::ConfigError`] if they do not hold the gap; it says what is missing, and the
/// remedy. And if a manifest cannot be read.
pub(crate) async fn open(
    places: &[String],
    tables: &Tables,
    client: &Client,
    gap_start: Option<OffsetDateTime>,
    now: OffsetDateTime,
) -> anyhow::Result<OpenExports> {
    let found = export::summaries(places, tables, client).await?;
    let full = found.iter().filter(|export| export.full_until().is_some()).count();
    match full {
        0 => changes(found, tables, gap_start, now).await,
        _ if full == found.len() => all_items(found, tables, now).await,
        _ => Err(wrong(
            "names full exports and incremental ones: give one full export of each table, made \
             within the last hours, or incremental ones alone"
                .to_owned(),
        )),
    }
}

async fn all_items(
    found: Vec<Export>,
    tables: &Tables,
    now: OffsetDateTime,
) -> anyhow::Result<OpenExports> {
    for export in &found {
        if let Some(time) = export.full_until().filter(|time| windows::is_too_old(*time, now)) {
            return Err(wrong(format!(
                "{} is of {}, and the streams do not hold all that came after it: make a new \
                 export of table {:?}",
                export.place,
                windows::text(time),
                export.summary.table
            )));
        }
    }
    let exports = export::full(found, tables).await?;
    let (name, items, until) = (exports.name.clone(), exports.items, exports.time);
    Ok(OpenExports { name, items, until, shows: Shows::AllItems(exports) })
}

async fn changes(
    found: Vec<Export>,
    tables: &Tables,
    gap_start: Option<OffsetDateTime>,
    now: OffsetDateTime,
) -> anyhow::Result<OpenExports> {
    let join = |of_sessions: bool, table: &str| {
        let of_table = found.iter().filter(|export| export.of_sessions == of_sessions);
        let windows = of_table.filter_map(|export| match export.summary.covers {
            Covers::Changes { from, to } => Some(Window { from, to }),
            Covers::AllUntil(_) => None,
        });
        windows::join(table, windows.collect(), gap_start, now).map_err(wrong)
    };
    let (sessions, scans) = (join(true, &tables.sessions)?, join(false, &tables.scans)?);
    let places: Vec<String> = found.iter().map(|export| export.place.to_string()).collect();
    let items = found.iter().map(|export| export.summary.items).sum();
    let mut files = Vec::new();
    for export in found {
        files.extend(export.files().await?);
    }
    let since = sessions.from.min(scans.from) - MARGIN;
    let until = sessions.to.min(scans.to);
    let name = format!("the incremental exports {}", places.join(", "));
    Ok(OpenExports { name, items, until, shows: Shows::Changes { files, since } })
}
