//! `backfill merge`: the rows of another database, or the objects of an archive, are applied with
//! the versions they have. Whatever ends a run, the same command again ends in the same rows:
//! versions decide.

use std::time::Instant;

use anyhow::{Context as _, anyhow};
use projector::bind;
use projector::config::ArchiveObjects;
use projector::database::Database;
use projector::deadline::Deadline;
use projector::error::Error;
use projector::start;
use sqlx::Row as _;

use crate::advisory_lock::{self, Held};
use crate::cli::{MergeArguments, Settings};
use crate::console::{self, Progress};
use crate::deliver::Delivery;
use crate::merge::archive::{FLAG, Objects};
use crate::merge::repaired::Repaired;
use crate::merge::rows::{Rows, require_same_columns};
use crate::merge::run::{End, Merge, Source};
use crate::merge::tally::{Ended, Tally};
use crate::outcome::{Outcome, Remedy};
use crate::output::Output;
use crate::peer::{self, Peer};
use crate::repair::ledger;
use crate::repair::reread::merge_is_repair;
use crate::retry::retry_transient;
use crate::stop::Stop;

const REPLICA: &str = "SELECT pg_is_in_recovery(),
    extract(epoch FROM now() - pg_last_xact_replay_timestamp())::bigint";

pub(crate) async fn run(
    settings: &Settings,
    arguments: &MergeArguments,
    stop: &Stop,
    output: &Output,
) -> anyhow::Result<Outcome> {
    let preparing = Box::pin(prepare(settings, arguments));
    let repaired = Repaired::create(arguments.repaired.as_deref())?;
    let Prepared { delivery, lock, peer, repair } = tokio::select! {
        biased;
        prepared = preparing => prepared?,
        () = stop.wait() => return Ok(stopped_before(output)),
    };
    let projector = delivery.shared_projector();
    let start = Instant::now();
    let from = match (&peer, &arguments.from_archive) {
        (Some(peer), _) => peer.name.clone(),
        (None, place) => place.clone().unwrap_or_default(),
    };
    let (source, length) = tokio::select! {
        biased;
        opened = open(arguments, peer.as_ref(), &projector.database) => opened?,
        () = stop.wait() => return Ok(stopped_before(output)),
    };
    let after = arguments.after.clone().unwrap_or_default();
    let mut merge = Merge::new(delivery, lock, (Progress::start(length), repaired), after);
    let ended = merge.all(source, stop).await;
    let Merge { mut delivery, mut tally, through, progress, mut lock, mut repaired, .. } = merge;
    if let (Some(id), Some(lock)) = (repair, &mut lock) {
        let complete = matches!(ended, Ok(End::AllRead)) && tally.not_merged.count == 0;
        let (candidates, written) = (tally.found.newer_parts, tally.counts.applied);
        ledger::end(lock.connection(), id, complete, candidates, written).await?;
    }
    drop((progress, lock));
    // Also after a run that has read all and could not merge some.
    let ended = match ended {
        Ok(End::AllRead) if !arguments.dry_run => match delivery.write_objects(stop.wait()).await {
            Ok(true) => Ok(End::AllRead),
            Ok(false) => Ok(End::Stopped),
            Err(error) => Err(error),
        },
        ended => ended,
    };
    if !arguments.dry_run {
        delivery.count_pending_objects().await;
    }
    tally.counts = delivery.counts;
    tally.objects_pending = delivery.objects_pending;
    let to_read = repaired.finish()?;
    let not_merged = tally.not_merged.count;
    let summary = Ended {
        from: &from,
        how: match &ended {
            Ok(End::AllRead) if not_merged == 0 => "done",
            Ok(End::Stopped) => "stopped",
            Ok(End::AllRead) | Err(_) => "failed",
        },
        dry_run: arguments.dry_run,
        through: &through,
        took: start.elapsed(),
    };
    output.result(|| tally.summary(&summary), || Ok(tally.json(&summary)))?;
    if let Some(what) = to_read {
        console::line(&what);
    }
    outcome(ended, &tally, &through, output)
}

fn stopped_before(output: &Output) -> Outcome {
    output
        .ended_early("stopped by a signal before anything was merged: run the same command again");
    Outcome::Interrupted
}

/// What a run needs.
struct Prepared {
    delivery: Delivery,
    lock: Option<Held>,
    /// `None`: the source is an archive.
    peer: Option<Peer>,
    /// The row in `repairs`, if the merge counts as one.
    repair: Option<i64>,
}

