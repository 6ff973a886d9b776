//! The loop of a repair: candidates → looks → holds → rows → objects, to the end or a signal.
//!
//! A part is under way at most once: two images of one part must not race each other.

mod lost_lock;
mod objects;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use projector::apply::{Pace, Projector};
use projector::deadline::Deadline;
use projector::rejected::{RejectedImage, store_images};
use time::OffsetDateTime;
use tokio::sync::mpsc;

use crate::advisory_lock::Held;
use crate::console::Progress;
use crate::items::api::KEYS_PER_CALL;
use crate::items::place::FileFault;
use crate::items::{self, Key};
use crate::rate::Rate;
use crate::read_ahead::send_all;
use crate::rejected_records;
use crate::repair::candidates::Batch as Candidates;
use crate::repair::lines::Lines;
use crate::repair::look::{Looker, Looks, MalformedItem, Objects};
use crate::repair::source::{Named, Source, Step};
use crate::repair::streams::Streams;
use crate::repair::tally::Tally;
use crate::repair::upsert::{Fate, NotUpserted, upsert};
use crate::repair::waiting::{Batch, Waiting};
use crate::stop::Stop;

/// At most this many calls for items or objects are under way.
const JOBS: usize = 4;
/// No more candidates are taken while this many parts are to be looked at.
const UNREAD_AT_MOST: usize = 10 * KEYS_PER_CALL;
/// At most this many objects are asked for by one job.
const OBJECTS: usize = 1_000;
/// How often the holds are looked at.
const OBSERVE_EVERY: Duration = Duration::from_secs(1);
/// How often the connection that holds the lock is used: some networks forget an idle one.
const KEEP_LOCK_EVERY: Duration = Duration::from_mins(1);
/// A part whose row was locked for too long this often is left.
const LOCKED_AT_MOST: u32 = 5;

/// How a run ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Every candidate is settled.
    AllSettled,
    /// A signal came first.
    Stopped,
}

/// What a run keeps to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// How long an invocation of the function may take.
    pub(crate) function_timeout: time::Duration,
    /// At most this many sessions are looked at per second, and at most as many written.
    pub(crate) max_rate: Option<u32>,
}

/// What a job came to, and in which epoch it was begun.
enum Done {
    Looked(u64, Vec<Key>, anyhow::Result<Looks>),
    /// The parts that were equal at their first look, and what became of their objects.
    Objects(Vec<Key>, anyhow::Result<Objects>),
}

/// Sessions whose objects are to be asked for.
struct Equal {
    sessions: Vec<String>,
    /// Their parts, if lines of a file name them.
    keys: Vec<Key>,
}

/// The looks and the questions for objects.
#[derive(Default)]
struct Jobs<'a> {
    under_way: FuturesUnordered<LocalBoxFuture<'a, Done>>,
    /// They ended while something was written.
    done: VecDeque<Done>,
}

impl Jobs<'_> {
    /// Runs a step to its end, and the jobs meanwhile. They hold connections and permits for
    /// objects that the step may wait for.
    async fn beside<T>(&mut self, mut step: LocalBoxFuture<'_, T>) -> T {
        loop {
            tokio::select! {
                biased;
                result = &mut step => return result,
                Some(done) = self.under_way.next(), if !self.under_way.is_empty() => {
                    self.done.push_back(done);
                }
            }
        }
    }
}

/// A run.
pub(crate) struct Repair<'a> {
    pub(crate) looker: &'a Looker<'a>,
    pub(crate) projector: &'a Projector,
    /// Keeps other repairs, merges and redrives away; images are written over its connection.
    pub(crate) lock: Held,
    pub(crate) streams: Streams<'a>,
    limits: Limits,
    /// What was written, in sessions.
    writes: Rate,
    pub(crate) tally: Tally,
    pub(crate) progress: Progress,
    named: Named,
    waiting: Waiting,
    /// Every part that is to be looked at, is being looked at, or waits.
    under_way: HashSet<Key>,
    /// The parts that are to be looked at.
    unread: VecDeque<Key>,
    /// How often a part's row was locked for too long.
    locked: HashMap<Key, u32>,
    /// Sessions whose parts were equal at a first look, or that only the bucket may hold: their
    /// objects are still to be asked for.
    equal: VecDeque<Equal>,
    /// The lines of a file that name the parts, if it is the source. Nothing else is repaired then:
    /// other parts have slices of their own.
    pub(crate) lines: Option<Lines>,
    /// Grows each time that the lock's connection was lost: what was seen before counts no more.
    epoch: u64,
    /// How often in a row the connection failed.
    failures: u32,
}

