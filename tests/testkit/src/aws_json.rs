//! Calls of AWS's JSON protocol, without an SDK: a test calls a stand-in a thousand times, and a
//! command line takes a second for each.

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper_util::rt::TokioIo;
use serde_json::Value as Json;
use tokio::net::TcpStream;

/// The stand-ins read the access key and the region, and check no signature.
const AUTHORIZATION: &str = "AWS4-HMAC-SHA256 \
    Credential=test/20260101/us-east-1/dynamodb/aws4_request, SignedHeaders=host, Signature=0";

/// Calls an operation by its target (`AWSStepFunctions.StartExecution`) at `host:port`.
///
/// # Errors
/// Where there is no answer, or a refusal: the text has its type.
pub async fn call(address: &str, target: &str, body: &Json) -> anyhow::Result<Json> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::post("/")
        .header("host", address)
        .header("authorization", AUTHORIZATION)
        .header("content-type", "application/x-amz-json-1.0")
        .header("x-amz-target", target)
        .body(Full::new(Bytes::from(body.to_string())))?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let body = answer.into_body().collect().await?.to_bytes();
    anyhow::ensure!(status.is_success(), "{target}: {status} {}", String::from_utf8_lossy(&body));
    serde_json::from_slice(&body).context("the answer is not JSON")
}
