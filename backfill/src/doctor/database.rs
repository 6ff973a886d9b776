//! The database: login, route, TLS, schema, privileges, encoding, time limits, clock. A few statements over one
//! connection as the projector makes it; what they say is judged by pure functions.

use std::time::{Duration, Instant};

use projector::config::Config;
use projector::database::{Between, Database, DatabaseConfig};
use projector::deadline::Deadline;
use projector::error::{self, Error};
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgRow, PgSslMode};
use sqlx::{Arguments as _, FromRow, Row as _};
use time::OffsetDateTime;
use tokio::time::timeout;

use super::clock;
use super::finding::{Finding, LIMIT, Verdict};
use crate::migrate::grants::{self, LACKING};
use crate::migrate::schema::{self, Applied};

const REACH: &str =
    "check the host and port of the database, its security group, and the route from this machine";
/// The names of the checks, in order; those after the login need it.
const AFTER_LOGIN: [&str; 7] = [
    "database route",
    "database TLS",
    "database role",
    "database encoding",
    "database limits",
    "database schema",
    "database privileges",
];

const FACTS: &str = "SELECT current_user::text AS login, current_database()::text AS name,
    current_setting('server_version') AS version, current_setting('server_encoding') AS encoding,
    pg_is_in_recovery() AS standby, current_setting('transaction_read_only') = 'on' AS read_only,
    current_setting('statement_timeout') AS statement_timeout,
    current_setting('lock_timeout') AS lock_timeout,
    current_setting('synchronous_commit') AS synchronous_commit, clock_timestamp() AS clock,
    (SELECT s.version || ' ' || s.cipher FROM pg_stat_ssl s WHERE s.pid = pg_backend_pid() AND s.ssl) AS tls";

/// What the server says of itself and of our connection.
#[derive(Clone, Debug, FromRow)]
struct Facts {
    login: String,
    name: String,
    version: String,
    encoding: String,
    standby: bool,
    read_only: bool,
    statement_timeout: String,
    lock_timeout: String,
    synchronous_commit: String,
    clock: OffsetDateTime,
    tls: Option<String>,
}

const TABLES: &str = "SELECT
    coalesce(has_table_privilege(to_regclass('_sqlx_migrations')::oid, 'SELECT'), true) AS readable,
    to_regclass('_sqlx_migrations') IS NOT NULL AS ledger,
    ARRAY(SELECT name FROM unnest($1::text[]) AS given (name) WHERE to_regclass(name) IS NULL) AS missing";

/// The tables, and the list of applied migrations.
#[derive(Clone, Debug, FromRow)]
struct Tables {
    readable: bool,
    ledger: bool,
    missing: Vec<String>,
}

/// Checks the database. The configuration makes the connection, so that it is the one that a run would have.
pub(super) async fn check(config: Config) -> Vec<Finding> {
    let database_config = config.database.clone();
    let start = Instant::now();
    let database = match timeout(LIMIT, config.projector_with_credentials()).await {
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
        ("database login", login(&facts, &database_config)),
        ("database route", route(between)),
        ("database TLS", tls(&facts, ssl_mode(&database_config), between)),
        ("database role", role(&facts)),
        ("database encoding", encoding(&facts)),
        ("database limits", limits(&facts)),
    ];
    let mut findings: Vec<Finding> =
        verdicts.into_iter().map(|(check, verdict)| verdict.of(check, took)).collect();
    let start = Instant::now();
    let schema = within(schema(&database)).await;
    findings.push(schema.of("database schema", start.elapsed()));
    let start = Instant::now();
    let privileges = within(privileges(&database, &facts.login)).await;
    findings.push(privileges.of("database privileges", start.elapsed()));
    let apart =
        clock::judge("the database's", facts.clock - here, "of this machine, or of the database");
    findings.push(apart.of("clock: database", took));
    findings
}

/// The login failed, and the rest cannot be known.
fn not_logged_in(verdict: Verdict, took: Duration) -> Vec<Finding> {
    let unknown = AFTER_LOGIN.iter().copied().chain(["clock: database"]);
    let unknown = unknown
        .map(|check| Verdict::unknown("not known without a login").of(check, Duration::ZERO));
    [verdict.of("database login", took)].into_iter().chain(unknown).collect()
}

