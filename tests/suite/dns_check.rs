//! `infra/scripts/dns-check`: what external-dns of two clusters would do to one name, and what is
//! refused. Files stand for what kubectl and aws print. The expectations are those of external-dns
//! itself: its plan, its policies and its registry, run against a Route 53 of our own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value as Json, json};

mod inputs;
mod patch;
mod reading;
mod table;

const HOST: &str = "measurements.example.com";
const OLD_ALB: &str = "old-1.eu-west-1.elb.amazonaws.com";
const NEW_ALB: &str = "new-1.eu-west-1.elb.amazonaws.com";
const OLD: &str = "v0.8.0";
const NEW: &str = "v0.22.0";

fn script() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    root.join("infra/scripts/dns-check")
}

/// One cluster: its external-dns, and the Ingress that names the host.
struct Cluster {
    deployment: Json,
    ingress: Json,
    /// Services, and other Ingresses.
    others: Vec<Json>,
    /// Other Deployments.
    more_deployments: Vec<Json>,
}

impl Cluster {
    fn new(version: &str, policy: &str, balancer: &str) -> Self {
        Self {
            deployment: deployment(version, policy),
            ingress: ingress("reader", balancer),
            others: Vec::new(),
            more_deployments: Vec::new(),
        }
    }

    fn container(&mut self) -> &mut Json {
        &mut self.deployment["spec"]["template"]["spec"]["containers"][0]
    }

    fn flag(&mut self, flag: &str) -> &mut Self {
        self.container()["args"].as_array_mut().expect("args").push(json!(flag));
        self
    }

    /// Another policy at the same place.
    fn policy(&mut self, policy: &str) -> &mut Self {
        self.container()["args"][3] = json!(format!("--policy={policy}"));
        self
    }

    fn owner(&mut self, owner: &str) -> &mut Self {
        self.container()["args"][2] = json!(format!("--txt-owner-id={owner}"));
        self
    }

    fn annotate(&mut self, name: &str, value: &str) -> &mut Self {
        self.ingress["metadata"]["annotations"][name] = json!(value);
        self
    }

    /// The annotation of the overlay `dark`.
    fn dark(&mut self) -> &mut Self {
        self.annotate("external-dns.kubernetes.io/controller", "none")
    }

    fn without_host(&mut self) -> &mut Self {
        self.ingress["spec"]["rules"][0].as_object_mut().expect("a rule").remove("host");
        self
    }

    fn weight(&mut self, prefix: &str, set: &str, weight: &str) -> &mut Self {
        self.annotate(&format!("{prefix}set-identifier"), set)
            .annotate(&format!("{prefix}aws-weight"), weight)
    }
}

fn deployment(version: &str, policy: &str) -> Json {
    json!({
        "kind": "Deployment",
        "metadata": { "name": "external-dns", "namespace": "kube-system", "generation": 3 },
        "spec": { "replicas": 1, "template": { "spec": {
            "serviceAccountName": "external-dns",
            "containers": [{
                "name": "external-dns",
                "image": format!("registry.example.com/external-dns/external-dns:{version}"),
                "args": [
                    "--provider=aws", "--source=ingress", "--txt-owner-id=shared",
                    format!("--policy={policy}"), "--interval=1m", "--domain-filter=example.com",
                ],
            }],
        } } },
        "status": {
            "observedGeneration": 3, "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1,
        },
    })
}

fn ingress(name: &str, balancer: &str) -> Json {
    json!({
        "kind": "Ingress",
        "metadata": { "name": name, "namespace": "read-model", "annotations": {} },
        "spec": { "ingressClassName": "alb", "rules": [{ "host": HOST }] },
        "status": { "loadBalancer": { "ingress": [{ "hostname": balancer }] } },
    })
}

fn alias(kind: &str, target: &str) -> Json {
    json!({
        "Name": format!("{HOST}."), "Type": kind,
        "AliasTarget": { "HostedZoneId": "Z1", "DNSName": format!("{target}."),
                         "EvaluateTargetHealth": true },
    })
}

/// A TXT record of external-dns, whose name begins with a prefix.
fn text(prefix: &str, owner: &str) -> Json {
    let value =
        format!("\"heritage=external-dns,external-dns/owner={owner},external-dns/resource=x\"");
    json!({
        "Name": format!("{prefix}{HOST}."), "Type": "TXT", "TTL": 300,
        "ResourceRecords": [{ "Value": value }],
    })
}

/// A record as one of several by weight.
fn weighted(mut record: Json, set: &str, weight: u8) -> Json {
    record["SetIdentifier"] = json!(set);
    record["Weight"] = json!(weight);
    record
}

