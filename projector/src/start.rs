//! The composition root: configuration becomes AWS clients, connections and the projector. Here
//! alone, for the function and every command of `backfill`.

use std::num::NonZero;
use std::time::Duration;

use aws_config::default_provider::region::DefaultRegionChain;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials as _;
use tokio::time::timeout;

use crate::apply::Projector;
use crate::archive::Archive;
use crate::config::{Config, ConfigError};
use crate::database::Database;
use crate::error;

/// How long the AWS region, and then the credentials, may take. Both may be asked of the instance
/// metadata service, which does not answer on a machine that is none of Amazon's.
const AWS_LIMIT: Duration = Duration::from_secs(5);

/// What to do if there are no credentials.
pub const CREDENTIALS_REMEDY: &str = "set AWS_PROFILE (after `aws sso login`, if it needs that), \
    or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run this where a role is attached (instance \
    metadata or container)";

/// Makes the projector. Nothing is connected to before the first batch.
///
/// # Errors
/// [`ConfigError`] if an AWS service is needed and there is no region.
pub async fn projector(config: Config) -> Result<Projector, ConfigError> {
    let aws = if config.needs_aws() { Some(aws().await?) } else { None };
    Ok(projector_of(config, aws))
}

/// Makes the projector for a command: if an AWS service is needed, its credentials are resolved
/// first, so that the operator learns within seconds that there are none. The Lambda function does
/// without this round trip.
///
/// # Errors
/// [`ConfigError`] if an AWS service is needed and there is no region, or there are no credentials.
pub async fn projector_with_credentials(config: Config) -> Result<Projector, ConfigError> {
    let aws = if config.needs_aws() { Some(Box::pin(aws_with_credentials()).await?) } else { None };
    Ok(projector_of(config, aws))
}

fn projector_of(config: Config, aws: Option<SdkConfig>) -> Projector {
    let Config { database, archive, tables, ttl_removals } = config;
    let archive = archive.zip(aws.as_ref()).map(|(config, aws)| Archive::new(config, aws));
    let mut projector = Projector::new(tables, ttl_removals, Database::new(database, aws), archive);
    let memory_mb = std::env::var("AWS_LAMBDA_FUNCTION_MEMORY_SIZE").ok();
    projector.overlaps = has_second_processor(
        std::thread::available_parallelism().map_or(1, NonZero::get),
        memory_mb.and_then(|memory| memory.parse().ok()),
    );
    projector
}

/// A function of this memory has one processor, and one of less memory a share of it (AWS Lambda
/// Developer Guide, "Configure Lambda function memory"). The processors that it sees do not show
/// that.
const ONE_PROCESSOR_MB: u32 = 1_769;

/// Whether there is more than one processor, by what the system says (a quota of its control group
/// included), and for a Lambda function by its memory.
fn has_second_processor(seen: usize, function_memory_mb: Option<u32>) -> bool {
    seen > 1 && function_memory_mb.is_none_or(|memory| memory > ONE_PROCESSOR_MB)
}

/// What the SDK's clients are made of. No call hangs for ever: each try of one ends within ten
/// seconds, each call within thirty.
///
/// # Errors
/// [`ConfigError`] where there is no region.
pub async fn aws() -> Result<SdkConfig, ConfigError> {
    Ok(aws_in(region().await?).await)
}

/// The same for a command, which says within seconds that there are no credentials: the SDK's
/// clients would look for them again with each try of each call, for minutes.
///
/// # Errors
/// [`ConfigError`] if there is no region, or there are no credentials.
pub async fn aws_with_credentials() -> Result<SdkConfig, ConfigError> {
    let aws = aws().await?;
    match credentials(&aws).await {
        Ok(_) => Ok(aws),
        Err(problem) => {
            let problem = format!("cannot be found ({problem}): {CREDENTIALS_REMEDY}");
            Err(ConfigError { variable: "AWS credentials", problem })
        }
    }
}

/// The region, from the environment, the AWS profile or the instance metadata.
///
/// # Errors
/// [`ConfigError`] if none of them names one within a few seconds.
pub async fn region() -> Result<Region, ConfigError> {
    let chain = DefaultRegionChain::builder().build();
    match timeout(AWS_LIMIT, Box::pin(chain.region())).await {
        Ok(Some(region)) => Ok(region),
        Ok(None) | Err(_) => {
            let problem = "is not set, and neither is a region in the AWS profile".to_owned();
            Err(ConfigError { variable: "AWS_REGION", problem })
        }
    }
}

/// As [`aws`], in a region that is known.
pub async fn aws_in(region: Region) -> SdkConfig {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(3))
        .operation_attempt_timeout(Duration::from_secs(10))
        .operation_timeout(Duration::from_secs(30))
        .build();
    let defaults = aws_config::defaults(BehaviorVersion::latest());
    // Its future is large.
    Box::pin(defaults.region(region).timeout_config(timeouts).load()).await
}

/// Resolves the AWS credentials once, as the SDK's clients would.
///
/// # Errors
/// What the SDK said, if none are found within a few seconds; [`CREDENTIALS_REMEDY`] says what to
/// do.
pub async fn credentials(aws: &SdkConfig) -> Result<Credentials, String> {
    let Some(provider) = aws.credentials_provider() else {
        return Err("no provider is configured".to_owned());
    };
    match timeout(AWS_LIMIT, provider.provide_credentials()).await {
        Ok(Ok(credentials)) => Ok(credentials),
        Ok(Err(error)) => Err(on_one_line(&error::chain(&error))),
        Err(_) => Err(format!("no provider answered within {} s", AWS_LIMIT.as_secs())),
    }
}

/// The SDK says on a line of its own why each provider has no credentials.
fn on_one_line(text: &str) -> String {
    let lines =
        text.lines().map(|line| line.replace("the credential provider was not enabled: ", ""));
    lines.map(|line| line.trim().to_owned()).collect::<Vec<_>>().join("; ").replace(":; ", ": ")
}

#[cfg(test)]
mod tests {
    use super::has_second_processor;

    #[test]
    fn a_small_function_has_no_second_processor_however_many_it_sees() {
        assert!(has_second_processor(2, None) && !has_second_processor(1, None));
        assert!(!has_second_processor(2, Some(512)) && !has_second_processor(2, Some(1_769)));
        assert!(has_second_processor(2, Some(1_770)) && !has_second_processor(1, Some(3_008)));
    }
}
