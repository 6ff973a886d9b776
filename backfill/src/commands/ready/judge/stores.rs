//! What the two databases, the archive and the readers' login come to. Pure.

use std::collections::BTreeMap;

use sqlx::postgres::PgSslMode;
use time::Duration;

use super::super::condition::{Asked, Condition, wanted};
use super::super::observed::{
    Archive, Databases, Function, Reader, Relation, RelationKind, Replication, Sample, Setting,
    Since, Verified,
};
use super::functions::some;

use crate::commands::migrate::schema::{self, Applied};
use crate::console::clock;

/// The remedy if a database cannot be asked.
const ASK_DATABASE: &str = "correct what the message names; `backfill doctor` says more of the new \
    database; the login must be the owner of the tables";
const VERIFY: &str = "run `backfill verify --against`, then this command again";
/// A verify that is older says little of the rows of now.
const DAY: Duration = Duration::DAY;
/// What is written after the last ANALYZE, as a share of the rows; fewer rows than this never
/// matter.
const CHANGED_SHARE: f64 = 0.2;
const CHANGED_AT_LEAST: f64 = 1_000.0;
/// A relation of fewer blocks (8 MB) is loaded in seconds, cold or not.
const SMALL_BLOCKS: i64 = 1_024;

/// Whether both databases have every migration.
pub(super) fn schemas(databases: &Databases) -> Vec<Condition> {
    vec![
        schema("schema: new database", &databases.new_schema),
        schema("schema: old database", &databases.old_schema),
    ]
}

fn schema(name: &str, applied: &Asked<Vec<Applied>>) -> Condition {
    let wanted = wanted(name, "every migration of this `backfill`");
    let applied = match applied {
        Ok(applied) => applied,
        Err(why) => return wanted.not_asked(why, ASK_DATABASE),
    };
    match schema::pending(applied) {
        Ok(pending) if pending.is_empty() => {
            let newest = applied.iter().map(|row| row.version).max().unwrap_or_default();
            wanted.pass(format!("{newest} is the newest"))
        }
        Ok(pending) => {
            let versions: Vec<String> =
                pending.iter().map(|migration| migration.version.to_string()).collect();
            wanted.fail(
                format!("not applied: {}", versions.join(", ")),
                "run `backfill migrate` with DATABASE_URL of this database",
            )
        }
        Err(mismatch) => wanted.fail(mismatch.problem(), mismatch.remedy()),
    }
}

/// Whether the new side rejects only what the old side rejects, too.
pub(super) fn rejected(databases: &Databases) -> Condition {
    let wanted = wanted("rejected records", "none that the old side lacks");
    let rejected = match &databases.rejected {
        Ok(rejected) => rejected,
        Err(why) => return wanted.not_asked(why, ASK_DATABASE),
    };
    let value = match some(&rejected.first) {
        None => format!("{} open, the old side has them too", rejected.open),
        Some(names) => {
            format!("{} of {} open ones, such as {names}", rejected.unknown, rejected.open)
        }
    };
    wanted.judged(
        rejected.unknown == 0,
        value,
        "see docs/incidents.md#rejected-records: `backfill redrive`, or correct them at their \
            source",
    )
}

/// Whether the last full verify counts.
pub(super) fn verified(databases: &Databases) -> Condition {
    let limit = "no difference, less than 24 h old, begun after the gap was closed";
    let wanted = wanted("full verify", limit);
    let Verified { now, last, found_later, checkpoint } = match &databases.verified {
        Ok(verified) => verified,
        Err(why) => return wanted.not_asked(why, ASK_DATABASE),
    };
    let Some(full) = last else {
        return wanted.fail("there was none with the old database or the tables", VERIFY);
    };
    let begun = clock(full.started_at);
    let seen = format!("{} sessions with {}, begun {begun}", full.compared, full.against);
    if full.differences > 0 {
        let remedy =
            "look at each difference (`backfill verify --report`), close the gap, and verify again";
        return wanted.fail(format!("{} differences: {seen}", full.differences), remedy);
    }
    if *now - full.started_at > DAY {
        return wanted.fail(format!("more than 24 h old: {seen}"), VERIFY);
    }
    if let Some(later) = found_later {
        let value = format!("a later one, begun {}, found differences", clock(*later));
        return wanted.fail(value, VERIFY);
    }
    match checkpoint {
        Some(checkpoint) if *checkpoint > full.started_at => wanted.fail(
            format!(
                "`stream` wrote a checkpoint at {}, after it began: {seen}",
                clock(*checkpoint)
            ),
            "let `backfill stream` end, then run `backfill verify --against` again",
        ),
        Some(checkpoint) => {
            wanted.pass(format!("{seen}; `stream` had ended by {}", clock(*checkpoint)))
        }
        None => wanted.pass(format!("{seen}; `stream` wrote no checkpoint (a merge writes none)")),
    }
}

