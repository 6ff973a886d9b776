//! One shard, page by page, from its checkpoint to its end or to the cutoff.
//!
//! A reader holds next to nothing between its calls: how many pages are in memory is bounded by the
//! permits, one per call of `GetRecords`, which a page keeps until it is part of a batch. The order
//! of a shard's records is that of its pages in the channel.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use aws_sdk_dynamodbstreams::operation::get_records::GetRecordsOutput;
use aws_sdk_dynamodbstreams::types::{Record, ShardIteratorType};
use time::OffsetDateTime;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::aws_calls::CallError;
use crate::replay::context::{IfLost, ReplayContext, StreamRun};
use crate::replay::page::{Message, Page, ShardStatus};
use crate::replay::position::{
    CREATION_SLACK, Evidence, Lost, Missing, Position, can_be_lost, judge_missing,
};
use crate::replay::record::lambda_json;
use crate::replay::source::{ShardName, made_at};
use crate::replay::tip::EmptyPages;

/// Maximum consecutive iterators that gave no answer.
const MAX_ITERATOR_ATTEMPTS: u32 = 16;
/// A refusal may pass: the horizon moves on between the call for an iterator and the call that uses
/// it, a shard may be listed before it can be read, and an answer may simply be wrong. It is asked
/// again this often, with pauses that double to 15 seconds in all.
const MAX_REFUSALS: u32 = 7;
/// The same if the record after which it is to go on is trimmed, which the API says with certainty.
const MAX_TRIMMED_REFUSALS: u32 = 3;
const FIRST_REFUSAL_PAUSE: Duration = Duration::from_millis(250);
/// How often the checkpoint of a quiet shard is renewed while it is followed.
pub(crate) const CHECKPOINT_EVERY: time::Duration = time::Duration::minutes(10);

/// How a shard's reading ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ReadOutcome {
    /// Nothing more of it can be read: its end was reached, here, or the rest is trimmed away. Its
    /// children may start.
    Finished(Position),
    /// A record from after the cutoff has been read.
    PastCutoff,
    /// It returned only empty pages for long enough. If it turns out to be closed, it is read on
    /// from here, to its end.
    AssumedCaughtUp(Position),
    /// Only a child named it, and it is not there.
    NotThere,
}

/// What is known of a shard before it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// It may go on: nothing showed its end.
    Open,
    /// `DescribeStream` showed its end: it is read until that end, never assumed to be caught up.
    Closed,
    /// Only a child of it names it: trimmed away, as a rule, or left out of the listing by mistake.
    AsParent,
}

/// One shard's reading.
pub(crate) struct ShardReader {
    context: Arc<ReplayContext>,
    run: Arc<StreamRun>,
    shard: Arc<str>,
    known: Known,
    position: Position,
    /// Since when no change of the shard and its ancestors is missing, if that is known.
    complete_since: Option<OffsetDateTime>,
    messages: mpsc::Sender<Message>,
    next: Next,
    empty_pages: EmptyPages,
    at_cutoff: bool,
    /// Up to when the collector knows it to be read.
    reported_through: Option<OffsetDateTime>,
    /// Up to when its checkpoint says so.
    checkpointed_through: Option<OffsetDateTime>,
    /// A page has been read.
    opened: bool,
    /// Something is known from before this run: a snapshot, a checkpoint, or one of the parent.
    /// Without such a baseline nothing says that what is trimmed matters.
    has_baseline: bool,
    /// How often in a row it was refused.
    refusals: u32,
}

/// Where the next call reads.
#[derive(Debug)]
enum Next {
    /// At an iterator that is still to be asked for, at the position: there was none yet, or it was
    /// lost.
    Ask,
    /// At this iterator, which the last page gave.
    At(String),
    /// Nowhere: the last page gave no iterator, so the shard is closed and read to its end.
    End,
}

/// A call that was answered or refused.
enum NextPage {
    Read(Vec<Vec<u8>>),
    /// Ask again after a pause.
    Refused(Duration),
    /// The shard cannot be found, however often it is asked for.
    Missing,
    /// It begins behind what is trimmed, always.
    TrimmedAway,
}

impl ShardReader {
    pub(crate) fn new(
        context: Arc<ReplayContext>,
        run: Arc<StreamRun>,
        (shard, known): (String, Known),
        (position, complete_since): (Position, Option<OffsetDateTime>),
        messages: mpsc::Sender<Message>,
    ) -> Self {
        let has_baseline = context.baseline.is_some() || position.read_through.is_some();
        Self {
            context,
            run,
            shard: Arc::from(shard),
            known,
            reported_through: position.read_through,
            checkpointed_through: position.read_through,
            position,
            complete_since,
            messages,
            next: Next::Ask,
            empty_pages: EmptyPages::default(),
            at_cutoff: false,
            opened: false,
            has_baseline,
            refusals: 0,
        }
    }

