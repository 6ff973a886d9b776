//! The events of a reconciliation and its answers, as JSON. Pure.
//!
//! An event is one object under `reconcile`, and its members are fixed: an event that has one too
//! many, or lacks one, is refused as a whole, since a state machine that misspells a member must
//! not run with half of what it means.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};
use sqlx::FromRow;

#[cfg(test)]
mod tests;

/// How many ranges may be asked for.
const RANGES: std::ops::RangeInclusive<u64> = 1..=1_000;

/// What an event asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Begin a run; of a repair, take its lease.
    Begin(Begin),
    /// Replay and follow the streams for a repair, and renew its lease.
    Follow(Follow),
    /// Compare the lines of one file with their rows, and repair what differs.
    Slice(Slice),
    /// Read the keys of one object of a bucket of failures again, and delete it.
    Failure(FailedBatch),
    /// Split the rows into ranges.
    Ranges(Ranges),
    /// Add up the rows of a range, or check those among them that may have no item.
    Range(Range),
    /// End a run.
    End(End),
}

/// Begins a run.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Begin {
    /// Where the keys come from: `reconcile`.
    pub source: String,
    /// Who holds the lease: the ARN of an execution.
    pub owner: String,
    /// `false`: the slices only compare, which needs no lease.
    pub repair: bool,
}

/// Follows the streams for a repair.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Follow {
    /// Its id, as `begin` answered it.
    pub repair: i64,
    /// As in [`Begin`].
    pub owner: String,
}

/// A data file of an export, from a line on; also the answer of an earlier call, so that it can be
/// sent back as it is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Slice {
    /// The bucket of the export.
    pub bucket: String,
    /// `dataFileS3Key`.
    pub key: String,
    /// `md5Checksum`.
    pub md5: String,
    /// `itemCount`.
    pub items: u64,
    /// The repair; `null` compares alone.
    #[serde(deserialize_with = "present")]
    pub repair: Option<i64>,
    /// The run, as `begin` answered it. Without it nothing is recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<i64>,
    /// The first line that is not settled, counted from 0.
    #[serde(default)]
    pub next: u64,
    /// Whether every line of the file is settled, and the file is the one that was named.
    #[serde(default)]
    pub done: bool,
    /// How many lines before `next` were compared, by all calls.
    #[serde(default)]
    pub compared: u64,
    /// How many of their parts differed.
    #[serde(default)]
    pub differing: u64,
    /// How many of those were written.
    #[serde(default)]
    pub repaired: u64,
    /// How many items cannot be applied.
    #[serde(default)]
    pub rejected: u64,
}

/// An object of a bucket of failures, which is a batch that Lambda gave up on; also the answer of
/// an earlier call, so that it can be sent back as it is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FailedBatch {
    /// The bucket of failures.
    pub bucket: String,
    /// The object's key.
    pub failure: String,
    /// The repair: nothing is read again without its lease.
    pub repair: i64,
    /// The run, as `begin` answered it. Without it nothing is recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<i64>,
    /// The first record that is not settled, counted from 0.
    #[serde(default)]
    pub next: u64,
    /// The object to which `next` and the counts belong: one that comes in its place is begun anew.
    #[serde(default)]
    pub etag: Option<String>,
    /// Whether every record is settled, and the object is gone.
    #[serde(default)]
    pub done: bool,
    /// How many records the object has; 0 before it is read.
    #[serde(default)]
    pub records: u64,
    /// How many parts were read again, by all calls.
    #[serde(default)]
    pub reread: u64,
    /// How many of those were written.
    #[serde(default)]
    pub repaired: u64,
    /// How many records before `next`, or their items, cannot be applied.
    #[serde(default)]
    pub rejected: u64,
}

/// Splits the rows into ranges.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ranges {
    /// The run.
    pub run: i64,
    /// As in [`Slice`].
    #[serde(deserialize_with = "present")]
    pub repair: Option<i64>,
    /// Into this many, or fewer.
    pub at_most: u64,
}

