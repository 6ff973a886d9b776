//! DynamoDB's attribute values as a stream writes them, and as plain JSON.
//!
//! Our own, because the published types fail the whole event on one unknown tag, and because going
//! through `serde_json::Value` loses digits. A set is sorted, so that the same item always gives
//! the same bytes.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bigdecimal::BigDecimal;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value as Json;

/// An item or a nested map: attribute names and their values.
pub type Item = BTreeMap<String, Attribute>;

/// One attribute value in the wire form `{"S": "text"}`; binary is base64.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    /// A string.
    S(String),
    /// A number of up to 38 digits, as a string.
    N(String),
    /// Binary, base64.
    B(String),
    /// A boolean.
    Bool(bool),
    /// The null value; the flag is always true.
    Null(bool),
    /// A map.
    M(Item),
    /// A list.
    L(Vec<Attribute>),
    /// A set of strings.
    Strings(Vec<String>),
    /// A set of numbers.
    Numbers(Vec<String>),
    /// A set of binaries, base64.
    Binaries(Vec<String>),
    /// A type that came after this version, by its tag. Its value cannot be understood, but the
    /// record around it can, so that the reason for rejecting it names the attribute.
    Unknown(String),
}

impl<'de> Deserialize<'de> for Attribute {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tagged;

        impl<'de> Visitor<'de> for Tagged {
            type Value = Attribute;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an attribute value such as {\"S\": \"text\"}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Attribute, A::Error> {
                let tag: String = map
                    .next_key()?
                    .ok_or_else(|| A::Error::custom("an attribute value has no type"))?;
                let attribute = match tag.as_str() {
                    "S" => Attribute::S(map.next_value()?),
                    "N" => Attribute::N(map.next_value()?),
                    "B" => Attribute::B(map.next_value()?),
                    "BOOL" => Attribute::Bool(map.next_value()?),
                    "NULL" => Attribute::Null(map.next_value()?),
                    "M" => Attribute::M(map.next_value()?),
                    "L" => Attribute::L(map.next_value()?),
                    "SS" => Attribute::Strings(map.next_value()?),
                    "NS" => Attribute::Numbers(map.next_value()?),
                    "BS" => Attribute::Binaries(map.next_value()?),
                    _ => {
                        map.next_value::<IgnoredAny>()?;
                        Attribute::Unknown(tag)
                    }
                };
                match map.next_key::<IgnoredAny>()? {
                    None => Ok(attribute),
                    Some(_) => Err(A::Error::custom("an attribute value has two types")),
                }
            }
        }

        deserializer.deserialize_map(Tagged)
    }
}

/// Why a value cannot be what its tag says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttributeError {
    /// An `N` that DynamoDB could not have stored.
    #[error("is tagged N and is not a decimal number of up to 38 digits")]
    Number,
    /// A `B` that is not base64.
    #[error("is tagged B and is not base64")]
    Binary,
    /// A type that this version does not know.
    #[error("has or holds the type {0:?}, which this version does not know")]
    UnknownType(String),
}

impl Attribute {
    /// The tag: `S`, `N`, `B`, `BOOL`, `NULL`, `M`, `L`, `SS`, `NS` or `BS`.
    #[must_use]
    pub fn tag(&self) -> &str {
        match self {
            Self::S(_) => "S",
            Self::N(_) => "N",
            Self::B(_) => "B",
            Self::Bool(_) => "BOOL",
            Self::Null(_) => "NULL",
            Self::M(_) => "M",
            Self::L(_) => "L",
            Self::Strings(_) => "SS",
            Self::Numbers(_) => "NS",
            Self::Binaries(_) => "BS",
            Self::Unknown(tag) => tag,
        }
    }

    /// The value without its tags; numbers keep every digit, binary stays base64, sets become
    /// sorted lists.
    ///
    /// # Errors
    /// [`AttributeError`] where a value is not what its tag says.
    pub fn to_json(&self) -> Result<Json, AttributeError> {
        let sorted = |values: &[String], json: fn(&str) -> Result<Json, AttributeError>| {
            let mut values: Vec<&String> = values.iter().collect();
            values.sort_unstable();
            values.into_iter().map(|value| json(value)).collect::<Result<_, _>>().map(Json::Array)
        };
        match self {
            Self::S(text) => Ok(Json::String(text.clone())),
            Self::N(text) => number_json(text),
            Self::B(text) => binary_json(text),
            Self::Bool(flag) => Ok(Json::Bool(*flag)),
            Self::Null(_) => Ok(Json::Null),
            Self::M(item) => item
                .iter()
                .map(|(name, value)| Ok((name.clone(), value.to_json()?)))
                .collect::<Result<_, _>>()
                .map(Json::Object),
            Self::L(list) => {
                list.iter().map(Self::to_json).collect::<Result<_, _>>().map(Json::Array)
            }
            Self::Strings(set) => sorted(set, |text| Ok(Json::String(text.to_owned()))),
            Self::Numbers(set) => sorted(set, number_json),
            Self::Binaries(set) => sorted(set, binary_json),
            Self::Unknown(tag) => Err(AttributeError::UnknownType(tag.clone())),
        }
    }
}

