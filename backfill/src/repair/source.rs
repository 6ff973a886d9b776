//! Where the keys of a repair come from: the tables, or the records that were rejected. And which
//! rejected records go once their parts are settled.

use std::collections::{HashMap, HashSet, VecDeque};

use projector::apply::Pace;
use projector::change::{Tables, place_of};
use projector::database::Database;
use projector::rejected::image_key;
use tokio::time::Instant;

use crate::items::Key;
use crate::items::api::KEYS_PER_CALL;
use crate::rejected_records::{self, Filter, Rejected};
use crate::repair::candidates::{Batch, Candidates};
use crate::repair::file_lines::FileLines;
use crate::repair::lines::Piece;
use crate::repair::range_keys::RangeKeys;
use crate::repair::unheld::UnheldObjects;

/// Some parts that may differ, and the rejected records that name them, by identity.
#[derive(Debug, Default)]
pub(crate) struct Step {
    pub(crate) batch: Batch,
    pub(crate) named_by: Vec<(Key, String)>,
    /// Rejected records whose keys cannot be read.
    pub(crate) untried: Vec<String>,
    /// Sessions that only the bucket may hold.
    pub(crate) unheld: Vec<String>,
    /// The lines of a file that name the parts.
    pub(crate) piece: Option<Piece>,
}

impl Step {
    /// How many sessions have a row that is looked at.
    pub(crate) fn sessions(&self) -> usize {
        let Self { batch, unheld, .. } = self;
        let equal = batch.equal.iter().map(|(key, _)| key);
        let keys = batch.differing.iter().chain(equal).map(|(_, session_id)| session_id);
        keys.chain(unheld).collect::<HashSet<_>>().len()
    }
}

/// Where the keys come from.
pub(crate) enum Source<'a> {
    /// The parts that rows or items hold, and then the sessions that only the bucket may hold.
    Tables(Candidates<'a>, Option<UnheldObjects<'a>>),
    Rejected(RejectedKeys<'a>),
    /// The lines of one file.
    FileLines(FileLines<'a>),
    /// The parts of a range of rows that may have no item.
    Range(RangeKeys<'a>),
    /// Parts that are known already.
    Keys(KeyList),
}

impl Source<'_> {
    /// The next parts; `None` after the last ones.
    ///
    /// # Errors
    /// If the source cannot be read.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Step>> {
        match self {
            Self::Tables(candidates, unheld) => {
                if let Some(batch) = candidates.next().await? {
                    return Ok(Some(Step { batch, ..Step::default() }));
                }
                let Some(unheld) = unheld else { return Ok(None) };
                let sessions = unheld.next().await?;
                Ok(sessions.map(|unheld| Step { unheld, ..Step::default() }))
            }
            Self::Rejected(rejected) => rejected.next().await,
            Self::FileLines(lines) => {
                let Some(seen) = lines.next().await? else { return Ok(None) };
                let (batch, piece) = seen.into_candidates();
                Ok(Some(Step { batch, piece: Some(piece), ..Step::default() }))
            }
            Self::Range(keys) => {
                let Some((batch, piece)) = keys.next().await? else { return Ok(None) };
                Ok(Some(Step { batch, piece: Some(piece), ..Step::default() }))
            }
            Self::Keys(keys) => Ok(keys.next()),
        }
    }
}

/// Parts that are known, each once.
pub(crate) struct KeyList {
    keys: VecDeque<Key>,
    until: Instant,
}

impl KeyList {
    /// No part is handed out after `until`.
    pub(crate) fn new(keys: Vec<Key>, until: Instant) -> Self {
        Self { keys: keys.into(), until }
    }

    fn next(&mut self) -> Option<Step> {
        if self.keys.is_empty() || Instant::now() >= self.until {
            return None;
        }
        let some = self.keys.len().min(KEYS_PER_CALL);
        let differing: Vec<Key> = self.keys.drain(..some).collect();
        let items = differing.len() as u64;
        Some(Step { batch: Batch { differing, items, ..Batch::default() }, ..Step::default() })
    }
}

/// The open records of `rejected_records`, as keys.
pub(crate) struct RejectedKeys<'a> {
    database: &'a Database,
    tables: &'a Tables,
    filter: Filter<'a>,
    pace: Pace,
    /// The last identity that was read.
    last: String,
}

impl<'a> RejectedKeys<'a> {
    pub(crate) fn new(database: &'a Database, tables: &'a Tables, filter: Filter<'a>) -> Self {
        Self { database, tables, filter, pace: Pace::new(KEYS_PER_CALL), last: String::new() }
    }

    async fn next(&mut self) -> anyhow::Result<Option<Step>> {
        let Self { database, filter, last, pace, .. } = self;
        let rejected = rejected_records::next(database, last, *filter, pace).await?;
        let Some(newest) = rejected.last() else { return Ok(None) };
        self.last.clone_from(&newest.identity);
        let mut step = Step::default();
        step.batch.items = rejected.len() as u64;
        for Rejected { identity, record } in rejected {
            match key_of(&identity, &record, self.tables) {
                Some(key) => {
                    step.batch.differing.push(key.clone());
                    step.named_by.push((key, identity));
                }
                None => step.untried.push(identity),
            }
        }
        Ok(Some(step))
    }
}

/// The key that a rejected record, or a rejected item, is of.
fn key_of(identity: &str, record: &[u8], tables: &Tables) -> Option<Key> {
    image_key(identity, tables)
        .or_else(|| place_of(record, tables).map(|place| (place.part, place.session_id)))
}

/// Which rejected records wait for their parts.
#[derive(Debug, Default)]
pub(crate) struct Named {
    /// Their parts are under way, and were read after the record was.
    waiting: HashMap<Key, Vec<String>>,
    /// Their parts were under way when the record was read: they are to be read again.
    later: HashMap<Key, Vec<String>>,
}

impl Named {
    /// A rejected record names this part. `is_under_way`: the item may have been read before the
    /// record was written.
    pub(crate) fn add(&mut self, key: Key, identity: String, is_under_way: bool) {
        let list = if is_under_way { &mut self.later } else { &mut self.waiting };
        list.entry(key).or_default().push(identity);
    }

    /// The records that are done with this part.
    pub(crate) fn settled(&mut self, key: &Key) -> Vec<String> {
        self.waiting.remove(key).unwrap_or_default()
    }

    /// Whether the part is to be read once more, for records that came later.
    pub(crate) fn again(&mut self, key: &Key) -> bool {
        match self.later.remove_entry(key) {
            Some((key, identities)) => {
                self.waiting.entry(key).or_default().extend(identities);
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use projector::part::Part;

    use super::Named;

    #[test]
    fn a_record_that_came_while_its_part_was_under_way_waits_for_the_next_read() {
        let key = (Part::Left, "s1".to_owned());
        let mut named = Named::default();
        named.add(key.clone(), "first".to_owned(), false);
        named.add(key.clone(), "second".to_owned(), true);
        assert_eq!(named.settled(&key), ["first"]);
        assert!(named.again(&key));
        assert_eq!(named.settled(&key), ["second"]);
        assert!(!named.again(&key));
        assert!(named.settled(&key).is_empty());
    }
}
