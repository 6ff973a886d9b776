//! Two point-in-time exports, one per table, as batches of items. Nothing is taken for good before
//! the file's MD5 and its number of items are those of the manifest; a comparison only reads, so it
//! may begin earlier.

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

use crate::items::manifest::{self, DataFile, Summary};
use crate::items::place::{Pieces, Place};
use crate::items::{self, Item};

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

/// Both exports.
#[derive(Clone, Debug)]
pub(crate) struct Exports {
    pub(crate) files: Vec<ExportFile>,
    pub(crate) items: u64,
    /// The time of the older one.
    pub(crate) time: OffsetDateTime,
    /// Both, for people.
    pub(crate) name: String,
}

fn wrong(problem: String) -> anyhow::Error {
    ConfigError { variable: "--export", problem }.into()
}

/// Reads the manifests of both exports.
///
/// # Errors [`ConfigError`] if the places are not one full export of each table; and if a manifest
/// cannot be read.
pub(crate) async fn open(
    places: &[String],
    tables: &Tables,
    client: &Client,
) -> anyhow::Result<Exports> {
    let mut found: [Option<(Place, Summary)>; 2] = [None, None];
    for text in places {
        let place = Place::parse(text, client);
        let json = place.read(manifest::SUMMARY).await?;
        let summary = manifest::summary(&json)
            .map_err(|error| wrong(format!("{}: {error:#}", place.name(manifest::SUMMARY))))?;
        let slot = match &summary.table {
            table if *table == tables.sessions => &mut found[0],
            table if *table == tables.scans => &mut found[1],
            table => {
                let Tables { sessions, scans } = tables;
                return Err(wrong(format!(
                    "{place} is of table {table:?}, but SESSIONS_TABLE is {sessions:?} and \
                        SCANS_TABLE is {scans:?}"
                )));
            }
        };
        if slot.is_some() {
            return Err(wrong(format!("names two exports of table {:?}", summary.table)));
        }
        *slot = Some((place, summary));
    }
    let (sessions, scans) = match found {
        [Some(sessions), Some(scans)] => (sessions, scans),
        [sessions, _] => {
            let missing = if sessions.is_none() { &tables.sessions } else { &tables.scans };
            let problem = format!("names no export of table {missing:?}: give it once per table");
            return Err(wrong(problem));
        }
    };
    let mut exports = Exports {
        files: Vec::new(),
        items: sessions.1.items + scans.1.items,
        time: sessions.1.time.min(scans.1.time),
        name: format!("the exports {} and {}", sessions.0, scans.0),
    };
    for (of_sessions, (place, summary)) in [(true, sessions), (false, scans)] {
        let lines = place.read(&summary.files).await?;
        let files =
            manifest::files(&lines, &summary).with_context(|| place.name(&summary.files))?;
        let files =
            files.into_iter().map(|file| ExportFile { place: place.clone(), file, of_sessions });
        exports.files.extend(files);
    }
    Ok(exports)
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "Item", borrow)]
    item: &'a RawValue,
}

/// The items of a data file, batch by batch.
pub(crate) struct Batches {
    name: String,
    of_sessions: bool,
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
    /// How many items were taken.
    read: u64,
    ended: bool,
}

impl ExportFile {
    /// Its items, from the first. Nothing is read yet.
    pub(crate) fn batches(&self) -> Batches {
        Batches {
            name: self.place.name(&self.file.path),
            of_sessions: self.of_sessions,
            expected: self.file.clone(),
            pieces: self.place.open(&self.file.path),
            input: Input {
                md5: Md5::new(),
                decoder: MultiGzDecoder::new(Vec::new()),
                compressed: VecDeque::new(),
                read: 0,
                ended: false,
            },
        }
    }
}

impl Batches {
    /// The next items; `None` after the last one, once the file was found to be whole.
    ///
    /// # Errors
    /// If the file cannot be read, or is not the one of the manifest. The error names it.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Vec<Item>>> {
        let mut items = Vec::new();
        let mut bytes = 0;
        let damaged = || format!("{} is damaged", self.name);
        loop {
            bytes += self.input.lines(&mut items, self.of_sessions).with_context(damaged)?;
            if items.len() >= BATCH_ITEMS || bytes >= BATCH_BYTES {
                return Ok(Some(items));
            }
            if self.input.ended {
                self.input.verify(&self.expected).with_context(damaged)?;
                return Ok(Some(items).filter(|items| !items.is_empty()));
            }
            if self.input.compressed.is_empty() {
                match self.pieces.next().await? {
                    Some(piece) => self.input.add(&piece),
                    None => self.input.end().with_context(damaged)?,
                }
            }
            self.input.decompress().with_context(damaged)?;
        }
    }
}

impl Input {
    fn add(&mut self, piece: &[u8]) {
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
        self.decoder.try_finish()?;
        let text = self.decoder.get_mut();
        if text.last().is_some_and(|byte| *byte != b'\n') {
            text.push(b'\n');
        }
        Ok(())
    }

    /// Takes whole lines that are decompressed, and returns how long they were.
    fn lines(&mut self, items: &mut Vec<Item>, of_sessions: bool) -> anyhow::Result<usize> {
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
            let line: Line<'_> = serde_json::from_slice(line)
                .with_context(|| format!("line {} is not {{\"Item\": {{...}}}}", self.read))?;
            items.push(items::read(line.item.get().as_bytes(), of_sessions));
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
