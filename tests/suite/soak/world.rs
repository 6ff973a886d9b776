//! Stores whose S3 is in memory, and what must hold of them at any moment and at the end.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde_json::Value as Json;
use testkit::memory_s3::MemoryS3;
use testkit::oracle::{self, Rows};
use testkit::records::Record;
use testkit::services::Stores;

/// A database in which no row goes back, and an S3 in which no object does.
pub(crate) struct World {
    pub(crate) stores: Stores,
    pub(crate) s3: MemoryS3,
}

impl World {
    pub(crate) async fn new(seed: u64, s3_faults_per_mille: u32) -> Self {
        let stores = Stores::fresh().await;
        stores.forbid_going_back().await;
        Self { stores, s3: MemoryS3::start(seed, s3_faults_per_mille).await }
    }

    /// The objects, by session.
    pub(crate) fn objects(&self) -> BTreeMap<String, Bytes> {
        by_session(self.s3.objects(&self.stores.bucket))
    }

    /// Sees that everything of these records is in both stores: of a record that is acknowledged,
    /// nothing may be missing. Malformed ones are in `rejected_records`.
    pub(crate) async fn assert_stored(&self, acknowledged: &[&Record]) {
        let (rows, objects) = (self.stores.rows().await, self.objects());
        let early: Vec<String> = acknowledged
            .iter()
            .filter(|record| !record.malformed && !is_stored(record, &rows, &objects))
            .map(|record| format!("{} {}", record.item, record.sequence_number))
            .collect();
        assert!(early.is_empty(), "acknowledged early: {early:?}");
        let malformed = acknowledged.iter().filter(|record| record.malformed);
        let malformed: BTreeSet<u128> = malformed.map(|record| record.sequence_number).collect();
        if !malformed.is_empty() {
            assert!(self.stores.rejected().await >= malformed.len(), "rejections are stored");
        }
    }

    /// Sees that the rows and the objects are what these records come to, to the byte, and that
    /// nothing went back on the way.
    pub(crate) async fn assert_equal(&self, records: &[Record]) {
        let rows = self.stores.rows().await;
        assert_same(&rows, &oracle::rows(records));
        assert_bytes(&self.objects(), &rows);
        assert_eq!(self.s3.went_back(), [""; 0], "no object goes back");
    }
}

/// Objects by their session.
pub(crate) fn by_session(objects: BTreeMap<String, Bytes>) -> BTreeMap<String, Bytes> {
    let session = |key: &String| {
        let name = key.strip_prefix("measurements/").and_then(|name| name.strip_suffix(".json"));
        name.expect("a key of ours").to_owned()
    };
    objects.into_iter().map(|(key, body)| (session(&key), body)).collect()
}

/// Whole rows are no message.
pub(crate) fn assert_same(found: &Rows, expected: &Rows) {
    let sessions = found.keys().chain(expected.keys());
    let wrong: BTreeSet<_> = sessions.filter(|id| found.get(*id) != expected.get(*id)).collect();
    let first = wrong.first().map(|id| (found.get(*id), expected.get(*id)));
    assert!(wrong.is_empty(), "{} of {} rows: {first:?}", wrong.len(), expected.len());
}

/// Each row has its object, to the byte, and no object is without a row.
pub(crate) fn assert_bytes(objects: &BTreeMap<String, Bytes>, rows: &Rows) {
    let expected = |id: &String| rows.get(id).map(oracle::object_bytes);
    let sessions: BTreeSet<_> = objects.keys().chain(rows.keys()).collect();
    let differs = |id: &&&String| objects.get(**id).map(|body| body.to_vec()) != expected(id);
    let wrong: Vec<_> = sessions.iter().filter(differs).collect();
    let first = wrong.first().map(|id| {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let body = objects.get(**id).map(|body| text(body));
        (body, expected(id).map(|bytes| text(&bytes)))
    });
    assert!(wrong.is_empty(), "{} of {} objects: {first:?}", wrong.len(), rows.len());
}

/// Whether the row and the object hold at least this record.
fn is_stored(record: &Record, rows: &Rows, objects: &BTreeMap<String, Bytes>) -> bool {
    let (session, part) = record.item.split_once('/').unwrap_or((&record.item, "session"));
    let version = format!("{}/{:040}", record.label, record.sequence_number);
    let row = rows.get(session).map(|row| row[format!("{part}_version")].clone());
    let object = objects.get(session).map(|body| {
        let json: Json = serde_json::from_slice(body).expect("JSON");
        json["versions"][part].clone()
    });
    let holds = |held: Option<Json>| {
        held.is_some_and(|held| held.as_str().is_some_and(|held| held >= version.as_str()))
    };
    holds(row) && holds(object)
}
