//! PostgreSQL's answers, by SQLSTATE, and the ways in which it gives none. Pure.

use sqlx::postgres::{PgDatabaseError, PgSeverity};

use super::Consequence::{self, Fatal, Reconnect, Reject, Retry, Split};
use super::{Cause, Message, Said};

/// What to do about a database that does not answer.
pub const REACH_DATABASE: &str =
    "check the host and port of the database, its security group, and the route to it";

const SCHEMA: Said = Said("the database lacks today's schema", "run `backfill migrate` against it");
const FOREIGN_SCHEMA: Said = Said(
    "the table is not as the migrations made it",
    "undo what was changed in it, or run `backfill migrate`",
);
const NO_DATABASE: Said = Said(
    "the database that DATABASE_URL names does not exist",
    "correct the name in DATABASE_URL, or create the database",
);
const VALUES: Said = Said("the database refuses the values", "");
const LOCKED: Said = Said("another session holds a lock on the row", "see pg_locks for who");

/// By SQLSTATE, or by its class, the first two characters (PostgreSQL documentation, appendix A). A
/// code wins over its class.
const DATABASE: &[(&str, Consequence, Said)] = &[
    ("08", Reconnect, Said("the connection to the database failed", "")),
    // "cached plan must not change result type": the table was altered under a prepared statement.
    (
        "0A000",
        Reconnect,
        Said("the database does not support the statement as it was prepared", ""),
    ),
    ("22", Reject, VALUES),
    ("23", Reject, VALUES),
    (
        "25",
        Reconnect,
        Said("the database's session is in a state in which it takes no statement", ""),
    ),
    // transaction_timeout, of version 17: the server closes the connection.
    ("25P04", Split, Said("the database ended the transaction at its time limit", "")),
    // After a failover the connection still leads to the old primary.
    (
        "25006",
        Reconnect,
        Said(
            "the database is read-only",
            "wait, after a failover; otherwise name the primary in DATABASE_URL, which names a \
                replica",
        ),
    ),
    // A pooler gave the session to another server connection, which does not know the statement.
    (
        "26000",
        Reconnect,
        Said(
            "the database does not know the statement that was prepared",
            "see whether there is a pooler before it",
        ),
    ),
    ("28", Reconnect, Said("the database refused the login of a connection behind a proxy", "")),
    ("3D000", Fatal, NO_DATABASE),
    ("3F000", Fatal, SCHEMA),
    ("40", Split, Said("the database rolled the statement back for the sake of another", "")),
    ("42", Fatal, FOREIGN_SCHEMA),
    (
        "42501",
        Fatal,
        Said(
            "the database role lacks a privilege",
            "run `backfill migrate --grant-to ROLE` for the projector's, --grant-backfill-to for a backfill's",
        ),
    ),
    ("42703", Fatal, SCHEMA),
    ("42883", Fatal, SCHEMA),
    ("42P01", Fatal, SCHEMA),
    (
        "42P05",
        Reconnect,
        Said(
            "the database knows another statement by the same name",
            "see whether there is a pooler before it",
        ),
    ),
    (
        "42P10",
        Fatal,
        Said(
            "measurements or rejected_records has lost its primary key",
            "restore it (a restore in progress adds keys last)",
        ),
    ),
    ("44", Reject, VALUES),
    ("53", Retry, Said("the database is short of resources", "")),
    ("53100", Retry, Said("the database's disk is full", "enlarge its storage")),
    ("53200", Split, Said("the database is out of memory for the statement", "")),
    (
        "53300",
        Retry,
        Said(
            "the database has no connection left",
            "raise max_connections, or lower DATABASE_CONNECTIONS or the function's concurrency",
        ),
    ),
    ("54", Reject, Said("the values exceed a limit of the database", "")),
    ("55000", Fatal, FOREIGN_SCHEMA),
    ("55P03", Split, LOCKED),
    (
        "57014",
        Split,
        Said("the database canceled the statement, at its time limit or on somebody's request", ""),
    ),
    ("57P", Reconnect, Said("the database ended the connection, or is starting or stopping", "")),
    ("58", Split, Said("the database cannot read or write its files", "")),
    // Somebody's trigger.
    ("P0", Reject, Said("a trigger refuses the values", "")),
    ("XX", Split, Said("the database has an internal error", "")),
    (
        "XX001",
        Split,
        Said(
            "a page of the table is corrupt",
            "restore the row from a backup, or let it be made anew",
        ),
    ),
    ("XX002", Split, Said("an index is corrupt", "run REINDEX TABLE measurements")),
];

