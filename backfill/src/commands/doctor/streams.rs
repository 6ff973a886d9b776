//! The two tables: their streams, the right to read them, and who reads them already.

use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_dynamodbstreams as streams;
use projector::error;
use streams::Client;
use streams::config::retry::RetryConfig;
use streams::error::{ProvideErrorMetadata, SdkError};
use streams::types::{ShardIteratorType, StreamDescription, StreamStatus, StreamViewType};

use super::clock::ServiceClock;
use super::finding::{Finding, Verdict, timed};

use crate::replay::readers::{self, Readers};
use crate::replay::source::Stream;

const REACH: &str = "check the route from this machine to DynamoDB (a VPC needs its gateway \
    endpoint or NAT), AWS_REGION and AWS_ENDPOINT_URL";

/// A client that asks once: an operator waits for the answer.
pub(super) fn client(aws: &SdkConfig, clock: &ServiceClock) -> Client {
    let config = streams::config::Builder::from(aws)
        .retry_config(RetryConfig::disabled())
        .interceptor(clock.clone());
    Client::from_conf(config.build())
}

/// Checks a table and the readers of its stream. `variable` is the setting that names the table.
pub(super) async fn check(
    client: &Client,
    aws: &SdkConfig,
    variable: &str,
    table: &str,
) -> Vec<Finding> {
    let mut found = None;
    let work = async {
        match newest(client, variable, table).await {
            Ok(stream) => {
                let verdict = examine(client, &stream).await;
                found = Some(stream);
                verdict
            }
            Err(verdict) => verdict,
        }
    };
    let stream = timed(format!("table {table}"), REACH, work).await;
    let name = format!("readers of {table}");
    let readers = match found {
        Some(stream) => {
            let work = async {
                let asked = readers::ask(aws, std::slice::from_ref(&stream)).await;
                asked.first().map_or_else(|| Verdict::unknown("not known"), judge_readers)
            };
            timed(name, "check the route to the Lambda API", work).await
        }
        None => Verdict::unknown("not known without the stream").of(name, Duration::ZERO),
    };
    vec![stream, readers]
}

/// The newest stream of the table, which is the one in use.
async fn newest(client: &Client, variable: &str, table: &str) -> Result<Stream, Verdict> {
    let mut labels = Vec::new();
    let mut pages = client.list_streams().table_name(table).send().await;
    loop {
        let page = match pages {
            Ok(page) => page,
            Err(error) if error.code() == Some("ResourceNotFoundException") => break,
            Err(error) => return Err(trouble("ListStreams", &error)),
        };
        labels.extend(page.streams().iter().filter_map(|stream| {
            Some((stream.stream_label()?.to_owned(), stream.stream_arn()?.to_owned()))
        }));
        let Some(last) = page.last_evaluated_stream_arn() else { break };
        let next = client.list_streams().table_name(table);
        pages = next.exclusive_start_stream_arn(last).send().await;
    }
    let newest = labels.into_iter().max();
    let (label, arn) = newest.ok_or_else(|| {
        Verdict::fails(
            "there is no such table here, or it has no stream",
            format!(
                "check {variable} and AWS_REGION, and enable the table's stream with \
                NEW_AND_OLD_IMAGES"
            ),
        )
    })?;
    Ok(Stream { arn, table: table.to_owned(), label })
}

/// Describes the stream, and reads at most one record of one shard to prove that the role may.
async fn examine(client: &Client, stream: &Stream) -> Verdict {
    let description = match client.describe_stream().stream_arn(&stream.arn).send().await {
        Ok(answer) => answer.stream_description,
        Err(error) => return trouble("DescribeStream", &error),
    };
    let Some(description) = description else {
        return Verdict::fails("DescribeStream describes nothing", REACH);
    };
    if let Some(verdict) = unusable(&description) {
        return verdict;
    }
    let images = description.stream_view_type().map_or("unknown", StreamViewType::as_str);
    let seen = format!("stream {}, {images}", stream.label);
    let Some(shard) = description.shards().last().and_then(|shard| shard.shard_id()) else {
        return Verdict::works(format!("{seen}; it has no shard yet, so reading was not tried"));
    };
    match read_one(client, stream, shard).await {
        Ok(()) => Verdict::works(format!("{seen}; the role may read it")),
        Err(verdict) => verdict,
    }
}

