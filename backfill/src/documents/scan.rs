//! Pure: a quick look at what nearly all documents are, one change record on one line, as Lambda
//! delivers it.
//!
//! The projector parses each record anyway. So only the members of the record and of its `dynamodb`
//! are looked at here, and what is within them is passed by its brackets and quotes, at a fraction
//! of a parser's cost. Whatever is not plainly a record is left to the parser. A record that is
//! broken further within is left to the projector, which rejects it with the reason.

/// What a record says of its stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Scanned<'a> {
    pub(crate) source: Option<&'a str>,
    pub(crate) arn: &'a str,
    pub(crate) view_type: Option<&'a str>,
    /// Of the whole record.
    pub(crate) length: usize,
}

/// The record that the text begins with, if it is plainly one.
pub(crate) fn record(text: &[u8]) -> Option<Scanned<'_>> {
    let (mut source, mut arn, mut view_type, mut has_images) = (None, None, None, false);
    let length = members(text, 0, &mut |name, at| {
        match name {
            b"eventSource" => return plain_text(text, at, &mut source),
            b"eventSourceARN" => return plain_text(text, at, &mut arn),
            b"dynamodb" => {
                has_images = true;
                return members(text, at, &mut |name, at| match name {
                    b"StreamViewType" => plain_text(text, at, &mut view_type),
                    // An escape may hide that name.
                    _ if name.contains(&b'\\') => None,
                    _ => value(text, at),
                });
            }
            b"eventID" | b"eventName" | b"eventVersion" | b"awsRegion" | b"userIdentity" => {}
            _ => return None,
        }
        value(text, at)
    })?;
    if !has_images {
        return None;
    }
    Some(Scanned { source, arn: arn?, view_type, length })
}

/// The end of the object that begins at `at`. `member` is given each name and where its value
/// begins, and gives where that ends.
fn members<'a>(
    text: &'a [u8],
    at: usize,
    member: &mut impl FnMut(&'a [u8], usize) -> Option<usize>,
) -> Option<usize> {
    if *text.get(at)? != b'{' {
        return None;
    }
    let mut at = blanks(text, at + 1);
    loop {
        let end = string(text, at)?;
        let name = &text[at + 1..end - 1];
        at = blanks(text, end);
        if *text.get(at)? != b':' {
            return None;
        }
        at = blanks(text, member(name, blanks(text, at + 1))?);
        match text.get(at)? {
            b',' => at = blanks(text, at + 1),
            b'}' => return Some(at + 1),
            _ => return None,
        }
    }
}

/// The end of a string without escapes, which is kept.
fn plain_text<'a>(text: &'a [u8], at: usize, kept: &mut Option<&'a str>) -> Option<usize> {
    let end = string(text, at)?;
    let content = &text[at + 1..end - 1];
    if content.contains(&b'\\') {
        return None;
    }
    *kept = Some(std::str::from_utf8(content).ok()?);
    Some(end)
}

// These look at every byte: they index, which costs least in a build without optimisation, too.

/// The end of the value that begins at `at`.
fn value(text: &[u8], at: usize) -> Option<usize> {
    match text.get(at)? {
        b'"' => string(text, at),
        b'{' | b'[' => nested(text, at),
        _ => {
            let mut end = at;
            while end < text.len()
                && !matches!(text[end], b',' | b'}' | b']' | b' ' | b'\n' | b'\r')
            {
                end += 1;
            }
            (end > at).then_some(end)
        }
    }
}

