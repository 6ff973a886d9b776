//! A record as `GetRecords` gives it → the same record as Lambda delivers it.
//!
//! So there is one form that the projector reads, and one that `rejected_records` keeps. Pure. No
//! digit is touched; binary is base64; maps are sorted, so that a record is always the same bytes.

use aws_sdk_dynamodbstreams::primitives::DateTime;
use aws_sdk_dynamodbstreams::types::Record;
use serde::Serialize;

use crate::item_json::of_streams::Item;

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
