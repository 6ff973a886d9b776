//! The calls of Step Functions. What fails for a passing cause is repeated, as every call of
//! `backfill` is.

use anyhow::Context as _;
use aws_config::{Region, SdkConfig};
use aws_sdk_sfn::Client;
use aws_sdk_sfn::config::retry::RetryConfig;
use aws_sdk_sfn::error::SdkError;
use aws_sdk_sfn::operation::describe_execution::DescribeExecutionOutput;
use aws_sdk_sfn::operation::describe_map_run::DescribeMapRunOutput;
use aws_sdk_sfn::operation::start_execution::StartExecutionError;
use aws_sdk_sfn::primitives::DateTime;
use aws_sdk_sfn::types::{ExecutionStatus, HistoryEvent, MapRunStatus, StateEnteredEventDetails};
use projector::config::ConfigError;
use time::OffsetDateTime;

use super::arn::{self, Machine, VARIABLE};
use super::{Counted, Execution, MapRun, Status, phase};
use crate::aws_calls::{Api, CallError, Calls};

const API: Api = Api {
    permissions: "the role needs what `backfill reconcile start --help` or `wait --help` lists",
    endpoint: "check the ARNs, the region in them, and AWS_ENDPOINT_URL_SFN",
};

/// Of one page of a list: as many as Step Functions gives.
const PAGE: i32 = 1_000;
/// Step Functions lists by the time of the last event. Among this many, the execution that was
/// started last is looked for.
const NEWEST_AMONG: i32 = 100;
/// At most this many events of a history are looked at, the last ones first.
const LAST_EVENTS: i32 = 100;

/// The calls of Step Functions.
#[derive(Debug)]
pub(crate) struct ExecutionsApi {
    client: Client,
    calls: Calls,
}

impl ExecutionsApi {
    /// In the region of this ARN.
    pub(crate) fn new(aws: &SdkConfig, arn: &str) -> Self {
        let mut config = aws_sdk_sfn::config::Builder::from(aws);
        if let Some(region) = arn::region(arn) {
            config = config.region(Region::new(region.to_owned()));
        }
        let client = Client::from_conf(config.retry_config(RetryConfig::disabled()).build());
        Self { client, calls: Calls::new(&API) }
    }

    /// Starts an execution, and gives its ARN; `None` if one has the name already.
    ///
    /// # Errors
    /// [`ConfigError`] if there is no such state machine.
    pub(crate) async fn start(
        &self,
        machine: &Machine,
        name: &str,
        input: &str,
    ) -> anyhow::Result<Option<String>> {
        let call = async || {
            let request = self.client.start_execution().state_machine_arn(machine.arn());
            match request.name(name).input(input).send().await {
                Ok(started) => Ok(Some(started.execution_arn)),
                Err(error) if already_exists(&error) => Ok(None),
                Err(error) => Err(error),
            }
        };
        let started = self.calls.call("StartExecution", || Box::pin(call())).await;
        of_machine(started, machine).context("cannot start an execution")
    }

