//! One record of a stream → one typed change: its envelope, and in it the image, which `image.rs`
//! reads. Pure; nothing here knows PostgreSQL or S3.
//!
//! Each record is decoded by itself from its own bytes, so that a bad one is rejected alone. What
//! is wrong with the record is [`Malformed`] (it is rejected and the batch goes on); what is wrong
//! with the wiring is [`Misconfigured`] (nothing is acknowledged).

use serde::Deserialize;
use time::OffsetDateTime;

use crate::attribute::{Attribute, Item, Text};
use crate::image::{self, InvalidImage};
use crate::measurement::Document;
use crate::part::Part;
use crate::version::{Version, VersionError};

/// The two tables whose streams are read, by name.
#[derive(Clone, Debug)]
pub struct Tables {
    /// Holds one item a session.
    pub sessions: String,
    /// Holds one item a session and side.
    pub scans: String,
}

/// What happened to one part of one measurement.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The measurement's key: 1 to 128 of `A-Z a-z 0-9 . _ -`, a letter or digit first.
    pub session_id: String,
    /// The part that changed.
    pub part: Part,
    /// The change's place in the order of this part's changes.
    pub version: Version,
    /// `ApproximateCreationDateTime`; `None` where the record has none.
    pub changed_at: Option<OffsetDateTime>,
    /// The part as it is now; `None` where it was removed.
    pub document: Option<Document>,
    /// Whether the record says that the item is new (`INSERT`). It tells nothing for certain, since
    /// an item may come again after its removal: only how likely there is no object yet.
    pub inserted: bool,
    /// Whether the removal is DynamoDB's own, at the end of the item's time to live.
    pub expired: bool,
}

/// Which change a record is: its place in the order of one part's changes. A record that can never
/// apply has one, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The measurement's key.
    pub session_id: String,
    /// The part.
    pub part: Part,
    /// The change's version.
    pub version: Version,
}

impl Place {
    /// Whether a later change of the same stream is in the part, whose version this is. Versions of
    /// two streams are compared by the time at which the streams were enabled, which says nothing
    /// of two changes: then it is `false`.
    #[must_use]
    pub fn is_overtaken_by(&self, held: &str) -> bool {
        let label = held.split_once('/').map(|(label, _)| label);
        label == Some(self.version.label()) && held > self.version.as_str()
    }
}

/// What is wrong with a record that can never apply. Shown to the operator as `reason`.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// The bytes are not a stream record.
    #[error("not a stream record: {0}")]
    NotARecord(serde_json::Error),
    /// The bytes are not an item of a table.
    #[error("not an item: {0}")]
    NotAnItem(serde_json::Error),
    /// A member that every stream record has is not there.
    #[error("the record has no {0}")]
    MissingMember(&'static str),
    /// The sequence number or the stream's label is none.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// `eventName` is none of INSERT, MODIFY, REMOVE.
    #[error("eventName {0:?} is none of INSERT, MODIFY, REMOVE")]
    EventName(String),
    /// The creation time is no number of seconds since 1970.
    #[error("ApproximateCreationDateTime is not a number of seconds since 1970")]
    CreationTime,
    /// The key attribute is missing, no string, or against the rule.
    #[error("the key session_id is not 1 to 128 of A-Z a-z 0-9 . _ - with a letter or digit first")]
    SessionId,
    /// A scan of neither foot.
    #[error("the key side is neither left nor right")]
    Side,
    /// The image is another item's.
    #[error("the image's {0} is not the one of the record's keys")]
    ForeignImage(&'static str),
    /// The image is not one of the part's.
    #[error(transparent)]
    Image(#[from] InvalidImage),
}

impl Malformed {
    /// The same for the log, without anything that the record's author could have written as a
    /// value.
    #[must_use]
    pub fn without_values(&self) -> String {
        match self {
            Self::NotARecord(error) => format!("not a stream record: {:?}", error.classify()),
            Self::NotAnItem(error) => format!("not an item: {:?}", error.classify()),
            Self::EventName(_) => "eventName is none of INSERT, MODIFY, REMOVE".to_owned(),
            Self::Image(invalid) => invalid.without_values(),
            Self::MissingMember(_)
            | Self::Version(_)
            | Self::CreationTime
            | Self::SessionId
            | Self::Side
            | Self::ForeignImage(_) => self.to_string(),
        }
    }
}

/// What is wrong with the wiring. Nothing of the batch is acknowledged.
#[derive(Debug, thiserror::Error)]
pub enum Misconfigured {
    /// The event source is no stream of a DynamoDB table.
    #[error("the event source {0:?} is not a DynamoDB stream: remove this event source mapping")]
    NotAStream(String),
    /// The stream belongs to a table that is neither of the two.
    #[error(
        "the stream of table {table:?} is read, but SESSIONS_TABLE is {sessions:?} and SCANS_TABLE \
         is {scans:?}: correct the variable, or remove this event source mapping"
    )]
    UnknownTable {
        /// The stream's table.
        table: String,
        /// The configured name.
        sessions: String,
        /// The configured name.
        scans: String,
    },
    /// The stream carries no new images, so nothing can be merged from it.
    #[error(
        "the stream of table {table:?} has view type {view_type}: enable it with NEW_IMAGE or \
            NEW_AND_OLD_IMAGES"
    )]
    NoNewImages {
        /// The stream's table.
        table: String,
        /// `KEYS_ONLY` or `OLD_IMAGE`.
        view_type: String,
    },
}

