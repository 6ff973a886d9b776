//! Who reads a stream besides this run: event source mappings, and the replication of a global
//! table. Asked for beside the reading, with short limits: nothing waits for it, and from a VPC
//! without those endpoints it is simply not known.

use std::time::Duration;

use aws_config::SdkConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_lambda::error::{ProvideErrorMetadata, SdkError};
use projector::deadline::within;

use crate::replay::source::Stream;

/// At most this many readers of one shard, or they are throttled; of a global table only one,
/// because its replication reads too (AWS Lambda Developer Guide, "Using AWS Lambda with Amazon
/// DynamoDB").
const READERS: usize = 2;
const READERS_OF_A_GLOBAL_TABLE: usize = 1;

const CONNECT_LIMIT: Duration = Duration::from_secs(2);
const ATTEMPT_LIMIT: Duration = Duration::from_secs(3);
/// For all pages and tries of one question.
const LIMIT: Duration = Duration::from_secs(4);

/// Who reads a stream.
#[derive(Clone, Debug)]
pub(crate) struct Readers {
    /// How many event source mappings read it, or why that is not known.
    pub(crate) mappings: Result<usize, String>,
    /// How many replicas its table has in other Regions, or why that is not known.
    pub(crate) replicas: Result<usize, String>,
}

impl Readers {
    /// How many readers one shard of the stream takes.
    pub(crate) fn limit(&self) -> usize {
        if self.is_global() { READERS_OF_A_GLOBAL_TABLE } else { READERS }
    }

    pub(crate) fn is_global(&self) -> bool {
        self.replicas.as_ref().is_ok_and(|replicas| *replicas > 0)
    }

    /// What is wrong if this run reads too.
    pub(crate) fn problem(&self) -> Option<String> {
        let (mappings, limit) = (*self.mappings.as_ref().ok()?, self.limit());
        let global = if self.is_global() { ", whose replication is a reader too," } else { "" };
        (mappings + 1 > limit).then(|| {
            format!(
                "{mappings} event source mappings read it already: with the backfill that is more \
                 than the {limit} readers per shard that AWS advises for this table{global} and \
                 all of them are throttled"
            )
        })
    }

    /// What is good to know.
    pub(crate) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if let Err(reason) = &self.mappings {
            notes.push(format!(
                "its readers are not known ({reason}): make sure that no more than one event \
                 source mapping reads it beside the backfill"
            ));
        }
        match &self.replicas {
            Ok(0) => {}
            Ok(replicas) => notes.push(format!(
                "a global table with {replicas} more replicas: a removal by time to live is marked \
                 as one only in the Region that made it, so TTL_REMOVALS=keep does not keep what \
                 another Region removed"
            )),
            Err(reason) => notes.push(format!(
                "whether it is a global table is not known ({reason}): one has room for one \
                    reader, not two"
            )),
        }
        notes
    }

    /// `1 mapping + backfill, limit 2`.
    pub(crate) fn brief(&self) -> String {
        let mappings = match self.mappings {
            Ok(1) => "1 mapping".to_owned(),
            Ok(count) => format!("{count} mappings"),
            Err(_) => "unknown".to_owned(),
        };
        format!("{mappings} + backfill, limit {}", self.limit())
    }
}

/// Asks who reads each of these streams, all at once.
pub(crate) async fn ask(aws: &SdkConfig, streams: &[Stream]) -> Vec<Readers> {
    let one = async |stream: &Stream| {
        let (mappings, replicas) = tokio::join!(
            within(LIMIT, mappings(aws, stream), || silent("the Lambda API")),
            within(LIMIT, replicas(aws, &stream.table), || silent("the DynamoDB API")),
        );
        Readers { mappings, replicas }
    };
    futures_util::future::join_all(streams.iter().map(one)).await
}

fn silent(api: &str) -> String {
    format!("{api} does not answer")
}

fn limits() -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(CONNECT_LIMIT)
        .operation_attempt_timeout(ATTEMPT_LIMIT)
        .build()
}

/// Why there is no answer.
fn reason<E: ProvideErrorMetadata, R>(
    error: &SdkError<E, R>,
    api: &str,
    operation: &str,
) -> String {
    match (error.code(), error) {
        (Some(code), _) => format!("{operation} answers {code}"),
        (
            None,
            SdkError::ConstructionFailure(_)
            | SdkError::DispatchFailure(_)
            | SdkError::TimeoutError(_),
        ) => format!("{api} cannot be reached"),
        (None, _) => format!("the answer of {api} cannot be read"),
    }
}

/// How many event source mappings read a stream.
async fn mappings(aws: &SdkConfig, stream: &Stream) -> Result<usize, String> {
    let config = aws_sdk_lambda::config::Builder::from(aws)
        .timeout_config(limits())
        .retry_config(RetryConfig::standard())
        .build();
    let client = aws_sdk_lambda::Client::from_conf(config);
    let mut pages =
        client.list_event_source_mappings().event_source_arn(&stream.arn).into_paginator().send();
    let mut count = 0;
    while let Some(page) = pages.next().await {
        let page = page
            .map_err(|error| reason(&error, "the Lambda API", "lambda:ListEventSourceMappings"))?;
        let reads = |state: &str| !matches!(state, "Disabled" | "Disabling" | "Deleting");
        let mappings = page.event_source_mappings().iter();
        count += mappings.filter(|mapping| mapping.state().is_none_or(reads)).count();
    }
    Ok(count)
}

/// How many replicas a table has in other Regions.
async fn replicas(aws: &SdkConfig, table: &str) -> Result<usize, String> {
    let config = aws_sdk_dynamodb::config::Builder::from(aws)
        .timeout_config(limits())
        .retry_config(RetryConfig::standard())
        .build();
    let client = aws_sdk_dynamodb::Client::from_conf(config);
    let answer = client.describe_table().table_name(table).send().await;
    let answer =
        answer.map_err(|error| reason(&error, "the DynamoDB API", "dynamodb:DescribeTable"))?;
    Ok(answer.table().map_or(0, |table| table.replicas().len()))
}

#[cfg(test)]
mod tests {
    use super::Readers;

    #[test]
    fn a_global_table_has_room_for_one_reader() {
        let readers =
            |mappings, replicas| Readers { mappings: Ok(mappings), replicas: Ok(replicas) };
        assert_eq!((readers(1, 0).limit(), readers(1, 1).limit()), (2, 1));
        assert_eq!(readers(1, 0).problem(), None);
        assert_eq!(readers(0, 1).problem(), None);
        assert!(readers(2, 0).problem().is_some_and(|problem| problem.contains("the 2 readers")));
        assert!(readers(1, 1).problem().is_some_and(|problem| problem.contains("replication")));
        assert!(readers(1, 1).notes()[0].contains("TTL_REMOVALS=keep"));
    }

    #[test]
    fn what_is_not_known_is_said_with_its_reason() {
        let readers =
            Readers { mappings: Err("denied".to_owned()), replicas: Err("away".to_owned()) };
        assert_eq!((readers.problem(), readers.limit()), (None, 2));
        let notes = readers.notes().join("\n");
        assert!(notes.contains("(denied)") && notes.contains("(away)"), "{notes}");
        assert_eq!(readers.brief(), "unknown + backfill, limit 2");
    }
}
