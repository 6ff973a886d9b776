//! Calls of the two DynamoDB APIs and of Step Functions: which errors are retried, and for how
//! long. The SDK's own retries are off, because they give up too soon. The operator sees how often
//! a call was retried.

use std::fmt::Debug;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};

/// How often a call is made before it is given up, with pauses that double from a tenth of a second
/// to [`MAX_PAUSE`], half of each at random: some three minutes if each is refused at once, and
/// some five if none is answered.
const TRIES: u32 = 16;
const MAX_PAUSE: Duration = Duration::from_secs(20);
const LOG_EVERY: Duration = Duration::from_secs(10);

/// What an operator has to know of an API whose calls are refused.
#[derive(Debug)]
pub(crate) struct Api {
    /// What is said if a permission is missing.
    pub(crate) permissions: &'static str,
    /// What is said if the endpoint does not know the call.
    pub(crate) endpoint: &'static str,
}

/// How the calls of one API went.
#[derive(Debug)]
pub(crate) struct Calls {
    api: &'static Api,
    pub(crate) troubles: Troubles,
    /// When trouble was last logged.
    logged: Mutex<Option<Instant>>,
}

/// What had to be repeated.
#[derive(Debug, Default)]
pub(crate) struct Troubles {
    pub(crate) throttled: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) expired: AtomicU64,
    pub(crate) disagreed: AtomicU64,
}