/// What a record turned out to be.
#[derive(Debug)]
pub enum Decoded {
    /// A change to apply.
    Change(Change),
    /// A record that can never apply.
    Malformed(Malformed),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StreamRecord<'a> {
    #[serde(borrow)]
    event_name: Option<Text<'a>>,
    #[serde(borrow, rename = "eventSourceARN")]
    event_source_arn: Option<Text<'a>>,
    user_identity: Option<UserIdentity>,
    #[serde(borrow)]
    dynamodb: Option<StreamImages<'a>>,
}

#[derive(Deserialize)]
struct UserIdentity {
    #[serde(rename = "type", alias = "Type")]
    kind: Option<String>,
    #[serde(rename = "principalId", alias = "PrincipalId")]
    principal_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct StreamImages<'a> {
    approximate_creation_date_time: Option<serde_json::Number>,
    #[serde(borrow)]
    keys: Option<Item<'a>>,
    #[serde(borrow)]
    new_image: Option<Item<'a>>,
    #[serde(borrow)]
    sequence_number: Option<Text<'a>>,
    #[serde(borrow)]
    stream_view_type: Option<Text<'a>>,
}

/// The table and the label that a stream's ARN names:
/// `arn:aws:dynamodb:<region>:<account>:table/<table>/stream/<label>`.
#[must_use]
pub fn stream_of(arn: &str) -> Option<(&str, &str)> {
    let mut segments = arn.splitn(6, ':');
    if segments.next()? != "arn" || segments.nth(1)? != "dynamodb" {
        return None;
    }
    let (table, label) = segments.nth(2)?.strip_prefix("table/")?.split_once("/stream/")?;
    (!table.is_empty() && !label.is_empty()).then_some((table, label))
}

/// Which of the tables a record is of.
#[derive(Clone, Copy)]
enum Table {
    Sessions,
    Scans,
}

impl Tables {
    /// The table whose items are this part.
    #[must_use]
    pub fn of_part(&self, part: Part) -> &str {
        match part {
            Part::Session => &self.sessions,
            Part::Left | Part::Right => &self.scans,
        }
    }

    /// Which table a stream's ARN names, the table's name, and the stream's label.
    fn stream_of<'a>(&self, arn: &'a str) -> Result<(Table, &'a str, &'a str), Misconfigured> {
        let (name, label) =
            stream_of(arn).ok_or_else(|| Misconfigured::NotAStream(arn.to_owned()))?;
        let Self { sessions, scans } = self;
        let table = match name {
            _ if name == sessions => Table::Sessions,
            _ if name == scans => Table::Scans,
            _ => {
                return Err(Misconfigured::UnknownTable {
                    table: name.to_owned(),
                    sessions: sessions.clone(),
                    scans: scans.clone(),
                });
            }
        };
        Ok((table, name, label))
    }
}

/// The event source of a record that is no stream record, where one can be made out.
fn arn_of(record: &[u8]) -> Option<String> {
    let json: serde_json::Value = serde_json::from_slice(record).ok()?;
    Some(json.get("eventSourceARN")?.as_str()?.to_owned())
}

/// Decodes one record of a stream, as Lambda writes it, from its JSON.
///
/// # Errors
/// [`Misconfigured`] where the record shows that the wrong stream is read.
pub fn decode(record: &[u8], tables: &Tables) -> Result<Decoded, Misconfigured> {
    // One check of the whole is faster than one of each string. What is not text may still be a
    // record, because nobody looks into the members that are not read.
    let parsed = match std::str::from_utf8(record) {
        Ok(text) => serde_json::from_str(text),
        Err(_) => serde_json::from_slice(record),
    };
    let record: StreamRecord<'_> = match parsed {
        Ok(record) => record,
        Err(error) => {
            // Only what is ours is rejected: a foreign stream's records may well have another form.
            if let Some(arn) = arn_of(record) {
                tables.stream_of(&arn)?;
            }
            return Ok(Decoded::Malformed(Malformed::NotARecord(error)));
        }
    };
    let Some(arn) = &record.event_source_arn else {
        return Ok(Decoded::Malformed(Malformed::MissingMember("eventSourceARN")));
    };
    let (table, name, label) = tables.stream_of(arn)?;
    let view_type = record.dynamodb.as_ref().and_then(|images| images.stream_view_type.as_deref());
    if let Some(view_type @ ("KEYS_ONLY" | "OLD_IMAGE")) = view_type {
        return Err(Misconfigured::NoNewImages {
            table: name.to_owned(),
            view_type: view_type.to_owned(),
        });
    }
    Ok(match change(&record, label, table) {
        Ok(change) => Decoded::Change(change),
        Err(malformed) => Decoded::Malformed(malformed),
    })
}

