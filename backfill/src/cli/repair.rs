//! The flags of `repair`, and those that `redrive` shares with it.

use std::path::PathBuf;

use clap::{ArgGroup, Args};
use time::OffsetDateTime;

/// The help of `backfill repair --help`.
pub(super) const HELP: &str = "\
Close a gap of any age from the tables themselves: what no stream and no other database holds.

Choose where the keys come from that may differ:
  --scan    every item of both tables, and every row whose item is gone
  --export  the items of point-in-time exports: incremental ones of the gap, or full ones
  --keys    a file of keys, such as the report of `backfill verify --tables --report FILE`

The run first replays the streams, and follows them to its end. Then each part that differs is \
read: the row, its object, and last the item, with ConsistentRead. What was read waits until the \
streams have been read past that moment, and for one timeout of the function more; then it is \
written, unless the row has changed since. So nothing goes back, and what is gone from the table \
goes from the row. Live functions need no change meanwhile. A run takes at least twice the \
function's timeout.

From the first repair on, `redrive` and `file` apply no late record by its image; they read its \
item again. One repair, merge or redrive runs at a time, and no `stream` beside a repair.

After any exit, even kill -9, run the same command again: what is repaired is equal then. Begin \
with --dry-run, which says what would be read, and what it costs.

Exit code 3 if items cannot be applied: they are in rejected_records, one row per key.";

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("source").args(["scan", "export", "keys"]).required(true)))]
pub(crate) struct RepairArguments {
    /// Read every item of both tables, by a parallel Scan with `ConsistentRead`.
    #[arg(long)]
    pub(crate) scan: bool,
    /// Take the keys from exports: the folder that holds manifest-summary.json, in S3
    /// `s3://BUCKET/PREFIX/AWSDynamoDB/EXPORT-ID`. Give it once per export. Incremental exports
    /// must join without a hole, from the start of the gap to less than 23 hours ago.
    #[arg(long, value_name = "PLACE")]
    pub(crate) export: Option<Vec<String>>,
    /// Take the keys from this file: one session id per line, or a report of `backfill verify`.
    #[arg(long, value_name = "FILE")]
    pub(crate) keys: Option<PathBuf>,
    /// With --export: the gap began at this time, so the first export must begin no later. RFC
    /// 3339, such as 2026-11-23T14:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = super::time, requires = "export")]
    pub(crate) gap_start: Option<OffsetDateTime>,
    /// Read nothing, and say what would be read and what it costs.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// With --scan: how many segments each table is scanned in.
    #[arg(long, value_name = "COUNT", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1000), requires = "scan")]
    pub(crate) segments: u16,
    /// Look at the rows of at most this many sessions per second, and write those of at most as
    /// many: a session whose parts come apart counts each time. It spares a database that is
    /// loaded. What the streams bring is not limited, and neither are the objects at the end, whose
    /// rows are read 1,000 at a time.
    #[arg(long, value_name = "SESSIONS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_rate: Option<u32>,
    #[command(flatten)]
    pub(crate) reading: ReReadArguments,
    #[command(flatten)]
    pub(super) format: super::Format,
    #[command(flatten)]
    pub(super) settings: super::Everything,
}

/// How items are read again, and how long an image waits.
#[derive(Debug, Args)]
pub(crate) struct ReReadArguments {
    /// The Lambda function that keeps this database. Its timeout is used, and the run is refused if
    /// it is more than 20 hours behind its streams.
    #[arg(long, value_name = "NAME")]
    pub(crate) function: Option<String>,
    /// The timeout of the function, if it is not that of --function: for this long, an invocation
    /// may still write what it got. Without either: 180.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) function_timeout_seconds: Option<u16>,
    /// Use at most this many read units per second. A consistent read uses one unit per 4 KB.
    #[arg(long, value_name = "UNITS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) read_units: Option<u32>,
    #[command(flatten)]
    pub(crate) replay: super::ReplayFlags,
}