/// The same if the settings of the database are wrong.
pub(super) fn not_configured() -> Vec<Finding> {
    not_logged_in(Verdict::unknown("not checked: see the settings above"), Duration::ZERO)
}

fn silent() -> Verdict {
    Verdict::fails(format!("no answer within {} s", LIMIT.as_secs()), REACH)
}

async fn within(check: impl Future<Output = Result<Verdict, Error>>) -> Verdict {
    match timeout(LIMIT, check).await {
        Ok(Ok(verdict)) => verdict,
        Ok(Err(error)) => trouble(&error),
        Err(_) => silent(),
    }
}

async fn facts(database: &Database) -> Result<Facts, Verdict> {
    let none = || Ok(PgArguments::default());
    let rows = timeout(LIMIT, database.fetch(FACTS, none, Deadline::NONE)).await;
    let row = first(rows.map_err(|_| silent())?.map_err(|error| trouble(&error))?);
    row.and_then(|row| Facts::from_row(&row).map_err(Error::Database))
        .map_err(|error| trouble(&error))
}

fn first(rows: Vec<PgRow>) -> Result<PgRow, Error> {
    rows.into_iter().next().ok_or(Error::Database(sqlx::Error::RowNotFound))
}

/// An error says first what happened and then, after a colon, what to do.
fn trouble(error: &Error) -> Verdict {
    let text = error.to_string();
    let (what, remedy) = text.split_once(": ").unwrap_or((&text, REACH));
    let chain = error::chain(error);
    let source = chain.strip_prefix(&text).unwrap_or_default();
    Verdict::fails(format!("{what}{source}"), remedy)
}

fn login(facts: &Facts, config: &DatabaseConfig) -> Verdict {
    let host = config.url.as_ref().map_or_else(
        || "the host that the secret names".to_owned(),
        |url| format!("{}:{}", url.get_host(), url.get_port()),
    );
    let Facts { login, name, version, .. } = facts;
    Verdict::works(format!("{login} on {name} at {host}, PostgreSQL {version}"))
}

fn route(between: Option<Between>) -> Verdict {
    let through = match between {
        None => return Verdict::works("direct"),
        Some(Between::Pooler) => "through a pooler in transaction mode",
        Some(Between::Proxy) => "through RDS Proxy",
    };
    Verdict::fails(
        format!("{through}: `migrate` and `stream` refuse it, the other commands work"),
        "name the database instance itself in DATABASE_URL",
    )
}

/// With a secret that names the host, TLS is as by default.
fn ssl_mode(config: &DatabaseConfig) -> PgSslMode {
    config.url.as_ref().map_or(PgSslMode::VerifyFull, PgConnectOptions::get_ssl_mode)
}

fn tls(facts: &Facts, mode: PgSslMode, between: Option<Between>) -> Verdict {
    let verified = match mode {
        PgSslMode::VerifyFull => "the server's certificate and name are verified",
        PgSslMode::VerifyCa => "the server's certificate is verified, its name is not",
        _ => "the server is not verified",
    };
    // Behind a pooler the server sees the pooler's connection, not ours.
    let seen = match (&facts.tls, between) {
        (_, Some(_)) => "to the pooler",
        (Some(tls), None) => tls,
        (None, None) => "no TLS",
    };
    let text = format!("{seen}; {verified}");
    if matches!(mode, PgSslMode::VerifyFull | PgSslMode::VerifyCa) {
        return Verdict::works(text);
    }
    Verdict::unknown(format!("{text}, as sslmode in DATABASE_URL says (without it: verify-full)"))
}

fn role(facts: &Facts) -> Verdict {
    if facts.standby {
        let remedy = "name the primary in DATABASE_URL; after a failover, wait until the standby is promoted";
        return Verdict::fails("a standby (a read replica), which takes no writes", remedy);
    }
    if facts.read_only {
        let remedy = "unset default_transaction_read_only for the database and the role; on RDS, check whether the storage is full";
        return Verdict::fails("a primary whose transactions are read-only", remedy);
    }
    Verdict::works("a primary, which takes writes")
}

