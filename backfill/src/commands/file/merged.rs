//! The records of all inputs, merged by their creation times, so that the parts of a session meet
//! in one batch, whichever files they are in.
//!
//! The order serves speed alone: the projector applies any order. So the bounds come first. A file
//! is opened when the merge comes to its first time, and waits if [`Bounds::open_files`] are open;
//! it is read on only while few bytes wait. If a time is missing or goes back, records are taken in
//! another order, and each is still taken once.

use std::cell::Cell;
use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};
use std::io::{BufRead, Read as _};
use std::rc::Rc;

use projector::error;

use crate::commands::file::created;
use crate::commands::file::input::Input;
use crate::commands::file::report::FileReport;
use crate::deliver::BATCH_BYTES;
use crate::documents::document::{Extractor, Taken};
use crate::documents::values::{Found, Values};

/// The first creation time of a file is looked for in this much of it.
const BEGINNING: u64 = 64 << 10;

/// What the merge keeps to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// At most this many files are open at once.
    pub(crate) open_files: usize,
    /// While the open files hold this many bytes, none is read on that is not needed: what is in
    /// memory is at most this much, and one document.
    pub(crate) held_bytes: usize,
}

/// Those of the command; its help names them.
pub(crate) const BOUNDS: Bounds = Bounds { open_files: 64, held_bytes: BATCH_BYTES };

/// A record, and where it comes from.
#[derive(Debug)]
pub(crate) struct MergedRecord {
    pub(crate) bytes: Vec<u8>,
    /// It is of a batch that Lambda gave up on.
    pub(crate) is_late: bool,
    /// The index of its file, and its number in it.
    pub(crate) place: (usize, u64),
}

/// A file that is done, by its index, and what became of it.
pub(crate) type Ended = (usize, FileReport);

/// An input that is not open yet.
struct Planned {
    index: usize,
    input: Input,
    /// The time of its first record, as far as a look at its beginning tells.
    first: f64,
    /// Reading may wait for somebody who writes, so it holds up no other: no other input is open
    /// meanwhile.
    alone: bool,
}

/// A file that is being read.
struct OpenFile {
    index: usize,
    alone: bool,
    values: Values<Box<dyn BufRead>>,
    /// What is found and not taken yet.
    taken: Taken,
    taken_bytes: usize,
    /// The time of the next record; if it has none, that of the one before it, or of the file.
    next: f64,
    report: FileReport,
}

/// The records of all inputs.
pub(crate) struct Merged {
    planned: VecDeque<Planned>,
    /// Files of which a record waits; the first is the one with the earliest.
    ready: BinaryHeap<OpenFile>,
    /// Files that must be read on.
    unread: Vec<OpenFile>,
    /// What the open files hold.
    held_bytes: usize,
    bounds: Bounds,
    extractor: Extractor,
    /// There are several files to merge.
    by_time: bool,
    /// What has been read of all inputs, compressed if they are.
    bytes: Rc<Cell<u64>>,
}

impl Merged {
    /// Nothing is read yet but the beginning of each file, if there are several.
    pub(crate) fn of(inputs: Vec<Input>, extractor: Extractor, bounds: Bounds) -> Self {
        let by_time = inputs.len() > 1;
        Self {
            planned: plan(inputs, by_time),
            ready: BinaryHeap::new(),
            unread: Vec::new(),
            held_bytes: 0,
            bounds,
            extractor,
            by_time,
            bytes: Rc::default(),
        }
    }

    /// How many bytes have been read, compressed if they are.
    pub(crate) fn input_bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// The next record, and the files that turn out to have none left. `None` after the last one.
    pub(crate) fn next(&mut self, ended: &mut Vec<Ended>) -> Option<MergedRecord> {
        self.read_on(ended, true);
        while self.next_is_due() {
            self.open_next(ended);
            self.read_on(ended, true);
        }
        let mut file = self.ready.pop()?;
        let (bytes, is_late) = match file.taken.records.pop_front() {
            Some(record) => (record, false),
            None => (file.taken.late.pop_front()?, true),
        };
        file.taken_bytes -= bytes.len();
        self.held_bytes -= bytes.len();
        file.report.records += 1;
        let place = (file.index, file.report.records);
        if file.taken.is_empty() {
            self.unread.push(file);
        } else {
            file.look_at_next(self.by_time);
            self.ready.push(file);
        }
        Some(MergedRecord { bytes, is_late, place })
    }

