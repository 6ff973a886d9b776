//! Changes that are older by their version and yet were created later: the trace of a failover
//! between the replicas of a global table.
//!
//! A stream's label says when the stream was enabled, not which of two streams has the newer
//! change. After a failover to a replica whose stream is older, and back, what the replica wrote
//! counts as stale. The version still decides, or a replay would not be harmless; but such a change
//! is not dropped without a word.

use time::OffsetDateTime;

use crate::database::Database;
use crate::deadline::Deadline;
use crate::error;
use crate::fold::SessionChanges;
use crate::measurement::Versions;
use crate::part::Part;
use crate::read_model;

/// Sessions per statement.
const AT_ONCE: usize = 100;

/// Changes of a batch that are stale against a change of another stream.
#[derive(Default)]
pub(super) struct OvertakenByLabel<'a>(Vec<Overtaken<'a>>);

struct Overtaken<'a> {
    session_id: &'a str,
    part: Part,
    created: OffsetDateTime,
    /// The record's index in the batch.
    record_index: usize,
}

/// The stream that a version is from. Within one stream the sequence number is the order of
/// creation, so only another label is a reason to look at times.
fn label(version: &str) -> Option<&str> {
    version.split_once('/').map(|(label, _)| label)
}

impl<'a> OvertakenByLabel<'a> {
    /// Adds the newest change of each part that the row holds a newer one of, from another stream.
    pub(super) fn add(&mut self, session: &SessionChanges<'a>, held: &Versions) {
        for part in Part::ALL {
            let (Some(change), Some(held)) = (session.patch[part], held[part].as_deref()) else {
                continue;
            };
            let version = change.version.as_str();
            if version < held
                && label(version) != label(held)
                && let Some(created) = change.changed_at
                && let Some(indexed) = session.changes.iter().find(|indexed| {
                    indexed.change.part == part && indexed.change.version == change.version
                })
            {
                let (session_id, record_index) = (session.session_id, indexed.record_index);
                self.0.push(Overtaken { session_id, part, created, record_index });
            }
        }
    }

    /// How many of them were created later than what their rows hold; they are logged, once for a
    /// batch.
    ///
    /// # Errors
    /// The records for which this could not be found out: they are not acknowledged.
    pub(super) async fn created_later(
        &self,
        database: &Database,
        deadline: Deadline,
    ) -> Result<u64, Vec<usize>> {
        let mut later = 0;
        let mut example: Option<&Overtaken<'_>> = None;
        for (index, some) in self.0.chunks(AT_ONCE).enumerate() {
            let mut ids: Vec<String> = some.iter().map(|one| one.session_id.to_owned()).collect();
            ids.dedup();
            let times = match read_model::change_times(database, &ids, deadline).await {
                Ok(times) => times,
                Err(error) => {
                    let error = error::chain(&error);
                    tracing::warn!(error, "cannot tell whether stale changes were created later");
                    return Err(self.0[index * AT_ONCE..]
                        .iter()
                        .map(|one| one.record_index)
                        .collect());
                }
            };
            for one in some {
                let held = times.get(one.session_id).and_then(|times| times[one.part]);
                if held.is_some_and(|held| one.created > held) {
                    later += 1;
                    example.get_or_insert(one);
                }
            }
        }
        if let Some(Overtaken { session_id, part, .. }) = example {
            tracing::warn!(
                changes = later,
                session_id,
                part = part.name(),
                "changes are older by version but were created later than what their rows hold, \
                 and were not applied: after a failover between replicas of a global table, see \
                 docs/incidents.md, \"Changes out of order\""
            );
        }
        Ok(later)
    }
}
