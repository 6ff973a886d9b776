//! The image of an item → the document of its part, or why it has none. Pure: no record, no stream,
//! no order.

use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

use crate::attribute::{self, Attribute, AttributeError, Item};
use crate::measurement::{ColumnKind, Document, Field, Value};
use crate::part::Part;

/// Why an image is not one of its part. Shown to the operator as `reason`.
#[derive(Debug, thiserror::Error)]
pub enum InvalidImage {
    /// A required attribute is missing.
    #[error("the attribute {0} is missing")]
    MissingAttribute(&'static str),
    /// An attribute has another type than the model gives it.
    #[error("the attribute {name} is tagged {tag}, expected {expected}")]
    Type {
        /// The attribute.
        name: &'static str,
        /// The tag it has.
        tag: String,
        /// The tag it should have.
        expected: &'static str,
    },
    /// An attribute's value is not what its tag says.
    #[error("the attribute {name} {source}")]
    Attribute {
        /// The attribute.
        name: String,
        /// What is wrong with it.
        source: AttributeError,
    },
    /// A time that is not RFC 3339.
    #[error("the attribute {0} is not an RFC 3339 time between the years 0 and 9999")]
    Time(&'static str),
    /// A measured value that no foot has.
    #[error("the attribute {0} is not more than 0 and less than 1000 mm")]
    OutOfRange(&'static str),
}

impl InvalidImage {
    /// The same for the log, without anything that the record's author could have written as a
    /// value.
    #[must_use]
    pub fn without_values(&self) -> String {
        match self {
            Self::Type { name, expected, .. } => {
                format!("the attribute {name} is not tagged {expected}")
            }
            Self::Attribute { source: AttributeError::UnknownType(_), .. } => {
                "an attribute has a type that this version does not know".to_owned()
            }
            Self::Attribute { source, .. } => format!("an attribute {source}"),
            Self::MissingAttribute(_) | Self::Time(_) | Self::OutOfRange(_) => self.to_string(),
        }
    }
}

/// The attributes that are the key of a part's item.
pub(crate) fn key_attributes(part: Part) -> &'static [&'static str] {
    match part {
        Part::Session => &["session_id"],
        Part::Left | Part::Right => &["session_id", "side"],
    }
}

/// The document that an image of this part holds.
///
/// # Errors
/// [`InvalidImage`] if the part cannot have this image.
pub fn document(part: Part, image: &Item<'_>) -> Result<Document, InvalidImage> {
    // Collecting into a `Result` would not know the length, and grow.
    let mut document = Document::with_capacity(part.fields().len());
    for field in part.fields() {
        document.push(value(part, field, image)?);
    }
    Ok(document)
}

fn value(part: Part, field: &Field, image: &Item<'_>) -> Result<Option<Value>, InvalidImage> {
    let name = field.name;
    if field.kind == ColumnKind::Attributes {
        return unnamed(part, image);
    }
    let attribute = match image.get(name) {
        None | Some(Attribute::Null(_)) if field.required => {
            return Err(InvalidImage::MissingAttribute(name));
        }
        None | Some(Attribute::Null(_)) => return Ok(None),
        Some(attribute) => attribute,
    };
    let mistyped =
        |expected| InvalidImage::Type { name, tag: attribute.tag().to_owned(), expected };
    let invalid = |source| InvalidImage::Attribute { name: name.to_owned(), source };
    let value = match (field.kind, attribute) {
        (ColumnKind::Text, Attribute::S(text)) => {
            Value::Text(attribute::without_nul(text).map_err(invalid)?.to_owned())
        }
        (ColumnKind::Timestamp, Attribute::S(text)) => {
            Value::Timestamp(utc_microseconds(text).ok_or(InvalidImage::Time(name))?)
        }
        (ColumnKind::Millimetres, Attribute::N(text)) => {
            let plain = attribute::plain_number(text).map_err(invalid)?;
            let whole_digits = plain.bytes().take_while(u8::is_ascii_digit).count();
            if plain == "0" || plain.starts_with('-') || whole_digits > 3 {
                return Err(InvalidImage::OutOfRange(name));
            }
            Value::Text(plain.into_owned())
        }
        (ColumnKind::Bytes, Attribute::B(text)) => {
            Value::Bytes(attribute::binary(text).map_err(invalid)?)
        }
        (ColumnKind::Text | ColumnKind::Timestamp, _) => return Err(mistyped("S")),
        (ColumnKind::Millimetres, _) => return Err(mistyped("N")),
        (ColumnKind::Bytes, _) => return Err(mistyped("B")),
        (ColumnKind::Attributes, _) => unreachable!("taken care of above"),
    };
    Ok(Some(value))
}

/// Everything that the model does not name, so that nothing is dropped because it is new.
fn unnamed(part: Part, image: &Item<'_>) -> Result<Option<Value>, InvalidImage> {
    let named = |name: &str| {
        key_attributes(part).contains(&name)
            || part
                .fields()
                .iter()
                .any(|field| field.kind != ColumnKind::Attributes && field.name == name)
    };
    let mut unnamed = image.iter().filter(|(name, _)| !named(name)).peekable();
    if unnamed.peek().is_none() {
        return Ok(None);
    }
    let json = unnamed
        .map(|(name, value)| {
            let json = attribute::without_nul(name).and_then(|_| value.to_json());
            let invalid = |source| InvalidImage::Attribute { name: name.to_owned(), source };
            json.map_err(invalid).map(|json| (name.to_owned(), json))
        })
        .collect::<Result<serde_json::Map<_, _>, _>>()?;
    Ok(Some(Value::Text(serde_json::Value::Object(json).to_string())))
}

/// To the microsecond, which is what a `timestamptz` holds: the rest is cut off here, so that a
/// value has one form from the start.
fn utc_microseconds(text: &str) -> Option<OffsetDateTime> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?.checked_to_offset(UtcOffset::UTC)?;
    let time = time.replace_nanosecond(time.nanosecond() / 1_000 * 1_000).ok()?;
    (0..=9999).contains(&time.year()).then_some(time)
}

#[cfg(test)]
mod tests {
    use bigdecimal::BigDecimal;
    use proptest::prelude::*;

    use super::{InvalidImage, value};
    use crate::attribute::Item;
    use crate::measurement::Value;
    use crate::part::Part;

    proptest! {
        /// The range is read off the plain form: it must be the one that arithmetic finds.
        #[test]
        fn a_length_is_taken_where_it_is_between_0_and_1000(
            text in "[+-]?0{0,2}(0|1|9|99|999|1000|[0-9]{0,5})(\\.(0{0,3}|9{0,30}|[0-9]{1,3}))?([eE][+-]?[0-9])?"
        ) {
            let image = format!(r#"{{"foot_length_mm":{{"N":"{text}"}}}}"#);
            let image: Item = serde_json::from_str(&image).expect("an item");
            let fields = Part::Left.fields();
            let length = fields.iter().find(|field| field.name == "foot_length_mm");
            let value = value(Part::Left, length.expect("a field"), &image);
            match text.parse::<BigDecimal>() {
                Err(_) => {
                    let refused = matches!(value, Err(InvalidImage::Attribute { .. }));
                    prop_assert!(refused);
                }
                Ok(length) if length <= 0 || length >= 1000 => {
                    prop_assert!(matches!(value, Err(InvalidImage::OutOfRange("foot_length_mm"))));
                }
                Ok(length) => {
                    let plain = Value::Text(length.normalized().to_plain_string());
                    prop_assert_eq!(value.expect("a length"), Some(plain));
                }
            }
        }
    }
}