/// A number as DynamoDB holds it: up to 38 significant digits, magnitude 1E-130 to 9.99…E+125
/// (Amazon DynamoDB Developer Guide, "Data types", Number).
///
/// # Errors
/// [`AttributeError::Number`] for anything else.
pub fn number(text: &str) -> Result<BigDecimal, AttributeError> {
    // The bounds come before any arithmetic: comparing 1E999999999 with 1 would align the scales.
    if text.len() > 256 || !text.bytes().all(|byte| b"0123456789+-.eE".contains(&byte)) {
        return Err(AttributeError::Number);
    }
    let number = BigDecimal::from_str(text).map_err(|_| AttributeError::Number)?;
    if number.fractional_digit_count().unsigned_abs() > 512 {
        return Err(AttributeError::Number);
    }
    let number = number.normalized();
    if number.digits() > 38 || number.fractional_digit_count().unsigned_abs() > 168 {
        return Err(AttributeError::Number);
    }
    Ok(number)
}

/// The bytes of a binary value.
///
/// # Errors
/// [`AttributeError::Binary`] where the text is not base64.
pub fn binary(text: &str) -> Result<Vec<u8>, AttributeError> {
    BASE64.decode(text).map_err(|_| AttributeError::Binary)
}

fn number_json(text: &str) -> Result<Json, AttributeError> {
    let number = number(text)?;
    // DynamoDB's grammar is wider than JSON's: it takes "+5", ".5" and "007".
    serde_json::Number::from_str(text)
        .or_else(|_| serde_json::Number::from_str(&number.to_plain_string()))
        .map(Json::Number)
        .map_err(|_| AttributeError::Number)
}

fn binary_json(text: &str) -> Result<Json, AttributeError> {
    binary(text).map(|_| Json::String(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::{Attribute, AttributeError, number};

    fn json(wire: &str) -> Result<String, AttributeError> {
        let attribute: Attribute = serde_json::from_str(wire).expect("an attribute");
        attribute.to_json().map(|json| json.to_string())
    }

    #[test]
    fn every_type_becomes_plain_json_with_every_digit() {
        let digits = "12345678901234567890123456789012345.678";
        let wire = format!(
            r#"{{"M":{{"s":{{"S":"a"}},"n":{{"N":"{digits}"}},"b":{{"B":"AAEC"}},"t":{{"BOOL":true}},
            "u":{{"NULL":true}},"l":{{"L":[{{"N":"1"}},{{"S":"x"}}]}},"ss":{{"SS":["b","a"]}},
            "ns":{{"NS":["2","1.50"]}},"bs":{{"BS":["AQ==","AA=="]}},"m":{{"M":{{}}}}}}}}"#
        );
        assert_eq!(
            json(&wire).expect("plain JSON"),
            format!(
                r#"{{"b":"AAEC","bs":["AA==","AQ=="],"l":[1,"x"],"m":{{}},"n":{digits},"ns":[1.50,2],"s":"a","ss":["a","b"],"t":true,"u":null}}"#
            )
        );
    }

    #[test]
    fn numbers_outside_jsons_grammar_are_rewritten() {
        for (wire, plain) in
            [("+5", "5"), (".5", "0.5"), ("007", "7"), ("1E+3", "1e+3"), ("5.", "5")]
        {
            assert_eq!(json(&format!(r#"{{"N":"{wire}"}}"#)).expect("a number"), plain, "{wire}");
        }
    }

    #[test]
    fn what_is_no_number_is_refused_and_a_huge_exponent_costs_nothing() {
        let digits = "1".repeat(39);
        for text in [
            "",
            "x",
            "NaN",
            "Infinity",
            "1_0",
            "0x10",
            "1e999999999",
            "1e-999999999",
            "--1",
            &digits,
        ] {
            assert_eq!(number(text), Err(AttributeError::Number), "{text}");
        }
        assert!(number("9.9999999999999999999999999999999999999E+125").is_ok());
        assert!(number("1E-130").is_ok());
    }

    #[test]
    fn an_unknown_type_is_named_and_bad_base64_is_refused() {
        let nested = r#"{"L":[{"M":{"deep":{"Q":[{"x":1}]}}}]}"#;
        assert_eq!(json(nested), Err(AttributeError::UnknownType("Q".to_owned())));
        assert_eq!(json(r#"{"B":"!"}"#), Err(AttributeError::Binary));
        for wire in ["{}", "7", r#"{"S":"a","N":"1"}"#, r#"{"S":7}"#] {
            assert!(serde_json::from_str::<Attribute>(wire).is_err(), "{wire}");
        }
    }
}
