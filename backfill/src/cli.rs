//! The command line: the commands, their flags, and the help of each.

mod groups;
mod settings;

mod merge;
mod ready;
mod reconcile;
mod repair;
mod replay;
mod verify;

use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{ArgGroup, Args, CommandFactory as _, Parser, Subcommand};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

pub(crate) use self::merge::MergeArguments;
pub(crate) use self::ready::{ReadyArguments, verify_since};
pub(crate) use self::reconcile::{
    ReconcileArguments, ReconcileCommand, StartArguments, WatchArguments,
};
pub(crate) use self::repair::{ReReadArguments, RepairArguments};
pub(crate) use self::replay::ReplayFlags;
use self::settings::{Database, Everything, Stores, TableSettings};
pub(crate) use self::verify::VerifyArguments;
use crate::outcome::exit_codes;

pub(crate) use self::settings::Settings;

/// Brings the read model up to date: one PostgreSQL row per session and, if a bucket is set, one S3
/// object.
///
/// Every replay is harmless: a change applies only if it is newer than what the row holds. After
/// any failure, run the same command again.
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    args_override_self = true,
    after_help = exit_codes()
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The command line, with its help for a terminal of this width.
pub(crate) fn command(width: usize) -> clap::Command {
    let cli = Cli::command();
    let template = groups::template(&cli, width);
    cli.help_template(template)
}

/// In the order in which an operator needs them.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check every part that a run needs, and say how to fix what fails.
    #[command(long_about = DOCTOR, after_help = exit_codes())]
    Doctor(DoctorArguments),
    /// Bring the database's schema up to date, and grant privileges.
    #[command(long_about = MIGRATE, after_help = exit_codes())]
    Migrate(MigrateArguments),
    /// Check that the streams still hold every change since a snapshot.
    #[command(long_about = CHECK, after_help = exit_codes())]
    Check(CheckArguments),
    /// Replay the live streams of both tables, up to now.
    #[command(long_about = STREAM, after_help = exit_codes())]
    Stream(StreamArguments),
    /// Apply records from files, such as those that Lambda gave up on.
    #[command(long_about = FILE, after_help = exit_codes())]
    File(FileArguments),
    /// Merge another database, or an archive, by stored versions.
    #[command(long_about = merge::HELP, after_help = exit_codes())]
    Merge(MergeArguments),
    /// Close a gap of any age from the tables themselves.
    #[command(long_about = repair::HELP, after_help = exit_codes())]
    Repair(RepairArguments),
    /// Do the same, or compare, with a state machine: for whole tables.
    #[command(long_about = reconcile::HELP, after_help = exit_codes())]
    Reconcile(ReconcileArguments),
    /// Prove that the rows equal another database, the tables or the objects.
    #[command(long_about = verify::HELP, after_help = exit_codes())]
    Verify(VerifyArguments),
    /// Say whether the readers may switch to this database, and if not, why.
    #[command(long_about = ready::HELP, after_help = exit_codes())]
    Ready(ReadyArguments),
    /// Retry the records in `rejected_records`, or discard them.
    #[command(long_about = REDRIVE, after_help = exit_codes())]
    Redrive(RedriveArguments),
    /// Write the objects that are missing or behind their rows.
    #[command(long_about = OBJECTS, after_help = exit_codes())]
    Objects(ObjectsArguments),
    /// Show how far `stream` has come, and which records are rejected.
    #[command(long_about = STATUS, after_help = exit_codes())]
    Status(StatusArguments),
    /// Print the script with which your shell completes commands.
    #[command(after_help = exit_codes())]
    Completions(CompletionsArguments),
    /// Print the manual page, for `man -l -`.
    #[command(after_help = exit_codes())]
    Man,
}

impl Command {
    /// The settings that concern the command, as far as they are set.
    pub(crate) fn settings(&self) -> Settings {
        match self {
            Self::Doctor(arguments) => arguments.settings.settings(),
            Self::Migrate(arguments) => arguments.settings.settings(),
            Self::Check(arguments) => arguments.settings.settings(),
            Self::Stream(arguments) => arguments.settings.settings(),
            Self::File(arguments) => arguments.settings.settings(),
            Self::Merge(arguments) => arguments.settings.settings(),
            Self::Repair(arguments) => arguments.settings.settings(),
            Self::Reconcile(arguments) => arguments.settings(),
            Self::Verify(arguments) => arguments.settings.settings(),
            Self::Ready(arguments) => arguments.settings.settings(),
            Self::Redrive(arguments) => arguments.settings.settings(),
            Self::Objects(arguments) => arguments.settings.settings(),
            Self::Status(arguments) => arguments.settings.settings(),
            Self::Completions(_) | Self::Man => Settings::default(),
        }
    }

