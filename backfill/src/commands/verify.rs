//! `backfill verify`: compares our rows with another database, with the tables or with the objects,
//! and says what differs and goes on to differ.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use projector::apply::Projector;
use projector::bind;
use projector::config::{ArchiveConfig, ConfigError};
use projector::database::Database;
use projector::deadline::Deadline;
use projector::error::Error;
use projector::start;
use serde_json::{Value as Json, json};
use sqlx::Row as _;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::cli::{Settings, VerifyArguments};
use crate::console::span;
use crate::outcome::{Outcome, Remedy};
use crate::output::Output;
use crate::peer;
use crate::rate::Rate;
use crate::retry::retry_transient;
use crate::stop::Stop;
use crate::verify::difference::{Difference, Kind};
use crate::verify::report::{Remark, Report};
use crate::verify::verification::{self, Comparison, Verification};
use crate::verify::{End, Run, objects, rows, tables};

const TOO_MANY_PARTS: &str = "too many parts differ to name them all, so the comparison ended early: \
    update the rows first, with `backfill stream` or `backfill merge`, and run the same command again";

pub(crate) async fn run(
    settings: &Settings,
    arguments: &VerifyArguments,
    stop: &Stop,
    output: &Output,
) -> anyhow::Result<Outcome> {
    let config = settings.config()?;
    let place = |archive: &ArchiveConfig| format!("s3://{}/{}", archive.bucket, archive.prefix);
    let archive = config.archive.as_ref().map(place).unwrap_or_default();
    let starting = async {
        let projector = start::projector_with_credentials(config).await?;
        let started_at = now(&projector.database).await?;
        Ok::<_, anyhow::Error>((projector, started_at))
    };
    let (projector, started_at) = tokio::select! {
        biased;
        () = stop.wait() => {
            output.ended_early("stopped by a signal before anything was compared");
            return Ok(Outcome::Interrupted);
        }
        started = starting => started?,
    };
    let start = Instant::now();
    let mut run = Run {
        stop,
        report: Report::create(arguments.report.as_deref())?,
        rate: Rate::new(arguments.max_rate),
        wait: Duration::from_secs(arguments.wait.into()),
        rounds: arguments.rounds,
        as_of: None,
        compared_through: arguments.after.clone().unwrap_or_default(),
    };
    let comparing = Box::pin(compare(&projector, archive, arguments, &mut run));
    let (comparison, against, ended) = comparing.await?;
    let verification = Verification {
        comparison,
        against,
        // What changed after an export is not in it.
        started_at: run.as_of.map_or(started_at, |as_of| as_of.min(started_at)),
        complete: matches!(ended, Ok(End::AllCompared)) && arguments.after.is_none(),
        since: arguments.since,
        tally: run.report.tally,
    };
    let ended = match ended {
        Err(error) if run.report.tally.compared == 0 => return Err(error),
        ended => ended.map_err(|error| error.context(Remedy(resume(&run, arguments)))),
    };
    // What is known is shown, whatever fails after that.
    let (took, known) = (start.elapsed(), ended.as_ref().ok());
    output.result(
        || text(&verification, &run, known, took),
        || Ok(json(&verification, &run, known, took)),
    )?;
    run.report.flush()?;
    let ended = ended?;
    keep(&projector.database, &verification, stop, output).await?;
    match ended {
        End::AllCompared => {}
        End::TooManyDiffer if arguments.tables => output.ended_early(TOO_MANY_PARTS),
        End::Stopped | End::TooManyDiffer => output.ended_early(&resume(&run, arguments)),
    }
    let outcome = outcome(ended, run.report.tally.differences());
    if outcome == Outcome::Different {
        output.explain("the two sides differ");
    }
    Ok(outcome)
}

/// Keeps the result, for as long as a signal leaves time.
async fn keep(
    database: &Database,
    verification: &Verification,
    stop: &Stop,
    output: &Output,
) -> anyhow::Result<()> {
    tokio::select! {
        biased;
        saved = verification::save(database, verification) => saved,
        () = stop.grace_over() => {
            output.ended_early("no row in verifications keeps this result");
            Ok(())
        }
    }
}

/// Runs the comparison that the flags choose. Gives the name of the other side, too.
async fn compare(
    projector: &Projector,
    archive: String,
    arguments: &VerifyArguments,
    run: &mut Run<'_>,
) -> anyhow::Result<(Comparison, String, anyhow::Result<End>)> {
    if let Some(url) = &arguments.against {
        let peer = peer::connect("--against", url, &projector.database).await?;
        let ended = Box::pin(rows::compare(&projector.database, &peer, arguments, run)).await;
        return Ok((Comparison::Rows, peer.name, ended));
    }
    if arguments.objects {
        let bucket = projector.archive.as_ref().ok_or_else(|| ConfigError {
            variable: "ARCHIVE_BUCKET",
            problem: "is not set: it names the bucket whose objects are compared".to_owned(),
        })?;
        let comparing = objects::compare(&projector.database, bucket, arguments, run);
        let ended = Box::pin(comparing).await;
        return Ok((Comparison::Objects, archive, ended));
    }
    let (against, ended) = tables::compare(projector, arguments, run).await?;
    Ok((Comparison::Tables, against, ended))
}

