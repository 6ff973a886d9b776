//! DynamoDB Local with its real streams: what it gives, and that a replay of it comes to the
//! tables' history and to their present content.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};
use testkit::dynamodb::{DynamoDb, Kind, Write};
use testkit::emulator::binary;
use testkit::oracle::{self, Rows};
use testkit::records::{Draft, LABEL, Record, Table, scan, session};
use testkit::services::{Stores, service};

fn small_session(number: usize, generation: usize) -> Json {
    let id = format!("session-{number:02}");
    json!({"session_id": {"S": id}, "generation": {"N": generation.to_string()}})
}

fn small_scan(number: usize, generation: usize) -> Json {
    let mut item = small_session(number, generation);
    item["side"] = json!({"S": if number.is_multiple_of(2) { "left" } else { "right" }});
    item
}

/// Keys and images of the records, in each key's order.
fn history(records: &[Json]) -> BTreeMap<String, Vec<(String, Json)>> {
    let mut history = BTreeMap::<_, Vec<_>>::new();
    for record in records {
        let change = &record["dynamodb"];
        let name = record["eventName"].as_str().expect("a name").to_owned();
        let image = change["NewImage"]["generation"]["N"].clone();
        history.entry(change["Keys"].to_string()).or_default().push((name, image));
    }
    history
}

#[tokio::test]
async fn shards_close_and_their_children_continue() {
    let dynamodb = DynamoDb::at(&service("DYNAMODB_LOCAL_URL"));
    let suffix = format!("{:016x}", fastrand::u64(..));
    let sessions = format!("sessions-{suffix}");
    let scans = format!("scans-{suffix}");
    let count = 40;
    let arns = [
        dynamodb.create_table(&sessions, Kind::Sessions, "NEW_AND_OLD_IMAGES").await,
        dynamodb.create_table(&scans, Kind::Scans, "NEW_IMAGE").await,
    ];
    let streams = [arns[0].as_str(), arns[1].as_str()];

    for generation in 0..3 {
        if generation > 0 {
            dynamodb.roll_shards(&streams).await;
        }
        let puts = |item: fn(usize, usize) -> Json| -> Vec<Write> {
            (1..count).map(|number| Write::Put(item(number, generation))).collect()
        };
        dynamodb.write_all(&sessions, &puts(small_session)).await;
        dynamodb.write_all(&scans, &puts(small_scan)).await;
        dynamodb.put_item(&sessions, &small_session(0, generation)).await;
        dynamodb.put_item(&scans, &small_scan(0, generation)).await;
    }
    dynamodb.delete_item(&sessions, &json!({"session_id": {"S": "session-00"}})).await;
    assert_eq!(dynamodb.scan(&sessions).await.len(), count - 1);
    assert_eq!(dynamodb.scan(&scans).await.len(), count);

    for (arn, deleted) in streams.iter().zip([1, 0]) {
        let shards = dynamodb.shards(arn).await;
        // Another test's roll closes shards of this one too.
        assert!(shards.len() >= 3, "three generations: {shards:?}");
        let mut all = Vec::new();
        for (place, shard) in shards.iter().enumerate() {
            let id = shard["ShardId"].as_str().expect("an id");
            let open = place + 1 == shards.len();
            let parent =
                place.checked_sub(1).map_or(&Json::Null, |parent| &shards[parent]["ShardId"]);
            assert_eq!(&shard["ParentShardId"], parent);
            assert_eq!(shard["SequenceNumberRange"]["EndingSequenceNumber"].is_null(), open);
            let (records, ended) = dynamodb.records(arn, id).await;
            assert_eq!(ended, !open, "only a closed shard ends");
            all.extend(records);
        }
        assert_eq!(all.len(), 3 * count + deleted);

        let numbers: Vec<u128> = all
            .iter()
            .map(|record| record["dynamodb"]["SequenceNumber"].as_str().expect("a number"))
            .map(|number| number.parse().expect("digits"))
            .collect();
        assert!(numbers.is_sorted_by(|earlier, later| earlier < later), "sequence numbers grow");

        let history = history(&all);
        assert_eq!(history.len(), count);
        for (key, changes) in history {
            let change = |name: &str, generation: &str| (name.to_owned(), json!(generation));
            let mut expected =
                vec![change("INSERT", "0"), change("MODIFY", "1"), change("MODIFY", "2")];
            if deleted == 1 && key.contains("session-00") {
                expected.push(("REMOVE".to_owned(), Json::Null));
            }
            assert_eq!(changes, expected, "{key}");
        }
    }
}

/// The change records of a stream, as Lambda would deliver them.
async fn stream_records(dynamodb: &DynamoDb, arn: &str, table: Table) -> Vec<Record> {
    let (_, label) = arn.split_once("/stream/").expect("a stream's ARN");
    let mut records = Vec::new();
    for shard in dynamodb.shards(arn).await {
        let (of_shard, _) = dynamodb.records(arn, shard["ShardId"].as_str().expect("an id")).await;
        for mut json in of_shard {
            json["eventSourceARN"] = json!(arn);
            let keys = &json["dynamodb"]["Keys"];
            let session = keys["session_id"]["S"].as_str().expect("a key");
            let side =
                keys["side"]["S"].as_str().map(|side| format!("/{side}")).unwrap_or_default();
            let number = json["dynamodb"]["SequenceNumber"].as_str().expect("a number");
            // Whole seconds, which may come as a float.
            let created = &json["dynamodb"]["ApproximateCreationDateTime"];
            let created =
                created.to_string().split('.').next().and_then(|whole| whole.parse::<i64>().ok());
            records.push(Record {
                table,
                item: format!("{session}{side}"),
                label: label.to_owned(),
                sequence_number: number.parse().expect("digits"),
                malformed: false,
                expired: false,
                json: {
                    json["dynamodb"]["ApproximateCreationDateTime"] = json!(created);
                    json.to_string()
                },
            });
        }
    }
    records
}

