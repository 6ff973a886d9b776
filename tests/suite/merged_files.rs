//! `backfill file` merges its inputs by creation time: the parts of a session meet in one batch,
//! whichever files they are in. The order serves speed alone, so any split comes to the same rows.

use std::path::Path;

use fastrand::Rng;
use serde_json::Value as Json;
use tempfile::TempDir;
use testkit::emulator::event;
use testkit::records::{LABEL, Record, scan, session};
use testkit::runs::{assert_code, assert_equal, backfill, well_formed};
use testkit::services::Stores;

/// Writes each file, its records one per line or as one event.
fn write(folder: &Path, files: &[Vec<&Record>], rng: &mut Rng) {
    for (name, records) in files.iter().enumerate() {
        let json = records.iter().map(|record| record.json.as_str());
        let content =
            if rng.bool() { event(json) } else { json.flat_map(|line| [line, "\n"]).collect() };
        std::fs::write(folder.join(format!("{name:03}")), content).expect("a file");
    }
}

fn run(stores: &Stores, folder: &Path, batch_size: &str) -> Json {
    let folder = folder.to_str().expect("a path");
    let output = backfill(stores, &["file", folder, "--batch-size", batch_size, "--json"]);
    assert_code(&output, 0);
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Records in any file and in any order, redelivered ones too, without times here and there.
#[tokio::test]
async fn any_split_of_a_history_into_files_comes_to_the_same_rows_and_objects() {
    for seed in 0..8 {
        let (stores, mut rng) = (Stores::fresh().await, Rng::with_seed(seed));
        stores.forbid_going_back().await;
        let mut records = well_formed(30, seed);
        match seed % 3 {
            0 => rng.shuffle(&mut records),
            1 => records.reverse(),
            _ => {}
        }
        let mut files = vec![Vec::new(); rng.usize(1..80)];
        let count = files.len();
        for record in &records {
            files[rng.usize(..count)].push(record);
        }
        let folder = TempDir::new().expect("a folder");
        write(folder.path(), &files, &mut rng);
        let batch_size = rng.usize(1..60).to_string();
        let ended = run(&stores, folder.path(), &batch_size);
        assert_eq!(ended["counts"]["records"], records.len(), "seed {seed}");
        assert_eq!(ended["files"]["read_in_full"], count, "seed {seed}");
        assert_equal(&stores, &records).await;
    }
}

/// Three streams of one day, a file each. A row that is written once has met its parts in its
/// batch; file after file, each would be written three times.
#[tokio::test]
async fn the_parts_of_a_session_meet_in_one_batch_whichever_files_they_are_in() {
    const SESSIONS: i64 = 600;
    let stores = Stores::fresh().await;
    let counter = "CREATE SEQUENCE updated;
        CREATE FUNCTION counted() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM nextval('updated'); RETURN NULL; END $$;
        CREATE TRIGGER counted AFTER UPDATE ON measurements
            FOR EACH ROW EXECUTE FUNCTION counted()";
    stores.change(counter).await;
    let part = |number: i64, part: i64| {
        let id = format!("s{number:04}");
        let mut draft = match part {
            0 => session(&id, "u"),
            1 => scan(&id, "left", "245.3"),
            _ => scan(&id, "right", "245.4"),
        };
        // Each part comes some seconds after the one before it, and so do those of others.
        draft.created_at = Some(1_795_334_400 + number * 10 + part * 7);
        draft.place(LABEL, 1 + u128::from(number.unsigned_abs()))
    };
    let records: Vec<Vec<Record>> =
        (0..3).map(|of| (0..SESSIONS).map(|number| part(number, of)).collect()).collect();
    let files: Vec<Vec<&Record>> = records.iter().map(|file| file.iter().collect()).collect();
    let folder = TempDir::new().expect("a folder");
    write(folder.path(), &files, &mut Rng::with_seed(1));
    run(&stores, folder.path(), "150");
    let updated = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM updated";
    let updated: u64 = stores.ask(updated).await.parse().expect("a number");
    // Between two batches a session may come apart, and with it the next one.
    assert!(updated <= 3 * 12, "{updated} rows were written more than once");
    assert_equal(&stores, &records.concat()).await;
}
