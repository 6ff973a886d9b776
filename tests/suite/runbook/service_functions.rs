//! What `infra/scripts/service-functions` must not do: ask another cluster than the one that is
//! meant, remove a record that is nobody's leftover, or pass for well what is not.

use testkit::clusters::{HOST, NEW_ALB, OLD_ALB};
use testkit::route53::RecordSet;

use super::service::Rehearsal;

const SOURCE: &str = ". infra/scripts/functions\n. infra/scripts/service-functions";
const OWNER: &str = "\"heritage=external-dns,external-dns/owner=shared\"";

/// Without a context kubectl takes the current one.
#[tokio::test]
async fn no_cluster_is_asked_without_its_context() {
    let mut walk = Rehearsal::start().await;
    walk.run(SOURCE).await;
    for side in ["old", "new"] {
        let context = format!("{}_CONTEXT", side.to_uppercase());
        for unset in [format!("unset {context}"), format!("{context}=")] {
            let asked = format!("( {unset}; in_{side} --namespace read-model get ingress reader )");
            let printed = walk.fails(&asked).await;
            assert!(printed.contains(&format!("{context}: is not set")), "{printed}");
        }
    }
}

#[tokio::test]
async fn an_aaaa_record_that_the_new_side_did_not_make_is_not_removed() {
    let mut walk = Rehearsal::start().await;
    walk.run(&format!("{SOURCE}\nNEW_ALB={NEW_ALB}")).await;
    // It leads to the old side: whoever removes it takes its clients away.
    walk.zone.change(|account| {
        account.sets.push(RecordSet::alias(HOST, "AAAA", OLD_ALB));
        account.sets.push(RecordSet::value(&format!("aaaa-{HOST}"), "TXT", OWNER));
    });
    let before = walk.zone.account().sets;
    walk.run("remove_aaaa").await.has("nothing to remove");
    assert_eq!(walk.zone.account().sets, before);
    // It leads to the new side by now, and there was one before the switch.
    walk.run(
        "mkdir before-the-switch
        aws route53 list-resource-record-sets --hosted-zone-id \"$ZONE\" --output json \
            >before-the-switch/records.json",
    )
    .await;
    walk.zone.change(|account| {
        account.sets.retain(|set| set.kind != "AAAA");
        account.sets.push(RecordSet::alias(HOST, "AAAA", NEW_ALB));
    });
    let before = walk.zone.account().sets;
    let refused = walk.fails("remove_aaaa").await;
    assert!(refused.contains("Put back what was there"), "{refused}");
    let refused = walk.fails("( unset NEW_ALB; remove_aaaa )").await;
    assert!(refused.contains("NEW_ALB: is not set"), "{refused}");
    assert_eq!(walk.zone.account().sets, before);
    walk.run("rm -r before-the-switch\nremove_aaaa").await.has("aaaa-");
    assert_eq!(walk.zone.account().sets.len(), before.len() - 2, "the record and its TXT");
}

/// By the prefix or the suffix of external-dns's flags.
#[tokio::test]
async fn the_txt_records_are_those_of_the_flags() {
    let mut walk = Rehearsal::start().await;
    walk.run(&format!("{SOURCE}\nNEW_ALB={NEW_ALB}")).await;
    walk.zone.change(|account| {
        account.sets.retain(|set| set.kind != "TXT");
        for (name, kind) in [("own-a-", "TXT"), ("own-aaaa-", "TXT"), ("own-a-other-", "TXT")] {
            account.sets.push(RecordSet::value(&format!("{name}{HOST}"), kind, OWNER));
        }
        account.sets.push(RecordSet::alias(HOST, "AAAA", NEW_ALB));
    });
    walk.run("record_sets").await.has("set TXT_PREFIX or TXT_SUFFIX");
    let printed = walk.run("TXT_PREFIX=own-\nrecord_sets").await.text;
    assert!(printed.contains(&format!("own-a-{HOST} TXT ")), "{printed}");
    // That of another name, whose record may change at any time.
    assert!(!printed.contains("own-a-other-") && !printed.contains("set TXT_PREFIX"), "{printed}");
    let before = walk.zone.account().sets.len();
    walk.run("remove_aaaa").await.has(&format!("own-aaaa-{HOST}."));
    assert_eq!(walk.zone.account().sets.len(), before - 2, "the record and its TXT");
}

#[tokio::test]
async fn fewer_pods_than_the_old_side_has_are_too_few() {
    let mut walk = Rehearsal::start().await;
    walk.run(SOURCE).await;
    let absent = walk.fails("enough_pods").await;
    assert!(absent.contains("NotFound"), "{absent}");
    walk.run("in_new apply --kustomize infra/k8s/overlays/dark\nenough_pods").await;
    let pods = "kubectl() {
        case $2 in
            old) echo 3 ;;
            *) echo \"$PODS\" ;;
        esac
    }";
    walk.run(pods).await;
    for (new, passes) in [("2", false), ("", false), ("0", false), ("3", true), ("10", true)] {
        let asked = format!("PODS={new} enough_pods");
        if passes {
            walk.run(&asked).await;
        } else {
            let refused = walk.fails(&asked).await;
            assert!(refused.contains("raise minReplicas"), "{refused}");
        }
    }
}

#[tokio::test]
async fn targets_that_are_absent_or_not_healthy_are_no_success() {
    let mut walk = Rehearsal::start().await;
    walk.run(SOURCE).await;
    walk.run("kubectl() { echo \"$GROUPS_OF\"; }\naws() { printf \"$TARGETS\"; }").await;
    for (groups, targets, words) in [
        ("", "", "has no target"),
        ("arn:1", "", "has no target"),
        ("arn:1", r"10.0.0.1\thealthy\tNone\n10.0.0.2\tunhealthy\tTarget.Timeout", "not all"),
        ("arn:1", r"10.0.0.1\tinitial\tElb.RegistrationInProgress", "not all"),
    ] {
        let printed = walk.fails(&format!("GROUPS_OF={groups} TARGETS='{targets}' targets")).await;
        assert!(printed.contains(words), "{printed}");
    }
    let printed =
        walk.run(r"GROUPS_OF='arn:1 arn:2' TARGETS='10.0.0.1\thealthy\tNone' targets").await;
    assert_eq!(printed.text.matches("healthy").count(), 2, "{}", printed.text);
}
