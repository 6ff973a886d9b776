//! The status for people. Pure.

use std::fmt::Write as _;
use std::time::Duration;

use super::{Checkpoint, Rejected, Rows, Status};

use crate::advisory_lock::Holder;
use crate::console::{clock, span};
use crate::layout;
use crate::repair::lease::Standing;

/// At most this many shards of a stream are listed; those with the greatest lag come first.
const LISTED: usize = 50;
const HEADINGS: [&str; 5] = ["SHARD", "READ THROUGH", "LAG", "UPDATED", "SEQUENCE NUMBER"];

/// The whole status, as text for a terminal of this width.
pub(super) fn render(status: &Status, width: usize) -> String {
    let mut text = lock(status.lock.as_ref()) + &lease(status.lease.as_ref());
    if status.checkpoints.is_empty() {
        text += "checkpoints: none; `backfill stream` begins at TRIM_HORIZON\n";
    }
    let same_stream = |a: &Checkpoint, b: &Checkpoint| a.stream_arn == b.stream_arn;
    for stream in status.checkpoints.chunk_by(same_stream) {
        text += &checkpoints(stream, width);
    }
    text + &rejected(&status.rejected) + &pending(status.objects_pending) + &rows(&status.rows)
}

fn pending(objects: u64) -> String {
    match objects {
        0 => "objects pending: none\n".to_owned(),
        count => format!(
            "objects pending: {count}; a run that is under way writes them at its end, or else \
                `backfill objects --pending` does\n"
        ),
    }
}

fn lock(holder: Option<&Holder>) -> String {
    let Some(Holder { pid, address, connected_at }) = holder else {
        return "lock: free, no `backfill stream` or `repair` runs on this database\n".to_owned();
    };
    let address = address.as_ref().map(|address| format!(" from {address}")).unwrap_or_default();
    let since = connected_at.map(|at| format!(" since {}", clock(at))).unwrap_or_default();
    format!(
        "lock: held by a `backfill stream` or `repair` (server process {pid}{address}{since}); to \
            end it: `SELECT pg_terminate_backend({pid})`\n"
    )
}

/// Most databases have none, so nothing is said then.
fn lease(standing: Option<&Standing>) -> String {
    let Some(standing) = standing else { return String::new() };
    let meaning = if standing.is_alive {
        "`repair`, `merge` and `redrive` refuse to run until it ends"
    } else {
        "it is dead: the next `repair`, `merge` or `redrive` ends it"
    };
    format!("lease: {}; {meaning}\n", standing.name())
}

/// The shards of one stream.
fn checkpoints(stream: &[Checkpoint], width: usize) -> String {
    let finished = stream.iter().filter(|shard| shard.finished).count();
    let mut text = format!(
        "checkpoints of {}: {} shards, {finished} finished\n",
        stream.first().map_or("", |shard| &shard.stream_arn),
        stream.len()
    );
    let rows: Vec<Vec<String>> = stream.iter().take(LISTED).map(row).collect();
    for line in layout::table(&HEADINGS, &rows, width.saturating_sub(2)).lines() {
        let _ = writeln!(text, "  {line}");
    }
    if stream.len() > LISTED {
        let _ = writeln!(text, "  and {} more: --json lists all", stream.len() - LISTED);
    }
    text
}

fn row(shard: &Checkpoint) -> Vec<String> {
    let lag = match shard.lag_seconds {
        _ if shard.finished => "finished".to_owned(),
        Some(seconds) => span(Duration::from_secs(u64::try_from(seconds).unwrap_or(0))),
        None => "unknown".to_owned(),
    };
    vec![
        shard.shard_id.clone(),
        shard.read_through.map_or_else(|| "nothing yet".to_owned(), clock),
        lag,
        clock(shard.updated_at),
        shard.sequence_number.clone().unwrap_or_else(|| "-".to_owned()),
    ]
}

fn rejected(rejected: &Rejected) -> String {
    let Rejected { records, reasons, by_reason, discarded } = rejected;
    let discarded = match discarded {
        0 => String::new(),
        count => format!(" ({count} more are discarded)"),
    };
    if by_reason.is_empty() {
        return format!("rejected records: none{discarded}\n");
    }
    let mut text = format!(
        "rejected records: {records}, for {reasons} reasons{discarded}; `backfill redrive` tries \
            them again\n"
    );
    for reason in by_reason {
        let _ = writeln!(
            text,
            "  {:>6} × {} ({} to {})",
            reason.records,
            reason.reason,
            clock(reason.oldest),
            clock(reason.newest)
        );
    }
    let more = usize::try_from(*reasons).unwrap_or(0).saturating_sub(by_reason.len());
    if more > 0 {
        let _ = writeln!(text, "  and {more} reasons more");
    }
    text
}

