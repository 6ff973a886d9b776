//! The one schedule by which everything of ours is tried again: batches, checkpoints, statements
//! and objects. (A call of the streams' API has its own, in `replay/source.rs`: it is tried
//! sooner.)

use std::time::Duration;

use anyhow::Context as _;
use projector::error::{self, Consequence, Error};

use crate::console;

/// How often something is tried without any progress before the run is given up: with the pauses of
/// [`pause_after`] some five minutes.
pub(crate) const MAX_TRIES: u32 = 14;
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// The pause after this many failures in a row: it doubles from two seconds to 30.
pub(crate) fn pause_after(failures: u32) -> Duration {
    Duration::from_secs(1 << failures.min(6)).min(MAX_PAUSE)
}

/// Waits out what passes: a failover, a restart, a slow moment.
///
/// # Errors
/// What does not pass, or has not passed after some five minutes.
pub(crate) async fn retry_transient<T>(
    what: &str,
    mut ask: impl AsyncFnMut() -> Result<T, Error>,
) -> anyhow::Result<T> {
    let mut failures = 0;
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error) => wait_out(what, &mut failures, error).await?,
        }
    }
}

/// The same for a task that another thread may run: the compiler cannot prove that of the futures
/// of an async closure.
///
/// # Errors
/// As [`retry_transient`].
pub(crate) async fn retry_transient_on_a_task<T, F>(
    what: &str,
    mut ask: impl FnMut() -> F,
) -> anyhow::Result<T>
where
    F: Future<Output = Result<T, Error>>,
{
    let mut failures = 0;
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error) => wait_out(what, &mut failures, error).await?,
        }
    }
}

/// Waits before the next try.
///
/// # Errors
/// The error, if it does not pass or was the last of [`MAX_TRIES`].
async fn wait_out(what: &str, failures: &mut u32, error: Error) -> anyhow::Result<()> {
    *failures += 1;
    let passing = match error.consequence() {
        Consequence::Retry | Consequence::Split | Consequence::Reconnect => true,
        Consequence::Reject | Consequence::Fatal => false,
    };
    if !passing || *failures == MAX_TRIES {
        return Err(error).with_context(|| format!("cannot {what}"));
    }
    let pause = pause_after(*failures);
    console::line(&format!(
        "cannot {what} ({}); again in {} s",
        error::chain(&error),
        pause.as_secs()
    ));
    tokio::time::sleep(pause).await;
    Ok(())
}
