//! A seeded day of foot measurements, as the two streams would carry it.
//!
//! Feet follow adults by their percentiles (p1 to p99, taken as mean ± 2.326 standard deviations of
//! a normal distribution and cut there); the feet of one person differ by tenths to a few mm.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use fastrand::Rng;
use serde_json::{Value as Json, json};

use crate::records::{Draft, LABEL, Record, Table, removal, scan, session};

/// 2026-11-22T00:00:00Z.
const MIDNIGHT: i64 = 1_795_305_600;
/// The label of the scans stream after it was enabled anew.
pub const LATER_LABEL: &str = "2026-11-22T18:00:00.000";
/// When that was.
const REENABLED_AT: i64 = MIDNIGHT + 18 * 3600;
/// Sequence numbers begin a little below a change of length: 21 digits, then 22.
const FIRST_SEQUENCE_NUMBER: u128 = 999_999_999_999_999_999_000;

/// Lowest and highest (p1, p99) of men and of women, in mm; instep height from mean and standard
/// deviation.
const FOOT: [(&str, [f64; 2], [f64; 2]); 6] = [
    ("foot_length_mm", [242.0, 302.0], [219.0, 276.0]),
    ("foot_breadth_mm", [91.0, 115.0], [82.0, 104.0]),
    ("ball_girth_mm", [224.0, 284.0], [203.0, 257.0]),
    ("heel_breadth_mm", [61.0, 87.0], [57.0, 81.0]),
    ("instep_height_mm", [56.8, 79.2], [51.2, 70.8]),
    ("arch_length_mm", [178.0, 225.0], [161.0, 204.0]),
];

const DEVICES: [&str; 4] = ["iPhone16,2", "iPhone15,4", "Pixel 9 Pro", "SM-S938B"];

/// What a day holds.
#[derive(Clone, Copy, Debug)]
pub struct Day {
    /// The same seed gives the same day.
    pub seed: u64,
    /// How many sessions.
    pub sessions: usize,
    /// Whether one record in some is malformed.
    pub malformed: bool,
    /// The size of the mesh that each scan carries, in bytes; 0 for none.
    pub mesh_bytes: usize,
}

/// Both streams, in the order in which they carry their records: sessions, scans.
#[must_use]
pub fn day(day: Day) -> (Vec<Record>, Vec<Record>) {
    let mut rng = Rng::with_seed(day.seed);
    let mut drafts = Vec::new();
    for index in 0..day.sessions {
        one_session(&mut rng, index, day, &mut drafts);
    }
    // A stream has the order of the changes of each item; ties keep theirs.
    drafts.sort_by_key(|(at, _)| *at);
    let mut streams = (Vec::new(), Vec::new());
    let mut next = [FIRST_SEQUENCE_NUMBER; 2];
    let mut spoilt = [0; 2];
    let mut reenabled = false;
    for (at, draft) in drafts {
        let of_scans = draft.table == Table::Scans;
        if of_scans && at >= REENABLED_AT && !reenabled {
            // The new stream begins anew, below the old one's numbers.
            reenabled = true;
            next[1] = FIRST_SEQUENCE_NUMBER / 7;
        }
        let label = if of_scans && reenabled { LATER_LABEL } else { LABEL };
        let next = &mut next[usize::from(of_scans)];
        *next += rng.u128(1..=(2_000 / day.sessions.clamp(1, 500)) as u128 + 7);
        let mut record = draft.place(label, *next);
        if day.malformed && rng.u32(..100) < 7 {
            let spoilt = &mut spoilt[usize::from(of_scans)];
            record = spoil(record, *spoilt);
            *spoilt += 1;
        }
        let stream = if of_scans { &mut streams.1 } else { &mut streams.0 };
        // At least once: some come twice, at once or some records later.
        if rng.u32(..100) < 5 {
            stream.push(record.clone());
        }
        stream.push(record);
        if rng.u32(..100) < 2
            && let Some(earlier) = stream.get(stream.len().saturating_sub(5)).cloned()
        {
            stream.push(earlier);
        }
    }
    streams
}

