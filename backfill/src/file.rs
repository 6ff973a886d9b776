//! `backfill file`: replays files (fixture streams, what Lambda gave up on) through the projector's own apply path.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use flate2::read::MultiGzDecoder;
use projector::apply::Counts;

use crate::Outcome;
use crate::cli::{FileArguments, Settings};
use crate::deliver::{BATCH_BYTES, Delivery, try_out};
use crate::document::{Kind, event, failed_batch, kind};
use crate::progress::Progress;
use crate::stop::Stop;
use crate::summary::{self, Reasons};

/// So many batches are on their way at once: one is decoded while another is in the database.
const UNDER_WAY: usize = 2;

pub(crate) async fn run(
    settings: &Settings,
    arguments: &FileArguments,
    _stop: &Stop,
) -> anyhow::Result<Outcome> {
    let config =
        if arguments.dry_run { settings.config_without_database() } else { settings.config() }?;
    // Before anything is written: a misspelt path is found at once.
    let mut files = Vec::new();
    for path in &arguments.paths {
        list(path, &mut files)?;
    }
    let bytes = files.iter().map(|file| file.bytes).sum();
    let start = Instant::now();
    if arguments.dry_run {
        let (mut counts, mut reasons) = (Counts::default(), Reasons::default());
        let mut progress = Progress::start(bytes);
        let mut batches = AllBatches::of(&files, arguments.batch_size as usize);
        while let Some((_, batch)) = batches.next()? {
            try_out(&batch.records, &config.tables, &mut counts, &mut reasons)?;
            progress.advance(batch.bytes, &counts);
        }
        drop(progress);
        summary::print_dry(counts.records, counts.rejected, &reasons);
        return Ok(Outcome::of(&counts));
    }
    let mut delivery = Delivery::new(config.projector_with_credentials().await?);
    let mut progress = Progress::start(bytes);
    let mut under_way = VecDeque::new();
    let mut batches = AllBatches::of(&files, arguments.batch_size as usize);
    loop {
        // Replaying them at the same time is harmless: versions decide, not the order.
        while under_way.len() < UNDER_WAY
            && let Some((path, batch)) = batches.next()?
        {
            under_way.push_back((path, batch.last, batch.bytes, delivery.start(batch.records)));
        }
        let Some((path, last, bytes, batch)) = under_way.pop_front() else { break };
        let delivered = batch.await.context("a delivery panicked")?.with_context(|| {
            format!("stopped in the batch that ends at record {last} of {}", path.display())
        })?;
        delivery.add(delivered);
        progress.advance(bytes, &delivery.counts);
    }
    drop(progress);
    summary::print("done", &delivery.counts, &delivery.reasons, start.elapsed());
    Ok(Outcome::of(&delivery.counts))
}

/// The batches of all files, one file after the other.
struct AllBatches<'a> {
    files: std::slice::Iter<'a, Input>,
    open: Option<(&'a Path, Batches)>,
    batch_size: usize,
}

impl<'a> AllBatches<'a> {
    fn of(files: &'a [Input], batch_size: usize) -> Self {
        Self { files: files.iter(), open: None, batch_size }
    }

    fn next(&mut self) -> anyhow::Result<Option<(&'a Path, Batch)>> {
        loop {
            if let Some((path, batches)) = &mut self.open
                && let Some(batch) = batches.next()?
            {
                return Ok(Some((path, batch)));
            }
            let Some(Input { path, .. }) = self.files.next() else { return Ok(None) };
            self.open = Some((path, Batches::open(path, self.batch_size)?));
        }
    }
}

/// This file, or the files of this folder and those below it, by name: Lambda's on-failure destination is a
/// tree. What begins with a dot is left out.
fn list(path: &Path, files: &mut Vec<Input>) -> anyhow::Result<()> {
    let context = || format!("cannot read {}", path.display());
    let metadata = std::fs::metadata(path).with_context(context)?;
    if !metadata.is_dir() {
        files.push(Input { path: path.to_owned(), bytes: metadata.len() });
        return Ok(());
    }
    let entries = std::fs::read_dir(path).with_context(context)?;
    let mut below = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .with_context(context)?;
    below.sort();
    let hidden =
        |path: &Path| path.file_name().is_some_and(|name| name.as_encoded_bytes()[0] == b'.');
    below.iter().filter(|path| !hidden(path)).try_for_each(|path| list(path, files))
}

