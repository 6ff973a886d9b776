//! A repair of whole tables in many invocations of a function: the files of two full exports, a
//! slice of one file per invocation, through the code of `backfill repair`.
//!
//! What one process keeps there is kept here by the row in `repairs`: the lock is its lease
//! (`repair/lease.rs`), and one invocation follows the streams for all slices and publishes in it
//! how far they are read. A slice keeps nothing from one invocation to the next but the number of
//! the first line that is not settled.
//!
//! Rows whose item is gone are in no file. So the keys of all items are added up, in sums that all
//! invocations share, and after the last slice the keys of all rows are subtracted, range by range
//! (`count.rs`). What is left names the parts that are then asked for (`check.rs`).

mod check;
mod compare;
mod count;
pub mod event;
mod failure;
mod follow;
mod lease_events;
mod pieces;
mod ranges;
mod recording;
mod runs;
mod slice;

use std::sync::Arc;
use std::time::Duration;

use aws_config::SdkConfig;
use futures_util::future::LocalBoxFuture;
use projector::apply::Projector;
use projector::config::{Config, ConfigError};
use projector::deadline::Deadline;
use projector::error::Error;
use projector::start;

use self::event::{Answer, Event, Step, WrongEvent};
use self::runs::WrongRun;
use crate::advisory_lock::HeldByAnother;
use crate::console;
use crate::deliver::Delivery;
use crate::items::api::TablesApi;
use crate::items::place::{self, FileFault};
use crate::repair::conduct::{Connections, FUNCTION_TIMEOUT};
use crate::replay::run::Pace;

/// Pages of the streams in memory at once, of 1 MB each at most.
const PAGES: usize = 8;
/// Records of the streams are stored in batches of at most this many.
const BATCH_SIZE: usize = 1_000;
/// As `backfill repair` waits without its flags.
const IDLE_SECONDS: u64 = 10;
const FIRST_RECORD_SECONDS: u64 = 60;
const CHILD_WAIT: Duration = Duration::from_mins(1);

/// How long to wait for others; each is a variable of the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waits {
    /// `FUNCTION_TIMEOUT_SECONDS`: the timeout of the function that reads the streams.
    function_timeout: Duration,
    /// `IDLE_SECONDS`: as the flag `--idle-seconds`.
    idle: Duration,
    /// `FIRST_RECORD_SECONDS`: as the flag `--first-record-seconds`.
    first_record: Duration,
}

impl Waits {
    /// Reads the variables.
    ///
    /// # Errors
    /// [`ConfigError`] if one is no number of seconds.
    pub fn read(variable: impl Fn(&'static str) -> Option<String>) -> Result<Self, ConfigError> {
        let seconds = |name: &'static str, default: u64| {
            let Some(text) = variable(name).filter(|text| !text.trim().is_empty()) else {
                return Ok(Duration::from_secs(default));
            };
            let parsed = text.trim().parse().ok().filter(|seconds| (1..=86_400).contains(seconds));
            parsed.map(Duration::from_secs).ok_or_else(|| ConfigError {
                variable: name,
                problem: format!("is {text:?}, expected a number of seconds from 1 to 86400"),
            })
        };
        let timeout = FUNCTION_TIMEOUT.unsigned_abs().as_secs();
        Ok(Self {
            function_timeout: seconds("FUNCTION_TIMEOUT_SECONDS", timeout)?,
            idle: seconds("IDLE_SECONDS", IDLE_SECONDS)?,
            first_record: seconds("FIRST_RECORD_SECONDS", FIRST_RECORD_SECONDS)?,
        })
    }

    fn pace(&self) -> Pace {
        Pace {
            idle: self.idle,
            first_record: self.first_record,
            child_wait: CHILD_WAIT,
            parallel: PAGES,
            batch_size: BATCH_SIZE,
        }
    }
}

/// The function in the form `EVENTS=reconcile`.
pub struct Reconciler {
    projector: Arc<Projector>,
    aws: SdkConfig,
    api: TablesApi,
    exports: aws_sdk_s3::Client,
    connections: Connections,
    waits: Waits,
}

/// Why an invocation fails, with a name by which a state machine can tell what to do.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// `WrongEvent`, `LeaseEnded` and `DamagedFile` do not pass. `HeldByAnother` does once that one
    /// has ended, and `Failed` may.
    pub name: &'static str,
    /// What happened, and the remedy.
    pub message: String,
}

impl From<WrongEvent> for Failure {
    fn from(wrong: WrongEvent) -> Self {
        Self { name: "WrongEvent", message: wrong.to_string() }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        let any = |is: fn(&(dyn std::error::Error + 'static)) -> bool| error.chain().any(is);
        let name = if any(<dyn std::error::Error>::is::<FileFault>) {
            "DamagedFile"
        } else if any(<dyn std::error::Error>::is::<HeldByAnother>) {
            "HeldByAnother"
        } else if any(<dyn std::error::Error>::is::<WrongRun>)
            || any(|error| matches!(error.downcast_ref(), Some(Error::LeaseEnded { .. })))
        {
            "LeaseEnded"
        } else {
            "Failed"
        };
        Self { name, message: projector::error::chain(error.as_ref()) }
    }
}

impl Reconciler {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// [`ConfigError`] if there is no region.
    pub async fn new(config: Config, waits: Waits) -> Result<Self, ConfigError> {
        console::lines_to_log();
        let aws = Box::pin(start::aws()).await?;
        let projector = Delivery::share(Box::pin(start::projector(config)).await?);
        Ok(Self {
            api: TablesApi::new(&aws, projector.tables.clone(), None),
            exports: place::client(&aws),
            connections: Connections::apart_from(&projector.database),
            projector,
            aws,
            waits,
        })
    }

    /// Does what an event asks for, and answers before the deadline.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn handle(&self, json: &str, deadline: Deadline) -> Result<Answer, Failure> {
        // Without their types, whose depth is more than the compiler takes in another crate.
        let answering: LocalBoxFuture<'_, anyhow::Result<Answer>> = match event::parse(json)? {
            Event::Begin(begin) => Box::pin(lease_events::begin(self, begin)),
            Event::End(end) => Box::pin(lease_events::end(self, end)),
            Event::Follow(follow) => Box::pin(follow::run(self, follow, deadline)),
            Event::Slice(slice) => Box::pin(slice::run(self, slice, deadline)),
            Event::Ranges(ranges) => Box::pin(ranges::run(self, ranges)),
            Event::Range(range) => match range.step {
                Step::Count => Box::pin(count::run(self, range, deadline)),
                Step::Check => Box::pin(check::run(self, range, deadline)),
            },
            Event::Failure(batch) => Box::pin(failure::run(self, batch, deadline)),
        };
        answering.await.map_err(|error| {
            let failure = Failure::from(error);
            tracing::error!(error = failure.message, "the request failed");
            failure
        })
    }
}
