//! The rows of a range that may hold a part whose item is gone: what the sums of the run leave is
//! asked for by key. A repair removes what has no item, through the code of `backfill repair`; a
//! comparison counts what persists.

use anyhow::{bail, ensure};
use projector::deadline::Deadline;
use tokio::time::Instant;

use super::compare::{Looked, look_until_settled, looked_until, wait};
use super::count::looker;
use super::event::{Answer, Range};
use super::pieces::{self, Progress};
use super::recording::{Recording, answer};
use super::slice::{Times, may_begin, read_until, until};
use super::{Reconciler, compare};
use crate::advisory_lock::{self, Held};
use crate::compare_tables::sums::Suspects;
use crate::compare_tables::verdict::Verdict;
use crate::compare_tables::without_items::{Rows, Suspected};
use crate::console;
use crate::repair::conduct;
use crate::repair::lines::Lines;
use crate::repair::range_keys::RangeKeys;
use crate::repair::run::{Limits, Repair};
use crate::repair::source::Source;
use crate::repair::streams::{Followed, Streams};
use crate::repair::tally::Tally;
use crate::verify::difference::Kind;
use crate::verify::tables::pending::AllPending;

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
    let database = &context.projector.database;
    let undone = pieces::undone(database, range.run).await?;
    ensure!(
        undone == 0,
        "{undone} slices and ranges of run {} are not done with: call each of them until it \
         answers done, and the ranges with the step \"check\" after that",
        range.run
    );
    let suspects = pieces::sums(database, range.run).await?.suspects();
    if suspects.is_empty() {
        let after = Progress { done: true, ..recording.before().clone() };
        let mut connection = pieces::connect(context, range.repair).await?;
        let range = recording.range(&mut connection, range, (after, None)).await?;
        return Ok(Answer::Range(range));
    }
    tracing::info!(suspects = suspects.describe(), "rows may hold parts whose items are gone");
    let checking = Checking { context, recording, range, suspects, times };
    let range = match checking.range.repair {
        Some(repair) => Box::pin(checking.repaired(repair)).await?,
        None => Box::pin(checking.compared()).await?,
    };
    let Range { done, next, rows, asked, gone, removed, .. } = &range;
    tracing::info!(done, next, rows, asked, gone, removed, "rows are checked");
    Ok(Answer::Range(range))
}

/// A range of which something is suspected.
struct Checking<'a> {
    context: &'a Reconciler,
    recording: Recording,
    range: Range,
    suspects: Suspects,
    times: Times,
}

impl Checking<'_> {
    /// Counts what differs and goes on to.
    async fn compared(self) -> anyhow::Result<Range> {
        let Self { context, recording, range, suspects, times } = self;
        let looker = looker(context, recording.run.started_at).await?;
        let recent_since = recording.run.recent_since();
        let rows = Rows { looker: &looker, recent_since, range: recording.rest(&range) };
        let mut suspected = Suspected::among(rows, recording.run.hashes(), suspects);
        let mut after = recording.before().clone();
        let mut pending = AllPending::default();
        let mut is_between_pages = true;
        while !is_between_pages || Instant::now() < looked_until(times) {
            let Some(checked) = suspected.next().await? else {
                after.done = true;
                break;
            };
            after.asked += i64::try_from(checked.asked)?;
            for look in checked.looks {
                if let Verdict::Differs(kind, detail) = &look.verdict {
                    let (kind, detail) = (*kind, detail.clone());
                    pending.add(look, kind, detail);
                }
            }
            is_between_pages = checked.rows.is_some();
            if let Some(rows) = checked.rows {
                after.compared += i64::try_from(rows.count)?;
                after.next = rows.through;
                if pending.len() >= compare::PENDING_AT_MOST {
                    let some = std::mem::take(&mut pending);
                    after.add(&look_until_settled(&looker, some, wait(times)).await?)?;
                }
            }
        }
        after.add(&look_until_settled(&looker, pending, wait(times)).await?)?;
        let mut connection = pieces::connect(context, None).await?;
        recording.range(&mut connection, range, (after, None)).await
    }

    /// Repairs what differs.
    async fn repaired(self, repair: i64) -> anyhow::Result<Range> {
        let Self { context, recording, range, suspects, times } = self;
        let function_timeout = context.waits.function_timeout;
        let read_until = read_until(times, function_timeout)?;
        let begins = may_begin(context, repair, None, times.end).await?;
        if !begins || Instant::now() >= read_until {
            return Ok(answer(range, recording.before()));
        }
        let (projector, database) = (&context.projector, &context.projector.database);
        let lock = advisory_lock::of_slice(repair, &format!("the rows after {:?}", range.after));
        let lock = Held::take_over(lock, repair, database).await?;
        let mut looker = conduct::looker(projector, &context.api, &context.connections).await?;
        looker.first.started = recording.run.started_at;
        let recent_since = recording.run.recent_since();
        let rows = Rows { looker: &looker.first, recent_since, range: recording.rest(&range) };
        let suspected = Suspected::among(rows, recording.run.hashes(), suspects);
        let keys = RangeKeys::new(suspected, read_until);
        let streams = Streams::Followed(Followed::new(database, repair));
        let function_timeout = time::Duration::try_from(function_timeout)?;
        let limits = Limits { function_timeout, max_rate: None };
        let progress = console::Progress::start(0);
        let mut running = Repair::new(&looker, projector, (lock, streams), limits, progress)
            .of_lines(Lines::from(0));
        until(times.end, &mut running, Source::Range(keys)).await?;
        let Repair { tally, lines, mut lock, .. } = running;
        let lines = lines.unwrap_or_default();
        let after = recording.before().clone().after_repair(&tally, &lines)?;
        if !after.done && after == *recording.before() {
            ensure!(
                tally.candidates > 0,
                "the rows after {:?}: none of them could be read in time. Set the timeout of this \
                 function to more, and call the range again",
                recording.rest(&range).after
            );
            bail!(
                "the rows after {:?}: the first part without an item could not be settled within \
                 this invocation ({}). Fix the cause, and call the range again",
                recording.rest(&range).after,
                tally.why_unsettled()
            );
        }
        recording.range(lock.connection(), range, (after, None)).await
    }
}

impl Progress {
    /// Counts parts that were looked at until they were settled.
    fn add(&mut self, looked: &Looked) -> anyhow::Result<()> {
        let of = |kind: Kind| looked.differences.iter().filter(|found| found.kind == kind).count();
        self.differing += i64::try_from(looked.differences.len())?;
        self.gone += i64::try_from(of(Kind::Extra))?;
        self.missing += i64::try_from(of(Kind::Missing))?;
        self.rejected += i64::try_from(looked.malformed)?;
        Ok(())
    }

    /// What a repair of some rows came to.
    fn after_repair(self, tally: &Tally, lines: &Lines) -> anyhow::Result<Self> {
        let (removed, written) = (i64::try_from(tally.removed)?, i64::try_from(tally.written)?);
        let (rows, asked) = lines.rows();
        Ok(Self {
            next: lines.through().map_or(self.next, str::to_owned),
            done: lines.is_done(),
            compared: self.compared + i64::try_from(rows)?,
            differing: self.differing + removed + written,
            repaired: self.repaired + removed + written,
            asked: self.asked + i64::try_from(asked)?,
            gone: self.gone + removed,
            removed: self.removed + removed,
            rejected: self.rejected + i64::try_from(lines.rejected())?,
            ..self
        })
    }
}
