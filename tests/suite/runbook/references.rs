//! Every link of a document, and every section that code, templates and scripts name, leads
//! somewhere: whoever follows one is in a hurry.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::blocks::{DOCUMENTS, root, text};

/// The documents of the repository, but for those that a program writes.
fn documents() -> Vec<String> {
    let mut found = Vec::new();
    for folder in ["", "docs"] {
        for entry in std::fs::read_dir(root().join(folder)).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|extension| extension == "md") {
                let name = path.strip_prefix(root()).expect("a path of the repository");
                found.push(name.to_str().expect("a name").to_owned());
            }
        }
    }
    found
}

/// A document without its blocks.
fn prose(document: &str) -> String {
    text(document).split("```").step_by(2).collect()
}

/// What a link to a document may have after `#`: its headings, as GitHub writes them, and its own
/// anchors.
fn anchors(document: &str) -> BTreeSet<String> {
    let prose = prose(document);
    let own = prose.split("<a id=\"").skip(1).filter_map(|rest| rest.split_once('"'));
    let own: Vec<String> = own.map(|(name, _)| name.to_owned()).collect();
    let all: Vec<String> =
        headings(&prose).iter().map(|heading| slug(heading)).chain(own).collect();
    let anchors: BTreeSet<String> = all.iter().cloned().collect();
    assert_eq!(anchors.len(), all.len(), "{document}: two of its anchors are the same");
    anchors
}

fn headings(prose: &str) -> Vec<String> {
    let lines = prose.lines().filter(|line| line.starts_with('#'));
    lines.map(|line| line.trim_start_matches('#').trim().to_owned()).collect()
}

fn slug(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

/// Where the links of a document lead.
fn links(document: &str) -> Vec<String> {
    let targets = prose(document);
    let targets = targets.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    targets.map(|(target, _)| target.to_owned()).collect()
}

#[test]
fn every_link_of_a_document_leads_somewhere() {
    let mut found = 0;
    for document in documents() {
        let folder = Path::new(&document).parent().expect("a folder");
        for link in links(&document).iter().filter(|link| !link.starts_with("http")) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() {
                PathBuf::from(&document)
            } else {
                let target = root().join(folder).join(path);
                let target = target.canonicalize();
                let target = target.unwrap_or_else(|error| panic!("{document}: {link}: {error}"));
                let root = root().canonicalize().expect("the repository");
                target.strip_prefix(root).expect("a path of the repository").to_owned()
            };
            let target = target.to_str().expect("a name");
            let leads = anchor.is_empty() || anchors(target).contains(anchor);
            assert!(leads, "{document}: {link}: {target} has no such section");
            found += 1;
        }
    }
    assert!(found > 60, "{found}");
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// The text on one line, without what a comment or a string has at the break of a line.
fn on_one_line(text: &str) -> String {
    let text = text.replace("\\\"", "\"").replace("\\\n", "\n").replace("\n#", "\n");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Templates, scripts and messages name a section by its anchor or its heading, or a step of the
/// move by its number.
#[test]
fn every_section_that_is_named_anywhere_exists() {
    let mut paths = vec![root().join("samconfig.toml")];
    for folder in ["infra", "scripts", "projector/src", "function/src", "backfill/src"] {
        files(&root().join(folder), &mut paths);
    }
    let mut found = 0;
    for path in paths {
        // Not every file is text.
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let (text, path) = (on_one_line(&text), path.display());
        assert!(!text.contains("RUNBOOK"), "{path}: it is three documents in docs/");
        for document in DOCUMENTS {
            let headings = headings(&prose(document));
            for rest in text.split(document).skip(1) {
                if let Some(rest) = rest.strip_prefix('#') {
                    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '-');
                    let anchor = &rest[..end.unwrap_or(rest.len())];
                    assert!(anchors(document).contains(anchor), "{path}: {document}#{anchor}");
                } else if let Some(rest) = rest.strip_prefix(", \"") {
                    let heading = rest.split('"').next().expect("a heading");
                    assert!(headings.iter().any(|known| known == heading), "{path}: {heading:?}");
                } else if let Some(rest) = rest.strip_prefix(", step") {
                    let digits =
                        rest.trim_start_matches(['s', ' ']).split(|c: char| !c.is_numeric());
                    let step = format!("{}. ", digits.into_iter().next().expect("a number"));
                    assert!(
                        headings.iter().any(|known| known.starts_with(&step)),
                        "{path}: {step}"
                    );
                } else {
                    continue;
                }
                found += 1;
            }
        }
    }
    assert!(found > 20, "{found}");
}
