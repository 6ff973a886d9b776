//! Executions of the state machine of a reconciliation, seen from outside: what Step Functions
//! says of one, and what that means to an operator. The types here are pure.

pub(crate) mod api;
pub(crate) mod arn;
pub(crate) mod children;
pub(crate) mod expense;
pub(crate) mod failed;
pub(crate) mod naming;
pub(crate) mod phase;
pub(crate) mod verdict;
pub(crate) mod view;
pub(crate) mod watcher;

use serde::Deserialize;
use serde_json::Value as Json;
use time::OffsetDateTime;

/// Where an execution stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Running,
    Succeeded,
    Failed,
    TimedOut,
    Aborted,
}

impl Status {
    /// As Step Functions spells it. What is not known counts as running: a later look will know.
    pub(crate) fn of(name: &str) -> Self {
        match name {
            "SUCCEEDED" => Self::Succeeded,
            "FAILED" => Self::Failed,
            "TIMED_OUT" => Self::TimedOut,
            "ABORTED" => Self::Aborted,
            _ => Self::Running,
        }
    }

    /// As Step Functions spells it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Running => "RUNNING",
            Self::Succeeded => "SUCCEEDED",
            Self::Failed => "FAILED",
            Self::TimedOut => "TIMED_OUT",
            Self::Aborted => "ABORTED",
        }
    }
}

/// An execution, as `DescribeExecution` has it.
#[derive(Clone, Debug)]
pub(crate) struct Execution {
    pub(crate) arn: String,
    pub(crate) status: Status,
    /// JSON; empty if the role may not read it.
    pub(crate) input: String,
    pub(crate) started_at: OffsetDateTime,
    pub(crate) ended_at: Option<OffsetDateTime>,
    pub(crate) output: Option<String>,
    pub(crate) error: Option<String>,
    pub(crate) cause: Option<String>,
}

/// What an execution was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Asked {
    /// It repairs; otherwise it compares.
    #[serde(default)]
    pub(crate) repair: bool,
    /// It drains the bucket of failures.
    #[serde(default)]
    pub(crate) failures: bool,
}

impl Execution {
    /// What it was asked for; a comparison if its input is no input of ours.
    pub(crate) fn asked(&self) -> Asked {
        serde_json::from_str(&self.input).unwrap_or_default()
    }

    /// Whether it has this input, whatever the order and the spaces.
    pub(crate) fn has_input(&self, input: &str) -> bool {
        let parsed = |text: &str| serde_json::from_str::<Json>(text).ok();
        parsed(&self.input).is_some_and(|own| parsed(input) == Some(own))
    }

    /// How long it has run until now, or until its end.
    pub(crate) fn ran_for(&self, now: OffsetDateTime) -> time::Duration {
        (self.ended_at.unwrap_or(now) - self.started_at).max(time::Duration::ZERO)
    }
}

/// One map run: the children of a Distributed Map.
#[derive(Clone, Debug, Default)]
pub(crate) struct MapRun {
    pub(crate) arn: String,
    /// The name of its state, or the label that the state has.
    pub(crate) label: String,
    pub(crate) ended: bool,
    pub(crate) total: u64,
    pub(crate) running: u64,
    pub(crate) succeeded: u64,
    /// Failed, timed out or stopped.
    pub(crate) failed: u64,
    pub(crate) seconds: f64,
    pub(crate) counted: Counted,
}

/// What the children of a map run answered that were asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    /// How many were asked.
    pub(crate) children: u64,
    /// Items, rows or records, by the kind of child.
    pub(crate) items: u64,
    pub(crate) differing: u64,
    pub(crate) repaired: u64,
    pub(crate) gone: u64,
    pub(crate) rejected: u64,
}

/// A child that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FailedChild {
    /// The file, the range or the object; the child's ARN if it says none.
    pub(crate) what: String,
    pub(crate) error: String,
    pub(crate) cause: String,
}

/// One look at an execution.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) execution: Execution,
    /// The state that says what it does; `None` if that is not known.
    pub(crate) state: Option<String>,
    pub(crate) map_runs: Vec<MapRun>,
    /// The first of those that failed.
    pub(crate) failed: Vec<FailedChild>,
    pub(crate) at: OffsetDateTime,
}

#[cfg(test)]
pub(crate) mod tests {
    use time::macros::datetime;

    use super::{Asked, Execution, Status};

    /// A repair that runs.
    pub(crate) fn execution() -> Execution {
        Execution {
            arn: "arn:aws:states:us-east-1:123456789012:execution:reconcile:one".to_owned(),
            status: Status::Running,
            input: r#"{"repair": true, "exports": null, "failures": false}"#.to_owned(),
            started_at: datetime!(2026-11-26 22:00 UTC),
            ended_at: None,
            output: None,
            error: None,
            cause: None,
        }
    }

    #[test]
    fn an_input_is_compared_by_its_members() {
        let one = execution();
        assert!(one.has_input(r#"{"failures":false,"repair":true,"exports":null}"#));
        assert!(!one.has_input(r#"{"failures":false,"repair":false,"exports":null}"#));
        assert_eq!(one.asked(), Asked { repair: true, failures: false });
        let foreign = Execution { input: String::new(), ..execution() };
        assert!(!foreign.has_input("") && foreign.asked() == Asked::default());
    }

    #[test]
    fn every_status_is_spelt_as_step_functions_does_and_a_new_one_runs() {
        for name in ["RUNNING", "SUCCEEDED", "FAILED", "TIMED_OUT", "ABORTED"] {
            assert_eq!(Status::of(name).name(), name);
        }
        assert_eq!(Status::of("PENDING_REDRIVE"), Status::Running);
    }
}
