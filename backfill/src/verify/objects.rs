//! `verify --objects`: our rows and the objects of the archive. Only HEAD requests are sent, so
//! nothing is written.
//!
//! An object is never taken back, so one that lacked what its row held at first sight has caught up
//! as soon as it holds that. What the row holds by then plays no part: under constant writes an
//! object is always a moment behind.

use std::time::Duration;

use anyhow::anyhow;
use projector::apply::Found;
use projector::archive::Archive;
use projector::database::Database;

use crate::cli::VerifyArguments;
use crate::compare_objects::{Comparing, Differing};
use crate::console::{self, Progress};
use crate::statement;
use crate::stop::Stop;
use crate::verify::difference::{Difference, Kind};
use crate::verify::{End, Run};

/// If more objects than this differ, naming them all helps nobody.
const MOST: usize = 100_000;
/// At most this many sessions whose object could not be compared are named.
const NAMED: usize = 20;

/// Compares the object of every row after `--after`. What it found is in the run, however it ended.
///
/// # Errors
/// If the rows cannot be read, or if some objects cannot be compared.
pub(crate) async fn compare(
    database: &Database,
    archive: &Archive,
    arguments: &VerifyArguments,
    run: &mut Run<'_>,
) -> anyhow::Result<End> {
    let after = run.compared_through.clone();
    let counting = statement::count_rows(database, "count the rows", &after);
    let rows = tokio::select! {
        biased;
        () = run.stop.wait() => return Ok(End::Stopped),
        rows = counting => rows?,
    };
    let comparing = Comparing::new(archive, database, run.stop, after, true)
        .at_most_per_second(arguments.max_rate);
    let mut objects =
        Objects { comparing, progress: Progress::start(rows), stop: run.stop, waiting: Vec::new() };
    let ended = Box::pin(objects.until_done(run)).await;
    objects.leave(run, matches!(ended, Ok(End::AllCompared | End::TooManyDiffer)));
    ended
}

/// The comparison, and what differed when it was last looked at.
struct Objects<'a> {
    comparing: Comparing<'a>,
    progress: Progress,
    stop: &'a Stop,
    waiting: Vec<Differing>,
}

impl Objects<'_> {
    async fn until_done(&mut self, run: &mut Run<'_>) -> anyhow::Result<End> {
        loop {
            let ended = Box::pin(self.walk(run)).await?;
            if ended == End::Stopped {
                return Ok(End::Stopped);
            }
            let too_many = ended == End::TooManyDiffer;
            let rounds = if too_many { 1 } else { run.rounds };
            if !Box::pin(self.settle(rounds, run.wait)).await? {
                return Ok(End::Stopped);
            }
            if too_many && self.waiting.len() <= MOST {
                continue;
            }
            self.report(run)?;
            if too_many {
                console::line(&format!(
                    "more than {MOST} objects differ, so the comparison ends here: write them \
                     first, with `backfill objects`"
                ));
                return Ok(End::TooManyDiffer);
            }
            return self.all_compared();
        }
    }

    /// Compares the objects of all rows, or until too many differ.
    async fn walk(&mut self, run: &mut Run<'_>) -> anyhow::Result<End> {
        self.comparing.keep_what_differs(MOST.saturating_sub(self.waiting.len()));
        let before = self.comparing.tally().compared();
        let ended = self.comparing.until_done(&mut self.progress).await;
        run.report.tally.compared += self.comparing.tally().compared() - before;
        self.waiting.append(&mut self.comparing.take_differing());
        ended
    }

    /// Looks again at what differs, at most `rounds` times, each after this wait. `false` if a
    /// signal came first.
    async fn settle(&mut self, rounds: u16, wait: Duration) -> anyhow::Result<bool> {
        for round in 1..=rounds {
            if self.waiting.is_empty() {
                break;
            }
            console::line(&format!(
                "{} objects differ, and may be on their way: looked at again in {} s \
                 ({round} of {rounds})",
                self.waiting.len(),
                wait.as_secs()
            ));
            tokio::select! {
                biased;
                () = self.stop.wait() => return Ok(false),
                () = tokio::time::sleep(wait) => {}
            }
            let looking = self.comparing.look_again(self.waiting.clone(), &mut self.progress);
            tokio::select! {
                biased;
                () = self.stop.wait() => return Ok(false),
                looked = looking => looked?,
            }
            self.waiting = self.comparing.take_differing();
        }
        Ok(true)
    }

    /// Reports what still differs.
    fn report(&mut self, run: &mut Run<'_>) -> anyhow::Result<()> {
        self.waiting.sort_by(|a, b| a.session_id.cmp(&b.session_id));
        for Differing { session_id, found, .. } in self.waiting.drain(..) {
            let (kind, detail) = match found {
                Found::Missing => (Kind::Missing, "the row has no object"),
                Found::Behind | Found::UpToDate | Found::NotYet => (
                    Kind::Older,
                    "the object lacks a version that the row holds, or does not say what it holds",
                ),
            };
            let (ours, theirs, detail) = (None, None, detail.to_owned());
            run.report.add(Difference { session_id, part: None, kind, ours, theirs, detail })?;
        }
        Ok(())
    }

    /// # Errors
    /// If some objects could not be compared.
    fn all_compared(&self) -> anyhow::Result<End> {
        let left = self.comparing.left();
        if left.is_empty() {
            return Ok(End::AllCompared);
        }
        let (count, named) = (left.len(), left[..left.len().min(NAMED)].join(", "));
        let more = if count > NAMED { ", ..." } else { "" };
        Err(anyhow!("{count} objects could not be compared, the log above says why: {named}{more}"))
    }

    /// Says up to where all is compared, and what is not confirmed.
    fn leave(&mut self, run: &mut Run<'_>, is_done: bool) {
        if !is_done {
            for waiting in &self.waiting {
                run.report.leave_unconfirmed(&waiting.session_id);
            }
        }
        let waiting = self.waiting.iter().map(|waiting| waiting.previous.as_str());
        let resume = waiting.chain([self.comparing.resume_after()]).min();
        resume.unwrap_or_default().clone_into(&mut run.compared_through);
    }
}
