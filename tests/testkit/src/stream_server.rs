//! A server that speaks the DynamoDB Streams protocol to the real SDK client, and does on command what
//! the service does when it likes: splits and merges, empty pages, expired iterators, throttling,
//! trimmed records, descriptions that disagree, connections that are cut.
//!
//! AWS JSON 1.0: a POST with `X-Amz-Target: DynamoDBStreams_20120810.<Operation>`. On the same URL it
//! answers the Lambda API's `ListEventSourceMappings`. A record is serialised once, when it is put.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value as Json, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::net::TcpListener;

use crate::records::{LABEL, Record, Table, arn};

/// `GetRecords` gives at most so many bytes of records.
const PAGE_BYTES: usize = 1 << 20;

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
    /// So many of them are trimmed away.
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

type Answer = Result<Json, (u16, &'static str)>;

impl StreamServer {
    /// Starts it, without streams.
    ///
    /// # Panics
    /// Where no port can be had.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
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
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&serving);
                let service = service_fn(move |request| serve(Arc::clone(&state), request));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
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
    /// (`shardId-<generation>-<lineage>`, four digits each), each lineage cut into so many generations,
    /// the last of them open. What a delivery repeats or brings late stands once and in its place, as in
    /// a stream.
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

async fn serve(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<BoxBody<Bytes, std::io::Error>>, Infallible> {
    let target = request.headers().get("x-amz-target").and_then(|target| target.to_str().ok());
    let operation =
        target.and_then(|target| target.split_once('.')).map(|(_, name)| name.to_owned());
    let query = request.uri().query().unwrap_or_default().to_owned();
    let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes);
    let body: Json = serde_json::from_slice(&body.unwrap_or_default()).unwrap_or_default();
    let Some(operation) = operation else {
        let operation = "ListEventSourceMappings";
        let fault = state.content.lock().expect("not poisoned").admit(operation, &body);
        if let Fault::Delay(delay) = fault {
            tokio::time::sleep(delay).await;
        }
        return Ok(respond(&event_source_mappings(&state, &query), false));
    };
    let reads = operation == "GetRecords";
    if reads {
        let under_way = state.under_way.fetch_add(1, Ordering::SeqCst) + 1;
        state.most_under_way.fetch_max(under_way, Ordering::SeqCst);
    }
    let fault = state.content.lock().expect("not poisoned").admit(&operation, &body);
    if let Fault::Delay(delay) = fault {
        tokio::time::sleep(delay).await;
    }
    let answer = match fault {
        Fault::Error(status, name) => Err((status, name)),
        _ => state.content.lock().expect("not poisoned").answer(&operation, &body, &fault),
    };
    if reads {
        state.under_way.fetch_sub(1, Ordering::SeqCst);
    }
    Ok(respond(&answer, matches!(fault, Fault::Cut)))
}

fn respond(answer: &Answer, cut: bool) -> Response<BoxBody<Bytes, std::io::Error>> {
    let (status, body) = match answer {
        // What is put together by hand is text already.
        Ok(Json::String(text)) => (200, text.clone()),
        Ok(json) => (200, json.to_string()),
        Err((status, name)) => {
            let body = json!({
                "__type": format!("com.amazonaws.dynamodb.v20120810#{name}"),
                "message": "by the test",
            });
            (*status, body.to_string())
        }
    };
    let body = Bytes::from(body);
    let mut response = Response::builder()
        .status(status)
        .header("content-type", "application/x-amz-json-1.0")
        .header("content-length", body.len());
    if let Err((_, name)) = answer {
        response = response.header("x-amzn-errortype", *name);
    }
    let body = if cut {
        // The length promises more than comes before the connection is closed.
        let half = Frame::data(body.slice(..body.len() / 2));
        let end = std::io::Error::other("cut by the test");
        StreamBody::new(stream::iter([Ok(half), Err(end)])).boxed()
    } else {
        Full::new(body).map_err(|never| match never {}).boxed()
    };
    response.body(body).expect("a response")
}

fn event_source_mappings(state: &State, query: &str) -> Answer {
    let arn = url_decoded(query, "EventSourceArn");
    let content = state.content.lock().expect("not poisoned");
    let stream = content.streams.get(&arn).ok_or((404, "ResourceNotFoundException"))?;
    let count = stream.mappings.ok_or((403, "AccessDeniedException"))?;
    let mapping =
        |index| json!({ "UUID": format!("{index}"), "State": "Enabled", "EventSourceArn": arn });
    let mut mappings: Vec<Json> = (0..count).map(mapping).collect();
    // One that is switched off reads nothing.
    mappings.push(json!({ "UUID": "off", "State": "Disabled", "EventSourceArn": arn }));
    Ok(json!({ "EventSourceMappings": mappings }))
}

fn url_decoded(query: &str, name: &str) -> String {
    let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let mut decoded = String::new();
    let mut rest = value.unwrap_or_default();
    while let Some((plain, escaped)) = rest.split_once('%') {
        let (code, behind) = escaped.split_at(2);
        let byte = u8::from_str_radix(code, 16).expect("an escape");
        write!(decoded, "{plain}{}", char::from(byte)).expect("a string takes all");
        rest = behind;
    }
    decoded + rest
}

fn member<'a>(body: &'a Json, name: &str) -> &'a str {
    body[name].as_str().unwrap_or_default()
}

