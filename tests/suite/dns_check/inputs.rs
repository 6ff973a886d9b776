//! What keeps a step from being judged, or makes it fail silently: each by its name.

use super::*;

#[test]
fn a_flag_that_is_not_known_is_refused() {
    for flag in ["--fqdn-template={{.Name}}.example.com", "--surprise", "--regex-domain-filter=.*"]
    {
        let mut world = World::new();
        world.new.flag(flag);
        let answer = world.ask("live", &[]);
        answer.refused(&["unknown-flag"]);
        assert!(answer.text.contains(flag.split('=').next().expect("a flag")), "{}", answer.text);
    }
    // Flags come from the environment, too, and a shell may hide them.
    for hidden in [
        json!({ "env": [{ "name": "EXTERNAL_DNS_POLICY", "value": "sync" }] }),
        json!({ "envFrom": [{ "configMapRef": { "name": "flags" } }] }),
        json!({ "command": ["sh", "--txt-owner-id=shared"] }),
    ] {
        let mut world = World::new();
        for (name, value) in hidden.as_object().expect("members") {
            world.new.container()[name] = value.clone();
        }
        let answer = world.ask("now", &[]);
        assert!(answer.refusals().contains(&"unknown-flag"), "{}", answer.text);
    }
}

#[test]
fn harmless_flags_and_both_ways_to_write_one_are_understood() {
    let mut world = World::new();
    for flag in ["--log-level", "debug", "--events", "--no-aws-evaluate-target-health"] {
        world.new.flag(flag);
    }
    world.ask("live", &[]).allowed();
}

#[test]
fn a_version_that_is_not_known_is_refused() {
    for version in ["v0.7.6", "v0.23.0", "v1.0.0", "latest", "v0.14", ""] {
        let mut world = World::new();
        world.new.container()["image"] = json!(format!("external-dns:{version}"));
        world.ask("now", &[]).refused(&["unknown-version"]);
    }
    let mut world = World::new();
    world.new.container()["image"] = json!("bitnami/external-dns:0.22.0-debian-12-r1@sha256:00");
    world.ask("now", &[]).allowed();
}

#[test]
fn flags_with_which_external_dns_does_not_start_are_refused() {
    let mut world = World::new();
    world.old.flag("--annotation-prefix=external-dns.kubernetes.io/");
    world.ask("now", &[]).refused(&["flag-of-another-version"]);
    let mut world = World::new();
    world.old.flag("--policy=upsert-only");
    world.ask("now", &[]).refused(&["flag-twice"]);
    // v0.22 wants a policy; before, sync is the default.
    let mut world = World::new();
    let args = world.new.container()["args"].as_array_mut().expect("args");
    args.retain(|flag| flag != "--policy=upsert-only");
    world.ask("now", &[]).refused(&["unknown-policy"]);
    let mut world = World::switched();
    let args = world.old.container()["args"].as_array_mut().expect("args");
    args.retain(|flag| flag != "--policy=create-only");
    let answer = world.ask("remove-old-ingress", &[]);
    answer.refused(&["deletes-live"]);
    assert!(answer.text.contains("policy sync (by default)"), "{}", answer.text);
}

#[test]
fn another_registry_or_provider_is_refused() {
    for (flag, name) in [
        ("--registry=dynamodb", "unknown-registry"),
        ("--registry=noop", "unknown-registry"),
        ("--provider=google", "unknown-provider"),
    ] {
        let mut world = World::new();
        if flag.starts_with("--provider") {
            world.new.container()["args"][0] = json!(flag);
        } else {
            world.new.flag(flag);
        }
        world.ask("now", &[]).refused(&[name]);
    }
}

