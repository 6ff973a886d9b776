//! An event source mapping of a DynamoDB stream as Lambda's documentation describes it, driving the
//! real binary: lanes by item, batches, retries, bisecting, partial failures, and the on-failure
//! destination. The stand-in's own mapping has none of these.
//!
//! Sources: AWS Lambda Developer Guide, "Configuring partial batch response with DynamoDB and
//! Lambda", "Retain discarded records for a DynamoDB event source in Lambda", "Lambda parameters
//! for Amazon DynamoDB event source mappings". How long Lambda waits between retries is not
//! documented; here it is `pause`.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::AddAssign;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value as Json, json};

use crate::emulator::{Lambda, event};
use crate::records::{Record, arn};
use crate::services::{s3, service};

/// A mapping's settings, by the names that they have in `AWS::Lambda::EventSourceMapping`.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// Records a batch at most.
    pub batch_size: usize,
    /// How often a batch that failed comes again.
    pub maximum_retry_attempts: u32,
    /// Whether a batch whose invocation ended in an error is split in two.
    pub bisect_batch_on_function_error: bool,
    /// The bucket for what is given up.
    pub destination: String,
    /// Between a failure and the next try.
    pub pause: Duration,
}

/// What a mapping has seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// How often the function was invoked.
    pub invocations: usize,
    /// How often it ended in an error.
    pub errors: usize,
    /// How often it was ended at its timeout; those are errors, too.
    pub timeouts: usize,
    /// How often it reported a record that failed.
    pub partial_failures: usize,
    /// What went to the destination.
    pub given_up: Vec<Record>,
}

impl AddAssign for Seen {
    fn add_assign(&mut self, other: Self) {
        self.invocations += other.invocations;
        self.errors += other.errors;
        self.timeouts += other.timeouts;
        self.partial_failures += other.partial_failures;
        self.given_up.extend(other.given_up);
    }
}

/// What an answer says of its batch.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// Every record is done.
    Done,
    /// All before this position is done; from it on the batch comes again.
    FailedFrom(usize),
    /// The invocation ended in an error.
    Error,
}

impl Mapping {
    /// Delivers a shard to as many lanes as there are functions, to its end, and gives what was
    /// seen. `acknowledged` is called with what will not come again, before anything else is
    /// delivered to that lane.
    pub async fn deliver(
        &self,
        shard: &[Record],
        functions: &[Lambda],
        acknowledged: impl AsyncFn(&[Record]),
    ) -> Seen {
        let mut lanes = vec![Vec::new(); functions.len()];
        for record in shard {
            // Order holds within an item alone: left and right of a session may go separate ways.
            let mut hasher = DefaultHasher::new();
            record.item.hash(&mut hasher);
            let lane = hasher.finish() % functions.len() as u64;
            lanes[usize::try_from(lane).expect("a lane")].push(record.clone());
        }
        let lanes = lanes.iter().zip(functions);
        let all =
            join_all(lanes.map(|(lane, function)| self.lane(lane, function, &acknowledged))).await;
        let mut seen = Seen::default();
        for lane in all {
            seen += lane;
        }
        seen
    }

    async fn lane(
        &self,
        records: &[Record],
        function: &Lambda,
        acknowledged: &impl AsyncFn(&[Record]),
    ) -> Seen {
        let mut seen = Seen::default();
        let mut waiting: VecDeque<(&[Record], u32)> =
            records.chunks(self.batch_size).map(|batch| (batch, 0)).collect();
        while let Some((batch, retries)) = waiting.pop_front() {
            seen.invocations += 1;
            let answer =
                function.invoke(&event(batch.iter().map(|record| record.json.as_str()))).await;
            let failed = match read(&answer, batch) {
                Answer::Done => {
                    acknowledged(batch).await;
                    continue;
                }
                Answer::Error => {
                    seen.errors += 1;
                    seen.timeouts += usize::from(answer["errorType"] == "Sandbox.Timedout");
                    if self.bisect_batch_on_function_error && batch.len() > 1 {
                        // A split is no retry.
                        let (first, second) = batch.split_at(batch.len() / 2);
                        waiting.push_front((second, retries));
                        waiting.push_front((first, retries));
                        continue;
                    }
                    batch
                }
                Answer::FailedFrom(position) => {
                    seen.partial_failures += 1;
                    let (done, failed) = batch.split_at(position);
                    if !done.is_empty() {
                        acknowledged(done).await;
                    }
                    failed
                }
            };
            if retries == self.maximum_retry_attempts {
                write_failure(&self.destination, self.maximum_retry_attempts, failed).await;
                seen.given_up.extend_from_slice(failed);
            } else {
                tokio::time::sleep(self.pause).await;
                waiting.push_front((failed, retries + 1));
            }
        }
        seen
    }
}

