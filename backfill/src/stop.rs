//! SIGINT and SIGTERM: every command ends in good order with what it had under way, says how to
//! resume, and exits with code 6. A second signal ends the process at once.

use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::console::{self, span};
use crate::outcome::SECOND_SIGNAL;

/// How long work that is under way may take to finish after the first signal.
pub(crate) const GRACE: Duration = Duration::from_secs(10);
/// How much longer a command may take for its summary.
const SUMMARY: Duration = Duration::from_secs(2);

/// When the operator asked the command to stop, if so. Clones see the same signal.
#[derive(Clone, Debug)]
pub(crate) struct Stop(watch::Receiver<Option<Instant>>);

/// Gives the stop of [`Stop::by_hand`].
#[derive(Debug)]
pub(crate) struct StopSwitch(watch::Sender<Option<Instant>>);

impl StopSwitch {
    /// Asks for the end, from now on.
    pub(crate) fn stop(&self) {
        self.0.send_if_modified(|stop| {
            let first = stop.is_none();
            stop.get_or_insert_with(Instant::now);
            first
        });
    }
}

impl Stop {
    /// Listens for SIGINT and SIGTERM from now on.
    ///
    /// # Errors
    /// If the process cannot listen for signals.
    pub(crate) fn listen() -> anyhow::Result<Self> {
        let (stop, stopped) = watch::channel(None);
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if stop.send_replace(Some(Instant::now())).is_some() {
                    std::process::exit(SECOND_SIGNAL.into());
                }
                console::line(&format!(
                    "stopping once the work under way is stored, within {}; signal again to stop \
                        at once",
                    span(GRACE)
                ));
            }
        });
        Ok(Self(stopped))
    }

    /// A stop that a command gives to a part of itself: the work under way ends as after a signal.
    pub(crate) fn by_hand() -> (StopSwitch, Self) {
        let (stop, stopped) = watch::channel(None);
        (StopSwitch(stop), Self(stopped))
    }

    /// A signal has come: begin nothing new.
    pub(crate) fn requested(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Returns once a signal has come.
    pub(crate) async fn wait(&self) {
        self.signalled().await;
    }

    /// Returns [`GRACE`] after the first signal, however late it is asked: what is not finished by
    /// then is given up, and done by the next run.
    pub(crate) async fn grace_over(&self) {
        let signalled = self.signalled().await;
        tokio::time::sleep_until(signalled + GRACE).await;
    }

    /// Returns when a command that was asked to stop should have ended by itself.
    pub(crate) async fn overdue(&self) {
        let signalled = self.signalled().await;
        tokio::time::sleep_until(signalled + GRACE + SUMMARY).await;
    }

    /// The moment of the first signal, once it has come.
    async fn signalled(&self) -> Instant {
        let mut receiver = self.0.clone();
        match receiver.wait_for(Option::is_some).await.map(|signalled| *signalled) {
            Ok(Some(signalled)) => signalled,
            // Nobody listens any more, so no signal comes.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::watch;
    use tokio::time::{Instant, timeout};

    use super::{GRACE, SUMMARY, Stop};

    /// A command asks for the end of the grace anew with each batch that it finishes.
    #[tokio::test]
    async fn the_grace_counts_from_the_signal_and_not_from_the_question() {
        let long_ago = Instant::now().checked_sub(GRACE + SUMMARY).expect("a machine that is up");
        let (_sender, signalled) = watch::channel(Some(long_ago));
        let stop = Stop(signalled);
        assert!(stop.requested());
        let over = async {
            stop.grace_over().await;
            stop.overdue().await;
        };
        timeout(GRACE / 2, over).await.expect("it is over already");
    }

    #[tokio::test]
    async fn a_switch_stops_as_a_signal_does() {
        let (switch, stop) = Stop::by_hand();
        assert!(!stop.requested());
        switch.stop();
        let first = stop.signalled().await;
        switch.stop();
        assert!(stop.requested());
        assert_eq!(stop.signalled().await, first, "the grace counts from the first");
    }

    #[tokio::test]
    async fn without_a_signal_there_is_no_end() {
        let (_sender, signalled) = watch::channel(None);
        let stop = Stop(signalled);
        assert!(!stop.requested());
        let over = timeout(Duration::from_millis(50), stop.grace_over()).await;
        over.expect_err("nobody asked it to stop");
    }
}