#[test]
fn an_annotation_under_another_prefix_keeps_nobody_off() {
    let mut world = World::new();
    world.new.ingress["metadata"]["annotations"] = json!({});
    world.new.annotate("external-dns.alpha.kubernetes.io/controller", "none");
    let answer = world.ask("now", &[]);
    answer.refused(&["guard-ignored"]).does(&[points("new", "updates", "A", NEW_ALB)]);
    // The version before the default changed reads it, unless the prefix is pinned.
    world.new.container()["image"] = json!("external-dns:v0.21.0");
    world.ask("now", &[]).refused(&["guard-ignored"]);
    let args = world.new.container()["args"].as_array_mut().expect("args");
    args.retain(|flag| flag != "--annotation-prefix=external-dns.kubernetes.io/");
    world.ask("now", &[]).allowed().does(&[]);
    // The value that names external-dns itself keeps nobody off either.
    let mut world = World::new();
    world.new.annotate("external-dns.kubernetes.io/controller", "dns-controller");
    world.ask("dark", &[]).allowed();
    world.ask("now", &[]).does(&[points("new", "updates", "A", NEW_ALB)]);
}

/// Before dark is applied for the first time there is no Ingress whose annotation could be looked
/// at: with it the name would move at once.
#[test]
fn dark_is_refused_to_a_side_that_would_not_read_its_annotation() {
    let mut world = World::new();
    world.new.ingress["metadata"]["annotations"] = json!({});
    world.new.without_host();
    world.ask("dark", &[]).allowed();
    world.new.container()["image"] = json!("external-dns:v0.21.0");
    world.ask("dark", &[]).allowed();
    let args = world.new.container()["args"].as_array_mut().expect("args");
    args.retain(|flag| flag != "--annotation-prefix=external-dns.kubernetes.io/");
    world.ask("dark", &[]).refused(&["guard-ignored"]);
    // With an overlay of its own, or with no-host, which needs no annotation.
    world.ask("dark", &["--guard-prefix", "external-dns.alpha.kubernetes.io/"]).allowed();
    world.ask("dark", &["--new-ingress", "read-model/reader"]).allowed();
    // On the way back the Ingress is live, and so it would stay.
    let mut world = World::switched();
    world.new.container()["image"] = json!("external-dns:v0.21.0");
    let args = world.new.container()["args"].as_array_mut().expect("args");
    args.retain(|flag| flag != "--annotation-prefix=external-dns.kubernetes.io/");
    world.ask("dark", &[]).refused(&["guard-ignored"]);
    world.ask("dark", &["--new-ingress", "read-model/reader"]).allowed();
}

#[test]
fn annotations_that_are_not_known_are_refused() {
    for (name, value) in [
        ("external-dns.kubernetes.io/ingress-hostname-source", "annotation-only"),
        ("external-dns.kubernetes.io/aws-region", "eu-west-1"),
        ("external-dns.kubernetes.io/aws-weight", "ten"),
        ("external-dns.kubernetes.io/set-identifier", "new"),
        ("external-dns.kubernetes.io/target", "192.0.2.1"),
    ] {
        let mut world = World::new();
        world.new.annotate(name, value);
        let answer = world.ask("live", &[]);
        assert!(answer.refusals().iter().all(|found| *found == "unknown-annotation"));
        assert_eq!(answer.code, Some(1), "{name}: {}", answer.text);
    }
}

#[test]
fn a_rollout_that_has_not_finished_is_refused() {
    for (member, value) in [
        ("observedGeneration", json!(2)),
        ("replicas", json!(2)),
        ("updatedReplicas", json!(0)),
        ("readyReplicas", json!(0)),
    ] {
        let mut world = World::new();
        world.old.deployment["status"][member] = value;
        world.ask("live", &[]).refused(&["rollout-unfinished"]);
    }
    // Scaled to zero, and its pod still runs.
    let mut world = World::switched();
    world.old.deployment["spec"]["replicas"] = json!(0);
    world.ask("remove-old-ingress", &[]).refused(&["rollout-unfinished"]);
}

