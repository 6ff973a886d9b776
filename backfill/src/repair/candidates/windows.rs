//! Whether exports hold a gap as a whole: each table's windows join, the first one begins no later
//! than the gap, and the streams hold what came after the last one. Pure.

use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

/// The last window must have ended less long ago than this: a stream keeps 24 hours, and it is read
/// after the exports were checked.
pub(crate) const ENDED_WITHIN: Duration = Duration::hours(23);

/// The changes that one incremental export of a table shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Window {
    /// It shows the changes from this time on,
    pub(crate) from: OffsetDateTime,
    /// and before this one.
    pub(crate) to: OffsetDateTime,
}

/// Joins the windows of a table, in any order, to one without a hole. It begins no later than the
/// gap, if that is known.
///
/// # Errors
/// What they do not cover, and the remedy.
pub(crate) fn join(
    table: &str,
    mut windows: Vec<Window>,
    gap_start: Option<OffsetDateTime>,
    now: OffsetDateTime,
) -> Result<Window, String> {
    windows.sort_unstable();
    let mut windows = windows.into_iter();
    let Some(mut joined) = windows.next() else {
        return Err(format!("names no export of table {table:?}: give it once per table"));
    };
    if let Some(gap_start) = gap_start.filter(|start| *start < joined.from) {
        return Err(hole(table, gap_start, joined.from));
    }
    for Window { from, to } in windows {
        if from > joined.to {
            return Err(hole(table, joined.to, from));
        }
        joined.to = joined.to.max(to);
    }
    if is_too_old(joined.to, now) {
        return Err(format!(
            "names no export of table {table:?} that ended within the last {} hours: the last one \
             ends at {}, and the streams do not hold all that came after it. Make incremental \
             exports from that time on, each of at most 24 hours, and name them too",
            ENDED_WITHIN.whole_hours(),
            text(joined.to)
        ));
    }
    Ok(joined)
}

/// Whether the streams no longer hold all that came after an export.
pub(crate) fn is_too_old(end: OffsetDateTime, now: OffsetDateTime) -> bool {
    now - end >= ENDED_WITHIN
}

fn hole(table: &str, from: OffsetDateTime, to: OffsetDateTime) -> String {
    let (from, to) = (text(from), text(to));
    format!(
        "names exports of table {table:?} with a hole: none shows what changed from {from} until \
         {to}. Make incremental exports of that time, each of at most 24 hours, and name them too"
    )
}

/// A time as the flags take it.
pub(crate) fn text(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).unwrap_or_else(|_| time.to_string())
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;
    use time::{Duration, OffsetDateTime};

    use super::{Window, join};

    /// Two days, of which the gap is the first.
    const START: OffsetDateTime = datetime!(2026-11-22 00:00 UTC);
    const NOW: OffsetDateTime = datetime!(2026-11-24 00:00 UTC);

    /// From one hour to another, of the two days.
    fn window((from, to): (i64, i64)) -> Window {
        Window { from: START + Duration::hours(from), to: START + Duration::hours(to) }
    }

    #[test]
    fn windows_must_join_from_the_gap_to_what_the_streams_hold() {
        let hole = |from: &str, to: &str| {
            format!("none shows what changed from {from} until {to}. Make incremental exports")
        };
        let old = "the last one ends at 2026-11-23T01:00:00Z";
        let (none, one_hour) = ("names no export of table \"scans\"", "2026-11-22T01:00:00Z");
        let half_past = Some(START + Duration::minutes(30));
        for (windows, gap_start, expected) in [
            (&[(0, 24), (24, 47)][..], Some(START), Ok((0, 47))),
            // In any order, with one that overlaps and one within another.
            (&[(20, 47), (2, 3), (0, 24)], Some(START), Ok((0, 47))),
            // One within another, and then on from the longer one.
            (&[(0, 24), (2, 3), (24, 30)], Some(START), Ok((0, 30))),
            (&[(1, 47)], None, Ok((1, 47))),
            (&[(0, 26)], half_past, Ok((0, 26))),
            // The gap begins before the first window.
            (&[(1, 47)], Some(START), Err(hole("2026-11-22T00:00:00Z", one_hour))),
            (&[(1, 47)], half_past, Err(hole("2026-11-22T00:30:00Z", one_hour))),
            // A hole of an hour, which a window within another must not hide.
            (&[(25, 47), (0, 24)], None, Err(hole("2026-11-23T00:00:00Z", "2026-11-23T01:00:00Z"))),
            (
                &[(0, 24), (1, 2), (25, 47)],
                Some(START),
                Err(hole("2026-11-23T00:00:00Z", "2026-11-23T01:00:00Z")),
            ),
            // 23 hours old, and one that is not.
            (&[(0, 25)], Some(START), Err(old.to_owned())),
            (&[(0, 25), (25, 26)], Some(START), Ok((0, 26))),
            (&[], None, Err(none.to_owned())),
        ] {
            let joined =
                join("scans", windows.iter().copied().map(window).collect(), gap_start, NOW);
            match (joined, expected) {
                (Ok(joined), Ok(expected)) => assert_eq!(joined, window(expected), "{windows:?}"),
                (Err(problem), Err(expected)) => {
                    assert!(problem.contains(&expected), "{windows:?}: {problem}");
                    assert!(problem.contains("table \"scans\""), "{problem}");
                }
                (joined, expected) => panic!("{windows:?}: {joined:?}, not {expected:?}"),
            }
        }
    }
}
