//! The objects of all rows, page by page in the order of the table: what failed while others passed
//! waits for the end, and is known by the session before it, so that a later run can resume without
//! skipping it.

pub(crate) mod in_vain;

use std::cell::RefCell;
use std::time::{Duration, Instant};

use anyhow::bail;
use futures_util::{StreamExt as _, stream};
use projector::apply::{Found, Known, Pace, Reconciled, look_at_object, reconcile};
use projector::archive::Archive;
use projector::database::Database;
use projector::deadline::Deadline;
use projector::error::{self, Consequence, Error};
use projector::measurement::Versions;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::{Arguments as _, Row as _};
use tokio::time::timeout;

use crate::compare_objects::in_vain::{InVain, TRY_IN_VAIN};
use crate::console::{self, LINE_EVERY, Progress, span};
use crate::rate::Rate;
use crate::retry::{pause_after, retry_transient};
use crate::statement;
use crate::stop::Stop;

/// At most this many sessions are compared between two reports.
const PAGE: usize = 1_000;
/// How often an object is tried before it is left for the end, if others of its page pass.
const TRIES: u32 = 3;
/// A page of which no object passes is tried for this long: then S3 is away.
const PAGE_IN_VAIN: Duration = Duration::from_mins(5);
/// After more pages of one session in a row that failed, S3 is away.
const PAGES_IN_VAIN: u32 = 2;
/// If more objects than this are left for the end, something else is wrong than a few objects.
const LEFT_AT_MOST: usize = 10_000;
/// At most this many failures of a try get a log line each.
const LOGGED: usize = 10;

const NEXT: &str = "SELECT session_id, session_version, left_version, right_version
FROM measurements WHERE session_id > $1 ORDER BY session_id LIMIT $2";

/// How a comparison ended that did not fail: this one, and each one of `verify`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Every session was read; [`Comparing::left`] has the objects that could not be compared or
    /// written.
    AllCompared,
    /// A signal came first.
    Stopped,
    /// Too many sessions differ: comparing the rest would say nothing new.
    TooManyDiffer,
}

/// An object that is not what its row says, as a dry run finds it.
#[derive(Clone, Debug)]
pub(crate) struct Differing {
    pub(crate) session_id: String,
    /// What the row held when it was read.
    pub(crate) versions: Versions,
    /// The session before it in the order of the table.
    pub(crate) previous: String,
    pub(crate) found: Found,
}

/// What came of the objects.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// They held their rows already.
    pub(crate) current: u64,
    /// They are not wanted yet, because their rows have not had all parts.
    pub(crate) not_yet: u64,
    /// Of a dry run: they are not there.
    pub(crate) missing: u64,
    /// Of a dry run: they hold less than their rows.
    pub(crate) behind: u64,
    /// Missing or behind, and written.
    pub(crate) written: u64,
}

/// A session whose object is to be compared.
#[derive(Clone, Debug)]
struct Pending {
    session_id: String,
    /// What its row held when it was read.
    versions: Versions,
    /// The session before it in the order of the table.
    previous: String,
}

/// The comparison of all rows after one.
pub(crate) struct Comparing<'a> {
    archive: &'a Archive,
    database: &'a Database,
    stop: &'a Stop,
    dry_run: bool,
    pace: Pace,
    /// The last session of the pages that were read: what is not done of them is in `left`.
    last: String,
    left: Vec<Pending>,
    /// How many pages in a row failed as a whole.
    pages_in_vain: u32,
    tally: Tally,
    rate: Rate,
    /// What differs, and how much of it is kept at most; `None` if none is.
    differing: Vec<Differing>,
    keeps: Option<usize>,
}

impl<'a> Comparing<'a> {
    /// Starts after this session; with `dry_run` nothing is written.
    pub(crate) fn new(
        archive: &'a Archive,
        database: &'a Database,
        stop: &'a Stop,
        after: String,
        dry_run: bool,
    ) -> Self {
        Self {
            archive,
            database,
            stop,
            dry_run,
            pace: Pace::new(PAGE),
            last: after,
            left: Vec::new(),
            pages_in_vain: 0,
            tally: Tally::default(),
            rate: Rate::new(None),
            differing: Vec::new(),
            keeps: None,
        }
    }

    /// Takes no more objects per second than this.
    pub(crate) fn at_most_per_second(mut self, objects: Option<u32>) -> Self {
        self.rate = Rate::new(objects);
        self.pace = Pace::new(objects.map_or(PAGE, |objects| PAGE.min(objects as usize)));
        self
    }

    /// Keeps what a dry run finds, and ends early after a number of objects that differ.
    pub(crate) fn keep_what_differs(&mut self, most: usize) {
        self.keeps = Some(most);
    }

    /// The objects that differ and were kept.
    pub(crate) fn take_differing(&mut self) -> Vec<Differing> {
        std::mem::take(&mut self.differing)
    }

    /// Compares the objects of these sessions once more.
    pub(crate) async fn look_again(
        &mut self,
        differing: Vec<Differing>,
        progress: &mut Progress,
    ) -> anyhow::Result<()> {
        let pending = differing.into_iter().map(|differing| {
            let Differing { session_id, versions, previous, found: _ } = differing;
            Pending { session_id, versions, previous }
        });
        let mut left = self.compare(pending.collect(), progress).await?;
        self.left.append(&mut left);
        Ok(())
    }