    /// Whether the result is to be JSON.
    pub(crate) fn is_json(&self) -> bool {
        match self {
            Self::Doctor(arguments) => arguments.format.json,
            Self::Migrate(arguments) => arguments.format.json,
            Self::Check(arguments) => arguments.format.json,
            Self::Stream(arguments) => arguments.format.json,
            Self::File(arguments) => arguments.format.json,
            Self::Merge(arguments) => arguments.format.json,
            Self::Repair(arguments) => arguments.format.json,
            Self::Reconcile(arguments) => arguments.is_json(),
            Self::Verify(arguments) => arguments.format.json,
            Self::Ready(arguments) => arguments.format.json,
            Self::Redrive(arguments) => arguments.format.json,
            Self::Objects(arguments) => arguments.format.json,
            Self::Status(arguments) => arguments.format.json,
            Self::Completions(_) | Self::Man => false,
        }
    }
}

/// The form of a command's result.
#[derive(Debug, Args)]
pub(crate) struct Format {
    /// Print the result to standard output as one JSON object, also after a failure; everything
    /// else goes to standard error. docs/reference.md describes the object.
    #[arg(long)]
    json: bool,
}

const DOCTOR: &str = "\
Check every part that a run needs, and say how to fix what fails.

The checks: the settings; the AWS region and credentials; the database's login, TLS, schema, \
privileges, encoding and time limits; the bucket; the two tables and their streams; the readers of \
the streams; this machine's clock. Each line is \u{2713} (works), \u{2717} (does not work, with \
the remedy) or \u{2013} (not configured, or not known).

It writes nothing. It reads at most one record of one shard per table, which counts as one reader \
for one call. Each check ends within a few seconds, and a failed check does not stop the others. \
Exit code 0 if no line is \u{2717}, else 2.";

const MIGRATE: &str = "\
Bring the database's schema up to date, and grant a role what it needs.

Before it changes anything, it looks for whatever would stop it: a changed, unknown or failed \
migration, a missing role or privilege, a standby. --dry-run does this too, with the same messages \
and exit codes. Running it twice is harmless.

Log in as the owner of the database, directly: not through RDS Proxy or PgBouncer.";

const CHECK: &str = "\
Check that the streams still hold every change since a snapshot. Say for how long, and who reads them.

AWS advises at most two readers per shard, of a global table only one, and a backfill is one. \
Without --snapshot-time it says who reads the streams, and how far back they can be read. It needs \
no database, and reads no records. Exit code 0 if the gap can be closed with the margin to spare \
and nothing else is wrong, else 4.";

const STATUS: &str = "\
Show how far `stream` has come, who runs it, and which records are rejected.

It shows the checkpoint of each shard and its lag, who holds the lock of `stream`, the rejected \
records by reason, and an estimate of the rows. It reads only the database, and may run beside \
anything. It asks AWS for nothing but the database's login, if that comes from AWS.";

const STREAM: &str = "\
Replay the live streams of both tables, up to now.

Reads every shard from TRIM_HORIZON, or from its checkpoint, parents before their children, and \
applies the records through the projector's own path. Run `backfill check` first; this command \
checks again, and refuses a gap that is not covered.

The cutoff: when the run ends, every record created before it started is applied. A closed shard \
is read to its end. An open shard never ends; it is read until it returns a record created more \
than 5 seconds after the start. If nothing more is written to it, nothing says that it is caught \
up: AWS may return any number of empty pages before records. So it is assumed to be caught up \
after only empty pages for --idle-seconds, or for --first-record-seconds if it has returned no \
record yet (at least 10 pages, and 4 per second). The summary names each shard that was only \
assumed to be caught up. At the end each stream is described once more: a shard that was closed \
meanwhile is read to its end after all, and so are children that were not listed before.

Checkpoints are kept in the target database, in backfill_checkpoints, each written after the \
records before it are in both stores. After any exit, even kill -9, rerun the command: it resumes \
from its checkpoints. Without --snapshot-time, checkpoints older than 24 hours are deleted, and \
their shards are read from the trim horizon. One run at a time works on a database.

Rows become visible as records are read, not at the end. A record waits at most 0.1 s for others. \
Then its batch begins, or waits until less than two are under way. So between the reading of a \
record and its row stand at most three batches and the --parallel pages that are read ahead.

