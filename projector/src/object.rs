//! The S3 object of a row: its bytes, its metadata, and the way back. Pure.
//!
//! The same row gives the same bytes, always. An object says which versions it holds, in its body
//! and in its metadata, so that no bookkeeping elsewhere can disagree with it.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::measurement::{COLUMNS, Document, Kind, Measurement, Part, PerPart, Value, Versions};

/// The form of the body. An object of an older form is written anew when its session comes by.
pub const FORMAT: u32 = 1;

/// The metadata of an object that holds these versions: `format`, `session-version`,
/// `left-version`, `right-version` (`x-amz-meta-…` on the wire); a part never seen has none.
#[must_use]
pub fn metadata(versions: &Versions) -> HashMap<String, String> {
    let versions = Part::ALL.into_iter().filter_map(|part| {
        let version = versions[part as usize].clone()?;
        Some((format!("{}-version", part.name()), version))
    });
    versions.chain([("format".to_owned(), FORMAT.to_string())]).collect()
}

/// The versions that an object's metadata names, and its format where it is ours.
#[must_use]
pub fn read_metadata(metadata: Option<&HashMap<String, String>>) -> (Versions, Option<u32>) {
    let member = |name: &str| metadata.and_then(|metadata| metadata.get(name));
    let versions = Part::ALL.map(|part| member(&format!("{}-version", part.name())).cloned());
    (versions, member("format").and_then(|format| format.parse().ok()))
}

/// Whether `a` holds at least what `b` holds, in every part.
#[must_use]
pub fn at_least(a: &Versions, b: &Versions) -> bool {
    a.iter().zip(b).all(|(a, b)| a >= b)
}

/// The object's body: every column of the row under its own name, in column order, the three
/// versions as one member; a tombstone where every part has been removed.
///
/// # Errors
/// Where the row holds what we never write there: a time outside the years 0 to 9999, or no JSON in
/// a `json` column.
pub fn body(row: &Measurement) -> Result<Vec<u8>, serde_json::Error> {
    let mut body = Body { bytes: b"{".to_vec() };
    body.member("session_id", &row.session_id)?;
    if row.removed() {
        body.member("deleted", &true)?;
        body.member("versions", &NamedVersions(&row.versions))?;
    } else {
        for column in COLUMNS.iter() {
            let document = row.documents[column.part as usize].as_ref();
            match document.and_then(|document| document[column.position].as_ref()) {
                None => body.member(&column.name, &())?,
                Some(Value::Bytes(bytes)) => body.member(&column.name, &BASE64.encode(bytes))?,
                Some(Value::Timestamp(time)) => body.member(&column.name, &rfc3339(*time)?)?,
                Some(Value::Text(text)) if column.kind == Kind::Text => {
                    body.member(&column.name, text)?;
                }
                // A number and JSON stand in the body to the letter as in the row.
                Some(Value::Text(json)) => {
                    body.member(&column.name, serde_json::from_str::<&RawValue>(json)?)?;
                }
            }
        }
        body.member("versions", &NamedVersions(&row.versions))?;
        for part in Part::ALL {
            let changed_at = row.changed_at[part as usize].map(rfc3339).transpose()?;
            body.member(&format!("{}_changed_at", part.name()), &changed_at)?;
        }
        body.member("complete", &row.complete())?;
    }
    body.bytes.push(b'}');
    Ok(body.bytes)
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
        if self.bytes.len() > 1 {
            self.bytes.push(b',');
        }
        serde_json::to_writer(&mut self.bytes, name)?;
        self.bytes.push(b':');
        serde_json::to_writer(&mut self.bytes, value)
    }
}

struct NamedVersions<'a>(&'a Versions);

impl serde::Serialize for NamedVersions<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(Part::ALL.map(|part| (part.name(), &self.0[part as usize])))
    }
}

fn rfc3339(time: OffsetDateTime) -> Result<String, serde_json::Error> {
    time.format(&Rfc3339).map_err(serde::ser::Error::custom)
}

/// The row that an object was made of.
///
/// # Errors
/// Where the bytes are not a body of today's [`FORMAT`].
pub fn parse(body: &[u8]) -> Result<Measurement, serde_json::Error> {
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
    let mut versions: HashMap<String, Option<String>> = serde_json::from_str(raw("versions")?)?;
    let mut row = Measurement {
        session_id: serde_json::from_str(raw("session_id")?)?,
        documents: [const { None }; 3],
        versions: Part::ALL.map(|part| versions.remove(part.name()).flatten()),
        changed_at: [None; 3],
    };
    if members.contains_key("deleted") {
        return Ok(row);
    }
    let mut documents: PerPart<Document> = [const { Document::new() }; 3];
    for column in COLUMNS.iter() {
        let json = raw(&column.name)?;
        let value = match column.kind {
            _ if json == "null" => None,
            Kind::Text => Some(Value::Text(serde_json::from_str(json)?)),
            Kind::Millimetres | Kind::Attributes => Some(Value::Text(json.to_owned())),
            Kind::Timestamp => time(json)?.map(Value::Timestamp),
            Kind::Bytes => {
                let text: String = serde_json::from_str(json)?;
                Some(Value::Bytes(BASE64.decode(text).map_err(serde_json::Error::custom)?))
            }
        };
        documents[column.part as usize].push(value);
    }
    for (part, document) in Part::ALL.into_iter().zip(documents) {
        let present = part
            .fields()
            .iter()
            .zip(&document)
            .all(|(field, value)| value.is_some() || !field.required);
        row.documents[part as usize] = present.then_some(document);
        row.changed_at[part as usize] = time(raw(&format!("{}_changed_at", part.name()))?)?;
    }
    Ok(row)
}

/// Part by part the newer of the two: what an object becomes when it knows one part better than the
/// row does, because the projector of another database writes it too.
#[must_use]
pub fn join(mut row: Measurement, other: Measurement) -> Measurement {
    let parts = other.documents.into_iter().zip(other.versions).zip(other.changed_at);
    for (part, ((document, version), changed_at)) in Part::ALL.into_iter().zip(parts) {
        let part = part as usize;
        if version > row.versions[part] {
            row.documents[part] = document;
            row.versions[part] = version;
            row.changed_at[part] = changed_at;
        }
    }
    row
}