/// What is done with the rows of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Their keys are added up.
    Count,
    /// The parts that may have no item are asked for.
    Check,
}

/// A range of rows, as [`Ranges`] is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NewRange {
    /// As in [`Ranges`].
    pub run: i64,
    /// As in [`Ranges`].
    pub repair: Option<i64>,
    /// The first step.
    pub step: Step,
    /// As in [`Range`].
    pub after: String,
    /// As in [`Range`].
    pub through: Option<String>,
}

/// A range of rows; also the answer of an earlier call, so that it can be sent back as it is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// The run.
    pub run: i64,
    /// As in [`Slice`].
    #[serde(deserialize_with = "present")]
    pub repair: Option<i64>,
    /// What is done with its rows.
    pub step: Step,
    /// Its sessions come after this one, in the order of the rows.
    pub after: String,
    /// The last one; `null`: all that follow.
    #[serde(deserialize_with = "present")]
    pub through: Option<String>,
    /// The last session that is settled.
    #[serde(default)]
    pub next: String,
    /// Whether all of them are.
    #[serde(default)]
    pub done: bool,
    /// How many rows up to `next` were read, by all calls.
    #[serde(default)]
    pub rows: u64,
    /// How many of their parts were asked for by key.
    #[serde(default)]
    pub asked: u64,
    /// How many of those have no item, and still had none at the last look.
    #[serde(default)]
    pub gone: u64,
    /// How many of those were removed from their rows.
    #[serde(default)]
    pub removed: u64,
    /// How many items cannot be applied.
    #[serde(default)]
    pub rejected: u64,
}

/// Ends a run.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// The run.
    pub run: i64,
    /// Its repair; `null` if it only compared.
    #[serde(deserialize_with = "present")]
    pub repair: Option<i64>,
    /// As in [`Begin`].
    pub owner: String,
    /// Whether everything was done.
    pub complete: bool,
}

/// What a run came to: the sums of its pieces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, FromRow)]
pub struct Ended {
    /// As in [`End`].
    #[sqlx(rename = "id")]
    pub run: i64,
    /// As in [`End`].
    pub repair: Option<i64>,
    /// Whether its owner said so, and each piece was done.
    pub complete: bool,
    /// How many files there were.
    pub files: i64,
    /// How many items, or records, were looked at.
    pub compared: i64,
    /// How many parts differed, those that only rows held included.
    pub differing: i64,
    /// How many parts were written, those that were removed included.
    pub repaired: i64,
    /// How many parts only rows held.
    pub gone: i64,
    /// How many of those were removed.
    pub removed: i64,
    /// How many items or records cannot be applied.
    pub rejected: i64,
}

/// What an event came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// To [`Begin`].
    Begun {
        /// The run: the key of its row in `reconciliations`.
        run: i64,
        /// `null` if the slices only compare.
        repair: Option<i64>,
        /// By the database's clock.
        started_at: String,
    },
    /// To [`Follow`]: `false` asks to be called again.
    Followed {
        /// The repair has ended.
        done: bool,
    },
    /// To [`Slice`].
    Slice(Slice),
    /// To [`FailedBatch`].
    Failure(FailedBatch),
    /// To [`Ranges`].
    Ranges {
        /// In the order of the rows.
        ranges: Vec<NewRange>,
    },
    /// To [`Range`].
    Range(Range),
    /// To [`End`].
    Ended(Ended),
}

/// Why an event is none of these.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the event is no request of a reconciliation: {why}. It is one of \
     {{\"reconcile\": {{\"begin\": {{\"source\", \"owner\", \"repair\"}}}}}}, \
     {{\"reconcile\": {{\"follow\": {{\"repair\", \"owner\"}}}}}}, \
     {{\"reconcile\": {{\"bucket\", \"key\", \"md5\", \"items\", \"repair\", \"run\", \"next\"}}}}, \
     {{\"reconcile\": {{\"bucket\", \"failure\", \"repair\", \"run\"}}}}, \
     {{\"reconcile\": {{\"ranges\": {{\"run\", \"repair\", \"at_most\"}}}}}}, \
     {{\"reconcile\": {{\"run\", \"repair\", \"step\", \"after\", \"through\"}}}} and \
     {{\"reconcile\": {{\"end\": {{\"run\", \"repair\", \"owner\", \"complete\"}}}}}}"
)]
pub struct WrongEvent {
    why: String,
}

