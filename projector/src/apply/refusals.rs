//! What PostgreSQL refuses of one batch, and whether the records are at fault or the table. Pure.

use std::collections::BTreeSet;

use crate::error::Error;

/// If this many sessions were refused for one reason and none was taken, the table is probably at
/// fault: then [`OTHERS`] from elsewhere in the batch are tried before the rest.
pub(super) const ENOUGH_REFUSED: usize = 50;
/// If these are refused for the same reason, too, the rest is not tried.
pub(super) const OTHERS: usize = 8;

/// What PostgreSQL refused so far.
#[derive(Default)]
pub(super) struct Refusals {
    /// Whose changes were refused.
    pub(super) sessions: BTreeSet<String>,
    /// The first reason.
    pub(super) same: Option<String>,
    /// There are other reasons, too.
    several: bool,
    /// Some row was written.
    pub(super) passed: bool,
}

impl Refusals {
    /// None so far; `passed`: some row of the batch has been written before.
    pub(super) fn after(passed: bool) -> Self {
        Self { passed, ..Self::default() }
    }

    pub(super) fn add(&mut self, session_id: &str, reason: &str) {
        self.sessions.insert(session_id.to_owned());
        self.several |= self.same.get_or_insert_with(|| reason.to_owned()) != reason;
    }

    /// At least this many sessions were refused, all for one reason, and none was taken: the table
    /// is at fault, or a trigger.
    pub(super) fn set_up_at_fault(&self, at_least: usize) -> Option<Error> {
        let reason = self.same.clone().filter(|_| !self.several && !self.passed)?;
        let sessions = self.sessions.len();
        (sessions >= at_least).then_some(Error::AllRefused { sessions, reason })
    }
}

#[cfg(test)]
mod tests {
    use super::Refusals;

    #[test]
    fn the_table_is_at_fault_only_if_all_are_refused_for_one_reason() {
        let mut refusals = Refusals::default();
        assert!(refusals.set_up_at_fault(1).is_none());
        for session in ["s1", "s2", "s2"] {
            refusals.add(session, "a");
        }
        assert!(refusals.set_up_at_fault(2).is_some() && refusals.set_up_at_fault(3).is_none());
        refusals.passed = true;
        assert!(refusals.set_up_at_fault(2).is_none());
        refusals.passed = false;
        refusals.add("s3", "b");
        assert!(refusals.set_up_at_fault(2).is_none());
    }
}
