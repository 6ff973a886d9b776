//! PostgreSQL: the parts of rows that changed since a time, page by page in the order of the keys.
//! A part whose change has no creation time may have changed at any time.

use projector::apply::Pace;
use projector::bind;
use projector::database::Database;
use projector::error::Error;
use projector::part::Part;
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use time::OffsetDateTime;

use crate::items::Key;
use crate::retry::retry_transient;
use crate::statement;

/// At most this many rows are read at once.
const PAGE: usize = 10_000;

/// Parameters: the last key of the page before; how many rows; since when. The page's last row
/// comes too, whatever it holds: the next page begins after it. Each part is one bit.
const NEXT: &str = "WITH page AS MATERIALIZED (
    SELECT session_id,
        (session_changed_at >= $3 OR session_changed_at IS NULL AND session_version IS NOT NULL)
            AS session,
        (left_changed_at >= $3 OR left_changed_at IS NULL AND left_version IS NOT NULL) AS \"left\",
        (right_changed_at >= $3 OR right_changed_at IS NULL AND right_version IS NOT NULL)
            AS \"right\"
    FROM measurements WHERE session_id > $1 ORDER BY session_id LIMIT $2
)
SELECT session_id,
    coalesce(session, false)::int + 2 * coalesce(\"left\", false)::int
        + 4 * coalesce(\"right\", false)::int
FROM page
WHERE session OR \"left\" OR \"right\" OR session_id = (SELECT max(session_id) FROM page)
ORDER BY session_id";

/// All rows, from the first.
pub(super) struct ChangedRows<'a> {
    database: &'a Database,
    pace: Pace,
    since: OffsetDateTime,
    last: String,
}

impl<'a> ChangedRows<'a> {
    /// The parts that changed at this time or later.
    pub(super) fn new(database: &'a Database, since: OffsetDateTime) -> Self {
        Self { database, pace: Pace::new(PAGE), since, last: String::new() }
    }

    /// The changed parts among some more rows; `None` after the last ones.
    ///
    /// # Errors
    /// If the rows cannot be read.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<Vec<Key>>> {
        let Self { database, pace, since, last } = self;
        let reading = retry_transient("read the keys of changed rows", async || {
            let arguments = |limit: usize| bind![last.as_str(), i64::try_from(limit)?, *since]();
            // Boxed: the compiler gives up on the depth of its type.
            Box::pin(statement::page(database, pace, NEXT, arguments)).await
        });
        let (_, rows) = reading.await?;
        let mut keys = Vec::new();
        for row in &rows {
            let (session_id, changed) = decode(row).map_err(Error::Database)?;
            keys.extend(changed.map(|part| (part, session_id.clone())));
            self.last = session_id;
        }
        Ok((!rows.is_empty()).then_some(keys))
    }
}

fn decode(row: &PgRow) -> Result<(String, impl Iterator<Item = Part> + use<>), sqlx::Error> {
    let bits: i32 = row.try_get(1)?;
    let changed = Part::ALL.into_iter().filter(move |part| bits >> (*part as usize) & 1 == 1);
    Ok((row.try_get(0)?, changed))
}
