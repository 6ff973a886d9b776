//! What a run of `backfill stream` came to: for people, as JSON, and as an exit code. It claims no
//! more than is known.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value as Json, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::console::{clock, span};
use crate::deliver::Delivery;
use crate::outcome::Outcome;
use crate::pending_objects;
use crate::replay::collect::{Ended, Times};
use crate::replay::context::ReplayContext;
use crate::replay::progress::StreamProgress;
use crate::replay::source::ShardName;
use crate::summary;

/// This many shards are named; `--json` names all.
const NAMED: usize = 20;

/// Of a run that was stopped.
pub(crate) const RESUMES: &str =
    "not all records are applied yet: the same command resumes from here";

/// Of a run that was stopped while it wrote objects.
pub(crate) const OBJECTS_REMAIN: &str = "all records are applied: the same command writes the \
    objects that are pending, and so does `backfill objects --pending`";

/// A run that has ended.
pub(crate) struct Tally<'a> {
    pub(crate) ended: &'a anyhow::Result<Ended>,
    pub(crate) context: &'a ReplayContext,
    pub(crate) delivery: &'a Delivery,
    pub(crate) progress: &'a [(String, StreamProgress)],
    pub(crate) times: &'a Times,
    pub(crate) duration: Duration,
    /// Changes since the snapshot are in no stream, and that was allowed.
    pub(crate) gap: bool,
}