#[test]
fn a_zone_that_a_filter_or_the_role_leaves_out_is_refused() {
    for flag in ["--domain-filter=other.example.org", "--domain-filter=.example.com"] {
        let mut world = World::new();
        world.new.container()["args"][5] = json!(flag);
        world.ask("live", &[]).refused(&["zone-not-covered"]).does(&[]);
    }
    // Another zone answers for what is delegated to it.
    let mut world = World::new();
    world.records.push(json!({ "Name": "measurements.example.com.", "Type": "NS", "TTL": 60,
        "ResourceRecords": [{ "Value": "ns-2.awsdns-02.org." }] }));
    world.ask("live", &[]).refused(&["wrong-zone"]);
    let mut world = World::new();
    for name in ["example.com.", "other.example.com."] {
        world.records.push(json!({ "Name": name, "Type": "NS", "TTL": 60 }));
    }
    world.ask("live", &[]).allowed();
    // A filter for the name alone does not match the zone's own name.
    let mut world = World::new();
    world.new.container()["args"][5] = json!(format!("--domain-filter={HOST}"));
    world.ask("live", &[]).refused(&["zone-not-covered"]);
    world.new.flag("--aws-zone-match-parent");
    world.ask("live", &[]).allowed();
    for flag in ["--zone-id-filter=Z8", "--aws-zone-type=private", "--exclude-domains=example.com"]
    {
        let mut world = World::new();
        world.new.flag(flag);
        world.ask("live", &[]).refused(&["zone-not-covered"]);
    }
    let mut world = World::new();
    world.decision = "implicitDeny";
    world.ask("live", &[]).refused(&["role-denied"]);
    world.ask("now", &[]).allowed();
}

#[test]
fn a_new_side_that_cannot_write_is_refused() {
    let mut world = World::new();
    world.new.policy("create-only");
    world.ask("live", &[]).refused(&["creates-only"]);
    let mut world = World::new();
    world.new.flag("--dry-run");
    world.ask("live", &[]).refused(&["stopped"]);
    let mut world = World::new();
    world.new.ingress["status"] = json!({ "loadBalancer": {} });
    world.ask("live", &[]).refused(&["no-load-balancer"]);
    // It leaves out the kind of the record, and nothing else stands in its way.
    let mut world = World::new();
    let args = world.new.container()["args"].as_array_mut().expect("args");
    args.retain(|flag| flag != "--managed-record-types=A");
    world.new.flag("--managed-record-types=CNAME");
    world.ask("live", &[]).refused(&["no-switch"]).does(&[]);
}

#[test]
fn names_from_elsewhere_are_refused() {
    let mut world = World::new();
    world.new.others.push(ingress("second", NEW_ALB));
    world.new.others[0]["metadata"]["annotations"] = json!({});
    world.ask("now", &[]).does(&[points("new", "updates", "A", NEW_ALB)]);
    world.new.others.push(ingress("third", NEW_ALB));
    world.ask("now", &[]).refused(&["two-ingresses"]);
    let mut world = World::new();
    world.new.flag("--source=service").others.push(json!({
        "kind": "Service",
        "metadata": { "name": "s", "namespace": "n",
                      "annotations": { "external-dns.kubernetes.io/hostname": HOST } },
    }));
    world.ask("now", &[]).refused(&["another-source"]);
    let mut world = World::new();
    world.new.flag("--source=gateway-httproute");
    world.ask("now", &[]).refused(&["unread-source"]);
    world.ask("now", &["--ignore-source", "gateway-httproute"]).allowed();
}

#[test]
fn an_ingress_that_the_filters_leave_out_claims_nothing() {
    for flag in [
        "--namespace=elsewhere",
        "--ingress-class=nginx",
        "--annotation-filter=kubernetes.io/ingress.class in (nginx, other)",
        "--annotation-filter=team=ours",
        "--label-filter=team",
    ] {
        let mut world = World::new();
        world.new.flag(flag);
        world.ask("live", &[]).refused(&["no-ingress"]);
    }
    let mut world = World::new();
    world.new.annotate("team", "ours");
    world.new.flag("--annotation-filter=team in (ours, theirs),!closed,team!=theirs");
    world.ask("live", &[]).allowed();
    let mut world = World::new();
    world.new.flag("--label-filter=team > 3");
    world.ask("live", &[]).refused(&["unknown-flag"]);
}

