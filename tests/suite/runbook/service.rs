//! docs/service.md, walked on stand-ins of both clusters and of Route 53, there, back, and there
//! again: what external-dns of each side makes of every step is what `dns-check` said before it.
//! The steps that are taken in a wrong order are refused, and seen if they are taken nevertheless.

use std::sync::Arc;

use testkit::clusters::{Clusters, HOST, NEW_ALB, OLD_ALB, addresses, balancers, record_sets};
use testkit::registry::push;
use testkit::route53::{LoadBalancer, RecordSet, Route53, ZONE};
use testkit::services::service;
use tokio::net::TcpListener;

use super::blocks::{Block, PRELOADED, SERVICE, Shell, blocks, root};

/// An interval of external-dns passes each time that the runbook waits, and only then. Loopback
/// stands for both load balancers, and for both registries.
const STAND_INS: &str = r#"
sleep() {
    local interval
    exec {interval}<>"/dev/tcp/127.0.0.1/$INTERVALS"
    cat <&"$interval"
    exec {interval}<&-
}
curl() {
    local arguments=("$@")
    arguments=("${arguments[@]//::$OLD_ALB:/::127.0.0.1:}")
    command curl "${arguments[@]//::$NEW_ALB:/::127.0.0.2:}"
}
infra/scripts/copy-image() { command infra/scripts/copy-image --insecure "$@"; }
export AWS_REGION=eu-central-1 OLD_CONTEXT=old NEW_CONTEXT=new NAMESPACE=read-model
export OLD_DNS_NAMESPACE=kube-system NEW_DNS_NAMESPACE=kube-system INTERVAL_SECONDS=60
export TXT_PREFIX= TXT_SUFFIX=
DNS_ROLE_ARN=arn:aws:iam::111122223333:role/dns PATHS=(/health /live)
"#;

/// Both clusters, the zone, and the walk.
pub(super) struct Rehearsal {
    shell: Shell,
    blocks: Vec<Block>,
    pub(super) zone: Route53,
    clusters: Arc<Clusters>,
    /// Where the shell is.
    _folder: tempfile::TempDir,
}

impl Rehearsal {
    pub(super) async fn start() -> Self {
        let zone = Route53::start(record_sets()).await;
        let balancer = |name: &str| LoadBalancer {
            name: name.to_owned(),
            kind: "application".to_owned(),
            state: "active".to_owned(),
            addresses: "ipv4".to_owned(),
        };
        zone.change(|account| account.load_balancers = vec![balancer(OLD_ALB), balancer(NEW_ALB)]);
        let clusters = Arc::new(Clusters::new());
        let folder = tempfile::tempdir().expect("a folder");
        std::os::unix::fs::symlink(root().join("infra"), folder.path().join("infra"))
            .expect("infra");
        let mut shell = Shell::start(folder.path()).await;
        // Loaded anew, because it asks whom it was told to ask when it was loaded.
        let own_zone =
            format!("unset -f aws sam\nexport AWS_ENDPOINT_URL={}\n{PRELOADED}", zone.url);
        shell.run(&own_zone).await;
        let exports = format!(
            "export PATH='{}':$PATH SERVICE_HOST={HOST} ZONE={ZONE}\nINTERVALS={} \
             SERVICE_URL=http://{HOST}:{}",
            clusters.path().display(),
            intervals(&clusters, &zone).await,
            balancers().await,
        );
        shell.run(&format!("{exports}\n{STAND_INS}")).await;
        let is_ours = |block: &Block| !block.on_aws && block.document == SERVICE;
        let blocks = blocks().into_iter().filter(is_ours).collect();
        Self { shell, blocks, zone, clusters, _folder: folder }
    }

    /// Up to the end of step 3: the new side is dark.
    async fn run_dark(&mut self) {
        self.section("Before the service moves").await;
        self.block("1. Look", "before now").await.unchanged();
        self.block("3. Run dark", "overlays/dark").await.unchanged();
        assert!(self.block("3. Run dark", "NEW_ALB=").await.text.contains(NEW_ALB));
        let compared = self.block("3. Run dark", "compare_answers").await.text;
        assert_eq!(compared.matches(": the same, 200").count(), 2, "{compared}");
        self.block("3. Run dark", "watch_zone 3").await.unchanged().stable();
        self.block("3. Run dark", "enough_pods").await.has("ready pods: old 2, new 2");
    }

