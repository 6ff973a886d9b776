//! The state machine on the stand-in: the tables and their exports, the buckets, a topic with a
//! queue, and executions.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value as Json, json};
use testkit::aws_json;
use testkit::dynamodb::{DynamoDb, Kind};
use testkit::exports;
use testkit::runs::{now, rfc3339};
use testkit::services::{s3, service};

use super::super::deployed::json_of;
use super::{FILES, STATES};

/// The files of exports begin with this.
const PREFIX: &str = "exports";
/// Ranges of rows at most: each takes a process of the function, and there are two processors.
const RANGES: u64 = 10;
/// How long an execution may take at most.
const LIMIT: Duration = Duration::from_mins(15);

/// What an execution works on.
pub(super) struct Account {
    pub(super) dynamodb: DynamoDb,
    /// The sessions, then the scans.
    pub(super) tables: [String; 2],
    /// The buckets of the exports and of failures.
    pub(super) exports: String,
    pub(super) failures: String,
    pub(super) topic: String,
    queue: String,
}

impl Account {
    /// Tables without items, empty buckets, and a queue that hears of every end.
    pub(super) async fn new(folder: &Path) -> Self {
        let suffix = format!("{:012x}", fastrand::u64(..1 << 48));
        let tables = [format!("sessions-{suffix}"), format!("scans-{suffix}")];
        let buckets = ["exports", "failures"].map(|name| format!("{name}-{suffix}"));
        let account = Self::of(folder, tables, buckets).await;
        for (table, kind) in account.tables.iter().zip([Kind::Sessions, Kind::Scans]) {
            account.dynamodb.create_table(table, kind, "NEW_IMAGE").await;
        }
        let client = s3(&service("AWS_ENDPOINT_URL")).await;
        for bucket in [&account.exports, &account.failures] {
            client.create_bucket().bucket(bucket).send().await.expect("a bucket");
        }
        account
    }

    /// The same over tables and buckets that somebody makes.
    pub(super) async fn of(folder: &Path, tables: [String; 2], buckets: [String; 2]) -> Self {
        let name = format!("ends-{:012x}", fastrand::u64(..1 << 48));
        let [exports, failures] = buckets;
        let dynamodb = DynamoDb::at(&service("AWS_ENDPOINT_URL"));
        let topic = json_of(folder, &format!("sns create-topic --name {name}"));
        let topic = text(&topic["TopicArn"]);
        let queue = call("AmazonSQS.CreateQueue", &json!({ "QueueName": name })).await;
        let arn = format!("arn:aws:sqs:us-east-1:000000000000:{name}");
        json_of(
            folder,
            &format!(
                "sns subscribe --topic-arn {topic} --protocol sqs --notification-endpoint {arn}"
            ),
        );
        Self { dynamodb, tables, exports, failures, topic, queue: text(&queue["QueueUrl"]) }
    }

    /// Full exports of both tables. The stand-in knows that an export was asked for, and writes
    /// nothing: what it would write is put here, in this many files per table.
    pub(super) async fn export(&self, count: usize) -> [String; 2] {
        self.export_to(&self.exports, count).await
    }

    /// The same to another bucket.
    pub(super) async fn export_to(&self, bucket: &str, count: usize) -> [String; 2] {
        let mut arns = Vec::new();
        for table in &self.tables {
            let asked = json!({
                "TableArn": format!("arn:aws:dynamodb:us-east-1:000000000000:table/{table}"),
                "S3Bucket": bucket, "S3Prefix": PREFIX, "ExportFormat": "DYNAMODB_JSON",
            });
            let answer = self.dynamodb.call("ExportTableToPointInTime", &asked).await;
            arns.push(text(&answer.expect("an export")["ExportDescription"]["ExportArn"]));
        }
        for (table, arn) in self.tables.iter().zip(&arns) {
            self.write_export(bucket, (table, arn), count).await;
        }
        arns.try_into().expect("two tables")
    }

