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
use sqlx::{ConnectOptions as _, Executor as _, PgConnection};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::error::{self, Consequence, Error};
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
    /// `DATABASE_URL`: host, port, database, user and TLS, and the password where `login` is
    /// [`Login::Url`]. `None` only with [`Login::Secret`], which then names all of it.
    pub url: Option<PgConnectOptions>,
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
    /// A Secrets Manager secret, by ARN: a JSON object with `username` and `password`. Its `host`,
    /// `port` and `dbname` count only where there is no `DATABASE_URL`: a secret restored or copied
    /// along with a database still names the old one.
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
    idle: Mutex<Vec<Warm>>,
    permits: Semaphore,
}

/// A connection that is not in use.
#[derive(Debug)]
struct Warm {
    connection: PgConnection,
    since: Instant,
    persistent: bool,
}

/// Whether statements are kept prepared: not behind RDS Proxy, which pins a session to its
/// connection for that (Amazon RDS User Guide, "Avoiding pinning an RDS Proxy").
fn persistent(options: &PgConnectOptions) -> bool {
    let host = options.get_host();
    !(host.contains(".proxy-") && host.contains(".rds.amazonaws.com"))
}

/// A statement that is kept prepared is planned once a connection, and by the index: a plan made while
/// the table was small would read the whole of it for each session long after it has grown
/// (PostgreSQL documentation, "PREPARE", Notes). Behind RDS Proxy, where `SET` would pin the session,
/// nothing is kept, and each plan is made for the table as it is.
const ONE_PLAN: &str = "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off";

/// A connection, with `settings` made on it, within the time limit.
async fn connect(
    options: &PgConnectOptions,
    settings: Option<&str>,
) -> Result<PgConnection, Error> {
    let connecting = async {
        let mut connection = options.connect().await?;
        if let Some(settings) = settings {
            connection.execute(settings).await?;
        }
        Ok(connection)
    };
    let limit = Duration::from_secs(CONNECT_TIMEOUT_S);
    let connection = timeout(limit, connecting).await.map_err(|_| Error::DatabaseTimeout {
        doing: "accept a connection",
        seconds: CONNECT_TIMEOUT_S,
    })?;
    connection.map_err(Error::Database)
}

impl Database {
    /// Connects to nothing yet. `aws` is needed where the login asks an AWS service.
    #[must_use]
    pub fn new(config: DatabaseConfig, aws: Option<SdkConfig>) -> Self {
        Self { permits: Semaphore::new(config.connections), idle: Mutex::default(), config, aws }
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
        connect(&self.options().await?, None).await
    }

    async fn open(&self) -> Result<Warm, Error> {
        let options = self.options().await?;
        let persistent = persistent(&options);
        let connection = connect(&options, persistent.then_some(ONE_PLAN)).await?;
        Ok(Warm { connection, since: Instant::now(), persistent })
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
            let mut warm = match warm {
                Some(warm) => warm,
                None => self.open().await?,
            };
            let arguments =
                arguments().map_err(|error| Error::Database(sqlx::Error::Encode(error)))?;
            let query = sqlx::query_with(sql, arguments).persistent(warm.persistent);
            let limit = Duration::from_secs(STATEMENT_TIMEOUT_S);
            // A connection that is not kept is closed; after a time-out that is what we want.
            let answer =
                timeout(limit, query.fetch_all(&mut warm.connection)).await.map_err(|_| {
                    Error::DatabaseTimeout {
                        doing: "finish a statement",
                        seconds: STATEMENT_TIMEOUT_S,
                    }
                })?;
            let error = match answer {
                Ok(rows) => {
                    self.keep(warm);
                    return Ok(rows);
                }
                Err(error) => error,
            };
            if error::rolled_back_for_another(&error) && tries < TRIES {
                self.keep(warm);
                let pause_ms = fastrand::u64(5..50) << tries;
                tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            } else if error::connection_lost(&error) && was_warm && tries < TRIES {
                // The server closes idle connections when it restarts or fails over, so the others
                // are no better.
                self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
            } else {
                let error = Error::Database(error);
                // After anything but a refused value the connection may be what is wrong.
                if error.consequence() == Consequence::Reject {
                    self.keep(warm);
                }
                return Err(error);
            }
        }
    }

    fn keep(&self, warm: Warm) {
        let warm = Warm { since: Instant::now(), ..warm };
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(warm);
    }

    fn warm(&self) -> Option<Warm> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|warm| warm.since.elapsed() < MAX_IDLE);
        idle.pop()
    }

    async fn options(&self) -> Result<PgConnectOptions, Error> {
        let url = self.config.url.clone();
        let aws = || self.aws.as_ref().expect("main loads the AWS configuration for these logins");
        let given = || url.clone().expect("only a secret stands for the URL");
        match &self.config.login {
            Login::Url => Ok(given()),
            Login::Secret(arn) => from_secret(arn, url, aws()).await,
            Login::Iam => with_token(given(), aws()).await,
        }
    }
}

async fn from_secret(
    arn: &str,
    url: Option<PgConnectOptions>,
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
    let options = match url {
        Some(options) => options,
        None => {
            let host = member("host");
            let host =
                host.ok_or_else(|| failed("the secret has no host: set DATABASE_URL", None))?;
            let mut options =
                secured(PgConnectOptions::new_without_pgpass(), false, false).host(host);
            let port = json.get("port").map(ToString::to_string);
            if let Some(port) = port.and_then(|port| port.trim_matches('"').parse().ok()) {
                options = options.port(port);
            }
            match member("dbname") {
                Some(database) => options.database(database),
                None => options,
            }
        }
    };
    Ok(options
        .username(member("username").ok_or_else(|| failed("the secret has no username", None))?)
        .password(member("password").ok_or_else(|| failed("the secret has no password", None))?))
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
