//! The S3 object of a row: its bytes, its metadata, and the way back. Pure.
//!
//! The same row gives the same bytes, always. An object says which versions it holds, in its body
//! and in its metadata, so that no bookkeeping elsewhere can disagree with it.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::measurement::{COLUMNS, ColumnKind, Document, Measurement, Value, Versions};
use crate::part::{Part, PerPart};

/// The form of the body. An object of an older form is written anew when a record of its session
/// comes by, changed or not.
pub const FORMAT: u32 = 1;

/// The metadata of a row's object: `format`, `session-version`, `left-version`, `right-version`
/// (`x-amz-meta-…` on the wire); a part never seen has none. A tombstone's has the change times too
/// (`session-changed-at`, …), which its body does not say.
///
/// # Errors
/// Where a change time is outside the years 0 to 9999, which we never write.
pub fn metadata(row: &Measurement) -> Result<HashMap<String, String>, serde_json::Error> {
    let mut metadata = HashMap::from([("format".to_owned(), FORMAT.to_string())]);
    for part in Part::ALL {
        if let Some(version) = &row.versions[part] {
            metadata.insert(format!("{}-version", part.name()), version.clone());
        }
        if let Some(changed_at) = row.changed_at[part].filter(|_| row.removed()) {
            metadata.insert(format!("{}-changed-at", part.name()), rfc3339(changed_at)?);
        }
    }
    Ok(metadata)
}

/// The versions and the format that an object's metadata names; `None` where it is not ours. A row
/// that has an object has at least one version.
#[must_use]
pub fn read_metadata(metadata: Option<&HashMap<String, String>>) -> Option<(Versions, u32)> {
    let member = |name: &str| metadata.and_then(|metadata| metadata.get(name));
    let versions = PerPart::from_fn(|part| member(&format!("{}-version", part.name())).cloned());
    let format = member("format")?.parse().ok()?;
    versions.values().any(Option::is_some).then_some((versions, format))
}

/// The versions that an object's body names, whatever else it holds; `None` where it names none.
///
/// # Errors
/// Where the body is no JSON.
pub fn versions_of(body: &[u8]) -> Result<Option<Versions>, serde_json::Error> {
    let json: serde_json::Value = serde_json::from_slice(body)?;
    let version = |part: Part| json.get("versions")?.get(part.name())?.as_str().map(str::to_owned);
    let versions = PerPart::from_fn(version);
    Ok(versions.values().any(Option::is_some).then_some(versions))
}

/// Whether `a` holds at least what `b` holds, in every part.
#[must_use]
pub fn dominates(a: &Versions, b: &Versions) -> bool {
    Part::ALL.into_iter().all(|part| a[part] >= b[part])
}

/// The object's body: every column of the row under its own name, in column order, the three
/// versions as one member; a tombstone where every part has been removed.
///
/// # Errors
/// Where the row holds what we never write there: a time outside the years 0 to 9999, or no JSON in
/// a `json` column.
pub fn body(row: &Measurement) -> Result<Vec<u8>, serde_json::Error> {
    let mut body = Body { bytes: Vec::with_capacity(body_bytes(row)) };
    body.bytes.push(b'{');
    body.member("session_id", &row.session_id)?;
    if row.removed() {
        body.member("deleted", &true)?;
        body.member("versions", &NamedVersions(&row.versions))?;
    } else {
        for column in COLUMNS.iter() {
            let document = row.documents[column.part].as_ref();
            match document.and_then(|document| document[column.field_index].as_ref()) {
                None => body.member(&column.name, &())?,
                Some(Value::Bytes(bytes)) => body.binary_member(&column.name, bytes)?,
                Some(Value::Timestamp(time)) => body.member(&column.name, &rfc3339(*time)?)?,
                // A number and JSON stand in the body to the letter as in the row.
                Some(Value::Text(json)) if is_json(column.kind) => {
                    body.member(&column.name, serde_json::from_str::<&RawValue>(json)?)?;
                }
                Some(Value::Text(text)) => body.member(&column.name, text)?,
            }
        }
        body.member("versions", &NamedVersions(&row.versions))?;
        for part in Part::ALL {
            let changed_at = row.changed_at[part].map(rfc3339).transpose()?;
            body.member(&format!("{}_changed_at", part.name()), &changed_at)?;
        }
        body.member("complete", &row.complete())?;
    }
    body.bytes.push(b'}');
    Ok(body.bytes)
}

