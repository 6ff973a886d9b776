//! What the stand-in of AWS cannot answer, in the documented form: functions and their mappings
//! (Lambda), the streams of tables (DynamoDB), metrics and alarms (CloudWatch).

mod cbor;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use serde_json::{Value as Json, json};
use time::OffsetDateTime;

use crate::http::{query_value, serve};

/// Values by how many minutes ago the minute began that they stand for.
pub type Series = BTreeMap<i64, f64>;

/// An account. A test changes it as it likes.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// The mappings of each function, as Lambda lists them.
    pub mappings: BTreeMap<String, Vec<Json>>,
    /// The environment of each function.
    pub variables: BTreeMap<String, Json>,
    /// The newest stream of each table.
    pub streams: BTreeMap<String, String>,
    /// The values of each metric, by its name and the values of its dimensions with slashes
    /// between.
    pub metrics: BTreeMap<String, Series>,
    /// The state of each alarm.
    pub alarms: BTreeMap<String, String>,
    /// These operations are forbidden.
    pub forbidden: BTreeSet<String>,
    /// These operations get no answer.
    pub silent: BTreeSet<String>,
}

/// The server.
#[derive(Clone, Debug)]
pub struct AwsServer {
    /// Where it listens.
    pub url: String,
    account: Arc<Mutex<Account>>,
}

/// An operation, and what is asked.
struct Call {
    operation: String,
    /// The name in the address, if there is one.
    name: String,
    body: Json,
    is_cbor: bool,
}

impl AwsServer {
    /// Starts it with this account.
    ///
    /// # Panics
    /// If no port can be had.
    pub async fn start(account: Account) -> Self {
        let account = Arc::new(Mutex::new(account));
        let shared = Arc::clone(&account);
        let url = serve(move |request| answer(Arc::clone(&shared), request)).await;
        Self { url, account }
    }

    /// Changes the account.
    ///
    /// # Panics
    /// If another change panicked.
    pub fn change(&self, change: impl FnOnce(&mut Account)) {
        change(&mut self.account.lock().expect("not poisoned"));
    }
}

async fn answer(account: Arc<Mutex<Account>>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let call = call(request).await;
    let account = account.lock().expect("not poisoned").clone();
    if account.silent.contains(&call.operation) {
        std::future::pending::<()>().await;
    }
    let forbidden = account.forbidden.contains(&call.operation);
    let answer = if forbidden { None } else { account.answer(&call) };
    let (status, body) = match answer {
        Some(body) => (200, body),
        None => (403, json!({ "__type": "AccessDeniedException", "message": "by the test" })),
    };
    let (body, kind) = if call.is_cbor {
        let mut bytes = Vec::new();
        cbor::encode(&body, &mut bytes);
        (bytes, "application/cbor")
    } else {
        (body.to_string().into_bytes(), "application/x-amz-json-1.0")
    };
    let mut response = Response::builder().status(status).header("content-type", kind);
    if call.is_cbor {
        response = response.header("smithy-protocol", "rpc-v2-cbor");
    }
    if status != 200 {
        response = response.header("x-amzn-errortype", "AccessDeniedException");
    }
    response.body(Full::from(body)).expect("a response")
}

async fn call(request: Request<Incoming>) -> Call {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let target = request.headers().get("x-amz-target").and_then(|target| target.to_str().ok());
    let target = target.and_then(|target| target.split_once('.')).map(|(_, name)| name.to_owned());
    let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes);
    let body = body.unwrap_or_default();
    if let Some((_, operation)) = path.split_once("/operation/") {
        let body = cbor::decode(&mut &body[..]).unwrap_or_default();
        return Call { operation: operation.to_owned(), name: String::new(), body, is_cbor: true };
    }
    let function = path.strip_suffix("/configuration").and_then(|path| path.rsplit('/').next());
    let (operation, name) = match (target, function) {
        (Some(target), _) => (target, String::new()),
        (None, Some(function)) => ("GetFunctionConfiguration".to_owned(), function.to_owned()),
        (None, None) => ("ListEventSourceMappings".to_owned(), query_value(&query, "FunctionName")),
    };
    let body = serde_json::from_slice(&body).unwrap_or_default();
    Call { operation, name, body, is_cbor: false }
}

impl Account {
    fn answer(&self, call: &Call) -> Option<Json> {
        Some(match call.operation.as_str() {
            "ListEventSourceMappings" => {
                let mappings = self.mappings.get(&call.name).cloned().unwrap_or_default();
                json!({ "EventSourceMappings": mappings })
            }
            "GetFunctionConfiguration" => {
                let variables = self.variables.get(&call.name)?;
                json!({ "Environment": { "Variables": variables }, "Timeout": 3 })
            }
            "DescribeTable" => {
                let table = call.body["TableName"].as_str()?;
                json!({ "Table": { "TableName": table, "LatestStreamArn": self.streams.get(table)? } })
            }
            "GetMetricData" => {
                let queries = call.body["MetricDataQueries"].as_array()?;
                let results: Vec<Json> = queries.iter().map(|query| self.data(query)).collect();
                json!({ "MetricDataResults": results })
            }
            "DescribeAlarms" => {
                let prefix = call.body["AlarmNamePrefix"].as_str()?;
                let alarms = self.alarms.iter().filter(|(name, _)| name.starts_with(prefix));
                let alarms: Vec<Json> = alarms
                    .map(|(name, state)| json!({ "AlarmName": name, "StateValue": state }))
                    .collect();
                json!({ "MetricAlarms": alarms })
            }
            _ => return None,
        })
    }

    /// The newest first, as CloudWatch returns them.
    fn data(&self, query: &Json) -> Json {
        let metric = &query["MetricStat"]["Metric"];
        let mut key = metric["MetricName"].as_str().unwrap_or_default().to_owned();
        for dimension in metric["Dimensions"].as_array().into_iter().flatten() {
            key = format!("{key}/{}", dimension["Value"].as_str().unwrap_or_default());
        }
        let minute = OffsetDateTime::now_utc().unix_timestamp() / 60;
        let series = self.metrics.get(&key).into_iter().flatten();
        let (times, values): (Vec<Json>, Vec<Json>) = series
            .map(|(ago, value)| (json!({ "epoch": (minute - ago) * 60 }), json!(value)))
            .unzip();
        json!({
            "Id": query["Id"], "StatusCode": "Complete", "Timestamps": times, "Values": values,
        })
    }
}
