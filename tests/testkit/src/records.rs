//! Stream records as Lambda delivers them.

use serde_json::{Value as Json, json};

/// The label of the streams in most tests.
pub const LABEL: &str = "2026-11-22T00:00:00.000";

/// A source table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// One item a session.
    Sessions,
    /// One item a session and side.
    Scans,
}

impl Table {
    /// The default name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sessions => "sessions",
            Self::Scans => "scans",
        }
    }
}

/// One record, and what the oracle needs to know of it.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its table.
    pub table: Table,
    /// `session_id`, or `session_id/side`.
    pub item: String,
    /// The stream's label.
    pub label: String,
    /// Its sequence number.
    pub sequence_number: u128,
    /// Whether it must be rejected.
    pub malformed: bool,
    /// Whether it is a removal by time to live.
    pub expired: bool,
    /// What arrives.
    pub json: String,
}

/// The ARN of a table's stream.
#[must_use]
pub fn arn(table: &str, label: &str) -> String {
    format!("arn:aws:dynamodb:eu-central-1:123456789012:table/{table}/stream/{label}")
}

/// A record in the making.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Its table.
    pub table: Table,
    /// The key's session.
    pub session_id: String,
    /// The key's side, for a scan.
    pub side: Option<&'static str>,
    /// The new image without its key; `None` for a removal.
    pub image: Option<Json>,
    /// INSERT or MODIFY, where there is an image.
    pub modify: bool,
    /// Seconds since 1970.
    pub created_at: Option<i64>,
    /// Removed by time to live.
    pub expired: bool,
}

impl Draft {
    /// The key of its item.
    #[must_use]
    pub fn key(&self) -> Json {
        let mut key = json!({ "session_id": { "S": self.session_id } });
        if let Some(side) = self.side {
            key["side"] = json!({ "S": side });
        }
        key
    }

    /// Its item, with its key.
    ///
    /// # Panics
    /// If it is a removal.
    #[must_use]
    pub fn item(&self) -> Json {
        let mut item = self.image.clone().expect("it is written");
        for (name, value) in self.key().as_object().into_iter().flatten() {
            item[name] = value.clone();
        }
        item
    }

    /// The record with its place in a stream.
    #[must_use]
    pub fn place(&self, label: &str, sequence_number: u128) -> Record {
        let keys = self.key();
        let mut images = json!({
            "Keys": keys,
            "SequenceNumber": format!("{sequence_number:021}"),
            "SizeBytes": 200,
            "StreamViewType": "NEW_IMAGE",
        });
        if let Some(created_at) = self.created_at {
            images["ApproximateCreationDateTime"] = json!(created_at);
        }
        if let Some(image) = &self.image {
            let mut image = image.clone();
            for (name, value) in keys.as_object().into_iter().flatten() {
                image[name] = value.clone();
            }
            images["NewImage"] = image;
        }
        let name = match (&self.image, self.modify) {
            (None, _) => "REMOVE",
            (Some(_), false) => "INSERT",
            (Some(_), true) => "MODIFY",
        };
        let mut record = json!({
            "eventID": format!("{}-{label}-{sequence_number}", self.table.name()),
            "eventName": name,
            "eventVersion": "1.1",
            "eventSource": "aws:dynamodb",
            "awsRegion": "eu-central-1",
            "eventSourceARN": arn(self.table.name(), label),
            "dynamodb": images,
        });
        if self.expired {
            record["userIdentity"] =
                json!({ "type": "Service", "principalId": "dynamodb.amazonaws.com" });
        }
        Record {
            table: self.table,
            item: self
                .side
                .map_or(self.session_id.clone(), |side| format!("{}/{side}", self.session_id)),
            label: label.to_owned(),
            sequence_number,
            malformed: false,
            expired: self.expired,
            json: record.to_string(),
        }
    }
}

/// A session's item, written.
#[must_use]
pub fn session(session_id: &str, user_id: &str) -> Draft {
    Draft {
        table: Table::Sessions,
        session_id: session_id.to_owned(),
        side: None,
        image: Some(json!({
            "user_id": { "S": user_id },
            "started_at": { "S": "2026-11-22T08:00:00Z" },
            "device_model": { "S": "iPhone16,2" },
        })),
        modify: false,
        created_at: Some(1_795_334_400),
        expired: false,
    }
}

/// A foot's item, written.
#[must_use]
pub fn scan(session_id: &str, side: &'static str, foot_length_mm: &str) -> Draft {
    Draft {
        table: Table::Scans,
        session_id: session_id.to_owned(),
        side: Some(side),
        image: Some(json!({
            "scanned_at": { "S": "2026-11-22T08:01:00Z" },
            "foot_length_mm": { "N": foot_length_mm },
            "foot_breadth_mm": { "N": "98.7" },
            "ball_girth_mm": { "N": "243.1" },
        })),
        modify: false,
        created_at: Some(1_795_334_460),
        expired: false,
    }
}

/// The removal of what a draft writes.
#[must_use]
pub fn removal(of: &Draft) -> Draft {
    Draft { image: None, ..of.clone() }
}
