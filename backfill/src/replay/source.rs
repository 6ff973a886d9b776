//! The streams' API: calls that are repeated with patience, which streams a table has, and their
//! shards.
//!
//! The SDK's own retries are off: here a call is repeated longer than the SDK would, what is passing
//! is told from what is not in one place, and the operator sees how often it happened.

use std::fmt::Debug;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use aws_config::SdkConfig;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_dynamodbstreams as streams;
use projector::config::ConfigError;
use streams::config::retry::RetryConfig;
use streams::error::{ProvideErrorMetadata, SdkError};
use streams::types::{ShardFilter, ShardFilterType, StreamStatus};
use time::OffsetDateTime;

use crate::replay::lineage::{self, Shard};

/// How often a call is made before it is given up, with pauses that double from a tenth of a second to [`MAX_PAUSE`],
/// half of each at random: some three minutes if each is refused at once, and some five if none is answered.
const TRIES: u32 = 16;
const MAX_PAUSE: Duration = Duration::from_secs(20);
const LOG_EVERY: Duration = Duration::from_secs(10);

/// How often a stream is described while its pages disagree.
const DESCRIPTIONS: u32 = 5;
pub(crate) const PAUSE_BETWEEN_QUESTIONS: Duration = Duration::from_millis(500);
/// A stream or table counts as gone after it was not found this many times in a row.
pub(crate) const MISSING: u32 = 4;

/// The streams' API, and how it behaved.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) client: streams::Client,
    pub(crate) troubles: Troubles,
    /// When trouble was last logged.
    logged: Mutex<Option<Instant>>,
}

/// What had to be repeated.
#[derive(Debug, Default)]
pub(crate) struct Troubles {
    pub(crate) throttled: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) expired: AtomicU64,
    pub(crate) disagreed: AtomicU64,
}

