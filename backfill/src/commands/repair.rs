//! `backfill repair`: says what it would cost, or repairs what the flags name, and says what it
//! came to.

use std::time::Duration;

use anyhow::anyhow;
use aws_config::SdkConfig;
use projector::change::Tables;
use projector::config::ConfigError;
use projector::start;
use time::OffsetDateTime;

use crate::cli::{RepairArguments, Settings};
use crate::console;
use crate::deliver::Delivery;
use crate::items::api::TablesApi;
use crate::items::place;
use crate::outcome::{Outcome, Remedy};
use crate::output::Output;
use crate::repair::candidates::{Candidates, count_keys, exports};
use crate::repair::conduct::{self, Conducted, Conductor, Connections, Origin};
use crate::repair::cost::{self, Reads};
use crate::repair::ledger;
use crate::repair::look::Looker;
use crate::repair::run::End;
use crate::repair::source;
use crate::repair::tally::Ended;
use crate::repair::unheld::UnheldObjects;
use crate::replay::coverage;
use crate::replay::source::Source;
use crate::stop::Stop;

pub(crate) async fn run(
    settings: &Settings,
    arguments: &RepairArguments,
    stop: &Stop,
    output: &Output,
) -> anyhow::Result<Outcome> {
    let config = settings.config()?;
    let tables = config.tables.clone();
    let has_archive = config.archive.is_some();
    let aws = Box::pin(start::aws_with_credentials()).await?;
    let api = TablesApi::new(&aws, tables, arguments.reading.read_units);
    let origin = origin(arguments);
    if arguments.dry_run {
        let reads = reads(arguments)?;
        let cost = cost::estimate(api.sizes().await?, reads, has_archive);
        output.result(|| cost.text(origin.name), || Ok(cost.json(origin.name)))?;
        return Ok(Outcome::Done);
    }
    if !has_archive {
        console::line("ARCHIVE_BUCKET is not set: no object is written");
    }
    let mut projector = start::projector_with_credentials(config).await?;
    projector.defers_objects = true;
    let conductor = Conductor {
        projector: Delivery::share(projector),
        aws: &aws,
        api,
        reading: &arguments.reading,
        max_rate: arguments.max_rate,
        stop,
    };
    let connections = Connections::apart_from(&conductor.projector.database);
    let looker = conduct::looker(&conductor.projector, &conductor.api, &connections).await?;
    let s3 = place::client(&aws);
    let open =
        async |looker| open(arguments, looker, &conductor.projector.tables, (&aws, &s3)).await;
    let conducted = Box::pin(conductor.run((origin, None), open, &looker)).await?;
    report(conducted, origin, output)
}

fn origin(arguments: &RepairArguments) -> Origin {
    let (ledger, name) = if arguments.scan {
        (ledger::Source::Scan, "a scan")
    } else if arguments.export.is_some() {
        (ledger::Source::Export, "exports")
    } else {
        (ledger::Source::Keys, "a file of keys")
    };
    Origin { command: "backfill repair", ledger, name }
}

/// Opens what names the keys, and says how many items there are.
async fn open<'a>(
    arguments: &'a RepairArguments,
    looker: &'a Looker<'a>,
    tables: &Tables,
    (aws, s3): (&SdkConfig, &aws_sdk_s3::Client),
) -> anyhow::Result<(source::Source<'a>, u64)> {
    let pairs = &looker.first;
    let (candidates, length) = if let Some(places) = &arguments.export {
        let now = OffsetDateTime::now_utc();
        let exports = exports::open(places, tables, s3, arguments.gap_start, now).await?;
        require_streams_since(aws, tables, exports.until).await?;
        console::line(&format!("reading {}", exports.name));
        let items = exports.items;
        (Candidates::export(pairs, exports), items)
    } else if let Some(path) = &arguments.keys {
        (Candidates::keys(path)?, count_keys(path)?)
    } else {
        let items = pairs.api.item_count().await?;
        (Candidates::scan(pairs, arguments.segments), items)
    };
    // A file of keys says itself which sessions it is about.
    let unheld = if arguments.keys.is_some() { None } else { UnheldObjects::of(looker) };
    Ok((source::Source::Tables(candidates, unheld), length))
}

/// Sees that the streams hold what came after the exports: one that was enabled later lacks what
/// was written in between.
async fn require_streams_since(
    aws: &SdkConfig,
    tables: &Tables,
    until: OffsetDateTime,
) -> anyhow::Result<()> {
    let found = coverage::examine(&Source::new(aws), tables).await?;
    for (table, enabled_since) in found.newest_streams() {
        if let Some(enabled_since) = enabled_since.filter(|since| *since > until) {
            let problem = format!(
                "ends at {}, and the stream of table {table:?} was enabled only at {}: what was \
                 written in between is in neither. Make exports that end later",
                console::clock(until),
                console::clock(enabled_since)
            );
            return Err(ConfigError { variable: "--export", problem }.into());
        }
    }
    Ok(())
}

fn reads(arguments: &RepairArguments) -> anyhow::Result<Reads> {
    match &arguments.keys {
        Some(path) => Ok(Reads::ByKey(count_keys(path)?)),
        None => Ok(Reads::All),
    }
}

/// Says what the run came to.
pub(crate) fn report(
    conducted: Conducted,
    origin: Origin,
    output: &Output,
) -> anyhow::Result<Outcome> {
    let Conducted { ended, tally, read_units, streams, took } = conducted;
    let how = match &ended {
        Ok(Some(End::AllSettled)) if tally.is_whole() => "done",
        Ok(Some(End::AllSettled)) | Err(_) => "failed",
        Ok(Some(End::Stopped) | None) => "stopped",
    };
    let took = took.max(Duration::from_millis(1));
    let records = streams.records;
    let summary = Ended { how, source: origin.name, took, read_units, records };
    output.result(|| tally.text(&summary), || Ok(tally.json(&summary)))?;
    let again = "run the same command again: what is repaired is equal then";
    match ended {
        Err(error) if error.is::<Remedy>() => Err(error),
        Err(error) => Err(error.context(Remedy(format!("the run ended early: {again}")))),
        Ok(None | Some(End::Stopped)) => {
            output.ended_early(&format!("stopped by a signal: {again}"));
            Ok(Outcome::Interrupted)
        }
        Ok(Some(End::AllSettled)) if tally.unreadable.count > 0 => {
            let failed = anyhow!(
                "{} files of the exports could not be read, the lines above say why: {}. What the \
                 others name is repaired",
                tally.unreadable.count,
                tally.unreadable.names()
            );
            let remedy = "copy these files again, or make new exports, and run the command again";
            Err(failed.context(Remedy(remedy.to_owned())))
        }
        Ok(Some(End::AllSettled)) if tally.locked.count > 0 => {
            let (count, named) = (tally.locked.count, tally.locked.names());
            let failed =
                anyhow!("{count} parts could not be written, the lines above say why: {named}");
            let remedy = "end what locks the rows, and run the same command again";
            Err(failed.context(Remedy(remedy.to_owned())))
        }
        Ok(Some(End::AllSettled)) if tally.failed_objects.count > 0 => {
            let failed = anyhow!(
                "{} objects could not be written, the lines above say why: {}. All rows are \
                 repaired",
                tally.failed_objects.count,
                tally.failed_objects.names()
            );
            Err(failed.context(Remedy("run `backfill objects` once S3 takes them".to_owned())))
        }
        Ok(Some(End::AllSettled)) if streams.rejected > 0 => Ok(Outcome::DoneWithRejections),
        Ok(Some(End::AllSettled)) => Ok(tally.outcome()),
    }
}
