//! One look at items and at their rows. The first look has the item from a scan or an export, and
//! then reads the row. Each look after it reads the row first and then asks for the item,
//! consistently: if the row is found to be behind, then the item had not changed by the time at
//! which the row was read, or it has changed since.

use std::collections::HashMap;

use projector::apply::Pace;
use projector::database::Database;
use projector::part::{Part, PerPart};
use time::OffsetDateTime;

use crate::compare_tables::held::held;
use crate::compare_tables::verdict::{Held, Look, has_expired, verdict};
use crate::items::api::TablesApi;
use crate::items::{Item, Key};

/// How many parts one statement reads at most. A statement reads whole meshes for their MD5.
const PARTS: usize = 1_000;

/// Both sides.
pub(crate) struct Looker<'a> {
    pub(crate) database: &'a Database,
    pub(crate) api: &'a TablesApi,
    /// The attributes that hold the time to live of sessions and of scans, if rows may keep what
    /// expired.
    pub(crate) ttl_attributes: [Option<String>; 2],
    /// When the run began.
    pub(crate) started: OffsetDateTime,
}

/// What was seen of a batch of items.
#[derive(Debug, Default)]
pub(crate) struct Looks {
    pub(crate) of_parts: Vec<Look>,
    /// Why the items without a key are malformed.
    pub(crate) without_key: Vec<String>,
    pub(crate) items: u64,
}

/// What rows hold, by part and session.
pub(crate) type Rows = PerPart<HashMap<String, Held>>;

impl Looker<'_> {
    /// The attribute that holds the time to live of a part.
    fn ttl_attribute(&self, part: Part) -> Option<&str> {
        self.ttl_attributes[usize::from(part != Part::Session)].as_deref()
    }

    /// Whether the row keeps the part even if its item is gone, judged by the time at which the run
    /// began, so that it is so throughout.
    pub(crate) fn is_kept(&self, ttl: Option<&str>) -> bool {
        has_expired(ttl, self.started)
    }

    /// Compares items that were read just now with their rows.
    pub(crate) async fn at(&self, items: Vec<Item>) -> anyhow::Result<Looks> {
        let mut looks = Looks { items: items.len() as u64, ..Looks::default() };
        let mut keyed: Vec<(Key, Item)> = Vec::with_capacity(items.len());
        for item in items {
            match &item {
                Item::Whole(key, _) | Item::Malformed(Some(key), _) => {
                    keyed.push((key.clone(), item));
                }
                Item::Malformed(None, reason) => looks.without_key.push(reason.clone()),
            }
        }
        let rows = self.rows(keyed.iter().map(|(key, _)| key)).await?;
        looks.of_parts =
            keyed.into_iter().map(|(key, item)| self.look(key, Some(&item), &rows)).collect();
        Ok(looks)
    }

    /// Looks again at parts, at most as many as one call takes: at the rows first, then at the
    /// items.
    pub(crate) async fn again(&self, keys: &[&Key]) -> anyhow::Result<Vec<Look>> {
        let rows = self.rows(keys.iter().copied()).await?;
        let mut items: HashMap<Key, Item> = HashMap::new();
        for item in self.api.get(keys).await? {
            if let Item::Whole(key, _) | Item::Malformed(Some(key), _) = &item {
                items.insert(key.clone(), item);
            }
        }
        let look = |key: &&Key| self.look((*key).clone(), items.get(*key), &rows);
        Ok(keys.iter().map(look).collect())
    }

    pub(crate) async fn rows(
        &self,
        keys: impl Iterator<Item = &Key> + Clone,
    ) -> anyhow::Result<Rows> {
        let mut rows = Rows::default();
        for part in Part::ALL {
            let of_part = keys.clone().filter(|(of, _)| *of == part);
            let session_ids: Vec<&str> =
                of_part.map(|(_, session_id)| session_id.as_str()).collect();
            let mut pace = Pace::new(PARTS);
            let attribute = self.ttl_attribute(part);
            rows[part] = held(self.database, &mut pace, (part, attribute), &session_ids).await?;
        }
        Ok(rows)
    }

    fn look(&self, key: Key, item: Option<&Item>, rows: &Rows) -> Look {
        let (part, session_id) = &key;
        let held = rows[*part].get(session_id);
        let ttl = held.and_then(|held| held.ttl.as_deref());
        let verdict = verdict(*part, item, held, has_expired(ttl, OffsetDateTime::now_utc()));
        let present = held.is_some_and(|held| held.document.is_some());
        Look {
            verdict,
            version: held.and_then(|held| held.version.clone()),
            in_both: item.is_some() && present && !self.is_kept(ttl),
            key,
        }
    }
}