    /// Writes what DynamoDB writes for an export.
    pub(super) async fn write_export(
        &self,
        bucket: &str,
        (table, arn): (&str, &str),
        count: usize,
    ) {
        let (_, id) = arn.rsplit_once('/').expect("an id");
        let mut files = exports::full_of(table, id, &self.dynamodb.scan(table).await, count);
        let (_, summary) = files.last_mut().expect("a summary");
        let mut json: Json = serde_json::from_slice(summary).expect("JSON");
        json["exportTime"] = json!(rfc3339(now()));
        *summary = json.to_string().into_bytes();
        let client = s3(&service("AWS_ENDPOINT_URL")).await;
        let (_, files) = exports::in_bucket(&files, (bucket, PREFIX), None);
        for (key, bytes) in files {
            let put = client.put_object().bucket(bucket).key(key).body(bytes.into());
            put.send().await.expect("an object");
        }
    }

    /// What the topic has told since the last call: the subject, and the message.
    pub(super) async fn told(&self) -> Vec<(String, String)> {
        let asked = json!({ "QueueUrl": self.queue, "MaxNumberOfMessages": 10,
                            "VisibilityTimeout": 600 });
        let received = call("AmazonSQS.ReceiveMessage", &asked).await;
        let message = |message: &Json| {
            let body: Json = serde_json::from_str(&text(&message["Body"])).expect("JSON");
            (text(&body["Subject"]), text(&body["Message"]))
        };
        received["Messages"].as_array().into_iter().flatten().map(message).collect()
    }
}

/// Calls the stand-in.
pub(super) async fn call(target: &str, body: &Json) -> Json {
    let url = service("AWS_ENDPOINT_URL");
    let answer = aws_json::call(url.trim_start_matches("http://"), target, body).await;
    answer.unwrap_or_else(|error| panic!("{body}: {error:#}"))
}

pub(super) fn text(json: &Json) -> String {
    json.as_str().unwrap_or_else(|| panic!("no text: {json}")).to_owned()
}

/// The state machine as the stand-in takes it: as JSON, with short waits, and with few ranges. It
/// reads a number where the template has put one in.
pub(super) fn states(retry_after: u64, wait: u64) -> String {
    fn hasten(json: &mut Json, retry_after: u64, wait: u64) {
        match json {
            Json::Array(values) => {
                for value in values {
                    hasten(value, retry_after, wait);
                }
            }
            Json::Object(members) => {
                for (name, value) in members {
                    match name.as_str() {
                        "IntervalSeconds" => *value = json!(retry_after),
                        "BackoffRate" => *value = json!(1),
                        "Seconds" => *value = json!(wait),
                        "at_most" => *value = json!(RANGES),
                        _ => hasten(value, retry_after, wait),
                    }
                }
            }
            _ => {}
        }
    }
    let mut states = FILES[STATES].clone();
    hasten(&mut states, retry_after, wait);
    states.to_string().replace("\"${MaxConcurrency}\"", "${MaxConcurrency}")
}

/// An execution that has ended, as `DescribeExecution` gives it.
pub(super) async fn execute(machine: &str, input: &Json) -> Json {
    ended(&start(machine, input).await).await
}

/// Starts an execution, and gives its ARN.
pub(super) async fn start(machine: &str, input: &Json) -> String {
    let asked = json!({ "stateMachineArn": machine, "input": input.to_string() });
    text(&call("AWSStepFunctions.StartExecution", &asked).await["executionArn"])
}

/// Waits for the end of an execution.
pub(super) async fn ended(execution: &str) -> Json {
    let asked = json!({ "executionArn": execution });
    let waiting = tokio::time::timeout(LIMIT, async {
        loop {
            let described = call("AWSStepFunctions.DescribeExecution", &asked).await;
            if described["status"] != "RUNNING" {
                return described;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    waiting.await.expect("it ends")
}

/// The output of an execution that has succeeded.
pub(super) fn output(execution: &Json) -> Json {
    assert_eq!(execution["status"], "SUCCEEDED", "{execution}");
    serde_json::from_str(&text(&execution["output"])).expect("JSON")
}
