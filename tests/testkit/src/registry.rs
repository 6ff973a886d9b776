//! Registries of container images: images of a test's own, pushed by the documented calls, and a
//! relay in front of a registry that answers something else on command.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value as Json, json};
use sha2::{Digest as _, Sha256};
use tokio::net::{TcpListener, TcpStream};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// The digest of some bytes.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

/// Sends a request to `host:port`, and gives the status, the place that it names and the body.
async fn send(address: &str, request: Request<Full<Bytes>>) -> anyhow::Result<Response<Bytes>> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let (head, body) = sender.send_request(request).await?.into_parts();
    Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
}

/// One call of a registry at `host:port`.
///
/// # Panics
/// If it does not answer.
pub async fn call(
    address: &str,
    method: &str,
    path: &str,
    kind: &str,
    body: Vec<u8>,
) -> Response<Bytes> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", address)
        .header("content-type", kind)
        .header("accept", format!("{INDEX}, {IMAGE}"))
        .body(Full::from(body))
        .expect("a request");
    send(address, request).await.expect("the registry answers")
}

/// Pushes an image of several platforms, told apart by `seed`, and gives the digests of its index
/// and of the image of each platform. Without a tag it has only its digest.
///
/// # Panics
/// If the registry refuses.
pub async fn push(
    address: &str,
    repository: &str,
    tag: Option<&str>,
    seed: &str,
) -> (String, Vec<String>) {
    let mut images = Vec::new();
    for architecture in ["amd64", "arm64"] {
        let layer = format!("a layer of {seed} for {architecture}").into_bytes();
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {},
            "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
        });
        let layer = push_blob(address, repository, LAYER, layer).await;
        let config = push_blob(address, repository, CONFIG, config.to_string().into_bytes()).await;
        let image = json!({
            "schemaVersion": 2, "mediaType": IMAGE, "config": config, "layers": [layer],
        });
        let mut image = push_manifest(address, repository, None, IMAGE, &image).await;
        image["platform"] = json!({ "architecture": architecture, "os": "linux" });
        images.push(image);
    }
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": images });
    let index = push_manifest(address, repository, tag, INDEX, &index).await;
    let name = |manifest: &Json| manifest["digest"].as_str().expect("a digest").to_owned();
    (name(&index), images.iter().map(name).collect())
}

async fn push_blob(address: &str, repository: &str, kind: &str, blob: Vec<u8>) -> Json {
    let (name, size) = (digest(&blob), blob.len());
    let path = format!("/v2/{repository}/blobs/uploads/");
    let begun = call(address, "POST", &path, kind, Vec::new()).await;
    let place = begun.headers()["location"].to_str().expect("a place");
    let place = place.strip_prefix(&format!("http://{address}")).unwrap_or(place);
    let path = format!("{place}&digest={name}");
    let done = call(address, "PUT", &path, "application/octet-stream", blob).await;
    assert_eq!(done.status(), 201, "{:?}", done.body());
    json!({ "mediaType": kind, "digest": name, "size": size })
}

async fn push_manifest(
    address: &str,
    repository: &str,
    tag: Option<&str>,
    kind: &str,
    manifest: &Json,
) -> Json {
    let bytes = manifest.to_string().into_bytes();
    let (name, size) = (digest(&bytes), bytes.len());
    let path = format!("/v2/{repository}/manifests/{}", tag.unwrap_or(&name));
    let done = call(address, "PUT", &path, kind, bytes).await;
    assert_eq!(done.status(), 201, "{:?}", done.body());
    json!({ "mediaType": kind, "digest": name, "size": size })
}

/// The digest of what a registry answers for a tag or digest; nothing if it has none.
pub async fn digest_at(address: &str, repository: &str, reference: &str) -> Option<String> {
    let path = format!("/v2/{repository}/manifests/{reference}");
    let answer = call(address, "GET", &path, "", Vec::new()).await;
    (answer.status() == 200).then(|| digest(answer.body()))
}

/// What a relay does with a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Rule {
    /// Passes it on.
    #[default]
    Pass,
    /// Passes it on to another path.
    To(String),
    /// Passes it on, and changes the answer; it stays JSON of the same length.
    Tamper,
    /// Never answers.
    Hang,
}

/// Chooses a rule by method, path, and how many requests have had both before.
type Choose = Arc<dyn Fn(&str, &str, usize) -> Rule + Send + Sync>;

/// A relay in front of a registry.
#[derive(Clone)]
pub struct Relay {
    /// Where it listens: `host:port`.
    pub address: String,
    upstream: String,
    choose: Choose,
    seen: Arc<Mutex<BTreeMap<(String, String), usize>>>,
}

impl Relay {
    /// Starts it in front of a registry.
    ///
    /// # Panics
    /// If no port can be had.
    pub async fn start(
        upstream: &str,
        choose: impl Fn(&str, &str, usize) -> Rule + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let relay = Self {
            address: listener.local_addr().expect("an address").to_string(),
            upstream: upstream.to_owned(),
            choose: Arc::new(choose),
            seen: Arc::default(),
        };
        let serving = relay.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let relay = serving.clone();
                tokio::spawn(async move {
                    let answer = service_fn(|request| relay.answer(request));
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), answer)
                        .await
                });
            }
        });
        relay
    }

    /// Whether a request of this method, whose path has these words, has arrived.
    ///
    /// # Panics
    /// If a request panicked.
    #[must_use]
    pub fn has_seen(&self, method: &str, words: &str) -> bool {
        let seen = self.seen.lock().expect("not poisoned");
        seen.keys().any(|(of, path)| of == method && path.contains(words))
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let (mut head, body) = request.into_parts();
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let rule = {
            let mut seen = self.seen.lock().expect("not poisoned");
            let before = seen.entry((head.method.to_string(), path.clone())).or_default();
            *before += 1;
            (self.choose)(head.method.as_str(), &path, *before - 1)
        };
        let target = match &rule {
            Rule::Hang => std::future::pending().await,
            Rule::To(other) => other,
            Rule::Pass | Rule::Tamper => &path,
        };
        head.uri = target.parse().expect("a path");
        let body = body.collect().await.map(http_body_util::Collected::to_bytes);
        let request = Request::from_parts(head, Full::from(body.unwrap_or_default()));
        let (head, mut body) = send(&self.upstream, request).await.expect("upstream").into_parts();
        if rule == Rule::Tamper {
            let text = String::from_utf8_lossy(&body);
            body = Bytes::from(text.replacen("schemaVersion\":2", "schemaVersion\":3", 1));
        }
        Ok(Response::from_parts(head, Full::from(body)))
    }
}
