//! Step Functions, in the documented form, for what a stand-in of AWS does not have: throttling,
//! missing rights, ends of every kind. It runs nothing: a test writes each answer. It also says how
//! large the tables are, and what memory a function has.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use serde_json::{Value as Json, json};
use time::OffsetDateTime;

use crate::http::serve;

/// The state machine.
pub const MACHINE: &str = "arn:aws:states:us-east-1:123456789012:stateMachine:reconcile";
const EXECUTION: &str = "arn:aws:states:us-east-1:123456789012:execution:reconcile";

/// What the server knows. A test changes it as it likes.
#[derive(Clone, Debug, Default)]
pub struct States {
    /// As `DescribeExecution` gives them. A child has a `mapRunArn`.
    pub executions: Vec<Json>,
    /// As `DescribeMapRun` gives them.
    pub map_runs: Vec<Json>,
    /// The states that were entered, the first one first.
    pub entered: Vec<String>,
    /// Of each table: items and bytes.
    pub sizes: BTreeMap<String, (u64, u64)>,
    /// The definition of the state machine.
    pub definition: String,
    /// The memory of the function.
    pub memory_mb: u32,
    /// The next calls of an operation are answered by this error, this often.
    pub errors: BTreeMap<String, (String, u32)>,
    /// The operations that were called.
    pub calls: Vec<String>,
}

/// The server.
#[derive(Clone, Debug)]
pub struct StatesServer {
    /// Where it listens.
    pub url: String,
    states: Arc<Mutex<States>>,
}

impl StatesServer {
    /// Starts it with one state machine that has no execution.
    ///
    /// # Panics
    /// If no port can be had.
    pub async fn start() -> Self {
        let states = Arc::new(Mutex::new(States::default()));
        let shared = Arc::clone(&states);
        let url = serve(move |request| answer(Arc::clone(&shared), request)).await;
        Self { url, states }
    }

    /// Changes or reads what it knows.
    ///
    /// # Panics
    /// If another change panicked.
    pub fn change<T>(&self, change: impl FnOnce(&mut States) -> T) -> T {
        change(&mut self.states.lock().expect("not poisoned"))
    }
}

fn now() -> f64 {
    OffsetDateTime::now_utc().unix_timestamp_nanos() as f64 / 1e9
}

/// The ARN of an execution with this name.
#[must_use]
pub fn execution_arn(name: &str) -> String {
    format!("{EXECUTION}:{name}")
}

impl States {
    /// Adds an execution that was started this many seconds ago, with members of its own.
    ///
    /// # Panics
    /// If `more` is no object.
    pub fn add(&mut self, name: &str, seconds_ago: f64, more: &Json) {
        let mut execution = json!({
            "executionArn": execution_arn(name), "name": name, "stateMachineArn": MACHINE,
            "status": "RUNNING", "startDate": now() - seconds_ago, "input": "{}",
        });
        for (member, value) in more.as_object().expect("an object") {
            execution[member] = value.clone();
        }
        if execution["status"] != "RUNNING" && execution["stopDate"].is_null() {
            execution["stopDate"] = json!(now());
        }
        self.executions.push(execution);
    }

    /// Adds a map run of an execution, with the numbers of its children that succeeded, failed and
    /// run.
    pub fn add_map_run(
        &mut self,
        (execution, label): (&str, &str),
        [succeeded, failed, running]: [u64; 3],
        status: &str,
    ) -> String {
        let arn =
            format!("arn:aws:states:us-east-1:123456789012:mapRun:reconcile/{label}:{label}-1");
        let counts = json!({
            "pending": 0, "running": running, "succeeded": succeeded, "failed": failed,
            "timedOut": 0, "aborted": 0, "total": succeeded + failed + running,
            "resultsWritten": 0,
        });
        self.map_runs.push(json!({
            "mapRunArn": arn, "executionArn": execution_arn(execution), "status": status,
            "startDate": now() - 10.0, "maxConcurrency": 10, "toleratedFailurePercentage": 0.0,
            "toleratedFailureCount": 0, "itemCounts": counts, "executionCounts": counts,
        }));
        arn
    }

