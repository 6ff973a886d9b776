//! Our decoder beside the types that AWS publishes (`aws_lambda_events`, with `serde_dynamo`):
//! whatever they parse, we read to the same values. Where we differ on purpose, a test names the
//! difference.

use aws_lambda_events::event::dynamodb::{Event, EventRecord};
use aws_lambda_events::event::streams::DynamoDbEventResponse;
use projector::attribute::{Attribute, Item};
use projector::change::{self, Change, Decoded, Malformed, Tables};
use projector::deadline::Deadline;
use projector::handler::{StreamEvent, handle};
use projector::measurement::{ColumnKind, Document, Value};
use projector::part::Part;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde_dynamo::AttributeValue;
use serde_json::{Value as Json, json};
use testkit::generate::{self, MESH, SMALL};
use testkit::records::{LABEL, Table, arn, scan, session};
use testkit::services::Stores;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

fn tables() -> Tables {
    Tables { sessions: "sessions".to_owned(), scans: "scans".to_owned() }
}

/// A published value as the plain JSON that we make of it: every digit, base64, sorted sets.
fn plain(value: &AttributeValue) -> Json {
    let number = |text: &String| Json::Number(text.parse().expect("a number of JSON's grammar"));
    let sorted = |set: &mut dyn Iterator<Item = String>| {
        let mut set: Vec<String> = set.collect();
        set.sort();
        set
    };
    match value {
        AttributeValue::S(text) => json!(text),
        AttributeValue::N(text) => number(text),
        AttributeValue::B(bytes) => json!(base64(bytes)),
        AttributeValue::Bool(flag) => json!(flag),
        AttributeValue::Null(_) => Json::Null,
        AttributeValue::L(list) => list.iter().map(plain).collect(),
        AttributeValue::M(map) => {
            map.iter().map(|(name, value)| (name.clone(), plain(value))).collect()
        }
        AttributeValue::Ss(set) => json!(sorted(&mut set.iter().cloned())),
        AttributeValue::Ns(set) => sorted(&mut set.iter().cloned()).iter().map(number).collect(),
        AttributeValue::Bs(set) => json!(sorted(&mut set.iter().map(|bytes| base64(bytes)))),
    }
}

fn base64(bytes: &[u8]) -> String {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0_usize, |bits, byte| bits << 8 | usize::from(*byte));
        let bits = bits << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let six = alphabet[bits >> (18 - 6 * place) & 63];
            text.push(if place > chunk.len() { '=' } else { char::from(six) });
        }
    }
    text
}

/// A number of DynamoDB that JSON can write, too: up to 38 digits.
const NUMBER: &str = "-?(0|[1-9][0-9]{0,19})(\\.[0-9]{1,17})?([eE][+-]?[0-9]{1,2})?";

/// An attribute value in its wire form.
fn attribute() -> impl Strategy<Value = Json> {
    let bytes = || vec(any::<u8>(), 0..8).prop_map(|bytes| base64(&bytes));
    let leaf = prop_oneof![
        "\\PC{0,12}".prop_map(|text| json!({ "S": text })),
        NUMBER.prop_map(|text| json!({ "N": text })),
        bytes().prop_map(|text| json!({ "B": text })),
        any::<bool>().prop_map(|flag| json!({ "BOOL": flag })),
        Just(json!({ "NULL": true })),
        vec("\\PC{0,4}", 1..4).prop_map(|set| json!({ "SS": set })),
        vec(NUMBER, 1..4).prop_map(|set| json!({ "NS": set })),
        vec(bytes(), 1..4).prop_map(|set| json!({ "BS": set })),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(|list| json!({ "L": list })),
            btree_map("\\PC{0,6}", inner, 0..4).prop_map(|map| json!({ "M": map })),
        ]
    })
}

const TIME: &str = "20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\
                    (\\.[0-9]{1,6})?(Z|[+-]0[0-9]:30)";
