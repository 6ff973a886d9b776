//! The objects that `file`, `stream`, `merge` and `repair` leave for their end: rows first, then
//! each object once, however many records its session had. The keys are in the table
//! `pending_objects`, so whatever ends a run, the next one writes what is missing.
//!
//! A key is removed only if its mark is still the one that was read before the row. Another run may
//! have touched it since, with a row that is newer than the one compared here. That run's key then
//! stays, and its object is compared again.

mod guesses;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use futures_util::future::BoxFuture;
use futures_util::{StreamExt as _, stream};
use projector::apply::{Known, Projector, Reconciled, reconcile};
use projector::archive::Archive;
use projector::counts::Counts;
use projector::database::Database;
use projector::deadline::Deadline;
use projector::error::{self, Consequence, Error};
use projector::pending_objects::{self, PendingObject};
use projector::read_model::{self, Held};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::compare_objects::in_vain::InVain;
use crate::console::{self, Progress};
use crate::outcome::Remedy;
use crate::pending_objects::guesses::Guesses;
use crate::retry::{MAX_TRIES, pause_after, retry_transient_on_a_task};

/// At most this many sessions are compared before their keys are removed.
const PAGE: i64 = 1_000;
/// A page is compared by this many tasks, so that it takes more than one core.
const TASKS: usize = 4;
/// How often objects are tried while others pass, or while they are few.
const TRIES: u32 = 3;
/// That all of at most this many objects fail says nothing of S3.
const FEW: usize = 8;
/// If more objects than this fail while others pass, something else is wrong than a few objects.
const FAILED_AT_MOST: usize = 10_000;
/// At most this many failures of a try get a log line each.
const LOGGED: usize = 10;
/// At most this many sessions are named.
const NAMED: usize = 20;

/// What to do if objects are still pending.
pub(crate) const REMEDY: &str = "all rows are stored. Once S3 takes objects again, run `backfill \
    objects --pending`; the next `stream`, `file`, `merge` or `repair` writes them, too";

/// The summary of a run waits this long for the number of pending objects: the database may be
/// what is silent.
const COUNT_WITHIN: Duration = Duration::from_secs(1);

/// How many objects are pending, for the summary of a run that did not write them; `None` without
/// an archive, or if the database does not say.
pub(crate) async fn count(projector: &Projector) -> Option<u64> {
    projector.archive.as_ref()?;
    let counting = timeout(COUNT_WITHIN, pending_objects::count(&projector.database)).await;
    match counting.ok()? {
        Ok(count) => Some(count),
        Err(error) => {
            let error = error::chain(&error);
            // It is asked last: a run that failed has said why.
            tracing::debug!(error, "cannot count the pending objects");
            None
        }
    }
}

/// A line of a summary; none if no object is pending.
pub(crate) fn line(pending: Option<u64>) -> String {
    match pending {
        None | Some(0) => String::new(),
        Some(count) => format!(
            "  {:<16}{count:>10}  the next `stream`, `file`, `merge` or `repair` writes them, or \
             `backfill objects --pending`\n",
            "objects pending"
        ),
    }
}

/// Writes the objects of all pending sessions, also those that earlier runs have left. Dropped, it
/// leaves the rest for the next one.
///
/// Boxed: the future is large, and the compiler proves here that another task may run it.
///
/// # Errors
/// If the set-up is wrong, the stores stay away for some minutes, or some objects cannot be
/// written.
pub(crate) fn write<'a>(
    projector: &'a Arc<Projector>,
    counts: &'a mut Counts,
) -> BoxFuture<'a, anyhow::Result<()>> {
    Box::pin(async move {
        if projector.archive.is_none() {
            return Ok(());
        }
        let asking = || pending_objects::count(&projector.database);
        let pending = retry_transient_on_a_task("count the pending objects", asking).await?;
        if pending == 0 {
            return Ok(());
        }
        let mut writing = Writing {
            projector: Arc::clone(projector),
            counts,
            progress: Progress::start(pending),
            guesses: Arc::default(),
            compared: 0,
            failed: Vec::new(),
        };
        writing.until_done().await.with_context(|| Remedy(REMEDY.to_owned()))
    })
}

