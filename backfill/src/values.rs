//! The JSON values of a stream of bytes, one after another: one per line, several per line, one over many lines.
//!
//! A broken value is reported with its place and skipped: the next value is looked for at the beginning of a later
//! line, where an object or a list begins without indentation. So one broken line costs that line, and the pieces of a
//! broken document that is laid out for reading are not taken for documents. Memory is bounded: what is larger than
//! [`MAX_VALUE_BYTES`] is a broken value, too.

use std::fmt;
use std::io::{self, BufRead};

use crate::document::Outline;

/// The largest value that is read. Lambda's events have at most 6 MB, and escaped as text in what it writes about a
/// failed batch, at most six times as much.
pub(crate) const MAX_VALUE_BYTES: usize = 64 << 20;
/// The search for the next value after a broken one ends after this many bytes.
const MAX_SKIPPED_BYTES: u64 = 1 << 30;
/// The input is given up after this many values in a row that do not end: each was read up to the end of the input.
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
    /// The place in the input of this offset in the text. Costs a look at all that is before it in the buffer.
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
    #[error("no JSON object or list begins here")]
    NoDocument,
    #[error("the input ends in the middle of this document: it is truncated")]
    Truncated,
    #[error(
        "a document of more than {} MiB, which is not read: write one record per line, as `jq -c '.Records[]'` does",
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
    /// What has been read and is not passed on: whole lines, or the beginning of one that is too long.
    buffer: Vec<u8>,
    line_breaks: u64,
    /// Where the buffer begins.
    base: Place,
    /// The length of the buffer at which parsing is worthwhile: a value over many lines is not parsed anew per line.
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
        let place = place(&self.buffer, self.base, start);
        let mut next = next_line_of_a_value(&self.buffer, start);
        if matches!(fault, Fault::Truncated | Fault::TooLarge | Fault::Unreadable(_)) {
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

/// The length of the white space and byte order marks that the bytes begin with; `None` if there is nothing else.
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
