//! `backfill redrive --discard`: closes rejected records that nobody wants, for a stated reason.
//!
//! A discarded record keeps its row: it is out of the way of `redrive` and of the queries for open records, and
//! is not lost. When its stream delivers it again, it stays discarded.

use std::time::Instant;

use anyhow::Context as _;
use projector::apply::Pace;
use projector::database::Database;

use crate::commands::redrive::rejected::{self, BATCH, Filter};
use crate::console::{self, say};
use crate::outcome::{Outcome, Remedy};
use crate::stop::Stop;
use crate::summary::Reasons;

/// Discards the records that the filter means; with `dry_run` only says which.
pub(crate) async fn run(
    database: &Database,
    filter: Filter<'_>,
    why: &str,
    dry_run: bool,
    stop: &Stop,
) -> anyhow::Result<Outcome> {
    let start = Instant::now();
    let mut discarding = Discarding {
        database,
        filter,
        why,
        dry_run,
        pace: Pace::new(BATCH),
        last: String::new(),
        records: 0,
        reasons: Reasons::default(),
    };
    let ended = discarding.until_done(stop).await;
    let Discarding { records, reasons, .. } = discarding;
    if dry_run {
        say!("dry run, nothing was written: {records} records would be discarded");
    } else {
        let seconds = start.elapsed().as_secs_f64();
        say!("{records} records discarded in {seconds:.1} s; their rows stay in rejected_records");
    }
    reasons.print();
    ended
        .context(Remedy("not all is discarded: run the same command again for the rest".to_owned()))
}

struct Discarding<'a> {
    database: &'a Database,
    filter: Filter<'a>,
    why: &'a str,
    dry_run: bool,
    pace: Pace,
    /// The last identity that was read.
    last: String,
    records: u64,
    reasons: Reasons,
}

impl Discarding<'_> {
    async fn until_done(&mut self, stop: &Stop) -> anyhow::Result<Outcome> {
        loop {
            let reading =
                rejected::next_reasons(self.database, &self.last, self.filter, &mut self.pace);
            let found = tokio::select! {
                biased;
                () = stop.wait() => return Ok(stopped()),
                found = reading => found?,
            };
            let Some((last, _)) = found.last() else { return Ok(Outcome::Done) };
            self.last.clone_from(last);
            tokio::select! {
                biased;
                done = self.page(found) => done?,
                () = stop.grace_over() => return Ok(stopped()),
            }
        }
    }

    async fn page(&mut self, found: Vec<(String, String)>) -> anyhow::Result<()> {
        let (identities, reasons): (Vec<String>, Vec<String>) = found.into_iter().unzip();
        self.records += if self.dry_run {
            identities.len() as u64
        } else {
            rejected::discard(self.database, &identities, self.why, &mut self.pace).await?
        };
        for reason in reasons {
            self.reasons.add(reason);
        }
        Ok(())
    }
}

fn stopped() -> Outcome {
    console::line("stopped by a signal: run the same command again for the rest");
    Outcome::Interrupted
}
