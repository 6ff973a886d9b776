//! The protocol of the server: AWS JSON 1.0 in and out, and the answers of each operation.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Request, Response};
use serde_json::{Value as Json, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::http::query_value;

use super::{Call, Content, Fault, LoggedCall, Put, Shard, State};

/// The most bytes of records that `GetRecords` returns.
const PAGE_BYTES: usize = 1 << 20;

type Answer = Result<Json, (u16, &'static str)>;

/// Answers one request.
pub(super) async fn serve(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Response<BoxBody<Bytes, std::io::Error>> {
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
        return respond(&event_source_mappings(&state, &query), false);
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
    respond(&answer, matches!(fault, Fault::Cut))
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
    let arn = query_value(query, "EventSourceArn");
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
