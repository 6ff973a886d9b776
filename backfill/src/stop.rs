//! SIGINT and SIGTERM: every command ends in good order with what it had under way, says how to resume, and exits
//! with code 6. A second signal ends the process at once.

use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::console::{self, span};
use crate::outcome::SECOND_SIGNAL;

/// How long work that is under way may take to finish after the first signal.
pub(crate) const GRACE: Duration = Duration::from_secs(10);

/// Whether the operator asked the command to stop. Clones see the same signal.
#[derive(Clone, Debug)]
pub(crate) struct Stop(watch::Receiver<bool>);

impl Stop {
    /// Listens for SIGINT and SIGTERM from now on.
    ///
    /// # Errors
    /// If the process cannot listen for signals.
    pub(crate) fn listen() -> anyhow::Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if stop.send_replace(true) {
                    std::process::exit(SECOND_SIGNAL.into());
                }
                console::line(&format!(
                    "stopping once the work under way is stored, within {}; signal again to stop at once",
                    span(GRACE)
                ));
            }
        });
        Ok(Self(stopped))
    }

    /// A signal has come: begin nothing new.
    pub(crate) fn requested(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns once a signal has come.
    pub(crate) async fn wait(&self) {
        let mut receiver = self.0.clone();
        if receiver.wait_for(|stop| *stop).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Returns [`GRACE`] after a signal has come: what is not finished by then is given up, and done by the next run.
    pub(crate) async fn grace_over(&self) {
        self.wait().await;
        tokio::time::sleep(GRACE).await;
    }

    /// Returns when a command that was asked to stop should have ended by itself.
    pub(crate) async fn overdue(&self) {
        self.grace_over().await;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}
