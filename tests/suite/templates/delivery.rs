//! The pipelines: what stages they have, what a release may change, and what their builds do. No
//! stand-in knows `CodePipeline`; the commands of the builds are run here with tools that answer
//! as ECR, Docker and kubectl do.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value as Json, json};

use super::{BUILDSPECS, FILES, list, members, root, template, walk};

fn properties(id: &str) -> &'static Json {
    &template("delivery")["Resources"][id]["Properties"]
}

#[test]
fn nothing_is_deployed_that_nobody_approved() {
    for id in ["ServicePipeline", "ProjectorPipeline"] {
        let pipeline = properties(id);
        assert_eq!(pipeline["PipelineType"], "V2", "{id}: the EKS action wants it");
        let stages = pipeline["Stages"].as_array().expect("stages");
        let categories: Vec<&str> = stages
            .iter()
            .map(|stage| {
                assert_eq!(stage["Actions"].as_array().map(Vec::len), Some(1), "{id}");
                stage["Actions"][0]["ActionTypeId"]["Category"].as_str().expect("a category")
            })
            .collect();
        assert_eq!(categories[..3], ["Source", "Build", "Approval"], "{id}");
        assert_eq!(categories.len(), 4, "{id}");
        // Any other approval would be given by a machine.
        assert_eq!(stages[2]["Actions"][0]["ActionTypeId"]["Provider"], "Manual", "{id}");
        let told = stages[2]["Actions"][0]["Configuration"]["CustomData"].as_str().expect("a text");
        assert!(told.contains("#{"), "{id}: whoever approves sees what");
    }
    let deploy = &properties("ServicePipeline")["Stages"][3]["Actions"][0];
    let kind = json!({ "Category": "Deploy", "Owner": "AWS", "Provider": "EKS", "Version": "1" });
    assert_eq!(deploy["ActionTypeId"], kind);
    let made = &FILES["infra/buildspec.yml"]["artifacts"]["files"];
    assert_eq!(list(made), [&deploy["Configuration"]["ManifestFiles"]]);
    // What the tenant's access entry names.
    let output = &template("delivery")["Outputs"]["ServiceDeployerRoleArn"]["Value"];
    assert_eq!(output, &json!({ "Fn::GetAtt": ["ServicePipelineRole", "Arn"] }));
    assert_eq!(properties("ServicePipeline")["RoleArn"], *output);
}

#[test]
fn every_build_finds_its_file_and_its_variables() {
    let mut used = BTreeSet::new();
    for id in ["ImageBuild", "ProjectorBuild", "ProjectorRelease"] {
        let file = properties(id)["Source"]["BuildSpec"].as_str().expect("a file");
        assert!(root().join(file).exists(), "{file}");
        used.insert(file);
        let mut given: BTreeSet<&str> =
            list(&properties(id)["Environment"]["EnvironmentVariables"])
                .into_iter()
                .map(|variable| variable["Name"].as_str().expect("a name"))
                .collect();
        // From the pipeline's action, of what the build before exports.
        given.extend((id == "ProjectorRelease").then_some("RELEASE"));
        for name in given {
            let text = FILES[file]["phases"].to_string()
                + &std::fs::read_to_string(root().join("scripts/build-lambda")).expect("a script");
            assert!(
                text.contains(&format!("${name}")) || text.contains(&format!("${{{name}")),
                "{file}: {name}"
            );
        }
    }
    assert_eq!(used, BTreeSet::from(BUILDSPECS));
    let exported = &FILES["infra/buildspec-projector.yml"]["env"]["exported-variables"];
    assert_eq!(exported, &json!(["RELEASE"]));
    let files = list(&FILES["infra/buildspec-projector.yml"]["artifacts"]["files"]);
    for needed in ["infra/projector.yaml", "infra/buildspec-release.yml"] {
        assert!(files.contains(&&json!(needed)), "{needed}");
    }
    let zip = template("projector")["Resources"]["Function"]["Properties"]["CodeUri"].as_str();
    assert!(files.contains(&&json!(zip.and_then(|zip| zip.strip_prefix("../")).expect("a path"))));
}

