//! Keeps the house in order: what ARCHITECTURE.md says of the code is so, and the code keeps the
//! rules that make it easy to find one's way. Reads files, and runs nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const CRATES: [&str; 3] = ["projector/src", "function/src", "backfill/src"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All Rust files below a folder of the repository, by their path in it.
fn sources(folder: &str) -> BTreeMap<PathBuf, String> {
    let mut sources = BTreeMap::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let name = path.strip_prefix(root()).expect("below the root").to_owned();
                sources.insert(name.clone(), read(&name));
            }
        }
    }
    sources
}

/// A file without its unit tests.
fn without_tests(source: &str) -> &str {
    source.split("#[cfg(test)]\nmod tests").next().unwrap_or(source)
}

/// The part of ARCHITECTURE.md that lists the files.
fn map() -> String {
    let text = read("ARCHITECTURE.md");
    text.split("```").nth(1).expect("the map is the first block").to_owned()
}

/// Words that end in `.rs`, with or without a folder before them.
fn rust_files(text: &str) -> BTreeSet<String> {
    let words =
        text.split(|character: char| character.is_whitespace() || "(),:;".contains(character));
    let files = words.filter_map(|word| word.trim_matches('`').strip_suffix(".rs"));
    files.map(|file| file.rsplit('/').next().unwrap_or(file).to_owned()).collect()
}

/// A decision that can be tested in a table is one that looks at nothing but its arguments.
#[test]
fn pure_modules_do_no_io_and_know_no_time() {
    const FORBIDDEN: [&str; 9] = [
        ".await",
        "tokio::",
        "sqlx::query",
        "now_utc()",
        "Instant::now()",
        "SystemTime::now()",
        "std::fs",
        "std::env",
        "fastrand::",
    ];
    let mut pure = 0;
    for (path, source) in CRATES.iter().flat_map(|folder| sources(folder)) {
        let head: String = source.lines().take_while(|line| line.starts_with("//!")).collect();
        if !(head.contains("Pure.") || head.contains("Pure:") || head.contains("Pure,")) {
            continue;
        }
        pure += 1;
        for word in FORBIDDEN {
            assert!(!without_tests(&source).contains(word), "{}: {word}", path.display());
        }
    }
    assert!(pure >= 8, "{pure}");
}

/// The module of a file, as a path in its crate.
fn module(folder: &str, path: &Path) -> String {
    let path = path.strip_prefix(folder).expect("below the folder").with_extension("");
    path.to_string_lossy().replace('/', "::")
}

/// The modules of the crate that a file names after `crate::`.
fn imports(source: &str, modules: &BTreeSet<String>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for rest in without_tests(source).split("crate::").skip(1) {
        let end =
            rest.find(|character: char| !character.is_alphanumeric() && !"_:".contains(character));
        let mut path = rest[..end.unwrap_or(rest.len())].trim_end_matches(':');
        // The longest prefix that is a module.
        while !modules.contains(path) {
            match path.rsplit_once("::") {
                Some((before, _)) => path = before,
                None => break,
            }
        }
        if modules.contains(path) {
            found.insert(path.to_owned());
        }
    }
    found
}

/// The dollars in `docs/bench` are those of a function as the template makes it.
#[test]
fn the_measured_cost_is_that_of_the_templates_memory() {
    let template = read("infra/projector.yaml");
    let parameter = template.split("\n  MemorySize:\n").nth(1).expect("the parameter");
    let default = parameter.lines().find_map(|line| line.trim().strip_prefix("Default: "));
    let memory = default.expect("its default");
    let measured = read("docs/bench/README.md");
    let cost = measured.split("## Cost").last().expect("the cost");
    assert!(
        cost.contains(&format!(" at {memory} MB, ")),
        "MemorySize is {memory} MB, and docs/bench/README.md computes with another: \
            `make bench PART=memory`, then `make bench PART=cost`"
    );
}

