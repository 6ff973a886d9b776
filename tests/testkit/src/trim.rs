//! In front of DynamoDB Local: streams that have lost their older records, as after 24 hours. A
//! shard that is opened at the trim horizon simply begins later, and nothing says so.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value as Json;
use tokio::net::{TcpListener, TcpStream};

/// The proxy.
#[derive(Clone, Debug)]
pub struct TrimmedStreams {
    /// Where it listens.
    pub url: String,
    to: String,
    /// The last sequence number that is lost, by the table's name.
    lost: Arc<Mutex<BTreeMap<String, u128>>>,
}

impl TrimmedStreams {
    /// Starts it in front of the DynamoDB Local at this URL (`http://host:port`). Nothing is lost
    /// yet.
    ///
    /// # Panics
    /// If no port can be had.
    pub async fn start(to: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let to = to.trim_start_matches("http://").to_owned();
        let server = Self { url, to, lost: Arc::default() };
        let serving = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = serving.clone();
                tokio::spawn(async move {
                    let answer = service_fn(|request| server.answer(request));
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), answer)
                        .await
                });
            }
        });
        server
    }

    /// From now on the stream of this table has no record up to this sequence number.
    ///
    /// # Panics
    /// If another change panicked.
    pub fn trim(&self, table: &str, through: u128) {
        self.lost.lock().expect("not poisoned").insert(table.to_owned(), through);
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let answer = self.pass_on(request).await;
        Ok(answer.unwrap_or_else(|_| {
            Response::builder().status(502).body(Full::default()).expect("a response")
        }))
    }

    async fn pass_on(&self, request: Request<Incoming>) -> anyhow::Result<Response<Full<Bytes>>> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let target = parts.headers.get("x-amz-target").and_then(|target| target.to_str().ok());
        let reads = target.is_some_and(|target| target.ends_with(".GetRecords"));
        let lost = if reads { self.lost_to(&body) } else { None };
        let stream = TcpStream::connect(&self.to).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let answer = sender.send_request(Request::from_parts(parts, Full::new(body))).await?;
        let (mut parts, body) = answer.into_parts();
        let mut body = body.collect().await?.to_bytes();
        if let Some(lost) = lost.filter(|_| parts.status.is_success()) {
            body = without(lost, &body)?;
            parts.headers.remove("content-length");
            // A checksum of the whole answer.
            parts.headers.remove("x-amz-crc32");
        }
        Ok(Response::from_parts(parts, Full::new(body)))
    }

    /// Up to where the stream has lost its records that this call reads. An iterator of DynamoDB
    /// Local names its stream.
    fn lost_to(&self, request: &[u8]) -> Option<u128> {
        let request: Json = serde_json::from_slice(request).ok()?;
        let iterator = request["ShardIterator"].as_str()?;
        let lost = self.lost.lock().expect("not poisoned");
        let of_table = lost.iter().find(|(table, _)| iterator.contains(&format!("{table}/stream")));
        of_table.map(|(_, lost)| *lost)
    }
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
