//! An event source mapping with one lane, as Lambda's documentation describes it: retries, a batch
//! that ended in an error split in two, partial failures, and an end to the retries. (That of the
//! testkit drives AWS's emulator, which is too slow to measure with.)

use std::collections::VecDeque;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use fastrand::Rng;
use testkit::emulator::event;
use testkit::gates::TcpGate;
use testkit::mapping::{Answer, read};
use testkit::records::Record;
use testkit::runtime_api::Function;
use testkit::services::Stores;

use super::Handler;
use super::history::History;
use crate::servers;

/// `MaximumRetryAttempts`: after this many a batch goes to the bucket of failures.
pub(super) const MAX_RETRIES: u32 = 5;
/// How long the database is away.
const OUTAGE: Duration = Duration::from_secs(1);
/// Between a failure and the next try.
fn pause(history: History) -> Duration {
    match history {
        // The retries last longer than the outage, as Lambda's do.
        History::Outage => OUTAGE / 3,
        _ => Duration::from_millis(10),
    }
}

/// A function that runs, and can be started again.
pub(super) struct Mapping {
    handler: Handler,
    /// Reached through the gate.
    stores: Stores,
    gate: Arc<TcpGate>,
    function: Option<Function>,
    /// How long the last batch took: within this time a kill comes.
    batch_took: Duration,
    rng: Rng,
}

/// The handler, rows alone. What it says of the faults that it meets is of no interest.
async fn start(handler: Handler, stores: &Stores) -> anyhow::Result<Function> {
    let mut command = handler.command()?;
    command.stderr(Stdio::null());
    let mut function = servers::function(command, stores, None).await?;
    function.first_poll().await?;
    Ok(function)
}

impl Mapping {
    /// Starts the handler on these stores.
    ///
    /// # Errors
    /// If it does not start.
    pub(super) async fn start(handler: Handler, stores: &Stores) -> anyhow::Result<Self> {
        let gate = Arc::new(TcpGate::open(stores.database_host()).await);
        let stores = stores.with_database_at(&gate.address.to_string());
        let function = start(handler, &stores).await?;
        let batch_took = Duration::from_millis(20);
        let rng = Rng::with_seed(9);
        Ok(Self { handler, stores, gate, function: Some(function), batch_took, rng })
    }

    /// Delivers all batches, and gives how many records were given up.
    ///
    /// # Errors
    /// If the handler cannot be started again.
    pub(super) async fn deliver(
        &mut self,
        history: History,
        batches: &[Vec<Record>],
    ) -> anyhow::Result<usize> {
        let mut given_up = 0;
        for (number, batch) in batches.iter().enumerate() {
            if history.strikes(number) {
                match history {
                    History::Killed => self.kill_midway(batch).await?,
                    History::Outage => self.take_database_away(),
                    _ => {}
                }
            }
            given_up += self.deliver_batch(batch, pause(history)).await?;
        }
        Ok(given_up)
    }

    /// Ends the function.
    ///
    /// # Errors
    /// If it cannot be ended.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        match self.function.take() {
            Some(function) => function.stop().await,
            None => Ok(()),
        }
    }

    async fn deliver_batch(&mut self, batch: &[Record], pause: Duration) -> anyhow::Result<usize> {
        let mut given_up = 0;
        let mut waiting = VecDeque::from([(batch, 0)]);
        while let Some((batch, retries)) = waiting.pop_front() {
            let failed = match self.invoke(batch).await? {
                Answer::Done => continue,
                Answer::Error if batch.len() > 1 => {
                    // A split is no retry.
                    let (first, second) = batch.split_at(batch.len() / 2);
                    waiting.push_front((second, retries));
                    waiting.push_front((first, retries));
                    tokio::time::sleep(pause / 10).await;
                    continue;
                }
                Answer::Error => batch,
                Answer::FailedFrom(place) => &batch[place..],
            };
            if retries == MAX_RETRIES {
                given_up += failed.len();
            } else {
                tokio::time::sleep(pause).await;
                waiting.push_front((failed, retries + 1));
            }
        }
        Ok(given_up)
    }

    async fn invoke(&mut self, batch: &[Record]) -> anyhow::Result<Answer> {
        let event = event(batch.iter().map(|record| record.json.as_str()));
        let function = self.function.as_mut().context("no function")?;
        match function.answer(event.into()).await {
            Ok(answered) => {
                self.batch_took = answered.duration;
                Ok(read(&serde_json::from_slice(&answered.answer)?, batch))
            }
            // It ended. Lambda starts another one.
            Err(_) => {
                self.restart().await?;
                Ok(Answer::Error)
            }
        }
    }

    /// Hands out the batch, and kills the function at some moment of it.
    async fn kill_midway(&mut self, batch: &[Record]) -> anyhow::Result<()> {
        let event = event(batch.iter().map(|record| record.json.as_str()));
        let after = self.batch_took.mul_f64(self.rng.f64());
        let function = self.function.as_mut().context("no function")?;
        // Whether it answered before does not matter: Lambda may not have heard it.
        let _ = tokio::time::timeout(after, function.answer(event.into())).await;
        self.restart().await
    }

    async fn restart(&mut self) -> anyhow::Result<()> {
        if let Some(function) = self.function.take() {
            // It may have ended by itself.
            let _ = function.stop().await;
        }
        self.function = Some(start(self.handler, &self.stores).await?);
        Ok(())
    }

    /// From now on, and for a while.
    fn take_database_away(&self) {
        self.gate.set_open(false);
        let gate = Arc::clone(&self.gate);
        tokio::spawn(async move {
            tokio::time::sleep(OUTAGE).await;
            gate.set_open(true);
        });
    }
}
