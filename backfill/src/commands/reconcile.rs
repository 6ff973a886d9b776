//! `backfill reconcile`: starts, shows and follows executions of the state machine that reconciles
//! whole tables. The work runs in AWS; nothing here ends it.

mod follow;
mod plan;
mod start;

use std::fmt::Display;

use anyhow::anyhow;
use projector::config::ConfigError;
use projector::start as setup;
use serde_json::{Map, Value as Json};

use crate::cli::{ReconcileArguments, ReconcileCommand, Settings, WatchArguments};
use crate::executions::api::ExecutionsApi;
use crate::executions::arn::{self, Machine, VARIABLE};
use crate::executions::verdict::{self, Verdict};
use crate::executions::watcher::Watcher;
use crate::executions::{Seen, failed, view};
use crate::outcome::{Outcome, Remedy};
use crate::output::Output;
use crate::stop::Stop;

pub(crate) async fn run(
    settings: &Settings,
    arguments: &ReconcileArguments,
    stop: &Stop,
    output: &Output,
) -> anyhow::Result<Outcome> {
    match &arguments.command {
        ReconcileCommand::Start(arguments) => {
            Box::pin(start::run(settings, arguments, stop, output)).await
        }
        ReconcileCommand::Status(arguments) => {
            let looking = Box::pin(async {
                let (api, execution) = find(arguments).await?;
                Watcher::new(&api, execution).look().await
            });
            match unless_stopped(stop, looking).await? {
                Some(seen) => conclude(&seen, Map::new(), output),
                None => Ok(stopped_at_once(output)),
            }
        }
        ReconcileCommand::Wait(arguments) => {
            match unless_stopped(stop, Box::pin(find(arguments))).await? {
                Some((api, execution)) => {
                    Box::pin(follow::run(&api, execution, Map::new(), stop, output)).await
                }
                None => Ok(stopped_at_once(output)),
            }
        }
    }
}

/// `None` if a signal came first.
async fn unless_stopped<T>(
    stop: &Stop,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<Option<T>> {
    tokio::select! {
        biased;
        done = work => done.map(Some),
        () = stop.wait() => Ok(None),
    }
}

fn stopped_at_once(output: &Output) -> Outcome {
    output.ended_early("stopped by a signal: run the same command again");
    Outcome::Interrupted
}

/// The execution that is meant: an ARN, a name, or the one that was started last.
async fn find(arguments: &WatchArguments) -> anyhow::Result<(ExecutionsApi, String)> {
    let machine = || Machine::read(arguments.machine.arn());
    let given = arguments.execution.as_deref();
    let execution = match given {
        Some(given) if arn::is_execution(given) => Some(given.to_owned()),
        Some(given) if given.contains(':') => {
            let problem = format!(
                "is {given:?}, and neither an ARN of an execution \
                 (arn:aws:states:REGION:ACCOUNT:execution:STATE-MACHINE:NAME) nor a name"
            );
            return Err(ConfigError { variable: "EXECUTION", problem }.into());
        }
        Some(name) => Some(machine()?.execution(name)),
        None => None,
    };
    if let Some(execution) = execution {
        let aws = Box::pin(setup::aws_with_credentials()).await?;
        return Ok((ExecutionsApi::new(&aws, &execution), execution));
    }
    let machine = machine()?;
    let aws = Box::pin(setup::aws_with_credentials()).await?;
    let api = ExecutionsApi::new(&aws, machine.arn());
    match api.newest(&machine).await? {
        Some(execution) => Ok((api, execution)),
        None => {
            let problem = format!(
                "is {:?}, which has no execution: start one with `backfill reconcile start`",
                machine.arn()
            );
            Err(ConfigError { variable: VARIABLE, problem }.into())
        }
    }
}

/// Prints what was seen, and gives the exit code for it. `started` is what `start` has to add.
fn conclude(seen: &Seen, started: Map<String, Json>, output: &Output) -> anyhow::Result<Outcome> {
    output.result(|| view::text(seen), || Ok(with(view::json(seen), started)))?;
    match verdict::of(&seen.execution) {
        Verdict::Running => Ok(Outcome::Done),
        Verdict::Failed => Err(failure(failed::why(seen), failed::remedy(seen))),
        Verdict::Unreadable => Err(failure(
            "the execution succeeded, and its output is not the answer to `end`",
            "deploy the state machine of infra/reconcile.yaml with a function of this version; \
             `aws stepfunctions describe-execution` shows the output",
        )),
        Verdict::Ended(summary) => {
            let outcome = summary.outcome();
            match outcome {
                Outcome::Failed => {
                    return Err(failure(
                        "the execution ended before everything was settled",
                        "the function's log names what was left: fix that, and start again",
                    ));
                }
                Outcome::Different => output.explain("the two sides differ"),
                _ => {}
            }
            Ok(outcome)
        }
    }
}

fn failure(why: impl Display, remedy: impl Display) -> anyhow::Error {
    anyhow!("{why}").context(Remedy(remedy.to_string()))
}

/// An object with more members.
fn with(mut object: Json, more: Map<String, Json>) -> Json {
    if let Json::Object(members) = &mut object {
        members.extend(more);
    }
    object
}
