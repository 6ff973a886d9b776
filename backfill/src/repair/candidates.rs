//! The parts that may differ from their items, batch by batch, from each source that `repair` has.
//! A candidate is a key and nothing more: the caller reads the row, and then the item, by itself.
//!
//! - A Scan, or one full export of each table: a first look at every item and its row tells which
//!   are equal; the others are candidates, and so are the parts that only the rows hold.
//! - Incremental exports: every key in them, and the parts of rows that changed since their first
//!   window began. An item that was inserted and deleted within one window is in no export, but its
//!   row may hold it.
//! - A file of keys.
//!
//! A data file of an export that is missing or damaged is named, and holds up no other file.
//!
//! What a full export says is as old as the export. A change that it lacks is younger than the trim
//! horizon (`windows.rs`), so the streams bring it to the row whatever the row holds, and an equal
//! first look needs no second one.

mod changed_rows;
pub(crate) mod exports;
mod keys_file;
pub(crate) mod windows;

#[cfg(test)]
mod tests;

use std::mem;
use std::path::Path;

use futures_util::stream::{self, LocalBoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};

use crate::compare_tables::look::{Looker, Looks};
use crate::compare_tables::verdict::Verdict;
use crate::compare_tables::without_items::{AddingUp, Rows, SeenParts, Suspected};
use crate::compare_tables::{FILES_AT_MOST, Source, first_looks};
use crate::items::Key;
use crate::items::api::KEYS_PER_CALL;
use crate::items::export::{Batches, ChangedKey, ExportFile};
use crate::items::place::FileFault;
use crate::repair::candidates::changed_rows::ChangedRows;
use crate::repair::candidates::exports::{OpenExports, Shows};
use crate::repair::candidates::keys_file::KeysFile;

/// Some candidates. All of it may be empty: the caller gets a word after each page of rows, and
/// not only after a candidate was found.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// They differ, or may: at most [`KEYS_PER_CALL`].
    pub(crate) differing: Vec<Key>,
    /// They were equal at the first look, with the version that the row has. The caller still asks
    /// for their objects.
    pub(crate) equal: Vec<(Key, Option<String>)>,
    /// Why the items without a valid key are malformed, without values. No row can hold them.
    pub(crate) without_key: Vec<String>,
    /// Files of an export that are missing or damaged. What they name is not known.
    pub(crate) unreadable: Vec<FileFault>,
    /// How many items, or lines of a file, were looked at.
    pub(crate) items: u64,
}

impl Batch {
    /// Goes on without the file that is at fault.
    ///
    /// # Errors
    /// The same error, if it is not the fault of one file.
    fn without_file(error: anyhow::Error) -> anyhow::Result<Option<Self>> {
        let unreadable = vec![error.downcast()?];
        Ok(Some(Self { unreadable, ..Self::default() }))
    }
}

/// All candidates of one source.
pub(crate) struct Candidates<'a> {
    source: Stage<'a>,
    /// They differ, and are in no batch yet.
    waiting: Vec<Key>,
}

