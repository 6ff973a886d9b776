//! `backfill redrive`: tries the records of `rejected_records` again, through the same apply path,
//! and removes those that are now in both stores, and those that a newer change has overtaken.
//!
//! A record is removed after it is stored: whatever ends the run, none is lost, and the same
//! command resumes.

mod discard;
mod report;
mod reread;
mod untried;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::bail;
use projector::apply::Pace;
use projector::change::{self, Decoded, Place, Tables};
use projector::config::ConfigError;
use projector::counts::Counts;
use projector::start;

use crate::advisory_lock::{self, Held};
use crate::cli::{RedriveArguments, Settings};
use crate::commands::redrive::discard::Discarding;
use crate::commands::redrive::report::Report;
use crate::commands::redrive::untried::Untried;
use crate::console::{self, Progress};
use crate::deliver::{Delivery, NotStored};
use crate::outcome::Outcome;
use crate::output::Output;
use crate::rejected_records::{self, BATCH, Filter, Rejected};
use crate::repair::ledger;
use crate::repair::reread::Replay;
use crate::stop::Stop;
use crate::summary::{self, Reasons};

/// At most this many of the records that could not be stored are named.
const NAMED: usize = 20;

pub(crate) async fn run(
    settings: &Settings,
    arguments: &RedriveArguments,
    stop: &Stop,
    output: &Output,
) -> anyhow::Result<Outcome> {
    let config = settings.config()?;
    let filter =
        Filter { reason: arguments.reason.as_deref(), identity: arguments.identity.as_deref() };
    let without_archive = config.archive.is_none();
    let delivery = Delivery::of_rejected(start::projector_with_credentials(config).await?);
    let database = &delivery.projector().database;
    let rows = tokio::select! {
        biased;
        rows = rejected_records::count(database, filter) => rows?,
        () = stop.wait() => {
            output.ended_early("stopped by a signal before the first record was tried");
            return Ok(Outcome::Interrupted);
        }
    };
    if let (0, Some(identity)) = (rows, filter.identity) {
        bail!(
            "rejected_records has no open record with the identity {identity:?} and these filters"
        );
    }
    if let Some(why) = arguments.why.as_deref().filter(|_| arguments.discard) {
        let discarding = Discarding::new(database, filter, why, arguments.dry_run);
        return discarding.run(stop, output).await;
    }
    let lock = if arguments.dry_run {
        None
    } else {
        Held::take_unless_pooled(advisory_lock::REPAIR.by("backfill redrive"), database).await?
    };
    // With the lock held: a repair that ran whole after the question would not be noticed.
    match ledger::late_records(database).await? {
        Replay::ApplyByVersion => {}
        Replay::ReRead => {
            let keys = reread::Keys { filter, records: rows };
            return reread::run((delivery, lock), arguments, keys, stop, output).await;
        }
    }
    if without_archive && !arguments.dry_run {
        console::line(
            "ARCHIVE_BUCKET is not set: a record is removed when it is in the database, no object \
                is written",
        );
    }
    let redrive = Redrive {
        delivery,
        lock,
        filter,
        dry_run: arguments.dry_run,
        pace: Pace::new(BATCH),
        last: String::new(),
        tally: Tally::default(),
        progress: Progress::start(rows),
    };
    redrive.run(stop, output).await
}

/// How a run ended that did not fail.
enum End {
    AllTried,
    Stopped,
}

struct Redrive<'a> {
    delivery: Delivery,
    /// Keeps a merge, a repair and another redrive away; a dry run has none.
    lock: Option<Held>,
    filter: Filter<'a>,
    dry_run: bool,
    pace: Pace,
    /// The last identity that was read.
    last: String,
    tally: Tally,
    progress: Progress,
}

/// What came of the records, beside what the delivery counts.
#[derive(Default)]
struct Tally {
    /// What a dry run found.
    dry: Counts,
    reasons: Reasons,
    /// Removed from the table, the overtaken ones too.
    removed: u64,
    /// A newer change is in their rows.
    overtaken: u64,
    untried: Untried,
    /// They could not be stored while others could.
    failed: Vec<String>,
}

/// What is done with the records of a batch.
#[derive(Default)]
struct Sorted {
    tried: Vec<Rejected>,
    /// Where the malformed ones among them belong, by their index.
    places: Vec<(usize, Place)>,
}