/// What the run came to. Differences weigh more than a signal: they are known.
fn outcome(ended: End, differences: u64) -> Outcome {
    match ended {
        _ if differences > 0 => Outcome::Different,
        End::AllCompared => Outcome::Done,
        End::Stopped => Outcome::Interrupted,
        End::TooManyDiffer => Outcome::Different,
    }
}

/// How to compare the rest.
fn resume(run: &Run<'_>, arguments: &VerifyArguments) -> String {
    if arguments.tables || run.compared_through.is_empty() {
        return "run the same command again: it begins anew".to_owned();
    }
    format!("run the same command with --after '{}': it skips nothing", run.compared_through)
}

/// The result in a word or two. `ended` is `None` if the comparison failed.
fn result(verification: &Verification, ended: Option<&End>) -> &'static str {
    match (verification.tally.differences(), ended) {
        (1.., _) | (0, Some(End::TooManyDiffer)) => "different",
        (0, Some(End::AllCompared)) if verification.complete && verification.since.is_none() => {
            "equal"
        }
        (0, Some(End::AllCompared)) => "no difference in what was compared",
        (0, Some(End::Stopped)) => "stopped, no difference so far",
        (0, None) => "failed, no difference so far",
    }
}

fn text(
    verification: &Verification,
    run: &Run<'_>,
    ended: Option<&End>,
    duration: Duration,
) -> String {
    let Verification { comparison, against, tally, .. } = verification;
    let seconds = duration.as_secs_f64().max(1e-9);
    let rate = tally.compared as f64 / seconds;
    let end = result(verification, ended);
    let took = span(duration.max(Duration::from_secs(1)));
    let (compared, unit) = (tally.compared, comparison.unit());
    let mut text =
        format!("{end}: {compared} {unit} compared with {against} in {took} ({rate:.0}/s)\n");
    for kind in Kind::ALL {
        let _ = writeln!(text, "  {:<10}{:>10}", kind.name(), tally.of(kind));
    }
    for Remark { name, value, text: meaning } in run.report.remarks() {
        if let Some(meaning) = meaning {
            let _ = writeln!(text, "  {name:<16}{value:>4}  {meaning}");
        }
    }
    for difference in run.report.named() {
        let _ = writeln!(text, "{}", difference.text());
    }
    let more = tally.differences().saturating_sub(run.report.named().len() as u64);
    if more > 0 {
        let _ = writeln!(text, "... and {more} more: --report FILE writes all of them");
    }
    text + &not_confirmed(run)
}

/// The sessions that a run which ended early has not read often enough; empty if there are none.
fn not_confirmed(run: &Run<'_>) -> String {
    let Report { not_confirmed, .. } = &run.report;
    if *not_confirmed == 0 {
        return String::new();
    }
    let named = run.report.unconfirmed();
    let more = if *not_confirmed > named.len() as u64 { ", ..." } else { "" };
    format!(
        "not confirmed: {not_confirmed} sessions differed when they were last read, and were not \
         read again {} times: {}{more}\n",
        run.rounds,
        named.join(", ")
    )
}

fn json(
    verification: &Verification,
    run: &Run<'_>,
    ended: Option<&End>,
    duration: Duration,
) -> Json {
    let Verification { comparison, against, started_at: _, complete, since, tally } = verification;
    let since = since.and_then(|since| since.format(&Rfc3339).ok());
    let differences: serde_json::Map<_, _> =
        Kind::ALL.map(|kind| (kind.name().to_owned(), json!(tally.of(kind)))).into_iter().collect();
    let first: Vec<_> = run.report.named().iter().map(Difference::json).collect();
    let compared_through = (!complete).then_some(&run.compared_through);
    let mut json = json!({
        "result": result(verification, ended),
        "comparison": comparison.name(),
        "against": against,
        "complete": complete,
        "since": since,
        "compared": tally.compared,
        "differences": differences,
        "first": first,
        "not_confirmed": run.report.not_confirmed,
        "compared_through": compared_through,
        "seconds": duration.as_secs_f64(),
    });
    for Remark { name, value, text: _ } in run.report.remarks() {
        json[*name] = value.clone();
    }
    json
}

/// Our database's clock.
async fn now(database: &Database) -> anyhow::Result<OffsetDateTime> {
    let rows = retry_transient("ask the database for its time", async || {
        let arguments = bind![];
        database.fetch("SELECT clock_timestamp()", arguments, Deadline::NONE).await
    });
    let rows = rows.await?;
    let now = rows.first().map_or(Err(sqlx::Error::RowNotFound), |row| row.try_get(0));
    Ok(now.map_err(Error::Database)?)
}
