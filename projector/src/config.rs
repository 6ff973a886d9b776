//! Configuration by environment variables, for the Lambda and, as flags of the same names, for
//! `backfill`. What is missing or wrong is one line that names the variable. It is data: `start.rs`
//! makes the connections of it.

mod url;

use std::fmt;

use sqlx::postgres::PgConnectOptions;

pub use self::url::parse_url;
pub(crate) use self::url::secured;
use crate::change::Tables;

/// Every variable that is read here. `RUST_LOG` and the SDK's own (`AWS_…`) are read elsewhere.
pub const VARIABLES: [&str; 10] = [
    "DATABASE_URL",
    "DATABASE_SECRET_ARN",
    "DATABASE_AUTH",
    "DATABASE_CONNECTIONS",
    "ARCHIVE_BUCKET",
    "ARCHIVE_PREFIX",
    "ARCHIVE_OBJECTS",
    "SESSIONS_TABLE",
    "SCANS_TABLE",
    "TTL_REMOVALS",
];

/// A variable that is missing or wrong.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{variable} {problem}")]
pub struct ConfigError {
    /// The name of the variable or the flag, or what else is missing.
    pub variable: &'static str,
    /// What is wrong with it, and what it should be.
    pub problem: String,
}

/// The whole configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// PostgreSQL.
    pub database: DatabaseConfig,
    /// S3; `None` where `ARCHIVE_BUCKET` is unset.
    pub archive: Option<ArchiveConfig>,
    /// Whose streams are read.
    pub tables: Tables,
    /// What becomes of removals by time to live.
    pub ttl_removals: TtlRemovals,
}

/// Where the database is and how to log in, as configured.
#[derive(Clone)]
pub struct DatabaseConfig {
    /// `DATABASE_URL`: host, port, database, user and TLS, and the password where `login` is
    /// [`Login::Url`]. `None` only with [`Login::Secret`], which then names all of it.
    pub url: Option<PgConnectOptions>,
    /// Where the password comes from.
    pub login: Login,
    /// How many connections may be open at once.
    pub connections: usize,
}

/// Without the URL, which may hold a password.
impl fmt::Debug for DatabaseConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url: _, login, connections } = self;
        f.debug_struct("DatabaseConfig")
            .field("login", login)
            .field("connections", connections)
            .finish_non_exhaustive()
    }
}

/// Where the password comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Login {
    /// It stands in `DATABASE_URL`.
    Url,
    /// A Secrets Manager secret, by ARN: a JSON object with `username` and `password`. Its `host`,
    /// `port` and `dbname` count only where there is no `DATABASE_URL`: a secret restored or copied
    /// along with a database still names the old one.
    Secret(String),
    /// An IAM authentication token.
    Iam,
}

/// Where objects go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveConfig {
    /// `ARCHIVE_BUCKET`.
    pub bucket: String,
    /// `ARCHIVE_PREFIX`; the key is this, the session's id, and `.json`.
    pub prefix: String,
    /// `ARCHIVE_OBJECTS`.
    pub objects: ArchiveObjects,
}

impl ArchiveConfig {
    /// The prefix unless `ARCHIVE_PREFIX` says otherwise.
    pub const DEFAULT_PREFIX: &str = "measurements/";
}

/// From when on a session has an object. An object that exists always follows its row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ArchiveObjects {
    /// From its first part on.
    #[default]
    Every,
    /// Once all three parts have arrived.
    Complete,
}

impl ArchiveObjects {
    /// The mode of this name, as `ARCHIVE_OBJECTS` has it.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Every, Self::Complete].into_iter().find(|mode| mode.name() == name)
    }

    /// `every` or `complete`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Every => "every",
            Self::Complete => "complete",
        }
    }
}

/// What to do with the removals that DynamoDB makes at the end of an item's time to live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TtlRemovals {
    /// They are removals like any other.
    Apply,
    /// The values stay in the read model; the removal is only counted.
    Keep,
}

