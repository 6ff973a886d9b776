//! What stands around the loop of a repair, in the order that the proof asks for: the lock, the row
//! in `repairs`, the replay of the streams up to its start, one timeout of the function; then the
//! loop, while the streams are followed.

use std::sync::Arc;
use std::time::Duration;

use aws_config::SdkConfig;
use projector::apply::Projector;
use projector::bind;
use projector::counts::Counts;
use projector::database::Database;
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::advisory_lock::{self, Held};
use crate::cli::ReReadArguments;
use crate::compare_tables;
use crate::console::{self, Progress, span};
use crate::items::api::TablesApi;
use crate::pending_objects;
use crate::repair::function;
use crate::repair::ledger;
use crate::repair::look::Looker;
use crate::repair::run::{End, Limits, Repair};
use crate::repair::source::Source;
use crate::repair::streams::Streams;
use crate::repair::tally::Tally;
use crate::replay::background::{Background, Summary};
use crate::replay::run::Pace;
use crate::stop::Stop;

/// The timeout that `infra/projector.yaml` gives the function.
pub(crate) const FUNCTION_TIMEOUT: time::Duration = time::Duration::seconds(180);
/// Records are stored in batches of at most this many.
const BATCH_SIZE: usize = 2_500;

/// Where the keys come from: for the summary, and for the table `repairs`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    /// The command, as the holder of the lock is named.
    pub(crate) command: &'static str,
    pub(crate) ledger: ledger::Source,
    /// In a few words, for people.
    pub(crate) name: &'static str,
}

/// What a run came to.
#[derive(Debug)]
pub(crate) struct Conducted {
    /// `None`: a signal came before the first item was read.
    pub(crate) ended: anyhow::Result<Option<End>>,
    pub(crate) tally: Tally,
    pub(crate) read_units: f64,
    /// What became of the records that the streams brought.
    pub(crate) streams: Counts,
    pub(crate) took: Duration,
}

/// What a run needs.
pub(crate) struct Conductor<'a> {
    pub(crate) projector: Arc<Projector>,
    pub(crate) aws: &'a SdkConfig,
    pub(crate) api: TablesApi,
    pub(crate) reading: &'a ReReadArguments,
    /// At most this many sessions are looked at per second, and at most as many written.
    pub(crate) max_rate: Option<u32>,
    pub(crate) stop: &'a Stop,
}