    /// The files that end with the records taken so far, if that can be told without waiting.
    pub(crate) fn end_files(&mut self, ended: &mut Vec<Ended>) {
        self.read_on(ended, false);
    }

    /// Reads the files on of which no record waits, as far as the bounds allow; one at least if
    /// nothing waits at all. `may_wait`: even one that nobody may have written to yet.
    fn read_on(&mut self, ended: &mut Vec<Ended>, may_wait: bool) {
        while (self.held_bytes < self.bounds.held_bytes || self.ready.is_empty())
            && let Some(mut file) = self.unread.pop_if(|file| may_wait || !file.alone)
        {
            self.held_bytes -= file.held_bytes();
            if file.read_on(&self.extractor) {
                self.held_bytes += file.held_bytes();
                file.look_at_next(self.by_time);
                self.ready.push(file);
            } else {
                ended.push((file.index, file.report));
            }
        }
    }

    /// Whether the next input is to be opened now.
    fn next_is_due(&self) -> bool {
        let Some(planned) = self.planned.front() else { return false };
        let open = self.ready.len() + self.unread.len();
        if open == 0 {
            return true;
        }
        let has_place = open < self.bounds.open_files && self.held_bytes < self.bounds.held_bytes;
        let waits_for_nobody = !planned.alone && self.ready.iter().all(|file| !file.alone);
        let is_next = self.ready.peek().is_some_and(|first| planned.first <= first.next);
        has_place && waits_for_nobody && is_next
    }

    fn open_next(&mut self, ended: &mut Vec<Ended>) {
        let Some(Planned { index, input, first, alone }) = self.planned.pop_front() else { return };
        match input.open(&self.bytes) {
            Ok(bytes) => self.unread.push(OpenFile {
                index,
                alone,
                values: Values::new(bytes),
                taken: Taken::default(),
                taken_bytes: 0,
                next: first,
                report: FileReport::new(input.to_string()),
            }),
            Err(error) => {
                let reason = error::chain(error.as_ref());
                ended.push((index, FileReport::unreadable(input.to_string(), reason)));
            }
        }
    }
}

/// The order in which inputs are opened: files by their first times, and between two inputs that
/// may make the reader wait, the files that are named between them.
fn plan(inputs: Vec<Input>, by_time: bool) -> VecDeque<Planned> {
    let mut plan: Vec<Planned> = Vec::with_capacity(inputs.len());
    // A file without a time goes where it is named.
    let mut first = f64::NEG_INFINITY;
    for (index, input) in inputs.into_iter().enumerate() {
        let alone = !matches!(input, Input::File(..));
        let looks = by_time && !alone;
        first = looks.then(|| first_time(&input)).flatten().unwrap_or(first);
        plan.push(Planned { index, input, first, alone });
    }
    for files in plan.chunk_by_mut(|one, other| !one.alone && !other.alone) {
        files.sort_by(|one, other| one.first.total_cmp(&other.first));
    }
    plan.into()
}

/// The first creation time in the beginning of a file. Whatever is wrong with it is found once it
/// is read.
fn first_time(input: &Input) -> Option<f64> {
    let mut beginning = Vec::new();
    let bytes = input.open(&Rc::default()).ok()?;
    // The end of a damaged file is an error after what could be read.
    let _ = bytes.take(BEGINNING).read_to_end(&mut beginning);
    created::first_in(&beginning)
}

impl OpenFile {
    /// Reads on until there are records. False at the end of the file.
    fn read_on(&mut self, extractor: &Extractor) -> bool {
        let Self { values, taken, report, .. } = self;
        let mut more = true;
        while more && taken.is_empty() {
            more = values.advance(&mut |found| match found {
                Found::Broken(broken) => report.add_broken(&broken),
                Found::Value(value) => {
                    report.documents += 1;
                    extractor.take(value.text, &value.outline, taken);
                    for (offset, refusal) in taken.refused.drain(..) {
                        report.add_refused(value.place(offset), &refusal);
                    }
                }
            });
        }
        self.taken_bytes = taken.records.iter().chain(&taken.late).map(Vec::len).sum();
        !taken.is_empty()
    }

    fn held_bytes(&self) -> usize {
        self.taken_bytes + self.values.held_bytes()
    }

