//! docs/migration.md and docs/incidents.md, walked from the first command to the last on a stand-in
//! of AWS, with the real function, two databases and writes between the steps: what is written
//! before, during and after the move is in both.
//!
//! The stand-in's mappings take every answer for success: a passing failure of a store would lose a
//! record here, and show as a wait that ends in vain. What mappings do with failures is in
//! `mapping.rs`.

mod blocks;
mod branches;
mod reference;
mod references;
mod rules;
mod scripts;
mod service;
mod service_functions;
mod service_stacks;
mod trouble;
mod walk;

use blocks::{Block, Shell, blocks, root};
use serde_json::{Value as Json, json};
use testkit::emulator::binary;
use testkit::records::{LABEL, removal, session};
use testkit::services::{Stores, apply};
use tokio::process::Command;
use trouble::trouble;
use walk::Walk;

/// The stack that RDS would restore into, in the stand-in, whose RDS keeps records and runs
/// nothing.
const RESTORED: &str = r#"
sam deploy --stack-name from-a-snapshot --template-file infra/database.yaml --resolve-s3 --capabilities CAPABILITY_IAM \
    --parameter-overrides SnapshotIdentifier=before-the-move DatabaseName=measurements \
    "$(grep -o -m 1 'VpcId=[^"]*' samconfig.toml)" "$(grep -o -m 1 'SubnetIds=[^"]*' samconfig.toml)"
aws cloudformation describe-stacks --stack-name from-a-snapshot --output text \
    --query "Stacks[0].Outputs[?starts_with(OutputValue, 'db-')].['DbiResource', OutputValue]""#;

/// What RDS does with a snapshot: the database as it is now.
async fn restore(from: &Stores, to: &Stores) {
    let restore = Command::new("bash")
        .args([
            "-euo",
            "pipefail",
            "-c",
            r#"pg_dump --no-publications "$0" | psql --quiet -v ON_ERROR_STOP=1 "$1" >/dev/null"#,
        ])
        .args([&from.database_url, &to.database_url])
        .status()
        .await
        .expect("pg_dump");
    assert!(restore.success());
}

async fn run_sql(stores: &Stores, sql: &'static str) {
    stores.change(sql).await;
}

/// A time of a snapshot: the stand-in's streams are younger than the ten minutes that the runbook
/// takes to be safe.
const NOW: &str =
    "sleep 5; command sleep 1; SNAPSHOT_TIME=$(date -u +%Y-%m-%dT%H:%M:%SZ); command sleep 1";

#[tokio::test]
async fn the_move_there_and_back() {
    let mut walk = Walk::start().await;
    let (old, new) = (walk.old.clone(), walk.new.clone());

    walk.section("Before you begin").await;
    assert!(walk.section("1. The tables").await.contains("Import"));
    walk.section("2. The old database").await;
    assert_eq!(began(&mut walk, "projector-old").await, ["LATEST Enabled", "LATEST Enabled"]);
    walk.write(0..10, "before").await;
    walk.until_complete(&old, 10).await;
    walk.section("3. The archive").await;

    of_long_ago(&old).await;
    from_a_snapshot(&mut walk, &old, &new).await;
    by_merge(&mut walk, &old, &new).await;
    way_back(&mut walk, &old, &new).await;
    a_new_stream(&mut walk, &old, &new).await;
    the_archive_there_and_back(&mut walk, &old, &new).await;

    let rows = values(&new).await;
    walk.section("12. Remove the old side").await;
    assert_eq!(values(&old).await, rows, "the old side was current to its end");
    trouble(&mut walk, &new).await;
    assert!(walk.remaining().is_empty(), "{:?}", walk.remaining().first());
}

/// A session of long ago that was removed: no stream has it, and no table. Only the old side knows
/// its versions.
async fn of_long_ago(old: &Stores) {
    let gone = removal(&session("long-ago", "of long ago")).place(LABEL, 1);
    apply(&old.projector().await, &[gone]).await;
}

/// Where the two mappings of a function began, and their states.
async fn began(walk: &mut Walk, function: &str) -> Vec<String> {
    let mappings = walk.mappings(function).await;
    mappings.iter().map(|mapping| format!("{} {}", mapping.2, mapping.3)).collect()
}

/// Steps 4 to 8 as far as they are for a start from a snapshot: it closes the gap by the streams.
async fn from_a_snapshot(walk: &mut Walk, old: &Stores, new: &Stores) {
    run_sql(old, "ALTER ROLE postgres SET work_mem = '8MB'").await;
    walk.section("4. Only from a snapshot").await;
    walk.shell.run(NOW).await;
    restore(old, new).await;
    // The schema of the snapshot is that of yesterday.
    run_sql(
        new,
        "DROP TABLE backfill_checkpoints; DELETE FROM _sqlx_migrations WHERE version = \
            20261123000000;
         CREATE EXTENSION pg_prewarm",
    )
    .await;
    // The gap: what is new, changed and removed since the snapshot.
    walk.write(5..15, "in the gap").await;
    walk.tables.delete_item("sessions", &json!({ "session_id": { "S": "s-3" } })).await;
    walk.until_complete(old, 14).await;
    let compared = walk.section("5. The new database").await;
    assert!(compared.lines().any(|line| line.starts_with("> extension pg_prewarm")), "{compared}");
    assert!(!compared.contains("work_mem"), "a role's setting holds in both: {compared}");
    let restored = walk.shell.run(RESTORED).await;
    assert!(
        restored.contains("ClientSecurityGroup") && restored.contains("DbiResource"),
        "{restored}"
    );
    let migrated = walk.section("6. Migrate it").await;
    assert!(migrated.contains("backfill checkpoints"), "{migrated}");
    assert!(migrated.contains("measurements_pkey"), "the index is warm: {migrated}");
    assert!(walk.section("7. Only from a snapshot").await.contains("safe:"));
    walk.block("8. Attach", "--config-env new").await;
    let closed = walk.block("8. Attach", "backfill stream").await;
    assert!(closed.contains("done:"), "{closed}");
    assert_eq!(new.rows().await, old.rows().await);
}

/// Steps 6, 8 and 9 with an empty database in place of the restored one.
async fn by_merge(walk: &mut Walk, old: &Stores, new: &Stores) {
    run_sql(
        new,
        "DROP SCHEMA public CASCADE; CREATE SCHEMA public; GRANT USAGE ON SCHEMA public TO PUBLIC",
    )
    .await;
    let all = blocks();
    let migrate = all.iter().find(|block| {
        block.section.starts_with("6. Migrate it") && block.commands.contains("--grant-to")
    });
    walk.repeat(migrate.expect("the migration")).await;
    assert_eq!(new.ask("SELECT count(*) FROM measurements").await, "0");

    let attached = walk.block("8. Attach", "Mappings=enabled").await;
    let both =
        ["SessionsMapping: Enabled, began at TRIM_HORIZON", "ScansMapping: Enabled, began at"];
    assert!(both.iter().all(|line| attached.contains(line)), "{attached}");
    assert_eq!(attached.matches("(the newest stream)").count(), 2, "{attached}");
    walk.write(15..18, "during the merge").await;
    let merged = walk.block("8. Attach", "backfill merge --from").await;
    assert!(merged.contains("done:"), "{merged}");
    let long_ago = "SELECT count(*) FROM measurements WHERE session_id = 'long-ago'";
    assert_eq!(new.ask(long_ago).await, "1", "no stream has it: the merge brought it");
    assert!(new.objects().await.is_empty(), "nobody but the replication writes the new bucket");
    walk.write(18..20, "after").await;
    walk.until_complete(old, 19).await;
    walk.until_complete(new, 19).await;
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
    // What takes too long does not begin again, and merging once more changes nothing.
    let places = new.row_places().await;
    let again = walk.block("Beginning again", "backfill merge --from").await;
    assert!(again.contains("done:"), "{again}");
    assert_eq!(new.row_places().await, places);
}

/// Step 10, with writes while the old side stands still.
async fn way_back(walk: &mut Walk, old: &Stores, new: &Stores) {
    assert!(walk.block("10. Switch", "backfill verify").await.contains("equal"));
    let detached = walk.block("10. Switch", "Mappings=disabled").await;
    assert_eq!(detached.matches("Mapping: Disabled").count(), 2, "{detached}");
    walk.write(20..30, "while detached").await;
    walk.until_complete(new, 29).await;
    assert_eq!(old.ask("SELECT count(*) FROM measurements").await, "21", "it stands still");
    // Attached again, it catches up from its place; the way back is open.
    assert!(walk.section("10. Switch").await.contains("equal"));
    assert_eq!(old.rows().await, new.rows().await);
}

/// The stream of the sessions is turned off and on, while both sides are behind and their stacks
/// have overrides.
async fn a_new_stream(walk: &mut Walk, old: &Stores, new: &Stores) {
    const HEADING: &str = "A stream was turned off";
    for side in ["old", "new"] {
        walk.shell
            .run(&format!("sam deploy --config-env {side} --parameter-overrides MemorySize=768"))
            .await;
    }
    let set_enabled = async |walk: &mut Walk, flag: &str| {
        for function in ["projector-old", "projector-new"] {
            for mapping in walk.mappings(function).await {
                let id = mapping.0;
                let command =
                    format!("aws lambda update-event-source-mapping --uuid {id} {flag} >/dev/null");
                walk.shell.run(&command).await;
            }
        }
    };
    set_enabled(walk, "--no-enabled").await;
    walk.write(50..55, "in the old stream").await;
    let closed = turn_off(walk).await;
    walk.closed.list(&closed);
    walk.write(60..61, "in no stream").await;
    turn_on(walk).await;
    walk.write(55..60, "in the new stream").await;
    set_enabled(walk, "--enabled").await;
    let before = [walk.mappings("projector-old").await, walk.mappings("projector-new").await];

    let looked_at = walk.block(HEADING, "mappings").await;
    assert_eq!(looked_at.matches("SessionsMapping").count(), 2, "{looked_at}");
    assert_eq!(looked_at.matches("an OLDER stream").count(), 2, "{looked_at}");
    walk.block(HEADING, "with_side").await;
    // The rest of the old stream is in both databases before any mapping is touched.
    for stores in [old, new] {
        let sql = "SELECT count(*) FROM measurements WHERE user_id = 'in the old stream'";
        assert_eq!(stores.ask(sql).await, "5");
    }
    assert!(new.objects().await.is_empty(), "nobody but the replication writes the new bucket");
    let replaced = walk.block(HEADING, "new_streams").await;
    assert_eq!(replaced.matches("(the newest stream)").count(), 4, "{replaced}");
    for (function, before) in ["projector-old", "projector-new"].into_iter().zip(&before) {
        let now = walk.mappings(function).await;
        assert_eq!(now[0], before[0], "the mapping of the scans stays as it is");
        assert_ne!(now[1].0, before[1].0, "the mapping of the sessions is another");
        assert_ne!(now[1].1, before[1].1);
        assert_eq!(walk.parameter(function, "MemorySize").await, "768", "overrides stay");
    }
    let unknown =
        "SELECT count(*) FROM measurements WHERE session_id = 's-60' AND user_id IS NOT NULL";
    for stores in [old, new] {
        walk.until_complete(stores, 39).await;
        assert_eq!(stores.ask(unknown).await, "0", "it was written while the stream was off");
    }
    // The repair of each side brings it.
    walk.section(HEADING).await;
    for stores in [old, new] {
        walk.until_complete(stores, 40).await;
    }
    assert_eq!(values(old).await, values(new).await);
}

/// What the rows hold, without the versions: two repairs of one item give two of them.
async fn values(stores: &Stores) -> Vec<Json> {
    let without_version = |mut row: Json| {
        let members = row.as_object_mut().expect("a row");
        members.retain(|name, _| !name.ends_with("_version") && !name.ends_with("_changed_at"));
        row
    };
    stores.rows().await.into_values().map(without_version).collect()
}

async fn turn_off(walk: &Walk) -> String {
    let table = walk.tables.call("DescribeTable", &json!({ "TableName": "sessions" })).await;
    let off = json!({ "TableName": "sessions", "StreamSpecification": { "StreamEnabled": false } });
    walk.tables.call("UpdateTable", &off).await.expect("the stream is off");
    table.expect("the table")["Table"]["LatestStreamArn"].as_str().expect("an ARN").to_owned()
}

async fn turn_on(walk: &Walk) {
    let on = json!({
        "TableName": "sessions",
        "StreamSpecification": { "StreamEnabled": true, "StreamViewType": "NEW_IMAGE" },
    });
    walk.tables.call("UpdateTable", &on).await.expect("the stream is on");
}

/// Step 11, back, and again.
async fn the_archive_there_and_back(walk: &mut Walk, old: &Stores, new: &Stores) {
    const HEADING: &str = "11. Switch the archive";
    let again: Vec<Block> = blocks()
        .into_iter()
        .filter(|block| !block.on_aws && block.section.starts_with(HEADING))
        .take(2)
        .collect();
    walk.block(HEADING, "ArchiveBucket=$NEW_BUCKET").await;
    walk.block(HEADING, "with_side new backfill objects").await;
    walk.write(30..32, "in the new bucket").await;
    walk.until_complete(new, 42).await;
    walk.until_archived(new).await;
    assert!(!replicates(walk).await, "two writers of one bucket");

    walk.block(HEADING, "ReplicateTo=$NEW_BUCKET").await;
    assert!(replicates(walk).await);
    let key = walk.shell.run("echo \"$NEW_BUCKET_KEY\"").await.trim().to_owned();
    let copies = walk.parameter("measurements-old-archive", "ReplicateToKmsKeyArn").await;
    assert_eq!(copies, key, "the key of the copies");
    assert_eq!(walk.parameter("projector-new", "ArchiveBucket").await, "");
    let objects = new.objects().await.len();
    walk.write(32..34, "in the old bucket alone").await;
    walk.until_complete(new, 44).await;
    walk.until_complete(old, 44).await;
    walk.until_archived(old).await;
    assert_eq!(new.objects().await.len(), objects, "the new projector writes no object any more");

    for block in &again {
        walk.repeat(block).await;
    }
    walk.until_archived(new).await;
    assert!(!replicates(walk).await);
    let configured = walk.parameter("projector-new", "ArchiveKmsKeyArn").await;
    assert_eq!(configured, key);
    for stack in ["data", "old-archive", "new-archive", "new-database"] {
        let protected = format!(
            "aws cloudformation describe-stacks --stack-name measurements-{stack} --output text \
             --query 'Stacks[0].EnableTerminationProtection'"
        );
        assert_eq!(walk.shell.run(&protected).await.trim(), "True", "{stack}");
    }
}

/// Whether the old bucket's stack replicates it. (The stand-in's bucket does not.)
async fn replicates(walk: &mut Walk) -> bool {
    !walk.parameter("measurements-old-archive", "ReplicateTo").await.is_empty()
}

/// What only AWS can answer: the shell takes it, and each command of `aws` has the options that it
/// is given.
#[tokio::test]
async fn the_commands_that_only_aws_answers_are_well_formed() {
    let config = std::fs::read_to_string(root().join("samconfig.toml")).expect("samconfig.toml");
    let mut shell = Shell::start(root()).await;
    shell.run(&format!("BACKFILL={}", binary("backfill").display())).await;
    shell
        .run(
            r#"
            . infra/scripts/functions
            . infra/scripts/service-functions
            aws() {
                # Options are looked at before anything is sent, and nothing listens there.
                local said
                said=$(preloaded aws "$@" --endpoint-url http://127.0.0.1:9) || true
                [[ $said == *"Could not connect to the endpoint"* ]] || { echo "$said" >&2; return 1; }
                # What the next command is asked with.
                case "$*" in
                    *get-caller-identity*) echo 123456789012 ;;
                    *get-template*) echo '"DeletionPolicy: Retain"' ;;
                    *describe-db-instances*) echo name sg-0123456789abcdef0 name db.m7g.large ;;
                    *describe-db-snapshots*) echo 2026-11-23T14:00:00Z ;;
                    *describe-network-interfaces*) echo '[]' ;;
                    *ReplicationRoleArn*) echo arn:aws:iam::123456789012:role/replication ;;
                    *Table.TableArn*) echo arn:aws:dynamodb:eu-central-1:123456789012:table/sessions ;;
                    *create-job*) echo 1b2c3d4e-0000-4000-8000-000000000000 ;;
                    *OutputKey*Mapping*) echo 5b5e9a3c-0000-4000-8000-000000000001 ;;
                    *get-event-source-mapping*) printf 'Enabled\tLATEST\ttable/sessions/stream/1\tOK\n' ;;
                    *OutputKey*) echo foot-measurements ;;
                    *describe-stack-resource*) echo foot-measurements ;;
                    *list-service-quotas*) echo "Fargate Spot vCPU resource count 6" ;;
                    *describe-target-health*) printf '10.0.0.1\thealthy\tNone\n' ;;
                    *LoadBalancerArn*) echo arn:aws:elasticloadbalancing:eu-central-1:123456789012:loadbalancer/app/a/1 ;;
                    *DelegationSet*) echo ns-1.awsdns-01.org ;;
                esac
            }
            kubectl() {
                # Flags are looked at before the context is, and there is none.
                local said
                said=$(KUBECONFIG=/dev/null command kubectl "$@" 2>&1) || true
                [[ $said == *"context was not found"* || $said == *" does not exist"* ]] || { echo "$said" >&2; return 1; }
                case "$*" in
                    *targetgroupbindings*) echo arn:aws:elasticloadbalancing:eu-central-1:123456789012:targetgroup/a/1 ;;
                esac
            }
            dig() { [ "$1" = +short ]; }
            sam() { echo "sam $*"; }
            backfill() {
                # The flags are looked at, and nothing is set to connect to.
                local said
                said=$("$BACKFILL" "$@" --database-url none 2>&1) || [ $? -eq 2 ]
                [[ $said == *"DATABASE_URL does not start with"* ]] || { echo "$said" >&2; return 1; }
            }
            psql() { [ $# -eq 3 ]; }
            sleep() { :; }
            export -f aws
            OLD_DATABASE_URL=x NEW_DATABASE_URL=x ARCHIVE_BUCKET=foot-measurements
            OLD_ALB=old-1.eu-central-1.elb.amazonaws.com NEW_ALB=new-2.eu-central-1.elb.amazonaws.com
            environment=new stack=projector-new database_stack=measurements-new-database
            cd "$(mktemp -d)"
            mkdir infra
            ln -s "$OLDPWD"/infra/{scripts,images.yaml,images.import.json} infra/
            "#,
        )
        .await;
    let blocks: Vec<Block> = blocks().into_iter().filter(|block| block.on_aws).collect();
    assert!(blocks.len() > 30);
    for block in blocks {
        eprintln!("{}", block.place());
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

/// RDS writes its times with fractions and an offset, people write them with a Z.
#[tokio::test]
async fn a_time_is_moved_by_minutes_however_it_is_written() {
    let moved = async |time: &str, minutes: &str| {
        let output = Command::new("bash")
            .args(["-c", ". infra/scripts/functions && minutes_from \"$@\"", "bash", time, minutes])
            .current_dir(root())
            .output()
            .await
            .expect("bash");
        let text = |bytes| String::from_utf8(bytes).expect("text").trim().to_owned();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    };
    let earlier = Ok("2026-11-23T23:55:12Z".to_owned());
    assert_eq!(moved("2026-11-24T00:05:12Z", "-10").await, earlier);
    assert_eq!(moved("2026-11-24T00:05:12.345000+00:00", "-10").await, earlier);
    assert_eq!(moved("2026-11-24T02:05:12+02:00", "-10").await, earlier);
    assert_eq!(moved("2026-11-23T23:54:12Z", "1").await, earlier);
    let refused =
        |time: &str| Err(format!("minutes_from: '{time}' is no time such as 2026-11-23T14:00:00Z"));
    // What the command line of AWS prints if there is nothing.
    assert_eq!(moved("None", "1").await, refused("None"));
    assert_eq!(moved("2026-11-24T00:05:12", "1").await, refused("2026-11-24T00:05:12"));
}