/// Why a call was not answered, when it is not to be repeated as it is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// An iterator lives 15 minutes.
    #[error("the iterator has expired")]
    Expired,
    /// What the iterator points at is older than what the stream keeps.
    #[error("the records have been trimmed")]
    Trimmed,
    /// The shard, the stream, the table or the execution is not there.
    #[error("the shard or its stream is not there any more")]
    Gone,
    #[error("{operation} was refused: {remedy}")]
    Refused {
        operation: &'static str,
        remedy: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{operation} failed {TRIES} times in a row")]
    GivenUp {
        operation: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

enum Trouble {
    Throttled,
    Passing,
    Expired,
    Trimmed,
    Gone,
    Refused(&'static str),
}

/// By the error codes of these APIs and AWS's common ones. What is not known is taken
/// for passing; the cap ends it.
fn trouble<E, R>(error: &SdkError<E, R>, api: &Api) -> Trouble
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
    R: Debug + 'static,
{
    match error {
        SdkError::ConstructionFailure(_) => {
            return Trouble::Refused("check the AWS region, endpoint and credentials");
        }
        SdkError::DispatchFailure(failure) if failure.is_user() => {
            return Trouble::Refused("check the AWS region, endpoint and credentials");
        }
        SdkError::DispatchFailure(_) if has_no_credentials(error) => {
            return Trouble::Refused(
                "there are no AWS credentials any more: set AWS_PROFILE, log in again, or check \
                    the role",
            );
        }
        _ => {}
    }
    match error.code().unwrap_or_default() {
        "LimitExceededException"
        | "ThrottlingException"
        | "Throttling"
        | "ProvisionedThroughputExceededException"
        | "RequestLimitExceeded"
        | "TooManyRequestsException" => Trouble::Throttled,
        "ExpiredIteratorException" => Trouble::Expired,
        "TrimmedDataAccessException" => Trouble::Trimmed,
        "ResourceNotFoundException"
        | "ResourceNotFound"
        | "ExecutionDoesNotExist"
        | "StateMachineDoesNotExist" => Trouble::Gone,
        "AccessDeniedException" | "AccessDenied" | "KmsAccessDeniedException" => {
            Trouble::Refused(api.permissions)
        }
        "UnrecognizedClientException"
        | "InvalidSignatureException"
        | "IncompleteSignature"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException"
        | "InvalidClientTokenId"
        | "SignatureDoesNotMatch"
        | "ExpiredTokenException"
        | "ExpiredToken" => Trouble::Refused("check the AWS credentials and this machine's clock"),
        "ValidationException"
        | "UnknownOperationException"
        | "SerializationException"
        | "InvalidArn"
        | "InvalidName"
        | "InvalidExecutionInput"
        | "StateMachineDeleting" => Trouble::Refused(api.endpoint),
        _ => Trouble::Passing,
    }
}

/// Whether a call was not sent because there are no credentials to sign it with. That their source
/// did not answer in time may pass.
fn has_no_credentials(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<CredentialsError>() {
            return !matches!(error, CredentialsError::ProviderTimedOut(_));
        }
        cause = error.source();
    }
    false
}

/// The pause before a call is made again, for the first time with `tries` 1.
fn pause(tries: u32) -> Duration {
    let longest = Duration::from_millis(100 << tries.min(16)).min(MAX_PAUSE);
    longest.mul_f64(0.5 + fastrand::f64() / 2.0)
}

impl Calls {
    pub(crate) fn new(api: &'static Api) -> Self {
        Self { api, troubles: Troubles::default(), logged: Mutex::default() }
    }

    /// What had to be repeated, in words; `None` if nothing had to be.
    pub(crate) fn troubles(&self) -> Option<String> {
        let counted = [
            (&self.troubles.throttled, "calls throttled"),
            (&self.troubles.failed, "calls failed and repeated"),
            (&self.troubles.expired, "iterators expired"),
            (&self.troubles.disagreed, "descriptions asked for again"),
        ]
        .map(|(count, what)| (count.load(Ordering::Relaxed), what));
        let said: Vec<String> = counted
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        (!said.is_empty()).then(|| said.join(", "))
    }

    /// Makes a call until it is answered, or not to be repeated.
    pub(crate) async fn call<T, E, R, F>(
        &self,
        operation: &'static str,
        call: impl Fn() -> F,
    ) -> Result<T, CallError>
    where
        F: Future<Output = Result<T, SdkError<E, R>>>,
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
        R: Debug + Send + Sync + 'static,
    {
        let mut tries = 0;
        loop {
            tries += 1;
            let error = match call().await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let counter = match trouble(&error, self.api) {
                Trouble::Throttled => &self.troubles.throttled,
                Trouble::Passing => &self.troubles.failed,
                Trouble::Expired => {
                    self.troubles.expired.fetch_add(1, Ordering::Relaxed);
                    return Err(CallError::Expired);
                }
                Trouble::Trimmed => return Err(CallError::Trimmed),
                Trouble::Gone => return Err(CallError::Gone),
                Trouble::Refused(remedy) => {
                    return Err(CallError::Refused { operation, remedy, source: error.into() });
                }
            };
            counter.fetch_add(1, Ordering::Relaxed);
            self.log_trouble(operation, tries, &error);
            if tries == TRIES {
                return Err(CallError::GivenUp { operation, source: error.into() });
            }
            tokio::time::sleep(pause(tries)).await;
        }
    }

    /// One line in ten seconds, whoever fails: an operator who waits must know for what.
    fn log_trouble(&self, operation: &str, tries: u32, error: &(dyn std::error::Error + 'static)) {
        if tries < 2 {
            return;
        }
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.is_none_or(|at| at.elapsed() >= LOG_EVERY) {
            *logged = Some(Instant::now());
            tracing::warn!(
                operation,
                error = projector::error::chain(error),
                "failed {tries} times in a row, trying again for some minutes; check the route (a \
                 VPC needs an endpoint or NAT), AWS_REGION and AWS_ENDPOINT_URL"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_PAUSE, TRIES, pause};

    #[test]
    fn the_pauses_grow_to_a_limit_and_come_to_some_minutes() {
        for tries in 1..TRIES {
            assert!(pause(tries) <= MAX_PAUSE && pause(tries).as_millis() >= 100, "{tries}");
        }
        let total: f64 = (1..TRIES).map(|tries| pause(tries).as_secs_f64()).sum();
        assert!((60.0..300.0).contains(&total), "{total} s");
    }
}
