//! `verify --tables`: our rows and the items of both tables.
//!
//! 1. Every item, of a parallel Scan or of two exports, is compared with what its row holds
//!    (`compare_tables.rs`).
//! 2. The keys of all rows are read and added up against those that were seen. A part that only the
//!    rows hold leaves a sum that is not 0. The parts that can be at fault are asked for by key.
//! 3. What differed is looked at again, row first, until it is equal or has differed at each look
//!    (`pending.rs`).
//!
//! A run vouches for each part as it was at its look: what changes after that is the stream's to
//! bring. Of exports, which may be hours old, it vouches for what the tables held at their time.
//!
//! Nothing is written, so the run may be dropped between any two steps.

pub(crate) mod pending;
mod progress;

use futures_util::TryStreamExt as _;
use projector::apply::Projector;
use projector::start;
use serde_json::json;
use time::OffsetDateTime;

use self::pending::{AllPending, PENDING_AT_MOST, Settled};
use self::progress::{Progress, RowProgress};
use crate::cli::VerifyArguments;
use crate::compare_tables::look::{Looker, Looks};
use crate::compare_tables::verdict::{Look, Verdict};
use crate::compare_tables::without_items::{Rows, SeenParts, Suspected};
use crate::compare_tables::{Source, first_looks};
use crate::items::api::{KEYS_PER_CALL, TablesApi};
use crate::items::{Key, export, place};
use crate::verify::{End, Run};

/// At most this many malformed items, and parts that still change, are named.
const NAMED: usize = 20;

pub(crate) async fn compare(
    projector: &Projector,
    arguments: &VerifyArguments,
    run: &mut Run<'_>,
) -> anyhow::Result<(String, anyhow::Result<End>)> {
    let aws = Box::pin(start::aws_with_credentials()).await?;
    let api = TablesApi::new(&aws, projector.tables.clone(), arguments.read_units);
    let ttl_attributes = api.ttl_attributes(projector.ttl_removals).await?;
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
                Source::Scan { segments: arguments.segments, items, consistent: false },
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

/// The comparison, and what it has found so far.
struct Comparing<'c, 'r> {
    run: &'c mut Run<'r>,
    looker: &'c Looker<'c>,
    /// Until the rows are added up.
    seen: Option<SeenParts>,
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
            seen: Some(SeenParts::new()),
            pending: AllPending::default(),
            malformed: (0, Vec::new()),
            still_changing: Vec::new(),
            asked_by_key: 0,
        }
    }

    async fn until_done(&mut self, source: Source) -> anyhow::Result<End> {
        let recent_since = source.recent_since(self.looker.started);
        let mut end = self.items(source).await?;
        if end == End::AllCompared {
            end = self.rows_without_items(recent_since).await?;
        }
        self.look_until_settled().await?;
        Ok(end)
    }

    /// Compares every item with its row.
    async fn items(&mut self, source: Source) -> anyhow::Result<End> {
        let (total, estimated) = source.items();
        let mut progress = Progress::start(total, estimated);
        let mut looks = first_looks(self.looker, source);
        while let Some(Looks { of_parts, without_key, items }) = looks.try_next().await? {
            for look in of_parts {
                self.first_look(look);
            }
            for reason in without_key {
                self.add_malformed("an item without a valid key", &reason);
            }
            self.run.report.tally.compared += items;
            progress.advance(items, self.pending.len(), Some(self.looker.api.read_units()));
            self.run.rate.take(items as f64).await;
            if self.too_many_differ().await? {
                return Ok(End::TooManyDiffer);
            }
        }
        Ok(End::AllCompared)
    }

    fn first_look(&mut self, look: Look) {
        if let Some(seen) = self.seen.as_mut().filter(|_| look.in_both) {
            seen.add(&look.key);
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
    async fn rows_without_items(&mut self, recent_since: OffsetDateTime) -> anyhow::Result<End> {
        let seen = self.seen.take().unwrap_or_else(SeenParts::new);
        let mut adding_up = seen.add_up(Rows::all(self.looker, recent_since));
        let mut progress = RowProgress::start("adding up the keys of all rows");
        while let Some(rows) = adding_up.next().await? {
            progress.advance(rows.count);
            self.run.rate.take(rows.count as f64).await;
        }
        drop(progress);
        self.check_suspects(adding_up.suspected()).await
    }

    /// Asks for the items of all suspects.
    async fn check_suspects(&mut self, mut suspected: Suspected<'_>) -> anyhow::Result<End> {
        if suspected.is_empty() {
            return Ok(End::AllCompared);
        }
        let mut progress = RowProgress::start("asking for items that were not seen");
        while let Some(checked) = suspected.next().await? {
            self.asked_by_key += checked.asked as u64;
            for look in checked.looks {
                // What came back meanwhile and differs is as new as any other change.
                if let Verdict::Differs(kind, detail) = &look.verdict {
                    let (kind, detail) = (*kind, detail.clone());
                    self.pending.add(look, kind, detail);
                }
            }
            if self.too_many_differ().await? {
                return Ok(End::TooManyDiffer);
            }
            let rows = checked.rows.map_or(0, |rows| rows.count);
            progress.advance(rows);
            self.run.rate.take(rows as f64).await;
        }
        Ok(End::AllCompared)
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
                        if let Some(seen) = &mut self.seen {
                            seen.add(&key);
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
