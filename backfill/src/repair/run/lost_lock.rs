//! If the connection that holds the lock of repairs is lost, everything under way is looked at
//! anew, since another repair may have run in between.

use projector::error::{self, Error};

use super::Repair;
use crate::console;
use crate::retry::{MAX_TRIES, pause_after};

impl Repair<'_> {
    /// Uses the connection that holds the lock.
    pub(super) async fn keep_lock(&mut self) -> anyhow::Result<()> {
        match self.lock.connection().keep().await {
            Ok(()) => Ok(()),
            Err(error @ Error::LeaseEnded { .. }) => Err(error.into()),
            Err(error) => self.look_anew(&error).await,
        }
    }

    /// Takes the lock over a new connection, and begins everything that is under way anew.
    pub(super) async fn look_anew(&mut self, lost: &Error) -> anyhow::Result<()> {
        if self.lock.connection().is_fenced() {
            // What was sent over it may still be written. The next call ends its session first.
            let lost = error::chain(lost);
            anyhow::bail!("the connection of this slice was lost ({lost}): call the slice again");
        }
        self.epoch += 1;
        while let Some(keys) = self.waiting.take_keys()? {
            self.unread.extend(keys);
        }
        let lost = error::chain(lost);
        loop {
            self.failures += 1;
            anyhow::ensure!(
                self.failures < MAX_TRIES,
                "the connection that holds the lock of repairs fails again and again: {lost}"
            );
            let pause = pause_after(self.failures);
            console::line(&format!(
                "the connection that holds the lock of repairs was lost ({lost}); taking the lock \
                    again in {} s, and looking again at what was under way",
                pause.as_secs()
            ));
            tokio::time::sleep(pause).await;
            // That the database is away still is tried again; that another run has the lock is not.
            if let Ok(locked) = self.lock.retake(&self.projector.database).await {
                return locked.map_err(anyhow::Error::msg);
            }
        }
    }
}
