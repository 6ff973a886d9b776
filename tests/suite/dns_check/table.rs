//! One test per situation that external-dns was seen in, by what it does there.

use super::*;

#[test]
fn the_switch_there_and_back_is_allowed_step_by_step() {
    let mut world = World::new();
    world.old.policy("upsert-only");
    world.ask("now", &[]).allowed().does(&[]);
    world.ask("old-create-only", &[]).allowed().does(&[]);
    world.old.policy("create-only");
    world.ask("live", &[]).allowed().does(&[points("new", "updates", "A", NEW_ALB)]);
    let mut world = World::switched();
    world.ask("now", &[]).allowed().does(&[]);
    world.ask("dark", &[]).allowed().does(&[]);
    world.new.dark();
    world.ask("old-upsert-only", &[]).allowed().does(&[points("old", "updates", "A", OLD_ALB)]);
}

#[test]
fn two_sides_with_one_owner_and_upsert_only_fight() {
    let mut world = World::new();
    world.old.policy("upsert-only");
    let both = [points("new", "updates", "A", NEW_ALB), points("old", "updates", "A", OLD_ALB)];
    world.ask("live", &[]).refused(&["fight"]).does(&both);
    // The same seen when it has happened already.
    world.new.ingress["metadata"]["annotations"] = json!({});
    world.ask("now", &[]).refused(&["fight"]).does(&both);
}

#[test]
fn an_old_side_with_create_only_fights_no_more_and_still_creates() {
    let mut world = World::switched();
    world.ask("now", &[]).allowed().does(&[]);
    // A record that went missing comes back, and to the old cluster if that side comes first.
    world.records = Vec::new();
    let answer = world.ask("now", &[]);
    answer.refused(&["record-missing"]);
    assert!(answer.changes().contains(&points("old", "creates", "A", OLD_ALB).as_str()));
    // And a current version makes the AAAA record that never was, after the switch, too.
    let mut world = World::switched();
    world.old = Cluster::new("v0.19.0", "create-only", OLD_ALB);
    world.records.push(text("cname-", "shared"));
    let answer = world.ask("now", &[]);
    answer.refused(&["aaaa-appears", "aaaa-stays"]);
    answer.does(&[points("old", "creates", "AAAA", OLD_ALB)]);
    world.old.flag("--managed-record-types=A");
    world.ask("now", &[]).allowed();
}

#[test]
fn a_current_new_side_creates_an_aaaa_record_that_stays_after_a_way_back() {
    let mut world = World::new();
    let args = world.new.container()["args"].as_array_mut().expect("args");
    args.retain(|flag| flag != "--managed-record-types=A");
    let created = points("new", "creates", "AAAA", NEW_ALB);
    let updated = points("new", "updates", "A", NEW_ALB);
    world.ask("live", &[]).refused(&["aaaa-appears"]).does(&[updated, created]);
    // An AAAA record that is there belongs to nobody: the TXT record of 2021 is not for it.
    world.records.push(alias("AAAA", OLD_ALB));
    let answer = world.ask("live", &[]);
    answer.refused(&["aaaa-stays"]).does(&[points("new", "updates", "A", NEW_ALB)]);
    // It was applied nevertheless. The way back moves the A record alone.
    world.records = vec![
        alias("A", NEW_ALB),
        alias("AAAA", NEW_ALB),
        text("", "shared"),
        text("a-", "shared"),
        text("aaaa-", "shared"),
    ];
    let answer = world.ask("old-upsert-only", &[]);
    answer.refused(&["aaaa-stays"]).does(&[points("old", "updates", "A", OLD_ALB)]);
    world.records.retain(|record| record["Type"] != "AAAA" && record != &text("aaaa-", "shared"));
    world.ask("old-upsert-only", &[]).allowed();
}

#[test]
fn on_the_way_back_the_new_side_lets_go_first() {
    let mut world = World::switched();
    world.ask("old-upsert-only", &[]).refused(&["fight"]);
    world.new.dark();
    world.ask("old-upsert-only", &[]).allowed();
}

#[test]
fn a_new_side_with_sync_and_without_the_host_deletes_the_live_record() {
    // The old side puts it back in its next cycle, if it has the same owner.
    let deleted = [points("new", "deletes", "A", OLD_ALB), points("old", "creates", "A", OLD_ALB)];
    let mut world = World::new();
    world.new.policy("sync").without_host();
    world.ask("now", &[]).refused(&["deletes-live"]).does(&deleted);
    // So it does if the host is set and the annotation keeps it off.
    let mut world = World::new();
    world.new.policy("sync");
    world.ask("now", &[]).refused(&["deletes-live"]).does(&deleted);
    // Live it deletes nothing, and then there is no way back.
    world.ask("live", &[]).refused(&["no-way-back"]);
    // Before its filter is widened it does not see the name.
    world.new.container()["args"][5] = json!("--domain-filter=other.example.org");
    world.ask("now", &[]).allowed().does(&[]);
}