impl Tally<'_> {
    /// Everything that could be read up to the cutoff is applied.
    fn at_cutoff(&self) -> bool {
        match self.ended {
            Ok(Ended::Complete | Ended::RowsStored) => true,
            // Only one that follows goes on after the cutoff; another was not at its end.
            Ok(Ended::Stopped { at_cutoff }) => *at_cutoff && self.context.follow,
            Err(_) => false,
        }
    }

    /// What the run came to, if it did not fail.
    pub(crate) fn outcome(&self) -> Outcome {
        if !self.at_cutoff() || matches!(self.ended, Ok(Ended::RowsStored)) {
            Outcome::Interrupted
        } else if self.gap || !self.context.findings().gaps.is_empty() {
            Outcome::Trimmed
        } else {
            Outcome::of(&self.delivery.counts)
        }
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let end = match self.ended {
            Ok(Ended::Complete) => "done",
            Ok(Ended::Stopped { .. } | Ended::RowsStored) => "stopped by a signal",
            Err(_) => "failed",
        };
        let Delivery { counts, not_counted, reasons, objects_pending, .. } = self.delivery;
        let mut text = summary::text(end, counts, *not_counted, reasons, self.duration);
        text += &pending_objects::line(*objects_pending);
        for line in self.streams() {
            let _ = writeln!(text, "  {line}");
        }
        for line in self.times.lines(self.delivery, self.duration) {
            let _ = writeln!(text, "  {line}");
        }
        if let Some(troubles) = self.context.source.calls.troubles() {
            let _ = writeln!(text, "  the streams: {troubles}");
        }
        for line in self.conclusions() {
            let _ = writeln!(text, "{line}");
        }
        text.trim_end().to_owned()
    }

    /// A line per stream: how much of it was read.
    pub(crate) fn streams(&self) -> Vec<String> {
        let line = |(arn, progress): &(String, StreamProgress)| {
            let (read, listed, records) = progress.totals();
            let name = self.stream_name(arn, progress.table());
            format!("{name}: {read} of {listed} shards read, {records} records")
        };
        self.progress.iter().map(line).collect()
    }

    /// The table, and the stream's label if the table has several.
    fn stream_name(&self, arn: &str, table: &str) -> String {
        let of_table = self.progress.iter().filter(|(_, other)| other.table() == table).count();
        match projector::change::stream_of(arn) {
            Some((_, label)) if of_table > 1 => format!("{table} (stream of {label})"),
            _ => table.to_owned(),
        }
    }

    /// The first shards by name.
    fn named<'a>(&self, shards: impl ExactSizeIterator<Item = &'a ShardName>) -> String {
        let more = if shards.len() > NAMED { ", ... (--json names all)" } else { "" };
        let name = |name: &ShardName| {
            format!("{}/{}", self.stream_name(&name.stream_arn, &name.table), name.shard)
        };
        shards.take(NAMED).map(name).collect::<Vec<_>>().join(", ") + more
    }

    /// What may be relied on.
    fn conclusions(&self) -> Vec<String> {
        let findings = self.context.findings();
        let mut lines = findings.remarks.clone();
        if !findings.gaps.is_empty() {
            let shards = self.named(findings.gaps.keys());
            lines.push(format!(
                "records can be lost in {}: {shards}",
                shards_of(findings.gaps.len())
            ));
        }
        if self.gap {
            lines.push(
                "not every change since the snapshot is in the streams, as said at the start: \
                    --allow-gap went on without"
                    .to_owned(),
            );
        }
        if !findings.gone.is_empty() {
            lines.push(format!(
                "{} gone before {} read to {} end, as happens when all that is left is older than \
                    24 hours: {}",
                was(findings.gone.len(), "shard"),
                if findings.gone.len() == 1 { "it was" } else { "they were" },
                if findings.gone.len() == 1 { "its" } else { "their" },
                self.named(findings.gone.iter())
            ));
        }
        let complete = findings.gaps.is_empty() && !self.gap;
        lines.push(self.reach(&findings.assumed.keys().collect::<Vec<_>>(), complete));
        if self.context.snapshot_time.is_none() {
            lines.push(
                "no --snapshot-time was given: whether the streams still hold every change that \
                 this database lacks was not checked"
                    .to_owned(),
            );
        }
        lines
    }

    /// Up to when all is applied.
    fn reach(&self, assumed: &[&ShardName], complete: bool) -> String {
        if !self.at_cutoff() {
            return RESUMES.to_owned();
        }
        let cutoff = clock(self.context.cutoff);
        match (assumed.len(), complete) {
            (0, true) => format!("every record created before {cutoff} is applied"),
            (0, false) => format!("every other record created before {cutoff} is applied"),
            (count, _) => format!(
                "every record that was read is applied; {} assumed to be caught up to {cutoff}, \
                 after only empty pages for {} ({} before a first record): {}",
                is(count, "open shard"),
                span(self.context.idle),
                span(self.context.first_record),
                self.named(assumed.iter().copied())
            ),
        }
    }

    /// As JSON.
    pub(crate) fn json(&self) -> Json {
        let time = |time: OffsetDateTime| time.format(&Rfc3339).ok();
        let shard = |name: &ShardName| json!({ "table": name.table, "stream_arn": name.stream_arn, "shard": name.shard });
        let findings = self.context.findings();
        let with = |name: &ShardName, member: &str, value: Json| {
            let mut json = shard(name);
            json[member] = value;
            json
        };
        let streams = self.progress.iter().map(|(arn, progress)| {
            let (read, listed, records) = progress.totals();
            json!({
                "table": progress.table(), "arn": arn, "shards": listed, "shards_read": read,
                "records": records,
            })
        });
        json!({
            "ended": match self.ended {
                Ok(Ended::Complete) => "done",
                Ok(Ended::Stopped { .. } | Ended::RowsStored) => "stopped",
                Err(_) => "failed",
            },
            "seconds": self.duration.as_secs_f64(),
            "cutoff": time(self.context.cutoff),
            "at_cutoff": self.at_cutoff(),
            "snapshot_time": self.context.snapshot_time.and_then(time),
            "gap": self.gap || !findings.gaps.is_empty(),
            "counts": summary::counts_json(&self.delivery.counts),
            "not_counted": self.delivery.not_counted,
            "objects_pending": self.delivery.objects_pending,
            "reasons": self.delivery.reasons.json(),
            "streams": streams.collect::<Vec<_>>(),
            "assumed_caught_up": findings
                .assumed
                .iter()
                .map(|(name, had_records)| with(name, "returned_records", json!(had_records)))
                .collect::<Vec<_>>(),
            "records_can_be_lost": findings
                .gaps
                .iter()
                .map(|(name, since)| with(name, "since", json!(since.and_then(time))))
                .collect::<Vec<_>>(),
            "gone": findings.gone.iter().map(shard).collect::<Vec<_>>(),
            "named_and_not_there": findings.not_there.iter().map(shard).collect::<Vec<_>>(),
            "remarks": findings.remarks,
        })
    }
}

fn shards_of(count: usize) -> String {
    if count == 1 { "1 shard".to_owned() } else { format!("{count} shards") }
}

fn is(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun} is") } else { format!("{count} {noun}s are") }
}

fn was(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun} was") } else { format!("{count} {noun}s were") }
}
