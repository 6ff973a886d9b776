//! The items of one data file of an export, from a line on, each compared with its row: the source
//! of a repair by slices, and of its comparison alone.
//!
//! An item of the file is never applied. It only tells which parts may differ; what is written was
//! read from the table. So the lines of a file may be used before its end is reached, where its
//! MD5 is known, and a file may take several invocations. Each of them reads it from its first
//! byte, because a gzip cannot be entered in the middle, and the one that answers `done` has seen
//! the MD5 of all of it. What an earlier one took from a damaged file can only have been a wrong
//! hint. (It could have taken a part for equal that differs. Only a file that was replaced between
//! two invocations shows that to nobody, and nothing replaces the files of an export.)

use std::cell::RefCell;

use futures_util::TryStreamExt as _;
use futures_util::stream::{self, LocalBoxStream, StreamExt as _};
use tokio::time::Instant;

use crate::compare_tables::look::{Looker, Looks};
use crate::compare_tables::verdict::Verdict;
use crate::compare_tables::without_items::SeenParts;
use crate::items::Item;
use crate::items::export::{Batches, ExportFile};
use crate::repair::candidates::Batch;
use crate::repair::lines::Piece;

/// This many batches are compared or read at once.
const AT_ONCE: usize = 2;

/// What was seen of some lines.
pub(crate) struct SeenLines {
    pub(crate) looks: Looks,
    pub(crate) piece: Piece,
}

/// The keys of some lines, as they are added up: those from one line on.
pub(crate) struct AddedLines {
    pub(crate) seen: SeenParts,
    /// Up to here the lines are added.
    pub(crate) end: u64,
}

impl AddedLines {
    /// Adds the keys whose rows will hold them once what differs is repaired. A malformed item is
    /// in its row or not, as it is now.
    fn add(&mut self, lines: &SeenLines) {
        let SeenLines { looks, piece } = lines;
        for (look, (_, line)) in looks.of_parts.iter().zip(&piece.keys) {
            let counts = match look.verdict {
                Verdict::Equal | Verdict::Malformed(_) => look.in_both,
                Verdict::Differs(..) => true,
            };
            if counts && *line >= self.end {
                self.seen.add(&look.key);
            }
        }
        self.end = self.end.max(piece.end);
    }
}

/// The lines of a file.
pub(crate) struct FileLines<'a> {
    lines: LocalBoxStream<'a, anyhow::Result<SeenLines>>,
    added: Option<&'a RefCell<AddedLines>>,
}

impl<'a> FileLines<'a> {
    /// The lines from `next` on. No line is read after `until`.
    pub(crate) fn new(
        looker: &'a Looker<'a>,
        file: &ExportFile,
        next: u64,
        until: Instant,
    ) -> Self {
        let pieces = stream::try_unfold(Some(file.batches_from(next)), move |batches| async move {
            let Some(batches) = batches.filter(|_| Instant::now() < until) else { return Ok(None) };
            read(batches).await.map(Some)
        });
        let looks = pieces.map_ok(move |(items, piece)| async move {
            let looks = looker.at(items).await?;
            Ok(SeenLines { looks, piece })
        });
        Self { lines: looks.try_buffered(AT_ONCE).boxed_local(), added: None }
    }

    /// Adds up their keys on the way.
    pub(crate) fn adding(self, added: Option<&'a RefCell<AddedLines>>) -> Self {
        Self { added, ..self }
    }

    /// The next lines; `None` after the last ones, or once the time is up.
    ///
    /// # Errors
    /// If the file is missing or damaged, or the rows cannot be read.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<SeenLines>> {
        let lines = self.lines.try_next().await?;
        if let Some((lines, added)) = lines.as_ref().zip(self.added) {
            added.borrow_mut().add(lines);
        }
        Ok(lines)
    }
}

/// The next lines of a file, and the rest of it. After the last lines comes an empty piece, which
/// says that the file was whole.
async fn read(mut batches: Batches) -> anyhow::Result<((Vec<Item>, Piece), Option<Batches>)> {
    let Some(items) = batches.next().await? else {
        let end = batches.lines_read();
        return Ok(((Vec::new(), Piece { end, is_last: true, ..Piece::default() }), None));
    };
    let end = batches.lines_read();
    let mut piece = Piece { end, ..Piece::default() };
    for (item, line) in items.iter().zip(end - items.len() as u64..) {
        match item {
            Item::Whole(key, _) | Item::Malformed(Some(key), _) => {
                piece.keys.push((key.clone(), line));
            }
            Item::Malformed(None, _) => piece.without_key.push(line),
        }
    }
    Ok(((items, piece), Some(batches)))
}

impl SeenLines {
    /// What a repair does with them.
    pub(crate) fn into_candidates(self) -> (Batch, Piece) {
        let Looks { of_parts, without_key, items } = self.looks;
        let mut batch = Batch { without_key, items, ..Batch::default() };
        for look in of_parts {
            match look.verdict {
                Verdict::Equal => batch.equal.push((look.key, look.version)),
                Verdict::Differs(..) | Verdict::Malformed(_) => batch.differing.push(look.key),
            }
        }
        (batch, self.piece)
    }
}
