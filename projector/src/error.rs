//! What can go wrong, and what becomes of the records concerned.
//!
//! [`Error::consequence`] is the one place that says it, by the table in [`crate::cause`]. A
//! message says what failed and what to do; the source is never printed by `Display`, so that the
//! chain is logged once and whole.

use std::sync::Arc;
use std::time::Duration;

pub use crate::cause::Consequence;
use crate::cause::{self, Cause, Message};
use crate::change::Misconfigured;

type Source = Box<dyn std::error::Error + Send + Sync>;

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
        source: Option<Source>,
    },
    /// No connection to the database, for the one who asked first and for all who waited with it.
    #[error(transparent)]
    Connect(Arc<Error>),
    /// The database took no connection.
    #[error("{}", .cause.message)]
    Refused {
        /// What that comes to.
        cause: Cause,
        /// What the server said.
        #[source]
        source: sqlx::Error,
    },
    /// A statement failed.
    #[error("{}", cause::of_database(.0).message)]
    Database(#[source] sqlx::Error),
    /// The database did not accept a connection in time.
    #[error("the database did not accept a connection within {seconds} s")]
    ConnectTimeout {
        /// The limit.
        seconds: u64,
    },
    /// The database did not finish a statement in time.
    #[error("the database did not finish a statement within {:.1} s", limit.as_secs_f64())]
    StatementTimeout {
        /// How long it had.
        limit: Duration,
    },
    /// The invocation's deadline came first.
    #[error(
        "the time of this invocation is up while it waits for {waiting_for}: what is not in both \
            stores comes again"
    )]
    OutOfTime {
        /// What there was no time left for.
        waiting_for: &'static str,
    },
    /// There is a pooler before the database, and a session of its own is needed.
    #[error(
        "DATABASE_URL leads through a connection pooler (RDS Proxy, or PgBouncer in transaction \
         mode), and this command needs a session of its own: name the database instance itself"
    )]
    Pooled,
    /// Behind a proxy, on whose connections nothing may be set, a commit would not be durable.
    #[error(
        "synchronous_commit is {0} for this role, so a crash or a failover can lose what was \
         committed: run `backfill migrate --grant-to ROLE` against the database instance itself, \
         which sets it for the role"
    )]
    NotDurable(String),
    /// A row that was written is not there any more: somebody deletes rows.
    #[error(
        "the row of session {0:?} has vanished from measurements: nothing may delete rows, the \
            versions in them are the guard"
    )]
    RowVanished(String),
    /// A change that is newer than its row was sent, and the row is as it was.
    #[error(
        "the row of session {session_id:?}{} stays older than the change that was sent for it: a \
            trigger or a rule on measurements keeps it from being written",
        and_others(*.others)
    )]
    RowNotWritten {
        /// The first session of a statement whose row was not written.
        session_id: String,
        /// How many more there are.
        others: usize,
    },
    /// The repair that a statement belongs to is over.
    #[error(
        "repair {repair} has ended, or another one has taken over from it, so nothing more is \
            written for it: begin a new repair"
    )]
    LeaseEnded {
        /// Its id in `repairs`.
        repair: i64,
    },
    /// Every session of a batch was refused for one and the same reason.
    #[error(
        "the database refuses every one of {sessions} sessions for the same reason ({reason}): \
            the table or a trigger is at fault, not the records"
    )]
    AllRefused {
        /// How many.
        sessions: usize,
        /// The reason, without values.
        reason: String,
    },
    /// Records were to be rejected, and are not in `rejected_records` after the statement.
    #[error(
        "{records} records could not be stored in rejected_records: a trigger or a rule keeps \
            them out"
    )]
    RejectionNotStored {
        /// How many.
        records: usize,
    },
    /// S3 refused or could not be reached.
    #[error("cannot {operation} s3://{bucket}/{key}: {message}")]
    Archive {
        /// `HEAD`, `GET` or `PUT`.
        operation: &'static str,
        /// `ARCHIVE_BUCKET`.
        bucket: String,
        /// The object.
        key: String,
        /// What happened, and what to do about it.
        message: Box<Message>,
        /// What the service said.
        #[source]
        source: Source,
    },
    /// The bucket is not there, not here, or not one that the projector can use.
    #[error("ARCHIVE_BUCKET {bucket:?} cannot be used: {message}")]
    NoBucket {
        /// `ARCHIVE_BUCKET`.
        bucket: String,
        /// What happened, and what to do about it.
        message: Box<Message>,
        /// What the service said.
        #[source]
        source: Source,
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
            Self::Misconfigured(_)
            | Self::NoBucket { .. }
            | Self::Pooled
            | Self::NotDurable(_)
            | Self::LeaseEnded { .. }
            | Self::AllRefused { .. } => Consequence::Fatal,
            Self::Connect(error) => error.consequence(),
            Self::Refused { cause, .. } => cause.consequence,
            Self::Database(error) => cause::of_database(error).consequence,
            Self::StatementTimeout { .. } => Consequence::Split,
            Self::Credentials { .. }
            | Self::ConnectTimeout { .. }
            | Self::OutOfTime { .. }
            | Self::RowVanished(_)
            | Self::RowNotWritten { .. }
            | Self::RejectionNotStored { .. }
            | Self::Archive { .. }
            | Self::Contended { .. } => Consequence::Retry,
        }
    }

    /// What happened and what to do about it, as far as the table of causes says it.
    #[must_use]
    pub fn message(&self) -> Option<Message> {
        match self {
            Self::Connect(error) => error.message(),
            Self::Refused { cause, .. } => Some(cause.message.clone()),
            Self::Database(error) => Some(cause::of_database(error).message),
            Self::Archive { message, .. } | Self::NoBucket { message, .. } => {
                Some(message.as_ref().clone())
            }
            _ => None,
        }
    }

    /// Whether the database did not answer in time.
    #[must_use]
    pub fn timed_out(&self) -> bool {
        match self {
            Self::Connect(error) => error.timed_out(),
            Self::ConnectTimeout { .. } | Self::StatementTimeout { .. } => true,
            _ => false,
        }
    }

    /// Whether the statement was too large for the time or the memory that it had.
    #[must_use]
    pub fn too_much(&self) -> bool {
        match self {
            Self::StatementTimeout { .. } => true,
            Self::Database(error) => cause::too_much(error),
            _ => false,
        }
    }

    /// Whether the statement waited in vain for a row that somebody else has locked.
    #[must_use]
    pub fn locked(&self) -> bool {
        matches!(self, Self::Database(error) if cause::locked(error))
    }

    /// Whether a variable, a flag or the set-up is at fault, which no later try would change. The
    /// database says so itself of its schema, its privileges, its name and its login: whatever of
    /// its answers is fatal.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Misconfigured(_) | Self::NoBucket { .. } | Self::Pooled | Self::NotDurable(_) => {
                true
            }
            Self::Connect(error) => error.is_configuration(),
            Self::Refused { .. } | Self::Database(_) => self.consequence() == Consequence::Fatal,
            _ => false,
        }
    }

    /// The name of the error, as Lambda's answer shows it in `errorType`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Misconfigured(_) => "Misconfigured",
            Self::Credentials { .. } => "Credentials",
            Self::Connect(error) => error.name(),
            Self::Refused { .. } => "Refused",
            Self::Database(_) => "Database",
            Self::ConnectTimeout { .. } => "ConnectTimeout",
            Self::StatementTimeout { .. } => "StatementTimeout",
            Self::OutOfTime { .. } => "OutOfTime",
            Self::Pooled => "Pooled",
            Self::NotDurable(_) => "NotDurable",
            Self::RowVanished(_) => "RowVanished",
            Self::RowNotWritten { .. } => "RowNotWritten",
            Self::LeaseEnded { .. } => "LeaseEnded",
            Self::AllRefused { .. } => "AllRefused",
            Self::RejectionNotStored { .. } => "RejectionNotStored",
            Self::Archive { .. } => "Archive",
            Self::NoBucket { .. } => "NoBucket",
            Self::Contended { .. } => "Contended",
        }
    }
}

