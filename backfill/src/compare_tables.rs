//! The rows and the items of both tables, for `verify` and for `repair`: a first look at every
//! item, of a parallel Scan or of two exports, and then the rows whose item is gone
//! (`without_items.rs`). It hands out what it sees, piece by piece, and keeps none of it.

pub(crate) mod columns;
pub(crate) mod held;
pub(crate) mod look;
pub(crate) mod sums;
pub(crate) mod sweep;
pub(crate) mod verdict;
pub(crate) mod without_items;

use futures_util::stream::{self, LocalBoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};
use time::OffsetDateTime;

use crate::compare_tables::look::{Looker, Looks};
use crate::items::Item;
use crate::items::api::{Segment, TablesApi};
use crate::items::export::{self, ExportFile, Exports};

/// At most this many pages of the tables, of 1 MB each, are in memory at once.
const PAGES_AT_MOST: usize = 24;
/// At most this many files of an export are read at once.
pub(crate) const FILES_AT_MOST: usize = 4;
/// A row that changed this long before the items were read counts as recent: its change may be
/// applied only now. It saves reads and decides nothing.
const RECENT: time::Duration = time::Duration::minutes(15);

/// Where the items come from.
pub(crate) enum Source {
    /// The tables; `items` is how many there are by DynamoDB's count. `consistent`: each item as it
    /// is now, at twice the cost.
    Scan { segments: u16, items: u64, consistent: bool },
    /// One full export of each table.
    Exports(Exports),
}

/// A source that is read from its first item to its last.
enum Work {
    Segment(Segment),
    File(ExportFile),
}

impl Source {
    /// How many items there are, and whether that is an estimate.
    pub(crate) fn items(&self) -> (u64, bool) {
        match self {
            Self::Scan { items, .. } => (*items, true),
            Self::Exports(exports) => (exports.items, false),
        }
    }

    /// Since when a row's change counts as recent, of a run that began at this time.
    pub(crate) fn recent_since(&self, started: OffsetDateTime) -> OffsetDateTime {
        match self {
            Self::Scan { .. } => started - RECENT,
            Self::Exports(exports) => exports.time - RECENT,
        }
    }

    /// Its pieces, and how many of them are read at once.
    fn works(self) -> (Vec<Work>, usize) {
        match self {
            Self::Scan { segments, consistent, .. } => {
                let segment =
                    |of_sessions, number| Segment { of_sessions, number, of: segments, consistent };
                let of_both = |number| [segment(true, number), segment(false, number)];
                let works = (0..segments).flat_map(of_both).map(Work::Segment);
                (works.collect(), PAGES_AT_MOST)
            }
            Self::Exports(exports) => {
                (exports.files.into_iter().map(Work::File).collect(), FILES_AT_MOST)
            }
        }
    }
}

/// Compares every item with its row, batch by batch, in no order.
pub(crate) fn first_looks<'a>(
    looker: &'a Looker<'a>,
    source: Source,
) -> LocalBoxStream<'a, anyhow::Result<Looks>> {
    let (works, at_once) = source.works();
    let batches = stream::iter(works).map(|work| batches(looker.api, work));
    let looks = batches.flatten_unordered(at_once).map_ok(|items| looker.at(items));
    looks.try_buffer_unordered(looker.database.connections()).boxed_local()
}

/// The items of one piece of work, batch by batch.
fn batches(api: &TablesApi, work: Work) -> LocalBoxStream<'_, anyhow::Result<Vec<Item>>> {
    match work {
        Work::Segment(segment) => {
            let next = move |start| async move {
                let Some(start) = start else { return Ok(None) };
                let page = api.page(segment, start).await?;
                Ok(Some((page.items, page.next.map(Some))))
            };
            stream::try_unfold(Some(None), next).boxed_local()
        }
        Work::File(file) => {
            let next = |mut batches: export::Batches| async move {
                Ok(batches.next().await?.map(|items| (items, batches)))
            };
            stream::try_unfold(file.batches(), next).boxed_local()
        }
    }
}
