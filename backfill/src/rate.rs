//! A limit on how much is read per second, so that a long comparison or merge leaves room for the
//! readers.

use std::time::Duration;

use tokio::time::Instant;

/// At most this much is taken in advance: a run that waited for something does not make up for it
/// in one burst.
const BURST: Duration = Duration::from_secs(1);

/// A number of units per second: sessions, or read units of DynamoDB.
#[derive(Debug)]
pub(crate) struct Rate {
    per_second: Option<f64>,
    /// When everything taken so far is paid for.
    paid_at: Instant,
}

impl Rate {
    /// At most this many units per second; `None` is no limit.
    pub(crate) fn new(per_second: Option<u32>) -> Self {
        Self { per_second: per_second.map(f64::from), paid_at: Instant::now() }
    }

    /// Takes this many units, and waits until they are paid for.
    pub(crate) async fn take(&mut self, units: f64) {
        let now = Instant::now();
        if let Some(paid_at) = self.paid_at_after(now, units) {
            self.paid_at = paid_at;
            tokio::time::sleep_until(paid_at).await;
        }
    }

    fn paid_at_after(&self, now: Instant, units: f64) -> Option<Instant> {
        let seconds = units / self.per_second?;
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        Some(self.paid_at.max(earliest) + Duration::from_secs_f64(seconds))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{BURST, Rate};

    #[test]
    fn units_are_paid_for_one_after_the_other_with_one_second_of_credit() {
        let mut rate = Rate::new(Some(100));
        let start = rate.paid_at;
        let first = rate.paid_at_after(start, 50.0).expect("a limit");
        assert_eq!(first - start, Duration::from_millis(500));
        rate.paid_at = first;
        let second = rate.paid_at_after(start, 50.0).expect("a limit");
        assert_eq!(second - start, Duration::from_secs(1));
        // After a minute of nothing, one second's worth goes at once, no more.
        let later = start + Duration::from_mins(1);
        let third = rate.paid_at_after(later, 300.0).expect("a limit");
        assert_eq!(third + BURST, later + Duration::from_secs(3));
        assert_eq!(Rate::new(None).paid_at_after(start, 1.0), None);
    }
}
