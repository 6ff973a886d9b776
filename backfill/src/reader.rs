//! One shard, page by page, from where it was left to its end or to the cutoff.
//!
//! A reader holds next to nothing between its calls: how many pages are in memory is bounded by the
//! permits, one a call of `GetRecords`, which a page keeps until it is part of a batch. The order of a
//! shard's records is that of its pages in the channel.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use aws_sdk_dynamodbstreams::types::ShardIteratorType;
use time::OffsetDateTime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;

use crate::lineage::Shard;
use crate::position::{Lost, Position, can_be_lost};
use crate::progress::ShardCount;
use crate::record::lambda_json;
use crate::source::{CallError, Source, Stream};

/// Creation times are approximate, and rounded down to the second: only a record this much younger
/// than the cutoff shows that all records from before it have been read.
const CUTOFF_SLACK: time::Duration = time::Duration::seconds(5);
/// An idle shard is asked again after a pause that doubles from the first to the last.
const IDLE_PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(250)];
/// So many empty pages are asked for without a pause, since empty pages may stand before records.
const EMPTY_AT_ONCE: u32 = 5;
/// An open shard is not taken for idle before so many empty pages in a row, and so many for each second
/// that it must be idle: calls that are held up must not count for calls that were made.
const EMPTY_TO_BE_IDLE: u64 = 10;
const EMPTY_A_SECOND: u64 = 4;
/// So many iterators may be of no use in a row.
const ITERATORS: u32 = 16;
/// The horizon moves on between the call for an iterator and the call that uses it, and a shard may be
/// listed before it can be read: so often it is tried, with pauses that double to some 15 seconds in
/// all.
const REFUSALS: u32 = 7;
const FIRST_REFUSAL_PAUSE: Duration = Duration::from_millis(250);
/// How often the checkpoint of a quiet shard is renewed while it is followed.
const TELL_EVERY: time::Duration = time::Duration::minutes(10);

/// What all readers share.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) source: Source,
    /// One permit a page that is asked for or in memory.
    pub(crate) permits: Arc<Semaphore>,
    /// When the run began: what was created before is applied when it ends.
    pub(crate) cutoff: OffsetDateTime,
    /// For how long an open shard gives only empty pages until it counts as read up to the cutoff.
    pub(crate) idle: Duration,
    /// Goes on after the cutoff.
    pub(crate) follow: bool,
    pub(crate) snapshot_time: Option<OffsetDateTime>,
    /// Goes on where records are lost.
    pub(crate) allow_gap: bool,
    /// The shards in which they can be.
    pub(crate) gaps: Mutex<BTreeSet<String>>,
}

/// Where a shard stands after a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// There is more to read before the cutoff.
    Behind,
    /// Everything from before the cutoff has been read; it may go on.
    AtCutoff,
    /// It was closed and has been read to its end.
    Finished,
    /// It was closed, and nothing of it can be read any more, which loses nothing.
    TrimmedAway,
}

/// Some records of a shard, in order.
#[derive(Debug)]
pub(crate) struct Page {
    /// The index of its stream.
    pub(crate) stream: usize,
    pub(crate) shard: Arc<str>,
    /// Each record's JSON as Lambda delivers it.
    pub(crate) records: Vec<Vec<u8>>,
    /// How far the shard has been read with this page.
    pub(crate) position: Position,
    pub(crate) standing: Standing,
    /// Given back when the page is part of a batch.
    pub(crate) permit: Option<OwnedSemaphorePermit>,
}

/// How a shard's reading ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It was closed, and has been read to its end, which is here.
    Finished(Position),
    /// A record from after the cutoff has been read.
    PastCutoff,
    /// It gave only empty pages for long enough. If it turns out to be closed, it is read on from
    /// here, to its end.
    Idle(Position),
}

/// One shard's reading.
pub(crate) struct ShardReader {
    reading: Arc<Reading>,
    stream: Arc<Stream>,
    stream_index: usize,
    shard: Arc<str>,
    /// `DescribeStream` showed its end: it is read until that end, never taken for idle.
    closed: bool,
    position: Position,
    pages: mpsc::Sender<Page>,
    shards: Arc<ShardCount>,
    /// A page has been read.
    opened: bool,
    /// Something is known from before this run: a snapshot, a checkpoint, or one of the parent. Else what
    /// is trimmed breaks no promise.
    promised: bool,
    /// How often in a row it was refused to begin.
    refusals: u32,
}

impl ShardReader {
    pub(crate) fn new(
        reading: Arc<Reading>,
        (stream_index, stream): (usize, Arc<Stream>),
        shard: Shard,
        position: Position,
        pages: mpsc::Sender<Page>,
        shards: Arc<ShardCount>,
    ) -> Self {
        let promised = reading.snapshot_time.is_some() || position.read_through.is_some();
        Self {
            reading,
            stream,
            stream_index,
            shard: Arc::from(shard.id),
            closed: shard.closed,
            position,
            pages,
            shards,
            opened: false,
            promised,
            refusals: 0,
        }
    }

