//! docs/reference.md says what the code says: the variables, the exit codes and the columns.

use std::collections::BTreeSet;

use projector::config::VARIABLES;
use testkit::emulator::binary;
use testkit::services::Stores;
use tokio::process::Command;

use super::blocks::text;

/// The text from a heading to the next one.
fn section(heading: &str) -> String {
    let reference = text("docs/reference.md");
    let (_, rest) = reference.split_once(&format!("\n{heading}\n")).expect("a section");
    rest.split("\n#").next().expect("its text").to_owned()
}

/// The rows of the tables of a section, as cells.
fn rows(heading: &str) -> Vec<Vec<String>> {
    let section = section(heading);
    let rows = section.lines().filter(|line| line.starts_with("| ")).skip(1);
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect()
}

/// What stands in backquotes in the first cells.
fn names(rows: &[Vec<String>]) -> Vec<String> {
    let quoted = |row: &Vec<String>| -> Vec<String> {
        row[0].split('`').skip(1).step_by(2).map(str::to_owned).collect()
    };
    rows.iter().flat_map(quoted).collect()
}

#[test]
fn the_reference_has_every_variable() {
    // Those of the function alone are read where they are used.
    let of_function = text("backfill/src/reconcile.rs");
    let waits = of_function.split("seconds(\"").skip(1).filter_map(|rest| rest.split('"').next());
    let waits: Vec<&str> = waits.collect();
    assert!(!waits.is_empty());
    let others = ["RUST_LOG", "EVENTS"].into_iter().chain(waits);
    let expected: BTreeSet<&str> = VARIABLES.into_iter().chain(others).collect();
    let named = names(&rows("## Configuration"));
    assert_eq!(named.iter().map(String::as_str).collect::<BTreeSet<_>>(), expected);
}

#[tokio::test]
async fn the_reference_has_every_exit_code() {
    let help = Command::new(binary("backfill")).arg("--help").output().await.expect("the help");
    let help = String::from_utf8(help.stdout).expect("text");
    let (_, codes) = help.split_once("Exit codes:").expect("the table of exit codes");
    let mut expected: Vec<(String, String)> = Vec::new();
    for line in codes.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (code, meaning) = line.split_once(' ').unwrap_or((line, ""));
        match (code.parse::<u8>(), expected.last_mut()) {
            (Ok(_), _) => expected.push((code.to_owned(), meaning.trim().to_owned())),
            // The rest of a meaning that takes two lines.
            (Err(_), Some((_, meaning))) => *meaning = format!("{meaning} {line}"),
            (Err(_), None) => panic!("no code: {line}"),
        }
    }
    let rows = rows("## Exit codes");
    assert_eq!(rows.len(), expected.len());
    for (row, (code, meaning)) in rows.iter().zip(&expected) {
        assert_eq!(&row[0], code);
        let said = row[1].replace('`', "");
        assert!(said.starts_with(meaning.as_str()), "{code}: {said:?} is not {meaning:?}");
    }
}

#[tokio::test]
async fn the_reference_has_every_column() {
    let stores = Stores::fresh().await;
    let tables = [
        "measurements",
        "rejected_records",
        "backfill_checkpoints",
        "verifications",
        "repairs",
        "reconciliations",
        "reconciliation_pieces",
        "reconciliation_sums",
    ];
    for table in tables {
        let sql = format!(
            "SELECT string_agg(column_name, ' ') FROM information_schema.columns \
             WHERE table_name = '{table}'"
        );
        let columns = stores.ask(&sql).await;
        let columns: BTreeSet<&str> = columns.split(' ').collect();
        let named = names(&rows(&format!("### {table}")));
        let named: BTreeSet<&str> = named.iter().map(String::as_str).collect();
        assert_eq!(named, columns, "{table}");
    }
}