/// Why a call was not answered, when it is not to be repeated as it is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// An iterator lives 15 minutes.
    #[error("the iterator has expired")]
    Expired,
    /// What the iterator points at is older than what the stream keeps.
    #[error("the records have been trimmed")]
    Trimmed,
    /// The shard or the stream is not there.
    #[error("the shard or its stream is not there any more")]
    Gone,
    #[error("{operation} was refused: {remedy}")]
    Refused {
        operation: &'static str,
        remedy: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{operation} failed {TRIES} times in a row")]
    GivenUp {
        operation: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

enum Trouble {
    Throttled,
    Passing,
    Expired,
    Trimmed,
    Gone,
    Refused(&'static str),
}

/// By the error codes of the DynamoDB Streams API and AWS's common ones. What is not known is taken
/// for passing; the cap ends it.
fn trouble<E, R>(error: &SdkError<E, R>) -> Trouble
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
    R: Debug + 'static,
{
    match error {
        SdkError::ConstructionFailure(_) => {
            return Trouble::Refused("check the AWS region, endpoint and credentials");
        }
        SdkError::DispatchFailure(failure) if failure.is_user() => {
            return Trouble::Refused("check the AWS region, endpoint and credentials");
        }
        SdkError::DispatchFailure(_) if has_no_credentials(error) => {
            return Trouble::Refused(
                "there are no AWS credentials any more: set AWS_PROFILE, log in again, or check the role",
            );
        }
        _ => {}
    }
    match error.code().unwrap_or_default() {
        "LimitExceededException"
        | "ThrottlingException"
        | "Throttling"
        | "ProvisionedThroughputExceededException"
        | "RequestLimitExceeded"
        | "TooManyRequestsException" => Trouble::Throttled,
        "ExpiredIteratorException" => Trouble::Expired,
        "TrimmedDataAccessException" => Trouble::Trimmed,
        "ResourceNotFoundException" => Trouble::Gone,
        "AccessDeniedException" | "AccessDenied" => Trouble::Refused(
            "the role needs dynamodb:ListStreams, DescribeStream, GetShardIterator and GetRecords on both streams",
        ),
        "UnrecognizedClientException"
        | "InvalidSignatureException"
        | "IncompleteSignature"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException"
        | "InvalidClientTokenId"
        | "SignatureDoesNotMatch"
        | "ExpiredTokenException"
        | "ExpiredToken" => Trouble::Refused("check the AWS credentials and this machine's clock"),
        "ValidationException" | "UnknownOperationException" | "SerializationException" => {
            Trouble::Refused(
                "the endpoint does not take the call: check AWS_ENDPOINT_URL_DYNAMODB_STREAMS",
            )
        }
        _ => Trouble::Passing,
    }
}

/// Whether a call was not sent because there are no credentials to sign it with. That their source did not answer in
/// time may pass.
fn has_no_credentials(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<CredentialsError>() {
            return !matches!(error, CredentialsError::ProviderTimedOut(_));
        }
        cause = error.source();
    }
    false
}

/// The pause before a call is made again, for the first time with `tries` 1.
fn pause(tries: u32) -> Duration {
    let longest = Duration::from_millis(100 << tries.min(16)).min(MAX_PAUSE);
    longest.mul_f64(0.5 + fastrand::f64() / 2.0)
}

impl Source {
    pub(crate) fn new(aws: &SdkConfig) -> Self {
        let config =
            streams::config::Builder::from(aws).retry_config(RetryConfig::disabled()).build();
        Self {
            client: streams::Client::from_conf(config),
            troubles: Troubles::default(),
            logged: Mutex::default(),
        }
    }

    /// What had to be repeated, in words; `None` if nothing had to be.
    pub(crate) fn troubles(&self) -> Option<String> {
        let counted = [
            (&self.troubles.throttled, "calls throttled"),
            (&self.troubles.failed, "calls failed and repeated"),
            (&self.troubles.expired, "iterators expired"),
            (&self.troubles.disagreed, "descriptions asked for again"),
        ]
        .map(|(count, what)| (count.load(Ordering::Relaxed), what));
        let words: Vec<String> = counted
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        (!words.is_empty()).then(|| words.join(", "))
    }

    /// Makes a call until it is answered, or not to be repeated.
    pub(crate) async fn call<T, E, R, F>(
        &self,
        operation: &'static str,
        call: impl Fn() -> F,
    ) -> Result<T, CallError>
    where
        F: Future<Output = Result<T, SdkError<E, R>>>,
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
        R: Debug + Send + Sync + 'static,
    {
        let mut tries = 0;
        loop {
            tries += 1;
            let error = match call().await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let counter = match trouble(&error) {
                Trouble::Throttled => &self.troubles.throttled,
                Trouble::Passing => &self.troubles.failed,
                Trouble::Expired => {
                    self.troubles.expired.fetch_add(1, Ordering::Relaxed);
                    return Err(CallError::Expired);
                }
                Trouble::Trimmed => return Err(CallError::Trimmed),
                Trouble::Gone => return Err(CallError::Gone),
                Trouble::Refused(remedy) => {
                    return Err(CallError::Refused { operation, remedy, source: error.into() });
                }
            };
            counter.fetch_add(1, Ordering::Relaxed);
            self.log_trouble(operation, tries, &error);
            if tries == TRIES {
                return Err(CallError::GivenUp { operation, source: error.into() });
            }
            tokio::time::sleep(pause(tries)).await;
        }
    }

    /// One line in ten seconds, whoever fails: an operator who waits must know for what.
    fn log_trouble(&self, operation: &str, tries: u32, error: &(dyn std::error::Error + 'static)) {
        if tries < 2 {
            return;
        }
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.is_none_or(|at| at.elapsed() >= LOG_EVERY) {
            *logged = Some(Instant::now());
            tracing::warn!(
                operation,
                error = projector::error::chain(error),
                "failed {tries} times in a row, trying again for some minutes; check the route (a VPC needs an endpoint \
                 or NAT), AWS_REGION and AWS_ENDPOINT_URL"
            );
        }
    }

    /// All streams of a table, the oldest first: the one in use, and those that were disabled within
    /// the last 24 hours, which can still be read.
    ///
    /// # Errors
    /// [`ConfigError`] of `variable`, which names the table, if there is no table or no stream.
    pub(crate) async fn streams_of(
        &self,
        variable: &'static str,
        table: &str,
    ) -> anyhow::Result<Vec<Stream>> {
        let wrong = |problem: &str| {
            let problem = format!("is {table:?}, {problem}; check AWS_REGION, too");
            anyhow::Error::from(ConfigError { variable, problem })
        };
        match self.list_streams(table).await? {
            None => Err(wrong("and there is no such table here")),
            Some(streams) if streams.is_empty() => {
                Err(wrong("which has no stream: enable it with NEW_IMAGE or NEW_AND_OLD_IMAGES"))
            }
            Some(streams) => Ok(streams),
        }
    }

    /// The same, also if there is none; `None` if there is no table. It asks more than once before a table counts as
    /// gone: one answer is no proof.
    pub(crate) async fn list_streams(&self, table: &str) -> anyhow::Result<Option<Vec<Stream>>> {
        for _ in 1..MISSING {
            if let Some(streams) = self.list_streams_once(table).await? {
                return Ok(Some(streams));
            }
            tokio::time::sleep(PAUSE_BETWEEN_QUESTIONS).await;
        }
        self.list_streams_once(table).await
    }

    async fn list_streams_once(&self, table: &str) -> anyhow::Result<Option<Vec<Stream>>> {
        let mut found = Vec::new();
        let mut last = None;
        loop {
            let call = || {
                let request = self.client.list_streams().table_name(table);
                request.set_exclusive_start_stream_arn(last.clone()).send()
            };
            let page = match self.call("ListStreams", call).await {
                Ok(page) => page,
                Err(CallError::Gone) => return Ok(None),
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("cannot list the streams of table {table:?}"));
                }
            };
            for stream in page.streams() {
                let arn =
                    stream.stream_arn().context("ListStreams names a stream without an ARN")?;
                let (_, label) = projector::change::stream_of(arn)
                    .with_context(|| format!("{arn:?} is not the ARN of a stream"))?;
                found.push(Stream {
                    arn: arn.to_owned(),
                    table: table.to_owned(),
                    label: label.to_owned(),
                });
            }
            last = page.last_evaluated_stream_arn().map(str::to_owned);
            if last.is_none() {
                break;
            }
        }
        found.sort_by(|a, b| a.label.cmp(&b.label));
        found.dedup_by(|a, b| a.arn == b.arn);
        Ok(Some(found))
    }

    /// Describes a stream with all its shards; again while the pages disagree. `None`: there is no such stream any
    /// more, as AWS deletes one 24 hours after it was disabled.
    pub(crate) async fn describe(&self, stream: &Stream) -> anyhow::Result<Option<Description>> {
        let mut descriptions = 0;
        let mut missing = 0;
        loop {
            let Some((description, pages)) = self.describe_once(stream, None).await? else {
                missing += 1;
                if missing == MISSING {
                    return Ok(None);
                }
                tokio::time::sleep(PAUSE_BETWEEN_QUESTIONS).await;
                continue;
            };
            descriptions += 1;
            let disagreement = lineage::disagreement(&pages, description.enabled);
            let shards = lineage::merge_pages(pages);
            let Some(disagreement) = disagreement else {
                return Ok(Some(Description { shards, ..description }));
            };
            self.troubles.disagreed.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(stream = stream.arn, %disagreement, "DescribeStream contradicts itself");
            if descriptions == DESCRIPTIONS {
                if disagreement.is_harmless() {
                    return Ok(Some(Description { shards, ..description }));
                }
                return Err(disagreement).with_context(|| {
                    format!(
                        "the pages of DescribeStream for {} contradict each other, {DESCRIPTIONS} times in a row",
                        stream.arn
                    )
                });
            }
            tokio::time::sleep(PAUSE_BETWEEN_QUESTIONS).await;
        }
    }

    /// Describes a stream with the children of one shard alone: one call, however many shards the stream has. An
    /// endpoint that does not know the filter describes all of them, which is as good.
    pub(crate) async fn describe_children(
        &self,
        stream: &Stream,
        shard: &str,
    ) -> anyhow::Result<Option<Description>> {
        let filter =
            ShardFilter::builder().r#type(ShardFilterType::ChildShards).shard_id(shard).build();
        let described = self.describe_once(stream, Some(filter)).await?;
        Ok(described.map(|(description, pages)| Description {
            shards: lineage::merge_pages(pages),
            ..description
        }))
    }

    async fn describe_once(
        &self,
        stream: &Stream,
        filter: Option<ShardFilter>,
    ) -> anyhow::Result<Option<(Description, Vec<Vec<Shard>>)>> {
        let mut pages = Vec::new();
        let mut last: Option<String> = None;
        loop {
            let call = || {
                let request = self.client.describe_stream().stream_arn(&stream.arn);
                let request = request.set_exclusive_start_shard_id(last.clone());
                request.set_shard_filter(filter.clone()).send()
            };
            let answer = match self.call("DescribeStream", call).await {
                Err(CallError::Gone) => return Ok(None),
                answer => answer.with_context(|| format!("cannot describe {}", stream.arn))?,
            };
            let page = answer
                .stream_description
                .with_context(|| format!("DescribeStream says nothing of {}", stream.arn))?;
            let shards = page.shards().iter().map(listed).collect::<Option<Vec<Shard>>>();
            pages.push(shards.context("DescribeStream lists a shard without an id")?);
            last = page.last_evaluated_shard_id().map(str::to_owned);
            if last.is_some() {
                continue;
            }
            let status = page.stream_status();
            let description = Description {
                enabled: matches!(status, Some(StreamStatus::Enabled | StreamStatus::Enabling)),
                status: status.map_or_else(|| "unknown".to_owned(), ToString::to_string),
                view_type: page
                    .stream_view_type()
                    .map_or_else(|| "unknown".to_owned(), ToString::to_string),
                enabled_since: page.creation_request_date_time().and_then(|time| {
                    OffsetDateTime::from_unix_timestamp_nanos(time.as_nanos()).ok()
                }),
                shards: Vec::new(),
            };
            return Ok(Some((description, pages)));
        }
    }
}

fn listed(shard: &streams::types::Shard) -> Option<Shard> {
    Some(Shard {
        id: shard.shard_id()?.to_owned(),
        parent: shard.parent_shard_id().map(str::to_owned),
        closed: shard
            .sequence_number_range()
            .is_some_and(|range| range.ending_sequence_number().is_some()),
    })
}

/// A stream of one of the two tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stream {
    pub(crate) arn: String,
    pub(crate) table: String,
    /// The time at which it was enabled, as the end of its ARN says it.
    pub(crate) label: String,
}