/// The same day, drawn together into the 20 hours that end at `now` (seconds since 1970): a live
/// stream holds nothing older than 24 hours. Nothing but the creation times changes.
///
/// # Panics
/// Where a record is no JSON object.
#[must_use]
pub fn recent(mut records: Vec<Record>, now: i64) -> Vec<Record> {
    for record in &mut records {
        let mut json: Json = serde_json::from_str(&record.json).expect("a record");
        if let Some(created) = json["dynamodb"]["ApproximateCreationDateTime"].as_i64() {
            let ago = (MIDNIGHT + 24 * 3600 - created).max(0) * 20 / 24;
            json["dynamodb"]["ApproximateCreationDateTime"] = json!(now - ago);
            record.json = json.to_string();
        }
    }
    records
}

/// Approximately normal, mean 0 and standard deviation 1.
fn normal(rng: &mut Rng) -> f64 {
    (0..12).map(|_| rng.f64()).sum::<f64>() - 6.0
}

struct Person {
    man: bool,
    /// How large this person is, in standard deviations.
    size: f64,
}

fn foot(rng: &mut Rng, person: &Person) -> Json {
    let mut image = json!({});
    for (name, men, women) in FOOT {
        let [low, high] = if person.man { men } else { women };
        let (mean, deviation) = (f64::midpoint(low, high), (high - low) / 4.652);
        // Feet of one person share a size; the two differ by about half a millimetre each way.
        let value = mean + deviation * 0.97 * person.size + 0.5 * normal(rng);
        image[name] = json!({ "N": format!("{:.1}", value.clamp(low, high)) });
    }
    image
}

fn time(seconds: i64) -> Json {
    let time = time::OffsetDateTime::from_unix_timestamp(seconds).expect("a time of that day");
    json!({ "S": time.format(&time::format_description::well_known::Rfc3339).expect("a time") })
}

fn text(text: &str) -> Json {
    json!({ "S": text })
}

fn one_session(rng: &mut Rng, index: usize, day: Day, drafts: &mut Vec<(i64, Draft)>) {
    let person = Person { man: rng.bool(), size: normal(rng).clamp(-2.4, 2.4) };
    let start = MIDNIGHT + rng.i64(0..23 * 3600);
    let id = format!("m-{:05}-{:08x}", index, rng.u32(..));
    let mut who = session(&id, &format!("user-{:04}", rng.usize(..=day.sessions.div_ceil(2))));
    {
        let image = who.image.as_mut().expect("an image");
        image["started_at"] = time(start);
        image["device_model"] = text(DEVICES[rng.usize(..DEVICES.len())]);
        image["os_version"] = text(["18.6", "19.1", "16"][rng.usize(..3)]);
        if rng.bool() {
            image["app_version"] = json!({ "S": "7.3.0" });
        }
        if rng.u32(..10) == 0 {
            image["consent"] = json!({ "M": { "research": { "BOOL": true }, "at": time(start), "scope": { "SS": ["share", "keep"] } } });
            image["nonce"] = json!({ "N": "12345678901234567890123456789012345678" });
        }
    }
    let scan_of = |rng: &mut Rng, side| {
        let mut scan = scan(&id, side, "0");
        let mut image = foot(rng, &person);
        image["scanned_at"] = time(start + rng.i64(20..300));
        for optional in ["heel_breadth_mm", "instep_height_mm", "arch_length_mm"] {
            if rng.u32(..10) == 0 {
                image.as_object_mut().expect("an image").remove(optional);
            }
        }
        if rng.u32(..12) == 0 {
            image["quality"] = json!({ "M": { "residuals_mm": { "L": [{ "N": "0.12" }, { "N": "0.07" }] }, "views": { "NS": ["12", "3"] }, "thumbnail": { "B": "iVBORw0KGgo=" }, "notes": { "NULL": true } } });
        }
        if day.mesh_bytes > 0 {
            image["mesh"] = json!({ "B": BASE64.encode(mesh(rng, day.mesh_bytes)) });
        }
        scan.image = Some(image);
        scan
    };
    // The three parts in any order: a scan can be there before its session.
    let left = scan_of(rng, "left");
    let right = scan_of(rng, "right");
    let mut parts = vec![who.clone(), left.clone(), right.clone()];
    let mut at = start;
    rng.shuffle(&mut parts);
    // Some persons stop after one foot.
    if rng.u32(..20) == 0 {
        parts.pop();
    }
    // A key that was there before the stream, removed and written anew.
    if rng.u32(..25) == 0 {
        parts.insert(0, removal(&parts[0]));
    }
    // A foot scanned again, a session corrected.
    if rng.u32(..6) == 0 {
        let mut again = if rng.bool() { scan_of(rng, "left") } else { scan_of(rng, "right") };
        again.modify = true;
        parts.push(again);
    }
    if rng.u32(..12) == 0 {
        let mut corrected = who.clone();
        corrected.modify = true;
        corrected.image.as_mut().expect("an image")["app_version"] = json!({ "S": "7.3.1" });
        parts.push(corrected);
    }
    // Removed by its user, or by time to live; at times, written once more.
    let fate = rng.u32(..30);
    if fate < 3 {
        for part in [&who, &left, &right] {
            let mut gone = removal(part);
            gone.expired = fate == 2;
            parts.push(gone);
        }
        if fate == 1 {
            parts.push(left.clone());
        }
    }
    for mut part in parts {
        at += rng.i64(0..90);
        part.created_at = (rng.u32(..50) != 0).then_some(at);
        drafts.push((at, part));
    }
}