/// Which change a record is, if that is certain: it is of one of the two tables, and its keys and
/// its sequence number can be read. For a record that [`decode`] finds malformed.
#[must_use]
pub fn place_of(record: &[u8], tables: &Tables) -> Option<Place> {
    let record: StreamRecord<'_> = serde_json::from_slice(record).ok()?;
    let (table, _, label) = tables.stream_of(record.event_source_arn.as_deref()?).ok()?;
    let images = record.dynamodb.as_ref()?;
    let place = place(images, label, table).ok()?;
    // With two keys in it, nobody knows whose change it is.
    if let (Some(image), Some(keys)) = (&images.new_image, &images.keys) {
        require_own_image(place.part, image, keys).ok()?;
    }
    Some(place)
}

fn place(images: &StreamImages<'_>, label: &str, table: Table) -> Result<Place, Malformed> {
    let sequence_number = images
        .sequence_number
        .as_deref()
        .ok_or(Malformed::MissingMember("dynamodb.SequenceNumber"))?;
    let version = Version::new(label, sequence_number)?;
    let keys = images.keys.as_ref().ok_or(Malformed::MissingMember("dynamodb.Keys"))?;
    let session_id = session_id(keys)?.to_owned();
    let part = match table {
        Table::Sessions => Part::Session,
        Table::Scans => side(keys)?,
    };
    Ok(Place { session_id, part, version })
}

fn require_own_image(part: Part, image: &Item<'_>, keys: &Item<'_>) -> Result<(), Malformed> {
    match image::key_attributes(part).iter().find(|name| image.get(name) != keys.get(name)) {
        Some(name) => Err(Malformed::ForeignImage(name)),
        None => Ok(()),
    }
}

fn change(record: &StreamRecord<'_>, label: &str, table: Table) -> Result<Change, Malformed> {
    let images = record.dynamodb.as_ref().ok_or(Malformed::MissingMember("dynamodb"))?;
    let Place { session_id, part, version } = place(images, label, table)?;
    let keys = images.keys.as_ref().ok_or(Malformed::MissingMember("dynamodb.Keys"))?;
    let event_name = record.event_name.as_deref().ok_or(Malformed::MissingMember("eventName"))?;
    let document = match event_name {
        "INSERT" | "MODIFY" => {
            let image =
                images.new_image.as_ref().ok_or(Malformed::MissingMember("dynamodb.NewImage"))?;
            require_own_image(part, image, keys)?;
            Some(image::document(part, image)?)
        }
        "REMOVE" => None,
        other => return Err(Malformed::EventName(other.to_owned())),
    };
    let expired = document.is_none()
        && record.user_identity.as_ref().is_some_and(|identity| {
            identity.kind.as_deref() == Some("Service")
                && identity.principal_id.as_deref() == Some("dynamodb.amazonaws.com")
        });
    let changed_at =
        images.approximate_creation_date_time.as_ref().map(creation_time).transpose()?;
    let inserted = event_name == "INSERT";
    Ok(Change { session_id, part, version, changed_at, document, inserted, expired })
}

/// The measurement's key, by the rule.
pub(crate) fn session_id<'a>(keys: &'a Item<'_>) -> Result<&'a str, Malformed> {
    let Some(Attribute::S(session_id)) = keys.get("session_id") else {
        return Err(Malformed::SessionId);
    };
    require_session_id(session_id)?;
    Ok(session_id)
}

/// Refuses what is no key of a session: it becomes a part of an object's key.
///
/// # Errors
/// [`Malformed::SessionId`].
pub fn require_session_id(session_id: &str) -> Result<(), Malformed> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let first_allowed = session_id.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if first_allowed && session_id.len() <= 128 && session_id.bytes().all(allowed) {
        Ok(())
    } else {
        Err(Malformed::SessionId)
    }
}

/// The foot whose scan an item is, by its key.
pub(crate) fn side(keys: &Item<'_>) -> Result<Part, Malformed> {
    match keys.get("side") {
        Some(Attribute::S(side)) if &**side == "left" => Ok(Part::Left),
        Some(Attribute::S(side)) if &**side == "right" => Ok(Part::Right),
        _ => Err(Malformed::Side),
    }
}

