//! The inputs of `file` → batches of records. A batch spans files, so that many small ones cost no
//! more than a large one; and a file that cannot be read, or in part, costs no other file anything.

use std::cell::Cell;
use std::io::BufRead;
use std::rc::Rc;

use projector::error;

use crate::commands::file::document::{Extractor, Taken};
use crate::commands::file::input::Input;
use crate::commands::file::report::FileReport;
use crate::commands::file::values::{Found, Values};
use crate::deliver::BATCH_BYTES;

/// Records to apply together, and the files that end with them.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) records: Vec<Vec<u8>>,
    /// Those of batches that Lambda gave up on.
    pub(crate) late: Vec<Vec<u8>>,
    /// What was read of the inputs since the batch before, compressed if they are.
    pub(crate) input_bytes: u64,
    /// The files that have been read to their end since the batch before.
    pub(crate) ended: Vec<FileReport>,
    /// The file of the last record, and that record's number in it.
    pub(crate) last: Option<(String, u64)>,
}

/// The batches of all inputs.
pub(crate) struct Batches {
    inputs: std::vec::IntoIter<Input>,
    open: Option<OpenFile>,
    extractor: Extractor,
    batch_size: usize,
    /// What has been read of all inputs, and how much of it a batch has reported.
    bytes: Rc<Cell<u64>>,
    reported: u64,
}

/// A file that is being read.
struct OpenFile {
    values: Values<Box<dyn BufRead>>,
    /// What is found and is not in a batch yet.
    taken: Taken,
    report: FileReport,
    /// Reading may wait for somebody who writes: standard input, or another pipe.
    may_wait: bool,
}

impl Batch {
    fn len(&self) -> usize {
        self.records.len() + self.late.len()
    }
}

impl Batches {
    pub(crate) fn of(inputs: Vec<Input>, extractor: Extractor, batch_size: usize) -> Self {
        let inputs = inputs.into_iter();
        Self { inputs, open: None, extractor, batch_size, bytes: Rc::default(), reported: 0 }
    }

    /// Goes on with the next input. False if there is none.
    fn open_next(&mut self, ended: &mut Vec<FileReport>) -> bool {
        let Some(input) = self.inputs.next() else { return false };
        match input.open(&self.bytes) {
            Ok(bytes) => {
                let may_wait = !matches!(input, Input::File(_, 1..));
                self.open = Some(OpenFile {
                    may_wait,
                    values: Values::new(bytes),
                    taken: Taken::default(),
                    report: FileReport::new(input.to_string()),
                });
            }
            Err(error) => {
                let reason = error::chain(error.as_ref());
                ended.push(FileReport::unreadable(input.to_string(), reason));
            }
        }
        true
    }

    fn end_file(&mut self, batch: &mut Batch) {
        if let Some(file) = self.open.take() {
            file.note_last(batch);
            batch.ended.push(file.report);
        }
    }
}

impl Iterator for Batches {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        let mut batch = Batch::default();
        let mut bytes = 0;
        while batch.len() < self.batch_size && bytes < BATCH_BYTES {
            let Some(file) = &mut self.open else {
                if self.open_next(&mut batch.ended) {
                    continue;
                }
                break;
            };
            if let Some(record) = file.taken.records.pop_front() {
                bytes += record.len();
                batch.records.push(record);
                file.report.records += 1;
            } else if let Some(record) = file.taken.late.pop_front() {
                bytes += record.len();
                batch.late.push(record);
                file.report.records += 1;
            } else if !file.read_on(&self.extractor) {
                self.end_file(&mut batch);
            }
        }
        // Whether the file ends with this batch.
        if let Some(file) = &mut self.open {
            if !file.may_wait && file.taken.is_empty() && !file.read_on(&self.extractor) {
                self.end_file(&mut batch);
            } else {
                file.note_last(&mut batch);
            }
        }
        batch.input_bytes = self.bytes.get() - self.reported;
        self.reported += batch.input_bytes;
        (batch.len() > 0 || !batch.ended.is_empty()).then_some(batch)
    }
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
        !taken.is_empty()
    }

    fn note_last(&self, batch: &mut Batch) {
        if self.report.records > 0 {
            batch.last = Some((self.report.name.clone(), self.report.records));
        }
    }
}
