//! The command line: the Lambda's environment variables, each also a flag.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use projector::config::{Config, ConfigError};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// How many connections a backfill opens where nothing else is said.
const DEFAULT_CONNECTIONS: usize = 4;

const EXIT_CODES: &str = "\
Exit codes:
  0  done; of check: safe
  1  failed; run the same command again once the cause is mended
  2  a flag or a variable is missing or wrong
  3  done, and this run set some records aside in the table rejected_records
  4  not safe: the streams do not hold every change since the snapshot, or have too many readers
  5  records can have been trimmed away unread: the message says in which shard and since when
  6  ended by SIGINT or SIGTERM before all was applied; the same command goes on from there
  130  ended at once by a second signal";

/// Replays change records into the read model (PostgreSQL, and S3 where a bucket is given).
///
/// Every replay is harmless: a change applies only if it is newer than what the row holds. Run a
/// command again after any failure.
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    args_override_self = true,
    after_help = EXIT_CODES
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) settings: Settings,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Bring the database's schema up to date, and say what was done. Harmless twice.
    Migrate(MigrateArguments),
    /// Say whether the streams hold every change since a snapshot, for how much longer, and who
    /// reads them. Needs no database. Exit code 0 only if safe, else 4.
    Check(CheckArguments),
    /// Replay the live streams of both tables, up to now.
    #[command(long_about = STREAM)]
    Stream(StreamArguments),
    /// Replay fixture streams from files.
    File(FileArguments),
    /// Try the records of `rejected_records` again, and remove those that now apply.
    Redrive(RedriveArguments),
    /// Compare the object of every row, and write those that are missing or behind.
    #[command(long_about = OBJECTS)]
    Objects(ObjectsArguments),
}

const STREAM: &str = "\
Replay the live streams of both tables, up to now.

Reads every shard from TRIM_HORIZON, or from its checkpoint, parents before their children, and \
applies the records through the projector's own path. Run `backfill check` first; this command checks \
again, and refuses a gap that is not covered.

The cutoff: when the run ends, every record created before it started is applied. A closed shard is \
read to its end. An open shard never ends; it is read until it returns a record created more than 5 \
seconds after the start. If nothing more is written to it, nothing says that it is caught up: AWS may \
return any number of empty pages before records. It is assumed to be after --idle-seconds of empty \
pages only, or --first-record-seconds if it has returned no record yet (at least 10 pages, and 4 per \
second). The summary names each shard that was only assumed to be caught up. At the end each stream is \
described once more: a shard that was closed meanwhile is read to its end after all, and so are \
children that were not listed before.

Checkpoints are kept in the target database, in backfill_checkpoints, each written after the records \
before it are in both stores. After any exit, even kill -9, rerun the command: it resumes from its \
checkpoints. Without --snapshot-time, checkpoints older than 24 hours are deleted, and their shards are \
read from the trim horizon. One run at a time works on a database.

Memory: at most --parallel pages of 1 MB (some 1.4 MB as JSON), and one batch of --batch-size records or \
32 MiB in its forms from JSON to statement; for a shard that waits, next to nothing. Some 70 MB without \
meshes, 250 MB with meshes of 300 KB, whatever the number of shards.";

const OBJECTS: &str = "\
Compare the object of every row, and write those that are missing or behind.

For a bucket that was restored, emptied or replaced, and for sessions whose records no stream holds any \
more. It may run beside live functions: every write is conditional, and no object goes back. Each row costs \
a HEAD, 32 at a time; a row whose object is behind also a read of the row and a PUT.";

