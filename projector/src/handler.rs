//! Lambda event in, partial batch response out.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use lambda_runtime::Diagnostic;
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::apply::{BatchOutcome, Projector};
use crate::counts::Counts;
use crate::deadline::Deadline;
use crate::error::{self, Error};
use crate::{rejected, telemetry};

/// What invokes the function. Each record stays text: it is decoded by itself.
#[derive(Debug)]
pub enum StreamEvent {
    /// The records of an event source mapping (`{"Records": [...]}`, whatever else stands beside
    /// them), or those that EventBridge Pipes sends (`[...]`).
    Records(Vec<Box<RawValue>>),
    /// Something else.
    Other,
}

impl<'de> Deserialize<'de> for StreamEvent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnEvent;

        impl<'de> Visitor<'de> for AnEvent {
            type Value = StreamEvent;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an event")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<StreamEvent, A::Error> {
                let mut event = StreamEvent::Other;
                while let Some(name) = map.next_key::<String>()? {
                    if name == "Records" {
                        event = StreamEvent::Records(map.next_value()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(event)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<StreamEvent, A::Error> {
                let mut records = Vec::new();
                while let Some(record) = list.next_element()? {
                    records.push(record);
                }
                Ok(StreamEvent::Records(records))
            }
        }

        deserializer.deserialize_any(AnEvent)
    }
}

impl StreamEvent {
    /// Each record's JSON, to the letter; `None` where there are none because it is no such event.
    #[must_use]
    pub fn into_records(self) -> Option<Vec<Vec<u8>>> {
        let Self::Records(records) = self else { return None };
        let bytes = |record| Box::<str>::from(record).into_boxed_bytes().into_vec();
        Some(records.into_iter().map(bytes).collect())
    }
}

/// The answer to an event source mapping with `ReportBatchItemFailures`.
#[derive(Debug, Default, Serialize, PartialEq, Eq)]
pub struct BatchResponse {
    /// Empty: all is done. Else one entry, the lowest sequence number that failed; Lambda delivers
    /// from that record on again (AWS Lambda Developer Guide, "Configuring partial batch response
    /// with DynamoDB and Lambda").
    #[serde(rename = "batchItemFailures")]
    pub batch_item_failures: Vec<BatchItemFailure>,
}

/// One record that comes again.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub struct BatchItemFailure {
    /// Its sequence number as it came; never empty, which would fail the whole batch.
    #[serde(rename = "itemIdentifier")]
    pub item_identifier: String,
}

/// Why an invocation fails as a whole: Lambda acknowledges nothing of the batch.
#[derive(thiserror::Error)]
pub enum InvocationError {
    /// The set-up is wrong.
    #[error("nothing is acknowledged: {}", error::chain(.0))]
    Fatal(Error),
    /// A record failed whose place in the stream is not known.
    #[error(
        "a record without a readable sequence number could not be stored, so the whole batch has to come again"
    )]
    UnknownPlace,
    /// What came is no event of a stream.
    #[error(
        "the event has no Records: invoke this function by an event source mapping of a DynamoDB stream, or by EventBridge Pipes"
    )]
    NotAnEvent,
}

/// As `Display`: the runtime logs an error in this form, and those of a library may quote values.
impl fmt::Debug for InvocationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl From<InvocationError> for Diagnostic {
    fn from(error: InvocationError) -> Self {
        let error_type = match &error {
            InvocationError::Fatal(error) => error.name(),
            InvocationError::UnknownPlace => "UnknownPlace",
            InvocationError::NotAnEvent => "NotAnEvent",
        };
        Self { error_type: error_type.to_owned(), error_message: error.to_string() }
    }
}