/// A session and its row; `None` if it has none.
type Loaded = (PendingObject, Option<Held>);

/// What became of an object; `None` if it was not tried.
type Done = (PendingObject, Option<Result<Option<Reconciled>, Error>>);

struct Writing<'a> {
    projector: Arc<Projector>,
    counts: &'a mut Counts,
    progress: Progress,
    guesses: Arc<Mutex<Guesses>>,
    compared: u64,
    /// They failed while others passed.
    failed: Vec<PendingObject>,
}

impl Writing<'_> {
    async fn until_done(&mut self) -> anyhow::Result<()> {
        let projector = Arc::clone(&self.projector);
        let database = &projector.database;
        let mut page = load(database, next(database, "").await?).await?;
        while let Some((last, _)) = page.last() {
            let after = last.session_id.clone();
            let reading = async { load(database, next(database, &after).await?).await };
            ((), page) = tokio::try_join!(self.page(page), reading)?;
        }
        // What was wrong with them may have passed.
        let failed = std::mem::take(&mut self.failed);
        let failed = self.try_again(failed).await?;
        if failed.is_empty() {
            return Ok(());
        }
        let named: Vec<&str> =
            failed.iter().take(NAMED).map(|pending| pending.session_id.as_str()).collect();
        let more = if failed.len() > NAMED { ", ..." } else { "" };
        bail!(
            "{} could not be written, the log above says why: {}{more}. All others are",
            objects(failed.len()),
            named.join(", ")
        )
    }

    /// Compares a page. What fails while others pass is left for the end.
    async fn page(&mut self, page: Vec<Loaded>) -> anyhow::Result<()> {
        let count = page.len();
        let mut failed = self.try_once(page).await?;
        let most = if count <= FEW { TRIES } else { MAX_TRIES };
        let mut tries = 1;
        while failed.len() == count && tries < most {
            self.pause(tries, count).await;
            let database = &self.projector.database;
            let page = load(database, failed).await?;
            failed = self.try_once(page).await?;
            tries += 1;
        }
        if failed.len() == count && count > FEW {
            bail!("no object could be compared or written for some minutes, the log says why");
        }
        self.failed.append(&mut failed);
        if self.failed.len() > FAILED_AT_MOST {
            bail!("more than {FAILED_AT_MOST} objects fail, the log above says why");
        }
        Ok(())
    }

    /// Tries what has failed a few times more, and returns what still fails.
    async fn try_again(
        &mut self,
        mut failed: Vec<PendingObject>,
    ) -> anyhow::Result<Vec<PendingObject>> {
        for tries in 1..TRIES {
            if failed.is_empty() {
                break;
            }
            self.pause(tries, failed.len()).await;
            let page = load(&self.projector.database, failed).await?;
            failed = self.try_once(page).await?;
        }
        Ok(failed)
    }

    async fn pause(&self, tries: u32, count: usize) {
        let pause = pause_after(tries);
        console::line(&format!(
            "{} could not be compared or written; again in {} s",
            objects(count),
            pause.as_secs()
        ));
        tokio::time::sleep(pause).await;
    }

    /// Tries each object once, removes the keys of those that are done, and returns the others.
    async fn try_once(&mut self, page: Vec<Loaded>) -> anyhow::Result<Vec<PendingObject>> {
        let concurrency = self.projector.archive.as_ref().map_or(1, Archive::concurrency);
        let vain = Arc::new(Mutex::new(InVain::new(concurrency, Instant::now())));
        let size = page.len().div_ceil(TASKS).max(1);
        let (mut page, mut tasks) = (page.into_iter(), JoinSet::new());
        loop {
            let some: Vec<Loaded> = page.by_ref().take(size).collect();
            if some.is_empty() {
                break;
            }
            let (guesses, vain) = (Arc::clone(&self.guesses), Arc::clone(&vain));
            tasks.spawn(compare(Arc::clone(&self.projector), some, guesses, vain));
        }
        let (mut compared, mut failed, mut logged) = (Vec::new(), Vec::new(), 0);
        while let Some(answers) = tasks.join_next().await {
            for (pending, done) in answers.context("a task that writes objects panicked")? {
                match done {
                    Some(Ok(reconciled)) => {
                        self.count(reconciled);
                        compared.push(pending);
                    }
                    Some(Err(error)) if error.consequence() == Consequence::Fatal => {
                        return Err(error.into());
                    }
                    Some(Err(error)) => {
                        if logged < LOGGED {
                            tracing::warn!(error = error::chain(&error), "object not written");
                        }
                        logged += 1;
                        failed.push(pending);
                    }
                    None => failed.push(pending),
                }
            }
        }
        let removing = || pending_objects::remove(&self.projector.database, &compared);
        retry_transient_on_a_task("remove keys from pending_objects", removing).await?;
        self.compared += compared.len() as u64;
        let text = format!("{} written", self.counts.objects_written);
        self.progress.advance_objects(compared.len() as u64, self.compared, &text);
        Ok(failed)
    }

    fn count(&mut self, reconciled: Option<Reconciled>) {
        match reconciled {
            // There is no row, so there is no object to write.
            None => {}
            Some(Reconciled::Written) => self.counts.objects_written += 1,
            Some(Reconciled::UpToDate) => self.counts.objects_current += 1,
            Some(Reconciled::NotYet) => self.counts.objects_not_yet += 1,
        }
    }
}