/// More than 0, less than 1000, up to 38 digits.
const MILLIMETRES: &str = "[1-9][0-9]{0,2}(\\.[0-9]{1,35})?|0\\.[0-9]{0,20}[1-9]";

/// How the command side writes a value of this type: its tag, and the pattern of its text. `None`:
/// it writes no such attribute.
fn written(kind: ColumnKind) -> Option<(&'static str, &'static str)> {
    match kind {
        ColumnKind::Text => Some(("S", "\\PC{0,8}")),
        ColumnKind::Timestamp => Some(("S", TIME)),
        ColumnKind::Millimetres => Some(("N", MILLIMETRES)),
        ColumnKind::Bytes => Some(("B", "([A-Za-z0-9+/]{4}){0,8}")),
        ColumnKind::Attributes => None,
    }
}

/// The image of an item without its key: attributes of the list of columns, and some that nobody
/// has named.
fn image(table: Table) -> impl Strategy<Value = Json> {
    let part = match table {
        Table::Sessions => Part::Session,
        Table::Scans => Part::Left,
    };
    let named = part.fields().iter().filter_map(|field| {
        let (tag, pattern) = written(field.kind)?;
        let there = if field.required { Just(true).boxed() } else { any::<bool>().boxed() };
        let value =
            move |(there, text): (bool, String)| there.then(|| (field.name, json!({ tag: text })));
        Some((there, pattern).prop_map(value))
    });
    let named: Vec<_> = named.collect();
    (named, btree_map("x_\\PC{0,6}", attribute(), 0..4)).prop_map(|(named, unnamed)| {
        let mut image = json!(unnamed);
        for (name, value) in named.into_iter().flatten() {
            image[name] = value;
        }
        image
    })
}

/// A record as a stream delivers it.
fn record() -> impl Strategy<Value = Json> {
    let kinds = prop_oneof![
        Just((Table::Sessions, None)),
        Just((Table::Scans, Some("left"))),
        Just((Table::Scans, Some("right"))),
    ];
    let kinds = kinds.prop_flat_map(|(table, side)| (Just(table), Just(side), image(table)));
    let identity = prop_oneof![
        Just(Json::Null),
        Just(json!({ "type": "Service", "principalId": "dynamodb.amazonaws.com" })),
        Just(json!({ "type": "Service", "principalId": "somebody.amazonaws.com" })),
    ];
    let created = prop_oneof![
        Just(None),
        (0_i64..4_000_000_000).prop_map(|seconds| Some(json!(seconds))),
        (0_i64..4_000_000_000).prop_map(|seconds| Some(json!(seconds as f64))),
    ];
    let name = prop_oneof![Just("INSERT"), Just("MODIFY"), Just("REMOVE")];
    let (id, number) = ("[A-Za-z0-9][A-Za-z0-9._-]{0,20}", "[1-9][0-9]{20,39}");
    (kinds, id, number, name, created, identity, any::<bool>()).prop_map(
        |((table, side, mut image), id, number, name, created, identity, old)| {
            let mut keys = json!({ "session_id": { "S": id } });
            if let Some(side) = side {
                keys["side"] = json!({ "S": side });
            }
            for (name, value) in keys.as_object().expect("keys") {
                image[name] = value.clone();
            }
            let mut images = json!({ "Keys": keys, "SequenceNumber": number, "SizeBytes": 7,
                "StreamViewType": if old { "NEW_AND_OLD_IMAGES" } else { "NEW_IMAGE" } });
            if old {
                images["OldImage"] = image.clone();
            }
            if name != "REMOVE" {
                images["NewImage"] = image;
            }
            if let Some(created) = created {
                images["ApproximateCreationDateTime"] = created;
            }
            json!({ "eventID": number, "eventName": name, "eventVersion": "1.1",
                "eventSource": "aws:dynamodb", "awsRegion": "eu-central-1",
                "eventSourceARN": arn(table.name(), LABEL), "userIdentity": identity,
                "dynamodb": images })
        },
    )
}

