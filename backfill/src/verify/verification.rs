//! PostgreSQL: what each run of `verify` came to, in the table `verifications` of our database.

use projector::cause::sqlstate;
use projector::database::Database;
use projector::deadline::Deadline;
use projector::error::Error;
use sqlx::Arguments as _;
use sqlx::postgres::PgArguments;
use time::OffsetDateTime;

use crate::console;
use crate::retry::retry_transient;
use crate::statement::lacks_privilege;
use crate::verify::difference::{Kind, Tally};

/// What was compared with our rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// The rows of another database.
    Rows,
    /// The items of the two tables.
    Tables,
    /// The objects of the archive.
    Objects,
}

impl Comparison {
    /// The name in `verifications` and in the result.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rows => "rows",
            Self::Tables => "tables",
            Self::Objects => "objects",
        }
    }

    /// What it compares, in the plural.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Rows | Self::Objects => "sessions",
            Self::Tables => "items",
        }
    }
}

/// A row of `verifications`.
#[derive(Clone, Debug)]
pub(crate) struct Verification {
    pub(crate) comparison: Comparison,
    /// The other side, without credentials.
    pub(crate) against: String,
    /// By our database's clock; of exports, their time.
    pub(crate) started_at: OffsetDateTime,
    /// Whether every session was compared, from the first to the last.
    pub(crate) complete: bool,
    /// It compared only what changed after this time.
    pub(crate) since: Option<OffsetDateTime>,
    pub(crate) tally: Tally,
}

const SAVE: &str = "INSERT INTO verifications
    (comparison, against, started_at, complete, since, compared, missing, extra, older, content)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
RETURNING id";

/// Keeps what a run came to. A database that can only be read, such as a replica, keeps none, nor
/// does one in which the login may only read; that is said.
///
/// # Errors
/// If the row cannot be written for another reason.
pub(crate) async fn save(database: &Database, verification: &Verification) -> anyhow::Result<()> {
    let Verification { comparison, against, started_at, complete, since, tally } = verification;
    let arguments = || {
        let mut arguments = PgArguments::default();
        arguments.add(comparison.name())?;
        arguments.add(against.as_str())?;
        arguments.add(*started_at)?;
        arguments.add(*complete)?;
        arguments.add(*since)?;
        arguments.add(i64::try_from(tally.compared)?)?;
        for kind in Kind::ALL {
            arguments.add(i64::try_from(tally.of(kind))?)?;
        }
        Ok(arguments)
    };
    let saving = retry_transient("write to verifications", async || {
        match database.fetch(SAVE, arguments, Deadline::NONE).await {
            Err(Error::Database(error)) if is_read_only(&error) => Ok(Some(READ_ONLY)),
            Err(Error::Database(error)) if lacks_privilege(&error) => Ok(Some(NO_PRIVILEGE)),
            saved => saved.map(|_| None),
        }
    });
    if let Some(why) = saving.await? {
        console::line(&format!("no row in verifications keeps this result: {why}"));
    }
    Ok(())
}

const READ_ONLY: &str = "the database is read-only";
const NO_PRIVILEGE: &str =
    "the login may not write there (`backfill migrate --grant-backfill-to` grants it)";

/// SQLSTATE 25006 (PostgreSQL documentation, "PostgreSQL Error Codes").
fn is_read_only(error: &sqlx::Error) -> bool {
    sqlstate(error).as_deref() == Some("25006")
}
