//! An S3 that is fast enough to measure against: PUT, HEAD and GET of objects held in memory, with
//! S3's conditions.
//!
//! The stand-in of the tests answers some hundred requests a second, which hides what its clients
//! cost, and a million histories would take it days. As a process of its own it serves the
//! benchmark. In a test ([`MemoryS3`]) it also fails at random, and sees to it that no object goes
//! back: each PUT is compared with what it replaces.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use fastrand::Rng;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use projector::measurement::Versions;
use projector::object::dominates;
use projector::part::{Part, PerPart};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// An object: its ETag, the headers that come back with it, its body.
#[derive(Clone)]
struct Object {
    etag: HeaderValue,
    metadata: HeaderMap,
    body: Bytes,
}

/// What a test sees of the requests, and does to them.
struct Watch {
    rng: Rng,
    /// How many of a thousand requests fail.
    faults_per_mille: u32,
    requests: u64,
    faults: u64,
    went_back: Vec<String>,
}

#[derive(Default)]
struct Bucket {
    objects: HashMap<String, Object>,
    watch: Option<Watch>,
}

type Shared = Arc<Mutex<Bucket>>;

/// An S3 of a test's own.
pub struct MemoryS3 {
    /// Where it listens.
    pub url: String,
    bucket: Shared,
}

impl MemoryS3 {
    /// Starts it, without objects. Of a thousand requests this many fail, chosen by the seed: S3
    /// does not see them, or the answer to a PUT is lost after it was carried out.
    ///
    /// # Panics
    /// If no port can be had.
    pub async fn start(seed: u64, faults_per_mille: u32) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let rng = Rng::with_seed(seed);
        let watch = Watch { rng, faults_per_mille, requests: 0, faults: 0, went_back: Vec::new() };
        let bucket = Bucket { watch: Some(watch), ..Bucket::default() };
        let bucket = Arc::new(Mutex::new(bucket));
        tokio::spawn(serve(listener, Arc::clone(&bucket)));
        Self { url, bucket }
    }

    /// The objects of a bucket, by key.
    #[must_use]
    pub fn objects(&self, bucket: &str) -> BTreeMap<String, Bytes> {
        let below = format!("/{bucket}/");
        let objects = &lock(&self.bucket).objects;
        let of_bucket = objects.iter().filter_map(|(path, object)| {
            Some((path.strip_prefix(&below)?.to_owned(), object.body.clone()))
        });
        of_bucket.collect()
    }

    /// Removes all objects.
    pub fn clear(&self) {
        lock(&self.bucket).objects.clear();
    }

    /// How many requests came, and how many of them failed.
    #[must_use]
    pub fn requests(&self) -> (u64, u64) {
        lock(&self.bucket).watch.as_ref().map_or((0, 0), |watch| (watch.requests, watch.faults))
    }

    /// The PUTs that took an object back.
    #[must_use]
    pub fn went_back(&self) -> Vec<String> {
        lock(&self.bucket).watch.as_ref().map(|watch| watch.went_back.clone()).unwrap_or_default()
    }
}

fn lock(bucket: &Shared) -> MutexGuard<'_, Bucket> {
    bucket.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says its URL in a line on standard output, and serves until standard input ends.
///
/// # Errors
/// Where no port can be had.
pub async fn serve_until_stdin_ends() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}\n", listener.local_addr()?);
    tokio::io::stdout().write_all(url.as_bytes()).await?;
    let mut nothing = Vec::new();
    let mut stdin = tokio::io::stdin();
    tokio::select! {
        () = serve(listener, Shared::default()) => {}
        _ = stdin.read_to_end(&mut nothing) => {}
    }
    Ok(())
}

async fn serve(listener: TcpListener, bucket: Shared) {
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        let bucket = Arc::clone(&bucket);
        let service = service_fn(move |request| answer(Arc::clone(&bucket), request));
        tokio::spawn(
            hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service),
        );
    }
}

async fn answer(
    bucket: Shared,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    // An answer before the body has been read would end the connection.
    let body = body.collect().await.map(http_body_util::Collected::to_bytes);
    // A connection that broke in the middle of a body leaves no object.
    let Ok(body) = body else { return Ok(refusal(400)) };
    let mut bucket = lock(&bucket);
    let fault = bucket.watch.as_mut().and_then(Watch::fault);
    if fault == Some(Lost::Request) {
        return Ok(refusal(503));
    }
    let response = match head.method {
        Method::PUT => bucket.put(path, &head.headers, body),
        Method::GET | Method::HEAD => bucket.get(&path, &head.method, &head.headers),
        _ => refusal(405),
    };
    Ok(if fault == Some(Lost::Answer) { refusal(500) } else { response })
}

#[derive(PartialEq, Eq)]
enum Lost {
    Request,
    Answer,
}

impl Watch {
    /// What becomes of the next request.
    fn fault(&mut self) -> Option<Lost> {
        self.requests += 1;
        if self.rng.u32(..1000) >= self.faults_per_mille {
            return None;
        }
        self.faults += 1;
        Some(if self.rng.bool() { Lost::Request } else { Lost::Answer })
    }
}

impl Bucket {
    fn put(&mut self, path: String, headers: &HeaderMap, body: Bytes) -> Response<Full<Bytes>> {
        let present = self.objects.get(&path);
        let etag = present.map(|object| &object.etag);
        if let Some(wanted) = headers.get("if-match")
            && etag != Some(wanted)
        {
            return refusal(if etag.is_some() { 412 } else { 404 });
        }
        if headers.contains_key("if-none-match") && etag.is_some() {
            return refusal(412);
        }
        let mut hasher = DefaultHasher::new();
        body.hash(&mut hasher);
        let etag = format!("\"{:016x}{:016x}\"", hasher.finish(), body.len());
        let Ok(etag) = HeaderValue::try_from(etag) else { return refusal(500) };
        let kept = headers.iter().filter(|(name, _)| name.as_str().starts_with("x-amz-meta-"));
        let metadata: HeaderMap = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
        if let (Some(watch), Some(present)) = (&mut self.watch, present) {
            let (old, new) = (versions_in(&present.metadata), versions_in(&metadata));
            if !dominates(&new, &old) {
                watch.went_back.push(format!("{path}: {old:?} -> {new:?}"));
            }
        }
        let mut response = Response::default();
        response.headers_mut().insert("etag", etag.clone());
        self.objects.insert(path, Object { etag, metadata, body });
        response
    }

    fn get(&self, path: &str, method: &Method, headers: &HeaderMap) -> Response<Full<Bytes>> {
        let Some(object) = self.objects.get(path).cloned() else { return refusal(404) };
        if headers.get("if-match").is_some_and(|wanted| *wanted != object.etag) {
            return refusal(412);
        }
        let body = if method == Method::GET { object.body } else { Bytes::new() };
        let mut response = Response::new(Full::new(body));
        response.headers_mut().extend(object.metadata);
        response.headers_mut().insert("etag", object.etag);
        response
    }
}

/// The versions that an object's metadata names.
fn versions_in(metadata: &HeaderMap) -> Versions {
    PerPart::from_fn(|part: Part| {
        let version = metadata.get(format!("x-amz-meta-{}-version", part.name()))?;
        version.to_str().ok().map(str::to_owned)
    })
}

fn refusal(status: u16) -> Response<Full<Bytes>> {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
    response
}
