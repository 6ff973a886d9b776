//! The shape of the read model: ONE list of columns.
//!
//! [`SESSION_FIELDS`] and [`SCAN_FIELDS`] drive the decoding of an image, the upsert, the decoding
//! of a row and the JSON object; production code reads no other list. The other places that a new
//! column touches: docs/how-to.md, Add a column.

use std::sync::LazyLock;

use time::OffsetDateTime;

use crate::part::{Part, PerPart};

impl Part {
    /// The attributes of this part's source item, in column order.
    #[must_use]
    pub fn fields(self) -> &'static [Field] {
        match self {
            Self::Session => SESSION_FIELDS,
            Self::Left | Self::Right => SCAN_FIELDS,
        }
    }
}

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnKind {
    /// A string.
    Text,
    /// An RFC 3339 time; kept in UTC to the microsecond, as PostgreSQL keeps it.
    Timestamp,
    /// A length in millimetres, more than 0 and less than 1000; decimal, every digit kept.
    Millimetres,
    /// Opaque bytes.
    Bytes,
    /// Every attribute of the item that the list does not name, as one JSON object.
    Attributes,
}

/// One attribute of a source item, and the column it becomes.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// The attribute's name in the source item.
    pub name: &'static str,
    /// What the column holds.
    pub kind: ColumnKind,
    /// Whether an item without it is rejected. A part is present where its required columns are.
    pub required: bool,
}

const fn required(name: &'static str, kind: ColumnKind) -> Field {
    Field { name, kind, required: true }
}

const fn optional(name: &'static str, kind: ColumnKind) -> Field {
    Field { name, kind, required: false }
}

/// The item of the `sessions` table, without its key.
pub const SESSION_FIELDS: &[Field] = &[
    required("user_id", ColumnKind::Text),
    optional("device_model", ColumnKind::Text),
    optional("os_version", ColumnKind::Text),
    optional("app_version", ColumnKind::Text),
    required("started_at", ColumnKind::Timestamp),
    optional("attributes", ColumnKind::Attributes),
];

/// The item of the `scans` table, without its key.
pub const SCAN_FIELDS: &[Field] = &[
    required("scanned_at", ColumnKind::Timestamp),
    required("foot_length_mm", ColumnKind::Millimetres),
    required("foot_breadth_mm", ColumnKind::Millimetres),
    required("ball_girth_mm", ColumnKind::Millimetres),
    optional("heel_breadth_mm", ColumnKind::Millimetres),
    optional("instep_height_mm", ColumnKind::Millimetres),
    optional("arch_length_mm", ColumnKind::Millimetres),
    optional("mesh", ColumnKind::Bytes),
    optional("attributes", ColumnKind::Attributes),
];

/// A column of `measurements` that comes from an attribute.
#[derive(Clone, Debug)]
pub struct Column {
    /// The column's name: the attribute's, with the side in front for a scan.
    pub name: String,
    /// The part that writes it.
    pub part: Part,
    /// Where it stands in [`Part::fields`].
    pub field_index: usize,
    /// What it holds.
    pub kind: ColumnKind,
}

/// Every column that comes from an attribute, in the order of the table and of the JSON.
pub static COLUMNS: LazyLock<Vec<Column>> = LazyLock::new(|| {
    let column = |part: Part, (field_index, field): (usize, &Field)| Column {
        name: match (part, field.kind) {
            (Part::Session, kind) if kind != ColumnKind::Attributes => field.name.to_owned(),
            _ => format!("{}_{}", part.name(), field.name),
        },
        part,
        field_index,
        kind: field.kind,
    };
    Part::ALL
        .into_iter()
        .flat_map(|part| part.fields().iter().enumerate().map(move |field| column(part, field)))
        .collect()
});

/// A value on its way from an image to a column, or back from a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// [`ColumnKind::Text`] itself, [`ColumnKind::Millimetres`] as a decimal number,
    /// [`ColumnKind::Attributes`] as JSON.
    Text(String),
    /// [`ColumnKind::Timestamp`], in UTC.
    Timestamp(OffsetDateTime),
    /// [`ColumnKind::Bytes`].
    Bytes(Vec<u8>),
}

/// The values of one part, one a field of [`Part::fields`].
pub type Document = Vec<Option<Value>>;

/// One row of `measurements`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measurement {
    /// The row's key.
    pub session_id: String,
    /// What each part holds; `None` where it was never seen, or was removed.
    pub documents: PerPart<Option<Document>>,
    /// The version of the last change applied to each part; it stays when the part is removed.
    pub versions: Versions,
    /// When that change was made, to the second; `None` where the stream did not say.
    pub changed_at: PerPart<Option<OffsetDateTime>>,
}

/// The versions that a row or an object holds, as text; `None` for a part never seen.
pub type Versions = PerPart<Option<String>>;

impl Measurement {
    /// Whether all three parts are there.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.documents.values().all(Option::is_some)
    }

    /// Whether no part is there: what is left is the memory of what was removed.
    #[must_use]
    pub fn removed(&self) -> bool {
        self.documents.values().all(Option::is_none)
    }
}

#[cfg(test)]
mod tests {
    use super::COLUMNS;
    use crate::part::Part;

    #[test]
    fn the_columns_are_those_of_the_contract() {
        let names: Vec<&str> = COLUMNS.iter().map(|column| column.name.as_str()).collect();
        assert_eq!(
            names[..7],
            [
                "user_id",
                "device_model",
                "os_version",
                "app_version",
                "started_at",
                "session_attributes",
                "left_scanned_at"
            ]
        );
        assert_eq!(names.len(), 6 + 9 + 9);
        assert_eq!(names[23], "right_attributes");
    }

    #[test]
    fn every_part_has_a_required_field_that_says_whether_it_is_there() {
        for part in Part::ALL {
            assert!(part.fields().iter().any(|field| field.required), "{part:?}");
        }
    }
}
