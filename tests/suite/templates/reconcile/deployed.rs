//! The template as it is deployed, on the stand-in: the projector's binary behind its state
//! machine and, as the live function, behind the mappings of `projector.yaml`.
//!
//! Two things of the template are replaced. The stand-in reads a definition as JSON and waits the
//! seconds that it says, so it gets the same states as JSON, with short waits and few ranges
//! (`machine::states`); and the function waits a second where it waits for a minute for a silent
//! shard. What `DynamoDB` writes for an export, the test writes. The stand-in ignores
//! `ResultWriter`, which is read off the template.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value as Json, json};
use testkit::dynamodb::Write;
use testkit::emulator::binary;
use testkit::oracle;
use testkit::records::{Draft, LABEL, Record, Table, scan, session};
use testkit::runs::until;
use testkit::services::{Stores, apply_all, parsed};
use tokio::task::JoinHandle;

use super::super::deployed::{deploy, deploy_as, folder, json_of, known, network, output, run};
use super::machine::{self, Account};

/// Items of both tables: a deep run takes more (`RECONCILE_TEST_ITEMS=200000`).
const ITEMS: usize = 3_000;
/// Data files of each export.
const FILES: usize = 20;
/// As many of them at a time.
const CONCURRENCY: usize = 20;
/// Connections of the live function, one per stream, and a cancellation.
const LIVE: usize = 3;
/// One in a hundred sessions has each kind of fault.
const ONE_IN: usize = 100;
/// The first sessions are written all the time, and have no fault.
const WRITTEN: usize = 50;

