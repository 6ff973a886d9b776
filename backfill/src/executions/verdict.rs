//! What an execution that succeeded came to: the answer of the function's `end`, and the exit code
//! that `verify` or `repair` would give. Pure.

use serde::{Deserialize, Serialize};

use super::{Asked, Execution, Status};
use crate::outcome::Outcome;

/// The output of an execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Summary {
    pub(crate) run: i64,
    /// `null` if it only compared.
    pub(crate) repair: Option<i64>,
    pub(crate) complete: bool,
    pub(crate) files: u64,
    pub(crate) compared: u64,
    pub(crate) differing: u64,
    pub(crate) repaired: u64,
    pub(crate) gone: u64,
    pub(crate) removed: u64,
    pub(crate) rejected: u64,
}

/// What an execution has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Running,
    /// It failed, timed out or was stopped.
    Failed,
    /// It succeeded, and its output is none of ours.
    Unreadable,
    Ended(Summary),
}

/// Judges an execution.
pub(crate) fn of(execution: &Execution) -> Verdict {
    match execution.status {
        Status::Running => Verdict::Running,
        Status::Failed | Status::TimedOut | Status::Aborted => Verdict::Failed,
        Status::Succeeded => {
            let output = execution.output.as_deref().unwrap_or_default();
            serde_json::from_str(output).map_or(Verdict::Unreadable, Verdict::Ended)
        }
    }
}

impl Summary {
    fn compares(&self) -> bool {
        self.repair.is_none()
    }

    /// The exit code. Differences weigh more than an end that was not complete: they are known.
    pub(crate) fn outcome(&self) -> Outcome {
        if self.compares() && self.differing + self.gone > 0 {
            Outcome::Different
        } else if !self.complete {
            Outcome::Failed
        } else if !self.compares() && self.rejected > 0 {
            Outcome::DoneWithRejections
        } else {
            Outcome::Done
        }
    }

    /// The result in a word or two.
    pub(crate) fn result(&self) -> &'static str {
        match (self.outcome(), self.compares()) {
            (Outcome::Different, _) => "different",
            (Outcome::Failed, true) => "not complete, no difference in what was compared",
            (Outcome::Failed, false) => "not complete",
            (_, true) => "equal",
            (_, false) => "done",
        }
    }

    /// The lines of the summary: a name, a count, and what it counts.
    pub(crate) fn lines(&self, asked: Asked) -> Vec<(&'static str, u64, &'static str)> {
        let Self { differing, repaired, gone, removed, rejected, .. } = *self;
        if self.compares() {
            return vec![
                ("differing", differing, "parts that differ, and go on to differ"),
                ("gone", gone, "parts of rows whose item is gone"),
                ("rejected", rejected, "items that the projector rejects"),
            ];
        }
        let mut lines = Vec::new();
        if !asked.failures {
            lines.push(("differing", differing, "parts that differed from their items"));
        }
        lines.push(("repaired", repaired, "parts that the rows hold now as the table does"));
        if !asked.failures {
            lines.push(("gone", gone, "parts of rows whose item is gone"));
            lines.push(("removed", removed, "parts among them that the rows have no more"));
        }
        lines.push(("rejected", rejected, "items or records, in rejected_records"));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::{Summary, Verdict, of};
    use crate::executions::tests::execution;
    use crate::executions::{Execution, Status};
    use crate::outcome::Outcome;

    fn summary(repair: Option<i64>) -> Summary {
        Summary {
            run: 3,
            repair,
            complete: true,
            files: 40,
            compared: 200_000,
            differing: 0,
            repaired: 0,
            gone: 0,
            removed: 0,
            rejected: 0,
        }
    }

    #[test]
    fn a_comparison_ends_as_verify_does() {
        let equal = summary(None);
        assert_eq!((equal.outcome(), equal.result()), (Outcome::Done, "equal"));
        // `verify --tables` counts them, too, and finds no difference.
        let malformed = Summary { rejected: 1, ..equal };
        assert_eq!(malformed.outcome(), Outcome::Done);
        for different in [Summary { differing: 1, ..equal }, Summary { gone: 1, ..equal }] {
            assert_eq!(
                (different.outcome(), different.result()),
                (Outcome::Different, "different")
            );
            let partly = Summary { complete: false, ..different };
            assert_eq!(partly.outcome(), Outcome::Different);
        }
        assert_eq!(Summary { complete: false, ..equal }.outcome(), Outcome::Failed);
    }

    #[test]
    fn a_repair_ends_as_repair_does() {
        let repaired =
            Summary { differing: 5, repaired: 5, gone: 2, removed: 2, ..summary(Some(7)) };
        assert_eq!((repaired.outcome(), repaired.result()), (Outcome::Done, "done"));
        assert_eq!(Summary { rejected: 1, ..repaired }.outcome(), Outcome::DoneWithRejections);
        let partly = Summary { complete: false, rejected: 1, ..repaired };
        assert_eq!((partly.outcome(), partly.result()), (Outcome::Failed, "not complete"));
    }

    #[test]
    fn only_the_answer_of_the_end_is_a_summary() {
        assert_eq!(of(&execution()), Verdict::Running);
        let output = serde_json::to_string(&summary(None)).expect("JSON");
        let ended = |output: &str| {
            let output = Some(output.to_owned());
            of(&Execution { status: Status::Succeeded, output, ..execution() })
        };
        assert_eq!(ended(&output), Verdict::Ended(summary(None)));
        assert_eq!(ended("{}"), Verdict::Unreadable);
        let failed = Execution { status: Status::TimedOut, ..execution() };
        assert_eq!(of(&failed), Verdict::Failed);
    }
}