    /// Looks when the next record was made. One that does not say is taken for as old as the one
    /// before it.
    fn look_at_next(&mut self, by_time: bool) {
        let next = self.taken.records.front().or(self.taken.late.front());
        if let Some(created) = next.filter(|_| by_time).and_then(|record| created::first_in(record))
        {
            self.next = created;
        }
    }
}

/// The greatest is the file whose next record was made first; of several, the one named first.
impl Ord for OpenFile {
    fn cmp(&self, other: &Self) -> Ordering {
        other.next.total_cmp(&self.next).then_with(|| other.index.cmp(&self.index))
    }
}

impl PartialOrd for OpenFile {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for OpenFile {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for OpenFile {}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::io::Write as _;
    use std::path::PathBuf;

    use fastrand::Rng;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use projector::change::Tables;
    use tempfile::TempDir;

    use super::{BOUNDS, Bounds, Merged};
    use crate::commands::file::input::Input;
    use crate::documents::document::Extractor;

    const ARN: &str = "arn:aws:dynamodb:r:1:table/sessions/stream/2026-11-22T00:00:00.000";

    fn record(number: usize, created: Option<i64>) -> String {
        let created = created
            .map_or(String::new(), |time| format!(r#""ApproximateCreationDateTime":{time},"#));
        format!(
            r#"{{"eventID":"{number}","dynamodb":{{{created}"Keys":{{}}}},"eventSourceARN":"{ARN}"}}"#
        )
    }

    /// What a merge gave.
    #[derive(Default)]
    struct Seen {
        /// Each record, and the index of its file.
        records: Vec<(usize, String)>,
        /// How many records each file that ended had.
        ended: BTreeMap<usize, u64>,
        most_open: usize,
        most_held: usize,
    }

    fn merge(inputs: Vec<Input>, bounds: Bounds) -> Seen {
        let tables = Tables { sessions: "sessions".to_owned(), scans: "scans".to_owned() };
        let extractor = Extractor { tables, stream_arn: None };
        let (mut merged, mut seen) = (Merged::of(inputs, extractor, bounds), Seen::default());
        loop {
            let mut ended = Vec::new();
            let record = merged.next(&mut ended);
            let files = merged.ready.iter().chain(&merged.unread);
            let (open, held) =
                files.fold((0, 0), |(open, held), file| (open + 1, held + file.held_bytes()));
            assert_eq!(held, merged.held_bytes);
            seen.most_open = seen.most_open.max(open);
            seen.most_held = seen.most_held.max(held);
            for (index, report) in ended {
                assert_eq!(seen.ended.insert(index, report.records), None, "it ends once");
            }
            let Some(record) = record else { return seen };
            let text = String::from_utf8(record.bytes).expect("text");
            seen.records.push((record.place.0, text));
        }
    }

    fn file(folder: &TempDir, name: usize, content: impl AsRef<[u8]>) -> Input {
        let path: PathBuf = folder.path().join(name.to_string());
        fs::write(&path, content.as_ref()).expect("a file");
        Input::File(path, content.as_ref().len() as u64)
    }

    /// Records as a file may hold them.
    fn laid_out(rng: &mut Rng, records: &[String]) -> Vec<u8> {
        let event = || format!(r#"{{"Records":[{}]}}"#, records.join(","));
        let text = match rng.u8(..4) {
            0 => records.join("\n"),
            1 => records.concat(),
            2 => event(),
            _ => {
                let payload = serde_json::Value::from(event());
                format!(r#"{{"DDBStreamBatchInfo":{{}},"payload":{payload}}}"#)
            }
        };
        if rng.bool() {
            return text.into_bytes();
        }
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text.as_bytes()).expect("gzip");
        encoder.finish().expect("gzip")
    }

    #[test]
    fn any_split_gives_each_record_once_within_the_bounds() {
        for seed in 0..300 {
            let (mut rng, folder) = (Rng::with_seed(seed), TempDir::new().expect("a folder"));
            let mut files = vec![Vec::new(); rng.usize(1..8)];
            for (number, now) in (0..rng.usize(..60)).zip(0..) {
                let created = match rng.u8(..10) {
                    0 => None,
                    1 => Some(rng.i64(-5..2_000)),
                    _ => Some(now),
                };
                let count = files.len();
                files[rng.usize(..count)].push(record(number, created));
            }
            let contents: Vec<Vec<u8>> =
                files.iter().map(|records| laid_out(&mut rng, records)).collect();
            let inputs: Vec<Input> = contents
                .iter()
                .enumerate()
                .map(|(name, content)| file(&folder, name, content))
                .collect();
            let bounds = Bounds { open_files: rng.usize(1..5), held_bytes: rng.usize(1..3_000) };
            let seen = merge(inputs, bounds);
            for (index, records) in files.iter().enumerate() {
                let of_file: Vec<&String> = seen
                    .records
                    .iter()
                    .filter_map(|(of, record)| (*of == index).then_some(record))
                    .collect();
                assert_eq!(of_file, records.iter().collect::<Vec<_>>(), "seed {seed}, {index}");
                assert_eq!(seen.ended.get(&index), Some(&(records.len() as u64)), "seed {seed}");
            }
            let all: usize = files.iter().map(Vec::len).sum();
            assert_eq!(seen.records.len(), all, "seed {seed}");
            assert!(seen.most_open <= bounds.open_files, "seed {seed}: {}", seen.most_open);
            // A document is held as text, in a buffer that has grown by doubling, and as records.
            let largest = files.iter().map(|records| records.concat().len()).max().unwrap_or(0);
            let most = bounds.held_bytes + 4 * largest.max(2_000);
            assert!(seen.most_held <= most, "seed {seed}: {} of {most}", seen.most_held);
        }
    }

    /// A day in many files, of which few overlap: each is opened when its time has come.
    #[test]
    fn records_come_in_the_order_of_their_times_and_few_files_are_open() {
        let (folder, mut inputs) = (TempDir::new().expect("a folder"), Vec::new());
        for table in 0..2 {
            for hour in 0..100 {
                let records: Vec<String> = (0..4)
                    .map(|step| hour * 4 + step)
                    .map(|time| record(inputs.len(), Some(time * 2 + table)))
                    .collect();
                inputs.push(file(&folder, inputs.len(), records.join("\n")));
            }
        }
        let seen = merge(inputs, BOUNDS);
        let time = |record: &str| {
            let (_, time) = record.split_once("Time\":").expect("a time");
            time.split(',').next().expect("a number").parse::<i64>().expect("a number")
        };
        let times: Vec<i64> = seen.records.iter().map(|(_, record)| time(record)).collect();
        assert_eq!(times, (0..800).collect::<Vec<i64>>());
        assert!(seen.most_open <= 3, "{}", seen.most_open);
    }

    /// Its reader may wait for somebody who writes.
    #[test]
    fn a_pipe_is_read_alone_and_where_it_is_named() {
        let folder = TempDir::new().expect("a folder");
        let named = |name: usize, time| file(&folder, name, record(name, Some(time)));
        let Input::File(path, _) = named(2, 1) else { panic!("a file") };
        let inputs = vec![named(0, 9), named(1, 8), Input::Pipe(path), named(3, 7), named(4, 6)];
        let seen = merge(inputs, BOUNDS);
        let order: Vec<usize> = seen.records.iter().map(|(index, _)| *index).collect();
        assert_eq!(order, [1, 0, 2, 4, 3]);
    }

    #[test]
    fn the_help_says_what_the_bounds_are() {
        let command = crate::cli::command(100);
        let file = command.find_subcommand("file").expect("a command");
        let help = file.get_long_about().expect("a help").to_string();
        let Bounds { open_files, held_bytes } = BOUNDS;
        for says in [
            format!("At most {open_files} files are open at once"),
            format!("of the open files, {} MiB of records", held_bytes >> 20),
        ] {
            assert!(help.contains(&says), "{says}: {help}");
        }
    }

    /// Of files without times, or with the same one, the first is read first.
    #[test]
    fn files_without_times_are_read_in_the_order_of_their_names() {
        let folder = TempDir::new().expect("a folder");
        let inputs = [None, Some(5), None, Some(5), Some(4)]
            .into_iter()
            .enumerate()
            .map(|(name, time)| file(&folder, name, record(name, time)))
            .collect();
        let order: Vec<usize> =
            merge(inputs, BOUNDS).records.iter().map(|(index, _)| *index).collect();
        assert_eq!(order, [0, 4, 1, 2, 3]);
    }
}