/// Whether the text of a value of this kind is JSON already.
fn is_json(kind: ColumnKind) -> bool {
    match kind {
        ColumnKind::Millimetres | ColumnKind::Attributes => true,
        ColumnKind::Text | ColumnKind::Timestamp | ColumnKind::Bytes => false,
    }
}

struct Body {
    bytes: Vec<u8>,
}

impl Body {
    fn member<T: serde::Serialize + ?Sized>(
        &mut self,
        name: &str,
        value: &T,
    ) -> Result<(), serde_json::Error> {
        self.name(name)?;
        serde_json::to_writer(&mut self.bytes, value)
    }

    /// In base64, which holds no character that JSON escapes: a mesh is written once, and not
    /// looked through again.
    fn binary_member(&mut self, name: &str, value: &[u8]) -> Result<(), serde_json::Error> {
        self.name(name)?;
        self.bytes.push(b'"');
        base64_simd::STANDARD.encode_append(value, &mut self.bytes);
        self.bytes.push(b'"');
        Ok(())
    }

    fn name(&mut self, name: &str) -> Result<(), serde_json::Error> {
        if self.bytes.len() > 1 {
            self.bytes.push(b',');
        }
        serde_json::to_writer(&mut self.bytes, name)?;
        self.bytes.push(b':');
        Ok(())
    }
}

/// At least as many bytes as the body will have, and not many more: one that grew under a mesh
/// would be copied each time.
#[must_use]
pub fn body_bytes(row: &Measurement) -> usize {
    let bytes_of = |value: &Value| match value {
        Value::Text(text) => text.len() + 8,
        Value::Bytes(bytes) => bytes.len().div_ceil(3) * 4,
        Value::Timestamp(_) => 32,
    };
    let values = row.documents.values().flatten().flatten().flatten();
    values.map(bytes_of).sum::<usize>() + 2048
}

struct NamedVersions<'a>(&'a Versions);

impl serde::Serialize for NamedVersions<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(Part::ALL.map(|part| (part.name(), &self.0[part])))
    }
}

fn rfc3339(time: OffsetDateTime) -> Result<String, serde_json::Error> {
    time.format(&Rfc3339).map_err(serde::ser::Error::custom)
}

/// Every member that a body has.
static MEMBERS: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let columns = COLUMNS.iter().map(|column| column.name.clone());
    let times = Part::ALL.map(|part| format!("{}_changed_at", part.name()));
    let others = ["session_id", "deleted", "versions", "complete"].map(str::to_owned);
    columns.chain(times).chain(others).collect()
});

/// The row that an object with this body and metadata was made of.
///
/// # Errors
/// Where the bytes are not a body of today's [`FORMAT`].
pub fn parse(
    body: &[u8],
    metadata: Option<&HashMap<String, String>>,
) -> Result<Measurement, serde_json::Error> {
    use serde::de::Error as _;
    let members: HashMap<&str, &RawValue> = serde_json::from_slice(body)?;
    let raw = |name: &str| {
        let member = members.get(name).map(|raw| raw.get());
        member.ok_or_else(|| serde_json::Error::custom(format_args!("no member {name}")))
    };
    let time = |json: &str| -> Result<Option<OffsetDateTime>, serde_json::Error> {
        let text: Option<String> = serde_json::from_str(json)?;
        text.map(|text| OffsetDateTime::parse(&text, &Rfc3339).map_err(serde_json::Error::custom))
            .transpose()
    };
    // Of a newer projector: to read it without them would lose what they hold.
    if let Some(unknown) = members.keys().find(|name| !MEMBERS.contains(**name)) {
        return Err(serde_json::Error::custom(format_args!("it has the member {unknown:?}")));
    }
    let mut versions: HashMap<String, Option<String>> = serde_json::from_str(raw("versions")?)?;
    let mut row = Measurement {
        session_id: serde_json::from_str(raw("session_id")?)?,
        documents: PerPart::default(),
        versions: PerPart::from_fn(|part| versions.remove(part.name()).flatten()),
        changed_at: PerPart::default(),
    };
    if members.contains_key("deleted") {
        for part in Part::ALL {
            let text =
                metadata.and_then(|metadata| metadata.get(&format!("{}-changed-at", part.name())));
            row.changed_at[part] = text
                .map(|text| {
                    OffsetDateTime::parse(text, &Rfc3339).map_err(serde_json::Error::custom)
                })
                .transpose()?;
        }
        return Ok(row);
    }
    let mut documents = PerPart::<Document>::default();
    for column in COLUMNS.iter() {
        let json = raw(&column.name)?;
        let value = match column.kind {
            _ if json == "null" => None,
            ColumnKind::Text => Some(Value::Text(serde_json::from_str(json)?)),
            ColumnKind::Millimetres | ColumnKind::Attributes => Some(Value::Text(json.to_owned())),
            ColumnKind::Timestamp => time(json)?.map(Value::Timestamp),
            ColumnKind::Bytes => {
                let text: String = serde_json::from_str(json)?;
                Some(Value::Bytes(BASE64.decode(text).map_err(serde_json::Error::custom)?))
            }
        };
        documents[column.part].push(value);
    }
    for part in Part::ALL {
        let document = std::mem::take(&mut documents[part]);
        let present = part
            .fields()
            .iter()
            .zip(&document)
            .all(|(field, value)| value.is_some() || !field.required);
        row.documents[part] = present.then_some(document);
        row.changed_at[part] = time(raw(&format!("{}_changed_at", part.name()))?)?;
    }
    Ok(row)
}

