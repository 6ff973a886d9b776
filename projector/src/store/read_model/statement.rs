//! The SQL of the read model, made from the one list of columns.
//!
//! Each text is constant: it never depends on the size of a batch, so PostgreSQL plans it once. The
//! texts that come out are kept beside this file as `*.golden.sql`, for reading and as a test.

use std::fmt::Write as _;
use std::sync::LazyLock;

use crate::measurement::{COLUMNS, Column, ColumnKind};
use crate::part::Part;
use crate::pending_objects;

/// A row with a column of more bytes than this is not returned by the upsert but read when its
/// object is written: a thousand rows with meshes, long texts or attributes are not held in memory
/// at once. Bytes as they are sent: a column of repetitive JSON is stored compressed, at a
/// hundredth of them.
const SMALL_COLUMN_BYTES: usize = 2048;

/// The upsert, returning each written row: for the archive.
pub(super) static UPSERT_RETURNING_ROWS: LazyLock<String> = LazyLock::new(|| upsert(true));

/// The upsert, returning keys only: where there is no archive.
pub(super) static UPSERT: LazyLock<String> = LazyLock::new(|| upsert(false));

/// The same, which keeps every session that is sent in `pending_objects` as well.
///
/// ONE statement, so that the key and the row are committed together. If the key came first, who
/// writes pending objects could read it, find the row of before, and remove the key: then nobody
/// would know of the row that is written after that.
///
/// One parameter more: the mark of the keys.
pub(super) static UPSERT_PENDING: LazyLock<String> = LazyLock::new(|| {
    let mark = Columns::new().given.len() + Part::COUNT + 1;
    let (keep, upsert) = (pending_objects::keep_sql(mark), UPSERT.trim_start_matches("WITH "));
    format!("WITH pending AS (\n{keep}\n), {upsert}")
});

/// The insert of images whose sessions have no row.
pub(super) static INSERT_ABSENT: LazyLock<String> = LazyLock::new(insert_absent);

/// The upsert of images whose parts have not moved.
pub(super) static UPSERT_UNMOVED: LazyLock<String> = LazyLock::new(upsert_unmoved);

/// The versions that the rows of some keys hold: one row of arrays, which costs the client a fifth
/// of what as many rows cost.
pub(super) static VERSIONS: LazyLock<String> = LazyLock::new(|| {
    let versions = Part::ALL.map(|part| format!("array_agg({}_version)", part.name()));
    format!(
        "SELECT array_agg(session_id), {}\nFROM measurements\nWHERE session_id = ANY($1::text[])",
        list(versions, ", ")
    )
});

/// The rows of some keys that somebody else has locked. It locks the others for the moment, as the
/// upsert does; nobody waits.
pub(super) const LOCKED: &str = "WITH free AS (
    SELECT session_id FROM measurements WHERE session_id = ANY($1::text[])
    FOR NO KEY UPDATE SKIP LOCKED
)
SELECT session_id FROM measurements
WHERE session_id = ANY($1::text[]) AND session_id NOT IN (SELECT session_id FROM free)";

/// When the changes that the rows of some keys hold were made.
pub(super) static CHANGE_TIMES: LazyLock<String> = LazyLock::new(|| {
    let times = Part::ALL.map(|part| format!("{}_changed_at", part.name()));
    format!(
        "SELECT session_id, {}\nFROM measurements\nWHERE session_id = ANY($1::text[])",
        list(times, ", ")
    )
});

/// Rows by key.
pub(super) static READ: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {}\nFROM measurements m\nWHERE session_id = ANY($1::text[])\n",
        row_columns("NULL::boolean", "$2")
    )
});

/// The type of the parameter that carries a column's values.
///
/// Numbers and JSON travel as text: every digit arrives as it was sent.
fn parameter_type(kind: ColumnKind) -> &'static str {
    match kind {
        ColumnKind::Text | ColumnKind::Millimetres | ColumnKind::Attributes => "text[]",
        ColumnKind::Timestamp => "timestamptz[]",
        ColumnKind::Bytes => "bytea[]",
    }
}

fn cast(kind: ColumnKind) -> &'static str {
    match kind {
        ColumnKind::Millimetres => "::numeric",
        ColumnKind::Attributes => "::json",
        ColumnKind::Text | ColumnKind::Timestamp | ColumnKind::Bytes => "",
    }
}

