//! Items of the two tables, and where they come from. Pure: an item as it is compared, decoded as
//! the projector does, a mesh reduced to its MD5. One file per source of items.

pub(crate) mod api;
pub(crate) mod export;
pub(crate) mod manifest;
pub(crate) mod place;
pub(crate) mod slice_file;

use std::fmt::Write as _;

use md5::{Digest as _, Md5};
use projector::change::Malformed;
use projector::item::{self, TableItem};
use projector::measurement::{Document, Value};
use projector::part::Part;

/// One part of one session: the key of an item.
pub(crate) type Key = (Part, String);

/// What an item says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Item {
    /// The values of its part; a mesh is the text of its MD5.
    Whole(Key, Document),
    /// The projector rejects it, for this reason, which holds no value. Without a key no row can
    /// hold it.
    Malformed(Option<Key>, String),
}

/// An item as it is now, with all its values.
#[derive(Debug)]
pub(crate) struct CurrentItem {
    pub(crate) key: Key,
    /// The values of its part, or why the projector would reject them.
    pub(crate) document: Result<Document, Fault>,
    /// The item in DynamoDB's JSON, for `rejected_records`.
    pub(crate) json: Vec<u8>,
}

/// Why the projector rejects an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// For `rejected_records`; it may quote a value.
    pub(crate) reason: String,
    /// The same for logs and messages, without values.
    pub(crate) logged: String,
}

impl From<Malformed> for Fault {
    fn from(malformed: Malformed) -> Self {
        Self { reason: malformed.to_string(), logged: malformed.without_values() }
    }
}

/// Reads an item whose key is known, without reducing a value.
pub(crate) fn current(key: Key, json: Vec<u8>, of_sessions: bool) -> CurrentItem {
    let document = item::decode(&json, of_sessions).and_then(|item| item.document);
    CurrentItem { key, document: document.map_err(Fault::from), json }
}

/// Reads an item of the table of sessions or of the table of scans from DynamoDB's JSON.
pub(crate) fn read(json: &[u8], of_sessions: bool) -> Item {
    let TableItem { session_id, part, document } = match item::decode(json, of_sessions) {
        Ok(item) => item,
        Err(malformed) => return Item::Malformed(None, malformed.without_values()),
    };
    match document {
        Ok(document) => Item::Whole((part, session_id), comparable(document)),
        Err(malformed) => Item::Malformed(Some((part, session_id)), malformed.without_values()),
    }
}

/// The part of a session, for people.
pub(crate) fn name((part, session_id): &Key) -> String {
    format!("{session_id} {}", part.name())
}

/// Bytes become their MD5, in the form in which PostgreSQL gives it.
pub(crate) fn comparable(document: Document) -> Document {
    let short = |value| match value {
        Value::Bytes(bytes) => Value::Text(hex(&Md5::digest(bytes))),
        other => other,
    };
    document.into_iter().map(|value| value.map(short)).collect()
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a string takes all");
    }
    text
}

#[cfg(test)]
mod tests {
    use projector::measurement::Value;
    use projector::part::Part;

    use super::{Item, current, read};

    #[test]
    fn a_current_item_is_whole_and_its_fault_is_logged_without_values() {
        let scan = r#"{"session_id":{"S":"s1"},"side":{"S":"left"},"scanned_at":{"S":"2026-11-22T08:00:00Z"},
            "foot_length_mm":{"N":"245.30"},"foot_breadth_mm":{"N":"98"},"ball_girth_mm":{"N":"243"},"mesh":{"B":"YWJj"}}"#;
        let read = |json: &str| {
            let item = current((Part::Left, "s1".to_owned()), json.as_bytes().to_vec(), false);
            assert_eq!(item.key, (Part::Left, "s1".to_owned()));
            assert_eq!(item.json, json.as_bytes());
            item.document
        };
        let document = read(scan).expect("values");
        assert_eq!(document[7], Some(Value::Bytes(b"abc".to_vec())));
        // The names of attributes that the model does not know may be anything, too.
        let unknown = scan.replace(r#""mesh":{"B":"YWJj"}"#, r#""nickname":{"UNKNOWN":null}"#);
        let fault = read(&unknown).expect_err("an attribute of an unknown type");
        let named = |text: &str| text.contains("nickname");
        assert!(named(&fault.reason) && !named(&fault.logged), "{fault:?}");
    }

    #[test]
    fn a_mesh_is_its_md5_as_postgresql_gives_it() {
        let scan = br#"{"session_id":{"S":"s1"},"side":{"S":"right"},"scanned_at":{"S":"2026-11-22T08:00:00Z"},
            "foot_length_mm":{"N":"245.30"},"foot_breadth_mm":{"N":"98"},"ball_girth_mm":{"N":"243"},"mesh":{"B":"YWJj"}}"#;
        let Item::Whole(key, document) = read(scan, false) else { panic!("it is well formed") };
        assert_eq!(key, (Part::Right, "s1".to_owned()));
        let text = |text: &str| Some(Value::Text(text.to_owned()));
        assert_eq!(document[1], text("245.3"));
        // RFC 1321, "A.5 Test suite": MD5 ("abc").
        assert_eq!(document[7], text("900150983cd24fb0d6963f7d28e17f72"));
    }

    #[test]
    fn a_malformed_item_keeps_its_key_if_it_has_one() {
        let item = read(br#"{"session_id":{"S":"s1"}}"#, true);
        assert!(matches!(item, Item::Malformed(Some((Part::Session, _)), _)));
        assert!(matches!(read(br#"{"session_id":{"S":"s1"}}"#, false), Item::Malformed(None, _)));
    }
}
