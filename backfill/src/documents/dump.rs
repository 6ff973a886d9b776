//! Pure: records as `GetRecords` returns them (`aws dynamodbstreams get-records`, the SDKs) → as
//! Lambda delivers them. They do not name their stream, and their creation time may be text.

use std::fmt;

use projector::attribute::Text;
use projector::change::{Tables, stream_of};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The stream that `--stream-arn` names.
#[derive(Clone, Debug)]
pub(crate) struct StreamArn {
    arn: String,
    /// The names of its table's keys, sorted.
    keys: &'static [&'static str],
}

/// Why a record is not one of the stream that `--stream-arn` names. To take it for one could remove
/// what it does not speak of.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unfit {
    #[error(
        "NextShardIterator says that the records are of {0}, and --stream-arn names another stream"
    )]
    OtherStream(String),
    #[error("the record's keys are not those of the table that --stream-arn names: \
        {}", .0.join(", "))]
    OtherKeys(&'static [&'static str]),
    #[error("a record that cannot be completed with --stream-arn: {0}")]
    NoRecord(serde_json::Error),
}

impl StreamArn {
    /// The ARN of a stream of one of these tables, or what is wrong with it.
    pub(crate) fn parse(arn: &str, tables: &Tables) -> Result<Self, String> {
        let Tables { sessions, scans } = tables;
        let keys: &[&str] = match stream_of(arn) {
            Some((table, _)) if table == sessions => &["session_id"],
            Some((table, _)) if table == scans => &["session_id", "side"],
            Some((table, _)) => {
                return Err(format!(
                    "names a stream of table {table:?}, but SESSIONS_TABLE is {sessions:?} and \
                        SCANS_TABLE is {scans:?}"
                ));
            }
            None => {
                return Err(format!(
                    "is {arn:?}, expected arn:aws:dynamodb:REGION:ACCOUNT:table/TABLE/stream/LABEL"
                ));
            }
        };
        Ok(Self { arn: arn.to_owned(), keys })
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.arn
    }

    /// The record with this stream's ARN, and its creation time in seconds. `stream` is the ARN
    /// that stands beside it.
    pub(crate) fn complete(&self, record: &[u8], stream: Option<&str>) -> Result<Vec<u8>, Unfit> {
        if let Some(stream) = stream.filter(|stream| *stream != self.arn) {
            return Err(Unfit::OtherStream(stream.to_owned()));
        }
        let members: Ordered<'_> = serde_json::from_slice(record).map_err(Unfit::NoRecord)?;
        let mut completed = Vec::new();
        for (name, value) in &members.0 {
            match serde_json::from_str::<Ordered<'_>>(value.get()) {
                Ok(images) if &**name == "dynamodb" => {
                    completed.push((&**name, self.images(&images)?));
                }
                _ => completed.push((&**name, value.get().to_owned())),
            }
        }
        completed.push(("eventSourceARN", quoted(&self.arn)));
        Ok(object(&completed).into_bytes())
    }

    fn images(&self, images: &Ordered<'_>) -> Result<String, Unfit> {
        let mut completed = Vec::new();
        for (name, value) in &images.0 {
            let time = || seconds(&serde_json::from_str::<String>(value.get()).ok()?);
            let value = match &**name {
                "ApproximateCreationDateTime" => time().map(|seconds| seconds.to_string()),
                "Keys" => {
                    self.check(value)?;
                    None
                }
                _ => None,
            }
            .unwrap_or_else(|| value.get().to_owned());
            completed.push((&**name, value));
        }
        Ok(object(&completed))
    }

    fn check(&self, keys: &RawValue) -> Result<(), Unfit> {
        let Ok(keys) = serde_json::from_str::<Ordered<'_>>(keys.get()) else { return Ok(()) };
        let mut names: Vec<&str> = keys.0.iter().map(|(name, _)| &**name).collect();
        names.sort_unstable();
        if names == self.keys { Ok(()) } else { Err(Unfit::OtherKeys(self.keys)) }
    }
}

/// The members of an object, in their order and to the letter.
struct Ordered<'a>(Vec<(Text<'a>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Ordered<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnObject;

        impl<'de> Visitor<'de> for AnObject {
            type Value = Ordered<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Ordered(members))
            }
        }

        deserializer.deserialize_map(AnObject)
    }
}

fn object(members: &[(&str, String)]) -> String {
    let members: Vec<String> =
        members.iter().map(|(name, value)| format!("{}:{value}", quoted(name))).collect();
    format!("{{{}}}", members.join(","))
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Seconds since 1970, of a time of RFC 3339 as the AWS CLI prints it, or with a space as Python
/// does.
pub(crate) fn seconds(time: &str) -> Option<i64> {
    let time = OffsetDateTime::parse(&time.replacen(' ', "T", 1), &Rfc3339).ok()?;
    Some(time.unix_timestamp())
}

#[cfg(test)]
mod tests {
    use projector::change::Tables;

    use super::{StreamArn, Unfit, seconds};

    const ARN: &str =
        "arn:aws:dynamodb:eu-central-1:1:table/sessions/stream/2026-11-22T00:00:00.000";

    fn tables() -> Tables {
        Tables { sessions: "sessions".to_owned(), scans: "scans".to_owned() }
    }

    fn of(table: &str) -> StreamArn {
        StreamArn::parse(&ARN.replace("sessions", table), &tables()).expect("an ARN")
    }

    #[test]
    fn a_record_is_completed_and_all_else_is_kept_to_the_letter() {
        let record = br#"{"dynamodb": {"ApproximateCreationDateTime": "2026-11-22T09:00:00+01:00", "Keys": {"session_id": {"S": "a"}}, "x": 1.0}, "n": 10.00, "u": { "PrincipalId":"p" }}"#;
        let completed = of("sessions").complete(record, Some(ARN)).expect("a record");
        let expected = format!(
            r#"{{"dynamodb":{{"ApproximateCreationDateTime":1795334400,"Keys":{{"session_id": {{"S": "a"}}}},"x":1.0}},"n":10.00,"u":{{ "PrincipalId":"p" }},"eventSourceARN":"{ARN}"}}"#
        );
        assert_eq!(String::from_utf8_lossy(&completed), expected);
    }

    #[test]
    fn times_are_read_as_the_cli_and_python_print_them() {
        for time in
            ["2026-11-22T08:00:00+00:00", "2026-11-22 08:00:00.5+00:00", "2026-11-22T08:00:00Z"]
        {
            assert_eq!(seconds(time), Some(1_795_334_400), "{time}");
        }
        assert_eq!(seconds("yesterday"), None);
    }

    /// A removal of a scan, taken for one of a session, would remove the session.
    #[test]
    fn records_of_another_stream_are_not_completed() {
        let scan = br#"{"eventName":"REMOVE","dynamodb":{"Keys":{"side":{"S":"left"},"session_id":{"S":"a"}}}}"#;
        assert!(matches!(of("sessions").complete(scan, None), Err(Unfit::OtherKeys(_))));
        assert!(of("scans").complete(scan, None).is_ok());
        assert!(matches!(of("scans").complete(scan, Some(ARN)), Err(Unfit::OtherStream(_))));
    }

    #[test]
    fn an_arn_that_is_not_of_one_of_the_tables_is_refused() {
        let refused = StreamArn::parse(&ARN.replace("sessions", "orders"), &tables());
        assert!(refused.expect_err("another table").contains("\"orders\""));
        let refused = StreamArn::parse("sessions", &tables());
        assert!(refused.expect_err("no ARN").contains("expected arn:aws:dynamodb:"));
    }
}
