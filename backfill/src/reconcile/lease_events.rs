//! The beginning and the end of a repair by slices: its lease is taken, and given up.

use anyhow::Context as _;
use projector::bind;
use projector::database::Database;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Reconciler;
use super::event::{Answer, Begin, End};
use crate::advisory_lock::{self, Held, HeldByAnother};
use crate::repair::lease::{self, Counted};
use crate::replay::coverage;
use crate::replay::source::Source;

/// Takes the lock of repairs for a moment, sees that no lease lives, and writes the lease.
pub(super) async fn begin(context: &Reconciler, begin: Begin) -> anyhow::Result<Answer> {
    let Begin { owner, repair, source: _ } = begin;
    let database = &context.projector.database;
    if !repair {
        let mut connection = database.connect().await?;
        let (now,): (OffsetDateTime,) =
            connection.fetch_one("SELECT clock_timestamp()", bind![]).await?;
        return Ok(Answer::Begun { repair: None, started_at: text(now)? });
    }
    if let Some(begun) = begun_by(database, &owner).await? {
        return Ok(begun);
    }
    let found = coverage::examine(&Source::new(&context.aws), &context.projector.tables).await?;
    found.readable()?;
    let since = found.newest_streams().filter_map(|(_, since)| since).max();
    let lock = advisory_lock::REPAIR.by("backfill reconcile");
    let mut lock = match Held::take(lock, database).await {
        Ok(lock) => lock,
        Err(error) if error.is::<HeldByAnother>() => {
            // An earlier try of the same call may have come first.
            return begun_by(database, &owner).await?.ok_or(error);
        }
        Err(error) => return Err(error),
    };
    let row = lease::begin(lock.connection(), &owner, since)
        .await
        .context("cannot write the row of the repair")?;
    Ok(Answer::Begun { repair: Some(row.id), started_at: text(row.started_at)? })
}

/// The repair that this owner has begun already, if its lease lives.
async fn begun_by(database: &Database, owner: &str) -> anyhow::Result<Option<Answer>> {
    let standing = lease::standing(database).await.context("cannot read the table repairs")?;
    let own = standing.into_iter().find(|lease| lease.is_alive && lease.owner == owner);
    let begun = own.map(|lease| {
        let started_at = text(lease.started_at)?;
        Ok(Answer::Begun { repair: Some(lease.id), started_at })
    });
    begun.transpose()
}

fn text(time: OffsetDateTime) -> anyhow::Result<String> {
    Ok(time.format(&Rfc3339)?)
}

/// Ends the row of a repair.
pub(super) async fn end(context: &Reconciler, end: End) -> anyhow::Result<Answer> {
    let End { repair, owner, complete, compared, differing, repaired, rejected } = end;
    let mut connection = context.projector.database.connect().await?;
    let counted = Counted { complete, candidates: differing, written: repaired };
    lease::end(&mut connection, (repair, &owner), counted).await?;
    tracing::info!(repair, complete, compared, differing, repaired, rejected, "repair ended");
    Ok(Answer::Ended { repair, complete })
}
