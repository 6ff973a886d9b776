//! `backfill file`: replays files (what Lambda gave up on, fixture streams) through the projector's
//! own apply path.
//!
//! What can be applied is applied; what cannot be read is named, and holds nothing else up. The
//! files are read on a thread of their own: standard input may wait for ever, and a signal must end
//! the command even then.

mod batches;
mod created;
mod input;
mod late;
mod merged;
mod report;

use std::collections::{BTreeSet, VecDeque};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use projector::change::Tables;
use projector::config::{Config, ConfigError};
use projector::counts::Counts;
use projector::start;
use serde_json::{Value as Json, json};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::cli::{FileArguments, Settings};
use crate::commands::file::batches::{Batch, Batches};
use crate::commands::file::input::{Input, Listing};
use crate::commands::file::late::Late;
use crate::commands::file::merged::BOUNDS;
use crate::commands::file::report::{FileReport, Tally};
use crate::console::{self, Progress, span};
use crate::deliver::{Delivered, Delivery, validate};
use crate::documents::document::Extractor;
use crate::documents::dump::StreamArn;
use crate::outcome::{Outcome, Remedy};
use crate::output::Output;
use crate::pending_objects;
use crate::repair::reread::Replay;
use crate::stop::Stop;
use crate::summary::{self, Reasons};

/// This many batches are applied at once: one is decoded while another is in the database. One more
/// is being read.
const UNDER_WAY: usize = 2;

pub(crate) async fn run(
    settings: &Settings,
    arguments: &FileArguments,
    stop: &Stop,
    output: &Output,
) -> anyhow::Result<Outcome> {
    let config =
        if arguments.dry_run { settings.config_without_database() } else { settings.config() }?;
    let extractor = extractor(arguments, &config)?;
    let listing = Listing::of(&arguments.paths)?;
    if listing.inputs.is_empty() && listing.unreadable.is_empty() {
        bail!("{}", nothing_found(arguments, &listing));
    }
    for path in &listing.empty {
        console::line(&format!("no files in {}: is this the right path?", path.display()));
    }
    let store = if arguments.dry_run {
        Store::Nowhere(config.tables, Counts::default(), Reasons::default())
    } else {
        let projector = start::projector_with_credentials(config).await?;
        Store::Projector(Box::new(Delivery::deferring(projector)))
    };
    let mut late = Late::default();
    if let Store::Projector(delivery) = &store {
        late.tell(&delivery.projector().database).await?;
    }
    let mut replay = FileReplay {
        store,
        late,
        tally: Tally::default(),
        progress: Progress::start(listing.bytes()),
        under_way: VecDeque::new(),
        remaining: (0..listing.inputs.len()).collect(),
        inputs: listing.inputs,
        start: Instant::now(),
    };
    for (path, reason) in listing.unreadable {
        replay.tally.add(&FileReport::unreadable(path.display().to_string(), reason));
    }
    let mut end = replay.all(extractor, arguments.batch_size as usize, stop).await;
    if let Store::Projector(delivery) = &mut replay.store {
        if matches!(end, Ok(End::AllRead)) {
            end = match delivery.write_objects(stop.wait()).await {
                Ok(true) => Ok(End::AllRead),
                Ok(false) => Ok(End::RowsStored),
                Err(error) => Err(error),
            };
        }
        delivery.count_pending_objects().await;
    }
    replay.finish(end, listing.hidden, output)
}

fn extractor(arguments: &FileArguments, config: &Config) -> Result<Extractor, ConfigError> {
    let arn = arguments.stream_arn.as_deref();
    let stream_arn = arn.map(|arn| StreamArn::parse(arn, &config.tables)).transpose();
    let stream_arn =
        stream_arn.map_err(|problem| ConfigError { variable: "--stream-arn", problem })?;
    Ok(Extractor { tables: config.tables.clone(), stream_arn })
}

fn nothing_found(arguments: &FileArguments, listing: &Listing) -> String {
    let paths: Vec<String> =
        arguments.paths.iter().map(|path| path.display().to_string()).collect();
    let hidden = match listing.hidden {
        0 => String::new(),
        hidden => format!(" ({hidden} left out, because their names begin with a dot)"),
    };
    format!("no files in {}{hidden}: is this the right path?", paths.join(", "))
}

/// Where records go.
enum Store {
    Projector(Box<Delivery>),
    /// A dry run: they are decoded and counted.
    Nowhere(Tables, Counts, Reasons),
}

