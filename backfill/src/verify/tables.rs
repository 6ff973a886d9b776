//! `verify --tables`: our rows and the items of both tables.
//!
//! 1. Every item, of a parallel Scan or of two exports, is compared with what its row holds
//!    (`look.rs`).
//! 2. The keys of all rows are read and added up against those that were seen (`buckets.rs`). A
//!    part that only the rows hold leaves a sum that is not 0. The parts that can be at fault are
//!    asked for by key.
//! 3. What differed is looked at again, row first, until it is equal or has differed at each look
//!    (`pending.rs`).
//!
//! A run vouches for each part as it was at its look: what changes after that is the stream's to
//! bring. Of exports, which may be hours old, it vouches for what the tables held at their time.
//!
//! Nothing is written, so the run may be dropped between any two steps.

mod buckets;
mod columns;
mod held;
mod look;
mod pending;
mod progress;
mod sweep;
mod verdict;

use std::hash::RandomState;

use futures_util::stream::{self, LocalBoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};
use projector::apply::Projector;
use projector::config::TtlRemovals;
use projector::part::Part;
use projector::start;
use serde_json::json;
use time::OffsetDateTime;

use self::buckets::{Buckets, Hashes, Suspects};
use self::look::{Looker, Looks};
use self::pending::{AllPending, PENDING_AT_MOST, Settled};
use self::progress::{Progress, RowProgress};
use self::sweep::Sweep;
use self::verdict::{Look, Verdict};
use crate::cli::VerifyArguments;
use crate::verify::items::api::{KEYS_PER_CALL, Segment, TablesApi};
use crate::verify::items::export::{self, ExportFile, Exports};
use crate::verify::items::{Item, Key, place};
use crate::verify::{End, Run};

/// At most this many pages of the tables, of 1 MB each, are in memory at once.
const PAGES_AT_MOST: usize = 24;
/// At most this many files of an export are read at once.
const FILES_AT_MOST: usize = 4;
/// A row that changed this long before the run began counts as recent: its change may be applied
/// only now. It saves reads and decides nothing.
const RECENT: time::Duration = time::Duration::minutes(15);
/// At most this many malformed items, and parts that still change, are named.
const NAMED: usize = 20;

/// Where the items come from.
enum Source {
    Scan { segments: u16, items: u64 },
    Exports(Exports),
}

/// A source that is read from its first item to its last.
enum Work {
    Segment(Segment),
    File(ExportFile),
}

pub(crate) async fn compare(
    projector: &Projector,
    arguments: &VerifyArguments,
    run: &mut Run<'_>,
) -> anyhow::Result<(String, anyhow::Result<End>)> {
    let aws = Box::pin(start::aws_with_credentials()).await?;
    let api = TablesApi::new(&aws, projector.tables.clone(), arguments.read_units);
    let ttl_attributes = match projector.ttl_removals {
        TtlRemovals::Apply => [None, None],
        TtlRemovals::Keep => [api.ttl_attribute(true).await?, api.ttl_attribute(false).await?],
    };
    let started = OffsetDateTime::now_utc();
    let (source, against) = match &arguments.export {
        Some(places) => {
            let exports = export::open(places, &projector.tables, &place::client(&aws)).await?;
            let against = exports.name.clone();
            run.as_of = Some(exports.time);
            (Source::Exports(exports), against)
        }
        None => {
            let items = api.item_count().await?;
            let (sessions, scans) = (&projector.tables.sessions, &projector.tables.scans);
            (
                Source::Scan { segments: arguments.segments, items },
                format!("the tables {sessions} and {scans}"),
            )
        }
    };
    let looker = Looker { database: &projector.database, api: &api, ttl_attributes, started };
    let stop = run.stop;
    let mut comparing = Comparing::new(run, &looker);
    let ended = tokio::select! {
        biased;
        ended = Box::pin(comparing.until_done(source)) => ended,
        () = stop.wait() => Ok(End::Stopped),
    };
    comparing.remark();
    Ok((against, ended))
}

/// The items of one piece of work, batch by batch.
fn batches(api: &TablesApi, work: Work) -> LocalBoxStream<'_, anyhow::Result<Vec<Item>>> {
    match work {
        Work::Segment(segment) => {
            let next = move |start| async move {
                let Some(start) = start else { return Ok(None) };
                let page = api.page(segment, start).await?;
                Ok(Some((page.items, page.next.map(Some))))
            };
            stream::try_unfold(Some(None), next).boxed_local()
        }
        Work::File(file) => {
            let next = |mut batches: export::Batches| async move {
                Ok(batches.next().await?.map(|items| (items, batches)))
            };
            stream::try_unfold(file.batches(), next).boxed_local()
        }
    }
}

/// The comparison, and what it has found so far.
struct Comparing<'c, 'r> {
    run: &'c mut Run<'r>,
    looker: &'c Looker<'c>,
    hashes: Hashes,
    /// Until the rows are added up.
    buckets: Option<Buckets>,
    pending: AllPending,
    /// How many items are malformed, and the first of them.
    malformed: (u64, Vec<String>),
    still_changing: Vec<Key>,
    /// How many parts were asked for by key because only the rows may hold them.
    asked_by_key: u64,
}