/// A commit that changes a role, a mapping or a bucket is deployed by hand.
#[test]
fn a_release_changes_code_and_nothing_else() {
    let role = properties("ProjectorReleaseRole");
    let mut changes = BTreeSet::new();
    walk(&role["Policies"], &mut |value| {
        if value["Effect"] != "Allow" {
            return;
        }
        for action in list(&value["Action"]).into_iter().filter_map(Json::as_str) {
            let (_, name) = action.split_once(':').expect("a service");
            if !["Get", "List", "Describe"].iter().any(|verb| name.starts_with(verb)) {
                changes.insert(action);
            }
            if action == "lambda:DeleteFunction" {
                let arn = value["Resource"]["Fn::Sub"].as_str().expect("an ARN");
                assert!(
                    arn.ends_with(":function:${ProjectorStack}:*"),
                    "a version, and no function"
                );
            }
        }
    });
    let expected = [
        "cloudformation:CreateChangeSet",
        "cloudformation:DeleteChangeSet",
        "cloudformation:ExecuteChangeSet",
        "codedeploy:CreateDeployment",
        "codedeploy:RegisterApplicationRevision",
        "codedeploy:StopDeployment",
        "iam:PassRole",
        "lambda:DeleteFunction",
        "lambda:PublishVersion",
        "lambda:TagResource",
        "lambda:UntagResource",
        "lambda:UpdateAlias",
        "lambda:UpdateFunctionCode",
        "lambda:UpdateFunctionConfiguration",
        "logs:CreateLogStream",
        "logs:PutLogEvents",
        "s3:PutObject",
    ];
    assert_eq!(changes, BTreeSet::from(expected));
    // The names that projector.yaml gives.
    let projector = &template("projector")["Resources"];
    let application = &projector["Releases"]["Properties"]["ApplicationName"];
    assert_eq!(application, &json!({ "Ref": "AWS::StackName" }));
    let group = projector["ReleaseGroup"]["Properties"]["DeploymentGroupName"].as_str();
    let arn = format!("deploymentgroup:${{ProjectorStack}}/{}", group.expect("a name"));
    assert!(role.to_string().contains(&arn), "{arn}");
    assert!(role.to_string().contains("role/${ProjectorStack}-Role-*"), "its logical id is Role");
    assert_eq!(projector["Role"]["Type"], "AWS::IAM::Role");
}

/// To roll back, `CloudFormation` reads the zip of the release before, which may be years old.
#[test]
fn the_zip_of_no_release_expires() {
    assert!(properties("ReleaseBucket").get("LifecycleConfiguration").is_none());
    let variables = list(&properties("ProjectorRelease")["Environment"]["EnvironmentVariables"]);
    let bucket = variables.iter().find(|variable| variable["Name"] == "RELEASE_BUCKET");
    assert_eq!(bucket.expect("a bucket")["Value"], json!({ "Ref": "ReleaseBucket" }));
}

const REPOSITORY: &str = "111122223333.dkr.ecr.eu-central-1.amazonaws.com/team/reader";

/// One image, by its tag.
const MANIFESTS: &str = "kind: Namespace
---
kind: Deployment
spec:
  containers:
  - image: old.example/reader:1
";

/// Stands in for ECR, Docker, kubectl and sam, and writes down each call. `kustomize deploy` does
/// what the kustomization says, if it says what ours must. Functions and not files: a file that is
/// written while another test forks cannot be run.
const TOOLS: &str = r#"
aws() {
    echo "aws $*" >>calls
    case "$*" in
    *get-login-password*) echo secret ;;
    *describe-images*)
        [ ! -e ecr-refuses ] || { echo "An error occurred (AccessDeniedException)" >&2; return 254; }
        [ -e pushed ] || { echo "An error occurred (ImageNotFoundException)" >&2; return 254; }
        echo sha256:0123 ;;
    *describe-stacks*) cat release ;;
    esac
}
docker() {
    echo "docker $*" >>calls
    case $1 in
    login) cat >/dev/null ;;
    push) touch pushed ;;
    esac
}
sam() { echo "sam $*" >>calls; }
kubectl() {
    case $2 in
    infra/k8s/overlays/dark) cat source.yaml ;;
    deploy)
        grep -qF 'Namespace|SecurityGroupPolicy' deploy/kustomization.yaml || return 1
        grep -qx '      $patch: delete' deploy/kustomization.yaml || return 1
        local name new digest
        name=$(sed -n 's/^  - name: //p' deploy/kustomization.yaml)
        new=$(sed -n 's/^ *newName: //p' deploy/kustomization.yaml)
        digest=$(sed -n 's/^ *digest: //p' deploy/kustomization.yaml)
        sed -e '1,2d' -e "s|image: $name:1|image: $new@$digest|" deploy/rendered.yaml ;;
    *) return 1 ;;
    esac
}
"#;

/// Runs the commands of a buildspec as `CodeBuild` does, in one shell, after this.
fn build(folder: &Path, file: &str, before: &str) -> Output {
    std::fs::write(folder.join("calls"), "").expect("a file");
    let mut commands = format!("{TOOLS}{before}");
    for phase in ["pre_build", "build", "post_build"] {
        let of_phase = list(&FILES[file]["phases"][phase]["commands"]);
        for command in of_phase.into_iter().filter_map(Json::as_str) {
            commands.push('\n');
            commands.push_str(command);
        }
    }
    Command::new("bash")
        .args(["-c", &format!("{commands}\necho \"IMAGE=$IMAGE\"")])
        .current_dir(folder)
        .env("CODEBUILD_RESOLVED_SOURCE_VERSION", "0123456789abcdef0123456789abcdef01234567")
        .env("CODEBUILD_BUILD_SUCCEEDING", "1")
        .env("REPOSITORY_NAME", "team/reader")
        .env("REPOSITORY_URI", REPOSITORY)
        .env("OVERLAY", "dark")
        .env("PROJECTOR_STACK", "projector-new")
        .env("RELEASE_BUCKET", "releases")
        .env("RELEASE", "0123456789ab-7")
        .output()
        .expect("bash runs")
}

