//! A gate in front of DynamoDB, that throttles on command and sees what each answer consumed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::{Request, Response};
use serde_json::{Value as Json, json};

use crate::http::{host, send, serve};

/// What the gate does with a call.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Hands it on.
    Pass,
    /// Answers that the table has no throughput left; DynamoDB does not see the call.
    Throttle,
    /// Of a `BatchGetItem`, hands on at most this many keys per table, and returns the others as
    /// not processed.
    Process(usize),
    /// Answers this itself.
    Answer(Json),
}

/// What a rule sees of a call.
#[derive(Debug)]
pub struct Seen<'a> {
    /// `Scan`, `BatchGetItem`.
    pub operation: &'a str,
    /// What is asked.
    pub body: &'a Json,
    /// How many calls of this operation came before.
    pub earlier: usize,
}

type Rule = Box<dyn Fn(&Seen<'_>) -> Fault + Send + Sync>;

struct State {
    upstream: String,
    rule: Mutex<Rule>,
    calls: Mutex<BTreeMap<String, usize>>,
    consumed: Mutex<Vec<(Instant, f64)>>,
}

/// An HTTP relay to DynamoDB.
pub struct DynamoDbGate {
    /// Its URL.
    pub url: String,
    state: Arc<State>,
}

impl DynamoDbGate {
    /// Opens a gate to the DynamoDB at `upstream` (`http://host:port`).
    ///
    /// # Panics
    /// If no port can be had.
    pub async fn open(upstream: &str) -> Self {
        let state = Arc::new(State {
            upstream: host(upstream),
            rule: Mutex::new(Box::new(|_| Fault::Pass)),
            calls: Mutex::default(),
            consumed: Mutex::default(),
        });
        let shared = Arc::clone(&state);
        let url = serve(move |request| answer(Arc::clone(&shared), request)).await;
        Self { url, state }
    }

    /// From now on calls are treated by this rule.
    ///
    /// # Panics
    /// If a rule panicked.
    pub fn set_rule(&self, rule: impl Fn(&Seen<'_>) -> Fault + Send + Sync + 'static) {
        *self.state.rule.lock().expect("not poisoned") = Box::new(rule);
    }

    /// How many calls of an operation came so far.
    ///
    /// # Panics
    /// If a rule panicked.
    #[must_use]
    pub fn calls(&self, operation: &str) -> usize {
        self.state.calls.lock().expect("not poisoned").get(operation).copied().unwrap_or_default()
    }

    /// What each answer consumed, in units, and when it went out.
    ///
    /// # Panics
    /// If a rule panicked.
    #[must_use]
    pub fn consumed(&self) -> Vec<(Instant, f64)> {
        self.state.consumed.lock().expect("not poisoned").clone()
    }
}

async fn answer(state: Arc<State>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let target = head.headers.get("x-amz-target").and_then(|target| target.to_str().ok());
    let operation = target.and_then(|target| target.rsplit('.').next()).unwrap_or_default();
    let operation = operation.to_owned();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let json: Json = serde_json::from_slice(&body).unwrap_or_default();
    let earlier = {
        let mut calls = state.calls.lock().expect("not poisoned");
        let count = calls.entry(operation.clone()).or_default();
        *count += 1;
        *count - 1
    };
    let seen = Seen { operation: &operation, body: &json, earlier };
    let fault = state.rule.lock().expect("not poisoned")(&seen);
    let (status, answer) = match fault {
        Fault::Throttle => {
            let kind = "com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException";
            (400, json!({"__type": kind, "message": "by the test"}))
        }
        Fault::Answer(answer) => (200, answer),
        Fault::Pass => forward(&state, &head, &json).await,
        Fault::Process(most) => {
            let (now, later) = split(&json, most);
            let (status, mut answer) = forward(&state, &head, &now).await;
            answer["UnprocessedKeys"] = later;
            (status, answer)
        }
    };
    let units = units(&answer["ConsumedCapacity"]);
    state.consumed.lock().expect("not poisoned").push((Instant::now(), units));
    let response = Response::builder().status(status);
    let response = response.header("content-type", "application/x-amz-json-1.0");
    response.body(Full::from(answer.to_string())).expect("a response")
}

/// The request with at most this many keys per table, and the other keys.
fn split(request: &Json, most: usize) -> (Json, Json) {
    let (mut now, mut later) = (request.clone(), json!({}));
    let tables = now["RequestItems"].as_object_mut().expect("the keys of a BatchGetItem");
    for (table, wanted) in tables {
        let keys = wanted["Keys"].as_array_mut().expect("keys");
        let rest = keys.split_off(keys.len().min(most));
        if !rest.is_empty() {
            later[table] = wanted.clone();
            later[table]["Keys"] = Json::Array(rest);
        }
    }
    (now, later)
}

/// The units of one table, or of all.
fn units(consumed: &Json) -> f64 {
    match consumed {
        Json::Array(tables) => tables.iter().map(units).sum(),
        of_table => of_table["CapacityUnits"].as_f64().unwrap_or_default(),
    }
}

async fn forward(state: &State, head: &Parts, body: &Json) -> (u16, Json) {
    let asking = async {
        let mut request = Request::post("/").header("host", &state.upstream);
        for name in ["authorization", "content-type", "x-amz-date", "x-amz-target"] {
            if let Some(value) = head.headers.get(name) {
                request = request.header(name, value);
            }
        }
        let request = request.body(Full::new(Bytes::from(body.to_string())))?;
        let answer = send(&state.upstream, request).await?;
        anyhow::Ok((answer.status().as_u16(), serde_json::from_slice(answer.body())?))
    };
    let failed = |error: anyhow::Error| (500, json!({"message": error.to_string()}));
    asking.await.unwrap_or_else(failed)
}
