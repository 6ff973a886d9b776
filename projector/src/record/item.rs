//! An item as its table holds it → the same values that its change record would give, by the same
//! rules. Pure: no stream, no order. A scan and an export give items; they are compared with rows,
//! never applied.

use crate::attribute::Item;
use crate::change::{self, Malformed};
use crate::image;
use crate::measurement::Document;
use crate::part::Part;

/// An item whose key can be read.
#[derive(Debug)]
pub struct TableItem {
    /// The measurement's key.
    pub session_id: String,
    /// The part that the item is.
    pub part: Part,
    /// Its values, or why the projector would reject its record.
    pub document: Result<Document, Malformed>,
}

/// Decodes an item of the table of sessions or of the table of scans from its JSON, `{"session_id":
/// {"S": "..."}, ...}`.
///
/// # Errors
/// [`Malformed`] if its key cannot be read: no row can hold it.
pub fn decode(json: &[u8], of_sessions: bool) -> Result<TableItem, Malformed> {
    let item: Item<'_> = serde_json::from_slice(json).map_err(Malformed::NotAnItem)?;
    let session_id = change::session_id(&item)?.to_owned();
    let part = if of_sessions { Part::Session } else { change::side(&item)? };
    let document = image::document(part, &item).map_err(Malformed::from);
    Ok(TableItem { session_id, part, document })
}

#[cfg(test)]
mod tests {
    use super::decode;
    use crate::change::Malformed;
    use crate::measurement::Value;
    use crate::part::Part;

    #[test]
    fn an_item_has_the_values_of_its_record() {
        let json = br#"{"session_id":{"S":"s1"},"user_id":{"S":"u"},"started_at":{"S":"2026-11-22T08:00:00Z"}}"#;
        let item = decode(json, true).expect("a key");
        assert_eq!((item.session_id.as_str(), item.part), ("s1", Part::Session));
        let document = item.document.expect("values");
        assert_eq!(document[0], Some(Value::Text("u".to_owned())));
    }

    #[test]
    fn what_the_projector_would_reject_is_malformed_with_or_without_its_key() {
        let scan = br#"{"session_id":{"S":"s1"},"side":{"S":"left"}}"#;
        let item = decode(scan, false).expect("a key");
        assert_eq!(item.part, Part::Left);
        assert!(matches!(item.document, Err(Malformed::Image(_))));
        let both = br#"{"session_id":{"S":"s1"},"side":{"S":"both"}}"#;
        assert!(matches!(decode(both, false), Err(Malformed::Side)));
        assert!(matches!(decode(b"{}", true), Err(Malformed::SessionId)));
        assert!(matches!(decode(b"[", true), Err(Malformed::NotAnItem(_))));
    }
}
