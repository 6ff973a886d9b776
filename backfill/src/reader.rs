//! One shard, page by page, from where it was left to its end or to the cutoff.
//!
//! A reader holds next to nothing between its calls: how many pages are in memory is bounded by the
//! permits, one a call of `GetRecords`, which a page keeps until it is part of a batch. The order of a
//! shard's records is that of its pages in the channel.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, bail};
use aws_sdk_dynamodbstreams::types::ShardIteratorType;
use time::OffsetDateTime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;

use crate::progress::ShardCount;
use crate::record::lambda_json;
use crate::source::{CallError, Source, Stream};
use crate::summary::clock;

/// A stream keeps its records for 24 hours (DynamoDB Developer Guide, "Change data capture for
/// DynamoDB Streams").
pub(crate) const RETENTION: time::Duration = time::Duration::hours(24);
/// Creation times are approximate, and rounded down to the second: only a record this much younger
/// than the cutoff shows that all records from before it have been read.
const CUTOFF_SLACK: time::Duration = time::Duration::seconds(5);
/// An idle shard is asked again after a pause that doubles from the first to the last.
const IDLE_PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(250)];
/// So many empty pages are asked for without a pause, since empty pages may stand before records.
const EMPTY_AT_ONCE: u32 = 5;
/// An open shard is not taken for idle before so many empty pages in a row.
const EMPTY_TO_BE_IDLE: u32 = 10;
/// So many iterators may be of no use in a row.
const ITERATORS: u32 = 16;
/// The horizon moves on between the call for an iterator and the call that uses it: so often it is
/// asked for anew.
const HORIZONS: u32 = 3;

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
}

/// Some records of a shard, in order.
#[derive(Debug)]
pub(crate) struct Page {
    /// The index of its stream.
    pub(crate) stream: usize,
    pub(crate) shard: Arc<str>,
    /// Each record's JSON as Lambda delivers it.
    pub(crate) records: Vec<Vec<u8>>,
    /// The last record's sequence number.
    pub(crate) sequence_number: Option<String>,
    /// The last known creation time.
    pub(crate) reached_at: Option<OffsetDateTime>,
    pub(crate) standing: Standing,
    /// Given back when the page is part of a batch.
    pub(crate) permit: Option<OwnedSemaphorePermit>,
}

/// Where reading begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    /// After this record; at the trim horizon where there is none.
    pub(crate) sequence_number: Option<String>,
    /// Its creation time.
    pub(crate) reached_at: Option<OffsetDateTime>,
}

/// Records are gone before they could be read.
#[derive(Debug, thiserror::Error)]
#[error(
    "records are lost: shard {shard} of {stream_arn} {}, and what came after that has been trimmed away: \
     changes from {} to about {} can be missing. Where the snapshot is younger than that, say so with \
     --snapshot-time; else begin again with a newer one, or go on without them: --allow-gap",
    read_up_to(.sequence_number.as_deref()), time_or_unknown(*.since), clock(*.until)
)]
pub(crate) struct Lost {
    shard: String,
    stream_arn: String,
    sequence_number: Option<String>,
    since: Option<OffsetDateTime>,
    until: OffsetDateTime,
}

fn read_up_to(sequence_number: Option<&str>) -> String {
    match sequence_number {
        Some(number) => format!("was read up to sequence number {number}"),
        None => "was not read yet".to_owned(),
    }
}

fn time_or_unknown(time: Option<OffsetDateTime>) -> String {
    time.map_or_else(|| "an unknown time".to_owned(), clock)
}

/// Whether trimmed records matter: not where the stream still keeps all that was created since the
/// snapshot, for then the snapshot holds what they changed. Evidence to the contrary (a record before
/// them is younger than the snapshot) wins over the clock.
pub(crate) fn matters(
    snapshot_time: Option<OffsetDateTime>,
    reached_at: Option<OffsetDateTime>,
    now: OffsetDateTime,
) -> bool {
    let Some(snapshot_time) = snapshot_time else { return true };
    snapshot_time < now - RETENTION || reached_at.is_some_and(|reached| reached >= snapshot_time)
}

/// How a shard's reading ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It was closed, and has been read to its end.
    Finished,
    /// A record from after the cutoff has been read.
    PastCutoff,
    /// It gave only empty pages for long enough. If it turns out to be closed, it is read on from
    /// here, to its end.
    Idle(Position),
}

/// One shard's reading.
pub(crate) struct ShardReader {
    pub(crate) reading: Arc<Reading>,
    pub(crate) stream: Arc<Stream>,
    pub(crate) stream_index: usize,
    pub(crate) shard: Arc<str>,
    /// `DescribeStream` showed its end: it is read until that end, never taken for idle.
    pub(crate) closed: bool,
    pub(crate) position: Position,
    pub(crate) pages: mpsc::Sender<Page>,
    pub(crate) shards: Arc<ShardCount>,
}