/// Two files that import each other are one file that is hard to read.
#[test]
fn no_modules_import_each_other_in_a_circle() {
    for folder in CRATES {
        let sources = sources(folder);
        let modules: BTreeSet<String> = sources.keys().map(|path| module(folder, path)).collect();
        let mut graph: BTreeMap<String, BTreeSet<String>> = sources
            .iter()
            .map(|(path, source)| {
                let own = module(folder, path);
                let mut imported = imports(source, &modules);
                imported.remove(&own);
                // The root of a crate re-exports.
                imported.remove("lib");
                (own, imported)
            })
            .collect();
        // What imports nothing that is left is in no circle.
        loop {
            let done: Vec<String> = graph
                .iter()
                .filter(|(_, imported)| !imported.iter().any(|module| graph.contains_key(module)))
                .map(|(module, _)| module.clone())
                .collect();
            if done.is_empty() {
                break;
            }
            for module in &done {
                graph.remove(module);
            }
        }
        assert!(graph.is_empty(), "{folder}: a circle among {:?}", graph.keys());
    }
}

/// A map with a hole sends its reader the wrong way.
#[test]
fn every_source_file_is_on_the_map_and_nothing_on_it_is_missing() {
    let on_the_map = rust_files(&map());
    let mut there = BTreeSet::new();
    for folder in CRATES {
        for path in sources(folder).keys() {
            there.insert(path.file_stem().expect("a name").to_string_lossy().into_owned());
        }
    }
    // It only lists the modules.
    there.remove("lib");
    let unknown: Vec<_> = there.difference(&on_the_map).collect();
    assert!(unknown.is_empty(), "not on the map of ARCHITECTURE.md: {unknown:?}");
    let gone: Vec<_> = on_the_map.difference(&there).collect();
    assert!(gone.is_empty(), "on the map of ARCHITECTURE.md, and nowhere else: {gone:?}");
}

/// All files below a folder, by their path in the repository, but for what is built or fetched.
fn files_below(folder: &Path, files: &mut Vec<String>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if path.is_dir() && !["target", ".git", "node_modules"].contains(&name.as_str()) {
            files_below(&path, files);
        } else if path.is_file() {
            let path = path.strip_prefix(root()).expect("below the root");
            files.push(path.to_string_lossy().into_owned());
        }
    }
}

/// What of a text looks like a path of the repository: a Rust file, or a path that begins with one
/// of these folders.
fn paths_in<'a>(text: &'a str, folders: &BTreeSet<&str>) -> Vec<&'a str> {
    let no_path = |c: char| !(c.is_ascii_alphanumeric() || "._-/".contains(c));
    let words = text.split(no_path).map(|word| word.trim_end_matches('.'));
    let looks_like_one = |word: &&str| {
        let folder = word.split_once('/').map(|(folder, _)| folder);
        let rust = word.strip_suffix(".rs").is_some_and(|name| !name.is_empty());
        rust || folder.is_some_and(|folder| folders.contains(folder))
    };
    words.filter(looks_like_one).collect()
}

/// A path from the root must be there as it stands. A shorter one, which only names a Rust file,
/// must be the end of one; in the how-to, where somebody is about to open it, it must be whole.
fn leads_somewhere(path: &str, whole: bool, files: &[String], folders: &BTreeSet<&str>) -> bool {
    let folder = path.split_once('/').map(|(folder, _)| folder);
    if whole || folder.is_some_and(|folder| folders.contains(folder)) {
        let path = path.trim_end_matches('/');
        let below = format!("{path}/");
        return files.iter().any(|file| file == path || file.starts_with(&below));
    }
    let end = format!("/{path}");
    files.iter().any(|file| file.ends_with(&end))
}