impl Config {
    /// Reads the configuration through `variable`; an empty value counts as unset, because a
    /// template cannot leave a variable out.
    ///
    /// # Errors
    /// The first [`ConfigError`].
    pub fn read(
        variable: impl Fn(&'static str) -> Option<String>,
        default_connections: usize,
    ) -> Result<Self, ConfigError> {
        let get = |name| variable(name).filter(|value| !value.trim().is_empty());
        let sessions = get("SESSIONS_TABLE").unwrap_or_else(|| "sessions".to_owned());
        let scans = get("SCANS_TABLE").unwrap_or_else(|| "scans".to_owned());
        if sessions == scans {
            return wrong(
                "SCANS_TABLE",
                format!("names the table of SESSIONS_TABLE, {sessions:?}"),
            );
        }
        let ttl_removals = match get("TTL_REMOVALS").as_deref() {
            None | Some("apply") => TtlRemovals::Apply,
            Some("keep") => TtlRemovals::Keep,
            Some(other) => {
                return wrong("TTL_REMOVALS", format!("is {other:?}, expected apply or keep"));
            }
        };
        Ok(Self {
            database: database(&get, default_connections)?,
            archive: archive(&get)?,
            tables: Tables { sessions, scans },
            ttl_removals,
        })
    }

    /// Whether the database's login or the archive asks an AWS service.
    #[must_use]
    pub fn needs_aws(&self) -> bool {
        self.archive.is_some() || self.database.login != Login::Url
    }
}

fn wrong<T>(variable: &'static str, problem: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError { variable, problem: problem.into() })
}

fn database(
    get: &impl Fn(&'static str) -> Option<String>,
    default_connections: usize,
) -> Result<DatabaseConfig, ConfigError> {
    let url = get("DATABASE_URL");
    let secret = get("DATABASE_SECRET_ARN");
    let iam = match get("DATABASE_AUTH").as_deref() {
        None | Some("password") => false,
        Some("iam") => true,
        Some(other) => {
            return wrong("DATABASE_AUTH", format!("is {other:?}, expected password or iam"));
        }
    };
    let login = match (secret, iam) {
        (Some(_), true) => {
            return wrong(
                "DATABASE_AUTH",
                "is iam while DATABASE_SECRET_ARN is set: unset one of the two",
            );
        }
        (Some(arn), false) => Login::Secret(arn),
        (None, true) => Login::Iam,
        (None, false) => Login::Url,
    };
    let url = match (url, &login) {
        (Some(url), _) => Some(
            parse_url(&url).map_err(|problem| ConfigError { variable: "DATABASE_URL", problem })?,
        ),
        (None, Login::Secret(_)) => None,
        (None, Login::Iam) => {
            return wrong(
                "DATABASE_URL",
                "is not set: with DATABASE_AUTH=iam it names host, user and database: \
                    postgres://USER@HOST:5432/DATABASE",
            );
        }
        (None, Login::Url) => {
            return wrong(
                "DATABASE_URL",
                "is not set: give postgres://USER:PASSWORD@HOST:5432/DATABASE, or \
                    DATABASE_SECRET_ARN",
            );
        }
    };
    let connections = match get("DATABASE_CONNECTIONS") {
        None => default_connections,
        Some(text) => match text.trim().parse() {
            Ok(connections @ 1..=64) => connections,
            _ => {
                return wrong(
                    "DATABASE_CONNECTIONS",
                    format!("is {text:?}, expected a number from 1 to 64"),
                );
            }
        },
    };
    Ok(DatabaseConfig { url, login, connections })
}

fn archive(
    get: &impl Fn(&'static str) -> Option<String>,
) -> Result<Option<ArchiveConfig>, ConfigError> {
    let prefix = get("ARCHIVE_PREFIX");
    let prefix = prefix.unwrap_or_else(|| ArchiveConfig::DEFAULT_PREFIX.to_owned());
    if prefix.starts_with('/') {
        return wrong("ARCHIVE_PREFIX", "starts with a slash, which would be a part of every key");
    }
    let objects = match get("ARCHIVE_OBJECTS") {
        None => ArchiveObjects::default(),
        Some(name) => match ArchiveObjects::parse(&name) {
            Some(objects) => objects,
            None => {
                let problem = format!("is {name:?}, expected every or complete");
                return wrong("ARCHIVE_OBJECTS", problem);
            }
        },
    };
    let Some(bucket) = get("ARCHIVE_BUCKET") else { return Ok(None) };
    if let Some(problem) = bucket_problem(&bucket) {
        return wrong("ARCHIVE_BUCKET", format!("is {bucket:?}, {problem}"));
    }
    Ok(Some(ArchiveConfig { bucket, prefix, objects }))
}

/// What S3 would refuse in a bucket's name (Amazon S3 User Guide, "General purpose bucket naming
/// rules"). An alias of an access point keeps the same rules.
fn bucket_problem(name: &str) -> Option<&'static str> {
    let letter_or_digit = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let (first, last) = (name.as_bytes().first(), name.as_bytes().last());
    if name.contains("://") || name.contains('/') {
        Some("expected a bucket's name alone")
    } else if !(3..=63).contains(&name.len()) {
        Some("expected 3 to 63 characters")
    } else if !name.bytes().all(|byte| letter_or_digit(&byte) || matches!(byte, b'.' | b'-')) {
        Some("expected lowercase letters, digits, dots and hyphens alone")
    } else if !first.is_some_and(letter_or_digit) || !last.is_some_and(letter_or_digit) {
        Some("expected a letter or digit at both ends")
    } else if name.contains("..") || name.parse::<std::net::Ipv4Addr>().is_ok() {
        Some("which has two dots in a row, or the form of an IP address")
    } else if ["xn--", "sthree-"].iter().any(|reserved| name.starts_with(reserved)) {
        Some("which begins as S3 reserves it")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::{
        ArchiveObjects, Config, ConfigError, Login, TtlRemovals, VARIABLES, bucket_problem,
    };
    use sqlx::postgres::PgSslMode;
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    const URL: (&str, &str) = ("DATABASE_URL", "postgres://projector:p@db.example:5432/feet");

    fn read(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let get = |name: &str| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Config::read(get, 1)
    }

    #[test]
    fn the_defaults_are_those_of_the_contract() {
        let config =
            read(&[URL, ("ARCHIVE_BUCKET", ""), ("TTL_REMOVALS", "")]).expect("a configuration");
        assert_eq!(
            (config.tables.sessions.as_str(), config.tables.scans.as_str()),
            ("sessions", "scans")
        );
        assert_eq!(config.ttl_removals, TtlRemovals::Apply);
        assert_eq!(config.database.connections, 1);
        assert_eq!(config.archive, None);
        let config = read(&[URL, ("ARCHIVE_BUCKET", "feet")]).expect("a configuration");
        let archive = config.archive.expect("an archive");
        assert_eq!(archive.prefix, "measurements/");
        assert_eq!(archive.objects, ArchiveObjects::Every);
        let complete = [URL, ("ARCHIVE_BUCKET", "feet"), ("ARCHIVE_OBJECTS", "complete")];
        let archive = read(&complete).expect("a configuration").archive.expect("an archive");
        assert_eq!(archive.objects, ArchiveObjects::Complete);
    }

    #[test]
    fn tls_is_verified_in_full_unless_the_url_says_otherwise() {
        let mode = |url| {
            let config = read(&[("DATABASE_URL", url)]).expect("a configuration");
            format!("{:?}", config.database.url.expect("a URL").get_ssl_mode())
        };
        assert_eq!(mode("postgres://u:p@h/d"), format!("{:?}", PgSslMode::VerifyFull));
        assert_eq!(mode("postgres://u:p@h/d?sslmode=disable"), format!("{:?}", PgSslMode::Disable));
    }

    #[test]
    fn what_is_missing_or_wrong_is_named_in_one_line() {
        let secret = ("DATABASE_SECRET_ARN", "arn:aws:secretsmanager:eu-central-1:1:secret:s");
        let cases: [(&[(&str, &str)], &str); 12] = [
            (&[], "DATABASE_URL is not set: give "),
            (&[("DATABASE_URL", "db.example")], "DATABASE_URL does not start with postgres://"),
            (&[("DATABASE_URL", "mysql://h/d")], "DATABASE_URL does not start with postgres://"),
            (&[("DATABASE_AUTH", "iam")], "DATABASE_URL is not set: with DATABASE_AUTH=iam"),
            (&[URL, ("DATABASE_AUTH", "kerberos")], "DATABASE_AUTH is \"kerberos\""),
            (&[URL, secret, ("DATABASE_AUTH", "iam")], "DATABASE_AUTH is iam while"),
            (&[URL, ("DATABASE_CONNECTIONS", "0")], "DATABASE_CONNECTIONS is \"0\""),
            (&[URL, ("TTL_REMOVALS", "drop")], "TTL_REMOVALS is \"drop\""),
            (&[URL, ("SCANS_TABLE", "sessions")], "SCANS_TABLE names the table of SESSIONS_TABLE"),
            (&[URL, ("ARCHIVE_BUCKET", "s3://feet")], "ARCHIVE_BUCKET is \"s3://feet\""),
            (&[URL, ("ARCHIVE_PREFIX", "/m/")], "ARCHIVE_PREFIX starts with a slash"),
            (&[URL, ("ARCHIVE_OBJECTS", "all")], "ARCHIVE_OBJECTS is \"all\", expected every"),
        ];
        for (variables, expected) in cases {
            let message = read(variables).expect_err(expected).to_string();
            assert!(message.starts_with(expected), "{message}");
            assert!(!message.contains('\n') && !message.contains(":p@"), "{message}");
        }
    }

    #[test]
    fn a_bucket_name_that_s3_would_refuse_is_refused() {
        for name in [
            "ab",
            &"a".repeat(64),
            "Feet",
            "my_feet",
            "-feet",
            "feet-",
            ".feet",
            "fe..et",
            "192.168.5.4",
            "xn--feet",
            "sthree-feet",
            "arn:aws:s3:::feet",
            "s3://feet",
            "feet/",
            "füße",
        ] {
            assert!(bucket_problem(name).is_some(), "{name}");
        }
        for name in ["abc", "my.feet-2", &"a".repeat(63), "feet-metadata-s3alias", "192.168.5.4a"] {
            assert_eq!(bucket_problem(name), None, "{name}");
        }
    }

    #[test]
    fn logins_are_told_apart() {
        let secret = ("DATABASE_SECRET_ARN", "arn:aws:secretsmanager:eu-central-1:1:secret:s");
        let login = |variables: &[_]| read(variables).expect("a configuration").database.login;
        assert_eq!(login(&[URL]), Login::Url);
        assert_eq!(login(&[secret]), Login::Secret(secret.1.to_owned()));
        assert_eq!(login(&[URL, ("DATABASE_AUTH", "iam")]), Login::Iam);
    }

    #[test]
    fn the_list_of_variables_is_what_is_read() {
        let asked = RefCell::new(BTreeSet::new());
        let get = |name: &'static str| {
            asked.borrow_mut().insert(name);
            (name == URL.0).then(|| URL.1.to_owned())
        };
        Config::read(get, 1).expect("a configuration");
        assert_eq!(asked.into_inner(), BTreeSet::from(VARIABLES));
    }
}