/// What a column of an answer is cast to: numbers and JSON come back as they went, as text.
fn answer_cast(kind: ColumnKind) -> &'static str {
    match kind {
        ColumnKind::Millimetres | ColumnKind::Attributes => "::text",
        ColumnKind::Text | ColumnKind::Timestamp | ColumnKind::Bytes => "",
    }
}

fn list(items: impl IntoIterator<Item = String>, separator: &str) -> String {
    items.into_iter().collect::<Vec<_>>().join(separator)
}

/// SQL that says "some part of `new` is newer than the one in `old`". A part that `new` does not
/// have has a NULL version, and a comparison with NULL is not true.
fn sql_any_part_newer(new: &str, old: &str) -> String {
    list(Part::ALL.map(|part| sql_part_newer(part, new, old)), " OR ")
}

fn sql_part_newer(part: Part, new: &str, old: &str) -> String {
    let name = part.name();
    format!("{new}{name}_version > coalesce({old}{name}_version, '')")
}

/// Where the versions of a row begin in what [`row_columns`] selects.
pub(super) const FIRST_VERSION: usize = 2;

/// Where it says whether the row is whole; its columns follow.
pub(super) const WHOLE: usize = FIRST_VERSION + Part::COUNT;

/// What a row of the answer is made of, in the order in which the row is decoded:
/// key, whether it was inserted, versions, whether the row is whole, its columns, change times.
fn row_columns(inserted: &str, everything: &str) -> String {
    let mut sql = format!("m.session_id, {inserted} AS inserted");
    for part in Part::ALL {
        write!(sql, ", m.{}_version", part.name()).expect("a string takes all");
    }
    let small = |Column { name, kind, .. }: &Column| match kind {
        // The server knows how long these are without reading them.
        ColumnKind::Text | ColumnKind::Bytes => {
            Some(format!("octet_length(m.{name}) <= {SMALL_COLUMN_BYTES}"))
        }
        // Only what is small as it is stored is unpacked to be measured.
        ColumnKind::Attributes => Some(format!(
            "pg_column_size(m.{name}) <= {SMALL_COLUMN_BYTES} AND octet_length(m.{name}::text) <= \
                {SMALL_COLUMN_BYTES}"
        )),
        ColumnKind::Timestamp | ColumnKind::Millimetres => None,
    };
    let every = COLUMNS.iter().filter_map(small);
    let whole = list(every.map(|small| format!("({small}) IS NOT FALSE")), "\n        AND ");
    write!(sql, ",\n    ({everything} OR ({whole})) AS whole").expect("a string takes all");
    for column in COLUMNS.iter() {
        let (name, cast) = (&column.name, answer_cast(column.kind));
        sql.push_str(",\n    ");
        match small(column) {
            Some(small) => {
                write!(sql, "CASE WHEN {everything} OR {small} THEN m.{name}{cast} END AS {name}")
            }
            None if cast.is_empty() => write!(sql, "m.{name}"),
            None => write!(sql, "m.{name}{cast} AS {name}"),
        }
        .expect("a string takes all");
    }
    for part in Part::ALL {
        write!(sql, ",\n    m.{}_changed_at", part.name()).expect("a string takes all");
    }
    sql
}

