//! Why an execution did not succeed, and what an operator does about it. Pure.

use std::fmt::Write as _;

use crate::console::span;

use super::children::message;
use super::{Execution, Seen, Status};

/// Why it failed, in a sentence: what failed first, and its error.
pub(crate) fn why(seen: &Seen) -> String {
    let Execution { status, error, cause, .. } = &seen.execution;
    let took = span(seen.execution.ran_for(seen.at).unsigned_abs());
    let how = match status {
        Status::TimedOut => format!("timed out after {took}"),
        Status::Aborted => format!("was stopped after {took}"),
        _ => format!("failed after {took}"),
    };
    let mut why = format!("the execution {how}");
    if let Some(child) = seen.failed.first() {
        let _ = write!(why, "; {} failed: {}", child.what, child.error);
        if !child.cause.is_empty() {
            let _ = write!(why, ": {}", child.cause);
        }
        return why;
    }
    if let Some(error) = error {
        let _ = write!(why, ": {error}");
    }
    let cause = message(cause.as_deref().unwrap_or_default());
    if !cause.is_empty() {
        let _ = write!(why, ": {cause}");
    }
    why
}

/// What to do about it. A redrive goes on where the execution failed, as long as nobody has taken
/// over the lease of its repair; a new execution is right at any time.
pub(crate) fn remedy(seen: &Seen) -> &'static str {
    let Execution { status, error, .. } = &seen.execution;
    let error = seen.failed.first().map(|child| &child.error).or(error.as_ref());
    match (status, error.map_or("", String::as_str)) {
        (_, "DamagedFile") => {
            "start again without --export: that makes new exports. Or copy the file again"
        }
        (_, "ExportUnusable") => {
            "start again without --export, or with exports that the message allows"
        }
        (_, "HeldByAnother") => {
            "wait for the run that the message names, or end it, and start again"
        }
        (_, "LeaseEnded") => "start again: what is repaired is equal then",
        (_, "WrongEvent") => {
            "deploy the state machine and its function from one version, and start again"
        }
        (Status::Aborted, _) => {
            "start again: what is repaired is equal then. The lease of a repair that was stopped \
             is free ten minutes after its last heartbeat"
        }
        (Status::TimedOut, _) => {
            "find what was slow in the function's log, and start again: what is repaired is equal \
             then. The lease of a repair that timed out is free ten minutes after its last \
             heartbeat"
        }
        (Status::Failed, _) => {
            "fix what the message names, and go on where it failed: `aws stepfunctions \
             redrive-execution --execution-arn ARN`. If that ends with LeaseEnded, start again: \
             what is repaired is equal then"
        }
        _ => "fix what the message names, and start again: what is repaired is equal then",
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::{remedy, why};
    use crate::executions::tests::execution;
    use crate::executions::{Execution, FailedChild, Seen, Status};

    fn seen(status: Status, error: &str, cause: &str, failed: Vec<FailedChild>) -> Seen {
        let ended_at = Some(datetime!(2026-11-26 23:05 UTC));
        let (error, cause) = (Some(error.to_owned()), Some(cause.to_owned()));
        let execution = Execution { status, ended_at, error, cause, ..execution() };
        let at = datetime!(2026-11-27 08:00 UTC);
        Seen { execution, state: None, map_runs: Vec::new(), failed, at }
    }

    fn child(error: &str) -> Vec<FailedChild> {
        let what = "file s3://b/data/a.json.gz".to_owned();
        vec![FailedChild { what, error: error.to_owned(), cause: "the MD5 is another".to_owned() }]
    }

    #[test]
    fn the_child_that_failed_says_more_than_the_threshold() {
        let error = "States.ExceedToleratedFailureThreshold";
        let seen = seen(Status::Failed, error, "it was exceeded", child("DamagedFile"));
        assert_eq!(
            why(&seen),
            "the execution failed after 1 h 5 min; file s3://b/data/a.json.gz failed: DamagedFile: \
             the MD5 is another"
        );
        assert!(remedy(&seen).starts_with("start again without --export"), "{}", remedy(&seen));
    }

    #[test]
    fn each_end_has_its_words_and_its_remedy() {
        let lambda = r#"{"errorMessage": "held by repair 7", "errorType": "HeldByAnother"}"#;
        for (status, error, cause, why_said, remedy_said) in [
            (Status::Failed, "HeldByAnother", lambda, "held by repair 7", "wait for the run"),
            (Status::Failed, "LeaseEnded", "taken over", "LeaseEnded: taken over", "start again"),
            (Status::Failed, "WrongEvent", "begin", "WrongEvent", "from one version"),
            (Status::Failed, "Failed", "PostgreSQL is away", "is away", "fix what the message"),
            (Status::TimedOut, "States.Timeout", "", "timed out after 1 h 5 min", "what was slow"),
            (Status::Aborted, "", "by hand", "was stopped after 1 h 5 min", "ten minutes after"),
        ] {
            let seen = seen(status, error, cause, Vec::new());
            assert!(why(&seen).contains(why_said), "{}", why(&seen));
            assert!(remedy(&seen).contains(remedy_said), "{}", remedy(&seen));
        }
    }
}
