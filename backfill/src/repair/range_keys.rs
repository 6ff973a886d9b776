//! The parts of a range of rows that may have no item: the source of a repair by slices once all
//! items are seen.

use tokio::time::Instant;

use crate::compare_tables::verdict::Verdict;
use crate::compare_tables::without_items::Suspected;
use crate::repair::candidates::Batch;
use crate::repair::lines::Piece;

/// The suspects among the rows of a range, page by page. Each part without an item is one line.
pub(crate) struct RangeKeys<'a> {
    suspected: Suspected<'a>,
    until: Instant,
    /// How many lines there were so far.
    lines: u64,
    is_whole: bool,
}

impl<'a> RangeKeys<'a> {
    /// No row is read after `until`.
    pub(crate) fn new(suspected: Suspected<'a>, until: Instant) -> Self {
        Self { suspected, until, lines: 0, is_whole: false }
    }

    /// The next parts without an item; `None` after the last ones, or once the time is up.
    ///
    /// # Errors
    /// If the rows or the items cannot be read.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<(Batch, Piece)>> {
        if self.is_whole || Instant::now() >= self.until {
            return Ok(None);
        }
        let Some(checked) = self.suspected.next().await? else {
            self.is_whole = true;
            let piece = Piece { end: self.lines, is_last: true, ..Piece::default() };
            return Ok(Some((Batch::default(), piece)));
        };
        let differ = checked.looks.into_iter().filter(|look| look.verdict != Verdict::Equal);
        let keys: Vec<_> = differ.map(|look| look.key).zip(self.lines..).collect();
        self.lines += keys.len() as u64;
        let differing = keys.iter().map(|(key, _)| key.clone()).collect();
        let items = checked.rows.as_ref().map_or(0, |rows| rows.count as u64);
        let asked = checked.asked as u64;
        let piece = Piece { keys, end: self.lines, asked, rows: checked.rows, ..Piece::default() };
        Ok(Some((Batch { differing, items, ..Batch::default() }, piece)))
    }
}
