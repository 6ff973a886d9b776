//! CloudWatch: how old the records were that each function applied, per table; whether the tables
//! were written; which alarms ring; what a replication has still to do.

use aws_config::SdkConfig;
use aws_sdk_cloudwatch::Client;
use aws_sdk_cloudwatch::primitives::DateTime;
use aws_sdk_cloudwatch::types::{Dimension, Metric, MetricDataQuery, MetricDataResult, MetricStat};
use projector::telemetry::NAMESPACE;
use time::{Duration, OffsetDateTime};

use super::condition::Asked;
use super::limits::{refused, within};
use super::observed::{Alarm, Metrics, Series};

/// The period of every question.
const MINUTE: i32 = 60;
/// How far back the lag is looked at.
const LAG_MINUTES: i64 = 5;
/// How far back a replication is looked at.
const REPLICATION_MINUTES: i64 = 15;
/// At most this many pages of alarms, a hundred each.
const PAGES: usize = 20;

/// How far each function is behind on each table.
pub(super) async fn metrics(
    aws: &SdkConfig,
    functions: [&str; 2],
    tables: [&str; 2],
    now: OffsetDateTime,
) -> Asked<Metrics> {
    let mut queries = Vec::new();
    for (table_index, table) in tables.into_iter().enumerate() {
        for (index, function) in functions.into_iter().enumerate() {
            let dimensions = [("FunctionName", function), ("Table", table)];
            let id = format!("age_{index}_{table_index}");
            queries.push(query(&id, NAMESPACE, "OldestRecordAge", &dimensions, "Maximum"));
        }
        let dimensions = [("TableName", table)];
        let metric = "ConsumedWriteCapacityUnits";
        let id = format!("writes_{table_index}");
        queries.push(query(&id, "AWS/DynamoDB", metric, &dimensions, "Sum"));
    }
    let results = within("CloudWatch", data(aws, queries, now, LAG_MINUTES)).await?;
    let mut metrics = Metrics::default();
    for (table_index, table) in tables.into_iter().enumerate() {
        for (index, function) in functions.into_iter().enumerate() {
            let series = series(&results, &format!("age_{index}_{table_index}"));
            metrics.ages.insert((function.to_owned(), table.to_owned()), series);
        }
        let series = series(&results, &format!("writes_{table_index}"));
        metrics.writes.insert(table.to_owned(), series);
    }
    Ok(metrics)
}

/// The most that was pending, and all that failed, of the replication rules between two buckets.
pub(super) async fn replication(
    aws: &SdkConfig,
    [source, destination]: [&str; 2],
    rules: &[String],
    now: OffsetDateTime,
) -> Asked<[Option<f64>; 2]> {
    let metrics =
        [("OperationsPendingReplication", "Maximum"), ("OperationsFailedReplication", "Sum")];
    let mut queries = Vec::new();
    for (rule_index, rule) in rules.iter().enumerate() {
        let dimensions =
            [("SourceBucket", source), ("DestinationBucket", destination), ("RuleId", rule)];
        for (index, (metric, statistic)) in metrics.into_iter().enumerate() {
            let id = format!("replication_{index}_{rule_index}");
            queries.push(query(&id, "AWS/S3", metric, &dimensions, statistic));
        }
    }
    let results = within("CloudWatch", data(aws, queries, now, REPLICATION_MINUTES)).await?;
    let greatest = |index: usize| {
        let series =
            (0..rules.len()).map(|rule| series(&results, &format!("replication_{index}_{rule}")));
        series.flat_map(Series::into_values).reduce(f64::max)
    };
    Ok([greatest(0), greatest(1)])
}

fn query(
    id: &str,
    namespace: &str,
    name: &str,
    dimensions: &[(&str, &str)],
    statistic: &str,
) -> MetricDataQuery {
    let dimensions = dimensions
        .iter()
        .map(|(name, value)| Dimension::builder().name(*name).value(*value).build());
    let metric = Metric::builder()
        .namespace(namespace)
        .metric_name(name)
        .set_dimensions(Some(dimensions.collect()))
        .build();
    let stat = MetricStat::builder().metric(metric).period(MINUTE).stat(statistic).build();
    MetricDataQuery::builder().id(id).metric_stat(stat).build()
}

/// The data of the last minutes, the one that is under way with them.
async fn data(
    aws: &SdkConfig,
    queries: Vec<MetricDataQuery>,
    now: OffsetDateTime,
    minutes: i64,
) -> Asked<Vec<MetricDataResult>> {
    let minute = i64::from(MINUTE);
    let begun = now.unix_timestamp() / minute * minute;
    let start = begun - Duration::minutes(minutes).whole_seconds();
    let asked = Client::new(aws)
        .get_metric_data()
        .set_metric_data_queries(Some(queries))
        .start_time(DateTime::from_secs(start))
        .end_time(DateTime::from_secs(begun + minute));
    let mut pages = asked.into_paginator().send();
    let mut results = Vec::new();
    while let Some(page) = pages.next().await {
        let page = page.map_err(|error| refused("cloudwatch:GetMetricData", &error))?;
        results.extend(page.metric_data_results.unwrap_or_default());
    }
    Ok(results)
}

fn series(results: &[MetricDataResult], id: &str) -> Series {
    let of_id = results.iter().filter(|result| result.id() == Some(id));
    let points = of_id.flat_map(|result| result.timestamps().iter().zip(result.values()));
    points.map(|(time, value)| (time.secs(), *value)).collect()
}

/// The alarms whose names begin with that of a function and a hyphen.
pub(super) async fn alarms(aws: &SdkConfig, function: &str) -> Asked<Vec<Alarm>> {
    let asking = async {
        let asked = Client::new(aws).describe_alarms().alarm_name_prefix(format!("{function}-"));
        let mut pages = asked.into_paginator().send();
        let mut alarms = Vec::new();
        for _ in 0..PAGES {
            let Some(page) = pages.next().await else { return Ok(alarms) };
            let page = page.map_err(|error| refused("cloudwatch:DescribeAlarms", &error))?;
            alarms.extend(page.metric_alarms().iter().map(|alarm| Alarm {
                name: alarm.alarm_name().unwrap_or_default().to_owned(),
                state: alarm.state_value().map_or("not known", |state| state.as_str()).to_owned(),
            }));
        }
        Err(format!("more than {PAGES} pages of alarms begin with {function}-"))
    };
    within("CloudWatch", asking).await
}
