//! What earlier statements have taught. It decides how the next one is sent, never what is written.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::pace::Pace;
use crate::read_model::Upserted;

/// No statement takes more sessions than this.
const MOST_SESSIONS: usize = 10_000;

/// What earlier statements have taught.
#[derive(Debug)]
pub struct Learned {
    mostly_unchanged: AtomicBool,
    pace: Mutex<Pace>,
    refusing: Mutex<Option<String>>,
}

impl Default for Learned {
    fn default() -> Self {
        Self {
            mostly_unchanged: AtomicBool::default(),
            pace: Mutex::new(Pace::new(MOST_SESSIONS)),
            refusing: Mutex::default(),
        }
    }
}

impl Learned {
    /// Whether most sessions of the last statement were unchanged: a replay is under way, and the
    /// next ones are likely to be unchanged, too.
    pub(super) fn mostly_unchanged(&self) -> bool {
        self.mostly_unchanged.load(Ordering::Relaxed)
    }

    /// Has the next statement sent as if most sessions of the last one had been unchanged, or had
    /// not: for tests, which show that the rows are the same.
    pub fn expect_unchanged(&self, unchanged: bool) {
        self.mostly_unchanged.store(unchanged, Ordering::Relaxed);
    }

    /// How many sessions a statement takes.
    #[must_use]
    pub fn sessions_per_statement(&self) -> usize {
        self.pace().limit()
    }

    pub(super) fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For which reason PostgreSQL refused every session of a large batch, as long as it has taken
    /// none since. Lambda halves that batch down to single records; those are not at fault either.
    pub(super) fn refusing(&self) -> MutexGuard<'_, Option<String>> {
        self.refusing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Learns from what a statement made of its sessions.
    pub(super) fn see(&self, upserted: &[Option<Upserted>]) {
        let unchanged =
            |upserted: &&Option<Upserted>| matches!(upserted, Some(Upserted::Unchanged(_)));
        self.expect_unchanged(upserted.iter().filter(unchanged).count() > upserted.len() / 2);
    }
}
