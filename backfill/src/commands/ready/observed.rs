//! What `ready` looks at, as far as it could be seen. Pure: data alone. The probes fill it, the
//! judges read it.

use std::collections::{BTreeMap, BTreeSet};

use projector::config::ArchiveConfig;
use sqlx::postgres::PgSslMode;
use time::OffsetDateTime;

use super::condition::Asked;

use crate::commands::migrate::schema::Applied;

/// Everything.
#[derive(Debug)]
pub(crate) struct Observed {
    /// When it was looked at.
    pub(crate) now: OffsetDateTime,
    /// The new function, then the old one.
    pub(crate) functions: [Function; 2],
    /// The tables of sessions and of scans.
    pub(crate) tables: Vec<Table>,
    pub(crate) metrics: Asked<Metrics>,
    pub(crate) archive: Archive,
    pub(crate) databases: Databases,
}

/// A function, and what is around it.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) mappings: Asked<Vec<Mapping>>,
    /// Where it writes objects; `None` if it writes none.
    pub(crate) archive: Asked<Option<ArchiveConfig>>,
    /// What its buckets of failures hold.
    pub(crate) failures: Asked<Vec<Failures>>,
    /// The alarms whose names begin with its own.
    pub(crate) alarms: Asked<Vec<Alarm>>,
}

/// An event source mapping.
#[derive(Clone, Debug)]
pub(crate) struct Mapping {
    pub(crate) stream_arn: String,
    pub(crate) state: String,
    /// Whether it takes partial answers.
    pub(crate) reports_item_failures: bool,
    pub(crate) last_result: Option<String>,
    /// The ARN of where it puts what Lambda gave up on.
    pub(crate) on_failure: Option<String>,
}

/// A bucket of failures.
#[derive(Clone, Debug)]
pub(crate) struct Failures {
    pub(crate) bucket: String,
    /// The first object in it.
    pub(crate) first: Option<String>,
}

/// An alarm.
#[derive(Clone, Debug)]
pub(crate) struct Alarm {
    pub(crate) name: String,
    pub(crate) state: String,
}

/// A table.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) name: String,
    pub(crate) latest_stream: Asked<String>,
}

/// Values by the minute, in seconds since 1970, that they stand for.
pub(crate) type Series = BTreeMap<i64, f64>;

/// What CloudWatch knows of the last minutes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    /// The age in seconds of the oldest record of each batch, by function and table.
    pub(crate) ages: BTreeMap<(String, String), Series>,
    /// The write units that each table used.
    pub(crate) writes: BTreeMap<String, Series>,
}

impl Metrics {
    /// The last minute in which a table was written, of those that ended before `before`.
    pub(crate) fn last_write(&self, table: &str, before: i64) -> Option<i64> {
        let writes = self.writes.get(table)?.iter().rev();
        let written = |(minute, units): &(&i64, &f64)| **units > 0.0 && **minute + 60 <= before;
        writes.into_iter().find(written).map(|(minute, _)| *minute)
    }

    /// Whether a table was written at all.
    pub(crate) fn written(&self, table: &str) -> bool {
        self.last_write(table, i64::MAX).is_some()
    }
}

/// The archives of both sides.
#[derive(Debug)]
pub(crate) enum Archive {
    /// `--no-archive`.
    OutOfScope,
    /// What was seen.
    Seen { replication: Asked<Replication>, sample: Asked<Sample> },
}

/// The replication from the old bucket to the new one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Replication {
    /// `old bucket -> new bucket`, or why there is nothing to replicate.
    pub(crate) between: String,
    /// The rules that still copy.
    pub(crate) rules: Vec<String>,
    /// The most that was pending, and how much failed, in the last quarter of an hour.
    pub(crate) pending: Option<f64>,
    pub(crate) failed: Option<f64>,
}

/// Objects of the new archive that were compared with their rows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    pub(crate) compared: usize,
    /// The sessions whose objects are missing or behind.
    pub(crate) behind: Vec<String>,
}

/// Both databases.
#[derive(Debug)]
pub(crate) struct Databases {
    pub(crate) new_schema: Asked<Vec<Applied>>,
    pub(crate) old_schema: Asked<Vec<Applied>>,
    pub(crate) rejected: Asked<Rejected>,
    /// How many objects of the new database's rows are pending.
    pub(crate) pending_objects: Asked<u64>,
    pub(crate) verified: Asked<Verified>,
    /// What differs of what changed since then; `None` if there was no verify to begin at.
    pub(crate) since: Option<Asked<Since>>,
    pub(crate) statistics: Asked<Statistics>,
    pub(crate) settings: Asked<[BTreeSet<Setting>; 2]>,
    /// Of these settings it does not matter that they differ.
    pub(crate) accepted_settings: Vec<String>,
    pub(crate) relations: Asked<Vec<Relation>>,
    /// `None` with `--no-readers`.
    pub(crate) reader: Option<Asked<Reader>>,
}

/// The open rejected records of the new database.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rejected {
    pub(crate) open: usize,
    /// How many of them the old database lacks, and the first of those.
    pub(crate) unknown: usize,
    pub(crate) first: Vec<String>,
}

/// The last full verify, and what has happened since.
#[derive(Clone, Debug)]
pub(crate) struct Verified {
    /// By the database's clock.
    pub(crate) now: OffsetDateTime,
    pub(crate) last: Option<Full>,
    /// A later run, of whatever extent, that found differences.
    pub(crate) found_later: Option<OffsetDateTime>,
    /// When `stream` last wrote a checkpoint.
    pub(crate) checkpoint: Option<OffsetDateTime>,
}

/// A full verify.
#[derive(Clone, Debug)]
pub(crate) struct Full {
    pub(crate) against: String,
    pub(crate) started_at: OffsetDateTime,
    pub(crate) compared: i64,
    pub(crate) differences: i64,
}

/// What a verify of the changes since the last one came to.
#[derive(Clone, Debug)]
pub(crate) struct Since {
    pub(crate) time: OffsetDateTime,
    pub(crate) compared: u64,
    pub(crate) differences: u64,
    pub(crate) first: Vec<String>,
    /// Whether it came to its end.
    pub(crate) complete: bool,
}

/// What PostgreSQL knows of the table `measurements`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Statistics {
    pub(crate) rows: f64,
    pub(crate) changed_since: i64,
    pub(crate) analyzed_at: Option<OffsetDateTime>,
}

/// How a database is set up, in one respect.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Setting {
    pub(crate) name: String,
    pub(crate) value: String,
}

/// What a relation of `measurements` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RelationKind {
    Table,
    Index,
    /// The large values, which nobody has to warm.
    Toast,
}

/// A relation of `measurements`, and how much of it has been read.
#[derive(Clone, Debug)]
pub(crate) struct Relation {
    pub(crate) name: String,
    pub(crate) kind: RelationKind,
    pub(crate) blocks: i64,
    /// Blocks that came from the volume since PostgreSQL began to count; a block can count twice.
    pub(crate) blocks_read: i64,
    /// The share of the table's rows that this server itself has written since then, from 0 to 1.
    pub(crate) written_here: f64,
}

/// What the readers' login sees.
#[derive(Clone, Debug)]
pub(crate) struct Reader {
    pub(crate) role: String,
    /// Whether it reads the new database.
    pub(crate) same_database: bool,
    pub(crate) ssl_mode: PgSslMode,
    /// The version of TLS, as the server sees its connection; `None` without TLS.
    pub(crate) tls: Option<String>,
    /// Whether there was a row to read.
    pub(crate) row: bool,
}
