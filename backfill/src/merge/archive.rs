//! The objects of an archive, in the order of their keys: those of a bucket, or files in a folder
//! with the same names. What is no object of ours is named and holds up no other.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use futures_util::{StreamExt as _, stream};
use projector::apply::Pace;
use projector::archive::{Archive, Listed};
use projector::config::{ArchiveConfig, ArchiveObjects, ConfigError};
use projector::database::Database;
use projector::deadline::Deadline;
use projector::error::{self, Consequence, Error};
use projector::measurement::{Measurement, Versions};
use projector::{change, object, read_model, start};
use time::OffsetDateTime;

use crate::console;
use crate::merge::newer::{changed_after, newer_changes, newer_parts};
use crate::merge::{BATCH_BYTES, BATCH_SESSIONS, Step};
use crate::rate::Rate;
use crate::retry::{MAX_TRIES, pause_after, retry_transient};
use crate::statement;

/// The flag, for messages.
pub(crate) const FLAG: &str = "--from-archive";
/// How often an object is tried before it is left, if others of its chunk pass.
const TRIES: u32 = 4;
/// An object of more bytes is none of ours: an item has at most 400 KB.
const OBJECT_BYTES: u64 = 16 << 20;
const ENDING: &str = ".json";

/// Where the objects are.
enum Place {
    Bucket(Archive),
    /// A folder, and the files in it that are not listed yet, the last of them first.
    Folder(PathBuf, Vec<Listed>),
}

/// The objects that are still to be read.
pub(crate) struct Objects<'a> {
    place: Place,
    ours: &'a Database,
    since: Option<OffsetDateTime>,
    dry_run: bool,
    rate: Rate,
    /// At most this many objects are read at once.
    chunk: usize,
    asked: Pace,
    /// The last key that was listed.
    last: String,
    listed: VecDeque<Listed>,
}

/// What an object turned out to be.
enum Read {
    Row(Box<Measurement>),
    /// A tombstone that its bucket has expired since the listing.
    Gone,
    /// None of ours, and why.
    Foreign(String),
}

impl<'a> Objects<'a> {
    /// Finds the place: `s3://BUCKET/PREFIX`, or a folder. Starts after this session.
    ///
    /// # Errors
    /// [`ConfigError`] if it is neither.
    pub(crate) async fn open(
        place: &str,
        ours: &'a Database,
        since: Option<OffsetDateTime>,
        after: &str,
        max_rate: Option<u32>,
        dry_run: bool,
    ) -> anyhow::Result<Self> {
        let (place, last) = match place.strip_prefix("s3://") {
            Some(url) => {
                let (bucket, prefix) = url.split_once('/').unwrap_or((url, ""));
                if bucket.is_empty() {
                    return Err(wrong(format!("is {place:?}: give s3://BUCKET/PREFIX")).into());
                }
                let (bucket, prefix) = (bucket.to_owned(), prefix.to_owned());
                // It is only read.
                let objects = ArchiveObjects::default();
                let config = ArchiveConfig { bucket, prefix, objects };
                let aws = Box::pin(start::aws_with_credentials()).await?;
                let archive = Archive::new(config, &aws);
                let last = if after.is_empty() { String::new() } else { archive.key(after) };
                (Place::Bucket(archive), last)
            }
            None => {
                let folder = PathBuf::from(place);
                let files = files(&folder, after)?;
                (Place::Folder(folder, files), String::new())
            }
        };
        // No more than a second's worth at once.
        let chunk = max_rate.map_or(BATCH_SESSIONS, |rate| BATCH_SESSIONS.min(rate as usize));
        Ok(Self {
            place,
            ours,
            since,
            dry_run,
            rate: Rate::new(max_rate),
            chunk,
            asked: Pace::new(BATCH_SESSIONS),
            last,
            listed: VecDeque::new(),
        })
    }

    /// How many objects there are to read; `None`: nobody knows.
    pub(crate) fn count(&self) -> Option<u64> {
        match &self.place {
            Place::Bucket(_) => None,
            Place::Folder(_, files) => Some(files.len() as u64),
        }
    }

