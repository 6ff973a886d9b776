//! DynamoDB's attribute values as a stream writes them, and as plain JSON.
//!
//! Our own, because the published types fail the whole event on one unknown tag, and because going
//! through `serde_json::Value` loses digits. A set is sorted, so that the same item always gives
//! the same bytes. What is decoded borrows from the record: nearly all of it is read once.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bigdecimal::BigDecimal;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value as Json;

/// A string of a record: borrowed from its JSON, unless that has an escape in it. A [`Cow`] with
/// serde always owns.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Text<'a>(Cow<'a, str>);

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AString;

        impl<'de> Visitor<'de> for AString {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }

        deserializer.deserialize_str(AString)
    }
}

/// An item or a nested map: attribute names and their values. Sorted by name, each name once.
#[derive(Clone, Debug, PartialEq)]
pub struct Item<'a>(Vec<(Text<'a>, Attribute<'a>)>);

impl<'a> Item<'a> {
    /// The attribute with this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Attribute<'a>> {
        self.iter().find(|(other, _)| *other == name).map(|(_, value)| value)
    }

    /// Every name and its attribute, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Attribute<'a>)> {
        self.0.iter().map(|(name, value)| (&**name, value))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Item<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AMap;

        impl<'de> Visitor<'de> for AMap {
            type Value = Item<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Item<'de>, A::Error> {
                let mut attributes: Vec<(Text<'de>, Attribute<'de>)> = Vec::new();
                while let Some(name) = map.next_key::<Text<'de>>()? {
                    // Of a record that cannot be read the reason names the attribute.
                    let value = map.next_value().map_err(|error| {
                        A::Error::custom(format_args!("the attribute {}: {error}", &*name))
                    })?;
                    attributes.push((name, value));
                }
                attributes.sort_by(|(a, _), (b, _)| a.cmp(b));
                // Of two with one name the last counts: it takes the place of the one that is kept.
                attributes.dedup_by(|later, kept| {
                    let same = later.0 == kept.0;
                    if same {
                        std::mem::swap(later, kept);
                    }
                    same
                });
                Ok(Item(attributes))
            }
        }

        deserializer.deserialize_map(AMap)
    }
}

