//! The inputs of `file` → batches of records. A batch spans files, so that many small ones cost no
//! more than a large one; and a file that cannot be read, or in part, costs no other file anything.

use crate::commands::file::input::Input;
use crate::commands::file::merged::{Bounds, Ended, Merged};
use crate::deliver::BATCH_BYTES;
use crate::documents::document::Extractor;

/// Records to apply together, and the files that end with them.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) records: Vec<Vec<u8>>,
    /// Those of batches that Lambda gave up on.
    pub(crate) late: Vec<Vec<u8>>,
    /// What was read of the inputs since the batch before, compressed if they are.
    pub(crate) input_bytes: u64,
    /// The files that have been read to their end since the batch before.
    pub(crate) ended: Vec<Ended>,
    /// The index of the last record's file, and that record's number in it.
    pub(crate) last: Option<(usize, u64)>,
}

/// The batches of all inputs.
pub(crate) struct Batches {
    records: Merged,
    batch_size: usize,
    /// How many of the bytes read a batch has reported.
    reported: u64,
}

impl Batch {
    fn len(&self) -> usize {
        self.records.len() + self.late.len()
    }
}

impl Batches {
    pub(crate) fn of(
        inputs: Vec<Input>,
        extractor: Extractor,
        (batch_size, bounds): (usize, Bounds),
    ) -> Self {
        Self { records: Merged::of(inputs, extractor, bounds), batch_size, reported: 0 }
    }
}

impl Iterator for Batches {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        let mut batch = Batch::default();
        let mut bytes = 0;
        while batch.len() < self.batch_size
            && bytes < BATCH_BYTES
            && let Some(record) = self.records.next(&mut batch.ended)
        {
            bytes += record.bytes.len();
            batch.last = Some(record.place);
            if record.is_late {
                batch.late.push(record.bytes);
            } else {
                batch.records.push(record.bytes);
            }
        }
        self.records.end_files(&mut batch.ended);
        batch.input_bytes = self.records.input_bytes() - self.reported;
        self.reported += batch.input_bytes;
        (batch.len() > 0 || !batch.ended.is_empty()).then_some(batch)
    }
}
