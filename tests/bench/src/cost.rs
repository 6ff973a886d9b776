//! Dollars per million measurements, computed from measured times and list prices.

use std::fmt::Write as _;

use anyhow::Context as _;

use crate::function::SIZES;
use crate::report::{Report, Section};

/// us-east-1, x86, list prices of 2026-11: AWS Lambda pricing, Amazon S3 pricing (Standard).
const GB_SECOND: f64 = 0.000_016_666_7;
const INVOCATION: f64 = 0.20 / 1e6;
const PUT: f64 = 0.005 / 1e3;
const HEAD: f64 = 0.000_4 / 1e3;
/// The function's memory in `infra/projector.yaml`.
const MEMORY_GB: f64 = 0.25;
/// What S3 takes for a request of a few kilobytes (Amazon S3 User Guide, "Performance guidelines":
/// 100 to 200 ms are named as typical for small objects; much less is common within a region), and
/// how many go at once.
const S3_SECONDS: f64 = 0.1;
const OBJECTS_AT_ONCE: f64 = 32.0;
const RECORDS: f64 = 3.0;

/// Computes what a million measurements cost.
///
/// # Errors
/// Where the function has not been measured yet.
pub(crate) fn compute(report: &Report) -> anyhow::Result<Section> {
    let mut table = String::from(
        "| records a batch | parts | invocations | Lambda, GB-s | Lambda | S3 requests | together \
            |\n|---|---|---|---|---|---|---|\n",
    );
    for size in SIZES {
        let measured = |archive: &str| {
            report
                .figure(&format!("function_ms_{size}_{archive}"))
                .context("the function has not been measured: run `make bench PART=function` first")
        };
        let (without_objects, with_objects) = (measured("off")?, measured("on")?);
        for (parts, sessions_of_batch, puts, heads) in [
            // All three in one batch: one object, new.
            ("together", (size as f64 / RECORDS).max(1.0), 1.0, 0.0),
            // Each in a batch of its own: three writes of the object, two of them after a look at
            // it.
            ("apart", size as f64, RECORDS, RECORDS - 1.0),
        ] {
            // One record a batch cannot have its parts together.
            if size == 1 && parts == "together" {
                continue;
            }
            let invocations = 1e6 * RECORDS / size as f64;
            let requests_in_turn =
                (puts + heads) / puts * (sessions_of_batch / OBJECTS_AT_ONCE).ceil();
            // What was measured is one PUT for each three records.
            let requests = sessions_of_batch * (puts + heads) / puts;
            let requests_measured = (size as f64 / RECORDS).max(1.0);
            let milliseconds =
                without_objects + (with_objects - without_objects) * requests / requests_measured;
            let seconds = milliseconds / 1e3 + S3_SECONDS * requests_in_turn;
            let gb_seconds = invocations * seconds * MEMORY_GB;
            let lambda = gb_seconds * GB_SECOND + invocations * INVOCATION;
            let s3 = 1e6 * (puts * PUT + heads * HEAD);
            writeln!(
                table,
                "| {size} | {parts} | {invocations:.0} | {gb_seconds:.0} | ${lambda:.2} | ${s3:.2} | **${:.2}** |",
                lambda + s3
            )?;
        }
    }
    let text = format!(
        "A million measurements of three records each, in list prices of us-east-1; the database and storage are not in it.\n\n{table}\n\
Lambda = invocations × (measured ms of the batch, that of its objects as often as it has requests, \
+ S3's own time) × {MEMORY_GB} GB × ${GB_SECOND:.10} + invocations × $0.20 / 10^6. S3's own time, \
which this machine cannot measure, is taken as {S3_SECONDS} s a request, {OBJECTS_AT_ONCE} at \
once. The measured ms are those of a whole core; at {MEMORY_GB} GB Lambda gives a seventh of one, \
so the part that is computed, most of a batch of thousands and little of one of ten, takes up to \
seven times as long. Requests = 10^6 × (PUTs × $5 / 10^6 + HEADs × $0.40 / 10^6): one PUT where \
the three parts come in one batch, three PUTs and two HEADs where each comes alone. Lambda's reads \
of DynamoDB Streams are free; a `backfill stream` pays $0.02 for each 100,000 GetRecords of up to \
1 MB (Amazon DynamoDB pricing). S3 is most of it: a longer batching window, so that the parts of a \
measurement come together, saves more than anything in the function.\n"
    );
    Ok(Section {
        order: 8,
        title: "Cost".to_owned(),
        text,
        aims: Vec::new(),
        figures: Vec::new(),
        plot: None,
    })
}