    /// The answer to a call, or an error's code.
    fn answer(&mut self, operation: &str, body: &Json) -> Result<Json, String> {
        let text = |member: &str| body[member].as_str().unwrap_or_default().to_owned();
        let missing = |code: &str| code.to_owned();
        Ok(match operation {
            "StartExecution" => return self.start(&text("name"), &text("input"), body),
            "DescribeExecution" => {
                let arn = text("executionArn");
                let found = self.executions.iter().find(|one| one["executionArn"] == *arn);
                found.cloned().ok_or_else(|| missing("ExecutionDoesNotExist"))?
            }
            "ListExecutions" => self.list(body)?,
            "ListMapRuns" => {
                let arn = text("executionArn");
                let of = self.map_runs.iter().filter(|run| run["executionArn"] == *arn);
                let runs: Vec<Json> = of
                    .map(|run| {
                        json!({
                            "executionArn": arn, "mapRunArn": run["mapRunArn"],
                            "stateMachineArn": MACHINE, "startDate": run["startDate"],
                        })
                    })
                    .collect();
                json!({ "mapRuns": runs })
            }
            "DescribeMapRun" => {
                let arn = text("mapRunArn");
                let found = self.map_runs.iter().find(|run| run["mapRunArn"] == *arn);
                found.cloned().ok_or_else(|| missing("ResourceNotFound"))?
            }
            "GetExecutionHistory" => {
                let entered = self.entered.iter().enumerate().rev();
                let events: Vec<Json> = entered
                    .map(|(id, name)| {
                        json!({
                            "id": id + 1, "type": "TaskStateEntered", "timestamp": now(),
                            "stateEnteredEventDetails": { "name": name },
                        })
                    })
                    .collect();
                json!({ "events": events })
            }
            "DescribeStateMachine" => json!({
                "stateMachineArn": MACHINE, "name": "reconcile", "definition": self.definition,
                "roleArn": "arn:aws:iam::123456789012:role/r", "type": "STANDARD",
                "creationDate": now(),
            }),
            "DescribeTable" => {
                let table = text("TableName");
                let size = self.sizes.get(&table);
                let (items, bytes) = size.ok_or_else(|| missing("ResourceNotFoundException"))?;
                json!({ "Table": {
                    "TableName": table, "ItemCount": items, "TableSizeBytes": bytes,
                } })
            }
            "GetFunctionConfiguration" => json!({ "MemorySize": self.memory_mb }),
            _ => return Err(missing("UnknownOperationException")),
        })
    }

    /// The same name and input give the same execution while it runs; any other use of a name is
    /// refused (API reference, `StartExecution`).
    fn start(&mut self, name: &str, input: &str, body: &Json) -> Result<Json, String> {
        if body["stateMachineArn"] != MACHINE {
            return Err("StateMachineDoesNotExist".to_owned());
        }
        let arn = execution_arn(name);
        let found = self.executions.iter().find(|one| one["executionArn"] == *arn);
        match found {
            Some(found) if found["status"] == "RUNNING" && found["input"] == *input => {
                return Ok(json!({ "executionArn": arn, "startDate": found["startDate"] }));
            }
            Some(_) => return Err("ExecutionAlreadyExists".to_owned()),
            None => self.add(name, 0.0, &json!({ "input": input })),
        }
        Ok(json!({ "executionArn": arn, "startDate": now() }))
    }

    fn list(&self, body: &Json) -> Result<Json, String> {
        let (machine, run) = (&body["stateMachineArn"], &body["mapRunArn"]);
        if run.is_null() && *machine != MACHINE {
            return Err("StateMachineDoesNotExist".to_owned());
        }
        let status = &body["statusFilter"];
        let listed = self.executions.iter().rev().filter(|one| {
            one["mapRunArn"] == *run && (status.is_null() || one["status"] == *status)
        });
        let of = |one: &Json| {
            json!({
                "executionArn": one["executionArn"], "name": one["name"],
                "stateMachineArn": MACHINE, "status": one["status"],
                "startDate": one["startDate"],
            })
        };
        Ok(json!({ "executions": listed.map(of).collect::<Vec<_>>() }))
    }

    /// The error that the next call of an operation gets, if a test wants one.
    fn error(&mut self, operation: &str) -> Option<String> {
        let (code, remaining) = self.errors.get_mut(operation)?;
        *remaining = remaining.checked_sub(1)?;
        Some(code.clone())
    }
}

async fn answer(states: Arc<Mutex<States>>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let target = request.headers().get("x-amz-target").and_then(|target| target.to_str().ok());
    let operation = target.and_then(|target| target.rsplit('.').next());
    let operation = operation.unwrap_or("GetFunctionConfiguration").to_owned();
    let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes);
    let body: Json = serde_json::from_slice(&body.unwrap_or_default()).unwrap_or_default();
    let mut states = states.lock().expect("not poisoned");
    states.calls.push(operation.clone());
    let answer = match states.error(&operation) {
        Some(code) => Err(code),
        None => states.answer(&operation, &body),
    };
    let (code, body) = match answer {
        Ok(body) => (200, body),
        Err(code) => (400, json!({ "__type": code, "message": "by the test" })),
    };
    let mut response = Response::builder().status(code);
    response = response.header("content-type", "application/x-amz-json-1.0");
    if let Some(error) = body["__type"].as_str() {
        response = response.header("x-amzn-errortype", error);
    }
    response.body(Full::from(body.to_string())).expect("a response")
}
