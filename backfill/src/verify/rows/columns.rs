//! Pure: which columns of two databases are compared, and the SQL that gives a value the same text
//! on every server, whatever its version and settings.

use std::collections::BTreeMap;

use projector::measurement::COLUMNS;
use projector::part::Part;

/// A column of `measurements` by name, with its type as PostgreSQL writes it.
pub(crate) type Types = BTreeMap<String, String>;

/// A column whose values are compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) name: String,
    /// The part whose version says which change the value is from; `None` if it depends on several.
    pub(crate) part: Option<Part>,
    /// Whether it is the time of the part's last change, which is the repair's own after a repair.
    pub(crate) is_change_time: bool,
}

/// The columns that this command cannot do without.
pub(crate) fn required() -> Vec<String> {
    let of_parts = Part::ALL.into_iter().flat_map(|part| [version_of(part), change_time_of(part)]);
    std::iter::once("session_id".to_owned()).chain(of_parts).collect()
}

/// The column that holds a part's version.
pub(crate) fn version_of(part: Part) -> String {
    format!("{}_version", part.name())
}

/// The column that holds the time of a part's last change.
pub(crate) fn change_time_of(part: Part) -> String {
    format!("{}_changed_at", part.name())
}

/// The columns of both tables whose values are compared, and the names of those that only one table
/// has. Keys and versions are always compared.
pub(crate) fn in_both(ours: &Types, theirs: &Types) -> (Vec<Column>, Vec<String>) {
    let versions = Part::ALL.map(version_of);
    let is_value = |name: &&String| *name != "session_id" && !versions.contains(name);
    let both = ours.keys().filter(|name| theirs.contains_key(*name));
    let columns = both.filter(is_value).map(|name| column(name)).collect();
    let only = |one: &Types, other: &Types| -> Vec<String> {
        one.keys().filter(|name| !other.contains_key(*name)).cloned().collect()
    };
    (columns, [only(ours, theirs), only(theirs, ours)].concat())
}

fn column(name: &str) -> Column {
    let changed = Part::ALL.into_iter().find(|part| change_time_of(*part) == name);
    let known = COLUMNS.iter().find(|column| column.name == name).map(|column| column.part);
    Column { name: name.to_owned(), part: changed.or(known), is_change_time: changed.is_some() }
}

/// A name as SQL.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The text that stands for a value; NULL for NULL. It has no comma, unless its length stands
/// before it.
pub(crate) fn text_of(name: &str, kind: &str) -> String {
    let value = quoted(name);
    let with_length = |text: &str| format!("length({text}) || ':' || {text}");
    match kind {
        "text" => with_length(&value),
        "boolean" | "integer" | "bigint" => format!("{value}::text"),
        // 1.50 is 1.5.
        "numeric" => format!("trim_scale({value})::text"),
        "bytea" => format!("md5({value})"),
        // Microseconds since 1970; an infinite time is none.
        "timestamp with time zone" => format!(
            "CASE WHEN isfinite({value}) \
             THEN (extract(epoch FROM {value}) * 1000000)::bigint::text ELSE {value}::text END"
        ),
        // The order of members is no difference. jsonb cannot hold U+0000, so such a value counts
        // as it is written.
        "json" | "jsonb" => format!(
            "CASE WHEN strpos({value}::text, '\\u0000') > 0 THEN md5({value}::text) \
             ELSE md5({value}::jsonb::text) END"
        ),
        _ => with_length(&format!("{value}::text")),
    }
}

#[cfg(test)]
mod tests {
    use super::{Types, in_both, required, text_of};
    use projector::part::Part;

    fn types(names: &[&str]) -> Types {
        names.iter().map(|name| ((*name).to_owned(), "text".to_owned())).collect()
    }

    #[test]
    fn the_columns_of_both_are_compared_and_the_others_are_named() {
        let ours = types(&[
            "session_id",
            "left_version",
            "left_mesh",
            "left_changed_at",
            "complete",
            "new",
        ]);
        let theirs = types(&[
            "session_id",
            "left_version",
            "left_mesh",
            "left_changed_at",
            "complete",
            "old",
        ]);
        let (columns, left_out) = in_both(&ours, &theirs);
        let named: Vec<_> =
            columns.iter().map(|c| (c.name.as_str(), c.part, c.is_change_time)).collect();
        let expected = [
            ("complete", None, false),
            ("left_changed_at", Some(Part::Left), true),
            ("left_mesh", Some(Part::Left), false),
        ];
        assert_eq!(named, expected);
        assert_eq!(left_out, ["new", "old"]);
    }

    #[test]
    fn keys_versions_and_change_times_are_required() {
        let expected = "session_id session_version session_changed_at left_version left_changed_at \
                        right_version right_changed_at";
        assert_eq!(required().join(" "), expected);
    }

    #[test]
    fn a_name_cannot_end_its_quotes() {
        assert_eq!(text_of("a\"b", "bytea"), r#"md5("a""b")"#);
    }
}
