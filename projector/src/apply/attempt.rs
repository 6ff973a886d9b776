//! One statement of a batch: it waits for a connection, is sent, and is timed.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::Projector;
use crate::deadline::Deadline;
use crate::error::Error;
use crate::fold::SessionChanges;
use crate::read_model::{self, Returned, Upserted};

/// What came of one statement.
pub(super) struct Statement<'a> {
    pub(super) sessions: Vec<SessionChanges<'a>>,
    pub(super) took: Duration,
    /// `None` if it was not sent: while it waited for a connection, others of its size were too
    /// much.
    pub(super) upserted: Option<Result<Vec<Option<Upserted>>, Error>>,
    /// Sessions whose rows somebody else has locked, if it waited for one in vain; `None` if that
    /// cannot be found out, because the whole table is locked.
    pub(super) locked: Option<HashSet<String>>,
}

/// Sends one statement, unless sessions of that number were found to be too many while it waited
/// for a connection.
pub(super) async fn upsert<'a>(
    projector: &Projector,
    sessions: Vec<SessionChanges<'a>>,
    returned: Returned,
    deadline: Deadline,
) -> Statement<'a> {
    let mut locked = Some(HashSet::new());
    let lease = match projector.database.lease(deadline).await {
        Ok(lease) => lease,
        Err(error) => {
            let upserted = Some(Err(error));
            return Statement { sessions, took: Duration::ZERO, upserted, locked };
        }
    };
    if sessions.len() > projector.learned.sessions_per_statement() {
        return Statement { sessions, took: Duration::ZERO, upserted: None, locked };
    }
    // What can be tried again in smaller pieces leaves time for them.
    let lease = if sessions.len() > 1 { lease.halved() } else { lease };
    // The wait for a connection says nothing of the statement.
    let start = Instant::now();
    let ask_first = projector.learned.mostly_unchanged();
    let upserted = read_model::upsert(&lease, &sessions, returned, ask_first).await;
    if let Ok(upserted) = &upserted {
        projector.learned.see(upserted);
    }
    let took = start.elapsed();
    if let Err(error) = &upserted
        && error.locked()
        && sessions.len() > 1
    {
        locked = read_model::locked(&lease, &sessions).await.ok();
    }
    Statement { sessions, took, upserted: Some(upserted), locked }
}