Memory: at most --parallel pages of 1 MB (some 1.4 MB as JSON), and three batches of --batch-size \
records or 8 MiB, two of them under way in their forms from JSON to statement; for a shard that \
waits, next to nothing. At most some 70 MB without meshes, and 250 MB with meshes of 300 KB, \
whatever the number of shards.";

const FILE: &str = "\
Apply the records in files: what Lambda gave up on and wrote to its bucket, or saved streams.

A file holds one JSON document after another: one per line, several per line, or laid out over \
many lines. UTF-8, plain or gzip, whatever its name. A document is
  - a Lambda event ({\"Records\": [...]}),
  - what Lambda wrote to an on-failure destination on S3 (DDBStreamBatchInfo and payload),
  - one change record, or a list of them, as EventBridge Pipes sends it,
  - what GetRecords returned, with --stream-arn if its records do not name their stream.

One bad file holds up no other. What cannot be read is named with its file, line and byte offset \
(after decompression), all else is applied, and the exit code is 1. What is no change record (an \
item of an export, a line of a log) is named in the same way; rejected_records holds only change \
records that cannot apply. A misspelt path ends the run before anything is written; so does a \
search that finds no files.

Run the same command again after any end: what is stored already counts as duplicate. SIGINT and \
SIGTERM end the run after the batches under way (exit code 6). With ARCHIVE_BUCKET set, all rows \
come first, and then each object once; what a run leaves pending, the next one writes.

Files are merged by the creation times of their records, so that the parts of a session meet in \
one batch. At most 64 files are open at once; each is opened when its first time has come. A \
record without a time is taken with the one before it in its file. No order changes what is \
stored. A pipe and standard input are read alone, where they are named.

Memory: two batches of --batch-size records or 32 MiB in their forms from JSON to statement, one \
more as JSON; of the open files, 32 MiB of records, 25 MiB of buffers, and one document of at most \
64 MiB with the records in it; a larger one is not read.";

const OBJECTS: &str = "\
Compare the object of every row, and write those that are missing or behind.

For a bucket that was restored, emptied or replaced, and for sessions whose records no stream \
holds any more. It may run beside live functions: every write is conditional, and no object goes \
back.

Each row costs a HEAD request, at most 32 at a time. A row whose object is behind costs a read of \
the row and a PUT, too. With --dry-run there are only HEAD requests.

An object that cannot be written holds up no other: it is tried again at the end. If it still \
fails, or if a signal ends the run, the command names the --after from which a new run skips \
nothing. Exit code 0 means that the object of every row after --after holds its row.

The objects that `stream`, `file`, `merge` or `repair` left pending are written first; with \
--pending, nothing else is done.";

#[derive(Debug, Args)]
pub(crate) struct ObjectsArguments {
    /// Resume after this session id.
    #[arg(long, value_name = "SESSION_ID")]
    pub(crate) after: Option<String>,
    /// Write nothing, and say which objects are missing or behind.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Write only the objects that `file`, `stream`, `merge` or `repair` left pending.
    #[arg(long, conflicts_with_all = ["after", "dry_run"])]
    pub(crate) pending: bool,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    settings: Stores,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArguments {
    #[arg(long, value_name = "TIME", help = SNAPSHOT_TIME, value_parser = time)]
    pub(crate) snapshot_time: Option<OffsetDateTime>,
    #[arg(long, value_name = "MINUTES", help = MARGIN, default_value_t = 60)]
    margin_minutes: u32,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    settings: TableSettings,
}

impl CheckArguments {
    pub(crate) fn margin(&self) -> time::Duration {
        time::Duration::minutes(self.margin_minutes.into())
    }
}

const SNAPSHOT_TIME: &str = "Everything created up to this time is in the restored database: the \
    time of the snapshot (RDS: OriginalSnapshotCreateTime) or, if the projector was behind then, \
    the time up to which it had applied. RFC 3339, such as 2026-11-23T14:00:00Z";
const MARGIN: &str = "A stream keeps 24 hours: how much of them must be left for the run itself";

fn time(text: &str) -> Result<OffsetDateTime, String> {
    OffsetDateTime::parse(text, &Rfc3339)
        .ok()
        // Arithmetic with it must not leave the calendar.
        .filter(|time| (2000..9000).contains(&time.year()))
        .ok_or_else(|| "not a time of RFC 3339, such as 2026-11-23T14:00:00Z".to_owned())
}

#[derive(Debug, Args)]
pub(crate) struct StreamArguments {
    #[arg(long, value_name = "TIME", help = SNAPSHOT_TIME, value_parser = time)]
    pub(crate) snapshot_time: Option<OffsetDateTime>,
    #[arg(long, value_name = "MINUTES", help = MARGIN, default_value_t = 60)]
    margin_minutes: u32,
    /// Read what is left even if changes since the snapshot can be missing: the streams do not hold
    /// them all, or some are trimmed before they are read. Such a run ends with exit code 5.
    #[arg(long)]
    pub(crate) allow_gap: bool,
    /// Do not end at the cutoff: apply what comes, also from streams that are enabled later, until
    /// SIGINT or SIGTERM.
    #[arg(long)]
    pub(crate) follow: bool,
    /// Begin at the trim horizon, and delete the checkpoints of these streams.
    #[arg(long)]
    pub(crate) restart: bool,
    /// At most this many records are merged before they are written.
    #[arg(long, value_name = "RECORDS", default_value_t = 2_500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) batch_size: u32,
    #[command(flatten)]
    pub(crate) replay: ReplayFlags,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    settings: Everything,
}

impl StreamArguments {
    pub(crate) fn margin(&self) -> time::Duration {
        time::Duration::minutes(self.margin_minutes.into())
    }
}

const REDRIVE: &str = "\
Retry the open records in `rejected_records`, and remove those that now apply.

For records that were right, and that a newer projector, a migration or a fixed rule takes now. A \
record goes through the projector's own path. It is removed once it is in both stores. It is \
removed, too, if it is malformed and its row holds a newer change of the same part: nobody needs \
it any more. A record that is rejected again stays, with the reason of this time. A record whose \
table is not SESSIONS_TABLE or SCANS_TABLE, or that has no new image, stays untried, and is named.

Once this database has had a repair (`backfill repair`), no late record is applied by its image: \
its item is read again, as `repair` does it, and the record is removed once its row is right. That \
takes at least twice the function's timeout.

With --discard nothing is tried: the records are marked as discarded (discarded_at, \
discarded_why). They stay in the table, but no longer count as open, even if their stream delivers \
them again. To open one again, set both columns to NULL.

The run may be ended at any moment: run the same command again for the rest. A record that cannot \
be stored while others can (a locked row, say) holds up no other. It stays.

Exit code 1: some records could not be stored; they are named. Exit code 3: some records are still \
rejected or untried. Exit code 2 if every record is of a table that is not configured.";

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("filter").args(["reason", "identity"]).multiple(true)))]
pub(crate) struct RedriveArguments {
    /// Only records whose reason is LIKE this, such as '%weather%'.
    #[arg(long, value_name = "PATTERN")]
    pub(crate) reason: Option<String>,
    /// Only the record with this identity (the key of `rejected_records`).
    #[arg(long, value_name = "ID")]
    pub(crate) identity: Option<String>,
    /// Mark the records as discarded instead of trying them; needs --why and a filter (--reason or
    /// --identity).
    #[arg(long, requires_all = ["why", "filter"])]
    pub(crate) discard: bool,
    /// Why the records are discarded; kept with them.
    #[arg(long, value_name = "TEXT", requires = "discard", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) why: Option<String>,
    /// Read and check the records, write and remove nothing, and say what would be rejected or
    /// discarded.
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten, next_help_heading = "After a repair of this database")]
    pub(crate) reading: ReReadArguments,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    settings: Everything,
}

