//! All tests of the whole, as one program: it links the crates once, where a program per file would
//! link them for each. The test runner gives each test a process of its own. What needs an
//! allocator of its own is in `memory.rs`.

mod archive_objects;
mod archive_protocol;
mod backfill;
mod blame;
mod check;
mod convergence;
mod copy_image;
mod credentials;
mod database;
mod dns_check;
mod dns_switch;
mod doctor;
mod dynamodb_local;
mod executions;
mod faults;
mod files;
mod fixtures;
mod follow;
mod interrupted;
mod lambda;
mod listings;
mod live;
mod manifests;
mod mapping;
mod merge;
mod merged_files;
mod migrate;
mod move_by_merge;
mod objects;
mod overlap;
mod pending_objects;
mod pooler;
mod pressure;
mod published_types;
mod races;
mod ready;
mod redrive;
mod rejects;
mod repair;
mod replay;
mod runbook;
mod soak;
mod standby;
mod status;
mod stream;
mod templates;
mod terminal;
mod tidy;
mod tip;
mod trimmed;
mod two_parts;
mod unmoved;
mod verify;
mod verify_objects;
mod verify_tables;

/// A file that nobody names here is not compiled, and its tests pass by never running.
#[test]
fn every_file_of_this_folder_is_a_module() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("suite");
    let modules = include_str!("main.rs");
    let mut files = 0;
    for entry in std::fs::read_dir(&folder).expect("the folder of the suite") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().expect("a name").to_string_lossy();
        if path.is_file() && name != "main" {
            files += 1;
            assert!(
                modules.lines().any(|line| line == format!("mod {name};")),
                "{}: add `mod {name};` to main.rs",
                path.display()
            );
        }
    }
    assert!(files > 0, "{} has no file", folder.display());
}
