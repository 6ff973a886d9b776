//! The command line: the Lambda's environment variables, each also a flag.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use projector::config::{Config, ConfigError};

/// How many connections a backfill opens where nothing else is said.
const DEFAULT_CONNECTIONS: usize = 4;

/// Replays change records into the read model (PostgreSQL, and S3 where a bucket is given).
///
/// Every replay is harmless: a change applies only if it is newer than what the row holds. Run a
/// command again after any failure.
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = "Exit codes:\n  0  done\n  1  failed; run the same command again once the cause is mended\n  2  a flag or a variable is missing or wrong\n  3  done, and some records are set aside in the table rejected_records"
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
    /// Replay fixture streams from files.
    File(FileArguments),
}

#[derive(Debug, Args)]
pub(crate) struct MigrateArguments {
    /// List what is pending, and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Let this role do what the projector does: SELECT, INSERT, UPDATE on the two tables.
    #[arg(long, value_name = "ROLE")]
    pub(crate) grant_to: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct FileArguments {
    /// Files to replay, in this order: a Lambda event ({"Records": [...]}), or one record or event a
    /// line; gzip of either.
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