/// The overlay `no-host`: the Ingress that will name the host has to be named.
#[test]
fn an_ingress_without_the_host_is_judged_if_it_is_named() {
    let mut world = World::new();
    world.new.ingress["metadata"]["annotations"] = json!({});
    world.new.without_host();
    world.ask("now", &[]).allowed().does(&[]);
    world.ask("live", &[]).refused(&["no-ingress"]);
    let named = ["--new-ingress", "read-model/reader"];
    let switched = [points("new", "updates", "A", NEW_ALB)];
    world.ask("live", &named).allowed().does(&switched);
    world.old.policy("upsert-only");
    world.ask("live", &named).refused(&["fight"]);
    // A host in tls.hosts or in the annotation counts as well.
    world.new.ingress["spec"]["tls"] = json!([{ "hosts": [HOST] }]);
    world.ask("now", &[]).refused(&["fight"]);
    world.new.flag("--ignore-ingress-tls-spec");
    world.ask("now", &[]).allowed();
    world.new.annotate("external-dns.kubernetes.io/hostname", &format!("x.example.com, {HOST}"));
    world.ask("now", &[]).refused(&["fight"]);
}

#[test]
fn a_record_without_rules_here_is_refused() {
    let mut plain = alias("A", OLD_ALB);
    plain.as_object_mut().expect("a record").remove("AliasTarget");
    let mut by_region = alias("A", OLD_ALB);
    by_region["SetIdentifier"] = json!("one");
    by_region["Region"] = json!("eu-west-1");
    for record in [plain, by_region, alias("A", "d1.cloudfront.example.net")] {
        let mut world = World::new();
        world.records[0] = record;
        world.ask("now", &[]).refused(&["unknown-record"]);
    }
}

/// The address of an Ingress that is more or other than one load balancer of AWS.
#[test]
fn an_address_without_rules_here_is_refused() {
    for addresses in
        [json!([{ "ip": "192.0.2.1" }]), json!([{ "hostname": NEW_ALB }, { "hostname": OLD_ALB }])]
    {
        let mut world = World::new();
        world.new.ingress["status"]["loadBalancer"]["ingress"] = addresses;
        world.ask("now", &[]).refused(&["unknown-annotation"]);
    }
}

/// The TXT records of both sides are found by the prefix or the suffix of their flags.
#[test]
fn a_prefix_or_suffix_of_the_txt_records_is_known() {
    for (old, new, flag) in [
        ("own-measurements", "own-a-measurements", "--txt-prefix=own-"),
        ("own.measurements", "own.a-measurements", "--txt-prefix=own."),
        ("measurements-own", "a-measurements-own", "--txt-suffix=-own"),
        ("own--measurements", "own-a-measurements", "--txt-prefix=own-%{record_type}-"),
    ] {
        let named = |name: &str, owner: &str| {
            let mut record = text("", owner);
            record["Name"] = json!(format!("{name}.example.com."));
            record
        };
        let mut world = World::new();
        world.old.container()["image"] = json!("external-dns:v0.13.6");
        world.old.flag(flag);
        world.new.flag(flag);
        world.records = vec![alias("A", OLD_ALB), named(old, "shared")];
        let answer = world.ask("live", &[]);
        answer.allowed().does(&[points("new", "updates", "A", NEW_ALB)]);
        assert!(answer.text.contains(", TXT "), "{}", answer.text);
        // Without its own name in the role, the batch would be refused as a whole.
        world.decision = "implicitDeny";
        let refused = world.ask("live", &[]);
        refused.refused(&["role-denied"]);
        assert!(
            refused.text.contains(&format!("{HOST} and {new}.example.com")),
            "{}",
            refused.text
        );
        // Somebody else's, by the name of today.
        world.decision = "allowed";
        world.records = vec![alias("A", OLD_ALB), named(new, "another")];
        world.ask("live", &[]).refused(&["two-owners"]);
    }
}

