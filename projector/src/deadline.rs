//! When an answer is due. Lambda ends an invocation at its deadline, whatever is under way, and
//! then everything in the batch comes again; so every wait of the apply path is cut off before
//! that. Also the one way to wait no longer than a limit.

use std::ops::Range;
use std::time::Duration;

use tokio::time::{Instant, timeout};

/// The longest invocation that Lambda allows (AWS Lambda Developer Guide, "Configure Lambda
/// function timeout"). A deadline beyond it, or in the past, is an emulator's: Lambda itself ends
/// an invocation then.
const LONGEST_INVOCATION: Duration = Duration::from_mins(15);

/// When an answer is due, if somebody waits for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// Nobody waits: a backfill.
    pub const NONE: Self = Self(None);

    /// The deadline of an invocation that has this much time left, less a tenth of it (0.2 s to 2
    /// s), so that the answer itself arrives in time.
    #[must_use]
    pub fn of_invocation(now: Instant, remaining: Duration) -> Self {
        let remaining = match remaining.min(LONGEST_INVOCATION) {
            Duration::ZERO => LONGEST_INVOCATION,
            remaining => remaining,
        };
        let reserve = Duration::from_millis(200)..Duration::from_secs(2);
        Self(Some(now + remaining)).earlier_by(now, 10, &reserve)
    }

    /// A deadline that leaves one part in `share` of the remaining time, within `reserve`, for what
    /// comes after it.
    #[must_use]
    pub fn earlier_by(self, now: Instant, share: u32, reserve: &Range<Duration>) -> Self {
        Self(self.0.map(|due| {
            let remaining = due.saturating_duration_since(now);
            let reserve = (remaining / share).clamp(reserve.start, reserve.end);
            now + remaining.saturating_sub(reserve)
        }))
    }

    /// The time until the deadline, at most `limit`.
    #[must_use]
    pub fn limit(self, now: Instant, limit: Duration) -> Duration {
        self.0.map_or(limit, |due| due.saturating_duration_since(now).min(limit))
    }

    /// Waits for the deadline; forever if there is none.
    pub async fn passed(self) {
        match self.0 {
            Some(due) => tokio::time::sleep_until(due).await,
            None => std::future::pending().await,
        }
    }
}

/// Waits for `work` for at most `limit`, and then gives it up. One bound for all that may fall
/// silent: `silent` is the error that says so.
///
/// # Errors
/// Those of `work`, and `silent` once the time is over.
pub async fn within<T, E>(
    limit: Duration,
    work: impl Future<Output = Result<T, E>>,
    silent: impl FnOnce() -> E,
) -> Result<T, E> {
    timeout(limit, work).await.unwrap_or_else(|_| Err(silent()))
}

#[cfg(test)]
mod tests {
    use super::{Deadline, within};
    use std::time::Duration;
    use tokio::time::Instant;

    const HOUR: Duration = Duration::from_hours(1);

    #[test]
    fn the_answer_has_a_tenth_of_the_time_from_a_fifth_of_a_second_to_two_seconds() {
        let now = Instant::now();
        let left = |remaining_ms| {
            let deadline = Deadline::of_invocation(now, Duration::from_millis(remaining_ms));
            deadline.limit(now, HOUR).as_millis()
        };
        assert_eq!([left(180_000), left(10_000), left(1_000), left(100)], [178_000, 9_000, 800, 0]);
    }

    #[test]
    fn a_deadline_that_lambda_would_not_give_is_the_longest_invocation() {
        let now = Instant::now();
        for remaining in [Duration::ZERO, HOUR * 24 * 365 * 70] {
            let deadline = Deadline::of_invocation(now, remaining);
            assert_eq!(deadline.limit(now, HOUR), Duration::from_secs(15 * 60 - 2));
        }
        assert_eq!(Deadline::NONE.limit(now, HOUR), HOUR);
    }

    #[tokio::test]
    async fn what_is_silent_is_given_up_and_what_answers_is_not_changed() {
        let limit = Duration::from_millis(1);
        let silent = within(limit, std::future::pending::<Result<(), _>>(), || "silent").await;
        assert_eq!(silent, Err("silent"));
        assert_eq!(within(Duration::ZERO, async { Ok(7) }, || "silent").await, Ok(7));
        assert_eq!(within(HOUR, async { Err::<(), _>("no") }, || "silent").await, Err("no"));
    }
}
