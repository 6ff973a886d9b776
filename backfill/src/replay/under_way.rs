//! The batches of a run: the one that is gathered, and those that are being applied. What comes
//! next of them, and when a batch begins; `collect.rs` says what follows from it.
//!
//! A record waits at most [`LINGER`] for others, then for a place. So what is in memory is bounded
//! (the pages of the readers, one batch that is gathered, and those under way), and so is what is
//! before a record on its way to its row.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::deliver::{Delivered, Delivery};
use crate::replay::batch::{Batch, Reached};
use crate::replay::page::{Message, Page};
use crate::stop::Stop;

/// At most this many batches are being applied, or wait for an earlier one.
const UNDER_WAY: usize = 2;
/// A batch is not held back for longer than this for the sake of more records.
const LINGER: Duration = Duration::from_millis(100);

/// The batches of a run that are in memory.
pub(crate) struct Batches {
    reading: Reading,
    gathered: Batch,
    /// When its first page came.
    gathered_since: Instant,
    /// In the order in which they were read.
    under_way: VecDeque<UnderWay>,
}

/// Whether more pages are to be taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    Open,
    /// All readers have ended, and all their pages are taken.
    AllRead,
    /// A signal came: what is not under way is read again by the next run.
    Stopped,
}

/// A batch that is being applied, or waits for an earlier one. Dropping it ends it.
struct UnderWay {
    reached: Reached,
    /// `None` if it has no records.
    task: Option<JoinHandle<anyhow::Result<Delivered>>>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// What the collector waits for.
pub(crate) enum Event {
    /// The oldest batch has been applied, or has failed.
    Applied(anyhow::Result<Option<Delivered>>),
    /// `None`: nothing more will come.
    Message(Option<Message>),
    /// The batch that is gathered has been held back for long enough.
    Lingered,
    /// Time to see to the lock, and to show how far the streams are.
    Tick,
    Signal,
    /// What is under way has had its time after a signal.
    GraceOver,
}

impl Batches {
    /// None yet.
    pub(crate) fn new() -> Self {
        Self {
            reading: Reading::Open,
            gathered: Batch::default(),
            gathered_since: Instant::now(),
            under_way: VecDeque::new(),
        }
    }

    fn has_place(&self) -> bool {
        self.under_way.len() < UNDER_WAY
    }

    /// Nothing is being applied, and nothing waits for an earlier batch.
    pub(crate) fn none_under_way(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Nothing is in memory, and nothing more will come.
    pub(crate) fn are_done(&self) -> bool {
        self.reading != Reading::Open && self.under_way.is_empty() && self.gathered.is_empty()
    }

    /// A signal ended the reading.
    pub(crate) fn are_stopped(&self) -> bool {
        self.reading == Reading::Stopped
    }

    /// Nothing more will come.
    pub(crate) fn all_read(&mut self) {
        self.reading = Reading::AllRead;
    }

    /// A signal came: what was gathered is given up, since the next run reads it again.
    pub(crate) fn stop(&mut self) {
        self.reading = Reading::Stopped;
        self.gathered = Batch::default();
    }

    /// Adds a page to the batch that is gathered.
    pub(crate) fn add(&mut self, page: Page) {
        if self.gathered.is_empty() {
            self.gathered_since = Instant::now();
        }
        self.gathered.add(page);
    }

    /// Takes the oldest batch, which has been applied, and gives where its shards stand.
    pub(crate) fn pop_oldest(&mut self) -> Option<Reached> {
        self.under_way.pop_front().map(|mut batch| std::mem::take(&mut batch.reached))
    }

    /// Begins the batch that is gathered, if it is due and there is a place for it.
    pub(crate) fn begin_if_due(&mut self, batch_size: usize, delivery: &mut Delivery) {
        if self.gathered.is_empty() || !self.has_place() {
            return;
        }
        let due = self.gathered.is_full(batch_size)
            || self.reading == Reading::AllRead
            || self.gathered_since.elapsed() >= LINGER;
        if due {
            let (records, reached) = std::mem::take(&mut self.gathered).into_parts();
            let task = (!records.is_empty()).then(|| delivery.start(records));
            self.under_way.push_back(UnderWay { reached, task });
        }
    }

    /// Waits for what comes first. Cancelled, nothing is lost.
    pub(crate) async fn next_event(
        &mut self,
        batch_size: usize,
        messages: &mut mpsc::Receiver<Message>,
        tick: Instant,
        stop: &Stop,
    ) -> Event {
        let may_stop = match self.reading {
            Reading::Open => true,
            Reading::AllRead => !self.gathered.is_empty(),
            Reading::Stopped => false,
        };
        let may_begin = !self.gathered.is_empty() && self.has_place();
        let may_take = self.reading == Reading::Open && !self.gathered.is_full(batch_size);
        tokio::select! {
            biased;
            () = stop.wait(), if may_stop => Event::Signal,
            () = stop.grace_over() => Event::GraceOver,
            applied = oldest(&mut self.under_way), if !self.under_way.is_empty() => {
                Event::Applied(applied)
            }
            () = sleep_until(self.gathered_since + LINGER), if may_begin => Event::Lingered,
            () = sleep_until(tick) => Event::Tick,
            message = messages.recv(), if may_take => Event::Message(message),
        }
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

#[cfg(test)]
mod tests {
    use super::LINGER;
    use crate::cli::command;

    /// Whoever reads the help sizes an alarm by it.
    #[test]
    fn the_help_says_how_long_a_record_waits() {
        let command = command(100);
        let stream = command.find_subcommand("stream").expect("a command");
        let help = stream.get_long_about().expect("a help").to_string();
        let says = format!("A record waits at most {} s for others", LINGER.as_secs_f64());
        assert!(help.contains(&says), "{says}: {help}");
    }
}
