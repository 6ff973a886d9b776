//! `backfill objects`: compares the object of every row, and writes those that are missing or behind.
//!
//! For a bucket that was restored, emptied or replaced, and for rows whose records no stream holds any more.
//! It goes through the projector's own comparison, so that it may run beside live functions, and takes no
//! object back.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use futures_util::{StreamExt as _, stream};
use projector::apply::Counts;
use projector::archive::{Archive, Archived};
use projector::config::ConfigError;
use projector::database::Database;
use projector::error::{self, Consequence, Error};
use projector::measurement::Versions;
use projector::read_model::Upserted;

use crate::Outcome;
use crate::cli::{ObjectsArguments, Settings};
use crate::deliver::{DELIVERIES, pause_after};
use crate::progress::{Progress, note};
use crate::summary::{say, span};

/// So many sessions are compared between two reports.
const PAGE: i64 = 1_000;
/// How often an object is tried before it is left for the end, where others of its page pass.
const TRIES: u32 = 3;
/// So many sessions whose object could not be brought up are named.
const NAMED: usize = 20;

const COUNT: &str = "SELECT count(*) FROM measurements WHERE session_id > $1";
const NEXT: &str = "SELECT session_id, session_version, left_version, right_version
FROM measurements WHERE session_id > $1 ORDER BY session_id LIMIT $2";

/// A session, and what its row held when it was read.
type Held = (String, Versions);

pub(crate) async fn run(
    settings: &Settings,
    arguments: &ObjectsArguments,
) -> anyhow::Result<Outcome> {
    let projector = settings.config()?.projector().await?;
    let archive = projector.archive.as_ref().ok_or_else(|| ConfigError {
        variable: "ARCHIVE_BUCKET",
        problem: "is not set: it names the bucket whose objects are compared".to_owned(),
    })?;
    let start = Instant::now();
    let mut last = arguments.after.clone().unwrap_or_default();
    let rows = patiently("count the rows", || count(&projector.database, &last)).await?;
    let mut progress = Progress::start(rows.unsigned_abs());
    let mut counts = Counts::default();
    let mut left = Vec::new();
    loop {
        let page = compare_page(archive, &projector.database, &last, &mut counts, &mut left);
        let page = page.await.with_context(|| {
            let after = if last.is_empty() { String::new() } else { format!(" --after '{last}'") };
            format!("stopped; `backfill objects{after}` goes on from here")
        })?;
        let Some((newest, sessions)) = page else { break };
        last = newest;
        counts.records += sessions;
        progress.advance(sessions, &counts);
    }
    // What was wrong with them may have passed.
    let left = bring_up(archive, &projector.database, left, &mut counts).await?;
    drop(progress);
    let duration = span(start.elapsed().max(Duration::from_secs(1)));
    say!("done: {} rows compared in {duration}", counts.records);
    for (name, count, meaning) in [
        ("objects written", counts.objects_written, "missing, or behind their rows"),
        ("objects current", counts.objects_current, "held the row already"),
    ] {
        say!("  {name:<16}{count:>10}  {meaning}");
    }
    if left.is_empty() {
        return Ok(Outcome::Done);
    }
    let named: Vec<&str> =
        left.iter().take(NAMED).map(|(session_id, _)| session_id.as_str()).collect();
    let more = if left.len() > NAMED { ", ..." } else { "" };
    bail!(
        "{} objects could not be brought up, the log above says why: those of {}{more}; all others are",
        left.len(),
        named.join(", ")
    )
}

/// Brings the objects of the sessions behind this one up, and gives the last of them and how many they are;
/// `None` where there are none. What cannot be brought up while others can is left.
async fn compare_page(
    archive: &Archive,
    database: &Database,
    after: &str,
    counts: &mut Counts,
    left: &mut Vec<Held>,
) -> anyhow::Result<Option<(String, u64)>> {
    let page = patiently("read the rows", || next(database, after)).await?;
    let Some((newest, _)) = page.last() else { return Ok(None) };
    let (newest, sessions) = (newest.clone(), page.len());
    let mut failed = bring_up(archive, database, page, counts).await?;
    for delivery in TRIES..DELIVERIES {
        // S3 is away: there is no use in going on to the next page.
        if failed.len() < sessions {
            break;
        }
        tokio::time::sleep(pause_after(delivery)).await;
        failed = bring_up(archive, database, failed, counts).await?;
    }
    if failed.len() == sessions && sessions > 1 {
        bail!("no object could be compared or written for some minutes, the log above says why");
    }
    left.append(&mut failed);
    Ok(Some((newest, sessions as u64)))
}

/// Waits out what passes: a failover, a restart.
async fn patiently<T, F: Future<Output = Result<T, Error>>>(
    what: &str,
    mut ask: impl FnMut() -> F,
) -> anyhow::Result<T> {
    let mut failures = 0;
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error)
                if error.consequence() == Consequence::Retry && failures + 1 < DELIVERIES =>
            {
                failures += 1;
                let pause = pause_after(failures);
                note(&format!(
                    "cannot {what} ({}); again in {} s",
                    error::chain(&error),
                    pause.as_secs()
                ));
                tokio::time::sleep(pause).await;
            }
            Err(error) => return Err(error).with_context(|| format!("cannot {what}")),
        }
    }
}

async fn count(database: &Database, after: &str) -> Result<i64, Error> {
    let mut connection = database.connect().await?;
    sqlx::query_scalar(COUNT).bind(after).fetch_one(&mut connection).await.map_err(Error::Database)
}

/// Over a connection of its own: one that is held for hours does not outlive a failover.
async fn next(database: &Database, after: &str) -> Result<Vec<Held>, Error> {
    let mut connection = database.connect().await?;
    let rows: Vec<Row> = sqlx::query_as(NEXT)
        .bind(after)
        .bind(PAGE)
        .fetch_all(&mut connection)
        .await
        .map_err(Error::Database)?;
    Ok(rows.into_iter().map(|(id, session, left, right)| (id, [session, left, right])).collect())
}

type Row = (String, Option<String>, Option<String>, Option<String>);

/// Brings the objects of these sessions up, and gives those that failed in passing [`TRIES`] times.
async fn bring_up(
    archive: &Archive,
    database: &Database,
    mut sessions: Vec<Held>,
    counts: &mut Counts,
) -> anyhow::Result<Vec<Held>> {
    for tries in 1..=TRIES {
        let mut answers = stream::iter(sessions)
            .map(|(session_id, held)| async {
                // As if a batch had found the row as it is.
                let upserted = Upserted::Held(held.clone());
                let archived = archive.bring_up(database, &session_id, upserted).await;
                ((session_id, held), archived)
            })
            .buffer_unordered(archive.concurrency());
        let mut failed = Vec::new();
        while let Some((session, archived)) = answers.next().await {
            match archived {
                Ok(Archived::Written) => counts.objects_written += 1,
                Ok(Archived::Current) => counts.objects_current += 1,
                Err(error) if error.consequence() == Consequence::Fatal => return Err(error.into()),
                Err(error) => {
                    tracing::warn!(error = error::chain(&error), "not compared");
                    failed.push(session);
                }
            }
        }
        drop(answers);
        sessions = failed;
        if sessions.is_empty() {
            break;
        }
        if tries < TRIES {
            tokio::time::sleep(pause_after(tries)).await;
        }
    }
    Ok(sessions)
}
