//! Pure: the change records in a JSON document of a file, or why there are none.

use std::borrow::Cow;
use std::collections::VecDeque;

use projector::change::{Tables, stream_of};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::documents::dump::{StreamArn, Unfit};
use crate::documents::outline::{Foreign, Member, Members, Outline};

/// Why a document, or a part of one, is not applied. It is no change record of these tables, so
/// that `rejected_records` is not the place for it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(
        "neither a change record nor a Lambda event: it has none of the members dynamodb, \
            eventSourceARN, Records"
    )]
    NotARecord,
    #[error("Records is not a list")]
    NoList,
    #[error("a list within a list: neither a change record nor a Lambda event")]
    Nested,
    #[error(
        "an item of an export or a scan: `backfill file` takes change records, and an export holds \
         items without sequence numbers: `backfill repair --export` takes their keys and reads the \
         items again (see docs/incidents.md, \"More than 24 hours lost\")"
    )]
    Item,
    #[error(
        "a record of a Kinesis stream: `backfill file` takes records of DynamoDB streams; one of \
         Kinesis has no sequence number of the table's stream"
    )]
    Kinesis,
    #[error("from {0}: `backfill file` takes records of DynamoDB streams")]
    OtherSource(String),
    /// `SESSIONS_TABLE` or `SCANS_TABLE` is wrong, or the file is of another application.
    #[error(
        "of table {table:?}, but SESSIONS_TABLE is {sessions:?} and SCANS_TABLE is {scans:?}: \
         correct the variable, or leave these records out"
    )]
    OtherTable { table: String, sessions: String, scans: String },
    #[error(
        "from a stream with view type {0}, which has no new images, so that there is nothing to \
         apply: enable the stream with NEW_IMAGE or NEW_AND_OLD_IMAGES"
    )]
    NoNewImages(String),
    #[error(
        "records without eventSourceARN, as GetRecords returns them: say with --stream-arn of \
            which stream they are{}",
        .0.as_ref().map(|arn| format!(" (NextShardIterator says \
            {})", arn.escape_debug())).unwrap_or_default()
    )]
    NoArn(Option<String>),
    #[error(transparent)]
    Unfit(#[from] Unfit),
    #[error(
        "a report of Lambda about an invocation that was not of a DynamoDB stream: `backfill file` \
         takes what Lambda writes about a batch of one (DDBStreamBatchInfo)"
    )]
    OtherInvocation,
    #[error(
        "a batch that Lambda gave up on, without its records: those it writes only to a \
         destination on S3. They are {0}; within 24 hours `backfill stream` reads them again"
    )]
    WithoutRecords(String),
    #[error("a batch that Lambda gave up on, whose payload is no event with records")]
    NoEvent,
}

/// What was found in a document.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// Each record, to the letter.
    pub(crate) records: VecDeque<Vec<u8>>,
    /// The same for those of batches that Lambda gave up on: they come late.
    pub(crate) late: VecDeque<Vec<u8>>,
    /// What is not applied, and its offset in the document.
    pub(crate) refused: Vec<(usize, Refusal)>,
}

impl Taken {
    /// No record is left in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty() && self.late.is_empty()
    }
}

/// Takes the records out of documents.
#[derive(Clone, Debug)]
pub(crate) struct Extractor {
    pub(crate) tables: Tables,
    /// For records that do not name their stream.
    pub(crate) stream_arn: Option<StreamArn>,
}

impl Extractor {
    /// Takes the records out of a document.
    pub(crate) fn take(&self, text: &[u8], outline: &Outline<'_>, taken: &mut Taken) {
        let members = match outline {
            Outline::Object(members) => members,
            Outline::List(list) => return self.take_list(text, list, taken),
            Outline::Other => return taken.refused.push((0, Refusal::NotARecord)),
        };
        if let Some(batch) = members.batch {
            self.take_failed_batch(batch, members.payload, taken);
        } else if members.records.is_some() {
            self.take_event(text, members, taken);
        } else {
            match self.record(text, members) {
                Ok(record) => taken.records.push_back(record.into_owned()),
                Err(refusal) => taken.refused.push((0, refusal)),
            }
        }
    }

