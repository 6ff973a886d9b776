//! PostgreSQL: which parts every row of a range holds, page by page in the order of the keys. It
//! fetches no values.

use std::sync::LazyLock;

use projector::apply::Pace;
use projector::database::Database;
use projector::error::Error;
use projector::part::{Part, PerPart};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::{Arguments as _, Row as _};
use time::OffsetDateTime;

use crate::retry::retry_transient;
use crate::statement;

/// At most this many rows are read at once.
const PAGE: usize = 10_000;

/// Parameters: the last key of the page before; how many rows; since when a change is recent; the
/// attributes that hold the time to live of sessions and of scans, or NULL; and of
/// [`NEXT_OF_RANGE`] the last key of the range. Each part is two bits: it is there, and it changed
/// recently.
const SELECT: &str = "SELECT session_id,
    (user_id IS NOT NULL)::int
        + 2 * (left_scanned_at IS NOT NULL)::int
        + 4 * (right_scanned_at IS NOT NULL)::int
        + 8 * coalesce(session_changed_at >= $3, false)::int
        + 16 * coalesce(left_changed_at >= $3, false)::int
        + 32 * coalesce(right_changed_at >= $3, false)::int,
    session_attributes ->> $4::text,
    left_attributes ->> $5::text,
    right_attributes ->> $5::text
FROM measurements WHERE session_id > $1";

static NEXT: LazyLock<String> = LazyLock::new(|| format!("{SELECT} ORDER BY session_id LIMIT $2"));
/// Another text, not a parameter that may be NULL: an index is read no further than it has to be.
static NEXT_OF_RANGE: LazyLock<String> =
    LazyLock::new(|| format!("{SELECT} AND session_id <= $6 ORDER BY session_id LIMIT $2"));

/// What a row says of one part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PartState {
    pub(crate) present: bool,
    /// It was written, or removed, since the run began.
    pub(crate) recent: bool,
    /// What the attribute of the table's time to live holds.
    pub(crate) ttl: Option<String>,
}

/// A row without its values.
#[derive(Clone, Debug)]
pub(crate) struct RowKeys {
    pub(crate) session_id: String,
    pub(crate) parts: PerPart<PartState>,
}

/// Which rows: those of the sessions after one, up to another or to the last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RowRange {
    pub(crate) after: String,
    pub(crate) through: Option<String>,
}

/// The rows of a range, from the first.
pub(crate) struct Sweep<'a> {
    database: &'a Database,
    pace: Pace,
    recent_since: OffsetDateTime,
    /// Of sessions and of scans.
    ttl_attributes: &'a [Option<String>; 2],
    range: RowRange,
}

impl<'a> Sweep<'a> {
    pub(crate) fn new(
        database: &'a Database,
        recent_since: OffsetDateTime,
        ttl_attributes: &'a [Option<String>; 2],
        range: RowRange,
    ) -> Self {
        Self { database, pace: Pace::new(PAGE), recent_since, ttl_attributes, range }
    }

    /// The next rows; none after the last one. A call that is dropped is made again by the next.
    ///
    /// # Errors
    /// If the rows cannot be read.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Vec<RowKeys>> {
        let Self { database, pace, recent_since, ttl_attributes, range } = self;
        let sql = if range.through.is_some() { &NEXT_OF_RANGE } else { &NEXT };
        let arguments = |limit| {
            let mut arguments = PgArguments::default();
            arguments.add(range.after.as_str())?;
            arguments.add(i64::try_from(limit)?)?;
            arguments.add(*recent_since)?;
            for attribute in *ttl_attributes {
                arguments.add(attribute.as_deref())?;
            }
            if let Some(through) = &range.through {
                arguments.add(through.as_str())?;
            }
            Ok(arguments)
        };
        let reading = retry_transient("read the keys of rows", async || {
            // Boxed: the compiler gives up on the depth of its type.
            Box::pin(statement::page(database, pace, sql.as_str(), arguments)).await
        });
        let (_, rows) = reading.await?;
        let rows = rows.iter().map(decode).collect::<Result<Vec<_>, _>>();
        let rows = rows.map_err(Error::Database)?;
        if let Some(row) = rows.last() {
            self.range.after.clone_from(&row.session_id);
        }
        Ok(rows)
    }
}

fn decode(row: &PgRow) -> Result<RowKeys, sqlx::Error> {
    let bits: i32 = row.try_get(1)?;
    let mut parts = PerPart::from_fn(|part| PartState {
        present: bits >> (part as usize) & 1 == 1,
        recent: bits >> (3 + part as usize) & 1 == 1,
        ttl: None,
    });
    for (index, part) in Part::ALL.into_iter().enumerate() {
        parts[part].ttl = row.try_get(2 + index)?;
    }
    Ok(RowKeys { session_id: row.try_get(0)?, parts })
}
