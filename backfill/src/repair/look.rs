//! One look at parts that may differ: at the rows first, then at the objects, then at the items.
//! That order is the rule of [`super::reread`]: an image is newer than everything it is compared
//! with.

use std::collections::{BTreeSet, HashMap};

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use projector::apply::{Pace, object_versions, wants_object};
use projector::archive::Archive;
use projector::deadline::Deadline;
use projector::measurement::{Document, Versions};
use projector::object::dominates;
use projector::part::Part;
use projector::read_model;
use time::OffsetDateTime;

use crate::compare_tables;
use crate::compare_tables::columns::differing;
use crate::compare_tables::verdict::{Held, has_expired};
use crate::items::{CurrentItem, Fault, Key, comparable};
use crate::repair::reread::{AfterRead, Seen};
use crate::repair::waiting::WaitingImage;
use crate::retry::retry_transient;
use crate::statement;

/// How many sessions one statement takes at most.
const KEYS: usize = 1_000;

/// Both stores and the tables.
pub(crate) struct Looker<'a> {
    /// For the first look at everything that a source names.
    pub(crate) first: compare_tables::look::Looker<'a>,
    pub(crate) rows_and_items: compare_tables::look::Looker<'a>,
    pub(crate) archive: Option<&'a Archive>,
    /// How far the database's clock is ahead of this machine's; 0 if it is behind.
    pub(crate) clock_ahead: time::Duration,
}

/// An item that the projector rejects.
#[derive(Debug)]
pub(crate) struct MalformedItem {
    pub(crate) key: Key,
    /// Why.
    pub(crate) fault: Fault,
    pub(crate) json: Vec<u8>,
}

/// What was seen of some parts. Each is in exactly one of the lists.
#[derive(Debug, Default)]
pub(crate) struct Looks {
    /// Nothing is to be written.
    pub(crate) equal: Vec<Key>,
    pub(crate) images: Vec<WaitingImage>,
    pub(crate) malformed: Vec<MalformedItem>,
    /// The sessions whose objects hold less than their rows.
    pub(crate) behind: Vec<String>,
    /// Other parts of the same sessions, of which an object holds more than the row: they are to be
    /// looked at, too.
    pub(crate) ahead: Vec<Key>,
    /// No item was read later than this.
    pub(crate) read_at: Option<OffsetDateTime>,
}

/// What is known of the objects of some sessions.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    /// The parts of which an object holds a newer version than the row: nobody knows what it holds.
    pub(crate) ahead: Vec<Key>,
    /// The sessions whose objects hold less than their rows.
    pub(crate) behind: Vec<String>,
}

/// What a part holds, a mesh as its MD5: equal if no column differs.
struct Content {
    part: Part,
    document: Option<Document>,
}

impl PartialEq for Content {
    fn eq(&self, other: &Self) -> bool {
        match (&self.document, &other.document) {
            (Some(ours), Some(theirs)) => differing(self.part, ours, theirs).is_empty(),
            (ours, theirs) => ours.is_none() && theirs.is_none(),
        }
    }
}

