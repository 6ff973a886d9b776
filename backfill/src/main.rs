//! `backfill`: brings a database's schema up to date, and replays change records into it: from the
//! live streams, from files, and those that were set aside.

mod check;
mod checkpoint;
mod cli;
mod collect;
mod deliver;
mod document;
mod file;
mod follow;
mod lineage;
mod migrate;
mod objects;
mod position;
mod progress;
mod reader;
mod readers;
mod record;
mod redrive;
mod replay;
mod resume;
mod shards;
mod source;
mod statement;
mod stop;
mod stream;
mod summary;
mod tally;
mod tip;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use projector::apply::Counts;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::cli::{Cli, Command};
use crate::position::Lost;
use crate::progress::{LogWriter, note};
use crate::stop::Stop;

/// What a run came to; the exit code of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// 0: all is done.
    Done,
    /// 3: all is done, and some records are set aside in `rejected_records`.
    DoneWithRejections,
    /// 4: the gap cannot be closed from the streams, or there would be too many readers.
    Unsafe,
    /// 5: all that is left is done; records can be lost, which was allowed.
    DoneWithGap,
    /// 6: a signal ended the run before all was applied.
    Interrupted,
}

impl Outcome {
    /// What a run that applied all came to.
    fn of(counts: &Counts) -> Self {
        if counts.rejected > 0 { Self::DoneWithRejections } else { Self::Done }
    }

    fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::DoneWithRejections => 3,
            Self::Unsafe => 4,
            Self::DoneWithGap => 5,
            Self::Interrupted => 6,
        }
    }
}

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
            ExitCode::from(code(&error))
        }
    }
}

fn code(error: &anyhow::Error) -> u8 {
    if is_configuration(error) {
        2
    } else if error.is::<Lost>() {
        5
    } else {
        1
    }
}

/// Whether a flag or variable is wrong, found at the start or by the first record.
fn is_configuration(error: &anyhow::Error) -> bool {
    error.chain().any(|error| {
        error.is::<projector::config::ConfigError>()
            || error.is::<projector::change::Misconfigured>()
            || error
                .downcast_ref::<projector::error::Error>()
                .is_some_and(projector::error::Error::is_configuration)
    })
}

async fn run(cli: Cli) -> anyhow::Result<Outcome> {
    let stop = &Stop::listen()?;
    let Cli { settings, command } = &cli;
    let running = async {
        match command {
            Command::Migrate(arguments) => at_once(stop, migrate::run(settings, arguments)).await,
            Command::Check(arguments) => at_once(stop, check::run(settings, arguments)).await,
            Command::Stream(arguments) => stream::run(settings, arguments, stop).await,
            Command::File(arguments) => file::run(settings, arguments, stop).await,
            Command::Redrive(arguments) => redrive::run(settings, arguments, stop).await,
            Command::Objects(arguments) => objects::run(settings, arguments, stop).await,
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