/// Part by part the newer of the two: what an object becomes when it knows one part better than the
/// row does, because the projector of another database writes it too.
#[must_use]
pub fn join(mut row: Measurement, mut other: Measurement) -> Measurement {
    for part in Part::ALL {
        if other.versions[part] > row.versions[part] {
            row.documents[part] = other.documents[part].take();
            row.versions[part] = other.versions[part].take();
            row.changed_at[part] = other.changed_at[part];
        }
    }
    row
}

#[cfg(test)]
mod tests {
    use super::{FORMAT, body, dominates, join, metadata, parse, read_metadata, versions_of};
    use crate::measurement::{Measurement, Value, Versions};
    use crate::part::{Part, PerPart};
    use proptest::prelude::*;
    use time::OffsetDateTime;

    fn value(kind: crate::measurement::ColumnKind) -> BoxedStrategy<Value> {
        use crate::measurement::ColumnKind;
        match kind {
            ColumnKind::Text => any::<String>().prop_map(Value::Text).boxed(),
            ColumnKind::Timestamp => {
                (0..253_402_300_799_000_000_i64).prop_map(|us| Value::Timestamp(time(us))).boxed()
            }
            ColumnKind::Millimetres => {
                "[1-9][0-9]{0,2}\\.[0-9]{1,30}".prop_map(Value::Text).boxed()
            }
            ColumnKind::Bytes => any::<Vec<u8>>().prop_map(Value::Bytes).boxed(),
            ColumnKind::Attributes => any::<Vec<String>>()
                .prop_map(|texts| Value::Text(serde_json::json!({ "a b": texts }).to_string()))
                .boxed(),
        }
    }