#[derive(Debug, Args)]
pub(crate) struct MigrateArguments {
    /// Change nothing: say what the real run would do or what would stop it, with the same exit
    /// code.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Let this role do what the projector does: SELECT, INSERT, UPDATE on `measurements` and
    /// `rejected_records`. Also set its `synchronous_commit` and time limits, unless it has its
    /// own.
    #[arg(long, value_name = "ROLE")]
    pub(crate) grant_to: Option<String>,
    /// Let this role run every other command: the same, DELETE on `rejected_records`, SELECT,
    /// INSERT, UPDATE, DELETE on `backfill_checkpoints`, `pending_objects` and the tables of a
    /// reconciliation, SELECT, INSERT on `verifications`, and SELECT, INSERT, UPDATE on `repairs`.
    #[arg(long, value_name = "ROLE")]
    pub(crate) grant_backfill_to: Option<String>,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    settings: Database,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArguments {
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    settings: Everything,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsArguments {
    /// The shell: `source <(backfill completions bash)`.
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArguments {
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    settings: Database,
}

#[derive(Debug, Args)]
pub(crate) struct FileArguments {
    /// What to read: a file; a folder for all files in it and below it, except those whose names
    /// begin with a dot; - for standard input.
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,
    /// The stream of records that do not name it, as `GetRecords` returns them
    /// (arn:aws:dynamodb:REGION:ACCOUNT:table/TABLE/stream/LABEL). Records that name their stream
    /// keep it.
    #[arg(long, value_name = "ARN")]
    pub(crate) stream_arn: Option<String>,
    /// Read and check every record, connect to nothing, and say what would be rejected and what
    /// cannot be read. The exit codes are the same.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// How many records are merged before they are written. A batch spans files.
    #[arg(long, value_name = "RECORDS", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) batch_size: u32,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    settings: Everything,
}

#[cfg(test)]
mod tests {
    use super::{Cli, command};
    use clap::Parser as _;
    use projector::config::VARIABLES;

    #[test]
    fn the_command_line_is_consistent() {
        command(100).debug_assert();
    }

    #[test]
    fn every_variable_of_the_lambda_is_a_flag() {
        for variable in VARIABLES {
            let flag = format!("--{}", variable.to_lowercase().replace('_', "-"));
            let cli = Cli::try_parse_from(["backfill", "doctor", &flag, "here"]).expect(variable);
            let settings = cli.command.settings();
            assert_eq!(settings.get(variable).as_deref(), Some("here"), "{variable}");
        }
    }

    #[test]
    fn each_command_shows_only_the_settings_that_concern_it() {
        const LOGIN: &[&str] = &["DATABASE_URL", "DATABASE_SECRET_ARN", "DATABASE_AUTH"];
        const TABLES: &[&str] = &["SESSIONS_TABLE", "SCANS_TABLE"];
        const ARCHIVE: &[&str] = &["ARCHIVE_BUCKET", "ARCHIVE_PREFIX", "ARCHIVE_OBJECTS"];
        let stores = [LOGIN, &["DATABASE_CONNECTIONS"], ARCHIVE].concat();
        let sides = [LOGIN, &["DATABASE_CONNECTIONS"], TABLES].concat();
        let expected: [(&str, &[&str]); 15] = [
            ("doctor", &VARIABLES),
            ("migrate", LOGIN),
            ("check", TABLES),
            ("stream", &VARIABLES),
            ("file", &VARIABLES),
            ("merge", &VARIABLES),
            ("repair", &VARIABLES),
            ("reconcile", &[]),
            ("verify", &VARIABLES),
            ("ready", &sides),
            ("redrive", &VARIABLES),
            ("objects", &stores),
            ("status", LOGIN),
            ("completions", &[]),
            ("man", &[]),
        ];
        let mut cli = command(100);
        assert_eq!(cli.get_subcommands().count(), expected.len());
        for (name, expected) in expected {
            let help = cli.find_subcommand_mut(name).expect(name).render_long_help().to_string();
            let shown: Vec<&str> = VARIABLES
                .into_iter()
                .filter(|variable| help.contains(&format!("[env: {variable}")))
                .collect();
            assert_eq!(shown, expected, "{name}: {help}");
        }
    }

    /// `start` asks the tables for their sizes; the others ask Step Functions alone.
    #[test]
    fn of_reconcile_only_the_start_knows_the_tables() {
        for (line, expected) in [("start", Some("s")), ("status", None), ("wait", None)] {
            let arguments = ["backfill", "reconcile", line, "--sessions-table", "s"];
            let given = Cli::try_parse_from(arguments).ok();
            let table = given.and_then(|cli| cli.command.settings().get("SESSIONS_TABLE"));
            assert_eq!(table.as_deref(), expected, "{line}");
        }
    }

    #[test]
    fn flags_of_a_start_that_contradict_each_other_are_refused() {
        for (wrong, flags) in [
            (true, &["--repair", "--compare-only"][..]),
            (true, &["--failures", "--compare-only"]),
            (true, &["--failures", "--export", "a", "b"]),
            (true, &["--export", "a"]),
            (true, &["--dry-run", "--wait"]),
            (true, &["--memory-mb", "512"]),
            (true, &["--name", "a/b"]),
            (false, &["--failures", "--wait", "--name", "drain-1"]),
            (false, &["--repair", "--export", "a", "b", "--dry-run", "--memory-mb", "512"]),
        ] {
            let line = [&["backfill", "reconcile", "start"], flags].concat();
            assert_eq!(Cli::try_parse_from(line).is_err(), wrong, "{flags:?}");
        }
    }
}
