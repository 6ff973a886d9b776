//! How a record of any bytes is kept in a column of type `json`, and how it comes back to the
//! letter. Pure.
//!
//! Both directions stand here, because a record that comes back as other bytes is another record:
//! it gets a row of its own in `rejected_records`, and is there twice.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value as Json, json};

/// The record as JSON: to the letter if it is JSON of a depth that both sides parse; otherwise a
/// JSON string of it or, if it is not UTF-8, `{"base64": ...}`. A record that itself looks like one
/// of the last two forms is kept as a JSON string, so that [`decode`] cannot take it for what it is
/// not.
#[must_use]
pub fn encode(record: &[u8]) -> String {
    let Ok(text) = std::str::from_utf8(record) else {
        return json!({ "base64": BASE64.encode(record) }).to_string();
    };
    match serde_json::from_str(text) {
        Ok(json) if wrapped(&json).is_none() => text.to_owned(),
        _ => json!(text).to_string(),
    }
}

/// The same in ASCII, for a database whose encoding has not every character. Escapes within the
/// record's own JSON would read the same and be other bytes, so a record with other characters
/// becomes a JSON string.
#[must_use]
pub fn encode_ascii(record: &[u8]) -> String {
    match std::str::from_utf8(record) {
        Ok(text) if !text.is_ascii() => escaped(&json!(text).to_string()),
        _ => encode(record),
    }
}

/// The bytes that [`encode`] or [`encode_ascii`] was given.
#[must_use]
pub fn decode(kept: &str) -> Vec<u8> {
    let json: Option<Json> = serde_json::from_str(kept).ok();
    json.and_then(|json| wrapped(&json)).unwrap_or_else(|| kept.as_bytes().to_vec())
}

/// What JSON of one of our two forms holds; `None` for any other.
fn wrapped(json: &Json) -> Option<Vec<u8>> {
    match json {
        Json::String(text) => Some(text.as_bytes().to_vec()),
        Json::Object(members) if members.len() == 1 => {
            BASE64.decode(members.get("base64")?.as_str()?).ok()
        }
        _ => None,
    }
}

/// Every character outside ASCII as JSON escapes it, in UTF-16: `\u00e9`.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_ascii() {
            escaped.push(character);
            continue;
        }
        for unit in character.encode_utf16(&mut [0; 2]) {
            write!(escaped, "\\u{unit:04x}").expect("a string takes all");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::{decode, encode, encode_ascii};
    use proptest::prelude::*;

    /// Any bytes, any text, any JSON, and what looks like one of our forms; perhaps encoded once
    /// already.
    fn record() -> impl Strategy<Value = Vec<u8>> {
        let text = ".{0,20}";
        let forms = prop_oneof![
            prop::collection::vec(any::<u8>(), 0..40),
            text.prop_map(String::into_bytes),
            text.prop_map(|text| serde_json::json!(text).to_string().into_bytes()),
            text.prop_map(|text| serde_json::json!({ "eventID": text }).to_string().into_bytes()),
            text.prop_map(|text| serde_json::json!({ "base64": text }).to_string().into_bytes()),
            r#" ?"([a-zA-Z0-9+/=]|\\u00e9){0,8}" ?"#.prop_map(String::into_bytes),
            r#"\{"base64": ?"[a-zA-Z0-9+/]{0,7}={0,2}"\} ?"#.prop_map(String::into_bytes),
        ];
        (forms, 0..3_u8).prop_map(|(record, times)| {
            (0..times).fold(record, |record, _| encode(&record).into_bytes())
        })
    }

    proptest! {
        #[test]
        fn every_record_comes_back_to_the_letter(record in record()) {
            for kept in [encode(&record), encode_ascii(&record)] {
                prop_assert!(serde_json::from_str::<serde_json::Value>(&kept).is_ok(), "{}", kept);
                prop_assert_eq!(decode(&kept), record.clone(), "{}", kept);
            }
            prop_assert!(encode_ascii(&record).is_ascii());
        }
    }

    #[test]
    fn a_record_is_kept_as_it_is_where_that_is_json() {
        let cases: [(&[u8], &str); 6] = [
            (br#"{ "eventID": "1",  "dynamodb": {} }"#, r#"{ "eventID": "1",  "dynamodb": {} }"#),
            (br#"{"base64":"?"}"#, r#"{"base64":"?"}"#),
            (br#"{"base64":"AAAA"}"#, r#""{\"base64\":\"AAAA\"}""#),
            (br#""abc""#, r#""\"abc\"""#),
            (b"{\"a\0", r#""{\"a\u0000""#),
            (b"\xff\xfe", r#"{"base64":"//4="}"#),
        ];
        for (record, kept) in cases {
            assert_eq!(encode(record), kept);
        }
        assert_eq!(encode_ascii("{\"a\":\"é\"}".as_bytes()), r#""{\"a\":\"\u00e9\"}""#);
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        assert!(encode(deep.as_bytes()).starts_with('"'));
    }
}
