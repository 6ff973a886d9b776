//! A gate in front of S3, that fails on command, and sees to it that no object goes back: of each
//! PUT that S3 takes, the versions are compared with those of the object that it replaces.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use projector::measurement::Versions;
use projector::object;
use projector::part::{Part, PerPart};
use tokio::sync::Notify;

use crate::http::{self, serve};

/// What the S3 gate does with a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Hands it on.
    Pass,
    /// Answers with this status; S3 does not see the request.
    Refuse(u16),
    /// The same with this code in the body.
    RefuseWith(u16, &'static str),
    /// Hands it on after a while.
    Delay(Duration),
    /// Hands it on, and then answers 500 anyway.
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
    /// PUTs that took an object back.
    went_back: Mutex<Vec<String>>,
    going_back_is_expected: AtomicBool,
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
        let state = Arc::new(State {
            upstream: http::host(upstream),
            rule: Mutex::new(Box::new(|_| Fault::Pass)),
            seen: Mutex::default(),
            arrived: Notify::new(),
            strip_conditions: AtomicBool::new(false),
            went_back: Mutex::default(),
            going_back_is_expected: AtomicBool::new(false),
        });
        let shared = Arc::clone(&state);
        let url = serve(move |request| relay(Arc::clone(&shared), request)).await;
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

    /// Waits until this many requests of a method have come.
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
    /// Then an object may go back, which [`S3Gate::went_back`] tells.
    pub fn strip_conditions(&self) {
        self.state.strip_conditions.store(true, Ordering::Relaxed);
        self.state.going_back_is_expected.store(true, Ordering::Relaxed);
    }

    /// The PUTs that took an object back.
    ///
    /// # Panics
    /// Never: the lock is not poisoned.
    #[must_use]
    pub fn went_back(&self) -> Vec<String> {
        self.state.went_back.lock().expect("not poisoned").clone()
    }
}

/// Every test that uses the gate proves it, not only those that look.
impl Drop for S3Gate {
    fn drop(&mut self) {
        if !std::thread::panicking() && !self.state.going_back_is_expected.load(Ordering::Relaxed) {
            assert_eq!(self.went_back(), [""; 0], "no object goes back");
        }
    }
}

async fn relay(state: Arc<State>, request: Request<Incoming>) -> Response<Full<Bytes>> {
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
        Fault::Refuse(status) => return refusal(status, "Injected"),
        Fault::RefuseWith(status, code) => return refusal(status, code),
        Fault::Delay(delay) => {
            tokio::time::sleep(delay).await;
            false
        }
        Fault::Hold(release) => {
            release.notified().await;
            false
        }
    };
    let answer = if request.method() == Method::PUT {
        put(&state, request).await
    } else {
        forward(&state, request).await
    };
    match answer {
        Ok(answer) if !hide => answer,
        _ => refusal(500, "Injected"),
    }
}

/// Hands a PUT on, and compares what it writes with what it replaces. That another writer comes
/// between the look and the PUT is no matter: it can only have written more, and then the condition
/// fails.
async fn put(state: &State, request: Request<Incoming>) -> anyhow::Result<Response<Full<Bytes>>> {
    let path = request.uri().path().to_owned();
    let (mut head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let new = versions_in(&head.headers).or_else(|| object::versions_of(&body).ok().flatten());
    let old = replaced(state, &path, &head.headers).await?;
    if state.strip_conditions.load(Ordering::Relaxed) {
        head.headers.remove("if-match");
        head.headers.remove("if-none-match");
    }
    let answer = send(state, Request::from_parts(head, Full::new(body))).await?;
    if answer.status().is_success()
        && let (Some(new), Some(old)) = (new, old)
        && !object::dominates(&new, &old)
    {
        let went_back = format!("{path}: {old:?} -> {new:?}");
        state.went_back.lock().expect("not poisoned").push(went_back);
    }
    Ok(answer)
}

/// The versions that a request's or an answer's metadata names.
fn versions_in(headers: &HeaderMap) -> Option<Versions> {
    let version = |part: Part| headers.get(format!("x-amz-meta-{}-version", part.name()));
    let text = |value: &HeaderValue| value.to_str().ok().map(str::to_owned);
    let versions = PerPart::from_fn(|part| version(part).and_then(text));
    versions.values().any(Option::is_some).then_some(versions)
}

/// The versions of the object that is there, by its metadata or, where it has none of ours, by its
/// body. The stand-in does not look at signatures, so the headers of the PUT serve.
async fn replaced(
    state: &State,
    path: &str,
    headers: &HeaderMap,
) -> anyhow::Result<Option<Versions>> {
    let ask = async |method: Method| {
        let mut request = Request::builder().method(method).uri(path);
        for name in ["host", "authorization", "x-amz-date", "x-amz-content-sha256"] {
            if let Some(value) = headers.get(name) {
                request = request.header(name, value);
            }
        }
        send(state, request.body(Full::default())?).await
    };
    let head = ask(Method::HEAD).await?;
    if head.status() == StatusCode::NOT_FOUND {
        return Ok(None);
    }
    anyhow::ensure!(
        head.status().is_success(),
        "the gate cannot see what is replaced: {}",
        head.status()
    );
    if let Some(versions) = versions_in(head.headers()) {
        return Ok(Some(versions));
    }
    let body = ask(Method::GET).await?.into_body().collect().await?.to_bytes();
    Ok(object::versions_of(&body).ok().flatten())
}

fn refusal(status: u16, code: &str) -> Response<Full<Bytes>> {
    let body =
        format!("<Error><Code>{code}</Code><Message>status {status} by the test</Message></Error>");
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    response
}

async fn forward(
    state: &State,
    request: Request<Incoming>,
) -> anyhow::Result<Response<Full<Bytes>>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    send(state, Request::from_parts(head, Full::new(body))).await
}

async fn send(
    state: &State,
    request: Request<Full<Bytes>>,
) -> anyhow::Result<Response<Full<Bytes>>> {
    Ok(http::send(&state.upstream, request).await?.map(Full::new))
}
