//! Pure: the outline of a JSON document, that is, the members whose names tell what it is.
//! Everything else is skipped unread.

use std::borrow::Cow;
use std::fmt;

use projector::attribute::Text;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::documents::scan::Scanned;

/// The parts of a document that tell what it is. The rest is skipped unread: records keep their
/// bytes to the letter.
#[derive(Debug)]
pub(crate) enum Outline<'a> {
    Object(Box<Members<'a>>),
    List(Vec<&'a RawValue>),
    /// Neither an object nor a list.
    Other,
}

/// The members of an object, in whatever order they come, that tell what it is.
#[derive(Debug, Default)]
pub(crate) struct Members<'a> {
    /// `Records`: an event, or what `GetRecords` returned.
    pub(crate) records: Option<Member<'a>>,
    /// `DDBStreamBatchInfo`: what Lambda writes about a batch that it gave up on.
    pub(crate) batch: Option<&'a RawValue>,
    /// `payload`: the event of such a batch.
    pub(crate) payload: Option<&'a RawValue>,
    /// `NextShardIterator`, beside `Records`. It begins with the stream's ARN.
    pub(crate) next_shard_iterator: Option<Member<'a>>,
    /// `eventSource` of a record.
    pub(crate) source: Option<Member<'a>>,
    /// `eventSourceARN` of a record.
    pub(crate) arn: Option<Member<'a>>,
    /// `dynamodb` of a record.
    pub(crate) images: Option<Member<'a>>,
    /// `eventID`, which a record has and others may have.
    event_id: bool,
    /// The surest sign that it is something else.
    pub(crate) foreign: Option<Foreign>,
}

/// What else a document can be, by the names of its members. A later one here is the surer sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Foreign {
    /// A report of Lambda about an invocation that was not of a stream.
    Destination,
    /// Items of a table, as an export or a scan has them.
    Items,
    /// A record of a Kinesis stream.
    Kinesis,
}

/// A member's value, as far as it is of interest.
#[derive(Debug)]
pub(crate) enum Member<'a> {
    Text(Cow<'a, str>),
    List(Vec<&'a RawValue>),
    /// With its `StreamViewType`, if that is text.
    Object(Option<Cow<'a, str>>),
    Other,
}

impl Member<'_> {
    /// The text, if it is one.
    pub(crate) fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Outline<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Document;

        impl<'de> Visitor<'de> for Document {
            type Value = Outline<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a document")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Box::<Members<'de>>::default();
                while let Some(name) = map.next_key::<Text<'de>>()? {
                    members.read(&name, &mut map)?;
                }
                Ok(Outline::Object(members))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
                elements(list).map(Outline::List)
            }

            fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
                Ok(Outline::Other)
            }

            fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
                Ok(Outline::Other)
            }

            fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
                Ok(Outline::Other)
            }

            fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
                Ok(Outline::Other)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
                Ok(Outline::Other)
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Outline::Other)
            }
        }

        deserializer.deserialize_any(Document)
    }
}

impl<'a> Members<'a> {
    fn read<A: MapAccess<'a>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        let foreign = match name {
            "Records" => return map.next_value().map(|value| self.records = Some(value)),
            "DDBStreamBatchInfo" => return map.next_value().map(|value| self.batch = Some(value)),
            "payload" => return map.next_value().map(|value| self.payload = Some(value)),
            "NextShardIterator" => {
                return map.next_value().map(|value| self.next_shard_iterator = Some(value));
            }
            "eventSource" | "EventSource" => {
                return map.next_value().map(|value| self.source = Some(value));
            }
            "eventSourceARN" => return map.next_value().map(|value| self.arn = Some(value)),
            "dynamodb" => return map.next_value().map(|value| self.images = Some(value)),
            "eventID" => {
                self.event_id = true;
                None
            }
            "kinesis" | "recordFormat" | "KinesisBatchInfo" => Some(Foreign::Kinesis),
            "Item" | "Items" | "Keys" | "NewImage" | "OldImage" => Some(Foreign::Items),
            "requestContext" | "responseContext" => Some(Foreign::Destination),
            _ => None,
        };
        self.foreign = self.foreign.max(foreign);
        map.next_value::<IgnoredAny>()?;
        Ok(())
    }

    /// Whether this is a change record, perhaps a malformed one.
    pub(crate) fn is_record(&self) -> bool {
        self.images.is_some() || self.arn.is_some() || self.event_id
    }
}

impl<'a> From<&Scanned<'a>> for Outline<'a> {
    fn from(record: &Scanned<'a>) -> Self {
        let text = |text| Member::Text(Cow::Borrowed(text));
        Self::Object(Box::new(Members {
            source: record.source.map(text),
            arn: Some(text(record.arn)),
            images: Some(Member::Object(record.view_type.map(Cow::Borrowed))),
            ..Members::default()
        }))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Member<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AMember;

        impl<'de> Visitor<'de> for AMember {
            type Value = Member<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut view_type = None;
                // A number of many digits comes here too, as a map of one member with another name.
                while let Some(name) = map.next_key::<Text<'de>>()? {
                    if &*name == "StreamViewType" {
                        view_type = Some(map.next_value::<Member<'de>>()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Member::Object(match view_type {
                    Some(Member::Text(text)) => Some(text),
                    _ => None,
                }))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
                elements(list).map(Member::List)
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Member::Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Member::Text(Cow::Owned(text.to_owned())))
            }

            fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
                Ok(Member::Other)
            }

            fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
                Ok(Member::Other)
            }

            fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
                Ok(Member::Other)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
                Ok(Member::Other)
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Member::Other)
            }
        }

        deserializer.deserialize_any(AMember)
    }
}

fn elements<'de, A: SeqAccess<'de>>(mut list: A) -> Result<Vec<&'de RawValue>, A::Error> {
    let mut elements = Vec::new();
    while let Some(element) = list.next_element()? {
        elements.push(element);
    }
    Ok(elements)
}

/// Of an event, or a list, that does not end: the event of those elements that are complete. `None`
/// if there are none.
pub(crate) fn truncated_event(text: &[u8]) -> Option<Outline<'_>> {
    let mut complete = Vec::new();
    // It ends in an error; what came before is kept.
    let _ = Complete(&mut complete).deserialize(&mut serde_json::Deserializer::from_slice(text));
    if complete.is_empty() {
        return None;
    }
    let records = Some(Member::List(complete));
    Some(Outline::Object(Box::new(Members { records, ..Members::default() })))
}

/// Keeps the elements of a list, or of the list `Records`, as far as they come.
struct Complete<'k, 'de>(&'k mut Vec<&'de RawValue>);

impl<'de> DeserializeSeed<'de> for Complete<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Complete<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<Text<'de>>()? {
            if &*name == "Records" {
                map.next_value_seed(Complete(&mut *self.0))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(element) = list.next_element()? {
            self.0.push(element);
        }
        Ok(())
    }
}