/// The longest prefix of the code that the table has.
fn row(code: &str) -> Option<&'static (&'static str, Consequence, Said)> {
    DATABASE
        .iter()
        .filter(|(prefix, ..)| code.starts_with(prefix))
        .max_by_key(|(prefix, ..)| prefix.len())
}

/// The five characters of PostgreSQL's error code, where the server sent one.
#[must_use]
pub fn sqlstate(error: &sqlx::Error) -> Option<String> {
    error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
        .map(std::borrow::Cow::into_owned)
}

/// What an error of a statement comes to.
pub(crate) fn of_database(error: &sqlx::Error) -> Cause {
    use sqlx::Error as E;
    if let Some(code) = sqlstate(error) {
        let details = details(error);
        if code == "23502" {
            return Cause::new(Fatal, not_null(details));
        }
        // Not a value, although it has the code of one that is too large for an index.
        let routine = details.and_then(PgDatabaseError::routine).unwrap_or_default();
        if code == "54000" && routine.starts_with("GetNew") {
            return Cause::new(
                Retry,
                Said(
                    "the database takes no more writes, to keep its transaction ids from wrapping around",
                    "vacuum it",
                ),
            );
        }
        return of_sqlstate(&code);
    }
    match error {
        E::Configuration(_) => Cause::new(Fatal, Said("DATABASE_URL cannot be used", "")),
        E::Encode(_) | E::InvalidArgument(_) => {
            Cause::new(Reject, Said("the values cannot be sent to the database", ""))
        }
        E::Io(_) | E::Tls(_) => {
            Cause::new(Reconnect, Said("the database cannot be reached", REACH_DATABASE))
        }
        E::Protocol(_) | E::WorkerCrashed => {
            Cause::new(Reconnect, Said("the exchange with the database failed", ""))
        }
        _ => Cause::new(Split, Said("the database's answer cannot be read", "")),
    }
}

/// What comes of an error while connecting: no statement was sent, so it says nothing about
/// records.
const CONNECTING: &[(&str, Consequence, Said)] = &[
    ("22", Fatal, Said("the database refuses a setting", "see the options in DATABASE_URL")),
    ("3D000", Fatal, NO_DATABASE),
    ("42501", Fatal, Said("the database role may not connect", "GRANT CONNECT ON DATABASE to it")),
    (
        "42704",
        Fatal,
        Said("the database does not know a setting", "see the options in DATABASE_URL"),
    ),
    (
        "53300",
        Retry,
        Said(
            "the database has no connection left",
            "raise max_connections, or lower DATABASE_CONNECTIONS or the function's concurrency",
        ),
    ),
    ("57P03", Retry, Said("the database is starting or stopping", "")),
];

/// What an error of connecting comes to. `asked_anew`: the login comes from a secret or from IAM,
/// whose password may be in the middle of its rotation; one that stands in `DATABASE_URL` stays
/// wrong.
pub(crate) fn of_connecting(error: &sqlx::Error, asked_anew: bool) -> Cause {
    let Some(code) = sqlstate(error) else {
        return match error {
            error if is_tls(error) => Cause::new(
                Fatal,
                Said(
                    "cannot agree on TLS with the database",
                    "see sslmode and sslrootcert in DATABASE_URL",
                ),
            ),
            sqlx::Error::Configuration(_) => {
                Cause::new(Fatal, Said("DATABASE_URL cannot be used", ""))
            }
            _ => Cause::new(Retry, Said("the database cannot be reached", REACH_DATABASE)),
        };
    };
    if code.starts_with("28") {
        return of_login(asked_anew);
    }
    match CONNECTING.iter().find(|(prefix, ..)| code.starts_with(prefix)) {
        Some((_, consequence, message)) => Cause::new(*consequence, *message),
        None => {
            let what = format!("the database does not take a connection (SQLSTATE {code})");
            Cause::new(Retry, Message::new(what))
        }
    }
}