impl<'c, 'r> Comparing<'c, 'r> {
    fn new(run: &'c mut Run<'r>, looker: &'c Looker<'c>) -> Self {
        Self {
            run,
            looker,
            hashes: Hashes::new(RandomState::new(), RandomState::new()),
            buckets: Some(Buckets::new()),
            pending: AllPending::default(),
            malformed: (0, Vec::new()),
            still_changing: Vec::new(),
            asked_by_key: 0,
        }
    }

    async fn until_done(&mut self, source: Source) -> anyhow::Result<End> {
        let read_until = match &source {
            Source::Scan { .. } => self.looker.started,
            Source::Exports(exports) => exports.time,
        };
        let mut end = self.items(source).await?;
        if end == End::AllCompared {
            end = self.rows_without_items(read_until - RECENT).await?;
        }
        self.look_until_settled().await?;
        Ok(end)
    }

    /// Compares every item with its row.
    async fn items(&mut self, source: Source) -> anyhow::Result<End> {
        let (works, at_once, total, estimated) = match source {
            Source::Scan { segments, items } => {
                let segment = |of_sessions, number| Segment { of_sessions, number, of: segments };
                let of_both = |number| [segment(true, number), segment(false, number)];
                let works = (0..segments).flat_map(of_both).map(Work::Segment);
                (works.collect::<Vec<_>>(), PAGES_AT_MOST, items, true)
            }
            Source::Exports(Exports { files, items, .. }) => {
                (files.into_iter().map(Work::File).collect(), FILES_AT_MOST, items, false)
            }
        };
        let mut progress = Progress::start(total, estimated);
        let (api, looker) = (self.looker.api, self.looker);
        let batches = stream::iter(works).map(|work| batches(api, work));
        let looks = batches.flatten_unordered(at_once).map_ok(|items| looker.at(items));
        let mut looks = looks.try_buffer_unordered(looker.database.connections());
        while let Some(Looks { of_parts, without_key, items }) = looks.try_next().await? {
            for look in of_parts {
                self.first_look(look);
            }
            for reason in without_key {
                self.add_malformed("an item without a valid key", &reason);
            }
            self.run.report.tally.compared += items;
            progress.advance(items, self.pending.len(), Some(api.read_units()));
            self.run.rate.take(items as f64).await;
            if self.too_many_differ().await? {
                return Ok(End::TooManyDiffer);
            }
        }
        Ok(End::AllCompared)
    }

    fn first_look(&mut self, look: Look) {
        let (part, session_id) = &look.key;
        if let Some(buckets) = self.buckets.as_mut().filter(|_| look.in_both) {
            buckets.seen(self.hashes.of(*part, session_id));
        }
        match &look.verdict {
            Verdict::Equal => {}
            Verdict::Malformed(reason) => self.add_malformed(&name(&look.key), reason),
            Verdict::Differs(kind, detail) => {
                let (kind, detail) = (*kind, detail.clone());
                self.pending.add(look, kind, detail);
            }
        }
    }

    fn add_malformed(&mut self, item: &str, reason: &str) {
        let (count, named) = &mut self.malformed;
        *count += 1;
        if named.len() < NAMED {
            named.push(format!("{item}: {reason}"));
        }
    }

    /// Whether more parts differ than can be looked at again. Those that were only late are dropped
    /// first.
    async fn too_many_differ(&mut self) -> anyhow::Result<bool> {
        if self.pending.len() <= PENDING_AT_MOST {
            return Ok(false);
        }
        tokio::time::sleep(self.run.wait).await;
        self.look_again().await?;
        Ok(self.pending.len() > PENDING_AT_MOST / 2)
    }

    /// Finds the parts that rows hold and that have no item.
    async fn rows_without_items(
        &mut self,
        recent_since: time::OffsetDateTime,
    ) -> anyhow::Result<End> {
        let looker = self.looker;
        let sweep = || Sweep::new(looker.database, recent_since, &looker.ttl_attributes);
        let mut keys = sweep();
        let mut buckets = self.buckets.take().unwrap_or_else(Buckets::new);
        let mut progress = RowProgress::start("adding up the keys of all rows");
        loop {
            let rows = keys.next().await?;
            if rows.is_empty() {
                break;
            }
            for row in &rows {
                for part in Part::ALL {
                    let state = &row.parts[part];
                    let key = self.hashes.of(part, &row.session_id);
                    if state.present && !looker.is_kept(state.ttl.as_deref()) {
                        buckets.held(key, state.recent);
                    } else if state.recent && !state.present {
                        buckets.removed(key);
                    }
                }
            }
            progress.advance(rows.len());
            self.run.rate.take(rows.len() as f64).await;
        }
        drop(progress);
        let suspects = buckets.suspects();
        if suspects.is_empty() {
            return Ok(End::AllCompared);
        }
        self.check_suspects(sweep(), &suspects).await
    }

