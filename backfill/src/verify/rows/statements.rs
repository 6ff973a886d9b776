//! Pure: the SQL by which one side is compared. A row's digest is made of text alone (md5 and
//! sums), so it is the same on every version of PostgreSQL.
//!
//! Every statement reads a bounded number of rows in the order of the key, and holds its snapshot
//! no longer than that.

use std::fmt::Write as _;

use projector::part::Part;

use crate::verify::rows::columns::{Column, Types, change_time_of, text_of, version_of};

/// All keys whose first 32 bits of md5 are below this: every session.
pub(crate) const ALL_SAMPLED: i64 = 1 << 32;

/// The statements of one side. Each text lives as long as the program, which makes them once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Statements {
    /// The next rows after a key, as chunks: last key, rows, rows compared, sum of their digests.
    pub(crate) lead: &'static str,
    /// The rows between two keys in the chunks of the other side: chunk, rows, rows compared, sum
    /// of digests.
    pub(crate) follow: &'static str,
    /// The rows between two keys: key, versions, digest of the values if the row is sampled.
    pub(crate) list: &'static str,
    /// Rows by key: key, versions.
    pub(crate) look: &'static str,
    /// The same, and a digest of each value.
    pub(crate) look_values: &'static str,
}

impl Statements {
    /// The statements that compare these columns, whose types are this side's; with `since` only
    /// rows that changed after the time in the last parameter.
    pub(crate) fn new(columns: &[Column], types: &Types, since: bool) -> Self {
        let text = |column: &Column| {
            let kind = types.get(&column.name).map_or("", String::as_str);
            text_of(&column.name, kind)
        };
        let texts: Vec<String> = columns.iter().map(text).collect();
        Self {
            lead: lead(&texts, since).leak(),
            follow: follow(&texts, since).leak(),
            list: list(&texts, since).leak(),
            look: look("").leak(),
            look_values: look(&values(&texts)).leak(),
        }
    }
}

/// Parameters: the key before the first, how many rows at most, how many per chunk, the sample, the
/// time.
fn lead(texts: &[String], since: bool) -> String {
    let digest = digest(texts, "$4", since.then_some("$5"));
    format!(
        "SELECT max(session_id), count(*), count(digest), coalesce(sum(digest), 0)::text
FROM (
    SELECT session_id, (row_number() OVER (ORDER BY session_id) - 1) / $3::bigint AS chunk,
        {digest} AS digest
    FROM (
        SELECT * FROM measurements WHERE session_id > $1 ORDER BY session_id LIMIT $2::bigint
    ) AS page
) AS digests
GROUP BY chunk ORDER BY chunk"
    )
}

/// Parameters: the key before the first, the last key, how many rows at most, what ends each chunk
/// but the last, the sample, the time.
fn follow(texts: &[String], since: bool) -> String {
    let digest = digest(texts, "$5", since.then_some("$6"));
    format!(
        "SELECT width_bucket(session_id COLLATE \"C\", $4::text[]) AS chunk, count(*), \
            count(digest),
    coalesce(sum(digest), 0)::text
FROM (
    SELECT session_id, {digest} AS digest
    FROM (
        SELECT * FROM measurements WHERE session_id > $1 AND session_id <= $2
        ORDER BY session_id LIMIT $3::bigint
    ) AS page
) AS digests
GROUP BY chunk"
    )
}

/// Parameters: the key before the first, the last key, how many rows at most, the sample, the time.
fn list(texts: &[String], since: bool) -> String {
    let versions = versions();
    let (sampled, values) = (sampled("$4"), all_values(texts));
    let changed = if since { format!("AND {}", changed("$5")) } else { String::new() };
    format!(
        "SELECT session_id, {versions}, CASE WHEN {sampled} THEN md5({values}) END
FROM measurements
WHERE session_id > $1 AND session_id <= $2 {changed}
ORDER BY session_id LIMIT $3::bigint"
    )
}

/// Parameter: the keys.
fn look(values: &str) -> String {
    let versions = versions();
    format!(
        "SELECT session_id, {versions}{values}\nFROM measurements WHERE session_id = \
            ANY($1::text[])"
    )
}

fn versions() -> String {
    Part::ALL.map(version_of).join(", ")
}

/// The first 64 bits of an md5 of key and versions and, if the row is sampled, of its values.
fn digest(texts: &[String], sample: &str, since: Option<&str>) -> String {
    let mut row = "session_id".to_owned();
    for part in Part::ALL {
        let _ = write!(row, " || ' ' || coalesce({}, '')", version_of(part));
    }
    let (sampled, values) = (sampled(sample), all_values(texts));
    let _ = write!(row, " || CASE WHEN {sampled} THEN ' ' || md5({values}) ELSE '' END");
    let digest = format!("('x' || left(md5({row}), 16))::bit(64)::bigint");
    match since {
        Some(since) => format!("CASE WHEN {} THEN {digest} END", changed(since)),
        None => digest,
    }
}

/// Whether the values are compared: the same sessions on both sides.
fn sampled(sample: &str) -> String {
    format!(
        "(CASE WHEN {sample}::bigint <= 0 THEN false WHEN {sample}::bigint >= {ALL_SAMPLED} THEN \
         true ELSE ('x' || left(md5(session_id), 8))::bit(32)::bigint < {sample}::bigint END)"
    )
}

/// Whether some part changed after a time, or at a time that nobody knows.
fn changed(since: &str) -> String {
    let of_part = |part| {
        let (version, time) = (version_of(part), change_time_of(part));
        format!("{version} IS NOT NULL AND coalesce({time} > {since}::timestamptz, true)")
    };
    format!("({})", Part::ALL.map(of_part).join(" OR "))
}

/// All values in one text: two rows have the same one only if all values are equal.
fn all_values(texts: &[String]) -> String {
    let text = |text: &String| format!("coalesce({text}, '-')");
    let texts: Vec<String> = texts.iter().map(text).collect();
    if texts.is_empty() { "''".to_owned() } else { texts.join(" || ',' || ") }
}

/// A digest of each value.
fn values(texts: &[String]) -> String {
    let digests: Vec<String> = texts.iter().map(|text| format!("md5({text})")).collect();
    format!(",\n    ARRAY[{}]::text[]", digests.join(", "))
}

/// What stands above this key and below every other key after it, so that a key that is equal to
/// the end of a chunk is in it: PostgreSQL's text holds no smaller character.
pub(crate) fn just_above(key: &str) -> String {
    format!("{key}\u{1}")
}