/// What Lambda writes about a batch that it gave up on to a destination on S3: the whole event,
/// too.
///
/// # Panics
/// Where the batch is empty.
#[must_use]
pub fn failure(maximum_retry_attempts: u32, batch: &[Record]) -> Json {
    let (first, last) = (&batch[0], &batch[batch.len() - 1]);
    json!({
        "requestContext": {
            "requestId": format!("{:016x}", fastrand::u64(..)),
            "functionArn": "arn:aws:lambda:eu-central-1:123456789012:function:projector",
            "condition": "RetryAttemptsExhausted",
            "approximateInvokeCount": maximum_retry_attempts + 1,
        },
        "responseContext": { "statusCode": 200, "executedVersion": "$LATEST", "functionError": "Unhandled" },
        "version": "1.0",
        "timestamp": "2026-11-22T09:00:00.000Z",
        "DDBStreamBatchInfo": {
            "shardId": "shardId-00000001795305600000-1b2c3d4e",
            "startSequenceNumber": first.sequence_number.to_string(),
            "endSequenceNumber": last.sequence_number.to_string(),
            "approximateArrivalOfFirstRecord": "2026-11-22T08:00:00Z",
            "approximateArrivalOfLastRecord": "2026-11-22T08:00:00Z",
            "batchSize": batch.len(),
            "streamArn": arn(first.table.name(), &first.label),
        },
        "payload": event(batch.iter().map(|record| record.json.as_str())),
    })
}

/// Writes it there.
///
/// # Panics
/// Where S3 refuses.
pub async fn write_failure(destination: &str, maximum_retry_attempts: u32, batch: &[Record]) {
    let record = failure(maximum_retry_attempts, batch);
    let key = format!(
        "aws/lambda/5b5e9a3c-mapping/shardId-00000001795305600000-1b2c3d4e/2026/11/22/2026-11-22T09.00.00-{:016x}",
        fastrand::u64(..)
    );
    s3(&service("AWS_ENDPOINT_URL"))
        .await
        .put_object()
        .bucket(destination)
        .key(key)
        .body(record.to_string().into_bytes().into())
        .send()
        .await
        .expect("the destination takes it");
}

/// "Lambda uses the lowest sequence number as the checkpoint"; what names no record of the batch
/// fails it all.
#[must_use]
pub fn read(answer: &Json, batch: &[Record]) -> Answer {
    if answer.get("errorMessage").is_some() || answer.get("errorType").is_some() {
        return Answer::Error;
    }
    let failures = answer["batchItemFailures"].as_array().map_or(&[][..], Vec::as_slice);
    let position = |failure: &Json| {
        let identifier = failure["itemIdentifier"].as_str().unwrap_or_default();
        let number = identifier.parse::<u128>().ok();
        batch.iter().position(|record| Some(record.sequence_number) == number).unwrap_or(0)
    };
    failures.iter().map(position).min().map_or(Answer::Done, Answer::FailedFrom)
}

#[cfg(test)]
mod tests {
    use super::{Answer, read};
    use crate::records::{LABEL, Record, session};
    use serde_json::json;

    #[test]
    fn an_answer_is_read_as_lambda_reads_it() {
        let batch: Vec<Record> =
            (7..10).map(|number| session("s", "u").place(LABEL, number)).collect();
        let of = |identifiers: &[&str]| {
            let failures: Vec<_> = identifiers
                .iter()
                .map(|identifier| json!({ "itemIdentifier": identifier }))
                .collect();
            read(&json!({ "batchItemFailures": failures }), &batch)
        };
        assert_eq!(of(&[]), Answer::Done);
        assert_eq!(read(&json!(null), &batch), Answer::Done);
        assert_eq!(of(&["000000000000000000009", "000000000000000000008"]), Answer::FailedFrom(1));
        assert_eq!(of(&[""]), Answer::FailedFrom(0));
        assert_eq!(of(&["4711"]), Answer::FailedFrom(0));
        assert_eq!(read(&json!({ "errorType": "Runtime.ExitError" }), &batch), Answer::Error);
    }
}
