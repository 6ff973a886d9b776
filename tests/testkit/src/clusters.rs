//! Two Kubernetes clusters that are files, a `kubectl` for them, and the external-dns of both, by
//! the rules that are known of it: an old one of v0.8 and a new one of v0.22. For the service's
//! runbook. The rules here are written anew, so they can disagree with those of `dns-check`.

use std::convert::Infallible;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value as Json, json};
use tokio::net::{TcpListener, TcpStream};

use crate::route53::{Content, RecordSet, Route53, ZONE, ZONE_NAME};

/// The name that both clusters have an Ingress for.
pub const HOST: &str = "measurements.example.com";
/// The load balancers of the two Ingresses.
pub const OLD_ALB: &str = "k8s-old-1.eu-central-1.elb.amazonaws.com";
/// That of the new cluster.
pub const NEW_ALB: &str = "k8s-new-2.eu-central-1.elb.amazonaws.com";

/// Who owns the record, by both external-dns.
const OWNER: &str = "\"heritage=external-dns,external-dns/owner=shared\"";

/// Two clusters, by the contexts `old` and `new`.
#[derive(Debug)]
pub struct Clusters {
    folder: tempfile::TempDir,
}

impl Clusters {
    /// The old cluster has the live Ingress and an external-dns that writes it; the new one has an
    /// external-dns that follows its Ingresses and sees another zone.
    ///
    /// # Panics
    /// If no folder can be written, or kubectl and its schemas are not on the PATH.
    #[must_use]
    pub fn new() -> Self {
        let clusters = Self { folder: tempfile::tempdir().expect("a folder") };
        let ingress = json!({
            "kind": "Ingress",
            "metadata": { "name": "reader", "namespace": "read-model", "annotations": {} },
            "spec": { "ingressClassName": "alb", "rules": [{ "host": HOST }] },
            "status": { "loadBalancer": { "ingress": [{ "hostname": OLD_ALB }] } },
        });
        let old = external_dns("v0.8.0", "upsert-only", "example.com");
        clusters.put(
            "old",
            &json!({
                "balancer": OLD_ALB, "running": flags(&old),
                "items": [old, account(), ingress, reader()],
            }),
        );
        let new = external_dns("v0.22.0", "sync", "apps.example.org");
        clusters.put(
            "new",
            &json!({
                "balancer": NEW_ALB, "running": flags(&new), "items": [new, account()],
            }),
        );
        clusters.install();
        clusters
    }

    /// Puts `kubectl` into the folder, and an `aws` that knows what the Route 53 of the tests does
    /// not: the zone's name, and whether a role may write.
    fn install(&self) {
        let python = which("kubernetes-validate").with_file_name("python");
        fs::write(self.path().join("kubectl.py"), include_str!("clusters/kubectl.py"))
            .expect("writable");
        self.program(
            "kubectl",
            &format!(
                "CLUSTERS='{here}' REAL_KUBECTL='{real}' exec '{python}' '{here}/kubectl.py' \
                 \"$@\"",
                here = self.path().display(),
                real = which("kubectl").display(),
                python = python.display(),
            ),
        );
        let decision = json!({ "EvaluationResults": [
            { "EvalActionName": "route53:ChangeResourceRecordSets", "EvalDecision": "allowed" },
        ] });
        fs::write(self.path().join("role.json"), decision.to_string()).expect("writable");
        let zone =
            json!({ "HostedZone": { "Id": format!("/hostedzone/{ZONE}"), "Name": ZONE_NAME } });
        fs::write(self.path().join("zone.json"), zone.to_string()).expect("writable");
        // The function `aws` of the runbook's shell is inherited; it is loaded already.
        self.program(
            "aws",
            &format!(
                "case $2 in\n\
                     simulate-principal-policy) exec cat '{here}/role.json' ;;\n\
                     get-hosted-zone) exec cat '{here}/zone.json' ;;\n\
                 esac\n\
                 said=$(aws \"$@\") || {{ status=$?; echo \"$said\" >&2; exit $status; }}\n\
                 echo \"$said\"",
                here = self.path().display()
            ),
        );
    }

    fn program(&self, name: &str, body: &str) {
        let path = self.path().join(name);
        fs::write(&path, format!("#!/usr/bin/env bash\n{body}\n")).expect("writable");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a mode");
    }

