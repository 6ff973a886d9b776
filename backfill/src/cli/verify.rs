//! The flags of `verify`.

use std::path::PathBuf;

use clap::{ArgGroup, Args};
use time::OffsetDateTime;

/// The help of `backfill verify --help`.
pub(super) const HELP: &str = "\
Prove that the rows equal another database, the tables, or the objects, while everything moves.

Choose one comparison:
  --against  our rows with those of another database with this schema, which may be a replica
  --tables   our rows with the items of both tables, by a parallel Scan or from an export
  --objects  the objects of the archive with our rows

Nothing has to stop for it. What differs is read again after --wait seconds, up to --rounds times. \
It counts as a difference only if the side that was behind has not caught up by then. Nothing is \
written but one row in verifications, which `backfill ready` asks for.

A difference is `missing` (our side lacks it, or a row lacks its object), `extra` (only our rows \
have it), `older` (one side holds an older version of a part) or `content` (the values differ). \
The first 20 are shown; --report writes all of them, one JSON object per line. Exit code 7 if \
differences persist.

SIGINT and SIGTERM end the run with what is known so far, and with the --after from which a new run resumes.";

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("comparison").args(["against", "tables", "objects"]).required(true)))]
pub(crate) struct VerifyArguments {
    /// Compare with the rows of this database; without a value, with that of `PEER_DATABASE_URL`.
    #[arg(long, value_name = "URL", num_args = 0..=1, default_missing_value = "")]
    pub(crate) against: Option<String>,
    /// Compare with the items of `SESSIONS_TABLE` and `SCANS_TABLE`.
    #[arg(long)]
    pub(crate) tables: bool,
    /// Compare the objects of `ARCHIVE_BUCKET` with the rows.
    #[arg(long)]
    pub(crate) objects: bool,
    /// With --against: compare the values of this share of the sessions, too, from 0 to 1. Equal
    /// versions alone trust the projector.
    #[arg(long, value_name = "SHARE", default_value_t = 0.001, value_parser = share, requires = "against")]
    pub(crate) sample: f64,
    /// With --against: compare all values, meshes too.
    #[arg(long, requires = "against", conflicts_with = "sample")]
    pub(crate) deep: bool,
    /// With --against: compare only what changed after this time. RFC 3339, such as
    /// 2026-11-23T14:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = super::time, requires = "against")]
    pub(crate) since: Option<OffsetDateTime>,
    /// With --tables: read full point-in-time exports instead of the tables, and of the tables only
    /// what differs. Give it once per table: `s3://BUCKET/PREFIX` or a folder, the one that holds
    /// manifest-summary.json. The run proves what the tables held at the time of the exports.
    #[arg(long, value_name = "PLACE", requires = "tables")]
    pub(crate) export: Option<Vec<String>>,
    /// With --tables: how many segments each table is scanned in; at most 24 of both are read at
    /// once.
    #[arg(long, value_name = "COUNT", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1000), requires = "tables")]
    pub(crate) segments: u16,
    /// With --tables: use at most this many read units per second. A Scan uses half a unit per 4
    /// KB; what differs is read again with `ConsistentRead`, one unit per 4 KB.
    #[arg(long, value_name = "UNITS", value_parser = clap::value_parser!(u32).range(1..), requires = "tables")]
    pub(crate) read_units: Option<u32>,
    /// Compare at most this many sessions per second.
    #[arg(long, value_name = "SESSIONS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_rate: Option<u32>,
    /// How long to wait before what differs is read again.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) wait: u16,
    /// How often what differs is read again.
    #[arg(long, value_name = "COUNT", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) rounds: u16,
    /// Resume after this session id (not with --tables).
    #[arg(long, value_name = "SESSION_ID", conflicts_with = "tables")]
    pub(crate) after: Option<String>,
    /// Write every difference to this file, one JSON object per line.
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    #[command(flatten)]
    pub(super) format: super::Format,
    #[command(flatten)]
    pub(super) settings: super::Everything,
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "not a number from 0 to 1".to_owned())
}
