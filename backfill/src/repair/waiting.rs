//! Images that wait for the end of their hold. They are in temporary files without a name, so that
//! a repair of millions of parts takes little memory and leaves nothing behind, whatever ends it.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use anyhow::Context as _;
use projector::part::Part;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use time::{Duration, OffsetDateTime};

use crate::items::Key;
use crate::repair::reread::Hold;

/// A file takes this many bytes; then the next one is begun. One that nobody waits in is gone.
const FILE_BYTES: u64 = 64 << 20;
/// No more candidates are taken while this many bytes wait on disk ...
const BYTES_AT_MOST: u64 = 8 << 30;
/// ... or this many parts, whose keys are in memory.
const PARTS_AT_MOST: usize = 500_000;

/// What an item held, and what the stores held before it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WaitingImage {
    pub(crate) key: Key,
    /// The row's version, as in [`super::reread::Seen`].
    pub(crate) row: Option<String>,
    /// The greater of the row's and the object's version.
    pub(crate) floor: Option<String>,
    /// The item's JSON; `None` if there is no item.
    pub(crate) item: Option<Vec<u8>>,
}

/// Images of one table that were read together.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) images: Vec<WaitingImage>,
    /// No image was read later than this.
    pub(crate) read_at: OffsetDateTime,
}

/// The streams of the two tables: up to when each has been read and stored.
#[derive(Clone, Debug)]
pub(crate) struct ReadThrough {
    pub(crate) sessions: Vec<Option<OffsetDateTime>>,
    pub(crate) scans: Vec<Option<OffsetDateTime>>,
}

/// How much may wait at once.
#[derive(Clone, Copy, Debug)]
struct Room {
    bytes: u64,
    parts: usize,
}

/// On a machine.
const MACHINE: Room = Room { bytes: BYTES_AT_MOST, parts: PARTS_AT_MOST };
/// In a function, whose `/tmp` has 512 MB (AWS Lambda Developer Guide, "Configure ephemeral
/// storage for Lambda functions"). A file that was waited in stays until all of it is over.
const FUNCTION: Room = Room { bytes: 256 << 20, parts: 100_000 };

impl Default for Room {
    fn default() -> Self {
        MACHINE
    }
}

/// All images that wait.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    room: Room,
    file: Option<(Arc<File>, u64)>,
    batches: Vec<Stored>,
    bytes: u64,
    parts: usize,
}

/// A batch that is on disk.
#[derive(Debug)]
struct Stored {
    hold: Hold,
    of_sessions: bool,
    is_over: bool,
    read_at: OffsetDateTime,
    parts: usize,
    file: Arc<File>,
    offset: u64,
    bytes: u64,
}

#[derive(Serialize, Deserialize)]
struct Line<'a> {
    part: &'a str,
    session_id: &'a str,
    row: Option<&'a str>,
    floor: Option<&'a str>,
    #[serde(borrow)]
    item: Option<&'a RawValue>,
}

impl Batch {
    /// How many sessions have a row that is written.
    pub(crate) fn sessions(&self) -> usize {
        self.images.iter().map(|image| &image.key.1).collect::<HashSet<_>>().len()
    }
}

impl Waiting {
    /// How many parts wait.
    pub(crate) fn parts(&self) -> usize {
        self.parts
    }

    /// With the room that a function has.
    pub(crate) fn in_function() -> Self {
        Self { room: FUNCTION, ..Self::default() }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.parts >= self.room.parts || self.bytes >= self.room.bytes
    }

    /// Begins the hold of images that were read at `read_at` at the latest.
    ///
    /// # Errors
    /// If the folder for temporary files takes no more.
    pub(crate) fn add(
        &mut self,
        images: Vec<WaitingImage>,
        read_at: OffsetDateTime,
    ) -> anyhow::Result<()> {
        let (of_sessions, of_scans): (Vec<_>, Vec<_>) =
            images.into_iter().partition(|image| image.key.0 == Part::Session);
        for (images, is_session) in [(of_sessions, true), (of_scans, false)] {
            if !images.is_empty() {
                self.store(&images, is_session, read_at).with_context(|| {
                    let folder = std::env::temp_dir();
                    format!("cannot keep what waits in {}: TMPDIR names another", folder.display())
                })?;
            }
        }
        Ok(())
    }

    fn store(
        &mut self,
        images: &[WaitingImage],
        of_sessions: bool,
        read_at: OffsetDateTime,
    ) -> io::Result<()> {
        let mut text = Vec::new();
        for image in images {
            let item = image.item.as_deref().map(serde_json::from_slice).transpose()?;
            let line = Line {
                part: image.key.0.name(),
                session_id: &image.key.1,
                row: image.row.as_deref(),
                floor: image.floor.as_deref(),
                item,
            };
            serde_json::to_writer(&mut text, &line)?;
            text.push(b'\n');
        }
        let (file, offset) = match self.file.take() {
            Some((file, length)) if length < FILE_BYTES => (file, length),
            _ => (Arc::new(tempfile::tempfile()?), 0),
        };
        let bytes = text.len() as u64;
        let mut writer: &File = &file;
        writer.seek(SeekFrom::Start(offset))?;
        writer.write_all(&text)?;
        self.file = Some((Arc::clone(&file), offset + bytes));
        let (hold, parts) = (Hold::new(read_at), images.len());
        self.batches.push(Stored {
            hold,
            of_sessions,
            is_over: false,
            read_at,
            parts,
            file,
            offset,
            bytes,
        });
        self.bytes += bytes;
        self.parts += parts;
        Ok(())
    }

