//! `backfill redrive --discard`: closes rejected records that nobody wants, for a stated reason.
//!
//! A discarded record keeps its row: it is out of the way of `redrive` and of the queries for open
//! records, and is not lost. When its stream delivers it again, it stays discarded.

use std::time::Instant;

use anyhow::Context as _;
use projector::apply::Pace;
use projector::counts::Counts;
use projector::database::Database;

use crate::commands::redrive::report::Report;
use crate::outcome::{Outcome, Remedy};
use crate::output::Output;
use crate::rejected_records::{self, BATCH, Filter};
use crate::stop::Stop;
use crate::summary::Reasons;

/// A run that discards.
pub(crate) struct Discarding<'a> {
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

impl<'a> Discarding<'a> {
    /// Of the records that the filter means; with `dry_run` it only says which.
    pub(crate) fn new(
        database: &'a Database,
        filter: Filter<'a>,
        why: &'a str,
        dry_run: bool,
    ) -> Self {
        Self {
            database,
            filter,
            why,
            dry_run,
            pace: Pace::new(BATCH),
            last: String::new(),
            records: 0,
            reasons: Reasons::default(),
        }
    }

    /// Discards all, and says what came of it, however it ended.
    pub(crate) async fn run(mut self, stop: &Stop, output: &Output) -> anyhow::Result<Outcome> {
        let start = Instant::now();
        let ended = self.until_done(stop).await;
        let seconds = start.elapsed().as_secs_f64();
        output
            .result(|| self.text(seconds), || serde_json::to_value(self.report(&ended, seconds)))?;
        if matches!(ended, Ok(Outcome::Interrupted)) {
            output.ended_early("stopped by a signal: run the same command again for the rest");
        }
        let remedy = "not all is discarded: run the same command again for the rest";
        ended.context(Remedy(remedy.to_owned()))
    }

    /// For people.
    fn text(&self, seconds: f64) -> String {
        let Self { records, reasons, dry_run, .. } = self;
        let heading = if *dry_run {
            format!("dry run, nothing was written: {records} records would be discarded\n")
        } else {
            format!(
                "{records} records discarded in {seconds:.1} s; their rows stay in \
                    rejected_records\n"
            )
        };
        heading + &reasons.text()
    }

    fn report(&self, ended: &anyhow::Result<Outcome>, seconds: f64) -> Report {
        let ended = match ended {
            Ok(Outcome::Interrupted) => "stopped",
            Ok(_) => "done",
            Err(_) => "failed",
        };
        let (dry_run, discarded) = (self.dry_run, self.records);
        let report = Report::new(ended, &Counts::default(), &self.reasons);
        Report { dry_run, seconds, discarded, ..report }
    }

    async fn until_done(&mut self, stop: &Stop) -> anyhow::Result<Outcome> {
        loop {
            let reading = rejected_records::next_reasons(
                self.database,
                &self.last,
                self.filter,
                &mut self.pace,
            );
            let found = tokio::select! {
                biased;
                () = stop.wait() => return Ok(Outcome::Interrupted),
                found = reading => found?,
            };
            let Some((last, _)) = found.last() else { return Ok(Outcome::Done) };
            self.last.clone_from(last);
            tokio::select! {
                biased;
                done = self.page(found) => done?,
                () = stop.grace_over() => return Ok(Outcome::Interrupted),
            }
        }
    }

    async fn page(&mut self, found: Vec<(String, String)>) -> anyhow::Result<()> {
        let (identities, reasons): (Vec<String>, Vec<String>) = found.into_iter().unzip();
        self.records += if self.dry_run {
            identities.len() as u64
        } else {
            rejected_records::discard(self.database, &identities, self.why, &mut self.pace).await?
        };
        for reason in reasons {
            self.reasons.add(reason);
        }
        Ok(())
    }
}
