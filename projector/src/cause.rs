//! THE table of causes: what PostgreSQL or S3 answered → what becomes of the records → what
//! happened and what to do about it, in one line. Pure, and tested row by row: `cause/database.rs`
//! has PostgreSQL's answers, `cause/s3.rs` those of S3.
//!
//! An answer of S3 that is not listed is retried; a SQLSTATE that is not listed is split. Either
//! way the records come again, and nothing is lost.

mod database;
mod s3;

use std::borrow::Cow;
use std::fmt;

pub use self::database::{REACH_DATABASE, sqlstate};
pub(crate) use self::database::{
    ended_connection, locked, of_connecting, of_database, rolled_back_for_another, stale_statement,
    too_much, without_values,
};
pub use self::s3::REACH_S3;
pub(crate) use self::s3::of_s3;

/// What becomes of the records that an error concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consequence {
    /// A passing cause. The records are not acknowledged and come again.
    Retry,
    /// The statement failed and the connection lives. Its sessions are tried in smaller statements;
    /// a session that fails alone comes again.
    Split,
    /// PostgreSQL will never take these values. The statement is bisected down to the one change,
    /// and its record is rejected.
    Reject,
    /// The connection is of no use any more. The statement is run again over a new one; if that
    /// fails too, the records come again.
    Reconnect,
    /// The set-up is wrong. Nothing is acknowledged until the operator has fixed it.
    Fatal,
}

/// What an error comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// What becomes of the records.
    pub consequence: Consequence,
    /// What happened, and what to do about it.
    pub message: Message,
}

/// What happened, and what to do about it, each by itself: `backfill doctor` shows them on two
/// lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What happened.
    pub what: Cow<'static, str>,
    /// What to do about it, if there is anything to do but wait.
    pub remedy: Option<Cow<'static, str>>,
}

impl Message {
    /// A message without a remedy.
    pub fn new(what: impl Into<Cow<'static, str>>) -> Self {
        Self { what: what.into(), remedy: None }
    }

    /// The same with this remedy.
    #[must_use]
    pub fn remedy(self, remedy: impl Into<Cow<'static, str>>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        self.remedy.as_ref().map_or(Ok(()), |remedy| write!(f, ": {remedy}"))
    }
}

/// A message in a table: what happened, and what to do about it; nothing if it only has to pass.
#[derive(Clone, Copy)]
struct Said(&'static str, &'static str);

impl From<Said> for Message {
    fn from(Said(what, remedy): Said) -> Self {
        let message = Self::new(what);
        if remedy.is_empty() { message } else { message.remedy(remedy) }
    }
}

impl Cause {
    fn new(consequence: Consequence, message: impl Into<Message>) -> Self {
        Self { consequence, message: message.into() }
    }
}