/// What each record of an event is, as the Lambda reads it.
fn decoded(event: &str) -> Vec<Decoded> {
    let event: StreamEvent = serde_json::from_str(event).expect("an event");
    let records = event.into_records().expect("records");
    let decode = |record: &Vec<u8>| change::decode(record, &tables()).expect("our tables");
    records.iter().map(decode).collect()
}

fn published(event: &str) -> Event {
    serde_json::from_str(event).expect("the published types parse it")
}

/// Sees that a change says what the published record says.
fn assert_same(change: &Change, record: &EventRecord) {
    let images = &record.change;
    let key = |name: &str| match images.keys.get(name) {
        Some(AttributeValue::S(text)) => Some(text.as_str()),
        _ => None,
    };
    let part = match key("side") {
        None => Part::Session,
        Some("left") => Part::Left,
        Some(_) => Part::Right,
    };
    assert_eq!((Some(&*change.session_id), change.part), (key("session_id"), part));
    let arn = record.event_source_arn.as_deref().expect("a source");
    let (_, label) = arn.rsplit_once('/').expect("a label");
    let number = images.sequence_number.as_deref().expect("a number");
    assert_eq!(change.version.as_str(), format!("{label}/{number:0>40}"));
    // A missing time is 1970 there.
    let changed_at = change.changed_at.unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let micros = images.approximate_creation_date_time.timestamp_micros();
    assert_eq!(changed_at.unix_timestamp_nanos(), i128::from(micros) * 1_000);
    let removed = record.event_name == "REMOVE";
    let by_service = record.user_identity.as_ref().is_some_and(|identity| {
        identity.type_ == "Service" && identity.principal_id == "dynamodb.amazonaws.com"
    });
    assert_eq!((change.document.is_none(), change.expired), (removed, removed && by_service));
    if let Some(document) = &change.document {
        assert_same_document(document, part, &images.new_image);
    }
}