/// Why a replay cannot use the stream.
fn unusable(description: &StreamDescription) -> Option<Verdict> {
    let status = description.stream_status();
    if !matches!(status, Some(StreamStatus::Enabled | StreamStatus::Enabling)) {
        let status = status.map_or("in no known status", StreamStatus::as_str);
        return Some(Verdict::fails(
            format!("the stream is {status}: what changes now is in no stream"),
            "enable the table's stream with NEW_AND_OLD_IMAGES, and take a new snapshot after that",
        ));
    }
    let images = description.stream_view_type();
    if !matches!(images, Some(StreamViewType::NewImage | StreamViewType::NewAndOldImages)) {
        let images = images.map_or("unknown", StreamViewType::as_str);
        return Some(Verdict::fails(
            format!("the view type of the stream is {images}: its records lack what was written"),
            "disable the stream, enable it with NEW_AND_OLD_IMAGES, and take a new snapshot after \
                that",
        ));
    }
    None
}

async fn read_one(client: &Client, stream: &Stream, shard: &str) -> Result<(), Verdict> {
    let iterator = client
        .get_shard_iterator()
        .stream_arn(&stream.arn)
        .shard_id(shard)
        .shard_iterator_type(ShardIteratorType::TrimHorizon);
    let iterator = iterator.send().await.map_err(|error| trouble("GetShardIterator", &error))?;
    let records = client.get_records().set_shard_iterator(iterator.shard_iterator).limit(1);
    records.send().await.map_err(|error| trouble("GetRecords", &error))?;
    Ok(())
}

/// What an answer of the streams' API comes to, by its code.
fn trouble<E, R>(operation: &str, error: &SdkError<E, R>) -> Verdict
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    R: std::fmt::Debug + Send + Sync + 'static,
{
    let Some(code) = error.code() else {
        return Verdict::fails(format!("{operation}: {}", error::chain(error)), REACH);
    };
    let detail = format!("{operation} answers {code} {}", error.message().unwrap_or_default());
    Verdict::fails(detail.trim_end(), remedy(operation, code))
}

fn remedy(operation: &str, code: &str) -> String {
    match code {
        "AccessDeniedException" | "AccessDenied" => {
            format!("allow the role dynamodb:{operation} on the streams of both tables")
        }
        "UnrecognizedClientException"
        | "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "InvalidClientTokenId"
        | "ExpiredTokenException"
        | "ExpiredToken" => "renew the AWS credentials, and check this machine's clock".to_owned(),
        "LimitExceededException"
        | "ProvisionedThroughputExceededException"
        | "ThrottlingException" => {
            "the stream has too many readers at this moment: run `backfill doctor` again".to_owned()
        }
        _ => {
            "check AWS_REGION and AWS_ENDPOINT_URL; if they are right, run `backfill doctor` again"
                .to_owned()
        }
    }
}

/// The readers are good to know, and no run depends on the right to ask for them.
fn judge_readers(readers: &Readers) -> Verdict {
    if let Some(problem) = readers.problem() {
        return Verdict::fails(
            problem,
            "disable one of the mappings while a backfill runs, or accept that all readers are throttled",
        );
    }
    let text = [vec![readers.brief()], readers.notes()].concat().join("; ");
    if readers.mappings.is_ok() { Verdict::works(text) } else { Verdict::unknown(text) }
}

#[cfg(test)]
mod tests {
    use super::{Readers, Verdict, judge_readers, remedy, unusable};
    use aws_sdk_dynamodbstreams::types::{StreamDescription, StreamStatus, StreamViewType};

    #[test]
    fn a_stream_must_be_enabled_and_have_new_images() {
        let description = |status, view_type| {
            StreamDescription::builder().stream_status(status).stream_view_type(view_type).build()
        };
        let (enabled, images) = (StreamStatus::Enabled, StreamViewType::NewAndOldImages);
        assert_eq!(unusable(&description(enabled.clone(), images.clone())), None);
        assert!(unusable(&description(StreamStatus::Disabled, images)).is_some());
        assert!(unusable(&description(enabled, StreamViewType::KeysOnly)).is_some());
    }

    #[test]
    fn readers_are_judged_and_a_refusal_is_no_failure() {
        let judge = |mappings| judge_readers(&Readers { mappings, replicas: Ok(0) });
        assert!(matches!(judge(Ok(1)), Verdict::Works(_)));
        assert!(matches!(judge(Ok(2)), Verdict::Fails { .. }));
        assert!(matches!(judge(Err("denied".to_owned())), Verdict::Unknown(_)));
    }

    #[test]
    fn a_refusal_names_the_permission() {
        assert!(remedy("GetRecords", "AccessDeniedException").contains("dynamodb:GetRecords"));
        assert!(remedy("ListStreams", "ExpiredTokenException").contains("credentials"));
    }
}