fn and_others(others: usize) -> String {
    if others == 0 { String::new() } else { format!(", like those of {others} others,") }
}

/// An error and all its sources, for one line of a log.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(current) = source {
        // PostgreSQL's own text may quote values.
        let of_database = current.downcast_ref::<sqlx::Error>().and_then(cause::without_values);
        let current_text = of_database.unwrap_or_else(|| current.to_string());
        // Transparent wrappers repeat what they wrap.
        if !text.ends_with(&current_text) {
            text.push_str(": ");
            text.push_str(&current_text);
        }
        source = current.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Consequence, Error};

    #[test]
    fn a_lost_connection_is_replaced_and_a_wrong_url_is_fatal() {
        let lost = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        assert_eq!(Error::Database(sqlx::Error::Io(lost)).consequence(), Consequence::Reconnect);
        let wrong = sqlx::Error::Configuration("no".into());
        assert_eq!(Error::Database(wrong).consequence(), Consequence::Fatal);
    }

    #[test]
    fn what_the_database_calls_a_wrong_set_up_is_one_and_what_passes_is_not() {
        let wrong = Error::Database(sqlx::Error::Configuration("no".into()));
        assert!(Error::Connect(std::sync::Arc::new(wrong)).is_configuration());
        let lost = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        assert!(!Error::Database(sqlx::Error::Io(lost)).is_configuration());
    }
}
