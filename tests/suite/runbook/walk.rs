//! The team's account in the stand-in, and the walk through the runbook.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value as Json, json};
use testkit::aws_server::{Account, AwsServer};
use testkit::closed_streams::ClosedStreams;
use testkit::dynamodb::{DynamoDb, Write};
use testkit::emulator::binary;
use testkit::services::{Stores, parsed, service};
use tokio::process::Command;

use super::blocks::{Block, SERVICE, Shell, blocks, root};

/// What stands in for what the stand-in has not: `backfill` answers 3 if records were rejected,
/// which is no failure, and waits no ten seconds for a stand-in whose shards never end, nor half a
/// minute for a mapping; nobody waits three minutes for an invocation here.
const STAND_INS: &str = r#"
backfill() {
    case $1 in
        stream) set -- "$@" --idle-seconds 1 --first-record-seconds 1 ;;
        repair | redrive)
            set -- "$@" --function-timeout-seconds 1 --idle-seconds 1 --first-record-seconds 1
            ;;
        verify) set -- "$@" --wait 1 --rounds 60 ;;
    esac
    command backfill "$@" || [ $? -eq 3 ]
}
sleep() { command sleep 0.2; }
SESSIONS_TABLE=sessions SCANS_TABLE=scans
export ARCHIVE_PREFIX=measurements/
"#;

/// Both buckets have a KMS key of their own, and `samconfig.toml` names them, as the runbook wants
/// it.
const KEYS: &str = r#"
OLD_BUCKET_KEY=$(aws kms create-key --query KeyMetadata.Arn --output text)
NEW_BUCKET_KEY=$(aws kms create-key --query KeyMetadata.Arn --output text)
aws s3api put-bucket-encryption --bucket "$OLD_BUCKET" --server-side-encryption-configuration \
    "{\"Rules\": [{\"ApplyServerSideEncryptionByDefault\": {\"SSEAlgorithm\": \"aws:kms\", \"KMSMasterKeyID\": \"$OLD_BUCKET_KEY\"}}]}"
sed -i -e "s|\"BucketName=$OLD_BUCKET\"|&, \"KmsKeyArn=$OLD_BUCKET_KEY\"|" \
    -e "s|\"BucketName=$NEW_BUCKET\"|&, \"KmsKeyArn=$NEW_BUCKET_KEY\"|" \
    -e "s|\"ArchiveBucket=$OLD_BUCKET\"|&, \"ArchiveKmsKeyArn=$OLD_BUCKET_KEY\"|" samconfig.toml
"#;

/// The team's account, and the walk through the runbook.
pub(crate) struct Walk {
    /// The one shell of the whole walk, as the runbook wants it.
    pub(crate) shell: Shell,
    blocks: Vec<Block>,
    /// Where the two tables are.
    pub(crate) tables: DynamoDb,
    /// What lists streams that were turned off.
    pub(crate) closed: ClosedStreams,
    /// The old database and bucket.
    pub(crate) old: Stores,
    /// The new ones.
    pub(crate) new: Stores,
    /// Where the shell is.
    _folder: tempfile::TempDir,
}

impl Walk {
    /// Makes the account, and opens the runbook.
    pub(crate) async fn start() -> Self {
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
        // The stand-in knows the functions, and has no metrics.
        let metrics = AwsServer::start(Account::default()).await;
        let closed = ClosedStreams::open(&service("AWS_ENDPOINT_URL")).await;
        let mut shell = Shell::start(folder.path()).await;
        let binaries: PathBuf = binary("backfill").parent().expect("a folder").to_owned();
        let (binaries, streams) = (binaries.display(), &closed.url);
        shell
            .run(&format!(
                "{exports}\nPATH={binaries}:$PATH\nexport AWS_ENDPOINT_URL_DYNAMODB_STREAMS={streams}\n\
                 export AWS_ENDPOINT_URL_CLOUDWATCH={}\n{STAND_INS}\n{KEYS}",
                metrics.url
            ))
            .await;
        let tables = DynamoDb::at(&service("AWS_ENDPOINT_URL"));
        let stores = |url: &str, bucket: &str| Stores {
            database_url: exported(url),
            bucket: exported(bucket),
        };
        let (old, new) =
            (stores("OLD_DATABASE_URL", "OLD_BUCKET"), stores("NEW_DATABASE_URL", "NEW_BUCKET"));
        let is_ours = |block: &Block| !block.on_aws && block.document != SERVICE;
        let blocks = blocks().into_iter().filter(is_ours).collect();
        Self { shell, blocks, tables, closed, old, new, _folder: folder }
    }

