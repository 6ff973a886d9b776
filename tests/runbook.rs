//! RUNBOOK.md, walked from its first command to its last on a stand-in of AWS, with the real function, two
//! databases and writes between the steps: what is written before, during and after the move is in both.
//!
//! The stand-in's mappings take every answer for success: a passing failure of a store would lose a record here, and
//! show as a wait that ends in vain. What mappings do with failures is in `mapping.rs`.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value as Json, json};
use sqlx::{Connection as _, PgConnection};
use support::dynamodb::{DynamoDb, Write};
use support::emulator::binary;
use support::mapping;
use support::records::{LABEL, session};
use support::services::{Stores, parsed, service};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// A block of commands.
#[derive(Debug)]
struct Block {
    /// The heading above it.
    section: String,
    /// Whether only AWS can answer it.
    on_aws: bool,
    line: usize,
    commands: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}

fn blocks() -> Vec<Block> {
    let text = std::fs::read_to_string(root().join("RUNBOOK.md")).expect("the runbook");
    let (mut blocks, mut section, mut open) = (Vec::new(), String::new(), None::<Block>);
    for (index, line) in text.lines().enumerate() {
        match (&mut open, line) {
            (None, "```sh" | "```sh on-aws") => {
                let on_aws = line.ends_with("on-aws");
                open = Some(Block {
                    section: section.clone(),
                    on_aws,
                    line: index + 1,
                    commands: String::new(),
                });
            }
            (Some(_), "```") => blocks.extend(open.take()),
            (Some(block), line) => {
                block.commands.push_str(line);
                block.commands.push('\n');
            }
            (None, line) => {
                assert!(!line.starts_with("```"), "line {}: a block of another kind", index + 1);
                if line.starts_with('#') {
                    line.trim_start_matches('#').trim().clone_into(&mut section);
                }
            }
        }
    }
    assert!(open.is_none(), "a block has no end");
    blocks
}

/// A shell that runs one block after the other and stops at the first command that fails.
struct Shell {
    child: Child,
    input: ChildStdin,
    output: tokio::io::Lines<BufReader<ChildStdout>>,
}

impl Shell {
    fn start(folder: &Path) -> Self {
        let mut child = Command::new("bash")
            .args(["--norc", "-euo", "pipefail"])
            .current_dir(folder)
            .env_remove("DATABASE_URL")
            .env("SAM_CLI_POLL_DELAY", "0.3")
            .env("WAIT_SECONDS", "1")
            .env("TRIES", "90")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("bash");
        let input = child.stdin.take().expect("an input");
        let output = BufReader::new(child.stdout.take().expect("an output")).lines();
        Self { child, input, output }
    }

    /// Runs commands, and gives what they printed.
    async fn run(&mut self, commands: &str) -> String {
        // Standard input is where the commands come from.
        let text = format!("{{\n{commands}\n}} </dev/null 2>&1\nprintf '\\nend-of-block\\n'\n");
        self.input.write_all(text.as_bytes()).await.expect("bash reads");
        let mut printed = String::new();
        loop {
            let line = tokio::time::timeout(Duration::from_mins(4), self.output.next_line()).await;
            let line = line.unwrap_or_else(|_| panic!("hangs in\n{commands}\n{printed}"));
            match line.expect("bash writes") {
                Some(line) if line == "end-of-block" => return printed,
                Some(line) => {
                    printed.push_str(&line);
                    printed.push('\n');
                }
                None => {
                    let status = self.child.wait().await;
                    panic!("{status:?}: stopped in\n{commands}\n{printed}");
                }
            }
        }
    }
}

const BACKFILL: &str = r#"
backfill() {
    case $1 in stream) set -- "$@" --idle-seconds 1 ;; esac
    command backfill "$@" || [ $? -eq 3 ]
}"#;

