//! In front of DynamoDB Local: streams that have lost their older records, as after 24 hours. A
//! shard that is opened at the trim horizon simply begins later, and nothing says so.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use serde_json::Value as Json;

use crate::http::{bad_gateway, host, send, serve};

/// The proxy.
#[derive(Clone, Debug)]
pub struct TrimmedStreams {
    /// Where it listens.
    pub url: String,
    lost: Lost,
}

/// The last sequence number that is lost, by the table's name.
type Lost = Arc<Mutex<BTreeMap<String, u128>>>;

impl TrimmedStreams {
    /// Starts it in front of the DynamoDB Local at this URL (`http://host:port`). Nothing is lost
    /// yet.
    ///
    /// # Panics
    /// If no port can be had.
    pub async fn start(to: &str) -> Self {
        let (to, lost) = (host(to), Lost::default());
        let shared = Arc::clone(&lost);
        let url =
            serve(move |request| {
                let (to, lost) = (to.clone(), Arc::clone(&shared));
                async move {
                    pass_on(&to, &lost, request).await.unwrap_or_else(|error| bad_gateway(&error))
                }
            })
            .await;
        Self { url, lost }
    }

    /// From now on the stream of this table has no record up to this sequence number.
    ///
    /// # Panics
    /// If another change panicked.
    pub fn trim(&self, table: &str, through: u128) {
        self.lost.lock().expect("not poisoned").insert(table.to_owned(), through);
    }
}

async fn pass_on(
    to: &str,
    lost: &Lost,
    request: Request<Incoming>,
) -> anyhow::Result<Response<Full<Bytes>>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let target = parts.headers.get("x-amz-target").and_then(|target| target.to_str().ok());
    let reads = target.is_some_and(|target| target.ends_with(".GetRecords"));
    let lost = if reads { lost_to(lost, &body) } else { None };
    let answer = send(to, Request::from_parts(parts, Full::new(body))).await?;
    let (mut parts, mut body) = answer.into_parts();
    if let Some(lost) = lost.filter(|_| parts.status.is_success()) {
        body = without(lost, &body)?;
        parts.headers.remove("content-length");
        // A checksum of the whole answer.
        parts.headers.remove("x-amz-crc32");
    }
    Ok(Response::from_parts(parts, Full::new(body)))
}

/// Up to where the stream has lost its records that this call reads. An iterator of DynamoDB Local
/// names its stream.
fn lost_to(lost: &Lost, request: &[u8]) -> Option<u128> {
    let request: Json = serde_json::from_slice(request).ok()?;
    let iterator = request["ShardIterator"].as_str()?;
    let lost = lost.lock().expect("not poisoned");
    let of_table = lost.iter().find(|(table, _)| iterator.contains(&format!("{table}/stream")));
    of_table.map(|(_, lost)| *lost)
}

/// The page without the records up to this sequence number.
fn without(lost: u128, page: &[u8]) -> anyhow::Result<Bytes> {
    let mut page: Json = serde_json::from_slice(page)?;
    if let Some(records) = page["Records"].as_array_mut() {
        records.retain(|record| {
            let number = record["dynamodb"]["SequenceNumber"].as_str().unwrap_or_default();
            number.parse().is_ok_and(|number: u128| number > lost)
        });
    }
    Ok(Bytes::from(page.to_string()))
}