    fn time(us: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(us) * 1_000).expect("a time")
    }

    fn versions() -> impl Strategy<Value = Versions> {
        prop::array::uniform3(prop::option::of("[0-9]{4}/[0-9]{40}")).prop_map(PerPart::from)
    }

    fn row() -> impl Strategy<Value = Measurement> {
        let document = |part: Part| {
            let fields: Vec<_> = part
                .fields()
                .iter()
                .map(|field| {
                    if field.required {
                        value(field.kind).prop_map(Some).boxed()
                    } else {
                        prop::option::of(value(field.kind)).boxed()
                    }
                })
                .collect();
            prop::option::of(fields)
        };
        let documents = Part::ALL.map(document);
        let changed_at =
            prop::array::uniform3(prop::option::of((0..9_000_000_000_000_000_i64).prop_map(time)));
        (documents, versions(), changed_at).prop_map(|(documents, versions, changed_at)| {
            Measurement {
                session_id: "s1".to_owned(),
                documents: documents.into(),
                versions,
                changed_at: changed_at.into(),
            }
        })
    }

    proptest! {
        #[test]
        fn an_object_is_read_back_as_the_row_it_was_made_of(row in row()) {
            let body = body(&row).expect("a body");
            let metadata = metadata(&row).expect("metadata");
            prop_assert_eq!(&parse(&body, Some(&metadata)).expect("a row"), &row);
            let named = row.versions.values().any(Option::is_some).then_some(row.versions);
            prop_assert_eq!(read_metadata(Some(&metadata)), named.clone().map(|named| (named, FORMAT)));
            prop_assert_eq!(versions_of(&body).expect("JSON"), named);
        }

        #[test]
        fn the_join_of_two_rows_is_dominates_both_and_the_same_either_way(a in row(), b in row()) {
            let joined = join(a.clone(), b.clone());
            prop_assert!(dominates(&joined.versions, &a.versions) && dominates(&joined.versions, &b.versions));
            prop_assert_eq!(&joined.versions, &join(b, a.clone()).versions);
            prop_assert_eq!(join(a.clone(), a.clone()), a);
        }
    }

    /// An object is rewritten when its session comes by only if its format is older than ours: a
    /// change of what a body holds wants a new number, and its form pinned here.
    #[test]
    fn the_format_is_the_one_of_these_columns() {
        let names: Vec<&str> =
            crate::measurement::COLUMNS.iter().map(|column| column.name.as_str()).collect();
        let known = "user_id device_model os_version app_version started_at session_attributes \
            left_scanned_at left_foot_length_mm left_foot_breadth_mm left_ball_girth_mm \
            left_heel_breadth_mm left_instep_height_mm left_arch_length_mm left_mesh \
            left_attributes right_scanned_at right_foot_length_mm right_foot_breadth_mm \
            right_ball_girth_mm right_heel_breadth_mm right_instep_height_mm right_arch_length_mm \
            right_mesh right_attributes";
        assert_eq!(
            (FORMAT, names.join(" ").as_str()),
            (1, known),
            "count FORMAT up with the columns"
        );
    }

    #[test]
    fn the_body_is_the_golden_one() {
        let text = |text: &str| Some(Value::Text(text.to_owned()));
        let at = || Some(Value::Timestamp(time(1_795_334_400_123_000)));
        let row = Measurement {
            session_id: "m-1".to_owned(),
            documents: [
                Some(vec![text("u\"1"), None, text("19.1"), None, at(), text(r#"{"n":1.50}"#)]),
                Some(vec![
                    at(),
                    text("245.3"),
                    text("98.7"),
                    text("243.1"),
                    None,
                    None,
                    text("180"),
                    Some(Value::Bytes(vec![0, 255])),
                    None,
                ]),
                None,
            ]
            .into(),
            versions: [Some("l/1".to_owned()), Some("l/2".to_owned()), None].into(),
            changed_at: [Some(time(1_795_334_460_000_000)), None, None].into(),
        };
        let expected = concat!(
            r#"{"session_id":"m-1","user_id":"u\"1","device_model":null,"os_version":"19.1","app_version":null,"#,
            r#""started_at":"2026-11-22T08:00:00.123Z","session_attributes":{"n":1.50},"#,
            r#""left_scanned_at":"2026-11-22T08:00:00.123Z","left_foot_length_mm":245.3,"left_foot_breadth_mm":98.7,"#,
            r#""left_ball_girth_mm":243.1,"left_heel_breadth_mm":null,"left_instep_height_mm":null,"#,
            r#""left_arch_length_mm":180,"left_mesh":"AP8=","left_attributes":null,"#,
            r#""right_scanned_at":null,"right_foot_length_mm":null,"right_foot_breadth_mm":null,"#,
            r#""right_ball_girth_mm":null,"right_heel_breadth_mm":null,"right_instep_height_mm":null,"#,
            r#""right_arch_length_mm":null,"right_mesh":null,"right_attributes":null,"#,
            r#""versions":{"session":"l/1","left":"l/2","right":null},"#,
            r#""session_changed_at":"2026-11-22T08:01:00Z","left_changed_at":null,"right_changed_at":null,"complete":false}"#,
        );
        assert_eq!(String::from_utf8(body(&row).expect("a body")).expect("text"), expected);
        let removed = Measurement { documents: PerPart::default(), ..row };
        assert_eq!(
            String::from_utf8(body(&removed).expect("a body")).expect("text"),
            r#"{"session_id":"m-1","deleted":true,"versions":{"session":"l/1","left":"l/2","right":null}}"#
        );
    }
}
