//! The targets: each takes any bytes, and panics if the code under test breaks a promise. That it
//! does not panic by itself is the first of them.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::change::{self, Change, Decoded, Tables};
use crate::documents::document::{Extractor, Taken};
use crate::documents::dump::StreamArn;
use crate::documents::values::{Found, Values};
use crate::fold::{IndexedChange, fold};
use crate::measurement::Measurement;
use crate::part::{Part, PerPart};
use crate::version::{Version, repair_us, without_repair};
use crate::{item, kept, manifest, object, stored};

/// A target by its name: the folder of its corpus, and `TARGET` of `make fuzz`.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 5] = [
    ("change", change_record),
    ("object", object_body),
    ("version", version_text),
    ("document", document),
    ("export", export),
];

/// Longer inputs add nothing but time.
pub const MAX_BYTES: usize = 4096;

fn tables() -> Tables {
    Tables { sessions: "sessions".to_owned(), scans: "scans".to_owned() }
}

/// One record of a stream. A change that is decoded has a version that can be read back, and comes
/// out of the row that it makes as it went in; and what `rejected_records` keeps is the record.
fn change_record(bytes: &[u8]) {
    assert_eq!(kept::decode(&kept::encode(bytes)), bytes, "kept to the byte");
    assert_eq!(kept::decode(&kept::encode_ascii(bytes)), bytes, "kept to the byte, in ASCII");
    let place = change::place_of(bytes, &tables());
    match change::decode(bytes, &tables()) {
        Ok(Decoded::Change(change)) => {
            let place = place.expect("a record that is decoded has a place");
            let here = (&place.session_id, place.part, &place.version);
            assert_eq!(here, (&change.session_id, change.part, &change.version));
            assert_eq!(Version::parse(change.version.as_str()).as_ref(), Ok(&change.version));
            through_row(change);
        }
        Ok(Decoded::Malformed(malformed)) => {
            let _ = (malformed.to_string(), malformed.without_values());
        }
        Err(misconfigured) => drop(misconfigured.to_string()),
    }
}

/// A change → the row that it makes → its object → the row → the change.
fn through_row(change: Change) {
    let mut row = Measurement {
        session_id: change.session_id.clone(),
        documents: PerPart::default(),
        versions: PerPart::default(),
        changed_at: PerPart::default(),
    };
    row.documents[change.part].clone_from(&change.document);
    row.versions[change.part] = Some(change.version.as_str().to_owned());
    row.changed_at[change.part] = change.changed_at;
    // A time outside the years 0 to 9999 has no form in RFC 3339, so such a row has no object.
    if let (Ok(body), Ok(metadata)) = (object::body(&row), object::metadata(&row)) {
        let parsed = object::parse(&body, Some(&metadata)).expect("an object of ours");
        assert_eq!(parsed, row, "the object holds the row");
        let described = object::read_metadata(Some(&metadata)).expect("metadata of ours");
        assert_eq!(described.0, row.versions);
        let changes = stored::changes_of(parsed).expect("a row of ours");
        // What a record says of itself is not in its row.
        let Change { inserted, expired, .. } = change;
        let mut changes = changes.into_iter().map(|one| Change { inserted, expired, ..one });
        assert_eq!(changes.next().as_ref(), Some(&change), "the row holds the change");
        assert_eq!(changes.next(), None);
    }
    let arrived = [IndexedChange { record_index: 0, change }];
    assert_eq!(fold(&arrived).len(), 1);
}

/// The body of an object, after a line of metadata (`name=value`, separated by spaces). What can be
/// read is written again, and is then what is read: bytes that changed with each reading would make
/// every PUT a new object.
fn object_body(bytes: &[u8]) {
    let (head, body) = split_line(bytes);
    let head = String::from_utf8_lossy(head);
    let pairs = head.split(' ').filter_map(|pair| pair.split_once('='));
    let metadata: HashMap<String, String> =
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let described = object::read_metadata(Some(&metadata));
    let versions = object::versions_of(body);
    let Ok(row) = object::parse(body, Some(&metadata)) else { return };
    assert!(versions.is_ok(), "what is read as a row is JSON");
    if let Some((versions, _)) = described {
        let _ = object::dominates(&versions, &row.versions);
    }
    let Ok(again) = object::body(&row) else { return };
    let Ok(metadata) = object::metadata(&row) else { return };
    let second = object::parse(&again, Some(&metadata)).expect("we read what we write");
    assert_eq!(object::body(&second).ok(), Some(again), "the same row gives the same bytes");
    let joined = object::join(row.clone(), second.clone());
    assert!(object::dominates(&joined.versions, &row.versions));
    assert!(object::dominates(&joined.versions, &second.versions));
    let _ = stored::changes_of(row);
}