    /// Reads the shard.
    ///
    /// # Errors
    /// [`Lost`] if records were trimmed that matter; what the API refuses.
    pub(crate) async fn read(mut self) -> anyhow::Result<ReadOutcome> {
        loop {
            let permit = Arc::clone(&self.context.permits).acquire_owned().await;
            let permit = permit.expect("the semaphore is never closed");
            // Boxed: the SDK's futures are large, and there may be thousands of readers.
            match Box::pin(self.next_page()).await? {
                NextPage::Read(records) => {
                    if let Some(outcome) = self.take_page(records, permit).await {
                        return Ok(outcome);
                    }
                    if let Some(pause) = self.empty_pages.pause() {
                        tokio::time::sleep(pause).await;
                    }
                }
                NextPage::Refused(pause) => {
                    // Others may read meanwhile.
                    drop(permit);
                    tokio::time::sleep(pause).await;
                }
                NextPage::TrimmedAway if self.is_unseen() => return Ok(ReadOutcome::NotThere),
                NextPage::TrimmedAway => return Ok(self.trimmed_away().await),
                NextPage::Missing => {
                    drop(permit);
                    return self.missing().await;
                }
            }
        }
    }

    /// Passes a page on, and says how the reading ended, if it did.
    async fn take_page(
        &mut self,
        records: Vec<Vec<u8>>,
        permit: OwnedSemaphorePermit,
    ) -> Option<ReadOutcome> {
        let now = Instant::now();
        self.empty_pages.page(records.is_empty(), now);
        let ended = matches!(self.next, Next::End);
        let had_records = self.position.sequence_number.is_some();
        let wait = if had_records { self.context.idle } else { self.context.first_record };
        let idle = self.known == Known::Open && !ended && self.empty_pages.enough(wait, now);
        let cutoff = self.context.cutoff;
        let passed =
            self.position.last_created.is_some_and(|newest| newest > cutoff + CREATION_SLACK);
        if idle {
            self.position.through(cutoff);
            if self.context.follow {
                self.position.through(OffsetDateTime::now_utc() - wait);
            }
        }
        self.update_assumed(idle, passed || ended || !records.is_empty(), had_records);
        // A quiet shard is read up to later and later: its checkpoint must say so before the day is
        // over.
        let due = |told: Option<OffsetDateTime>, every| {
            idle && self.position.read_through > told.map(|told| told + every)
        };
        let checkpoint_due = due(self.checkpointed_through, CHECKPOINT_EVERY);
        let report_due = due(self.reported_through, self.context.report_every);
        let reaches_cutoff = !self.at_cutoff && (idle || passed);
        self.at_cutoff |= reaches_cutoff;
        let status = match (ended, self.at_cutoff) {
            (true, _) => ShardStatus::Finished,
            (false, true) => ShardStatus::AtCutoff,
            (false, false) => ShardStatus::Behind,
        };
        if ended {
            self.run.shards.children_not_listed.fetch_add(1, Ordering::SeqCst);
        }
        let checkpoint = !records.is_empty() || reaches_cutoff || checkpoint_due || ended;
        if checkpoint || report_due {
            self.reported_through = self.position.read_through;
            if checkpoint {
                self.checkpointed_through = self.position.read_through;
            }
            self.send((records, checkpoint), status, Some(permit)).await;
        }
        match (ended, self.at_cutoff && !self.context.follow) {
            (true, _) => Some(ReadOutcome::Finished(self.position.clone())),
            (false, true) if passed => Some(ReadOutcome::PastCutoff),
            (false, true) => Some(ReadOutcome::AssumedCaughtUp(self.position.clone())),
            (false, false) => None,
        }
    }

    /// Keeps the list of the shards that are only assumed to be caught up.
    fn update_assumed(&self, idle: bool, something_came: bool, had_records: bool) {
        if idle {
            self.context.findings().assumed.insert(self.name(), had_records);
        } else if something_came {
            self.context.findings().assumed.remove(&self.name());
        }
    }

    async fn send(
        &self,
        (records, checkpoint): (Vec<Vec<u8>>, bool),
        status: ShardStatus,
        permit: Option<OwnedSemaphorePermit>,
    ) {
        let page = Page {
            run: Arc::clone(&self.run),
            shard: Arc::clone(&self.shard),
            position: self.position.clone(),
            // After a gap that was allowed, changes are missing.
            complete_since: self
                .complete_since
                .filter(|_| !self.context.findings().gaps.contains_key(&self.name())),
            records,
            status,
            checkpoint,
            permit,
        };
        // The other side goes away only when the run ends, and this reader with it.
        let _ = self.messages.send(Message::Page(page)).await;
    }