/// What is read next.
enum Stage<'a> {
    /// All items. The parts that were seen are added up against the rows after that.
    Looks(LocalBoxStream<'a, anyhow::Result<Looks>>, SeenParts, AddsUp<'a>),
    AddingUp(AddingUp<'a>),
    Suspected(Suspected<'a>),
    /// The keys of incremental exports, and the rows after them.
    Changes(LocalBoxStream<'a, anyhow::Result<Vec<ChangedKey>>>, ChangedRows<'a>),
    Rows(ChangedRows<'a>),
    Keys(KeysFile),
    Nothing,
}

/// How many keys a file names.
///
/// # Errors
/// As [`Candidates::keys`].
pub(crate) fn count_keys(path: &Path) -> anyhow::Result<u64> {
    let (mut file, mut count) = (KeysFile::open(path)?, 0);
    while let Some(keys) = file.next()? {
        count += keys.len() as u64;
    }
    Ok(count)
}

/// What a [`SeenParts`] needs to become an [`AddingUp`].
#[derive(Clone, Copy)]
struct AddsUp<'a> {
    looker: &'a Looker<'a>,
    recent_since: time::OffsetDateTime,
}

impl<'a> Candidates<'a> {
    /// Every item of both tables, read consistently in this many segments per table, and the parts
    /// that only rows hold.
    pub(crate) fn scan(looker: &'a Looker<'a>, segments: u16) -> Self {
        // How many items there are is for a progress bar alone.
        Self::looks(looker, Source::Scan { segments, items: 0, consistent: true })
    }

    /// Exports that were found fit.
    pub(crate) fn export(looker: &'a Looker<'a>, exports: OpenExports) -> Self {
        match exports.shows {
            Shows::AllItems(exports) => Self::looks(looker, Source::Exports(exports)),
            Shows::Changes { files, since } => {
                let batches = stream::iter(files).map(|file| changed_keys(&file));
                let batches = batches.flatten_unordered(FILES_AT_MOST).boxed_local();
                let rows = ChangedRows::new(looker.database, since);
                Self { source: Stage::Changes(batches, rows), waiting: Vec::new() }
            }
        }
    }

    /// A file of keys, all of which is checked at once.
    ///
    /// # Errors
    /// [`projector::config::ConfigError`] if a line is no key; it says which. And if the file
    /// cannot be read.
    pub(crate) fn keys(path: &Path) -> anyhow::Result<Self> {
        Ok(Self { source: Stage::Keys(KeysFile::open(path)?), waiting: Vec::new() })
    }

    fn looks(looker: &'a Looker<'a>, source: Source) -> Self {
        let recent_since = source.recent_since(looker.started);
        let looks = first_looks(looker, source);
        let source = Stage::Looks(looks, SeenParts::new(), AddsUp { looker, recent_since });
        Self { source, waiting: Vec::new() }
    }

    /// The next candidates; `None` after the last ones. The future may be dropped: the next call
    /// then begins where this one did.
    ///
    /// # Errors
    /// If the source or the rows cannot be read.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Batch>> {
        if self.waiting.len() >= KEYS_PER_CALL {
            return Ok(Some(self.with_waiting(Batch::default())));
        }
        match self.read().await? {
            // A call for few keys costs as much time as one for many.
            Some(read) if self.waiting.len() >= KEYS_PER_CALL => Ok(Some(self.with_waiting(read))),
            Some(read) => Ok(Some(read)),
            None if self.waiting.is_empty() => Ok(None),
            None => Ok(Some(self.with_waiting(Batch::default()))),
        }
    }

    fn with_waiting(&mut self, mut batch: Batch) -> Batch {
        let rest = self.waiting.split_off(self.waiting.len().min(KEYS_PER_CALL));
        batch.differing = mem::replace(&mut self.waiting, rest);
        batch
    }

    /// Reads a piece of the source: what differs waits, and the rest is returned. `None` at the
    /// end.
    async fn read(&mut self) -> anyhow::Result<Option<Batch>> {
        loop {
            let read = match &mut self.source {
                Stage::Looks(looks, seen, _) => {
                    let looks = looks.try_next().await;
                    let looks =
                        looks.map(|looks| looks.map(|looks| sort(looks, seen, &mut self.waiting)));
                    looks.or_else(Batch::without_file)?
                }
                Stage::AddingUp(rows) => rows.next().await?.map(|_| Batch::default()),
                Stage::Suspected(suspected) => suspected.next().await?.map(|checked| {
                    let differ =
                        checked.looks.into_iter().filter(|look| look.verdict != Verdict::Equal);
                    self.waiting.extend(differ.map(|look| look.key));
                    Batch::default()
                }),
                Stage::Changes(changes, _) => {
                    let changes = changes.try_next().await;
                    let changes = changes.map(|changes| {
                        changes.map(|changes| sort_changes(changes, &mut self.waiting))
                    });
                    changes.or_else(Batch::without_file)?
                }
                Stage::Rows(rows) => rows.next().await?.map(|keys| {
                    self.waiting.extend(keys);
                    Batch::default()
                }),
                Stage::Keys(file) => {
                    let mut batch = Batch::default();
                    while self.waiting.len() < KEYS_PER_CALL
                        && let Some(keys) = file.next()?
                    {
                        self.waiting.extend(keys);
                        batch.items += 1;
                    }
                    (batch.items > 0).then_some(batch)
                }
                Stage::Nothing => return Ok(None),
            };
            if read.is_some() {
                return Ok(read);
            }
            self.source = mem::replace(&mut self.source, Stage::Nothing).then();
        }
    }
}

impl Stage<'_> {
    /// What is read after this is read to its end.
    fn then(self) -> Self {
        match self {
            Self::Looks(_, seen, AddsUp { looker, recent_since }) => {
                Self::AddingUp(seen.add_up(Rows::all(looker, recent_since)))
            }
            Self::AddingUp(rows) => Self::Suspected(rows.suspected()),
            Self::Changes(_, rows) => Self::Rows(rows),
            Self::Suspected(_) | Self::Rows(_) | Self::Keys(_) | Self::Nothing => Self::Nothing,
        }
    }
}

/// Sorts the looks of a batch of items. What differs, or is malformed, waits.
fn sort(looks: Looks, seen: &mut SeenParts, waiting: &mut Vec<Key>) -> Batch {
    let Looks { of_parts, without_key, items } = looks;
    let mut batch = Batch { without_key, items, ..Batch::default() };
    for look in of_parts {
        if look.in_both {
            seen.add(&look.key);
        }
        match look.verdict {
            Verdict::Equal => batch.equal.push((look.key, look.version)),
            Verdict::Differs(..) | Verdict::Malformed(_) => waiting.push(look.key),
        }
    }
    batch
}

fn sort_changes(changes: Vec<ChangedKey>, waiting: &mut Vec<Key>) -> Batch {
    let mut batch = Batch { items: changes.len() as u64, ..Batch::default() };
    for change in changes {
        match change {
            Ok(key) => waiting.push(key),
            Err(reason) => batch.without_key.push(reason),
        }
    }
    batch
}

/// The keys of a file, batch by batch.
fn changed_keys(file: &ExportFile) -> LocalBoxStream<'static, anyhow::Result<Vec<ChangedKey>>> {
    let next = |mut batches: Batches<ChangedKey>| async move {
        Ok(batches.next().await?.map(|changes| (changes, batches)))
    };
    stream::try_unfold(file.changed_keys(), next).boxed_local()
}
