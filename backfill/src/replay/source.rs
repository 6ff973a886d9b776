//! The streams' API: which streams a table has, and their shards.

use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use aws_config::SdkConfig;
use aws_sdk_dynamodbstreams as streams;
use projector::config::ConfigError;
use streams::config::retry::RetryConfig;
use streams::types::{ShardFilter, ShardFilterType, StreamStatus};
use time::OffsetDateTime;

use crate::aws_calls::{Api, CallError, Calls};
use crate::replay::lineage::{self, Shard};

const API: Api = Api {
    permissions: "the role needs dynamodb:ListStreams, DescribeStream, GetShardIterator and \
        GetRecords on both streams",
    endpoint: "the endpoint does not take the call: check AWS_ENDPOINT_URL_DYNAMODB_STREAMS",
};

/// How often a stream is described while its pages disagree.
const DESCRIPTIONS: u32 = 5;
pub(crate) const PAUSE_BETWEEN_QUESTIONS: Duration = Duration::from_millis(500);
/// A stream or table counts as gone after it was not found this many times in a row.
pub(crate) const MISSING: u32 = 4;

/// The streams' API, and how it behaved.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) client: streams::Client,
    pub(crate) calls: Calls,
}

impl Source {
    pub(crate) fn new(aws: &SdkConfig) -> Self {
        let config =
            streams::config::Builder::from(aws).retry_config(RetryConfig::disabled()).build();
        Self { client: streams::Client::from_conf(config), calls: Calls::new(&API) }
    }

    /// All streams of a table, the oldest first: the one in use, and those that were disabled
    /// within the last 24 hours, which can still be read.
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

    /// The same, also if there is none; `None` if there is no table. It asks more than once before
    /// a table counts as gone: one answer is no proof.
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
            let page = match self.calls.call("ListStreams", call).await {
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

    /// Describes a stream with all its shards; again while the pages disagree. `None`: there is no
    /// such stream any more, as AWS deletes one 24 hours after it was disabled.
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
            self.calls.troubles.disagreed.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(stream = stream.arn, %disagreement, "DescribeStream contradicts \
                itself");
            if descriptions == DESCRIPTIONS {
                if disagreement.is_harmless() {
                    return Ok(Some(Description { shards, ..description }));
                }
                return Err(disagreement).with_context(|| {
                    format!(
                        "the pages of DescribeStream for {} contradict each other, {DESCRIPTIONS} \
                            times in a row",
                        stream.arn
                    )
                });
            }
            tokio::time::sleep(PAUSE_BETWEEN_QUESTIONS).await;
        }
    }

    /// Describes a stream with the children of one shard alone: one call, however many shards the
    /// stream has. An endpoint that does not know the filter describes all of them, which is as
    /// good.
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
            let answer = match self.calls.call("DescribeStream", call).await {
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

/// When a shard was made, as the number in its id says: milliseconds since 1970, in 20 digits. Not
/// documented, and seen in every id of the service. It is used for caution only: a shard that must
/// be there is asked for longer.
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

    /// The same for a bar, which has little room: the streams of a table are at most a few days
    /// apart.
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
