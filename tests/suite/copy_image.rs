//! `infra/scripts/copy-image`, with the real skopeo, between two real registries: a generation
//! arrives with every digest, a copy that differs is refused and gets no tag, and a run that is
//! killed is completed by the next. Needs Linux with apt for both (`--with-registry`).

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Output, Stdio};

use testkit::registry::{Relay, Rule, digest, digest_at, push};
use testkit::runs::text;
use testkit::services::service;
use tokio::process::Command;

/// A repository's name of a test's own.
fn repository() -> String {
    format!("api-{:016x}", fastrand::u64(..))
}

fn command(arguments: &[&str]) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../infra/scripts/copy-image");
    let mut command = Command::new(script);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

async fn copy(arguments: &[&str]) -> Output {
    command(&[&["--insecure"], arguments].concat()).output().await.expect("it runs")
}

fn assert_code(output: &Output, code: i32, words: &str) {
    let printed = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{printed}");
    assert!(printed.contains(words), "{words}: {printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_arrives_with_every_digest_and_a_second_run_copies_nothing() {
    let (from, to, name) = (service("REGISTRY_FROM"), service("REGISTRY_TO"), repository());
    let (index, images) = push(&from, &name, Some("v1"), "one").await;
    let source = format!("{from}/{name}");
    let by_tag = [&*format!("{source}:v1"), &*format!("{to}/{name}")];
    assert_code(&copy(&[&["--compare"], &by_tag[..]].concat()).await, 7, "is not there");
    assert_code(&copy(&by_tag).await, 0, "copied: 3 manifests have the same digests");
    assert_eq!(digest_at(&to, &name, "v1").await, Some(index.clone()));
    for image in &images {
        assert_eq!(digest_at(&to, &name, image).await.as_ref(), Some(image), "each platform");
    }
    assert_code(&copy(&by_tag).await, 0, "is there already: 3 manifests");
    assert_code(&copy(&[&["--compare"], &by_tag[..]].concat()).await, 0, "is there already");
    // By its digest, even if no tag names it any more; the copy gets a tag of its own.
    let (untagged, _) = push(&from, &name, None, "two").await;
    let by_digest = format!("{source}@{untagged}");
    assert_code(&copy(&[&by_digest, by_tag[1]]).await, 0, "copied: 3 manifests");
    let tag = format!("sha256-{}", &untagged["sha256:".len()..][..12]);
    assert_eq!(digest_at(&to, &name, &tag).await, Some(untagged.clone()));
    let renamed = format!("{}:v2", by_tag[1]);
    assert_code(&copy(&[&by_digest, &renamed]).await, 0, "copied: 3 manifests");
    assert_eq!(digest_at(&to, &name, "v2").await, Some(untagged));
    assert_eq!(digest_at(&to, &name, "v1").await, Some(index), "the other tag stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_names_something_else_is_never_moved() {
    let (from, to, name) = (service("REGISTRY_FROM"), service("REGISTRY_TO"), repository());
    push(&from, &name, Some("v1"), "one").await;
    let (other, _) = push(&to, &name, Some("v1"), "other").await;
    let output = copy(&[&format!("{from}/{name}:v1"), &format!("{to}/{name}")]).await;
    assert_code(&output, 7, "is there already, and is sha256:");
    assert_eq!(digest_at(&to, &name, "v1").await, Some(other));
}

/// The new registry answers the manifest of a platform, or the index, with other bytes.
#[tokio::test(flavor = "multi_thread")]
async fn a_tampered_copy_is_refused_and_gets_no_tag() {
    let (from, to, name) = (service("REGISTRY_FROM"), service("REGISTRY_TO"), repository());
    let (index, images) = push(&from, &name, Some("v1"), "one").await;
    for tampered in [images[1].clone(), index.clone()] {
        let relay = Relay::start(&to, move |method, path, _| {
            let is_read = method == "GET" && path.ends_with(&format!("manifests/{tampered}"));
            if is_read { Rule::Tamper } else { Rule::Pass }
        })
        .await;
        let place = format!("{}/{name}", relay.address);
        let output = copy(&[&format!("{from}/{name}:v1"), &place]).await;
        assert_code(&output, 7, "do not use this copy");
        assert_eq!(digest_at(&to, &name, "v1").await, None, "no tag names it");
    }
    // Of the old registry, too.
    let relay = Relay::start(&from, move |method, path, _| {
        let is_read = method == "GET" && path.contains(&format!("manifests/{index}"));
        if is_read { Rule::Tamper } else { Rule::Pass }
    })
    .await;
    let output = copy(&[&format!("{}/{name}:v1", relay.address), &format!("{to}/{name}")]).await;
    assert_ne!(output.status.code(), Some(0), "{}", text(&output.stdout));
    assert_eq!(digest_at(&to, &name, "v1").await, None, "no tag names it");
}

/// What was looked up is what is copied, and that the tag has moved since is said.
#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moves_in_between_changes_nothing_and_is_said() {
    let (from, to, name) = (service("REGISTRY_FROM"), service("REGISTRY_TO"), repository());
    let (first, _) = push(&from, &name, Some("v1"), "one").await;
    let (second, _) = push(&from, &name, None, "two").await;
    let moved = format!("/v2/{name}/manifests/{second}");
    let relay = Relay::start(&from, move |_, path, before| {
        let is_moved = path.ends_with("manifests/v1") && before > 0;
        if is_moved { Rule::To(moved.clone()) } else { Rule::Pass }
    })
    .await;
    let output = copy(&[&format!("{}/{name}:v1", relay.address), &format!("{to}/{name}")]).await;
    assert_code(&output, 7, "has moved to");
    assert_eq!(digest_at(&to, &name, "v1").await, Some(first), "the generation of before");
    // Of the new registry: somebody else pushed right after us.
    let (other, name) = (repository(), repository());
    push(&from, &name, Some("v1"), "one").await;
    let (else_pushed, _) = push(&to, &name, None, &other).await;
    let moved = format!("/v2/{name}/manifests/{else_pushed}");
    let relay = Relay::start(&to, move |method, path, before| {
        let is_moved = method == "GET" && path.ends_with("manifests/v1") && before > 0;
        if is_moved { Rule::To(moved.clone()) } else { Rule::Pass }
    })
    .await;
    let output = copy(&[&format!("{from}/{name}:v1"), &format!("{}/{name}", relay.address)]).await;
    assert_code(&output, 7, "somebody else moved the tag");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_killed_leaves_no_tag_and_the_same_command_completes_it() {
    let (from, to, name) = (service("REGISTRY_FROM"), service("REGISTRY_TO"), repository());
    let (index, images) = push(&from, &name, Some("v1"), "one").await;
    let hang = format!("manifests/{}", images[1]);
    let relay = Relay::start(&to, move |method, path, _| {
        if method == "PUT" && path.contains(&hang) { Rule::Hang } else { Rule::Pass }
    })
    .await;
    let (source, place) = (format!("{from}/{name}:v1"), format!("{}/{name}", relay.address));
    let mut run =
        command(&["--insecure", &source, &place]).process_group(0).spawn().expect("it starts");
    while !relay.has_seen("PUT", &images[1]) {
        assert_eq!(run.try_wait().expect("a process"), None, "it ended before it was killed");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let group = format!("-{}", run.id().expect("it runs yet"));
    let kill = Command::new("kill").args(["-9", "--", &group]).status().await.expect("kill");
    assert!(kill.success() && run.wait().await.expect("it ends").code().is_none());
    assert_eq!(digest_at(&to, &name, "v1").await, None);
    assert_code(&copy(&[&source, &format!("{to}/{name}")]).await, 0, "copied: 3 manifests");
    assert_eq!(digest_at(&to, &name, "v1").await, Some(index));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_ecr_and_not_on_this_machine_is_refused() {
    let image = format!("127.0.0.1:1/api@sha256:{}", "0".repeat(64));
    for (arguments, code, words) in [
        (&["--insecure", "registry.example.com/api:v1", "127.0.0.1:1/api"][..], 2, "not on it"),
        (&["registry.example.com/api:v1", "127.0.0.1:1/api"], 1, "neither ECR nor on this machine"),
        (&["127.0.0.1:1/api", "127.0.0.1:1/api"], 1, "either a :TAG or an @sha256:DIGEST"),
        (&["127.0.0.1:1/api:v1", &image], 1, "TO is a repository"),
        (&["api", "127.0.0.1:1/api"], 1, "is no REGISTRY/REPOSITORY"),
    ] {
        let output = command(arguments).output().await.expect("it runs");
        assert_code(&output, code, words);
    }
}

/// A stand-in of both programs, because no registry here is ECR: it writes down how it was called.
#[tokio::test]
async fn ecr_gets_a_password_by_standard_input_and_no_command_line_has_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let calls = folder.path().join("calls");
    let script = "#!/bin/sh\nprintf '%s' \"${0##*/} $*\" >>CALLS\ncase \"$*\" in\n\
        *get-login-password*) echo the-password ;;\n\
        login*) printf ' <'; cat ;; \n\
        *inspect*) printf '{}' ;;\nesac | tee -a CALLS.printed\n\
        case \"$*\" in login*) printf ' stdin:' >>CALLS; tail -1 CALLS.printed >>CALLS ;; esac\n\
        echo >>CALLS\n";
    for program in ["aws", "skopeo"] {
        let path = folder.path().join(program);
        let script = script.replace("CALLS", &calls.to_string_lossy());
        fs::write(&path, script).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
    }
    let host = |region: &str| format!("111122223333.dkr.ecr.{region}.amazonaws.com");
    let (from, to) =
        (format!("{}/api:v1", host("eu-west-1")), format!("{}/api", host("us-east-1")));
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").expect("a PATH"));
    let output = command(&["--to-profile", "shared", &from, &to]).env("PATH", path).output().await;
    let output = output.expect("it runs");
    assert_code(&output, 0, &digest(b"{}"));
    let calls = fs::read_to_string(&calls).expect("calls");
    assert!(calls.contains("aws ecr get-login-password --region eu-west-1\n"), "{calls}");
    let other = "aws ecr get-login-password --region us-east-1 --profile shared\n";
    assert!(calls.contains(other), "{calls}");
    let logins: Vec<&str> = calls.lines().filter(|line| line.contains("skopeo login")).collect();
    assert_eq!(logins.len(), 2, "{calls}");
    for (login, region) in logins.iter().zip(["eu-west-1", "us-east-1"]) {
        let (words, input) = login.split_once(" stdin:").expect("standard input");
        assert!(words.ends_with(&format!("--password-stdin {}", host(region))), "{login}");
        assert!(words.contains("--authfile /") && !words.contains("the-password"), "{login}");
        assert!(input.contains("the-password"), "{login}");
    }
    assert!(!calls.contains("tls-verify=false"), "{calls}");
}