    /// The folder to put first on the PATH.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// What a cluster holds.
    ///
    /// # Panics
    /// If there is no such cluster.
    #[must_use]
    pub fn cluster(&self, context: &str) -> Json {
        let text = fs::read_to_string(self.path().join(format!("{context}.json")));
        serde_json::from_str(&text.expect("a cluster")).expect("JSON")
    }

    fn put(&self, context: &str, cluster: &Json) {
        let path = self.path().join(format!("{context}.json"));
        fs::write(path, cluster.to_string()).expect("writable");
    }

    /// One interval: the external-dns of each cluster looks at its Ingresses and at the zone, the
    /// old one first.
    pub fn interval(&self, zone: &Route53) {
        for (context, is_old) in [("old", true), ("new", false)] {
            let side = Side::of(&self.cluster(context), is_old);
            if let Some(side) = side {
                zone.change(|account| side.reconcile(&mut account.sets));
            }
        }
    }
}

impl Default for Clusters {
    fn default() -> Self {
        Self::new()
    }
}

/// The path of a program.
fn which(name: &str) -> PathBuf {
    let found = Command::new("sh").args(["-c", &format!("command -v {name}")]).output();
    let found = String::from_utf8(found.expect("a shell").stdout).expect("a path");
    assert!(!found.is_empty(), "{name} is not on the PATH: take `with-services --with-kubernetes`");
    fs::canonicalize(found.trim()).expect("the program")
}

fn external_dns(version: &str, policy: &str, domain: &str) -> Json {
    json!({
        "kind": "Deployment",
        "metadata": { "name": "external-dns", "namespace": "kube-system", "generation": 1 },
        "spec": { "replicas": 1, "selector": { "matchLabels": { "app": "external-dns" } },
            "template": { "metadata": { "labels": { "app": "external-dns" } }, "spec": {
                "serviceAccountName": "external-dns",
                "containers": [{
                    "name": "external-dns",
                    "image": format!("registry.example.com/external-dns:{version}"),
                    "args": [
                        "--provider=aws", "--source=ingress", "--txt-owner-id=shared",
                        format!("--policy={policy}"), format!("--domain-filter={domain}"),
                    ],
                }],
            } } },
        "status": {
            "observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1,
        },
    })
}

/// The service itself.
fn reader() -> Json {
    json!({
        "kind": "Deployment",
        "metadata": { "name": "reader", "namespace": "read-model", "generation": 1 },
        "spec": { "template": { "spec": { "containers": [{ "name": "reader", "image": "reader:v42" }] } } },
        "status": { "readyReplicas": 2 },
    })
}

fn account() -> Json {
    json!({
        "kind": "ServiceAccount",
        "metadata": { "name": "external-dns", "namespace": "kube-system" },
    })
}

fn flags(deployment: &Json) -> Json {
    deployment["spec"]["template"]["spec"]["containers"][0]["args"].clone()
}

/// One external-dns, with the flags that its pods have now.
struct Side {
    policy: String,
    /// The load balancer that its Ingress asks for; nothing if it has none for the name.
    wanted: Option<String>,
    /// Before the name of its TXT record.
    txt_prefix: &'static str,
    writes_aaaa: bool,
}

impl Side {
    /// Nothing if it has no pods, or if its filters leave out the name.
    fn of(cluster: &Json, is_old: bool) -> Option<Self> {
        let flags: Vec<&str> =
            cluster["running"].as_array()?.iter().filter_map(Json::as_str).collect();
        let all = |name: &str| -> Vec<&str> {
            flags.iter().filter_map(|flag| flag.strip_prefix(&format!("--{name}="))).collect()
        };
        let is_within = |domain: &&str| HOST == *domain || HOST.ends_with(&format!(".{domain}"));
        if !all("domain-filter").iter().any(is_within)
            || all("exclude-domains").iter().any(is_within)
        {
            return None;
        }
        let prefix = if is_old {
            "external-dns.alpha.kubernetes.io/"
        } else {
            "external-dns.kubernetes.io/"
        };
        let prefix = all("annotation-prefix").last().copied().unwrap_or(prefix).to_owned();
        let names_host = |item: &&Json| {
            let controller = &item["metadata"]["annotations"][format!("{prefix}controller")];
            let is_ours = controller.as_str().is_none_or(|value| value == "dns-controller");
            item["kind"] == "Ingress" && item["spec"]["rules"][0]["host"] == HOST && is_ours
        };
        let wanted = cluster["items"].as_array()?.iter().find(names_host).map(|item| {
            let target = &item["status"]["loadBalancer"]["ingress"][0]["hostname"];
            target.as_str().expect("an address").to_owned()
        });
        let policy = (*all("policy").last()?).to_owned();
        let writes_aaaa = !is_old && all("managed-record-types").is_empty();
        Some(Self { policy, wanted, txt_prefix: if is_old { "" } else { "a-" }, writes_aaaa })
    }

