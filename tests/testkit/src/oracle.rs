//! What must come out, told without the code under test: of each item, the change with the greatest
//! (label, sequence number) stands; nothing else matters.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value as Json, json};

use crate::records::{Record, Table};

const SESSION: [(&str, &str); 5] = [
    ("user_id", "S"),
    ("device_model", "S"),
    ("os_version", "S"),
    ("app_version", "S"),
    ("started_at", "time"),
];
const SCAN: [(&str, &str); 8] = [
    ("scanned_at", "time"),
    ("foot_length_mm", "N"),
    ("foot_breadth_mm", "N"),
    ("ball_girth_mm", "N"),
    ("heel_breadth_mm", "N"),
    ("instep_height_mm", "N"),
    ("arch_length_mm", "N"),
    ("mesh", "B"),
];

/// The rows of `measurements`, as `row_to_json` gives them, by session.
pub type Rows = BTreeMap<String, Json>;

/// The rows that these records must end in, in whatever order and however often they come.
///
/// # Panics
/// Where a record that is not marked malformed cannot be read: the test itself is wrong.
#[must_use]
pub fn rows<'a>(records: impl IntoIterator<Item = &'a Record>) -> Rows {
    let mut newest: BTreeMap<(Table, &str), &Record> = BTreeMap::new();
    for record in records.into_iter().filter(|record| !record.malformed) {
        let place = |record: &Record| (record.label.clone(), record.sequence_number);
        let standing = newest.entry((record.table, &record.item)).or_insert(record);
        if place(record) > place(standing) {
            *standing = record;
        }
    }
    let mut rows = Rows::new();
    for ((table, item), record) in newest {
        let (session_id, side) =
            item.split_once('/').map_or((item, None), |(id, side)| (id, Some(side)));
        let row = rows.entry(session_id.to_owned()).or_insert_with(|| empty(session_id));
        let part = side.unwrap_or("session");
        let (fields, prefix): (&[_], _) = match table {
            Table::Sessions => (&SESSION, String::new()),
            Table::Scans => (&SCAN, format!("{part}_")),
        };
        let json: Json = serde_json::from_str(&record.json).expect("a record");
        row[format!("{part}_version")] =
            json!(format!("{}/{:040}", record.label, record.sequence_number));
        if let Some(seconds) = json["dynamodb"]["ApproximateCreationDateTime"].as_i64() {
            let time = time::OffsetDateTime::from_unix_timestamp(seconds).expect("a time");
            row[format!("{part}_changed_at")] = json!(postgres_time(time));
        }
        let Some(image) = json["dynamodb"]["NewImage"].as_object() else { continue };
        for (name, kind) in fields {
            if let Some(value) = image.get(*name) {
                row[format!("{prefix}{name}")] = column(kind, value);
            }
        }
        let known = |name: &str| {
            name == "session_id"
                || (side.is_some() && name == "side")
                || fields.iter().any(|(known, _)| *known == name)
        };
        let rest: Map<String, Json> = image
            .iter()
            .filter(|(name, _)| !known(name))
            .map(|(name, value)| (name.clone(), plain(value)))
            .collect();
        if !rest.is_empty() {
            row[format!("{part}_attributes")] = Json::Object(rest);
        }
    }
    for row in rows.values_mut() {
        let complete = ["user_id", "left_scanned_at", "right_scanned_at"]
            .iter()
            .all(|name| !row[*name].is_null());
        row["complete"] = json!(complete);
    }
    rows
}

fn empty(session_id: &str) -> Json {
    let mut row = json!({ "session_id": session_id });
    for (name, _) in SESSION {
        row[name] = Json::Null;
    }
    for side in ["left", "right"] {
        for (name, _) in SCAN {
            row[format!("{side}_{name}")] = Json::Null;
        }
    }
    for part in ["session", "left", "right"] {
        for suffix in ["attributes", "version", "changed_at"] {
            row[format!("{part}_{suffix}")] = Json::Null;
        }
    }
    row
}

fn postgres_time(time: time::OffsetDateTime) -> String {
    let format =
        time::macros::format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]+00:00");
    time.format(format).expect("a time")
}

fn column(kind: &str, value: &Json) -> Json {
    match kind {
        "time" => {
            let text = value["S"].as_str().expect("a time");
            let time =
                time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339);
            json!(postgres_time(time.expect("RFC 3339")))
        }
        "N" => {
            let text = value["N"].as_str().expect("a number");
            let text = if text.contains('.') {
                text.trim_end_matches('0').trim_end_matches('.')
            } else {
                text
            };
            Json::Number(text.parse().expect("a number"))
        }
        "B" => {
            let bytes = BASE64.decode(value["B"].as_str().expect("base64")).expect("base64");
            let hex: String =
                bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(hex_digit).collect();
            json!(format!("\\x{hex}"))
        }
        _ => value["S"].clone(),
    }
}

fn hex_digit(half: u8) -> char {
    char::from_digit(u32::from(half), 16).expect("less than 16")
}

