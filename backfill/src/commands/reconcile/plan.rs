//! `reconcile start --dry-run`: what a run would cost. It asks the tables for their sizes, and
//! nothing is started or read.

use aws_config::SdkConfig;
use projector::change::Tables;
use projector::start as setup;

use crate::cli::StartArguments;
use crate::console;
use crate::executions::api::ExecutionsApi;
use crate::executions::arn::Machine;
use crate::executions::expense::{self, Plan};
use crate::items::api::TablesApi;
use crate::outcome::Outcome;
use crate::output::Output;

/// If neither a flag nor AWS says it: what the template has.
const ASSUMED_CONCURRENCY: u32 = 10;
const ASSUMED_MEMORY_MB: u32 = 1_769;

pub(super) async fn run(
    tables: Tables,
    arguments: &StartArguments,
    output: &Output,
) -> anyhow::Result<Outcome> {
    let aws = Box::pin(setup::aws_with_credentials()).await?;
    let sizes = TablesApi::new(&aws, tables, None).sizes().await?;
    let (concurrency, memory_mb) = setting(&aws, arguments).await?;
    let expense = expense::estimate(Plan {
        sizes,
        repair: arguments.repair,
        exports_exist: arguments.export.is_some(),
        memory_mb,
        concurrency,
    });
    output.result(|| expense.text(), || Ok(expense.json()))?;
    Ok(Outcome::Done)
}

/// How many files are read at a time, and the memory of the function: by the flags, or as they are
/// deployed, or assumed.
async fn setting(aws: &SdkConfig, arguments: &StartArguments) -> anyhow::Result<(u32, u32)> {
    let (mut concurrency, mut memory_mb) = (arguments.concurrency, arguments.memory_mb);
    if arguments.machine.arn().is_some() && (concurrency.is_none() || memory_mb.is_none()) {
        let machine = Machine::read(arguments.machine.arn())?;
        match ExecutionsApi::new(aws, machine.arn()).definition(&machine).await {
            Ok(definition) => {
                let (most, function) = expense::of_definition(&definition);
                concurrency = concurrency.or(most);
                if let Some(function) = function.filter(|_| memory_mb.is_none()) {
                    memory_mb = memory(aws, &function).await;
                }
            }
            Err(error) => console::line(&format!(
                "cannot read the state machine: {}",
                projector::error::chain(&error)
            )),
        }
    }
    let concurrency = concurrency.unwrap_or_else(|| {
        console::line(&format!(
            "assuming {ASSUMED_CONCURRENCY} files at a time: give --concurrency"
        ));
        ASSUMED_CONCURRENCY
    });
    let memory_mb = memory_mb.unwrap_or_else(|| {
        console::line(&format!("assuming functions of {ASSUMED_MEMORY_MB} MB: give --memory-mb"));
        ASSUMED_MEMORY_MB
    });
    Ok((concurrency, memory_mb))
}

async fn memory(aws: &SdkConfig, function: &str) -> Option<u32> {
    let client = aws_sdk_lambda::Client::new(aws);
    let asked = client.get_function_configuration().function_name(function).send().await;
    match asked {
        Ok(function) => function.memory_size().and_then(|memory| u32::try_from(memory).ok()),
        Err(error) => {
            console::line(&format!(
                "cannot ask for the function's memory (lambda:GetFunctionConfiguration): {}",
                projector::error::chain(&error)
            ));
            None
        }
    }
}
