//! Changes that are older by their version and yet were created later: the trace of a failover between the
//! replicas of a global table.
//!
//! A stream's label says when the stream was enabled, not which of two streams has the newer change. After a
//! failover to a replica whose stream is older, and back, what the replica wrote counts as stale. The version
//! still decides, or a replay would not be harmless; but such a change is not dropped without a word.

use time::OffsetDateTime;

use crate::database::Database;
use crate::deadline::Deadline;
use crate::error;
use crate::fold::SessionChanges;
use crate::measurement::{Part, Versions};
use crate::read_model;

/// Changes of a batch that are stale against a change of another stream.
#[derive(Default)]
pub(super) struct OvertakenByLabel<'a>(Vec<(&'a str, Part, OffsetDateTime)>);

/// The stream that a version is from. Within one stream the sequence number is the order of creation, so
/// only another label is a reason to look at times.
fn label(version: &str) -> Option<&str> {
    version.split_once('/').map(|(label, _)| label)
}

impl<'a> OvertakenByLabel<'a> {
    /// Adds the newest change of each part that the row holds a newer one of, from another stream.
    pub(super) fn add(&mut self, session: &SessionChanges<'a>, held: &Versions) {
        for part in Part::ALL {
            let (Some(change), Some(held)) =
                (session.patch[part as usize], held[part as usize].as_deref())
            else {
                continue;
            };
            let version = change.version.as_str();
            if version < held
                && label(version) != label(held)
                && let Some(created) = change.changed_at
            {
                self.0.push((session.session_id, part, created));
            }
        }
    }

    /// How many of them were created later than what their rows hold. They are logged, once for a batch. That
    /// this cannot be found out changes nothing for the batch.
    pub(super) async fn created_later(&self, database: &Database, deadline: Deadline) -> u64 {
        let mut session_ids: Vec<String> =
            self.0.iter().map(|(session_id, ..)| (*session_id).to_owned()).collect();
        session_ids.dedup();
        if session_ids.is_empty() {
            return 0;
        }
        let times = match read_model::change_times(database, &session_ids, deadline).await {
            Ok(times) => times,
            Err(error) => {
                let error = error::chain(&error);
                tracing::warn!(error, "cannot tell whether stale changes were created later");
                return 0;
            }
        };
        let later = |(session_id, part, created): &&(&str, Part, OffsetDateTime)| {
            let held = times.get(*session_id).and_then(|times| times[*part as usize]);
            held.is_some_and(|held| *created > held)
        };
        let later: Vec<_> = self.0.iter().filter(later).collect();
        if let Some((session_id, part, _)) = later.first() {
            tracing::warn!(
                changes = later.len(),
                session_id,
                part = part.name(),
                "changes are older by version but were created later than what their rows hold, and were not \
                 applied: after a failover between replicas of a global table, see RUNBOOK.md, \"Changes out of order\""
            );
        }
        later.len() as u64
    }
}
