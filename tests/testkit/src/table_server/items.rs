//! The items that the server answers with. Each follows from the number of its session, so none is
//! stored, and `scripts/measure-repair` makes the rows beside them by the same rules in SQL.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use md5::{Digest as _, Md5};
use serde_json::Value as Json;

use crate::records::Table;

/// A mesh repeats 16 bytes, and its base64 repeats after this many.
const MESH_STEP: usize = 48;

/// The two tables.
#[derive(Clone, Copy, Debug)]
pub struct Items {
    /// How many sessions are numbered, from 1 on.
    pub sessions: u64,
    /// The bytes of each scan's mesh; what is over a multiple of 48 is left out.
    pub mesh_bytes: usize,
}

/// An item in DynamoDB's JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// All of it.
    pub json: String,
    /// Its key alone.
    pub key: String,
    /// Its size as DynamoDB counts it (Developer Guide, "DynamoDB item sizes and formats").
    pub bytes: usize,
}

/// Adds up an item.
struct Builder {
    json: String,
    bytes: usize,
}

impl Builder {
    fn add(&mut self, name: &str, kind: char, value: &str, bytes: usize) {
        let comma = if self.json.len() > 1 { "," } else { "" };
        write!(self.json, r#"{comma}"{name}":{{"{kind}":"{value}"}}"#).expect("a string takes all");
        self.bytes += name.len() + bytes;
    }

    fn text(&mut self, name: &str, value: &str) {
        self.add(name, 'S', value, value.len());
    }

    fn number(&mut self, name: &str, value: &str) {
        let digits = value.bytes().filter(u8::is_ascii_digit).count();
        self.add(name, 'N', value, digits.div_ceil(2) + 1);
    }
}

impl Items {
    /// How many places a table has. Some hold no item.
    #[must_use]
    pub fn places(&self, table: Table) -> u64 {
        match table {
            Table::Sessions => self.sessions,
            Table::Scans => self.sessions * 2,
        }
    }

    /// The item at a place, which counts from 0; `None` if it was removed.
    #[must_use]
    pub fn at(&self, table: Table, place: u64) -> Option<Item> {
        if place >= self.places(table) {
            return None;
        }
        let (number, side) = match table {
            Table::Sessions => (place + 1, None),
            Table::Scans => (place / 2 + 1, Some(["left", "right"][usize::from(place % 2 == 1)])),
        };
        // Rows that the tables have removed, a thousandth.
        if number % 1000 == 500 {
            return None;
        }
        let digest = Md5::digest(number.to_string());
        let mut item = Builder { json: "{".to_owned(), bytes: 0 };
        item.text("session_id", &session_id(&digest, number));
        if let Some(side) = side {
            item.text("side", side);
        }
        let key = format!("{}}}", item.json);
        match side {
            None => add_session(&mut item, number),
            Some(side) => self.add_scan(&mut item, number, side, &digest),
        }
        Some(Item { json: item.json + "}", key, bytes: item.bytes })
    }

    fn add_scan(&self, item: &mut Builder, number: u64, side: &str, digest: &[u8]) {
        // A part in 125 has changed since its row was written.
        let changed = number % 125 == if side == "left" { 42 } else { 84 };
        let tenths = 2453 + number % 100 + if changed { 1000 } else { 0 };
        item.text("scanned_at", "2026-11-22T08:00:00Z");
        item.number("foot_length_mm", &format!("{}.{}", tenths / 10, tenths % 10));
        item.number("foot_breadth_mm", "98.7");
        item.number("ball_girth_mm", "243.1");
        let steps = self.mesh_bytes / MESH_STEP;
        let mesh = BASE64_STANDARD.encode(digest.repeat(3)).repeat(steps);
        item.add("mesh", 'B', &mesh, steps * MESH_STEP);
    }

    /// The place that a key names.
    #[must_use]
    pub fn place(&self, table: Table, key: &Json) -> Option<u64> {
        let id = key["session_id"]["S"].as_str()?;
        let number: u64 = id.split_once('-')?.1.parse().ok()?;
        let is_ours = session_id(&Md5::digest(number.to_string()), number) == id;
        let place = number.checked_sub(1).filter(|place| is_ours && *place < self.sessions)?;
        match table {
            Table::Sessions => Some(place),
            Table::Scans => Some(place * 2 + u64::from(key["side"]["S"].as_str()? == "right")),
        }
    }
}

fn add_session(item: &mut Builder, number: u64) {
    item.text("user_id", &format!("user-{number}"));
    // A part in 125 has changed since its row was written.
    item.text("device_model", if number % 125 == 1 { "iPhone18,1" } else { "iPhone17,1" });
    item.text("started_at", "2026-11-22T08:00:00Z");
}

/// Its order is not that of the numbers, as the order of a Scan is not that of the keys.
fn session_id(digest: &[u8], number: u64) -> String {
    let start = digest[..4].iter().fold(0, |start, byte| start << 8 | u32::from(*byte));
    format!("{start:08x}-{number}")
}