/// ONE statement: what is newer than the rows, and the upsert of that.
///
/// Parameters: the keys, sorted; one array per column of [`COLUMNS`]; the versions; the change
/// times. Then, if rows are returned, whether to return also those that are not small; otherwise,
/// for each part, a text above every version of the oldest stream that was sent and below those of
/// later ones.
///
/// The pre-filter drops what is not newer before it can lock a row or write WAL. It is a subquery
/// that runs row by row, just before the row is written, so that the page is still in the
/// processor's cache; as a join it cost a quarter of the statement. That its answer may be old is
/// no harm: versions only grow, and the guard, which is the WHERE of the conflict clause, asks the
/// same again under the row's lock.
///
/// The rows are locked in the order of the arrays, which is that of the keys: `unnest` reads its
/// elements out in storage order (PostgreSQL documentation, "Array Functions and Operators"), and
/// nothing here sorts or joins.
///
/// Answer: a row for each session written, none for one whose row holds all of it; or, if rows are
/// not asked for, one row with the array of the sessions written, and of those among them whose row
/// holds a part of a later stream than was sent. (To return all versions costs a sixth of the
/// statement.)
fn upsert(returning_rows: bool) -> String {
    let Columns { given, targets, values, sets } = Columns::new();
    let returning = if returning_rows {
        row_columns("(m.xmax = 0)", &format!("${}::boolean", given.len() + 1))
    } else {
        let number = |part: Part| given.len() + 1 + part as usize;
        let later = Part::ALL.map(|part| format!("m.{}_version > ${}", part.name(), number(part)));
        format!("m.session_id, ({}) IS TRUE AS of_later_stream", list(later, " OR "))
    };
    let upsert = format!(
        "INSERT INTO measurements AS m (
    {targets}
)
SELECT
    {values}
FROM (SELECT
    {given}
) given
WHERE coalesce((
    SELECT ({newer_than_held}) IS TRUE
    FROM measurements held WHERE held.session_id = given.session_id
), true)
ON CONFLICT (session_id) DO UPDATE SET
    {sets}
WHERE {newer_than_row}
RETURNING {returning}
",
        targets = list(targets, ",\n    "),
        values = list(values, ",\n    "),
        given = list(given, ",\n    "),
        newer_than_held = sql_any_part_newer("given.", "held."),
        sets = list(sets, ",\n    "),
        newer_than_row = sql_any_part_newer("excluded.", "m."),
    );
    if returning_rows {
        upsert
    } else {
        format!(
            "WITH written AS (\n{upsert})\nSELECT array_agg(session_id), array_agg(session_id) \
                FILTER (WHERE of_later_stream)\nFROM written\n"
        )
    }
}

/// The lists that an upsert is made of: a session's key, every column, the versions and the change
/// times, in the order of the parameters.
struct Columns {
    /// The parameters as columns, unpacked.
    given: Vec<String>,
    /// The columns of the table.
    targets: Vec<String>,
    /// What goes into them.
    values: Vec<String>,
    /// What becomes of them if the row is there: each part's are replaced if it is newer.
    sets: Vec<String>,
}

impl Columns {
    fn new() -> Self {
        let mut given = vec!["unnest($1::text[]) COLLATE \"C\" AS session_id".to_owned()];
        let mut targets = vec!["session_id".to_owned()];
        let mut values = vec!["session_id".to_owned()];
        let mut sets = Vec::new();
        let mut column = |part: Part, name: String, of: &str, collation: &str, cast: &str| {
            given.push(format!("unnest(${}::{of}){collation} AS {name}", given.len() + 1));
            values.push(format!("{name}{cast}"));
            let newer = sql_part_newer(part, "excluded.", "m.");
            sets.push(format!("{name} = CASE WHEN {newer} THEN excluded.{name} ELSE m.{name} END"));
            targets.push(name);
        };
        for Column { name, part, kind, .. } in COLUMNS.iter() {
            column(*part, name.clone(), parameter_type(*kind), "", cast(*kind));
        }
        for part in Part::ALL {
            column(part, format!("{}_version", part.name()), "text[]", " COLLATE \"C\"", "");
        }
        for part in Part::ALL {
            column(part, format!("{}_changed_at", part.name()), "timestamptz[]", "", "");
        }
        Self { given, targets, values, sets }
    }
}

/// Inserts the sessions that have no row, and leaves those that have one as they are.
///
/// Parameters: the keys, sorted; one array per column; the versions; the change times.
/// Answer: the versions of each row inserted.
fn insert_absent() -> String {
    let Columns { given, targets, values, .. } = Columns::new();
    format!(
        "INSERT INTO measurements AS m (
    {targets}
)
SELECT
    {values}
FROM (SELECT
    {given}
) given
ON CONFLICT (session_id) DO NOTHING
RETURNING m.session_id, {versions}
",
        targets = list(targets, ",\n    "),
        values = list(values, ",\n    "),
        given = list(given, ",\n    "),
        versions = list(Part::ALL.map(|part| format!("m.{}_version", part.name())), ", "),
    )
}

