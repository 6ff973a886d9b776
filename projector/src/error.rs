//! What can go wrong, and what becomes of the records concerned.
//!
//! [`Error::consequence`] is the one place that decides it. A message says what failed and what to
//! do; the source is never printed by `Display`, so that the chain is logged once and whole.

use crate::change::Misconfigured;

/// What becomes of the records that an error concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consequence {
    /// A passing cause: the records are not acknowledged and come again.
    Retry,
    /// PostgreSQL will never take these values: the one record is found and set aside.
    Reject,
    /// The wiring is wrong: nothing is acknowledged until the operator has mended it.
    Fatal,
}

/// A failure of the apply path.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The wrong stream is read.
    #[error(transparent)]
    Misconfigured(#[from] Misconfigured),
    /// The credentials for the database could not be had.
    #[error("cannot get the database's credentials from {from}: {problem}")]
    Credentials {
        /// The secret's ARN, or `IAM`.
        from: String,
        /// What was wrong.
        problem: String,
        /// What the service said.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The database could not be reached, or refused.
    #[error("{}", database_message(.0))]
    Database(#[source] sqlx::Error),
    /// The database did not answer in time.
    #[error("the database did not {doing} within {seconds} s")]
    DatabaseTimeout {
        /// `accept a connection` or `finish a statement`.
        doing: &'static str,
        /// The limit.
        seconds: u64,
    },
    /// A row that was written is not there any more: somebody deletes rows.
    #[error(
        "the row of session {0:?} has vanished from measurements: nothing may delete rows, the versions in them are the guard"
    )]
    RowVanished(String),
    /// A change that is newer than its row was sent, and the row is as it was.
    #[error(
        "the row of session {session_id:?}{} stays older than the change that was sent for it: a trigger or a rule on measurements keeps it from being written",
        and_others(*.others)
    )]
    RowNotWritten {
        /// The first session of a statement that this befell.
        session_id: String,
        /// How many more it befell.
        others: usize,
    },
    /// S3 refused or could not be reached.
    #[error("cannot {operation} s3://{bucket}/{key}: {remedy}")]
    Archive {
        /// `HEAD`, `GET` or `PUT`.
        operation: &'static str,
        /// `ARCHIVE_BUCKET`.
        bucket: String,
        /// The object.
        key: String,
        /// What to do.
        remedy: &'static str,
        /// What the service said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The bucket is not there, or not here.
    #[error("ARCHIVE_BUCKET {bucket:?} cannot be used: {remedy}")]
    NoBucket {
        /// `ARCHIVE_BUCKET`.
        bucket: String,
        /// What is the matter.
        remedy: &'static str,
        /// What the service said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Others wrote the object each time between our HEAD and our PUT.
    #[error("s3://{bucket}/{key} changed under each of {tries} conditional writes")]
    Contended {
        /// `ARCHIVE_BUCKET`.
        bucket: String,
        /// The object.
        key: String,
        /// How often it was tried.
        tries: u32,
    },
}

impl Error {
    /// What becomes of the records that this error concerns.
    #[must_use]
    pub fn consequence(&self) -> Consequence {
        match self {
            Self::Misconfigured(_) | Self::NoBucket { .. } => Consequence::Fatal,
            Self::Database(error) => database_consequence(error),
            Self::Credentials { .. }
            | Self::DatabaseTimeout { .. }
            | Self::RowVanished(_)
            | Self::RowNotWritten { .. }
            | Self::Archive { .. }
            | Self::Contended { .. } => Consequence::Retry,
        }
    }
}

fn and_others(others: usize) -> String {
    if others == 0 { String::new() } else { format!(", as those of {others} others,") }
}

/// The five characters of PostgreSQL's error code, where the server said one.
fn sqlstate(error: &sqlx::Error) -> Option<String> {
    error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
        .map(std::borrow::Cow::into_owned)
}

/// By PostgreSQL's error codes (documentation, appendix A). What is not known to be about the
/// values or the set-up is taken for passing: the records come again, nothing is lost.
fn database_consequence(error: &sqlx::Error) -> Consequence {
    use sqlx::Error as E;
    let Some(code) = sqlstate(error) else {
        return match error {
            error if is_tls(error) => Consequence::Fatal,
            E::Configuration(_) => Consequence::Fatal,
            E::Encode(_) | E::InvalidArgument(_) => Consequence::Reject,
            _ => Consequence::Retry,
        };
    };
    match code.as_str() {
        // Undefined table, column or function; no such schema or database; no privilege.
        "42P01" | "42703" | "42883" | "3F000" | "3D000" | "42501" => Consequence::Fatal,
        code => match &code[..2] {
            // Wrong password or user.
            "28" => Consequence::Fatal,
            // A value out of range or of the wrong form; a constraint; a limit (an index entry of
            // more than 2704 bytes is 54000); an exception of somebody's trigger.
            "22" | "23" | "54" | "P0" => Consequence::Reject,
            _ => Consequence::Retry,
        },
    }
}

/// Whether the two sides cannot agree on TLS. A certificate that is not trusted comes as invalid data
/// from the handshake's reads.
fn is_tls(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Tls(_) => true,
        sqlx::Error::Io(error) => error.kind() == std::io::ErrorKind::InvalidData,
        _ => false,
    }
}

fn database_message(error: &sqlx::Error) -> String {
    match sqlstate(error).as_deref() {
        Some("42P01" | "42703" | "3F000") => {
            "the database lacks today's schema: run `backfill migrate` against it".to_owned()
        }
        Some("42501") => {
            "the database role lacks a privilege: run `backfill migrate --grant-to ROLE` for the projector's, --grant-backfill-to for a backfill's".to_owned()
        }
        Some("3D000") => "the database that DATABASE_URL names does not exist".to_owned(),
        Some(code) if code.starts_with("28") => {
            "the database refused the user or its password: check DATABASE_URL, DATABASE_SECRET_ARN or DATABASE_AUTH"
                .to_owned()
        }
        Some(code) => format!("the database answered with error {code}"),
        None => match error {
            error if is_tls(error) => "cannot agree on TLS with the database: see sslmode and sslrootcert in DATABASE_URL",
            sqlx::Error::Configuration(_) => "DATABASE_URL cannot be used",
            sqlx::Error::Io(_) => "the database cannot be reached",
            _ => "the exchange with the database failed",
        }
        .to_owned(),
    }
}

/// Whether PostgreSQL rolled a statement back for the sake of another: the same statement is simply
/// run again (40P01 deadlock, 40001 serialization failure).
pub(crate) fn rolled_back_for_another(error: &sqlx::Error) -> bool {
    matches!(sqlstate(error).as_deref(), Some("40P01" | "40001"))
}

/// Whether the connection is of no use any more (and not the statement).
pub(crate) fn connection_lost(error: &sqlx::Error) -> bool {
    match sqlstate(error) {
        // Connection exceptions; the server is being shut down or just starts; it is read-only since
        // another was made the writer; it does not know the statement that we prepared.
        Some(code) => {
            code.starts_with("08") || code.starts_with("57P") || code == "25006" || code == "26000"
        }
        None => matches!(
            error,
            sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed
        ),
    }
}

/// An error and all its sources, for one line of a log.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Transparent wrappers repeat what they wrap.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Consequence, Error};

    #[test]
    fn a_lost_connection_is_retried_and_a_wrong_url_is_fatal() {
        let lost = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        assert_eq!(Error::Database(sqlx::Error::Io(lost)).consequence(), Consequence::Retry);
        let wrong = sqlx::Error::Configuration("no".into());
        assert_eq!(Error::Database(wrong).consequence(), Consequence::Fatal);
    }
}
