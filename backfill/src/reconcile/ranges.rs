//! The rows are split into ranges of about the same size, by what PostgreSQL knows of their keys.
//! The ranges of a run are kept: a repeated call must not split the rows anew.

use projector::bind;
use projector::deadline::Deadline;
use projector::error::Error;
use sqlx::Row as _;

use super::Reconciler;
use super::event::{Answer, NewRange, Ranges, Step};
use super::{pieces, runs};
use crate::compare_tables::sweep::RowRange;
use crate::retry::retry_transient;

/// The keys between which there are equally many rows, as of the last ANALYZE; in the order of the
/// column, which is that of the rows.
const BOUNDS: &str = "SELECT coalesce(max(histogram_bounds::text::text[]), '{}')
FROM pg_stats
WHERE schemaname = current_schema() AND tablename = 'measurements' AND attname = 'session_id'";

pub(super) async fn run(context: &Reconciler, ranges: Ranges) -> anyhow::Result<Answer> {
    let Ranges { run, repair, at_most } = ranges;
    let database = &context.projector.database;
    runs::read(database, (run, repair)).await?;
    let mut known = pieces::ranges(database, run).await?;
    if known.is_empty() {
        let reading = retry_transient("ask how the keys of the rows are spread", async || {
            database.fetch(BOUNDS, bind![], Deadline::NONE).await
        });
        let rows = reading.await?;
        let bounds = rows.first().map_or(Ok(Vec::new()), |row| row.try_get(0));
        let bounds: Vec<String> = bounds.map_err(Error::Database)?;
        let mut connection = pieces::connect(context, repair).await?;
        pieces::make_ranges(&mut connection, run, &split(&bounds, at_most)).await?;
        known = pieces::ranges(database, run).await?;
    }
    let of_rows = |RowRange { after, through }| {
        let step = Step::Count;
        NewRange { run, repair, step, after, through }
    };
    Ok(Answer::Ranges { ranges: known.into_iter().map(of_rows).collect() })
}

/// At most this many ranges, as equal as the bounds allow. The first and the last bound are rows
/// themselves, with none outside them.
fn split(bounds: &[String], at_most: u64) -> Vec<RowRange> {
    let inner = bounds.get(1..bounds.len().saturating_sub(1)).unwrap_or_default();
    let ranges = usize::try_from(at_most).unwrap_or(usize::MAX).min(inner.len() + 1);
    let mut split = Vec::with_capacity(ranges);
    let mut after = String::new();
    for number in 1..ranges {
        let through = inner[number * (inner.len() + 1) / ranges - 1].clone();
        split.push(RowRange { after, through: Some(through.clone()) });
        after = through;
    }
    split.push(RowRange { after, through: None });
    split
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn the_ranges_are_adjacent_and_hold_every_session() {
        for bounds in [0, 1, 2, 3, 4, 101] {
            let bounds: Vec<String> = (0..bounds).map(|number| format!("s{number:03}")).collect();
            for at_most in [1, 2, 3, 7, 99, 100, 101, 1000] {
                let ranges = split(&bounds, at_most);
                let expected = at_most.min(bounds.len().saturating_sub(1).max(1) as u64);
                assert_eq!(ranges.len() as u64, expected, "{} {at_most}", bounds.len());
                assert_eq!(ranges[0].after, "");
                for pair in ranges.windows(2) {
                    assert_eq!(pair[0].through.as_ref(), Some(&pair[1].after));
                    assert!(pair[0].after < pair[1].after, "{pair:?}");
                }
                assert_eq!(ranges.last().expect("one at least").through, None);
            }
        }
    }
}
