//! Point-in-time exports: full ones as batches of items, incremental ones as batches of the keys
//! that changed. Nothing is taken for good before the file's MD5 and its number of items are those
//! of the manifest; a comparison only reads, so it may begin earlier.

use std::collections::VecDeque;
use std::io::Write as _;

use anyhow::{Context as _, ensure};
use aws_sdk_s3::Client;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use flate2::write::MultiGzDecoder;
use md5::{Digest as _, Md5};
use projector::change::Tables;
use projector::config::ConfigError;
use serde::Deserialize;
use serde_json::value::RawValue;
use time::OffsetDateTime;

use crate::items::manifest::{self, Covers, DataFile, Summary};
use crate::items::place::{FileFault, Pieces, Place};
use crate::items::{self, Item, Key};

/// At most this many items are in a batch.
const BATCH_ITEMS: usize = 1_000;
/// A batch ends after this many bytes of JSON.
const BATCH_BYTES: usize = 2 << 20;
/// How much is decompressed at once: a thousand times as much can come of it.
const SLICE_BYTES: usize = 4 << 10;

/// A data file of an export.
#[derive(Clone, Debug)]
pub(crate) struct ExportFile {
    place: Place,
    file: DataFile,
    pub(crate) of_sessions: bool,
}

/// One full export of each table.
#[derive(Clone, Debug)]
pub(crate) struct Exports {
    pub(crate) files: Vec<ExportFile>,
    pub(crate) items: u64,
    /// The time of the older one.
    pub(crate) time: OffsetDateTime,
    /// Both, for people.
    pub(crate) name: String,
}

/// An export whose summary was read.
#[derive(Clone, Debug)]
pub(crate) struct Export {
    pub(crate) place: Place,
    pub(crate) of_sessions: bool,
    pub(crate) summary: Summary,
}

/// A fault of the flag `--export`.
pub(crate) fn wrong(problem: String) -> anyhow::Error {
    ConfigError { variable: "--export", problem }.into()
}

/// Reads the manifests of two full exports, for `verify`.
///
/// # Errors
/// [`ConfigError`] if the places are not one full export of each table; and if a manifest cannot be
/// read.
pub(crate) async fn open(
    places: &[String],
    tables: &Tables,
    client: &Client,
) -> anyhow::Result<Exports> {
    let found = summaries(places, tables, client).await?;
    if let Some(export) = found.iter().find(|export| export.full_until().is_none()) {
        let summary = export.place.name(manifest::SUMMARY);
        return Err(wrong(format!(
            "{summary}: it is of type INCREMENTAL_EXPORT: verify needs a full export, which holds \
             every item"
        )));
    }
    full(found, tables).await
}

/// Reads the summaries of exports of these tables, in any number.
///
/// # Errors
/// [`ConfigError`] if a place is no export of one of the tables; and if a summary cannot be read.
pub(crate) async fn summaries(
    places: &[String],
    tables: &Tables,
    client: &Client,
) -> anyhow::Result<Vec<Export>> {
    let mut found = Vec::with_capacity(places.len());
    for text in places {
        let place = Place::parse(text, client);
        let json = match place.read(manifest::SUMMARY).await {
            Err(error) if is_missing(&error) => return Err(wrong(no_export(&place))),
            read => read?,
        };
        let summary = manifest::summary(&json)
            .map_err(|error| wrong(format!("{}: {error:#}", place.name(manifest::SUMMARY))))?;
        let Tables { sessions, scans } = tables;
        if ![sessions, scans].contains(&&summary.table) {
            return Err(wrong(format!(
                "{place} is of table {:?}, but SESSIONS_TABLE is {sessions:?} and SCANS_TABLE is \
                 {scans:?}",
                summary.table
            )));
        }
        found.push(Export { place, of_sessions: summary.table == *sessions, summary });
    }
    Ok(found)
}

fn is_missing(error: &anyhow::Error) -> bool {
    error.downcast_ref::<FileFault>().is_some_and(|fault| fault.is_missing)
}

/// Whoever made the export gave a prefix; its folder is below that one.
fn no_export(place: &Place) -> String {
    format!(
        "names no export: there is no {}. Give the folder that holds {}: below the prefix that the \
         export was made with, it is AWSDynamoDB/EXPORT-ID",
        place.name(manifest::SUMMARY),
        manifest::SUMMARY
    )
}