fn plain(value: &Json) -> Json {
    let (tag, value) =
        value.as_object().and_then(|value| value.iter().next()).expect("a tagged value");
    let number =
        |text: &Json| Json::Number(text.as_str().expect("a number").parse().expect("a number"));
    let sorted = |set: &Json| {
        let mut set = set.as_array().expect("a set").clone();
        set.sort_by_key(ToString::to_string);
        set
    };
    match tag.as_str() {
        "N" => number(value),
        "NULL" => Json::Null,
        "M" => value
            .as_object()
            .expect("a map")
            .iter()
            .map(|(name, value)| (name.clone(), plain(value)))
            .collect(),
        "L" => value.as_array().expect("a list").iter().map(plain).collect(),
        "NS" => sorted(value).iter().map(number).collect(),
        "SS" | "BS" => Json::Array(sorted(value)),
        _ => value.clone(),
    }
}

/// What the bucket must hold, by key, where these are the rows.
#[must_use]
pub fn objects(rows: &Rows) -> BTreeMap<String, Json> {
    rows.iter()
        .map(|(session_id, row)| (format!("measurements/{session_id}.json"), object(row)))
        .collect()
}

/// What an object must hold, from its row: the same columns, the versions gathered, meshes in
/// base64, times with `Z`.
///
/// # Panics
/// Where the row is none of `measurements`.
#[must_use]
pub fn object(row: &Json) -> Json {
    let row = row.as_object().expect("a row");
    let mut object = Map::new();
    let mut versions = Map::new();
    let mut present = false;
    for (name, value) in row {
        if let Some(part @ ("session" | "left" | "right")) = name.strip_suffix("_version") {
            versions.insert(part.to_owned(), value.clone());
            continue;
        }
        let text = value.as_str().unwrap_or_default();
        let value = if name.ends_with("_at") && !value.is_null() {
            json!(text.replace("+00:00", "Z"))
        } else if let Some(hex) = text.strip_prefix("\\x").filter(|_| name.ends_with("_mesh")) {
            let byte = |pair: &[u8]| {
                u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16)
                    .expect("hexadecimal")
            };
            json!(BASE64.encode(hex.as_bytes().chunks(2).map(byte).collect::<Vec<_>>()))
        } else {
            value.clone()
        };
        present |= ["user_id", "left_scanned_at", "right_scanned_at"].contains(&name.as_str())
            && !value.is_null();
        object.insert(name.clone(), value);
    }
    if !present {
        return json!({ "session_id": row["session_id"], "deleted": true, "versions": versions });
    }
    object.insert("versions".to_owned(), Json::Object(versions));
    Json::Object(object)
}

/// The bytes of an object, from its row: the members in the order of the contract, without blanks.
///
/// # Panics
/// If the row is none of `measurements`.
#[must_use]
pub fn object_bytes(row: &Json) -> Vec<u8> {
    let object = object(row);
    let versions = |object: &Json| {
        let version = |part: &str| format!("\"{part}\":{}", object["versions"][part]);
        format!("\"versions\":{{{}}}", ["session", "left", "right"].map(version).join(","))
    };
    if !object["deleted"].is_null() {
        let key = &object["session_id"];
        return format!("{{\"session_id\":{key},\"deleted\":true,{}}}", versions(&object))
            .into_bytes();
    }
    let of_scan = |side: &'static str| {
        let names = SCAN.into_iter().map(|(name, _)| name).chain(["attributes"]);
        names.map(move |name| format!("{side}_{name}"))
    };
    let names = std::iter::once("session_id".to_owned())
        .chain(SESSION.into_iter().map(|(name, _)| name.to_owned()))
        .chain(["session_attributes".to_owned()])
        .chain(of_scan("left"))
        .chain(of_scan("right"));
    let member = |name: String| format!("\"{name}\":{}", object[name.as_str()]);
    let mut members: Vec<String> = names.map(member).collect();
    members.push(versions(&object));
    let times = ["session", "left", "right"].map(|part| member(format!("{part}_changed_at")));
    members.extend(times);
    members.push(member("complete".to_owned()));
    format!("{{{}}}", members.join(",")).into_bytes()
}

/// What a row becomes that knows one part better than another row does: of each part, the columns
/// of the row with the greater version.
///
/// # Panics
/// If one is no row of `measurements`.
#[must_use]
pub fn join(row: &Json, other: &Json) -> Json {
    let mut joined = row.clone();
    for part in ["session", "left", "right"] {
        let version = format!("{part}_version");
        if other[&version].as_str() <= row[&version].as_str() {
            continue;
        }
        let of_part = |name: &str| match part {
            "session" => {
                SESSION.iter().any(|(known, _)| *known == name) || name.starts_with("session_")
            }
            _ => name.starts_with(&format!("{part}_")),
        };
        for (name, value) in other.as_object().expect("a row") {
            if of_part(name) {
                joined[name] = value.clone();
            }
        }
    }
    let present = ["user_id", "left_scanned_at", "right_scanned_at"];
    joined["complete"] = json!(present.iter().all(|name| !joined[*name].is_null()));
    joined
}