    /// Looks how far the streams have been read. It must be called every now and then: a hold ends
    /// one timeout after it was first SEEN that the streams have passed.
    pub(crate) fn observe(
        &mut self,
        through: &ReadThrough,
        function_timeout: Duration,
        now: OffsetDateTime,
    ) {
        for batch in &mut self.batches {
            let of_table = if batch.of_sessions { &through.sessions } else { &through.scans };
            batch.is_over = batch.hold.is_over(of_table, function_timeout, now);
        }
    }

    /// A batch whose hold is over.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn take_over(&mut self) -> anyhow::Result<Option<Batch>> {
        let over = self.batches.iter().position(|batch| batch.is_over);
        over.map(|index| self.take(index)).transpose()
    }

    /// The keys of a batch, whether or not its hold is over: they are to be looked at anew.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn take_keys(&mut self) -> anyhow::Result<Option<Vec<Key>>> {
        let Some(last) = self.batches.len().checked_sub(1) else { return Ok(None) };
        let keys = self.take(last)?.images.into_iter().map(|image| image.key);
        Ok(Some(keys.collect()))
    }

    fn take(&mut self, index: usize) -> anyhow::Result<Batch> {
        let stored = self.batches.swap_remove(index);
        self.bytes -= stored.bytes;
        self.parts -= stored.parts;
        stored.read().context("cannot read what waits")
    }
}

impl Stored {
    fn read(&self) -> anyhow::Result<Batch> {
        let mut text = vec![0; usize::try_from(self.bytes)?];
        self.file.read_exact_at(&mut text, self.offset)?;
        let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let images = lines.map(image).collect::<anyhow::Result<_>>()?;
        Ok(Batch { images, read_at: self.read_at })
    }
}

fn image(line: &[u8]) -> anyhow::Result<WaitingImage> {
    let line: Line<'_> = serde_json::from_slice(line)?;
    let part = Part::ALL.into_iter().find(|part| part.name() == line.part);
    Ok(WaitingImage {
        key: (part.context("it names no part")?, line.session_id.to_owned()),
        row: line.row.map(str::to_owned),
        floor: line.floor.map(str::to_owned),
        item: line.item.map(|item| item.get().as_bytes().to_vec()),
    })
}

#[cfg(test)]
mod tests {
    use projector::part::Part;
    use time::{Duration, OffsetDateTime};

    use super::{FILE_BYTES, ReadThrough, Waiting, WaitingImage};

    fn at(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + Duration::seconds(seconds)
    }

    fn image(part: Part, name: &str, bytes: usize) -> WaitingImage {
        let text = "x".repeat(bytes);
        WaitingImage {
            key: (part, name.to_owned()),
            row: Some("L/1".to_owned()),
            floor: None,
            item: (bytes > 0).then(|| format!(r#"{{"a":{{"S":"{text}"}}}}"#).into_bytes()),
        }
    }

    fn through(sessions: i64, scans: i64) -> ReadThrough {
        ReadThrough { sessions: vec![Some(at(sessions))], scans: vec![Some(at(scans))] }
    }

    #[test]
    fn each_table_waits_for_its_own_stream_and_comes_back_to_the_letter() {
        let mut waiting = Waiting::default();
        let (session, scan) = (image(Part::Session, "s1", 5), image(Part::Left, "s1", 0));
        waiting.add(vec![session.clone(), scan.clone()], at(10)).expect("a folder");
        assert_eq!(waiting.parts(), 2);
        let timeout = Duration::seconds(3);
        waiting.observe(&through(11, 10), timeout, at(100));
        waiting.observe(&through(11, 10), timeout, at(103));
        let batch = waiting.take_over().expect("a file").expect("its hold is over");
        assert_eq!((batch.images, batch.read_at), (vec![session], at(10)));
        assert!(waiting.take_over().expect("a file").is_none());
        waiting.observe(&through(11, 11), timeout, at(103));
        waiting.observe(&through(11, 11), timeout, at(106));
        let batch = waiting.take_over().expect("a file").expect("its hold is over");
        assert_eq!(batch.images, [scan]);
        assert_eq!((waiting.parts(), waiting.bytes), (0, 0));
    }

    #[test]
    fn many_files_are_read_in_any_order_and_given_back() {
        let mut waiting = Waiting::default();
        let large = usize::try_from(FILE_BYTES).expect("a size") / 3;
        for number in 0..7 {
            let images = vec![image(Part::Left, &format!("s{number}"), large)];
            waiting.add(images, at(number)).expect("a folder");
        }
        let mut keys = Vec::new();
        while let Some(some) = waiting.take_keys().expect("a file") {
            keys.extend(some);
        }
        keys.sort();
        let expected: Vec<_> = (0..7).map(|number| (Part::Left, format!("s{number}"))).collect();
        assert_eq!(keys, expected);
        assert_eq!((waiting.parts(), waiting.bytes), (0, 0));
    }
}
