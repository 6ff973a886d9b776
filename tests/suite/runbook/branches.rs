//! What the walk does not pass by: a bucket that has a policy already.

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
            "export OLD_BUCKET={bucket} OLD_BUCKET_KEY=\naws s3api create-bucket --bucket \
                {bucket} >/dev/null\n\
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
