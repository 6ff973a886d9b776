//! What the stand-in's `ListStreams` leaves out: DynamoDB lists a stream for 24 hours after it was
//! turned off, and the stand-in only describes it and hands out its records.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value as Json, json};
use tokio::net::{TcpListener, TcpStream};

/// A relay to DynamoDB Streams that lists closed streams, too.
#[derive(Clone, Debug)]
pub struct ClosedStreams {
    /// Its URL, for `AWS_ENDPOINT_URL_DYNAMODB_STREAMS`.
    pub url: String,
    upstream: String,
    closed: Arc<Mutex<Vec<String>>>,
}

impl ClosedStreams {
    /// Opens a relay to `upstream` (`http://host:port`).
    ///
    /// # Panics
    /// If no port can be had.
    pub async fn open(upstream: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let relay = Self {
            url: format!("http://{}", listener.local_addr().expect("an address")),
            upstream: upstream.trim_start_matches("http://").to_owned(),
            closed: Arc::default(),
        };
        let accepting = relay.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let relay = accepting.clone();
                tokio::spawn(async move {
                    let answer = service_fn(|request| relay.answer(request));
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(client), answer)
                        .await
                });
            }
        });
        relay
    }

    /// From now on this stream is listed with those of its table.
    ///
    /// # Panics
    /// If another thread panicked while it held the list.
    pub fn list(&self, stream_arn: &str) {
        self.closed.lock().expect("the list").push(stream_arn.to_owned());
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        Ok(self.hand_on(request).await.unwrap_or_else(|error| {
            let mut answer = Response::new(Full::from(format!("{error:#}")));
            *answer.status_mut() = StatusCode::BAD_GATEWAY;
            answer
        }))
    }

    async fn hand_on(&self, request: Request<Incoming>) -> anyhow::Result<Response<Full<Bytes>>> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let target = parts.headers.get("x-amz-target").map(|target| target.to_str()).transpose()?;
        let lists = target.is_some_and(|target| target.ends_with(".ListStreams"));
        let asked = if lists { Some(serde_json::from_slice::<Json>(&body)?) } else { None };

        let stream = TcpStream::connect(&self.upstream).await.context("no stand-in")?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::from_parts(parts, Full::<Bytes>::from(body));
        let answer = sender.send_request(request).await?;
        let (mut parts, body) = answer.into_parts();
        let mut body = body.collect().await?.to_bytes();
        if let Some(asked) = asked {
            body = self.with_closed(&asked, &body)?;
            // The client checks both.
            parts.headers.remove("x-amz-crc32");
            parts.headers.insert("content-length", body.len().into());
        }
        Ok(Response::from_parts(parts, Full::from(body)))
    }

    fn with_closed(&self, asked: &Json, body: &[u8]) -> anyhow::Result<Bytes> {
        let mut listed: Json = serde_json::from_slice(body)?;
        let streams = listed["Streams"].as_array_mut().context("no streams in the answer")?;
        for arn in self.closed.lock().expect("the list").iter() {
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
}
