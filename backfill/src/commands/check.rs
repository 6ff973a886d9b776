//! `backfill check`: can the gap between a snapshot and now be closed from the streams, who reads them, and how far back
//! do they go?

use projector::start;
use time::OffsetDateTime;

use crate::cli::{CheckArguments, Settings};
use crate::console::say;
use crate::outcome::Outcome;
use crate::replay::coverage::{self, Report};
use crate::replay::readers;
use crate::replay::source::Source;

pub(crate) async fn run(
    settings: &Settings,
    arguments: &CheckArguments,
) -> anyhow::Result<Outcome> {
    match find_out(settings, arguments).await {
        Ok(report) => {
            if arguments.json {
                say!("{}", serde_json::to_string_pretty(&report)?);
            } else {
                say!("{}", report.table().trim_end());
            }
            Ok(if report.has_problems() { Outcome::Unsafe } else { Outcome::Done })
        }
        Err(error) => {
            // A script that reads JSON gets JSON, whatever is wrong.
            if arguments.json {
                let error = projector::error::chain(error.as_ref());
                let report = serde_json::json!({ "safe": false, "error": error, "streams": [] });
                say!("{report:#}");
            }
            Err(error)
        }
    }
}

async fn find_out(settings: &Settings, arguments: &CheckArguments) -> anyhow::Result<Report> {
    let tables = settings.config_without_database()?.tables;
    let aws = start::aws_with_credentials().await?;
    let mut found = coverage::examine(&Source::new(&aws), &tables).await?;
    let readers = readers::ask(&aws, &found.streams()).await;
    found.set_readers(readers);
    let now = OffsetDateTime::now_utc();
    Ok(coverage::judge(&found, arguments.snapshot_time, arguments.margin(), now))
}
