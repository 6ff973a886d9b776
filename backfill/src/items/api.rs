//! The DynamoDB API: pages of a parallel Scan, and items by key as they are now. A call that
//! fails for a passing cause is retried, and what it consumed is paid for before the next one. If
//! calls are throttled, fewer are made for a while.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use aws_config::SdkConfig;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::types::{
    AttributeValue, ConsumedCapacity, KeysAndAttributes, ReturnConsumedCapacity, TableDescription,
};
use projector::change::Tables;
use projector::config::{ConfigError, TtlRemovals};
use projector::part::Part;
use tokio::time::Instant;

use crate::aws_calls::{Api, CallError, Calls};
use crate::console;
use crate::item_json::of_tables;
use crate::items::{self, CurrentItem, Item, Key};
use crate::rate::YieldingRate;

const API: Api = Api {
    permissions: "the role needs dynamodb:Scan, BatchGetItem and DescribeTable on both tables, and \
                  with TTL_REMOVALS=keep DescribeTimeToLive",
    endpoint: "the endpoint does not take the call: check AWS_ENDPOINT_URL_DYNAMODB",
};

/// At most this many keys fit one `BatchGetItem` (DynamoDB API reference, `BatchGetItem`).
pub(crate) const KEYS_PER_CALL: usize = 100;

/// An answer that is full, 16 MB, consumes twice as much. One that consumes less and leaves keys
/// unprocessed was throttled.
const UNITS_OF_HALF_AN_ANSWER: f64 = 2_048.0;
/// The pause before keys are asked for again that were left unprocessed.
const UNPROCESSED_PAUSE: Duration = Duration::from_millis(100);

const WITHOUT_KEY: &str = "BatchGetItem returns an item without the key that was asked for";

type Attributes = HashMap<String, AttributeValue>;

/// Both tables.
pub(crate) struct TablesApi {
    client: Client,
    calls: Calls,
    names: Tables,
    rate: Mutex<YieldingRate>,
    /// How many throttled calls the rate has heard of.
    throttled_heard: AtomicU64,
    /// Whether an operator was told that calls are throttled.
    throttling_said: AtomicBool,
    /// Read units that were consumed, in halves: an eventually consistent read takes half a unit.
    half_units: AtomicU64,
}

/// What a table says of itself, counted within the last six hours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TableSize {
    pub(crate) items: u64,
    pub(crate) bytes: u64,
}

/// A page of a scan.
pub(crate) struct Page {
    pub(crate) items: Vec<Item>,
    /// Where the next page starts; `None` after the last one.
    pub(crate) next: Option<Attributes>,
}

/// A segment of a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) of_sessions: bool,
    pub(crate) number: u16,
    pub(crate) of: u16,
    /// Whether each item is read as it is now: it costs twice as much.
    pub(crate) consistent: bool,
}

impl TablesApi {
    /// Both tables, read with at most this many read units per second.
    pub(crate) fn new(aws: &SdkConfig, names: Tables, read_units: Option<u32>) -> Self {
        let config = aws_sdk_dynamodb::config::Builder::from(aws)
            .retry_config(RetryConfig::disabled())
            .build();
        Self {
            client: Client::from_conf(config),
            calls: Calls::new(&API),
            names,
            rate: Mutex::new(YieldingRate::new(read_units)),
            throttled_heard: AtomicU64::new(0),
            throttling_said: AtomicBool::new(false),
            half_units: AtomicU64::new(0),
        }
    }

    fn name(&self, of_sessions: bool) -> &str {
        if of_sessions { &self.names.sessions } else { &self.names.scans }
    }

    /// The read units that were consumed so far.
    pub(crate) fn read_units(&self) -> f64 {
        self.half_units.load(Ordering::Relaxed) as f64 / 2.0
    }

    /// What had to be repeated, in words.
    pub(crate) fn troubles(&self) -> Option<String> {
        self.calls.troubles()
    }

    /// How many items both tables have, as DynamoDB counted them within the last six hours.
    ///
    /// # Errors
    /// [`ConfigError`] if there is no such table.
    pub(crate) async fn item_count(&self) -> anyhow::Result<u64> {
        let mut count = 0;
        for of_sessions in [true, false] {
            let name = self.name(of_sessions);
            let call = || self.client.describe_table().table_name(name).send();
            let answer = self.calls.call("DescribeTable", call).await;
            let answer = self.answer(answer, "describe", of_sessions)?;
            let items = answer.table().and_then(TableDescription::item_count).unwrap_or(0);
            count += items.unsigned_abs();
        }
        Ok(count)
    }

