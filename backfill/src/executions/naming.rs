//! The names of executions, by which two starts do not make two runs by accident. Pure. Step
//! Functions takes a name once in 90 days, so the second start with a name finds the first.

use serde_json::json;
use time::{Duration, OffsetDateTime};

use super::{Execution, Status};
use crate::console::{clock, span};

/// A start this soon after the same one is taken for the same.
pub(crate) const SAME_WITHIN: Duration = Duration::seconds(60);

/// The name of an execution that is started at this time.
pub(crate) fn name_at(time: OffsetDateTime) -> String {
    let time = time.to_utc();
    let (year, month, day) = (time.year(), u8::from(time.month()), time.day());
    let (hour, minute) = (time.hour(), time.minute());
    format!("backfill-{year}{month:02}{day:02}T{hour:02}{minute:02}Z")
}

/// The names that a start within [`SAME_WITHIN`] before this time has taken.
pub(crate) fn recent_names(now: OffsetDateTime) -> [String; 2] {
    [name_at(now), name_at(now - SAME_WITHIN)]
}

/// How long a start waits before it looks for an earlier one. Just after a minute has begun, one
/// from the last moment of the minute before may not have reached Step Functions yet.
pub(crate) fn hold_back(now: OffsetDateTime) -> std::time::Duration {
    const REACHED_WITHIN: u8 = 2;
    std::time::Duration::from_secs(REACHED_WITHIN.saturating_sub(now.second()).into())
}

/// The input of an execution.
pub(crate) fn input(repair: bool, exports: Option<[&str; 2]>, failures: bool) -> String {
    let exports = exports.map(|[sessions, scans]| json!({ "sessions": sessions, "scans": scans }));
    json!({ "repair": repair, "exports": exports, "failures": failures }).to_string()
}

/// What an execution that has the name already means to a start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Existing {
    /// It is what the start wants.
    Same,
    /// It is another one: why, and what to do.
    Refused { why: String, remedy: String },
    /// It is too old to be the same by accident.
    Older,
}

/// Judges an execution whose name the minute gave.
pub(crate) fn judge_recent(found: &Execution, input: &str, now: OffsetDateTime) -> Existing {
    let age = (now - found.started_at).max(Duration::ZERO);
    if age >= SAME_WITHIN {
        return Existing::Older;
    }
    let same = found.has_input(input);
    if same && matches!(found.status, Status::Running | Status::Succeeded) {
        return Existing::Same;
    }
    let Execution { arn, status, .. } = found;
    let (age, rest) = (span(age.unsigned_abs()), span((SAME_WITHIN - age).unsigned_abs()));
    let how = if same { "the same run" } else { "another run" };
    Existing::Refused {
        why: format!("{how} was started {age} ago, and is {}: {arn}", status.name()),
        remedy: format!("start again in {rest}, or give this run a --name of its own"),
    }
}

/// Judges an execution that has the name of `--name`.
pub(crate) fn judge_named(found: &Execution, input: &str) -> Existing {
    if found.has_input(input) {
        return Existing::Same;
    }
    let started = clock(found.started_at);
    Existing::Refused {
        why: format!("the name is taken by another run, started at {started}: {}", found.arn),
        remedy: "give another --name: Step Functions takes each one once in 90 days".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::{Existing, hold_back, input, judge_named, judge_recent, name_at, recent_names};
    use crate::executions::tests::execution;
    use crate::executions::{Execution, Status};

    #[test]
    fn the_name_is_the_minute_and_a_start_across_two_minutes_is_found() {
        let late = datetime!(2026-11-26 22:05:59 UTC);
        assert_eq!(name_at(late), "backfill-20261126T2205Z");
        let next = datetime!(2026-11-26 22:06:30 UTC);
        assert!(recent_names(next).contains(&name_at(late)));
        let elsewhere = datetime!(2026-11-26 23:05:59 +1);
        assert_eq!(name_at(elsewhere), name_at(late));
        // Both names are looked for once the start of the last moment is there.
        assert_eq!(hold_back(datetime!(2026-11-26 22:06:00.5 UTC)).as_secs(), 2);
        assert_eq!(hold_back(datetime!(2026-11-26 22:06:01 UTC)).as_secs(), 1);
        assert_eq!(hold_back(late).as_secs(), 0);
    }

    #[test]
    fn the_input_is_that_of_the_state_machine() {
        for (made, expected) in [
            (input(false, None, false), r#"{"exports":null,"failures":false,"repair":false}"#),
            (
                input(true, Some(["arn:a", "arn:b"]), false),
                r#"{"exports":{"scans":"arn:b","sessions":"arn:a"},"failures":false,"repair":true}"#,
            ),
            (input(true, None, true), r#"{"exports":null,"failures":true,"repair":true}"#),
        ] {
            let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
            assert_eq!(parse(&made), parse(expected));
        }
    }

    #[test]
    fn the_same_start_within_a_minute_is_the_same_run_and_another_is_refused() {
        let (same, other) = (input(true, None, false), input(false, None, false));
        let soon = datetime!(2026-11-26 22:00:20 UTC);
        assert_eq!(judge_recent(&execution(), &same, soon), Existing::Same);
        let refused = |found: &Execution, input: &str, said: &str| {
            let judged = judge_recent(found, input, soon);
            let Existing::Refused { why, remedy } = judged else { panic!("{judged:?}") };
            assert!(why.contains(said), "{why}");
            assert!(remedy.contains("start again in 40 s"), "{remedy}");
        };
        refused(&execution(), &other, "another run was started 20 s ago, and is RUNNING");
        let failed = Execution { status: Status::Failed, ..execution() };
        refused(&failed, &same, "the same run was started 20 s ago, and is FAILED");
        let later = datetime!(2026-11-26 22:01 UTC);
        assert_eq!(judge_recent(&execution(), &same, later), Existing::Older);
    }

    #[test]
    fn a_name_that_was_given_means_its_run_at_any_time() {
        let (same, other) = (input(true, None, false), input(false, None, false));
        let failed = Execution { status: Status::Failed, ..execution() };
        assert_eq!(judge_named(&failed, &same), Existing::Same);
        let judged = judge_named(&failed, &other);
        assert!(matches!(judged, Existing::Refused { why, .. } if why.contains("22:00:00Z")));
    }
}
