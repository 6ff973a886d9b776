//! The run of a replay that is prepared: a task per stream that reads its shards, one that finds
//! new streams, and one collector of their pages.

use std::sync::Arc;
use std::time::Duration;

use aws_config::SdkConfig;
use projector::change::Tables;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::cli::ReplayFlags;
use crate::console;
use crate::deliver::Delivery;
use crate::replay::checkpoint::Checkpoints;
use crate::replay::collect::{Collector, Ended, Times, start_progress};
use crate::replay::context::{ReplayContext, StreamRun};
use crate::replay::follow::{self, Following};
use crate::replay::page::Message;
use crate::replay::progress::StreamProgress;
use crate::replay::readers;
use crate::replay::shards::read_stream;
use crate::replay::source::Stream;
use crate::replay::tally::Tally;
use crate::replay::under_way::Batches;
use crate::stop::Stop;

/// How much is read at once, and how long is waited for the streams.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// How long an open shard must return only empty pages to count as caught up.
    pub(crate) idle: Duration,
    /// The same for a shard that has returned no record at all yet.
    pub(crate) first_record: Duration,
    /// How long to wait until a closed shard's child is listed.
    pub(crate) child_wait: Duration,
    /// At most this many pages are asked for, or wait to be applied, at once.
    pub(crate) parallel: usize,
    /// At most this many records are applied at once.
    pub(crate) batch_size: usize,
}

impl Pace {
    /// As these flags say.
    pub(crate) fn of(flags: &ReplayFlags, batch_size: usize) -> Self {
        let seconds = |seconds: u16| Duration::from_secs(seconds.into());
        Self {
            idle: seconds(flags.idle_seconds),
            first_record: seconds(flags.first_record_seconds),
            child_wait: seconds(flags.child_wait_seconds),
            parallel: flags.parallel.into(),
            batch_size,
        }
    }
}

/// A replay that may begin.
pub(crate) struct Replay {
    pub(crate) aws: SdkConfig,
    pub(crate) tables: Tables,
    pub(crate) context: Arc<ReplayContext>,
    pub(crate) streams: Vec<Arc<StreamRun>>,
    pub(crate) delivery: Delivery,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) pace: Pace,
    /// Whether the run writes the objects that its records leave pending, or its caller does.
    pub(crate) writes_objects: bool,
}

/// What a run came to.
pub(crate) struct Ran {
    pub(crate) ended: anyhow::Result<Ended>,
    /// By the stream's ARN, in the order in which the streams were found.
    pub(crate) progress: Vec<(String, StreamProgress)>,
    pub(crate) times: Times,
    pub(crate) duration: Duration,
}

impl Replay {
    /// Runs until all is read, something fails, or the run is asked to stop. `reached_cutoff` turns
    /// true once all that was created before the cutoff is stored.
    pub(crate) async fn run(&mut self, stop: &Stop, reached_cutoff: &watch::Sender<bool>) -> Ran {
        let start = Instant::now();
        let mut progress = start_progress(&self.streams);
        let (sender, mut messages) = mpsc::channel(self.pace.parallel);
        let readers = self.start_readers(sender);
        let streams = self.streams.iter().map(|run| (*run.stream).clone()).collect();
        let asking = tokio::spawn(report_readers(self.aws.clone(), streams));

        let mut times = Times::default();
        let mut collector = Collector {
            batch_size: self.pace.batch_size,
            delivery: &mut self.delivery,
            checkpoints: &mut self.checkpoints,
            progress: &mut progress,
            times: &mut times,
            context: &self.context,
            reached_cutoff,
            lock_seen: start,
            batches: Batches::new(),
            writes_objects: self.writes_objects && self.context.follow,
            objects_written: None,
            records_since: 0,
        };
        let ended = collector.run_to_the_end(&mut messages, readers, stop).await;
        asking.abort();
        let ended = if self.writes_objects {
            write_objects(&mut self.delivery, ended, stop).await
        } else {
            ended
        };
        Ran { ended, progress, times, duration: start.elapsed() }
    }

    /// What a run came to. `gap`: changes since the snapshot are in no stream, and that was
    /// allowed.
    pub(crate) fn tally<'a>(&'a self, ran: &'a Ran, gap: bool) -> Tally<'a> {
        Tally {
            ended: &ran.ended,
            context: &self.context,
            delivery: &self.delivery,
            progress: &ran.progress,
            times: &ran.times,
            duration: ran.duration,
            gap,
        }
    }

    /// The channel closes once all of them have ended.
    fn start_readers(&self, sender: mpsc::Sender<Message>) -> JoinSet<anyhow::Result<()>> {
        let mut readers = JoinSet::new();
        for run in &self.streams {
            let (context, run) = (Arc::clone(&self.context), Arc::clone(run));
            readers.spawn(read_stream(context, run, self.pace.child_wait, sender.clone()));
        }
        if self.context.follow {
            readers.spawn(follow::new_streams(Following {
                context: Arc::clone(&self.context),
                tables: self.tables.clone(),
                known: self.streams.iter().map(|run| (*run.stream).clone()).collect(),
                child_patience: self.pace.child_wait,
                messages: sender,
            }));
        }
        readers
    }
}

/// Writes the objects that are still pending after a run that came to its end, or that followed the
/// streams until a signal.
async fn write_objects(
    delivery: &mut Delivery,
    ended: anyhow::Result<Ended>,
    stop: &Stop,
) -> anyhow::Result<Ended> {
    let ended = match ended {
        Ok(Ended::Complete) => match delivery.write_objects(stop.wait()).await {
            Ok(true) => Ok(Ended::Complete),
            Ok(false) => Ok(Ended::RowsStored),
            Err(error) => Err(error),
        },
        Ok(Ended::Stopped { at_cutoff: true }) => {
            let stopped = Ended::Stopped { at_cutoff: true };
            delivery.write_objects(stop.grace_over()).await.map(|_| stopped)
        }
        ended => ended,
    };
    delivery.count_pending_objects().await;
    ended
}

/// Says who else reads the streams, as soon as that is known.
async fn report_readers(aws: SdkConfig, streams: Vec<Stream>) {
    for (stream, readers) in streams.iter().zip(readers::ask(&aws, &streams).await) {
        let of_table = streams.iter().filter(|other| other.table == stream.table).count();
        let name = if of_table > 1 { stream.full_name() } else { stream.table.clone() };
        console::line(&format!("{name}: readers: {}", readers.brief()));
        for line in readers.problem().into_iter().chain(readers.notes()) {
            console::line(&format!("{name}: {line}"));
        }
    }
}
