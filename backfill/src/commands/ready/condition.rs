//! What a condition of a switch came to, for people and as JSON. Pure: what was seen is given.

use std::fmt::Write as _;

use serde::Serialize;

use crate::layout;

/// A space at which no line breaks.
const NO_BREAK: &str = "\u{a0}";

/// What could be learnt, or why it could not.
pub(crate) type Asked<T> = Result<T, String>;

/// What a condition came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// It holds.
    Pass,
    /// It does not hold, or could not be asked.
    Fail,
    /// A flag says that it does not matter here.
    OutOfScope,
}

/// One line of the report; `--json` prints it as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(clippy::struct_field_names, reason = "each is named like its member in JSON")]
pub(crate) struct Condition {
    pub(crate) condition: String,
    pub(crate) verdict: Verdict,
    /// What was seen, or why nothing could be seen.
    pub(crate) value: String,
    /// What it takes to pass.
    pub(crate) limit: String,
    /// What to do; `None` unless it fails.
    pub(crate) remedy: Option<String>,
}

/// A condition that is still to be judged: its name, and what it takes to pass.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    condition: String,
    limit: String,
}

/// Begins a condition.
pub(crate) fn wanted(condition: impl Into<String>, limit: impl Into<String>) -> Wanted {
    Wanted { condition: condition.into(), limit: limit.into() }
}

impl Wanted {
    /// It holds.
    pub(crate) fn pass(self, value: impl Into<String>) -> Condition {
        self.of(Verdict::Pass, value.into(), None)
    }

    /// It does not hold.
    pub(crate) fn fail(self, value: impl Into<String>, remedy: impl Into<String>) -> Condition {
        self.of(Verdict::Fail, value.into(), Some(remedy.into()))
    }

    /// It holds or not.
    pub(crate) fn judged(
        self,
        holds: bool,
        value: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Condition {
        if holds { self.pass(value) } else { self.fail(value, remedy) }
    }

    /// It could not be asked, which is no pass.
    pub(crate) fn not_asked(self, why: &str, remedy: impl Into<String>) -> Condition {
        self.fail(format!("not known: {why}"), remedy)
    }

    /// A flag declares it out of scope.
    pub(crate) fn out_of_scope(self, flag: &str) -> Condition {
        self.of(Verdict::OutOfScope, format!("out of scope ({flag})"), None)
    }

    fn of(self, verdict: Verdict, value: String, remedy: Option<String>) -> Condition {
        let Self { condition, limit } = self;
        Condition { condition, verdict, value, limit, remedy }
    }
}

/// Why not to switch, and what to do first; `None` if every condition holds.
pub(crate) fn refusal(conditions: &[Condition]) -> Option<String> {
    let failed: Vec<&str> = conditions
        .iter()
        .filter(|condition| condition.verdict == Verdict::Fail)
        .map(|condition| condition.condition.as_str())
        .collect();
    (!failed.is_empty()).then(|| {
        format!(
            "do not switch: {} of {} conditions do not hold ({})",
            failed.len(),
            conditions.len(),
            failed.join(", ")
        )
    })
}

/// The report for people.
pub(crate) fn report(conditions: &[Condition], width: usize) -> String {
    let row = |condition: &Condition| {
        let mark = match condition.verdict {
            Verdict::Pass => '\u{2713}',
            Verdict::Fail => '\u{2717}',
            Verdict::OutOfScope => '\u{2013}',
        };
        // A name stays on one line.
        let name = format!("{mark} {}", condition.condition).replace(' ', NO_BREAK);
        vec![name, condition.value.clone(), condition.limit.clone()]
    };
    let rows: Vec<Vec<String>> = conditions.iter().map(row).collect();
    let headings = ["\u{a0}\u{a0}CONDITION", "VALUE", "LIMIT"];
    let mut text = layout::table(&headings, &rows, width).replace(NO_BREAK, " ");
    for condition in conditions {
        if let Some(remedy) = &condition.remedy {
            let line = format!("\u{2717} {}: {remedy}", condition.condition);
            let _ = write!(text, "\n{}", layout::fit(&line, width));
        }
    }
    if conditions.iter().any(|condition| condition.remedy.is_some()) {
        text += "\n\n";
    }
    text += &refusal(conditions)
        .unwrap_or_else(|| format!("switch: all {} conditions hold", conditions.len()));
    text.push('\n');
    text
}

/// Whether somebody who watches must be told: a verdict changed, or what does not hold reads
/// otherwise.
pub(crate) fn differs(before: &[Condition], now: &[Condition]) -> bool {
    let telling = |conditions: &[Condition]| -> Vec<(String, Verdict, Option<String>)> {
        let telling = conditions.iter().map(|condition| {
            let failed = condition.verdict == Verdict::Fail;
            let value = failed.then(|| condition.value.clone());
            (condition.condition.clone(), condition.verdict, value)
        });
        telling.collect()
    };
    telling(before) != telling(now)
}

#[cfg(test)]
mod tests {
    use super::{Condition, differs, refusal, report, wanted};

    fn conditions() -> Vec<Condition> {
        vec![
            wanted("lag: new sessions", "60 s").pass("3 s"),
            wanted("rejected records", "none that the old side lacks").fail("2", "redrive them"),
            wanted("archive", "current").out_of_scope("--no-archive"),
        ]
    }

    #[test]
    fn a_report_names_each_condition_its_limit_and_the_remedy() {
        let expected = "  \
  CONDITION          VALUE                        LIMIT
\u{2713} lag: new sessions  3 s                          60 s
\u{2717} rejected records   2                            none that the old side lacks
\u{2013} archive            out of scope (--no-archive)  current

\u{2717} rejected records: redrive them

do not switch: 1 of 3 conditions do not hold (rejected records)
";
        assert_eq!(report(&conditions(), 100), expected);
        let passed = [conditions().remove(0)];
        assert!(report(&passed, 100).ends_with("\nswitch: all 1 conditions hold\n"));
        assert_eq!(refusal(&passed), None);
    }

    #[test]
    fn what_cannot_be_asked_is_a_failure_that_carries_the_error() {
        let condition = wanted("alarms", "none").not_asked("403 AccessDenied", "allow it");
        assert!(condition.value.contains("403 AccessDenied"), "{condition:?}");
        let refusal = refusal(&[condition]).expect("a failure");
        assert!(refusal.starts_with("do not switch: 1 of 1"), "{refusal}");
    }

    #[test]
    fn whoever_watches_is_told_of_verdicts_and_of_what_fails() {
        let before = conditions();
        let mut now = before.clone();
        now[0].value = "4 s".to_owned();
        assert!(!differs(&before, &now), "a value that passes");
        now[1].value = "3".to_owned();
        assert!(differs(&before, &now), "a value that fails");
        let now = vec![before[0].clone()];
        assert!(differs(&before, &now));
    }
}