/// Applies an event and reports what has to come again. What is not in both stores by the deadline
/// is reported, too.
///
/// # Errors
/// [`InvocationError`]; then the whole batch comes again.
pub async fn handle(
    projector: &Projector,
    event: StreamEvent,
    function: &str,
    deadline: Deadline,
) -> Result<BatchResponse, InvocationError> {
    let start = Instant::now();
    let records = Arc::new(event.into_records().ok_or(InvocationError::NotAnEvent)?);
    // Boxed: the futures below it are deeply nested, and the compiler has a limit.
    let applying = Box::pin(projector.apply_overlapping(&records, deadline));
    let batch = applying.await.map_err(|error| {
        tracing::error!(error = error::chain(&error), "nothing is acknowledged");
        // An alarm on failures must see this too.
        let failed = records.len() as u64;
        let counts = Counts { records: failed, failed, ..Counts::default() };
        let batch = BatchOutcome { counts, ..BatchOutcome::default() };
        telemetry::print_metrics(&batch, start.elapsed(), function);
        InvocationError::Fatal(error)
    })?;
    let duration = start.elapsed();
    telemetry::log_batch(&batch, duration);
    telemetry::print_metrics(&batch, duration, function);
    let failed = batch.failed.iter().map(|record_index| records[*record_index].as_slice());
    respond(failed)
}

fn respond<'a>(failed: impl Iterator<Item = &'a [u8]>) -> Result<BatchResponse, InvocationError> {
    let sequence_numbers: Option<Vec<String>> = failed.map(rejected::sequence_number).collect();
    let lowest = sequence_numbers
        .ok_or(InvocationError::UnknownPlace)?
        .into_iter()
        .min_by(|a, b| numeric(a).cmp(&numeric(b)));
    let failure = lowest.map(|item_identifier| BatchItemFailure { item_identifier });
    Ok(BatchResponse { batch_item_failures: failure.into_iter().collect() })
}

/// A key in whose order decimal numbers of any length are.
fn numeric(digits: &str) -> (usize, &str) {
    let digits = digits.trim_start_matches('0');
    (digits.len(), digits)
}

#[cfg(test)]
mod tests {
    use super::{InvocationError, StreamEvent, respond};
    use lambda_runtime::Diagnostic;

    fn record(sequence_number: &str) -> Vec<u8> {
        format!(r#"{{"dynamodb":{{"SequenceNumber":"{sequence_number}"}}}}"#).into_bytes()
    }

    #[test]
    fn the_lowest_failure_is_reported_by_its_number_not_its_text() {
        let records = [record("1000"), record("999"), record("00001001")];
        let response = respond(records.iter().map(Vec::as_slice)).expect("a response");
        assert_eq!(
            serde_json::to_string(&response).expect("JSON"),
            r#"{"batchItemFailures":[{"itemIdentifier":"999"}]}"#
        );
    }

    #[test]
    fn records_are_found_wherever_they_stand_and_what_has_none_is_named() {
        let records = |event: &str| {
            let event: StreamEvent = serde_json::from_str(event).expect("JSON");
            event.into_records().map(|records| records.len())
        };
        assert_eq!(records(r#"{"window":{"Records":1},"Records":[{},1],"state":{}}"#), Some(2));
        assert_eq!(records(r#"{"Records":[],"isFinalInvokeForWindow":true}"#), Some(0));
        assert_eq!(records("[{},{}, null]"), Some(3));
        assert_eq!(records(r#"{"hello":"world"}"#), None);
        let answer = Diagnostic::from(InvocationError::NotAnEvent);
        assert_eq!(answer.error_type, "NotAnEvent");
    }

    #[test]
    fn no_failure_is_an_empty_list() {
        let response = respond(std::iter::empty()).expect("a response");
        assert_eq!(serde_json::to_string(&response).expect("JSON"), r#"{"batchItemFailures":[]}"#);
    }

    #[test]
    fn a_failed_record_without_a_place_fails_the_batch() {
        let records = [record("1000"), b"{}".to_vec()];
        let response = respond(records.iter().map(Vec::as_slice));
        assert!(matches!(response, Err(InvocationError::UnknownPlace)));
    }
}
