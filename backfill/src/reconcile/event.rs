//! The events of a reconciliation and its answers, as JSON. Pure.
//!
//! An event is one object under `reconcile`, and its members are fixed: an event that has one too
//! many, or lacks one, is refused as a whole, since a state machine that misspells a member must
//! not run with half of what it means.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// What an event asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Begin a repair, and take its lease.
    Begin(Begin),
    /// Replay and follow the streams for a repair, and renew its lease.
    Follow(Follow),
    /// Compare the lines of one file with their rows, and repair what differs.
    Slice(Slice),
    /// Read the keys of one object of a bucket of failures again, and delete it.
    Failure(FailedBatch),
    /// End a repair.
    End(End),
}

/// Begins a repair.
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

/// An object of a bucket of failures, which is a batch that Lambda gave up on; also the answer of an
/// earlier call, so that it can be sent back as it is.
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

/// Ends a repair.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// Its id.
    pub repair: i64,
    /// As in [`Begin`].
    pub owner: String,
    /// Whether every slice was done.
    pub complete: bool,
    /// The sums of the slices.
    #[serde(default)]
    pub compared: u64,
    /// As in [`Slice`].
    #[serde(default)]
    pub differing: u64,
    /// As in [`Slice`].
    #[serde(default)]
    pub repaired: u64,
    /// As in [`Slice`].
    #[serde(default)]
    pub rejected: u64,
}

/// What an event came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// To [`Begin`].
    Begun {
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
    /// To [`End`].
    Ended {
        /// The repair that has ended.
        repair: i64,
        /// Whether it went through all its files.
        complete: bool,
    },
}

/// Why an event is none of these.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the event is no request of a reconciliation: {why}. It is one of \
     {{\"reconcile\": {{\"begin\": {{\"source\", \"owner\", \"repair\"}}}}}}, \
     {{\"reconcile\": {{\"follow\": {{\"repair\", \"owner\"}}}}}}, \
     {{\"reconcile\": {{\"end\": {{\"repair\", \"owner\", \"complete\", ...}}}}}}, \
     {{\"reconcile\": {{\"bucket\", \"failure\", \"repair\", \"run\"}}}} and \
     {{\"reconcile\": {{\"bucket\", \"key\", \"md5\", \"items\", \"repair\", \"next\"}}}}"
)]
pub struct WrongEvent {
    why: String,
}

