//! Records that can never apply: stored whole, with the reason, so that they block nothing and
//! nothing is lost.
//!
//! The statement here must not fail for what a record holds, or the record would be stuck after
//! all: what PostgreSQL would not take is wrapped in what it takes. And a record counts as rejected
//! only when its row was seen: a trigger or a rule can swallow an insert without an error.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;

use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::{Arguments as _, Row as _};

use crate::bind;
use crate::change::{self, Tables};
use crate::database::Database;
use crate::deadline::Deadline;
use crate::error::{Consequence, Error};
use crate::kept::{self, escaped};
use crate::part::Part;
use crate::version::Version;

/// A record of the batch and why it is rejected.
#[derive(Debug)]
pub struct Rejection {
    /// The record's index in the batch.
    pub record_index: usize,
    /// Why, in one line, for `rejected_records`.
    pub reason: String,
    /// The same for the log, without values.
    pub logged: String,
}

/// A row that is there keeps all but its reason, which is the one of the last time. It names no
/// column of a later migration: a projector that is newer than its schema must be able to reject.
const STORE: &str = "INSERT INTO rejected_records AS stored
    (identity, table_name, stream_label, sequence_number, event_id, reason, record)
SELECT identity, table_name, stream_label, sequence_number, event_id, reason, record::json
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[])
    AS given (identity, table_name, stream_label, sequence_number, event_id, reason, record)
-- A redelivery that says the same writes nothing, and locks nothing.
WHERE NOT EXISTS (
    SELECT FROM rejected_records AS same
    WHERE same.identity = given.identity AND same.reason = given.reason)
ORDER BY identity COLLATE \"C\"
ON CONFLICT (identity) DO UPDATE SET reason = excluded.reason
WHERE stored.reason <> excluded.reason";

/// Asked for after the statement above has committed: which rows are there, and whether they are
/// discarded. In a schema without the column, the inner `discarded_at` is the one of `given`, which
/// is NULL: no row is discarded there.
const STORED: &str = "SELECT identity, (
    SELECT discarded_at FROM rejected_records AS stored WHERE stored.identity = given.identity
) IS NOT NULL AS discarded
FROM (SELECT identity, NULL::timestamptz AS discarded_at FROM unnest($1::text[]) AS ids (identity)) AS given
WHERE EXISTS (SELECT FROM rejected_records AS stored WHERE stored.identity = given.identity)";

/// Rows per statement; each may hold 400 KB.
const ROWS: usize = 100;
/// After this many rows in a row that failed alone, the rest is not tried.
const GIVE_UP_AFTER: u32 = 16;

/// A row of `rejected_records`, and whose it is.
struct Row {
    labels: Labels,
    reason: String,
    /// The records' indices in the batch: two deliveries of one record are one row.
    record_indices: Vec<usize>,
    escaped: bool,
}

/// What became of rejections.
#[derive(Debug, Default)]
pub struct Stored {
    /// The records whose rows are not there, by their index in the batch.
    pub failed: Vec<usize>,
    /// The records whose rows are discarded, by their index in the batch: somebody has dealt with
    /// them already.
    pub discarded: Vec<usize>,
    /// Why not; the first reason.
    pub error: Option<Error>,
}

/// An item of a table that can never apply.
#[derive(Debug)]
pub struct RejectedImage {
    /// The part that the item is.
    pub part: Part,
    /// The session.
    pub session_id: String,
    /// The item's JSON.
    pub json: Vec<u8>,
    /// Why, in one line.
    pub reason: String,
}

/// Which item a rejected image is: the end of an identity.
const IMAGE: &str = "/image";

impl RejectedImage {
    /// `TABLE/SESSION_ID/image`, of a scan `TABLE/SESSION_ID/SIDE/image`: one row per item, however
    /// often it is read.
    fn identity(&self, tables: &Tables) -> String {
        let (table, session_id) = (tables.of_part(self.part), &self.session_id);
        match self.part {
            Part::Session => format!("{table}/{session_id}{IMAGE}"),
            Part::Left | Part::Right => {
                format!("{table}/{session_id}/{}{IMAGE}", self.part.name())
            }
        }
    }
}

