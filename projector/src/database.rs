//! Connections to PostgreSQL: few, kept warm, re-made when broken.
//!
//! Not a pool of sqlx's: that one pings before each use (a round trip a batch), and hides a refused
//! connection until a time-out. Here a statement runs at once; because every statement of ours may
//! be repeated without harm, a connection that turns out to be dead is replaced and the statement
//! run again.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_config::SdkConfig;
use aws_credential_types::provider::ProvideCredentials;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgRow, PgSslMode};
use sqlx::{ConnectOptions, PgConnection};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::error::{self, Error};
use crate::rds_token;

const CONNECT_TIMEOUT_S: u64 = 10;
const STATEMENT_TIMEOUT_S: u64 = 60;
/// A connection that was idle for longer is not used again: something between us and the server may
/// have forgotten it without a word (a NAT gateway does after 350 s), and a statement would hang.
const MAX_IDLE: Duration = Duration::from_mins(5);
/// How often a statement is run at most: once, and again after a dead connection or a deadlock.
const TRIES: u32 = 4;

/// Where the database is and how to log in, as configured.
#[derive(Clone, Debug)]
pub struct DatabaseConfig {
    /// Host, port, database, user and TLS; the password too where `login` is [`Login::Url`].
    pub options: PgConnectOptions,
    /// Where the password comes from.
    pub login: Login,
    /// How many connections may be open at once.
    pub connections: usize,
}

/// Where the password comes from. It is asked for anew for each connection, so that a rotated
/// secret and a token that lives 15 minutes both work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Login {
    /// It stands in `DATABASE_URL`.
    Url,
    /// A Secrets Manager secret, by ARN: a JSON object with `username` and `password`, and perhaps
    /// `host`, `port` and `dbname`, as RDS writes it.
    Secret(String),
    /// An IAM authentication token.
    Iam,
}

/// Reads `DATABASE_URL`: TLS is `verify-full` against the RDS roots unless the URL says otherwise.
///
/// # Errors
/// One line that says what is wrong with the URL; never the URL itself, it may hold a password.
pub fn parse_url(text: &str) -> Result<PgConnectOptions, String> {
    let url = url::Url::parse(text).map_err(|error| format!("is not a URL ({error})"))?;
    if !matches!(url.scheme(), "postgres" | "postgresql") {
        return Err("does not start with postgres://".to_owned());
    }
    let options = PgConnectOptions::from_str(text).map_err(|error| error::chain(&error))?;
    let says = |names: &[&str]| url.query_pairs().any(|(name, _)| names.contains(&&*name));
    Ok(secured(
        options,
        says(&["sslmode", "ssl-mode"]),
        says(&["sslrootcert", "ssl-root-cert", "ssl-ca"]),
    ))
}

/// The options of a database whose every particular comes from a secret.
#[must_use]
pub fn bare_options() -> PgConnectOptions {
    secured(PgConnectOptions::new_without_pgpass(), false, false)
}

fn secured(mut options: PgConnectOptions, mode_given: bool, roots_given: bool) -> PgConnectOptions {
    if !mode_given {
        options = options.ssl_mode(PgSslMode::VerifyFull);
    }
    match rds_roots() {
        Some(roots) if !roots_given => options.ssl_root_cert(roots),
        _ => options,
    }
    .application_name("projector")
    .disable_statement_logging()
}

/// The RDS root certificates, `rds-roots.pem` beside the executable, where the build puts them.
/// Without them only the public roots are trusted (RDS Proxy's certificates are signed by those).
fn rds_roots() -> Option<PathBuf> {
    let roots =
        std::env::current_exe().ok()?.parent().map(Path::to_path_buf)?.join("rds-roots.pem");
    roots.exists().then_some(roots)
}

/// The database, with what is needed to make one more connection to it.
#[derive(Debug)]
pub struct Database {
    config: DatabaseConfig,
    aws: Option<SdkConfig>,
    /// Each with the time since when it is idle.
    idle: Mutex<Vec<(PgConnection, Instant)>>,
    permits: Semaphore,
    /// RDS Proxy pins a session to its connection when it prepares a statement, so behind one we
    /// do not keep statements.
    persistent: bool,
}

impl Database {
    /// Connects to nothing yet. `aws` is needed where the login asks an AWS service.
    #[must_use]
    pub fn new(config: DatabaseConfig, aws: Option<SdkConfig>) -> Self {
        let host = config.options.get_host();
        let proxied = host.contains(".proxy-") && host.contains(".rds.amazonaws.com");
        Self {
            permits: Semaphore::new(config.connections),
            idle: Mutex::default(),
            persistent: !proxied,
            config,
            aws,
        }
    }

