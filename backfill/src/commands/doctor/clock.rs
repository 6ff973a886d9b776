//! This machine's clock, held against others: AWS refuses what is signed with a wrong time, and the
//! time that is left of a stream's 24 hours is computed with it. The services of AWS say their time
//! in the `Date` of each answer.

use std::sync::{Arc, Mutex, PoisonError};

use aws_sdk_dynamodbstreams::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_dynamodbstreams::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_dynamodbstreams::error::BoxError;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{Duration, OffsetDateTime, PrimitiveDateTime};

use super::finding::Verdict;

use crate::console::span;

/// How far two clocks may be apart.
const TOLERANCE: Duration = Duration::minutes(1);
/// The form of an HTTP date, which is always GMT (RFC 9110, 5.6.7).
const HTTP_DATE: &[BorrowedFormatItem<'_>] = format_description!(
    "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
);

/// What two clocks that are `apart` come to.
pub(super) fn judge(whose: &str, apart: Duration, which: &str) -> Verdict {
    let text = format!("{} from {whose} clock", span(apart.unsigned_abs()));
    if apart.abs() <= TOLERANCE {
        return Verdict::works(text);
    }
    Verdict::fails(text, format!("set the clock {which} (chrony or NTP)"))
}

/// Keeps how far the clock of the service was ahead of ours in its last answer, whether that was an
/// error or not.
#[derive(Clone, Debug, Default)]
pub(super) struct ServiceClock(Arc<Mutex<Option<Duration>>>);

impl ServiceClock {
    /// How far the service's clock is ahead of ours; `None` if no answer has come.
    pub(super) fn ahead(&self) -> Option<Duration> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the clocks come to.
    pub(super) fn verdict(&self) -> Verdict {
        match self.ahead() {
            Some(ahead) => judge("AWS's", ahead, "of this machine"),
            None => Verdict::unknown("not known without an answer of AWS"),
        }
    }
}

impl Intercept for ServiceClock {
    fn name(&self) -> &'static str {
        "ServiceClock"
    }

    fn read_after_transmit(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date").and_then(parse);
        if let Some(date) = date {
            let ahead = date - OffsetDateTime::now_utc();
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(ahead);
        }
        Ok(())
    }
}

fn parse(date: &str) -> Option<OffsetDateTime> {
    PrimitiveDateTime::parse(date, HTTP_DATE).ok().map(PrimitiveDateTime::assume_utc)
}

#[cfg(test)]
mod tests {
    use super::{Verdict, judge, parse};
    use time::Duration;
    use time::macros::datetime;

    #[test]
    fn an_http_date_is_read() {
        let date = parse("Mon, 23 Nov 2026 20:00:05 GMT").expect("a date");
        assert_eq!(date, datetime!(2026-11-23 20:00:05 UTC));
        assert_eq!(parse("2026-11-23T20:00:05Z"), None);
    }

    #[test]
    fn clocks_may_be_a_minute_apart() {
        for apart in [Duration::ZERO, Duration::MINUTE, -Duration::MINUTE] {
            assert!(matches!(judge("AWS's", apart, "here"), Verdict::Works(_)), "{apart}");
        }
        for apart in [Duration::seconds(61), -Duration::HOUR] {
            assert!(matches!(judge("AWS's", apart, "here"), Verdict::Fails { .. }), "{apart}");
        }
    }
}
