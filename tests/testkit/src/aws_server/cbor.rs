//! JSON as CBOR (RFC 8949), as far as CloudWatch's protocol uses it (Smithy, "RPC v2 CBOR"). A time
//! is `{"epoch": N}`.

use serde_json::{Map, Value as Json, json};

/// Writes a value.
///
/// # Panics
/// If a number is none that a test sends.
pub(super) fn encode(value: &Json, to: &mut Vec<u8>) {
    match value {
        Json::Null => to.push(0xf6),
        Json::Bool(value) => to.push(if *value { 0xf5 } else { 0xf4 }),
        Json::Number(number) => match number.as_u64() {
            Some(integer) => head(0, integer, to),
            None => {
                to.push(0xfb);
                to.extend(number.as_f64().expect("a number").to_be_bytes());
            }
        },
        Json::String(text) => {
            head(3, text.len() as u64, to);
            to.extend(text.as_bytes());
        }
        Json::Array(list) => {
            head(4, list.len() as u64, to);
            for value in list {
                encode(value, to);
            }
        }
        Json::Object(members) if members.len() == 1 && members.contains_key("epoch") => {
            head(6, 1, to);
            encode(&members["epoch"], to);
        }
        Json::Object(members) => {
            head(5, members.len() as u64, to);
            for (name, value) in members {
                encode(&json!(name), to);
                encode(value, to);
            }
        }
    }
}

fn head(major: u8, argument: u64, to: &mut Vec<u8>) {
    to.push((major << 5) | 0x1b);
    to.extend(argument.to_be_bytes());
}

/// Reads a value, and leaves what follows it. `None` if it breaks off.
pub(super) fn decode(from: &mut &[u8]) -> Option<Json> {
    let (major, short) = (from.first()? >> 5, from.first()? & 31);
    *from = &from[1..];
    if major == 7 {
        return simple(short, from);
    }
    let indefinite = short == 31;
    let argument = if indefinite { u64::MAX } else { argument(short, from)? };
    Some(match major {
        0 => json!(argument),
        1 => json!(-1.0 - argument as f64),
        2 | 3 => {
            let (text, rest) = from.split_at_checked(usize::try_from(argument).ok()?)?;
            *from = rest;
            json!(String::from_utf8_lossy(text))
        }
        4 => {
            let mut list = Vec::new();
            while more(list.len(), argument, from) {
                list.push(decode(from)?);
            }
            Json::Array(list)
        }
        5 => {
            let mut members = Map::new();
            while more(members.len(), argument, from) {
                let name = decode(from)?.as_str()?.to_owned();
                members.insert(name, decode(from)?);
            }
            Json::Object(members)
        }
        _ => json!({ "epoch": decode(from)? }),
    })
}

/// Whether a list or map has one more; takes the end of one whose length nobody said.
fn more(have: usize, length: u64, from: &mut &[u8]) -> bool {
    if length != u64::MAX {
        return (have as u64) < length;
    }
    if from.first() == Some(&0xff) {
        *from = &from[1..];
        return false;
    }
    true
}

fn argument(short: u8, from: &mut &[u8]) -> Option<u64> {
    if short < 24 {
        return Some(short.into());
    }
    bytes(1 << (short - 24), from)
}

fn bytes(count: usize, from: &mut &[u8]) -> Option<u64> {
    let (bytes, rest) = from.split_at_checked(count)?;
    *from = rest;
    Some(bytes.iter().fold(0, |number, byte| (number << 8) | u64::from(*byte)))
}

fn simple(short: u8, from: &mut &[u8]) -> Option<Json> {
    Some(match short {
        20 => json!(false),
        21 => json!(true),
        26 => json!(f32::from_bits(u32::try_from(bytes(4, from)?).ok()?)),
        27 => json!(f64::from_bits(bytes(8, from)?)),
        _ => Json::Null,
    })
}

#[cfg(test)]
mod tests {
    use super::{decode, encode};
    use serde_json::json;

    #[test]
    fn what_is_written_is_read_again() {
        let value = json!({ "Id": "age", "Values": [1.5, 60], "At": { "epoch": 1_795_334_430 }, "On": true });
        let mut bytes = Vec::new();
        encode(&value, &mut bytes);
        assert_eq!(decode(&mut bytes.as_slice()), Some(value));
        // A map and a list without lengths, as the SDK writes them.
        let indefinite = [0xbf, 0x61, b'a', 0x9f, 0x01, 0xff, 0xff];
        assert_eq!(decode(&mut indefinite.as_slice()), Some(json!({ "a": [1] })));
    }
}
