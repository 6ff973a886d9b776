//! Logs and metrics: one JSON line and one metric line a batch, with counts and durations. Neither
//! holds a measured value or a user's id.

use std::io::Write as _;
use std::time::Duration;

use serde_json::{Value as Json, json};
use time::OffsetDateTime;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::apply::{Applied, Counts, Durations};
use crate::config::ConfigError;

/// The metrics' namespace in CloudWatch.
pub const NAMESPACE: &str = "Projector";

/// The log filter of `RUST_LOG`, levels by target: `info` where it is not set. Below `info` only our own
/// targets are heard: the runtime logs the raw event at `trace`, and the SDK bodies, secrets among them.
///
/// # Errors
/// [`ConfigError`] where it cannot be read.
pub fn log_filter() -> Result<Targets, ConfigError> {
    filter_of(&std::env::var("RUST_LOG").unwrap_or_default())
}

/// The most that is heard of a target: all of our own crates, whose logs hold no value of a record and no part
/// of a login; of sqlx warnings, for at `info` it repeats the server's notices, and somebody's trigger may say a
/// value in one.
fn most(target: &str) -> LevelFilter {
    match target.split("::").next() {
        Some("projector" | "backfill") => LevelFilter::TRACE,
        Some("sqlx") => LevelFilter::WARN,
        _ => LevelFilter::INFO,
    }
}

fn filter_of(text: &str) -> Result<Targets, ConfigError> {
    // `Targets` reads " sqlx" as the name of a target, and nothing behind a comma as a level.
    let parts: Vec<&str> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    let text = if parts.is_empty() { "info".to_owned() } else { parts.join(",") };
    let wanted: Targets = text.parse().map_err(|error| ConfigError {
        variable: "RUST_LOG",
        problem: format!("cannot be read, expected a level or target=level,...: {error}"),
    })?;
    let default = wanted.default_level().unwrap_or(LevelFilter::OFF);
    let capped = |target: &str, level: LevelFilter| (target.to_owned(), level.min(most(target)));
    Ok(Targets::new()
        .with_default(default.min(most("")))
        .with_targets(["projector", "backfill", "sqlx"].map(|target| capped(target, default)))
        .with_targets(wanted.iter().map(|(target, level)| capped(target, level))))
}

/// JSON logs to standard output, as CloudWatch Logs Insights reads them.
///
/// # Errors
/// As [`log_filter`].
pub fn start_json_logs() -> Result<(), ConfigError> {
    let lines = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_target(false);
    tracing_subscriber::registry().with(lines).with(log_filter()?).init();
    Ok(())
}

/// The batch's log line.
pub fn log_batch(batch: &Applied, duration: Duration) {
    let Counts {
        records,
        applied,
        duplicate,
        stale,
        stale_created_later,
        superseded,
        ttl_kept,
        rejected,
        failed,
        rows_written,
        objects_written,
        objects_current,
    } = batch.counts;
    let Durations { decode, database, archive } = batch.durations;
    tracing::info!(
        records,
        applied,
        duplicate,
        stale,
        stale_created_later,
        superseded,
        ttl_kept,
        rejected,
        failed,
        rows_written,
        objects_written,
        objects_current,
        decode_ms = milliseconds(decode),
        database_ms = milliseconds(database),
        archive_ms = milliseconds(archive),
        duration_ms = milliseconds(duration),
        "batch"
    );
}

/// Prints the batch's metrics, a line on standard output, which is where Lambda takes them.
pub fn print_metrics(batch: &Applied, duration: Duration, function: &str) {
    // Where nobody reads the line, the batch is applied all the same.
    let _ = writeln!(
        std::io::stdout(),
        "{}",
        metrics(batch, duration, function, OffsetDateTime::now_utc())
    );
}