#[test]
fn an_old_side_with_sync_deletes_the_live_record_once_its_ingress_is_gone() {
    let mut world = World::switched();
    world.old.policy("sync");
    let answer = world.ask("remove-old-ingress", &[]);
    answer.refused(&["deletes-live"]);
    assert!(answer.changes().contains(&points("old", "deletes", "A", NEW_ALB).as_str()));
    // Its external-dns goes first.
    world.old.deployment["spec"]["replicas"] = json!(0);
    world.old.deployment["status"] = json!({ "observedGeneration": 3 });
    world.ask("remove-old-ingress", &[]).allowed().does(&[]);
    // And the name has to point to the new cluster by then.
    world.records = World::new().records;
    world.ask("remove-old-ingress", &[]).refused(&["still-old"]);
}

#[test]
fn with_different_owners_the_switch_never_happens() {
    let mut world = World::new();
    world.new.owner("another");
    world.ask("live", &[]).refused(&["two-owners"]).does(&[]);
    // Nor does an AAAA record appear beside a record of somebody else.
    let args = world.new.container()["args"].as_array_mut().expect("args");
    args.retain(|flag| flag != "--managed-record-types=A");
    world.ask("live", &[]).refused(&["two-owners"]).does(&[]);
    // Another prefix finds no owner at all.
    let mut world = World::new();
    world.new.flag("--txt-prefix=dns-");
    world.ask("live", &[]).refused(&["no-owner"]).does(&[]);
}

#[test]
fn weights_by_annotation_alone_are_refused_by_route_53() {
    let mut world = World::new();
    world.new.weight("external-dns.kubernetes.io/", "new", "10");
    let answer = world.ask("live", &[]);
    answer.refused(&["clash"]).does(&[]);
    assert!(answer.text.contains("of set new, to point to"), "{}", answer.text);
    // Nor do annotations alone end them.
    world.records = pair(90, 10);
    world.new.ingress["metadata"]["annotations"] = json!({});
    world.old.policy("upsert-only");
    world.ask("now", &[]).refused(&["clash", "clash"]);
}

/// The records after one batch that replaced the simple record by two.
fn pair(old: u8, new: u8) -> Vec<Json> {
    let sets = [("old", OLD_ALB, old), ("new", NEW_ALB, new)];
    sets.into_iter()
        .flat_map(|(set, balancer, weight)| {
            [alias("A", balancer), text("", "shared")].map(|record| weighted(record, set, weight))
        })
        .collect()
}

#[test]
fn a_weighted_pair_is_stable_and_its_weights_move_by_annotation() {
    let mut world = World::switched();
    world.records = pair(90, 10);
    world.old.policy("upsert-only").weight("external-dns.alpha.kubernetes.io/", "old", "90");
    world.new.weight("external-dns.kubernetes.io/", "new", "10");
    world.ask("now", &[]).allowed().does(&[]);
    world.new.weight("external-dns.kubernetes.io/", "new", "50");
    let moved =
        format!("new side updates the A record of set new, to point to {NEW_ALB} with weight 50");
    world.ask("now", &[]).allowed().does(&[moved]);
    // With sync each would delete the record of the other.
    world.old.policy("sync");
    world.ask("now", &[]).refused(&["deletes-live"]);
}

#[test]
fn without_the_txt_record_neither_writes_any_more() {
    let mut world = World::switched();
    world.old.policy("upsert-only");
    world.records = vec![alias("A", OLD_ALB)];
    world.ask("now", &[]).does(&[]);
    world.ask("live", &[]).refused(&["no-owner"]).does(&[]);
}

/// The TXT record of 2021 is what an old side goes by, and a current side leaves it in the zone.
#[test]
fn the_old_form_of_the_txt_record_lets_the_old_side_take_the_record_back() {
    let mut world = World::switched();
    world.old.policy("upsert-only");
    world.ask("now", &[]).refused(&["fight"]);
    world.records.retain(|record| record != &text("", "shared"));
    world.ask("now", &[]).allowed().does(&[]);
    // A current old side reads the form with the kind of record.
    world.old = Cluster::new("v0.22.0", "upsert-only", OLD_ALB);
    world.old.flag("--managed-record-types=A");
    world.ask("now", &[]).refused(&["fight"]);
}

/// What an alias is, and which flag names it, differs by version.
#[test]
fn a_version_that_takes_an_alias_for_a_cname_lets_go_of_it_with_a_records_alone() {
    let mut world = World::new();
    world.new.ingress["metadata"]["annotations"] = json!({});
    for (version, fights) in [("v0.8.0", true), ("v0.13.6", false), ("v0.14.2", true)] {
        world.old = Cluster::new(version, "upsert-only", OLD_ALB);
        world.old.flag("--managed-record-types=A");
        world.records = vec![alias("A", OLD_ALB), text("", "shared"), text("cname-", "shared")];
        let answer = world.ask("now", &[]);
        assert_eq!(answer.refusals().contains(&"fight"), fights, "{version}: {}", answer.text);
    }
}