/// One full export of each table, in any order, with their files.
///
/// # Errors
/// [`ConfigError`] if they are not one of each table; and if a manifest cannot be read.
pub(crate) async fn full(found: Vec<Export>, tables: &Tables) -> anyhow::Result<Exports> {
    let [sessions, scans] = one_of_each(found, tables)?;
    let times = [&sessions, &scans].into_iter().filter_map(Export::full_until);
    let mut exports = Exports {
        files: Vec::new(),
        items: sessions.summary.items + scans.summary.items,
        time: times.min().context("a full export has no time")?,
        name: format!("the exports {} and {}", sessions.place, scans.place),
    };
    for export in [sessions, scans] {
        exports.files.extend(export.files().await?);
    }
    Ok(exports)
}

fn one_of_each(found: Vec<Export>, tables: &Tables) -> anyhow::Result<[Export; 2]> {
    let [mut sessions, mut scans] = [None, None];
    for export in found {
        let slot = if export.of_sessions { &mut sessions } else { &mut scans };
        if slot.is_some() {
            let table = &export.summary.table;
            return Err(wrong(format!("names two exports of table {table:?}")));
        }
        *slot = Some(export);
    }
    match (sessions, scans) {
        (Some(sessions), Some(scans)) => Ok([sessions, scans]),
        (None, _) => Err(none_of(&tables.sessions)),
        (_, None) => Err(none_of(&tables.scans)),
    }
}

/// No place is an export of this table.
pub(crate) fn none_of(table: &str) -> anyhow::Error {
    wrong(format!("names no export of table {table:?}: give it once per table"))
}

impl Export {
    /// The time of a full export; `None` for an incremental one.
    pub(crate) fn full_until(&self) -> Option<OffsetDateTime> {
        match self.summary.covers {
            Covers::AllUntil(time) => Some(time),
            Covers::Changes { .. } => None,
        }
    }

    /// Its data files, from its other manifest.
    ///
    /// # Errors
    /// If the manifest cannot be read.
    pub(crate) async fn files(&self) -> anyhow::Result<Vec<ExportFile>> {
        let Self { place, of_sessions, summary } = self;
        let lines = place.read(&summary.files).await?;
        let files = manifest::files(&lines, summary).with_context(|| place.name(&summary.files))?;
        let of_sessions = *of_sessions;
        let file = |file| ExportFile { place: place.clone(), file, of_sessions };
        Ok(files.into_iter().map(file).collect())
    }
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "Item", borrow)]
    item: &'a RawValue,
}

/// A line of an incremental export; what else it holds is not asked for.
#[derive(Deserialize)]
struct ChangeLine<'a> {
    #[serde(rename = "Keys", borrow)]
    keys: &'a RawValue,
}

/// The key of an item that changed, or why no row can hold it.
pub(crate) type ChangedKey = Result<Key, String>;

/// Reads a line of the table of sessions, or of that of scans.
type ReadLine<T> = fn(&[u8], bool) -> anyhow::Result<T>;

/// The lines of a data file, batch by batch: items, if nothing else is said.
pub(crate) struct Batches<T = Item> {
    name: String,
    of_sessions: bool,
    read: ReadLine<T>,
    expected: DataFile,
    pieces: Pieces,
    input: Input,
}

/// What was read of a file, and not taken yet.
struct Input {
    md5: Md5,
    decoder: MultiGzDecoder<Vec<u8>>,
    /// Not decompressed yet.
    compressed: VecDeque<Vec<u8>>,
    /// How many items were taken or passed over.
    read: u64,
    /// This many items at the beginning are passed over.
    skip: u64,
    /// No byte came so far. A partition without items may have a file without bytes, not even those
    /// of an empty gzip: the manifest says so.
    empty: bool,
    ended: bool,
}

fn read_item(line: &[u8], of_sessions: bool) -> anyhow::Result<Item> {
    let line: Line<'_> = serde_json::from_slice(line).context("it is not {\"Item\": {...}}")?;
    Ok(items::read(line.item.get().as_bytes(), of_sessions))
}