impl<'a> Repair<'a> {
    pub(crate) fn new(
        looker: &'a Looker<'a>,
        projector: &'a Projector,
        (lock, streams): (Held, Streams<'a>),
        limits: Limits,
        progress: Progress,
    ) -> Self {
        Self {
            looker,
            projector,
            lock,
            streams,
            limits,
            writes: Rate::new(limits.max_rate),
            tally: Tally::default(),
            progress,
            named: Named::default(),
            waiting: Waiting::default(),
            under_way: HashSet::new(),
            unread: VecDeque::new(),
            locked: HashMap::new(),
            equal: VecDeque::new(),
            lines: None,
            epoch: 0,
            failures: 0,
        }
    }

    /// The same for the lines of a file, in a function.
    pub(crate) fn of_lines(self, lines: Lines) -> Self {
        Self { lines: Some(lines), waiting: Waiting::in_function(), ..self }
    }

    /// Settles every candidate of the source.
    ///
    /// # Errors
    /// What the source says; what does not pass of the stores, the tables or the streams.
    pub(crate) async fn all(&mut self, mut source: Source<'_>, stop: &Stop) -> anyhow::Result<End> {
        let (sender, steps) = mpsc::channel(1);
        let mut looks = Rate::new(self.limits.max_rate);
        let next = async || {
            let read = source.next().await?;
            looks.take(read.as_ref().map_or(0, Step::sessions) as f64).await;
            Ok(read)
        };
        // Boxed: the future is large.
        let reading = Box::pin(send_all(next, sender));
        self.until_done(reading, steps, stop).await
    }

    async fn until_done(
        &mut self,
        reading: impl Future<Output = ()>,
        mut steps: mpsc::Receiver<anyhow::Result<Step>>,
        stop: &Stop,
    ) -> anyhow::Result<End> {
        let mut reading = pin!(reading);
        let (mut is_reading, mut more) = (true, true);
        let mut jobs = Jobs::default();
        let mut observe = tokio::time::interval(OBSERVE_EVERY);
        let mut keep_lock = tokio::time::interval(KEEP_LOCK_EVERY);
        loop {
            while let Some(done) = jobs.done.pop_front() {
                jobs.beside(Box::pin(self.on_done(done))).await?;
            }
            while jobs.under_way.len() < JOBS
                && let Some(job) = self.next_job()
            {
                jobs.under_way.push(job);
            }
            if !more && jobs.under_way.is_empty() && self.waiting.parts() == 0 {
                return Ok(End::AllSettled);
            }
            let takes_more = more && self.takes_more();
            tokio::select! {
                biased;
                () = stop.wait() => return Ok(End::Stopped),
                failed = self.streams.failed() => return Err(failed),
                _ = observe.tick() => jobs.beside(Box::pin(self.write_what_is_over(stop))).await?,
                _ = keep_lock.tick() => jobs.beside(Box::pin(self.keep_lock())).await?,
                Some(done) = jobs.under_way.next(), if !jobs.under_way.is_empty() => {
                    jobs.done.push_back(done);
                }
                read = steps.recv(), if takes_more => match read {
                    Some(read) => self.take(read?),
                    None => (is_reading, more) = (false, false),
                },
                () = &mut reading, if is_reading => is_reading = false,
            }
        }
    }

    fn takes_more(&self) -> bool {
        self.unread.len() < UNREAD_AT_MOST && self.equal.len() < JOBS && !self.waiting.is_full()
    }

    fn take(&mut self, step: Step) {
        let Step { batch, named_by, untried, unheld, piece } = step;
        if let Some((lines, piece)) = self.lines.as_mut().zip(piece) {
            lines.add(piece);
        }
        for (key, identity) in named_by {
            let is_under_way = self.under_way.contains(&key);
            self.named.add(key, identity, is_under_way);
        }
        self.tally.add_untried(untried);
        let Candidates { differing, equal, without_key, unreadable, items } = batch;
        for FileFault { name, problem, .. } in unreadable {
            self.tally.unreadable.add(&name, &problem);
        }
        for reason in without_key {
            self.tally.malformed.add("an item without a valid key", &reason);
        }
        self.tally.equal += equal.len() as u64;
        let equal: Vec<Key> = equal.into_iter().map(|(key, _)| key).collect();
        if self.looker.archive.is_some() {
            self.ask_for_objects(&equal, unheld);
        } else {
            self.settle_lines(&equal);
        }
        self.tally.items += items;
        for key in differing {
            self.begin(key);
        }
        self.show(items);
    }

    /// The objects of parts that were equal are still to be asked for.
    fn ask_for_objects(&mut self, equal: &[Key], unheld: Vec<String>) {
        let of_parts = equal.iter().map(|(_, session_id)| session_id.clone());
        let mut sessions: Vec<String> = of_parts.chain(unheld).collect();
        sessions.sort_unstable();
        sessions.dedup();
        for sessions in sessions.chunks(OBJECTS) {
            let mut keys = Vec::new();
            if self.lines.is_some() {
                let is_asked = |(_, session_id): &&Key| sessions.binary_search(session_id).is_ok();
                keys.extend(equal.iter().filter(is_asked).cloned());
            }
            self.equal.push_back(Equal { sessions: sessions.to_vec(), keys });
        }
    }

    /// Nothing is left to do for those of these parts that are not under way.
    fn settle_lines(&mut self, keys: &[Key]) {
        let Some(lines) = &mut self.lines else { return };
        for key in keys.iter().filter(|key| !self.under_way.contains(*key)) {
            lines.settle(key);
        }
    }

    /// An object is newer than the row: nobody knows what it holds of this part.
    fn begin_ahead(&mut self, key: Key) {
        if self.lines.as_ref().is_none_or(|lines| lines.is_open(&key)) {
            self.begin(key);
        }
    }

    /// A part is to be looked at, unless it is under way: a later change of it is in the streams.
    fn begin(&mut self, key: Key) {
        if self.under_way.insert(key.clone()) {
            self.tally.candidates += 1;
            self.unread.push_back(key);
        }
    }

    fn next_job(&mut self) -> Option<LocalBoxFuture<'a, Done>> {
        let (looker, epoch) = (self.looker, self.epoch);
        // Equal parts come before others of a file, so that its first lines are settled first.
        let equal_first = self.lines.is_some() && !self.equal.is_empty();
        if !self.unread.is_empty() && !equal_first {
            let some = self.unread.len().min(KEYS_PER_CALL);
            let keys: Vec<Key> = self.unread.drain(..some).collect();
            return Some(Box::pin(async move {
                let looks = looker.look(&keys).await;
                Done::Looked(epoch, keys, looks)
            }));
        }
        let Equal { sessions, keys } = self.equal.pop_front()?;
        Some(Box::pin(async move { Done::Objects(keys, looker.objects(&sessions).await) }))
    }

