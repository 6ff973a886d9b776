//! An S3 that is fast enough to measure against: PUT, HEAD, GET and listings of objects held in
//! memory, with S3's conditions.
//!
//! The stand-in of the tests answers some hundred requests a second, which hides what its clients
//! cost, and a million histories would take it days. As a process of its own it serves the
//! benchmark. In a test ([`MemoryS3`]) it also fails at random, and sees to it that no object goes
//! back: each PUT is compared with what it replaces.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use fastrand::Rng;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use projector::measurement::Versions;
use projector::object::dominates;
use projector::part::{Part, PerPart};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

use crate::http::{query_value, serve};

/// A page of a listing has at most this many objects.
const PAGE: usize = 1_000;

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
    /// By `/bucket/key`.
    objects: BTreeMap<String, Object>,
    /// How many requests came, by their method.
    requests: BTreeMap<String, u64>,
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
        let rng = Rng::with_seed(seed);
        let watch = Watch { rng, faults_per_mille, requests: 0, faults: 0, went_back: Vec::new() };
        let bucket = Bucket { watch: Some(watch), ..Bucket::default() };
        let bucket = Arc::new(Mutex::new(bucket));
        Self { url: serve_bucket(Arc::clone(&bucket)).await, bucket }
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

    /// How many requests of this method came.
    #[must_use]
    pub fn count(&self, method: &str) -> u64 {
        lock(&self.bucket).requests.get(method).copied().unwrap_or_default()
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

async fn serve_bucket(bucket: Shared) -> String {
    serve(move |request| answer(Arc::clone(&bucket), request)).await
}

/// Says its URL in a line on standard output, and serves buckets that are empty at first, of any
/// name, until standard input ends. For each line of that it says, as JSON, how many requests came
/// since the line before, by their method.
///
/// # Errors
/// If standard output is closed.
pub async fn serve_until_stdin_ends() -> anyhow::Result<()> {
    let bucket = Shared::default();
    let url = serve_bucket(Arc::clone(&bucket)).await;
    let mut out = tokio::io::stdout();
    out.write_all(format!("{url}\n").as_bytes()).await?;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while lines.next_line().await?.is_some() {
        let requests = std::mem::take(&mut lock(&bucket).requests);
        out.write_all(format!("{}\n", serde_json::to_string(&requests)?).as_bytes()).await?;
        out.flush().await?;
    }
    Ok(())
}

async fn answer(bucket: Shared, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    // An answer before the body has been read would end the connection.
    let body = body.collect().await.map(http_body_util::Collected::to_bytes);
    // A connection that broke in the middle of a body leaves no object.
    let Ok(body) = body else { return refusal(400) };
    let mut bucket = lock(&bucket);
    *bucket.requests.entry(head.method.to_string()).or_default() += 1;
    let fault = bucket.watch.as_mut().and_then(Watch::fault);
    if fault == Some(Lost::Request) {
        return refusal(503);
    }
    let query = head.uri.query().unwrap_or_default();
    let response = match head.method {
        Method::PUT => bucket.put(path, &head.headers, body),
        Method::GET if query.contains("list-type=2") => bucket.list(&path, query),
        Method::GET | Method::HEAD => bucket.get(&path, &head.method, &head.headers),
        _ => refusal(405),
    };
    if fault == Some(Lost::Answer) { refusal(500) } else { response }
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

    /// A page of `ListObjectsV2`, by `prefix` and `start-after`.
    fn list(&self, path: &str, query: &str) -> Response<Full<Bytes>> {
        let bucket = format!("{}/", path.trim_end_matches('/'));
        let prefix = format!("{bucket}{}", query_value(query, "prefix"));
        let after = format!("{bucket}{}", query_value(query, "start-after"));
        let after = (Bound::Excluded(after.as_str()), Bound::Unbounded);
        let listed = self.objects.range::<str, _>(after);
        let mut xml = "<ListBucketResult>".to_owned();
        for (path, object) in listed.filter(|(path, _)| path.starts_with(&prefix)).take(PAGE) {
            let (key, bytes) = (&path[bucket.len()..], object.body.len());
            write!(xml, "<Contents><Key>{key}</Key><Size>{bytes}</Size></Contents>")
                .expect("a string takes all");
        }
        Response::new(Full::from(xml + "</ListBucketResult>"))
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