impl ShardReader {
    /// Reads the shard.
    ///
    /// # Errors
    /// [`Lost`] where records were trimmed that matter; what the API refuses.
    pub(crate) async fn read(mut self) -> anyhow::Result<End> {
        let mut iterator = None;
        let mut at_cutoff = false;
        let mut empty_pages = 0;
        let mut empty_since = Instant::now();
        loop {
            let permit = Arc::clone(&self.reading.permits).acquire_owned().await;
            let permit = permit.expect("the semaphore is never closed");
            // Boxed: the SDK's futures are large, and there may be thousands of readers.
            let answer = Box::pin(self.next_page(iterator.take())).await?;
            let NextPage::Read { records, iterator: next } = answer else {
                // Trimmed away, and nothing of it matters.
                self.shards.expected.fetch_add(1, Ordering::SeqCst);
                self.send(Vec::new(), Standing::Finished, None).await;
                return Ok(End::Finished);
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
            let idle = empty_pages >= EMPTY_TO_BE_IDLE
                && empty_since.elapsed() >= self.reading.idle
                && !self.closed;
            let newest = self.position.reached_at;
            let passed = newest.is_some_and(|newest| newest > self.reading.cutoff + CUTOFF_SLACK);
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
            if !records.is_empty() || reaches_cutoff || standing == Standing::Finished {
                self.send(records, standing, Some(permit)).await;
            } else {
                drop(permit);
            }
            if standing == Standing::Finished {
                return Ok(End::Finished);
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
            sequence_number: self.position.sequence_number.clone(),
            reached_at: self.position.reached_at,
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
        let mut refused_at_horizon = 0;
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
                    let records = answer.records();
                    if let Some(images) = records.last().and_then(|record| record.dynamodb()) {
                        self.position.sequence_number = images.sequence_number().map(str::to_owned);
                    }
                    let created = |record: &aws_sdk_dynamodbstreams::types::Record| {
                        let time = record.dynamodb()?.approximate_creation_date_time()?;
                        OffsetDateTime::from_unix_timestamp(time.secs()).ok()
                    };
                    // Not the last one's alone: a time may be missing, or be a second early.
                    let newest = records.iter().filter_map(created).max();
                    self.position.reached_at = newest.max(self.position.reached_at);
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
                // What is left of the shard begins at TRIM_HORIZON; where that is refused as well,
                // nothing is left.
                Err(CallError::Trimmed) => {
                    reading.trimmed(&self.stream, &self.shard, &self.position)?;
                    if self.position.sequence_number.take().is_none() {
                        refused_at_horizon += 1;
                    }
                    if refused_at_horizon == HORIZONS {
                        return Ok(NextPage::TrimmedAway);
                    }
                }
                Err(CallError::Gone) => {
                    reading.trimmed(&self.stream, &self.shard, &self.position)?;
                    return Ok(NextPage::TrimmedAway);
                }
                Err(error) => {
                    return Err(error).with_context(|| {
                        format!("cannot read shard {} of {}", self.shard, self.stream.arn)
                    });
                }
            }
        }
        bail!(
            "{ITERATORS} iterators in a row were of no use for shard {} of {}",
            self.shard,
            self.stream.arn
        )
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
        // A shard that has no iterator has nothing to read.
        answer.shard_iterator.ok_or(CallError::Gone)
    }
}

enum NextPage {
    Read { records: Vec<Vec<u8>>, iterator: Option<String> },
    TrimmedAway,
}

impl Reading {
    /// The records of a shard after this position are trimmed away: lost, or of no matter, which is
    /// said.
    ///
    /// # Errors
    /// [`Lost`].
    pub(crate) fn trimmed(
        &self,
        stream: &Stream,
        shard: &str,
        position: &Position,
    ) -> anyhow::Result<()> {
        let now = OffsetDateTime::now_utc();
        if !matters(self.snapshot_time, position.reached_at, now) {
            tracing::warn!(
                stream = stream.arn,
                shard,
                "trimmed away in part; the snapshot is younger, so nothing is lost"
            );
            return Ok(());
        }
        let lost = Lost {
            shard: shard.to_owned(),
            stream_arn: stream.arn.clone(),
            sequence_number: position.sequence_number.clone(),
            since: position.reached_at.or(self.snapshot_time),
            until: now - RETENTION,
        };
        if self.allow_gap {
            tracing::error!("{lost}; going on, as --allow-gap says");
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

#[cfg(test)]
mod tests {
    use super::{RETENTION, matters};
    use time::macros::datetime;

    #[test]
    fn trimmed_records_matter_unless_the_snapshot_is_younger() {
        let now = datetime!(2026-11-23 20:00 UTC);
        let horizon = now - RETENTION;
        let later = horizon + time::Duration::hours(3);
        for (snapshot_time, reached_at, expected) in [
            // Nothing is known of a snapshot.
            (None, None, true),
            // All that was created since the snapshot is kept: what is trimmed was in it.
            (Some(later), None, false),
            (Some(horizon), None, false),
            (Some(later), Some(horizon - time::Duration::hours(1)), false),
            // The run took so long, or began so late, that the horizon passed the snapshot.
            (Some(horizon - time::Duration::SECOND), None, true),
            // A record from after the snapshot has been read, and those behind it are gone all the same.
            (Some(later), Some(later), true),
        ] {
            assert_eq!(
                matters(snapshot_time, reached_at, now),
                expected,
                "{snapshot_time:?} {reached_at:?}"
            );
        }
    }
}
