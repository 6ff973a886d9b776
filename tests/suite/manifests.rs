//! What `infra/k8s` says, rendered by the kustomize of a real kubectl: it fits the schemas of two
//! Kubernetes versions and what Fargate allows, and only what is meant names the host. No test
//! applies it: nothing here runs a cluster, a load balancer or Fargate.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value as Json, json};

const OVERLAYS: [&str; 3] = ["dark", "live", "no-host"];
/// The oldest version that we mean to run on, and the newest that has a schema.
const VERSIONS: [&str; 2] = ["1.33", "1.37"];
const HOST: &str = "measurements.example.com";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}

/// The path of a command of `--with-kubernetes`.
fn tool(name: &str) -> PathBuf {
    let found = Command::new("sh").args(["-c", &format!("command -v {name}")]).output();
    let found = String::from_utf8(found.expect("a shell").stdout).expect("a path");
    assert!(
        !found.is_empty(),
        "{name} is not on the PATH: run this with `make test` or `scripts/with-services \
         --with-kubernetes`"
    );
    fs::canonicalize(found.trim()).expect("the tool")
}

fn run(name: &str, arguments: &[&str]) -> Output {
    Command::new(tool(name)).args(arguments).current_dir(root()).output().expect("the tool runs")
}

/// What a command prints. It must succeed.
fn printed(name: &str, arguments: &[&str]) -> String {
    let output = run(name, arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn rendered(folder: &str) -> String {
    printed("kubectl", &["kustomize", folder])
}

fn overlay(name: &str) -> String {
    rendered(&format!("infra/k8s/overlays/{name}"))
}

/// The documents of a YAML text, by the Python that carries the schemas.
fn parsed(yaml: &str) -> Vec<Json> {
    let script = "import json, sys, yaml
print(json.dumps([found for found in yaml.safe_load_all(sys.argv[1]) if found]))";
    let python = tool("kubernetes-validate").with_file_name("python");
    let output = Command::new(python).args(["-c", script, yaml]).output().expect("python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn one<'a>(documents: &'a [Json], kind: &str) -> &'a Json {
    let mut found = documents.iter().filter(|document| document["kind"] == kind);
    let first = found.next().unwrap_or_else(|| panic!("no {kind}"));
    assert!(found.next().is_none(), "more than one {kind}");
    first
}

/// Every member at any depth, by its name.
fn members<'a>(value: &'a Json, found: &mut Vec<(&'a str, &'a Json)>) {
    match value {
        Json::Array(values) => {
            for value in values {
                members(value, found);
            }
        }
        Json::Object(values) => {
            for (name, value) in values {
                found.push((name, value));
                members(value, found);
            }
        }
        _ => {}
    }
}

fn all_members(documents: &[Json]) -> Vec<(&str, &Json)> {
    let mut found = Vec::new();
    for document in documents {
        members(document, &mut found);
    }
    found
}

/// What is wrong with manifests by the schema of a version. A document without a schema is only
/// warned of, which must count: an API version that is gone has none.
fn faults(yaml: &str, version: &str) -> Vec<String> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("manifests.yaml");
    fs::write(&file, yaml).expect("writable");
    let file = file.to_str().expect("a path");
    let output = run("kubernetes-validate", &["-k", version, "--strict", file]);
    let text = String::from_utf8(output.stdout).expect("text");
    let passed = text.lines().filter(|line| line.starts_with("INFO")).count();
    let mut faults: Vec<_> =
        text.lines().filter(|line| !line.starts_with("INFO")).map(str::to_owned).collect();
    if !output.status.success() && faults.is_empty() {
        faults.push(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    if passed + faults.len() != parsed(yaml).len() {
        faults.push(format!("not every document was looked at: {text}"));
    }
    faults
}

#[test]
fn every_overlay_fits_the_schemas_of_two_versions() {
    for name in OVERLAYS {
        let yaml = overlay(name);
        assert_eq!(parsed(&yaml).len(), 7, "{name}");
        for version in VERSIONS {
            assert_eq!(faults(&yaml, version), [""; 0], "{name} by {version}");
        }
        // An unknown field, a wrong type, and an API version that is gone would be found.
        for (from, to, by) in [
            ("ingressClassName:", "ingressClass:", "ERROR"),
            ("minReplicas: 2", "minReplicas: two", "ERROR"),
            ("networking.k8s.io/v1\n", "networking.k8s.io/v1beta1\n", "WARN"),
        ] {
            assert!(yaml.contains(from), "{from}");
            let found = faults(&yaml.replace(from, to), VERSIONS[1]);
            assert!(found.len() == 1 && found[0].starts_with(by), "{to}: {found:?}");
        }
    }
}

/// The step to live takes one line away, so nothing else can go wrong in it.
#[test]
fn dark_is_live_and_one_line_more() {
    let (dark, live) = (overlay("dark"), overlay("live"));
    let guard = "    external-dns.kubernetes.io/controller: none\n";
    assert_eq!(dark.matches(guard).count(), 1);
    assert_eq!(dark.replace(guard, ""), live);
    assert!(live.contains(HOST) && !live.contains("external-dns"));
    // The guard is under the prefix that the patch of external-dns pins.
    let pinned = fs::read_to_string(root().join("infra/k8s/external-dns/new/flags.yaml"));
    let pinned = pinned.expect("the patch");
    let prefix = guard.trim().strip_suffix("controller: none").expect("the prefix");
    assert!(pinned.contains(&format!("--annotation-prefix={prefix}\n")));
}

/// external-dns takes hosts from the rules, from `tls.hosts` and from annotations, of an Ingress
/// and of a Service.
#[test]
fn no_host_escapes_from_no_host() {
    let yaml = overlay("no-host");
    assert!(!yaml.contains("example.com"), "{yaml}");
    let documents = parsed(&yaml);
    for (name, value) in all_members(&documents) {
        assert!(!["host", "hosts", "tls"].contains(&name), "{name}: {value}");
        assert!(!name.contains("external-dns"), "{name}: {value}");
    }
    // The others differ from it by the host alone.
    let mut live = parsed(&overlay("live"));
    let ingress = live.iter_mut().find(|found| found["kind"] == "Ingress").expect("an Ingress");
    let rule = ingress["spec"]["rules"][0].as_object_mut().expect("a rule");
    assert_eq!(rule.remove("host"), Some(json!(HOST)));
    assert_eq!(live, documents);
}

#[test]
fn nothing_needs_what_fargate_does_not_have() {
    for name in OVERLAYS {
        let documents = parsed(&overlay(name));
        assert!(documents.iter().all(|found| found["kind"] != "DaemonSet"), "{name}");
        for (member, value) in all_members(&documents) {
            let refused = ["hostPort", "hostNetwork", "hostPath", "hostPID", "hostIPC"];
            assert!(!refused.contains(&member), "{name}: {member}");
            assert!(member != "privileged" || value == &json!(false), "{name}: {member}");
        }
        let ingress = one(&documents, "Ingress");
        assert_eq!(ingress["apiVersion"], "networking.k8s.io/v1");
        assert_eq!(ingress["spec"]["ingressClassName"], "alb");
        let annotations = &ingress["metadata"]["annotations"];
        assert_eq!(annotations["alb.ingress.kubernetes.io/target-type"], "ip");
        let labels = &one(&documents, "Namespace")["metadata"]["labels"];
        assert_eq!(labels["elbv2.k8s.aws/pod-readiness-gate-inject"], "enabled");
    }
}

#[test]
fn pods_have_requests_probes_and_no_root() {
    let documents = parsed(&overlay("live"));
    let pod = &one(&documents, "Deployment")["spec"]["template"]["spec"];
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    let containers = pod["containers"].as_array().expect("containers");
    assert!(!containers.is_empty());
    for container in containers {
        let requests = &container["resources"]["requests"];
        assert!(requests["cpu"].is_string() && requests["memory"].is_string(), "{requests}");
        for probe in ["readinessProbe", "livenessProbe"] {
            assert!(container[probe]["httpGet"]["path"].is_string(), "{probe}");
        }
        let context = &container["securityContext"];
        assert_eq!(context["allowPrivilegeEscalation"], false);
        assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
        let image = container["image"].as_str().expect("an image");
        assert!(image.contains("@sha256:"), "{image}: a tag can be pushed again");
    }
}

/// A name that is spelled differently in two places gives a Service without pods, a budget for
/// nobody, or pods that run nowhere.
#[test]
fn the_parts_find_each_other() {
    let documents = parsed(&overlay("live"));
    let (deployment, service) = (one(&documents, "Deployment"), one(&documents, "Service"));
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    for selector in [
        &deployment["spec"]["selector"]["matchLabels"],
        &service["spec"]["selector"],
        &one(&documents, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
    ] {
        assert_eq!(selector, labels);
    }
    let scaler = &one(&documents, "HorizontalPodAutoscaler")["spec"];
    assert_eq!(scaler["scaleTargetRef"]["kind"], "Deployment");
    assert_eq!(scaler["scaleTargetRef"]["name"], deployment["metadata"]["name"]);
    assert!(scaler["minReplicas"].as_i64() >= Some(2), "one pod is none during a rollout");
    assert!(deployment["spec"].get("replicas").is_none(), "the autoscaler sets them");
    let account = one(&documents, "ServiceAccount");
    let role = &account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"];
    assert!(role.is_string(), "{account}");
    let used = &deployment["spec"]["template"]["spec"]["serviceAccountName"];
    assert_eq!(used, &account["metadata"]["name"]);
    let backend = &one(&documents, "Ingress")["spec"]["rules"][0]["http"]["paths"][0]["backend"];
    assert_eq!(backend["service"]["name"], service["metadata"]["name"]);
    assert_eq!(backend["service"]["port"]["name"], service["spec"]["ports"][0]["name"]);
    let namespace = &one(&documents, "Namespace")["metadata"]["name"];
    for document in documents.iter().filter(|found| found["kind"] != "Namespace") {
        assert_eq!(&document["metadata"]["namespace"], namespace, "{document}");
    }
}

#[test]
fn the_example_stays_small() {
    let lines: usize = fs::read_dir(root().join("infra/k8s/base"))
        .expect("the base")
        .map(|entry| fs::read_to_string(entry.expect("an entry").path()).expect("text"))
        .map(|text| text.lines().count())
        .sum();
    assert!((60..150).contains(&lines), "{lines}");
}

/// A team's own external-dns, as the patches expect it: its policy is `args[3]`.
fn external_dns(policy: &str) -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: external-dns, namespace: kube-system}}
spec:
  selector: {{matchLabels: {{app: external-dns}}}}
  template:
    metadata: {{labels: {{app: external-dns}}}}
    spec:
      containers:
        - name: external-dns
          image: external-dns/external-dns:v0.22.0
          args: [--provider=aws, --source=ingress, --txt-owner-id=shared, --policy={policy}]
"
    )
}

