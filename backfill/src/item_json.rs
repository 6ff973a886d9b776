//! Items as the SDK gives them → the JSON that Lambda delivers and that exports hold, so that the
//! projector's decoder reads all three. Pure. No digit is touched; binary is base64; maps are
//! sorted, so that an item is always the same bytes.

/// The streams and the tables have an SDK crate each, and each crate a type of its own for the same
/// values.
macro_rules! wire_form {
    ($module:ident, $sdk:ident) => {
        pub(crate) mod $module {
            use std::collections::{BTreeMap, HashMap};

            use base64::Engine as _;
            use base64::engine::general_purpose::STANDARD as BASE64;
            use serde::Serialize;
            use serde::ser::{SerializeMap as _, Serializer};
            use $sdk::primitives::Blob;
            use $sdk::types::AttributeValue;

            /// Attribute names and their values.
            pub(crate) struct Item<'a>(pub(crate) &'a HashMap<String, AttributeValue>);

            impl Serialize for Item<'_> {
                fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                    let sorted: BTreeMap<&str, Attribute<'_>> = self
                        .0
                        .iter()
                        .map(|(name, value)| (name.as_str(), Attribute(value)))
                        .collect();
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
                        // A type that came after this version of the SDK, which does not tell its
                        // tag: no tag that the projector knows, so that the item is rejected and
                        // not taken for another.
                        _ => map.serialize_entry("UNKNOWN", &())?,
                    }
                    map.end()
                }
            }

            fn base64(bytes: &Blob) -> String {
                BASE64.encode(bytes)
            }
        }
    };
}

wire_form!(of_streams, aws_sdk_dynamodbstreams);
wire_form!(of_tables, aws_sdk_dynamodb);