fn of_login(asked_anew: bool) -> Cause {
    if asked_anew {
        Cause::new(
            Retry,
            Said(
                "the database refused the user or its password",
                "passing while a secret is rotated; otherwise check DATABASE_SECRET_ARN or, with DATABASE_AUTH=iam, the role's rds_iam and rds-db:connect",
            ),
        )
    } else {
        Cause::new(
            Fatal,
            Said(
                "the database refused the user or its password",
                "check DATABASE_URL, DATABASE_SECRET_ARN or DATABASE_AUTH",
            ),
        )
    }
}

fn details(error: &sqlx::Error) -> Option<&PgDatabaseError> {
    error.as_database_error()?.try_downcast_ref::<PgDatabaseError>()
}

/// A column that must not be NULL: by the migrations none but the keys is so, since a row begins
/// with one of its parts. Every row would be refused, or every row that is not whole yet, and no
/// record is at fault.
fn not_null(details: Option<&PgDatabaseError>) -> Message {
    let table = details.and_then(PgDatabaseError::table).unwrap_or("measurements");
    let column = details.and_then(PgDatabaseError::column).unwrap_or("?");
    let what = format!("the column {table}.{column} must not be NULL, as somebody has declared");
    Message::new(what).remedy(format!("ALTER TABLE {table} ALTER COLUMN {column} DROP NOT NULL"))
}

/// Whether the connection ended with the error.
pub(crate) fn ended_connection(error: &sqlx::Error) -> bool {
    details(error)
        .is_none_or(|error| matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic))
}

/// What may be logged of an error that the server sent: by whom it comes, and its message only
/// where no value can stand in it, nor a name out of `DATABASE_URL`.
pub(crate) fn without_values(error: &sqlx::Error) -> Option<String> {
    let error = details(error)?;
    let mut text = format!("SQLSTATE {}", error.code());
    let by = [
        ("constraint", error.constraint()),
        ("column", error.column()),
        ("raised by", error.r#where().and_then(function)),
    ];
    for (what, name) in by {
        if let Some(name) = name {
            text = format!("{text}, {what} {name}");
        }
    }
    let silent =
        ["08", "22", "23", "28", "3D", "P0"].iter().any(|class| error.code().starts_with(class));
    if !silent && error.r#where().is_none() {
        text = format!("{text}: {}", error.message());
    }
    Some(text)
}

/// The function that PostgreSQL's context names: `PL/pgSQL function refuse() line 3 at RAISE`.
fn function(context: &str) -> Option<&str> {
    let (name, _) = context.lines().next()?.strip_prefix("PL/pgSQL function ")?.split_once(' ')?;
    Some(name)
}

fn of_sqlstate(code: &str) -> Cause {
    match row(code) {
        Some((_, consequence @ (Retry | Split | Reject), Said(what, remedy))) => {
            let message = Message::from(Said("", remedy));
            let what = format!("{what} (SQLSTATE {code})").into();
            Cause::new(*consequence, Message { what, ..message })
        }
        Some((_, consequence, message)) => Cause::new(*consequence, *message),
        None => Cause::new(Split, Message::new(format!("the database answered with error {code}"))),
    }
}

/// Whether the two sides cannot agree on TLS. A certificate that is not trusted comes as invalid
/// data from the handshake's reads.
fn is_tls(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Tls(_) => true,
        sqlx::Error::Io(error) => error.kind() == std::io::ErrorKind::InvalidData,
        _ => false,
    }
}

/// Whether PostgreSQL rolled a statement back for the sake of another: the same statement is simply
/// run again (40P01 deadlock, 40001 serialization failure).
pub(crate) fn rolled_back_for_another(error: &sqlx::Error) -> bool {
    matches!(sqlstate(error).as_deref(), Some("40P01" | "40001"))
}

/// Whether the connection is fine but for what was prepared on it: a new connection helps at once.
pub(crate) fn stale_statement(error: &sqlx::Error) -> bool {
    matches!(sqlstate(error).as_deref(), Some("0A000" | "26000" | "42P05"))
}

/// Whether the statement waited in vain for a row that somebody else has locked.
pub(crate) fn locked(error: &sqlx::Error) -> bool {
    sqlstate(error).as_deref() == Some("55P03")
}

/// Whether the statement was too large for the time or the memory that it had.
pub(crate) fn too_much(error: &sqlx::Error) -> bool {
    matches!(sqlstate(error).as_deref(), Some("57014" | "53200" | "25P04"))
}

#[cfg(test)]
mod tests {
    use super::Consequence::{self, Fatal, Reconnect, Reject, Retry, Split};
    use super::{CONNECTING, DATABASE, Said, of_connecting, of_login, of_sqlstate};

