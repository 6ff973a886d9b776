//! What an object of a bucket of failures holds: the keys of its records, and what is wrong with
//! it. Pure.

use std::collections::HashSet;

use projector::change::{self, Decoded, Tables, place_of};

use crate::documents::document::{Extractor, Taken};
use crate::documents::values::{Found, Values};
use crate::items::{Fault, Key};

/// At most this many problems of an object are named.
const NAMED: usize = 5;

/// A record that names no part: it can only be kept.
#[derive(Debug)]
pub(super) struct WithoutKey {
    /// Counted from 0, among all records of the object.
    pub(super) number: u64,
    pub(super) record: Vec<u8>,
    pub(super) fault: Fault,
}

/// The records of an object. Their images are not kept: only what they name is read again.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// The parts that they name, each once, with the number of the first record that names it.
    pub(super) keys: Vec<(Key, u64)>,
    pub(super) without_key: Vec<WithoutKey>,
    pub(super) count: u64,
    problems: Vec<String>,
    other_problems: u64,
}

impl Records {
    /// Reads an object. A problem holds up no record.
    pub(super) fn of(object: &[u8], tables: &Tables) -> Self {
        let extractor = Extractor { tables: tables.clone(), stream_arn: None };
        let (mut records, mut seen) = (Self::default(), HashSet::new());
        let mut values = Values::new(object);
        let mut more = true;
        while more {
            more = values.advance(&mut |found| match found {
                Found::Broken(broken) => {
                    records.add_problem(format!("{}: {}", broken.place, broken.fault));
                }
                Found::Value(value) => {
                    let mut taken = Taken::default();
                    extractor.take(value.text, &value.outline, &mut taken);
                    for (offset, refusal) in taken.refused {
                        records.add_problem(format!("{}: {refusal}", value.place(offset)));
                    }
                    if !taken.records.is_empty() {
                        records.add_problem(format!(
                            "{}: records that are not in a batch that Lambda gave up on \
                             (DDBStreamBatchInfo)",
                            value.place(0)
                        ));
                    }
                    for record in taken.late {
                        records.add(record, tables, &mut seen);
                    }
                }
            });
        }
        if records.count == 0 && records.problems.is_empty() {
            records.add_problem("it is empty".to_owned());
        }
        records
    }

    fn add(&mut self, record: Vec<u8>, tables: &Tables, seen: &mut HashSet<Key>) {
        let number = self.count;
        let key = if let Some(place) = place_of(&record, tables) {
            (place.part, place.session_id)
        } else {
            match change::decode(&record, tables) {
                Ok(Decoded::Change(change)) => (change.part, change.session_id),
                Ok(Decoded::Malformed(malformed)) => {
                    self.count += 1;
                    let fault = Fault::from(malformed);
                    return self.without_key.push(WithoutKey { number, record, fault });
                }
                Err(misconfigured) => return self.add_problem(misconfigured.to_string()),
            }
        };
        self.count += 1;
        if seen.insert(key.clone()) {
            self.keys.push((key, number));
        }
    }

    fn add_problem(&mut self, problem: String) {
        if self.problems.len() < NAMED {
            self.problems.push(problem);
        } else {
            self.other_problems += 1;
        }
    }

    /// What is no record of these tables, in one line; `None` if there is nothing of the kind.
    pub(super) fn problem(&self) -> Option<String> {
        if self.problems.is_empty() {
            return None;
        }
        let more = match self.other_problems {
            0 => String::new(),
            count => format!("; and {count} more"),
        };
        Some(self.problems.join("; ") + &more)
    }
}

#[cfg(test)]
mod tests {
    use projector::change::Tables;
    use projector::part::Part;
    use serde_json::{Value as Json, json};

    use super::Records;

    fn record(table: &str, keys: &Json) -> Json {
        let arn = format!("arn:aws:dynamodb:r:1:table/{table}/stream/2026-11-22T00:00:00.000");
        let images = json!({"Keys": keys, "SequenceNumber": "1", "StreamViewType": "NEW_IMAGE"});
        json!({"eventID": "e", "eventName": "REMOVE", "eventSourceARN": arn, "dynamodb": images})
    }

    fn batch(records: &[Json]) -> String {
        let payload = json!({ "Records": records }).to_string();
        json!({"DDBStreamBatchInfo": {}, "payload": payload}).to_string()
    }

    fn read(object: &str) -> Records {
        let tables = Tables { sessions: "sessions".to_owned(), scans: "scans".to_owned() };
        Records::of(object.as_bytes(), &tables)
    }

    #[test]
    fn each_part_is_named_once_and_a_record_without_a_key_is_kept() {
        let (session, no_key) = (json!({"session_id": {"S": "s1"}}), json!({}));
        let left = json!({"session_id": {"S": "s1"}, "side": {"S": "left"}});
        let records = read(&batch(&[
            record("sessions", &session),
            record("sessions", &no_key),
            record("scans", &left),
            record("sessions", &session),
        ]));
        let key = |part| (part, "s1".to_owned());
        assert_eq!(records.keys, [(key(Part::Session), 0), (key(Part::Left), 2)]);
        let without_key: Vec<u64> = records.without_key.iter().map(|one| one.number).collect();
        assert_eq!((records.count, without_key), (4, vec![1]));
        assert_eq!(records.problem(), None);
    }

    #[test]
    fn what_is_no_failed_batch_of_these_tables_is_named_and_holds_up_no_record() {
        let session = record("sessions", &json!({"session_id": {"S": "s1"}}));
        let foreign = record("orders", &json!({"session_id": {"S": "s1"}}));
        let outside = json!({ "Records": [session] }).to_string();
        let truncated = batch(std::slice::from_ref(&session));
        for (object, count, said) in [
            ("", 0, "it is empty"),
            ("hello", 0, "line 1, byte offset 0: no JSON object or list begins here"),
            (r#"{"a": 1}"#, 0, "line 1, byte offset 0: neither a change record nor"),
            (&truncated[..truncated.len() - 9], 0, "it is truncated"),
            (&outside, 0, "not in a batch that Lambda gave up on"),
            (r#"{"DDBStreamBatchInfo": {}}"#, 0, "without its records"),
            (&batch(&[foreign.clone(), session.clone()]), 1, "of table \"orders\", but"),
            (&(batch(std::slice::from_ref(&session)) + "\n{\"a\": 1}"), 1, "line 2, byte offset"),
        ] {
            let records = read(object);
            assert_eq!((records.count, records.keys.len() as u64), (count, count), "{object}");
            let problem = records.problem().expect(object);
            assert!(problem.contains(said), "{object}: {problem}");
        }
        let many = "{\"a\": 1}\n".repeat(7);
        assert!(read(&many).problem().expect("seven").ends_with("; and 2 more"));
    }
}
