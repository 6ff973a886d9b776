//! The database: login, route, TLS, schema, privileges, encoding, time limits, clock. A few
//! statements over one connection, as the projector makes it; [`judge`] says what their answers
//! come to.

mod judge;

use std::time::{Duration, Instant};

use projector::bind;
use projector::cause::{Message, REACH_DATABASE};
use projector::config::Config;
use projector::database::Database;
use projector::deadline::Deadline;
use projector::error::{self, Error};
use projector::pending_objects;
use projector::start;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::{Arguments as _, FromRow, Row as _};
use time::OffsetDateTime;
use tokio::time::timeout;

use self::judge::{Facts, SchemaFacts};
use super::clock;
use super::finding::{AGAIN, Finding, LIMIT, Verdict};

use crate::commands::migrate::changes::Changes;
use crate::commands::migrate::grants::{self, LACKING};
use crate::commands::migrate::schema::{self, Applied};
use crate::repair::lease;

/// A table cannot be read: another check says why.
const NOT_KNOWN: &str = "not known: see the schema and the privileges above";

/// The checks that need a login, in their order.
const AFTER_LOGIN: [&str; 10] = [
    "database route",
    "database TLS",
    "database role",
    "database encoding",
    "database limits",
    "database schema",
    "database privileges",
    "pending objects",
    "repair leases",
    "clock: database",
];

const FACTS: &str = "SELECT current_user::text AS login, current_database()::text AS name,
    current_setting('server_version') AS version, current_setting('server_encoding') AS encoding,
    pg_is_in_recovery() AS standby, current_setting('transaction_read_only') = 'on' AS read_only,
    current_setting('statement_timeout') AS statement_timeout,
    current_setting('lock_timeout') AS lock_timeout,
    current_setting('synchronous_commit') AS synchronous_commit, clock_timestamp() AS clock,
    (SELECT s.version || ' ' || s.cipher FROM pg_stat_ssl s WHERE s.pid = pg_backend_pid() AND s.ssl) AS tls";

const TABLES: &str = "SELECT
    coalesce(has_table_privilege(to_regclass('_sqlx_migrations')::oid, 'SELECT'), true) AS readable,
    to_regclass('_sqlx_migrations') IS NOT NULL AS ledger,
    ARRAY(SELECT name FROM unnest($1::text[]) AS given (name) WHERE to_regclass(name) IS NULL) AS missing";

const MISSING: &str = "SELECT ARRAY(SELECT DISTINCT name FROM unnest($1::text[]) AS given (name)
    WHERE to_regclass(name) IS NULL ORDER BY name)";

/// Checks the database. The configuration makes the connection, so that it is the one that a run
/// would have.
pub(super) async fn check(config: Config) -> Vec<Finding> {
    let database_config = config.database.clone();
    let start = Instant::now();
    let database = match timeout(LIMIT, start::projector_with_credentials(config)).await {
        Ok(Ok(projector)) => projector.database,
        Ok(Err(_)) | Err(_) => {
            let detail = "the login needs AWS (DATABASE_SECRET_ARN or DATABASE_AUTH)";
            let verdict = Verdict::fails(detail, "do what the AWS checks below say");
            return not_logged_in(verdict, start.elapsed());
        }
    };
    let asked = OffsetDateTime::now_utc();
    let facts = match facts(&database).await {
        Ok(facts) => facts,
        Err(verdict) => return not_logged_in(verdict, start.elapsed()),
    };
    let took = start.elapsed();
    let here = asked + (OffsetDateTime::now_utc() - asked) / 2;
    let between = database.between();
    let verdicts = [
        ("database login", judge::login(&facts, &database_config)),
        ("database route", judge::route(between)),
        ("database TLS", judge::tls(&facts, judge::ssl_mode(&database_config), between)),
        ("database role", judge::role(&facts)),
        ("database encoding", judge::encoding(&facts)),
        ("database limits", judge::limits(&facts)),
    ];
    let mut findings: Vec<Finding> =
        verdicts.into_iter().map(|(check, verdict)| verdict.of(check, took)).collect();
    let start = Instant::now();
    let schema = within(schema(&database)).await;
    findings.push(schema.of("database schema", start.elapsed()));
    let start = Instant::now();
    let privileges = within(privileges(&database, &facts.login)).await;
    findings.push(privileges.of("database privileges", start.elapsed()));
    let start = Instant::now();
    findings.push(pending(&database).await.of("pending objects", start.elapsed()));
    let start = Instant::now();
    findings.push(leases(&database).await.of("repair leases", start.elapsed()));
    let apart =
        clock::judge("the database's", facts.clock - here, "of this machine, or of the database");
    findings.push(apart.of("clock: database", took));
    findings
}

/// The login failed, and the rest cannot be known.
fn not_logged_in(verdict: Verdict, took: Duration) -> Vec<Finding> {
    let unknown = AFTER_LOGIN
        .map(|check| Verdict::unknown("not known without a login").of(check, Duration::ZERO));
    [verdict.of("database login", took)].into_iter().chain(unknown).collect()
}