/// ONE statement: locks the rows in the order of their keys, compares the version of each part with
/// the one that was seen, and upserts the parts that have not moved.
///
/// Parameters: as those of [`insert_absent`], then the versions that were seen.
///
/// A part that has moved gets no version, and so neither the update nor its guard touches it. The
/// versions come from the locked rows, which PostgreSQL reads anew after it has waited for a lock
/// (PostgreSQL documentation, "Read Committed Isolation Level"); the statement's own snapshot may
/// be older. A session without a row is left out.
///
/// Answer: the versions of each row as it is afterwards, whether it was written or not.
fn upsert_unmoved() -> String {
    let Columns { mut given, targets, values, sets } = Columns::new();
    let version = |part: Part| format!("{}_version", part.name());
    let moved_out = |name: &String| {
        let part = Part::ALL.into_iter().find(|part| *name == version(*part));
        part.map_or_else(
            || format!("given.{name}"),
            |part| {
                let seen = format!("given.{}_seen", part.name());
                format!(
                    "CASE WHEN held.{name} IS NOT DISTINCT FROM {seen} THEN given.{name} END AS \
                        {name}"
                )
            },
        )
    };
    let unmoved = list(targets.iter().map(moved_out), ",\n    ");
    for part in Part::ALL {
        let number = given.len() + 1;
        given.push(format!("unnest(${number}::text[]) COLLATE \"C\" AS {}_seen", part.name()));
    }
    let of = |table: &str| list(Part::ALL.map(|part| format!("{table}{}", version(part))), ", ");
    let afterwards = Part::ALL.map(|part| {
        let version = version(part);
        format!(
            "CASE WHEN written.session_id IS NULL THEN held.{version} ELSE written.{version} END"
        )
    });
    format!(
        "WITH held AS MATERIALIZED (
SELECT session_id, {held}
FROM measurements WHERE session_id = ANY($1::text[])
ORDER BY session_id
FOR NO KEY UPDATE
), written AS (
INSERT INTO measurements AS m (
    {targets}
)
SELECT
    {values}
FROM (SELECT
    {unmoved}
FROM (SELECT
    {given}
) given JOIN held USING (session_id)
) unmoved
WHERE coalesce({held}) IS NOT NULL
ON CONFLICT (session_id) DO UPDATE SET
    {sets}
WHERE {newer_than_row}
RETURNING m.session_id, {returned}
)
SELECT held.session_id, {afterwards}
FROM held LEFT JOIN written USING (session_id)
",
        held = of(""),
        returned = of("m."),
        targets = list(targets, ",\n    "),
        values = list(values, ",\n    "),
        given = list(given, ",\n    "),
        sets = list(sets, ",\n    "),
        newer_than_row = sql_any_part_newer("excluded.", "m."),
        afterwards = list(afterwards, ",\n    "),
    )
}

#[cfg(test)]
mod tests {
    use super::{
        INSERT_ABSENT, READ, UPSERT, UPSERT_PENDING, UPSERT_RETURNING_ROWS, UPSERT_UNMOVED,
    };

    /// A change of the statement shows in review as SQL. `UPDATE_GOLDEN=1 cargo test` writes it
    /// anew.
    #[test]
    fn the_sql_is_the_golden_one() {
        let golden = [
            ("upsert.golden.sql", &*UPSERT),
            ("upsert_pending.golden.sql", &*UPSERT_PENDING),
            ("upsert_returning_rows.golden.sql", &*UPSERT_RETURNING_ROWS),
            ("read.golden.sql", &*READ),
            ("insert_absent.golden.sql", &*INSERT_ABSENT),
            ("upsert_unmoved.golden.sql", &*UPSERT_UNMOVED),
        ];
        for (name, sql) in golden {
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("src/store/read_model")
                .join(name);
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                std::fs::write(&path, sql).expect("the golden file can be written");
            }
            let expected = std::fs::read_to_string(&path).unwrap_or_default();
            // RDS Proxy pins a session to its connection for a longer statement (Amazon RDS User
            // Guide, "Avoiding pinning an RDS Proxy").
            assert!(sql.len() < 16 << 10, "{name}: {} bytes", sql.len());
            assert_eq!(*sql, expected, "{name}: run with UPDATE_GOLDEN=1 and read the difference");
        }
    }
}
