//! How a replay reads the streams: the flags that `stream`, `repair` and `redrive` share.

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct ReplayFlags {
    /// At most this many pages of the streams are asked for, or wait to be applied, at once.
    #[arg(long, value_name = "PAGES", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) parallel: u16,
    /// How long an open shard must return only empty pages to count as caught up.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub(crate) idle_seconds: u16,
    /// The same for an open shard that has returned no record at all yet.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) first_record_seconds: u16,
    /// How long to wait until a closed shard's child is listed before it is taken to have none.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) child_wait_seconds: u16,
}