/// One attribute value in the wire form `{"S": "text"}`; binary is base64.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute<'a> {
    /// A string.
    S(Text<'a>),
    /// A number of up to 38 digits, as a string.
    N(Text<'a>),
    /// Binary, base64.
    B(Text<'a>),
    /// A boolean.
    Bool(bool),
    /// The null value; the flag is always true.
    Null(bool),
    /// A map.
    M(Item<'a>),
    /// A list.
    L(Vec<Attribute<'a>>),
    /// A set of strings.
    Strings(Vec<Text<'a>>),
    /// A set of numbers.
    Numbers(Vec<Text<'a>>),
    /// A set of binaries, base64.
    Binaries(Vec<Text<'a>>),
    /// A type that came after this version, by its tag. Its value cannot be understood, but the
    /// record around it can, so that the reason for rejecting it names the attribute.
    Unknown(Text<'a>),
}

impl<'de: 'a, 'a> Deserialize<'de> for Attribute<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tagged;

        impl<'de> Visitor<'de> for Tagged {
            type Value = Attribute<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an attribute value such as {\"S\": \"text\"}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Attribute<'de>, A::Error> {
                let tag: Text<'de> = map
                    .next_key()?
                    .ok_or_else(|| A::Error::custom("an attribute value has no type"))?;
                let attribute = match &*tag {
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
    /// A string, or a name in a map, with the one character that no `json` in PostgreSQL can be
    /// asked for: `->>` and a cast to `jsonb` fail on it (PostgreSQL documentation, "JSON Types").
    #[error("holds a NUL character, which PostgreSQL cannot store")]
    Nul,
    /// A type that this version does not know.
    #[error("has or holds the type {0:?}, which this version does not know")]
    UnknownType(String),
}

impl Attribute<'_> {
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
        let sorted = |values: &[Text], json: fn(&str) -> Result<Json, AttributeError>| {
            let mut values: Vec<&Text> = values.iter().collect();
            values.sort_unstable();
            values.into_iter().map(|value| json(value)).collect::<Result<_, _>>().map(Json::Array)
        };
        match self {
            Self::S(text) => text_json(text),
            Self::N(text) => number_json(text),
            Self::B(text) => binary_json(text),
            Self::Bool(flag) => Ok(Json::Bool(*flag)),
            Self::Null(_) => Ok(Json::Null),
            Self::M(item) => item
                .iter()
                .map(|(name, value)| Ok((without_nul(name)?.to_owned(), value.to_json()?)))
                .collect::<Result<_, _>>()
                .map(Json::Object),
            Self::L(list) => {
                list.iter().map(Self::to_json).collect::<Result<_, _>>().map(Json::Array)
            }
            Self::Strings(set) => sorted(set, text_json),
            Self::Numbers(set) => sorted(set, number_json),
            Self::Binaries(set) => sorted(set, binary_json),
            Self::Unknown(tag) => Err(AttributeError::UnknownType(tag.to_string())),
        }
    }
}

/// A number in its one plain form: no exponent, no zero that could be left out.
///
/// # Errors
/// [`AttributeError::Number`] for what [DynamoDB would not hold](number).
pub fn plain_number(text: &str) -> Result<Cow<'_, str>, AttributeError> {
    match without_idle_zeros(text) {
        Some(plain) => Ok(Cow::Borrowed(plain)),
        None => number(text).map(|number| Cow::Owned(number.to_plain_string())),
    }
}

/// The plain form of `245.30` and the like, digits and perhaps a point between them, which is a
/// piece of the text itself. Nearly all numbers are so, and arithmetic costs ten times as much.
fn without_idle_zeros(text: &str) -> Option<&str> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    if text.len() > 38 || !digits(whole) || !digits(fraction) {
        return None;
    }
    let first = whole.bytes().take(whole.len() - 1).take_while(|byte| *byte == b'0').count();
    let fraction = fraction.trim_end_matches('0').len();
    let end = if fraction == 0 { whole.len() } else { whole.len() + 1 + fraction };
    Some(&text[first..end])
}

/// A number as DynamoDB holds it: up to 38 significant digits, magnitude 1E-130 to 9.99…E+125
/// (Amazon DynamoDB Developer Guide, "Data types", Number).
fn number(text: &str) -> Result<BigDecimal, AttributeError> {
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

fn text_json(text: &str) -> Result<Json, AttributeError> {
    without_nul(text).map(|text| Json::String(text.to_owned()))
}

/// The text itself.
///
/// # Errors
/// [`AttributeError::Nul`] where it holds that character.
pub fn without_nul(text: &str) -> Result<&str, AttributeError> {
    if text.contains('\0') { Err(AttributeError::Nul) } else { Ok(text) }
}

fn number_json(text: &str) -> Result<Json, AttributeError> {
    let plain = plain_number(text)?;
    // DynamoDB's grammar is wider than JSON's: it takes "+5", ".5" and "007".
    serde_json::Number::from_str(text)
        .or_else(|_| serde_json::Number::from_str(&plain))
        .map(Json::Number)
        .map_err(|_| AttributeError::Number)
}

fn binary_json(text: &str) -> Result<Json, AttributeError> {
    binary(text).map(|_| Json::String(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Attribute, AttributeError, Item, number, plain_number};

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

    proptest! {
        /// Also where the digits are one more than are counted, and where there is no number at
        /// all.
        #[test]
        fn the_short_way_to_a_plain_number_ends_where_arithmetic_does(
            text in prop_oneof![
                "[0-9]{0,4}(\\.[0-9]{0,4})?",
                "[+-]?0{0,3}[0-9]{0,39}\\.?[0-9]{0,39}0{0,3}([eE][+-]?[0-9]{1,3})?",
                "[0-9.٣]{0,6}",
            ]
        ) {
            let plain = plain_number(&text).map(String::from);
            prop_assert_eq!(plain, number(&text).map(|number| number.to_plain_string()));
        }
    }

    #[test]
    fn an_item_is_sorted_and_of_two_attributes_with_one_name_the_last_counts() {
        let wire = r#"{"b":{"S":"1"},"a":{"S":"2"},"b":{"S":"3"},"a\u0062":{"S":"4"},"b":{"N":"5"},"ab":{"S":"\u0036"}}"#;
        let item: Item = serde_json::from_str(wire).expect("an item");
        let once = r#"{"a":{"S":"2"},"ab":{"S":"6"},"b":{"N":"5"}}"#;
        assert_eq!(item, serde_json::from_str(once).expect("an item"));
        assert_eq!(item.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["a", "ab", "b"]);
        assert_eq!(item.get("b").map(Attribute::tag), Some("N"));
        assert_eq!(item.get("c"), None);
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
    fn a_nul_is_refused_wherever_it_stands_and_its_escape_as_text_is_not() {
        for wire in [
            r#"{"S":"a\u0000b"}"#,
            r#"{"SS":["a","\u0000"]}"#,
            r#"{"L":[{"M":{"deep":{"S":"\u0000"}}}]}"#,
            r#"{"M":{"\u0000":{"S":"a"}}}"#,
        ] {
            assert_eq!(json(wire), Err(AttributeError::Nul), "{wire}");
        }
        assert_eq!(json(r#"{"S":"\\u0000"}"#).expect("text"), r#""\\u0000""#);
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
