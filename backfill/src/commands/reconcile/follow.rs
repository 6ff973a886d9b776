//! `reconcile wait`: looks at an execution until it ends, with a bar. A look is soon at first, and
//! rarer the longer the execution runs.

use std::time::{Duration, Instant};

use projector::config::ConfigError;
use serde_json::{Map, Value as Json};

use super::{conclude, unless_stopped, with};
use crate::console::{self, Bar};
use crate::executions::api::ExecutionsApi;
use crate::executions::watcher::Watcher;
use crate::executions::{Seen, Status, view};
use crate::outcome::{Outcome, Remedy};
use crate::output::Output;
use crate::stop::Stop;

const SOONEST: Duration = Duration::from_secs(1);
const RAREST: Duration = Duration::from_secs(15);

/// Follows an execution to its end. `started` is what `start` has to add to the result.
pub(super) async fn run(
    api: &ExecutionsApi,
    execution: String,
    started: Map<String, Json>,
    stop: &Stop,
    output: &Output,
) -> anyhow::Result<Outcome> {
    console::line(&format!("following {execution}"));
    let mut watcher = Watcher::new(api, execution);
    let mut bar = Bar::start(1, template(console::is_narrow()));
    let start = Instant::now();
    let mut last: Option<Seen> = None;
    loop {
        let looked = unless_stopped(stop, Box::pin(watcher.look())).await;
        let seen = match looked {
            Ok(Some(seen)) => seen,
            Ok(None) => return stopped(watcher.execution(), last.as_ref(), started, output),
            Err(error) if is_configuration(&error) => return Err(error),
            Err(error) => {
                let remedy = format!(
                    "the execution goes on without this command: `backfill reconcile wait {}` \
                     follows it again",
                    watcher.execution()
                );
                return Err(error.context(Remedy(remedy)));
            }
        };
        if seen.execution.status != Status::Running {
            drop(bar);
            return conclude(&seen, started, output);
        }
        show(&mut bar, &seen);
        last = Some(seen);
        tokio::select! {
            biased;
            () = stop.wait() => {
                return stopped(watcher.execution(), last.as_ref(), started, output);
            }
            () = tokio::time::sleep(pause(start.elapsed())) => {}
        }
    }
}

/// Trying again later would not help.
fn is_configuration(error: &anyhow::Error) -> bool {
    error.is::<ConfigError>()
}

fn template(narrow: bool) -> &'static str {
    if narrow { "{wide_msg}" } else { "{bar:20} {wide_msg}" }
}

fn pause(elapsed: Duration) -> Duration {
    (elapsed / 20).clamp(SOONEST, RAREST)
}

fn show(bar: &mut Bar, seen: &Seen) {
    // A bar of length 0 counts as full.
    let (done, total) = view::current(seen).map_or((0, 1), |run| (run.done(), run.total.max(1)));
    bar.drawn.set_length(total);
    bar.show(done, view::bar(seen, console::is_narrow()), str::to_owned);
}

/// A signal ends this command, and not the execution.
fn stopped(
    execution: &str,
    last: Option<&Seen>,
    started: Map<String, Json>,
    output: &Output,
) -> anyhow::Result<Outcome> {
    if let Some(seen) = last {
        output.json(|| Ok(with(view::json(seen), started)))?;
    }
    output.ended_early(&format!(
        "stopped by a signal; the execution runs on. `backfill reconcile wait {execution}` \
         follows it again, `aws stepfunctions stop-execution --execution-arn {execution}` stops it"
    ));
    Ok(Outcome::Interrupted)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{RAREST, SOONEST, pause};

    #[test]
    fn the_looks_become_rarer_up_to_a_limit() {
        assert_eq!(pause(Duration::ZERO), SOONEST);
        assert_eq!(pause(Duration::from_mins(2)), Duration::from_secs(6));
        assert_eq!(pause(Duration::from_hours(5)), RAREST);
    }
}