    /// What it makes of the record sets of the zone.
    fn reconcile(&self, sets: &mut Vec<RecordSet>) {
        let name = format!("{HOST}.");
        let is_weighted = |set: &RecordSet| set.name == name && set.weighted.is_some();
        if sets.iter().any(is_weighted) {
            // A simple record set beside weighted ones is refused, and with it the whole batch.
            return;
        }
        for kind in ["A", "AAAA"] {
            let place = sets.iter().position(|set| set.name == name && set.kind == kind);
            if kind == "AAAA" && !self.writes_aaaa {
                continue;
            }
            match (&self.wanted, place) {
                (Some(target), None) => self.write(sets, kind, target),
                (Some(target), Some(place)) if self.updates(&sets[place], target) => {
                    sets.remove(place);
                    self.write(sets, kind, target);
                }
                (None, Some(place)) if self.policy == "sync" => {
                    sets.remove(place);
                }
                _ => {}
            }
        }
    }

    /// Whether it moves a record that is there.
    fn updates(&self, set: &RecordSet, target: &str) -> bool {
        let wanted = RecordSet::alias(HOST, &set.kind, target);
        self.policy != "create-only" && set.content != wanted.content
    }

    fn write(&self, sets: &mut Vec<RecordSet>, kind: &str, target: &str) {
        let prefix = if kind == "AAAA" { "aaaa-" } else { self.txt_prefix };
        let text = RecordSet::value(&format!("{prefix}{HOST}"), "TXT", OWNER);
        if !sets.contains(&text) {
            sets.push(text);
        }
        sets.push(RecordSet::alias(HOST, kind, target));
    }
}

/// What the zone holds before the move: the record of 2021.
#[must_use]
pub fn record_sets() -> Vec<RecordSet> {
    vec![
        RecordSet::value("example.com", "NS", "ns-1.awsdns-01.org."),
        RecordSet::value("example.com", "SOA", "ns-1.awsdns-01.org. hostmaster 1 2 3 4 5"),
        RecordSet::alias(HOST, "A", OLD_ALB),
        RecordSet::value(HOST, "TXT", OWNER),
    ]
}

/// Where the name leads now, one line per address record: `A k8s-old-1...`.
#[must_use]
pub fn addresses(zone: &Route53) -> Vec<String> {
    let is_address = |set: &RecordSet| set.name == format!("{HOST}.") && set.kind != "TXT";
    let sets = zone.account().sets;
    let mut found: Vec<String> = sets
        .into_iter()
        .filter(is_address)
        .map(|set| match set.content {
            Content::Alias { name, .. } => format!("{} {}", set.kind, name.trim_end_matches('.')),
            Content::Values { values, .. } => format!("{} {values:?}", set.kind),
        })
        .collect();
    found.sort();
    found
}

/// Both load balancers, at 127.0.0.1 (the old one) and 127.0.0.2; gives their port. They answer the
/// same, but for the path `/which` and for other names; `/broken` is an error of both.
///
/// # Panics
/// If the two have no port in common.
pub async fn balancers() -> u16 {
    let old = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = old.local_addr().expect("an address").port();
    let new = TcpListener::bind(("127.0.0.2", port)).await.expect("the same port");
    for (listener, name) in [(old, "old"), (new, "new")] {
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, name));
            }
        });
    }
    port
}

async fn serve(stream: TcpStream, name: &'static str) {
    let answer = service_fn(|request: Request<Incoming>| async move {
        let host = request.headers().get("host").and_then(|host| host.to_str().ok());
        let body = match (request.uri().path(), host.and_then(|host| host.split(':').next())) {
            ("/which", _) => name,
            (_, Some(HOST)) => "ok",
            _ => "another host",
        };
        let status = if request.uri().path() == "/broken" { 503 } else { 200 };
        let answer = Response::builder().status(status);
        Ok::<_, Infallible>(answer.body(Full::<Bytes>::new(body.into())).expect("an answer"))
    });
    // A client that goes away is no fault.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), answer)
        .await;
}
