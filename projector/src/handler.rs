//! Lambda event in, partial batch response out.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::apply::{Applied, Counts, Projector};
use crate::error::{self, Error};
use crate::{rejected, telemetry};

/// What Lambda delivers from a stream. Each record stays text: it is decoded by itself.
#[derive(Debug, Deserialize)]
pub struct StreamEvent {
    #[serde(rename = "Records")]
    records: Vec<Box<RawValue>>,
}

impl StreamEvent {
    /// Each record's JSON, to the letter.
    pub fn into_records(self) -> impl Iterator<Item = Vec<u8>> {
        self.records
            .into_iter()
            .map(|record| Box::<str>::from(record).into_boxed_bytes().into_vec())
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
#[derive(Debug, thiserror::Error)]
pub enum InvocationError {
    /// The set-up is wrong.
    #[error("nothing is acknowledged: {}", error::chain(.0))]
    Fatal(Error),
    /// A record failed whose place in the stream is not known.
    #[error(
        "a record without a readable sequence number could not be stored, so the whole batch has to come again"
    )]
    UnknownPlace,
}

/// Applies an event and reports what has to come again.
///
/// # Errors
/// [`InvocationError`]; then the whole batch comes again.
pub async fn handle(
    projector: &Projector,
    event: StreamEvent,
    function: &str,
) -> Result<BatchResponse, InvocationError> {
    let start = Instant::now();
    let records: Vec<Vec<u8>> = event.into_records().collect();
    // Boxed: the futures below it are deeply nested, and the compiler has a limit.
    let batch = Box::pin(projector.apply(&records)).await.map_err(|error| {
        tracing::error!(error = error::chain(&error), "nothing is acknowledged");
        // An alarm on failures must see this too.
        let failed = records.len() as u64;
        let counts = Counts { records: failed, failed, ..Counts::default() };
        let batch = Applied { counts, ..Applied::default() };
        telemetry::print_metrics(&batch, start.elapsed(), function);
        InvocationError::Fatal(error)
    })?;
    let duration = start.elapsed();
    telemetry::log_batch(&batch, duration);
    telemetry::print_metrics(&batch, duration, function);
    let failed = batch.failed.iter().map(|position| records[*position].as_slice());
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
    use super::{InvocationError, respond};

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
