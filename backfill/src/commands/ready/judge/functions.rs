//! What the functions, their mappings, metrics, alarms and buckets of failures come to. Pure.

use std::fmt::Write as _;

use super::super::condition::{Condition, wanted};
use super::super::observed::{Function, Mapping, Metrics, Observed, Table};
use super::ASK;

/// What a mapping that is young or has nothing to read says of its last call.
const NOTHING_PROCESSED: &str = "No records processed";
/// The remedy of a mapping that does not read as it should.
const READS_NOTHING: &str = "see docs/incidents.md#a-mapping-reads-nothing";
/// A batch is applied, and its metric known, this long after its records were written.
const METRIC_DELAY_SECONDS: i64 = 120;
/// At most this many things are named in a cell.
const NAMED: usize = 5;

/// Each mapping of each function.
pub(super) fn mappings(observed: &Observed) -> Vec<Condition> {
    let Observed { functions, tables, metrics, .. } = observed;
    let of_function = |function| tables.iter().map(move |table| mapping(function, table, metrics));
    functions.iter().flat_map(of_function).collect()
}

fn mapping(
    function: &Function,
    table: &Table,
    metrics: &super::super::condition::Asked<Metrics>,
) -> Condition {
    let wanted = wanted(
        format!("mapping: {} {}", function.name, table.name),
        "enabled, on the newest stream, reports item failures, last result OK",
    );
    let mappings = match &function.mappings {
        Ok(mappings) => mappings,
        Err(why) => return wanted.not_asked(why, ASK),
    };
    let latest = match &table.latest_stream {
        Ok(latest) => latest,
        Err(why) => return wanted.not_asked(why, ASK),
    };
    let place = format!(":table/{}/stream/", table.name);
    let mut of_table: Vec<&Mapping> =
        mappings.iter().filter(|mapping| mapping.stream_arn.contains(&place)).collect();
    // The one of a stream that was turned off may be there for a day.
    of_table.sort_by_key(|mapping| mapping.stream_arn != *latest);
    let Some(mapping) = of_table.first() else {
        return wanted.fail("absent", "deploy the function's stack with Mappings=enabled");
    };
    let written = metrics.as_ref().map_or(true, |metrics| metrics.written(&table.name));
    let faults = faults(mapping, latest, written);
    let result = mapping.last_result.as_deref().unwrap_or("none");
    let value = format!("{}, last result: {result}", mapping.state);
    if faults.is_empty() {
        wanted.pass(value)
    } else {
        wanted.fail(faults.join("; "), READS_NOTHING)
    }
}

fn faults(mapping: &Mapping, latest: &str, written: bool) -> Vec<String> {
    let mut faults = Vec::new();
    if mapping.state != "Enabled" {
        faults.push(format!("its state is {}", mapping.state));
    }
    if mapping.stream_arn != latest {
        faults.push(format!("it reads {}, and the newest stream is {latest}", mapping.stream_arn));
    }
    if !mapping.reports_item_failures {
        faults.push("FunctionResponseTypes lacks ReportBatchItemFailures".to_owned());
    }
    match mapping.last_result.as_deref() {
        Some("OK") => {}
        Some(NOTHING_PROCESSED) if !written => {}
        Some(NOTHING_PROCESSED) => {
            faults.push(format!("{NOTHING_PROCESSED:?} although the table is written"));
        }
        Some(result) => faults.push(format!("its last result is {result:?}")),
        None => faults.push("it has no last result".to_owned()),
    }
    faults
}

/// How far each mapping of each function is behind.
pub(super) fn lags(observed: &Observed, limit_seconds: u32) -> Vec<Condition> {
    let Observed { functions, tables, .. } = observed;
    let of_function = |function: &Function| -> Vec<Condition> {
        tables
            .iter()
            .map(|table| lag(observed, &function.name, &table.name, limit_seconds))
            .collect()
    };
    functions.iter().flat_map(of_function).collect()
}