    /// The page after the iterator or, if there is none, at the position.
    async fn next_page(&mut self) -> anyhow::Result<NextPage> {
        for _ in 0..MAX_ITERATOR_ATTEMPTS {
            match self.get_records().await {
                Ok(answer) => {
                    if self.position.sequence_number.is_none() && !self.opened {
                        // It begins where it still can, and does not say so.
                        self.check_trimmed(false)?;
                        self.opened = true;
                    }
                    self.refusals = 0;
                    return self.take_answer(answer).map(NextPage::Read);
                }
                // The next one is asked for at the position, which is after the last record read.
                Err(CallError::Expired) => {}
                Err(CallError::Trimmed) => return self.refused_as_trimmed(),
                Err(CallError::Gone) => {
                    self.refusals += 1;
                    let again = NextPage::Refused(pause_after(self.refusals));
                    return Ok(if self.refusals < MAX_REFUSALS {
                        again
                    } else {
                        NextPage::Missing
                    });
                }
                Err(error) => return Err(error).with_context(|| self.unreadable()),
            }
        }
        bail!(
            "{MAX_ITERATOR_ATTEMPTS} iterators in a row expired unused for shard {} of {}",
            self.shard,
            self.run.stream.arn
        )
    }

    async fn get_records(&mut self) -> Result<GetRecordsOutput, CallError> {
        // An iterator is used once: if the call fails, the next one is asked for.
        let iterator = match std::mem::replace(&mut self.next, Next::Ask) {
            Next::At(iterator) => iterator,
            // At the end nobody calls any more.
            Next::Ask | Next::End => {
                // The empty pages after the last record come again.
                self.empty_pages.restart();
                self.new_iterator().await?
            }
        };
        let source = &self.context.source;
        let call = || source.client.get_records().shard_iterator(&iterator).limit(1000).send();
        source.calls.call("GetRecords", call).await
    }

    async fn new_iterator(&self) -> Result<String, CallError> {
        let source = &self.context.source;
        let call = || {
            let request = source
                .client
                .get_shard_iterator()
                .stream_arn(&self.run.stream.arn)
                .shard_id(self.shard.as_ref());
            match &self.position.sequence_number {
                None => request.shard_iterator_type(ShardIteratorType::TrimHorizon),
                Some(number) => request
                    .shard_iterator_type(ShardIteratorType::AfterSequenceNumber)
                    .sequence_number(number),
            }
            .send()
        };
        let answer = source.calls.call("GetShardIterator", call).await?;
        // Never seen. Taken for a shard that is not there, it is asked for again.
        answer.shard_iterator.ok_or(CallError::Gone)
    }

    fn take_answer(&mut self, answer: GetRecordsOutput) -> anyhow::Result<Vec<Vec<u8>>> {
        let records = answer.records();
        if let Some(images) = records.last().and_then(|record| record.dynamodb()) {
            self.position.sequence_number = images.sequence_number().map(str::to_owned);
        }
        let created = |record: &Record| {
            let time = record.dynamodb()?.approximate_creation_date_time()?;
            OffsetDateTime::from_unix_timestamp(time.secs()).ok()
        };
        // Not the last one's alone: a time may be missing, or be a second early.
        if let Some(newest) = records.iter().filter_map(created).max() {
            self.position.created(newest);
        }
        let records = records.iter().map(|record| lambda_json(record, &self.run.stream.arn));
        let records = records.collect::<Result<_, _>>();
        self.next = answer.next_shard_iterator.map_or(Next::End, Next::At);
        records.context("a record could not be written as JSON")
    }

    /// The API says that what comes next is trimmed.
    fn refused_as_trimmed(&mut self) -> anyhow::Result<NextPage> {
        self.refusals += 1;
        let at_horizon = self.position.sequence_number.is_none();
        let most = if at_horizon { MAX_REFUSALS } else { MAX_TRIMMED_REFUSALS };
        if self.refusals < most {
            return Ok(NextPage::Refused(pause_after(self.refusals)));
        }
        self.check_trimmed(true)?;
        if !at_horizon {
            // What is left of the shard begins at the horizon.
            self.log_trimmed();
            self.position.sequence_number = None;
            self.refusals = 0;
            return Ok(NextPage::Refused(Duration::ZERO));
        }
        if self.known != Known::Open {
            return Ok(NextPage::TrimmedAway);
        }
        // An open shard is too young for that.
        Err(CallError::Trimmed).with_context(|| self.unreadable())
    }

