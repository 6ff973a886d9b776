//! Pure: when the change of a record was made, as far as a quick look tells. Files are merged by
//! these times, for speed alone: a time that is missing or wrong costs nothing else.

use crate::documents::dump;

const NAME: &[u8] = b"ApproximateCreationDateTime";

/// The first creation time in this text, in seconds since 1970: a number as Lambda writes it, or a
/// time as the AWS CLI prints it, within JSON that may itself be text.
pub(crate) fn first_in(text: &[u8]) -> Option<f64> {
    let value = without(after(text, NAME)?, b"\\\"");
    let value = without(without(value, b" \t\r\n").strip_prefix(b":")?, b" \t\r\n\\\"");
    let end = value.iter().position(|byte| b",}\"\\\n".contains(byte)).unwrap_or(value.len());
    let value = std::str::from_utf8(&value[..end]).ok()?.trim_end();
    let number = value.parse().ok().filter(|number: &f64| number.is_finite());
    number.or_else(|| dump::seconds(value).map(|seconds| seconds as f64))
}

/// What follows the first occurrence of a name.
fn after<'t>(text: &'t [u8], name: &[u8]) -> Option<&'t [u8]> {
    let mut at = 0;
    loop {
        at += text[at..].iter().position(|byte| *byte == name[0])?;
        if let Some(rest) = text[at..].strip_prefix(name) {
            return Some(rest);
        }
        at += 1;
    }
}

/// The text without the bytes of this kind that it begins with.
fn without<'t>(text: &'t [u8], kind: &[u8]) -> &'t [u8] {
    let begin = text.iter().position(|byte| !kind.contains(byte)).unwrap_or(text.len());
    &text[begin..]
}

#[cfg(test)]
mod tests {
    use super::first_in;

    #[test]
    fn a_time_is_found_in_every_form_that_files_have() {
        for text in [
            r#"{"AWS":1,"dynamodb":{"ApproximateCreationDateTime":1795334400,"Keys":{}}}"#,
            "{\n  \"ApproximateCreationDateTime\" :\n    1795334400.0\n}",
            r#"{"payload":"{\"Records\":[{\"ApproximateCreationDateTime\": 1.7953344E9}]}"}"#,
            r#"{"ApproximateCreationDateTime": "2026-11-22T09:00:00+01:00"}"#,
            r#"{"ApproximateCreationDateTime":1795334400},{"ApproximateCreationDateTime":7}"#,
            r#"{"ApproximateCreationDateTime":1795334400"#,
        ] {
            assert_eq!(first_in(text.as_bytes()), Some(1_795_334_400.0), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_none() {
        for text in [
            "",
            "ApproximateCreationDateTim",
            "ApproximateCreationDateTime",
            r#"{"ApproximateCreationDateTime":"#,
            r#"{"ApproximateCreationDateTime":"yesterday"}"#,
            r#"{"ApproximateCreationDateTime":null}"#,
            r#"{"ApproximateCreationDateTime":NaN}"#,
            r#"{"ApproximateCreationDateTime",1795334400}"#,
        ] {
            assert_eq!(first_in(text.as_bytes()), None, "{text}");
        }
        assert_eq!(first_in(b"\"ApproximateCreationDateTime\":1\xff}"), None);
    }
}