fn objects(count: usize) -> String {
    if count == 1 { "1 object".to_owned() } else { format!("{count} objects") }
}

async fn next(database: &Database, after: &str) -> anyhow::Result<Vec<PendingObject>> {
    let reading = || pending_objects::next(database, after, PAGE);
    retry_transient_on_a_task("read pending_objects", reading).await
}

/// Reads the rows, AFTER the marks of their keys: so a row is at least as new as its mark.
async fn load(database: &Database, page: Vec<PendingObject>) -> anyhow::Result<Vec<Loaded>> {
    let keys: Vec<&str> = page.iter().map(|pending| pending.session_id.as_str()).collect();
    let reading = || read_model::read_small(database, &keys, Deadline::NONE);
    let mut rows: HashMap<String, Held> =
        retry_transient_on_a_task("read the rows of pending objects", reading).await?;
    let load = |pending: PendingObject| {
        let row = rows.remove(&pending.session_id);
        (pending, row)
    };
    Ok(page.into_iter().map(load).collect())
}

/// Compares some objects with their rows. Begins no more once S3 counts as away.
async fn compare(
    projector: Arc<Projector>,
    some: Vec<Loaded>,
    guesses: Arc<Mutex<Guesses>>,
    vain: Arc<Mutex<InVain>>,
) -> Vec<Done> {
    let Some(archive) = &projector.archive else { return Vec::new() };
    let (database, guesses, vain) = (&projector.database, &*guesses, &*vain);
    let lock = || vain.lock().unwrap_or_else(PoisonError::into_inner);
    let one = |(pending, row): Loaded| async move {
        let Some(row) = row else { return (pending, Some(Ok(None))) };
        if lock().is_enough(Instant::now()) {
            return (pending, None);
        }
        let learned = || guesses.lock().unwrap_or_else(PoisonError::into_inner);
        let puts_at_once = pending.is_new && learned().are_worth_it();
        let known = Known::read(puts_at_once, row);
        let id = &pending.session_id;
        let done = reconcile(database, archive, id, known, Deadline::NONE).await;
        match &done {
            Ok(reconciled) => {
                lock().passed(Instant::now());
                if puts_at_once {
                    learned().saw(*reconciled != Reconciled::UpToDate);
                }
            }
            Err(_) => lock().failed(),
        }
        (pending, Some(done.map(Some)))
    };
    let at_once = archive.concurrency().div_ceil(TASKS);
    stream::iter(some).map(one).buffer_unordered(at_once).collect().await
}
