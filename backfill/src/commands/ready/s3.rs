//! S3: whether the buckets of failures are empty, which rules copy to the new archive, and whether
//! a sample of its objects hold their rows.

use std::collections::BTreeSet;
use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_s3::Client;
use aws_sdk_s3::error::ProvideErrorMetadata as _;
use aws_sdk_s3::types::ReplicationRuleStatus;
use futures_util::{StreamExt as _, stream};
use projector::apply::{Found, look_at_object};
use projector::archive::{Archive, client_config};
use projector::bind;
use projector::config::ArchiveConfig;
use projector::database::Database;
use projector::deadline::Deadline;
use projector::error::{self, Error};
use projector::measurement::Versions;
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::condition::Asked;
use super::limits::{refused, within, within_limit};
use super::observed::{Failures, Mapping, Sample};

/// How many objects are compared.
const SAMPLE: usize = 200;
/// Objects that are behind may be on their way: they are compared again after this pause.
const PAUSE: Duration = Duration::from_secs(2);
const ROUNDS: usize = 3;
/// For all rounds of the sample.
const SAMPLE_LIMIT: Duration = Duration::from_secs(30);

/// Rows of blocks chosen at random, some more than are compared. Only those blocks are read.
const CHOOSE: &str = "SELECT session_id, session_version, left_version, right_version
FROM measurements TABLESAMPLE SYSTEM (
    (SELECT least(100, 200 * 150 / greatest(reltuples, 1)::float8)::real FROM pg_class
    WHERE oid = 'measurements'::regclass))
LIMIT $1";

/// What the buckets hold in which these mappings put what Lambda gave up on.
pub(super) async fn failures(aws: &SdkConfig, mappings: &[Mapping]) -> Asked<Vec<Failures>> {
    let destinations: BTreeSet<&str> =
        mappings.iter().filter_map(|mapping| mapping.on_failure.as_deref()).collect();
    let client = Client::from_conf(client_config(aws).build());
    let mut failures = Vec::new();
    for destination in destinations {
        let Some(bucket) = destination.split_once(":s3:::").map(|(_, bucket)| bucket) else {
            return Err(format!("{destination} is no bucket, so nobody can look into it"));
        };
        let asking = async {
            let asked = client.list_objects_v2().bucket(bucket).max_keys(1).send().await;
            asked.map_err(|error| refused(&format!("s3:ListBucket of {bucket}"), &error))
        };
        let listed = within("S3", asking).await?;
        let first = listed.contents().first().and_then(|object| object.key()).map(str::to_owned);
        failures.push(Failures { bucket: bucket.to_owned(), first });
    }
    Ok(failures)
}

/// The rules by which one bucket is copied to another one now.
pub(super) async fn rules(aws: &SdkConfig, [source, destination]: [&str; 2]) -> Asked<Vec<String>> {
    let asking = async {
        let asked = Client::from_conf(client_config(aws).build())
            .get_bucket_replication()
            .bucket(source)
            .send()
            .await;
        let seen = match asked {
            Err(error) if error.code() == Some("ReplicationConfigurationNotFoundError") => {
                return Ok(Vec::new());
            }
            asked => asked.map_err(|error| {
                refused(&format!("s3:GetReplicationConfiguration of {source}"), &error)
            })?,
        };
        let rules = seen.replication_configuration().map_or(&[][..], |seen| seen.rules());
        let copying = rules.iter().filter(|rule| {
            let to = rule.destination().map(aws_sdk_s3::types::Destination::bucket);
            *rule.status() == ReplicationRuleStatus::Enabled
                && to.is_some_and(|arn| arn.rsplit(':').next() == Some(destination))
        });
        Ok(copying.map(|rule| rule.id().unwrap_or("a rule without a name").to_owned()).collect())
    };
    within("S3", asking).await
}

/// Compares the objects of some rows with them.
pub(super) async fn sample(
    aws: &SdkConfig,
    config: &ArchiveConfig,
    database: &Database,
) -> Asked<Sample> {
    let archive = Archive::new(config.clone(), aws);
    let comparing = async {
        let mut remaining = choose(database).await.map_err(|error| error::chain(&error))?;
        let compared = remaining.len();
        for round in 0..ROUNDS {
            if round > 0 && !remaining.is_empty() {
                tokio::time::sleep(PAUSE).await;
            }
            remaining = behind(&archive, remaining).await.map_err(|error| error::chain(&error))?;
        }
        let behind = remaining.into_iter().map(|(session_id, _)| session_id).collect();
        Ok(Sample { compared, behind })
    };
    within_limit("S3", SAMPLE_LIMIT, comparing).await
}

type Row = (String, Versions);

async fn choose(database: &Database) -> Result<Vec<Row>, Error> {
    let most = i64::try_from(SAMPLE).unwrap_or(i64::MAX);
    let rows = database.fetch(CHOOSE, bind![most], Deadline::NONE).await?;
    let row = |row: &PgRow| {
        let versions = [row.try_get(1)?, row.try_get(2)?, row.try_get(3)?].into();
        Ok::<Row, sqlx::Error>((row.try_get(0)?, versions))
    };
    rows.iter().map(row).collect::<Result<_, _>>().map_err(Error::Database)
}

/// Those whose objects are missing or behind.
async fn behind(archive: &Archive, rows: Vec<Row>) -> Result<Vec<Row>, Error> {
    let looking = rows.into_iter().map(async |(session_id, versions)| {
        let found = look_at_object(archive, &session_id, &versions).await?;
        Ok::<_, Error>(
            (!matches!(found, Found::UpToDate | Found::NotYet)).then_some((session_id, versions)),
        )
    });
    let looked: Vec<Result<Option<Row>, Error>> =
        stream::iter(looking).buffer_unordered(archive.concurrency()).collect().await;
    let found: Result<Vec<Option<Row>>, Error> = looked.into_iter().collect();
    Ok(found?.into_iter().flatten().collect())
}