impl Redrive<'_> {
    /// Tries all, and says what came of it, however it ended.
    async fn run(mut self, stop: &Stop, output: &Output) -> anyhow::Result<Outcome> {
        let start = Instant::now();
        let ended = self.until_done(stop).await;
        let duration = start.elapsed();
        let end = match &ended {
            Ok(End::AllTried) => "done",
            Ok(End::Stopped) => "stopped",
            Err(_) => "failed",
        };
        output.result(
            || self.text(end, duration),
            || serde_json::to_value(self.report(end, duration)),
        )?;
        let Self { delivery, lock: _lock, tally, progress, dry_run, .. } = self;
        drop(progress);
        match ended? {
            End::AllTried => {
                let counts = if dry_run { tally.dry } else { delivery.counts };
                tally.outcome(counts, &delivery.projector().tables)
            }
            End::Stopped => {
                let why = "stopped by a signal: run the same command again to try the rest";
                output.ended_early(why);
                Ok(Outcome::Interrupted)
            }
        }
    }

    /// For people.
    fn text(&self, end: &str, duration: Duration) -> String {
        let Self { delivery, tally, dry_run, .. } = self;
        let summary = if *dry_run {
            summary::dry_text(tally.dry.records, tally.dry.rejected, &tally.reasons)
        } else {
            let Delivery { counts, not_counted, reasons, .. } = delivery;
            summary::text(end, counts, *not_counted, reasons, duration)
        };
        summary + &tally.text(*dry_run)
    }

    fn report(&self, end: &'static str, duration: Duration) -> Report {
        let Self { delivery, tally, dry_run, .. } = self;
        let (counts, reasons) = if *dry_run {
            (&tally.dry, &tally.reasons)
        } else {
            (&delivery.counts, &delivery.reasons)
        };
        Report {
            dry_run: *dry_run,
            seconds: duration.as_secs_f64(),
            not_counted: delivery.not_counted,
            removed: tally.removed,
            overtaken: tally.overtaken,
            untried: tally.untried.json(),
            not_stored: tally.failed.clone(),
            ..Report::new(end, counts, reasons)
        }
    }

    async fn until_done(&mut self, stop: &Stop) -> anyhow::Result<End> {
        loop {
            let database = &self.delivery.projector().database;
            if let Some(lock) = &mut self.lock {
                lock.keep(database).await?;
            }
            // If the lock was lost for a moment, a repair may have run.
            if !self.dry_run && ledger::late_records(database).await? == Replay::ReRead {
                bail!("a repair of this database ran meanwhile: run the same command again");
            }
            let reading = rejected_records::next(database, &self.last, self.filter, &mut self.pace);
            let batch = tokio::select! {
                biased;
                () = stop.wait() => return Ok(End::Stopped),
                batch = reading => batch?,
            };
            let Some(newest) = batch.last() else { return Ok(End::AllTried) };
            self.last.clone_from(&newest.identity);
            tokio::select! {
                biased;
                done = self.batch(batch) => done?,
                () = stop.grace_over() => return Ok(End::Stopped),
            }
        }
    }

    /// Tries these records, and removes those that need no other try.
    async fn batch(&mut self, batch: Vec<Rejected>) -> anyhow::Result<()> {
        let records = batch.len() as u64;
        let sorted = self.sort(batch);
        let (tried, mut removed) = self.without_overtaken(sorted).await?;
        if self.dry_run {
            self.validate(&tried);
        } else {
            removed.append(&mut self.deliver(tried).await?);
            let database = &self.delivery.projector().database;
            rejected_records::remove(database, &removed, &mut self.pace).await?;
            self.tally.removed += removed.len() as u64;
        }
        let counts = if self.dry_run { &self.tally.dry } else { &self.delivery.counts };
        self.progress.advance(records, counts.records, counts.rejected);
        Ok(())
    }

    /// Takes out what cannot be tried: it would end the batch, and the good records with it.
    fn sort(&mut self, batch: Vec<Rejected>) -> Sorted {
        let tables = &self.delivery.projector().tables;
        let mut sorted = Sorted::default();
        for rejected in batch {
            match change::decode(&rejected.record, tables) {
                Err(misconfigured) => {
                    self.tally.untried.add(rejected.identity, misconfigured);
                    continue;
                }
                Ok(Decoded::Change(_)) => {}
                Ok(Decoded::Malformed(_)) => {
                    let place = change::place_of(&rejected.record, tables);
                    sorted.places.extend(place.map(|place| (sorted.tried.len(), place)));
                }
            }
            sorted.tried.push(rejected);
        }
        sorted
    }

    /// Takes out the malformed records whose rows hold a newer change: nobody needs them any more.
    /// Returns the records to try, and the identities of those taken out.
    async fn without_overtaken(
        &mut self,
        Sorted { tried, places }: Sorted,
    ) -> anyhow::Result<(Vec<Rejected>, Vec<String>)> {
        if places.is_empty() {
            return Ok((tried, Vec::new()));
        }
        let database = &self.delivery.projector().database;
        let (indices, places): (Vec<usize>, Vec<Place>) = places.into_iter().unzip();
        let overtaken = rejected_records::overtaken(database, &places, &mut self.pace).await?;
        let taken_out: Vec<usize> = indices
            .into_iter()
            .zip(overtaken)
            .filter_map(|(index, overtaken)| overtaken.then_some(index))
            .collect();
        self.tally.overtaken += taken_out.len() as u64;
        let (mut remaining, mut identities) = (Vec::new(), Vec::new());
        for (index, rejected) in tried.into_iter().enumerate() {
            if taken_out.binary_search(&index).is_ok() {
                identities.push(rejected.identity);
            } else {
                remaining.push(rejected);
            }
        }
        Ok((remaining, identities))
    }

    /// Applies the records, and returns the identities of those that are stored.
    async fn deliver(&mut self, tried: Vec<Rejected>) -> anyhow::Result<Vec<String>> {
        if tried.is_empty() {
            return Ok(Vec::new());
        }
        let (identities, records): (Vec<String>, Vec<Vec<u8>>) =
            tried.into_iter().map(|Rejected { identity, record }| (identity, record)).unzip();
        let NotStored { rejected, failed } = self.delivery.deliver_or_leave(records).await?;
        let mut stored = Vec::new();
        for (index, identity) in identities.into_iter().enumerate() {
            if failed.binary_search(&index).is_ok() {
                self.tally.failed.push(identity);
            } else if rejected.binary_search(&index).is_err() {
                stored.push(identity);
            }
        }
        Ok(stored)
    }

    /// Decodes the records and counts; writes nothing.
    fn validate(&mut self, tried: &[Rejected]) {
        let Tally { dry, reasons, .. } = &mut self.tally;
        for Rejected { record, .. } in tried {
            dry.records += 1;
            if let Ok(Decoded::Malformed(malformed)) =
                change::decode(record, &self.delivery.projector().tables)
            {
                dry.rejected += 1;
                reasons.add(malformed.to_string());
            }
        }
    }
}

