//! The sessions that differed when they were last read. They are read again in rounds, because most
//! are only on their way.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join;
use tokio::time::Instant;

use crate::console;
use crate::verify::difference::Difference;
use crate::verify::report::Report;
use crate::verify::rows::columns::Column;
use crate::verify::rows::judge::{Held, Suspect, Verdict, judge};
use crate::verify::rows::side::Side;

/// If more sessions than this differ, the databases are not copies of each other, and naming them
/// all helps nobody.
pub(crate) const MOST: usize = 100_000;
/// At most this many sessions are read again at a time.
const PAGE: usize = 2_000;

/// A session that differed when it was last read.
#[derive(Debug)]
struct Waiting {
    suspect: Suspect,
    /// Everything up to this key was compared before it.
    after: Arc<str>,
    /// What the last look showed; empty before the first one, and if both sides have moved on.
    differences: Vec<Difference>,
}

/// What differed so far and has not settled.
pub(crate) struct Rounds<'a> {
    ours: Side<'a>,
    theirs: Side<'a>,
    columns: Vec<Column>,
    waiting: Vec<Waiting>,
    /// When the last of them was seen first.
    last_seen: Instant,
}

impl<'a> Rounds<'a> {
    /// Nothing has differed yet. The columns are those whose values the sides' statements read.
    pub(crate) fn new(ours: Side<'a>, theirs: Side<'a>, columns: Vec<Column>) -> Self {
        let last_seen = Instant::now();
        Self { ours, theirs, columns, waiting: Vec::new(), last_seen }
    }

    /// How many sessions differed when they were last read.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// The key from which a run skips none of them.
    pub(crate) fn resume_after(&self) -> Option<&str> {
        self.waiting.iter().map(|waiting| &*waiting.after).min()
    }

    /// Takes up sessions that differ among the rows after this key. Those whose versions differ by
    /// a repair alone are compared at once: after a large repair there are many, and their values
    /// are mostly equal.
    pub(crate) async fn add(&mut self, after: &str, suspects: Vec<Suspect>) -> anyhow::Result<()> {
        let (repaired, mut others): (Vec<_>, Vec<_>) =
            suspects.into_iter().partition(|suspect| suspect.by_repair_alone);
        for page in repaired.chunks(PAGE) {
            let verdicts = self.look(page).await?;
            let differs =
                page.iter().zip(verdicts).filter(|(_, verdict)| *verdict != Verdict::Settled);
            others.extend(differs.map(|(suspect, _)| suspect.clone()));
        }
        if !others.is_empty() {
            self.last_seen = Instant::now();
        }
        let after: Arc<str> = after.into();
        let waiting =
            |suspect| Waiting { suspect, after: Arc::clone(&after), differences: Vec::new() };
        self.waiting.extend(others.into_iter().map(waiting));
        Ok(())
    }

    /// Reads all of them again, at most `rounds` times, each after this wait. What is left differs.
    pub(crate) async fn settle(&mut self, rounds: u16, wait: Duration) -> anyhow::Result<()> {
        for round in 1..=rounds {
            if self.waiting.is_empty() {
                break;
            }
            console::line(&format!(
                "{} sessions differ, and may be on their way: read again in {} s \
                 ({round} of {rounds})",
                self.waiting.len(),
                wait.as_secs()
            ));
            tokio::time::sleep_until(self.last_seen + wait).await;
            self.read_again().await?;
            self.last_seen = Instant::now();
        }
        Ok(())
    }

    /// Reads all of them again, and drops those that have settled. It may be dropped at any time.
    async fn read_again(&mut self) -> anyhow::Result<()> {
        let mut start = 0;
        while start < self.waiting.len() {
            let end = self.waiting.len().min(start + PAGE);
            let page: Vec<Suspect> =
                self.waiting[start..end].iter().map(|waiting| waiting.suspect.clone()).collect();
            let verdicts = self.look(&page).await?;
            let seen: Vec<Waiting> = self.waiting.splice(start..end, []).collect();
            let kept: Vec<Waiting> = seen
                .into_iter()
                .zip(verdicts)
                .filter_map(|(waiting, verdict)| waiting.after(verdict))
                .collect();
            let count = kept.len();
            self.waiting.splice(start..start, kept);
            start += count;
        }
        Ok(())
    }

    /// What the sessions of a page come to now.
    async fn look(&self, suspects: &[Suspect]) -> anyhow::Result<Vec<Verdict>> {
        let mut verdicts = self.verdicts(suspects).await?;
        // Only the values can say; they are read at once, or the last round would say nothing.
        let open: Vec<usize> =
            (0..verdicts.len()).filter(|place| verdicts[*place] == Verdict::ReadValues).collect();
        if open.is_empty() {
            return Ok(verdicts);
        }
        let with_values = |place: &usize| Suspect { with_values: true, ..suspects[*place].clone() };
        let again: Vec<Suspect> = open.iter().map(with_values).collect();
        for (place, verdict) in open.into_iter().zip(self.verdicts(&again).await?) {
            verdicts[place] = verdict;
        }
        Ok(verdicts)
    }

    async fn verdicts(&self, suspects: &[Suspect]) -> anyhow::Result<Vec<Verdict>> {
        let keys = |with_values: bool| -> Vec<&str> {
            let chosen = suspects.iter().filter(|suspect| suspect.with_values == with_values);
            chosen.map(|suspect| suspect.session_id.as_str()).collect()
        };
        let (plain, with_values) = (keys(false), keys(true));
        let read = async |side: &Side<'_>| {
            let mut held = side.look(&plain, false).await?;
            held.extend(side.look(&with_values, true).await?);
            Ok::<HashMap<String, Held>, anyhow::Error>(held)
        };
        let (ours, theirs) = try_join(read(&self.ours), read(&self.theirs)).await?;
        let verdict = |suspect: &Suspect| {
            let key = &suspect.session_id;
            judge(suspect, ours.get(key), theirs.get(key), &self.columns)
        };
        Ok(suspects.iter().map(verdict).collect())
    }

    /// Reports what still differs, after the last round.
    ///
    /// # Errors
    /// If the report cannot be written.
    pub(crate) fn report(&mut self, report: &mut Report) -> anyhow::Result<()> {
        let mut moved = 0;
        for waiting in self.waiting.drain(..) {
            moved += u64::from(waiting.differences.is_empty());
            for difference in waiting.differences {
                report.add(difference)?;
            }
        }
        if moved > 0 {
            console::line(&format!(
                "{moved} sessions were written between any two reads: both databases hold their \
                 newer versions, and their values were not compared"
            ));
        }
        Ok(())
    }

    /// Names what was not read again often enough to count as a difference.
    pub(crate) fn leave_unconfirmed(&mut self, report: &mut Report) {
        for waiting in &self.waiting {
            report.leave_unconfirmed(&waiting.suspect.session_id);
        }
    }
}

impl Waiting {
    /// What it is after this verdict; `None` if it has settled.
    fn after(self, verdict: Verdict) -> Option<Self> {
        let Self { suspect, after, .. } = self;
        match verdict {
            Verdict::Settled => None,
            Verdict::Moved(ahead) => {
                let suspect = Suspect { ahead, ..suspect };
                Some(Self { suspect, after, differences: Vec::new() })
            }
            Verdict::ReadValues => {
                let suspect = Suspect { with_values: true, ..suspect };
                Some(Self { suspect, after, differences: Vec::new() })
            }
            Verdict::Differs(differences) => Some(Self { suspect, after, differences }),
        }
    }
}