/// Whether what changed since then is equal, too.
pub(super) fn since(databases: &Databases) -> Condition {
    let wanted = wanted("verify since then", "no difference that persists");
    let Since { time, compared, differences, first, complete } = match &databases.since {
        None => return wanted.fail("there is no full verify to begin at", VERIFY),
        Some(Err(why)) => return wanted.not_asked(why, VERIFY),
        Some(Ok(since)) => since,
    };
    let value = format!("{compared} sessions changed since {}", clock(*time));
    let remedy = "run `backfill verify --against`, which names every difference";
    match some(first) {
        Some(names) => wanted.fail(format!("{differences} differences: {names}; {value}"), remedy),
        None if *differences > 0 => {
            wanted.fail(format!("{differences} differences; {value}"), remedy)
        }
        None if !complete => wanted.fail(format!("it did not come to its end; {value}"), VERIFY),
        None => wanted.pass(format!("equal: {value}")),
    }
}

/// Whether the archive is the new projector's alone, and holds the rows.
pub(super) fn archive(archive: &Archive, [new, old]: [&Function; 2]) -> Vec<Condition> {
    let copies = wanted("replication", "off, nothing pending or failed for 15 minutes");
    let objects = wanted("archive", "every object of a sample holds its row");
    let (replication, sample) = match archive {
        Archive::OutOfScope => {
            let flag = "--no-archive";
            return vec![copies.out_of_scope(flag), objects.out_of_scope(flag)];
        }
        Archive::Seen { replication, sample } => (replication, sample),
    };
    let remedy = format!(
        "deploy {} with ArchiveBucket (docs/migration.md, step 11); or, if only the readers of \
         the database switch, give --no-archive",
        new.name
    );
    let copies = match replication {
        Ok(replication) => replicates(copies, replication),
        Err(why) => copies.not_asked(why, remedy.as_str()),
    };
    let mode = |function: &Function| Some(function.archive.as_ref().ok()?.as_ref()?.objects);
    let objects = match sample {
        Ok(_)
            if let (Some(new), Some(old)) = (mode(new), mode(old))
                && new != old =>
        {
            objects.fail(
                format!("ARCHIVE_OBJECTS is {}, was {}", new.name(), old.name()),
                "deploy both projectors with one ArchiveObjects, then run `backfill objects`",
            )
        }
        Ok(Sample { compared, behind }) => match some(behind) {
            None => objects.pass(format!("{compared} compared, all current")),
            Some(names) => objects.fail(
                format!("{} of {compared} missing or behind: {names}", behind.len()),
                "run `backfill objects`",
            ),
        },
        Err(why) => objects.not_asked(why, remedy),
    };
    vec![copies, objects]
}

/// Whether a backfill has left objects that are to be compared with their rows.
pub(super) fn pending_objects(databases: &Databases) -> Condition {
    let wanted = wanted("pending objects", "none");
    match &databases.pending_objects {
        Ok(0) => wanted.pass("none"),
        Ok(count) => wanted.fail(
            format!("{count} objects are still to be compared with their rows"),
            "let the run that is under way end, or run `backfill objects --pending`",
        ),
        Err(why) => wanted.not_asked(why, ASK_DATABASE),
    }
}

fn replicates(wanted: super::super::condition::Wanted, replication: &Replication) -> Condition {
    let Replication { between, rules, pending, failed } = replication;
    let mut faults = Vec::new();
    if !rules.is_empty() {
        faults.push(format!("rules that still copy: {}", rules.join(", ")));
    }
    for (count, what) in [(pending, "pending"), (failed, "failed")] {
        if let Some(count) = count.filter(|count| *count > 0.0) {
            faults.push(format!("{count:.0} {what}"));
        }
    }
    let data = if pending.is_none() { ", no data" } else { "" };
    wanted.judged(
        faults.is_empty(),
        if faults.is_empty() {
            format!("{between}: off{data}")
        } else {
            format!(
                "{between}: \
            {}",
                faults.join("; ")
            )
        },
        "turn it off (ReplicateTo=\"\"), wait until nothing is pending, then run `backfill \
            objects`",
    )
}

/// Whether PostgreSQL knows what it plans for.
pub(super) fn statistics(databases: &Databases) -> Condition {
    let wanted = wanted("statistics", "analyzed, and at most 20 % (or 1,000 rows) changed since");
    let statistics = match &databases.statistics {
        Ok(statistics) => statistics,
        Err(why) => return wanted.not_asked(why, ASK_DATABASE),
    };
    let remedy = "run ANALYZE measurements in the new database";
    let Some(at) = statistics.analyzed_at else {
        return wanted.fail("measurements was never analyzed here", remedy);
    };
    let changed = statistics.changed_since as f64;
    let most = (statistics.rows * CHANGED_SHARE).max(CHANGED_AT_LEAST);
    let value = format!("analyzed {}, {changed:.0} rows changed since", clock(at));
    wanted.judged(changed <= most, value, remedy)
}