    /// Each row of the table, written out a second time by the codes that a server sends.
    const SQLSTATES: &[(&str, Consequence, &str)] = &[
        ("08006", Reconnect, "connection"),
        ("08P01", Reconnect, "connection"),
        ("0A000", Reconnect, "prepared"),
        ("22003", Reject, "SQLSTATE 22003"),
        ("22P05", Reject, "values"),
        ("23514", Reject, "values"),
        ("23505", Reject, "values"),
        ("25P02", Reconnect, "session"),
        ("25P03", Reconnect, "session"),
        ("25P04", Split, "time limit"),
        ("25006", Reconnect, "replica"),
        ("28P01", Reconnect, "behind a proxy"),
        ("26000", Reconnect, "pooler"),
        ("3D000", Fatal, "DATABASE_URL"),
        ("3F000", Fatal, "backfill migrate"),
        ("40001", Split, "rolled"),
        ("40P01", Split, "rolled"),
        ("42501", Fatal, "--grant-to"),
        ("42601", Fatal, "not as the migrations made it"),
        ("42703", Fatal, "backfill migrate"),
        ("42704", Fatal, "not as the migrations made it"),
        ("42804", Fatal, "not as the migrations made it"),
        ("42883", Fatal, "backfill migrate"),
        ("428C9", Fatal, "not as the migrations made it"),
        ("42P01", Fatal, "backfill migrate"),
        ("42P05", Reconnect, "pooler"),
        ("42P10", Fatal, "primary key"),
        ("44000", Reject, "values"),
        ("53000", Retry, "resources"),
        ("53100", Retry, "storage"),
        ("53200", Split, "memory"),
        ("53300", Retry, "max_connections"),
        ("54000", Reject, "limit"),
        ("55000", Fatal, "not as the migrations made it"),
        ("55P03", Split, "pg_locks"),
        ("57014", Split, "time limit"),
        ("57P01", Reconnect, "ended the connection"),
        ("57P03", Reconnect, "starting"),
        ("57P05", Reconnect, "ended the connection"),
        ("58030", Split, "files"),
        ("P0001", Reject, "trigger"),
        ("XX000", Split, "internal"),
        ("XX001", Split, "corrupt"),
        ("XX002", Split, "REINDEX"),
        ("72000", Split, "error 72000"),
    ];

    #[test]
    fn every_sqlstate_comes_to_its_consequence_and_says_what_to_do() {
        for (code, consequence, says) in SQLSTATES {
            let cause = of_sqlstate(code);
            assert_eq!(cause.consequence, *consequence, "{code}");
            assert!(cause.message.to_string().contains(says), "{code}: {}", cause.message);
        }
        for (prefix, ..) in DATABASE {
            assert!(
                SQLSTATES
                    .iter()
                    .any(|(code, ..)| super::row(code).is_some_and(|row| row.0 == *prefix)),
                "the row {prefix} has no test"
            );
        }
    }

    /// Whoever has to correct something is told what.
    #[test]
    fn what_is_fatal_has_a_remedy() {
        let fatal = DATABASE.iter().chain(CONNECTING);
        let fatal = fatal.filter(|(_, consequence, _)| *consequence == Fatal);
        for (code, _, Said(what, remedy)) in fatal {
            assert!(!remedy.is_empty(), "{code}: {what}");
        }
        let lost = sqlx::Error::Io(std::io::ErrorKind::ConnectionRefused.into());
        let remedy = of_connecting(&lost, false).message.remedy;
        assert_eq!(remedy.as_deref(), Some(super::REACH_DATABASE));
    }

    #[test]
    fn an_error_while_connecting_says_nothing_about_records() {
        for (prefix, consequence, _) in CONNECTING {
            assert!(matches!(consequence, Retry | Fatal), "{prefix}");
        }
        assert_eq!(of_login(true).consequence, Retry);
        assert_eq!(of_login(false).consequence, Fatal);
        let lost = sqlx::Error::Io(std::io::ErrorKind::ConnectionRefused.into());
        assert_eq!(of_connecting(&lost, false).consequence, Retry);
        let tls = sqlx::Error::Io(std::io::ErrorKind::InvalidData.into());
        assert_eq!(of_connecting(&tls, false).consequence, Fatal);
    }
}
