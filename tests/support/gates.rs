//! Gates in front of the real services, that fail on command.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

/// A TCP relay that can be shut: connections break, new ones are closed at once.
#[derive(Debug)]
pub struct TcpGate {
    /// Where it listens.
    pub address: SocketAddr,
    open: watch::Sender<bool>,
}

impl TcpGate {
    /// Opens a gate to `upstream`.
    ///
    /// # Panics
    /// Where no port can be had.
    pub async fn open(upstream: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (open, is_open) = watch::channel(true);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut is_open = is_open.clone();
                let upstream = upstream.clone();
                tokio::spawn(async move {
                    if !*is_open.borrow() {
                        return;
                    }
                    let Ok(mut server) = TcpStream::connect(&upstream).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                        _ = is_open.wait_for(|open| !open) => {}
                    }
                });
            }
        });
        Self { address, open }
    }

    /// Shuts or opens the gate.
    pub fn set_open(&self, open: bool) {
        self.open.send_replace(open);
    }
}

/// Puts TLS in front of a PostgreSQL that has none, with a certificate for `localhost`: the server half
/// of `SSLRequest` (PostgreSQL documentation, "Message Flow", SSL Session Encryption). Gives the
/// address, and the PEM of who vouches for the certificate.
///
/// # Panics
/// Where no port can be had.
pub async fn tls_before_postgres(upstream: String) -> (SocketAddr, String) {
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate().expect("a key");
    let authority = params.self_signed(&authority_key).expect("a certificate").pem();
    let issuer = Issuer::new(params, authority_key);
    let key = KeyPair::generate().expect("a key");
    let certificate = CertificateParams::new(vec!["localhost".to_owned()])
        .and_then(|params| params.signed_by(&key, &issuer))
        .expect("a certificate");
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .expect("a configuration");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (acceptor, upstream) = (acceptor.clone(), upstream.clone());
            tokio::spawn(async move {
                // As PostgreSQL itself does.
                client.set_nodelay(true)?;
                let mut request = [0; 8];
                client.read_exact(&mut request).await?;
                client.write_all(b"S").await?;
                let mut client = acceptor.accept(client).await?;
                let mut server = TcpStream::connect(upstream).await?;
                server.set_nodelay(true)?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    (address, authority)
}

/// What the S3 gate does with a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Hands it on.
    Pass,
    /// Answers with this status; S3 does not see the request.
    Refuse(u16),
    /// Hands it on, and then answers 500 all the same.
    HideAnswer,
    /// Holds it back until told.
    Hold(Arc<Notify>),
}

/// What a rule sees of a request.
#[derive(Debug)]
pub struct Seen<'a> {
    /// GET, HEAD, PUT.
    pub method: &'a str,
    /// `/bucket/key`.
    pub path: &'a str,
    /// How many requests of this method and path came before.
    pub earlier: usize,
}

type Rule = Box<dyn Fn(&Seen<'_>) -> Fault + Send + Sync>;

struct State {
    upstream: String,
    rule: Mutex<Rule>,
    seen: Mutex<HashMap<(String, String), usize>>,
    arrived: Notify,
    strip_conditions: AtomicBool,
}

/// An HTTP relay to S3, that counts, refuses, hides answers and holds back.
pub struct S3Gate {
    /// Its URL.
    pub url: String,
    state: Arc<State>,
}

impl S3Gate {
    /// Opens a gate to the S3 at `upstream` (`http://host:port`).
    ///
    /// # Panics
    /// Where no port can be had.
    pub async fn open(upstream: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let state = Arc::new(State {
            upstream: upstream.trim_start_matches("http://").to_owned(),
            rule: Mutex::new(Box::new(|_| Fault::Pass)),
            seen: Mutex::default(),
            arrived: Notify::new(),
            strip_conditions: AtomicBool::new(false),
        });
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&shared);
                let service = service_fn(move |request| relay(Arc::clone(&state), request));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { url, state }
    }

    /// From now on requests are treated by this rule.
    pub fn set_rule(&self, rule: impl Fn(&Seen<'_>) -> Fault + Send + Sync + 'static) {
        *self.state.rule.lock().expect("not poisoned") = Box::new(rule);
    }

    /// How many requests of a method came so far.
    #[must_use]
    pub fn count(&self, method: &str) -> usize {
        let seen = self.state.seen.lock().expect("not poisoned");
        seen.iter().filter(|((of, _), _)| of == method).map(|(_, count)| count).sum()
    }

    /// Waits until so many requests of a method have come.
    pub async fn until(&self, method: &str, count: usize) {
        loop {
            let arrived = self.state.arrived.notified();
            if self.count(method) >= count {
                return;
            }
            arrived.await;
        }
    }

    /// Takes If-Match and If-None-Match off every request: what a projector without the guard does.
    pub fn strip_conditions(&self) {
        self.state.strip_conditions.store(true, Ordering::Relaxed);
    }
}

async fn relay(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
    let fault = {
        let mut seen = state.seen.lock().expect("not poisoned");
        let count = seen.entry((method.clone(), path.clone())).or_default();
        let earlier = *count;
        *count += 1;
        state.rule.lock().expect("not poisoned")(&Seen { method: &method, path: &path, earlier })
    };
    state.arrived.notify_waiters();
    let hide = match fault {
        Fault::Pass => false,
        Fault::HideAnswer => true,
        Fault::Refuse(status) => return Ok(refusal(status)),
        Fault::Hold(release) => {
            release.notified().await;
            false
        }
    };
    let answer = forward(&state, request).await;
    Ok(match answer {
        Ok(answer) if !hide => answer,
        _ => refusal(500),
    })
}

fn refusal(status: u16) -> Response<Full<Bytes>> {
    let body = format!(
        "<Error><Code>Injected</Code><Message>status {status} by the test</Message></Error>"
    );
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    response
}

async fn forward(
    state: &State,
    request: Request<Incoming>,
) -> anyhow::Result<Response<Full<Bytes>>> {
    let (mut head, body) = request.into_parts();
    if state.strip_conditions.load(Ordering::Relaxed) {
        head.headers.remove("if-match");
        head.headers.remove("if-none-match");
    }
    let body = body.collect().await?.to_bytes();
    let stream = TcpStream::connect(&state.upstream).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let response = sender.send_request(Request::from_parts(head, Full::new(body))).await?;
    let (mut head, body) = response.into_parts();
    head.headers.remove("transfer-encoding");
    Ok(Response::from_parts(head, Full::new(body.collect().await?.to_bytes())))
}