/// The zip of the binary, as `make lambda` puts it. Debugging information would make it larger than
/// Lambda takes.
const ZIP: &str = "mkdir -p target/lambda/projector && cd target/lambda/projector &&
strip -o bootstrap \"$BINARY\" && python3 -c \"
import zipfile
with zipfile.ZipFile('bootstrap.zip', 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
    archive.write('bootstrap')\"";

fn sessions() -> usize {
    let items = std::env::var("RECONCILE_TEST_ITEMS").ok();
    let items = items.map_or(ITEMS, |items| items.parse().expect("a number of items"));
    items / 3
}

fn id(number: usize) -> String {
    format!("session-{:08x}", number.wrapping_mul(2_654_435_761) & 0xffff_ffff)
}

/// A session and its two scans; each step changes all three.
fn parts(number: usize, step: usize) -> [Draft; 3] {
    let (id, length) = (id(number), format!("24{}.{}", number % 10, step % 97 + 1));
    let user = format!("user-{step}");
    [session(&id, &user), scan(&id, "left", &length), scan(&id, "right", &length)]
}

/// The stacks, and what is in them.
struct Deployed {
    account: Account,
    machine: String,
    stores: Stores,
}

impl Deployed {
    /// Deploys the stacks over these stores. The streams begin after what is written so far.
    async fn new(folder: &Path, stores: Stores) -> Self {
        let id = std::process::id();
        let binary = binary("projector");
        run(folder, &format!("BINARY={} && {ZIP}", binary.display()));
        let infra = folder.join("infra");
        std::fs::create_dir(&infra).expect("a folder");
        let infra = infra.as_path();
        let tables = [format!("sessions-{id}"), format!("scans-{id}")];
        let names = format!("SessionsTableName={} ScansTableName={}", tables[0], tables[1]);
        let data = deploy(infra, "data", &names);
        let network = network(infra);
        let (database, login) = deploy_database(infra, &stores, &network);
        let common = format!("DataStack={data} DatabaseStack={database} {login} {network}");
        let projector = deploy(
            infra,
            "projector",
            &format!("{common} StartingPosition=TRIM_HORIZON ArchiveBucket={}", stores.bucket),
        );
        let failures = output(infra, &projector, "FailureBucket");
        let mut account = Account::of(infra, tables, [String::new(), failures]).await;
        let reconcile = deploy_as(
            infra,
            "reconcile",
            &reconcile(infra),
            &format!(
                "{common} ProjectorStack={projector} TopicArn={} MaxConcurrency={CONCURRENCY} \
                 FunctionTimeoutSeconds=1 ArchiveBucket={}",
                account.topic, stores.bucket
            ),
        );
        account.exports = output(infra, &reconcile, "ExportBucket");
        let machine = output(infra, &reconcile, "StateMachine");
        let deployed = Self { account, machine, stores };
        deployed.write_all().await;
        let streams = deployed.renew_streams().await;
        deploy(
            infra,
            "projector",
            &format!(
                "{common} StartingPosition=TRIM_HORIZON ArchiveBucket={} Mappings=enabled \
                 SessionsStreamArn={} ScansStreamArn={} BatchingWindowSeconds=0",
                deployed.stores.bucket, streams[0], streams[1]
            ),
        );
        deployed
    }

    /// Every item of both tables.
    async fn write_all(&self) {
        let drafts: Vec<Draft> = (0..sessions()).flat_map(|number| parts(number, 0)).collect();
        for (table, of_table) in self.account.tables.iter().zip([Table::Sessions, Table::Scans]) {
            let of_table = drafts.iter().filter(|draft| draft.table == of_table);
            let writes: Vec<Write> = of_table.map(|draft| Write::Put(draft.item())).collect();
            self.account.dynamodb.write_all(table, &writes).await;
        }
    }

    /// Turns the streams off and on, so that they hold nothing of what was written. Gives the new
    /// ones.
    async fn renew_streams(&self) -> [String; 2] {
        let mut arns = Vec::new();
        for table in &self.account.tables {
            let mut described = Json::Null;
            for stream in [
                json!({ "StreamEnabled": false }),
                json!({ "StreamEnabled": true, "StreamViewType": "NEW_IMAGE" }),
            ] {
                let update = json!({ "TableName": table, "StreamSpecification": stream });
                let answer = self.account.dynamodb.call("UpdateTable", &update).await;
                described = answer.expect("it is updated");
            }
            arns.push(machine::text(&described["TableDescription"]["LatestStreamArn"]));
        }
        arns.try_into().expect("two tables")
    }

    /// Exports both tables as they are now, and runs the state machine over it.
    async fn reconcile(&self, repair: bool) -> Json {
        let [sessions, scans] = self.account.export(FILES).await;
        let exports = json!({ "sessions": sessions, "scans": scans });
        let input = json!({ "repair": repair, "exports": exports, "failures": false });
        machine::output(&machine::execute(&self.machine, &input).await)
    }

    /// Writes the first sessions again and again, with pauses: while everything is written, the
    /// streams of the stand-in are read past no time.
    fn write_in_bursts(&self, done: &Arc<AtomicBool>) -> JoinHandle<()> {
        let (dynamodb, tables) = (self.account.dynamodb.clone(), self.account.tables.clone());
        let done = Arc::clone(done);
        tokio::spawn(async move {
            for step in 1.. {
                for draft in (0..WRITTEN).step_by(3).flat_map(|number| parts(number, step)) {
                    let table = &tables[usize::from(draft.table == Table::Scans)];
                    dynamodb.put_item(table, &draft.item()).await;
                }
                if done.load(Ordering::Relaxed) {
                    return;
                }
                tokio::time::sleep(Duration::from_secs(3)).await;
            }
        })
    }
}

impl Deployed {
    /// Waits until the rows have what was written last.
    async fn live_function_has_read(&self) {
        let items = self.account.dynamodb.scan(&self.account.tables[0]).await;
        let step = |item: &Json| {
            let user = machine::text(&item["user_id"]["S"]);
            user.strip_prefix("user-").and_then(|step| step.parse::<u64>().ok())
        };
        let newest = items.iter().filter_map(step).max().expect("a step");
        let sql = format!("SELECT count(*) FROM measurements WHERE user_id = 'user-{newest}'");
        let count = WRITTEN.div_ceil(3).to_string();
        until("the live function", async || self.stores.ask(&sql).await == count).await;
    }
}

/// The database as a stack, and how to log in to it.
fn deploy_database(infra: &Path, stores: &Stores, network: &str) -> (String, String) {
    let url = stores.database_url.strip_prefix("postgres://").expect("a URL");
    let (login, rest) = url.split_once('@').expect("a login");
    let (user, password) = login.split_once(':').expect("a password");
    let (address, rest) = rest.split_once('/').expect("a database");
    let (host, port) = address.split_once(':').expect("a port");
    let name = rest.split('?').next().expect("a name");
    let secret = json!({ "username": user, "password": password });
    let secret = json_of(
        infra,
        &format!(
            "secretsmanager create-secret --name reconcile-{} --secret-string '{secret}'",
            std::process::id()
        ),
    );
    let group =
        "aws ec2 describe-security-groups --query 'SecurityGroups[0].GroupId' --output text";
    let group = run(infra, group);
    let database = deploy(
        infra,
        "existing-database",
        &format!(
            "Host={host} Port={port} DatabaseName={name} ResourceId=db-LOCAL \
             InstanceIdentifier=local SecretArn={} DatabaseSecurityGroupId={} {}",
            machine::text(&secret["ARN"]),
            group.trim(),
            network.split(' ').next().expect("a VPC")
        ),
    );
    let architecture = if std::env::consts::ARCH == "aarch64" { "arm64" } else { "x86_64" };
    let login = format!(
        "DatabaseUser={user} DatabaseAuth=secret DatabaseUrlOptions=?sslmode=disable \
         Architecture={architecture}"
    );
    (database, login)
}

/// The template as the stand-in takes it.
fn reconcile(infra: &Path) -> String {
    std::fs::write(infra.join("reconcile.asl.json"), machine::states(1, 2)).expect("a file");
    let template = known("reconcile");
    let replaced = template
        .replace("reconcile.asl.yaml", "reconcile.asl.json")
        .replace(
            "          EVENTS: reconcile\n",
            "          EVENTS: reconcile\n          IDLE_SECONDS: \"1\"\n          FIRST_RECORD_SECONDS: \"1\"\n",
        );
    assert_ne!(replaced, template);
    replaced
}

/// Rows of what is in the tables, but for some that are wrong, and some of items that are gone.
struct Faults {
    records: Vec<Record>,
    /// Parts whose rows lack them, hold older values, or others.
    differing: u64,
    /// Parts of rows that have no item.
    gone: u64,
}

fn faults() -> Faults {
    let mut faults = Faults { records: Vec::new(), differing: 0, gone: 0 };
    let mut place = 0;
    let mut add = |records: &mut Vec<Record>, draft: &Draft| {
        place += 1;
        records.push(draft.place(LABEL, place));
    };
    for number in 0..sessions() {
        let [first, left, right] = parts(number, 0);
        let kept: &[Draft] = match number % ONE_IN {
            // The row is missing.
            60 => &[],
            // One part is missing, or from before.
            70 => &[first, left],
            80 => &[first, left, scan(&id(number), "right", "199.5")],
            _ => &[first, left, right],
        };
        faults.differing += match number % ONE_IN {
            60 => 3,
            70 | 80 | 90 => 1,
            _ => 0,
        };
        for draft in kept {
            add(&mut faults.records, draft);
        }
        if number % ONE_IN == 65 {
            let gone = format!("{}-gone", id(number));
            add(&mut faults.records, &session(&gone, "user"));
            add(&mut faults.records, &scan(&gone, "left", "245.3"));
            faults.gone += 2;
        }
    }
    faults
}

/// How many connections the function had at most. Those of the live function have its login, too.
async fn most_connections(stores: Stores, done: Arc<AtomicBool>) -> usize {
    let sql = "SELECT count(*) FROM pg_stat_activity \
               WHERE datname = current_database() AND pid <> pg_backend_pid()";
    let mut most = 0;
    while !done.load(Ordering::Relaxed) {
        most = most.max(stores.ask(sql).await.parse().expect("a number"));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    most
}

/// Finds every part that is wrong and no other, in both modes, while the tables are written and the
/// live function reads their streams. A repair leaves nothing to find. No row goes back: the
/// database would refuse it.
#[tokio::test(flavor = "multi_thread")]
async fn every_fault_is_found_and_repaired_while_the_live_function_writes() {
    let folder = folder();
    let folder = folder.path();
    let Faults { records, differing, gone } = faults();
    let stores = Stores::fresh().await;
    apply_all(&stores.projector().await, &records, 1_000).await;
    // A value that no version tells.
    let ids: Vec<String> = (90..sessions()).step_by(ONE_IN).map(id).collect();
    let changed = format!(
        "UPDATE measurements SET left_foot_length_mm = 1.5 WHERE session_id IN ('{}')",
        ids.join("', '")
    );
    assert_eq!(stores.change(&changed).await, ids.len() as u64);
    stores.forbid_going_back().await;
    let deployed = Deployed::new(folder, stores.clone()).await;
    let done = Arc::new(AtomicBool::new(false));
    let writer = deployed.write_in_bursts(&done);
    let connections = tokio::spawn(most_connections(stores.clone(), Arc::clone(&done)));

    for (repair, differing, gone) in
        [(false, differing, gone), (true, differing, gone), (true, 0, 0)]
    {
        let answer = deployed.reconcile(repair).await;
        eprintln!("{repair}: {answer}");
        assert_eq!(answer["complete"], true, "{answer}");
        assert_eq!(answer["repair"].is_i64(), repair, "{answer}");
        let written = |count: u64| if repair { count } else { 0 };
        let all = differing + gone;
        let expected = [
            ("files", 2 * FILES as u64),
            ("compared", 3 * sessions() as u64),
            ("differing", all),
            ("gone", gone),
            ("repaired", written(all)),
            ("removed", written(gone)),
            ("rejected", 0),
        ];
        for (name, count) in expected {
            assert_eq!(answer[name], count, "{name}: {answer}");
        }
    }

    assert!(!writer.is_finished(), "the tables were written all the time");
    done.store(true, Ordering::Relaxed);
    writer.await.expect("it writes");
    let most = connections.await.expect("it counts");
    eprintln!("{most} connections");
    assert!(most <= 4 * (CONCURRENCY + 2) + LIVE, "docs/scale.md says less than {most}");
    deployed.live_function_has_read().await;
    until("the objects", async || {
        parsed(&stores.objects().await) == oracle::objects(&stores.rows().await)
    })
    .await;
    assert_eq!(stores.ask("SELECT count(*) FROM repairs WHERE complete").await, "2");
    assert_eq!(stores.ask("SELECT count(*) FROM repairs WHERE ended_at IS NULL").await, "0");
    assert_eq!(deployed.account.told().await.len(), 3);
}
