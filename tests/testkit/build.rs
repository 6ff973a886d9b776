//! The migrations are compiled in: a new one makes a new binary.

fn main() {
    println!("cargo:rerun-if-changed=../../migrations");
}