/// The args of a Deployment to which a component is applied, or kustomize's error.
fn patched(component: &str, policy: &str) -> Result<Json, String> {
    let folder = tempfile::tempdir().expect("a folder");
    let component = root().join("infra/k8s/external-dns").join(component);
    fs::create_dir(folder.path().join("component")).expect("writable");
    for entry in fs::read_dir(component).expect("the component") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name");
        fs::copy(&path, folder.path().join("component").join(name)).expect("writable");
    }
    fs::write(folder.path().join("deployment.yaml"), external_dns(policy)).expect("writable");
    let kustomization = "resources: [deployment.yaml]\ncomponents: [component]\n";
    fs::write(folder.path().join("kustomization.yaml"), kustomization).expect("writable");
    let output = run("kubectl", &["kustomize", folder.path().to_str().expect("a path")]);
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let yaml = String::from_utf8(output.stdout).expect("text");
    assert_eq!(faults(&yaml, VERSIONS[1]), [""; 0]);
    let documents = parsed(&yaml);
    Ok(documents[0]["spec"]["template"]["spec"]["containers"][0]["args"].clone())
}

#[test]
fn the_components_change_the_flags_that_they_name_and_no_others() {
    let before = ["--provider=aws", "--source=ingress", "--txt-owner-id=shared"];
    let with = |more: &[&str]| json!([&before[..], more].concat());
    assert_eq!(patched("old", "upsert-only"), Ok(with(&["--policy=create-only"])));
    let flags = [
        "--policy=upsert-only",
        "--domain-filter=example.com",
        "--annotation-prefix=external-dns.kubernetes.io/",
        "--managed-record-types=A",
    ];
    assert_eq!(patched("new", "sync"), Ok(with(&flags)));
    // Another flag stands there, as it would if args were counted wrongly.
    for component in ["old", "new"] {
        let refused = patched(component, "other").expect_err("the test of the patch");
        assert!(refused.contains("args/3"), "{refused}");
    }
}

/// The same files without kustomize, as the runbook uses them, there and back.
#[test]
fn kubectl_applies_the_policy_and_takes_it_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("deployment.yaml");
    let deployment = file.to_str().expect("a path");
    let patch = |patch: &str| {
        let patch = format!("infra/k8s/external-dns/old/{patch}.yaml");
        let output = run(
            "kubectl",
            &[
                "patch",
                "--local",
                "-f",
                deployment,
                "--type",
                "json",
                "--patch-file",
                &patch,
                "-o",
                "yaml",
            ],
        );
        (output.status.success(), String::from_utf8(output.stdout).expect("text"))
    };
    fs::write(&file, external_dns("upsert-only")).expect("writable");
    let (refused, _) = patch("upsert-only");
    assert!(!refused, "there is nothing to take back");
    let (done, there) = patch("create-only");
    assert!(done && there.contains("--policy=create-only\n"), "{there}");
    fs::write(&file, &there).expect("writable");
    let (done, back) = patch("upsert-only");
    assert!(done && back.contains("--policy=upsert-only\n"), "{back}");
    let (done, with_records) = patch("a-records");
    assert!(done && with_records.contains("--managed-record-types=A\n"), "{with_records}");
}
