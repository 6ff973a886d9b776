//! The batches of a source → the projector, to their end or a signal: one more is read while others
//! are applied.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::advisory_lock::Held;
use crate::console::{self, Progress, span};
use crate::deliver::{Delivered, Delivery};
use crate::merge::Step;
use crate::merge::archive::Objects;
use crate::merge::repaired::Repaired;
use crate::merge::rows::Rows;
use crate::merge::tally::Tally;
use crate::read_ahead::send_all;
use crate::stop::{self, Stop};

/// This many batches are applied at once. One more is being read.
const UNDER_WAY: usize = 2;
/// How often the connection that holds the lock is used: some networks forget an idle one.
const KEEP_LOCK_EVERY: Duration = Duration::from_mins(1);
/// If PostgreSQL refuses more sessions than this, something else is wrong than a few rows.
const REFUSED_AT_MOST: u64 = 10_000;

/// Where the changes come from.
pub(crate) enum Source<'a> {
    Rows(Rows<'a>),
    Objects(Objects<'a>),
}

impl Source<'_> {
    async fn next(&mut self) -> anyhow::Result<Option<Step>> {
        match self {
            Self::Rows(rows) => rows.next().await,
            Self::Objects(objects) => objects.next().await,
        }
    }
}

/// How a run ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Everything was read, and all of it applied but what is named.
    AllRead,
    /// A signal came first.
    Stopped,
}

/// A batch that is being applied.
struct UnderWay {
    step: Step,
    /// The session of each change.
    sessions: Vec<String>,
    /// `None` if there is nothing to apply.
    task: Option<JoinHandle<anyhow::Result<Delivered>>>,
}

/// A run.
pub(crate) struct Merge {
    pub(crate) delivery: Delivery,
    /// Keeps other merges away; `None` in a dry run and behind a pooler.
    pub(crate) lock: Option<Held>,
    pub(crate) tally: Tally,
    pub(crate) progress: Progress,
    pub(crate) repaired: Repaired,
    /// Every session up to this one is done, those that are named too.
    pub(crate) through: String,
    refused: u64,
    under_way: VecDeque<UnderWay>,
}

impl Merge {
    /// Starts after this session.
    pub(crate) fn new(
        delivery: Delivery,
        lock: Option<Held>,
        (progress, repaired): (Progress, Repaired),
        after: String,
    ) -> Self {
        Self {
            delivery,
            lock,
            tally: Tally::default(),
            progress,
            repaired,
            through: after,
            refused: 0,
            under_way: VecDeque::new(),
        }
    }

    /// Applies all batches, or those under way when a signal comes.
    ///
    /// # Errors
    /// What the source says, once all that was read before it is applied; and what ends a delivery.
    pub(crate) async fn all(&mut self, mut source: Source<'_>, stop: &Stop) -> anyhow::Result<End> {
        let (sender, batches) = mpsc::channel(1);
        // Boxed: the future is large.
        let reading = Box::pin(send_all(async || source.next().await, sender));
        let ended = self.until_done(reading, batches, stop).await;
        self.tally.counts = self.delivery.counts;
        ended
    }

    async fn until_done(
        &mut self,
        reading: impl Future<Output = ()>,
        mut batches: mpsc::Receiver<anyhow::Result<Step>>,
        stop: &Stop,
    ) -> anyhow::Result<End> {
        let mut reading = pin!(reading);
        let (mut is_reading, mut more, mut ended) = (true, true, Ok(End::AllRead));
        let mut keep_lock = tokio::time::interval(KEEP_LOCK_EVERY);
        let projector = self.delivery.shared_projector();
        while more || !self.under_way.is_empty() {
            tokio::select! {
                biased;
                () = stop.wait(), if more => {
                    (is_reading, more, ended) = (false, false, Ok(End::Stopped));
                }
                () = stop.grace_over() => {
                    let (count, grace) = (self.under_way.len(), span(stop::GRACE));
                    console::line(&format!("{count} batches were not finished within {grace}"));
                    return Ok(End::Stopped);
                }
                delivered = oldest(&mut self.under_way), if !self.under_way.is_empty() => {
                    self.applied(delivered?)?;
                }
                batch = batches.recv(), if more && self.under_way.len() < UNDER_WAY => match batch {
                    // Applying them at the same time is harmless: versions decide, not the order.
                    Some(Ok(batch)) => self.begin(batch),
                    Some(Err(error)) => (is_reading, more, ended) = (false, false, Err(error)),
                    None => (is_reading, more) = (false, false),
                },
                () = &mut reading, if is_reading => is_reading = false,
                _ = keep_lock.tick() => if let Some(lock) = &mut self.lock {
                    lock.keep(&projector.database).await?;
                },
            }
        }
        ended
    }

    fn begin(&mut self, mut step: Step) {
        let changes = std::mem::take(&mut step.changes);
        let sessions = changes.iter().map(|arrival| arrival.change.session_id.clone()).collect();
        let task = (!changes.is_empty()).then(|| self.delivery.start_changes(changes));
        self.under_way.push_back(UnderWay { step, sessions, task });
    }

    /// Accounts for the oldest batch.
    fn applied(&mut self, delivered: Option<Delivered>) -> anyhow::Result<()> {
        let Some(UnderWay { step, sessions, .. }) = self.under_way.pop_front() else {
            return Ok(());
        };
        let Step { found, unreadable, repaired, through, .. } = step;
        let done = found.read + unreadable.len() as u64;
        let before = self.tally.not_merged.count;
        self.tally.found += found;
        if let Some(delivered) = delivered {
            let name = |index: usize| sessions[index].clone();
            let refused =
                delivered.refused().iter().map(|(index, why)| (name(*index), why.clone()));
            let failed = delivered.failed().iter().map(|index| {
                (name(*index), "it could not be stored, the log above says why".to_owned())
            });
            self.tally.add_not_merged(refused.chain(failed));
            self.delivery.add(delivered);
        }
        self.refused += self.tally.not_merged.count - before;
        self.tally.add_not_merged(unreadable);
        let not_kept = self.repaired.add(repaired)?;
        self.tally.add_not_merged(not_kept);
        if let Some(through) = through {
            self.through = through;
        }
        self.progress.advance_sessions(done, (self.tally.found.read, "read"), &self.tally.text());
        if self.refused > REFUSED_AT_MOST {
            bail!("more than {REFUSED_AT_MOST} sessions cannot be stored, the lines above say why");
        }
        Ok(())
    }
}

/// Waits for the oldest batch. Cancelled, it waits for the same one again.
async fn oldest(under_way: &mut VecDeque<UnderWay>) -> anyhow::Result<Option<Delivered>> {
    match under_way.front_mut() {
        Some(UnderWay { task: Some(task), .. }) => {
            task.await.context("a delivery panicked")?.map(Some)
        }
        _ => Ok(None),
    }
}
