//! The program: its arguments, the command that they name, and what an error comes to.

use std::process::ExitCode;

use clap::FromArgMatches as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::cli::{Cli, Command};
use crate::commands::migrate::schema::Mismatch;
use crate::console::LogWriter;
use crate::outcome::Outcome;
use crate::output::Output;
use crate::replay::position::Lost;
use crate::statement::lacks_privilege;
use crate::stop::Stop;
use crate::{cli, commands, console, outcome};

/// Runs the program of this process's arguments, to its exit code.
#[must_use]
#[tokio::main]
pub async fn main() -> ExitCode {
    let cli = match parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let output = Output::new(cli.command.is_json());
    let result = match start_logs() {
        Ok(()) => Box::pin(run(&cli.command, &output)).await,
        Err(error) => Err(error),
    };
    let (code, failure) = match &result {
        Ok(outcome) => (outcome.code(), None),
        Err(error) => (outcome_of(error).code(), Some(error)),
    };
    for line in failure.into_iter().flat_map(outcome::failure) {
        console::line(&line);
    }
    output.end(code, failure);
    ExitCode::from(code)
}

/// The command line. Help ends here, and so does a flag that is wrong.
fn parse() -> Result<Cli, ExitCode> {
    let matches = cli::command(console::table_width().min(100)).try_get_matches();
    matches.and_then(|matches| Cli::from_arg_matches(&matches)).map_err(|error| {
        // That nobody reads it is no other failure.
        let _ = error.print();
        if !error.use_stderr() {
            return ExitCode::SUCCESS;
        }
        let code = Outcome::Configuration.code();
        let output = Output::new(std::env::args_os().any(|argument| argument == "--json"));
        // Above the usage.
        let text = error.to_string();
        let text = text.split("\n\n").next().unwrap_or_default();
        output.explain(text.trim_start_matches("error: ").trim());
        output.end(code, None);
        ExitCode::from(code)
    })
}

async fn run(command: &Command, output: &Output) -> anyhow::Result<Outcome> {
    let stop = &Stop::listen()?;
    let settings = &command.settings();
    let running = async {
        match command {
            Command::Doctor(_) => {
                at_once(stop, output, Box::pin(commands::doctor::run(settings, output))).await
            }
            Command::Migrate(arguments) => {
                let running = Box::pin(commands::migrate::run(settings, arguments, output));
                at_once(stop, output, running).await
            }
            Command::Check(arguments) => {
                let running = Box::pin(commands::check::run(settings, arguments, output));
                at_once(stop, output, running).await
            }
            Command::Stream(arguments) => {
                commands::stream::run(settings, arguments, stop, output).await
            }
            Command::File(arguments) => {
                commands::file::run(settings, arguments, stop, output).await
            }
            Command::Merge(arguments) => {
                Box::pin(commands::merge::run(settings, arguments, stop, output)).await
            }
            Command::Repair(arguments) => {
                Box::pin(commands::repair::run(settings, arguments, stop, output)).await
            }
            Command::Reconcile(arguments) => {
                Box::pin(commands::reconcile::run(settings, arguments, stop, output)).await
            }
            Command::Verify(arguments) => {
                Box::pin(commands::verify::run(settings, arguments, stop, output)).await
            }
            Command::Ready(arguments) => {
                Box::pin(commands::ready::run(settings, arguments, stop, output)).await
            }
            Command::Redrive(arguments) => {
                commands::redrive::run(settings, arguments, stop, output).await
            }
            Command::Objects(arguments) => {
                commands::objects::run(settings, arguments, stop, output).await
            }
            Command::Status(_) => {
                at_once(stop, output, Box::pin(commands::status::run(settings, output))).await
            }
            Command::Completions(arguments) => Ok(commands::shell::completions(arguments)),
            Command::Man => commands::shell::manual(),
        }
    };
    tokio::select! {
        biased;
        ended = running => ended,
        // A command ends by itself within the grace; this is for one that waits where it should
        // not.
        () = stop.overdue() => {
            let why = "stopped by a signal with work under way: run the same command again to \
                finish it";
            output.ended_early(why);
            Ok(Outcome::Interrupted)
        }
    }
}

/// For a command that may end anywhere: it writes nothing, or PostgreSQL rolls back what it began.
async fn at_once(
    stop: &Stop,
    output: &Output,
    command: impl Future<Output = anyhow::Result<Outcome>>,
) -> anyhow::Result<Outcome> {
    tokio::select! {
        biased;
        ended = command => ended,
        () = stop.wait() => {
            output.ended_early("stopped by a signal: run the same command again");
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
        // Where no region is found, the SDK warns of each place it looked at; our one line says
        // enough.
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
