//! How an execution reads: on a bar, as text, as JSON. Pure.

use std::fmt::Write as _;

use serde_json::{Value as Json, json};
use time::format_description::well_known::Rfc3339;

use super::phase::Phase;
use super::verdict::{Summary, Verdict};
use super::{Asked, Counted, FailedChild, MapRun, Seen, Status, verdict};
use crate::console::{clock, span};

impl MapRun {
    fn phase(&self) -> Phase {
        Phase::of(&self.label).unwrap_or(Phase::Comparing)
    }

    /// How many children have ended.
    pub(crate) fn done(&self) -> u64 {
        self.succeeded + self.failed
    }

    /// Items so far. Not every child that is done may have been asked yet; then the rest is
    /// estimated from those that were.
    fn scaled(&self, of_asked: u64) -> (u64, bool) {
        let Self { succeeded, counted, .. } = self;
        if counted.children == 0 || counted.children >= *succeeded {
            return (of_asked, false);
        }
        let scaled = u128::from(of_asked) * u128::from(*succeeded) / u128::from(counted.children);
        (u64::try_from(scaled).unwrap_or(u64::MAX), true)
    }

    fn rate(&self) -> f64 {
        self.scaled(self.counted.items).0 as f64 / self.seconds.max(1e-9)
    }

    /// In a few words, without the rate if there is little room. The end may be cut, so what
    /// matters most comes first.
    fn words(&self, narrow: bool) -> String {
        let (units, items) = self.phase().units();
        let mut words = format!("{}/{} {units}", self.done(), self.total);
        if self.failed > 0 {
            let _ = write!(words, ", {} failed", self.failed);
        }
        if self.counted.children == 0 {
            return words;
        }
        let (differing, _) = self.scaled(self.counted.differing + self.counted.gone);
        let found = match self.phase() {
            Phase::Counting | Phase::Draining => None,
            Phase::Checking => Some("gone"),
            _ => Some("differ"),
        };
        if let Some(found) = found {
            let _ = write!(words, ", {differing} {found}");
        }
        let (count, is_estimate) = self.scaled(self.counted.items);
        let about = if is_estimate { "~" } else { "" };
        let _ = write!(words, ", {about}{} {items}", short(count));
        if !narrow {
            let _ = write!(words, " ({:.0}/s)", self.rate());
        }
        words
    }
}

/// A count that a bar has room for.
fn short(count: u64) -> String {
    if count < 10_000_000 { count.to_string() } else { format!("{} M", count / 1_000_000) }
}

/// The map run that is under way.
pub(crate) fn current(seen: &Seen) -> Option<&MapRun> {
    seen.map_runs.iter().rev().find(|run| !run.ended)
}

/// What the execution does: `comparing files`, or the name of a state. A map without a label of
/// its own has one that says nothing; then the history knows more.
fn doing(seen: &Seen) -> Option<String> {
    let label = current(seen).map(|run| run.label.as_str());
    let state = seen.state.as_deref();
    let phase = label.and_then(Phase::of).or_else(|| state.and_then(Phase::of));
    let named = || state.or(label).map(|state| format!("in state {state}"));
    phase.map(|phase| phase.name().to_owned()).or_else(named)
}

/// What stands on the bar, and on the lines where there is no terminal.
pub(crate) fn bar(seen: &Seen, narrow: bool) -> String {
    let doing = doing(seen).unwrap_or_else(|| "running".to_owned());
    match current(seen) {
        Some(run) => format!("{doing}: {}", run.words(narrow)),
        None => format!("{doing}, for {} so far", ran_for(seen)),
    }
}

fn ran_for(seen: &Seen) -> String {
    span(seen.execution.ran_for(seen.at).unsigned_abs())
}

fn kind(asked: Asked) -> &'static str {
    match asked {
        Asked { failures: true, .. } => "drain of the bucket of failures",
        Asked { repair: true, .. } => "repair",
        Asked { .. } => "comparison",
    }
}