/// The team's account, and the walk through the runbook.
struct Walk {
    shell: Shell,
    blocks: std::collections::VecDeque<Block>,
    tables: DynamoDb,
    old: Stores,
    new: Stores,
    folder: tempfile::TempDir,
}

impl Walk {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let output = Command::new(root().join("scripts/local-account"))
            .arg(folder.path())
            .arg(binary("projector"))
            .output()
            .await
            .expect("the account");
        let exports = String::from_utf8(output.stdout).expect("exports");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let exported = |name: &str| {
            let line =
                exports.lines().find_map(|line| line.strip_prefix(&format!("export {name}=")));
            line.unwrap_or_else(|| panic!("no {name}")).trim_matches('\'').to_owned()
        };
        std::os::unix::fs::symlink(root().join("scripts"), folder.path().join("scripts"))
            .expect("the scripts");
        let mut shell = Shell::start(folder.path());
        let binaries: PathBuf = binary("backfill").parent().expect("a folder").to_owned();
        // Exit code 3 says that some records are set aside, and is no failure. The stand-in's shards never end,
        // and are idle at once.
        shell.run(&format!("{exports}\nPATH={}:$PATH\n{BACKFILL}", binaries.display())).await;
        let tables = DynamoDb::at(&service("AWS_ENDPOINT_URL"));
        let stores = |url: &str, bucket: &str| Stores {
            database_url: exported(url),
            bucket: exported(bucket),
        };
        let (old, new) =
            (stores("OLD_DATABASE_URL", "OLD_BUCKET"), stores("NEW_DATABASE_URL", "NEW_BUCKET"));
        let blocks = blocks().into_iter().filter(|block| !block.on_aws).collect();
        Self { shell, blocks, tables, old, new, folder }
    }

    /// Runs every block of the section whose heading begins so, and gives what they printed.
    async fn section(&mut self, heading: &str) -> String {
        let mut printed = String::new();
        let mut ran = 0;
        while self.blocks.front().is_some_and(|block| block.section.starts_with(heading)) {
            let block = self.blocks.pop_front().expect("a block");
            eprintln!("RUNBOOK.md:{}", block.line);
            let output = self.shell.run(&block.commands).await;
            eprintln!("{output}");
            printed += &output;
            ran += 1;
        }
        assert!(ran > 0, "no block of {heading:?} comes next: {:?}", self.blocks.front());
        printed
    }

    /// Writes sessions with their two scans, the scans first.
    async fn write(&self, sessions: std::ops::Range<usize>, user_id: &str) {
        let scans: Vec<Write> = sessions
            .clone()
            .flat_map(|index| ["left", "right"].map(|side| scan(index, side)))
            .map(Write::Put)
            .collect();
        self.tables.write_all("scans", &scans).await;
        let sessions: Vec<Write> = sessions.map(|index| Write::Put(item(index, user_id))).collect();
        self.tables.write_all("sessions", &sessions).await;
    }

    async fn until(&self, stores: &Stores, sql: &str, expected: &str) {
        for _ in 0..600 {
            if stores.ask(sql).await == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{sql} is {}, not {expected}", stores.ask(sql).await);
    }

    async fn until_complete(&self, stores: &Stores, count: usize) {
        let sql = "SELECT count(*) FROM measurements WHERE complete";
        self.until(stores, sql, &count.to_string()).await;
    }
}

fn item(index: usize, user_id: &str) -> Json {
    json!({
        "session_id": { "S": format!("s-{index}") },
        "user_id": { "S": user_id },
        "started_at": { "S": "2026-11-24T08:00:00Z" },
    })
}

fn scan(index: usize, side: &str) -> Json {
    json!({
        "session_id": { "S": format!("s-{index}") },
        "side": { "S": side },
        "scanned_at": { "S": "2026-11-24T08:01:00Z" },
        "foot_length_mm": { "N": format!("{}.30", 240 + index) },
        "foot_breadth_mm": { "N": "98.1" },
        "ball_girth_mm": { "N": "240" },
    })
}