/// A smooth closed surface of 16-bit coordinates. Its period of 384 bytes is a multiple of base64's
/// three, so that a committed fixture compresses to little.
fn mesh(rng: &mut Rng, bytes: usize) -> Vec<u8> {
    let phase = rng.f64();
    let coordinate = |index: usize| {
        let angle = (index % 192) as f64 / 192.0 * std::f64::consts::TAU + phase;
        #[expect(clippy::cast_possible_truncation, reason = "within ±20,000")]
        let value = (angle.sin() * 20_000.0) as i16;
        value.to_le_bytes()
    };
    (0..bytes.div_ceil(2)).flat_map(coordinate).take(bytes).collect()
}

/// The same record, no longer one that can apply; each time in another way.
fn spoil(mut record: Record, time: usize) -> Record {
    let mut json: Json = serde_json::from_str(&record.json).expect("a record");
    record.malformed = true;
    let dynamodb = &mut json["dynamodb"];
    let Some(image) = dynamodb.get_mut("NewImage").and_then(Json::as_object_mut) else {
        dynamodb["Keys"]["session_id"] = text("../escape");
        record.json = json.to_string();
        return record;
    };
    let mut set = |name: &str, value| drop(image.insert(name.to_owned(), value));
    match (record.table, time % 5) {
        // Valid for DynamoDB, and not for PostgreSQL.
        (Table::Sessions, 0) => set("device_model", text("iPhone\u{0}")),
        (Table::Sessions, 1) => set("started_at", text("yesterday")),
        (Table::Scans, 0) => set("foot_length_mm", json!({ "N": "1200.5" })),
        (Table::Scans, 1) => set("ball_girth_mm", text("243.1")),
        (_, 2) => set("weather", json!({ "Q": "rain" })),
        (Table::Sessions, 3) => drop(image.remove("user_id")),
        (Table::Scans, 3) => drop(image.remove("foot_breadth_mm")),
        _ => dynamodb["SequenceNumber"] = json!("not a number"),
    }
    record.json = json.to_string();
    record
}

/// The first ten records of a stream as one Lambda event, laid out for reading.
///
/// # Panics
/// Where a record is no JSON.
#[must_use]
pub fn event(records: &[Record]) -> String {
    let records: Vec<Json> = records
        .iter()
        .take(10)
        .map(|record| serde_json::from_str(&record.json).expect("JSON"))
        .collect();
    serde_json::to_string_pretty(&json!({ "Records": records })).expect("JSON") + "\n"
}

/// The small fixture in `tests/fixtures/small`, as its recipe in `make fixtures` says.
pub const SMALL: Day = Day { seed: 22, sessions: 40, malformed: true, mesh_bytes: 0 };

/// One session with meshes, in `tests/fixtures/mesh`.
pub const MESH: Day = Day { seed: 7, sessions: 1, malformed: false, mesh_bytes: 300_000 };