/// Connects, refuses what cannot work before anything is read, takes the lock, and says what the
/// run assumes.
async fn prepare(settings: &Settings, arguments: &MergeArguments) -> anyhow::Result<Prepared> {
    let config = settings.config()?;
    let without_archive = config.archive.is_none();
    let objects = config.archive.as_ref().map(|archive| archive.objects);
    let projector = start::projector_with_credentials(config).await?;
    let peer = match &arguments.from {
        None => None,
        Some(url) => {
            let peer = peer::connect("--from", url, &projector.database).await?;
            let variable = if url.is_empty() { peer::VARIABLE } else { "--from" };
            require_same_columns(variable, &peer)?;
            Some(peer)
        }
    };
    let mut projector = projector;
    projector.defers_objects = true;
    let delivery = Delivery::of_rejected(projector);
    let database = &delivery.projector().database;
    let mut lock = if arguments.dry_run {
        None
    } else {
        Held::take_unless_pooled(advisory_lock::REPAIR.by("backfill merge"), database).await?
    };
    match &peer {
        Some(peer) => {
            console::line(&format!(
                "assuming that {} is current: its streams have been read past now, and its bucket \
                    of failures is empty",
                peer.name
            ));
            note_replica(peer).await?;
        }
        None => {
            console::line(
                "assuming that the archive is current: its projector has read the streams past \
                 now, its bucket of failures is empty, and no replication into it is pending",
            );
            if objects == Some(ArchiveObjects::Complete) {
                console::line(
                    "ARCHIVE_OBJECTS=complete: an archive of this mode lacks the measurements that \
                     never had all parts, so they are not merged",
                );
            }
        }
    }
    if without_archive && !arguments.dry_run {
        console::line("ARCHIVE_BUCKET is not set: no object is written");
    }
    let repair =
        if arguments.dry_run { None } else { repair_of(peer.as_ref(), lock.as_mut()).await? };
    Ok(Prepared { delivery, lock, peer, repair })
}

/// Keeps that this database has a repair, before anything is read, if the other side has had one or
/// cannot say.
async fn repair_of(peer: Option<&Peer>, lock: Option<&mut Held>) -> anyhow::Result<Option<i64>> {
    let had = match peer {
        Some(peer) => {
            let asking = retry_transient("ask whether the peer has had a repair", async || {
                ledger::any(&peer.database).await
            });
            Some(asking.await?)
        }
        None => None,
    };
    if !merge_is_repair(had) {
        return Ok(None);
    }
    console::line(
        "the other side has had a repair, or cannot say: from now on this database counts as \
            repaired, and `backfill redrive` reads items again",
    );
    let lock = lock.context(
        "such a merge needs the lock of repairs, and a connection pooler keeps no session that \
         could hold it: DATABASE_URL must lead to the server itself",
    )?;
    let begun = ledger::begin(lock.connection(), ledger::Source::Merge).await;
    Ok(Some(begun.context("cannot keep that this database has a repair")?.id))
}

/// Says how far a replica is behind: what it does not have yet is not merged.
async fn note_replica(peer: &Peer) -> anyhow::Result<()> {
    let rows = retry_transient("ask whether the peer is a replica", async || {
        let arguments = bind![];
        peer.database.fetch(REPLICA, arguments, Deadline::NONE).await
    });
    let rows = rows.await?;
    let Some(row) = rows.first() else { return Ok(()) };
    let is_replica: bool = row.try_get(0).map_err(Error::Database)?;
    let behind: Option<i64> = row.try_get(1).map_err(Error::Database)?;
    if let (true, Some(seconds)) = (is_replica, behind) {
        console::line(&format!(
            "{} is a replica, and the last transaction in it is {seconds} s old",
            peer.name
        ));
    }
    Ok(())
}

/// The source, and how many sessions it has; 0 if nobody knows.
async fn open<'a>(
    arguments: &MergeArguments,
    peer: Option<&'a Peer>,
    ours: &'a Database,
) -> anyhow::Result<(Source<'a>, u64)> {
    let MergeArguments { since, dry_run, max_rate, .. } = *arguments;
    let after = arguments.after.clone().unwrap_or_default();
    if let Some(peer) = peer {
        let rows = Rows::new(peer, ours, since, after, max_rate, dry_run);
        let count = rows.count().await?;
        return Ok((Source::Rows(rows), count));
    }
    let place = arguments.from_archive.as_deref().unwrap_or_default();
    let objects = Objects::open(place, ours, since, &after, max_rate, dry_run).await?;
    let count = objects.count().unwrap_or_default();
    Ok((Source::Objects(objects), count))
}

/// What the run came to and, unless all is done, from where the next one resumes, and what else is
/// to be done then.
fn outcome(
    ended: anyhow::Result<End>,
    tally: &Tally,
    through: &str,
    output: &Output,
) -> anyhow::Result<Outcome> {
    let resume = match through {
        "" => "run the same command again".to_owned(),
        through => format!("run the same command with --after '{through}' to resume"),
    };
    let not_merged = tally.not_merged.count;
    let named = match not_merged {
        0 => String::new(),
        count => format!("; {count} sessions before that are not merged, and are named above"),
    };
    match ended {
        Err(error) if error.is::<Remedy>() => Err(error),
        Err(error) => {
            let remedy = format!("the run ended early: {resume}{named}");
            Err(error.context(Remedy(remedy)))
        }
        Ok(End::Stopped) => {
            output.ended_early(&format!("stopped by a signal: {resume}{named}"));
            Ok(Outcome::Interrupted)
        }
        Ok(End::AllRead) if not_merged == 0 => Ok(Outcome::Done),
        Ok(End::AllRead) => {
            let failed = anyhow!(
                "{not_merged} sessions or objects are not merged, the lines above say why: {}. \
                    All others are",
                tally.not_merged.names()
            );
            let remedy = format!(
                "fix the cause, or move away what is no object of ours ({FLAG}), and run the same \
                 command again: what is merged is unchanged then"
            );
            Err(failed.context(Remedy(remedy)))
        }
    }
}
