//! `backfill`: brings a database's schema up to date, and replays change records into it: from the live
//! streams, from files, and from the rejected records. It also says whether a run can work, and how far the
//! last one came.

mod batches;
mod check;
mod checkpoint;
mod cli;
mod collect;
mod compare;
mod deliver;
mod discard;
mod doctor;
mod document;
mod dump;
mod file;
mod follow;
mod input;
mod lineage;
mod migrate;
mod objects;
mod outcome;
mod position;
mod progress;
mod reader;
mod readers;
mod record;
mod redrive;
mod rejected;
mod replay;
mod report;
mod resume;
mod scan;
mod shards;
mod source;
mod statement;
mod status;
mod stop;
mod stream;
mod summary;
mod tally;
mod tip;
mod values;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::cli::{Cli, Command};
pub(crate) use crate::outcome::Outcome;
use crate::progress::{LogWriter, note};
use crate::stop::Stop;

#[tokio::main]
async fn main() -> ExitCode {
    // A flag that is wrong ends here, with exit code 2.
    let cli = Cli::parse();
    let result = match start_logs() {
        Ok(()) => Box::pin(run(cli)).await,
        Err(error) => Err(error),
    };
    match result {
        Ok(outcome) => ExitCode::from(outcome.code()),
        Err(error) => {
            note(&format!("backfill: {}", projector::error::chain(error.as_ref())));
            ExitCode::from(Outcome::of_error(&error).code())
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<Outcome> {
    let stop = &Stop::listen()?;
    let Cli { settings, command } = &cli;
    let running = async {
        match command {
            Command::Doctor(arguments) => {
                at_once(stop, Box::pin(doctor::run(settings, arguments))).await
            }
            Command::Migrate(arguments) => {
                at_once(stop, Box::pin(migrate::run(settings, arguments))).await
            }
            Command::Check(arguments) => {
                at_once(stop, Box::pin(check::run(settings, arguments))).await
            }
            Command::Stream(arguments) => stream::run(settings, arguments, stop).await,
            Command::File(arguments) => file::run(settings, arguments, stop).await,
            Command::Redrive(arguments) => redrive::run(settings, arguments, stop).await,
            Command::Objects(arguments) => objects::run(settings, arguments, stop).await,
            Command::Status(arguments) => {
                at_once(stop, Box::pin(status::run(settings, arguments))).await
            }
        }
    };
    tokio::select! {
        biased;
        ended = running => ended,
        // A command ends by itself within the grace; this is for one that waits where it should not.
        () = stop.overdue() => {
            note("stopped by a signal with work under way: run the same command again to finish it");
            Ok(Outcome::Interrupted)
        }
    }
}

/// For a command that may end anywhere: it writes nothing, or PostgreSQL rolls back what it began.
async fn at_once(
    stop: &Stop,
    command: impl Future<Output = anyhow::Result<Outcome>>,
) -> anyhow::Result<Outcome> {
    tokio::select! {
        biased;
        ended = command => ended,
        () = stop.wait() => {
            note("stopped by a signal: run the same command again");
            Ok(Outcome::Interrupted)
        }
    }
}

/// Logs to standard error: standard output is for the summary.
fn start_logs() -> anyhow::Result<()> {
    let filter = match std::env::var_os("RUST_LOG") {
        Some(_) => projector::telemetry::log_filter()?,
        // Where no region is found, the SDK warns of each place it looked at; our one line says enough.
        None => Targets::new()
            .with_default(tracing::Level::WARN)
            .with_target("aws_config", tracing::Level::ERROR),
    };
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(|| LogWriter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    tracing_subscriber::registry().with(lines).with(filter).init();
    Ok(())
}