impl Store {
    fn counts(&self) -> &Counts {
        match self {
            Self::Projector(delivery) => &delivery.counts,
            Self::Nowhere(_, counts, _) => counts,
        }
    }

    /// A task that applies these records.
    fn start(&mut self, records: Vec<Vec<u8>>) -> anyhow::Result<Task> {
        Ok(match self {
            _ if records.is_empty() => None,
            Self::Projector(delivery) => Some(delivery.start(records)),
            Self::Nowhere(tables, counts, reasons) => {
                validate(&records, tables, counts, reasons)?;
                None
            }
        })
    }
}

/// `None` if there is nothing to wait for.
type Task = Option<JoinHandle<anyhow::Result<Delivered>>>;

/// How a replay ended, if not by an error.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// All is in both stores.
    AllRead,
    /// A signal came while objects were written.
    RowsStored,
    /// A signal came before that.
    Stopped,
}

/// A run.
struct FileReplay {
    store: Store,
    tally: Tally,
    progress: Progress,
    /// What becomes of what Lambda gave up on.
    late: Late,
    /// The batches that are being applied, without their records; the first is the oldest.
    under_way: VecDeque<(Batch, Task)>,
    inputs: Vec<Input>,
    /// The indices of those that have not been read and applied to their end.
    remaining: BTreeSet<usize>,
    start: Instant,
}

impl FileReplay {
    /// Applies all batches, or those under way when a signal comes.
    async fn all(
        &mut self,
        extractor: Extractor,
        batch_size: usize,
        stop: &Stop,
    ) -> anyhow::Result<End> {
        let (sender, mut batches) = mpsc::channel(1);
        let (handle, inputs) = (Handle::current(), self.inputs.clone());
        let reader = thread::spawn(move || {
            let mut batches = Batches::of(inputs, extractor, (batch_size, BOUNDS));
            // A batch is read once there is a place for it, so that one at most is in memory beside
            // those under way.
            while let Ok(place) = handle.block_on(sender.reserve())
                && let Some(batch) = batches.next()
            {
                place.send(batch);
            }
        });
        let (mut reading, mut stopped) = (true, false);
        while reading || !self.under_way.is_empty() {
            tokio::select! {
                biased;
                () = stop.wait(), if reading => {
                    (reading, stopped) = (false, true);
                    batches.close();
                }
                () = stop.grace_over() => return Ok(End::Stopped),
                delivered = oldest(&mut self.under_way), if !self.under_way.is_empty() => {
                    self.applied(delivered)?;
                }
                batch = batches.recv(), if reading && self.under_way.len() < UNDER_WAY => match batch {
                    // Replaying them at the same time is harmless: versions decide, not the order.
                    Some(batch) => self.begin(batch).await?,
                    None => reading = false,
                },
            }
        }
        if stopped {
            return Ok(End::Stopped);
        }
        if reader.join().is_err() {
            bail!("the thread that reads the files panicked");
        }
        Ok(End::AllRead)
    }

    async fn begin(&mut self, mut batch: Batch) -> anyhow::Result<()> {
        let mut records = std::mem::take(&mut batch.records);
        let mut late = std::mem::take(&mut batch.late);
        if !late.is_empty()
            && self.keep_late(&late).await.with_context(|| Remedy(self.stopped_at(&batch)))?
        {
            late.clear();
        }
        records.append(&mut late);
        let task = self.store.start(records).with_context(|| Remedy(self.stopped_at(&batch)))?;
        self.under_way.push_back((batch, task));
        Ok(())
    }

    /// Keeps late records for `redrive`, if that is what becomes of them.
    async fn keep_late(&mut self, late: &[Vec<u8>]) -> anyhow::Result<bool> {
        let Store::Projector(delivery) = &mut self.store else { return Ok(false) };
        match self.late.replay(&delivery.projector().database).await? {
            Replay::ApplyByVersion => Ok(false),
            Replay::ReRead => late::keep(delivery, late).await.map(|()| true),
        }
    }

    /// Accounts for the oldest batch.
    fn applied(&mut self, delivered: anyhow::Result<Option<Delivered>>) -> anyhow::Result<()> {
        let Some((batch, _)) = self.under_way.pop_front() else { return Ok(()) };
        let delivered = delivered.with_context(|| Remedy(self.stopped_at(&batch)))?;
        if let (Store::Projector(delivery), Some(delivered)) = (&mut self.store, delivered) {
            delivery.add(delivered);
        }
        for (index, report) in &batch.ended {
            self.tally.add(report);
            self.remaining.remove(index);
        }
        let files = format!("{}/{} files", self.done(), self.inputs.len());
        let counts = self.store.counts();
        let counts = (counts.records, counts.rejected);
        self.progress.advance_files(batch.input_bytes, counts, &files);
        Ok(())
    }