fn lag(observed: &Observed, function: &str, table: &str, limit_seconds: u32) -> Condition {
    let wanted = wanted(
        format!("lag: {function} {table}"),
        format!("at most {limit_seconds} s for 5 minutes"),
    );
    let metrics = match &observed.metrics {
        Ok(metrics) => metrics,
        Err(why) => return wanted.not_asked(why, ASK),
    };
    let key = (function.to_owned(), table.to_owned());
    let empty = std::collections::BTreeMap::new();
    let ages = metrics.ages.get(&key).unwrap_or(&empty);
    let settled = observed.now.unix_timestamp() - METRIC_DELAY_SECONDS;
    let last_write = metrics.last_write(table, settled);
    let last_batch = ages.keys().next_back().copied();
    if let Some(write) = last_write
        && last_batch.is_none_or(|batch| batch < write)
    {
        let since = match last_batch {
            Some(_) => "no batch since",
            None => "no batch in 5 minutes",
        };
        return wanted.fail(
            format!(
                "{since}, although the table was written {} s \
                ago",
                settled_age(observed, write)
            ),
            format!(
                "{READS_NOTHING}; a function of an older release does not emit OldestRecordAge per \
                 Table: deploy this one"
            ),
        );
    }
    let greatest = ages
        .values()
        .copied()
        .fold(None, |most: Option<f64>, age| Some(most.map_or(age, |most| most.max(age))));
    match greatest {
        None => wanted.pass("nothing was written"),
        Some(age) => wanted.judged(
            age <= f64::from(limit_seconds),
            format!("{age:.0} s at most"),
            "wait until it has caught up; if it does not, see docs/incidents.md#late",
        ),
    }
}

fn settled_age(observed: &Observed, minute: i64) -> i64 {
    observed.now.unix_timestamp() - minute - 60
}

/// Whether the buckets of failures are empty, per function.
pub(super) fn failures(observed: &Observed) -> Vec<Condition> {
    observed.functions.iter().map(failures_of).collect()
}

fn failures_of(function: &Function) -> Condition {
    let wanted = wanted(format!("failures: {}", function.name), "an empty bucket of failures");
    let buckets = match &function.failures {
        Ok(buckets) => buckets,
        Err(why) => return wanted.not_asked(why, ASK),
    };
    if buckets.is_empty() {
        let remedy =
            "give both mappings a bucket as OnFailure destination: what Lambda gives up on is lost";
        return wanted.fail("no mapping has a bucket for what Lambda gives up on", remedy);
    }
    let mut value = String::new();
    for bucket in buckets {
        let separator = if value.is_empty() { "" } else { ", " };
        let content =
            bucket.first.as_deref().map_or("empty".to_owned(), |first| format!("has {first}"));
        let _ = write!(value, "{separator}{}: {content}", bucket.bucket);
    }
    wanted.judged(
        buckets.iter().all(|bucket| bucket.first.is_none()),
        value,
        "apply it with `backfill file`: see docs/incidents.md#the-bucket-of-failures",
    )
}

/// Whether an alarm rings, per function.
pub(super) fn alarms(observed: &Observed) -> Vec<Condition> {
    let [new, old] = &observed.functions;
    vec![alarms_of(new, true), alarms_of(old, false)]
}

/// The readers will depend on the new function: somebody must be woken. The old one may be from
/// before these stacks.
fn alarms_of(function: &Function, required: bool) -> Condition {
    let wanted = wanted(format!("alarms: {}", function.name), "none in ALARM");
    let alarms = match &function.alarms {
        Ok(alarms) => alarms,
        Err(why) => return wanted.not_asked(why, ASK),
    };
    if alarms.is_empty() {
        let value = format!("there is no alarm {}-*", function.name);
        return wanted.judged(!required, value, "deploy infra/alarms.yaml for this function");
    }
    let named = |state: &str| {
        let of_state = alarms.iter().filter(|alarm| alarm.state == state);
        some(&of_state.map(|alarm| alarm.name.as_str()).collect::<Vec<_>>())
    };
    let (ringing, unknown) = (named("ALARM"), named("INSUFFICIENT_DATA"));
    let unknown = unknown.map_or(String::new(), |text| format!("; INSUFFICIENT_DATA: {text}"));
    match ringing {
        None => wanted.pass(format!("{} alarms, none in ALARM{unknown}", alarms.len())),
        Some(first) => wanted.fail(
            format!("in ALARM: {first}{unknown}"),
            "the description of each alarm names its section of docs/incidents.md",
        ),
    }
}

/// The first of some names; `None` if there are none.
pub(super) fn some(names: &[impl AsRef<str>]) -> Option<String> {
    if names.is_empty() {
        return None;
    }
    let first: Vec<&str> = names.iter().take(NAMED).map(AsRef::as_ref).collect();
    let more = match names.len() - first.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!("{}{more}", first.join(", ")))
}
