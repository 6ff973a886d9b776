//! Pure: whether it is still worth guessing that a new row has no object. A right guess saves the
//! HEAD. A wrong one costs a PUT that is refused, and over an empty database beside a full bucket
//! all of them are wrong.

use std::collections::VecDeque;

/// The guesses of this many objects count.
const SEEN: usize = 32;

/// The last guesses.
#[derive(Debug, Default)]
pub(crate) struct Guesses {
    /// Whether each was right, the newest last.
    last: VecDeque<bool>,
}

impl Guesses {
    /// Whether at most half of the last guesses were wrong.
    pub(crate) fn are_worth_it(&self) -> bool {
        let wrong = self.last.iter().filter(|right| !**right).count();
        wrong <= SEEN / 2
    }

    /// A guess was right, or was wrong.
    pub(crate) fn saw(&mut self, right: bool) {
        if self.last.len() == SEEN {
            self.last.pop_front();
        }
        self.last.push_back(right);
    }
}

#[cfg(test)]
mod tests {
    use super::{Guesses, SEEN};

    #[test]
    fn after_more_wrong_guesses_than_right_ones_nothing_is_guessed_any_more() {
        let mut guesses = Guesses::default();
        for _ in 0..SEEN / 2 {
            guesses.saw(false);
            assert!(guesses.are_worth_it(), "a few objects may have been there");
        }
        for _ in 0..SEEN / 2 {
            guesses.saw(true);
        }
        guesses.saw(true);
        assert!(guesses.are_worth_it(), "the oldest counts no more");
        for _ in 0..=SEEN / 2 {
            guesses.saw(false);
        }
        assert!(!guesses.are_worth_it());
    }
}
