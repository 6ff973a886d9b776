//! `infra/scripts/dns-switch`, with the real aws command line, against a small Route 53: each step
//! is one batch, what was before is saved first and comes back exactly, a crash at any moment
//! leaves a way on and a way back, and what is dangerous is refused before anything is changed.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde_json::Value as Json;
use testkit::route53::{AtChange, LoadBalancer, RecordSet, Route53, ZONE};
use testkit::runs::text;
use tokio::process::{Child, Command};

const NAME: &str = "api.example.com";
const OLD: &str = "k8s-old-1.us-east-1.elb.amazonaws.com";
const NEW: &str = "k8s-new-2.us-east-1.elb.amazonaws.com";
const OWNER: &str = "\"heritage=external-dns,external-dns/owner=fit,\
    external-dns/resource=ingress/fit/api\"";

/// A server, and a folder for the saved file.
struct Zone {
    server: Route53,
    folder: tempfile::TempDir,
}

/// What external-dns of 2021 made, and what is not ours beside it: names before and after it in the
/// order of Route 53, so that it begins on no page.
fn of_2021() -> Vec<RecordSet> {
    vec![
        RecordSet::value("example.com", "NS", "ns-1.awsdns-01.org."),
        RecordSet::value("example.com", "SOA", "ns-1.awsdns-01.org. hostmaster 1 2 3 4 5"),
        RecordSet::value("example.com", "TXT", "\"v=spf1 -all\""),
        RecordSet::alias("a.example.com", "A", OLD),
        RecordSet::alias(NAME, "A", OLD),
        RecordSet::value(NAME, "MX", "10 mail.example.com"),
        RecordSet::value(NAME, "TXT", OWNER),
        RecordSet::alias("api2.example.com", "A", OLD),
        RecordSet::value("api2.example.com", "TXT", OWNER),
    ]
}

/// Where in that list our A is.
const A: usize = 4;

/// The same with IPv6, and with the TXT of a later release.
fn current() -> Vec<RecordSet> {
    let mut sets = of_2021();
    sets.push(RecordSet::alias(NAME, "AAAA", OLD));
    sets.push(RecordSet::value("a-api.example.com", "TXT", OWNER));
    sets.push(RecordSet::value("aaaa-api.example.com", "TXT", OWNER));
    sets
}

impl Zone {
    async fn with(sets: Vec<RecordSet>) -> Self {
        let server = Route53::start(sets).await;
        let alb = |name: &str, kind: &str, state: &str, addresses: &str| LoadBalancer {
            name: name.to_owned(),
            kind: kind.to_owned(),
            state: state.to_owned(),
            addresses: addresses.to_owned(),
        };
        server.change(|account| {
            account.load_balancers = vec![
                alb("K8s-New-2.us-east-1.elb.amazonaws.com", "application", "active", "dualstack"),
                alb("v4-3.us-east-1.elb.amazonaws.com", "application", "active", "ipv4"),
                alb("made-4.us-east-1.elb.amazonaws.com", "application", "provisioning", "ipv4"),
            ];
        });
        Self { server, folder: tempfile::tempdir().expect("a folder") }
    }

    fn saved(&self) -> PathBuf {
        self.folder.path().join("saved.json")
    }

    fn saved_text(&self) -> String {
        std::fs::read_to_string(self.saved()).expect("the saved file")
    }

    fn command(&self, step: &str, more: &[&str]) -> Command {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../infra/scripts/dns-switch");
        let mut command = Command::new(script);
        command
            .args(step.split(' '))
            .args(["--zone", ZONE, "--name", NAME, "--saved"])
            .arg(self.saved())
            .args(more)
            .env("AWS_ENDPOINT_URL", &self.server.url)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if ["flip", "weighted"].contains(&step) && !more.contains(&"--to") {
            command.args(["--to", NEW]);
        }
        command
    }

    async fn run(&self, step: &str, more: &[&str]) -> Output {
        self.command(step, more).output().await.expect("it runs")
    }