/// An iterator: stream, shard, index of the next record, and how many empty pages come first.
fn iterator(arn: &str, shard: &str, index: usize, empty: usize) -> String {
    format!("{arn}|{shard}|{index}|{empty}")
}

fn parse_iterator(text: &str) -> Option<(&str, &str, usize, usize)> {
    let mut parts = text.split('|');
    let (arn, shard) = (parts.next()?, parts.next()?);
    Some((arn, shard, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

impl Content {
    /// Counts and logs a call, and says what becomes of it.
    fn admit(&mut self, operation: &str, body: &Json) -> Fault {
        let (logged, arn, shard) = match operation {
            "GetRecords" => {
                let (arn, shard, ..) =
                    parse_iterator(member(body, "ShardIterator")).unwrap_or_default();
                (Some("GetRecords"), arn.to_owned(), Some(shard.to_owned()))
            }
            "GetShardIterator" => {
                let shard = member(body, "ShardId").to_owned();
                (Some("GetShardIterator"), member(body, "StreamArn").to_owned(), Some(shard))
            }
            _ => (None, String::new(), None),
        };
        if let (Some(operation), Some(shard)) = (logged, &shard) {
            let sequence_number = body["SequenceNumber"].as_str().map(str::to_owned);
            self.calls.push(LoggedCall { operation, arn, shard: shard.clone(), sequence_number });
        }
        let count = self.counts.entry((operation.to_owned(), shard)).or_default();
        let earlier = *count;
        *count += 1;
        (self.rule)(&Call { operation, earlier })
    }

    fn answer(&self, operation: &str, body: &Json, fault: &Fault) -> Answer {
        match operation {
            "ListStreams" => Ok(self.list_streams(member(body, "TableName"))),
            "DescribeStream" => self.describe_stream(body, fault),
            "GetShardIterator" => self.get_shard_iterator(body),
            "GetRecords" => self.get_records(body),
            "DescribeTable" => Ok(self.describe_table(member(body, "TableName"))),
            _ => Err((400, "UnknownOperationException")),
        }
    }

    fn list_streams(&self, table: &str) -> Json {
        let of_table = self.streams.iter().filter(|(_, stream)| stream.table == table);
        let listed = of_table.map(|(arn, stream)| {
            json!({ "StreamArn": arn, "TableName": table, "StreamLabel": stream.label })
        });
        json!({ "Streams": listed.collect::<Vec<_>>() })
    }

    fn describe_table(&self, table: &str) -> Json {
        let replicas = self.replicas.get(table).copied().unwrap_or_default();
        let replica = |index| json!({ "RegionName": format!("eu-west-{index}") });
        json!({ "Table": {
            "TableName": table, "Replicas": (1..=replicas).map(replica).collect::<Vec<_>>(),
        } })
    }

    fn describe_stream(&self, body: &Json, fault: &Fault) -> Answer {
        let arn = member(body, "StreamArn");
        let stream = self.streams.get(arn).ok_or((400, "ResourceNotFoundException"))?;
        let after = member(body, "ExclusiveStartShardId");
        let (hidden, open): (&[String], &[String]) = match fault {
            Fault::Hide(shards) => (shards, &[]),
            Fault::ShowOpen(shards) => (&[], shards),
            _ => (&[], &[]),
        };
        // CHILD_SHARDS is the only filter there is.
        let parent = body["ShardFilter"]["ShardId"].as_str();
        let wanted =
            |shard: &Shard| parent.is_none_or(|parent| shard.parent.as_deref() == Some(parent));
        let mut rest =
            stream.shards.iter().filter(|(id, shard)| id.as_str() > after && wanted(shard));
        let page: Vec<_> = rest.by_ref().take(self.shards_a_page).collect();
        let last = page.last().filter(|_| rest.next().is_some()).map(|(id, _)| id.as_str());
        let listed = page.iter().filter(|(id, _)| !hidden.contains(id)).map(|(id, shard)| {
            let first = shard.records.first().map_or(1, |put| put.record.sequence_number);
            let mut range = json!({ "StartingSequenceNumber": format!("{first:021}") });
            if shard.closed && !open.contains(id) {
                let last = shard.records.last().map_or(first, |put| put.record.sequence_number);
                range["EndingSequenceNumber"] = json!(format!("{last:021}"));
            }
            let mut listed = json!({ "ShardId": id, "SequenceNumberRange": range });
            if let Some(parent) = &shard.parent {
                listed["ParentShardId"] = json!(parent);
            }
            listed
        });
        let created = OffsetDateTime::parse(&format!("{}Z", stream.label), &Rfc3339);
        let mut description = json!({
            "StreamArn": arn,
            "StreamLabel": stream.label,
            "TableName": stream.table,
            "StreamStatus": if stream.enabled { "ENABLED" } else { "DISABLED" },
            "StreamViewType": stream.view_type,
            "CreationRequestDateTime": created.expect("a label is a time").unix_timestamp(),
            "Shards": listed.collect::<Vec<_>>(),
        });
        if let Some(last) = last {
            description["LastEvaluatedShardId"] = json!(last);
        }
        Ok(json!({ "StreamDescription": description }))
    }

    fn shard(&self, arn: &str, shard: &str) -> Result<&Shard, (u16, &'static str)> {
        let stream = self.streams.get(arn).ok_or((400, "ResourceNotFoundException"))?;
        stream.shards.get(shard).ok_or((400, "ResourceNotFoundException"))
    }

    fn get_shard_iterator(&self, body: &Json) -> Answer {
        let (arn, id) = (member(body, "StreamArn"), member(body, "ShardId"));
        let shard = self.shard(arn, id)?;
        let index = match member(body, "ShardIteratorType") {
            "TRIM_HORIZON" => shard.trimmed,
            "LATEST" => shard.records.len(),
            kind => {
                let number: u128 = member(body, "SequenceNumber").parse().unwrap_or(0);
                let before = |put: &Put| {
                    let this = put.record.sequence_number;
                    this < number || (this == number && kind == "AFTER_SEQUENCE_NUMBER")
                };
                shard.records.partition_point(before)
            }
        };
        if index < shard.trimmed {
            return Err((400, "TrimmedDataAccessException"));
        }
        Ok(json!({ "ShardIterator": iterator(arn, id, index, self.empty_pages) }))
    }

    fn get_records(&self, body: &Json) -> Answer {
        let at =
            parse_iterator(member(body, "ShardIterator")).ok_or((400, "ValidationException"))?;
        let (arn, id, index, empty) = at;
        let shard = self.shard(arn, id)?;
        if index < shard.trimmed {
            return Err((400, "TrimmedDataAccessException"));
        }
        let limit = usize::try_from(body["Limit"].as_u64().unwrap_or(1000)).unwrap_or(1000);
        let mut bytes = 0;
        let fits = |put: &&Put| {
            let first = bytes == 0;
            bytes += put.wire.len();
            first || bytes <= PAGE_BYTES
        };
        let wanted =
            if empty > 0 && index < shard.records.len() { 0 } else { limit.min(self.page_size) };
        let page: Vec<&str> = shard.records[index..]
            .iter()
            .take(wanted)
            .take_while(fits)
            .map(|put| put.wire.as_str())
            .collect();
        let next = index + page.len();
        let mut text = format!("{{\"Records\":[{}]", page.join(","));
        if !shard.closed || next < shard.records.len() {
            let empty = if page.is_empty() { empty.saturating_sub(1) } else { self.empty_pages };
            write!(text, ",\"NextShardIterator\":{:?}", iterator(arn, id, next, empty))
                .expect("a string takes all");
        }
        Ok(Json::String(text + "}"))
    }
}