/// A missing member is not `null`.
fn present<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::deserialize(deserializer)
}

fn wrong<T>(why: impl Into<String>) -> Result<T, WrongEvent> {
    Err(WrongEvent { why: why.into() })
}

/// Reads an event.
///
/// # Errors
/// [`WrongEvent`] if it is anything else.
pub fn parse(json: &str) -> Result<Event, WrongEvent> {
    let event: Map<String, Json> = match serde_json::from_str(json) {
        Ok(event) => event,
        Err(error) => return wrong(format!("it is no JSON object ({error})")),
    };
    if event.contains_key("Records") {
        return wrong(
            "it has Records of a stream, and the variable EVENTS of this function is reconcile: \
             remove the event source mapping, or set EVENTS to streams",
        );
    }
    let mut members = event.into_iter();
    match (members.next(), members.next()) {
        (Some((name, Json::Object(request))), None) if name == "reconcile" => of_request(request),
        (Some((name, _)), None) if name == "reconcile" => wrong("reconcile is no object"),
        _ => wrong("it has other members than reconcile alone"),
    }
}

fn of_request(mut request: Map<String, Json>) -> Result<Event, WrongEvent> {
    const COMMANDS: [&str; 4] = ["begin", "follow", "ranges", "end"];
    let command = COMMANDS.into_iter().find(|name| request.contains_key(*name));
    let event = match command.filter(|_| request.len() == 1) {
        Some(name) => {
            let body = request.remove(name).unwrap_or_default();
            match name {
                "begin" => read(name, body).map(Event::Begin)?,
                "follow" => read(name, body).map(Event::Follow)?,
                "ranges" => read(name, body).map(Event::Ranges)?,
                _ => read(name, body).map(Event::End)?,
            }
        }
        None => match command {
            Some(name) => return wrong(format!("{name} is not alone")),
            None if request.contains_key("failure") => {
                read("a failure", Json::Object(request)).map(Event::Failure)?
            }
            None if request.contains_key("step") => {
                read("a range", Json::Object(request)).map(Event::Range)?
            }
            None => read("a slice", Json::Object(request)).map(Event::Slice)?,
        },
    };
    event.check()
}

fn read<T: for<'de> Deserialize<'de>>(what: &str, body: Json) -> Result<T, WrongEvent> {
    serde_json::from_value(body).or_else(|error| wrong(format!("{what}: {error}")))
}

impl Event {
    /// Sees that its texts can mean what they have to.
    fn check(self) -> Result<Self, WrongEvent> {
        let owner = match &self {
            Self::Begin(Begin { owner, .. })
            | Self::Follow(Follow { owner, .. })
            | Self::End(End { owner, .. }) => Some(owner),
            Self::Slice(_) | Self::Failure(_) | Self::Ranges(_) | Self::Range(_) => None,
        };
        if owner.is_some_and(|owner| owner.trim().is_empty()) {
            return wrong("owner is empty: name the execution that calls");
        }
        match &self {
            Self::Begin(begin) if begin.source != "reconcile" => {
                wrong(format!("begin: source is {:?}, expected \"reconcile\"", begin.source))
            }
            Self::Slice(slice) if slice.next > slice.items => wrong(format!(
                "a slice: next is {}, and the file has {} items",
                slice.next, slice.items
            )),
            Self::Failure(FailedBatch { next, records, .. }) if next > records => {
                wrong(format!("a failure: next is {next}, and the object has {records} records"))
            }
            Self::Ranges(Ranges { at_most, .. }) if !RANGES.contains(at_most) => {
                wrong(format!("ranges: at_most is {at_most}, expected {RANGES:?}"))
            }
            _ => Ok(self),
        }
    }
}