#[derive(Debug, Args)]
pub(crate) struct ObjectsArguments {
    /// Begin behind this session, in the order of the table: where an earlier run stopped.
    #[arg(long, value_name = "SESSION_ID")]
    pub(crate) after: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArguments {
    #[arg(long, value_name = "TIME", help = SNAPSHOT_TIME, value_parser = time)]
    pub(crate) snapshot_time: Option<OffsetDateTime>,
    #[arg(long, value_name = "MINUTES", help = MARGIN, default_value_t = 60)]
    margin_minutes: u32,
    /// Print the report as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

impl CheckArguments {
    pub(crate) fn margin(&self) -> time::Duration {
        time::Duration::minutes(self.margin_minutes.into())
    }
}

const SNAPSHOT_TIME: &str = "When the snapshot was taken that the database was restored from, in \
    RFC 3339 (2026-11-23T14:00:00Z; RDS calls it OriginalSnapshotCreateTime). Where the projector was \
    behind then, the time up to which it had applied";
const MARGIN: &str = "What must be left of the 24 hours that a stream keeps, for the run itself";

fn time(text: &str) -> Result<OffsetDateTime, String> {
    OffsetDateTime::parse(text, &Rfc3339)
        .ok()
        // Reckoning with it must not leave the calendar.
        .filter(|time| (2000..9000).contains(&time.year()))
        .ok_or_else(|| "not a time of RFC 3339, such as 2026-11-23T14:00:00Z".to_owned())
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(crate) struct StreamArguments {
    #[arg(long, value_name = "TIME", help = SNAPSHOT_TIME, value_parser = time)]
    pub(crate) snapshot_time: Option<OffsetDateTime>,
    #[arg(long, value_name = "MINUTES", help = MARGIN, default_value_t = 60)]
    margin_minutes: u32,
    /// Read what is left even if changes since the snapshot can be missing: the streams do not hold them
    /// all, or some are trimmed before they are read. Such a run ends with exit code 5.
    #[arg(long)]
    pub(crate) allow_gap: bool,
    /// Do not end at the cutoff: apply what comes, also from streams that are enabled later, until SIGINT
    /// or SIGTERM.
    #[arg(long)]
    pub(crate) follow: bool,
    /// Begin at the trim horizon, and delete the checkpoints of these streams.
    #[arg(long)]
    pub(crate) restart: bool,
    /// Print the summary as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// At most this many pages are asked for, or wait to be applied, at once.
    #[arg(long, value_name = "PAGES", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) parallel: u16,
    /// At most this many records are merged before they are written.
    #[arg(long, value_name = "RECORDS", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) batch_size: u32,
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

impl StreamArguments {
    pub(crate) fn margin(&self) -> time::Duration {
        time::Duration::minutes(self.margin_minutes.into())
    }
}

#[derive(Debug, Args)]
pub(crate) struct RedriveArguments {
    /// Only records whose reason is LIKE this, such as '%weather%'.
    #[arg(long, value_name = "PATTERN")]
    pub(crate) reason: Option<String>,
    /// Read and check the records, write and remove nothing, and say what would be rejected again.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct MigrateArguments {
    /// List what is pending, and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Let this role do what the projector does: SELECT, INSERT, UPDATE on `measurements` and
    /// `rejected_records`. Also sets its `synchronous_commit` and time limits, unless it has its own.
    #[arg(long, value_name = "ROLE")]
    pub(crate) grant_to: Option<String>,
    /// Let this role run `file`, `stream` and `redrive`: the same, and DELETE on
    /// `rejected_records` and all on `backfill_checkpoints`.
    #[arg(long, value_name = "ROLE")]
    pub(crate) grant_backfill_to: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct FileArguments {
    /// Files to replay, in this order: a Lambda event ({"Records": [...]}), what Lambda wrote to an
    /// on-failure destination on S3, or one record or event a line; gzip of any. Of a folder, all files
    /// in it and below it.
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,
    /// Read and check every record, connect to nothing, and say what would be rejected.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// How many records are merged before they are written.
    #[arg(long, value_name = "RECORDS", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) batch_size: u32,
}

/// The Lambda's environment variables; a flag wins over its variable.
#[derive(Debug, Args)]
#[command(next_help_heading = "Settings (as the Lambda's environment variables)")]
pub(crate) struct Settings {
    /// `postgres://USER:PASSWORD@HOST:5432/DATABASE`; TLS is verify-full unless ?sslmode= says
    /// otherwise.
    #[arg(long, global = true, env, hide_env_values = true, value_name = "URL")]
    database_url: Option<String>,
    /// A Secrets Manager secret with username, password and perhaps host, port, dbname.
    #[arg(long, global = true, env, value_name = "ARN")]
    database_secret_arn: Option<String>,
    /// password, or iam for a token made anew for each connection.
    #[arg(long, global = true, env, value_name = "AUTH")]
    database_auth: Option<String>,
    /// Connections to use at once [default: 4].
    #[arg(long, global = true, env, value_name = "COUNT")]
    database_connections: Option<String>,
    /// The bucket for the JSON objects; without it none are written.
    #[arg(long, global = true, env, value_name = "BUCKET")]
    archive_bucket: Option<String>,
    /// What stands before `SESSION_ID.json` in a key [default: measurements/].
    #[arg(long, global = true, env, value_name = "PREFIX")]
    archive_prefix: Option<String>,
    /// The table that holds one item a session [default: sessions].
    #[arg(long, global = true, env, value_name = "TABLE")]
    sessions_table: Option<String>,
    /// The table that holds one item a session and side [default: scans].
    #[arg(long, global = true, env, value_name = "TABLE")]
    scans_table: Option<String>,
    /// apply removals by time to live, or keep their values [default: apply].
    #[arg(long, global = true, env, value_name = "apply|keep")]
    ttl_removals: Option<String>,
}

impl Settings {
    /// The configuration that these settings make.
    pub(crate) fn config(&self) -> Result<Config, ConfigError> {
        Config::read(|variable| self.get(variable), DEFAULT_CONNECTIONS)
    }

    /// The same without a database, for a dry run.
    pub(crate) fn config_without_database(&self) -> Result<Config, ConfigError> {
        let nowhere = || Some("postgres://dry-run@localhost/dry-run".to_owned());
        Config::read(
            |variable| if variable == "DATABASE_URL" { nowhere() } else { self.get(variable) },
            DEFAULT_CONNECTIONS,
        )
    }

    fn get(&self, variable: &str) -> Option<String> {
        match variable {
            "DATABASE_URL" => &self.database_url,
            "DATABASE_SECRET_ARN" => &self.database_secret_arn,
            "DATABASE_AUTH" => &self.database_auth,
            "DATABASE_CONNECTIONS" => &self.database_connections,
            "ARCHIVE_BUCKET" => &self.archive_bucket,
            "ARCHIVE_PREFIX" => &self.archive_prefix,
            "SESSIONS_TABLE" => &self.sessions_table,
            "SCANS_TABLE" => &self.scans_table,
            "TTL_REMOVALS" => &self.ttl_removals,
            other => unreachable!("{other} has no flag"),
        }
        .clone()
    }
}

#[cfg(test)]
mod tests {
    use super::Cli;
    use clap::{CommandFactory as _, Parser as _};
    use projector::config::VARIABLES;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_variable_of_the_lambda_is_a_flag() {
        let cli = Cli::try_parse_from(["backfill", "migrate"]).expect("a command");
        for variable in VARIABLES {
            // An unknown one panics.
            let _ = cli.settings.get(variable);
            let flag = variable.to_lowercase().replace('_', "-");
            let command = Cli::command();
            let argument =
                command.get_arguments().find(|argument| argument.get_long() == Some(&flag));
            let argument = argument.unwrap_or_else(|| panic!("no flag --{flag}"));
            assert_eq!(argument.get_env().and_then(|name| name.to_str()), Some(variable));
        }
    }
}
