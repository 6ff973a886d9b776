//! What the stand-in's `ListStreams` leaves out: DynamoDB lists a stream for 24 hours after it was
//! turned off, and the stand-in only describes it and hands out its records.

use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use serde_json::{Value as Json, json};

use crate::http::{bad_gateway, host, send, serve};

/// A relay to DynamoDB Streams that lists closed streams, too.
#[derive(Clone, Debug)]
pub struct ClosedStreams {
    /// Its URL, for `AWS_ENDPOINT_URL_DYNAMODB_STREAMS`.
    pub url: String,
    closed: Closed,
}

/// The ARNs of the streams that are listed, too.
type Closed = Arc<Mutex<Vec<String>>>;

impl ClosedStreams {
    /// Opens a relay to `upstream` (`http://host:port`).
    ///
    /// # Panics
    /// If no port can be had.
    pub async fn open(upstream: &str) -> Self {
        let (upstream, closed) = (host(upstream), Closed::default());
        let shared = Arc::clone(&closed);
        let url = serve(move |request| {
            let (upstream, closed) = (upstream.clone(), Arc::clone(&shared));
            async move {
                let answer = hand_on(&upstream, &closed, request).await;
                answer.unwrap_or_else(|error| bad_gateway(&error))
            }
        })
        .await;
        Self { url, closed }
    }

    /// From now on this stream is listed with those of its table.
    ///
    /// # Panics
    /// If another thread panicked while it held the list.
    pub fn list(&self, stream_arn: &str) {
        self.closed.lock().expect("the list").push(stream_arn.to_owned());
    }
}

async fn hand_on(
    upstream: &str,
    closed: &Closed,
    request: Request<Incoming>,
) -> anyhow::Result<Response<Full<Bytes>>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let target = parts.headers.get("x-amz-target").map(|target| target.to_str()).transpose()?;
    let lists = target.is_some_and(|target| target.ends_with(".ListStreams"));
    let asked = if lists { Some(serde_json::from_slice::<Json>(&body)?) } else { None };
    let answer = send(upstream, Request::from_parts(parts, Full::from(body))).await?;
    let (mut parts, mut body) = answer.into_parts();
    if let Some(asked) = asked {
        body = with_closed(closed, &asked, &body)?;
        // The client checks both.
        parts.headers.remove("x-amz-crc32");
        parts.headers.insert("content-length", body.len().into());
    }
    Ok(Response::from_parts(parts, Full::from(body)))
}

fn with_closed(closed: &Closed, asked: &Json, body: &[u8]) -> anyhow::Result<Bytes> {
    let mut listed: Json = serde_json::from_slice(body)?;
    let streams = listed["Streams"].as_array_mut().context("no streams in the answer")?;
    for arn in closed.lock().expect("the list").iter() {
        let (table, label) = arn
            .split_once(":table/")
            .and_then(|(_, rest)| rest.split_once("/stream/"))
            .context("not the ARN of a stream")?;
        if asked["TableName"] == table {
            streams.push(json!({ "StreamArn": arn, "TableName": table, "StreamLabel": label }));
        }
    }
    Ok(Bytes::from(serde_json::to_vec(&listed)?))
}