    /// The blocks that are left of a section.
    async fn section(&mut self, heading: &str) {
        while self.blocks.iter().any(|block| block.section.starts_with(heading)) {
            self.block(heading, "").await;
        }
    }

    /// The next block of a section, in which this must stand.
    async fn block(&mut self, heading: &str, command: &str) -> Printed {
        let next = self.blocks.iter().position(|block| block.section.starts_with(heading));
        let block = self.blocks.remove(next.unwrap_or_else(|| panic!("no block of {heading:?}")));
        assert!(block.commands.contains(command), "no {command:?} in {block:?}");
        eprintln!("{}", block.place());
        self.run(&block.commands).await
    }

    /// A block once more.
    async fn again(&mut self, command: &str) -> Printed {
        let all = blocks();
        let block = all.iter().find(|block| {
            !block.on_aws && block.document == SERVICE && block.commands.contains(command)
        });
        let commands = block.unwrap_or_else(|| panic!("no {command:?}")).commands.clone();
        self.run(&commands).await
    }

    pub(super) async fn run(&mut self, commands: &str) -> Printed {
        let text = self.shell.run(commands).await;
        eprintln!("{text}");
        Printed { text }
    }

    /// Commands that must fail, and what they print.
    pub(super) async fn fails(&mut self, commands: &str) -> String {
        let printed = self.run(&format!("if {commands}; then echo it-passed; fi")).await.text;
        assert!(!printed.contains("it-passed"), "{printed}");
        printed
    }

    /// Where the name leads.
    #[track_caller]
    pub(super) fn leads_to(&self, balancer: &str) {
        assert_eq!(addresses(&self.zone), [format!("A {balancer}")]);
    }
}

/// What a block printed.
pub(super) struct Printed {
    pub(super) text: String,
}

impl Printed {
    /// Each `dns-check` of the block says that nothing would change.
    #[track_caller]
    fn unchanged(&self) -> &Self {
        let asked = self.text.matches("OK: nothing dangerous is known of this step").count();
        assert!(asked > 0, "{}", self.text);
        assert_eq!(self.text.matches("  no side changes a record").count(), asked, "{}", self.text);
        self
    }

    #[track_caller]
    fn stable(&self) -> &Self {
        assert!(self.text.contains(&format!("no change of {HOST} in ")), "{}", self.text);
        self
    }

    #[track_caller]
    pub(super) fn has(&self, words: &str) -> &Self {
        assert!(self.text.contains(words), "no {words:?} in {}", self.text);
        self
    }
}

/// A port: an interval of both external-dns has passed when it closes a connection.
async fn intervals(clusters: &Arc<Clusters>, zone: &Route53) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let (clusters, zone) = (Arc::clone(clusters), zone.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            clusters.interval(&zone);
            drop(stream);
        }
    });
    port
}

#[tokio::test]
async fn the_service_moves_there_back_and_there_again() {
    let mut walk = Rehearsal::start().await;
    walk.run_dark().await;
    one_generation_is_copied(&mut walk).await;

    walk.block("4. Switch", "--save").await.unchanged().has(&format!("{HOST} A {OLD_ALB}"));
    let flagged = walk.block("4. Switch", "flags.yaml").await;
    flagged.unchanged().stable().has("policy upsert-only").has("kept off");
    walk.block("4. Switch", "create-only").await.unchanged().has("policy create-only");
    walk.block("4. Switch", "before live").await.has(&updates("new", NEW_ALB));
    walk.leads_to(OLD_ALB);
    walk.block("4. Switch", "overlays/live").await.stable().has(&format!("leads to {NEW_ALB}"));
    walk.leads_to(NEW_ALB);

    way_back(&mut walk).await;

    walk.again("create-only.yaml").await.unchanged();
    walk.again("before live\n").await.has(&updates("new", NEW_ALB));
    walk.again("overlays/live").await.stable();
    walk.leads_to(NEW_ALB);

    walk.block("5. Remove", "--replicas=0").await.unchanged().has("it has no pods");
    walk.block("5. Remove", "delete ingress").await.unchanged().stable();
    walk.leads_to(NEW_ALB);
    let left: Vec<&str> = walk.blocks.iter().map(|block| block.section.as_str()).collect();
    let others = ["The gentle form", "The record is gone"];
    let is_other = |section: &&str| others.iter().any(|other| section.starts_with(other));
    assert!(left.iter().all(is_other), "{left:?}");
}

