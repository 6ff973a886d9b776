//! Sessions that only the bucket may hold: neither their rows nor the tables have a part of them.
//! After a restore beside the old bucket, an object may hold what was removed since, and no other
//! source of candidates names its session.

use std::collections::HashSet;
use std::sync::LazyLock;

use projector::archive::Archive;
use projector::bind;
use projector::change::require_session_id;
use projector::deadline::Deadline;
use projector::error::Error;
use projector::part::Part;
use sqlx::Row as _;

use crate::repair::look::Looker;
use crate::retry::retry_transient;

/// Of these sessions, those whose rows hold a part: the other sources name them.
static HELD: LazyLock<String> = LazyLock::new(|| {
    let present = |part: Part| {
        let first = part.fields().iter().find(|field| field.required);
        let prefix =
            if part == Part::Session { String::new() } else { format!("{}_", part.name()) };
        let name = first.map_or("session_id", |field| field.name);
        format!("{prefix}{name} IS NOT NULL")
    };
    let any = Part::ALL.map(present).join(" OR ");
    format!("SELECT session_id FROM measurements WHERE session_id = ANY($1::text[]) AND ({any})")
});

/// The objects of a bucket that are still to be listed.
pub(crate) struct UnheldObjects<'a> {
    looker: &'a Looker<'a>,
    archive: &'a Archive,
    /// The last key that was listed.
    last: String,
}

impl<'a> UnheldObjects<'a> {
    /// `None` without an archive.
    pub(crate) fn of(looker: &'a Looker<'a>) -> Option<Self> {
        let archive = looker.archive?;
        Some(Self { looker, archive, last: String::new() })
    }

    /// The next sessions that have an object, and no part in their rows; `None` after the last.
    ///
    /// # Errors
    /// If the bucket or the database stays away.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Vec<String>>> {
        let archive = self.archive;
        let listing = retry_transient("list the objects", async || archive.list(&self.last).await);
        let listed = listing.await?;
        let Some(last) = listed.last() else { return Ok(None) };
        self.last.clone_from(&last.key);
        let sessions = listed.iter().filter_map(|listed| archive.session_of(&listed.key));
        let sessions: Vec<String> = sessions
            .filter(|session_id| require_session_id(session_id).is_ok())
            .map(str::to_owned)
            .collect();
        let held = self.held(&sessions).await?;
        Ok(Some(sessions.into_iter().filter(|session_id| !held.contains(session_id)).collect()))
    }

    async fn held(&self, sessions: &[String]) -> anyhow::Result<HashSet<String>> {
        let pairs = &self.looker.first;
        if pairs.ttl_attributes.iter().any(Option::is_some) {
            // A row that keeps what expired is named by no other source.
            return Ok(HashSet::new());
        }
        let reading = retry_transient("read which rows hold a part", async || {
            pairs.database.fetch(HELD.as_str(), bind![sessions], Deadline::NONE).await
        });
        let rows = reading.await?;
        let held = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>();
        Ok(held.map_err(Error::Database)?)
    }
}
