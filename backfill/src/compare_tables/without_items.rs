//! The parts that rows hold and that have no item: the keys of all rows are read and added up
//! against those that were seen (`buckets.rs`), and the parts that can be at fault are asked for by
//! key.
//!
//! [`SeenParts`] becomes [`AddingUp`], which becomes [`Suspected`]: each step is taken once.

use std::hash::RandomState;

use projector::part::Part;
use time::OffsetDateTime;

use crate::compare_tables::buckets::{Buckets, Hashes, Suspects};
use crate::compare_tables::look::Looker;
use crate::compare_tables::sweep::{RowKeys, Sweep};
use crate::compare_tables::verdict::Look;
use crate::items::Key;
use crate::items::api::KEYS_PER_CALL;

/// The parts that a look saw on both sides, as sums: their memory does not grow.
pub(crate) struct SeenParts {
    hashes: Hashes,
    buckets: Buckets,
}

/// The keys of all rows, on their way into the sums.
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
    /// Suspected, and not asked for yet.
    keys: Vec<Key>,
    all_read: bool,
}

/// What one step of [`Suspected`] came to.
#[derive(Debug)]
pub(crate) struct Checked {
    /// How many more rows were read.
    pub(crate) rows: usize,
    /// How many parts were asked for.
    pub(crate) asked: usize,
    /// A second look at those that had no item: at the row first, then at the item.
    pub(crate) looks: Vec<Look>,
}

impl SeenParts {
    /// None so far.
    pub(crate) fn new() -> Self {
        let hashes = Hashes::new(RandomState::new(), RandomState::new());
        Self { hashes, buckets: Buckets::new() }
    }

    /// A look saw the item and, in its row, the part; for the first time.
    pub(crate) fn add(&mut self, (part, session_id): &Key) {
        self.buckets.seen(self.hashes.of(*part, session_id));
    }

    /// Nothing more is seen: the rows come next. What changed since this time is recent.
    pub(crate) fn add_up<'a>(
        self,
        looker: &'a Looker<'a>,
        recent_since: OffsetDateTime,
    ) -> AddingUp<'a> {
        AddingUp { seen: self, looker, recent_since, rows: sweep(looker, recent_since) }
    }
}

impl<'a> AddingUp<'a> {
    /// Adds up some more rows, and says how many; `None` after the last ones.
    ///
    /// # Errors
    /// If the rows cannot be read.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<usize>> {
        let rows = self.rows.next().await?;
        let SeenParts { hashes, buckets } = &mut self.seen;
        for row in &rows {
            for part in Part::ALL {
                let state = &row.parts[part];
                let key = hashes.of(part, &row.session_id);
                if state.present && !self.looker.is_kept(state.ttl.as_deref()) {
                    buckets.held(key, state.recent);
                } else if state.recent && !state.present {
                    buckets.removed(key);
                }
            }
        }
        Ok(Some(rows.len()).filter(|rows| *rows > 0))
    }

    /// Every row is added up: what the sums leave.
    pub(crate) fn suspected(self) -> Suspected<'a> {
        let Self { seen: SeenParts { hashes, buckets }, looker, recent_since, .. } = self;
        let suspects = buckets.suspects();
        Suspected {
            hashes,
            all_read: suspects.is_empty(),
            suspects,
            looker,
            rows: sweep(looker, recent_since),
            keys: Vec::new(),
        }
    }
}

impl Suspected<'_> {
    /// Whether there is none: nothing is read then.
    pub(crate) fn is_empty(&self) -> bool {
        self.suspects.is_empty()
    }

    /// Reads some more rows, or asks for some more parts; `None` after the last ones.
    ///
    /// # Errors
    /// If the rows or the items cannot be read.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Checked>> {
        let mut rows = 0;
        if self.keys.len() < KEYS_PER_CALL && !self.all_read {
            let page = self.rows.next().await?;
            (rows, self.all_read) = (page.len(), page.is_empty());
            for row in &page {
                self.keys.extend(suspected(self.looker, &self.hashes, &self.suspects, row));
            }
        }
        if self.keys.is_empty() && self.all_read {
            return Ok(None);
        }
        if self.keys.len() < KEYS_PER_CALL && !self.all_read {
            return Ok(Some(Checked { rows, asked: 0, looks: Vec::new() }));
        }
        let asked = self.keys.len().min(KEYS_PER_CALL);
        let looks = self.check(&self.keys[..asked]).await?;
        // Only now: whoever drops this future half-way loses no key.
        self.keys.drain(..asked);
        Ok(Some(Checked { rows, asked, looks }))
    }

    /// Asks for the items of parts that rows hold, and looks at those without one.
    async fn check(&self, keys: &[Key]) -> anyhow::Result<Vec<Look>> {
        let all: Vec<&Key> = keys.iter().collect();
        let present = self.looker.api.present(&all).await?;
        let gone: Vec<&Key> = all.into_iter().filter(|key| !present.contains(*key)).collect();
        if gone.is_empty() { Ok(Vec::new()) } else { self.looker.again(&gone).await }
    }
}

fn sweep<'a>(looker: &'a Looker<'a>, recent_since: OffsetDateTime) -> Sweep<'a> {
    Sweep::new(looker.database, recent_since, &looker.ttl_attributes)
}

/// The parts of a row that it may hold without an item.
fn suspected(looker: &Looker<'_>, hashes: &Hashes, suspects: &Suspects, row: &RowKeys) -> Vec<Key> {
    let held = Part::ALL.into_iter().filter(|part| {
        let state = &row.parts[*part];
        state.present && !looker.is_kept(state.ttl.as_deref())
    });
    let suspected = held.filter(|part| suspects.has(hashes.of(*part, &row.session_id)));
    suspected.map(|part| (part, row.session_id.clone())).collect()
}