#[expect(clippy::unnecessary_wraps, reason = "it is one of the ways to read a line")]
fn read_item_or_why_not(line: &[u8], of_sessions: bool) -> anyhow::Result<Item> {
    let none = |error: anyhow::Error| Item::Malformed(None, format!("{error:#}"));
    Ok(read_item(line, of_sessions).unwrap_or_else(none))
}

fn read_change(line: &[u8], of_sessions: bool) -> anyhow::Result<ChangedKey> {
    let line: ChangeLine<'_> =
        serde_json::from_slice(line).context("it is not {\"Keys\": {...}, ...}")?;
    Ok(match items::read(line.keys.get().as_bytes(), of_sessions) {
        // The attributes that a key lacks make it a malformed item.
        Item::Whole(key, _) | Item::Malformed(Some(key), _) => Ok(key),
        Item::Malformed(None, reason) => Err(reason),
    })
}

impl ExportFile {
    /// A file that somebody else has found.
    pub(crate) fn new(place: Place, file: DataFile, of_sessions: bool) -> Self {
        Self { place, file, of_sessions }
    }

    /// The items of a full export, from the first. Nothing is read yet.
    pub(crate) fn batches(&self) -> Batches {
        self.lines(read_item)
    }

    /// The items from this line on, counted from 0. A line that is no item at all is a malformed
    /// one: the MD5 of the whole file says whether the file is damaged. Nothing is read yet.
    pub(crate) fn batches_from(&self, line: u64) -> Batches {
        let mut batches = self.lines(read_item_or_why_not);
        batches.input.skip = line;
        batches
    }

    /// The keys of an incremental export, from the first. Nothing is read yet.
    pub(crate) fn changed_keys(&self) -> Batches<ChangedKey> {
        self.lines(read_change)
    }

    fn lines<T>(&self, read: ReadLine<T>) -> Batches<T> {
        Batches {
            name: self.place.name(&self.file.path),
            of_sessions: self.of_sessions,
            read,
            expected: self.file.clone(),
            pieces: self.place.open(&self.file.path),
            input: Input {
                md5: Md5::new(),
                decoder: MultiGzDecoder::new(Vec::new()),
                compressed: VecDeque::new(),
                read: 0,
                skip: 0,
                empty: true,
                ended: false,
            },
        }
    }
}

impl<T> Batches<T> {
    /// How many lines were read so far, those that were passed over included.
    pub(crate) fn lines_read(&self) -> u64 {
        self.input.read
    }

    /// The next lines; `None` after the last one, once the file was found to be whole.
    ///
    /// # Errors
    /// [`FileFault`] if the file is missing, or not the one of the manifest; and if it cannot be
    /// read. Each error names it.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Vec<T>>> {
        let mut items = Vec::new();
        let mut bytes = 0;
        let damaged = |why: anyhow::Error| FileFault::damaged(&self.name, &why);
        let read = |line: &[u8]| (self.read)(line, self.of_sessions);
        loop {
            bytes += self.input.lines(&mut items, read).map_err(damaged)?;
            if items.len() >= BATCH_ITEMS || bytes >= BATCH_BYTES {
                return Ok(Some(items));
            }
            if self.input.ended {
                self.input.verify(&self.expected).map_err(damaged)?;
                return Ok(Some(items).filter(|items| !items.is_empty()));
            }
            if self.input.compressed.is_empty() {
                match self.pieces.next().await? {
                    Some(piece) => self.input.add(&piece),
                    None => self.input.end().map_err(damaged)?,
                }
            }
            self.input.decompress().map_err(damaged)?;
        }
    }
}

impl Input {
    fn add(&mut self, piece: &[u8]) {
        self.empty = false;
        self.md5.update(piece);
        self.compressed.extend(piece.chunks(SLICE_BYTES).map(<[u8]>::to_vec));
    }

    /// Decompresses a little more.
    fn decompress(&mut self) -> anyhow::Result<()> {
        Ok(self.compressed.pop_front().map_or(Ok(()), |slice| self.decoder.write_all(&slice))?)
    }

