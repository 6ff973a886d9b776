//! The rows of another database, in the order of their keys: their versions by the page, and whole
//! only those of which some part is newer than here.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::LazyLock;

use projector::apply::Pace;
use projector::config::ConfigError;
use projector::database::Database;
use projector::deadline::Deadline;
use projector::measurement::{COLUMNS, ColumnKind, Versions};
use projector::part::Part;
use projector::read_model;
use sqlx::Arguments as _;
use sqlx::Row as _;
use sqlx::postgres::{PgArguments, PgRow};
use time::OffsetDateTime;

use crate::merge::newer::{newer_changes, newer_parts};
use crate::merge::{BATCH_BYTES, BATCH_SESSIONS, Found, Step};
use crate::peer::Peer;
use crate::rate::Rate;
use crate::retry::retry_transient;
use crate::statement;

/// What a row takes beside its texts, bytes and attributes.
const ROW_BYTES: u64 = 1_024;

/// The next rows after a key: key, versions, whether they changed after `$3` (NULL: all did), and
/// how many bytes they have at most. The server knows how long a mesh is without reading it.
static NEXT: LazyLock<String> = LazyLock::new(|| {
    let of_part = |part: Part| {
        let part = part.name();
        format!("({part}_version IS NOT NULL AND ({part}_changed_at > $3) IS NOT FALSE)")
    };
    let changed = Part::ALL.map(of_part).join(" OR ");
    let mut bytes = "0::bigint".to_owned();
    for column in COLUMNS.iter() {
        let text = match column.kind {
            ColumnKind::Text | ColumnKind::Bytes => "",
            ColumnKind::Attributes => "::text",
            ColumnKind::Timestamp | ColumnKind::Millimetres => continue,
        };
        let name = &column.name;
        let added = write!(bytes, " + coalesce(octet_length({name}{text}), 0)");
        added.expect("a string takes all");
    }
    format!(
        "SELECT session_id, session_version, left_version, right_version,
    $3::timestamptz IS NULL OR {changed},
    {bytes}
FROM measurements WHERE session_id > $1 ORDER BY session_id LIMIT $2"
    )
});

/// A session of which some part is newer there.
struct Candidate {
    session_id: String,
    /// What our row held when it was asked for; `None` if there is none.
    held: Option<Versions>,
    /// How many bytes the row there has at most.
    bytes: u64,
}

/// A row of a page.
struct Seen {
    session_id: String,
    versions: Versions,
    changed: bool,
    bytes: u64,
}

/// The rows of a peer that are still to be read.
pub(crate) struct Rows<'a> {
    peer: &'a Peer,
    ours: &'a Database,
    since: Option<OffsetDateTime>,
    dry_run: bool,
    rate: Rate,
    /// At most this many sessions are looked at by one statement, or are in one batch.
    most: usize,
    page: Pace,
    asked: Pace,
    whole: Pace,
    /// The last session of the pages that were read.
    last: String,
    at_end: bool,
    /// What is newer there, and not in a batch yet.
    candidates: VecDeque<Candidate>,
}

/// Refuses a peer whose `measurements` has other columns than ours.
///
/// # Errors
/// [`ConfigError`] that names the first column and the remedy.
pub(crate) fn require_same_columns(variable: &'static str, peer: &Peer) -> Result<(), ConfigError> {
    let of_parts = |what: &'static str| Part::ALL.map(|part| format!("{}_{what}", part.name()));
    let mut ours: Vec<String> = COLUMNS.iter().map(|column| column.name.clone()).collect();
    ours.extend(of_parts("version").into_iter().chain(of_parts("changed_at")));
    ours.extend(["session_id".to_owned(), "complete".to_owned()]);
    let refuse = |problem: String| Err(ConfigError { variable, problem });
    let name = &peer.name;
    if let Some(column) = ours.iter().find(|column| !peer.columns.contains(column)) {
        return refuse(format!(
            "names {name}, whose table measurements has no column {column}: run `backfill \
                migrate` there"
        ));
    }
    if let Some(column) = peer.columns.iter().find(|column| !ours.contains(column)) {
        return refuse(format!(
            "names {name}, whose table measurements has the column {column}, which this version \
             does not know and would lose: use the backfill of its version"
        ));
    }
    Ok(())
}

impl<'a> Rows<'a> {
    /// Starts after this session.
    pub(crate) fn new(
        peer: &'a Peer,
        ours: &'a Database,
        since: Option<OffsetDateTime>,
        after: String,
        max_rate: Option<u32>,
        dry_run: bool,
    ) -> Self {
        // No more than a second's worth at once.
        let most = max_rate.map_or(BATCH_SESSIONS, |rate| BATCH_SESSIONS.min(rate as usize));
        Self {
            peer,
            ours,
            since,
            dry_run,
            rate: Rate::new(max_rate),
            most,
            page: Pace::new(most),
            asked: Pace::new(most),
            whole: Pace::new(most),
            last: after,
            at_end: false,
            candidates: VecDeque::new(),
        }
    }