/// What `dns-check` says of a side that will move the record.
fn updates(side: &str, balancer: &str) -> String {
    format!("the {side} side updates the A record, to point to {balancer}")
}

/// An AAAA record of the new side is there as well, as if its flags had been left out.
async fn way_back(walk: &mut Rehearsal) {
    const HEADING: &str = "The way back";
    walk.zone.change(|account| {
        account.sets.push(RecordSet::alias(HOST, "AAAA", NEW_ALB));
        let text = "\"heritage=external-dns,external-dns/owner=shared\"";
        account.sets.push(RecordSet::value(&format!("aaaa-{HOST}"), "TXT", text));
    });
    walk.block(HEADING, "overlays/dark").await.unchanged();
    let refused = walk.fails("before old-upsert-only").await;
    assert!(refused.contains("REFUSED aaaa-stays"), "{refused}");
    let before = walk.zone.account().sets.len();
    walk.block(HEADING, "remove_aaaa").await.has(&format!("aaaa-{HOST}"));
    walk.leads_to(NEW_ALB);
    assert_eq!(walk.zone.account().sets.len(), before - 2, "the record and its TXT");
    let batches = walk.zone.account().batches.len();
    // Once more there is nothing to remove, and no empty batch is sent.
    walk.again("remove_aaaa").await.has("nothing to remove");
    assert_eq!(walk.zone.account().batches.len(), batches);
    let back = walk.block(HEADING, "upsert-only.yaml").await;
    back.stable().has(&updates("old", OLD_ALB)).has(&format!("leads to {OLD_ALB}"));
    walk.leads_to(OLD_ALB);
}

async fn one_generation_is_copied(walk: &mut Rehearsal) {
    let (from, to) = (service("REGISTRY_FROM"), service("REGISTRY_TO"));
    let name = format!("reader-{:08x}", fastrand::u32(..));
    let (index, _) = push(&from, &name, Some("v42"), "the service").await;
    walk.run(&format!("OLD_IMAGE={from}/{name}:v42 NEW_REPOSITORY={to}/{name}")).await;
    let copied = walk.block("2. Deploy", "copy-image").await.text;
    assert_eq!(copied.matches("have the same digests").count(), 2, "{copied}");
    assert!(copied.contains(&format!("use  {to}/{name}@{index}")), "{copied}");
}

#[tokio::test]
async fn weights_move_the_service_and_what_was_saved_comes_back() {
    const HEADING: &str = "The gentle form";
    let mut walk = Rehearsal::start().await;
    walk.run_dark().await;
    let before = walk.zone.account().sets;
    let excluded = walk.block(HEADING, "--exclude-domains").await;
    excluded.unchanged().has("its filters leave out this name or its zone");
    walk.block(HEADING, "dns-switch weighted").await.unchanged().has("the way back: ");
    let moved = walk.block(HEADING, "weight 100").await;
    assert_eq!(moved.text.matches("no change of").count(), 3, "{}", moved.text);
    let live = walk.block(HEADING, "dns-switch simple").await;
    live.unchanged().stable().has(&format!("leads to {NEW_ALB}"));
    walk.leads_to(NEW_ALB);
    walk.block(HEADING, "dns-switch back").await.unchanged().has(&format!("leads to {OLD_ALB}"));
    assert_eq!(walk.zone.account().sets, before, "to the letter");
}

#[tokio::test]
async fn steps_in_a_wrong_order_are_refused_and_seen_if_they_are_taken() {
    let mut walk = Rehearsal::start().await;
    walk.run_dark().await;
    walk.again("flags.yaml").await.unchanged();
    // The old side still writes.
    let refused = walk.fails("before live").await;
    assert!(refused.contains("REFUSED fight"), "{refused}");
    // A block that is pasted whole goes no further than that.
    walk.again("overlays/live").await.has("REFUSED fight");
    walk.clusters.interval(&walk.zone);
    walk.leads_to(OLD_ALB);
    walk.run("in_new apply --kustomize infra/k8s/overlays/live").await;
    let flips = walk.fails("watch_zone 3").await;
    assert!(flips.contains("the zone changed in interval "), "{flips}");
    walk.run("in_new apply --kustomize infra/k8s/overlays/dark").await;
    // Its pods run with the flags of before until the rollout is through.
    let patch = "in_old --namespace kube-system patch deployment external-dns --type json \
                 --patch-file infra/k8s/external-dns/old/create-only.yaml";
    walk.run(patch).await;
    let refused = walk.fails("before live").await;
    assert!(refused.contains("REFUSED rollout-unfinished"), "{refused}");
    walk.run("in_old --namespace kube-system rollout status deployment/external-dns").await;
    walk.again("overlays/live").await.stable();
    // On the way back the new side goes first.
    let refused = walk.fails("before old-upsert-only").await;
    assert!(refused.contains("REFUSED fight"), "{refused}");
    // A patch by a place that is another flag's changes nothing.
    let refused = walk.fails(patch).await;
    assert!(refused.contains("test"), "{refused}");
    walk.leads_to(NEW_ALB);
}

