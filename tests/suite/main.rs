//! All tests of the whole, as one program: it links the crates once, where a program per file would link them for
//! each. The test runner gives each test a process of its own. What needs an allocator of its own is in `memory.rs`.

mod backfill;
mod blame;
mod check;
mod convergence;
mod credentials;
mod database;
mod doctor;
mod dynamodb_local;
mod faults;
mod files;
mod fixtures;
mod follow;
mod lambda;
mod listings;
mod mapping;
mod migrate;
mod objects;
mod pooler;
mod pressure;
mod races;
mod redrive;
mod rejects;
mod replay;
mod runbook;
mod status;
mod stream;
mod templates;
mod tip;
mod trimmed;
