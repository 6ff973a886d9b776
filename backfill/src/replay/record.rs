//! A record as `GetRecords` gives it → the same record as Lambda delivers it.
//!
//! So there is one form that the projector reads, and one that `rejected_records` keeps. Pure. No
//! digit is touched; binary is base64; maps are sorted, so that a record is always the same bytes.

use std::collections::{BTreeMap, HashMap};

use aws_sdk_dynamodbstreams::primitives::{Blob, DateTime};
use aws_sdk_dynamodbstreams::types::{AttributeValue, Record};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Serialize;
use serde::ser::{SerializeMap as _, Serializer};

/// The record's JSON, with the ARN of the stream it was read from.
pub(crate) fn lambda_json(record: &Record, stream_arn: &str) -> serde_json::Result<Vec<u8>> {
    let images = record.dynamodb().map(|images| Images {
        approximate_creation_date_time: images.approximate_creation_date_time().map(seconds),
        keys: images.keys().map(Item),
        new_image: images.new_image().map(Item),
        old_image: images.old_image().map(Item),
        sequence_number: images.sequence_number(),
        size_bytes: images.size_bytes(),
        stream_view_type: images.stream_view_type().map(AsRef::as_ref),
    });
    serde_json::to_vec(&LambdaRecord {
        event_id: record.event_id(),
        event_name: record.event_name().map(AsRef::as_ref),
        event_version: record.event_version(),
        event_source: record.event_source(),
        aws_region: record.aws_region(),
        dynamodb: images,
        event_source_arn: stream_arn,
        user_identity: record.user_identity().map(|identity| UserIdentity {
            kind: identity.r#type(),
            principal_id: identity.principal_id(),
        }),
    })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LambdaRecord<'a> {
    #[serde(rename = "eventID", skip_serializing_if = "Option::is_none")]
    event_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event_version: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event_source: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aws_region: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dynamodb: Option<Images<'a>>,
    #[serde(rename = "eventSourceARN")]
    event_source_arn: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_identity: Option<UserIdentity<'a>>,
}

#[derive(Serialize)]
struct UserIdentity<'a> {
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'a str>,
    #[serde(rename = "principalId", skip_serializing_if = "Option::is_none")]
    principal_id: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Images<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    approximate_creation_date_time: Option<Seconds>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keys: Option<Item<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    new_image: Option<Item<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    old_image: Option<Item<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence_number: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_bytes: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_view_type: Option<&'a str>,
}

/// Seconds since 1970: a whole number wherever there is no fraction.
#[derive(Serialize)]
#[serde(untagged)]
enum Seconds {
    Whole(i64),
    Fraction(f64),
}

fn seconds(time: &DateTime) -> Seconds {
    if time.subsec_nanos() == 0 {
        Seconds::Whole(time.secs())
    } else {
        Seconds::Fraction(time.as_secs_f64())
    }
}

struct Item<'a>(&'a HashMap<String, AttributeValue>);

impl Serialize for Item<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let sorted: BTreeMap<&str, Attribute<'_>> =
            self.0.iter().map(|(name, value)| (name.as_str(), Attribute(value))).collect();
        sorted.serialize(serializer)
    }
}

struct Attribute<'a>(&'a AttributeValue);

impl Serialize for Attribute<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        match self.0 {
            AttributeValue::S(text) => map.serialize_entry("S", text)?,
            AttributeValue::N(text) => map.serialize_entry("N", text)?,
            AttributeValue::B(bytes) => map.serialize_entry("B", &base64(bytes))?,
            AttributeValue::Bool(flag) => map.serialize_entry("BOOL", flag)?,
            AttributeValue::Null(flag) => map.serialize_entry("NULL", flag)?,
            AttributeValue::M(item) => map.serialize_entry("M", &Item(item))?,
            AttributeValue::L(values) => {
                let values: Vec<Attribute<'_>> = values.iter().map(Attribute).collect();
                map.serialize_entry("L", &values)?;
            }
            AttributeValue::Ss(values) => map.serialize_entry("SS", values)?,
            AttributeValue::Ns(values) => map.serialize_entry("NS", values)?,
            AttributeValue::Bs(values) => {
                let values: Vec<String> = values.iter().map(base64).collect();
                map.serialize_entry("BS", &values)?;
            }
            // A type that came after this version of the SDK, which does not tell its tag: no tag
            // that the projector knows, so that the record is rejected and not taken for another.
            _ => map.serialize_entry("UNKNOWN", &())?,
        }
        map.end()
    }
}

