//! Two tables of any size behind DynamoDB's API, to measure a scan against, and to see that a very
//! large one ends. Items follow from their numbers, so the memory is constant; there is no write.
//!
//! AWS JSON 1.0, with `Scan`, `BatchGetItem`, `DescribeTable` and `DescribeTimeToLive`: their
//! pages, limits and consumed capacity are those that the API reference documents. No test of
//! what a row holds runs on it: DynamoDB Local serves those.

mod items;

use std::ops::Range;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use serde_json::{Value as Json, json};

pub use items::{Item, Items};

use crate::http;
use crate::records::Table;

/// The most bytes of items that a page of a Scan returns.
const PAGE_BYTES: usize = 1 << 20;
/// The most bytes of items that `BatchGetItem` returns.
const BATCH_BYTES: usize = 16 << 20;
/// A consistent read takes one unit per 4 KB.
const UNIT_BYTES: usize = 4096;
/// The size of all items is estimated from this many of them.
const SAMPLE: u64 = 100;

type Answer = Result<String, &'static str>;

/// Serves these items on loopback, and gives the URL.
///
/// # Panics
/// If no port can be had.
pub async fn start(items: Items) -> String {
    http::serve(move |request| answer(items, request)).await
}

async fn answer(items: Items, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let target = request.headers().get("x-amz-target").and_then(|target| target.to_str().ok());
    let operation = target.and_then(|target| target.split_once('.')).map(|(_, name)| name);
    let operation = operation.unwrap_or_default().to_owned();
    let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes);
    let body: Json = serde_json::from_slice(&body.unwrap_or_default()).unwrap_or_default();
    let (status, text) = match items.answer(&operation, &body) {
        Ok(text) => (200, text),
        Err(name) => {
            let kind = format!("com.amazonaws.dynamodb.v20120810#{name}");
            (400, json!({ "__type": kind, "message": operation }).to_string())
        }
    };
    let response =
        Response::builder().status(status).header("content-type", "application/x-amz-json-1.0");
    response.body(Full::from(text)).expect("a response")
}

fn table(name: &str) -> Result<Table, &'static str> {
    let mut tables = [Table::Sessions, Table::Scans].into_iter();
    tables.find(|table| table.name() == name).ok_or("ResourceNotFoundException")
}

/// The units for this many bytes that are read at once. A read that finds nothing takes one, too.
fn units(bytes: usize, consistent: bool) -> f64 {
    let whole = u32::try_from(bytes.div_ceil(UNIT_BYTES).max(1)).expect("units of one answer");
    f64::from(whole) * if consistent { 1.0 } else { 0.5 }
}

fn is_consistent(request: &Json) -> bool {
    request["ConsistentRead"].as_bool().unwrap_or(false)
}

impl Items {
    fn answer(&self, operation: &str, body: &Json) -> Answer {
        match operation {
            "Scan" => self.scan(body),
            "BatchGetItem" => self.batch_get_item(body),
            "DescribeTable" => self.describe_table(body),
            "DescribeTimeToLive" => {
                let none = json!({ "TimeToLiveStatus": "DISABLED" });
                Ok(json!({ "TimeToLiveDescription": none }).to_string())
            }
            _ => Err("UnknownOperationException"),
        }
    }