    /// The next step; `None` at the end.
    ///
    /// # Errors
    /// If S3 or our database stays away.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Step>> {
        let chunk = self.take_chunk().await?;
        if chunk.is_empty() {
            return Ok(None);
        }
        let session_of = |listed: &Listed| Some(self.session_of(&listed.key)?.to_owned());
        let through = chunk.iter().rev().find_map(session_of);
        let mut step = Step { through, ..Step::default() };
        self.rate.take(chunk.len() as f64).await;
        let rows = self.read_all(chunk, &mut step).await?;
        self.compare(rows, &mut step).await?;
        Ok(Some(step))
    }

    /// The next keys that fit a batch, one at least.
    async fn take_chunk(&mut self) -> anyhow::Result<Vec<Listed>> {
        let (mut chunk, mut bytes) = (Vec::new(), 0);
        loop {
            if self.listed.is_empty() {
                self.list().await?;
            }
            let Some(listed) = self.listed.front() else { return Ok(chunk) };
            bytes += listed.bytes;
            if chunk.len() == self.chunk || (bytes > BATCH_BYTES && !chunk.is_empty()) {
                return Ok(chunk);
            }
            chunk.extend(self.listed.pop_front());
        }
    }

    async fn list(&mut self) -> anyhow::Result<()> {
        match &mut self.place {
            Place::Folder(_, files) => self.listed.extend(files.pop()),
            Place::Bucket(archive) => {
                let listing =
                    retry_transient("list the objects", async || archive.list(&self.last).await);
                self.listed.extend(listing.await.map_err(name_flag)?);
                if let Some(listed) = self.listed.back() {
                    self.last.clone_from(&listed.key);
                }
            }
        }
        Ok(())
    }

    /// The session whose object has this key, or whose file has this name; `None` if it is none of
    /// ours.
    fn session_of<'k>(&self, key: &'k str) -> Option<&'k str> {
        let session_id = match &self.place {
            Place::Bucket(archive) => archive.session_of(key),
            Place::Folder(..) => key.strip_suffix(ENDING),
        };
        session_id.filter(|session_id| change::require_session_id(session_id).is_ok())
    }

    /// Reads these objects. Some at once; what fails while others pass is tried again, and then
    /// left.
    async fn read_all(
        &self,
        mut chunk: Vec<Listed>,
        step: &mut Step,
    ) -> anyhow::Result<Vec<Measurement>> {
        let (mut rows, mut passed, mut tries) = (Vec::new(), false, 0);
        loop {
            tries += 1;
            let mut failed = Vec::new();
            let mut answers = stream::iter(chunk)
                .map(async |listed| (self.read(&listed).await, listed))
                .buffer_unordered(self.concurrency());
            while let Some((answer, listed)) = answers.next().await {
                passed |= answer.is_ok();
                match answer {
                    Ok(Read::Row(row)) => rows.push(*row),
                    Ok(Read::Gone) => {}
                    Ok(Read::Foreign(reason)) => step.unreadable.push((listed.key, reason)),
                    Err(error) if error.consequence() == Consequence::Fatal => {
                        return Err(name_flag(error.into()));
                    }
                    Err(error) => failed.push((listed, error)),
                }
            }
            let Some((_, error)) = failed.first() else { return Ok(rows) };
            if tries >= if passed { TRIES } else { MAX_TRIES } {
                return leave(failed, passed, step).map(|()| rows);
            }
            let (pause, count) = (pause_after(tries), failed.len());
            console::line(&format!(
                "{count} objects cannot be read ({}); again in {} s",
                error::chain(error),
                pause.as_secs()
            ));
            tokio::time::sleep(pause).await;
            chunk = failed.into_iter().map(|(listed, _)| listed).collect();
        }
    }

    fn concurrency(&self) -> usize {
        match &self.place {
            Place::Bucket(archive) => archive.concurrency(),
            Place::Folder(..) => 1,
        }
    }

    async fn read(&self, listed: &Listed) -> Result<Read, Error> {
        let Listed { key, bytes } = listed;
        let Some(session_id) = self.session_of(key) else {
            return Ok(Read::Foreign(format!(
                "not the name of a session's object: SESSION_ID{ENDING}"
            )));
        };
        if *bytes > OBJECT_BYTES {
            return Ok(Read::Foreign(format!("{bytes} bytes are more than an object of ours has")));
        }
        match &self.place {
            Place::Bucket(archive) => Ok(match archive.get_current(key).await? {
                Some((body, metadata)) => parse(session_id, &body, metadata.as_ref()),
                None => Read::Gone,
            }),
            Place::Folder(folder, _) => Ok(match tokio::fs::read(folder.join(key)).await {
                Ok(body) => parse(session_id, &body, None),
                Err(error) => Read::Foreign(format!("cannot be read: {error}")),
            }),
        }
    }

    /// Takes from these rows what is newer than here.
    async fn compare(&mut self, rows: Vec<Measurement>, step: &mut Step) -> anyhow::Result<()> {
        step.found.read = rows.len() as u64;
        let since = self.since;
        let wanted = |row: &Measurement| {
            since.is_none_or(|since| changed_after(since, &row.versions, &row.changed_at))
        };
        let rows: Vec<Measurement> = rows.into_iter().filter(wanted).collect();
        step.found.skipped = step.found.read - rows.len() as u64;
        let keys: Vec<&str> = rows.iter().map(|row| row.session_id.as_str()).collect();
        let ours = self.ours;
        let asking = statement::by_key("read our versions", &mut self.asked, &keys, async |keys| {
            read_model::versions_by_key(ours, keys, Deadline::NONE).await
        });
        let held: HashMap<String, Versions> = asking.await?.into_iter().flatten().collect();
        for row in rows {
            let held = held.get(&row.session_id);
            let (session_id, parts) = (row.session_id.clone(), newer_parts(&row.versions, held));
            if parts == 0 {
                continue;
            }
            step.found.newer += 1;
            step.found.newer_parts += parts;
            match newer_changes(row, held) {
                Ok(_) if self.dry_run => {}
                Ok(newer) => step.take(newer),
                Err(error) => step.unreadable.push((session_id, error.to_string())),
            }
        }
        Ok(())
    }
}