    /// Runs the blocks that are left of the section whose heading begins so, and gives what they
    /// printed.
    pub(crate) async fn section(&mut self, heading: &str) -> String {
        let mut printed = String::new();
        let mut ran = 0;
        while self.blocks.iter().any(|block| block.section.starts_with(heading)) {
            printed += &self.block(heading, "").await;
            ran += 1;
        }
        assert!(ran > 0, "no block is left of {heading:?}");
        printed
    }

    /// Runs the next block of a section, in which this must stand.
    pub(crate) async fn block(&mut self, heading: &str, command: &str) -> String {
        let next = self.blocks.iter().position(|block| block.section.starts_with(heading));
        let block = self.blocks.remove(next.unwrap_or_else(|| panic!("no block of {heading:?}")));
        assert!(block.commands.contains(command), "no {command:?} in {block:?}");
        self.repeat(&block).await
    }

    /// Runs a block that ran before.
    pub(crate) async fn repeat(&mut self, block: &Block) -> String {
        eprintln!("{}", block.place());
        let output = self.shell.run(&block.commands).await;
        eprintln!("{output}");
        output
    }

    /// The blocks that did not run.
    pub(crate) fn remaining(&self) -> &[Block] {
        &self.blocks
    }

    /// Writes sessions with their two scans, the scans first.
    pub(crate) async fn write(&self, sessions: std::ops::Range<usize>, user_id: &str) {
        let scans: Vec<Write> = sessions
            .clone()
            .flat_map(|index| ["left", "right"].map(|side| scan(index, side)))
            .map(Write::Put)
            .collect();
        self.tables.write_all("scans", &scans).await;
        self.write_sessions(sessions, user_id).await;
    }

    /// Writes sessions without their scans.
    pub(crate) async fn write_sessions(&self, sessions: std::ops::Range<usize>, user_id: &str) {
        let sessions: Vec<Write> = sessions.map(|index| Write::Put(item(index, user_id))).collect();
        self.tables.write_all("sessions", &sessions).await;
    }

    /// Waits until this is the answer.
    pub(crate) async fn until(&self, stores: &Stores, sql: &str, expected: &str) {
        for _ in 0..600 {
            if stores.ask(sql).await == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{sql} is {}, not {expected}", stores.ask(sql).await);
    }

    /// Waits until this number of sessions has all their parts.
    pub(crate) async fn until_complete(&self, stores: &Stores, count: usize) {
        let sql = "SELECT count(*) FROM measurements WHERE complete";
        self.until(stores, sql, &count.to_string()).await;
    }

    /// Waits until each row has its object, and each object is its row's.
    pub(crate) async fn until_archived(&self, stores: &Stores) {
        for _ in 0..100 {
            if parsed(&stores.objects().await) == testkit::oracle::objects(&stores.rows().await) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{:?}", parsed(&stores.objects().await));
    }

    /// The mappings of a function, by the name of the table that each reads.
    pub(crate) async fn mappings(&mut self, function: &str) -> Vec<Mapping> {
        let printed = self
            .shell
            .run(&format!(
                "aws lambda list-event-source-mappings --function-name {function} --output json \
                 --query 'sort_by(EventSourceMappings, &EventSourceArn)[].[UUID, EventSourceArn, \
                 StartingPosition, State]'"
            ))
            .await;
        let mappings: Vec<Mapping> = serde_json::from_str(&printed).expect("mappings");
        assert_eq!(mappings.len(), 2, "{printed}");
        mappings
    }

    /// A parameter of a stack.
    pub(crate) async fn parameter(&mut self, stack: &str, name: &str) -> String {
        let printed = self
            .shell
            .run(&format!(
                "aws cloudformation describe-stacks --stack-name {stack} --output text \
                 --query \"Stacks[0].Parameters[?ParameterKey=='{name}'].ParameterValue\""
            ))
            .await;
        printed.trim().to_owned()
    }
}

/// An event source mapping: its id, its stream, where it began, its state.
#[derive(Clone, Debug, Eq, PartialEq, serde::Deserialize)]
pub(crate) struct Mapping(
    pub(crate) String,
    pub(crate) String,
    pub(crate) String,
    pub(crate) String,
);

/// A session, as its item.
pub(crate) fn item(index: usize, user_id: &str) -> Json {
    json!({
        "session_id": { "S": format!("s-{index}") },
        "user_id": { "S": user_id },
        "started_at": { "S": "2026-11-24T08:00:00Z" },
    })
}

/// A scan, as its item.
pub(crate) fn scan(index: usize, side: &str) -> Json {
    json!({
        "session_id": { "S": format!("s-{index}") },
        "side": { "S": side },
        "scanned_at": { "S": "2026-11-24T08:01:00Z" },
        "foot_length_mm": { "N": format!("{}.30", 240 + index) },
        "foot_breadth_mm": { "N": "98.1" },
        "ball_girth_mm": { "N": "240" },
    })
}
