//! `backfill check`: can the gap between a snapshot and now be closed from the streams, who reads
//! them, and how far back do they go?

use projector::start;
use time::OffsetDateTime;

use crate::cli::{CheckArguments, Settings};
use crate::console;
use crate::outcome::Outcome;
use crate::output::Output;
use crate::replay::coverage;
use crate::replay::coverage::judge::{Report, judge};
use crate::replay::readers;
use crate::replay::source::Source;

pub(crate) async fn run(
    settings: &Settings,
    arguments: &CheckArguments,
    output: &Output,
) -> anyhow::Result<Outcome> {
    let report = find_out(settings, arguments).await?;
    let width = console::table_width();
    output.result(|| report.table(width), || serde_json::to_value(&report))?;
    if report.has_problems() {
        output.explain("not safe: see the problems of each stream");
        return Ok(Outcome::Unsafe);
    }
    Ok(Outcome::Done)
}

async fn find_out(settings: &Settings, arguments: &CheckArguments) -> anyhow::Result<Report> {
    let tables = settings.config_without_database()?.tables;
    let aws = start::aws_with_credentials().await?;
    let mut found = coverage::examine(&Source::new(&aws), &tables).await?;
    let readers = readers::ask(&aws, &found.streams()).await;
    found.set_readers(readers);
    let now = OffsetDateTime::now_utc();
    Ok(judge(&found, arguments.snapshot_time, arguments.margin(), now))
}
