//! The keys of a range of rows are subtracted from the sums of the run, as many as an invocation
//! has time for.

use projector::deadline::Deadline;
use time::OffsetDateTime;
use tokio::time::Instant;

use super::Reconciler;
use super::event::{Answer, Range};
use super::pieces::{self, Progress};
use super::recording::{Recording, answer};
use super::slice::Times;
use crate::compare_tables::look::Looker;
use crate::compare_tables::without_items::Rows;

pub(super) async fn run(
    context: &Reconciler,
    range: Range,
    deadline: Deadline,
) -> anyhow::Result<Answer> {
    let times = Times::until(deadline);
    let recording = Recording::of_range(context, &range).await?;
    if recording.before().done {
        return Ok(Answer::Range(answer(range, recording.before())));
    }
    let looker = looker(context, recording.run.started_at).await?;
    let recent_since = recording.run.recent_since();
    let rows = Rows { looker: &looker, recent_since, range: recording.rest(&range) };
    let mut adding_up = recording.seen().add_up(rows);
    let mut after = recording.before().clone();
    // A page takes seconds at the most.
    let until = times.end - (times.end - times.start) / 4;
    while Instant::now() < until {
        match adding_up.next().await? {
            Some(rows) => {
                after.compared += i64::try_from(rows.count)?;
                after.next = rows.through;
            }
            None => {
                after.done = true;
                break;
            }
        }
    }
    let after = Progress { added: after.next.clone(), ..after };
    let mut connection = pieces::connect(context, range.repair).await?;
    let sums = Some(adding_up.into_sums());
    let range = recording.range(&mut connection, range, (after, sums)).await?;
    let Range { done, next, rows, .. } = &range;
    tracing::info!(done, next, rows, "rows are added up");
    Ok(Answer::Range(range))
}

/// Both sides, as every invocation of a run that began at this time looks at them.
pub(super) async fn looker(
    context: &Reconciler,
    started: OffsetDateTime,
) -> anyhow::Result<Looker<'_>> {
    let api = &context.api;
    let ttl_attributes = api.ttl_attributes(context.projector.ttl_removals).await?;
    Ok(Looker { database: &context.connections.source, api, ttl_attributes, started })
}
