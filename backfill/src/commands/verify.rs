//! `backfill verify`: compares our rows with another database, with the tables or with the objects, and says what
//! differs and goes on to differ.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use projector::apply::Projector;
use projector::database::Database;
use projector::deadline::Deadline;
use projector::error::Error;
use projector::start;
use serde_json::{Value as Json, json};
use sqlx::Row as _;
use sqlx::postgres::PgArguments;
use time::OffsetDateTime;

use crate::cli::{Settings, VerifyArguments};
use crate::console::span;
use crate::outcome::{Outcome, Remedy};
use crate::output::Output;
use crate::peer;
use crate::rate::Rate;
use crate::retry::retry_transient;
use crate::stop::Stop;
use crate::verify::difference::{Difference, Kind};
use crate::verify::report::Report;
use crate::verify::verification::{self, Comparison, Verification};
use crate::verify::{End, Run, objects, rows, tables};

pub(crate) async fn run(
    settings: &Settings,
    arguments: &VerifyArguments,
    stop: &Stop,
    output: &Output,
) -> anyhow::Result<Outcome> {
    let projector = start::projector_with_credentials(settings.config()?).await?;
    let started_at = now(&projector.database).await?;
    let start = Instant::now();
    let mut run = Run {
        stop,
        report: Report::create(arguments.report.as_deref())?,
        rate: Rate::new(arguments.max_rate),
        wait: Duration::from_secs(arguments.wait.into()),
        rounds: arguments.rounds,
        compared_through: arguments.after.clone().unwrap_or_default(),
    };
    let (comparison, against, ended) = Box::pin(compare(&projector, arguments, &mut run)).await?;
    run.report.flush()?;
    let ended = ended.map_err(|error| error.context(Remedy(resume(&run, arguments))));
    let verification = Verification {
        comparison,
        against,
        started_at,
        complete: matches!(ended, Ok(End::AllCompared)) && arguments.after.is_none(),
        since: arguments.since,
        tally: run.report.tally,
    };
    verification::save(&projector.database, &verification).await?;
    let took = start.elapsed();
    output.result(|| text(&verification, &run, took), || Ok(json(&verification, &run, took)))?;
    let ended = ended?;
    if ended != End::AllCompared {
        output.ended_early(&resume(&run, arguments));
    }
    Ok(outcome(ended, run.report.tally.differences()))
}

/// Runs the comparison that the flags choose. Gives the name of the other side, too.
async fn compare(
    projector: &Projector,
    arguments: &VerifyArguments,
    run: &mut Run<'_>,
) -> anyhow::Result<(Comparison, String, anyhow::Result<End>)> {
    if let Some(url) = &arguments.against {
        let peer = peer::connect("--against", url, &projector.database).await?;
        let ended = rows::compare(&projector.database, &peer, arguments, run).await;
        return Ok((Comparison::Rows, peer.name, ended));
    }
    if arguments.objects {
        let (against, ended) = objects::compare(projector, run).await?;
        return Ok((Comparison::Objects, against, ended));
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
    format!("run the same command with --after '{}' for the rest", run.compared_through)
}

fn text(verification: &Verification, run: &Run<'_>, duration: Duration) -> String {
    let Verification { against, tally, complete, .. } = verification;
    let seconds = duration.as_secs_f64().max(1e-9);
    let rate = tally.compared as f64 / seconds;
    let end = match (tally.differences(), complete) {
        (0, true) => "equal",
        (0, false) => "no difference in what was compared",
        (1.., _) => "different",
    };
    let took = span(duration.max(Duration::from_secs(1)));
    let mut text = format!(
        "{end}: {} sessions compared with {against} in {took} ({rate:.0}/s)\n",
        tally.compared
    );
    for kind in Kind::ALL {
        let _ = writeln!(text, "  {:<10}{:>10}", kind.name(), tally.of(kind));
    }
    for difference in run.report.named() {
        let _ = writeln!(text, "{}", difference.text());
    }
    let more = tally.differences() - run.report.named().len() as u64;
    if more > 0 {
        let _ = writeln!(text, "... and {more} more: --report FILE writes all of them");
    }
    text
}

fn json(verification: &Verification, run: &Run<'_>, duration: Duration) -> Json {
    let Verification { comparison, against, started_at: _, complete, since: _, tally } =
        verification;
    let differences: serde_json::Map<_, _> =
        Kind::ALL.map(|kind| (kind.name().to_owned(), json!(tally.of(kind)))).into_iter().collect();
    let first: Vec<_> = run.report.named().iter().map(Difference::json).collect();
    let compared_through = (!complete).then_some(&run.compared_through);
    json!({
        "comparison": comparison.name(),
        "against": against,
        "complete": complete,
        "compared": tally.compared,
        "differences": differences,
        "first": first,
        "compared_through": compared_through,
        "seconds": duration.as_secs_f64(),
    })
}

/// Our database's clock.
async fn now(database: &Database) -> anyhow::Result<OffsetDateTime> {
    let rows = retry_transient("ask the database for its time", async || {
        let arguments = || Ok(PgArguments::default());
        database.fetch("SELECT clock_timestamp()", arguments, Deadline::NONE).await
    });
    let rows = rows.await?;
    let now = rows.first().map_or(Err(sqlx::Error::RowNotFound), |row| row.try_get(0));
    Ok(now.map_err(Error::Database)?)
}
