//! `reconcile start`: one execution per start that somebody means, whatever is repeated.

use anyhow::Context as _;
use projector::config::ConfigError;
use projector::start as setup;
use serde_json::{Map, Value as Json, json};
use time::OffsetDateTime;

use super::{failure, follow, plan, stopped_at_once, unless_stopped, with};
use crate::cli::{Settings, StartArguments};
use crate::executions::Execution;
use crate::executions::api::ExecutionsApi;
use crate::executions::arn::{Machine, check_exports};
use crate::executions::naming::{self, Existing};
use crate::outcome::Outcome;
use crate::output::Output;
use crate::stop::Stop;

/// The execution that a start has made or found.
struct Started {
    execution: String,
    already: bool,
}

pub(super) async fn run(
    settings: &Settings,
    arguments: &StartArguments,
    stop: &Stop,
    output: &Output,
) -> anyhow::Result<Outcome> {
    let tables = settings.config_without_database()?.tables;
    let exports = match arguments.export.as_deref() {
        Some([sessions, scans]) => {
            let exports = [sessions.as_str(), scans.as_str()];
            check_exports(exports, [&tables.sessions, &tables.scans])?;
            Some(exports)
        }
        _ => None,
    };
    if arguments.dry_run {
        let planned = unless_stopped(stop, Box::pin(plan::run(tables, arguments, output))).await?;
        return Ok(planned.unwrap_or_else(|| stopped_at_once(output)));
    }
    let machine = Machine::read(arguments.machine.arn())?;
    let aws = Box::pin(setup::aws_with_credentials()).await?;
    let api = ExecutionsApi::new(&aws, machine.arn());
    let repairs = arguments.repair || arguments.failures;
    let input = naming::input(repairs, exports, arguments.failures);
    let starting = Box::pin(begin(&api, &machine, arguments, &input));
    let Some(started) = unless_stopped(stop, starting).await? else {
        output.ended_early(
            "stopped by a signal: the execution may have started, which `backfill reconcile \
             status` shows. The same start within a minute makes no second one",
        );
        return Ok(Outcome::Interrupted);
    };
    let members = say(&started, arguments, output);
    if arguments.wait {
        return Box::pin(follow::run(&api, started.execution, members, stop, output)).await;
    }
    output.json(|| Ok(with(json!({}), members)))?;
    Ok(Outcome::Done)
}

/// Says what was started, and how to go on. Gives the members of the result.
fn say(started: &Started, arguments: &StartArguments, output: &Output) -> Map<String, Json> {
    let Started { execution, already } = started;
    let what = if arguments.failures {
        "a drain of the bucket of failures"
    } else if arguments.repair {
        "a repair"
    } else {
        "a comparison; nothing is repaired without --repair"
    };
    if *already {
        output.line(&format!("this run was started before, and no second one is made: {what}"));
    } else {
        output.line(&format!("started {what}"));
    }
    output.line(execution);
    if !arguments.wait {
        output.line(&format!("Follow it with: backfill reconcile wait {execution}"));
    }
    let members = [
        ("execution", json!(execution)),
        ("already_started", json!(already)),
        ("dry_run", json!(false)),
    ];
    members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Starts an execution, unless the same start has made one.
async fn begin(
    api: &ExecutionsApi,
    machine: &Machine,
    arguments: &StartArguments,
    input: &str,
) -> anyhow::Result<Started> {
    let now = OffsetDateTime::now_utc();
    let names = match &arguments.name {
        Some(name) => vec![name.clone()],
        None => naming::recent_names(now).into(),
    };
    let given = arguments.name.is_some();
    for name in &names {
        let found = api.describe(&machine.execution(name)).await;
        if let Some(found) = found.context("cannot ask whether it was started before")?
            && let Some(started) = same(found, input, given, now)?
        {
            return Ok(started);
        }
    }
    if !arguments.beside {
        refuse_beside(api, machine).await?;
    }
    let name = &names[0];
    if let Some(execution) = api.start(machine, name, input).await? {
        return Ok(Started { execution, already: false });
    }
    // Another start was faster, by less than the time of these calls.
    let found = api.describe(&machine.execution(name)).await?;
    let found = found.with_context(|| format!("the name {name} is taken, by what is not there"))?;
    match same(found, input, given, now)? {
        Some(started) => Ok(started),
        None => Err(failure(
            format!("the name {name} is taken by an older execution"),
            "check this machine's clock, or give another --name",
        )),
    }
}

/// What an execution that has the name means: `None` if it is no obstacle.
fn same(
    found: Execution,
    input: &str,
    given: bool,
    now: OffsetDateTime,
) -> anyhow::Result<Option<Started>> {
    let judged = if given {
        naming::judge_named(&found, input)
    } else {
        naming::judge_recent(&found, input, now)
    };
    match judged {
        Existing::Same => Ok(Some(Started { execution: found.arn, already: true })),
        Existing::Older => Ok(None),
        Existing::Refused { why, remedy } if given => {
            Err(ConfigError { variable: "--name", problem: format!("is refused: {why}; {remedy}") }
                .into())
        }
        Existing::Refused { why, remedy } => Err(failure(why, remedy)),
    }
}

/// Two runs share the database and the tables, and two repairs one lease.
async fn refuse_beside(api: &ExecutionsApi, machine: &Machine) -> anyhow::Result<()> {
    let running = api.running(machine).await?;
    match running.first() {
        None => Ok(()),
        Some(first) => Err(failure(
            format!(
                "{} of this state machine run already, the first one is {first}",
                running.len()
            ),
            format!(
                "follow it with `backfill reconcile wait {first}`, stop it with `aws stepfunctions \
                 stop-execution --execution-arn {first}`, or give --beside"
            ),
        )),
    }
}
