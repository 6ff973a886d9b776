//! Pure: what a document of a file is, and the records in it.

use anyhow::{Context as _, bail};
use projector::handler::StreamEvent;
use serde::Deserialize;
use serde_json::value::RawValue;

/// What a document is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One stream record, or nothing that is known.
    Record,
    /// A Lambda event.
    Event,
    /// What Lambda writes to an on-failure destination.
    FailedBatch,
}

/// What a document is, by the name of its first member.
pub(crate) fn kind(text: &[u8]) -> Kind {
    let member = text.strip_prefix(b"{").map(<[u8]>::trim_ascii_start).unwrap_or_default();
    let begins = |names: &[&str]| names.iter().any(|name| member.starts_with(name.as_bytes()));
    if begins(&["\"Records\""]) {
        Kind::Event
    } else if begins(&[
        "\"requestContext\"",
        "\"responseContext\"",
        "\"version\"",
        "\"timestamp\"",
        "\"DDBStreamBatchInfo\"",
        "\"payload\"",
    ]) {
        Kind::FailedBatch
    } else {
        Kind::Record
    }
}

/// What Lambda writes about a batch that it gave up on (AWS Lambda Developer Guide, "Retain discarded records
/// for a DynamoDB event source in Lambda").
#[derive(Deserialize)]
struct FailedBatch {
    #[serde(rename = "DDBStreamBatchInfo")]
    batch: BatchInfo,
    /// The whole event, as text; only in a destination on S3.
    payload: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BatchInfo {
    shard_id: String,
    start_sequence_number: String,
    end_sequence_number: String,
    stream_arn: String,
}

/// The records of a batch that Lambda gave up on.
///
/// # Errors
/// Where it holds none: they would be lost without a word.
pub(crate) fn failed_batch(text: &[u8]) -> anyhow::Result<Vec<Vec<u8>>> {
    let failed: FailedBatch = serde_json::from_slice(text)
        .context("looks like a batch that Lambda gave up on, and is not of a DynamoDB stream")?;
    let Some(payload) = failed.payload else {
        let BatchInfo { shard_id, start_sequence_number, end_sequence_number, stream_arn } =
            failed.batch;
        bail!(
            "a batch that Lambda gave up on, without its records: those it writes only to a destination on S3. \
             They are sequence numbers {start_sequence_number} to {end_sequence_number} of {shard_id} of \
             {stream_arn}; within 24 hours `backfill stream` reads them again"
        );
    };
    let event_text = match serde_json::from_str::<String>(payload.get()) {
        Ok(text) => text,
        Err(_) => payload.get().to_owned(),
    };
    let records = event(event_text.as_bytes())
        .context("the payload of the batch that Lambda gave up on is no event")?;
    if records.is_empty() {
        bail!("the payload of the batch that Lambda gave up on has no records");
    }
    Ok(records)
}

/// The records of a Lambda event, each to the letter.
///
/// # Errors
/// Where it is none.
pub(crate) fn event(text: &[u8]) -> anyhow::Result<Vec<Vec<u8>>> {
    let event: StreamEvent = serde_json::from_slice(text)?;
    event.into_records().context("it has no Records")
}