    /// How many rows there are to read, or an estimate of all if counting takes too long.
    ///
    /// # Errors
    /// If the peer cannot be read.
    pub(crate) async fn count(&self) -> anyhow::Result<u64> {
        statement::count_rows(&self.peer.database, "count the rows of the peer", &self.last).await
    }

    /// The next step; `None` at the end.
    ///
    /// # Errors
    /// If a database stays away.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Step>> {
        if self.at_end && self.candidates.is_empty() {
            return Ok(None);
        }
        let mut step = Step::default();
        if !self.at_end && !self.has_batch() {
            step.found = self.read_page().await?;
        }
        if self.has_batch() || (self.at_end && !self.candidates.is_empty()) {
            let batch = self.take_batch();
            step.through = batch.last().map(|candidate| candidate.session_id.clone());
            self.read_whole(batch, &mut step).await?;
        }
        if self.candidates.is_empty() {
            step.through = Some(self.last.clone());
        }
        Ok(Some(step))
    }

    fn has_batch(&self) -> bool {
        let bytes: u64 = self.candidates.iter().map(|candidate| candidate.bytes).sum();
        self.candidates.len() >= self.most || bytes >= BATCH_BYTES
    }

    /// The first candidates that fit a batch, one at least.
    fn take_batch(&mut self) -> Vec<Candidate> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some(candidate) = self.candidates.front() {
            bytes += candidate.bytes;
            if batch.len() == self.most || (bytes > BATCH_BYTES && !batch.is_empty()) {
                break;
            }
            batch.extend(self.candidates.pop_front());
        }
        batch
    }

    /// Looks at the next rows, and adds those with something newer to the candidates.
    async fn read_page(&mut self) -> anyhow::Result<Found> {
        let Self { peer, last, since, page, .. } = self;
        let arguments = |limit| {
            let mut arguments = PgArguments::default();
            arguments.add(last.as_str())?;
            arguments.add(i64::try_from(limit)?)?;
            arguments.add(*since)?;
            Ok(arguments)
        };
        let reading = retry_transient("read the versions of the peer", async || {
            statement::page(&peer.database, page, NEXT.as_str(), arguments).await
        });
        let (_, rows) = reading.await?;
        let seen = rows.iter().map(seen).collect::<Result<Vec<_>, _>>()?;
        let Some(newest) = seen.last() else {
            self.at_end = true;
            return Ok(Found::default());
        };
        self.last.clone_from(&newest.session_id);
        self.rate.take(seen.len() as f64).await;
        self.compare(seen).await
    }

    /// Asks our database for the versions of these sessions, and keeps those of which some part is
    /// newer there.
    async fn compare(&mut self, page: Vec<Seen>) -> anyhow::Result<Found> {
        let mut found = Found { read: page.len() as u64, ..Found::default() };
        let changed: Vec<Seen> = page.into_iter().filter(|seen| seen.changed).collect();
        found.skipped = found.read - changed.len() as u64;
        let keys: Vec<&str> = changed.iter().map(|seen| seen.session_id.as_str()).collect();
        let ours = self.ours;
        let asking = statement::by_key("read our versions", &mut self.asked, &keys, async |keys| {
            read_model::versions_by_key(ours, keys, Deadline::NONE).await
        });
        let mut held: std::collections::HashMap<String, Versions> =
            asking.await?.into_iter().flatten().collect();
        for Seen { session_id, versions, bytes, .. } in changed {
            let held = held.remove(&session_id);
            let parts = newer_parts(&versions, held.as_ref());
            if parts > 0 {
                found.newer += 1;
                found.newer_parts += parts;
                if !self.dry_run {
                    self.candidates.push_back(Candidate { session_id, held, bytes });
                }
            }
        }
        Ok(found)
    }

    /// Reads the rows of a batch whole, and takes from them what is newer.
    async fn read_whole(&mut self, batch: Vec<Candidate>, step: &mut Step) -> anyhow::Result<()> {
        let keys: Vec<&str> = batch.iter().map(|candidate| candidate.session_id.as_str()).collect();
        let peer = &self.peer.database;
        let reading =
            statement::by_key("read rows of the peer", &mut self.whole, &keys, async |keys| {
                read_model::read_by_key(peer, keys, Deadline::NONE).await
            });
        for row in reading.await?.into_iter().flatten() {
            let session_id = row.session_id.clone();
            let place = batch.binary_search_by(|candidate| candidate.session_id.cmp(&session_id));
            let held = place.ok().and_then(|place| batch[place].held.as_ref());
            match newer_changes(row, held) {
                Ok(newer) => step.take(newer),
                Err(error) => step.unreadable.push((session_id, error.to_string())),
            }
        }
        Ok(())
    }
}

fn seen(row: &PgRow) -> Result<Seen, sqlx::Error> {
    let versions = [row.try_get(1)?, row.try_get(2)?, row.try_get(3)?].into();
    let bytes: i64 = row.try_get(5)?;
    Ok(Seen {
        session_id: row.try_get(0)?,
        versions,
        changed: row.try_get(4)?,
        bytes: bytes.unsigned_abs() + ROW_BYTES,
    })
}
