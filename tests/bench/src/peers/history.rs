//! What arrives while wrong rows are counted.

use std::collections::HashMap;

use anyhow::Context as _;
use fastrand::Rng;
use serde_json::{Value as Json, json};
use testkit::records::{LABEL, Record, Table, arn, session};

/// After everything else of the day: 2026-11-23T00:30:00Z.
const EVENING: i64 = 1_795_393_800;

/// Records a batch.
pub(super) const BATCH: usize = 100;

/// What arrives, and what goes wrong meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum History {
    /// In order and once.
    InOrder,
    /// As at-least-once delivery may have it: some records come twice, some of them behind later
    /// ones.
    Duplicates,
    /// The batches come in any order: lanes at once, retries.
    Shuffled,
    /// After everything, the first quarter once more: a replay that stopped midway.
    StalePrefix,
    /// Every third batch: the function is killed at a random moment, and the batch comes again.
    Killed,
    /// A record that PostgreSQL refuses in every fifth batch.
    BadRecord,
    /// In every fifth batch the database is away for a second.
    Outage,
}

impl History {
    pub(super) const ALL: [Self; 7] = [
        Self::InOrder,
        Self::Duplicates,
        Self::Shuffled,
        Self::StalePrefix,
        Self::Killed,
        Self::BadRecord,
        Self::Outage,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::InOrder => "in order",
            Self::Duplicates => "duplicates",
            Self::Shuffled => "shuffled",
            Self::StalePrefix => "stale prefix",
            Self::Killed => "kill -9",
            Self::BadRecord => "bad record",
            Self::Outage => "outage",
        }
    }

    /// Whether something happens to the batch of this number.
    pub(super) fn strikes(self, batch: usize) -> bool {
        match self {
            Self::Killed => batch % 3 == 1,
            Self::BadRecord | Self::Outage => batch % 5 == 1,
            Self::InOrder | Self::Duplicates | Self::Shuffled | Self::StalePrefix => false,
        }
    }

    /// The batches, in the order in which they are delivered.
    pub(super) fn batches(self, delivered: &[Record]) -> Vec<Vec<Record>> {
        let records = match self {
            Self::Duplicates => delivered.to_vec(),
            _ => once(delivered),
        };
        let mut batches = by_stream(records)
            .iter()
            .flat_map(|stream| stream.chunks(BATCH))
            .map(<[Record]>::to_vec)
            .collect::<Vec<_>>();
        match self {
            Self::StalePrefix => batches.extend_from_within(..batches.len() / 4),
            Self::Shuffled => Rng::with_seed(5).shuffle(&mut batches),
            Self::BadRecord => {
                let struck = batches.iter_mut().enumerate().filter(|(at, _)| self.strikes(*at));
                for (at, batch) in struck {
                    // In its middle: some of its neighbours are before it, some behind it.
                    batch.insert(batch.len() / 2, bad(at));
                }
            }
            Self::InOrder | Self::Duplicates | Self::Killed | Self::Outage => {}
        }
        batches
    }
}

/// The records of each stream. Lambda's event is of one stream, and only so does a sequence number
/// say where to go on.
fn by_stream(records: Vec<Record>) -> Vec<Vec<Record>> {
    let mut streams: Vec<Vec<Record>> = Vec::new();
    for record in records {
        let of_its_stream = |stream: &&mut Vec<Record>| {
            let first = stream.first();
            first.is_some_and(|first| (first.table, &first.label) == (record.table, &record.label))
        };
        match streams.iter_mut().find(of_its_stream) {
            Some(stream) => stream.push(record),
            None => streams.push(vec![record]),
        }
    }
    streams
}

/// A record of a session of its own that PostgreSQL refuses: a text with a NUL.
fn bad(number: usize) -> Record {
    let mut draft = session(&format!("bad-{number}"), "user");
    if let Some(image) = &mut draft.image {
        image["device_model"] = json!({ "S": "iPhone\u{0}" });
    }
    Record { malformed: true, ..draft.place(LABEL, 1 + number as u128) }
}

/// Without what came before: each item's records in order and once.
pub(super) fn once(delivered: &[Record]) -> Vec<Record> {
    let mut newest = HashMap::new();
    let mut once = Vec::new();
    for record in delivered {
        let place = (&record.label, record.sequence_number);
        if newest.get(&record.item).is_none_or(|before| *before < place) {
            newest.insert(&record.item, place);
            once.push(record.clone());
        }
    }
    once
}

/// The records, and behind them those of the evening: every fourth item that is there changes once
/// more, so that what comes again from earlier is stale.
///
/// # Errors
/// If one is no JSON.
pub(super) fn with_evening(mut records: Vec<Record>) -> anyhow::Result<Vec<Record>> {
    let mut items = Vec::new();
    let mut newest: HashMap<String, Record> = HashMap::new();
    let mut ends: HashMap<Table, (String, u128)> = HashMap::new();
    for record in &records {
        let place = (record.label.clone(), record.sequence_number);
        let end = ends.entry(record.table).or_insert_with(|| place.clone());
        *end = place.clone().max(end.clone());
        let known = newest.get(&record.item);
        if known.is_none() {
            items.push(record.item.clone());
        }
        if known.is_none_or(|known| (known.label.clone(), known.sequence_number) < place) {
            newest.insert(record.item.clone(), record.clone());
        }
    }
    for item in items.iter().step_by(4) {
        let mut record = newest[item].clone();
        let mut json: Json = serde_json::from_str(&record.json)?;
        let Some(image) = json["dynamodb"].get_mut("NewImage") else { continue };
        match record.table {
            Table::Sessions => image["app_version"] = json!({ "S": "8.0.0" }),
            Table::Scans => image["foot_length_mm"] = json!({ "N": "251.7" }),
        }
        let end = ends.get_mut(&record.table).context("a stream has an end")?;
        end.1 += 1;
        (record.label, record.sequence_number) = end.clone();
        json["eventName"] = json!("MODIFY");
        json["eventID"] = json!(format!("evening-{item}"));
        json["eventSourceARN"] = json!(arn(record.table.name(), &record.label));
        json["dynamodb"]["SequenceNumber"] = json!(format!("{:021}", record.sequence_number));
        json["dynamodb"]["ApproximateCreationDateTime"] = json!(EVENING);
        record.json = json.to_string();
        records.push(record);
    }
    Ok(records)
}

/// The same records, each with a creation time, as DynamoDB's have: one that lacks it gets that of
/// the record before it.
///
/// # Errors
/// If one is no JSON.
pub(super) fn with_times(records: Vec<Record>) -> anyhow::Result<Vec<Record>> {
    let mut given: HashMap<(Table, String, u128), String> = HashMap::new();
    let mut last = json!(0);
    let mut timed = Vec::with_capacity(records.len());
    for mut record in records {
        let mut json: Json = serde_json::from_str(&record.json)?;
        let time = &mut json["dynamodb"]["ApproximateCreationDateTime"];
        if time.is_null() {
            *time = last.clone();
            let place = (record.table, record.label.clone(), record.sequence_number);
            // A duplicate is the same record.
            record.json.clone_from(given.entry(place).or_insert_with(|| json.to_string()));
        } else {
            last = time.clone();
        }
        timed.push(record);
    }
    Ok(timed)
}