/// The same if the settings of the database are wrong.
pub(super) fn not_configured() -> Vec<Finding> {
    not_logged_in(Verdict::unknown("not checked: see the settings above"), Duration::ZERO)
}

fn silent() -> Verdict {
    Verdict::fails(format!("no answer within {} s", LIMIT.as_secs()), REACH_DATABASE)
}

async fn within(check: impl Future<Output = Result<Verdict, Error>>) -> Verdict {
    match timeout(LIMIT, check).await {
        Ok(Ok(verdict)) => verdict,
        Ok(Err(error)) => trouble(&error),
        Err(_) => silent(),
    }
}

async fn facts(database: &Database) -> Result<Facts, Verdict> {
    let none = bind![];
    let rows = timeout(LIMIT, database.fetch(FACTS, none, Deadline::NONE)).await;
    let row = first(rows.map_err(|_| silent())?.map_err(|error| trouble(&error))?);
    row.and_then(|row| Facts::from_row(&row).map_err(Error::Database))
        .map_err(|error| trouble(&error))
}

fn first(rows: Vec<PgRow>) -> Result<PgRow, Error> {
    rows.into_iter().next().ok_or(Error::Database(sqlx::Error::RowNotFound))
}

fn trouble(error: &Error) -> Verdict {
    let text = error.to_string();
    let message = error.message().unwrap_or_else(|| Message::new(text.clone()));
    let chain = error::chain(error);
    let source = chain.strip_prefix(&text).unwrap_or_default();
    // Who says nothing of a remedy and did not answer cannot be reached; of anything else that
    // would be a guess.
    let otherwise = if error.timed_out() { REACH_DATABASE } else { AGAIN };
    let remedy = message.remedy.unwrap_or(otherwise.into());
    Verdict::fails(format!("{}{source}", message.what), remedy)
}

async fn schema(database: &Database) -> Result<Verdict, Error> {
    let all: Vec<_> = schema::MIGRATOR.iter().collect();
    let names = Changes::of(&all).tables();
    let arguments = || -> Result<PgArguments, BoxDynError> {
        let mut arguments = PgArguments::default();
        arguments.add(&names)?;
        Ok(arguments)
    };
    let row = first(database.fetch(TABLES, arguments, Deadline::NONE).await?)?;
    let facts = SchemaFacts::from_row(&row).map_err(Error::Database)?;
    let mut applied = Vec::new();
    if facts.ledger && facts.readable {
        let none = bind![];
        for row in database.fetch(schema::LEDGER, none, Deadline::NONE).await? {
            applied.push(Applied::from_row(&row).map_err(Error::Database)?);
        }
    }
    Ok(judge::schema(&facts, &applied))
}

/// How many objects the commands have left for later. Some are no fault: the next run writes them.
async fn pending(database: &Database) -> Verdict {
    match timeout(LIMIT, pending_objects::count(database)).await {
        Ok(Ok(0)) => Verdict::works("none"),
        Ok(Ok(count)) => Verdict::works(format!(
            "{count}: a run that is under way writes them at its end, or else `backfill objects \
             --pending` does"
        )),
        Ok(Err(_)) | Err(_) => Verdict::unknown(NOT_KNOWN),
    }
}

/// Who repairs by slices. That is no fault, but `repair`, `merge` and `redrive` refuse meanwhile.
async fn leases(database: &Database) -> Verdict {
    match timeout(LIMIT, lease::standing(database)).await {
        Ok(Ok(leases)) => match leases.first() {
            None => Verdict::works("none"),
            Some(lease) if lease.is_alive => Verdict::works(format!(
                "{}: `repair`, `merge` and `redrive` refuse to run until it ends",
                lease.name()
            )),
            Some(lease) => Verdict::works(format!(
                "{}: it is dead, and the next `repair`, `merge` or `redrive` ends it",
                lease.name()
            )),
        },
        Ok(Err(_)) | Err(_) => Verdict::unknown(NOT_KNOWN),
    }
}

async fn privileges(database: &Database, login: &str) -> Result<Verdict, Error> {
    let (tables, privileges) = grants::pairs(grants::BACKFILL);
    let arguments = || -> Result<PgArguments, BoxDynError> {
        let mut arguments = PgArguments::default();
        arguments.add(&tables)?;
        arguments.add(&privileges)?;
        arguments.add(false)?;
        Ok(arguments)
    };
    let needed = || -> Result<PgArguments, BoxDynError> {
        let mut arguments = PgArguments::default();
        arguments.add(&tables)?;
        Ok(arguments)
    };
    let row = first(database.fetch(MISSING, needed, Deadline::NONE).await?)?;
    let missing: Vec<String> = row.try_get(0).map_err(Error::Database)?;
    let rows = database.fetch(LACKING, arguments, Deadline::NONE).await?;
    let lacking = rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
    let lacking: Vec<(String, String)> =
        lacking.collect::<Result<_, sqlx::Error>>().map_err(Error::Database)?;
    Ok(judge::privileges(&lacking, &missing, login))
}
