//! What one look at an item and its row comes to. Pure.

use projector::measurement::Document;
use projector::part::Part;
use time::OffsetDateTime;

use crate::compare_tables::columns::differing;
use crate::items::{Item, Key};
use crate::verify::difference::Kind;

/// DynamoDB removes no item whose time to live passed longer ago (Developer Guide, "Using time to
/// live").
const TTL_YEARS: i64 = 5;
const YEAR_SECONDS: i64 = 365 * 24 * 60 * 60;

/// What a row holds of one part.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    /// It stays after a removal; `None` if the row never held the part.
    pub(crate) version: Option<String>,
    /// What the attribute of the table's time to live holds.
    pub(crate) ttl: Option<String>,
    /// `None` if the part is not there.
    pub(crate) document: Option<Document>,
}

/// What a look at both sides came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Both sides say the same, or both say nothing.
    Equal,
    /// They differ: how, and in which columns.
    Differs(Kind, String),
    /// The projector rejects the item, for this reason; the row may keep what it had before.
    Malformed(String),
}

/// What was seen of one part.
#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) key: Key,
    pub(crate) verdict: Verdict,
    /// The row's version.
    pub(crate) version: Option<String>,
    /// Both the item and the row's part were there, and the row may not keep it without its item.
    pub(crate) in_both: bool,
}

/// Compares an item with what its row holds; each is `None` if it is not there. `kept` means that
/// the row may keep the values of an item that is gone.
pub(crate) fn verdict(part: Part, item: Option<&Item>, held: Option<&Held>, kept: bool) -> Verdict {
    let row = held.and_then(|held| held.document.as_ref());
    let differs = |kind, detail: &str| Verdict::Differs(kind, detail.to_owned());
    match (item, row) {
        (Some(Item::Malformed(_, reason)), _) => Verdict::Malformed(reason.clone()),
        (Some(Item::Whole(_, item)), Some(row)) => {
            let columns = differing(part, item, row);
            if columns.is_empty() {
                return Verdict::Equal;
            }
            differs(Kind::Content, &columns.join(", "))
        }
        (Some(Item::Whole(..)), None) => match held.map(|held| &held.version) {
            None => differs(Kind::Missing, "the session has no row"),
            Some(None) => differs(Kind::Missing, "the row never held the part"),
            Some(Some(_)) => differs(Kind::Missing, "the row says that the item was removed"),
        },
        (None, Some(_)) if kept => Verdict::Equal,
        (None, Some(_)) => differs(Kind::Extra, "the item is gone"),
        (None, None) => Verdict::Equal,
    }
}

/// Whether DynamoDB may have removed an item whose attribute for the time to live holds this:
/// seconds since 1970.
pub(crate) fn has_expired(ttl: Option<&str>, now: OffsetDateTime) -> bool {
    let whole = ttl.and_then(|ttl| ttl.split('.').next());
    let now = now.unix_timestamp();
    let seconds = whole.and_then(|whole| whole.parse::<i64>().ok());
    seconds.is_some_and(|seconds| seconds <= now && seconds > now - TTL_YEARS * YEAR_SECONDS)
}

#[cfg(test)]
mod tests {
    use projector::measurement::Document;
    use projector::part::Part;
    use time::OffsetDateTime;

    use super::{Held, Verdict, has_expired, verdict};
    use crate::items::{Item, read};
    use crate::verify::difference::Kind;

    fn item() -> (Item, Document) {
        let json = br#"{"session_id":{"S":"s1"},"user_id":{"S":"u"},"started_at":{"S":"2026-11-22T08:00:00Z"}}"#;
        match read(json, true) {
            Item::Whole(key, document) => (Item::Whole(key, document.clone()), document),
            Item::Malformed(_, reason) => panic!("{reason}"),
        }
    }

    #[test]
    fn every_pair_of_sides_has_a_verdict() {
        let (item, document) = item();
        let malformed = Item::Malformed(None, "why".to_owned());
        let held = |version: Option<&str>, document: Option<Document>| {
            Some(Held { version: version.map(str::to_owned), ttl: None, document })
        };
        let whole = held(Some("L/1"), Some(document.clone()));
        let mut other = document;
        other[0] = None;
        let other = held(Some("L/1"), Some(other));
        let (tombstone, never) = (held(Some("L/1"), None), held(None, None));
        let equal = Verdict::Equal;
        let differs = |kind, detail: &str| Verdict::Differs(kind, detail.to_owned());
        for (item, held, kept, expected) in [
            (Some(&item), &whole, false, equal.clone()),
            (Some(&item), &other, false, differs(Kind::Content, "user_id")),
            (Some(&item), &other, true, differs(Kind::Content, "user_id")),
            (Some(&item), &None, false, differs(Kind::Missing, "the session has no row")),
            (Some(&item), &never, false, differs(Kind::Missing, "the row never held the part")),
            (
                Some(&item),
                &tombstone,
                false,
                differs(Kind::Missing, "the row says that the item was removed"),
            ),
            (None, &whole, false, differs(Kind::Extra, "the item is gone")),
            (None, &whole, true, equal.clone()),
            (None, &tombstone, false, equal.clone()),
            (None, &None, false, equal),
            (Some(&malformed), &whole, false, Verdict::Malformed("why".to_owned())),
            (Some(&malformed), &None, false, Verdict::Malformed("why".to_owned())),
        ] {
            assert_eq!(verdict(Part::Session, item, held.as_ref(), kept), expected);
        }
    }

    #[test]
    fn an_item_expires_within_five_years_after_its_time_to_live() {
        let now = OffsetDateTime::from_unix_timestamp(1_795_334_400).expect("a time");
        for (ttl, expected) in [
            (Some("1795334400"), true),
            (Some("1795334400.5"), true),
            (Some("1795334401"), false),
            (Some("1595334400"), false),
            (Some("soon"), false),
            (None, false),
        ] {
            assert_eq!(has_expired(ttl, now), expected, "{ttl:?}");
        }
    }
}