    /// Nothing more comes.
    fn end(&mut self) -> anyhow::Result<()> {
        self.ended = true;
        if !self.empty {
            self.decoder.try_finish()?;
        }
        let text = self.decoder.get_mut();
        if text.last().is_some_and(|byte| *byte != b'\n') {
            text.push(b'\n');
        }
        Ok(())
    }

    /// Takes whole lines that are decompressed, and returns how long they were.
    fn lines<T>(
        &mut self,
        items: &mut Vec<T>,
        read: impl Fn(&[u8]) -> anyhow::Result<T>,
    ) -> anyhow::Result<usize> {
        let text = self.decoder.get_mut();
        let mut start = 0;
        while items.len() < BATCH_ITEMS
            && let Some(length) = text[start..].iter().position(|byte| *byte == b'\n')
        {
            let line = &text[start..start + length];
            start += length + 1;
            if line.trim_ascii().is_empty() {
                continue;
            }
            self.read += 1;
            if self.read <= self.skip {
                continue;
            }
            items.push(read(line).with_context(|| format!("line {}", self.read))?);
        }
        text.drain(..start);
        Ok(start)
    }

    /// Sees that the file is the one of the manifest, and whole.
    fn verify(&self, expected: &DataFile) -> anyhow::Result<()> {
        let md5 = BASE64.encode(self.md5.clone().finalize());
        ensure!(md5 == expected.md5, "its MD5 is not the one of the manifest");
        let (read, listed) = (self.read, expected.items);
        ensure!(read == listed, "it has {read} items, and the manifest says {listed}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD as BASE64;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use md5::{Digest as _, Md5};
    use projector::part::Part;

    use super::{DataFile, ExportFile, Place, read_change, read_item};

    #[test]
    fn a_line_of_an_incremental_export_is_a_key_whatever_else_it_holds() {
        let scan = r#""Keys":{"side":{"S":"left"},"session_id":{"S":"s1"}}"#;
        let image = r#"{"session_id":{"S":"s1"},"side":{"S":"left"},"mesh":{"B":"YWJj"}}"#;
        let micros = r#""Metadata":{"WriteTimestampMicros":"#;
        for line in [
            format!(r#"{{{micros}{{"N":"1680109764000000"}}}},{scan},"NewImage":{image}}}"#),
            format!(
                r#"{{{micros}1680109764000000}},{scan},"NewImage":{image},"OldImage":{image}}}"#
            ),
            // A removal.
            format!(r#"{{{micros}{{"N":"1680109764000000"}}}},{scan},"OldImage":{image}}}"#),
            format!("{{{scan}}}"),
        ] {
            let key = read_change(line.as_bytes(), false).expect("a change");
            assert_eq!(key, Ok((Part::Left, "s1".to_owned())), "{line}");
        }
        let session = br#"{"Keys":{"session_id":{"S":"s1"}}}"#;
        let key = read_change(session, true).expect("a change");
        assert_eq!(key, Ok((Part::Session, "s1".to_owned())));
        let reason = read_change(session, false).expect("a change").expect_err("no side");
        assert!(reason.contains("side"), "{reason}");
    }

    /// A partition without an item has a file, too.
    #[tokio::test]
    async fn an_empty_file_has_no_lines() {
        let folder = tempfile::tempdir().expect("a folder");
        let empty = GzEncoder::new(Vec::new(), Compression::default());
        for bytes in [empty.finish().expect("a vector"), Vec::new()] {
            std::fs::write(folder.path().join("a"), &bytes).expect("a file");
            let md5 = BASE64.encode(Md5::digest(&bytes));
            let file = DataFile { path: "a".to_owned(), items: 0, md5 };
            let place = Place::Folder(folder.path().to_owned());
            let mut keys = ExportFile { place, file, of_sessions: true }.changed_keys();
            assert!(keys.next().await.expect("a whole file").is_none(), "{bytes:?}");
        }
    }

    #[test]
    fn a_line_of_the_other_kind_is_refused() {
        let (item, change) = (r#"{"Item":{}}"#, r#"{"Keys":{}}"#);
        let error = read_change(item.as_bytes(), true).expect_err("an item");
        assert!(format!("{error:#}").contains("is not {\"Keys\": {...}, ...}"), "{error:#}");
        read_item(change.as_bytes(), true).expect_err("a change");
    }
}
