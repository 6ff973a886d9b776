//! Another database with our schema: the other side of `verify --against` and `ready`, the source
//! of `merge`. It is only read, and may be a replica.

use anyhow::Context as _;
use projector::bind;
use projector::config::{ConfigError, DatabaseConfig, Login, parse_url};
use projector::database::Database;
use projector::deadline::Deadline;
use projector::error::Error;
use sqlx::Row as _;

use crate::retry::retry_transient;

/// The variable that names the peer if a flag does not: a password on a command line is seen by
/// everybody on the machine.
pub(crate) const VARIABLE: &str = "PEER_DATABASE_URL";

/// A database that is not ours.
pub(crate) struct Peer {
    pub(crate) database: Database,
    /// `host:port/database`, without credentials.
    pub(crate) name: String,
    /// The columns of its `measurements`.
    pub(crate) columns: Vec<String>,
}

const COLUMNS: &str = "SELECT attname::text FROM pg_attribute
WHERE attrelid = to_regclass('measurements') AND attnum > 0 AND NOT attisdropped
ORDER BY attname";

/// Tells a database from all others; a copy of its data directory is another server, which started
/// at another time.
const IDENTITY: &str = "SELECT current_database() || ' ' || pg_postmaster_start_time()::text";

/// Connects to the database that the flag's value names or, if the value is empty, [`VARIABLE`].
///
/// # Errors
/// [`ConfigError`] if the URL is missing or wrong, or names our own database, or a database without
/// `measurements`.
pub(crate) async fn connect(
    flag: &'static str,
    value: &str,
    ours: &Database,
) -> anyhow::Result<Peer> {
    let variable = if value.is_empty() { VARIABLE } else { flag };
    let wrong = |problem: String| ConfigError { variable, problem };
    let (database, name) = named(flag, value, ours.connections())?;
    let columns = columns(&database).await.with_context(|| format!("the peer {name}"))?;
    if columns.is_empty() {
        return Err(wrong(format!("names {name}, which has no table measurements")).into());
    }
    if identity(&database).await? == identity(ours).await? {
        return Err(wrong(format!("names {name}, which is the database of DATABASE_URL")).into());
    }
    Ok(Peer { database, name, columns })
}

/// The database that the flag's value names or, if the value is empty, [`VARIABLE`], and its name
/// without credentials. Connects to nothing yet.
///
/// # Errors
/// [`ConfigError`] if the URL is missing or wrong.
pub(crate) fn named(
    flag: &'static str,
    value: &str,
    connections: usize,
) -> Result<(Database, String), ConfigError> {
    let (variable, url) = match value {
        "" => (VARIABLE, std::env::var(VARIABLE).unwrap_or_default()),
        url => (flag, url.to_owned()),
    };
    let wrong = |problem: String| ConfigError { variable, problem };
    if url.is_empty() {
        let problem = "is not set: give postgres://USER:PASSWORD@HOST:5432/DATABASE";
        return Err(wrong(problem.to_owned()));
    }
    let url = parse_url(&url).map_err(wrong)?;
    let database_name = url.get_database().unwrap_or_else(|| url.get_username());
    let name = format!("{}:{}/{database_name}", url.get_host(), url.get_port());
    let config = DatabaseConfig { url: Some(url), login: Login::Url, connections };
    Ok((Database::new(config, None), name))
}

/// The columns of `measurements`, by name; none if there is no such table.
///
/// # Errors
/// If the database cannot be read.
async fn columns(database: &Database) -> anyhow::Result<Vec<String>> {
    texts(database, "read the columns of measurements", COLUMNS).await
}

async fn identity(database: &Database) -> anyhow::Result<Vec<String>> {
    texts(database, "tell the two databases apart", IDENTITY).await
}

async fn texts(database: &Database, what: &str, sql: &'static str) -> anyhow::Result<Vec<String>> {
    let rows = retry_transient(what, async || database.fetch(sql, bind![], Deadline::NONE).await);
    let texts = rows.await?.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>();
    Ok(texts.map_err(Error::Database)?)
}