/// The part and the session of a rejected item, by its identity; `None` if it is the identity of a
/// record, or of another table.
#[must_use]
pub fn image_key(identity: &str, tables: &Tables) -> Option<(Part, String)> {
    let item = identity.strip_suffix(IMAGE)?;
    let of_table = |table: &str| item.strip_prefix(table)?.strip_prefix('/');
    if let Some(scan) = of_table(&tables.scans)
        && let Some((session_id, side)) = scan.split_once('/')
        && let Some(part) = Part::ALL.into_iter().find(|part| part.name() == side)
    {
        return Some((part, session_id.to_owned()));
    }
    let session_id = of_table(&tables.sessions)?;
    // No session id has a slash.
    (!session_id.contains('/')).then(|| (Part::Session, session_id.to_owned()))
}

/// Stores items in `rejected_records`, one row per item; its reason is the last one.
///
/// # Errors
/// As [`store`], and [`Error::RejectionNotStored`] if some are not there afterwards.
pub async fn store_images(
    database: &Database,
    tables: &Tables,
    images: &[RejectedImage],
    deadline: Deadline,
) -> Result<(), Error> {
    let rejection = |(record_index, image): (usize, &RejectedImage)| Row {
        labels: Labels {
            identity: image.identity(tables),
            table_name: Some(tables.of_part(image.part).to_owned()),
            stream_label: None,
            sequence_number: None,
            event_id: None,
            record: kept::encode(&image.json),
        },
        reason: storable_text(&image.reason).into_owned(),
        record_indices: vec![record_index],
        escaped: false,
    };
    let rows: BTreeMap<String, Row> = images
        .iter()
        .enumerate()
        .map(rejection)
        .map(|row| (row.labels.identity.clone(), row))
        .collect();
    let records: Vec<&[u8]> = images.iter().map(|image| image.json.as_slice()).collect();
    let stored = store_rows(database, &records, rows, deadline).await?;
    match stored.error {
        Some(error) => Err(error),
        None if !stored.failed.is_empty() => {
            Err(Error::RejectionNotStored { records: stored.failed.len() })
        }
        None => Ok(()),
    }
}

/// Stores the records in `rejected_records`: one row per record, however often it is delivered; the
/// row's reason is the last one. A record that cannot be stored keeps no other out, and a slow
/// database takes fewer at a time.
///
/// # Errors
/// Only what is [`Consequence::Fatal`].
pub async fn store<R: AsRef<[u8]>>(
    database: &Database,
    records: &[R],
    rejections: &[Rejection],
    deadline: Deadline,
) -> Result<Stored, Error> {
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    for rejection in rejections {
        let labels = Labels::of(records[rejection.record_index].as_ref());
        let reason = || storable_text(&rejection.reason).into_owned();
        let row = rows.entry(labels.identity.clone()).or_insert_with(|| Row {
            labels,
            reason: reason(),
            record_indices: Vec::new(),
            escaped: false,
        });
        row.record_indices.push(rejection.record_index);
    }
    store_rows(database, records, rows, deadline).await
}

/// Stores rows, by their identity.
async fn store_rows<R: AsRef<[u8]>>(
    database: &Database,
    records: &[R],
    rows: BTreeMap<String, Row>,
    deadline: Deadline,
) -> Result<Stored, Error> {
    let mut rows = rows.into_values();
    let mut pieces = VecDeque::new();
    while rows.len() > 0 {
        pieces.push_back(rows.by_ref().take(ROWS).collect::<Vec<Row>>());
    }
    let mut stored = Stored::default();
    let mut failed_alone = 0;
    while let Some(mut piece) = pieces.pop_front() {
        let error = match put(database, &piece, deadline).await {
            Ok(found) => {
                failed_alone = 0;
                let state = |row: &Row| found.get(&row.labels.identity).copied();
                let discarded = piece.iter().filter(|row| state(row) == Some(true));
                stored.discarded.extend(discarded.flat_map(|row| &row.record_indices));
                let missing: Vec<&Row> = piece.iter().filter(|row| state(row).is_none()).collect();
                if !missing.is_empty() {
                    let records = missing.len();
                    stored.error.get_or_insert(Error::RejectionNotStored { records });
                    stored.failed.extend(missing.iter().flat_map(|row| &row.record_indices));
                }
                continue;
            }
            Err(error) => error,
        };
        match error.consequence() {
            Consequence::Fatal => return Err(error),
            // A database of another encoding than UTF-8 has not every character. ASCII they all
            // have.
            Consequence::Reject if piece.iter().any(|row| !row.escaped) => {
                for row in &mut piece {
                    row.escape(records[row.record_indices[0]].as_ref());
                }
                pieces.push_front(piece);
                continue;
            }
            Consequence::Split | Consequence::Reject if piece.len() > 1 => {
                let rest = piece.split_off(piece.len() / 2);
                pieces.push_front(rest);
                pieces.push_front(piece);
                continue;
            }
            Consequence::Split | Consequence::Reject => failed_alone += 1,
            Consequence::Retry | Consequence::Reconnect => failed_alone = GIVE_UP_AFTER,
        }
        stored.error.get_or_insert(error);
        stored.failed.extend(piece.iter().flat_map(|row| &row.record_indices));
        if failed_alone >= GIVE_UP_AFTER {
            stored.failed.extend(pieces.drain(..).flatten().flat_map(|row| row.record_indices));
        }
    }
    Ok(stored)
}

