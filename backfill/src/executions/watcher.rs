//! Looks at an execution, again and again. What a role may not see is left out, and said once: the
//! end of an execution is known in any case.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use anyhow::Context as _;
use aws_sdk_sfn::types::ExecutionStatus;
use projector::config::ConfigError;
use time::OffsetDateTime;

use super::api::ExecutionsApi;
use super::phase::Phase;
use super::{Counted, Execution, FailedChild, MapRun, Seen, Status, children};
use crate::aws_calls::CallError;
use crate::console;

/// One look asks at most this many children: `DescribeExecution` has a quota of its own.
const ASKED_PER_LOOK: usize = 50;
/// How many failed children are named.
const NAMED: usize = 5;

/// Watches one execution.
pub(crate) struct Watcher<'a> {
    api: &'a ExecutionsApi,
    execution: String,
    /// Map runs that have ended, and whose children were all asked: they change no more.
    settled: HashMap<String, MapRun>,
    known: HashMap<String, Known>,
    /// What the role may not see, so that it is said once.
    refused: BTreeSet<&'static str>,
}

/// The children of a map run that are known to have succeeded.
#[derive(Default)]
struct Known {
    listed: HashSet<String>,
    to_ask: VecDeque<String>,
    counted: Counted,
}

impl<'a> Watcher<'a> {
    /// Of the execution with this ARN.
    pub(crate) fn new(api: &'a ExecutionsApi, execution: String) -> Self {
        Self {
            api,
            execution,
            settled: HashMap::new(),
            known: HashMap::new(),
            refused: BTreeSet::new(),
        }
    }

    /// The ARN of what is watched.
    pub(crate) fn execution(&self) -> &str {
        &self.execution
    }

    /// How it stands now.
    ///
    /// # Errors
    /// If the execution cannot be asked for, or is not there.
    pub(crate) async fn look(&mut self) -> anyhow::Result<Seen> {
        let api = self.api;
        let described = api.describe(&self.execution).await;
        let execution: Execution = described
            .with_context(|| format!("cannot ask for the execution {}", self.execution))?
            .ok_or_else(|| ConfigError {
                variable: "EXECUTION",
                problem: format!(
                    "is {:?}, and there is none: Step Functions forgets one 90 days after its end",
                    self.execution
                ),
            })?;
        let at = OffsetDateTime::now_utc();
        let map_runs = self.map_runs(at).await?;
        let is_told = |run: &MapRun| !run.ended && Phase::of(&run.label).is_some();
        let state = if execution.status == Status::Running && !map_runs.iter().any(is_told) {
            let state = api.state(&self.execution).await;
            self.allowed("what the execution does (states:GetExecutionHistory)", state)?.flatten()
        } else {
            None
        };
        let failed = if execution.status == Status::Succeeded {
            Vec::new()
        } else {
            self.failed(&map_runs).await?
        };
        Ok(Seen { execution, state, map_runs, failed, at })
    }

    async fn map_runs(&mut self, now: OffsetDateTime) -> anyhow::Result<Vec<MapRun>> {
        let listed = self.api.map_runs(&self.execution).await;
        let listed = self.allowed("its map runs (states:ListMapRuns)", listed)?;
        let mut runs = Vec::new();
        for arn in listed.unwrap_or_default() {
            if let Some(settled) = self.settled.get(&arn) {
                runs.push(settled.clone());
                continue;
            }
            let described = self.api.map_run(&arn, now).await;
            let described = self.allowed("its map runs (states:DescribeMapRun)", described)?;
            let Some(mut run) = described else { continue };
            let counted = self.count(&run).await;
            run.counted = self
                .allowed("items (states:ListExecutions and DescribeExecution)", counted)?
                .unwrap_or_default();
            if run.ended && run.counted.children >= run.succeeded {
                self.settled.insert(arn, run.clone());
            }
            runs.push(run);
        }
        Ok(runs)
    }

    /// Asks children that succeeded, and were not asked before.
    async fn count(&mut self, run: &MapRun) -> Result<Counted, CallError> {
        let known = self.known.entry(run.arn.clone()).or_default();
        let mut token = None;
        while (known.listed.len() as u64) < run.succeeded {
            let page = self.api.children(&run.arn, &ExecutionStatus::Succeeded, token).await?;
            let (children, next) = page;
            let before = known.listed.len();
            for child in children {
                if known.listed.insert(child.clone()) {
                    known.to_ask.push_back(child);
                }
            }
            // The last ones come first, so a page of known ones is followed by more of them.
            if next.is_none() || known.listed.len() == before {
                break;
            }
            token = next;
        }
        for _ in 0..ASKED_PER_LOOK {
            let Some(child) = known.to_ask.front() else { break };
            let output = self.api.describe(child).await?.and_then(|child| child.output);
            known.to_ask.pop_front();
            known.counted.add(output.as_deref().unwrap_or_default());
        }
        Ok(known.counted)
    }

    /// The first children that failed.
    async fn failed(&mut self, runs: &[MapRun]) -> anyhow::Result<Vec<FailedChild>> {
        let mut failed = Vec::new();
        for run in runs.iter().filter(|run| run.failed > 0) {
            for status in [ExecutionStatus::Failed, ExecutionStatus::TimedOut] {
                let named = self.named(run, &status, NAMED.saturating_sub(failed.len())).await;
                let named = self.allowed("what failed (states:ListExecutions)", named)?;
                failed.extend(named.unwrap_or_default());
            }
        }
        Ok(failed)
    }

    async fn named(
        &self,
        run: &MapRun,
        status: &ExecutionStatus,
        at_most: usize,
    ) -> Result<Vec<FailedChild>, CallError> {
        if at_most == 0 {
            return Ok(Vec::new());
        }
        let (children, _) = self.api.children(&run.arn, status, None).await?;
        let mut named = Vec::new();
        for child in children.iter().take(at_most) {
            let Some(Execution { arn, input, error, cause, .. }) = self.api.describe(child).await?
            else {
                continue;
            };
            let error = error.unwrap_or_else(|| status.as_str().to_owned());
            named.push(children::failed(&arn, &input, Some(&error), cause.as_deref()));
        }
        Ok(named)
    }

    /// `None` if the role may not see it, or it is gone; that is said once.
    fn allowed<T>(
        &mut self,
        what: &'static str,
        answer: Result<T, CallError>,
    ) -> anyhow::Result<Option<T>> {
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(CallError::Gone) => Ok(None),
            Err(error @ CallError::Refused { .. }) => {
                if self.refused.insert(what) {
                    console::line(&format!(
                        "cannot see {what}, and goes on without: {}",
                        projector::error::chain(&error)
                    ));
                }
                Ok(None)
            }
            Err(error) => Err(error).with_context(|| format!("cannot ask for {what}")),
        }
    }
}
