//! The limit of each question: an operator waits for the answer, and one that does not come holds
//! up no other.

use std::pin::Pin;
use std::time::Duration;

use aws_sdk_lambda::error::{ProvideErrorMetadata, SdkError};
use projector::error;
use tokio::time::timeout;

use super::condition::Asked;

/// How long a question may take, with all its pages.
const LIMIT: Duration = Duration::from_secs(5);

/// The answer, or that `whom` does not answer in time. Boxed: a look has dozens of these, and their
/// futures are large.
pub(super) fn within<'a, T: 'a>(
    whom: &'a str,
    asking: impl Future<Output = Asked<T>> + 'a,
) -> Pin<Box<impl Future<Output = Asked<T>> + 'a>> {
    Box::pin(within_limit(whom, LIMIT, asking))
}

/// The same with another limit.
pub(super) async fn within_limit<T>(
    whom: &str,
    limit: Duration,
    asking: impl Future<Output = Asked<T>>,
) -> Asked<T> {
    let silent = |_| Err(format!("no answer of {whom} within {} s", limit.as_secs()));
    timeout(limit, asking).await.unwrap_or_else(silent)
}

/// Why an AWS service did not answer an operation, such as `lambda:GetFunctionConfiguration`.
pub(super) fn refused<E, R>(operation: &str, error: &SdkError<E, R>) -> String
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
    R: std::fmt::Debug + 'static,
{
    match error.code() {
        Some(code) => {
            let text =
                format!("{operation} answers {code} {}", error.message().unwrap_or_default());
            text.trim_end().to_owned()
        }
        None => format!("{operation}: {}", error::chain(error)),
    }
}