    /// Where a run stopped, and which files are done.
    fn stopped_at(&self, batch: &Batch) -> String {
        let last = batch.last.and_then(|(index, number)| Some((self.inputs.get(index)?, number)));
        let batch = match last {
            Some((file, number)) => format!("the batch that ends at record {number} of {file}"),
            None => "a batch".to_owned(),
        };
        format!("stopped in {batch}; {}", self.resume())
    }

    /// How many files have been read and applied.
    fn done(&self) -> usize {
        self.inputs.len() - self.remaining.len()
    }

    /// Which files are done, and how to resume.
    fn resume(&self) -> String {
        let (done, all) = (self.done(), self.inputs.len());
        let first =
            self.remaining.first().and_then(|first| Some((*first, self.inputs.get(*first)?)));
        let which = match first {
            None => "all".to_owned(),
            Some(_) if done == 0 => "none".to_owned(),
            Some((first, input)) if done == first => format!("all before {input}"),
            // Files are merged, so a later one may end first.
            Some((_, input)) => format!("the first that is not: {input}"),
        };
        format!(
            "{done} of {all} files are done ({which}). Run the same command again, which is \
             harmless: what is stored already counts as duplicate"
        )
    }

    /// The summary, and what the run came to.
    fn finish(
        self,
        end: anyhow::Result<End>,
        hidden: u64,
        output: &Output,
    ) -> anyhow::Result<Outcome> {
        let counts = *self.store.counts();
        let (heading, ended) = match &end {
            Ok(End::AllRead) => ("done", "done"),
            Ok(End::Stopped | End::RowsStored) => ("stopped by a signal", "stopped"),
            // The error says it all.
            Err(_) if counts.records == 0 => return end.map(|_| Outcome::Done),
            Err(_) => ("stopped by an error", "failed"),
        };
        let duration = self.start.elapsed();
        output.result(
            || self.text(heading, duration) + &self.tally.text(hidden),
            || Ok(self.json(ended, duration, hidden)),
        )?;
        let end = end?;
        if end == End::RowsStored {
            output.ended_early(
                "stopped by a signal: all rows are stored. The same command again writes the \
                 objects that are pending, and so does `backfill objects --pending`",
            );
            return Ok(Outcome::Interrupted);
        }
        if end == End::Stopped {
            if !self.under_way.is_empty() {
                console::line(&format!(
                    "{} batches were not finished within {}",
                    self.under_way.len(),
                    span(crate::stop::GRACE)
                ));
            }
            output.ended_early(&format!("stopped by a signal: {}", self.resume()));
            return Ok(Outcome::Interrupted);
        }
        self.tally.check()?;
        Ok(Outcome::of(&counts))
    }

    /// For people.
    fn text(&self, heading: &str, duration: Duration) -> String {
        match &self.store {
            Store::Projector(delivery) => {
                let Delivery { counts, not_counted, reasons, objects_pending, .. } = &**delivery;
                summary::text(heading, counts, *not_counted, reasons, duration)
                    + &pending_objects::line(*objects_pending)
            }
            Store::Nowhere(_, counts, reasons) => {
                summary::dry_text(counts.records, counts.rejected, reasons)
            }
        }
    }

    fn json(&self, ended: &str, duration: Duration, hidden: u64) -> Json {
        let (dry_run, not_counted, reasons, pending) = match &self.store {
            Store::Projector(delivery) => {
                (false, delivery.not_counted, &delivery.reasons, delivery.objects_pending)
            }
            Store::Nowhere(_, _, reasons) => (true, 0, reasons, None),
        };
        json!({
            "ended": ended,
            "dry_run": dry_run,
            "seconds": duration.as_secs_f64(),
            "counts": summary::counts_json(self.store.counts()),
            "not_counted": not_counted,
            "objects_pending": pending,
            "reasons": reasons.json(),
            "files": self.tally.json(hidden),
        })
    }
}

/// Waits for the oldest batch. Cancelled, it waits for the same one again.
async fn oldest(under_way: &mut VecDeque<(Batch, Task)>) -> anyhow::Result<Option<Delivered>> {
    match under_way.front_mut() {
        Some((_, Some(task))) => task.await.context("a delivery panicked")?.map(Some),
        _ => Ok(None),
    }
}