/// A missing member is not `null`.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
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
    const COMMANDS: [&str; 3] = ["begin", "follow", "end"];
    let command = COMMANDS.into_iter().find(|name| request.contains_key(*name));
    let event = match command.filter(|_| request.len() == 1) {
        Some(name) => {
            let body = request.remove(name).unwrap_or_default();
            match name {
                "begin" => read(name, body).map(Event::Begin)?,
                "follow" => read(name, body).map(Event::Follow)?,
                _ => read(name, body).map(Event::End)?,
            }
        }
        None => match command {
            Some(name) => return wrong(format!("{name} is not alone")),
            None if request.contains_key("failure") => {
                read("a failure", Json::Object(request)).map(Event::Failure)?
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
            Self::Slice(_) | Self::Failure(_) => None,
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
            _ => Ok(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Answer, Begin, End, Event, Follow, Slice, parse};

    fn slice() -> Slice {
        Slice {
            bucket: "b".to_owned(),
            key: "AWSDynamoDB/1/data/a.json.gz".to_owned(),
            md5: "m".to_owned(),
            items: 5,
            repair: Some(7),
            next: 2,
            done: false,
            compared: 0,
            differing: 0,
            repaired: 0,
            rejected: 0,
        }
    }

    #[test]
    fn each_form_is_read() {
        let (owner, source) = ("arn:e".to_owned(), "reconcile".to_owned());
        for (json, expected) in [
            (
                r#"{"reconcile": {"begin": {"source": "reconcile", "owner": "arn:e", "repair": true}}}"#,
                Event::Begin(Begin { source, owner: owner.clone(), repair: true }),
            ),
            (
                r#"{"reconcile": {"follow": {"repair": 7, "owner": "arn:e"}}}"#,
                Event::Follow(Follow { repair: 7, owner: owner.clone() }),
            ),
            (
                r#"{"reconcile": {"end": {"repair": 7, "owner": "arn:e", "complete": true, "repaired": 3}}}"#,
                Event::End(End {
                    repair: 7,
                    owner,
                    complete: true,
                    compared: 0,
                    differing: 0,
                    repaired: 3,
                    rejected: 0,
                }),
            ),
            (
                r#"{"reconcile": {"bucket": "b", "key": "AWSDynamoDB/1/data/a.json.gz", "md5": "m", "items": 5, "repair": 7, "next": 2}}"#,
                Event::Slice(slice()),
            ),
            (
                r#"{"reconcile": {"bucket": "b", "key": "AWSDynamoDB/1/data/a.json.gz", "md5": "m", "items": 5, "repair": null}}"#,
                Event::Slice(Slice { repair: None, next: 0, ..slice() }),
            ),
        ] {
            assert_eq!(parse(json).expect(json), expected, "{json}");
        }
    }

    #[test]
    fn the_answer_to_a_slice_can_be_sent_back_as_it_is() {
        let slice =
            Slice { next: 4, compared: 4, differing: 2, repaired: 1, rejected: 1, ..slice() };
        let answer = serde_json::to_string(&Answer::Slice(slice.clone())).expect("JSON");
        let again = parse(&format!(r#"{{"reconcile": {answer}}}"#)).expect("a slice");
        assert_eq!(again, Event::Slice(slice));
    }

    #[test]
    fn anything_else_is_refused_and_the_reason_is_named() {
        for (json, said) in [
            ("7", "it is no JSON object"),
            (r#"{"Records": []}"#, "set EVENTS to streams"),
            ("{}", "other members than reconcile alone"),
            (r#"{"reconcile": 7}"#, "reconcile is no object"),
            (r#"{"reconcile": {}, "more": 1}"#, "other members than reconcile alone"),
            (r#"{"reconcile": {}}"#, "a slice: missing field `bucket`"),
            (
                r#"{"reconcile": {"begin": {"source": "scan", "owner": "o", "repair": true}}}"#,
                "source is \"scan\"",
            ),
            (
                r#"{"reconcile": {"begin": {"source": "reconcile", "owner": " ", "repair": true}}}"#,
                "owner is empty",
            ),
            (r#"{"reconcile": {"follow": {"repair": "7", "owner": "o"}}}"#, "follow: invalid type"),
            (
                r#"{"reconcile": {"follow": {"repair": 7, "owner": "o", "x": 1}}}"#,
                "unknown field `x`",
            ),
            (
                r#"{"reconcile": {"follow": {"repair": 7, "owner": "o"}, "next": 1}}"#,
                "follow is not alone",
            ),
            (r#"{"reconcile": {"end": {"repair": 7, "owner": "o"}}}"#, "missing field `complete`"),
            (
                r#"{"reconcile": {"bucket": "b", "key": "k", "md5": "m", "items": 5, "next": 0}}"#,
                "missing field `repair`",
            ),
            (
                r#"{"reconcile": {"bucket": "b", "key": "k", "md5": "m", "items": 5, "repair": 1, "next": 6}}"#,
                "next is 6, and the file has 5 items",
            ),
            (
                r#"{"reconcile": {"bucket": "b", "key": "k", "md5": "m", "items": -5, "repair": 1, "next": 0}}"#,
                "a slice: invalid ",
            ),
        ] {
            let error = parse(json).expect_err(json).to_string();
            assert!(error.contains(said), "{json}: {error}");
            assert!(error.contains("{\"reconcile\": {\"begin\""), "{error}");
        }
    }
}
