//! A creation that fails, on a stand-in of AWS: nothing it made stands in the way of the same
//! command.

use std::path::Path;
use std::process::{Command, Output};

use testkit::services::service;

use super::{FILES, root};

/// A resource that no account can make, as the last of its stack.
const FAILING: &str = "  Failing:
    Type: AWS::Lambda::EventInvokeConfig
    DependsOn: BucketPolicy
    Properties:
      FunctionName: no-such-function
      Qualifier: $LATEST

Outputs:
";

fn run(folder: &Path, command: &str) -> Output {
    let output = Command::new("bash")
        .args(["-c", command])
        .current_dir(folder)
        .env("SAM_CLI_POLL_DELAY", "0.3")
        .output()
        .expect("bash runs");
    eprintln!("{}", String::from_utf8_lossy(&output.stdout));
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// A bucket has a name of its own choice, so one that a failed creation leaves behind makes every
/// later one fail.
#[test]
fn a_creation_that_failed_can_be_run_again() {
    assert!(service("AWS_ENDPOINT_URL").starts_with("http://127.0.0.1:"), "a stand-in");
    let folder = tempfile::tempdir().expect("a folder");
    let template = std::fs::read_to_string(root().join("infra/archive.yaml")).expect("the file");
    let failing = template.replacen("Outputs:\n", FAILING, 1);
    assert_ne!(failing, template, "the template has outputs");
    let on_failure = &FILES["samconfig.toml"]["new-archive"]["deploy"]["parameters"]["on_failure"];
    let on_failure = on_failure.as_str().unwrap_or("ROLLBACK");
    let deploy = format!(
        "sam deploy --stack-name failed-creation --template-file archive.yaml --resolve-s3 \
         --capabilities CAPABILITY_IAM --on-failure {on_failure} \
         --parameter-overrides BucketName=failed-creation-{}",
        std::process::id()
    );
    let file = folder.path().join("archive.yaml");

    std::fs::write(&file, failing).expect("a file");
    assert!(!run(folder.path(), &deploy).status.success(), "it cannot be made");
    let exists = format!("aws s3api head-bucket --bucket failed-creation-{}", std::process::id());
    assert!(!run(folder.path(), &exists).status.success(), "the bucket was left behind");
    // AWS refuses to deploy a stack in ROLLBACK_COMPLETE; the stand-in does not.
    let stack = "aws cloudformation describe-stacks --stack-name failed-creation";
    assert!(!run(folder.path(), stack).status.success(), "the stack was left behind");

    std::fs::write(&file, template).expect("a file");
    assert!(run(folder.path(), &deploy).status.success(), "the same command again");
    assert!(run(folder.path(), &exists).status.success(), "the bucket is there");
}
