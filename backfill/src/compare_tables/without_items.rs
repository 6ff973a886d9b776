//! The parts that rows hold and that have no item: the keys of all rows are read and added up
//! against those that were seen (`sums.rs`), and the parts that can be at fault are asked for by
//! key.
//!
//! In one process [`SeenParts`] becomes [`AddingUp`], which becomes [`Suspected`]: each step is
//! taken once. A repair by slices takes each step in many invocations, each of which keeps what it
//! has added.

use projector::part::Part;
use time::OffsetDateTime;

use crate::compare_tables::look::Looker;
use crate::compare_tables::sums::{Hashes, Size, Sums, Suspects};
use crate::compare_tables::sweep::{RowKeys, RowRange, Sweep};
use crate::compare_tables::verdict::Look;
use crate::items::Key;
use crate::items::api::KEYS_PER_CALL;

/// The parts that a look saw on both sides, as sums: their memory does not grow.
pub(crate) struct SeenParts {
    hashes: Hashes,
    sums: Sums,
}

/// Which rows are read, and of which of them a change counts as recent: those since this time.
pub(crate) struct Rows<'a> {
    pub(crate) looker: &'a Looker<'a>,
    pub(crate) recent_since: OffsetDateTime,
    pub(crate) range: RowRange,
}

/// The keys of rows, on their way into the sums.
pub(crate) struct AddingUp<'a> {
    seen: SeenParts,
    looker: &'a Looker<'a>,
    recent_since: OffsetDateTime,
    rows: Sweep<'a>,
}

/// The parts that may have no item, on their way to DynamoDB.
pub(crate) struct Suspected<'a> {
    hashes: Hashes,
    suspects: Suspects,
    looker: &'a Looker<'a>,
    rows: Sweep<'a>,
    page: Page,
}

/// Some rows, all of which are asked for before the next ones are read.
#[derive(Default)]
struct Page {
    /// Suspected, and not asked for yet.
    keys: Vec<Key>,
    rows: usize,
    last: String,
}

/// What one step of [`Suspected`] came to.
#[derive(Debug)]
pub(crate) struct Checked {
    /// How many parts were asked for.
    pub(crate) asked: usize,
    /// A second look at those that had no item: at the row first, then at the item.
    pub(crate) looks: Vec<Look>,
    /// The rows that are done with, if there are more of them since the last step.
    pub(crate) rows: Option<RowsDone>,
}

/// Rows of which everything was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RowsDone {
    pub(crate) count: usize,
    /// The session of the last one.
    pub(crate) through: String,
}

impl SeenParts {
    /// None so far, in one process.
    pub(crate) fn new() -> Self {
        Self::of(Hashes::random(), Size::OF_PROCESS)
    }

    /// None so far, on their way to others.
    pub(crate) fn of(hashes: Hashes, size: Size) -> Self {
        Self { hashes, sums: Sums::new(size) }
    }

    /// A look saw the item and, in its row, the part; for the first time.
    pub(crate) fn add(&mut self, (part, session_id): &Key) {
        self.sums.seen(self.hashes.of(*part, session_id));
    }

    /// What they add up to.
    pub(crate) fn into_sums(self) -> Sums {
        self.sums
    }

    /// Nothing more is seen: the rows come next.
    pub(crate) fn add_up(self, rows: Rows<'_>) -> AddingUp<'_> {
        let Rows { looker, recent_since, .. } = rows;
        AddingUp { seen: self, looker, recent_since, rows: rows.sweep() }
    }
}

impl<'a> Rows<'a> {
    /// All of them.
    pub(crate) fn all(looker: &'a Looker<'a>, recent_since: OffsetDateTime) -> Self {
        Self { looker, recent_since, range: RowRange::default() }
    }

    fn sweep(self) -> Sweep<'a> {
        let Self { looker, recent_since, range } = self;
        Sweep::new(looker.database, recent_since, &looker.ttl_attributes, range)
    }
}

impl<'a> AddingUp<'a> {
    /// Adds up some more rows, and says which; `None` after the last ones.
    ///
    /// # Errors
    /// If the rows cannot be read.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<RowsDone>> {
        let rows = self.rows.next().await?;
        let SeenParts { hashes, sums } = &mut self.seen;
        for row in &rows {
            for part in Part::ALL {
                let state = &row.parts[part];
                if state.present && !self.looker.is_kept(state.ttl.as_deref()) {
                    sums.held(hashes.of(part, &row.session_id), state.recent);
                }
            }
        }
        let count = rows.len();
        Ok(rows.into_iter().last().map(|last| RowsDone { count, through: last.session_id }))
    }

    /// What the rows were added to.
    pub(crate) fn into_sums(self) -> Sums {
        self.seen.sums
    }

    /// Every row is added up: what the sums leave.
    pub(crate) fn suspected(self) -> Suspected<'a> {
        let Self { seen: SeenParts { hashes, sums }, looker, recent_since, .. } = self;
        Suspected::among(Rows::all(looker, recent_since), hashes, sums.suspects())
    }
}

impl<'a> Suspected<'a> {
    /// Those of the suspects that these rows hold.
    pub(crate) fn among(rows: Rows<'a>, hashes: Hashes, suspects: Suspects) -> Self {
        let looker = rows.looker;
        Self { hashes, suspects, looker, rows: rows.sweep(), page: Page::default() }
    }

    /// Whether there is none: nothing is read then.
    pub(crate) fn is_empty(&self) -> bool {
        self.suspects.is_empty()
    }

    /// Reads some more rows, or asks for some more parts; `None` after the last ones.
    ///
    /// # Errors
    /// If the rows or the items cannot be read.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Checked>> {
        if self.is_empty() {
            return Ok(None);
        }
        if self.page.keys.is_empty() {
            let rows = self.rows.next().await?;
            let Some(last) = rows.last() else { return Ok(None) };
            let keys = rows.iter().flat_map(|row| self.suspected(row)).collect();
            self.page = Page { keys, rows: rows.len(), last: last.session_id.clone() };
        }
        let asked = self.page.keys.len().min(KEYS_PER_CALL);
        let looks = self.check(&self.page.keys[..asked]).await?;
        // Only now: whoever drops this future half-way loses no key.
        self.page.keys.drain(..asked);
        let Page { keys, rows, last } = &self.page;
        let done = RowsDone { count: *rows, through: last.clone() };
        Ok(Some(Checked { asked, looks, rows: keys.is_empty().then_some(done) }))
    }

    /// Asks for the items of parts that rows hold, and looks at those without one.
    async fn check(&self, keys: &[Key]) -> anyhow::Result<Vec<Look>> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let all: Vec<&Key> = keys.iter().collect();
        let present = self.looker.api.present(&all).await?;
        let gone: Vec<&Key> = all.into_iter().filter(|key| !present.contains(*key)).collect();
        if gone.is_empty() { Ok(Vec::new()) } else { self.looker.again(&gone).await }
    }

    /// The parts of a row that it may hold without an item.
    fn suspected(&self, row: &RowKeys) -> Vec<Key> {
        let held = Part::ALL.into_iter().filter(|part| {
            let state = &row.parts[*part];
            state.present && !self.looker.is_kept(state.ttl.as_deref())
        });
        let suspected = held.filter(|part| {
            let key = self.hashes.of(*part, &row.session_id);
            self.suspects.has(key, row.parts[*part].recent)
        });
        suspected.map(|part| (part, row.session_id.clone())).collect()
    }
}