/// Seconds since 1970, perhaps with a fraction; the stream itself cuts to the second.
fn creation_time(seconds: &serde_json::Number) -> Result<OffsetDateTime, Malformed> {
    let microseconds = match seconds.as_i64() {
        Some(seconds) => i128::from(seconds) * 1_000_000,
        #[expect(clippy::cast_possible_truncation, reason = "the range is checked below")]
        None => (seconds.as_f64().ok_or(Malformed::CreationTime)? * 1e6).round() as i128,
    };
    microseconds
        .checked_mul(1_000)
        .filter(|nanoseconds| *nanoseconds >= 0)
        .and_then(|nanoseconds| OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).ok())
        .ok_or(Malformed::CreationTime)
}

#[cfg(test)]
mod tests {
    use super::{Decoded, Malformed, Tables, decode, place_of};
    use crate::part::Part;

    #[test]
    fn bytes_that_are_no_text_matter_only_where_they_are_read() {
        let record = |id: &[u8], user: &[u8]| {
            let arn =
                "arn:aws:dynamodb:eu-central-1:1:table/sessions/stream/2026-11-22T00:00:00.000";
            [
                br#"{"eventID":""#.as_slice(),
                id,
                br#"","eventName":"INSERT","eventSourceARN":""#,
                arn.as_bytes(),
                br#"","dynamodb":{"SequenceNumber":"1","Keys":{"session_id":{"S":"s1"}},
                "NewImage":{"session_id":{"S":"s1"},"started_at":{"S":"2026-11-22T08:00:00Z"},"user_id":{"S":""#,
                user,
                br#""}}}}"#,
            ]
            .concat()
        };
        let tables = Tables { sessions: "sessions".to_owned(), scans: "scans".to_owned() };
        let decode = |record: &[u8]| decode(record, &tables).expect("one of our streams");
        assert!(matches!(decode(&record(b"1", b"u")), Decoded::Change(_)));
        assert!(matches!(decode(&record(b"\xff", b"u")), Decoded::Change(_)));
        let malformed = decode(&record(b"1", b"\xff"));
        assert!(matches!(malformed, Decoded::Malformed(Malformed::NotARecord(_))));
    }

    #[test]
    fn a_malformed_record_has_a_place_only_if_all_of_it_is_certain() {
        let tables = Tables { sessions: "sessions".to_owned(), scans: "scans".to_owned() };
        let malformed = r#"{"eventSourceARN":"arn:aws:dynamodb:eu-central-1:1:table/scans/stream/2026-11-22T00:00:00.000",
            "dynamodb":{"SequenceNumber":"7","Keys":{"session_id":{"S":"s1"},"side":{"S":"left"}},
            "NewImage":{"session_id":{"S":"s1"},"side":{"S":"left"}}}}"#;
        let place = place_of(malformed.as_bytes(), &tables).expect("a place");
        assert_eq!((place.session_id.as_str(), place.part), ("s1", Part::Left));
        for (from, to) in [
            ("table/scans", "table/other"),
            (r#""7""#, r#""x""#),
            (r#""Keys":{"session_id""#, r#""Keys":{"session""#),
            (r#""side":{"S":"left"}},"#, r#""side":{"S":"both"}},"#),
            (r#""NewImage":{"session_id":{"S":"s1"}"#, r#""NewImage":{"session_id":{"S":"s2"}"#),
            (r#""dynamodb":"#, r#""dynamodb":7,"dynamodb":"#),
        ] {
            assert!(malformed.contains(from), "{from}");
            assert_eq!(place_of(malformed.replace(from, to).as_bytes(), &tables), None, "{to}");
        }
    }

    #[test]
    fn only_a_later_change_of_the_same_stream_overtakes() {
        let tables = Tables { sessions: "sessions".to_owned(), scans: "scans".to_owned() };
        let record = br#"{"eventSourceARN":"arn:aws:dynamodb:eu-central-1:1:table/sessions/stream/2026-11-22T00:00:00.000",
            "dynamodb":{"SequenceNumber":"7","Keys":{"session_id":{"S":"s1"}}}}"#;
        let place = place_of(record, &tables).expect("a place");
        let held = |label: &str, number: u32| format!("{label}/{number:040}");
        assert!(place.is_overtaken_by(&held("2026-11-22T00:00:00.000", 8)));
        assert!(!place.is_overtaken_by(&held("2026-11-22T00:00:00.000", 7)));
        assert!(!place.is_overtaken_by(&held("2026-11-22T00:00:00.000", 6)));
        assert!(!place.is_overtaken_by(&held("2026-11-23T00:00:00.000", 8)));
        assert!(!place.is_overtaken_by(""));
    }
}
