//! A limit on how much is read per second, so that a long comparison, merge or repair leaves room
//! for the readers. One that gives way follows what DynamoDB allows.

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

    /// Takes this many units, and leaves the waiting to the caller: nothing more should be taken
    /// until [`Rate::is_paid`].
    pub(crate) fn owe(&mut self, units: f64) {
        if let Some(paid_at) = self.paid_at_after(Instant::now(), units) {
            self.paid_at = paid_at;
        }
    }

    /// Whether everything taken so far is paid for.
    pub(crate) fn is_paid(&self) -> bool {
        self.paid_at <= Instant::now()
    }

    fn paid_at_after(&self, now: Instant, units: f64) -> Option<Instant> {
        let seconds = units / self.per_second?;
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        Some(self.paid_at.max(earliest) + Duration::from_secs_f64(seconds))
    }
}

/// A rate that is slowed is never slower than this, in units per second.
const SLOWEST: f64 = 10.0;
/// Calls that were under way at once are throttled at once: they slow the rate once.
const SLOWED_AT_MOST_EVERY: Duration = Duration::from_secs(2);
/// A slowed rate doubles after this long without a throttled call.
const DOUBLES_AFTER: Duration = Duration::from_secs(30);
/// What was taken is measured over this long at least.
const MEASURED_FOR: Duration = Duration::from_secs(1);

/// A [`Rate`] that gives way: it is halved when a call is throttled, and doubles again, step by
/// step, up to its own limit, or to what was taken per second before.
#[derive(Debug)]
pub(crate) struct YieldingRate {
    rate: Rate,
    limit: Option<f64>,
    slowed: Option<Slowed>,
    /// Since when `taken` counts.
    measured_since: Instant,
    taken: f64,
    /// What was taken per second, when it was last measured.
    measured: f64,
}

/// A rate below its limit.
#[derive(Clone, Copy, Debug)]
struct Slowed {
    per_second: f64,
    since: Instant,
    /// What it was before: once it is as fast again, only the limit holds.
    before: f64,
}

impl YieldingRate {
    /// At most this many units per second; `None` is no limit until a call is throttled.
    pub(crate) fn new(per_second: Option<u32>) -> Self {
        Self {
            rate: Rate::new(per_second),
            limit: per_second.map(f64::from),
            slowed: None,
            measured_since: Instant::now(),
            taken: 0.0,
            measured: 0.0,
        }
    }

    /// A call was throttled. Returns the new rate per second if that slows it down.
    pub(crate) fn throttled(&mut self) -> Option<f64> {
        let slowed = self.slowed_at(Instant::now())?;
        self.slowed = Some(slowed);
        Some(slowed.per_second)
    }

    /// Takes this many units. Returns when they are paid for: the caller waits until then, with
    /// nothing locked that another call needs.
    pub(crate) fn take(&mut self, units: f64) -> Instant {
        let now = Instant::now();
        self.measure(now, units);
        self.rate.per_second = self.per_second_at(now);
        let Some(paid_at) = self.rate.paid_at_after(now, units) else { return now };
        self.rate.paid_at = paid_at;
        paid_at
    }

    /// The rate as it is now; `None` is no limit.
    #[cfg(test)]
    pub(crate) fn per_second(&self) -> Option<f64> {
        self.per_second_at(Instant::now())
    }

    /// What becomes of the rate if a call is throttled at this time.
    fn slowed_at(&self, now: Instant) -> Option<Slowed> {
        if self.slowed.is_some_and(|slowed| now - slowed.since < SLOWED_AT_MOST_EVERY) {
            return None;
        }
        let current = self.per_second_at(now).unwrap_or(self.measured);
        // A run that has just begun, or waited, has measured next to nothing.
        let before = self.slowed.map_or(0.0, |slowed| slowed.before);
        let before = if current < before { before } else { current.max(2.0 * SLOWEST) };
        Some(Slowed { per_second: (current / 2.0).max(SLOWEST), since: now, before })
    }

    /// The rate at this time; `None` is no limit.
    fn per_second_at(&self, now: Instant) -> Option<f64> {
        let Some(Slowed { per_second, since, before }) = self.slowed else { return self.limit };
        let doubled = (now - since).as_secs_f64() / DOUBLES_AFTER.as_secs_f64();
        let per_second = per_second * doubled.floor().min(64.0).exp2();
        if per_second >= before {
            return self.limit;
        }
        Some(self.limit.map_or(per_second, |limit| limit.min(per_second)))
    }

    fn measure(&mut self, now: Instant, units: f64) {
        self.taken += units;
        let passed = now - self.measured_since;
        if passed >= MEASURED_FOR {
            self.measured = self.taken / passed.as_secs_f64();
            (self.taken, self.measured_since) = (0.0, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{BURST, DOUBLES_AFTER, Rate, SLOWEST, YieldingRate};

    #[test]
    fn a_throttled_rate_is_halved_and_recovers() {
        for limit in [Some(400), None] {
            let mut rate = YieldingRate::new(limit);
            let start = rate.measured_since;
            let after = |seconds| start + Duration::from_secs(seconds);
            let limit = limit.map(f64::from);
            assert_eq!(rate.per_second_at(start), limit);
            // 400 units per second are taken, which is what a rate without a limit starts from.
            rate.measure(after(2), 800.0);
            rate.slowed = rate.slowed_at(after(2));
            assert_eq!(rate.per_second_at(after(2)), Some(200.0), "{limit:?}");
            // The other calls of that moment were throttled as well.
            assert!(rate.slowed_at(after(3)).is_none());
            rate.slowed = rate.slowed_at(after(4));
            assert_eq!(rate.per_second_at(after(5)), Some(100.0));
            let (once, twice) = (after(4) + DOUBLES_AFTER, after(4) + 2 * DOUBLES_AFTER);
            assert_eq!(rate.per_second_at(once), Some(200.0));
            assert_eq!(rate.per_second_at(twice), limit, "as fast as before");
            // Throttled again on the way up, it is halved again.
            rate.slowed = rate.slowed_at(once);
            assert_eq!(rate.per_second_at(once), Some(100.0));
            assert_eq!(rate.per_second_at(once + 2 * DOUBLES_AFTER), limit);
        }
    }

    #[test]
    fn a_rate_that_is_always_throttled_slows_down_and_does_not_stop() {
        for (limit, slowest) in [(None, SLOWEST), (Some(5), 5.0), (Some(12), SLOWEST)] {
            let mut rate = YieldingRate::new(limit);
            let start = rate.measured_since;
            for second in 1..100 {
                let now = start + 2 * Duration::from_secs(second);
                rate.slowed = rate.slowed_at(now).or(rate.slowed);
                assert_eq!(rate.per_second_at(now), Some(slowest), "{limit:?}, {second}");
            }
            let later = start + Duration::from_hours(1);
            assert_eq!(rate.per_second_at(later), limit.map(f64::from));
        }
    }

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
