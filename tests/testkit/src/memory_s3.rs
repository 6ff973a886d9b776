//! An S3 that is fast enough to measure against: PUT, HEAD and GET of objects held in memory, with
//! S3's conditions.
//!
//! The stand-in of the tests answers some hundred requests a second, which hides what its clients
//! cost. This one is for the benchmark alone: no test of a guarantee runs on it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// An object: its ETag, the headers that come back with it, its body.
#[derive(Clone)]
struct Object {
    etag: HeaderValue,
    metadata: HeaderMap,
    body: Bytes,
}

type Objects = Arc<Mutex<HashMap<String, Object>>>;

/// Says its URL in a line on standard output, and serves until standard input ends.
///
/// # Errors
/// Where no port can be had.
pub async fn serve_until_stdin_ends() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}\n", listener.local_addr()?);
    tokio::io::stdout().write_all(url.as_bytes()).await?;
    let objects = Objects::default();
    let serve = async {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            let objects = Arc::clone(&objects);
            let service = service_fn(move |request| answer(Arc::clone(&objects), request));
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    };
    let mut nothing = Vec::new();
    let mut stdin = tokio::io::stdin();
    tokio::select! {
        () = serve => {}
        _ = stdin.read_to_end(&mut nothing) => {}
    }
    Ok(())
}

async fn answer(
    objects: Objects,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    // An answer before the body has been read would end the connection.
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let mut objects = objects.lock().unwrap_or_else(PoisonError::into_inner);
    let present = objects.get(&path).cloned();
    let etag = present.as_ref().map(|object| object.etag.clone());
    Ok(match head.method {
        Method::PUT => {
            if let Some(wanted) = head.headers.get("if-match")
                && etag.as_ref() != Some(wanted)
            {
                let status = if etag.is_some() { 412 } else { 404 };
                return Ok(refusal(status));
            }
            if head.headers.contains_key("if-none-match") && etag.is_some() {
                return Ok(refusal(412));
            }
            let mut hasher = DefaultHasher::new();
            body.hash(&mut hasher);
            let etag = format!("\"{:016x}{:016x}\"", hasher.finish(), body.len());
            let Ok(etag) = HeaderValue::try_from(etag) else { return Ok(refusal(500)) };
            let kept =
                head.headers.iter().filter(|(name, _)| name.as_str().starts_with("x-amz-meta-"));
            let metadata = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
            let mut response = Response::default();
            response.headers_mut().insert("etag", etag.clone());
            objects.insert(path, Object { etag, metadata, body });
            response
        }
        Method::GET | Method::HEAD => {
            let Some(object) = present else { return Ok(refusal(404)) };
            let body = if head.method == Method::GET { object.body } else { Bytes::new() };
            let mut response = Response::new(Full::new(body));
            response.headers_mut().extend(object.metadata);
            response.headers_mut().insert("etag", object.etag);
            response
        }
        _ => refusal(405),
    })
}

fn refusal(status: u16) -> Response<Full<Bytes>> {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
    response
}