    /// What came of the objects so far.
    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The sessions whose objects could not be compared or written, in order.
    pub(crate) fn left(&self) -> Vec<&str> {
        let mut left: Vec<&str> =
            self.left.iter().map(|pending| pending.session_id.as_str()).collect();
        left.sort_unstable();
        left
    }

    /// The last session before the first one that is not done: a run that begins after it skips
    /// nothing.
    pub(crate) fn resume_after(&self) -> &str {
        let first = self.left.iter().min_by(|a, b| a.session_id.cmp(&b.session_id));
        first.map_or(&self.last, |first| &first.previous)
    }

    /// Compares all pages, then what was left.
    pub(crate) async fn until_done(&mut self, progress: &mut Progress) -> anyhow::Result<End> {
        let stop = self.stop;
        loop {
            let reading = next(self.database, &self.last, &mut self.pace);
            let page = tokio::select! {
                biased;
                () = stop.wait() => return Ok(End::Stopped),
                page = reading => page?,
            };
            if page.is_empty() {
                break;
            }
            let sessions = page.len() as u64;
            tokio::select! {
                biased;
                () = stop.wait() => return Ok(End::Stopped),
                () = self.rate.take(sessions as f64) => {}
            }
            tokio::select! {
                biased;
                done = self.page(page, progress) => done?,
                () = stop.grace_over() => return Ok(End::Stopped),
            }
            self.show(sessions, progress);
            if self.keeps.is_some_and(|most| self.differing.len() > most) {
                return Ok(End::TooManyDiffer);
            }
        }
        // What was wrong with them may have passed.
        let again = self.left.clone();
        tokio::select! {
            biased;
            left = self.compare(again, progress) => self.left = left?,
            () = stop.grace_over() => return Ok(End::Stopped),
        }
        // A signal leaves some untried, which did not fail.
        let stopped = stop.requested() && !self.left.is_empty();
        Ok(if stopped { End::Stopped } else { End::AllCompared })
    }

    /// Compares the objects of a page. What fails while others pass is left, and so is what a
    /// signal leaves untried.
    async fn page(&mut self, page: Vec<Pending>, progress: &mut Progress) -> anyhow::Result<()> {
        let Some(newest) = page.last().map(|pending| pending.session_id.clone()) else {
            return Ok(());
        };
        let (sessions, start) = (page.len(), Instant::now());
        let mut failed = self.compare(page, progress).await?;
        let mut failures = TRIES;
        // S3 is away: there is no use in going on to the next page.
        while failed.len() == sessions && start.elapsed() < PAGE_IN_VAIN && !self.stop.requested() {
            console::line(&format!(
                "no object was compared or written for {}; again in {} s",
                span(start.elapsed()),
                pause_after(failures).as_secs()
            ));
            self.pause(failures).await;
            failed = self.compare(failed, progress).await?;
            failures += 1;
        }
        if !self.stop.requested() {
            self.give_up_if_all_fail(failed.len() == sessions, sessions)?;
        }
        self.left.append(&mut failed);
        self.last = newest;
        if self.left.len() > LEFT_AT_MOST {
            bail!("more than {LEFT_AT_MOST} objects fail, the log above says why");
        }
        Ok(())
    }

    fn give_up_if_all_fail(&mut self, all_fail: bool, sessions: usize) -> anyhow::Result<()> {
        // One session alone may be at fault itself: a slow database gives pages of one.
        self.pages_in_vain = if all_fail { self.pages_in_vain + 1 } else { 0 };
        if all_fail && (sessions > 1 || self.pages_in_vain > PAGES_IN_VAIN) {
            bail!(
                "no object could be compared or written for some minutes, the log above says why"
            );
        }
        Ok(())
    }

    /// Compares the objects of these sessions, and returns those that failed in passing [`TRIES`]
    /// times, or that a signal or an S3 that is away left untried.
    async fn compare(
        &mut self,
        mut pending: Vec<Pending>,
        progress: &mut Progress,
    ) -> anyhow::Result<Vec<Pending>> {
        for tries in 1..=TRIES {
            pending = self.try_once(pending, progress).await?;
            if pending.is_empty() || self.stop.requested() {
                break;
            }
            if tries < TRIES {
                self.pause(tries).await;
            }
        }
        Ok(pending)
    }

