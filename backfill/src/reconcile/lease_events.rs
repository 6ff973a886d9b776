//! The beginning and the end of a run: its row is written, and of a repair the lease is taken and
//! given up.

use anyhow::Context as _;
use projector::database::{Database, DedicatedConnection};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Reconciler;
use super::event::{Answer, Begin, End};
use super::runs;
use crate::advisory_lock::{self, Held, HeldByAnother};
use crate::repair::lease;
use crate::replay::coverage;
use crate::replay::source::Source;

/// Of a repair, takes the lock of repairs for a moment, sees that no lease lives, and writes the
/// lease; then the row of the run. A repeated call finds what an earlier one has written.
pub(super) async fn begin(context: &Reconciler, begin: Begin) -> anyhow::Result<Answer> {
    let Begin { owner, repair, source: _ } = begin;
    let database = &context.projector.database;
    if !repair {
        return run_of(&mut database.connect().await?, (&owner, None)).await;
    }
    if let Some(repair) = begun_by(database, &owner).await? {
        return run_of(&mut database.connect().await?, (&owner, Some(repair))).await;
    }
    let found = coverage::examine(&Source::new(&context.aws), &context.projector.tables).await?;
    found.readable()?;
    let since = found.newest_streams().filter_map(|(_, since)| since).max();
    let lock = advisory_lock::REPAIR.by("backfill reconcile");
    let mut lock = match Held::take(lock, database).await {
        Ok(lock) => lock,
        Err(error) if error.is::<HeldByAnother>() => {
            // An earlier try of the same call may have come first.
            let repair = begun_by(database, &owner).await?.ok_or(error)?;
            return run_of(&mut database.connect().await?, (&owner, Some(repair))).await;
        }
        Err(error) => return Err(error),
    };
    let row = lease::begin(lock.connection(), &owner, since)
        .await
        .context("cannot write the row of the repair")?;
    run_of(lock.connection(), (&owner, Some(row.id))).await
}

/// The repair that this owner has begun already, if its lease lives.
async fn begun_by(database: &Database, owner: &str) -> anyhow::Result<Option<i64>> {
    let standing = lease::standing(database).await.context("cannot read the table repairs")?;
    let own = standing.into_iter().find(|lease| lease.is_alive && lease.owner == owner);
    Ok(own.map(|lease| lease.id))
}

/// Begins the run of an owner, if it has not begun.
async fn run_of(
    connection: &mut DedicatedConnection,
    (owner, repair): (&str, Option<i64>),
) -> anyhow::Result<Answer> {
    let (run, started_at) = runs::begin(connection, owner, repair)
        .await
        .context("cannot write the row of the run in reconciliations")?;
    Ok(Answer::Begun { run, repair, started_at: text(started_at)? })
}

fn text(time: OffsetDateTime) -> anyhow::Result<String> {
    Ok(time.format(&Rfc3339)?)
}

/// Ends a run.
pub(super) async fn end(context: &Reconciler, end: End) -> anyhow::Result<Answer> {
    let mut connection = context.projector.database.connect().await?;
    let ended = runs::end(&mut connection, &end, &context.projector.tables).await?;
    tracing::info!(ended = serde_json::to_string(&ended)?, "the run has ended");
    Ok(Answer::Ended(ended))
}