/// Two texts in two lines, each a version or a sequence number. What is read is what was written,
/// the order of numbers is the order of texts, and a repair lies between its base and the next
/// change.
fn version_text(bytes: &[u8]) {
    let (first, second) = split_line(bytes);
    let (first, second) = (String::from_utf8_lossy(first), String::from_utf8_lossy(second));
    let label = "2026-11-22T00:00:00.000";
    if let (Ok(a), Ok(b)) = (Version::new(label, &first), Version::new(label, &second)) {
        let digits = |text: &str| format!("{:0>40}", text.trim_start_matches('0'));
        assert_eq!(a.cmp(&b), digits(&first).cmp(&digits(&second)), "{first} {second}");
    }
    let Ok(version) = Version::parse(&first) else {
        assert!(Version::of_repair(Some(&first), 1).is_err(), "no version, and so no base");
        return;
    };
    assert_eq!(version.as_str(), first);
    let base = without_repair(&first);
    assert_eq!(repair_us(&first).is_some(), base.len() < first.len());
    let now_us =
        second.bytes().fold(0, |sum: u64, byte| sum.wrapping_mul(10).wrapping_add(byte.into()));
    if let Ok(repaired) = Version::of_repair(Some(&first), now_us) {
        assert!(repaired > version, "{repaired:?} is above {version:?}");
        assert_eq!(without_repair(repaired.as_str()), base);
        assert_eq!(Version::parse(repaired.as_str()).as_ref(), Ok(&repaired));
        if let Ok(next) = Version::parse(&second)
            && repair_us(&second).is_none()
            && !base.is_empty()
            && second.as_ref() > base
        {
            assert!(repaired < next, "{repaired:?} is below {next:?}");
        }
    }
}

/// A file of any kind, as `backfill file` reads it. The reading ends, and every record that it
/// takes can be given to the decoder.
fn document(bytes: &[u8]) {
    let tables = tables();
    let arn = "arn:aws:dynamodb:eu-central-1:123456789012:table/scans/stream/\
        2026-11-22T00:00:00.000";
    for stream_arn in [None, StreamArn::parse(arn, &tables).ok()] {
        let extractor = Extractor { tables: tables.clone(), stream_arn };
        let mut taken = Taken::default();
        let mut values = Values::new(bytes);
        let mut found = |found: Found<'_>| match found {
            Found::Value(value) => {
                let before = taken.refused.len();
                extractor.take(value.text, &value.outline, &mut taken);
                for (offset, refusal) in &taken.refused[before..] {
                    let _ = (value.place(*offset).to_string(), refusal.to_string());
                }
            }
            Found::Broken(broken) => {
                let place = broken.place;
                assert!(place.byte <= bytes.len() as u64, "{place}");
                assert!(broken.last_line >= place.line, "{place}");
                drop(broken.fault.to_string());
            }
        };
        while values.advance(&mut found) {}
        for record in taken.records.iter().chain(&taken.late) {
            let _ = change::decode(record, &tables);
        }
    }
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "Item", borrow)]
    item: Option<&'a RawValue>,
    #[serde(rename = "Keys", borrow)]
    keys: Option<&'a RawValue>,
}

/// A line of an export's data, of either kind and either table, and a manifest.
fn export(bytes: &[u8]) {
    for line in bytes.split(|byte| *byte == b'\n') {
        let Ok(line) = serde_json::from_slice::<Line<'_>>(line) else { continue };
        for (json, of_sessions) in [line.item, line.keys].into_iter().flatten().zip([true, false]) {
            for of_sessions in [of_sessions, !of_sessions] {
                item_json(json.get().as_bytes(), of_sessions);
            }
        }
    }
    let (first, rest) = split_line(bytes);
    if let Ok(summary) = manifest::summary(first) {
        let _ = manifest::files(rest, &summary);
    }
    let _ = manifest::summary(bytes);
}

fn item_json(json: &[u8], of_sessions: bool) {
    let Ok(item) = item::decode(json, of_sessions) else { return };
    assert_eq!(of_sessions, item.part == Part::Session, "the table says which part it is");
    if let Ok(document) = item.document {
        assert_eq!(document.len(), item.part.fields().len());
    }
}

/// The first line without its end, and the rest.
fn split_line(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    (&bytes[..end], bytes.get(end + 1..).unwrap_or_default())
}