    /// Runs a step that ends well, and gives what it prints.
    async fn step(&self, step: &str) -> String {
        let output = self.run(step, &[]).await;
        assert_eq!(output.status.code(), Some(0), "{step}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs a step that is refused in these words, and sees that nothing was changed or saved.
    async fn refused(&self, step: &str, more: &[&str], words: &str) {
        let (sets, saved) = (self.sets(), self.saved().exists());
        let batches = self.server.account().batches.len();
        let output = self.run(step, more).await;
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{step}: {message}");
        assert!(message.contains("refused, nothing was changed"), "{message}");
        assert!(message.contains(words), "{words}: {message}");
        assert_eq!(self.sets(), sets);
        assert_eq!(self.server.account().batches.len(), batches, "{message}");
        assert_eq!(self.saved().exists(), saved, "{message}");
    }

    fn sets(&self) -> Vec<RecordSet> {
        self.server.account().sets
    }

    /// The sets of our name as `type identifier weight target`.
    fn addresses(&self) -> Vec<String> {
        let sets = self.sets();
        let ours = sets.iter().filter(|set| set.name == format!("{NAME}."));
        ours.filter(|set| ["A", "AAAA"].contains(&set.kind.as_str()))
            .map(|set| {
                let target = format!("{:?}", set.content).contains(NEW);
                let side = if target { "new" } else { "old" };
                let weighted = set.weighted.as_ref();
                let pair = weighted.map(|(name, weight)| format!(" {name} {weight}"));
                format!("{}{} -> {side}", set.kind, pair.unwrap_or_default())
            })
            .collect()
    }

    /// Starts a step in a process group of its own, and kills it with -9 once the account is as
    /// wanted.
    async fn killed(&self, step: &str, wanted: impl Fn(&testkit::route53::Account) -> bool) {
        let mut child = self.command(step, &[]).process_group(0).spawn().expect("it starts");
        self.server.wait_until(wanted).await;
        kill_group(&mut child).await;
    }
}

/// Kills a script and the aws command line that it runs.
async fn kill_group(child: &mut Child) {
    let group = format!("-{}", child.id().expect("it runs yet"));
    let kill = Command::new("kill").args(["-9", "--", &group]).status().await.expect("kill");
    assert!(kill.success(), "it ended before it was killed");
    let status = child.wait().await.expect("it ends");
    assert_eq!(status.code(), None, "it was killed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flip_and_the_way_back_are_one_batch_each_and_exact() {
    for before in [of_2021(), current()] {
        let zone = Zone::with(before.clone()).await;
        let before = zone.sets();
        zone.server.change(|account| account.pending = 1);
        let printed = zone.step("flip").await;
        assert!(printed.contains("INSYNC") && printed.contains("the way back: "), "{printed}");
        assert!(zone.addresses().iter().all(|one| one.ends_with("-> new")), "{printed}");
        let others = |sets: Vec<RecordSet>| -> Vec<RecordSet> {
            let flips = |set: &RecordSet| {
                set.name == format!("{NAME}.") && ["A", "AAAA"].contains(&set.kind.as_str())
            };
            sets.into_iter().filter(|set| !flips(set)).collect()
        };
        assert_eq!(others(zone.sets()), others(before.clone()), "nothing else was touched");
        assert_eq!(zone.server.account().batches.len(), 1);
        let saved = zone.saved_text();
        zone.step("back").await;
        assert_eq!(zone.sets(), before, "to the letter");
        assert_eq!(zone.server.account().batches.len(), 2);
        assert_eq!(zone.saved_text(), saved, "no step writes the file again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gentle_form_moves_weights_and_ends_at_the_new_alb() {
    let zone = Zone::with(current()).await;
    let before = zone.sets();
    zone.step("weighted").await;
    let expect = |old: u16, new: u16| {
        let of =
            |kind: &str| [format!("{kind} new {new} -> new"), format!("{kind} old {old} -> old")];
        zone.addresses() == [of("A"), of("AAAA")].concat()
    };
    assert!(expect(100, 0), "{:?}", zone.addresses());
    zone.refused("simple", &[], "`weight 100` first").await;
    zone.refused("flip", &[], "weighted record sets exist beside").await;
    zone.step("weight 10").await;
    assert!(expect(90, 10), "{:?}", zone.addresses());
    // What external-dns of today adds to the pair beside a TXT of 2021.
    let added = RecordSet::value("cname-api.example.com", "TXT", OWNER).with_weight("new", 10);
    zone.server.change(|account| account.sets.push(added));
    zone.step("weight 100").await;
    assert!(expect(0, 100), "{:?}", zone.addresses());
    zone.step("simple").await;
    assert!(zone.addresses().iter().all(|one| one.split(' ').count() == 3), "simple");
    assert!(zone.addresses().iter().all(|one| one.ends_with("-> new")));
    assert!(zone.sets().iter().all(|set| set.weighted.is_none()), "{:?}", zone.sets());
    assert_eq!(zone.server.account().batches.len(), 4, "one batch each");
    zone.step("back").await;
    assert_eq!(zone.sets(), before, "what was added since is gone, too");
}

#[tokio::test(flavor = "multi_thread")]
async fn back_leads_from_every_step_to_what_was() {
    for steps in [&["weighted", "weight 40"][..], &[]] {
        let zone = Zone::with(current()).await;
        let before = zone.sets();
        for step in steps {
            zone.step(step).await;
        }
        if steps.is_empty() {
            zone.refused("back", &[], "nothing was saved").await;
            continue;
        }
        zone.step("back").await;
        assert_eq!(zone.sets(), before, "{steps:?}");
        // A second time it changes nothing, and a flip may follow.
        zone.step("back").await;
        assert_eq!(zone.sets(), before, "{steps:?}");
        zone.step("flip").await;
    }
}

/// A new side that came meanwhile has made an AAAA and TXT of its own.
#[tokio::test(flavor = "multi_thread")]
async fn back_removes_what_the_new_side_made_meanwhile() {
    let zone = Zone::with(of_2021()).await;
    let before = zone.sets();
    zone.step("flip").await;
    zone.server.change(|account| {
        account.sets.push(RecordSet::alias(NAME, "AAAA", NEW));
        account.sets.push(RecordSet::value("a-api.example.com", "TXT", OWNER));
    });
    zone.step("back").await;
    assert_eq!(zone.sets(), before);
}

/// What `dns-check --save` kept is a way back from whatever became of the name.
#[tokio::test(flavor = "multi_thread")]
async fn back_takes_what_dns_check_kept() {
    let zone = Zone::with(current()).await;
    let before = zone.sets();
    let kept = zone.folder.path().join("records.json");
    let kept = kept.to_str().expect("a path");
    let listing = Command::new("aws")
        .args([
            "route53",
            "list-resource-record-sets",
            "--output",
            "json",
            "--hosted-zone-id",
            ZONE,
        ])
        .env("AWS_ENDPOINT_URL", &zone.server.url)
        .output()
        .await
        .expect("aws runs");
    std::fs::write(kept, &listing.stdout).expect("written");
    let gone = |set: &RecordSet| {
        let ours = ["", "a-", "aaaa-"].iter().any(|kind| set.name == format!("{kind}{NAME}."));
        ours && set.kind != "MX"
    };
    let elsewhere = RecordSet::alias(NAME, "A", "third-5.us-east-1.elb.amazonaws.com");
    let pair = [("old", 30), ("new", 70)]
        .map(|(id, weight)| RecordSet::alias(NAME, "A", NEW).with_weight(id, weight));
    for now in [vec![], vec![elsewhere], pair.to_vec()] {
        zone.server.change(|account| {
            account.sets.retain(|set| !gone(set));
            account.sets.extend(now);
        });
        let output = zone.run("back", &["--saved", kept]).await;
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert!(text(&output.stdout).contains("INSYNC"), "{}", text(&output.stdout));
        let sorted = |mut sets: Vec<RecordSet>| {
            sets.sort_by_key(|set| format!("{set:?}"));
            sets
        };
        assert_eq!(sorted(zone.sets()), sorted(before.clone()), "to the letter");
    }
    // No other step takes it, and it must have the name's record and its owner.
    zone.refused("flip", &["--saved", kept], "`back` alone takes it").await;
    zone.refused("back", &["--saved", kept, "--name", "b.example.com"], "has no A of").await;
    let with_prefix = ["--saved", kept, "--txt-prefix", "own-"];
    zone.refused("back", &with_prefix, "has no TXT of external-dns").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_saving_and_switching_leaves_a_way_on_and_back() {
    for next in ["flip", "back"] {
        let zone = Zone::with(current()).await;
        let before = zone.sets();
        zone.server.change(|account| account.at_change = AtChange::LostBefore);
        zone.killed("flip", |account| !account.batches.is_empty()).await;
        assert_eq!(zone.sets(), before);
        let text = zone.saved_text();
        let saved: Json = serde_json::from_str(&text).expect("whole");
        assert_eq!(saved["record_sets"].as_array().map(Vec::len), Some(5), "{saved}");
        zone.server.change(|account| account.at_change = AtChange::Answered);
        zone.step(next).await;
        let side = if next == "flip" { "-> new" } else { "-> old" };
        assert!(zone.addresses().iter().all(|one| one.ends_with(side)), "{:?}", zone.addresses());
        assert_eq!(zone.saved_text(), text, "no step writes the file again");
        zone.step("back").await;
        assert_eq!(zone.sets(), before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_after_switching_leaves_a_way_on_and_back() {
    for (step, next) in [("flip", "flip"), ("weighted", "back")] {
        let zone = Zone::with(current()).await;
        let before = zone.sets();
        // Without its answer, and before all name servers have it.
        zone.server.change(|account| account.at_change = AtChange::LostAfter);
        zone.killed(step, |account| !account.batches.is_empty()).await;
        zone.server.change(|account| {
            account.at_change = AtChange::Answered;
            account.pending = 1000;
        });
        assert_ne!(zone.sets(), before);
        zone.killed(step, |account| account.calls.iter().any(|call| call == "GetChange")).await;
        let switched = zone.sets();
        zone.server.change(|account| account.pending = 1);
        let printed = zone.step(next).await;
        assert!(printed.contains("INSYNC"), "{printed}");
        assert_eq!(zone.sets(), if next == "back" { before.clone() } else { switched });
        zone.step("back").await;
        assert_eq!(zone.sets(), before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_lost_and_throttled_calls_change_nothing_but_the_time() {
    let zone = Zone::with(of_2021()).await;
    // The command line repeats the call, which then deletes what is gone already.
    zone.server.change(|account| account.at_change = AtChange::FailedAfter);
    zone.step("flip").await;
    let batches = zone.server.account().batches;
    let made: Vec<bool> = batches.iter().map(|(_, made)| *made).collect();
    assert_eq!(made, [true, false, true], "{batches:?}");
    zone.server.change(|account| account.throttled = 3);
    zone.step("back").await;
    assert!(zone.addresses().iter().all(|one| one.ends_with("-> old")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_is_never_in_sync_ends_with_its_own_code() {
    let zone = Zone::with(of_2021()).await;
    zone.server.change(|account| account.pending = 1000);
    let output = zone.run("flip", &["--wait", "1"]).await;
    assert_eq!(output.status.code(), Some(3));
    let message = text(&output.stderr);
    assert!(message.contains("was made, and is PENDING"), "{message}");
    assert!(message.contains("run the same command again"), "{message}");
    zone.server.change(|account| account.pending = 0);
    zone.step("flip").await;
}

/// An external-dns that has not let go writes the name: before our batch it is refused whole, and
/// after it the flip is not taken for done.
#[tokio::test(flavor = "multi_thread")]
async fn another_writer_is_noticed() {
    let zone = Zone::with(of_2021()).await;
    let mut other = of_2021();
    other[A] = RecordSet::alias(NAME, "A", "third-5.us-east-1.elb.amazonaws.com");
    zone.server.change(|account| account.written_before = Some(other.clone()));
    let output = zone.run("flip", &[]).await;
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("somebody else changed the zone"));
    zone.refused("flip", &[], "neither what was saved nor what a step makes").await;
    let zone = Zone::with(of_2021()).await;
    zone.server.change(|account| account.written_after = Some(of_2021()));
    let output = zone.run("flip", &[]).await;
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("somebody else writes this name"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_zone_must_not_hold_is_refused() {
    let with = async |change: fn(&mut Vec<RecordSet>)| {
        let mut sets = of_2021();
        change(&mut sets);
        Zone::with(sets).await
    };
    let zone = with(|sets| sets[A] = RecordSet::alias(NAME, "A", OLD).with_weight("x", 5)).await;
    zone.refused("flip", &[], "is weighted already").await;
    let zone = with(|sets| sets[A] = RecordSet::value(NAME, "A", "192.0.2.1")).await;
    zone.refused("flip", &[], "is no alias of a load balancer").await;
    let network = "nlb-1.elb.us-east-1.amazonaws.com";
    let zone =
        with(|sets| sets[A] = RecordSet::alias(NAME, "A", "nlb-1.elb.us-east-1.amazonaws.com"))
            .await;
    zone.refused("flip", &[], network).await;
    let zone = with(|sets| sets[A] = RecordSet::alias(NAME, "A", NEW)).await;
    zone.refused("flip", &[], "points at").await;
    let zone = with(|sets| drop(sets.remove(A))).await;
    zone.refused("flip", &[], "holds no A").await;
    let zone = with(|sets| sets.push(RecordSet::value(NAME, "NS", "ns-2.awsdns-02.org."))).await;
    zone.refused("flip", &[], "is delegated to another zone").await;
    let zone = with(|sets| drop(sets.remove(6))).await;
    zone.refused("flip", &[], "external-dns has no TXT").await;
    let printed = zone.run("flip", &["--without-txt"]).await;
    assert_eq!(printed.status.code(), Some(0), "{}", text(&printed.stderr));
    let zone = with(|sets| {
        sets[6] = RecordSet::value("own-a-api.example.com", "TXT", OWNER);
    })
    .await;
    zone.refused("weighted", &[], "external-dns has no TXT").await;
    for prefix in ["own-", "own-%{record_type}-"] {
        let output = zone.run("weighted", &["--txt-prefix", prefix, "--dry-run"]).await;
        assert!(text(&output.stdout).contains("own-a-api"), "{}", text(&output.stderr));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_cannot_take_the_traffic_is_refused() {
    let zone = Zone::with(current()).await;
    let to = |name: &'static str| ["--to", name];
    zone.refused("flip", &to("gone-9.us-east-1.elb.amazonaws.com"), "there is no load balancer")
        .await;
    zone.refused("flip", &to("made-4.us-east-1.elb.amazonaws.com"), "provisioning").await;
    zone.refused("weighted", &to("v4-3.us-east-1.elb.amazonaws.com"), "no IPv6 address").await;
    for name in ["nlb-1.elb.us-east-1.amazonaws.com", "www.example.org", "192.0.2.1"] {
        let output = zone.run("flip", &to(name)).await;
        assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    }
    let v4 = ["--to", "v4-3.us-east-1.elb.amazonaws.com", "--ipv4-only"];
    let output = zone.run("flip", &v4).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saved_file_of_something_else_is_refused_and_never_overwritten() {
    let zone = Zone::with(current()).await;
    zone.step("flip").await;
    zone.step("back").await;
    let saved = zone.saved_text();
    let to_v4 = ["--to", "v4-3.us-east-1.elb.amazonaws.com"];
    zone.refused("flip", &to_v4, "belongs to a switch to").await;
    for (from, to, words) in [
        (ZONE, "Z0ANOTHER", "was saved for the zone Z0ANOTHER"),
        ("\"api.example.com.\",\n  \"to", "\"other.example.com.\",\n  \"to", "for the name other"),
        ("\"format\": 1", "\"format\": 9", "no file of dns-switch"),
        ("]", "", "cannot be read"),
    ] {
        assert!(saved.contains(from), "{from}: {saved}");
        let other = saved.replace(from, to);
        std::fs::write(zone.saved(), &other).expect("written");
        for step in ["flip", "back"] {
            zone.refused(step, &[], words).await;
        }
        assert_eq!(zone.saved_text(), other);
    }
    std::fs::write(zone.saved(), &saved).expect("written");
    // The zone is not what was saved, though nothing is switched.
    zone.server.change(|account| {
        account.sets.retain(|set| set.name != "aaaa-api.example.com.");
    });
    zone.refused("flip", &[], "a TXT differs").await;
    assert_eq!(zone.saved_text(), saved);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_prints_the_batch_and_touches_nothing() {
    let zone = Zone::with(of_2021()).await;
    let before = zone.sets();
    let output = zone.run("flip", &["--dry-run"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let batch: Json = serde_json::from_slice(&output.stdout).expect("JSON");
    let change = |index: usize| {
        let change = &batch["Changes"][index];
        let set = &change["ResourceRecordSet"];
        (change["Action"].clone(), set["AliasTarget"]["DNSName"].clone())
    };
    assert_eq!(change(0), ("DELETE".into(), format!("{OLD}.").into()));
    assert_eq!(change(1), ("CREATE".into(), format!("{NEW}.").into()));
    assert_eq!(batch["Changes"].as_array().map(Vec::len), Some(2), "{batch}");
    assert!(!zone.saved().exists() && zone.server.account().batches.is_empty());
    assert_eq!(zone.sets(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_names_the_step_and_changes_nothing() {
    let zone = Zone::with(of_2021()).await;
    let of = async |words: &str| {
        let printed = zone.step("status").await;
        assert!(printed.contains(words), "{words}: {printed}");
    };
    of("step: nothing is saved").await;
    for (step, words) in [
        ("weighted", "step: weighted"),
        ("weight 100", "A (new), weight 100: k8s-new-2"),
        ("simple", "step: flipped"),
        ("back", "step: old"),
    ] {
        zone.step(step).await;
        of(words).await;
    }
    zone.server.change(|account| account.sets.retain(|set| set.kind != "A"));
    of("holds no A").await;
    assert_eq!(zone.server.account().batches.len(), 4);
}
