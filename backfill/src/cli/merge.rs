//! The flags of `merge`.

use std::path::PathBuf;

use clap::{ArgGroup, Args};
use time::OffsetDateTime;

/// The help of `backfill merge --help`.
pub(super) const HELP: &str = "\
Bring this database up to date from another one, or from the objects of an archive.

Every part that is newer there is applied here with the version it has, through the projector's \
own path, so no row goes back and no 24 hours play a part. Live functions may write both sides \
meanwhile. The order: attach this database's mapping first, so that it follows the streams from \
now on; then merge; then `backfill verify`. The other side must be current: its stream has been \
read past the start of the merge, and its bucket of failures is drained.

If the other side has had a repair, so has this database from then on (`backfill redrive` reads \
items again), and parts that the repair wrote are kept for `backfill repair --keys`, with \
--repaired FILE. An archive cannot say whether it has had one, so it counts as repaired.

A row here that is as new costs one read of its versions on both sides. After any exit, even kill \
-9, run the same command again, or resume with the --after that it names. The objects of all rows \
that were written are written at the end, also those that a run before has left pending.";

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("source").args(["from", "from_archive"]).required(true)))]
pub(crate) struct MergeArguments {
    /// Merge the rows of this database; without a value, of that of `PEER_DATABASE_URL`. It is only
    /// read, and may be a replica.
    #[arg(long, value_name = "URL", num_args = 0..=1, default_missing_value = "")]
    pub(crate) from: Option<String>,
    /// Merge the objects of an archive: `s3://BUCKET/PREFIX`, or a folder with its objects as
    /// files.
    #[arg(long, value_name = "PLACE")]
    pub(crate) from_archive: Option<String>,
    /// Merge only what changed after this time. RFC 3339, such as 2026-11-23T14:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = super::time)]
    pub(crate) since: Option<OffsetDateTime>,
    /// Resume after this session id.
    #[arg(long, value_name = "SESSION_ID")]
    pub(crate) after: Option<String>,
    /// Write nothing, and say how many parts are newer on the other side.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Keep the parts that a repair of the other side wrote in this file. They are not merged:
    /// `backfill repair --keys FILE` reads their items.
    #[arg(long, value_name = "FILE", conflicts_with = "dry_run")]
    pub(crate) repaired: Option<PathBuf>,
    /// Read at most this many sessions per second.
    #[arg(long, value_name = "SESSIONS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_rate: Option<u32>,
    #[command(flatten)]
    pub(super) format: super::Format,
    #[command(flatten)]
    pub(super) settings: super::Everything,
}
