//! `backfill`: brings a database's schema up to date, and replays change records into it: from the live
//! streams, from files, and from the rejected records. It also says whether a run can work, and how far the
//! last one came.

mod cli;
mod commands;
mod console;
mod deliver;
mod outcome;
mod replay;
mod retry;
mod statement;
mod stop;
mod summary;

use std::process::ExitCode;

use clap::Parser as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::cli::{Cli, Command};
use crate::commands::migrate::schema::Mismatch;
use crate::console::LogWriter;
use crate::replay::position::Lost;
use crate::statement::lacks_privilege;
use crate::stop::Stop;

use crate::outcome::Outcome;

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
            for line in outcome::failure(&error) {
                console::line(&line);
            }
            ExitCode::from(outcome_of(&error).code())
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<Outcome> {
    let stop = &Stop::listen()?;
    let Cli { settings, command } = &cli;
    let running = async {
        match command {
            Command::Doctor(arguments) => {
                at_once(stop, Box::pin(commands::doctor::run(settings, arguments))).await
            }
            Command::Migrate(arguments) => {
                at_once(stop, Box::pin(commands::migrate::run(settings, arguments))).await
            }
            Command::Check(arguments) => {
                at_once(stop, Box::pin(commands::check::run(settings, arguments))).await
            }
            Command::Stream(arguments) => commands::stream::run(settings, arguments, stop).await,
            Command::File(arguments) => commands::file::run(settings, arguments, stop).await,
            Command::Redrive(arguments) => commands::redrive::run(settings, arguments, stop).await,
            Command::Objects(arguments) => commands::objects::run(settings, arguments, stop).await,
            Command::Status(arguments) => {
                at_once(stop, Box::pin(commands::status::run(settings, arguments))).await
            }
            Command::Completions(arguments) => Ok(commands::shell::completions(arguments)),
            Command::Man => commands::shell::manual(),
        }
    };
    tokio::select! {
        biased;
        ended = running => ended,
        // A command ends by itself within the grace; this is for one that waits where it should not.
        () = stop.overdue() => {
            console::line("stopped by a signal with work under way: run the same command again to finish it");
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
            console::line("stopped by a signal: run the same command again");
            Ok(Outcome::Interrupted)
        }
    }
}

/// What a run that ended with this error came to.
fn outcome_of(error: &anyhow::Error) -> Outcome {
    if is_configuration(error) {
        Outcome::Configuration
    } else if error.is::<Lost>() {
        Outcome::Trimmed
    } else {
        Outcome::Failed
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
            || error.downcast_ref::<Mismatch>().is_some_and(Mismatch::is_configuration)
            || error.downcast_ref::<sqlx::Error>().is_some_and(lacks_privilege)
    })
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
        .with_ansi(console::has_color())
        .with_target(false);
    tracing_subscriber::registry().with(lines).with(filter).init();
    Ok(())
}

#[cfg(test)]
mod tests {
    use projector::config::ConfigError;

    use super::{Outcome, outcome_of};

    #[test]
    fn an_error_of_the_configuration_is_found_below_its_context() {
        let wrong = ConfigError { variable: "DATABASE_URL", problem: "is not set".to_owned() };
        let wrong = anyhow::Error::from(wrong).context("starting");
        assert_eq!(outcome_of(&wrong), Outcome::Configuration);
        assert_eq!(outcome_of(&anyhow::anyhow!("a disk is full")), Outcome::Failed);
    }
}
