//! When an open shard counts as caught up although nothing says so. Pure.
//!
//! An open shard never ends, and the API does not say how far an iterator is from the newest
//! record. An empty page is no sign of it: "it might take multiple calls to get to a portion of the
//! shard that contains stream records" (DynamoDB Streams API reference, `GetRecords`). How many is
//! not documented. The authors of the bloop library measured on the real service that about 4 empty
//! pages cross the four hours of an empty shard (`CALLS_TO_REACH_HEAD` in bloop/stream/shard.py).
//! We ask for more pages than that, for longer, and longest if the shard has returned no record
//! yet; and the summary names what was only assumed.

use std::time::{Duration, Instant};

/// This many empty pages in a row are needed at least, and this many for each second that they must
/// last: calls that are held up do not count for calls that were made.
const EMPTY_PAGES: u64 = 10;
const EMPTY_PAGES_PER_SECOND: u64 = 4;
/// This many empty pages are asked for without a pause, since empty pages may stand before records.
const WITHOUT_PAUSE: u64 = 5;
/// Then the pause doubles from the first to the last.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(250)];

/// The walk begins anew this often without a record in between; after that its pages count on, or
/// iterators that keep expiring would hold the run for good.
const RESTARTS: u32 = 3;

/// The empty pages since the last record, or since the walk through the shard began anew.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct EmptyPages {
    count: u64,
    since: Option<Instant>,
    restarts: u32,
}

impl EmptyPages {
    /// A page came.
    pub(crate) fn page(&mut self, empty: bool, now: Instant) {
        if !empty {
            *self = Self::default();
            return;
        }
        self.count += 1;
        self.since.get_or_insert(now);
    }

    /// The walk begins anew after the last record: with a new iterator, the empty pages come again.
    pub(crate) fn restart(&mut self) {
        if self.count > 0 && self.restarts < RESTARTS {
            *self = Self { restarts: self.restarts + 1, ..Self::default() };
        }
    }

    /// Whether the shard counts as caught up after having been empty for `wait`.
    pub(crate) fn enough(&self, wait: Duration, now: Instant) -> bool {
        let pages = EMPTY_PAGES.max(EMPTY_PAGES_PER_SECOND * wait.as_secs());
        self.count >= pages && self.since.is_some_and(|since| now - since >= wait)
    }

    /// The pause before the next call.
    pub(crate) fn pause(&self) -> Option<Duration> {
        let [first, last] = PAUSES;
        let doublings = self.count.checked_sub(WITHOUT_PAUSE)?;
        Some((first * (1 << doublings.min(8))).min(last))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::EmptyPages;

    #[test]
    fn it_takes_enough_pages_and_enough_time() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut empty = EmptyPages::default();
        for pages in 1..=9 {
            empty.page(true, start);
            assert!(!empty.enough(Duration::ZERO, start), "{pages}");
        }
        empty.page(true, start);
        assert!(empty.enough(Duration::ZERO, start));
        assert!(!empty.enough(second, start), "no time has passed");
        assert!(empty.enough(second, start + second));
        assert!(!empty.enough(10 * second, start + 60 * second), "40 pages are wanted for 10 s");
        empty.page(false, start);
        assert!(!empty.enough(Duration::ZERO, start + second), "a record came");
    }

    #[test]
    fn a_new_iterator_begins_the_count_again() {
        let start = Instant::now();
        let mut empty = EmptyPages::default();
        for _ in 0..10 {
            empty.page(true, start);
        }
        empty.restart();
        empty.page(true, start);
        assert!(!empty.enough(Duration::ZERO, start + Duration::from_secs(9)));
        // Not for good: iterators that always expire must not hold the run.
        for _ in 0..30 {
            empty.restart();
            empty.page(true, start);
        }
        assert!(empty.enough(Duration::ZERO, start + Duration::from_secs(9)));
    }

    #[test]
    fn the_pauses_grow_to_a_limit() {
        let mut empty = EmptyPages::default();
        let mut pauses = Vec::new();
        for _ in 0..9 {
            pauses.push(empty.pause().unwrap_or_default().as_millis());
            empty.page(true, Instant::now());
        }
        assert_eq!(pauses, [0, 0, 0, 0, 0, 50, 100, 200, 250]);
    }
}
