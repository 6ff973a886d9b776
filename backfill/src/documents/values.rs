//! The JSON values of a stream of bytes, one after another: one per line, several per line, one
//! over many lines.
//!
//! A broken value is reported with its place and skipped: the next value is looked for at the
//! beginning of a later line, where an object or a list begins without indentation. So one broken
//! line costs that line, and the pieces of a broken document that is laid out for reading are not
//! taken for documents. Memory is bounded: what is larger than [`MAX_VALUE_BYTES`] is a broken
//! value, too.

use std::fmt;
use std::io::{self, BufRead};

use crate::documents::outline::{Outline, truncated_event};
use crate::documents::scan;

/// The largest value that is read. Lambda's events have at most 6 MB, and escaped as text in what
/// it writes about a failed batch, at most six times as much.
pub(crate) const MAX_VALUE_BYTES: usize = 64 << 20;
/// A buffer that is larger than this is given back once it is empty: other files may be open.
const KEPT_BYTES: usize = 256 << 10;
/// The search for the next value after a broken one ends after this many bytes.
const MAX_SKIPPED_BYTES: u64 = 1 << 30;
/// The input is given up after this many values in a row that do not end: each was read up to the
/// end of the input.
const MAX_UNENDED: u32 = 100;

/// A place in an input, after decompression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// From 1.
    pub(crate) line: u64,
    /// The offset from the beginning.
    pub(crate) byte: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, byte offset {}", self.line, self.byte)
    }
}

/// What comes next in an input.
#[derive(Debug)]
pub(crate) enum Found<'a> {
    Value(Value<'a>),
    Broken(Broken),
}

/// A complete JSON value.
#[derive(Debug)]
pub(crate) struct Value<'a> {
    pub(crate) outline: Outline<'a>,
    /// To the letter.
    pub(crate) text: &'a [u8],
    buffer: &'a [u8],
    start: usize,
    base: Place,
}

impl Value<'_> {
    /// The place in the input of this offset in the text. Costs a look at all that is before it in
    /// the buffer.
    pub(crate) fn place(&self, offset: usize) -> Place {
        place(self.buffer, self.base, self.start + offset)
    }
}

/// What could not be read.
#[derive(Debug)]
pub(crate) struct Broken {
    pub(crate) place: Place,
    /// The last line that was skipped with it.
    pub(crate) last_line: u64,
    pub(crate) fault: Fault,
}

/// Why something could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// The parser's words, without the place.
    #[error("not JSON: {0}")]
    NotJson(String),
    #[error("no JSON object or list begins here: neither a Lambda event nor a change record")]
    NoDocument,
    #[error("the input ends in the middle of this document: it is truncated")]
    Truncated,
    #[error(
        "a document of more than {} MiB, which is not read: write one record per line, as `jq -c \
            '.Records[]'` does",
        MAX_VALUE_BYTES >> 20
    )]
    TooLarge,
    #[error("{}", unreadable(.0))]
    Unreadable(io::Error),
    #[error("no document begins within {} MiB: the rest is not read", MAX_SKIPPED_BYTES >> 20)]
    NothingElse,
    #[error("{MAX_UNENDED} documents in a row do not end: the rest is not read")]
    ManyUnended,
}

/// Only a decompressor reports the end of a file, or data that it cannot read, as an error.
fn unreadable(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "the gzip file is truncated here".to_owned(),
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
            format!("the gzip file is damaged here ({error})")
        }
        _ => format!("it cannot be read further: {error}"),
    }
}

/// Reads the values of an input.
pub(crate) struct Values<R> {
    lines: R,
    /// What has been read and is not passed on: whole lines, or the beginning of one that is too
    /// long.
    buffer: Vec<u8>,
    line_breaks: u64,
    /// Where the buffer begins.
    base: Place,
    /// The length of the buffer at which parsing is worthwhile: a value over many lines is not
    /// parsed anew per line.
    parse_at: usize,
    skipping: Option<Skipping>,
    unended: u32,
    failure: Option<io::Error>,
    ended: bool,
}

/// The search for the next value after a broken one.
struct Skipping {
    place: Place,
    fault: Fault,
    bytes: u64,
    /// The end of a line that is too long comes first.
    in_a_line: bool,
}