    /// Reads the shard.
    ///
    /// # Errors
    /// [`Lost`] where records were trimmed that matter; what the API refuses.
    pub(crate) async fn read(mut self) -> anyhow::Result<End> {
        let mut iterator = None;
        let mut at_cutoff = false;
        let mut empty_pages = 0;
        let mut empty_since = Instant::now();
        let mut told_through = self.position.read_through;
        let enough_empty_pages = EMPTY_TO_BE_IDLE.max(EMPTY_A_SECOND * self.reading.idle.as_secs());
        loop {
            let permit = Arc::clone(&self.reading.permits).acquire_owned().await;
            let permit = permit.expect("the semaphore is never closed");
            // Boxed: the SDK's futures are large, and there may be thousands of readers.
            let answer = Box::pin(self.next_page(iterator.take())).await?;
            let (records, next) = match answer {
                NextPage::Read { records, iterator } => (records, iterator),
                NextPage::Refused(pause) => {
                    // Others may read meanwhile.
                    drop(permit);
                    tokio::time::sleep(pause).await;
                    continue;
                }
                NextPage::TrimmedAway => {
                    self.shards.expected.fetch_add(1, Ordering::SeqCst);
                    self.send(Vec::new(), Standing::TrimmedAway, None).await;
                    return Ok(End::Finished(self.position));
                }
            };
            iterator = next;
            if records.is_empty() {
                if empty_pages == 0 {
                    empty_since = Instant::now();
                }
                empty_pages += 1;
            } else {
                empty_pages = 0;
            }
            let idle = u64::from(empty_pages) >= enough_empty_pages
                && empty_since.elapsed() >= self.reading.idle
                && !self.closed;
            let newest = self.position.last_created;
            let passed = newest.is_some_and(|newest| newest > self.reading.cutoff + CUTOFF_SLACK);
            if idle {
                self.position.through(self.reading.cutoff);
                if self.reading.follow {
                    self.position.through(OffsetDateTime::now_utc() - self.reading.idle);
                }
            }
            // A shard that stays quiet is known to be read up to later and later: its checkpoint must say
            // so before the day is over.
            let tells =
                idle && self.position.read_through > told_through.map(|told| told + TELL_EVERY);
            let reaches_cutoff = !at_cutoff && (idle || passed);
            at_cutoff |= reaches_cutoff;
            let standing = match (&iterator, at_cutoff) {
                (None, _) => Standing::Finished,
                (Some(_), true) => Standing::AtCutoff,
                (Some(_), false) => Standing::Behind,
            };
            if standing == Standing::Finished {
                self.shards.expected.fetch_add(1, Ordering::SeqCst);
            }
            if !records.is_empty() || reaches_cutoff || tells || standing == Standing::Finished {
                told_through = self.position.read_through;
                self.send(records, standing, Some(permit)).await;
            } else {
                drop(permit);
            }
            if standing == Standing::Finished {
                return Ok(End::Finished(self.position));
            }
            if at_cutoff && !self.reading.follow {
                return Ok(if passed { End::PastCutoff } else { End::Idle(self.position) });
            }
            if empty_pages >= EMPTY_AT_ONCE {
                let [first, last] = IDLE_PAUSES;
                let doubled = first * (1 << (empty_pages - EMPTY_AT_ONCE).min(8));
                tokio::time::sleep(doubled.min(last)).await;
            }
        }
    }

    async fn send(
        &self,
        records: Vec<Vec<u8>>,
        standing: Standing,
        permit: Option<OwnedSemaphorePermit>,
    ) {
        let page = Page {
            stream: self.stream_index,
            shard: Arc::clone(&self.shard),
            position: self.position.clone(),
            records,
            standing,
            permit,
        };
        // The other side goes away only when the run ends, and this reader with it.
        let _ = self.pages.send(page).await;
    }