/// A file to replay.
struct Input {
    path: PathBuf,
    /// As it lies on the disk, compressed or not.
    bytes: u64,
}

struct Batch {
    records: Vec<Vec<u8>>,
    /// What was read from the file since the batch before, compressed where the file is.
    bytes: u64,
    /// The number of the batch's last record in the file.
    last: u64,
}

/// The records of one file, in batches.
struct Batches {
    path: PathBuf,
    lines: BufReader<Box<dyn Read>>,
    read: std::rc::Rc<std::cell::Cell<u64>>,
    reported: u64,
    /// Records of an event that are not delivered yet.
    waiting: std::vec::IntoIter<Vec<u8>>,
    ended: bool,
    whole_document: bool,
    delivered: u64,
    batch_size: usize,
}

/// Counts what is read through it.
struct Counted {
    file: File,
    read: std::rc::Rc<std::cell::Cell<u64>>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.read.set(self.read.get() + count as u64);
        Ok(count)
    }
}

impl Batches {
    fn open(path: &Path, batch_size: usize) -> anyhow::Result<Self> {
        let context = || format!("cannot read {}", path.display());
        let read = std::rc::Rc::default();
        let file = File::open(path).with_context(context)?;
        let mut raw =
            BufReader::with_capacity(1 << 16, Counted { file, read: std::rc::Rc::clone(&read) });
        let gzip = raw.fill_buf().with_context(context)?.starts_with(&[0x1f, 0x8b]);
        let plain: Box<dyn Read> =
            if gzip { Box::new(MultiGzDecoder::new(raw)) } else { Box::new(raw) };
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let by_line = [".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"];
        Ok(Self {
            path: path.to_owned(),
            lines: BufReader::with_capacity(1 << 20, plain),
            read,
            reported: 0,
            waiting: Vec::new().into_iter(),
            ended: false,
            whole_document: !by_line.iter().any(|ending| name.ends_with(ending)),
            delivered: 0,
            batch_size,
        })
    }

    fn next(&mut self) -> anyhow::Result<Option<Batch>> {
        let mut records = Vec::new();
        let mut bytes = 0;
        while records.len() < self.batch_size && bytes < BATCH_BYTES {
            let Some(record) =
                self.record().with_context(|| format!("cannot read {}", self.path.display()))?
            else {
                break;
            };
            bytes += record.len();
            records.push(record);
        }
        if records.is_empty() {
            return Ok(None);
        }
        self.delivered += records.len() as u64;
        let read = self.read.get() - self.reported;
        self.reported += read;
        Ok(Some(Batch { records, bytes: read, last: self.delivered }))
    }

    fn record(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        loop {
            if let Some(record) = self.waiting.next() {
                return Ok(Some(record));
            }
            if self.ended {
                return Ok(None);
            }
            let mut line = Vec::new();
            self.ended = self.lines.read_until(b'\n', &mut line)? == 0;
            if self.whole_document {
                self.whole_document = false;
                // A first line that is JSON by itself begins a file of one record a line.
                if serde_json::from_slice::<serde::de::IgnoredAny>(&line).is_err() {
                    self.lines.read_to_end(&mut line)?;
                    self.ended = true;
                    if !line.trim_ascii().is_empty() {
                        let text = line.trim_ascii();
                        let records = match kind(text) {
                            Kind::FailedBatch => failed_batch(text)?,
                            Kind::Event | Kind::Record => event(text).context(
                                "neither a Lambda event ({\"Records\": [...]}) nor one record a line",
                            )?,
                        };
                        self.waiting = records.into_iter();
                    }
                    continue;
                }
            }
            let text = line.trim_ascii();
            if text.is_empty() {
                continue;
            }
            // A record has no member of these names, so this is an event or a failed batch on one line.
            match kind(text) {
                Kind::Event => match event(text) {
                    Ok(records) => self.waiting = records.into_iter(),
                    // What is no JSON is delivered as it is: it will be set aside like any bad record.
                    Err(_) => return Ok(Some(text.to_vec())),
                },
                Kind::FailedBatch => self.waiting = failed_batch(text)?.into_iter(),
                Kind::Record => return Ok(Some(text.to_vec())),
            }
        }
    }
}