    /// A list of records, as EventBridge Pipes sends them, or of other documents.
    fn take_list(&self, text: &[u8], list: &[&RawValue], taken: &mut Taken) {
        for element in list {
            let offset = offset(text, element);
            let mut of_element = Taken::default();
            match serde_json::from_str::<Outline<'_>>(element.get()) {
                Ok(Outline::List(_)) => of_element.refused.push((0, Refusal::Nested)),
                Ok(outline) => self.take(element.get().as_bytes(), &outline, &mut of_element),
                Err(_) => of_element.refused.push((0, Refusal::NotARecord)),
            }
            taken.records.append(&mut of_element.records);
            taken.late.append(&mut of_element.late);
            let refused = of_element.refused.into_iter();
            taken.refused.extend(refused.map(|(within, refusal)| (offset + within, refusal)));
        }
    }

    /// The records of an event, or of what `GetRecords` returned.
    fn take_event(&self, text: &[u8], members: &Members<'_>, taken: &mut Taken) {
        let Some(Member::List(list)) = &members.records else {
            return taken.refused.push((0, Refusal::NoList));
        };
        let of = members.next_shard_iterator.as_ref().and_then(|iterator| stream(iterator.text()?));
        let outlines: Vec<_> =
            list.iter().map(|record| serde_json::from_str::<Outline<'_>>(record.get())).collect();
        let objects = || {
            outlines.iter().filter_map(|outline| match outline {
                Ok(Outline::Object(members)) => Some(members),
                _ => None,
            })
        };
        let has_records = objects().any(|members| members.is_record());
        let has_arns = objects().any(|members| members.arn.is_some());
        for (record, outline) in list.iter().zip(&outlines) {
            let bytes = record.get().as_bytes();
            let result = match outline {
                // Where others name their stream, this record alone is malformed, and is rejected.
                Ok(Outline::Object(members))
                    if has_arns && members.arn.is_none() && members.images.is_some() =>
                {
                    Ok(Cow::Borrowed(bytes))
                }
                Ok(Outline::Object(members)) => self.record_of(bytes, members, of),
                _ if has_records => Ok(Cow::Borrowed(bytes)),
                _ => Err(Refusal::NotARecord),
            };
            match result {
                Ok(record) => taken.records.push_back(record.into_owned()),
                Err(refusal) => taken.refused.push((offset(text, record), refusal)),
            }
        }
    }

    /// The records of a batch that Lambda gave up on (AWS Lambda Developer Guide, "Retain discarded
    /// records for a DynamoDB event source in Lambda").
    fn take_failed_batch(&self, batch: &RawValue, payload: Option<&RawValue>, taken: &mut Taken) {
        let Some(payload) = payload else {
            let refusal = Refusal::WithoutRecords(which(batch));
            return taken.refused.push((0, refusal));
        };
        // The event as text; as an object, too, because somebody may have laid it out for reading.
        let event = match serde_json::from_str::<String>(payload.get()) {
            Ok(text) => Cow::Owned(text),
            Err(_) => Cow::Borrowed(payload.get()),
        };
        let mut of_event = Taken::default();
        if let Ok(Outline::Object(members)) = serde_json::from_str::<Outline<'_>>(&event)
            && members.records.is_some()
        {
            self.take_event(event.as_bytes(), &members, &mut of_event);
        }
        if of_event.records.is_empty() && of_event.refused.is_empty() {
            of_event.refused.push((0, Refusal::NoEvent));
        }
        taken.late.append(&mut of_event.records);
        // An offset in the text of the payload is no place in the file.
        taken.refused.extend(of_event.refused.into_iter().map(|(_, refusal)| (0, refusal)));
    }

    fn record<'t>(&self, text: &'t [u8], members: &Members<'_>) -> Result<Cow<'t, [u8]>, Refusal> {
        self.record_of(text, members, None)
    }

    /// The record, as it is applied. `stream` is the ARN that stands beside it.
    fn record_of<'t>(
        &self,
        text: &'t [u8],
        members: &Members<'_>,
        stream: Option<&str>,
    ) -> Result<Cow<'t, [u8]>, Refusal> {
        let source = members.source.as_ref().and_then(Member::text).unwrap_or("aws:dynamodb");
        if members.foreign == Some(Foreign::Kinesis) || source == "aws:kinesis" {
            return Err(Refusal::Kinesis);
        }
        if source != "aws:dynamodb" {
            return Err(Refusal::OtherSource(format!("{:?}", shortened(source))));
        }
        if !members.is_record() {
            return Err(match members.foreign {
                Some(Foreign::Items) => Refusal::Item,
                Some(Foreign::Destination) => Refusal::OtherInvocation,
                _ => Refusal::NotARecord,
            });
        }
        match (&members.arn, &self.stream_arn) {
            (Some(Member::Text(arn)), _) => self.check(arn, members)?,
            // No text: a malformed record.
            (Some(_), _) => {}
            (None, Some(arn)) => {
                self.check(arn.as_str(), members)?;
                return Ok(Cow::Owned(arn.complete(text, stream)?));
            }
            (None, None) => return Err(Refusal::NoArn(stream.map(str::to_owned))),
        }
        Ok(Cow::Borrowed(text))
    }

    /// Whether a record of this stream is one of these tables' and has a new image.
    fn check(&self, arn: &str, members: &Members<'_>) -> Result<(), Refusal> {
        let Some((table, _)) = stream_of(arn) else {
            return Err(Refusal::OtherSource(format!("{:?}", shortened(arn))));
        };
        let Tables { sessions, scans } = &self.tables;
        if table != sessions && table != scans {
            return Err(Refusal::OtherTable {
                table: shortened(table).to_owned(),
                sessions: sessions.clone(),
                scans: scans.clone(),
            });
        }
        match &members.images {
            Some(Member::Object(Some(view_type)))
                if matches!(&**view_type, "KEYS_ONLY" | "OLD_IMAGE") =>
            {
                Err(Refusal::NoNewImages(view_type.to_string()))
            }
            _ => Ok(()),
        }
    }
}

