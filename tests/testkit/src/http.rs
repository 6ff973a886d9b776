//! What all servers of this crate share: HTTP/1 on a free port of loopback, and calls of the server
//! behind a relay.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::future::Future;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

/// Answers every request on a free port of loopback, and gives the URL.
///
/// # Panics
/// If no port can be had.
pub(crate) async fn serve<B, A>(
    answer: impl Fn(Request<Incoming>) -> A + Clone + Send + 'static,
) -> String
where
    A: Future<Output = Response<B>> + Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A small answer would wait for the acknowledgement of the one before it.
            let _ = stream.set_nodelay(true);
            let answer = answer.clone();
            let service = service_fn(move |request| {
                let answering = answer(request);
                async { Ok::<_, Infallible>(answering.await) }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    url
}

/// `host:port` of a URL (`http://host:port`).
pub(crate) fn host(url: &str) -> String {
    url.trim_start_matches("http://").to_owned()
}

/// Sends a request to the server at `host:port`, over a connection of its own, and gives the whole
/// answer.
///
/// # Errors
/// If the server cannot be reached, or breaks off.
pub(crate) async fn send(
    host: &str,
    request: Request<Full<Bytes>>,
) -> anyhow::Result<Response<Bytes>> {
    let stream = TcpStream::connect(host).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let (mut head, body) = sender.send_request(request).await?.into_parts();
    // The body is whole here, and its length is known.
    head.headers.remove("transfer-encoding");
    Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
}

/// What a relay answers if the server behind it does not.
pub(crate) fn bad_gateway(error: &anyhow::Error) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::from(format!("{error:#}")));
    *answer.status_mut() = StatusCode::BAD_GATEWAY;
    answer
}

/// The value of a name in a query, decoded; empty if it is not there.
pub(crate) fn query_value(query: &str, name: &str) -> String {
    let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let mut decoded = String::new();
    let mut rest = value.unwrap_or_default();
    while let Some((plain, escaped)) = rest.split_once('%') {
        let (code, after) = escaped.split_at(2);
        let byte = u8::from_str_radix(code, 16).expect("an escape");
        write!(decoded, "{plain}{}", char::from(byte)).expect("a string takes all");
        rest = after;
    }
    decoded + rest
}