/// Inserts the rows, and returns the identities of those that are there afterwards, and whether
/// each is discarded.
async fn put(
    database: &Database,
    rows: &[Row],
    deadline: Deadline,
) -> Result<BTreeMap<String, bool>, Error> {
    let arguments = || {
        let column = |of: fn(&Row) -> Option<&str>| rows.iter().map(of).collect::<Vec<_>>();
        let mut arguments = PgArguments::default();
        arguments.add(column(|row| Some(&row.labels.identity)))?;
        arguments.add(column(|row| row.labels.table_name.as_deref()))?;
        arguments.add(column(|row| row.labels.stream_label.as_deref()))?;
        arguments.add(column(|row| row.labels.sequence_number.as_deref()))?;
        arguments.add(column(|row| row.labels.event_id.as_deref()))?;
        arguments.add(column(|row| Some(&row.reason)))?;
        arguments.add(column(|row| Some(&row.labels.record)))?;
        Ok(arguments)
    };
    database.fetch(STORE, arguments, deadline).await?;
    let identities = bind![rows.iter().map(|row| row.labels.identity.as_str()).collect::<Vec<_>>()];
    let found = database.fetch(STORED, identities, deadline).await?;
    let state = |row: &PgRow| Ok((row.try_get(0)?, row.try_get(1)?));
    found.iter().map(state).collect::<Result<_, _>>().map_err(Error::Database)
}

/// The sequence number of a record that may be malformed, where one can be made out.
#[must_use]
pub fn sequence_number(record: &[u8]) -> Option<String> {
    let json: Json = serde_json::from_slice(record).ok()?;
    let sequence_number = json.pointer("/dynamodb/SequenceNumber")?.as_str()?;
    Version::new("label", sequence_number).ok()?;
    Some(sequence_number.to_owned())
}

/// The bytes of a record that is kept in the row with this identity. Earlier versions kept a record
/// that is a JSON string, or `{"base64": ...}`, as it is; its digest distinguishes it from what we
/// keep in these forms.
#[must_use]
pub fn record_of(identity: &str, kept: &str) -> Vec<u8> {
    let record = kept::decode(kept);
    if identity != digest(&record) && identity == digest(kept.as_bytes()) {
        return kept.as_bytes().to_vec();
    }
    record
}

impl Row {
    fn escape(&mut self, record: &[u8]) {
        self.escaped = true;
        self.labels.escape(record);
        self.reason = escaped(&self.reason);
    }
}

/// What can be made out of a malformed record, in a form that PostgreSQL takes.
#[derive(Debug, PartialEq, Eq)]
struct Labels {
    /// What makes two deliveries the same record.
    identity: String,
    table_name: Option<String>,
    stream_label: Option<String>,
    sequence_number: Option<String>,
    event_id: Option<String>,
    record: String,
}

impl Labels {
    fn of(record: &[u8]) -> Self {
        let json: Option<Json> = serde_json::from_slice(record).ok();
        let member = |pointer: &str| {
            let text = json.as_ref()?.pointer(pointer)?.as_str()?;
            Some(storable_text(text).into_owned())
        };
        let arn = member("/eventSourceARN");
        let stream = arn.as_deref().and_then(change::stream_of);
        let sequence_number = member("/dynamodb/SequenceNumber");
        let version =
            stream.zip(sequence_number.as_deref()).and_then(|((table, label), sequence_number)| {
                Some(format!("{table}/{}", Version::new(label, sequence_number).ok()?))
            });
        Self {
            // An index entry may not be larger than 2704 bytes.
            identity: version
                .filter(|identity| identity.len() <= 512)
                .unwrap_or_else(|| digest(record)),
            table_name: stream.map(|(table, _)| table.to_owned()),
            stream_label: stream.map(|(_, label)| label.to_owned()),
            sequence_number,
            event_id: member("/eventID"),
            record: kept::encode(record),
        }
    }

