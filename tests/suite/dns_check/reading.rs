//! How `dns-check` reads the clusters and the zone, and what it says if it cannot.

use std::os::unix::fs::PermissionsExt;

use super::*;

/// A folder with a `kubectl` and an `aws` that answer from files, and log how they were called.
struct Tools {
    folder: tempfile::TempDir,
}

impl Tools {
    fn new(world: &World) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        world.write(folder.path());
        let tools = Self { folder };
        tools.tool(
            "kubectl",
            r#"case "$4" in
    deployments,*) kind=deployments ;;
    serviceaccounts) kind=accounts ;;
    *) kind=objects ;;
esac
exec cat "$here/$2-$kind.json""#,
        );
        tools.tool(
            "aws",
            r#"case "$2" in
    get-hosted-zone) exec cat "$here/zone.json" ;;
    simulate-principal-policy) exec cat "$here/role.json" ;;
    *) exec cat "$here/records.json" ;;
esac"#,
        );
        tools
    }

    fn tool(&self, name: &str, body: &str) {
        let path = self.folder.path().join(name);
        let here = self.folder.path().display();
        let log = format!("printf '%s\\n' '{name}' \"$@\" >'{here}'/called.$$");
        fs::write(&path, format!("#!/bin/sh\nhere='{here}'\n{log}\n{body}\n")).expect("writable");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a mode");
    }

    fn ask(&self, step: &str, more: &[&str]) -> Answer {
        let path = std::env::var("PATH").expect("a PATH");
        let output = Command::new(script())
            .args([HOST, "--zone", "Z9", "--old", "old", "--new", "new", "--before", step])
            .args(more)
            .env("PATH", format!("{}:{path}", self.folder.path().display()))
            .output()
            .expect("python3 runs");
        Answer::of(output)
    }

    /// The arguments of each call, sorted.
    fn calls(&self) -> Vec<Vec<String>> {
        let mut calls = Vec::new();
        for entry in fs::read_dir(self.folder.path()).expect("the folder") {
            let path = entry.expect("an entry").path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("called.")) {
                let text = fs::read_to_string(path).expect("text");
                calls.push(text.lines().map(str::to_owned).collect());
            }
        }
        calls.sort();
        calls
    }
}

#[test]
fn both_clusters_and_the_zone_are_read_and_kept_for_another_run() {
    let tools = Tools::new(&World::new());
    let kept = tempfile::tempdir().expect("a folder");
    let folder = kept.path().join("kept");
    let folder = folder.to_str().expect("a path");
    let answer = tools.ask("live", &["--save", folder]);
    answer.allowed();
    let calls = tools.calls();
    assert_eq!(calls.len(), 9, "{calls:?}");
    for cluster in ["old", "new"] {
        let workloads = "deployments,statefulsets,daemonsets,cronjobs";
        for kinds in [workloads, "ingresses,services", "serviceaccounts"] {
            let call = ["kubectl", "--context", cluster, "get", kinds, "--all-namespaces"];
            let found = calls.iter().any(|found| found.len() == 8 && found[..6] == call);
            assert!(found, "{call:?}: {calls:?}");
        }
    }
    let again = Command::new(script())
        .args([HOST, "--zone", "Z9", "--before", "live", "--from", folder])
        .output();
    assert_eq!(Answer::of(again.expect("python3 runs")).text, answer.text);
    // What was kept is a way back, and the zone may be another by now.
    let records = Path::new(folder).join("records.json");
    let before = fs::read_to_string(&records).expect("kept");
    let answer = tools.ask("live", &["--save", folder]);
    assert_eq!(answer.code, Some(2), "{}", answer.text);
    assert!(answer.text.contains("not overwritten"), "{}", answer.text);
    assert_eq!(fs::read_to_string(&records).expect("kept"), before);
}

/// Two contexts of one cluster would show two sides that agree.
#[test]
fn one_cluster_is_not_taken_for_two() {
    let mut world = World::new();
    world.old.deployment["metadata"]["uid"] = json!("6f1c");
    world.ask("now", &[]).allowed();
    world.new.deployment["metadata"]["uid"] = json!("6f1c");
    world.ask("now", &[]).refused(&["same-cluster"]);
}

