//! PostgreSQL: what rows hold of given parts. Of a mesh only its MD5 is fetched, which the server
//! computes.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::LazyLock;

use projector::apply::Pace;
use projector::database::Database;
use projector::error::Error;
use projector::measurement::{COLUMNS, ColumnKind, Document, Value};
use projector::part::{Part, PerPart};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::{Arguments as _, Row as _};
use time::OffsetDateTime;

use crate::compare_tables::verdict::Held;
use crate::retry::retry_transient;
use crate::statement;

/// Where [`Held::document`] starts among the columns of the statement.
const FIRST_COLUMN: usize = 3;

static STATEMENTS: LazyLock<PerPart<String>> = LazyLock::new(|| PerPart::from_fn(statement_of));

/// Parameters: the keys; the name of the attribute that holds the time to live, or NULL.
fn statement_of(part: Part) -> String {
    let name = part.name();
    let mut sql = format!("SELECT session_id, {name}_version, {name}_attributes ->> $2::text");
    for column in COLUMNS.iter().filter(|column| column.part == part) {
        let name = &column.name;
        match column.kind {
            ColumnKind::Text | ColumnKind::Timestamp => write!(sql, ", {name}"),
            ColumnKind::Millimetres | ColumnKind::Attributes => write!(sql, ", {name}::text"),
            ColumnKind::Bytes => write!(sql, ", md5({name})"),
        }
        .expect("a string takes all");
    }
    sql + "\nFROM measurements WHERE session_id = ANY($1::text[])"
}

/// What the rows of these sessions hold of the part; a session without a row is left out.
///
/// # Errors
/// If the rows cannot be read.
pub(crate) async fn held(
    database: &Database,
    pace: &mut Pace,
    (part, ttl_attribute): (Part, Option<&str>),
    session_ids: &[&str],
) -> anyhow::Result<HashMap<String, Held>> {
    let sql = STATEMENTS[part].as_str();
    let mut found = HashMap::with_capacity(session_ids.len());
    let mut rest = session_ids;
    while !rest.is_empty() {
        let arguments = |limit: usize| {
            let mut arguments = PgArguments::default();
            arguments.add(&rest[..limit.min(rest.len())])?;
            arguments.add(ttl_attribute)?;
            Ok(arguments)
        };
        let reading = retry_transient("read rows", async || {
            // Boxed: the compiler gives up on the depth of its type.
            Box::pin(statement::page(database, pace, sql, arguments)).await
        });
        let (limit, rows) = reading.await?;
        for row in &rows {
            let (session_id, held) = decode(part, row).map_err(Error::Database)?;
            found.insert(session_id, held);
        }
        rest = &rest[limit.min(rest.len())..];
    }
    Ok(found)
}

fn decode(part: Part, row: &PgRow) -> Result<(String, Held), sqlx::Error> {
    let mut document = Document::with_capacity(part.fields().len());
    for (index, field) in part.fields().iter().enumerate() {
        let index = FIRST_COLUMN + index;
        document.push(match field.kind {
            ColumnKind::Timestamp => {
                row.try_get::<Option<OffsetDateTime>, _>(index)?.map(Value::Timestamp)
            }
            ColumnKind::Text
            | ColumnKind::Millimetres
            | ColumnKind::Attributes
            | ColumnKind::Bytes => row.try_get::<Option<String>, _>(index)?.map(Value::Text),
        });
    }
    // As the generated column `complete` does, a part is there if its first required column is.
    let first = part.fields().iter().position(|field| field.required);
    let present = first.is_some_and(|first| document[first].is_some());
    let held = Held {
        version: row.try_get(1)?,
        ttl: row.try_get(2)?,
        document: present.then_some(document),
    };
    Ok((row.try_get(0)?, held))
}
