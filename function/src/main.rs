//! The Lambda: `bootstrap` in the zip that `cargo lambda build` makes.
//!
//! One binary has two forms. With `EVENTS=streams`, the default, it takes the records of event
//! source mappings. With `EVENTS=reconcile` it takes the requests of a state machine that repairs
//! whole tables.

use std::process::ExitCode;
use std::time::SystemTime;

use backfill::reconcile::{Failure, Reconciler, Waits};
use lambda_runtime::{Context, Diagnostic, LambdaEvent, service_fn};
use projector::config::{Config, ConfigError};
use projector::deadline::Deadline;
use projector::handler::{self, StreamEvent};
use projector::{start, telemetry};
use serde_json::value::RawValue;
use tokio::time::Instant;

/// Which events the function takes.
const EVENTS: &str = "EVENTS";

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("projector: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Checks the configuration, then serves invocations. The first one makes the first connection.
async fn run() -> Result<(), lambda_runtime::Error> {
    telemetry::start_json_logs()?;
    let config = Config::read(variable, 1)?;
    let runtime = "AWS_LAMBDA_RUNTIME_API";
    if std::env::var_os(runtime).is_none() {
        let problem = "is not set: this program runs inside AWS Lambda, or an emulator of it (see docs/reference.md)";
        return Err(ConfigError { variable: runtime, problem: problem.to_owned() }.into());
    }
    match variable(EVENTS).as_deref().map(str::trim) {
        None | Some("" | "streams") => streams(config).await,
        Some("reconcile") => Box::pin(requests(config)).await,
        Some(other) => {
            let problem = format!("is {other:?}, expected streams or reconcile");
            Err(ConfigError { variable: EVENTS, problem }.into())
        }
    }
}

fn variable(name: &'static str) -> Option<String> {
    std::env::var(name).ok()
}

/// When the answer to an invocation is due.
fn deadline_of(context: &Context) -> Deadline {
    let remaining = context.deadline().duration_since(SystemTime::now());
    Deadline::of_invocation(Instant::now(), remaining.unwrap_or_default())
}

/// Serves the records of event source mappings.
async fn streams(config: Config) -> Result<(), lambda_runtime::Error> {
    let function = variable("AWS_LAMBDA_FUNCTION_NAME").unwrap_or_else(|| "projector".to_owned());
    let projector = start::projector(config).await?;
    let (projector, function) = (&projector, function.as_str());
    lambda_runtime::run(service_fn(async |event: LambdaEvent<StreamEvent>| {
        let deadline = deadline_of(&event.context);
        handler::handle(projector, event.payload, function, deadline).await
    }))
    .await
}

/// Serves the requests of a state machine.
async fn requests(config: Config) -> Result<(), lambda_runtime::Error> {
    let reconciler = Reconciler::new(config, Waits::read(variable)?).await?;
    let reconciler = &reconciler;
    lambda_runtime::run(service_fn(async |event: LambdaEvent<Box<RawValue>>| {
        let deadline = deadline_of(&event.context);
        let answered = Box::pin(reconciler.handle(event.payload.get(), deadline)).await;
        answered.map_err(|Failure { name, message }| Diagnostic {
            error_type: name.to_owned(),
            error_message: message,
        })
    }))
    .await
}
