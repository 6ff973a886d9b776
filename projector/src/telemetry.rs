//! Logs and metrics: one JSON line and one metric line a batch, with counts and durations. Neither
//! holds a measured value or a user's id.

use std::io::Write as _;
use std::time::Duration;

use serde_json::{Value as Json, json};
use time::OffsetDateTime;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::apply::{BatchOutcome, Durations};
use crate::config::ConfigError;
use crate::counts::for_each_count;

/// The metrics' namespace in CloudWatch.
pub const NAMESPACE: &str = "Projector";

/// The log filter of `RUST_LOG`, levels by target: `info` where it is not set. Below `info` only
/// our own targets are heard: the runtime logs the raw event at `trace`, and the SDK bodies,
/// secrets among them.
///
/// # Errors
/// [`ConfigError`] where it cannot be read.
pub fn log_filter() -> Result<Targets, ConfigError> {
    filter_of(&std::env::var("RUST_LOG").unwrap_or_default())
}

/// The most that is heard of a target: all of our own crates, whose logs hold no value of a record
/// and no part of a login; of sqlx warnings, for at `info` it repeats the server's notices, and
/// somebody's trigger may say a value in one.
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
pub fn log_batch(batch: &BatchOutcome, duration: Duration) {
    let counts = batch.counts;
    let Durations { decode, database, archive } = batch.durations;
    // The subscriber takes fields whose names are known when this is compiled.
    macro_rules! log {
        ($($(#[$doc:meta])+ $name:ident: $metric:expr, $line:expr;)+) => {
            tracing::info!(
                $($name = counts.$name,)+
                decode_ms = milliseconds(decode),
                database_ms = milliseconds(database),
                archive_ms = milliseconds(archive),
                duration_ms = milliseconds(duration),
                "batch"
            )
        };
    }
    for_each_count!(log);
}

/// Prints the batch's metrics, a line on standard output, which is where Lambda takes them.
pub fn print_metrics(batch: &BatchOutcome, duration: Duration, function: &str) {
    // If nobody reads the line, the batch is still applied.
    let _ = writeln!(
        std::io::stdout(),
        "{}",
        metrics(batch, duration, function, OffsetDateTime::now_utc())
    );
}

/// The batch's metrics in CloudWatch's embedded metric format (Amazon CloudWatch User Guide,
/// "Specification: Embedded metric format"): a line on standard output is enough.
#[must_use]
pub fn metrics(
    batch: &BatchOutcome,
    duration: Duration,
    function: &str,
    now: OffsetDateTime,
) -> Json {
    let counts = batch.counts.list();
    let mut values: Vec<_> =
        counts.filter_map(|count| Some((count.metric?, "Count", json!(count.value)))).collect();
    // What is measured of a batch, and is no count.
    values.push(("BatchDuration", "Milliseconds", json!(milliseconds(duration))));
    if let Some(oldest) = batch.oldest {
        let age_s = (now - oldest).as_seconds_f64().max(0.0);
        values.push(("OldestRecordAge", "Seconds", json!(age_s)));
    }
    let definitions: Vec<Json> =
        values.iter().map(|(name, unit, _)| json!({ "Name": name, "Unit": unit })).collect();
    let mut directives = vec![json!({
        "Namespace": NAMESPACE,
        "Dimensions": [["FunctionName"]],
        "Metrics": definitions,
    })];
    let table = batch.table.as_ref().filter(|_| batch.oldest.is_some());
    if table.is_some() {
        // Each table has a mapping of its own, and one that hangs must not be hidden by the other.
        directives.push(json!({
            "Namespace": NAMESPACE,
            "Dimensions": [["FunctionName", "Table"]],
            "Metrics": [{ "Name": "OldestRecordAge", "Unit": "Seconds" }],
        }));
    }
    let timestamp_ms = i64::try_from(now.unix_timestamp_nanos() / 1_000_000).unwrap_or_default();
    let mut line = json!({
        "_aws": {
            "Timestamp": timestamp_ms,
            "CloudWatchMetrics": directives,
        },
        "FunctionName": function,
    });
    if let Some(table) = table {
        line["Table"] = json!(table);
    }
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
    use crate::apply::BatchOutcome;
    use crate::counts::Counts;
    use std::collections::BTreeSet;
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
        let batch = BatchOutcome {
            counts: Counts { records: 3, applied: 2, rejected: 1, ..Counts::default() },
            oldest: Some(datetime!(2026-11-22 08:00 UTC)),
            ..BatchOutcome::default()
        };
        let line = metrics(
            &batch,
            Duration::from_micros(1500),
            "projector-new",
            datetime!(2026-11-22 08:00:30 UTC),
        );
        let definitions =
            line["_aws"]["CloudWatchMetrics"][0]["Metrics"].as_array().expect("definitions");
        let defined: BTreeSet<&str> =
            definitions.iter().map(|metric| metric["Name"].as_str().expect("a name")).collect();
        let members = line.as_object().expect("an object").iter();
        let numbers = members.filter(|(_, value)| value.is_number()).map(|(name, _)| name.as_str());
        assert_eq!(defined, numbers.collect());
        let counts: Vec<_> = batch.counts.list().filter_map(|count| count.metric).collect();
        assert!(counts.iter().all(|metric| defined.contains(metric)));
        assert_eq!(line["OldestRecordAge"].as_f64(), Some(30.0));
        assert_eq!(line["BatchDuration"].as_f64(), Some(1.5));
        assert_eq!(line["_aws"]["Timestamp"].as_i64(), Some(1_795_334_430_000));
        assert_eq!(line["FunctionName"], "projector-new");
    }

    #[test]
    fn the_age_of_a_batch_of_one_table_is_that_of_its_mapping_too() {
        let now = datetime!(2026-11-22 08:00 UTC);
        let line = |oldest, table: Option<&str>| {
            let table = table.map(str::to_owned);
            let batch = BatchOutcome { oldest, table, ..BatchOutcome::default() };
            metrics(&batch, Duration::ZERO, "projector", now)
        };
        let directives = |line: &serde_json::Value| {
            line["_aws"]["CloudWatchMetrics"].as_array().expect("directives").clone()
        };
        let of_one = line(Some(now), Some("scans"));
        let expected = serde_json::json!({
            "Namespace": "Projector",
            "Dimensions": [["FunctionName", "Table"]],
            "Metrics": [{ "Name": "OldestRecordAge", "Unit": "Seconds" }],
        });
        assert_eq!(directives(&of_one)[1..], [expected]);
        assert_eq!(of_one["Table"], "scans");
        for without in [line(Some(now), None), line(None, Some("scans"))] {
            assert_eq!(directives(&without).len(), 1, "{without}");
            assert!(without["Table"].is_null(), "{without}");
        }
    }

    /// The names of all metrics of a batch.
    fn emitted() -> BTreeSet<String> {
        let now = datetime!(2026-11-22 08:00 UTC);
        let batch = BatchOutcome { oldest: Some(now), ..BatchOutcome::default() };
        let line = metrics(&batch, Duration::ZERO, "projector", now);
        let definitions = &line["_aws"]["CloudWatchMetrics"][0]["Metrics"];
        let names = definitions.as_array().expect("definitions").iter();
        names.map(|metric| metric["Name"].as_str().expect("a name").to_owned()).collect()
    }

    #[test]
    fn the_table_of_metrics_has_every_metric_and_no_other() {
        let reference = include_str!("../../docs/reference.md");
        let table = reference.split_once("| metric | counts |\n|---|---|\n").expect("a table").1;
        let rows = table.lines().take_while(|line| line.starts_with('|'));
        let named = rows.flat_map(|row| {
            let names = row.split('|').nth(1).expect("a first cell");
            names.split(',').map(|name| name.trim().trim_matches('`').to_owned())
        });
        assert_eq!(named.collect::<BTreeSet<_>>(), emitted());
    }

    #[test]
    fn the_dashboard_shows_every_metric() {
        let template = include_str!("../../infra/alarms.yaml");
        let body = template.split_once("DashboardBody:").expect("a dashboard").1;
        for metric in emitted() {
            assert!(body.contains(&format!(r#"", "{metric}", ""#)), "{metric} is not shown");
        }
    }
}