/// The stack that RDS would restore into, in the stand-in, whose RDS keeps records and runs nothing.
const RESTORED: &str = r#"
sam deploy --stack-name from-a-snapshot --template-file infra/database.yaml --resolve-s3 --capabilities CAPABILITY_IAM \
    --parameter-overrides SnapshotIdentifier=before-the-move DatabaseName=measurements \
    "$(grep -o -m 1 'VpcId=[^"]*' samconfig.toml)" "$(grep -o -m 1 'SubnetIds=[^"]*' samconfig.toml)"
aws cloudformation describe-stacks --stack-name from-a-snapshot --output text \
    --query "Stacks[0].Outputs[?starts_with(OutputValue, 'db-')].['DbiResource', OutputValue]""#;

/// What RDS does with a snapshot: the database as it was, here as it was before the newest migration.
async fn restore(old: &Stores, new: &Stores) {
    let restore = Command::new("bash")
        .args([
            "-euo",
            "pipefail",
            "-c",
            r#"pg_dump --no-publications "$0" | psql --quiet -v ON_ERROR_STOP=1 "$1" >/dev/null"#,
        ])
        .args([&old.database_url, &new.database_url])
        .status()
        .await
        .expect("pg_dump");
    assert!(restore.success());
    let mut admin = PgConnection::connect(&new.database_url).await.expect("the new database");
    sqlx::raw_sql(
        "DROP TABLE backfill_checkpoints; DELETE FROM _sqlx_migrations WHERE version = 20261123000000",
    )
    .execute(&mut admin)
    .await
    .expect("the schema of yesterday");
}

#[tokio::test]
async fn the_move_there_and_back() {
    let mut walk = Walk::start().await;
    let (old, new) = (walk.old.clone(), walk.new.clone());

    assert!(walk.section("1. The tables").await.contains("Import"));
    walk.section("2. The old database").await;
    let live = mappings(&mut walk, "projector-old").await;
    assert_eq!(live, [("LATEST", "Enabled"), ("LATEST", "Enabled")].map(owned));
    walk.write(0..10, "before").await;
    walk.until_complete(&old, 10).await;
    walk.section("3. The archive").await;

    walk.section("4. The snapshot").await;
    // The stand-in's streams are younger than the ten minutes that the runbook takes to be safe.
    walk.shell.run("sleep 1; SNAPSHOT_TIME=$(date -u +%Y-%m-%dT%H:%M:%SZ); sleep 1").await;
    restore(&old, &new).await;
    // The gap: what is new, changed and removed since the snapshot.
    walk.write(5..15, "in the gap").await;
    walk.tables.delete_item("sessions", &json!({ "session_id": { "S": "s-3" } })).await;
    walk.until_complete(&old, 14).await;
    walk.section("5. The new database").await;
    let restored = walk.shell.run(RESTORED).await;
    assert!(
        restored.contains("ClientSecurityGroup") && restored.contains("DbiResource"),
        "{restored}"
    );
    let migrated = walk.section("6. Migrate it").await;
    assert!(migrated.contains("backfill checkpoints"), "{migrated}");
    assert!(walk.section("7. Check").await.contains("safe:"));
    let attached = walk.section("8. Attach").await;
    assert!(attached.contains("done:"), "{attached}");
    let live = mappings(&mut walk, "projector-new").await;
    assert_eq!(live, [("TRIM_HORIZON", "Enabled"), ("TRIM_HORIZON", "Enabled")].map(owned));
    walk.write(15..20, "after").await;
    walk.until_complete(&new, 19).await;
    assert!(walk.section("9. Watch").await.contains("equal"));
    assert_eq!(new.rows().await, old.rows().await);
    assert_eq!(
        new.ask("SELECT count(*) FROM measurements WHERE user_id = 'in the gap'").await,
        "10"
    );
    assert_eq!(
        new.ask("SELECT count(*) FROM measurements WHERE session_id = 's-3' AND user_id IS NULL")
            .await,
        "1"
    );

    way_back(&mut walk, &old, &new).await;

    walk.section("11. Switch the archive").await;
    walk.write(30..32, "in the new bucket").await;
    walk.until_complete(&new, 31).await;
    let mut current = false;
    for _ in 0..100 {
        current = parsed(&new.objects().await) == support::oracle::objects(&new.rows().await);
        if current {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(current, "{:?}", parsed(&new.objects().await));
    let rows = new.rows().await;
    walk.until_complete(&old, rows.len() - 1).await;

    walk.section("12. Remove the old side").await;
    assert_eq!(old.rows().await, rows, "the old side was current to its end");
    trouble(&mut walk, &new).await;
    assert!(walk.blocks.is_empty(), "{:?}", walk.blocks.front());
}

fn owned((from, state): (&str, &str)) -> (String, String) {
    (from.to_owned(), state.to_owned())
}

/// Where each mapping of a function began, and its state.
async fn mappings(walk: &mut Walk, function: &str) -> Vec<(String, String)> {
    let printed = walk
        .shell
        .run(&format!(
            "aws lambda list-event-source-mappings --function-name {function} --output text \
             --query 'EventSourceMappings[].[StartingPosition, State]'"
        ))
        .await;
    let pair = |line: &str| line.split_once('\t').map(owned).expect("two words");
    printed.lines().filter(|line| !line.is_empty()).map(pair).collect()
}

/// Step 10, with writes while the old side stands still.
async fn way_back(walk: &mut Walk, old: &Stores, new: &Stores) {
    let back = walk.blocks.pop_front().expect("the comparison");
    assert!(back.section.starts_with("10. Switch") && back.commands.contains("scripts/compare"));
    assert!(walk.shell.run(&back.commands).await.contains("equal"));
    let detach = walk.blocks.pop_front().expect("the detaching");
    assert!(detach.commands.contains("Mappings=disabled"));
    walk.shell.run(&detach.commands).await;
    walk.write(20..30, "while detached").await;
    walk.until_complete(new, 29).await;
    assert_eq!(old.ask("SELECT count(*) FROM measurements").await, "20", "it stands still");
    // Attached again, it catches up from its place; the way back is open.
    assert!(walk.section("10. Switch").await.contains("equal"));
    assert_eq!(old.rows().await, new.rows().await);
    assert_eq!(mappings(walk, "projector-old").await.len(), 2);
}

/// The second half: what to do when something is wrong, each with something that is.
async fn trouble(walk: &mut Walk, new: &Stores) {
    walk.section("When something is wrong").await;
    // A scan of a foot that is too long for one, corrected at its source.
    let mut bad = scan(40, "left");
    bad["foot_length_mm"] = json!({ "N": "2453" });
    walk.tables.write_all("scans", &[Write::Put(bad)]).await;
    walk.until(new, "SELECT count(*) FROM rejected_records", "1").await;
    let rejected = walk.section("Rejected records").await;
    assert!(rejected.contains("foot_length_mm"), "{rejected}");
    walk.write(40..41, "corrected").await;
    walk.until_complete(new, 32).await;

    let bucket = walk
        .shell
        .run(
            "aws cloudformation describe-stacks --stack-name projector-new --output text \
              --query \"Stacks[0].Outputs[?OutputKey=='FailureBucket'].OutputValue\"",
        )
        .await;
    let record = session("s-41", "given up").place(LABEL, 1);
    mapping::write_failure(bucket.trim(), 100, &[record]).await;
    let emptied = walk.section("The bucket of failures").await;
    assert!(emptied.contains("done: 1 records"), "{emptied}");
    assert_eq!(
        new.ask("SELECT user_id FROM measurements WHERE session_id = 's-41'").await,
        "given up"
    );
    assert!(new.objects().await.contains_key("measurements/s-41.json"), "the object, too");
    assert!(
        !walk.shell.run("aws s3 ls --recursive \"s3://$failures/\"").await.contains("aws/lambda")
    );

    walk.shell.run("aws s3 rm --quiet --recursive \"s3://$NEW_BUCKET/measurements/\"").await;
    walk.section("A bucket was restored").await;
    let rows = new.rows().await;
    assert_eq!(parsed(&new.objects().await), support::oracle::objects(&rows));

    assert!(walk.section("A stream was turned off").await.contains("done:"));

    // A database that lacks a day: a session that came, one that changed, and one that was removed.
    let mut database = new.connect().await;
    sqlx::raw_sql(
        "DELETE FROM measurements WHERE session_id = 's-0';
        UPDATE measurements SET user_id = 'of yesterday' WHERE session_id = 's-1'",
    )
    .execute(&mut database)
    .await
    .expect("a database of yesterday");
    assert_eq!(new.ask("SELECT count(*) FROM measurements WHERE user_id = 'given up'").await, "1");
    let repeated = walk.section("More than 24 hours lost").await;
    assert!(repeated.lines().any(|line| line == "removals repeated: 1"), "{repeated}");
    walk.until(new, "SELECT user_id FROM measurements WHERE session_id = 's-0'", "before").await;
    walk.until(new, "SELECT user_id FROM measurements WHERE session_id = 's-1'", "before").await;
    walk.until(new, "SELECT count(*) FROM measurements WHERE user_id = 'given up'", "0").await;
    let left = "SELECT count(*) FROM measurements WHERE session_attributes::jsonb ? 'rewritten_at' \
        OR left_attributes::jsonb ? 'rewritten_at' OR right_attributes::jsonb ? 'rewritten_at'";
    walk.until(new, left, "0").await;
    assert!(walk.folder.path().join("held-scans").exists());
}

/// What only AWS can answer: the shell takes it, and each command of `aws` has the options that it is given.
#[tokio::test]
async fn the_commands_that_only_aws_answers_are_well_formed() {
    let config = std::fs::read_to_string(root().join("samconfig.toml")).expect("samconfig.toml");
    let mut shell = Shell::start(root());
    shell
        .run(
            r#"
            aws() {
                # Options are looked at before anything is sent, and nothing listens there.
                local said
                said=$(AWS_MAX_ATTEMPTS=1 command aws "$@" --endpoint-url http://127.0.0.1:9 2>&1) || true
                [[ $said == *"Could not connect to the endpoint"* ]] || { echo "$said" >&2; return 1; }
                # What the next command is asked with.
                case "$*" in
                    *get-caller-identity*) echo 123456789012 ;;
                    *list-objects-v2*) echo measurements/s-1.json ;;
                    *ReplicationRoleArn*) echo arn:aws:iam::123456789012:role/replication ;;
                    *create-job*) echo 1b2c3d4e-0000-4000-8000-000000000000 ;;
                    *OutputKey*) echo foot-measurements ;;
                esac
            }
            sam() { echo "sam $*"; }
            psql() { [ $# -eq 3 ]; }
            export -f aws
            OLD_DATABASE_URL=x NEW_DATABASE_URL=x stack=projector-new
            "#,
        )
        .await;
    let blocks: Vec<Block> = blocks().into_iter().filter(|block| block.on_aws).collect();
    assert!(blocks.len() > 8);
    for block in blocks {
        eprintln!("RUNBOOK.md:{}", block.line);
        let printed = shell.run(&block.commands).await;
        eprintln!("{printed}");
        for environment in
            printed.lines().filter_map(|line| line.strip_prefix("sam deploy --config-env "))
        {
            let environment = environment.split(' ').next().expect("a name");
            assert!(
                config.contains(&format!("[{environment}.deploy.parameters]")),
                "{environment}"
            );
        }
    }
}
