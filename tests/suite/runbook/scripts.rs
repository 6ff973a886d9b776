//! The scripts of `infra/scripts` and the runbook know each other: each is named by it, and has the
//! options and the files that a document gives it.

use std::collections::BTreeSet;
use std::process::Command;

use super::blocks::{DOCUMENTS, blocks, root, text};

/// What is in `infra/scripts`, but for modules and data.
fn scripts() -> Vec<String> {
    let folder = root().join("infra/scripts");
    let entries =
        std::fs::read_dir(folder).expect("the scripts").map(|entry| entry.expect("an entry"));
    let files = entries.filter(|entry| entry.path().is_file());
    let names = files.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| !name.contains('.')).collect()
}

#[test]
fn every_script_is_named_by_the_runbook() {
    let runbook = DOCUMENTS.map(text).concat();
    let scripts = scripts();
    assert!(scripts.len() >= 8, "{scripts:?}");
    for name in scripts {
        assert!(runbook.contains(&format!("infra/scripts/{name}")), "{name}");
    }
}

/// The words of a text that look like options.
fn options(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| c.is_whitespace() || "\"'`,;()|[]=.".contains(c));
    words.filter(|word| word.starts_with("--") && word.len() > 2).map(str::to_owned).collect()
}

/// Of the function `before`, too, which passes them on.
#[test]
fn every_option_that_a_block_gives_a_script_exists() {
    let mut found = 0;
    for name in ["dns-check", "dns-switch", "copy-image"] {
        let help = Command::new(root().join("infra/scripts").join(name)).arg("--help").output();
        let help = options(&String::from_utf8_lossy(&help.expect("python3").stdout));
        let script = format!("infra/scripts/{name} ");
        for block in blocks() {
            let commands = block.commands.replace("\\\n", " ");
            let calls = commands.lines().map(str::trim_start).filter(|line| {
                line.starts_with(&script) || (name == "dns-check" && line.starts_with("before "))
            });
            for option in calls.flat_map(options) {
                assert!(help.contains(&option), "{}: {name} has no {option}", block.place());
                found += 1;
            }
        }
    }
    assert!(found > 15, "{found}");
}

#[test]
fn every_step_that_dns_check_is_asked_about_exists() {
    let judge = root().join("infra/scripts/external_dns/judge.py");
    let judge = std::fs::read_to_string(judge).expect("the steps");
    let steps = judge.split("STEPS = {").nth(1).and_then(|rest| rest.split('}').next());
    let steps: BTreeSet<&str> = steps.expect("the steps").split('"').skip(1).step_by(4).collect();
    let mut asked = BTreeSet::new();
    for block in blocks() {
        for line in block.commands.lines() {
            if let Some(step) = line.strip_prefix("before ") {
                let step = step.split(' ').next().expect("a step");
                assert!(steps.contains(step), "{}: {step}", block.place());
                // Pasted whole, a block must not go on after a refusal.
                let ends_there = block.commands.trim_end().ends_with(line);
                let is_guard = ends_there || line.ends_with("&&");
                assert!(step == "now" || is_guard, "{}: {line}", block.place());
                asked.insert(step.to_owned());
            }
        }
    }
    assert_eq!(asked.len(), steps.len(), "the runbook asks before each: {asked:?}");
}

/// Every file of the repository that a block names is there.
#[test]
fn every_file_that_a_block_names_exists() {
    let mut found = 0;
    for block in blocks() {
        let words = block.commands.split(|c: char| c.is_whitespace() || "\"'=$(){};<>".contains(c));
        for word in words.map(|word| word.trim_start_matches("file://")) {
            if word.starts_with("infra/") {
                assert!(root().join(word).exists(), "{}: {word}", block.place());
                found += 1;
            }
        }
    }
    assert!(found > 30, "{found}");
}