/// The whole look, for people.
pub(crate) fn text(seen: &Seen) -> String {
    let asked = seen.execution.asked();
    let mut text = format!("{}\n", seen.execution.arn);
    match verdict::of(&seen.execution) {
        Verdict::Ended(summary) => text += &ended(&summary, seen, asked),
        Verdict::Running => {
            let since = clock(seen.execution.started_at);
            let doing = doing(seen).unwrap_or_else(|| "running".to_owned());
            let _ = writeln!(
                text,
                "running: a {} since {since}, for {}; now {doing}",
                kind(asked),
                ran_for(seen)
            );
        }
        Verdict::Failed | Verdict::Unreadable => {
            let name = seen.execution.status.name();
            let _ = writeln!(text, "{name}: a {}, after {}", kind(asked), ran_for(seen));
        }
    }
    for run in seen.map_runs.iter().filter(|_| seen.execution.status != Status::Succeeded) {
        let _ = writeln!(text, "  {:<20}{}", run.label, run.words(false));
    }
    for FailedChild { what, error, cause } in &seen.failed {
        let _ = writeln!(text, "  failed: {what}: {error}: {cause}");
    }
    text
}

fn ended(summary: &Summary, seen: &Seen, asked: Asked) -> String {
    let Summary { files, compared, .. } = summary;
    let seconds = seen.execution.ran_for(seen.at).as_seconds_f64().max(1e-9);
    let rate = *compared as f64 / seconds;
    let (units, done) =
        if asked.failures { ("objects", "records read") } else { ("files", "items compared") };
    let mut text = format!(
        "{}: {compared} {done} in {files} {units} in {} ({rate:.0}/s)\n",
        summary.result(),
        ran_for(seen),
    );
    for (name, count, meaning) in summary.lines(asked) {
        let _ = writeln!(text, "  {name:<16}{count:>10}  {meaning}");
    }
    text
}

/// The same as the members of the result.
pub(crate) fn json(seen: &Seen) -> Json {
    let Seen { execution, map_runs, failed, .. } = seen;
    let asked = execution.asked();
    let time = |time: time::OffsetDateTime| time.to_utc().format(&Rfc3339).ok();
    let summary = match verdict::of(execution) {
        Verdict::Ended(summary) => serde_json::to_value(summary).ok(),
        _ => None,
    };
    let map_runs: Vec<Json> = map_runs.iter().map(map_run).collect();
    let failed: Vec<Json> = failed
        .iter()
        .map(|FailedChild { what, error, cause }| {
            json!({ "what": what, "error": error, "cause": cause })
        })
        .collect();
    json!({
        "execution": execution.arn,
        "status": execution.status.name(),
        "repair": asked.repair,
        "failures": asked.failures,
        "started_at": time(execution.started_at),
        "ended_at": execution.ended_at.and_then(time),
        "seconds": execution.ran_for(seen.at).as_seconds_f64(),
        "doing": if execution.status == Status::Running { doing(seen) } else { None },
        "map_runs": map_runs,
        "failed": failed,
        "summary": summary,
    })
}

