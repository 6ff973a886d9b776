//! One piece of a run in one invocation: what is known of it at the beginning, and what is recorded
//! at the end.

use anyhow::ensure;
use projector::database::DedicatedConnection;

use super::Reconciler;
use super::event::{FailedBatch, Range, Slice, Step};
use super::pieces::{self, Added, Kind, Named, Progress, piece_of};
use super::runs::{self, Run};
use crate::compare_tables::sums::{Size, Sums};
use crate::compare_tables::sweep::RowRange;
use crate::compare_tables::without_items::SeenParts;
use crate::items::slice_file::Found;
use crate::repair::file_lines::AddedLines;

/// A piece as the invocation found it.
pub(super) struct Recording {
    pub(super) run: Run,
    named: Named,
    /// Whether an earlier invocation has recorded something.
    is_known: bool,
    before: Progress,
}

impl Recording {
    /// That of a slice; `None` if it names no run.
    pub(super) async fn of_slice(
        context: &Reconciler,
        slice: &Slice,
    ) -> anyhow::Result<Option<Self>> {
        let Some(run) = slice.run else { return Ok(None) };
        let piece = format!("s3://{}/{}", slice.bucket, slice.key);
        let named = Named { run, piece, kind: Kind::Slice };
        Self::open(context, named, slice.repair).await.map(Some)
    }

    /// That of a range of rows, which must be one of those that the run was split into.
    pub(super) async fn of_range(context: &Reconciler, range: &Range) -> anyhow::Result<Self> {
        let kind = match range.step {
            Step::Count => Kind::Count,
            Step::Check => Kind::Check,
        };
        let named = Named { run: range.run, piece: piece_of(kind, &range.after), kind };
        let recording = Self::open(context, named, range.repair).await?;
        require_known(context, range).await?;
        Ok(recording)
    }

    /// That of an object of a bucket of failures; `None` if it names no run.
    pub(super) async fn of_failure(
        context: &Reconciler,
        batch: &FailedBatch,
    ) -> anyhow::Result<Option<Self>> {
        let Some(run) = batch.run else { return Ok(None) };
        let piece = format!("s3://{}/{}", batch.bucket, batch.failure);
        let named = Named { run, piece, kind: Kind::Failure };
        Self::open(context, named, Some(batch.repair)).await.map(Some)
    }

    async fn open(context: &Reconciler, named: Named, repair: Option<i64>) -> anyhow::Result<Self> {
        let database = &context.projector.database;
        let run = runs::read(database, (named.run, repair)).await?;
        let before = pieces::read(database, &named).await?;
        Ok(Self { run, named, is_known: before.is_some(), before: before.unwrap_or_default() })
    }

    /// The slice from where its last invocation has left it: its answer may have reached nobody.
    pub(super) fn resumed(&self, slice: Slice) -> Slice {
        let Progress { next, done, compared, differing, repaired, rejected, .. } = &self.before;
        let next = next.parse().unwrap_or_default();
        if !self.is_known || next < slice.next {
            return slice;
        }
        let [compared, differing, repaired, rejected] =
            [compared, differing, repaired, rejected].map(|count| count.unsigned_abs());
        Slice { next, done: *done, compared, differing, repaired, rejected, ..slice }
    }

    /// The keys of a slice's lines, from the first that is not added yet.
    pub(super) fn adding(&self) -> AddedLines {
        AddedLines { seen: self.seen(), end: self.before.added.parse().unwrap_or_default() }
    }

    /// No keys yet.
    pub(super) fn seen(&self) -> SeenParts {
        SeenParts::of(self.run.hashes(), Size::SHARED)
    }