fn base64(bytes: &Blob) -> String {
    BASE64.encode(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use aws_sdk_dynamodbstreams::primitives::{Blob, DateTime};
    use aws_sdk_dynamodbstreams::types::{
        AttributeValue, Identity, OperationType, Record, StreamRecord, StreamViewType,
    };
    use serde_json::{Value as Json, json};

    use super::lambda_json;

    const ARN: &str =
        "arn:aws:dynamodb:eu-central-1:1:table/sessions/stream/2026-11-22T00:00:00.000";

    fn json_of(record: &Record) -> Json {
        serde_json::from_slice(&lambda_json(record, ARN).expect("JSON")).expect("JSON")
    }

    #[test]
    fn every_type_comes_through_with_every_digit() {
        let text = |text: &str| AttributeValue::S(text.to_owned());
        let digits = "12345678901234567890123456789012345.678";
        let image = HashMap::from([
            ("s".to_owned(), text("ä\"\\\u{0}")),
            ("n".to_owned(), AttributeValue::N(digits.to_owned())),
            ("b".to_owned(), AttributeValue::B(Blob::new([0, 255]))),
            ("bool".to_owned(), AttributeValue::Bool(true)),
            ("null".to_owned(), AttributeValue::Null(true)),
            ("m".to_owned(), AttributeValue::M(HashMap::from([("x".to_owned(), text("y"))]))),
            ("l".to_owned(), AttributeValue::L(vec![text("a"), AttributeValue::N("1".to_owned())])),
            ("ss".to_owned(), AttributeValue::Ss(vec!["a".to_owned()])),
            ("ns".to_owned(), AttributeValue::Ns(vec![digits.to_owned()])),
            ("bs".to_owned(), AttributeValue::Bs(vec![Blob::new([1])])),
        ]);
        let images = StreamRecord::builder()
            .approximate_creation_date_time(DateTime::from_secs(1_795_334_400))
            .set_new_image(Some(image))
            .sequence_number("000000000000000000111")
            .size_bytes(59)
            .stream_view_type(StreamViewType::NewImage)
            .build();
        let record = Record::builder()
            .event_id("e1")
            .event_name(OperationType::Remove)
            .user_identity(Identity::builder().r#type("Service").principal_id("p").build())
            .dynamodb(images)
            .build();
        let expected = json!({
            "eventID": "e1",
            "eventName": "REMOVE",
            "eventSourceARN": ARN,
            "userIdentity": { "type": "Service", "principalId": "p" },
            "dynamodb": {
                "ApproximateCreationDateTime": 1_795_334_400,
                "NewImage": {
                    "s": { "S": "ä\"\\\u{0}" }, "n": { "N": digits }, "b": { "B": "AP8=" },
                    "bool": { "BOOL": true }, "null": { "NULL": true },
                    "m": { "M": { "x": { "S": "y" } } },
                    "l": { "L": [{ "S": "a" }, { "N": "1" }] },
                    "ss": { "SS": ["a"] }, "ns": { "NS": [digits] }, "bs": { "BS": ["AQ=="] },
                },
                "SequenceNumber": "000000000000000000111",
                "SizeBytes": 59,
                "StreamViewType": "NEW_IMAGE",
            },
        });
        assert_eq!(json_of(&record), expected);
    }

    #[test]
    fn what_is_missing_stays_missing() {
        assert_eq!(json_of(&Record::builder().build()), json!({ "eventSourceARN": ARN }));
    }
}