/// The rows that the tables' present content makes, without what only a history knows.
fn rows_of_content(sessions: &[Json], scans: &[Json]) -> Rows {
    let record = |item: &Json| {
        let id = item["session_id"]["S"].as_str().expect("a key");
        let side = item["side"]["S"].as_str();
        let draft = Draft {
            table: if side.is_some() { Table::Scans } else { Table::Sessions },
            session_id: id.to_owned(),
            side: side.map(|side| if side == "left" { "left" } else { "right" }),
            image: Some(item.clone()),
            modify: false,
            created_at: None,
            expired: false,
        };
        draft.place(LABEL, 1)
    };
    let records: Vec<Record> = sessions.iter().chain(scans).map(record).collect();
    without_history(oracle::rows(&records))
}

/// Only rows that have a part, without their versions and times of change.
fn without_history(mut rows: Rows) -> Rows {
    for row in rows.values_mut() {
        let columns = row.as_object_mut().expect("a row");
        columns.retain(|name, _| !name.ends_with("_version") && !name.ends_with("_changed_at"));
    }
    let parts = ["user_id", "left_scanned_at", "right_scanned_at"];
    rows.retain(|_, row| parts.iter().any(|part| !row[*part].is_null()));
    rows
}

/// A day of sessions in two real tables: written, changed and removed over three generations of
/// shards.
#[tokio::test(flavor = "multi_thread")]
async fn two_tables_over_generations_of_shards_end_in_the_fold_of_their_history() {
    const SESSIONS: usize = 5_000;
    let dynamodb = DynamoDb::at(&service("DYNAMODB_LOCAL_URL"));
    let stores = Stores::fresh().await;
    stores.forbid_going_back().await;
    let suffix = format!("{:016x}", fastrand::u64(..));
    let tables = [format!("sessions-{suffix}"), format!("scans-{suffix}")];
    let arns = [
        dynamodb.create_table(&tables[0], Kind::Sessions, "NEW_AND_OLD_IMAGES").await,
        dynamodb.create_table(&tables[1], Kind::Scans, "NEW_IMAGE").await,
    ];
    let streams = [arns[0].as_str(), arns[1].as_str()];
    let mut rng = fastrand::Rng::with_seed(3);
    for generation in 0..3 {
        if generation > 0 {
            dynamodb.roll_shards(&streams).await;
        }
        let mut writes = [Vec::new(), Vec::new()];
        for number in 0..SESSIONS {
            let id = format!("session-{number:05}");
            let length = format!("{}.{generation}", rng.u32(200..300));
            for draft in [
                session(&id, &format!("user-{generation}")),
                scan(&id, "left", &length),
                scan(&id, "right", &length),
            ] {
                let table = usize::from(draft.table == Table::Scans);
                // Everything is written at first; later some is changed, some removed, some comes
                // back.
                match if generation == 0 { 0 } else { rng.u32(..10) } {
                    0..=2 => writes[table].push(Write::Put(draft.item())),
                    3 => writes[table].push(Write::Delete(draft.key())),
                    _ => {}
                }
            }
        }
        for (table, writes) in tables.iter().zip(&writes) {
            dynamodb.write_all(table, writes).await;
        }
    }

    let mut command = tokio::process::Command::new(binary("backfill"));
    command
        .args(["stream", "--idle-seconds", "1", "--first-record-seconds", "1"])
        // The clock of the streams is hours ahead: so must be that of who reads them.
        .env("LD_PRELOAD", service("DYNAMODB_LOCAL_PRELOAD"))
        .env("DATABASE_URL", &stores.database_url)
        .env("SESSIONS_TABLE", &tables[0])
        .env("SCANS_TABLE", &tables[1])
        .env("AWS_ENDPOINT_URL_DYNAMODB_STREAMS", service("DYNAMODB_LOCAL_URL"));
    let run = command.output().await.expect("backfill runs");
    assert!(run.status.success(), "{run:?}");
    let mut records = Vec::new();
    for (arn, table) in streams.iter().zip([Table::Sessions, Table::Scans]) {
        assert!(dynamodb.shards(arn).await.len() >= 3, "three generations");
        records.extend(stream_records(&dynamodb, arn, table).await);
    }
    assert!(records.len() > 3 * SESSIONS, "{}", records.len());
    let rows = stores.rows().await;
    assert_eq!(rows, oracle::rows(&records));
    let (sessions, scans) = (dynamodb.scan(&tables[0]).await, dynamodb.scan(&tables[1]).await);
    assert!(sessions.len() < SESSIONS, "some are removed");
    assert_eq!(without_history(rows), rows_of_content(&sessions, &scans));

    // Again: nothing is left to do.
    let places = stores.row_places().await;
    let again = command.output().await.expect("backfill runs");
    assert!(again.status.success(), "{again:?}");
    assert_eq!(stores.row_places().await, places);
}
