//! The committed fixture streams are what the generator writes, and hold what streams hold.

use std::io::Read as _;
use std::path::Path;

use flate2::read::GzDecoder;
use serde_json::Value as Json;
use testkit::generate::{self, Day, LATER_LABEL, MESH, SMALL};
use testkit::records::Record;

fn committed(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path);
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut text = String::new();
    if path.extension().is_some_and(|extension| extension == "gz") {
        GzDecoder::new(bytes.as_slice()).read_to_string(&mut text).expect("gzip");
    } else {
        text = String::from_utf8(bytes).expect("text");
    }
    text
}

fn lines(records: &[Record]) -> String {
    let lines: Vec<&str> = records.iter().map(|record| record.json.as_str()).collect();
    lines.join("\n") + "\n"
}

#[test]
fn the_committed_fixtures_are_what_the_generator_writes() {
    for (folder, ending, day) in [("small", "", SMALL), ("mesh", ".gz", MESH)] {
        let (sessions, scans) = generate::day(day);
        for (name, records) in [("sessions", sessions), ("scans", scans)] {
            let path = format!("{folder}/{name}.jsonl{ending}");
            assert!(committed(&path) == lines(&records), "{path} is stale: run `make fixtures`");
        }
    }
    let (_, scans) = generate::day(SMALL);
    assert!(
        committed("small/event.json") == generate::event(&scans),
        "event.json is stale: run `make fixtures`"
    );
}

#[test]
fn the_small_fixture_holds_what_streams_hold() {
    let (sessions, scans) = generate::day(SMALL);
    let all: Vec<Json> = sessions
        .iter()
        .chain(&scans)
        .map(|record| serde_json::from_str(&record.json).expect("a record"))
        .collect();
    let any =
        |what: &str, holds: &dyn Fn(&Json) -> bool| assert!(all.iter().any(holds), "no {what}");
    let images = |record: &Json| record["dynamodb"].clone();
    any("update", &|record| record["eventName"] == "MODIFY");
    any("removal", &|record| {
        record["eventName"] == "REMOVE" && record.get("userIdentity").is_none()
    });
    any("removal by time to live", &|record| record["userIdentity"]["type"] == "Service");
    any("record without a creation time", &|record| {
        images(record).get("ApproximateCreationDateTime").is_none()
    });
    any("nested attribute", &|record| {
        !images(record)["NewImage"]["quality"]["M"]["residuals_mm"]["L"].is_null()
    });
    any("set", &|record| !images(record)["NewImage"]["quality"]["M"]["views"]["NS"].is_null());
    any("unknown binary", &|record| {
        !images(record)["NewImage"]["quality"]["M"]["thumbnail"]["B"].is_null()
    });
    any("number of 38 digits", &|record| {
        images(record)["NewImage"]["nonce"]["N"].as_str().is_some_and(|number| number.len() == 38)
    });
    any("NUL character", &|record| {
        images(record)["NewImage"]["device_model"]["S"] == "iPhone\u{0}"
    });
    any("later stream", &|record| {
        record["eventSourceARN"].as_str().is_some_and(|arn| arn.ends_with(LATER_LABEL))
    });
    for digits in [21, 22] {
        any("sequence number of 21 and of 22 digits", &|record| {
            images(record)["SequenceNumber"].as_str().is_some_and(|number| number.len() == digits)
        });
    }
    let malformed = sessions.iter().chain(&scans).filter(|record| record.malformed).count();
    assert!(malformed >= 5, "{malformed} malformed records");
    // A part that comes before its session, and one that is removed before it is written.
    let first = |records: &[Record], id: &str| {
        records.iter().position(|record| record.item.starts_with(id))
    };
    assert!(sessions.iter().any(|record| first(&scans, &record.item).is_some()));
    let removed_first = |records: &[Record]| {
        records.iter().enumerate().any(|(index, record)| {
            record.json.contains("\"REMOVE\"")
                && records[..index].iter().all(|earlier| earlier.item != record.item)
                && records[index..]
                    .iter()
                    .any(|later| later.item == record.item && later.json.contains("\"INSERT\""))
        })
    };
    assert!(removed_first(&sessions) || removed_first(&scans), "no removal before its insert");
    let repeated = scans.iter().enumerate().any(|(index, record)| {
        scans[..index].iter().any(|earlier| {
            earlier.sequence_number == record.sequence_number && earlier.label == record.label
        })
    });
    assert!(repeated, "no duplicate");
}

#[test]
fn the_mesh_fixture_carries_a_mesh_of_300_kb() {
    let (_, scans) = generate::day(MESH);
    assert!(scans.iter().any(|record| record.json.len() > 400_000));
}

#[test]
fn feet_are_those_of_adults() {
    let day = Day { seed: 5, sessions: 2000, malformed: false, mesh_bytes: 0 };
    let (_, scans) = generate::day(day);
    let mut lengths: Vec<f64> = Vec::new();
    let mut differences: Vec<f64> = Vec::new();
    let mut left: Option<(String, f64)> = None;
    let mut by_item: Vec<(String, f64)> = scans
        .iter()
        .filter_map(|record| {
            let json: Json = serde_json::from_str(&record.json).ok()?;
            let length =
                json["dynamodb"]["NewImage"]["foot_length_mm"]["N"].as_str()?.parse().ok()?;
            Some((record.item.clone(), length))
        })
        .collect();
    by_item.sort_by(|a, b| a.0.cmp(&b.0));
    by_item.dedup_by(|a, b| a.0 == b.0);
    for (item, length) in by_item {
        lengths.push(length);
        let (session_id, side) = item.split_once('/').expect("a side");
        if side == "left" {
            left = Some((session_id.to_owned(), length));
        } else if let Some((of, other)) = left.take()
            && of == session_id
        {
            differences.push((length - other).abs());
        }
    }
    assert!(lengths.iter().all(|length| (219.0..=302.0).contains(length)));
    let mean = lengths.iter().sum::<f64>() / lengths.len() as f64;
    assert!((255.0..265.0).contains(&mean), "{mean}");
    let difference = differences.iter().sum::<f64>() / differences.len() as f64;
    assert!((0.2..2.0).contains(&difference), "{difference}");
}
