//! `backfill objects`: compares the object of every row, and writes those that are missing or
//! behind.
//!
//! For a bucket that was restored, emptied or replaced, and for rows whose records no stream holds
//! any more. It goes through the projector's own comparison, so that it may run beside live
//! functions, and takes no object back.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use projector::config::ConfigError;
use projector::counts::Counts;
use projector::start;
use serde_json::{Value as Json, json};

use crate::cli::{ObjectsArguments, Settings};
use crate::compare_objects::{Comparing, End, Tally};
use crate::console::{Progress, span};
use crate::outcome::{Outcome, Remedy};
use crate::output::Output;
use crate::pending_objects;
use crate::statement;
use crate::stop::Stop;

/// At most this many sessions whose object could not be written are named.
const NAMED: usize = 20;

pub(crate) async fn run(
    settings: &Settings,
    arguments: &ObjectsArguments,
    stop: &Stop,
    output: &Output,
) -> anyhow::Result<Outcome> {
    let projector = Arc::new(start::projector_with_credentials(settings.config()?).await?);
    let archive = projector.archive.as_ref().ok_or_else(|| ConfigError {
        variable: "ARCHIVE_BUCKET",
        problem: "is not set: it names the bucket whose objects are compared".to_owned(),
    })?;
    let (start, dry_run) = (Instant::now(), arguments.dry_run);
    if !dry_run {
        let mut counts = Counts::default();
        let written = tokio::select! {
            biased;
            () = stop.wait() => None,
            written = pending_objects::write(&projector, &mut counts) => Some(written),
        };
        match written {
            Some(Ok(())) if !arguments.pending => {}
            written => return report_pending(written, &counts, start.elapsed(), output),
        }
    }
    let after = arguments.after.clone().unwrap_or_default();
    let rows = tokio::select! {
        biased;
        rows = statement::count_rows(&projector.database, "count the rows", &after) => rows?,
        () = stop.wait() => {
            output.ended_early(&format!("stopped by a signal: {}", resume(&after)));
            return Ok(Outcome::Interrupted);
        }
    };
    let mut comparing = Comparing::new(archive, &projector.database, stop, after, dry_run);
    let mut progress = Progress::start(rows);
    let ended = comparing.until_done(&mut progress).await;
    drop(progress);
    report(&comparing, ended, start.elapsed(), dry_run, output)
}

/// Says what came of the pending objects, if nothing else is to be done.
///
/// `written` is `None` if a signal came first.
fn report_pending(
    written: Option<anyhow::Result<()>>,
    counts: &Counts,
    duration: Duration,
    output: &Output,
) -> anyhow::Result<Outcome> {
    let Counts { objects_written, objects_current, objects_not_yet, .. } = *counts;
    let tally = Tally {
        written: objects_written,
        current: objects_current,
        not_yet: objects_not_yet,
        ..Tally::default()
    };
    let end = match &written {
        None => "stopped",
        Some(Ok(())) => "done",
        Some(Err(_)) => "failed",
    };
    output.result(
        || text(end, &tally, duration, false),
        || Ok(json((end, &tally), (&[], None), duration, false)),
    )?;
    match written {
        None => {
            output.ended_early(&format!("stopped by a signal: {}", resume("")));
            Ok(Outcome::Interrupted)
        }
        Some(written) => written.map(|()| Outcome::Done),
    }
}

/// Says what came of the run and, unless all is done, from where the next one skips nothing.
fn report(
    comparing: &Comparing<'_>,
    ended: anyhow::Result<End>,
    duration: Duration,
    dry_run: bool,
    output: &Output,
) -> anyhow::Result<Outcome> {
    let left = comparing.left();
    let end = match &ended {
        Ok(End::Stopped) => "stopped",
        Ok(End::AllCompared) if left.is_empty() => "done",
        Ok(End::AllCompared | End::TooManyDiffer) | Err(_) => "failed",
    };
    output.result(
        || text(end, comparing.tally(), duration, dry_run),
        || {
            let resume = (end != "done").then(|| comparing.resume_after());
            Ok(json((end, comparing.tally()), (&left, resume), duration, dry_run))
        },
    )?;
    let resume = resume(comparing.resume_after());
    match ended {
        Err(error) => Err(error.context(Remedy(format!("the run ended early: {resume}")))),
        Ok(End::Stopped) => {
            output.ended_early(&format!("stopped by a signal: {resume}"));
            Ok(Outcome::Interrupted)
        }
        Ok(End::AllCompared) if left.is_empty() => Ok(Outcome::Done),
        Ok(End::AllCompared | End::TooManyDiffer) => {
            let named = left[..left.len().min(NAMED)].join(", ");
            let more = if left.len() > NAMED { ", ..." } else { "" };
            let what = if dry_run { "compared" } else { "written" };
            let failed = anyhow!(
                "{} could not be {what}, the log above says why: {named}{more}. All others are \
                    {what}",
                objects(left.len())
            );
            Err(failed.context(Remedy(resume)))
        }
    }
}

/// How to compare all after this session. The flags and variables of the run are the operator's to
/// repeat.
fn resume(after: &str) -> String {
    let after =
        if after.is_empty() { "again".to_owned() } else { format!("with --after '{after}'") };
    format!("run the same command {after}, which resumes and skips nothing")
}

fn objects(count: usize) -> String {
    if count == 1 { "1 object".to_owned() } else { format!("{count} objects") }
}

/// For people.
fn text(end: &str, tally: &Tally, duration: Duration, dry_run: bool) -> String {
    let Tally { current, not_yet, missing, behind, written } = *tally;
    let compared = tally.compared();
    let took = span(duration.max(Duration::from_secs(1)));
    let end = if dry_run { format!("dry run, nothing was written, {end}") } else { end.to_owned() };
    let mut text = format!("{end}: {compared} objects compared in {took}\n");
    let found: &[(&str, u64, &str)] = if dry_run {
        &[
            ("objects missing", missing, "would be written"),
            ("objects behind", behind, "would be written"),
        ]
    } else {
        &[("objects written", written, "missing, or behind their rows")]
    };
    for (name, count, meaning) in
        found.iter().chain(&[("objects current", current, "held the row already")])
    {
        let _ = writeln!(text, "  {name:<16}{count:>10}  {meaning}");
    }
    if not_yet > 0 {
        let meaning = "their rows have not had all parts (ARCHIVE_OBJECTS=complete)";
        let _ = writeln!(text, "  {:<16}{not_yet:>10}  {meaning}", "objects not yet");
    }
    text
}

/// As JSON. `resume_after` is `null` if nothing is left to do.
fn json(
    (end, tally): (&str, &Tally),
    (not_done, resume_after): (&[&str], Option<&str>),
    duration: Duration,
    dry_run: bool,
) -> Json {
    let Tally { current, not_yet, missing, behind, written } = *tally;
    json!({
        "ended": end,
        "dry_run": dry_run,
        "seconds": duration.as_secs_f64(),
        "objects": tally.compared(),
        "current": current,
        "not_yet": not_yet,
        "missing": missing,
        "behind": behind,
        "written": written,
        "resume_after": resume_after,
        "not_done": not_done,
    })
}
