//! What a check found, and how a person and a program read it; and the limit of a check.

use std::fmt::Write as _;
use std::future::Future;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::time::timeout;

/// How long a check may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(5);

/// The remedy if nothing is known to correct.
pub(crate) const AGAIN: &str =
    "correct what the message names; if it names nothing, it may pass: run `backfill doctor` again";

/// What a check comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It works: what was seen.
    Works(String),
    /// It does not work: why, and what to do.
    Fails { detail: String, remedy: String },
    /// It is not configured, or not known: why.
    Unknown(String),
}

impl Verdict {
    pub(crate) fn works(detail: impl Into<String>) -> Self {
        Self::Works(detail.into())
    }

    pub(crate) fn fails(detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Fails { detail: detail.into(), remedy: remedy.into() }
    }

    pub(crate) fn unknown(detail: impl Into<String>) -> Self {
        Self::Unknown(detail.into())
    }

    /// The name of what was checked, and how long it took.
    pub(crate) fn of(self, check: impl Into<String>, took: Duration) -> Finding {
        let (ok, detail, remedy) = match self {
            Self::Works(detail) => (Some(true), detail, None),
            Self::Fails { detail, remedy } => (Some(false), detail, Some(remedy)),
            Self::Unknown(detail) => (None, detail, None),
        };
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        Finding { check: check.into(), ok, ms, detail, remedy }
    }
}

/// One line of the report; `--json` prints it as it is.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Finding {
    pub(crate) check: String,
    /// `None`: not configured, or not known.
    pub(crate) ok: Option<bool>,
    pub(crate) ms: u64,
    pub(crate) detail: String,
    pub(crate) remedy: Option<String>,
}

/// Runs a check to its end or to the limit, whichever is first. `remedy` is for the limit.
pub(crate) async fn timed(
    check: impl Into<String>,
    remedy: &str,
    work: impl Future<Output = Verdict>,
) -> Finding {
    let start = Instant::now();
    let verdict = timeout(LIMIT, work).await.unwrap_or_else(|_| {
        Verdict::fails(format!("no answer within {} s", LIMIT.as_secs()), remedy)
    });
    verdict.of(check, start.elapsed())
}

/// The report for people.
pub(crate) fn report(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Finding { check, ok, ms, detail, remedy } in findings {
        let mark = match ok {
            Some(true) => '✓',
            Some(false) => '✗',
            None => '–',
        };
        let _ = writeln!(text, "{mark} {check:width$} {ms:>6} ms  {detail}");
        if let Some(remedy) = remedy {
            let _ = writeln!(text, "  {:width$}            remedy: {remedy}", "");
        }
    }
    match failed(findings) {
        None => text + &format!("all {} checks passed\n", checked(findings)),
        Some(conclusion) => text + &conclusion + "\n",
    }
}

/// How many checks failed, and what to do; `None` if none did.
pub(crate) fn failed(findings: &[Finding]) -> Option<String> {
    let failed = findings.iter().filter(|finding| finding.ok == Some(false)).count();
    (failed > 0).then(|| {
        format!(
            "{failed} of {} checks failed: fix the first, then run `backfill doctor` again",
            checked(findings)
        )
    })
}

fn checked(findings: &[Finding]) -> usize {
    findings.iter().filter(|finding| finding.ok.is_some()).count()
}

#[cfg(test)]
mod tests {
    use super::{Verdict, report};
    use std::time::Duration;

    #[test]
    fn a_report_has_a_mark_a_time_and_the_remedy() {
        let ms = Duration::from_millis(12);
        let findings = [
            Verdict::works("as it should be").of("database", ms),
            Verdict::fails("refused", "open the port").of("bucket", ms),
            Verdict::unknown("ARCHIVE_BUCKET is not set").of("clock", ms),
        ];
        let expected = "\
✓ database     12 ms  as it should be
✗ bucket       12 ms  refused
                      remedy: open the port
– clock        12 ms  ARCHIVE_BUCKET is not set
1 of 2 checks failed: fix the first, then run `backfill doctor` again
";
        assert_eq!(report(&findings), expected);
        assert!(report(&findings[..1]).ends_with("all 1 checks passed\n"));
        let json = serde_json::to_value(&findings).expect("JSON");
        assert_eq!(json[1]["ok"], false);
        assert_eq!((&json[2]["ok"], &json[2]["remedy"]), (&().into(), &().into()));
    }
}