/// A shard, as the operator knows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ShardName {
    pub(crate) table: String,
    pub(crate) stream_arn: String,
    pub(crate) shard: String,
}

/// When a shard was made, as the number in its id says: milliseconds since 1970, in 20 digits. Not documented, and
/// seen in every id of the service. It is used for caution only: a shard that must be there is asked for longer.
pub(crate) fn made_at(shard: &str) -> Option<OffsetDateTime> {
    let digits = shard.strip_prefix("shardId-")?.split('-').next()?;
    let ms = digits.parse::<i128>().ok().filter(|_| digits.len() == 20)?;
    OffsetDateTime::from_unix_timestamp_nanos(ms.checked_mul(1_000_000)?).ok()
}

impl ShardName {
    pub(crate) fn new(stream: &Stream, shard: &str) -> Self {
        Self {
            table: stream.table.clone(),
            stream_arn: stream.arn.clone(),
            shard: shard.to_owned(),
        }
    }
}

impl Stream {
    /// The table and the label: for a table that has several streams.
    pub(crate) fn full_name(&self) -> String {
        format!("{} (stream of {})", self.table, self.label)
    }

    /// The same for a bar, which has little room: the streams of a table are at most a few days apart.
    pub(crate) fn short_name(&self) -> String {
        format!("{} {}", self.table, self.label.get(5..19).unwrap_or(&self.label))
    }
}

/// What `DescribeStream` says of a stream, all pages together.
#[derive(Clone, Debug)]
pub(crate) struct Description {
    /// Records are still added: ENABLED or ENABLING.
    pub(crate) enabled: bool,
    pub(crate) status: String,
    pub(crate) view_type: String,
    pub(crate) enabled_since: Option<OffsetDateTime>,
    pub(crate) shards: Vec<Shard>,
}

#[cfg(test)]
mod tests {
    use super::{MAX_PAUSE, TRIES, pause};

    #[test]
    fn the_pauses_grow_to_a_limit_and_come_to_some_minutes() {
        for tries in 1..TRIES {
            assert!(pause(tries) <= MAX_PAUSE && pause(tries).as_millis() >= 100, "{tries}");
        }
        let total: f64 = (1..TRIES).map(|tries| pause(tries).as_secs_f64()).sum();
        assert!((60.0..300.0).contains(&total), "{total} s");
    }
}