    /// Only a child named it, and nothing of it was read.
    fn is_unseen(&self) -> bool {
        self.known == Known::AsParent && !self.opened
    }

    /// The shard cannot be found: asks whether it is still listed, and judges by the clock.
    async fn missing(self) -> anyhow::Result<ReadOutcome> {
        let description = self.context.source.describe(&self.run.stream).await?;
        let listed = description.as_ref().and_then(|description| {
            description.shards.iter().find(|shard| shard.id == *self.shard)
        });
        if listed.is_some_and(|shard| !shard.closed) {
            return Err(CallError::Gone).with_context(|| self.unreadable());
        }
        let now = OffsetDateTime::now_utc();
        let baseline = self.context.baseline;
        let shards = description.as_ref().map_or(&[][..], |description| &description.shards);
        let children = shards.iter().filter(|shard| shard.parent.as_deref() == Some(&*self.shard));
        let evidence = Evidence {
            stream_exists: description.is_some(),
            made_at: made_at(&self.shard),
            closed_at: children.filter_map(|child| made_at(&child.id)).min(),
        };
        // What is only named has the snapshot alone for a baseline, and the evidence answers for
        // that.
        let has_baseline = self.has_baseline && !self.is_unseen();
        match judge_missing(&self.position, has_baseline, evidence, baseline, now) {
            Missing::TooYoung if self.context.if_lost == IfLost::GoOn => {
                self.context.lose(self.lost())?;
                Ok(self.trimmed_away().await)
            }
            Missing::TooYoung => Err(CallError::Gone).with_context(|| {
                let or_else = match self.context.if_lost {
                    IfLost::FailRepair => "",
                    _ => ", or add --allow-gap to go on without it",
                };
                format!(
                    "{}: what it holds is younger than 24 hours, so that it cannot have been \
                     trimmed; run the same command again{or_else}",
                    self.unreadable()
                )
            }),
            Missing::Lost => {
                self.context.lose(self.lost())?;
                Ok(self.trimmed_away().await)
            }
            Missing::Trimmed if self.is_unseen() => {
                self.context.findings().not_there.insert(self.name());
                Ok(ReadOutcome::NotThere)
            }
            Missing::Trimmed => Ok(self.trimmed_away().await),
        }
    }

    async fn trimmed_away(self) -> ReadOutcome {
        self.log_trimmed();
        self.context.findings().gone.insert(self.name());
        self.context.findings().assumed.remove(&self.name());
        self.run.shards.children_not_listed.fetch_add(1, Ordering::SeqCst);
        self.send((Vec::new(), true), ShardStatus::TrimmedAway, None).await;
        ReadOutcome::Finished(self.position)
    }

    fn name(&self) -> ShardName {
        ShardName::new(&self.run.stream, &self.shard)
    }

    fn unreadable(&self) -> String {
        format!("cannot read shard {} of {}", self.shard, self.run.stream.arn)
    }

    fn lost(&self) -> Lost {
        Lost {
            shard: self.name(),
            position: self.position.clone(),
            since: self.position.read_through.max(self.context.baseline),
        }
    }

    /// What comes after the position is, or may be, trimmed. `refused`: the stream refuses to go on
    /// there.
    ///
    /// # Errors
    /// [`Lost`] if that matters.
    fn check_trimmed(&self, refused: bool) -> anyhow::Result<()> {
        let (baseline, now) = (self.context.baseline, OffsetDateTime::now_utc());
        if self.has_baseline && can_be_lost(&self.position, refused, baseline, now) {
            return self.context.lose(self.lost());
        }
        Ok(())
    }

    /// Something is trimmed away, and loses nothing or has no baseline.
    fn log_trimmed(&self) {
        let (what, why) =
            match (self.opened || self.position.sequence_number.is_some(), self.has_baseline) {
                (false, _) => ("not there any more", "nothing of it was read"),
                (true, true) if self.context.if_lost == IfLost::FailRepair => (
                    "trimmed away in part",
                    "older than this repair, which reads the items from the tables",
                ),
                (true, true) => (
                    "trimmed away in part",
                    "older than what is known to be stored: nothing is lost",
                ),
                (true, false) => {
                    ("trimmed away in part", "nothing was known of it: no snapshot, no checkpoint")
                }
            };
        tracing::warn!(stream = self.run.stream.arn, shard = &*self.shard, "{what}, {why}");
    }
}

fn pause_after(refusals: u32) -> Duration {
    FIRST_REFUSAL_PAUSE * (1 << refusals.saturating_sub(1).min(6))
}
