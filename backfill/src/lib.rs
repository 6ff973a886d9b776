//! `backfill`: brings a database's schema up to date, and replays change records into it: from the
//! live streams, from files, and from the rejected records. It also says whether a run can work,
//! and how far the last one came.
//!
//! `main.rs` is the program; the Lambda function calls what it shares with it.

mod advisory_lock;
mod aws_calls;
mod cli;
mod commands;
mod compare_objects;
mod compare_tables;
mod console;
mod deliver;
mod documents;
mod executions;
mod failures;
mod item_json;
mod items;
mod layout;
mod merge;
mod outcome;
mod output;
mod peer;
mod pending_objects;
pub mod program;
mod rate;
mod read_ahead;
pub mod reconcile;
mod rejected_records;
mod repair;
mod replay;
mod retry;
mod statement;
mod stop;
mod summary;
mod verify;