fn rows(rows: &Rows) -> String {
    let Some(estimate) = rows.estimate else {
        return "rows of measurements: not known until PostgreSQL has analyzed the table\n"
            .to_owned();
    };
    let complete = rows
        .complete_share
        .map(|share| format!(", {:.0} % of them complete", share * 100.0))
        .unwrap_or_default();
    format!("rows of measurements: about {estimate}{complete} (PostgreSQL's estimate)\n")
}

#[cfg(test)]
mod tests {
    use super::{LISTED, render};
    use crate::advisory_lock::Holder;
    use crate::commands::status::{Checkpoint, Rejected, RejectedFor, Rows, Status};
    use time::macros::datetime;

    fn shard(finished: bool) -> Checkpoint {
        Checkpoint {
            stream_arn: "arn:sessions".to_owned(),
            shard_id: "shardId-a".to_owned(),
            sequence_number: (!finished).then(|| "4200".to_owned()),
            read_through: Some(datetime!(2026-11-23 20:00 UTC)),
            finished,
            archive: None,
            snapshot_time: None,
            updated_at: datetime!(2026-11-23 20:00:05 UTC),
            lag_seconds: (!finished).then_some(65),
        }
    }

    fn status(checkpoints: Vec<Checkpoint>) -> Status {
        Status {
            lock: None,
            lease: None,
            checkpoints,
            rejected: Rejected::default(),
            objects_pending: 0,
            rows: Rows::default(),
        }
    }

    #[test]
    fn a_fresh_database_says_that_there_is_nothing() {
        let expected = "\
lock: free, no `backfill stream` or `repair` runs on this database
checkpoints: none; `backfill stream` begins at TRIM_HORIZON
rejected records: none
objects pending: none
rows of measurements: not known until PostgreSQL has analyzed the table
";
        assert_eq!(render(&status(Vec::new()), 100), expected);
    }

    #[test]
    fn everything_has_its_line() {
        let reason = RejectedFor {
            reason: "the attribute user_id is missing".to_owned(),
            records: 7,
            oldest: datetime!(2026-11-23 19:00 UTC),
            newest: datetime!(2026-11-23 20:00 UTC),
            all_records: 9,
            all_reasons: 3,
        };
        let connected_at = Some(datetime!(2026-11-23 20:00 UTC));
        let full = Status {
            lock: Some(Holder { pid: 42, address: Some("10.0.0.7".to_owned()), connected_at }),
            rejected: Rejected { records: 9, reasons: 3, by_reason: vec![reason], discarded: 2 },
            rows: Rows { estimate: Some(1_000), complete_share: Some(0.876) },
            ..status(vec![shard(false), shard(true)])
        };
        let expected = "\
lock: held by a `backfill stream` or `repair` (server process 42 from 10.0.0.7 since 2026-11-23 20:00:00Z); to end it: `SELECT pg_terminate_backend(42)`
checkpoints of arn:sessions: 2 shards, 1 finished
  SHARD      READ THROUGH          LAG        UPDATED               SEQUENCE NUMBER
  shardId-a  2026-11-23 20:00:00Z  1 min 5 s  2026-11-23 20:00:05Z  4200
  shardId-a  2026-11-23 20:00:00Z  finished   2026-11-23 20:00:05Z  -
rejected records: 9, for 3 reasons (2 more are discarded); `backfill redrive` tries them again
       7 × the attribute user_id is missing (2026-11-23 19:00:00Z to 2026-11-23 20:00:00Z)
  and 2 reasons more
objects pending: none
rows of measurements: about 1000, 88 % of them complete (PostgreSQL's estimate)
";
        assert_eq!(render(&full, 100), expected);
    }

    #[test]
    fn a_long_list_is_cut_and_says_so() {
        let text = render(&status(vec![shard(false); LISTED + 3]), 100);
        assert!(text.contains("and 3 more: --json lists all"), "{text}");
        assert_eq!(text.matches("shardId-a").count(), LISTED);
    }
}