/// The overlay `no-host` in place of `dark`, there and back.
#[tokio::test]
async fn without_a_host_the_service_moves_there_and_back() {
    const NO_HOST: &str = "before dark --new-ingress read-model/reader &&
        in_new apply --kustomize infra/k8s/overlays/no-host && before now";
    let mut walk = Rehearsal::start().await;
    walk.section("Before the service moves").await;
    walk.run(NO_HOST).await.unchanged();
    walk.again("flags.yaml").await.unchanged().stable();
    walk.again("old/create-only.yaml").await.unchanged();
    let live = "before live --new-ingress read-model/reader &&
        in_new apply --kustomize infra/k8s/overlays/live";
    walk.run(live).await.has(&updates("new", NEW_ALB));
    walk.run(&format!("wait_for_balancer {NEW_ALB} && watch_zone 2")).await.stable();
    walk.leads_to(NEW_ALB);
    walk.run(NO_HOST).await.unchanged();
    walk.leads_to(NEW_ALB);
    walk.run(&format!("OLD_ALB={OLD_ALB}")).await;
    walk.again("old/upsert-only.yaml").await.stable();
    walk.leads_to(OLD_ALB);
}

/// The stand-in of external-dns deletes what the real one deletes, and `dns-check` says it before.
/// What was kept before the switch is the way back.
#[tokio::test]
async fn a_filter_that_is_widened_before_the_policy_deletes_the_record() {
    let mut walk = Rehearsal::start().await;
    walk.run_dark().await;
    walk.block("4. Switch", "--save").await.unchanged();
    let before = walk.zone.account().sets;
    walk.run(
        r#"
        in_new --namespace kube-system patch deployment external-dns --type json --patch \
            '[{"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": "--domain-filter=example.com"}]'
        in_new --namespace kube-system rollout status deployment/external-dns"#,
    )
    .await;
    let refused = walk.fails("before now").await;
    assert!(refused.contains("REFUSED deletes-live"), "{refused}");
    walk.clusters.interval(&walk.zone);
    assert_eq!(addresses(&walk.zone), [""; 0]);
    let gone = walk.fails("wait_for_balancer \"$NEW_ALB\"").await;
    assert!(gone.contains("does not lead to"), "{gone}");
    walk.zone.change(|account| account.sets.retain(|set| set.name != format!("{HOST}.")));
    let back = walk.block("The record is gone", "dns-switch back").await;
    back.has("INSYNC").has(&format!("{HOST} A {OLD_ALB}")).has("scaled");
    assert_eq!(walk.zone.account().sets, before, "to the letter");
}

#[tokio::test]
async fn an_answer_that_differs_or_never_comes_is_shown() {
    let mut walk = Rehearsal::start().await;
    walk.run(&format!(". infra/scripts/service-functions\nOLD_ALB={OLD_ALB} NEW_ALB={NEW_ALB}"))
        .await;
    // Without a load balancer curl would ask wherever the record leads, and find the same twice.
    for commands in [
        "NEW_ALB= compare_answers /health",
        "OLD_ALB=$NEW_ALB compare_answers /health",
        "compare_answers",
    ] {
        let printed = walk.fails(commands).await;
        assert!(printed.contains("two load balancers that differ"), "{printed}");
    }
    let printed = walk.fails("compare_answers /health /broken").await;
    assert!(printed.contains("/broken: BOTH FAIL, 503"), "{printed}");
    let printed = walk.fails("compare_answers /health /which /live").await;
    assert!(printed.contains("/which: DIFFERENT") && printed.contains("> new"), "{printed}");
    assert_eq!(printed.matches(": the same").count(), 2, "one does not hide the others: {printed}");
    let printed =
        walk.fails("SERVICE_URL=http://measurements.example.com:1 compare_answers /").await;
    assert!(printed.contains("curl:") && printed.contains("NO ANSWER"), "{printed}");
}
