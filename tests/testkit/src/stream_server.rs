//! A server that speaks the DynamoDB Streams protocol to the real SDK client, and does on command
//! what the service does when it likes: splits and merges, empty pages, expired iterators,
//! throttling, trimmed records, descriptions that disagree, connections that are cut.
//!
//! AWS JSON 1.0: a POST with `X-Amz-Target: DynamoDBStreams_20120810.<Operation>`. On the same URL
//! it answers the Lambda API's `ListEventSourceMappings`. A record is serialised once, when it is
//! put.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value as Json, json};

use crate::http;
use crate::records::{LABEL, Record, Table, arn};

mod protocol;

/// What becomes of a call.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It is answered.
    Pass,
    /// It is refused with this status and error type.
    Error(u16, &'static str),
    /// The connection is cut in the middle of the answer.
    Cut,
    /// It is answered later.
    Delay(Duration),
    /// `DescribeStream`: these shards are left out.
    Hide(Vec<String>),
    /// `DescribeStream`: these shards are shown as open.
    ShowOpen(Vec<String>),
}

/// A call, as a rule sees it.
#[derive(Debug)]
pub struct Call<'a> {
    /// `DescribeStream`, `GetRecords`, …
    pub operation: &'a str,
    /// How many calls of this operation, for this shard, came before.
    pub earlier: usize,
}

/// A call for records or an iterator, as it came.
#[derive(Clone, Debug)]
pub struct LoggedCall {
    /// `GetShardIterator` or `GetRecords`.
    pub operation: &'static str,
    /// The stream.
    pub arn: String,
    /// The shard.
    pub shard: String,
    /// `GetShardIterator`: after which record.
    pub sequence_number: Option<String>,
}