fn nested(text: &[u8], at: usize) -> Option<usize> {
    let (mut at, mut depth) = (at, 0_usize);
    while at < text.len() {
        match text[at] {
            b'"' => {
                at = string(text, at)?;
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 1 => return Some(at + 1),
            b'}' | b']' => depth -= 1,
            // What was cut off must not take in the next line.
            b'\n' => return None,
            _ => {}
        }
        at += 1;
    }
    None
}

fn string(text: &[u8], at: usize) -> Option<usize> {
    if *text.get(at)? != b'"' {
        return None;
    }
    let mut at = at + 1;
    while at < text.len() {
        match text[at] {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            0..0x20 => return None,
            _ => at += 1,
        }
    }
    None
}

fn blanks(text: &[u8], at: usize) -> usize {
    let mut at = at;
    while at < text.len() && matches!(text[at], b' ' | b'\r' | b'\t') {
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Scanned, record};
    use crate::documents::outline::Outline;

    const ARN: &str = "arn:aws:dynamodb:r:1:table/sessions/stream/l";

    #[test]
    fn a_record_is_found_with_what_it_says_of_its_stream() {
        let text = format!(
            r#"{{ "eventID" :"\"}}", "userIdentity":null,"dynamodb":{{"x":[{{"a":"]}}\\"}}, {{}}], "StreamViewType":"NEW_IMAGE","n":-1.5e3 }},"eventSourceARN":"{ARN}","eventSource":"aws:dynamodb"}}"#
        );
        let scanned = record(text.as_bytes());
        let expected = Scanned {
            source: Some("aws:dynamodb"),
            arn: ARN,
            view_type: Some("NEW_IMAGE"),
            length: text.len(),
        };
        assert_eq!(scanned, Some(expected));
        assert_eq!(
            record(format!("{text}{text}").as_bytes()).map(|one| one.length),
            Some(text.len())
        );
        for end in 0..text.len() {
            assert_eq!(record(&text.as_bytes()[..end]), None, "{end}");
        }
    }

    #[test]
    fn what_is_not_plainly_a_record_is_left_to_the_parser() {
        let arn = format!(r#""eventSourceARN":"{ARN}""#);
        for text in [
            String::new(),
            "{}".to_owned(),
            "[]".to_owned(),
            format!("{{{arn}}}"),
            r#"{"dynamodb":{"a":1}}"#.to_owned(),
            format!(r#"{{"dynamodb":7,{arn}}}"#),
            format!(r#"{{"dynamodb":{{"a":1}},{arn},"kinesis":{{}}}}"#),
            format!(r#"{{"dynamodb":{{"a":1}},{arn},"Records":[]}}"#),
            format!(r#"{{"dynamodb":{{"a":1}} {arn}}}"#),
            format!(r#"{{"dynamodb":{{"a":"cut{}"}},{arn}}}"#, '\n'),
            format!("{{\"dynamodb\":{{\"a\":[1,\n]}},{arn}}}"),
            format!("{{\"dynamodb\":{{\"a\":1}},\n{arn}}}"),
            r#"{"dynamodb":{"a":1},"eventSourceARN":"\u0061"}"#.to_owned(),
            r#"{"dynamodb":{"a":1},"eventSourceARN":7}"#.to_owned(),
            format!(r#"{{"dynamodb":{{"StreamViewTyp\u0065":"KEYS_ONLY"}},{arn}}}"#),
        ] {
            assert_eq!(record(text.as_bytes()), None, "{text}");
        }
    }

    /// Of what streams hold, nearly all goes this way, and comes to what the parser finds.
    #[test]
    fn the_parser_finds_the_same() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/small");
        let mut scanned = 0;
        for name in ["sessions.jsonl", "scans.jsonl"] {
            let text = std::fs::read_to_string(fixtures.join(name)).expect("a fixture");
            for line in text.lines() {
                let found = record(line.as_bytes()).expect("plainly a record");
                let parsed: Outline<'_> = serde_json::from_str(line).expect("JSON");
                let outline = Outline::from(&found);
                assert_eq!(
                    format!("{outline:?}"),
                    format!("{parsed:?}").replace("event_id: true", "event_id: false")
                );
                assert_eq!(found.length, line.len());
                scanned += 1;
            }
        }
        assert!(scanned > 100, "{scanned}");
    }
}