impl Conductor<'_> {
    /// Repairs what the source names, with this lock or a new one. `open` opens the source, and
    /// says how many items it has; it reads no item yet.
    ///
    /// # Errors
    /// If something keeps the run from its first item. What ends it after that is in
    /// [`Conducted::ended`].
    pub(crate) async fn run<'s>(
        &'s self,
        (origin, lock): (Origin, Option<Held>),
        open: impl AsyncFnOnce(&'s Looker<'s>) -> anyhow::Result<(Source<'s>, u64)>,
        looker: &'s Looker<'s>,
    ) -> anyhow::Result<Conducted> {
        let start = Instant::now();
        let database = &self.projector.database;
        let function_timeout = self.function_timeout().await?;
        let mut lock = match lock {
            Some(lock) => lock,
            None => Held::take(advisory_lock::REPAIR.by(origin.command), database).await?,
        };
        let (source, length) = open(looker).await?;
        let resume = ledger::unfinished(lock.connection()).await?.is_some();
        let begun = ledger::begin(lock.connection(), origin.ledger).await?;
        let pace = Pace::of(&self.reading.replay, BATCH_SIZE);
        let projector = Arc::clone(&self.projector);
        let mut streams = Background::start(self.aws, projector, (pace, resume)).await?;
        let progress = Progress::start(length);
        let held = (lock, Streams::Own(&mut streams));
        let limits = Limits { function_timeout, max_rate: self.max_rate };
        let mut repair = Repair::new(looker, &self.projector, held, limits, progress);
        let ended = self.after_the_streams(&mut repair, source, function_timeout).await;
        let Repair { mut lock, mut tally, progress, .. } = repair;
        drop(progress);
        let all_read = tally.unreadable.count == 0;
        let complete = all_read && matches!(ended, Ok(Some(End::AllSettled)));
        let written = tally.written + tally.removed;
        let kept =
            ledger::end(lock.connection(), begun.id, complete, tally.candidates, written).await;
        drop(lock);
        if let Err(error) = kept {
            let error = projector::error::chain(&error);
            tracing::warn!(error, "the row in repairs does not say how this repair ended");
        }
        let summary = streams.stop().await;
        let (streams, ended) = match (summary, ended) {
            (Ok(Summary { counts, lines }), ended) => {
                for line in &lines {
                    console::line(line);
                }
                (counts, ended)
            }
            (Err(error), Ok(Some(End::AllSettled))) => (Counts::default(), Err(error)),
            (Err(_), ended) => (Counts::default(), ended),
        };
        let ended = match ended {
            Ok(Some(End::AllSettled)) if self.projector.defers_objects => {
                self.write_objects(&mut tally).await
            }
            ended => ended,
        };
        if self.projector.defers_objects {
            tally.objects_pending = pending_objects::count(&self.projector).await;
        }
        let read_units = self.api.read_units();
        Ok(Conducted { ended, tally, read_units, streams, took: start.elapsed() })
    }

    /// Writes the objects of the images, and of the records that the streams brought meanwhile.
    ///
    /// That they were pending until now took no part in what the looks decided. A look takes the
    /// greater of the row's and the object's version as its base, and a pending object is behind
    /// its row, never ahead of it. To write it late is no new order of events, either: every
    /// writer of objects may be late, and compares with the row as it finds it.
    async fn write_objects(&self, tally: &mut Tally) -> anyhow::Result<Option<End>> {
        let mut counts = Counts::default();
        let ended = tokio::select! {
            biased;
            () = self.stop.wait() => Ok(Some(End::Stopped)),
            written = pending_objects::write(&self.projector, &mut counts) => {
                written.map(|()| Some(End::AllSettled))
            }
        };
        tally.objects += counts.objects_written + counts.objects_current;
        ended
    }

    /// The loop, once the streams have been read up to the beginning and no invocation from before
    /// it can still write.
    async fn after_the_streams(
        &self,
        repair: &mut Repair<'_>,
        source: Source<'_>,
        function_timeout: time::Duration,
    ) -> anyhow::Result<Option<End>> {
        let wait = function_timeout.unsigned_abs();
        tokio::select! {
            biased;
            () = self.stop.wait() => return Ok(None),
            reached = repair.streams.reached_cutoff() => reached?,
        }
        console::line(&format!(
            "the streams are read up to the start of this run; waiting {}, for which an invocation \
             that timed out may still write",
            span(wait)
        ));
        tokio::select! {
            biased;
            () = self.stop.wait() => return Ok(None),
            failed = repair.streams.failed() => return Err(failed),
            () = tokio::time::sleep(wait) => {}
        }
        repair.all(source, self.stop).await.map(Some)
    }

    async fn function_timeout(&self) -> anyhow::Result<time::Duration> {
        let given = self.reading.function_timeout_seconds;
        let given = given.map(|seconds| time::Duration::seconds(seconds.into()));
        if let Some(name) = &self.reading.function {
            let of_function = function::check(self.aws, name).await?;
            return Ok(given.unwrap_or(of_function));
        }
        let timeout = given.unwrap_or(FUNCTION_TIMEOUT);
        console::line(&format!(
            "assuming that the function's timeout is {} at most, and that it is less than 20 hours \
             behind its streams; --function NAME asks for both",
            span(timeout.unsigned_abs())
        ));
        Ok(timeout)
    }
}

/// Connections apart for each kind of work that another kind may have to wait for.
///
/// While the looks of a repair are at their limit, its loop does not poll its source. A statement
/// that is not polled keeps its connection. If it came from the same few connections, both would
/// wait for each other forever.
pub(crate) struct Connections {
    /// For what reads the source.
    pub(crate) source: Database,
    /// For the looks at parts that may differ.
    pub(crate) looks: Database,
}

impl Connections {
    pub(crate) fn apart_from(writes: &Database) -> Self {
        Self { source: writes.apart(), looks: writes.apart() }
    }
}

/// Both stores and the tables, as a repair looks at them.
///
/// # Errors
/// If the database or the tables cannot be asked.
pub(crate) async fn looker<'a>(
    projector: &'a Projector,
    api: &'a TablesApi,
    connections: &'a Connections,
) -> anyhow::Result<Looker<'a>> {
    let ttl_attributes = api.ttl_attributes(projector.ttl_removals).await?;
    let mut connection = projector.database.connect().await?;
    let (now,): (OffsetDateTime,) =
        connection.fetch_one("SELECT clock_timestamp()", bind![]).await?;
    let clock_ahead = (now - OffsetDateTime::now_utc()).max(time::Duration::ZERO);
    let archive = projector.archive.as_ref();
    let started = OffsetDateTime::now_utc();
    let over = |database| compare_tables::look::Looker {
        database,
        api,
        ttl_attributes: ttl_attributes.clone(),
        started,
    };
    let (first, rows_and_items) = (over(&connections.source), over(&connections.looks));
    Ok(Looker { first, rows_and_items, archive, clock_ahead })
}
