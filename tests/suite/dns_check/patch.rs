//! `--before new-flags`: a patch of the new side's external-dns, applied to a copy by a real
//! kubectl, and judged before anybody applies it.

use super::*;

const DEPLOYMENT: &str = "kube-system/external-dns";

/// The patch that the runbook applies.
fn flags() -> PathBuf {
    script().with_file_name("../k8s/external-dns/new/flags.yaml")
}

/// A new side as it is before: it follows its Ingresses, and does not see the name.
fn before() -> World {
    let mut world = World::new();
    world.new.container()["args"] = json!([
        "--provider=aws",
        "--source=ingress",
        "--txt-owner-id=shared",
        "--policy=sync",
        "--domain-filter=apps.example.org",
    ]);
    world
}

fn ask(world: &World, patch: &Path) -> Answer {
    let patch = patch.to_str().expect("a path");
    world.ask("new-flags", &["--deployment", DEPLOYMENT, "--patch-file", patch])
}

#[test]
fn the_flags_of_the_new_side_are_judged_before_they_are_there() {
    let mut world = before();
    let answer = ask(&world, &flags());
    answer.allowed().does(&[]);
    assert!(answer.text.contains("policy upsert-only (args[3])"), "{}", answer.text);
    // Its Ingress is live already: nobody sees it as things are.
    world.new.ingress["metadata"]["annotations"] = json!({});
    world.old.policy("upsert-only");
    world.ask("now", &[]).allowed();
    ask(&world, &flags()).refused(&["fight"]);
    // A version that does not start with one of the flags.
    let mut world = before();
    world.new.container()["image"] = json!("external-dns:v0.19.0");
    ask(&world, &flags()).refused(&["flag-of-another-version"]);
}

#[test]
fn a_filter_without_the_policy_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let patch = folder.path().join("patch.json");
    let widened = json!([{ "op": "add", "path": "/spec/template/spec/containers/0/args/-",
                           "value": "--domain-filter=example.com" }]);
    fs::write(&patch, widened.to_string()).expect("writable");
    ask(&before(), &patch).refused(&["deletes-live"]);
}

#[test]
fn a_patch_that_kubectl_refuses_is_no_answer() {
    // The policy is at another place of its args.
    let mut world = before();
    world.new.container()["args"].as_array_mut().expect("args").swap(3, 4);
    let missing = ask(&before(), Path::new("/nowhere/patch.yaml"));
    for (answer, words) in [(ask(&world, &flags()), "args/3"), (missing, "/nowhere/patch.yaml")] {
        assert_eq!(answer.code, Some(3), "{}", answer.text);
        assert!(answer.text.contains(words), "{}", answer.text);
    }
    world.new.deployment["metadata"]["name"] = json!("other");
    let answer = ask(&world, &flags());
    assert_eq!(answer.code, Some(3), "{}", answer.text);
    assert!(answer.text.contains("no Deployment kube-system/external-dns"), "{}", answer.text);
}