fn read(folder: &Path, file: &str) -> String {
    std::fs::read_to_string(folder.join(file)).unwrap_or_default()
}

/// The image is pushed once per commit, and the manifests name it by the digest that ECR gave it.
#[test]
fn the_manifests_name_the_image_that_was_pushed_by_its_digest() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    std::fs::write(folder.join("source.yaml"), MANIFESTS).expect("a file");
    let image = format!("{REPOSITORY}@sha256:0123");
    for pushes in [1, 0] {
        let output = build(folder, "infra/buildspec.yml", "");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(printed.contains(&format!("IMAGE={image}")), "{printed}");
        assert_eq!(read(folder, "calls").matches("docker push").count(), pushes);
        assert!(read(folder, "calls").contains("imageTag=0123456789ab "));
        let manifests = read(folder, "manifests.yaml");
        assert!(manifests.contains(&format!("image: {image}")), "{manifests}");
        assert!(!manifests.contains("kind: Namespace"), "{manifests}");
    }
}

/// Nothing is handed to the next stage by a build that went wrong.
#[test]
fn a_build_that_knows_no_digest_or_no_single_image_fails() {
    let two = format!("{MANIFESTS}  - image: other.example/sidecar:2\n");
    let cases = [
        ("touch ecr-refuses", MANIFESTS, "AccessDeniedException"),
        ("", two.as_str(), "the manifests must have one image"),
        ("", "kind: Service\n", "the manifests must have one image, and have: none"),
        ("CODEBUILD_BUILD_SUCCEEDING=0", MANIFESTS, ""),
    ];
    for (before, manifests, message) in cases {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path();
        std::fs::write(folder.join("source.yaml"), manifests).expect("a file");
        let output = build(folder, "infra/buildspec.yml", before);
        assert!(!output.status.success(), "{before:?} {message}");
        let printed = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(printed.contains(message), "{printed}");
        assert_eq!(read(folder, "manifests.yaml"), "", "{before:?} {message}");
        let built = read(folder, "calls").contains("docker build");
        assert_eq!(built, !before.contains("ecr-refuses"), "an error of ECR is no missing image");
    }
}

/// A release names one parameter, and is none for a stack that has no alias yet: it would move the
/// mappings, which its role may not.
#[test]
fn a_release_keeps_every_parameter_and_is_never_the_first() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    for none in ["", "None\n"] {
        std::fs::write(folder.join("release"), none).expect("a file");
        let output = build(folder, "infra/buildspec-release.yml", "");
        assert!(!output.status.success());
        let printed = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            printed.contains("deploy it once by hand with Release=0123456789ab-7"),
            "{printed}"
        );
        assert!(!read(folder, "calls").contains("sam deploy"));
    }
    std::fs::write(folder.join("release"), "before-7\n").expect("a file");
    let output = build(folder, "infra/buildspec-release.yml", "");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let calls = read(folder, "calls");
    let (_, deploy) = calls.split_once("sam deploy ").expect("a deployment");
    assert!(
        deploy.trim_end().ends_with("--parameter-overrides Release=0123456789ab-7"),
        "{deploy}"
    );
    // With a service role the stack would keep it for every later deployment by hand.
    assert!(deploy.contains("--stack-name projector-new ") && !deploy.contains("--role-arn"));
    let release = &template("projector")["Parameters"]["Release"]["AllowedPattern"];
    assert!(super::matches(release.as_str().expect("a pattern"), "0123456789ab-123456"));
}

/// The machine that builds has the function's architecture: cargo-lambda would link for another,
/// and Docker would push an image that no pod can run.
#[test]
fn builds_run_on_the_architecture_that_they_build_for() {
    for (id, project) in members(&template("delivery")["Resources"]) {
        if project["Type"] != "AWS::CodeBuild::Project" {
            continue;
        }
        let environment = &project["Properties"]["Environment"];
        let kind = json!({ "Fn::If": ["OnArm", "ARM_CONTAINER", "LINUX_CONTAINER"] });
        assert_eq!(environment["Type"], kind, "{id}");
        let image = &environment["Image"]["Fn::If"];
        assert!(image[1].to_string().contains("aarch64"), "{id}");
        assert!(image[2].to_string().contains("x86_64"), "{id}");
    }
    let of = |name: &str| template(name)["Parameters"]["Architecture"]["Default"].clone();
    assert_eq!(of("delivery"), of("projector"));
}