impl Tally {
    /// For people, below the summary.
    fn text(&self, dry_run: bool) -> String {
        let Self { removed, overtaken, untried, .. } = self;
        let mut text = String::new();
        if !dry_run {
            let _ = writeln!(text, "{removed} records removed from rejected_records");
        }
        if *overtaken > 0 {
            let tense = if dry_run { "more would be removed" } else { "of them were not applied" };
            let _ = writeln!(
                text,
                "  {overtaken} {tense}: malformed, and their rows hold a newer change"
            );
        }
        text + &untried.text()
    }

    /// What a run came to that tried all: if not a single record is one of the configured tables,
    /// the configuration is wrong and not the records.
    fn outcome(self, counts: Counts, tables: &Tables) -> anyhow::Result<Outcome> {
        let Self { overtaken, untried, failed, .. } = self;
        if !failed.is_empty() {
            let more = if failed.len() > NAMED { ", ..." } else { "" };
            bail!(
                "{} records could not be stored, the log above says why: {}{more}. They stay in \
                 rejected_records: fix the cause and run the same command again",
                failed.len(),
                failed[..failed.len().min(NAMED)].join(", ")
            );
        }
        let of_tables = counts.records + overtaken + untried.without_image;
        if untried.foreign > 0 && of_tables == 0 {
            let Tables { sessions, scans } = tables;
            let problem = format!(
                "is {sessions:?} and SCANS_TABLE is {scans:?}, and none of the {} records is of \
                 these tables: correct the variable, or discard the records",
                untried.foreign
            );
            return Err(ConfigError { variable: "SESSIONS_TABLE", problem }.into());
        }
        Ok(if untried.count() > 0 { Outcome::DoneWithRejections } else { Outcome::of(&counts) })
    }
}
