//! Every condition of a switch, from what was seen. Pure. One file per kind.

mod functions;
mod stores;

use super::condition::Condition;
use super::observed::Observed;

/// The remedy if AWS cannot be asked.
const ASK: &str = "correct what the message names: the route, the credentials or the permission";

/// The conditions, in the order in which an operator reads them.
pub(crate) fn judge(observed: &Observed, lag_seconds: u32) -> Vec<Condition> {
    let databases = &observed.databases;
    let [new, old] = &observed.functions;
    let mut conditions = stores::schemas(databases);
    conditions.extend(functions::mappings(observed));
    conditions.extend(functions::lags(observed, lag_seconds));
    conditions.push(stores::rejected(databases));
    conditions.extend(functions::failures(observed));
    conditions.extend(functions::alarms(observed));
    conditions.push(stores::verified(databases));
    conditions.push(stores::since(databases));
    conditions.extend(stores::archive(&observed.archive, [new, old]));
    conditions.push(stores::pending_objects(databases));
    conditions.push(stores::statistics(databases));
    conditions.push(stores::settings(databases));
    conditions.push(stores::warm(databases));
    conditions.push(stores::readers(databases));
    conditions
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use projector::config::{ArchiveConfig, ArchiveObjects};
    use sqlx::postgres::PgSslMode;
    use time::macros::datetime;
    use time::{Duration, OffsetDateTime};

    use super::super::condition::Verdict;
    use super::super::observed::{
        Alarm, Archive, Databases, Failures, Full, Function, Mapping, Metrics, Observed, Reader,
        Rejected, Relation, RelationKind, Replication, Sample, Setting, Since, Statistics, Table,
        Verified,
    };
    use super::judge;
    use crate::commands::migrate::schema::all_applied;

    const NOW: OffsetDateTime = datetime!(2026-11-26 12:10:30 UTC);
    const MINUTE: i64 = 60;

    fn arn(table: &str, label: &str) -> String {
        format!("arn:aws:dynamodb:eu-central-1:1:table/{table}/stream/{label}")
    }

    fn function(name: &str) -> Function {
        let mapping = |table| Mapping {
            stream_arn: arn(table, "2"),
            state: "Enabled".to_owned(),
            reports_item_failures: true,
            last_result: Some("OK".to_owned()),
            on_failure: None,
        };
        Function {
            name: name.to_owned(),
            mappings: Ok(["sessions", "scans"].map(mapping).into()),
            archive: Ok(None),
            failures: Ok(vec![Failures { bucket: format!("{name}-failures"), first: None }]),
            alarms: Ok(vec![Alarm { name: format!("{name}-late"), state: "OK".to_owned() }]),
        }
    }

    /// The minute that ended this many minutes ago.
    fn minute(ago: i64) -> i64 {
        (NOW.unix_timestamp() / MINUTE - ago) * MINUTE
    }

    fn metrics() -> Metrics {
        let mut metrics = Metrics::default();
        for table in ["sessions", "scans"] {
            metrics.writes.insert(table.to_owned(), [(minute(4), 2.0), (minute(3), 1.0)].into());
            for function in ["new", "old"] {
                let key = (function.to_owned(), table.to_owned());
                metrics.ages.insert(key, [(minute(4), 2.0), (minute(3), 60.0)].into());
            }
        }
        metrics
    }

    fn relation(name: &str, kind: RelationKind) -> Relation {
        let (blocks, blocks_read) = (10_000, 10_000);
        Relation { name: name.to_owned(), kind, blocks, blocks_read, written_here: 0.0 }
    }

    fn databases() -> Databases {
        let started_at = NOW - Duration::hours(3);
        let setting = |name: &str| Setting { name: name.to_owned(), value: "1".to_owned() };
        let settings: BTreeSet<Setting> =
            ["setting work_mem", "extension plpgsql"].map(setting).into();
        let full =
            Full { against: "old:5432/m".to_owned(), started_at, compared: 9, differences: 0 };
        Databases {
            new_schema: Ok(all_applied()),
            old_schema: Ok(all_applied()),
            rejected: Ok(Rejected::default()),
            pending_objects: Ok(0),
            verified: Ok(Verified {
                now: NOW,
                last: Some(full),
                found_later: None,
                checkpoint: Some(started_at - Duration::hours(1)),
            }),
            since: Some(Ok(Since {
                time: started_at,
                compared: 3,
                differences: 0,
                first: Vec::new(),
                complete: true,
            })),
            statistics: Ok(Statistics { rows: 1e6, changed_since: 10, analyzed_at: Some(NOW) }),
            settings: Ok([settings.clone(), settings]),
            accepted_settings: vec!["log_*".to_owned(), "rds.force_ssl".to_owned()],
            relations: Ok(vec![
                relation("measurements", RelationKind::Table),
                relation("measurements_pkey", RelationKind::Index),
                Relation { blocks_read: 0, ..relation("pg_toast_1", RelationKind::Toast) },
            ]),
            reader: Some(Ok(Reader {
                role: "reader".to_owned(),
                same_database: true,
                ssl_mode: PgSslMode::Prefer,
                tls: Some("TLSv1.3".to_owned()),
                row: true,
            })),
        }
    }

    fn observed() -> Observed {
        let table = |name: &str| Table { name: name.to_owned(), latest_stream: Ok(arn(name, "2")) };
        Observed {
            now: NOW,
            functions: ["new", "old"].map(function),
            tables: ["sessions", "scans"].map(table).into(),
            metrics: Ok(metrics()),
            archive: Archive::Seen {
                replication: Ok(Replication {
                    between: "a -> b".to_owned(),
                    ..Replication::default()
                }),
                sample: Ok(Sample { compared: 200, behind: Vec::new() }),
            },
            databases: databases(),
        }
    }

    /// The names of the conditions that do not hold after a change.
    #[track_caller]
    fn failed(change: impl FnOnce(&mut Observed)) -> Vec<String> {
        let mut observed = observed();
        change(&mut observed);
        let conditions = judge(&observed, 60);
        let failed = conditions.iter().filter(|condition| condition.verdict == Verdict::Fail);
        failed
            .map(|condition| {
                assert!(condition.remedy.is_some(), "{condition:?}");
                condition.condition.clone()
            })
            .collect()
    }

    fn mapping(observed: &mut Observed) -> &mut Mapping {
        &mut observed.functions[0].mappings.as_mut().expect("known")[1]
    }

    fn verified(observed: &mut Observed) -> &mut Verified {
        observed.databases.verified.as_mut().expect("known")
    }

    fn seen(observed: &mut Observed) -> (&mut Replication, &mut Sample) {
        match &mut observed.archive {
            Archive::Seen { replication: Ok(replication), sample: Ok(sample) } => {
                (replication, sample)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn all_conditions_hold_and_each_name_stands_once() {
        assert_eq!(failed(|_| {}), [""; 0]);
        let conditions = judge(&observed(), 60);
        let names: BTreeSet<&str> =
            conditions.iter().map(|condition| condition.condition.as_str()).collect();
        assert_eq!((names.len(), conditions.len()), (24, 24));
    }

    type Case = (&'static str, fn(&mut Observed));

    #[test]
    fn each_fault_of_a_function_is_named_and_nothing_else() {
        let cases: [Case; 17] = [
            ("mapping: new scans", |o| mapping(o).state = "Disabled".to_owned()),
            ("mapping: new scans", |o| mapping(o).stream_arn = arn("scans", "1")),
            ("mapping: new scans", |o| mapping(o).reports_item_failures = false),
            ("mapping: new scans", |o| mapping(o).last_result = Some("PROBLEM: x".to_owned())),
            ("mapping: new scans", |o| mapping(o).last_result = None),
            ("mapping: new scans", |o| {
                mapping(o).last_result = Some("No records processed".to_owned());
            }),
            ("mapping: old scans", |o| {
                o.functions[1].mappings.as_mut().expect("known").truncate(1);
            }),
            ("lag: new scans", |o| age(o, "scans").extend([(minute(1), 61.0)])),
            // Written, and never applied; applied, and not since the last write.
            ("lag: new scans", |o| age(o, "scans").clear()),
            ("lag: new scans", |o| age(o, "scans").retain(|at, _| *at != minute(3))),
            ("failures: old", |o| {
                o.functions[1].failures.as_mut().expect("known")[0].first = Some("k".to_owned());
            }),
            ("failures: old", |o| o.functions[1].failures = Ok(Vec::new())),
            ("failures: old", |o| o.functions[1].failures = Err("403".to_owned())),
            ("alarms: new", |o| o.functions[0].alarms = Ok(Vec::new())),
            ("alarms: new", |o| o.functions[0].alarms = Err("403".to_owned())),
            ("alarms: old", |o| {
                o.functions[1].alarms.as_mut().expect("known")[0].state = "ALARM".to_owned();
            }),
            ("alarms: new", |o| {
                o.functions[0].alarms.as_mut().expect("known")[0].state = "ALARM".to_owned();
            }),
        ];
        for (index, (name, change)) in cases.into_iter().enumerate() {
            assert_eq!(failed(change), [name], "case {index}");
        }
        let mappings = ["mapping: new sessions", "mapping: new scans"];
        assert_eq!(failed(|o| o.functions[0].mappings = Err("403".to_owned())), mappings);
        let scans = ["mapping: new scans", "mapping: old scans"];
        assert_eq!(failed(|o| o.tables[1].latest_stream = Err("403".to_owned())), scans);
        assert_eq!(failed(|o| o.metrics = Err("403".to_owned())).len(), 4);
    }

    fn age<'a>(observed: &'a mut Observed, table: &str) -> &'a mut BTreeMap<i64, f64> {
        let metrics = observed.metrics.as_mut().expect("known");
        metrics.ages.get_mut(&("new".to_owned(), table.to_owned())).expect("a series")
    }

    #[test]
    fn each_fault_of_a_store_is_named_and_nothing_else() {
        let cases: [Case; 26] = [
            ("schema: new database", |o| o.databases.new_schema = Err("away".to_owned())),
            ("schema: old database", |o| {
                drop(o.databases.old_schema.as_mut().expect("known").pop());
            }),
            ("rejected records", |o| {
                let first = vec!["scans/1".to_owned()];
                o.databases.rejected = Ok(Rejected { open: 3, unknown: 1, first });
            }),
            ("rejected records", |o| o.databases.rejected = Err("away".to_owned())),
            ("full verify", |o| verified(o).last.as_mut().expect("one").differences = 1),
            ("full verify", |o| verified(o).now = NOW + Duration::hours(22)),
            ("full verify", |o| verified(o).found_later = Some(NOW)),
            ("full verify", |o| verified(o).checkpoint = Some(NOW)),
            ("full verify", |o| o.databases.verified = Err("away".to_owned())),
            ("verify since then", |o| since(o).differences = 1),
            ("verify since then", |o| since(o).complete = false),
            ("verify since then", |o| o.databases.since = Some(Err("not built".to_owned()))),
            ("replication", |o| seen(o).0.rules.push("to-b".to_owned())),
            ("replication", |o| seen(o).0.pending = Some(3.0)),
            ("replication", |o| seen(o).0.failed = Some(1.0)),
            ("archive", |o| seen(o).1.behind.push("s-1".to_owned())),
            ("archive", |o| {
                for (function, objects) in
                    o.functions.iter_mut().zip([ArchiveObjects::Complete, ArchiveObjects::Every])
                {
                    let (bucket, prefix) = (function.name.clone(), "m/".to_owned());
                    function.archive = Ok(Some(ArchiveConfig { bucket, prefix, objects }));
                }
            }),
            ("pending objects", |o| o.databases.pending_objects = Ok(3)),
            ("pending objects", |o| o.databases.pending_objects = Err("away".to_owned())),
            ("statistics", |o| statistics(o).analyzed_at = None),
            ("statistics", |o| statistics(o).changed_since = 200_001),
            ("settings", |o| setting(o, "setting work_mem", "2")),
            ("settings", |o| setting(o, "extension plpgsql", "2")),
            ("prewarmed", |o| relations(o)[0].blocks_read = 9_999),
            ("prewarmed", |o| relations(o)[1].blocks_read = 0),
            ("readers", |o| o.databases.reader = Some(Err("refused".to_owned()))),
        ];
        for (index, (name, change)) in cases.into_iter().enumerate() {
            assert_eq!(failed(change), [name], "case {index}");
        }
        let none = ["full verify", "verify since then"];
        let without = |o: &mut Observed| {
            verified(o).last = None;
            o.databases.since = None;
        };
        assert_eq!(failed(without), none);
    }

    fn since(observed: &mut Observed) -> &mut Since {
        observed.databases.since.as_mut().expect("one").as_mut().expect("known")
    }

    fn statistics(observed: &mut Observed) -> &mut Statistics {
        observed.databases.statistics.as_mut().expect("known")
    }

    fn relations(observed: &mut Observed) -> &mut Vec<Relation> {
        observed.databases.relations.as_mut().expect("known")
    }

    fn reader(observed: &mut Observed) -> &mut Reader {
        observed.databases.reader.as_mut().expect("asked").as_mut().expect("known")
    }

    /// Gives a setting of the new database another value.
    fn setting(observed: &mut Observed, name: &str, value: &str) {
        let [new, _] = observed.databases.settings.as_mut().expect("known");
        new.retain(|setting| setting.name != name);
        new.insert(Setting { name: name.to_owned(), value: value.to_owned() });
    }

    #[test]
    fn the_readers_must_read_the_new_database_over_tls() {
        let cases: [fn(&mut Observed); 3] = [
            |o| reader(o).same_database = false,
            |o| reader(o).tls = None,
            |o| reader(o).row = false,
        ];
        for change in cases {
            assert_eq!(failed(change), ["readers"]);
        }
        let demanded = |o: &mut Observed| {
            reader(o).tls = None;
            reader(o).ssl_mode = PgSslMode::VerifyFull;
        };
        assert_eq!(failed(demanded), [""; 0]);
        assert_eq!(failed(|o| o.databases.reader = None), [""; 0]);
    }

    #[test]
    fn what_is_no_fault_passes() {
        let cases: [fn(&mut Observed); 9] = [
            // Nothing is written.
            |o| {
                mapping(o).last_result = Some("No records processed".to_owned());
                o.metrics = Ok(Metrics::default());
            },
            // Written a moment ago: its metric is not known yet.
            |o| {
                let metrics = o.metrics.as_mut().expect("known");
                metrics.writes.insert("scans".to_owned(), [(minute(1), 9.0)].into());
                age(o, "scans").clear();
            },
            // A mapping of the stream that was turned off is there, too.
            |o| {
                let mut older = mapping(o).clone();
                older.stream_arn = arn("scans", "1");
                older.state = "Disabled".to_owned();
                o.functions[0].mappings.as_mut().expect("known").insert(0, older);
            },
            |o| {
                let alarms = o.functions[0].alarms.as_mut().expect("known");
                alarms[0].state = "INSUFFICIENT_DATA".to_owned();
            },
            |o| o.functions[1].alarms = Ok(Vec::new()),
            |o| setting(o, "setting log_statement", "ddl"),
            |o| setting(o, "extension pg_prewarm", "1.2"),
            // Half of the rows were written here: their blocks were never cold.
            |o| {
                relations(o)[0].blocks_read = 5_000;
                relations(o)[0].written_here = 0.5;
            },
            |o| {
                relations(o)[1].blocks = 1_024;
                relations(o)[1].blocks_read = 0;
            },
        ];
        for (index, change) in cases.into_iter().enumerate() {
            assert_eq!(failed(change), [""; 0], "case {index}");
        }
        assert_eq!(failed(|o| o.archive = Archive::OutOfScope), [""; 0]);
    }

    #[test]
    fn alarms_without_data_are_named() {
        let mut observed = observed();
        observed.functions[0].alarms.as_mut().expect("known")[0].state =
            "INSUFFICIENT_DATA".to_owned();
        let conditions = judge(&observed, 60);
        let alarms = conditions.iter().find(|condition| condition.condition == "alarms: new");
        let alarms = alarms.expect("a condition");
        assert!(alarms.value.contains("INSUFFICIENT_DATA: new-late"), "{alarms:?}");
    }
}