/// The batch's metrics in CloudWatch's embedded metric format (Amazon CloudWatch User Guide,
/// "Specification: Embedded metric format"): a line on standard output is enough.
#[must_use]
pub fn metrics(batch: &Applied, duration: Duration, function: &str, now: OffsetDateTime) -> Json {
    let counts = batch.counts;
    let mut values = vec![
        ("Records", "Count", json!(counts.records)),
        ("Applied", "Count", json!(counts.applied)),
        ("Duplicate", "Count", json!(counts.duplicate)),
        ("Stale", "Count", json!(counts.stale)),
        ("StaleCreatedLater", "Count", json!(counts.stale_created_later)),
        ("Superseded", "Count", json!(counts.superseded)),
        ("TtlKept", "Count", json!(counts.ttl_kept)),
        ("Rejected", "Count", json!(counts.rejected)),
        ("Failures", "Count", json!(counts.failed)),
        ("ObjectsWritten", "Count", json!(counts.objects_written)),
        ("ObjectsCurrent", "Count", json!(counts.objects_current)),
        ("BatchDuration", "Milliseconds", json!(milliseconds(duration))),
    ];
    if let Some(oldest) = batch.oldest {
        let age_s = (now - oldest).as_seconds_f64().max(0.0);
        values.push(("OldestRecordAge", "Seconds", json!(age_s)));
    }
    let definitions: Vec<Json> =
        values.iter().map(|(name, unit, _)| json!({ "Name": name, "Unit": unit })).collect();
    let timestamp_ms = i64::try_from(now.unix_timestamp_nanos() / 1_000_000).unwrap_or_default();
    let mut line = json!({
        "_aws": {
            "Timestamp": timestamp_ms,
            "CloudWatchMetrics": [{
                "Namespace": NAMESPACE,
                "Dimensions": [["FunctionName"]],
                "Metrics": definitions,
            }],
        },
        "FunctionName": function,
    });
    for (name, _, value) in values {
        line[name] = value;
    }
    line
}

/// To the microsecond, in milliseconds.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::{filter_of, metrics};
    use crate::apply::{Applied, Counts};
    use std::time::Duration;
    use time::macros::datetime;
    use tracing::Level;

    #[test]
    fn a_filter_is_read_whatever_its_spaces_and_commas() {
        let filter = |text: &str| filter_of(text).expect("a filter").to_string();
        assert_eq!(filter(""), filter("info"));
        assert_eq!(filter(" , "), filter("info"));
        assert_eq!(filter("info ,"), filter("info"));
        assert_eq!(filter("info, sqlx=warn"), filter("info,sqlx=warn"));
        assert!(filter_of("projector=loud").is_err());
        let heard = |text: &str, target: &str, level| {
            filter_of(text).expect("a filter").would_enable(target, &level)
        };
        for text in ["trace", "lambda_runtime=trace,sqlx=trace,projector=trace"] {
            assert!(heard(text, "projector::apply", Level::TRACE));
            assert!(!heard(text, "lambda_runtime::layers::api_response", Level::DEBUG));
            assert!(!heard(text, "sqlx::postgres::notice", Level::INFO));
        }
        assert!(
            heard("trace", "lambda_runtime", Level::INFO) && !heard("warn", "aws", Level::INFO)
        );
    }

    #[test]
    fn every_metric_is_defined_and_has_a_value() {
        let batch = Applied {
            counts: Counts { records: 3, applied: 2, rejected: 1, ..Counts::default() },
            oldest: Some(datetime!(2026-11-22 08:00 UTC)),
            ..Applied::default()
        };
        let line = metrics(
            &batch,
            Duration::from_micros(1500),
            "projector-new",
            datetime!(2026-11-22 08:00:30 UTC),
        );
        let definitions =
            line["_aws"]["CloudWatchMetrics"][0]["Metrics"].as_array().expect("definitions");
        assert_eq!(definitions.len(), 13);
        for definition in definitions {
            let name = definition["Name"].as_str().expect("a name");
            assert!(line[name].is_number(), "{name}");
        }
        assert_eq!(line["OldestRecordAge"].as_f64(), Some(30.0));
        assert_eq!(line["BatchDuration"].as_f64(), Some(1.5));
        assert_eq!(line["_aws"]["Timestamp"].as_i64(), Some(1_795_334_430_000));
        assert_eq!(line["FunctionName"], "projector-new");
    }
}