impl Looker<'_> {
    /// Looks at these parts, at most as many as one call of the API takes.
    ///
    /// # Errors
    /// If the database, the bucket or the tables stay away.
    pub(crate) async fn look(&self, keys: &[Key]) -> anyhow::Result<Looks> {
        let rows = self.rows_and_items.rows(keys.iter()).await?;
        let session_ids: BTreeSet<&String> =
            keys.iter().map(|(_, session_id)| session_id).collect();
        let session_ids: Vec<String> = session_ids.into_iter().cloned().collect();
        let objects = self.objects_of(&session_ids).await?;
        let items = self.rows_and_items.api.get_current(&keys.iter().collect::<Vec<_>>()).await?;
        let now = OffsetDateTime::now_utc();
        let mut items: HashMap<Key, CurrentItem> =
            items.into_iter().map(|item| (item.key.clone(), item)).collect();
        let mut looks = Looks { read_at: Some(now + self.clock_ahead), ..Looks::default() };
        for key in keys {
            let (part, session_id) = key;
            let row = rows[*part].get(session_id);
            let object = objects.get(session_id).and_then(|versions| versions[*part].as_deref());
            looks.add(key, row, object, items.remove(key), now);
        }
        let Objects { ahead, behind } = self.compare(&session_ids, &objects).await?;
        looks.ahead = ahead.into_iter().filter(|key| !keys.contains(key)).collect();
        looks.behind = behind;
        Ok(looks)
    }

    /// Asks for the objects of these sessions, each named once, and compares every part of them: an
    /// object may hold what neither the row nor the table does.
    ///
    /// # Errors
    /// If the bucket or the database stays away.
    pub(crate) async fn objects(&self, session_ids: &[String]) -> anyhow::Result<Objects> {
        let objects = self.objects_of(session_ids).await?;
        self.compare(session_ids, &objects).await
    }

    /// Compares objects with their rows. The rows are read after the objects, so that what others
    /// write meanwhile is not taken for an object that is ahead.
    async fn compare(
        &self,
        session_ids: &[String],
        objects: &HashMap<String, Versions>,
    ) -> anyhow::Result<Objects> {
        let mut compared = Objects::default();
        let Some(archive) = self.archive else { return Ok(compared) };
        let rows = self.versions(session_ids).await?;
        let none = Versions::default();
        for session_id in session_ids {
            let row = rows.get(session_id).unwrap_or(&none);
            let object = objects.get(session_id).unwrap_or(&none);
            let ahead = Part::ALL.into_iter().filter(|part| object[*part] > row[*part]);
            compared.ahead.extend(ahead.map(|part| (part, session_id.clone())));
            let is_there = objects.contains_key(session_id);
            if !dominates(object, row) && (is_there || wants_object(row, archive.objects())) {
                compared.behind.push(session_id.clone());
            }
        }
        Ok(compared)
    }

    /// The versions that the rows of these sessions hold now.
    async fn versions(&self, session_ids: &[String]) -> anyhow::Result<HashMap<String, Versions>> {
        let keys: Vec<&str> = session_ids.iter().map(String::as_str).collect();
        let database = self.rows_and_items.database;
        let mut pace = Pace::new(KEYS);
        let reading = statement::by_key("read our versions", &mut pace, &keys, async |keys| {
            read_model::versions_by_key(database, keys, Deadline::NONE).await
        });
        Ok(reading.await?.into_iter().flatten().collect())
    }

    /// The versions that the objects of these sessions hold; one that is not there is left out.
    async fn objects_of(
        &self,
        session_ids: &[String],
    ) -> anyhow::Result<HashMap<String, Versions>> {
        let Some(archive) = self.archive else { return Ok(HashMap::new()) };
        let head = |session_id: String| async move {
            let versions = retry_transient("ask for an object", async || {
                object_versions(archive, &session_id).await
            });
            Ok::<_, anyhow::Error>(versions.await?.map(|versions| (session_id, versions)))
        };
        let heads = stream::iter(session_ids.to_vec()).map(head);
        let heads = heads.buffer_unordered(archive.concurrency());
        heads.try_filter_map(|found| async { Ok(found) }).try_collect().await
    }
}

impl Looks {
    /// Decides what becomes of one part.
    fn add(
        &mut self,
        key: &Key,
        row: Option<&Held>,
        object: Option<&str>,
        item: Option<CurrentItem>,
        now: OffsetDateTime,
    ) {
        let part = key.0;
        let of_part = |document| Content { part, document };
        let seen = Seen::new(
            row.and_then(|row| row.version.clone()),
            object,
            of_part(row.and_then(|row| row.document.clone())),
        );
        let (document, json) = match item {
            None if row.is_some_and(|row| has_expired(row.ttl.as_deref(), now)) => {
                // The row keeps what expired, and no item says what its object should hold.
                self.equal.push(key.clone());
                return;
            }
            None => (None, None),
            Some(CurrentItem { document: Err(fault), json, .. }) => {
                self.malformed.push(MalformedItem { key: key.clone(), fault, json });
                return;
            }
            Some(CurrentItem { document: Ok(document), json, .. }) => {
                (Some(comparable(document)), Some(json))
            }
        };
        match seen.after_read(of_part(document)) {
            AfterRead::Equal => self.equal.push(key.clone()),
            AfterRead::Hold(image) => self.images.push(WaitingImage {
                key: key.clone(),
                row: image.row,
                floor: image.floor,
                item: json,
            }),
        }
    }
}
