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
use projector::read_model::{Standing, Upserted};
use sqlx::PgConnection;

use crate::Outcome;
use crate::cli::{ObjectsArguments, Settings};
use crate::deliver::{DELIVERIES, pause_after};
use crate::progress::{Progress, note};
use crate::summary::{say, span};

/// So many sessions are compared between two reports.
const PAGE: i64 = 1_000;

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
    let mut connection = projector.database.connect().await?;
    let mut last = arguments.after.clone().unwrap_or_default();
    let rows: i64 = sqlx::query_scalar(COUNT)
        .bind(&last)
        .fetch_one(&mut connection)
        .await
        .map_err(Error::Database)
        .context("cannot count the rows")?;
    let mut progress = Progress::start(rows.unsigned_abs());
    let mut counts = Counts::default();
    loop {
        let page = next(&mut connection, &last).await?;
        let Some((newest, _)) = page.last() else { break };
        let newest = newest.clone();
        let sessions = page.len() as u64;
        bring_up(archive, &projector.database, page, &mut counts).await.with_context(|| {
            let resume = if last.is_empty() { String::new() } else { format!(" --after '{last}'") };
            format!("stopped; `backfill objects{resume}` goes on from here")
        })?;
        counts.records += sessions;
        last = newest;
        progress.advance(sessions, &counts);
    }
    drop(progress);
    say!(
        "done: {} rows compared in {}",
        counts.records,
        span(start.elapsed().max(Duration::from_secs(1)))
    );
    say!(
        "  {:<16}{:>10}  missing, or behind their rows",
        "objects written",
        counts.objects_written
    );
    say!("  {:<16}{:>10}  held the row already", "objects current", counts.objects_current);
    Ok(Outcome::Done)
}

async fn next(connection: &mut PgConnection, after: &str) -> anyhow::Result<Vec<Held>> {
    type Row = (String, Option<String>, Option<String>, Option<String>);
    let rows: Vec<Row> = sqlx::query_as(NEXT)
        .bind(after)
        .bind(PAGE)
        .fetch_all(connection)
        .await
        .map_err(Error::Database)
        .context("cannot read the rows")?;
    Ok(rows.into_iter().map(|(id, session, left, right)| (id, [session, left, right])).collect())
}

/// Brings the objects of these sessions up, those that fail in passing again and again.
async fn bring_up(
    archive: &Archive,
    database: &Database,
    mut sessions: Vec<Held>,
    counts: &mut Counts,
) -> anyhow::Result<()> {
    for delivery in 1..=DELIVERIES {
        let mut answers = stream::iter(sessions)
            .map(|(session_id, held)| async {
                // As if a batch had found the row as it is.
                let upserted = Upserted { held: held.clone(), standing: Standing::Held };
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
                    tracing::warn!(error = error::chain(&error), "not compared, will be again");
                    failed.push(session);
                }
            }
        }
        drop(answers);
        if failed.is_empty() {
            return Ok(());
        }
        sessions = failed;
        if delivery < DELIVERIES {
            let pause = pause_after(delivery);
            note(&format!(
                "{} objects could not be compared or written (see the log above); again in {} s",
                sessions.len(),
                pause.as_secs()
            ));
            tokio::time::sleep(pause).await;
        }
    }
    bail!(
        "{} objects could still not be compared or written after {DELIVERIES} tries",
        sessions.len()
    )
}
