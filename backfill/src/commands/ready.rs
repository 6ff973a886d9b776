//! `backfill ready`: whether the readers may switch to the new database, and if not, why. Every
//! condition is asked beside the others, each question has a limit, and what cannot be asked does
//! not hold.

mod cloudwatch;
mod condition;
mod database;
mod judge;
mod lambda;
mod limits;
mod look;
mod observed;
mod s3;

use std::time::Duration;

use serde_json::json;

use self::condition::{Condition, differs, refusal, report};
use self::look::Looking;

use crate::cli::{ReadyArguments, Settings};
use crate::console;
use crate::outcome::Outcome;
use crate::output::Output;
use crate::stop::Stop;

/// The pause between two looks of `--watch`.
const WATCH_EVERY: Duration = Duration::from_secs(30);

pub(crate) async fn run(
    settings: &Settings,
    arguments: &ReadyArguments,
    stop: &Stop,
    output: &Output,
) -> anyhow::Result<Outcome> {
    let looking = Looking::new(settings.config()?, arguments, stop);
    let mut last: Option<Vec<Condition>> = None;
    loop {
        let looked = tokio::select! {
            biased;
            () = stop.wait() => None,
            observed = Box::pin(looking.look()) => Some(observed),
        };
        let Some(observed) = looked else { return Ok(stopped(last, output)) };
        let conditions = judge::judge(&observed, arguments.lag_seconds);
        let changed = last.as_ref().is_none_or(|before| differs(before, &conditions));
        show(&conditions, arguments.watch, changed, output)?;
        if !arguments.watch {
            return Ok(conclude(&conditions, output));
        }
        last = Some(conditions);
        tokio::select! {
            () = stop.wait() => return Ok(stopped(last, output)),
            () = tokio::time::sleep(WATCH_EVERY) => {}
        }
    }
}

/// One look: as text at once, as JSON at the end. Somebody who watches sees a table that stays in
/// its place.
fn show(
    conditions: &[Condition],
    watched: bool,
    changed: bool,
    output: &Output,
) -> serde_json::Result<()> {
    let json = || Ok(json!({ "conditions": serde_json::to_value(conditions)? }));
    let text = || report(conditions, console::table_width());
    if !watched {
        return output.result(text, json);
    }
    output.board(text, changed);
    output.json(json)
}

/// A signal ended the watch: the last look counts, if there was one.
fn stopped(last: Option<Vec<Condition>>, output: &Output) -> Outcome {
    match last {
        Some(conditions) => conclude(&conditions, output),
        None => {
            output.ended_early("stopped by a signal before everything was asked");
            Outcome::Interrupted
        }
    }
}

fn conclude(conditions: &[Condition], output: &Output) -> Outcome {
    match refusal(conditions) {
        None => Outcome::Done,
        Some(why) => {
            output.explain(&why);
            Outcome::Unsafe
        }
    }
}
