//! How many sessions one statement takes. Pure.
//!
//! A database that was just restored loads its blocks lazily, and a statement that takes a second
//! on any other day runs into its time limit. Sent again unchanged it would run into it again. So
//! the next one is smaller, down to one session, and what worked is remembered: a slow database
//! means slow progress, not none.

use std::time::Duration;

/// A statement should take no longer than this: rows stay locked meanwhile, and an invocation that
/// runs out of time loses what is in the database.
const TARGET: Duration = Duration::from_secs(4);
/// The target is never less, however soon a statement failed.
const LEAST_TARGET: Duration = Duration::from_millis(250);

/// How many sessions a statement takes at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    limit: usize,
    most: usize,
    /// [`TARGET`], or half of a lower time limit that a statement ran into.
    target: Duration,
}

impl Pace {
    /// Starts with `most` sessions, and never takes more.
    #[must_use]
    pub const fn new(most: usize) -> Self {
        Self { limit: most, most, target: TARGET }
    }

    /// How many sessions the next statement takes at most; 1 at least.
    #[must_use]
    pub fn limit(self) -> usize {
        self.limit
    }

    /// A statement of `sessions` was too much: it ran into a time limit after `took`, or the server
    /// ran out of memory. The next takes half at most, and no more than would have met the target
    /// if it had needed four times that time. How much it had needed is not known, and to try too
    /// much again costs a whole limit.
    pub fn too_much(&mut self, sessions: usize, took: Duration) {
        self.target = self.target.min(took / 2).max(LEAST_TARGET);
        self.limit = self.limit.min(sessions / 2).min(self.at_target(sessions, took * 4)).max(1);
    }

    /// A statement of `sessions` took so long. Slower than the target: the next is smaller. In less
    /// than half of it, and as large as allowed: the next may be a quarter larger.
    pub fn done(&mut self, sessions: usize, took: Duration) {
        if took > self.target {
            self.limit = self.limit.min(self.at_target(sessions, took)).max(1);
        } else if sessions >= self.limit {
            // The time limit may be gone, too.
            self.target = (self.target + self.target / 32).min(TARGET);
            if took < self.target / 2 {
                self.limit = (self.limit + self.limit.div_ceil(4)).min(self.most);
            }
        }
    }

    /// How many sessions would have met the target, if each takes as long as the others.
    fn at_target(self, sessions: usize, took: Duration) -> usize {
        let at_target = sessions as u128 * self.target.as_millis() / took.as_millis().max(1);
        usize::try_from(at_target).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::{Pace, TARGET};
    use proptest::prelude::*;
    use std::time::Duration;

    /// Sends `sessions` to a database that needs this long per session and has this time limit, and
    /// returns how long that took.
    fn send(
        pace: &mut Pace,
        mut sessions: usize,
        per_session: Duration,
        limit: Duration,
    ) -> Duration {
        let mut took = Duration::ZERO;
        while sessions > 0 {
            let sent = pace.limit().min(sessions);
            let needed = per_session * u32::try_from(sent).expect("few sessions");
            took += needed.min(limit);
            if needed > limit {
                assert!(sent > 1, "one session alone does not fit");
                pace.too_much(sent, limit);
            } else {
                sessions -= sent;
                pace.done(sent, needed);
            }
        }
        took
    }

    proptest! {
        /// From one to a hundred milliseconds per row, and from a few seconds to 20 s per
        /// statement.
        #[test]
        fn a_slow_database_makes_progress_at_nearly_its_own_rate(
            row_ms in 1_u64..=100, limit_s in 2_u64..=20, sessions in 1_000_usize..10_000
        ) {
            let mut pace = Pace::new(10_000);
            let (per_session, limit) = (Duration::from_millis(row_ms), Duration::from_secs(limit_s));
            let alone = per_session * u32::try_from(sessions).expect("few sessions");
            // To find the size costs a few statements; to keep it, one that fails in a while.
            let took = send(&mut pace, sessions, per_session, limit);
            prop_assert!(took < alone * 3 / 2 + limit * 10, "{took:?} instead of {alone:?}");
            let took = send(&mut pace, sessions, per_session, limit);
            prop_assert!(took < alone * 3 / 2, "{took:?} instead of {alone:?}");
        }

        #[test]
        fn the_limit_stays_between_one_and_the_most(
            steps in prop::collection::vec((any::<bool>(), 0_usize..20_000, 0_u64..120_000), 0..50)
        ) {
            let mut pace = Pace::new(1_000);
            for (done, sessions, ms) in steps {
                let took = Duration::from_millis(ms);
                if done { pace.done(sessions, took) } else { pace.too_much(sessions, took) }
                prop_assert!((1..=1_000).contains(&pace.limit()));
            }
        }
    }

    #[test]
    fn a_database_that_has_recovered_is_trusted_again_slowly() {
        let mut pace = Pace::new(10_000);
        pace.too_much(10_000, Duration::from_secs(20));
        assert_eq!(pace.limit(), 500);
        pace.done(500, TARGET);
        assert_eq!(pace.limit(), 500);
        // A small batch says nothing of large ones.
        pace.done(10, Duration::from_millis(1));
        assert_eq!(pace.limit(), 500);
        let mut statements = 0;
        while pace.limit() < 10_000 {
            pace.done(pace.limit(), Duration::from_millis(100));
            statements += 1;
        }
        assert_eq!(statements, 14);
    }
}