/// The question to IAM is one that the real command line takes, and it asks for this record alone.
#[test]
fn the_question_to_iam_is_well_formed() {
    let tools = Tools::new(&World::new());
    tools.ask("live", &[]).allowed();
    let calls = tools.calls();
    let call = calls.iter().find(|call| call[1] == "iam").expect("the question");
    let text = call.join(" ");
    // The batch has the TXT record as well, and a role that may not write that one writes neither.
    let names = format!("ContextKeyValues={HOST},a-{HOST}");
    for part in ["hostedzone/Z9", &names, "ContextKeyValues=A,TXT", "UPSERT", "role/dns"] {
        assert!(text.contains(part), "{text}");
    }
    // Nothing listens there, so it gets as far as the connection.
    let output = Command::new("aws")
        .args(&call[1..])
        .args(["--endpoint-url", "http://127.0.0.1:1", "--region", "us-east-1"])
        .env("AWS_ACCESS_KEY_ID", "x")
        .env("AWS_SECRET_ACCESS_KEY", "x")
        .env("AWS_MAX_ATTEMPTS", "1")
        .output()
        .expect("aws runs: run this with `make test` or `scripts/with-services --with-sam`");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("Could not connect"), "{error}");
}

#[test]
fn whatever_cannot_be_read_is_named_and_nothing_is_allowed() {
    let tools = Tools::new(&World::new());
    tools.tool("kubectl", "echo \"error: context $2 does not exist\" >&2; exit 1");
    let answer = tools.ask("now", &[]);
    assert_eq!(answer.code, Some(3), "{}", answer.text);
    for cluster in ["old", "new"] {
        let reason = format!("error: context {cluster} does not exist");
        assert_eq!(answer.text.matches(&reason).count(), 3, "{}", answer.text);
    }
    let tools = Tools::new(&World::new());
    tools.tool("aws", "echo '<html>'");
    let answer = tools.ask("now", &[]);
    assert_eq!(answer.code, Some(3), "{}", answer.text);
    assert!(answer.text.contains("not JSON"), "{}", answer.text);
    // JSON of another form is no answer either.
    let tools = Tools::new(&World::new());
    fs::write(tools.folder.path().join("zone.json"), "{\"HostedZone\": 1}").expect("writable");
    let answer = tools.ask("now", &[]);
    assert_eq!(answer.code, Some(3), "{}", answer.text);
    assert!(answer.text.contains("take no step") && !answer.text.contains("Traceback"));
}

#[test]
fn a_role_that_cannot_be_asked_about_is_refused() {
    let tools = Tools::new(&World::new());
    fs::remove_file(tools.folder.path().join("role.json")).expect("there");
    tools.ask("live", &[]).refused(&["role-unknown"]);
    tools.ask("now", &[]).allowed();
}

#[test]
fn wrong_usage_ends_with_its_own_code() {
    for arguments in [
        vec![HOST, "--zone", "Z9"],
        vec![HOST, "--zone", "Z9", "--old", "a"],
        vec![HOST, "--zone", "Z9", "--old", "a", "--new", "a"],
        vec![HOST, "--zone", "Z9", "--from", "f", "--before", "new-flags"],
        vec![HOST, "--zone", "Z9", "--from", "f", "--patch-file", "p", "--deployment", "n/d"],
        vec![HOST, "--zone", "Z9", "--from", "f", "--before", "tea"],
        vec!["*.example.com", "--zone", "Z9", "--from", "f"],
        vec![HOST, "--from", "f"],
    ] {
        let output = Command::new(script()).args(&arguments).output().expect("python3 runs");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
    let help = Command::new(script()).arg("--help").output().expect("python3 runs");
    assert!(help.status.success());
    // Another zone that has records of that name by chance.
    let world = World::new();
    let folder = tempfile::tempdir().expect("a folder");
    world.write(folder.path());
    let output = Command::new(script())
        .args(["measurements.example.org", "--zone", "Z9", "--from"])
        .arg(folder.path())
        .output();
    Answer::of(output.expect("python3 runs")).refused(&["wrong-zone"]);
}
