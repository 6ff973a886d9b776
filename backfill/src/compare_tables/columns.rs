//! Which columns of a part differ between an item and its row. Pure.
//!
//! Both sides are what the projector would write: numbers in their plain form, times to the
//! microsecond, a mesh by its MD5. Only the names of columns are given, never their values.

use projector::attribute::plain_number;
use projector::measurement::{COLUMNS, ColumnKind, Document, Value};
use projector::part::Part;
use serde_json::Value as Json;

/// The columns of the part in which the item and the row differ, in column order.
pub(crate) fn differing(part: Part, item: &Document, row: &Document) -> Vec<&'static str> {
    let columns = COLUMNS.iter().filter(|column| column.part == part);
    let differs = columns.filter(|column| {
        let value = |document: &Document| document.get(column.field_index).cloned().flatten();
        !equal(column.kind, value(item).as_ref(), value(row).as_ref())
    });
    differs.map(|column| column.name.as_str()).collect()
}

fn equal(kind: ColumnKind, item: Option<&Value>, row: Option<&Value>) -> bool {
    if item == row {
        return true;
    }
    let (Some(Value::Text(item)), Some(Value::Text(row))) = (item, row) else { return false };
    match kind {
        ColumnKind::Millimetres => same_number(item, row),
        ColumnKind::Attributes => {
            let json = |text: &str| serde_json::from_str::<Json>(text);
            json(item).is_ok_and(|item| json(row).is_ok_and(|row| same_json(&item, &row)))
        }
        ColumnKind::Text | ColumnKind::Timestamp | ColumnKind::Bytes => false,
    }
}

fn same_number(a: &str, b: &str) -> bool {
    plain_number(a).is_ok_and(|a| plain_number(b).is_ok_and(|b| a == b))
}

/// Whether two documents have the same members and the same numbers, whatever the order and the
/// form.
fn same_json(a: &Json, b: &Json) -> bool {
    match (a, b) {
        (Json::Number(a), Json::Number(b)) => a == b || same_number(a.as_str(), b.as_str()),
        (Json::Array(a), Json::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_json(a, b))
        }
        (Json::Object(a), Json::Object(b)) => {
            let same = |(name, a): (&String, &Json)| b.get(name).is_some_and(|b| same_json(a, b));
            a.len() == b.len() && a.iter().all(same)
        }
        (a, b) => a == b,
    }
}

#[cfg(test)]
mod tests {
    use projector::measurement::{Document, Value};
    use projector::part::Part;

    use super::differing;
    use crate::items::{Item, read};

    fn scan(with: &str) -> Document {
        let json = format!(
            r#"{{"session_id":{{"S":"s1"}},"side":{{"S":"left"}},"scanned_at":{{"S":"2026-11-22T08:00:00Z"}},
            "foot_length_mm":{{"N":"245.3"}},"foot_breadth_mm":{{"N":"98"}},"ball_girth_mm":{{"N":"243"}}{with}}}"#
        );
        match read(json.as_bytes(), false) {
            Item::Whole(_, document) => document,
            Item::Malformed(_, reason) => panic!("{reason}"),
        }
    }

    /// The row of an item with one value changed.
    fn row(item: &Document, position: usize, value: Option<&str>) -> Document {
        let mut row = item.clone();
        row[position] = value.map(|value| Value::Text(value.to_owned()));
        row
    }

    #[test]
    fn each_kind_of_value_is_compared_by_what_it_is() {
        let item = scan(r#","mesh":{"B":"YWJj"},"a":{"N":"1.50"},"b":{"M":{"x":{"S":"y"}}}"#);
        let json = r#"{"b":{"x":"y"},"a":1.5}"#;
        let digits = "245.30000000000000000000000000000000001";
        for (position, value, expected) in [
            (1, Some("245.3"), None),
            (1, Some("245.300"), None),
            (1, Some(digits), Some("left_foot_length_mm")),
            (1, None, Some("left_foot_length_mm")),
            (4, Some("60"), Some("left_heel_breadth_mm")),
            (7, Some("900150983cd24fb0d6963f7d28e17f72"), None),
            (7, Some("900150983cd24fb0d6963f7d28e17f73"), Some("left_mesh")),
            (7, None, Some("left_mesh")),
            (8, Some(json), None),
            (8, Some(&json.replace("1.5", "1.50000000000000000000001")), Some("left_attributes")),
            (8, Some(&json.replace("\"y\"", "\"z\"")), Some("left_attributes")),
            (8, Some(&json.replace('}', ",\"c\":null}")), Some("left_attributes")),
            (8, Some(&json.replace("1.5", "\"1.5\"")), Some("left_attributes")),
            (8, None, Some("left_attributes")),
        ] {
            let found = differing(Part::Left, &item, &row(&item, position, value));
            assert_eq!(found, Vec::from_iter(expected), "{position} {value:?}");
        }
    }

    #[test]
    fn a_time_differs_by_a_microsecond() {
        let item = scan("");
        let mut row = item.clone();
        let Some(Value::Timestamp(time)) = &mut row[0] else { panic!("a time") };
        *time += time::Duration::microseconds(1);
        assert_eq!(differing(Part::Left, &item, &row), ["left_scanned_at"]);
    }
}
