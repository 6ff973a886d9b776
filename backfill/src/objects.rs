//! `backfill objects`: compares the object of every row, and writes those that are missing or behind.
//!
//! For a bucket that was restored, emptied or replaced, and for rows whose records no stream holds any more.
//! It goes through the projector's own comparison, so that it may run beside live functions, and takes no
//! object back.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use futures_util::{StreamExt as _, stream};
use projector::apply::{Counts, Pace, Reconciled, reconcile_row};
use projector::archive::Archive;
use projector::config::ConfigError;
use projector::database::Database;
use projector::error::{self, Consequence, Error};
use projector::measurement::Versions;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::{Arguments as _, Row as _};

use crate::Outcome;
use crate::cli::{ObjectsArguments, Settings};
use crate::deliver::{DELIVERIES, pause_after};
use crate::progress::Progress;
use crate::statement::{self, retry_transient};
use crate::stop::Stop;
use crate::summary::{say, span};

/// So many sessions are compared between two reports.
const PAGE: usize = 1_000;
/// How often an object is tried before it is left for the end, where others of its page pass.
const TRIES: u32 = 3;
/// After more pages of one session in a row that failed, S3 is away.
const PAGES_IN_VAIN: u32 = 2;
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
    _stop: &Stop,
) -> anyhow::Result<Outcome> {
    let projector = settings.config()?.projector_with_credentials().await?;
    let archive = projector.archive.as_ref().ok_or_else(|| ConfigError {
        variable: "ARCHIVE_BUCKET",
        problem: "is not set: it names the bucket whose objects are compared".to_owned(),
    })?;
    let start = Instant::now();
    let mut last = arguments.after.clone().unwrap_or_default();
    let after = || {
        let mut arguments = PgArguments::default();
        arguments.add(last.as_str())?;
        Ok(arguments)
    };
    let rows = retry_transient("count the rows", async || {
        statement::count(&projector.database, "measurements", COUNT, after).await
    });
    let mut progress = Progress::start(rows.await?);
    let mut counts = Counts::default();
    let mut left = Vec::new();
    let (mut pace, mut pages_in_vain) = (Pace::new(PAGE), 0);
    loop {
        let database = &projector.database;
        let comparing = compare_page(
            archive,
            database,
            &last,
            &mut pace,
            &mut counts,
            &mut left,
            &mut pages_in_vain,
        );
        let compared = comparing.await.with_context(|| {
            let after = if last.is_empty() { String::new() } else { format!(" --after '{last}'") };
            format!("stopped; `backfill objects{after}` goes on from here")
        })?;
        let Some((newest, sessions)) = compared else { break };
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
    pace: &mut Pace,
    counts: &mut Counts,
    left: &mut Vec<Held>,
    pages_in_vain: &mut u32,
) -> anyhow::Result<Option<(String, u64)>> {
    let rows = retry_transient("read the rows", async || next(database, after, pace).await).await?;
    let Some((newest, _)) = rows.last() else { return Ok(None) };
    let (newest, sessions) = (newest.clone(), rows.len());
    let mut failed = bring_up(archive, database, rows, counts).await?;
    for delivery in TRIES..DELIVERIES {
        // S3 is away: there is no use in going on to the next page.
        if failed.len() < sessions {
            break;
        }
        tokio::time::sleep(pause_after(delivery)).await;
        failed = bring_up(archive, database, failed, counts).await?;
    }
    // One session alone may be at fault itself: a slow database gives pages of one.
    *pages_in_vain = if failed.len() == sessions { *pages_in_vain + 1 } else { 0 };
    if *pages_in_vain > 0 && (sessions > 1 || *pages_in_vain > PAGES_IN_VAIN) {
        bail!("no object could be compared or written for some minutes, the log above says why");
    }
    left.append(&mut failed);
    Ok(Some((newest, sessions as u64)))
}

async fn next(database: &Database, after: &str, pace: &mut Pace) -> Result<Vec<Held>, Error> {
    let arguments = |limit| {
        let mut arguments = PgArguments::default();
        arguments.add(after)?;
        arguments.add(i64::try_from(limit)?)?;
        Ok(arguments)
    };
    let (_, rows) = statement::page(database, pace, NEXT, arguments).await?;
    rows.iter().map(held).collect::<Result<_, _>>().map_err(Error::Database)
}

fn held(row: &PgRow) -> Result<Held, sqlx::Error> {
    Ok((row.try_get(0)?, [row.try_get(1)?, row.try_get(2)?, row.try_get(3)?]))
}

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
                let done = reconcile_row(database, archive, &session_id, held.clone()).await;
                ((session_id, held), done)
            })
            .buffer_unordered(archive.concurrency());
        let mut failed = Vec::new();
        while let Some((session, done)) = answers.next().await {
            match done {
                Ok(Reconciled::Written) => counts.objects_written += 1,
                Ok(Reconciled::UpToDate) => counts.objects_current += 1,
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
