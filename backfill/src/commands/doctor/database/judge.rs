//! What the answers of the database come to. Pure.

use projector::config::DatabaseConfig;
use projector::database::Between;
use sqlx::FromRow;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use time::OffsetDateTime;

use crate::commands::doctor::finding::Verdict;
use crate::commands::migrate::schema::{Applied, pending};

/// What the server says of itself and of our connection.
#[derive(Clone, Debug, FromRow)]
pub(super) struct Facts {
    pub(super) login: String,
    pub(super) name: String,
    pub(super) version: String,
    pub(super) encoding: String,
    pub(super) standby: bool,
    pub(super) read_only: bool,
    pub(super) statement_timeout: String,
    pub(super) lock_timeout: String,
    pub(super) synchronous_commit: String,
    pub(super) clock: OffsetDateTime,
    pub(super) tls: Option<String>,
}

/// The tables, and the list of applied migrations.
#[derive(Clone, Debug, FromRow)]
pub(super) struct SchemaFacts {
    pub(super) readable: bool,
    pub(super) ledger: bool,
    pub(super) missing: Vec<String>,
}

pub(super) fn login(facts: &Facts, config: &DatabaseConfig) -> Verdict {
    let host = config.url.as_ref().map_or_else(
        || "the host that the secret names".to_owned(),
        |url| format!("{}:{}", url.get_host(), url.get_port()),
    );
    let Facts { login, name, version, .. } = facts;
    Verdict::works(format!("{login} on {name} at {host}, PostgreSQL {version}"))
}

pub(super) fn route(between: Option<Between>) -> Verdict {
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
pub(super) fn ssl_mode(config: &DatabaseConfig) -> PgSslMode {
    config.url.as_ref().map_or(PgSslMode::VerifyFull, PgConnectOptions::get_ssl_mode)
}

pub(super) fn tls(facts: &Facts, mode: PgSslMode, between: Option<Between>) -> Verdict {
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

pub(super) fn role(facts: &Facts) -> Verdict {
    if facts.standby {
        let remedy = "name the primary in DATABASE_URL; after a failover, wait until the standby is promoted";
        return Verdict::fails("a standby (a read replica), which takes no writes", remedy);
    }
    if facts.read_only {
        let remedy = "unset default_transaction_read_only for the database and the role; on RDS, \
            check whether the storage is full";
        return Verdict::fails("a primary whose transactions are read-only", remedy);
    }
    Verdict::works("a primary, which takes writes")
}

pub(super) fn encoding(facts: &Facts) -> Verdict {
    if facts.encoding == "UTF8" {
        return Verdict::works("UTF8");
    }
    Verdict::fails(
        format!("{}, which cannot hold every text", facts.encoding),
        "make a database with CREATE DATABASE name ENCODING 'UTF8' TEMPLATE template0, and \
            restore a dump into it",
    )
}

pub(super) fn limits(facts: &Facts) -> Verdict {
    let Facts { statement_timeout, lock_timeout, synchronous_commit, .. } = facts;
    let text = format!(
        "statement_timeout {statement_timeout}, lock_timeout {lock_timeout}, synchronous_commit \
            {synchronous_commit}"
    );
    let durable = !matches!(synchronous_commit.as_str(), "off" | "local");
    if durable && statement_timeout != "0" && lock_timeout != "0" {
        return Verdict::works(text);
    }
    let remedy = format!(
        "run `backfill migrate --grant-to {}` on the database instance itself, which sets them \
            for the role",
        facts.login
    );
    Verdict::fails(text, remedy)
}

pub(super) fn schema(facts: &SchemaFacts, applied: &[Applied]) -> Verdict {
    if facts.ledger && !facts.readable {
        return match facts.missing.as_slice() {
            [] => Verdict::unknown(
                "the tables are there; whether every migration is applied is not known, because \
                    this login may not read _sqlx_migrations",
            ),
            missing => Verdict::fails(
                format!("missing: {}", missing.join(", ")),
                "run `backfill migrate` as the owner of the database",
            ),
        };
    }
    match pending(applied) {
        Err(mismatch) => Verdict::fails(mismatch.problem(), mismatch.remedy()),
        Ok(pending) if pending.is_empty() && facts.missing.is_empty() => {
            Verdict::works(format!("up to date, {} migrations", applied.len()))
        }
        Ok(pending) if pending.is_empty() => Verdict::fails(
            format!("every migration is applied, but there is no {}", facts.missing.join(", ")),
            "restore the table: somebody has dropped it, or it lies outside the search_path of \
                this login",
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

/// Of a table that is missing nothing can be said, and "database schema" says that it is missing.
pub(super) fn privileges(lacking: &[(String, String)], missing: &[String], login: &str) -> Verdict {
    if lacking.is_empty() && !missing.is_empty() {
        return Verdict::unknown(format!("not known without {}", missing.join(", ")));
    }
    if lacking.is_empty() {
        return Verdict::works("every command may read and write its tables");
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
    use super::{Facts, SchemaFacts, encoding, limits, privileges, role, route, schema, tls};
    use crate::commands::doctor::finding::Verdict;
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
        let facts = SchemaFacts { readable: false, ledger: true, missing: Vec::new() };
        assert_eq!(works(&schema(&facts, &[])), None);
        let missing = vec!["measurements".to_owned()];
        let facts = SchemaFacts { missing, ..facts };
        assert_eq!(works(&schema(&facts, &[])), Some(false));
        let none = SchemaFacts { readable: true, ledger: false, ..facts };
        assert_eq!(works(&schema(&none, &[])), Some(false));
    }

    #[test]
    fn a_missing_privilege_is_named() {
        assert_eq!(works(&privileges(&[], &[], "backfill")), Some(true));
        let missing = ["measurements".to_owned()];
        assert_eq!(works(&privileges(&[], &missing, "backfill")), None);
        let lacking = [("measurements".to_owned(), "UPDATE".to_owned())];
        let Verdict::Fails { detail, remedy } = privileges(&lacking, &[], "backfill") else {
            panic!("a privilege is missing")
        };
        assert_eq!(detail, "backfill lacks UPDATE on measurements");
        assert!(remedy.contains("--grant-backfill-to backfill"), "{remedy}");
    }
}
