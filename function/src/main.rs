//! The Lambda: `bootstrap` in the zip that `cargo lambda build` makes.

use std::process::ExitCode;
use std::time::SystemTime;

use lambda_runtime::{LambdaEvent, service_fn};
use projector::config::{Config, ConfigError};
use projector::deadline::Deadline;
use projector::handler::{self, StreamEvent};
use projector::{start, telemetry};
use tokio::time::Instant;

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

/// Checks the configuration, then serves invocations. The first batch makes the first connection.
async fn run() -> Result<(), lambda_runtime::Error> {
    telemetry::start_json_logs()?;
    let config = Config::read(|name| std::env::var(name).ok(), 1)?;
    let runtime = "AWS_LAMBDA_RUNTIME_API";
    if std::env::var_os(runtime).is_none() {
        let problem = "is not set: this program runs inside AWS Lambda, or an emulator of it (see docs/reference.md)";
        return Err(ConfigError { variable: runtime, problem: problem.to_owned() }.into());
    }
    let function =
        std::env::var("AWS_LAMBDA_FUNCTION_NAME").unwrap_or_else(|_| "projector".to_owned());
    let projector = start::projector(config).await?;
    let (projector, function) = (&projector, function.as_str());
    lambda_runtime::run(service_fn(async |event: LambdaEvent<StreamEvent>| {
        let remaining = event.context.deadline().duration_since(SystemTime::now());
        let deadline = Deadline::of_invocation(Instant::now(), remaining.unwrap_or_default());
        handler::handle(projector, event.payload, function, deadline).await
    }))
    .await
}