/// The objects that failed are left, unless not a single one could be read.
fn leave(failed: Vec<(Listed, Error)>, passed: bool, step: &mut Step) -> anyhow::Result<()> {
    for (listed, error) in failed {
        if !passed {
            return Err(error).context("no object could be read for some minutes");
        }
        step.unreadable.push((listed.key, error::chain(&error)));
    }
    Ok(())
}

fn parse(session_id: &str, body: &[u8], metadata: Option<&HashMap<String, String>>) -> Read {
    let format = metadata.and_then(|metadata| metadata.get("format"));
    if let Some(format) = format.filter(|format| **format != object::FORMAT.to_string()) {
        return Read::Foreign(format!(
            "it has format {format}, and this version reads format {}: use the backfill of its \
                version",
            object::FORMAT
        ));
    }
    match object::parse(body, metadata) {
        Ok(row) if row.session_id == session_id => Read::Row(Box::new(row)),
        Ok(row) => Read::Foreign(format!("it is the object of session {:?}", row.session_id)),
        Err(error) => Read::Foreign(format!("not an object of ours: {error}")),
    }
}

/// The files of a folder that come after this session's, the last one first. Hidden ones are left
/// out.
fn files(folder: &Path, after: &str) -> Result<Vec<Listed>, ConfigError> {
    let unreadable = |error: std::io::Error| wrong(format!("names {}: {error}", folder.display()));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let key = entry.file_name().to_string_lossy().into_owned();
        let is_after = after.is_empty() || key.as_str() > format!("{after}{ENDING}").as_str();
        if is_after && !key.starts_with('.') {
            // What cannot be read is named when its turn comes.
            let bytes = entry.metadata().map_or(0, |metadata| metadata.len());
            files.push(Listed { key, bytes });
        }
    }
    files.sort_unstable_by(|a, b| b.key.cmp(&a.key));
    Ok(files)
}

fn wrong(problem: String) -> ConfigError {
    ConfigError { variable: FLAG, problem }
}

/// The projector's error names the variable of its own bucket.
fn name_flag(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref() {
        Some(Error::NoBucket { bucket, message, .. }) => {
            wrong(format!("names the bucket {bucket:?}, which cannot be used: {message}")).into()
        }
        _ => error,
    }
}