fn encoding(facts: &Facts) -> Verdict {
    if facts.encoding == "UTF8" {
        return Verdict::works("UTF8");
    }
    Verdict::fails(
        format!("{}, which cannot hold every text", facts.encoding),
        "make a database with CREATE DATABASE name ENCODING 'UTF8' TEMPLATE template0, and restore a dump into it",
    )
}

fn limits(facts: &Facts) -> Verdict {
    let Facts { statement_timeout, lock_timeout, synchronous_commit, .. } = facts;
    let text = format!(
        "statement_timeout {statement_timeout}, lock_timeout {lock_timeout}, synchronous_commit {synchronous_commit}"
    );
    let durable = !matches!(synchronous_commit.as_str(), "off" | "local");
    if durable && statement_timeout != "0" && lock_timeout != "0" {
        return Verdict::works(text);
    }
    let remedy = format!(
        "run `backfill migrate --grant-to {}` on the database instance itself, which sets them for the role",
        facts.login
    );
    Verdict::fails(text, remedy)
}

async fn schema(database: &Database) -> Result<Verdict, Error> {
    let all: Vec<_> = schema::MIGRATOR.iter().collect();
    let (_, names): (Vec<i64>, Vec<&str>) = schema::tables_made(&all).into_iter().unzip();
    let arguments = || -> Result<PgArguments, BoxDynError> {
        let mut arguments = PgArguments::default();
        arguments.add(&names)?;
        Ok(arguments)
    };
    let row = first(database.fetch(TABLES, arguments, Deadline::NONE).await?)?;
    let tables = Tables::from_row(&row).map_err(Error::Database)?;
    let mut applied = Vec::new();
    if tables.ledger && tables.readable {
        let none = || Ok(PgArguments::default());
        for row in database.fetch(schema::LEDGER, none, Deadline::NONE).await? {
            applied.push(Applied::from_row(&row).map_err(Error::Database)?);
        }
    }
    Ok(judge_schema(&tables, &applied))
}