    /// How many connections may be open at once.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.config.connections
    }

    /// Opens one more connection, with credentials asked for anew.
    ///
    /// # Errors
    /// [`Error::Credentials`], [`Error::Database`] or [`Error::DatabaseTimeout`].
    pub async fn connect(&self) -> Result<PgConnection, Error> {
        let connecting = async { self.options().await?.connect().await.map_err(Error::Database) };
        timeout(Duration::from_secs(CONNECT_TIMEOUT_S), connecting).await.unwrap_or(Err(
            Error::DatabaseTimeout { doing: "accept a connection", seconds: CONNECT_TIMEOUT_S },
        ))
    }

    /// Runs one statement that may be repeated without harm, and gives its rows.
    ///
    /// # Errors
    /// [`Error::Database`] or [`Error::DatabaseTimeout`] of the last try, or what
    /// [`Database::connect`] gives.
    pub(crate) async fn fetch(
        &self,
        sql: &'static str,
        arguments: impl Fn() -> Result<PgArguments, sqlx::error::BoxDynError>,
    ) -> Result<Vec<PgRow>, Error> {
        let _permit = self.permits.acquire().await.expect("the semaphore is never closed");
        let mut tries = 0;
        loop {
            tries += 1;
            let warm = self.warm();
            let was_warm = warm.is_some();
            let mut connection = match warm {
                Some(connection) => connection,
                None => self.connect().await?,
            };
            let arguments =
                arguments().map_err(|error| Error::Database(sqlx::Error::Encode(error)))?;
            let query = sqlx::query_with(sql, arguments).persistent(self.persistent);
            let limit = Duration::from_secs(STATEMENT_TIMEOUT_S);
            // A connection that is not given back is closed; after a time-out that is what we want.
            let answer = timeout(limit, query.fetch_all(&mut connection)).await.map_err(|_| {
                Error::DatabaseTimeout { doing: "finish a statement", seconds: STATEMENT_TIMEOUT_S }
            })?;
            match answer {
                Ok(rows) => {
                    self.keep(connection);
                    return Ok(rows);
                }
                // The server closes idle connections when it restarts or fails over.
                Err(error) if error::connection_lost(&error) && was_warm && tries < TRIES => {
                    self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
                }
                Err(error) if error::connection_lost(&error) => return Err(Error::Database(error)),
                Err(error) => {
                    self.keep(connection);
                    if !error::rolled_back_for_another(&error) || tries == TRIES {
                        return Err(Error::Database(error));
                    }
                    let pause_ms = fastrand::u64(5..50) << tries;
                    tokio::time::sleep(Duration::from_millis(pause_ms)).await;
                }
            }
        }
    }

    fn keep(&self, connection: PgConnection) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push((connection, Instant::now()));
    }

    fn warm(&self) -> Option<PgConnection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(_, since)| since.elapsed() < MAX_IDLE);
        idle.pop().map(|(connection, _)| connection)
    }

    async fn options(&self) -> Result<PgConnectOptions, Error> {
        let options = self.config.options.clone();
        let aws = || self.aws.as_ref().expect("main loads the AWS configuration for these logins");
        match &self.config.login {
            Login::Url => Ok(options),
            Login::Secret(arn) => from_secret(arn, options, aws()).await,
            Login::Iam => with_token(options, aws()).await,
        }
    }
}

async fn from_secret(
    arn: &str,
    mut options: PgConnectOptions,
    aws: &SdkConfig,
) -> Result<PgConnectOptions, Error> {
    let failed = |problem: &str, source: Option<Box<dyn std::error::Error + Send + Sync>>| {
        Error::Credentials { from: arn.to_owned(), problem: problem.to_owned(), source }
    };
    let secret = aws_sdk_secretsmanager::Client::new(aws)
        .get_secret_value()
        .secret_id(arn)
        .send()
        .await
        .map_err(|error| {
            failed("Secrets Manager did not give the secret", Some(Box::new(error)))
        })?;
    let text = secret.secret_string().ok_or_else(|| failed("the secret is binary", None))?;
    // The parser's own message could quote the secret.
    let json: serde_json::Value =
        serde_json::from_str(text).map_err(|_| failed("the secret is not JSON", None))?;
    let member = |name: &str| json.get(name).and_then(serde_json::Value::as_str);
    options = options
        .username(member("username").ok_or_else(|| failed("the secret has no username", None))?)
        .password(member("password").ok_or_else(|| failed("the secret has no password", None))?);
    if let Some(host) = member("host") {
        options = options.host(host);
    }
    if let Some(port) =
        json.get("port").and_then(|port| port.to_string().trim_matches('"').parse().ok())
    {
        options = options.port(port);
    }
    if let Some(database) = member("dbname") {
        options = options.database(database);
    }
    Ok(options)
}

async fn with_token(options: PgConnectOptions, aws: &SdkConfig) -> Result<PgConnectOptions, Error> {
    let failed = |problem: &str, source: Option<Box<dyn std::error::Error + Send + Sync>>| {
        Error::Credentials { from: "IAM".to_owned(), problem: problem.to_owned(), source }
    };
    let region = aws.region().ok_or_else(|| failed("AWS_REGION is not set", None))?;
    let provider =
        aws.credentials_provider().ok_or_else(|| failed("there are no AWS credentials", None))?;
    let credentials = provider
        .provide_credentials()
        .await
        .map_err(|error| failed("there are no AWS credentials", Some(Box::new(error))))?;
    let token = rds_token::sign(
        options.get_host(),
        options.get_port(),
        options.get_username(),
        region.as_ref(),
        credentials,
        std::time::SystemTime::now(),
    )
    .map_err(|error| failed("the token could not be signed", Some(error)))?;
    Ok(options.password(&token))
}