    /// An execution; `None` if there is none.
    ///
    /// # Errors
    /// If it cannot be asked for.
    pub(crate) async fn describe(&self, arn: &str) -> Result<Option<Execution>, CallError> {
        let call = || self.client.describe_execution().execution_arn(arn).send();
        match self.calls.call("DescribeExecution", call).await {
            Ok(described) => Ok(Some(execution(described))),
            Err(CallError::Gone) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The ARN of the execution that was started last; `None` if there is none.
    ///
    /// # Errors
    /// If they cannot be listed.
    pub(crate) async fn newest(&self, machine: &Machine) -> anyhow::Result<Option<String>> {
        let call = || {
            let request = self.client.list_executions().state_machine_arn(machine.arn());
            request.max_results(NEWEST_AMONG).send()
        };
        let listed = self.calls.call("ListExecutions", call).await;
        let listed = of_machine(listed, machine).context("cannot list the executions")?;
        let newest = listed.executions.into_iter().max_by_key(|one| one.start_date.as_nanos());
        Ok(newest.map(|one| one.execution_arn))
    }

    /// The ARNs of the executions that run, at most a page of them.
    ///
    /// # Errors
    /// If they cannot be listed.
    pub(crate) async fn running(&self, machine: &Machine) -> anyhow::Result<Vec<String>> {
        let call = || {
            let request = self.client.list_executions().state_machine_arn(machine.arn());
            request.status_filter(ExecutionStatus::Running).max_results(NEWEST_AMONG).send()
        };
        let listed = self.calls.call("ListExecutions", call).await;
        let listed = of_machine(listed, machine).context("cannot list the executions")?;
        Ok(listed.executions.into_iter().map(|one| one.execution_arn).collect())
    }

    /// The definition of a state machine.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) async fn definition(&self, machine: &Machine) -> Result<String, CallError> {
        let call = || self.client.describe_state_machine().state_machine_arn(machine.arn()).send();
        let described = self.calls.call("DescribeStateMachine", call).await?;
        Ok(described.definition)
    }

    /// The state that an execution entered last and that says what it does; `None` if there is
    /// none yet.
    ///
    /// # Errors
    /// If its history cannot be read.
    pub(crate) async fn state(&self, execution: &str) -> Result<Option<String>, CallError> {
        let call = || {
            let request = self.client.get_execution_history().execution_arn(execution);
            let request = request.reverse_order(true).max_results(LAST_EVENTS);
            request.include_execution_data(false).send()
        };
        let history = self.calls.call("GetExecutionHistory", call).await?;
        let entered = history.events().iter().filter_map(HistoryEvent::state_entered_event_details);
        Ok(phase::latest(entered.map(StateEnteredEventDetails::name)).map(str::to_owned))
    }

    /// The ARNs of the map runs of an execution, the first one first.
    ///
    /// # Errors
    /// If they cannot be listed.
    pub(crate) async fn map_runs(&self, execution: &str) -> Result<Vec<String>, CallError> {
        let mut runs = Vec::new();
        let mut token = None;
        loop {
            let call = || {
                let request = self.client.list_map_runs().execution_arn(execution);
                request.max_results(PAGE).set_next_token(token.clone()).send()
            };
            let page = self.calls.call("ListMapRuns", call).await?;
            let page_runs = page.map_runs.into_iter();
            runs.extend(page_runs.map(|run| (run.start_date.as_nanos(), run.map_run_arn)));
            token = page.next_token;
            if token.is_none() {
                break;
            }
        }
        runs.sort();
        Ok(runs.into_iter().map(|(_, arn)| arn).collect())
    }

    /// A map run, without what its children answered.
    ///
    /// # Errors
    /// If it cannot be asked for.
    pub(crate) async fn map_run(
        &self,
        arn: &str,
        now: OffsetDateTime,
    ) -> Result<MapRun, CallError> {
        let call = || self.client.describe_map_run().map_run_arn(arn).send();
        let described = self.calls.call("DescribeMapRun", call).await?;
        Ok(map_run(&described, now))
    }

    /// A page of the children of a map run that have this status, the last ones first, and the
    /// token of the next page.
    ///
    /// # Errors
    /// If they cannot be listed.
    pub(crate) async fn children(
        &self,
        map_run: &str,
        status: &ExecutionStatus,
        token: Option<String>,
    ) -> Result<(Vec<String>, Option<String>), CallError> {
        let call = || {
            let request = self.client.list_executions().map_run_arn(map_run).max_results(PAGE);
            request.status_filter(status.clone()).set_next_token(token.clone()).send()
        };
        let page = self.calls.call("ListExecutions", call).await?;
        let children = page.executions.into_iter().map(|one| one.execution_arn).collect();
        Ok((children, page.next_token))
    }
}

fn already_exists<R>(error: &SdkError<StartExecutionError, R>) -> bool {
    error.as_service_error().is_some_and(StartExecutionError::is_execution_already_exists)
}

/// That a state machine is not there is an error of the set-up.
fn of_machine<T>(answer: Result<T, CallError>, machine: &Machine) -> anyhow::Result<T> {
    match answer {
        Err(CallError::Gone) => {
            let problem = format!("is {:?}, and there is no such state machine", machine.arn());
            Err(ConfigError { variable: VARIABLE, problem }.into())
        }
        answer => Ok(answer?),
    }
}

fn time(time: &DateTime) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(time.as_nanos()).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn execution(described: DescribeExecutionOutput) -> Execution {
    Execution {
        status: Status::of(described.status.as_str()),
        started_at: time(&described.start_date),
        ended_at: described.stop_date.as_ref().map(time),
        arn: described.execution_arn,
        input: described.input.unwrap_or_default(),
        output: described.output,
        error: described.error,
        cause: described.cause,
    }
}

fn map_run(described: &DescribeMapRunOutput, now: OffsetDateTime) -> MapRun {
    let until = described.stop_date().map_or(now, time);
    let mut run = MapRun {
        arn: described.map_run_arn().to_owned(),
        label: arn::label(described.map_run_arn()).to_owned(),
        ended: *described.status() != MapRunStatus::Running,
        seconds: (until - time(described.start_date())).as_seconds_f64().max(0.0),
        counted: Counted::default(),
        ..MapRun::default()
    };
    let number = |count: i64| u64::try_from(count).unwrap_or(0);
    if let Some(items) = described.item_counts() {
        run.total = number(items.total());
    }
    if let Some(counts) = described.execution_counts() {
        run.total = run.total.max(number(counts.total()));
        run.running = number(counts.running());
        run.succeeded = number(counts.succeeded());
        run.failed =
            [counts.failed(), counts.timed_out(), counts.aborted()].map(number).iter().sum();
    }
    run
}