/// The stream's ARN that an iterator begins with.
fn stream(iterator: &str) -> Option<&str> {
    let (arn, _) = iterator.split_once('|')?;
    stream_of(arn).map(|_| arn)
}

/// Which records a batch held, for the operator.
fn which(batch: &RawValue) -> String {
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct BatchInfo {
        shard_id: String,
        start_sequence_number: String,
        end_sequence_number: String,
        stream_arn: String,
    }

    let BatchInfo { shard_id, start_sequence_number, end_sequence_number, stream_arn } =
        serde_json::from_str(batch.get()).unwrap_or_default();
    format!(
        "sequence numbers {start_sequence_number} to {end_sequence_number} of {shard_id} of \
            {stream_arn}"
    )
    .escape_debug()
    .to_string()
}

/// Where a part of this text begins.
fn offset(text: &[u8], part: &RawValue) -> usize {
    (part.get().as_ptr() as usize).saturating_sub(text.as_ptr() as usize)
}

/// The beginning of a text that a file gave.
fn shortened(text: &str) -> &str {
    text.char_indices().nth(100).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use projector::change::Tables;

    use super::{Extractor, Taken};
    use crate::documents::dump::StreamArn;
    use crate::documents::outline::Outline;

    const ARN: &str =
        "arn:aws:dynamodb:eu-central-1:1:table/sessions/stream/2026-11-22T00:00:00.000";

    /// The records of a document, and for what is refused the offset and the reason.
    fn taken(document: &str, stream_arn: Option<&str>) -> (Vec<String>, Vec<(usize, String)>) {
        let tables = Tables { sessions: "sessions".to_owned(), scans: "scans".to_owned() };
        let stream_arn = stream_arn.map(|arn| StreamArn::parse(arn, &tables).expect("an ARN"));
        let outline: Outline<'_> = serde_json::from_str(document).expect("JSON");
        let mut taken = Taken::default();
        Extractor { tables, stream_arn }.take(document.as_bytes(), &outline, &mut taken);
        let text = |record: Vec<u8>| String::from_utf8(record).expect("text");
        let refused = taken.refused.into_iter();
        (
            taken.late.into_iter().chain(taken.records).map(text).collect(),
            refused.map(|(offset, refusal)| (offset, refusal.to_string())).collect(),
        )
    }

    /// A record to the letter, with more spaces and digits than it needs.
    fn record(id: &str) -> String {
        format!(r#"{{ "eventID":"{id}",  "n":1.00, "dynamodb":{{}}, "eventSourceARN":"{ARN}" }}"#)
    }

    #[test]
    fn records_are_found_in_every_kind_of_document_and_kept_to_the_letter() {
        let (a, b) = (record("a"), record("b"));
        let both = vec![a.clone(), b.clone()];
        let event =
            format!(r#"{{"window":{{"Records":[1]}},"Records":[{a}, {b}],"state":{{"n":"1"}}}}"#);
        let failed = |payload: &str| {
            format!(
                r#"{{"payload":{payload},"requestContext":{{}},"DDBStreamBatchInfo":{{"shardId":"s"}},"version":"1.0"}}"#
            )
        };
        for (document, expected) in [
            (a.clone(), vec![a.clone()]),
            (event.clone(), both.clone()),
            (format!("[{a},{b}]"), both.clone()),
            (failed(&serde_json::Value::from(event.as_str()).to_string()), both.clone()),
            (failed(&event), both.clone()),
            (format!("[{},{a}]", failed(&event)), [both.clone(), vec![a.clone()]].concat()),
            (format!(r#"{{"NextShardIterator":"AAAA","Records":[{a},{b}]}}"#), both.clone()),
            (r#"{"window":{},"Records":[],"isFinalInvokeForWindow":true}"#.to_owned(), vec![]),
            ("[]".to_owned(), vec![]),
        ] {
            assert_eq!(taken(&document, None), (expected, vec![]), "{document}");
        }
    }

    #[test]
    fn a_malformed_record_is_one_for_rejected_records() {
        for record in [
            format!(r#"{{"dynamodb":7,"eventSourceARN":"{ARN}"}}"#),
            r#"{"dynamodb":{"SequenceNumber":7},"eventSourceARN":7}"#.to_owned(),
            format!(r#"{{"eventSourceARN":"{ARN}"}}"#),
        ] {
            assert_eq!(taken(&record, None), (vec![record.clone()], vec![]));
        }
        // Among records that name their stream.
        let event = format!(r#"{{"Records":[{},null,{{"dynamodb":{{}}}}]}}"#, record("a"));
        let (records, refused) = taken(&event, None);
        assert_eq!(
            (&records[1..], refused.len()),
            (&["null".to_owned(), r#"{"dynamodb":{}}"#.to_owned()][..], 0)
        );
    }

    /// What is no change record, and what is said of it.
    const REFUSED: &[(&str, &str)] = &[
        (r#"{"ping":true}"#, "neither a change record nor a Lambda event"),
        (
            r#"{"source":"aws.events","detail-type":"Scheduled Event","detail":{}}"#,
            "neither a change record",
        ),
        (
            r#"{"timestamp":"2026-11-22T08:00:00Z","level":"INFO","message":"batch"}"#,
            "neither a change record",
        ),
        (r#"{"version":"1.0","records":[]}"#, "neither a change record"),
        (r#"{"Records":[null,{}]}"#, "neither a change record"),
        (r#"{"Records":{"a":1}}"#, "Records is not a list"),
        ("[[{}]]", "a list within a list"),
        ("[null]", "neither a change record"),
        (r#"{"Item":{"session_id":{"S":"a"}}}"#, "an export holds items without sequence numbers"),
        (
            r#"{"Metadata":{},"Keys":{},"NewImage":{}}"#,
            "an export holds items without sequence numbers",
        ),
        (
            r#"{"Count":1,"Items":[{}]}"#,
            "`backfill repair --export` takes their keys and reads the items again (see \
                docs/incidents.md",
        ),
        (
            r#"{"Records":[{"kinesis":{"data":"e30="},"eventSource":"aws:kinesis","eventID":"a"}]}"#,
            "a record of a Kinesis stream",
        ),
        (
            r#"{"recordFormat":"application/json","tableName":"sessions","eventID":"a","dynamodb":{}}"#,
            "a record of a Kinesis stream",
        ),
        (
            r#"{"requestContext":{},"KinesisBatchInfo":{},"payload":"{}"}"#,
            "a record of a Kinesis stream",
        ),
        (
            r#"{"requestContext":{},"requestPayload":{},"responseContext":{}}"#,
            "was not of a DynamoDB stream",
        ),
        (
            r#"{"Records":[{"eventSource":"aws:sqs","body":"{}","eventSourceARN":"arn:aws:sqs:r:1:q"}]}"#,
            "from \"aws:sqs\"",
        ),
        (r#"{"Records":[{"EventSource":"aws:sns","Sns":{}}]}"#, "from \"aws:sns\""),
        (
            r#"{"Records":[{"eventID":"a","eventSource":"s3.amazonaws.com","eventName":"PutObject"}]}"#,
            "from \"s3.amazonaws.com\"",
        ),
        (r#"{"eventID":"a","dynamodb":{}}"#, "say with --stream-arn"),
        (
            r#"{"DDBStreamBatchInfo":{"shardId":"s","streamArn":"x"},"requestContext":{}}"#,
            "of s of x; within 24 hours `backfill stream`",
        ),
        (r#"{"DDBStreamBatchInfo":{},"payload":"x"}"#, "whose payload is no event with records"),
        (
            r#"{"DDBStreamBatchInfo":{},"payload":"{\"Records\":[]}"}"#,
            "whose payload is no event with records",
        ),
    ];

    #[test]
    fn what_is_no_record_of_these_streams_is_refused_with_a_hint() {
        let of = |arn: &str| format!(r#"{{"dynamodb":{{}},"eventSourceARN":"{arn}"}}"#);
        let orders = of(&ARN.replace("sessions", "orders"));
        let keys_only =
            format!(r#"{{"eventSourceARN":"{ARN}","dynamodb":{{"StreamViewType":"KEYS_ONLY"}}}}"#);
        let queue = of("arn:aws:sqs:r:1:q");
        let own = [
            (
                orders.as_str(),
                "of table \"orders\", but SESSIONS_TABLE is \"sessions\" and SCANS_TABLE is \
                    \"scans\"",
            ),
            (keys_only.as_str(), "view type KEYS_ONLY"),
            (queue.as_str(), "from \"arn:aws:sqs:r:1:q\""),
        ];
        for (document, hint) in REFUSED.iter().copied().chain(own) {
            let (records, refused) = taken(document, None);
            assert_eq!(records, [""; 0], "{document}");
            assert!(!refused.is_empty(), "{document}");
            for (_, reason) in refused {
                assert!(reason.contains(hint), "{document}: {reason}");
            }
        }
    }

    /// One record of another table costs the others of its event nothing; its place is told.
    #[test]
    fn what_is_refused_among_records_has_its_offset() {
        let orders = record("o").replace("table/sessions", "table/orders");
        let event = format!(r#"{{"Records":[{},{orders}]}}"#, record("a"));
        let (records, refused) = taken(&event, None);
        assert_eq!(records, [record("a")]);
        assert_eq!(refused.len(), 1);
        assert_eq!(&event[refused[0].0..][..orders.len()], orders);
        let list = format!(r#"[{},{{"ping":1}}]"#, record("a"));
        assert_eq!(&list[taken(&list, None).1[0].0..], r#"{"ping":1}]"#);
    }

    #[test]
    fn what_get_records_returned_is_applied_with_the_arn_of_its_stream() {
        let dump = format!(
            r#"{{"Records":[{{"eventID":"a","dynamodb":{{"Keys":{{"session_id":{{"S":"a"}}}}}}}}],"NextShardIterator":"{ARN}|1|AAAA"}}"#
        );
        let (records, refused) = taken(&dump, None);
        assert_eq!((records.len(), refused.len()), (0, 1));
        assert!(refused[0].1.ends_with(&format!("(NextShardIterator says {ARN})")), "{refused:?}");
        let (records, refused) = taken(&dump, Some(ARN));
        assert_eq!((records.len(), refused.len()), (1, 0));
        assert!(records[0].ends_with(&format!(r#","eventSourceARN":"{ARN}"}}"#)), "{records:?}");
        // A record keeps the stream that it names.
        let other = record("a").replace("2026-11-22", "2026-11-23");
        assert_eq!(taken(&other, Some(ARN)), (vec![other], vec![]));
        let (records, refused) = taken(&dump, Some(&ARN.replace("2026-11-22", "2026-11-23")));
        assert_eq!(records.len(), 0);
        assert!(refused[0].1.contains("--stream-arn names another stream"), "{refused:?}");
    }
}
