//! `backfill`: brings a database's schema up to date, and replays change records into it.

mod cli;
mod file;
mod migrate;
mod progress;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::{Cli, Command};

/// What a run came to; the exit code of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// 0: all is done.
    Done,
    /// 3: all is done, and some records are set aside in `rejected_records`.
    DoneWithRejections,
}

#[tokio::main]
async fn main() -> ExitCode {
    // A flag that is wrong ends here, with exit code 2.
    let cli = Cli::parse();
    let result = match start_logs() {
        Ok(()) => run(cli).await,
        Err(error) => Err(error),
    };
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::DoneWithRejections) => ExitCode::from(3),
        Err(error) => {
            eprintln!("backfill: {}", projector::error::chain(error.as_ref()));
            ExitCode::from(if is_configuration(&error) { 2 } else { 1 })
        }
    }
}

/// Whether a flag or variable is wrong, found at the start or by the first record.
fn is_configuration(error: &anyhow::Error) -> bool {
    use projector::error::Error::{Misconfigured, NoBucket};
    error.chain().any(|error| {
        error.is::<projector::config::ConfigError>()
            || matches!(error.downcast_ref(), Some(Misconfigured(_) | NoBucket { .. }))
    })
}

async fn run(cli: Cli) -> anyhow::Result<Outcome> {
    match cli.command {
        Command::Migrate(arguments) => migrate::run(&cli.settings, &arguments).await,
        Command::File(arguments) => file::run(&cli.settings, &arguments).await,
    }
}

/// Logs to standard error: standard output is for the summary.
fn start_logs() -> anyhow::Result<()> {
    let filter = match std::env::var_os("RUST_LOG") {
        Some(_) => projector::telemetry::log_filter()?,
        None => tracing_subscriber::EnvFilter::new("warn"),
    };
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .with_env_filter(filter)
        .init();
    Ok(())
}
