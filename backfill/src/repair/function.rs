//! The Lambda function that keeps this database: how long its invocations may take, and how far it
//! is behind.

use anyhow::{Context as _, bail};
use aws_config::SdkConfig;
use aws_sdk_cloudwatch::primitives::DateTime;
use aws_sdk_cloudwatch::types::{Dimension, Metric, MetricDataQuery, MetricDataResult, MetricStat};
use time::{Duration, OffsetDateTime};

use crate::console::{self, span};

/// A record that is trimmed while the function still has it is in no store and in no bucket.
const BEHIND_AT_MOST: Duration = Duration::hours(20);
/// How far back the function's lag is looked at.
const LOOKED_AT: Duration = Duration::minutes(15);
const PERIOD_SECONDS: i32 = 60;

/// The timeout of this function's invocations.
///
/// # Errors
/// If the function cannot be asked for, or is more than 20 hours behind.
pub(crate) async fn check(aws: &SdkConfig, name: &str) -> anyhow::Result<Duration> {
    let function = aws_sdk_lambda::Client::new(aws)
        .get_function_configuration()
        .function_name(name)
        .send()
        .await
        .with_context(|| {
            format!("cannot ask for the function {name}: lambda:GetFunctionConfiguration")
        })?;
    let behind = behind(aws, name).await.with_context(|| {
        format!("cannot ask how far the function {name} is behind: cloudwatch:GetMetricData")
    })?;
    match behind {
        Some(behind) if behind > BEHIND_AT_MOST => bail!(
            "the function {name} is {} behind its streams: a record that is trimmed while the \
                function still has it would be lost. Let it catch up to less than {} first",
            span(behind.unsigned_abs()),
            span(BEHIND_AT_MOST.unsigned_abs())
        ),
        Some(_) => {}
        None => console::line(&format!(
            "the function {name} has no IteratorAge of the last {}: assuming that it is not far \
             behind",
            span(LOOKED_AT.unsigned_abs())
        )),
    }
    let timeout = function.timeout().with_context(|| format!("{name} has no timeout"))?;
    Ok(Duration::seconds(timeout.into()))
}

/// The greatest age of a record that the function got in the last minutes; `None` if it got none.
async fn behind(aws: &SdkConfig, name: &str) -> anyhow::Result<Option<Duration>> {
    let now = OffsetDateTime::now_utc();
    let metric = Metric::builder()
        .namespace("AWS/Lambda")
        .metric_name("IteratorAge")
        .dimensions(Dimension::builder().name("FunctionName").value(name).build())
        .build();
    let statistic =
        MetricStat::builder().metric(metric).period(PERIOD_SECONDS).stat("Maximum").build();
    let asked = aws_sdk_cloudwatch::Client::new(aws)
        .get_metric_data()
        .metric_data_queries(MetricDataQuery::builder().id("age").metric_stat(statistic).build())
        .start_time(DateTime::from_secs((now - LOOKED_AT).unix_timestamp()))
        .end_time(DateTime::from_secs(now.unix_timestamp()))
        .send()
        .await?;
    let milliseconds = asked.metric_data_results().iter().flat_map(MetricDataResult::values);
    let most = milliseconds.copied().reduce(f64::max);
    Ok(most.map(|most| Duration::seconds_f64(most / 1_000.0)))
}