/// Both clusters and the zone, at the beginning of the switch: the old side is of 2021 and has let
/// go, the new one is dark, and the record of 2021 points to the old cluster.
struct World {
    old: Cluster,
    new: Cluster,
    records: Vec<Json>,
    decision: &'static str,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            old: Cluster::new(OLD, "create-only", OLD_ALB),
            new: Cluster::new(NEW, "upsert-only", NEW_ALB),
            records: vec![alias("A", OLD_ALB), text("", "shared")],
            decision: "allowed",
        };
        world.new.flag("--annotation-prefix=external-dns.kubernetes.io/");
        world.new.flag("--managed-record-types=A").dark();
        world
    }

    /// The same after the switch: live, and the record is the new side's.
    fn switched() -> Self {
        let mut world = Self::new();
        world.new.ingress["metadata"]["annotations"] = json!({});
        world.records = vec![alias("A", NEW_ALB), text("", "shared"), text("a-", "shared")];
        world
    }

    /// Writes what `--from` reads.
    fn write(&self, folder: &Path) {
        let put = |name: &str, value: Json| {
            fs::write(folder.join(format!("{name}.json")), value.to_string()).expect("writable");
        };
        put(
            "zone",
            json!({ "HostedZone": {
            "Id": "/hostedzone/Z9", "Name": "example.com.", "Config": { "PrivateZone": false },
        } }),
        );
        put("records", json!({ "ResourceRecordSets": self.records }));
        put(
            "role",
            json!({ "EvaluationResults": [
            { "EvalActionName": "route53:ChangeResourceRecordSets", "EvalDecision": self.decision },
        ] }),
        );
        for (cluster, found) in [("old", &self.old), ("new", &self.new)] {
            let items = |first: &Json, more: &[Json]| {
                let mut all = vec![first.clone()];
                all.extend_from_slice(more);
                json!({ "items": all })
            };
            put(
                &format!("{cluster}-deployments"),
                items(&found.deployment, &found.more_deployments),
            );
            put(&format!("{cluster}-objects"), items(&found.ingress, &found.others));
            put(
                &format!("{cluster}-accounts"),
                json!({ "items": [{ "metadata": {
                "name": "external-dns", "namespace": "kube-system",
                "annotations": { "eks.amazonaws.com/role-arn": "arn:aws:iam::111122223333:role/dns" },
            } }] }),
            );
        }
    }

    fn ask(&self, step: &str, more: &[&str]) -> Answer {
        let folder = tempfile::tempdir().expect("a folder");
        self.write(folder.path());
        let output = Command::new(script())
            .args([HOST, "--zone", "Z9", "--before", step, "--from"])
            .arg(folder.path())
            .args(more)
            .output()
            .expect("python3 runs");
        Answer::of(output)
    }
}

/// What dns-check says.
struct Answer {
    code: Option<i32>,
    text: String,
}

impl Answer {
    fn of(output: std::process::Output) -> Self {
        let text = [output.stdout, output.stderr].concat();
        Self { code: output.status.code(), text: String::from_utf8(text).expect("text") }
    }

    /// What the sides would do, one line per change.
    fn changes(&self) -> Vec<&str> {
        let changes = self.text.lines().filter_map(|line| line.strip_prefix("  the "));
        changes.collect()
    }

    /// The names of the refusals, and each has a remedy.
    fn refusals(&self) -> Vec<&str> {
        let lines: Vec<_> = self.text.lines().collect();
        let mut names = Vec::new();
        for (number, line) in lines.iter().enumerate() {
            if let Some(rest) = line.strip_prefix("REFUSED ") {
                names.push(rest.split(':').next().expect("a name"));
                let remedy = lines.get(number + 1).and_then(|line| line.strip_prefix("  remedy: "));
                assert!(remedy.is_some_and(|remedy| remedy.len() > 10), "{line}");
            }
        }
        names
    }

    /// It must be refused for exactly these reasons.
    #[track_caller]
    fn refused(&self, names: &[&str]) -> &Self {
        assert_eq!(self.refusals(), names, "{}", self.text);
        assert_eq!(self.code, Some(1), "{}", self.text);
        self
    }

    #[track_caller]
    fn allowed(&self) -> &Self {
        assert_eq!(self.refusals(), [""; 0], "{}", self.text);
        assert_eq!(self.code, Some(0), "{}", self.text);
        assert!(self.text.ends_with("OK: nothing dangerous is known of this step\n"));
        self
    }

    #[track_caller]
    fn does(&self, changes: &[String]) -> &Self {
        assert_eq!(self.changes(), changes, "{}", self.text);
        self
    }
}

fn points(side: &str, verb: &str, kind: &str, target: &str) -> String {
    let way = if verb == "deletes" { "which points" } else { "to point" };
    format!("{side} side {verb} the {kind} record, {way} to {target}")
}