fn map_run(run: &MapRun) -> Json {
    let Counted { children, items, differing, repaired, gone, rejected } = run.counted;
    json!({
        "map_run": run.arn,
        "doing": run.phase().name(),
        "ended": run.ended,
        "total": run.total,
        "running": run.running,
        "succeeded": run.succeeded,
        "failed": run.failed,
        "asked": children,
        "items": items,
        "differing": differing,
        "repaired": repaired,
        "gone": gone,
        "rejected": rejected,
    })
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::{bar, json, text};
    use crate::executions::tests::execution;
    use crate::executions::{Counted, Execution, MapRun, Seen, Status};

    fn files(succeeded: u64, asked: u64) -> MapRun {
        let counted = Counted {
            children: asked,
            items: asked * 5_000,
            differing: asked * 50,
            ..Counted::default()
        };
        MapRun {
            arn: "arn:aws:states:us-east-1:123456789012:mapRun:reconcile/Files:1".to_owned(),
            label: "Files".to_owned(),
            ended: false,
            total: 40,
            running: 10,
            succeeded,
            failed: 0,
            seconds: 30.0,
            counted,
        }
    }

    fn seen(map_runs: Vec<MapRun>) -> Seen {
        let at = datetime!(2026-11-26 22:01 UTC);
        let state = Some("ExportSessions".to_owned());
        Seen { execution: execution(), state, map_runs, failed: Vec::new(), at }
    }

    #[test]
    fn a_bar_says_what_runs_and_how_far_it_is() {
        assert_eq!(bar(&seen(Vec::new()), false), "exporting, for 1 min 0 s so far");
        let words = bar(&seen(vec![files(12, 12)]), false);
        assert_eq!(words, "comparing files: 12/40 files, 600 differ, 60000 items (2000/s)");
        let none = bar(&seen(vec![files(0, 0)]), false);
        assert_eq!(none, "comparing files: 0/40 files");
        let counting = MapRun { label: "CountRows".to_owned(), ..files(2, 2) };
        let ended = MapRun { ended: true, ..files(40, 40) };
        let words = bar(&seen(vec![ended, counting]), false);
        assert_eq!(words, "counting rows: 2/40 ranges, 10000 rows (333/s)");
    }

    #[test]
    fn a_map_without_a_label_of_its_own_is_known_by_its_state() {
        let unnamed = MapRun { label: "c95de01d-0b3c".to_owned(), ..files(1, 1) };
        let mut seen = seen(vec![unnamed]);
        seen.state = Some("CompareFiles".to_owned());
        assert!(bar(&seen, false).starts_with("comparing files: 1/40 files"));
        seen.state = Some("Map".to_owned());
        assert!(bar(&seen, false).starts_with("in state Map: 1/40 files"));
    }

    /// Each look asks a limited number of children.
    #[test]
    fn children_that_were_not_asked_yet_are_estimated_and_that_is_said() {
        let words = bar(&seen(vec![files(20, 10)]), false);
        assert!(words.contains("20/40 files, 1000 differ, ~100000 items (3333/s)"), "{words}");
    }

    /// The bar library cuts what does not fit.
    #[test]
    fn a_bar_fits_terminals_of_80_and_110_columns() {
        let run = MapRun { total: 20_000, failed: 12, seconds: 3e4, ..files(12_345, 12_000) };
        let mut run = run;
        run.counted.items = 1_234_567_890;
        run.counted.differing = 123_456;
        let narrow = bar(&seen(vec![run.clone()]), true);
        assert!(narrow.len() <= 80 && narrow.ends_with("~1270 M items"), "{narrow}");
        let wide = format!("{:20} {}", "", bar(&seen(vec![run]), false));
        assert!(wide.len() <= 110, "{wide}");
    }

    #[test]
    fn the_text_of_an_end_is_that_of_the_summary() {
        let output = r#"{"run": 1, "repair": 7, "complete": true, "files": 40, "compared": 200000,
            "differing": 5, "repaired": 5, "gone": 2, "removed": 2, "rejected": 0}"#;
        let ended = Execution {
            status: Status::Succeeded,
            ended_at: Some(datetime!(2026-11-26 22:00:50 UTC)),
            output: Some(output.to_owned()),
            ..execution()
        };
        let seen = Seen { execution: ended, ..seen(vec![files(40, 40)]) };
        let text = text(&seen);
        assert!(
            text.contains("done: 200000 items compared in 40 files in 50 s (4000/s)"),
            "{text}"
        );
        assert!(text.contains("  removed                  2  parts among them"), "{text}");
        assert!(!text.contains("comparing files"), "{text}");
        let json = json(&seen);
        assert_eq!((&json["summary"]["repaired"], &json["doing"]), (&5.into(), &().into()));
    }
}
