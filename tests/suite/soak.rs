//! Proof at scale: histories, kills, cuts and clocks, each in as many ways as there is time for. A
//! run of all tests takes a sample; `make soak` takes the whole, and writes what it came to into
//! docs/proof.md. Both print their seed; `SOAK_SEED` repeats a run.

mod clock;
mod cuts;
mod histories;
mod kills;
mod world;

use std::io::Write as _;

use serde_json::{Value as Json, json};

fn is_soak() -> bool {
    std::env::var("SOAK").is_ok_and(|soak| soak == "1")
}

/// How much of something is tried: a sample, or as much as `make soak` wants.
fn amount(sample: u64, whole: u64) -> u64 {
    let wanted = std::env::var("SOAK_AMOUNT").ok().and_then(|amount| amount.parse().ok());
    wanted.unwrap_or(if is_soak() { whole } else { sample })
}

/// The seed of this run. It is printed, so that a failure shows it.
fn seed() -> u64 {
    let given = std::env::var("SOAK_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!("SOAK_SEED={seed}");
    seed
}

/// What a run came to, for docs/proof.md: it is a line of the file that `SOAK_REPORT` names.
fn report(what: &str, seed: u64, came_to: &Json) {
    let line = json!({ "what": what, "seed": seed, "came_to": came_to });
    println!("{line}");
    let Ok(path) = std::env::var("SOAK_REPORT") else { return };
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    writeln!(file.expect("the report"), "{line}").expect("the report is written");
}