impl<R: BufRead> Values<R> {
    pub(crate) fn new(lines: R) -> Self {
        Self {
            lines,
            buffer: Vec::new(),
            line_breaks: 0,
            base: Place { line: 1, byte: 0 },
            parse_at: 0,
            skipping: None,
            unended: 0,
            failure: None,
            ended: false,
        }
    }

    /// The memory that it takes.
    pub(crate) fn held_bytes(&self) -> usize {
        self.buffer.capacity()
    }

    /// Reads on by a line, and passes on what is complete. False once there is no more.
    pub(crate) fn advance(&mut self, found: &mut impl FnMut(Found<'_>)) -> bool {
        if self.ended {
            return false;
        }
        if let Some(skipping) = self.skipping.take() {
            self.skip(skipping, found);
        } else {
            self.read_line();
            if self.ended || self.buffer.len() >= self.parse_at {
                self.parse(found);
            }
        }
        if self.ended
            && let Some(error) = self.failure.take()
        {
            let fault = Fault::Unreadable(error);
            found(Found::Broken(Broken { place: self.base, last_line: self.base.line, fault }));
        }
        !self.ended
    }

    fn read_line(&mut self) {
        let room = MAX_VALUE_BYTES + 1 - self.buffer.len();
        let mut lines = io::Read::take(&mut self.lines, room as u64);
        match lines.read_until(b'\n', &mut self.buffer) {
            Ok(0) => self.ended = true,
            Ok(_) => self.line_breaks += u64::from(self.buffer.ends_with(b"\n")),
            Err(error) => {
                self.ended = true;
                self.failure = Some(error);
            }
        }
    }

    /// Passes on the values of the buffer; what is left of it is the beginning of one.
    fn parse(&mut self, found: &mut impl FnMut(Found<'_>)) {
        let mut start = 0;
        while let Some(blanks) = blanks(&self.buffer[start..]) {
            start += blanks;
            let rest = &self.buffer[start..];
            match first_value(rest) {
                Ok((outline, length)) => {
                    let (buffer, base, text) = (&self.buffer[..], self.base, &rest[..length]);
                    found(Found::Value(Value { outline, text, buffer, start, base }));
                    self.unended = 0;
                    start += length;
                }
                Err(Fault::Truncated) if !self.ended && rest.len() <= MAX_VALUE_BYTES => {
                    self.parse_at = (2 * rest.len()).min(MAX_VALUE_BYTES + 1);
                    self.consume(start);
                    return;
                }
                Err(fault) => match self.broken(start, fault, found) {
                    Some(next) => start = next,
                    None => break,
                },
            }
        }
        self.parse_at = 0;
        self.consume(self.buffer.len());
    }

    /// Where in the buffer to go on after a broken value; `None` if nothing more of it is of use.
    fn broken(
        &mut self,
        start: usize,
        fault: Fault,
        found: &mut impl FnMut(Found<'_>),
    ) -> Option<usize> {
        let mut fault = match (fault, self.ended) {
            (Fault::Truncated, false) => Fault::TooLarge,
            (Fault::Truncated, true) => {
                self.failure.take().map_or(Fault::Truncated, Fault::Unreadable)
            }
            (fault, _) => fault,
        };
        let cut_off = matches!(fault, Fault::Truncated | Fault::Unreadable(_));
        let place = place(&self.buffer, self.base, start);
        let mut next = next_line_of_a_value(&self.buffer, start);
        if cut_off || matches!(fault, Fault::TooLarge) {
            self.unended += 1;
            if self.unended >= MAX_UNENDED {
                (fault, next, self.ended) = (Fault::ManyUnended, None, true);
            }
        }
        if next.is_none() && !self.ended {
            let in_a_line = !self.buffer.ends_with(b"\n");
            self.skipping = Some(Skipping { place, fault, bytes: 0, in_a_line });
            return None;
        }
        if let Some(outline) = cut_off.then(|| truncated_event(&self.buffer[start..])).flatten() {
            let (buffer, base, text) = (&self.buffer[..], self.base, &self.buffer[start..]);
            found(Found::Value(Value { outline, text, buffer, start, base }));
            next = None;
        }
        let end = next.unwrap_or(self.buffer.len());
        let last_line = self::place(&self.buffer, self.base, end - 1).line;
        found(Found::Broken(Broken { place, last_line, fault }));
        next
    }

    /// Skips a line, unless a value may begin on it.
    fn skip(&mut self, mut skipping: Skipping, found: &mut impl FnMut(Found<'_>)) {
        let begins = if skipping.in_a_line {
            Ok(false)
        } else {
            self.lines.fill_buf().map(|bytes| matches!(bytes.first(), Some(b'{' | b'[')))
        };
        let room = MAX_SKIPPED_BYTES - skipping.bytes;
        let skipped = match begins {
            Ok(true) => {
                let Skipping { place, fault, .. } = skipping;
                let last_line = self.base.line - 1;
                return found(Found::Broken(Broken { place, last_line, fault }));
            }
            Ok(false) => io::Read::take(&mut self.lines, room).skip_until(b'\n'),
            Err(error) => Err(error),
        };
        let end = match skipped {
            Ok(0) if skipping.bytes == MAX_SKIPPED_BYTES => Some(Fault::NothingElse),
            Ok(0) => None,
            Err(error) => Some(Fault::Unreadable(error)),
            Ok(bytes) => {
                let bytes = bytes as u64;
                skipping.bytes += bytes;
                skipping.in_a_line = skipping.bytes == MAX_SKIPPED_BYTES;
                self.base.byte += bytes;
                self.base.line += 1;
                self.skipping = Some(skipping);
                return;
            }
        };
        self.ended = true;
        let Skipping { place, fault, .. } = skipping;
        let last_line = self.base.line.saturating_sub(1).max(place.line);
        found(Found::Broken(Broken { place, last_line, fault }));
        if let Some(fault) = end {
            found(Found::Broken(Broken { place: self.base, last_line: self.base.line, fault }));
        }
    }

    /// Forgets the beginning of the buffer.
    fn consume(&mut self, bytes: usize) {
        self.base.byte += bytes as u64;
        if bytes == self.buffer.len() {
            self.base.line += self.line_breaks;
            self.line_breaks = 0;
            self.buffer.clear();
            if self.buffer.capacity() > KEPT_BYTES {
                self.buffer = Vec::new();
            }
        } else if bytes > 0 {
            let line_breaks = line_breaks(&self.buffer[..bytes]);
            self.base.line += line_breaks;
            self.line_breaks -= line_breaks;
            self.buffer.drain(..bytes);
        }
    }
}

/// The value that the bytes begin with, and its length.
fn first_value(bytes: &[u8]) -> Result<(Outline<'_>, usize), Fault> {
    if !matches!(bytes.first(), Some(b'{' | b'[')) {
        return Err(Fault::NoDocument);
    }
    if let Some(record) = scan::record(bytes) {
        return Ok((Outline::from(&record), record.length));
    }
    let mut values = serde_json::Deserializer::from_slice(bytes).into_iter::<Outline<'_>>();
    match values.next() {
        Some(Ok(outline)) => Ok((outline, values.byte_offset())),
        None => Err(Fault::Truncated),
        Some(Err(error)) if error.is_eof() => Err(Fault::Truncated),
        Some(Err(error)) => {
            // The place is said by itself, and is that of the whole input.
            let text = error.to_string();
            let reason = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason);
            Err(Fault::NotJson(reason.to_owned()))
        }
    }
}

/// The length of the white space and byte order marks that the bytes begin with; `None` if there is
/// nothing else.
fn blanks(bytes: &[u8]) -> Option<usize> {
    let mut blanks = 0;
    loop {
        match &bytes[blanks..] {
            [] => return None,
            [b' ' | b'\t' | b'\r' | b'\n', ..] => blanks += 1,
            [0xef, 0xbb, 0xbf, ..] => blanks += 3,
            _ => return Some(blanks),
        }
    }
}

/// Where the next line begins, after `start`, that begins with an object or a list.
fn next_line_of_a_value(buffer: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    loop {
        at += 1 + buffer[at..].iter().position(|byte| *byte == b'\n')?;
        if matches!(buffer.get(at)?, b'{' | b'[') {
            return Some(at);
        }
    }
}

fn line_breaks(bytes: &[u8]) -> u64 {
    bytes.iter().map(|byte| u64::from(*byte == b'\n')).sum()
}

fn place(buffer: &[u8], base: Place, at: usize) -> Place {
    Place { line: base.line + line_breaks(&buffer[..at]), byte: base.byte + at as u64 }
}

#[cfg(test)]
mod tests {
    use std::io::{self, BufRead, BufReader, Cursor, Read as _};

    use super::{Found, MAX_VALUE_BYTES, Values};

    /// Values as their text, and what is broken as its place, its last line and the reason.
    fn all(input: impl BufRead) -> Vec<String> {
        let (mut values, mut all) = (Values::new(input), Vec::new());
        let mut found = |found: Found<'_>| {
            all.push(match found {
                Found::Value(value) => {
                    assert_eq!(value.place(0).byte + value.text.len() as u64, {
                        value.place(value.text.len()).byte
                    });
                    String::from_utf8_lossy(value.text).into_owned()
                }
                Found::Broken(broken) => {
                    format!("{} to {}: {}", broken.place, broken.last_line, broken.fault)
                }
            });
        };
        while values.advance(&mut found) {}
        assert!(!values.advance(&mut found), "it ends once");
        all
    }

    const TRUNCATED: &str = "the input ends in the middle of this document: it is truncated";

    #[test]
    fn values_are_found_however_they_are_laid_out() {
        let cases: [(&str, &[&str]); 9] = [
            ("", &[]),
            ("\u{feff} \r\n\n\t", &[]),
            ("{\"a\":1}\n{\"b\":[]}", &["{\"a\":1}", "{\"b\":[]}"]),
            ("{}\r\n\r\n[]\r\n", &["{}", "[]"]),
            ("{}{} []{}", &["{}", "{}", "[]", "{}"]),
            (
                "\u{feff}{\n  \"a\": {\n    \"b\": 1\n  }\n}\n{\n}\n",
                &["{\n  \"a\": {\n    \"b\": 1\n  }\n}", "{\n}"],
            ),
            ("[\n{},\n{}\n]\n\u{feff}{}", &["[\n{},\n{}\n]", "{}"]),
            ("{}\n{\n}{\n}\n{}", &["{}", "{\n}", "{\n}", "{}"]),
            (r#"{"a":"}{\"\\"}"#, &[r#"{"a":"}{\"\\"}"#]),
        ];
        for (text, expected) in cases {
            assert_eq!(all(text.as_bytes()), expected, "{text:?}");
            // However few bytes come at a time.
            assert_eq!(all(BufReader::with_capacity(1, text.as_bytes())), expected, "{text:?}");
        }
    }

    #[test]
    fn a_broken_line_costs_that_line() {
        let place = |line: u64, byte: u64, last: u64, fault: &str| {
            format!("line {line}, byte offset {byte} to {last}: {fault}")
        };
        let no_document =
            "no JSON object or list begins here: neither a Lambda event nor a change record";
        let cases: [(&str, Vec<String>); 11] = [
            ("{}\nno\n{}", vec!["{}".into(), place(2, 3, 2, no_document), "{}".into()]),
            ("no\nnothing\n\n{}", vec![place(1, 0, 3, no_document), "{}".into()]),
            // Cut off in a text, in an object, and after a comma.
            (
                "{\"a\":\"b\n{}\n",
                vec![
                    place(
                        1,
                        0,
                        1,
                        "not JSON: control character (\\u0000-\\u001F) found while parsing a \
                            string",
                    ),
                    "{}".into(),
                ],
            ),
            (
                "{\"a\":{\"b\":1}\n{\"c\":2}\n{\"d\":3}\n",
                vec![
                    place(1, 0, 1, "not JSON: expected `,` or `}`"),
                    "{\"c\":2}".into(),
                    "{\"d\":3}".into(),
                ],
            ),
            (
                "{\"a\":[1,\n{}\n{\"d\":3}\n",
                vec![
                    place(1, 0, 1, "not JSON: expected `,` or `]`"),
                    "{}".into(),
                    "{\"d\":3}".into(),
                ],
            ),
            // The pieces of a document that is laid out for reading are no documents.
            (
                "{\n  \"a\": {},\n  \"b\": [\n    {}\n  ],\n  c\n}\n{}",
                vec![place(1, 0, 7, "not JSON: key must be a string"), "{}".into()],
            ),
            ("{} no\n{}", vec!["{}".into(), place(1, 3, 1, no_document), "{}".into()]),
            ("{}\n{\"a\":", vec!["{}".into(), place(2, 3, 2, TRUNCATED)]),
            ("{}\n{\n  \"a\":", vec!["{}".into(), place(2, 3, 3, TRUNCATED)]),
            // Of a list that is cut off, what is complete counts.
            ("{}\n[1,\n{}", vec!["{}".into(), "[1,\n{}".into(), place(2, 3, 3, TRUNCATED)]),
            ("null\n7\n{}\n", vec![place(1, 0, 2, no_document), "{}".into()]),
        ];
        for (text, expected) in cases {
            assert_eq!(all(text.as_bytes()), expected, "{text:?}");
            assert_eq!(all(BufReader::with_capacity(1, text.as_bytes())), expected, "{text:?}");
        }
    }

    /// Gives these bytes and then fails, as a decompressor at the end of what is truncated.
    struct Truncated<'a>(&'a [u8]);

    impl io::Read for Truncated<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(io::ErrorKind::UnexpectedEof.into()),
                count => Ok(count),
            }
        }
    }

    #[test]
    fn what_comes_before_a_failure_is_found() {
        for (text, before) in
            [("{}\n{\"a\":1}\n{\"b", 2), ("{}\n{\"a\":1}\n", 2), ("{}", 1), ("", 0), ("{\"a", 0)]
        {
            let found = all(BufReader::new(Truncated(text.as_bytes())));
            assert_eq!(found.len(), before + 1, "{found:?}");
            assert!(found[before].ends_with(": the gzip file is truncated here"), "{found:?}");
        }
    }

    #[test]
    fn a_value_that_is_too_large_costs_itself_alone() {
        let mut text = b"{}\n{\"a\":\"".to_vec();
        text.resize(text.len() + MAX_VALUE_BYTES, b'x');
        text.extend(b"\"}\n{\"b\":1}\n");
        let found = all(&text[..]);
        assert_eq!((found.len(), found[0].as_str(), found[2].as_str()), (3, "{}", "{\"b\":1}"));
        assert!(
            found[1].starts_with("line 2, byte offset 3 to 2: a document of more than 64 MiB"),
            "{}",
            found[1]
        );
    }

    #[test]
    fn an_input_without_an_end_ends() {
        let beginning = Cursor::new(b"{\"a\":\"".to_vec());
        let found = all(BufReader::with_capacity(1 << 20, beginning.chain(io::repeat(b'x'))));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("a document of more than 64 MiB"), "{found:?}");
        assert!(
            found[1].ends_with("no document begins within 1024 MiB: the rest is not read"),
            "{found:?}"
        );
    }

    #[test]
    fn documents_that_never_end_cost_a_bounded_number_of_looks() {
        let found = all(&b"[\n".repeat(10_000)[..]);
        assert_eq!(found.len(), 100, "{}", found.len());
        assert!(found[99].ends_with("do not end: the rest is not read"), "{}", found[99]);
    }

    #[test]
    fn no_bytes_are_left_out_without_a_word() {
        let pieces: [&[u8]; 12] =
            [b"{", b"}", b"[", b"]", b"\"", b"\n", b",", b":", b"{}", b"\"a\":1", b" ", b"\xff"];
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..3_000 {
            let length = rng.usize(..24);
            let text: Vec<u8> =
                (0..length).flat_map(|_| pieces[rng.usize(..pieces.len())]).copied().collect();
            let found = all(BufReader::with_capacity(rng.usize(1..9), &text[..]));
            let blank = text.iter().all(u8::is_ascii_whitespace);
            assert_eq!(found.is_empty(), blank, "{:?}: {found:?}", String::from_utf8_lossy(&text));
            // In whatever pieces it comes.
            assert_eq!(all(&text[..]), found, "{:?}", String::from_utf8_lossy(&text));
        }
    }
}
