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
    let given = arguments.name.as_ref();
    if given.is_none() {
        tokio::time::sleep(naming::hold_back(OffsetDateTime::now_utc())).await;
    }
    let now = OffsetDateTime::now_utc();
    let names = given.map_or_else(|| naming::recent_names(now).into(), |name| vec![name.clone()]);
    let executions: Vec<String> = names.iter().map(|name| machine.execution(name)).collect();
    let earlier = async || -> anyhow::Result<Option<Started>> {
        for execution in &executions {
            let found = api.describe(execution).await;
            let found = found.context("cannot ask whether it was started before")?;
            if let Some(found) = found
                && let Some(started) = same(found, input, given.is_some(), now)?
            {
                return Ok(Some(started));
            }
        }
        Ok(None)
    };
    if let Some(started) = earlier().await? {
        return Ok(started);
    }
    if !arguments.beside {
        let (own, others): (Vec<String>, Vec<String>) =
            api.running(machine).await?.into_iter().partition(|one| executions.contains(one));
        // Another start of the same run may have been faster, by less than the time of a call.
        if !own.is_empty()
            && let Some(started) = earlier().await?
        {
            return Ok(started);
        }
        refuse_beside(&others)?;
    }
    if let Some(execution) = api.start(machine, &names[0], input).await? {
        return Ok(Started { execution, already: false });
    }
    earlier().await?.ok_or_else(|| {
        failure(
            format!("the name {} is taken by an older execution", names[0]),
            "check this machine's clock, or give another --name",
        )
    })
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
fn refuse_beside(others: &[String]) -> anyhow::Result<()> {
    let Some(first) = others.first() else { return Ok(()) };
    let more = match others.len() - 1 {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    Err(failure(
        format!("an execution of this state machine runs already: {first}{more}"),
        format!(
            "follow it with `backfill reconcile wait {first}`, stop it with `aws stepfunctions \
             stop-execution --execution-arn {first}`, or give --beside"
        ),
    ))
}