    async fn on_done(&mut self, done: Done) -> anyhow::Result<()> {
        match done {
            Done::Objects(keys, objects) => {
                let Objects { ahead, behind } = objects?;
                for key in ahead {
                    self.begin_ahead(key);
                }
                self.on_objects_behind(behind).await?;
                self.settle_lines(&keys);
            }
            Done::Looked(epoch, keys, looks) => {
                let looks = looks?;
                if epoch == self.epoch {
                    self.on_looks(looks).await?;
                } else {
                    self.unread.extend(keys);
                }
            }
        }
        self.show(0);
        Ok(())
    }

    async fn on_looks(&mut self, looks: Looks) -> anyhow::Result<()> {
        let Looks { equal, images, malformed, behind, ahead, read_at } = looks;
        self.tally.equal += equal.len() as u64;
        self.reject(malformed).await?;
        if let Some(read_at) = read_at {
            self.waiting.add(images, read_at)?;
        }
        for key in ahead {
            self.begin_ahead(key);
        }
        self.on_objects_behind(behind).await?;
        self.settled(equal).await
    }

    /// Writes the images whose hold is over, as many as the limit allows by now. The others come
    /// with the next look at the holds.
    async fn write_what_is_over(&mut self, stop: &Stop) -> anyhow::Result<()> {
        let through = self.streams.read_through().await?;
        let now = OffsetDateTime::now_utc();
        self.waiting.observe(&through, self.limits.function_timeout, now);
        while !stop.requested()
            && self.writes.is_paid()
            && let Some(batch) = self.waiting.take_over()?
        {
            self.writes.owe(batch.sessions() as f64);
            self.write(batch).await?;
        }
        self.show(0);
        Ok(())
    }