/// Whoever follows a path wants to be there at once.
#[test]
fn every_path_that_a_document_names_is_there() {
    let mut files = Vec::new();
    files_below(root(), &mut files);
    let folders: BTreeSet<&str> =
        files.iter().filter_map(|file| file.split_once('/')).map(|(folder, _)| folder).collect();
    let documents = files.iter().filter(|file| {
        let folder = file.rsplit_once('/').map_or("", |(folder, _)| folder);
        Path::new(file).extension().is_some_and(|ending| ending == "md")
            && ["", "docs"].contains(&folder)
            && *file != "CHANGELOG.md"
    });
    let (mut found, mut gone) = (0, Vec::new());
    for document in documents {
        let text = read(document);
        for path in paths_in(&text, &folders) {
            found += 1;
            if !leads_somewhere(path, document == "docs/how-to.md", &files, &folders) {
                gone.push(format!("{document}: {path}"));
            }
        }
    }
    assert!(gone.is_empty(), "no such path (in the how-to, from the root): {gone:#?}");
    assert!(found >= 300, "{found}");
}

/// A guarantee whose test was renamed or deleted is a claim.
#[test]
fn every_test_that_is_cited_exists() {
    let code: String = ["projector/src", "function/src", "backfill/src", "tests"]
        .iter()
        .flat_map(|folder| sources(folder).into_values())
        .collect();
    for (document, at_least) in [("ARCHITECTURE.md", 60), ("docs/origin.md", 30)] {
        let text = read(document);
        let mut cited = 0;
        for row in text.lines().filter(|line| line.starts_with("| ")) {
            for name in row.split('`').skip(1).step_by(2).filter(|name| is_a_test(name)) {
                cited += 1;
                assert!(code.contains(&format!("fn {name}(")), "{document} cites {name}");
            }
        }
        assert!(cited >= at_least, "{document}: {cited}");
    }
    let origin = read("docs/origin.md");
    for row in origin.lines().filter(|line| line.starts_with("| ")).skip(1) {
        let shown_by = row.split('|').nth(3).expect("what shows it");
        assert!(shown_by.split('`').any(is_a_test), "no test shows it: {row}");
    }
}

/// Whether a name in a table is that of a test.
fn is_a_test(name: &str) -> bool {
    name.matches('_').count() >= 3
        && name.chars().all(|character| character.is_ascii_lowercase() || character == '_')
}

/// What an operator sets and reads is documented.
#[test]
fn every_variable_is_in_the_documents() {
    let reference = root().join("docs/reference.md");
    let text = read("README.md") + &fs::read_to_string(reference).unwrap_or_default();
    for variable in projector::config::VARIABLES {
        assert!(text.contains(&format!("`{variable}`")), "{variable}");
    }
}

/// rustfmt breaks code at 100 columns, and neither comments nor documents. What is wider wraps in a
/// review or in a second window, and is read twice.
#[test]
fn no_comment_and_no_sentence_of_a_document_is_wider_than_100_columns() {
    let mut wide = Vec::new();
    for folder in ["projector/src", "function/src", "backfill/src", "tests"] {
        for (path, source) in sources(folder) {
            let comments = source.lines().filter(|line| line.trim_start().starts_with("//"));
            wide.extend(
                comments.filter(|line| is_wide(line)).map(|line| (path.clone(), line.to_owned())),
            );
        }
    }
    for path in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"]
        .into_iter()
        .chain(["docs/migration.md", "docs/service.md", "docs/incidents.md"])
        .chain(["docs/reference.md", "docs/how-to.md", "docs/origin.md"])
    {
        let text = read(path);
        // Every second part is a block of commands.
        let prose = text.split("```").step_by(2).flat_map(str::lines);
        let sentences = prose.filter(|line| !line.starts_with('|') && is_wide(line));
        wide.extend(sentences.map(|line| (PathBuf::from(path), line.to_owned())));
    }
    assert_eq!(wide, [], "wrap them at 100 columns");
}

fn is_wide(line: &str) -> bool {
    line.chars().count() > 100
}