/// The scripts look for the TXT records under the same names.
#[test]
fn dns_switch_knows_every_name_that_external_dns_gives_a_txt_record() {
    let program = r#"
import argparse, sys
sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv[1])
from dns_switch.zone import txt_names
from external_dns import plan
from external_dns.values import Side
asked = 0
for prefix, suffix in (("", ""), ("own-", ""), ("own.", ""), ("", "-own"), ("own-%{record_type}-", "")):
    known = txt_names(argparse.Namespace(name="a.b.example.com.", txt_prefix=prefix, txt_suffix=suffix))
    for minor in range(8, 23):
        side = Side("new", "d", (0, minor), "sync", 0, "o", "1m", "", txt_prefix=prefix, txt_suffix=suffix)
        for name in plan.txt_names(side, "a.b.example.com"):
            asked += 1
            assert name + "." in known, (name, known)
print(asked)
"#;
    let folder = script();
    let folder = folder.parent().expect("a folder");
    let output = Command::new("python3").args(["-c", program]).arg(folder).output();
    let output = output.expect("python3 runs");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(printed.trim(), "105", "{}", String::from_utf8_lossy(&output.stderr));
}

/// Whatever starts its pods, an external-dns writes.
#[test]
fn an_external_dns_of_another_kind_or_name_is_found() {
    for kind in ["StatefulSet", "DaemonSet"] {
        let mut world = World::new();
        let mut other = deployment(NEW, "sync");
        other["kind"] = json!(kind);
        world.new.more_deployments.push(other);
        world.ask("now", &[]).refused(&["unknown-workload"]);
    }
    let mut world = World::new();
    let mut job = deployment(NEW, "sync");
    let template = json!({ "spec": { "template": job["spec"]["template"] } });
    job["kind"] = json!("CronJob");
    job["spec"] = json!({ "jobTemplate": template });
    world.new.more_deployments.push(job);
    world.ask("now", &[]).refused(&["unknown-workload"]);
    // A mirror has another name, and the flags are the same.
    let mut world = World::new();
    let mut mirrored = deployment(NEW, "sync");
    mirrored["spec"]["template"]["spec"]["containers"][0]["name"] = json!("dns");
    mirrored["spec"]["template"]["spec"]["containers"][0]["image"] = json!("mirror/dns:v0.22.0");
    world.new.more_deployments.push(mirrored);
    world.ask("now", &[]).refused(&["deletes-live"]);
    world.new.more_deployments[0]["spec"]["template"]["spec"]["containers"][0] = json!({ "name": "dns", "image": "mirror/dns:v1", "env": [{ "name": "EXTERNAL_DNS_POLICY" }] });
    world.ask("now", &[]).refused(&["unknown-version"]);
    // What runs something else is not asked.
    let mut world = World::new();
    let mut other = deployment(NEW, "sync");
    other["kind"] = json!("DaemonSet");
    other["spec"]["template"]["spec"]["containers"] =
        json!([{ "name": "logs", "image": "logs:1" }]);
    world.new.more_deployments.push(other);
    world.ask("now", &[]).allowed();
}

/// A second external-dns of a cluster writes as the first does.
#[test]
fn every_external_dns_of_a_cluster_counts() {
    let mut world = World::new();
    let mut second = deployment(NEW, "sync");
    second["metadata"]["name"] = json!("external-dns-internal");
    world.new.more_deployments.push(second);
    world.ask("now", &[]).refused(&["deletes-live"]);
    world.new.more_deployments.clear();
    world.new.deployment["spec"]["template"]["spec"]["containers"][0]["name"] = json!("other");
    world.new.container()["image"] = json!("nginx:1");
    world.new.container()["args"] = json!([]);
    world.ask("now", &[]).refused(&["no-external-dns"]);
}