    /// Records what a slice came to. `missing`: how many parts more no row holds.
    pub(super) async fn slice(
        self,
        connection: &mut DedicatedConnection,
        (slice, missing): (&Slice, u64),
        added: AddedLines,
        found: &Found,
    ) -> anyhow::Result<()> {
        let Self { named, before, .. } = self;
        let AddedLines { seen, end } = added;
        let after = Progress {
            next: slice.next.to_string(),
            added: end.to_string(),
            done: slice.done,
            compared: slice.compared.try_into()?,
            differing: slice.differing.try_into()?,
            missing: before.missing + i64::try_from(missing)?,
            repaired: slice.repaired.try_into()?,
            rejected: slice.rejected.try_into()?,
            ..before.clone()
        };
        let added = Added { sums: Some(seen.into_sums()), export_time: Some(found.export_time) };
        pieces::record(connection, &named, (&before, &after), added).await
    }

    /// The counts of an object by all calls: the answer of one may have reached nobody.
    pub(super) fn counted(&self, batch: FailedBatch) -> FailedBatch {
        let Progress { asked, repaired, .. } = &self.before;
        let (reread, repaired) = (asked.unsigned_abs(), repaired.unsigned_abs());
        let (reread, repaired) = (reread.max(batch.reread), repaired.max(batch.repaired));
        FailedBatch { reread, repaired, ..batch }
    }

    /// Records how far an object has come.
    pub(super) async fn failure(
        &mut self,
        connection: &mut DedicatedConnection,
        batch: &FailedBatch,
    ) -> anyhow::Result<()> {
        let repaired = batch.repaired.try_into()?;
        let after = Progress {
            next: batch.next.to_string(),
            done: batch.done,
            compared: batch.next.try_into()?,
            differing: repaired,
            repaired,
            asked: batch.reread.try_into()?,
            rejected: batch.rejected.try_into()?,
            ..self.before.clone()
        };
        pieces::record(connection, &self.named, (&self.before, &after), Added::default()).await?;
        self.before = after;
        Ok(())
    }

    /// An earlier call has deleted the object, and could not say so.
    pub(super) async fn gone(self, context: &Reconciler, repair: i64) -> anyhow::Result<()> {
        let Self { named, before, .. } = self;
        // Nothing is known of an object that somebody else has deleted.
        if before.done || before == Progress::default() {
            return Ok(());
        }
        let after = Progress { done: true, ..before.clone() };
        let mut connection = pieces::connect(context, Some(repair)).await?;
        pieces::record(&mut connection, &named, (&before, &after), Added::default()).await
    }

    /// How far a range has come.
    pub(super) fn before(&self) -> &Progress {
        &self.before
    }

    /// The rows of a range that are not settled.
    pub(super) fn rest(&self, range: &Range) -> RowRange {
        let next = &self.before.next;
        let after = if next.is_empty() { &range.after } else { next };
        RowRange { after: after.clone(), through: range.through.clone() }
    }

    /// Records what a range came to, and answers it.
    pub(super) async fn range(
        self,
        connection: &mut DedicatedConnection,
        range: Range,
        (after, sums): (Progress, Option<Sums>),
    ) -> anyhow::Result<Range> {
        let Self { named, before, .. } = self;
        let added = Added { sums, export_time: None };
        pieces::record(connection, &named, (&before, &after), added).await?;
        Ok(answer(range, &after))
    }
}

/// A range as its row says that it is.
pub(super) fn answer(range: Range, progress: &Progress) -> Range {
    let Progress { next, done, compared, asked, gone, removed, rejected, .. } = progress;
    let [rows, asked, gone, removed, rejected] =
        [compared, asked, gone, removed, rejected].map(|count| count.unsigned_abs());
    let next = if next.is_empty() { &range.after } else { next }.clone();
    Range { next, done: *done, rows, asked, gone, removed, rejected, ..range }
}

/// A range must be one of those that the run was split into: what is counted twice, or not at all,
/// would hide a part.
///
/// # Errors
/// If it is none of them.
async fn require_known(context: &Reconciler, range: &Range) -> anyhow::Result<()> {
    let known = pieces::ranges(&context.projector.database, range.run).await?;
    let own = RowRange { after: range.after.clone(), through: range.through.clone() };
    ensure!(
        known.contains(&own),
        "the range after {:?} is none of those that `ranges` has answered for run {}: send one of \
         them, with the step \"count\" or \"check\"",
        range.after,
        range.run
    );
    Ok(())
}
