//! Where the login comes from. It is asked for anew for each connection, so that a rotated secret
//! and a token that lives 15 minutes both work.

use aws_config::SdkConfig;
use aws_credential_types::provider::ProvideCredentials;
use sqlx::postgres::PgConnectOptions;

use crate::config::{Login, secured};
use crate::error::Error;
use crate::store::rds_token;

impl Login {
    /// How to connect, with credentials asked for anew. `url` is `DATABASE_URL`.
    ///
    /// # Errors
    /// [`Error::Credentials`].
    pub(super) async fn options(
        &self,
        url: Option<PgConnectOptions>,
        aws: Option<&SdkConfig>,
    ) -> Result<PgConnectOptions, Error> {
        let aws = || aws.expect("start.rs loads the AWS configuration for these logins");
        let given = || url.clone().expect("only a secret stands for the URL");
        match self {
            Self::Url => Ok(given()),
            Self::Secret(arn) => from_secret(arn, url, aws()).await,
            Self::Iam => with_token(given(), aws()).await,
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