    /// The attribute that holds each part's time to live, by its table; `None` if the table removes
    /// nothing by itself.
    async fn ttl_attribute(&self, of_sessions: bool) -> anyhow::Result<Option<String>> {
        let name = self.name(of_sessions);
        let call = || self.client.describe_time_to_live().table_name(name).send();
        let answer = self.calls.call("DescribeTimeToLive", call).await;
        let answer = self.answer(answer, "ask for the time to live of", of_sessions)?;
        let described = answer.time_to_live_description();
        Ok(described.and_then(|described| described.attribute_name()).map(str::to_owned))
    }

    /// Of the sessions' table and of the scans': an item whose time is over may be missing while
    /// its row stays. Nothing is asked if removals by time to live are applied.
    pub(crate) async fn ttl_attributes(
        &self,
        removals: TtlRemovals,
    ) -> anyhow::Result<[Option<String>; 2]> {
        Ok(match removals {
            TtlRemovals::Apply => [None, None],
            TtlRemovals::Keep => {
                [self.ttl_attribute(true).await?, self.ttl_attribute(false).await?]
            }
        })
    }

    /// The next page of a segment, of at most 1 MB.
    pub(crate) async fn page(
        &self,
        segment: Segment,
        start: Option<Attributes>,
    ) -> anyhow::Result<Page> {
        let Segment { of_sessions, number, of, consistent } = segment;
        let call = || {
            let request = self.client.scan().table_name(self.name(of_sessions));
            let request = request.segment(number.into()).total_segments(of.into());
            let request = request.consistent_read(consistent);
            let request = request.return_consumed_capacity(ReturnConsumedCapacity::Total);
            request.set_exclusive_start_key(start.clone()).send()
        };
        let answer = self.calls.call("Scan", call).await;
        let answer = self.answer(answer, "scan", of_sessions)?;
        self.pay(answer.consumed_capacity.as_slice()).await;
        let items = answer.items().iter().map(|item| read(item, of_sessions));
        let items = items.collect::<anyhow::Result<_>>()?;
        // An empty map would be no key.
        Ok(Page { items, next: answer.last_evaluated_key.filter(|key| !key.is_empty()) })
    }

    /// The items with these keys, at most [`KEYS_PER_CALL`], as they are now; those that are gone
    /// are left out.
    pub(crate) async fn get(&self, keys: &[&Key]) -> anyhow::Result<Vec<Item>> {
        let found = self.fetch(keys, false).await?;
        found.iter().map(|(of_sessions, item)| read(item, *of_sessions)).collect()
    }

    /// The items with these keys, at most [`KEYS_PER_CALL`], as they are now and whole; those that
    /// are gone are left out.
    ///
    /// # Errors
    /// If they cannot be read.
    pub(crate) async fn get_current(&self, keys: &[&Key]) -> anyhow::Result<Vec<CurrentItem>> {
        let found = self.fetch(keys, false).await?;
        let current = |(of_sessions, item): (bool, Attributes)| {
            let key = key_of(&item).context(WITHOUT_KEY)?;
            Ok(items::current(key, json(&item)?, of_sessions))
        };
        found.into_iter().map(current).collect()
    }

    /// What both tables say of their size.
    ///
    /// # Errors
    /// If they cannot be described.
    pub(crate) async fn sizes(&self) -> anyhow::Result<[TableSize; 2]> {
        let mut sizes = [TableSize::default(); 2];
        for (size, of_sessions) in sizes.iter_mut().zip([true, false]) {
            let call = || self.client.describe_table().table_name(self.name(of_sessions)).send();
            let answer = self.calls.call("DescribeTable", call).await;
            let answer = self.answer(answer, "describe", of_sessions)?;
            let Some(table) = answer.table() else { continue };
            size.items = table.item_count().unwrap_or(0).unsigned_abs();
            size.bytes = table.table_size_bytes().unwrap_or(0).unsigned_abs();
        }
        Ok(sizes)
    }

    /// Which of these keys have an item now. It costs as much as to read the items, and brings none
    /// of them here.
    pub(crate) async fn present(&self, keys: &[&Key]) -> anyhow::Result<HashSet<Key>> {
        let found = self.fetch(keys, true).await?;
        let found = found.iter().map(|(_, item)| key_of(item));
        found.collect::<Option<_>>().context(WITHOUT_KEY)
    }