type Rule = Box<dyn Fn(&Call<'_>) -> Fault + Send + Sync>;

struct Put {
    record: Record,
    wire: String,
}

struct Shard {
    parent: Option<String>,
    closed: bool,
    records: Vec<Put>,
    /// How many of them are trimmed away.
    trimmed: usize,
}

struct Stream {
    table: &'static str,
    label: String,
    view_type: String,
    enabled: bool,
    shards: BTreeMap<String, Shard>,
    /// How many event source mappings read it; `None`: it is forbidden to ask.
    mappings: Option<usize>,
}

struct Content {
    streams: BTreeMap<String, Stream>,
    /// How many replicas a table has in other Regions.
    replicas: HashMap<&'static str, usize>,
    page_size: usize,
    empty_pages: usize,
    shards_a_page: usize,
    rule: Rule,
    counts: HashMap<(String, Option<String>), usize>,
    calls: Vec<LoggedCall>,
}

struct State {
    content: Mutex<Content>,
    under_way: AtomicUsize,
    most_under_way: AtomicUsize,
}

/// The server.
pub struct StreamServer {
    /// Where it listens.
    pub url: String,
    state: Arc<State>,
}

impl StreamServer {
    /// Starts it, without streams.
    ///
    /// # Panics
    /// Where no port can be had.
    pub async fn start() -> Self {
        let content = Content {
            streams: BTreeMap::new(),
            replicas: HashMap::new(),
            page_size: 1000,
            empty_pages: 0,
            shards_a_page: 100,
            rule: Box::new(|_| Fault::Pass),
            counts: HashMap::new(),
            calls: Vec::new(),
        };
        let state = Arc::new(State {
            content: Mutex::new(content),
            under_way: AtomicUsize::new(0),
            most_under_way: AtomicUsize::new(0),
        });
        let serving = Arc::clone(&state);
        let url = http::serve(move |request| protocol::serve(Arc::clone(&serving), request)).await;
        Self { url, state }
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.state.content.lock().expect("not poisoned")
    }

    fn with_shard<T>(&self, arn: &str, shard: &str, change: impl FnOnce(&mut Shard) -> T) -> T {
        let mut content = self.content();
        let stream = content.streams.get_mut(arn).expect("a stream of that ARN");
        change(stream.shards.get_mut(shard).expect("a shard of that id"))
    }

    fn with_stream(&self, arn: &str, change: impl FnOnce(&mut Stream)) {
        change(self.content().streams.get_mut(arn).expect("a stream of that ARN"));
    }

    /// Adds a stream that is enabled, and gives its ARN.
    #[expect(clippy::must_use_candidate, reason = "it is called for what it does as well")]
    pub fn add_stream(&self, table: Table, label: &str) -> String {
        let arn = arn(table.name(), label);
        let stream = Stream {
            table: table.name(),
            label: label.to_owned(),
            view_type: "NEW_IMAGE".to_owned(),
            enabled: true,
            shards: BTreeMap::new(),
            mappings: Some(0),
        };
        self.content().streams.insert(arn.clone(), stream);
        arn
    }

    /// Adds both tables' streams with this history: the items spread over lineages of shards
    /// (`shardId-<generation>-<lineage>`, four digits each), each lineage cut into `generations`,
    /// the last of them open. What a delivery repeats or brings late stands once and in its place,
    /// as in a stream.
    pub fn fill(&self, records: &[Record], lineages: usize, generations: usize) {
        let mut streams: BTreeMap<(Table, &str), Vec<Vec<Record>>> = BTreeMap::new();
        for record in records {
            let stream = streams.entry((record.table, &record.label)).or_default();
            stream.resize(lineages, Vec::new());
            stream[lineage_of(record, lineages)].push(record.clone());
        }
        for table in [Table::Sessions, Table::Scans] {
            if !streams.keys().any(|(of, _)| *of == table) {
                streams.insert((table, LABEL), vec![Vec::new(); lineages]);
            }
        }
        for ((table, label), lineages) in streams {
            let arn = self.add_stream(table, label);
            for (lineage, mut records) in lineages.into_iter().enumerate() {
                records.sort_by_key(|record| record.sequence_number);
                records.dedup_by_key(|record| record.sequence_number);
                let id = |generation: usize| format!("shardId-{generation:04}-{lineage:04}");
                let size = records.len().div_ceil(generations).max(1);
                for generation in 0..generations {
                    match generation.checked_sub(1) {
                        None => self.open_shard(&arn, &id(0), None),
                        Some(parent) => self.roll(&arn, &id(parent), &id(generation)),
                    }
                    let from = (generation * size).min(records.len());
                    let to = ((generation + 1) * size).min(records.len());
                    self.put(&arn, &id(generation), &records[from..to]);
                }
            }
        }
    }

    /// What the stream's records carry.
    pub fn set_view_type(&self, arn: &str, view_type: &str) {
        self.with_stream(arn, |stream| view_type.clone_into(&mut stream.view_type));
    }

    /// Disables a stream: all its shards are closed.
    pub fn disable(&self, arn: &str) {
        self.with_stream(arn, |stream| {
            stream.enabled = false;
            stream.shards.values_mut().for_each(|shard| shard.closed = true);
        });
    }

    /// Deletes a stream, as AWS does 24 hours after it was disabled.
    pub fn remove_stream(&self, arn: &str) {
        self.content().streams.remove(arn);
    }

    /// How many replicas a table has in other Regions.
    pub fn set_replicas(&self, table: Table, replicas: usize) {
        self.content().replicas.insert(table.name(), replicas);
    }

    /// How many event source mappings read a stream; `None`: it is forbidden to ask.
    pub fn set_event_source_mappings(&self, arn: &str, mappings: Option<usize>) {
        self.with_stream(arn, |stream| stream.mappings = mappings);
    }

    /// Adds an open shard.
    pub fn open_shard(&self, arn: &str, id: &str, parent: Option<&str>) {
        let parent = parent.map(str::to_owned);
        let shard = Shard { parent, closed: false, records: Vec::new(), trimmed: 0 };
        self.with_stream(arn, |stream| {
            stream.shards.insert(id.to_owned(), shard);
        });
    }

    /// Adds records to a shard.
    ///
    /// # Panics
    /// Where a record is no JSON object: no server could send it.
    pub fn put(&self, arn: &str, shard: &str, records: &[Record]) {
        let put = |record: &Record| {
            let mut wire: Json = serde_json::from_str(&record.json).expect("a record");
            let members = wire.as_object_mut().expect("an object");
            members.remove("eventSourceARN");
            if let Some(identity) = members.get_mut("userIdentity") {
                *identity =
                    json!({ "PrincipalId": identity["principalId"], "Type": identity["type"] });
            }
            Put { record: record.clone(), wire: wire.to_string() }
        };
        let records: Vec<Put> = records.iter().map(put).collect();
        self.with_shard(arn, shard, |shard| shard.records.extend(records));
    }

    /// Closes a shard, and opens a child of it.
    pub fn roll(&self, arn: &str, shard: &str, into: &str) {
        self.with_shard(arn, shard, |shard| shard.closed = true);
        self.open_shard(arn, into, Some(shard));
    }

    /// Closes a shard, and opens two children of it.
    pub fn split(&self, arn: &str, shard: &str, into: [&str; 2]) {
        for child in into {
            self.roll(arn, shard, child);
        }
    }

    /// Closes two shards, and opens one that names the first as its parent: the API has one parent.
    pub fn merge(&self, arn: &str, shards: [&str; 2], into: &str) {
        self.with_shard(arn, shards[1], |shard| shard.closed = true);
        self.roll(arn, shards[0], into);
    }

    /// Trims the first records of a shard.
    pub fn trim(&self, arn: &str, shard: &str, count: usize) {
        self.with_shard(arn, shard, |shard| shard.trimmed = count);
    }

    /// Trims a shard away whole. Its children go on to name it.
    pub fn remove_shard(&self, arn: &str, shard: &str) {
        self.with_stream(arn, |stream| {
            stream.shards.remove(shard);
        });
    }

    /// How many records `GetRecords` gives at most.
    pub fn set_page_size(&self, records: usize) {
        self.content().page_size = records;
    }

    /// How many empty pages come before each page with records.
    pub fn set_empty_pages(&self, pages: usize) {
        self.content().empty_pages = pages;
    }

    /// How many shards `DescribeStream` gives at most.
    pub fn set_shards_a_page(&self, shards: usize) {
        self.content().shards_a_page = shards;
    }

    /// From now on calls are treated by this rule.
    pub fn set_rule(&self, rule: impl Fn(&Call<'_>) -> Fault + Send + Sync + 'static) {
        self.content().rule = Box::new(rule);
    }

    /// How often an operation was called.
    #[must_use]
    pub fn count(&self, operation: &str) -> usize {
        let content = self.content();
        content.counts.iter().filter(|((of, _), _)| of == operation).map(|(_, count)| count).sum()
    }

    /// The calls for records and iterators, in the order in which they came.
    #[must_use]
    pub fn calls(&self) -> Vec<LoggedCall> {
        self.content().calls.clone()
    }

    /// The greatest number of `GetRecords` that were under way at once.
    #[must_use]
    pub fn most_at_once(&self) -> usize {
        self.state.most_under_way.load(Ordering::SeqCst)
    }

    /// All records, by stream and shard.
    #[must_use]
    pub fn records_by_shard(&self) -> HashMap<(String, String), Vec<Record>> {
        let content = self.content();
        let shards = content.streams.iter().flat_map(|(arn, stream)| {
            stream.shards.iter().map(move |(id, shard)| {
                let records = shard.records.iter().map(|put| put.record.clone()).collect();
                ((arn.clone(), id.clone()), records)
            })
        });
        shards.collect()
    }
}

/// The lineage that [`StreamServer::fill`] puts a record's item into: a hash of its name (FNV-1a).
#[must_use]
pub fn lineage_of(record: &Record, lineages: usize) -> usize {
    let hash = record.item.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    usize::try_from(hash % lineages as u64).expect("less than the lineages")
}
