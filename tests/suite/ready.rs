//! `backfill ready`: yes if every condition holds, and for each that does not hold exit code 4 and
//! its name, and no other one. What the stand-in of AWS cannot answer is served in the documented
//! form.

use std::process::Output;
use std::time::Duration;

use serde_json::{Value as Json, json};
use testkit::aws_server::{Account, AwsServer};
use testkit::gates::tls_before_postgres;
use testkit::records::{LABEL, session};
use testkit::runs::{assert_code, output, signal, text, watched};
use testkit::services::{Stores, apply, s3, service};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::time::timeout;

/// Both sides of a move that is done, but for what a test breaks.
struct Move {
    new: Stores,
    old: Stores,
    server: AwsServer,
    reader_url: String,
    _roots: tempfile::TempDir,
}

fn stream(table: &str) -> String {
    format!("arn:aws:dynamodb:us-east-1:123456789012:table/{table}/stream/2026-11-22T00:00:00.000")
}

/// A mapping, as Lambda lists it.
fn mapping(table: &str, failures: &str) -> Json {
    json!({
        "UUID": "5b5e9a3c-0000-4000-8000-000000000001", "EventSourceArn": stream(table),
        "State": "Enabled", "LastProcessingResult": "OK",
        "FunctionResponseTypes": ["ReportBatchItemFailures"],
        "DestinationConfig": { "OnFailure": { "Destination": format!("arn:aws:s3:::{failures}") } },
    })
}

fn account(new: &Stores, old: &Stores, failures: [&str; 2]) -> Account {
    let mut account = Account::default();
    for (function, stores, failures) in
        [("projector-new", new, failures[0]), ("projector-old", old, failures[1])]
    {
        let mappings = ["sessions", "scans"].map(|table| mapping(table, failures));
        account.mappings.insert(function.to_owned(), mappings.into());
        let variables =
            json!({ "ARCHIVE_BUCKET": stores.bucket, "ARCHIVE_PREFIX": "measurements/" });
        account.variables.insert(function.to_owned(), variables);
        account.alarms.insert(format!("{function}-late"), "OK".to_owned());
        for table in ["sessions", "scans"] {
            let key = format!("OldestRecordAge/{function}/{table}");
            account.metrics.insert(key, [(4, 2.0), (3, 1.5)].into());
            let writes = [(4, 5.0)].into();
            account.metrics.insert(format!("ConsumedWriteCapacityUnits/{table}"), writes);
            account.streams.insert(table.to_owned(), stream(table));
        }
    }
    account
}

impl Move {
    async fn done() -> Self {
        let (new, old) = (Stores::fresh().await, Stores::fresh().await);
        let record = [session("s-1", "u").place(LABEL, 1)];
        for stores in [&new, &old] {
            apply(&stores.projector().await, &record).await;
        }
        new.change("ANALYZE measurements").await;
        let mut failures = Vec::new();
        for side in ["new", "old"] {
            let bucket = format!("failures-{side}-{:08x}", fastrand::u32(..));
            let client = s3(&service("AWS_ENDPOINT_URL")).await;
            client.create_bucket().bucket(&bucket).send().await.expect("a bucket");
            failures.push(bucket);
        }
        let server = AwsServer::start(account(&new, &old, [&failures[0], &failures[1]])).await;
        let role = format!("reader_{:08x}", fastrand::u32(..));
        new.change(&format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'p'; GRANT SELECT ON measurements TO {role}"
        ))
        .await;
        let (address, authority) = tls_before_postgres(new.database_host()).await;
        let roots = tempfile::tempdir().expect("a folder");
        let path = roots.path().join("roots.pem");
        std::fs::write(&path, authority).expect("the roots");
        let reader_url = format!(
            "postgres://{role}:p@localhost:{}/{}?sslrootcert={}",
            address.port(),
            new.bucket,
            path.display()
        );
        let moved = Self { new, old, server, reader_url, _roots: roots };
        moved.verified("now() - interval '1 h'", 0).await;
        moved
    }

    /// A full verify that began then, with this many differences.
    async fn verified(&self, started_at: &str, missing: u32) {
        let against = format!("{}/{}", self.old.database_host(), self.old.bucket);
        let sql = format!(
            "INSERT INTO verifications (comparison, against, started_at, complete, compared, \
             missing, extra, older, content) VALUES ('rows', '{against}', {started_at}, true, 1, \
             {missing}, 0, 0, 0)"
        );
        self.new.change(&sql).await;
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = watched(&self.new, &[&["ready"], arguments].concat());
        command
            .env("PEER_DATABASE_URL", &self.old.database_url)
            .env("READER_DATABASE_URL", &self.reader_url)
            .env("AWS_ENDPOINT_URL_LAMBDA", &self.server.url)
            .env("AWS_ENDPOINT_URL_DYNAMODB", &self.server.url)
            .env("AWS_ENDPOINT_URL_CLOUDWATCH", &self.server.url);
        command
    }

    async fn look(&self, arguments: &[&str]) -> (Output, Vec<String>) {
        judged(output(self.command(&[arguments, &["--json"]].concat())).await)
    }

    /// The names of what does not hold.
    async fn failed(&self) -> Vec<String> {
        self.look(&[]).await.1
    }
}