    /// The page behind the iterator, or, where there is none, at the position.
    async fn next_page(&mut self, mut iterator: Option<String>) -> anyhow::Result<NextPage> {
        let reading = Arc::clone(&self.reading);
        let source = &reading.source;
        for _ in 0..ITERATORS {
            let at = match iterator.take() {
                Some(iterator) => Ok(iterator),
                None => self.iterator().await,
            };
            let answer = match at {
                Ok(at) => {
                    let call =
                        || source.client.get_records().shard_iterator(&at).limit(1000).send();
                    source.call("GetRecords", call).await
                }
                Err(error) => Err(error),
            };
            match answer {
                Ok(answer) => {
                    if self.position.sequence_number.is_none() && !self.opened {
                        // Silently it begins where it still can.
                        self.check_trimmed(false)?;
                        self.opened = true;
                    }
                    self.refusals = 0;
                    let records = answer.records();
                    if let Some(images) = records.last().and_then(|record| record.dynamodb()) {
                        self.position.sequence_number = images.sequence_number().map(str::to_owned);
                    }
                    let created = |record: &aws_sdk_dynamodbstreams::types::Record| {
                        let time = record.dynamodb()?.approximate_creation_date_time()?;
                        OffsetDateTime::from_unix_timestamp(time.secs()).ok()
                    };
                    // Not the last one's alone: a time may be missing, or be a second early.
                    if let Some(newest) = records.iter().filter_map(created).max() {
                        self.position.created(newest);
                    }
                    let records =
                        records.iter().map(|record| lambda_json(record, &self.stream.arn));
                    let records = records.collect::<Result<_, _>>();
                    return Ok(NextPage::Read {
                        records: records.context("a record could not be written as JSON")?,
                        iterator: answer.next_shard_iterator,
                    });
                }
                // The next one is asked for at the position, which is after the last record read.
                Err(CallError::Expired) => {}
                Err(refusal @ (CallError::Trimmed | CallError::Gone)) => {
                    self.check_trimmed(true)?;
                    // What is left of the shard begins at the horizon.
                    if matches!(refusal, CallError::Trimmed)
                        && self.position.sequence_number.take().is_some()
                    {
                        self.say_trimmed();
                        continue;
                    }
                    self.refusals += 1;
                    if self.refusals < REFUSALS {
                        let pause = FIRST_REFUSAL_PAUSE * (1 << (self.refusals - 1));
                        return Ok(NextPage::Refused(pause));
                    }
                    if self.closed {
                        self.say_trimmed();
                        return Ok(NextPage::TrimmedAway);
                    }
                    // An open shard is too young for that.
                    return Err(refusal).with_context(|| self.unreadable());
                }
                Err(error) => return Err(error).with_context(|| self.unreadable()),
            }
        }
        bail!(
            "{ITERATORS} iterators in a row were of no use for shard {} of {}",
            self.shard,
            self.stream.arn
        )
    }

    fn unreadable(&self) -> String {
        format!("cannot read shard {} of {}", self.shard, self.stream.arn)
    }

    fn check_trimmed(&self, refused: bool) -> anyhow::Result<()> {
        if !self.promised {
            return Ok(());
        }
        self.reading.check_trimmed(&self.stream, &self.shard, &self.position, refused)
    }

    /// That something is trimmed away and loses nothing, or breaks no promise.
    fn say_trimmed(&self) {
        let why = if self.promised {
            "older than what is known to be stored: nothing is lost"
        } else {
            "nothing was known of it: no snapshot, no checkpoint"
        };
        tracing::warn!(
            stream = self.stream.arn,
            shard = &*self.shard,
            "trimmed away in part, {why}"
        );
    }

    async fn iterator(&self) -> Result<String, CallError> {
        let source = &self.reading.source;
        let call = || {
            let request = source
                .client
                .get_shard_iterator()
                .stream_arn(&self.stream.arn)
                .shard_id(self.shard.as_ref());
            match &self.position.sequence_number {
                None => request.shard_iterator_type(ShardIteratorType::TrimHorizon),
                Some(number) => request
                    .shard_iterator_type(ShardIteratorType::AfterSequenceNumber)
                    .sequence_number(number),
            }
            .send()
        };
        let answer = source.call("GetShardIterator", call).await?;
        // Not seen yet. Taken for a shard that is not there, it is tried again.
        answer.shard_iterator.ok_or(CallError::Gone)
    }
}

enum NextPage {
    Read {
        records: Vec<Vec<u8>>,
        iterator: Option<String>,
    },
    /// To be asked for again after a pause.
    Refused(Duration),
    TrimmedAway,
}

impl Reading {
    /// Where records of a shard behind this position are, or may be, trimmed away: whether that loses
    /// any. `refused`: the stream refuses to go on there.
    ///
    /// # Errors
    /// [`Lost`].
    pub(crate) fn check_trimmed(
        &self,
        stream: &Stream,
        shard: &str,
        position: &Position,
        refused: bool,
    ) -> anyhow::Result<()> {
        if !can_be_lost(position, refused, self.snapshot_time, OffsetDateTime::now_utc()) {
            return Ok(());
        }
        let lost = Lost {
            shard: shard.to_owned(),
            stream_arn: stream.arn.clone(),
            position: position.clone(),
            since: position.read_through.max(self.snapshot_time),
        };
        if self.allow_gap {
            let mut gaps = self.gaps.lock().unwrap_or_else(PoisonError::into_inner);
            if gaps.insert(format!("{}/{shard}", stream.arn)) {
                tracing::error!("{lost}; going on, as --allow-gap says");
            }
            return Ok(());
        }
        Err(lost.into())
    }

    /// What had to be repeated, in words; `None` where nothing had to be.
    pub(crate) fn troubles(&self) -> Option<String> {
        let troubles = &self.source.troubles;
        let counted = [
            (&troubles.throttled, "calls throttled"),
            (&troubles.failed, "calls failed and repeated"),
            (&troubles.expired, "iterators expired"),
            (&troubles.disagreed, "descriptions asked for again"),
        ]
        .map(|(count, what)| (count.load(Ordering::Relaxed), what));
        let said: Vec<String> = counted
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        (!said.is_empty()).then(|| said.join(", "))
    }
}