    /// Asks for the items of all suspects.
    async fn check_suspects(
        &mut self,
        mut rows: Sweep<'_>,
        suspects: &Suspects,
    ) -> anyhow::Result<End> {
        let mut progress = RowProgress::start("asking for items that were not seen");
        let mut keys: Vec<Key> = Vec::new();
        loop {
            let page = rows.next().await?;
            for row in &page {
                let held = Part::ALL.into_iter().filter(|part| {
                    let state = &row.parts[*part];
                    state.present && !self.looker.is_kept(state.ttl.as_deref())
                });
                let suspected =
                    held.filter(|part| suspects.has(self.hashes.of(*part, &row.session_id)));
                keys.extend(suspected.map(|part| (part, row.session_id.clone())));
            }
            let last = page.is_empty();
            while keys.len() >= KEYS_PER_CALL || (last && !keys.is_empty()) {
                let rest = keys.split_off(keys.len().min(KEYS_PER_CALL));
                self.check(&std::mem::replace(&mut keys, rest)).await?;
                if self.too_many_differ().await? {
                    return Ok(End::TooManyDiffer);
                }
            }
            if last {
                return Ok(End::AllCompared);
            }
            progress.advance(page.len());
            self.run.rate.take(page.len() as f64).await;
        }
    }

    /// Asks for the items of parts that rows hold.
    async fn check(&mut self, keys: &[Key]) -> anyhow::Result<()> {
        let all: Vec<&Key> = keys.iter().collect();
        self.asked_by_key += all.len() as u64;
        let present = self.looker.api.present(&all).await?;
        let gone: Vec<&Key> = all.into_iter().filter(|key| !present.contains(*key)).collect();
        if gone.is_empty() {
            return Ok(());
        }
        for look in self.looker.again(&gone).await? {
            // What came back meanwhile and differs is as new as any other change.
            if let Verdict::Differs(kind, detail) = &look.verdict {
                let (kind, detail) = (*kind, detail.clone());
                self.pending.add(look, kind, detail);
            }
        }
        Ok(())
    }

    /// Looks at what differs until nothing does, or the rounds are over. What differs then is
    /// reported.
    async fn look_until_settled(&mut self) -> anyhow::Result<()> {
        let (rounds, wait) = (self.run.rounds, self.run.wait);
        for round in 1..=rounds {
            if self.pending.len() == 0 {
                break;
            }
            progress::round(round, rounds, self.pending.len(), wait);
            tokio::time::sleep(wait).await;
            self.look_again().await?;
        }
        let (differences, changing) = std::mem::take(&mut self.pending).into_differences();
        self.still_changing = changing;
        for difference in differences {
            self.run.report.add(difference)?;
        }
        Ok(())
    }

    async fn look_again(&mut self) -> anyhow::Result<()> {
        for keys in self.pending.keys().chunks(KEYS_PER_CALL) {
            let keys: Vec<&Key> = keys.iter().collect();
            for look in self.looker.again(&keys).await? {
                let key = look.key.clone();
                match self.pending.look(look) {
                    Settled::Equal { newly_in_both: true } => {
                        if let Some(buckets) = &mut self.buckets {
                            buckets.seen(self.hashes.of(key.0, &key.1));
                        }
                    }
                    Settled::Malformed(reason) => self.add_malformed(&name(&key), &reason),
                    Settled::No | Settled::Equal { newly_in_both: false } => {}
                }
            }
        }
        Ok(())
    }

    /// Says what else was found.
    fn remark(&mut self) {
        let report = &mut self.run.report;
        let (malformed, named) = &self.malformed;
        let text = format!(
            "malformed items, which the projector rejects and no row can hold: {}",
            named.join("; ")
        );
        report.remark("malformed", json!(malformed), (*malformed > 0).then_some(text));
        let changing = self.still_changing.len();
        let named: Vec<String> = self.still_changing.iter().take(NAMED).map(name).collect();
        let text = format!(
            "parts whose rows changed between the last two looks, so they are no differences: {}",
            named.join(", ")
        );
        report.remark("still_changing", json!(changing), (changing > 0).then_some(text));
        let unsettled = self.pending.len();
        let text =
            "parts that differed when they were looked at, and were not looked at again".to_owned();
        report.remark("unsettled", json!(unsettled), (unsettled > 0).then_some(text));
        let asked = self.asked_by_key;
        let text = "parts of rows that the items did not account for, asked for by key".to_owned();
        report.remark("asked_by_key", json!(asked), (asked > 0).then_some(text));
        let units = self.looker.api.read_units();
        let troubles = self.looker.api.troubles();
        let text =
            troubles.map_or("read units".to_owned(), |troubles| format!("read units; {troubles}"));
        report.remark("read_units", json!(units), Some(text));
    }
}

/// A part, for people.
fn name((part, session_id): &Key) -> String {
    format!("{session_id} {}", part.name())
}