    async fn write(&mut self, batch: Batch) -> anyhow::Result<()> {
        match upsert(self.lock.connection(), &batch, OffsetDateTime::now_utc()).await {
            Ok(fates) => {
                self.failures = 0;
                self.on_fates(&batch, fates).await
            }
            Err(NotUpserted::Connection(error)) => {
                let keys = batch.images.into_iter().map(|image| image.key);
                self.unread.extend(keys);
                self.look_anew(&error).await
            }
            Err(NotUpserted::Fatal(error)) => Err(error),
        }
    }

    async fn on_fates(&mut self, batch: &Batch, fates: Vec<(Key, Fate)>) -> anyhow::Result<()> {
        let mut sessions = BTreeSet::new();
        let (mut settled, mut refused) = (Vec::new(), Vec::new());
        for (key, fate) in fates {
            match fate {
                Fate::Written { removed } => {
                    self.tally.written += u64::from(!removed);
                    self.tally.removed += u64::from(removed);
                    sessions.insert(key.1.clone());
                    settled.push(key);
                }
                Fate::Dropped => {
                    self.tally.dropped += 1;
                    settled.push(key);
                }
                Fate::Locked(why) => self.again(key, &why),
                Fate::Refused(fault) => {
                    let image = batch.images.iter().find(|image| image.key == key);
                    let json = image.and_then(|image| image.item.clone()).unwrap_or_default();
                    refused.push(MalformedItem { key, fault, json });
                }
            }
        }
        self.reject(refused).await?;
        self.on_objects_behind(sessions).await?;
        self.settled(settled).await
    }

    /// Looks once more, later, at a part whose row was locked. One that is locked each time is
    /// named, and holds up no other.
    fn again(&mut self, key: Key, why: &str) {
        let tries = self.locked.entry(key.clone()).or_default();
        *tries += 1;
        if *tries < LOCKED_AT_MOST {
            self.unread.push_back(key);
        } else {
            self.under_way.remove(&key);
            self.tally.locked.add(&items::name(&key), why);
        }
    }

    /// Keeps items that cannot be applied, one row per key.
    async fn reject(&mut self, items: Vec<MalformedItem>) -> anyhow::Result<()> {
        if items.is_empty() {
            return Ok(());
        }
        if self.lock.connection().is_fenced() {
            // Not exact, and it need not be: a rejection names a key that is to be read again.
            self.lock.connection().keep().await?;
        }
        let mut images = Vec::with_capacity(items.len());
        let mut keys = Vec::with_capacity(items.len());
        for MalformedItem { key, fault, json } in items {
            self.under_way.remove(&key);
            keys.push(key.clone());
            self.tally.malformed.add(&items::name(&key), &fault.logged);
            let (part, session_id) = key;
            images.push(RejectedImage { part, session_id, json, reason: fault.reason });
        }
        let (database, tables) = (&self.projector.database, &self.projector.tables);
        store_images(database, tables, &images, Deadline::NONE)
            .await
            .context("cannot store items that cannot be applied in rejected_records")?;
        if let Some(lines) = &mut self.lines {
            for key in &keys {
                lines.reject(key);
            }
        }
        Ok(())
    }

    /// Nothing more is to be done for these parts, nor for the rejected records that named them.
    async fn settled(&mut self, keys: Vec<Key>) -> anyhow::Result<()> {
        let mut done = Vec::new();
        for key in keys {
            done.append(&mut self.named.settled(&key));
            self.under_way.remove(&key);
            if let Some(lines) = &mut self.lines {
                lines.settle(&key);
            }
            if self.named.again(&key) {
                self.begin(key);
            }
        }
        if !done.is_empty() {
            let mut pace = Pace::new(done.len());
            rejected_records::remove(&self.projector.database, &done, &mut pace).await?;
            self.tally.redriven += done.len() as u64;
        }
        Ok(())
    }

    fn show(&mut self, by: u64) {
        self.tally.waiting = self.waiting.parts() as u64;
        let text = self.tally.progress();
        self.progress.advance_items(by, self.tally.items, &text);
    }
}
