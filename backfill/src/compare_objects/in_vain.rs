//! Pure: when a try over many objects is given up, because S3 is away. A silent S3 takes ten
//! seconds for each round of objects, and a page has 32 rounds.

use std::time::{Duration, Instant};

/// A try is given up if no object passes for this long ...
pub(crate) const TRY_IN_VAIN: Duration = Duration::from_secs(15);
/// ... and this many rounds of objects fail meanwhile. Objects that are at fault themselves fail
/// sooner.
const ROUNDS_IN_VAIN: usize = 2;

/// What a try has seen since an object passed.
pub(crate) struct InVain {
    since: Instant,
    failures: usize,
    enough_failures: usize,
}

impl InVain {
    /// A try that begins now, with this many objects at once.
    pub(crate) fn new(concurrency: usize, now: Instant) -> Self {
        Self { since: now, failures: 0, enough_failures: ROUNDS_IN_VAIN * concurrency }
    }

    /// An object was compared or written.
    pub(crate) fn passed(&mut self, now: Instant) {
        (self.since, self.failures) = (now, 0);
    }

    /// An object was not.
    pub(crate) fn failed(&mut self) {
        self.failures += 1;
    }

    /// S3 is away: begin no other object.
    pub(crate) fn is_enough(&self, now: Instant) -> bool {
        self.failures >= self.enough_failures && now - self.since >= TRY_IN_VAIN
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{InVain, TRY_IN_VAIN};

    #[test]
    fn a_try_is_given_up_after_many_failures_and_a_while_without_a_success() {
        let start = Instant::now();
        let mut vain = InVain::new(32, start);
        for _ in 0..63 {
            vain.failed();
        }
        assert!(!vain.is_enough(start + Duration::from_hours(1)), "a few objects may be slow");
        vain.failed();
        assert!(!vain.is_enough(start + TRY_IN_VAIN / 2), "many objects may be at fault");
        assert!(vain.is_enough(start + TRY_IN_VAIN));
        vain.passed(start + TRY_IN_VAIN);
        assert!(!vain.is_enough(start + 3 * TRY_IN_VAIN));
    }
}