    /// The same in ASCII; a label shows the escapes.
    fn escape(&mut self, original: &[u8]) {
        let Self { identity, table_name, stream_label, sequence_number, event_id, record } = self;
        *identity = escaped(identity);
        *record = kept::encode_ascii(original);
        for label in [table_name, stream_label, sequence_number, event_id].into_iter().flatten() {
            *label = escaped(label);
        }
    }
}

fn digest(record: &[u8]) -> String {
    let mut text = "sha256/".to_owned();
    for byte in Sha256::digest(record) {
        write!(text, "{byte:02x}").expect("a string takes all");
    }
    text
}

/// A `text` column takes every character but NUL.
fn storable_text(text: &str) -> Cow<'_, str> {
    if text.contains('\0') {
        Cow::Owned(text.replace('\0', "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

#[cfg(test)]
mod tests {
    use super::{Labels, RejectedImage, image_key, record_of};
    use crate::change::Tables;
    use crate::part::Part;

    const ARN: &str = "arn:aws:dynamodb:eu-central-1:1:table/scans/stream/2026-11-22T00:00:00.000";

    #[test]
    fn a_record_is_the_same_however_its_json_is_laid_out() {
        let a = format!(r#"{{"eventSourceARN":"{ARN}","dynamodb":{{"SequenceNumber":"00111"}}}}"#);
        let b =
            format!(r#"{{ "dynamodb": {{"SequenceNumber": "111"}}, "eventSourceARN": "{ARN}" }}"#);
        let (a, b) = (Labels::of(a.as_bytes()), Labels::of(b.as_bytes()));
        assert_eq!(a.identity, b.identity);
        assert_eq!(
            a.identity,
            "scans/2026-11-22T00:00:00.000/0000000000000000000000000000000000000111"
        );
        assert_eq!(a.table_name.as_deref(), Some("scans"));
    }

    #[test]
    fn what_is_no_json_is_known_by_its_digest() {
        let not_json = Labels::of(b"{\"a\0");
        assert_eq!(not_json.record, r#""{\"a\u0000""#);
        assert!(not_json.identity.starts_with("sha256/"));
    }

    #[test]
    fn escaping_a_row_leaves_its_identity_and_its_record() {
        let record = r#"{"eventID":"é😀","a":"\n\u00e9"}"#;
        let mut labels = Labels::of(record.as_bytes());
        let identity = labels.identity.clone();
        labels.escape(record.as_bytes());
        assert!(
            labels.record.is_ascii() && labels.event_id.as_deref() == Some("\\u00e9\\ud83d\\ude00")
        );
        assert_eq!(labels.identity, identity);
        assert_eq!(record_of(&identity, &labels.record), record.as_bytes());
    }

    #[test]
    fn what_earlier_versions_kept_comes_back_too() {
        // As it was, or in one of the two forms: the identity decides.
        for record in [r#""abc""#, r#"{"base64":"AAAA"}"#] {
            let identity = Labels::of(record.as_bytes()).identity;
            assert_eq!(record_of(&identity, record), record.as_bytes());
        }
        assert_eq!(record_of(&Labels::of(b"abc").identity, r#""abc""#), b"abc");
        assert_eq!(record_of(&Labels::of(b"\xff").identity, r#"{"base64":"/w=="}"#), b"\xff");
    }

    #[test]
    fn the_identity_of_an_item_names_its_key_and_that_of_a_record_does_not() {
        let tables = |sessions: &str, scans: &str| Tables {
            sessions: sessions.to_owned(),
            scans: scans.to_owned(),
        };
        for tables in [tables("sessions", "scans"), tables("a", "a.b"), tables("a.b", "a")] {
            for part in Part::ALL {
                let image = RejectedImage {
                    part,
                    session_id: "s.1-x_".to_owned(),
                    json: Vec::new(),
                    reason: String::new(),
                };
                let key = image_key(&image.identity(&tables), &tables);
                assert_eq!(key, Some((part, "s.1-x_".to_owned())), "{tables:?}");
            }
        }
        let tables = tables("sessions", "scans");
        for other in ["scans/2026-11-22T00:00:00.000/0001", "other/s1/image", "sha256/ab"] {
            assert_eq!(image_key(other, &tables), None);
        }
    }

    #[test]
    fn a_nul_in_a_label_is_replaced() {
        let record = br#"{"eventID":"a\u0000b"}"#;
        assert_eq!(Labels::of(record).event_id.as_deref(), Some("a\u{fffd}b"));
    }
}
