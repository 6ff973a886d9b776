//! The flags of `ready`.

use clap::{Args, Parser as _};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Cli, Command, VerifyArguments};

/// The help of `backfill ready --help`.
pub(super) const HELP: &str = "\
Say whether the readers may switch to this database, and if not, why.

The new side is the database of DATABASE_URL and the function of --function; the old side is the \
database of --against and the function of --old-function. Each line is \u{2713} (holds), \u{2717} \
(does not hold, or could not be asked, with the remedy) or \u{2013} (a flag declares it out of \
scope). What it asks:

  schema            both databases have every migration
  mapping           each function reads each table's newest stream, and its last result is OK
  lag               each mapping is at most --lag-seconds behind for five minutes
  rejected records  the new side rejects nothing that the old side takes
  failures          both buckets of failures are empty
  alarms            none is in ALARM
  full verify       the last one found no difference, is younger than a day, and began after `stream` had ended
  verify since then what changed since is equal, too: compared now
  replication       nothing copies to the new archive any more
  archive           a sample of 200 objects holds its rows
  statistics        measurements is analyzed
  settings          extensions and settings are those of the old database
  prewarmed         each block of measurements and its indexes was read once
  readers           the readers' login works over TLS, and may select

It writes nothing. Each question ends within seconds, but for the verify and the sample of \
objects, and one that fails does not stop the others. Exit code 0: switch. Exit code 4: do not.";

#[derive(Debug, Args)]
pub(crate) struct ReadyArguments {
    /// The function that writes this database.
    #[arg(long, value_name = "NAME", default_value = "projector-new")]
    pub(crate) function: String,
    /// The function that writes the old database.
    #[arg(long, value_name = "NAME", default_value = "projector-old")]
    pub(crate) old_function: String,
    /// The old database; without it, that of `PEER_DATABASE_URL`.
    #[arg(long, value_name = "URL", num_args = 0..=1, default_missing_value = "")]
    pub(crate) against: Option<String>,
    /// How far a mapping may be behind.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub(crate) lag_seconds: u32,
    /// The readers' login at this database. Prefer the variable: everybody on the machine sees a
    /// command line.
    #[arg(long, env = "READER_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub(crate) reader_url: Option<String>,
    /// Nobody but the projector logs in to this database: do not ask for the readers' login.
    #[arg(long, conflicts_with = "reader_url")]
    pub(crate) no_readers: bool,
    /// The archive does not switch now: do not ask for its replication and its objects.
    #[arg(long)]
    pub(crate) no_archive: bool,
    /// This setting may differ: the NAME that `settings` shows, or the beginning of it and `*`. May
    /// be repeated.
    #[arg(long, value_name = "NAME")]
    pub(crate) accept_setting: Vec<String>,
    /// Look again every 30 seconds, until SIGINT or SIGTERM. The exit code is that of the last
    /// look.
    #[arg(long)]
    pub(crate) watch: bool,
    #[command(flatten)]
    pub(super) format: super::Format,
    #[command(flatten)]
    pub(super) settings: super::settings::Sides,
}

/// The flags of a `verify` of what changed since a time.
///
/// # Errors
/// If the time has no form that the flag takes.
pub(crate) fn verify_since(since: OffsetDateTime) -> Result<VerifyArguments, String> {
    let since = since.to_utc().format(&Rfc3339).map_err(|error| error.to_string())?;
    let line = ["backfill", "verify", "--against", "--since", &since];
    match Cli::try_parse_from(line).map(|cli| cli.command) {
        Ok(Command::Verify(arguments)) => Ok(arguments),
        Ok(_) => Err("no flags of verify".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