    /// The places of a segment, after the key at which the page before it ended.
    fn places_of(&self, table: Table, body: &Json) -> Result<Range<u64>, &'static str> {
        let number = body["Segment"].as_u64().unwrap_or(0);
        let of = body["TotalSegments"].as_u64().unwrap_or(1);
        if number >= of {
            return Err("ValidationException");
        }
        let start_of = |number: u64| self.places(table) * number / of;
        let mut places = start_of(number)..start_of(number + 1);
        if let Some(key) = body.get("ExclusiveStartKey") {
            places.start = self.place(table, key).ok_or("ValidationException")? + 1;
        }
        Ok(places)
    }

    fn scan(&self, body: &Json) -> Answer {
        let name = body["TableName"].as_str().unwrap_or_default();
        let table = table(name)?;
        let places = self.places_of(table, body)?;
        let (mut bytes, mut last) = (0, None);
        let mut page: Vec<String> = Vec::new();
        for item in places.filter_map(|place| self.at(table, place)) {
            bytes += item.bytes;
            page.push(item.json);
            if bytes >= PAGE_BYTES {
                last = Some(item.key);
                break;
            }
        }
        let units = units(bytes, is_consistent(body));
        let last = last.map(|key| format!(r#","LastEvaluatedKey":{key}"#)).unwrap_or_default();
        Ok(format!(
            r#"{{"Count":{0},"ScannedCount":{0},"Items":[{1}]{last},"ConsumedCapacity":{2}}}"#,
            page.len(),
            page.join(","),
            json!({ "TableName": name, "CapacityUnits": units }),
        ))
    }

    fn batch_get_item(&self, body: &Json) -> Answer {
        let requests = body["RequestItems"].as_object().ok_or("ValidationException")?;
        let (mut responses, mut consumed) = (Vec::new(), Vec::new());
        let (mut bytes, mut unprocessed) = (0, serde_json::Map::new());
        for (name, request) in requests {
            let table = table(name)?;
            let (mut found, mut rest, mut of_table) = (Vec::new(), Vec::new(), 0.0);
            for key in request["Keys"].as_array().into_iter().flatten() {
                let place = self.place(table, key);
                let item = place.and_then(|place| self.at(table, place));
                let size = item.as_ref().map_or(0, |item| item.bytes);
                if bytes > 0 && bytes + size > BATCH_BYTES {
                    rest.push(key.clone());
                    continue;
                }
                bytes += size;
                of_table += units(size, is_consistent(request));
                // Backfill asks for the key alone or for all.
                let keys_only = request.get("ProjectionExpression").is_some();
                found.extend(item.map(|item| if keys_only { item.key } else { item.json }));
            }
            responses.push(format!("{}:[{}]", json!(name), found.join(",")));
            consumed.push(json!({ "TableName": name, "CapacityUnits": of_table }));
            if !rest.is_empty() {
                let mut request = request.clone();
                request["Keys"] = rest.into();
                unprocessed.insert(name.clone(), request);
            }
        }
        Ok(format!(
            r#"{{"Responses":{{{}}},"UnprocessedKeys":{},"ConsumedCapacity":{}}}"#,
            responses.join(","),
            Json::from(unprocessed),
            Json::from(consumed),
        ))
    }

    fn describe_table(&self, body: &Json) -> Answer {
        let name = body["TableName"].as_str().unwrap_or_default();
        let table = table(name)?;
        let places = self.places(table);
        let sample = (0..places.min(SAMPLE)).filter_map(|place| self.at(table, place));
        let sample = sample.map(|item| item.bytes as u64).sum::<u64>();
        let bytes = sample * places / places.clamp(1, SAMPLE);
        let description =
            json!({ "TableName": name, "ItemCount": places, "TableSizeBytes": bytes });
        Ok(json!({ "Table": description }).to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value as Json, json};

    use super::{Items, PAGE_BYTES, UNIT_BYTES, table};
    use crate::records::Table;

    const ITEMS: Items = Items { sessions: 1100, mesh_bytes: 4800 };

    fn answer(items: Items, operation: &str, body: &Json) -> Json {
        serde_json::from_str(&items.answer(operation, body).expect("an answer")).expect("JSON")
    }

    /// All keys of a table, by all pages of all segments, and the units that they took.
    fn scanned(name: &str, segments: u64, consistent: bool) -> (Vec<Json>, f64) {
        let (mut keys, mut units) = (Vec::new(), 0.0);
        for segment in 0..segments {
            let mut body = json!({ "TableName": name, "Segment": segment,
                "TotalSegments": segments, "ConsistentRead": consistent });
            loop {
                let page = answer(ITEMS, "Scan", &body);
                for item in page["Items"].as_array().expect("items") {
                    keys.push(json!({ "session_id": item["session_id"], "side": item["side"] }));
                }
                units += page["ConsumedCapacity"]["CapacityUnits"].as_f64().expect("units");
                let Some(last) = page.get("LastEvaluatedKey") else { break };
                body["ExclusiveStartKey"] = last.clone();
            }
        }
        (keys, units)
    }

    #[test]
    fn a_scan_gives_each_item_once_and_takes_the_units_of_its_bytes() {
        for (name, items) in [("sessions", 1099), ("scans", 2198)] {
            let of = table(name).expect("a table");
            let all = (0..ITEMS.places(of)).filter_map(|place| ITEMS.at(of, place));
            let bytes: usize = all.map(|item| item.bytes).sum();
            for segments in [1, 3, 7] {
                let (keys, units) = scanned(name, segments, true);
                let distinct: BTreeSet<String> = keys.iter().map(Json::to_string).collect();
                assert_eq!((keys.len(), distinct.len()), (items, items), "{name} {segments}");
                // A page takes at most one unit more than its bytes.
                let pages = bytes / PAGE_BYTES + usize::try_from(segments).expect("few");
                let least = bytes.div_ceil(UNIT_BYTES);
                assert!((least as f64..=(least + pages) as f64).contains(&units), "{name} {units}");
                let (_, half) = scanned(name, segments, false);
                assert!((half * 2.0 - units).abs() < f64::EPSILON, "{half}, not half of {units}");
            }
        }
    }

    #[test]
    fn items_come_by_key_with_a_unit_per_4_kb_of_each_and_16_mb_at_most() {
        let (keys, _) = scanned("scans", 1, true);
        let body = |items: Items, keys: &[Json]| {
            let scans = json!({ "Keys": keys, "ConsistentRead": true });
            answer(items, "BatchGetItem", &json!({ "RequestItems": { "scans": scans } }))
        };
        let gone = ITEMS.at(Table::Scans, 999);
        assert!(gone.is_none(), "session 500 was removed");
        let some = body(ITEMS, &[&keys[..3], &[json!({ "session_id": { "S": "x-1" } })]].concat());
        assert_eq!(some["Responses"]["scans"].as_array().map(Vec::len), Some(3));
        // Two units for each of three items, and one for the one that is not there.
        assert_eq!(some["ConsumedCapacity"][0]["CapacityUnits"].as_f64(), Some(7.0));
        assert_eq!(some["UnprocessedKeys"], json!({}));

        let large = Items { mesh_bytes: 384_000, ..ITEMS };
        let page = body(large, &keys[..100]);
        assert_eq!(page["Responses"]["scans"].as_array().map(Vec::len), Some(43));
        let rest = &page["UnprocessedKeys"]["scans"];
        assert_eq!(rest["Keys"].as_array().map(Vec::len), Some(57));
        assert_eq!(rest["ConsistentRead"], true);
    }
}
