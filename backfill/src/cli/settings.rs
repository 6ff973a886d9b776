//! The settings: the Lambda's environment variables, each also a flag. Pure. They stand in groups,
//! so that a command takes, and its help shows, only those that concern it. A variable of another
//! group is not read: it is harmless.

use clap::Args;
use projector::config::{Config, ConfigError, VARIABLES};

/// How many connections a backfill opens unless a setting says otherwise.
const DEFAULT_CONNECTIONS: usize = 4;
/// Stands for the database of a command that connects to none.
const NOWHERE: &str = "postgres://dry-run@localhost/dry-run";
/// The heading of the settings in each help.
const HEADING: &str = "Settings (a flag, or the Lambda's environment variable)";

/// A variable, and its value if it is set.
type Setting<'a> = (&'static str, &'a Option<String>);

/// The database, for a command that uses one connection.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = HEADING)]
#[expect(clippy::struct_field_names, reason = "each is named like its variable")]
pub(crate) struct Database {
    /// `postgres://USER:PASSWORD@HOST:5432/DATABASE`. The server's certificate is verified, unless
    /// ?sslmode= says otherwise. Percent-encode the password.
    #[arg(long, env, hide_env_values = true, value_name = "URL")]
    database_url: Option<String>,
    /// A Secrets Manager secret with `username` and `password`. Its `host`, `port` and `dbname`
    /// count only if `DATABASE_URL` is not set.
    #[arg(long, env, value_name = "ARN")]
    database_secret_arn: Option<String>,
    /// How to log in: `password`, or `iam` for a new token per connection [default: password].
    #[arg(long, env, value_name = "password|iam")]
    database_auth: Option<String>,
}

impl Database {
    /// The values that are set.
    pub(crate) fn settings(&self) -> Settings {
        Settings::of(self.list())
    }

    fn list(&self) -> [Setting<'_>; 3] {
        [
            ("DATABASE_URL", &self.database_url),
            ("DATABASE_SECRET_ARN", &self.database_secret_arn),
            ("DATABASE_AUTH", &self.database_auth),
        ]
    }
}

/// The tables in DynamoDB.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = HEADING)]
pub(crate) struct TableSettings {
    /// The DynamoDB table that holds one item per session [default: sessions].
    #[arg(long, env, value_name = "TABLE")]
    sessions_table: Option<String>,
    /// The DynamoDB table that holds one item per session and side [default: scans].
    #[arg(long, env, value_name = "TABLE")]
    scans_table: Option<String>,
}

impl TableSettings {
    /// The values that are set.
    pub(crate) fn settings(&self) -> Settings {
        Settings::of(self.list())
    }

    fn list(&self) -> [Setting<'_>; 2] {
        [("SESSIONS_TABLE", &self.sessions_table), ("SCANS_TABLE", &self.scans_table)]
    }
}

/// Both stores, for a command that compares them.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = HEADING)]
pub(crate) struct Stores {
    #[command(flatten)]
    database: Database,
    /// How many connections to use at once, 1 to 64 [default: 4].
    #[arg(long, env, value_name = "COUNT")]
    database_connections: Option<String>,
    /// The bucket for the JSON objects. If it is not set, no objects are written.
    #[arg(long, env, value_name = "BUCKET")]
    archive_bucket: Option<String>,
    /// What comes before `SESSION_ID.json` in an object's key [default: measurements/].
    #[arg(long, env, value_name = "PREFIX")]
    archive_prefix: Option<String>,
    /// From when on a session has an object: from its first part on (`every`), or once all three
    /// parts have arrived (`complete`) [default: every].
    #[arg(long, env, value_name = "every|complete")]
    archive_objects: Option<String>,
}

impl Stores {
    /// The values that are set.
    pub(crate) fn settings(&self) -> Settings {
        Settings::of(self.list())
    }

    fn list(&self) -> Vec<Setting<'_>> {
        let own = [
            ("DATABASE_CONNECTIONS", &self.database_connections),
            ("ARCHIVE_BUCKET", &self.archive_bucket),
            ("ARCHIVE_PREFIX", &self.archive_prefix),
            ("ARCHIVE_OBJECTS", &self.archive_objects),
        ];
        self.database.list().into_iter().chain(own).collect()
    }
}

/// The database and the tables, for a command that looks at a side of a move.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = HEADING)]
pub(crate) struct Sides {
    #[command(flatten)]
    database: Database,
    /// How many connections to use at once, 1 to 64 [default: 4].
    #[arg(long, env, value_name = "COUNT")]
    database_connections: Option<String>,
    #[command(flatten)]
    tables: TableSettings,
}

impl Sides {
    /// The values that are set.
    pub(crate) fn settings(&self) -> Settings {
        let own = [("DATABASE_CONNECTIONS", &self.database_connections)];
        Settings::of(self.database.list().into_iter().chain(own).chain(self.tables.list()))
    }
}

/// Everything, for a command that applies records.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = HEADING)]
pub(crate) struct Everything {
    #[command(flatten)]
    stores: Stores,
    #[command(flatten)]
    tables: TableSettings,
    /// What to do with items that DynamoDB removed by time to live: `apply` the removal, or `keep`
    /// their values [default: apply].
    #[arg(long, env, value_name = "apply|keep")]
    ttl_removals: Option<String>,
}

impl Everything {
    /// The values that are set.
    pub(crate) fn settings(&self) -> Settings {
        Settings::of(self.list())
    }

    fn list(&self) -> Vec<Setting<'_>> {
        let own = [("TTL_REMOVALS", &self.ttl_removals)];
        self.stores.list().into_iter().chain(self.tables.list()).chain(own).collect()
    }
}

/// The settings of a command, with the values that are set.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings(Vec<(&'static str, String)>);

impl Settings {
    fn of<'a>(list: impl IntoIterator<Item = Setting<'a>>) -> Self {
        let set = |(variable, value): Setting<'_>| Some((variable, value.clone()?));
        Self(list.into_iter().filter_map(set).collect())
    }

    /// The configuration that these settings make.
    pub(crate) fn config(&self) -> Result<Config, ConfigError> {
        Config::read(|variable| self.get(variable), DEFAULT_CONNECTIONS)
    }

    /// The same without a database, for a command that connects to none.
    pub(crate) fn config_without_database(&self) -> Result<Config, ConfigError> {
        let get = |variable| match variable {
            "DATABASE_URL" => Some(NOWHERE.to_owned()),
            _ => self.get(variable),
        };
        Config::read(get, DEFAULT_CONNECTIONS)
    }

    /// The configuration without the settings that are wrong, and what is wrong with them. `None`
    /// if too little is left of it.
    pub(crate) fn config_and_faults(&self) -> (Option<Config>, Vec<ConfigError>) {
        let mut faults: Vec<ConfigError> = Vec::new();
        while faults.len() < VARIABLES.len() {
            let read = Config::read(
                |variable| match faults.iter().any(|fault| fault.variable == variable) {
                    true if variable == "DATABASE_URL" => Some(NOWHERE.to_owned()),
                    true => None,
                    false => self.get(variable),
                },
                DEFAULT_CONNECTIONS,
            );
            match read {
                Ok(config) => return (Some(config), faults),
                Err(fault) if faults.iter().any(|known| known.variable == fault.variable) => break,
                Err(fault) => faults.push(fault),
            }
        }
        (None, faults)
    }

    /// The value of a variable.
    pub(crate) fn get(&self, variable: &str) -> Option<String> {
        let set = self.0.iter().find(|(name, _)| *name == variable);
        set.map(|(_, value)| value.clone())
    }
}
