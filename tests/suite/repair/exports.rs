//! A repair by exports, written in the form in which DynamoDB writes them.

use serde_json::{Value as Json, json};
use testkit::exports::{self, Files};
use testkit::records::{Draft, removal, scan, session};
use testkit::runs::{assert_code, text};

use super::{QUICK, World, changed, id, of_session, open_a_gap};

/// Writes both exports of a window below a folder, and gives the flags that name them.
fn write(root: &std::path::Path, id: &str, of_tables: [Files; 2]) -> Vec<String> {
    let mut flags = Vec::new();
    for (table, files) in ["sessions", "scans"].iter().zip(of_tables) {
        let folder = root.join(table).join(id);
        exports::write(&folder, &files);
        // The summary of an incremental one is in a folder named by its id.
        let summary = if folder.join(id).is_dir() { folder.join(id) } else { folder };
        flags.push("--export".to_owned());
        flags.push(summary.to_str().expect("a path").to_owned());
    }
    flags
}

/// A line for each item as the window leaves it.
pub(super) fn lines(drafts: &[&Draft]) -> Vec<Json> {
    let line = |draft: &&Draft| {
        let item = draft.image.as_ref().map(|_| draft.item());
        exports::change(&draft.key(), item.as_ref(), None)
    };
    drafts.iter().map(line).collect()
}

pub(super) fn arguments<'a>(start: &'a [&'a str], flags: &'a [String]) -> Vec<&'a str> {
    start.iter().copied().chain(flags.iter().map(String::as_str)).collect()
}

/// Two windows that join; and one item that came and went within a window, which no export has.
#[tokio::test(flavor = "multi_thread")]
async fn incremental_exports_of_the_gap_name_its_keys_and_rows_that_changed_since_are_read_too() {
    let world = World::with_sessions(12).await;
    let [first, left, right] = of_session(1);
    let (new, of_new) = (session("new", "u"), scan("new", "left", "250"));
    let (change, changed_left, gone) =
        (changed(&first, "9"), changed(&left, "251"), removal(&right));
    // Inserted and removed within one window; the function had read only the first.
    let brief = scan("brief", "left", "249");
    world.write(std::slice::from_ref(&brief)).await;
    world.replay().await;
    world
        .write_and_forget(&[
            change.clone(),
            changed_left.clone(),
            gone.clone(),
            new.clone(),
            of_new.clone(),
            removal(&brief),
        ])
        .await;
    assert_ne!(world.row("brief", "left_foot_length_mm").await, "");

    // By the stand-in's clock, which is hours ahead; the streams were enabled just now.
    let folder = tempfile::tempdir().expect("a folder");
    let ends = World::now();
    let (start, middle, end) = (ends - 30 * 3600, ends - 10 * 3600, ends + 1);
    let [sessions, scans] = &world.tables;
    let windows = [
        (start, middle, lines(&[&change]), lines(&[&changed_left, &gone])),
        (middle, end, lines(&[&new]), lines(&[&of_new])),
    ];
    let mut flags = Vec::new();
    for (number, (from, to, of_sessions, of_scans)) in windows.iter().enumerate() {
        let id = format!("0179533440000{number}-a1b2c3d4");
        let export =
            |table: &str, lines: &[Json]| exports::incremental(table, &id, (*from, *to), lines);
        let of_tables = [export(sessions, of_sessions), export(scans, of_scans)];
        flags.extend(write(folder.path(), &id, of_tables));
    }

    // Without the first window there is a hole from the start of the gap.
    let gap = testkit::runs::rfc3339(start + 3600);
    let hole = [&["repair", "--gap-start", &gap], &QUICK[..]].concat();
    let refused = world.run(&arguments(&hole, &flags[4..])).await;
    assert_code(&refused, 2);
    assert_eq!(world.stores.ask("SELECT count(*) FROM repairs").await, "0", "{refused:?}");

    let json = world.repair(&arguments(&["--gap-start", &gap], &flags), 0).await;
    assert_eq!((&json["written"], &json["removed"]), (&json!(4), &json!(2)), "{json}");
    assert_eq!(world.row("brief", "left_foot_length_mm").await, "");
    assert_eq!(world.row(&id(1), "right_foot_length_mm").await, "");
    world.assert_equal().await;
}

/// One full export of each table finds changes and removals; what came after it is in the streams.
#[tokio::test(flavor = "multi_thread")]
async fn full_exports_find_what_differs_and_the_rows_whose_items_are_gone() {
    let world = World::with_sessions(12).await;
    open_a_gap(&world).await;
    let folder = tempfile::tempdir().expect("a folder");
    let [sessions, scans] = &world.tables;
    let mut of_tables = [
        exports::full(sessions, &world.dynamodb.scan(sessions).await),
        exports::full(scans, &world.dynamodb.scan(scans).await),
    ];
    // The streams were enabled after the exports: what was written in between is in neither.
    let flags = write(folder.path(), "before", of_tables.clone());
    let before = world.run(&arguments(&["repair"], &flags)).await;
    assert_code(&before, 2);
    assert!(text(&before.stderr).contains("was enabled only at"), "{before:?}");
    for (_, summary) in of_tables.iter_mut().filter_map(|files| files.last_mut()) {
        let mut json: Json = serde_json::from_slice(summary).expect("JSON");
        json["exportTime"] = json!(testkit::runs::rfc3339(World::now() + 1));
        *summary = json.to_string().into_bytes();
    }
    let flags = write(folder.path(), "full", of_tables);
    let one = world.run(&arguments(&["repair"], &flags[..2])).await;
    assert_code(&one, 2);
    assert!(text(&one.stderr).contains(scans.as_str()), "{one:?}");
    let json = world.repair(&arguments(&[], &flags), 0).await;
    assert_eq!((&json["written"], &json["removed"]), (&json!(5), &json!(4)), "{json}");
    world.assert_equal().await;
}