/// Whether the new database is set up as the old one.
pub(super) fn settings(databases: &Databases) -> Condition {
    let wanted = wanted("settings", "those of the old database");
    let [new, old] = match &databases.settings {
        Ok(settings) => settings,
        Err(why) => return wanted.not_asked(why, ASK_DATABASE),
    };
    let by_name = |settings: &std::collections::BTreeSet<Setting>| -> BTreeMap<String, String> {
        let pair = |setting: &Setting| (setting.name.clone(), setting.value.clone());
        settings.iter().map(pair).collect()
    };
    let (new, old) = (by_name(new), by_name(old));
    let names: std::collections::BTreeSet<&String> = new.keys().chain(old.keys()).collect();
    let (mut differences, mut accepted) = (Vec::new(), 0);
    for name in names {
        let (here, there) = (new.get(name), old.get(name));
        // One more extension, such as pg_prewarm, takes nothing away.
        let more = there.is_none() && name.starts_with("extension ");
        if here == there || more {
            continue;
        }
        if databases.accepted_settings.iter().any(|pattern| accepts(pattern, name)) {
            accepted += 1;
            continue;
        }
        let text = |value: Option<&String>| value.map_or("not set".to_owned(), Clone::clone);
        differences.push(format!("{name} is {}, was {}", text(here), text(there)));
    }
    let but = if accepted > 0 { format!(", {accepted} accepted") } else { String::new() };
    match some(&differences) {
        None => wanted.pass(format!("{} compared, no difference{but}", new.len())),
        Some(names) => wanted.fail(
            format!("{names}{but}"),
            "set them in the parameter group (ParameterGroup of infra/database.yaml), or accept \
             each with --accept-setting NAME",
        ),
    }
}

/// `log_*` accepts every setting whose name begins so.
fn accepts(pattern: &str, name: &str) -> bool {
    let plain = name.strip_prefix("setting ").unwrap_or(name);
    match pattern.strip_suffix('*') {
        Some(beginning) => plain.starts_with(beginning) || name.starts_with(beginning),
        None => plain == pattern || name == pattern,
    }
}

/// Whether the blocks of the restored volume have been loaded.
pub(super) fn warm(databases: &Databases) -> Condition {
    let wanted = wanted("prewarmed", "each block of the table and its indexes was read once");
    let relations = match &databases.relations {
        Ok(relations) => relations,
        Err(why) => return wanted.not_asked(why, ASK_DATABASE),
    };
    if relations.is_empty() {
        return wanted.not_asked("there is no table measurements", ASK_DATABASE);
    }
    let cold: Vec<String> = relations
        .iter()
        .filter(|relation| relation.kind != RelationKind::Toast && is_cold(relation))
        .map(read)
        .collect();
    let toast = relations.iter().find(|relation| relation.kind == RelationKind::Toast);
    let meshes =
        toast.map_or(String::new(), |toast| format!("; meshes (not required): {}", read(toast)));
    match some(&cold) {
        None => wanted.pass(format!("every block that a restore can have left cold{meshes}")),
        Some(names) => wanted.fail(
            format!("{names}{meshes}"),
            "run the pg_prewarm block of docs/migration.md, step 6",
        ),
    }
}

/// Rows that this server wrote itself lie in blocks that were never cold.
fn is_cold(relation: &Relation) -> bool {
    let restored = relation.blocks as f64 * (1.0 - relation.written_here.clamp(0.0, 1.0));
    relation.blocks > SMALL_BLOCKS && (relation.blocks_read as f64) < restored.floor()
}

fn read(relation: &Relation) -> String {
    format!("{}: {} of {} blocks read", relation.name, relation.blocks_read, relation.blocks)
}

/// Whether the readers can read.
pub(super) fn readers(databases: &Databases) -> Condition {
    let wanted = wanted("readers", "log in to the new database over TLS, and select");
    let reader = match &databases.reader {
        None => return wanted.out_of_scope("--no-readers"),
        Some(Ok(reader)) => reader,
        Some(Err(why)) => {
            let remedy = "give --reader-url or READER_DATABASE_URL (the readers' login at the new \
                          database); let them in by ReaderSecurityGroupId, and GRANT SELECT ON \
                          measurements";
            return wanted.not_asked(why, remedy);
        }
    };
    let Reader { role, same_database, ssl_mode, tls, row } = reader;
    if !same_database {
        let value = format!("{role} logs in to another database than DATABASE_URL names");
        return wanted.fail(value, "name the new database in --reader-url or READER_DATABASE_URL");
    }
    let demanded =
        matches!(ssl_mode, PgSslMode::Require | PgSslMode::VerifyCa | PgSslMode::VerifyFull);
    let seen = match (tls, demanded) {
        (Some(version), _) => version.clone(),
        // It would not have connected without. A proxy may end it before the server.
        (None, true) => "TLS, which the URL demands".to_owned(),
        (None, false) => {
            return wanted.fail(
                format!("{role} logs in without TLS"),
                "take sslmode out of the readers' URL, or set rds.force_ssl",
            );
        }
    };
    let rows = if *row { "a row" } else { "no row: the table is empty" };
    wanted.judged(
        *row,
        format!("{role} over {seen} reads {rows}"),
        "close the gap first: nobody can read an empty table",
    )
}
