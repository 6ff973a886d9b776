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

/// What to do about it.
pub(crate) fn remedy(seen: &Seen) -> String {
    let Execution { arn, status, error, redrivable, .. } = &seen.execution;
    let error = seen.failed.first().map(|child| &child.error).or(error.as_ref());
    let error = error.map_or("", String::as_str);
    let mut remedy = match (status, error) {
        (_, "DamagedFile") => {
            "start again without --export: that makes new exports. Or copy the file again"
                .to_owned()
        }
        (_, "HeldByAnother") => {
            "wait for the run that the message names, or end it, and start again".to_owned()
        }
        (_, "LeaseEnded") => "start again: what is repaired is equal then".to_owned(),
        (_, "WrongEvent") => "deploy the state machine and its function from one version, and \
             start again"
            .to_owned(),
        (Status::Aborted, _) => "start again: what is repaired is equal then. The lease of a \
             repair that was stopped is free ten minutes after its last heartbeat"
            .to_owned(),
        (Status::TimedOut, _) => "find what was slow in the function's log, and start again: what \
             is repaired is equal then"
            .to_owned(),
        _ => {
            "fix what the message names, and start again: what is repaired is equal then".to_owned()
        }
    };
    // A new lease, or a new export, belongs to a new execution.
    let can_go_on = !matches!(error, "DamagedFile" | "LeaseEnded");
    if *redrivable && can_go_on && *status != Status::Aborted {
        let _ = write!(
            remedy,
            ". A comparison goes on from what failed with `aws stepfunctions redrive-execution \
             --execution-arn {arn}`; a repair does only while its lease lives"
        );
    }
    remedy
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
        let execution =
            Execution { status, ended_at, error, cause, redrivable: true, ..execution() };
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
        assert!(!remedy(&seen).contains("redrive"), "the same file would be read again");
    }

    #[test]
    fn each_end_has_its_words_and_its_remedy() {
        let lambda = r#"{"errorMessage": "held by repair 7", "errorType": "HeldByAnother"}"#;
        for (status, error, cause, why_said, remedy_said) in [
            (Status::Failed, "HeldByAnother", lambda, "held by repair 7", "wait for the run"),
            (Status::Failed, "LeaseEnded", "taken over", "LeaseEnded: taken over", "start again"),
            (Status::Failed, "WrongEvent", "begin", "WrongEvent", "from one version"),
            (Status::Failed, "Failed", "PostgreSQL is away", "is away", "redrive-execution"),
            (Status::TimedOut, "States.Timeout", "", "timed out after 1 h 5 min", "what was slow"),
            (Status::Aborted, "", "by hand", "was stopped after 1 h 5 min", "ten minutes after"),
        ] {
            let seen = seen(status, error, cause, Vec::new());
            assert!(why(&seen).contains(why_said), "{}", why(&seen));
            assert!(remedy(&seen).contains(remedy_said), "{}", remedy(&seen));
        }
    }

    #[test]
    fn what_cannot_be_redriven_is_not_redriven() {
        let mut seen = seen(Status::Failed, "Failed", "", Vec::new());
        assert!(remedy(&seen).contains("redrive-execution"));
        seen.execution.redrivable = false;
        assert!(!remedy(&seen).contains("redrive-execution"));
    }
}
