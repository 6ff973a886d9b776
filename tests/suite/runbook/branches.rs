//! What the walk does not pass by: a bucket that has a policy already, and meshes that differ or cannot be read.

use std::process::Output;

use testkit::services::Stores;
use tokio::process::Command;

use super::blocks::{Shell, blocks, root};

/// The stand-in executes no import of a policy, so it ends with what the change set would do.
#[tokio::test]
async fn a_bucket_that_has_a_policy_is_imported_with_it() {
    let folder = tempfile::tempdir().expect("a folder");
    std::os::unix::fs::symlink(root().join("infra"), folder.path().join("infra")).expect("infra");
    let mut shell = Shell::start(folder.path()).await;
    let bucket = format!("with-a-policy-{:08x}", fastrand::u32(..));
    let policy = format!(
        r#"{{"Version": "2012-10-17", "Statement": [{{"Sid": "Theirs", "Effect": "Allow", "Action": "s3:GetObject",
            "Principal": {{"AWS": "arn:aws:iam::123456789012:root"}}, "Resource": "arn:aws:s3:::{bucket}/*"}}]}}"#
    );
    shell
        .run(&format!(
            "export OLD_BUCKET={bucket} OLD_BUCKET_KEY=\naws s3api create-bucket --bucket {bucket} >/dev/null\n\
             aws s3api put-bucket-policy --bucket {bucket} --policy '{policy}'"
        ))
        .await;
    let imports = |block: &&super::blocks::Block| block.commands.contains("get-bucket-policy");
    let blocks: Vec<_> = blocks();
    let block = blocks.iter().filter(|block| !block.on_aws).find(imports).expect("the import");
    // The walk has the stack of this name.
    let commands = block.commands.replace("measurements-old-archive", &bucket);
    let printed = shell.run(&commands).await;
    assert!(printed.contains(&format!("Import\tBucket\t{bucket}")), "{printed}");
    assert!(printed.contains(&format!("Import\tBucketPolicy\t{bucket}")), "{printed}");
    // An import changes nothing: the policy in the template is the one that is there.
    let template = std::fs::read_to_string(folder.path().join("archive-bucket-alone.yaml"));
    let template = template.expect("the template");
    assert!(template.contains("Theirs") && !template.contains("TlsOnly"), "{template}");
}

async fn compare(arguments: &[&str]) -> Output {
    Command::new(root().join("infra/scripts/compare"))
        .args(arguments)
        .env("WAIT_SECONDS", "0")
        .env("TRIES", "1")
        .output()
        .await
        .expect("infra/scripts/compare")
}

/// Blocks of meshes that PostgreSQL has read, as it counts them once a session has ended.
async fn mesh_blocks_read(stores: &Stores) -> String {
    let sql = "SELECT coalesce(toast_blks_read + toast_blks_hit, 0) FROM pg_statio_user_tables \
               WHERE relname = 'measurements'";
    stores.ask(sql).await
}

async fn insert(stores: &Stores, mesh: &str, version: &str) {
    let mut connection = stores.connect().await;
    // Too large for its row, and nothing that could be compressed.
    let sql = format!(
        "INSERT INTO measurements (session_id, left_mesh, left_version)
         SELECT 's-1', string_agg(sha256(convert_to('{mesh}' || i, 'UTF8')), ''), '{version}'
         FROM generate_series(1, 1000) i"
    );
    connection.run(&sql).await;
    connection.close().await;
}

#[tokio::test]
async fn meshes_are_compared_by_length_and_read_only_if_asked() {
    let (old, same, newer) = (Stores::fresh().await, Stores::fresh().await, Stores::fresh().await);
    insert(&old, "a", "L/1").await;
    insert(&same, "b", "L/1").await;
    insert(&newer, "a", "L/2").await;

    let before = mesh_blocks_read(&old).await;
    let output = compare(&[&old.database_url, &same.database_url]).await;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(mesh_blocks_read(&old).await, before, "no mesh is read");
    let output = compare(&["--meshes", &old.database_url, &same.database_url]).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_ne!(mesh_blocks_read(&old).await, before);
    let output = compare(&[&old.database_url, &newer.database_url]).await;
    assert_eq!(output.status.code(), Some(1), "the versions differ: {output:?}");
}