/// The names of what does not hold; the exit code says the same.
#[track_caller]
fn judged(output: Output) -> (Output, Vec<String>) {
    let report: Json = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", text(&output.stderr)));
    let conditions = report["conditions"].as_array().expect("a list");
    let failed: Vec<String> = conditions
        .iter()
        .filter(|condition| condition["verdict"] == "fail")
        .map(|condition| {
            assert!(condition["remedy"].is_string(), "{condition}");
            condition["condition"].as_str().expect("a name").to_owned()
        })
        .collect();
    assert_code(&output, if failed.is_empty() { 0 } else { 4 });
    (output, failed)
}

#[track_caller]
fn condition(output: &Output, name: &str) -> Json {
    let report: Json = serde_json::from_slice(&output.stdout).expect("JSON");
    let conditions = report["conditions"].as_array().expect("a list");
    let found = conditions.iter().find(|condition| condition["condition"] == name);
    found.unwrap_or_else(|| panic!("no {name}: {report:#}")).clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_is_done_is_ready() {
    let moved = Move::done().await;
    let (output, failed) = moved.look(&[]).await;
    assert_eq!(failed, [""; 0], "{}", text(&output.stdout));
    assert_eq!(condition(&output, "archive")["value"], "1 compared, all current");
    assert_eq!(moved.new.ask("SELECT count(*) FROM verifications").await, "1", "it writes nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_of_the_functions_is_named_and_nothing_else() {
    type Break = fn(&mut Account);
    let cases: [(&str, Break); 8] = [
        ("mapping: projector-new scans", |account| {
            account.mappings.get_mut("projector-new").expect("known")[1]["State"] =
                json!("Disabled");
        }),
        ("mapping: projector-old scans", |account| {
            account.mappings.get_mut("projector-old").expect("known")[1]["FunctionResponseTypes"] =
                json!([]);
        }),
        ("mapping: projector-new sessions", |account| {
            account.mappings.get_mut("projector-new").expect("known")[0]["LastProcessingResult"] =
                json!("PROBLEM: Function call failed");
        }),
        ("mapping: projector-old sessions", |account| {
            let older = stream("sessions").replace("11-22", "11-21");
            account.mappings.get_mut("projector-old").expect("known")[0]["EventSourceArn"] =
                json!(older);
        }),
        ("lag: projector-new scans", |account| {
            let key = "OldestRecordAge/projector-new/scans".to_owned();
            account.metrics.insert(key, [(3, 300.0)].into());
        }),
        ("lag: projector-old scans", |account| {
            account.metrics.remove("OldestRecordAge/projector-old/scans");
        }),
        ("alarms: projector-new", |account| {
            account.alarms.insert("projector-new-erring".to_owned(), "ALARM".to_owned());
        }),
        ("replication", |account| {
            let Some(bucket) = account.variables["projector-new"]["ARCHIVE_BUCKET"].as_str() else {
                panic!("no bucket")
            };
            let old = account.variables["projector-old"]["ARCHIVE_BUCKET"].as_str();
            let old = old.expect("a bucket");
            let key = format!("OperationsPendingReplication/{old}/{bucket}/to-{bucket}");
            account.metrics.insert(key, [(2, 7.0)].into());
        }),
    ];
    let moved = Move::done().await;
    let mut good = Account::default();
    moved.server.change(|account| good = account.clone());
    for (name, fault) in cases {
        moved.server.change(fault);
        assert_eq!(moved.failed().await, [name]);
        moved.server.change(|account| *account = good.clone());
    }
    // What has no data is named, and is no failure.
    moved.server.change(|account| {
        account.alarms.insert("projector-new-silent".to_owned(), "INSUFFICIENT_DATA".to_owned());
    });
    let (output, failed) = moved.look(&[]).await;
    assert_eq!(failed, [""; 0]);
    let alarms = condition(&output, "alarms: projector-new");
    assert!(alarms["value"].as_str().expect("text").contains("projector-new-silent"), "{alarms}");
    // Releases move an alias, and then the mappings are those of the alias.
    moved.server.change(|account| {
        let mappings = account.mappings.remove("projector-new").expect("known");
        account.mappings.insert("projector-new:live".to_owned(), mappings);
    });
    assert_eq!(moved.failed().await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_of_the_databases_is_named_and_nothing_else() {
    let rejected =
        "INSERT INTO rejected_records (identity, reason, record) VALUES ('scans/1', 'why', '{}')";
    let cases = [
        ("rejected records", rejected, "DELETE FROM rejected_records"),
        (
            "full verify",
            "UPDATE verifications SET started_at = now() - interval '25 h'",
            "UPDATE verifications SET started_at = now() - interval '1 h'",
        ),
        (
            "full verify",
            "INSERT INTO backfill_checkpoints (stream_arn, shard_id, finished) VALUES ('a', 's', \
                true)",
            "DELETE FROM backfill_checkpoints",
        ),
        (
            "full verify",
            "UPDATE verifications SET content = 1",
            "UPDATE verifications SET content = 0",
        ),
        (
            "statistics",
            "SELECT pg_stat_reset_single_table_counters('measurements'::regclass)",
            "ANALYZE measurements",
        ),
    ];
    let moved = Move::done().await;
    for (name, fault, repair) in cases {
        moved.new.change(fault).await;
        assert_eq!(moved.failed().await, [name], "{fault}");
        moved.new.change(repair).await;
    }
    // An item that a repair rejects is known by its key, on both sides alike.
    let image = "INSERT INTO rejected_records (identity, reason, record) VALUES \
        ('scans/s1/left/image', 'malformed', '{\"table\":\"scans\",\"image\":{}}')";
    moved.new.change(image).await;
    assert_eq!(moved.failed().await, ["rejected records"]);
    moved.old.change(&image.replace("malformed", "another reason")).await;
    assert_eq!(moved.failed().await, [""; 0]);
    // What the old side rejects, too, is no fault of the new one.
    for stores in [&moved.new, &moved.old] {
        stores.change(rejected).await;
    }
    assert_eq!(moved.failed().await, [""; 0]);

    let set = format!("ALTER DATABASE {:?} SET work_mem = '7MB'", moved.new.bucket);
    moved.new.change(&set).await;
    assert_eq!(moved.failed().await, ["settings"]);
    let name = "setting of all roles, this database: work_mem";
    let (_, failed) = moved.look(&["--accept-setting", name, "--accept-setting", "work_mem"]).await;
    assert_eq!(failed, [""; 0]);
    moved.new.change(&format!("ALTER DATABASE {:?} RESET work_mem", moved.new.bucket)).await;

    let behind = "DELETE FROM _sqlx_migrations WHERE version = 20261128000000";
    moved.old.change(behind).await;
    assert_eq!(moved.failed().await, ["schema: old database"]);
    let (output, _) = moved.look(&[]).await;
    let schema = condition(&output, "schema: old database");
    assert!(schema["value"].as_str().expect("text").contains("20261128000000"), "{schema}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_of_the_buckets_and_the_readers_is_named_and_nothing_else() {
    let moved = Move::done().await;
    let client = s3(&service("AWS_ENDPOINT_URL")).await;
    let mut failures = String::new();
    moved.server.change(|account| {
        let destination = &account.mappings["projector-new"][0]["DestinationConfig"]["OnFailure"];
        let arn = destination["Destination"].as_str().expect("an ARN");
        arn.rsplit(':').next().expect("a name").clone_into(&mut failures);
    });
    let put = client.put_object().bucket(&failures).key("aws/lambda/a").body(Vec::new().into());
    put.send().await.expect("an object");
    assert_eq!(moved.failed().await, ["failures: projector-new"]);
    client.delete_object().bucket(&failures).key("aws/lambda/a").send().await.expect("deleted");

    let key = "measurements/s-1.json";
    client.delete_object().bucket(&moved.new.bucket).key(key).send().await.expect("deleted");
    assert_eq!(moved.failed().await, ["archive"]);
    let (_, failed) = moved.look(&["--no-archive"]).await;
    assert_eq!(failed, [""; 0], "declared out of scope");
    moved.server.change(|account| {
        account.variables.insert("projector-new".to_owned(), json!({}));
    });
    assert_eq!(moved.failed().await, ["replication", "archive"], "that needs the flag");

    for (url, why) in [
        (String::new(), "READER_DATABASE_URL is not set"),
        (moved.reader_url.replace(":p@", ":wrong@"), "password authentication failed"),
        (moved.new.database_url.clone(), "without TLS"),
        (moved.reader_url.replace(&moved.new.bucket, &moved.old.bucket), "permission denied"),
    ] {
        let mut command = moved.command(&["--no-archive", "--json"]);
        command.env("READER_DATABASE_URL", &url);
        let (output, failed) = judged(output(command).await);
        assert_eq!(failed, ["readers"]);
        let value = condition(&output, "readers")["value"].to_string();
        assert!(value.contains(why), "{why}: {value}");
    }
    let mut command = moved.command(&["--no-archive", "--no-readers", "--json"]);
    command.env_remove("READER_DATABASE_URL");
    assert_eq!(judged(output(command).await).1, [""; 0]);
}

/// What cannot be asked does not hold, carries the reason, and holds up nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn what_refuses_or_never_answers_fails_by_name_within_seconds() {
    let moved = Move::done().await;
    let lags = ["lag: projector-new sessions", "lag: projector-new scans"];
    let lags = [lags, ["lag: projector-old sessions", "lag: projector-old scans"]].concat();
    let alarms = ["alarms: projector-new", "alarms: projector-old"];
    for (operation, expected, why) in [
        ("DescribeAlarms", alarms.to_vec(), "cloudwatch:DescribeAlarms answers AccessDenied"),
        ("GetMetricData", [lags, vec!["replication"]].concat(), "cloudwatch:GetMetricData answers"),
    ] {
        moved.server.change(|account| account.forbidden.extend([operation.to_owned()]));
        let (output, failed) = moved.look(&[]).await;
        assert_eq!(failed, expected);
        let value = condition(&output, expected[0])["value"].to_string();
        assert!(value.contains(why), "{why}: {value}");
        moved.server.change(|account| account.forbidden.clear());
    }
    moved.server.change(|account| account.silent.extend(["DescribeTable".to_owned()]));
    let looked = timeout(Duration::from_mins(1), moved.look(&[])).await;
    let (output, failed) = looked.expect("each question has a limit");
    assert_eq!(failed.len(), 4, "{failed:?}");
    assert!(failed.iter().all(|name| name.starts_with("mapping: ")), "{failed:?}");
    assert!(condition(&output, &failed[0])["value"].to_string().contains("not known"));

    // The old database does not answer: everything that needs it fails, and the new side is known.
    moved.server.change(|account| account.silent.clear());
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = silent.local_addr().expect("an address").to_string();
    let mut command = moved.command(&["--json"]);
    command.env("PEER_DATABASE_URL", moved.old.with_database_at(&address).database_url);
    let (_, failed) = judged(testkit::runs::output(command).await);
    for name in ["schema: old database", "full verify", "settings"] {
        assert!(failed.iter().any(|failed| failed == name), "{name}: {failed:?}");
    }
    assert!(!failed.iter().any(|name| name == "schema: new database"), "{failed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_watches_sees_what_changes_and_the_last_look_is_the_exit_code() {
    let moved = Move::done().await;
    moved.server.change(|account| {
        account.alarms.insert("projector-new-late".to_owned(), "ALARM".to_owned());
    });
    let mut child = moved.command(&["--watch"]).spawn().expect("it starts");
    let mut lines = BufReader::new(child.stdout.take().expect("an output")).lines();
    let mut seen = String::new();
    while !seen.contains("do not switch:") {
        seen += &lines.next_line().await.expect("a line").expect("no end");
        seen.push('\n');
    }
    for part in ["CONDITION", "\u{2717} alarms: projector-new", "\u{2713} failures: projector-old"]
    {
        assert!(seen.contains(part), "{part}: {seen}");
    }
    signal(&child, "INT");
    let ended = child.wait().await.expect("an end");
    assert_eq!(ended.code(), Some(4));
}