    /// Each item with whether it is one of the table of sessions.
    async fn fetch(
        &self,
        keys: &[&Key],
        keys_only: bool,
    ) -> anyhow::Result<Vec<(bool, Attributes)>> {
        let mut wanted: HashMap<String, KeysAndAttributes> = HashMap::new();
        for of_sessions in [true, false] {
            let of_table = keys.iter().filter(|(part, _)| (*part == Part::Session) == of_sessions);
            let of_table: Vec<Attributes> = of_table.map(|key| key_attributes(key)).collect();
            if of_table.is_empty() {
                continue;
            }
            let names = if of_sessions { "session_id" } else { "session_id, side" };
            let request = KeysAndAttributes::builder().consistent_read(true);
            let request = request.set_keys(Some(of_table));
            let request = request.set_projection_expression(keys_only.then(|| names.to_owned()));
            wanted.insert(self.name(of_sessions).to_owned(), request.build()?);
        }
        let mut items = Vec::with_capacity(keys.len());
        while !wanted.is_empty() {
            let call = || {
                let request = self.client.batch_get_item();
                let request = request.return_consumed_capacity(ReturnConsumedCapacity::Total);
                request.set_request_items(Some(wanted.clone())).send()
            };
            let answer = self.calls.call("BatchGetItem", call).await;
            let answer = self.answer(answer, "read items of", true)?;
            let units = self.pay(answer.consumed_capacity()).await;
            for (table, found) in answer.responses.unwrap_or_default() {
                let of_sessions = table == self.names.sessions;
                items.extend(found.into_iter().map(|item| (of_sessions, item)));
            }
            // What did not fit 16 MB, or was throttled while the rest was not.
            wanted = answer.unprocessed_keys.unwrap_or_default();
            if !wanted.is_empty() && units < UNITS_OF_HALF_AN_ANSWER {
                self.calls.troubles.throttled.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(UNPROCESSED_PAUSE).await;
            }
        }
        Ok(items)
    }

    /// Pays for what a call consumed, and returns how many units that was. Slows down if calls were
    /// throttled since the last payment.
    async fn pay(&self, consumed: &[ConsumedCapacity]) -> f64 {
        let units: f64 = consumed.iter().filter_map(ConsumedCapacity::capacity_units).sum();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "read units of one call"
        )]
        self.half_units.fetch_add((units * 2.0).round() as u64, Ordering::Relaxed);
        let paid_at = self.take(units);
        tokio::time::sleep_until(paid_at).await;
        units
    }

    /// Takes these units from the rate, which yields if calls were throttled since.
    fn take(&self, units: f64) -> Instant {
        let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        let throttled = self.calls.troubles.throttled.load(Ordering::Relaxed);
        if self.throttled_heard.swap(throttled, Ordering::Relaxed) < throttled
            && let Some(per_second) = rate.throttled()
            && !self.throttling_said.swap(true, Ordering::Relaxed)
        {
            console::line(&format!(
                "DynamoDB throttles the reads: at most {per_second:.0} read units per second for \
                 now, and more again once it allows more"
            ));
        }
        rate.take(units)
    }

    fn answer<T>(
        &self,
        answer: Result<T, CallError>,
        what: &str,
        of_sessions: bool,
    ) -> anyhow::Result<T> {
        let name = self.name(of_sessions);
        let variable = if of_sessions { "SESSIONS_TABLE" } else { "SCANS_TABLE" };
        match answer {
            Err(CallError::Gone) => {
                let problem =
                    format!("is {name:?}, and there is no such table here; check AWS_REGION, too");
                Err(ConfigError { variable, problem }.into())
            }
            answer => answer.with_context(|| format!("cannot {what} table {name:?}")),
        }
    }
}

fn read(item: &Attributes, of_sessions: bool) -> anyhow::Result<Item> {
    Ok(items::read(&json(item)?, of_sessions))
}

fn json(item: &Attributes) -> anyhow::Result<Vec<u8>> {
    serde_json::to_vec(&of_tables::Item(item)).context("an item is no JSON")
}

fn key_attributes((part, session_id): &Key) -> Attributes {
    let text = |text: &str| AttributeValue::S(text.to_owned());
    let mut key = HashMap::from([("session_id".to_owned(), text(session_id))]);
    if *part != Part::Session {
        key.insert("side".to_owned(), text(part.name()));
    }
    key
}

fn key_of(item: &Attributes) -> Option<Key> {
    let text = |name: &str| item.get(name)?.as_s().ok();
    let session_id = text("session_id")?.clone();
    let of_side = |side: &String| Part::ALL.into_iter().find(|part| part.name() == side);
    let part = text("side").map_or(Some(Part::Session), of_side)?;
    Some((part, session_id))
}