fn judge_schema(tables: &Tables, applied: &[Applied]) -> Verdict {
    if tables.ledger && !tables.readable {
        return match tables.missing.as_slice() {
            [] => Verdict::unknown(
                "the tables are there; whether every migration is applied is not known, because this login may not read _sqlx_migrations",
            ),
            missing => Verdict::fails(
                format!("missing: {}", missing.join(", ")),
                "run `backfill migrate` as the owner of the database",
            ),
        };
    }
    match schema::pending(applied) {
        Err(mismatch) => {
            let text = mismatch.to_string();
            let (what, remedy) =
                text.split_once(": ").unwrap_or((&text, "see `backfill migrate --dry-run`"));
            Verdict::fails(what, remedy)
        }
        Ok(pending) if pending.is_empty() && tables.missing.is_empty() => {
            Verdict::works(format!("up to date, {} migrations", applied.len()))
        }
        Ok(pending) if pending.is_empty() => Verdict::fails(
            format!("every migration is applied, but there is no {}", tables.missing.join(", ")),
            "restore the table: somebody has dropped it, or it lies outside the search_path of this login",
        ),
        Ok(pending) => Verdict::fails(
            format!(
                "{} of {} migrations are pending",
                pending.len(),
                pending.len() + applied.len()
            ),
            "run `backfill migrate` as the owner of the database",
        ),
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
    let rows = database.fetch(LACKING, arguments, Deadline::NONE).await?;
    let lacking = rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
    let lacking: Vec<(String, String)> =
        lacking.collect::<Result<_, sqlx::Error>>().map_err(Error::Database)?;
    Ok(judge_privileges(&lacking, login))
}

fn judge_privileges(lacking: &[(String, String)], login: &str) -> Verdict {
    if lacking.is_empty() {
        return Verdict::works("every command may read and write the tables that exist");
    }
    let lacking: Vec<String> =
        lacking.iter().map(|(table, privilege)| format!("{privilege} on {table}")).collect();
    Verdict::fails(
        format!("{login} lacks {}", lacking.join(", ")),
        format!("run `backfill migrate --grant-backfill-to {login}` as the owner of the tables"),
    )
}

#[cfg(test)]
mod tests {
    use super::{
        Facts, Tables, encoding, judge_privileges, judge_schema, limits, role, route, tls,
    };
    use crate::doctor::finding::Verdict;
    use projector::database::Between;
    use sqlx::postgres::PgSslMode;

    fn facts() -> Facts {
        Facts {
            login: "backfill".to_owned(),
            name: "feet".to_owned(),
            version: "17.2".to_owned(),
            encoding: "UTF8".to_owned(),
            standby: false,
            read_only: false,
            statement_timeout: "20s".to_owned(),
            lock_timeout: "5s".to_owned(),
            synchronous_commit: "on".to_owned(),
            clock: time::macros::datetime!(2026-11-23 20:00 UTC),
            tls: Some("TLSv1.3 TLS_AES_256_GCM_SHA384".to_owned()),
        }
    }

    fn works(verdict: &Verdict) -> Option<bool> {
        match verdict {
            Verdict::Works(_) => Some(true),
            Verdict::Fails { remedy, .. } => {
                assert!(!remedy.is_empty());
                Some(false)
            }
            Verdict::Unknown(_) => None,
        }
    }

    #[test]
    fn what_the_server_says_is_judged() {
        assert_eq!(works(&role(&facts())), Some(true));
        assert_eq!(works(&role(&Facts { standby: true, ..facts() })), Some(false));
        assert_eq!(works(&role(&Facts { read_only: true, ..facts() })), Some(false));
        assert_eq!(works(&encoding(&facts())), Some(true));
        let latin = Facts { encoding: "LATIN1".to_owned(), ..facts() };
        assert_eq!(works(&encoding(&latin)), Some(false));
        assert_eq!(works(&limits(&facts())), Some(true));
        let not_durable = Facts { synchronous_commit: "off".to_owned(), ..facts() };
        assert_eq!(works(&limits(&not_durable)), Some(false));
        let unlimited = Facts { statement_timeout: "0".to_owned(), ..facts() };
        assert_eq!(works(&limits(&unlimited)), Some(false));
        assert_eq!(works(&route(None)), Some(true));
        assert_eq!(works(&route(Some(Between::Pooler))), Some(false));
    }

    #[test]
    fn tls_counts_as_verified_only_if_the_mode_verifies() {
        assert_eq!(works(&tls(&facts(), PgSslMode::VerifyFull, None)), Some(true));
        assert_eq!(works(&tls(&facts(), PgSslMode::Require, None)), None);
        let Verdict::Unknown(text) = tls(&Facts { tls: None, ..facts() }, PgSslMode::Disable, None)
        else {
            panic!("not verified")
        };
        assert!(text.starts_with("no TLS; the server is not verified"), "{text}");
    }

    #[test]
    fn a_schema_that_cannot_be_read_is_not_called_good() {
        let tables = Tables { readable: false, ledger: true, missing: Vec::new() };
        assert_eq!(works(&judge_schema(&tables, &[])), None);
        let missing = vec!["measurements".to_owned()];
        let tables = Tables { missing, ..tables };
        assert_eq!(works(&judge_schema(&tables, &[])), Some(false));
        let none = Tables { readable: true, ledger: false, ..tables };
        assert_eq!(works(&judge_schema(&none, &[])), Some(false));
    }

    #[test]
    fn a_missing_privilege_is_named() {
        assert_eq!(works(&judge_privileges(&[], "backfill")), Some(true));
        let lacking = [("measurements".to_owned(), "UPDATE".to_owned())];
        let Verdict::Fails { detail, remedy } = judge_privileges(&lacking, "backfill") else {
            panic!("a privilege is missing")
        };
        assert_eq!(detail, "backfill lacks UPDATE on measurements");
        assert!(remedy.contains("--grant-backfill-to backfill"), "{remedy}");
    }
}