fn assert_same_document(document: &Document, part: Part, image: &serde_dynamo::Item) {
    let mut unnamed = image.clone().into_inner();
    unnamed.retain(|name, _| name != "session_id" && (part == Part::Session || name != "side"));
    for (field, value) in part.fields().iter().zip(document) {
        if field.kind == ColumnKind::Attributes {
            let expected = plain(&AttributeValue::M(unnamed.clone()));
            let ours = match value {
                Some(Value::Text(text)) => serde_json::from_str(text).expect("JSON"),
                _ => json!({}),
            };
            assert_eq!(ours, expected);
            continue;
        }
        let expected = match (field.kind, unnamed.remove(field.name)) {
            (_, None | Some(AttributeValue::Null(_))) => None,
            (ColumnKind::Text, Some(AttributeValue::S(text))) => Some(Value::Text(text)),
            (ColumnKind::Millimetres, Some(AttributeValue::N(text))) => {
                let shortest = text.trim_end_matches('0').trim_end_matches('.').to_owned();
                Some(Value::Text(if text.contains('.') { shortest } else { text }))
            }
            (ColumnKind::Timestamp, Some(AttributeValue::S(text))) => {
                Some(Value::Timestamp(OffsetDateTime::parse(&text, &Rfc3339).expect("a time")))
            }
            (ColumnKind::Bytes, Some(AttributeValue::B(bytes))) => Some(Value::Bytes(bytes)),
            // Every kind is named, so a new one does not compile before it is compared above.
            (
                ColumnKind::Text
                | ColumnKind::Millimetres
                | ColumnKind::Timestamp
                | ColumnKind::Bytes
                | ColumnKind::Attributes,
                other,
            ) => panic!("{}: {:?} of {other:?}", field.name, field.kind),
        };
        assert_eq!(value, &expected, "{}", field.name);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_attribute_is_read_to_the_same_value(wire in attribute()) {
        let wire = wire.to_string();
        let theirs: AttributeValue = serde_json::from_str(&wire).expect("theirs");
        let ours: Attribute = serde_json::from_str(&wire).expect("ours");
        prop_assert_eq!(ours.to_json().expect("plain JSON"), plain(&theirs));
    }

    #[test]
    fn every_event_is_read_to_the_same_changes(records in vec(record(), 1..4)) {
        let event = json!({ "Records": records }).to_string();
        let (ours, theirs) = (decoded(&event), published(&event).records);
        prop_assert_eq!(ours.len(), theirs.len());
        for (ours, theirs) in ours.iter().zip(&theirs) {
            match ours {
                Decoded::Change(change) => assert_same(change, theirs),
                Decoded::Malformed(reason) => panic!("{reason}: {event}"),
            }
        }
    }

    /// Items that break every rule of the model: the reason is a rule, never that we cannot read
    /// the record.
    #[test]
    fn what_the_published_types_parse_is_a_record_to_us(
        mut record in record(),
        image in btree_map(
            prop_oneof![Just("user_id".to_owned()), Just("side".to_owned()), Just("mesh".to_owned()),
                Just("foot_length_mm".to_owned()), "\\PC{0,6}"],
            attribute(), 0..6),
        without in prop_oneof![Just("Keys"), Just("SequenceNumber"), Just("StreamViewType")],
    ) {
        record["dynamodb"]["NewImage"] = json!(image);
        record["dynamodb"].as_object_mut().expect("images").remove(without);
        let event = json!({ "Records": [record] }).to_string();
        published(&event);
        if let Decoded::Malformed(reason) = &decoded(&event)[0] {
            prop_assert!(!matches!(reason, Malformed::NotARecord(_)), "{}: {}", reason, event);
        }
    }
}

#[test]
fn the_fixtures_are_read_to_the_same_changes() {
    let mut same = 0;
    for day in [SMALL, MESH] {
        let (sessions, scans) = generate::day(day);
        for record in sessions.iter().chain(&scans) {
            let event = format!(r#"{{"Records":[{}]}}"#, record.json);
            let Ok(theirs) = serde_json::from_str::<Event>(&event) else {
                assert!(record.malformed, "{}", record.json);
                continue;
            };
            match &decoded(&event)[0] {
                Decoded::Change(change) => assert_same(change, &theirs.records[0]),
                Decoded::Malformed(reason) => {
                    let unread = matches!(reason, Malformed::NotARecord(_));
                    assert!(record.malformed && !unread, "{reason}: {}", record.json);
                    continue;
                }
            }
            same += 1;
        }
    }
    assert!(same > 100, "{same}");
}

/// An event of one record, written by a function of the record's JSON.
fn event_of(change: impl FnOnce(&mut Json)) -> String {
    let mut record = serde_json::from_str(&session("s1", "u").place(LABEL, 1).json).expect("JSON");
    change(&mut record);
    json!({ "Records": [record] }).to_string()
}

#[test]
fn difference_a_number_of_38_digits_keeps_every_digit() {
    let digits = "12345678901234567890123456789012345.678";
    let wire = json!({ "N": digits }).to_string();
    let ours: Attribute = serde_json::from_str(&wire).expect("ours");
    assert_eq!(ours.to_json().expect("a number").to_string(), digits);
    let theirs: AttributeValue = serde_json::from_str(&wire).expect("theirs");
    let theirs: Json = serde_dynamo::from_attribute_value(theirs).expect("JSON");
    assert_ne!(theirs.to_string(), digits);
}

#[test]
fn difference_an_unknown_type_costs_one_record_and_not_the_event() {
    let unknown = event_of(|record| record["dynamodb"]["NewImage"]["x"] = json!({ "V": [1, 2] }));
    let bad = unknown.trim_start_matches(r#"{"Records":["#).trim_end_matches("]}");
    let event =
        format!(r#"{{"Records":[{bad},{}]}}"#, scan("s1", "left", "245.3").place(LABEL, 2).json);
    assert!(serde_json::from_str::<Event>(&event).is_err());
    let ours = decoded(&event);
    assert!(matches!(&ours[0], Decoded::Malformed(Malformed::Image(_))), "{ours:?}");
    assert!(matches!(&ours[1], Decoded::Change(_)), "{ours:?}");
}

#[test]
fn difference_an_unknown_view_type_costs_nothing() {
    let event = event_of(|record| record["dynamodb"]["StreamViewType"] = json!("NEWER_IMAGE"));
    assert!(serde_json::from_str::<Event>(&event).is_err());
    assert!(matches!(&decoded(&event)[0], Decoded::Change(_)));
}

#[test]
fn difference_a_missing_time_is_not_known_rather_than_1970() {
    let event = event_of(|record| {
        let images = record["dynamodb"].as_object_mut().expect("images");
        images.remove("ApproximateCreationDateTime").expect("a time");
    });
    let theirs = published(&event).records[0].change.approximate_creation_date_time;
    assert_eq!(theirs.timestamp(), 0);
    assert!(matches!(&decoded(&event)[0], Decoded::Change(Change { changed_at: None, .. })));
}

/// The stream itself cuts to the second (Amazon DynamoDB Streams API Reference, `StreamRecord`).
#[test]
fn difference_half_a_second_is_not_half_a_millisecond() {
    let event = event_of(|record| {
        record["dynamodb"]["ApproximateCreationDateTime"] = json!(1_795_334_400.5);
    });
    let theirs = published(&event).records[0].change.approximate_creation_date_time;
    assert_eq!(theirs.timestamp_micros(), 1_795_334_400_000_500);
    let Decoded::Change(change) = decoded(&event).remove(0) else { panic!("a change") };
    let ours = change.changed_at.expect("a time").unix_timestamp_nanos();
    assert_eq!(ours, 1_795_334_400_500_000_000);
}

#[test]
fn difference_an_absent_image_is_told_from_an_empty_one() {
    let absent = event_of(|record| {
        record["dynamodb"].as_object_mut().expect("images").remove("NewImage").expect("an image");
    });
    let empty = event_of(|record| record["dynamodb"]["NewImage"] = json!({}));
    assert_eq!(published(&absent), published(&empty));
    let reason = |event: &str| match decoded(event).remove(0) {
        Decoded::Malformed(reason) => reason,
        Decoded::Change(change) => panic!("{change:?}"),
    };
    assert!(matches!(reason(&absent), Malformed::MissingMember("dynamodb.NewImage")));
    assert!(matches!(reason(&empty), Malformed::ForeignImage("session_id")));
    assert!(serde_json::from_str::<Item>("{}").is_ok());
}

/// A database that takes no connection, so that the batch fails; and then an empty batch.
#[tokio::test]
async fn the_answer_is_one_that_the_published_type_reads_to_the_same_identifiers() {
    let nowhere = "postgres://nobody@127.0.0.1:9/nothing?sslmode=disable".to_owned();
    let stores = Stores { database_url: nowhere, bucket: String::new() };
    let projector = stores.projector_without_archive(&stores.database_url, 1);
    let records = [session("s1", "u").place(LABEL, 1_000), session("s2", "u").place(LABEL, 999)];
    let lowest = "000000000000000000999";
    for (records, expected) in [(&records[..], vec![lowest]), (&[], vec![])] {
        let records: Vec<&str> = records.iter().map(|record| record.json.as_str()).collect();
        let event = format!(r#"{{"Records":[{}]}}"#, records.join(","));
        let event: StreamEvent = serde_json::from_str(&event).expect("an event");
        let answer =
            handle(&projector, event, "function", Deadline::NONE).await.expect("an answer");
        let answer = serde_json::to_value(&answer).expect("JSON");
        let theirs: DynamoDbEventResponse =
            serde_json::from_value(answer.clone()).expect("the published type reads it");
        let failures = theirs.batch_item_failures.iter();
        let identifiers: Vec<&str> =
            failures.map(|failure| failure.item_identifier.as_deref().expect("one")).collect();
        assert_eq!(identifiers, expected);
        assert_eq!(serde_json::to_value(&theirs).expect("JSON"), answer);
    }
}