    /// Tries each object once. Those that are left untried come first in what it returns, so that
    /// the next try begins with them.
    async fn try_once(
        &mut self,
        pending: Vec<Pending>,
        progress: &mut Progress,
    ) -> anyhow::Result<Vec<Pending>> {
        let Self { archive, database, stop, dry_run, .. } = *self;
        let vain = &RefCell::new(InVain::new(archive.concurrency(), Instant::now()));
        let mut failures = Failures::default();
        let mut answers = stream::iter(pending)
            .map(|pending| async move {
                if stop.requested() || vain.borrow().is_enough(Instant::now()) {
                    return (pending, None);
                }
                let done = compare_one(archive, database, &pending, dry_run).await;
                (pending, Some(done))
            })
            .buffer_unordered(archive.concurrency());
        let mut untried = Vec::new();
        loop {
            self.show(0, progress);
            let Ok(answer) = timeout(LINE_EVERY, answers.next()).await else { continue };
            let Some((pending, done)) = answer else { break };
            match done {
                Some(Ok(done)) => {
                    vain.borrow_mut().passed(Instant::now());
                    self.tally.add(done);
                    self.keep(pending, done);
                }
                None => untried.push(pending),
                Some(Err(error)) if error.consequence() == Consequence::Fatal => {
                    return Err(error.into());
                }
                Some(Err(error)) => {
                    vain.borrow_mut().failed();
                    failures.add(pending, &error);
                }
            }
        }
        Ok(failures.after(untried, stop.requested()))
    }

    fn keep(&mut self, pending: Pending, done: Done) {
        let Pending { session_id, versions, previous } = pending;
        match done {
            Done::Found(found @ (Found::Missing | Found::Behind)) if self.keeps.is_some() => {
                self.differing.push(Differing { session_id, versions, previous, found });
            }
            Done::Found(_) | Done::Written => {}
        }
    }

    /// This many more sessions are done.
    fn show(&self, sessions: u64, progress: &mut Progress) {
        progress.advance_objects(sessions, self.tally.compared(), &self.tally.text(self.dry_run));
    }

    /// Waits before the next try, unless a signal comes.
    async fn pause(&self, failures: u32) {
        tokio::select! {
            () = self.stop.wait() => {}
            () = tokio::time::sleep(pause_after(failures)) => {}
        }
    }
}

/// The objects of a try that failed.
#[derive(Default)]
struct Failures(Vec<Pending>);

impl Failures {
    fn add(&mut self, pending: Pending, error: &Error) {
        if self.0.len() < LOGGED {
            tracing::warn!(error = error::chain(error), "not compared");
        }
        self.0.push(pending);
    }

    /// Says how many there are, and returns what is not done, the untried first.
    fn after(self, mut untried: Vec<Pending>, stopped: bool) -> Vec<Pending> {
        let Self(mut failed) = self;
        if failed.len() > LOGGED {
            let more = failed.len() - LOGGED;
            console::line(&format!("{more} more objects could not be compared or written"));
        }
        if !untried.is_empty() && !stopped {
            console::line(&format!(
                "no object was compared or written for {} s: {} are left for the next try",
                TRY_IN_VAIN.as_secs(),
                untried.len()
            ));
        }
        untried.append(&mut failed);
        untried
    }
}

/// What became of one object.
#[derive(Clone, Copy)]
enum Done {
    Found(Found),
    Written,
}

async fn compare_one(
    archive: &Archive,
    database: &Database,
    pending: &Pending,
    dry_run: bool,
) -> Result<Done, Error> {
    let Pending { session_id, versions, .. } = pending;
    if dry_run {
        return Ok(Done::Found(look_at_object(archive, session_id, versions).await?));
    }
    let known = Known::from(versions.clone());
    Ok(match reconcile(database, archive, session_id, known, Deadline::NONE).await? {
        Reconciled::Written => Done::Written,
        Reconciled::UpToDate => Done::Found(Found::UpToDate),
        Reconciled::NotYet => Done::Found(Found::NotYet),
    })
}

impl Tally {
    /// How many objects were compared.
    pub(crate) fn compared(&self) -> u64 {
        let Self { current, not_yet, missing, behind, written } = *self;
        current + not_yet + missing + behind + written
    }

    /// The same in a few words, for the progress.
    fn text(&self, dry_run: bool) -> String {
        if dry_run {
            format!("{} missing, {} behind", self.missing, self.behind)
        } else {
            format!("{} written", self.written)
        }
    }

    fn add(&mut self, done: Done) {
        *match done {
            Done::Written => &mut self.written,
            Done::Found(Found::UpToDate) => &mut self.current,
            Done::Found(Found::NotYet) => &mut self.not_yet,
            Done::Found(Found::Missing) => &mut self.missing,
            Done::Found(Found::Behind) => &mut self.behind,
        } += 1;
    }
}

/// The sessions after this one, in order.
async fn next(database: &Database, after: &str, pace: &mut Pace) -> anyhow::Result<Vec<Pending>> {
    let arguments = |limit| {
        let mut arguments = PgArguments::default();
        arguments.add(after)?;
        arguments.add(i64::try_from(limit)?)?;
        Ok(arguments)
    };
    let reading = retry_transient("read the rows", async || {
        statement::page(database, pace, NEXT, arguments).await
    });
    let (_, rows) = reading.await?;
    let mut previous = after.to_owned();
    let pending = |row: &PgRow| {
        let session_id: String = row.try_get(0)?;
        let versions = [row.try_get(1)?, row.try_get(2)?, row.try_get(3)?].into();
        let previous = std::mem::replace(&mut previous, session_id.clone());
        Ok::<_, sqlx::Error>(Pending { session_id, versions, previous })
    };
    Ok(rows.iter().map(pending).collect::<Result<_, _>>()?)
}
