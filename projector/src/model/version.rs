//! The order of changes: one version a part, compared as text and yet in the order of numbers.
//!
//! A version is `<stream label>/<sequence number, padded with zeros to 40 digits>`. The same text
//! stands in the row, in the JSON and in the object's metadata, so that plain `>` (bytes, the C
//! collation) is the order of versions everywhere. Versions of different items are never compared.
//!
//! A part that was re-read from its table has no place in a stream. Its version is the one that the
//! row held, `+`, and 16 digits, which grow with each repair: greater than the version that it had,
//! smaller than the stream's next one.

use std::fmt;

/// The longest sequence number a stream gives out, in decimal digits (DynamoDB Streams API,
/// `StreamRecord.SequenceNumber`: 21 to 40). 40 digits do not fit `u128`.
pub const SEQUENCE_DIGITS: usize = 40;

/// The digits of a repair: microseconds since 1970.
const REPAIR_DIGITS: usize = 16;

/// The greatest time of a repair that has [`REPAIR_DIGITS`] digits: in the year 2286.
const MAX_REPAIR_US: u64 = 9_999_999_999_999_999;

const ZEROS: &str = "0000000000000000000000000000000000000000";
const _: () = assert!(ZEROS.len() == SEQUENCE_DIGITS);

/// The longest stream label we take; real ones are 23 bytes (`2026-11-22T00:00:00.000`).
const LABEL_BYTES: usize = 64;

/// The version of one part of a measurement: which stream said so, and where in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(String);

/// Why a text is not the label or the sequence number of a stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    /// The sequence number is empty, has a character that is no digit, or more than 40 of them.
    #[error("the sequence number is not a decimal number of 1 to 40 digits")]
    SequenceNumber,
    /// The label is empty, too long, or has a character outside `A-Z a-z 0-9 . : + -`.
    #[error("the stream label is not a time such as 2026-11-22T00:00:00.000")]
    Label,
    /// The text is none of `<label>/<40 digits>`, the same with `+<16 digits>`, and `+<16 digits>`.
    #[error("the version is not <stream label>/<40 digits>, with or without +<16 digits>")]
    Form,
    /// The clock, or the version of the repair before, is beyond what 16 digits hold.
    #[error(
        "the time of the repair, or of the one before, is after the year 2286: check the clock"
    )]
    RepairTime,
}

/// The version without what a repair added to it; empty if the row never held the part before the
/// repair.
#[must_use]
pub fn without_repair(version: &str) -> &str {
    let digits = version.len().saturating_sub(REPAIR_DIGITS);
    match version.get(digits..).zip(version.get(..digits).and_then(|rest| rest.strip_suffix('+'))) {
        Some((repair, rest)) if repair.bytes().all(|byte| byte.is_ascii_digit()) => rest,
        _ => version,
    }
}

/// When a repair made this version, in microseconds since 1970; `None` if it is one of a change.
#[must_use]
pub fn repair_us(version: &str) -> Option<u64> {
    version.get(without_repair(version).len()..)?.strip_prefix('+')?.parse().ok()
}

impl Version {
    /// The version of the change with this sequence number in the stream with this label.
    ///
    /// # Errors
    /// [`VersionError`] where one of the two is not what a stream gives out.
    pub fn new(stream_label: &str, sequence_number: &str) -> Result<Self, VersionError> {
        let label_bytes =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b':' | b'+' | b'-');
        if stream_label.is_empty()
            || stream_label.len() > LABEL_BYTES
            || !stream_label.bytes().all(label_bytes)
        {
            return Err(VersionError::Label);
        }
        if sequence_number.is_empty()
            || sequence_number.len() > SEQUENCE_DIGITS
            || !sequence_number.bytes().all(|byte| byte.is_ascii_digit())
        {
            return Err(VersionError::SequenceNumber);
        }
        Ok(Self([stream_label, "/", &ZEROS[sequence_number.len()..], sequence_number].concat()))
    }

    /// Reads the text that a row, an object or another database holds.
    ///
    /// # Errors
    /// [`VersionError`] if it is none that this or a newer projector writes.
    pub fn parse(text: &str) -> Result<Self, VersionError> {
        let rest = without_repair(text);
        if rest.is_empty() && !text.is_empty() {
            return Ok(Self(text.to_owned()));
        }
        let (label, number) = rest.split_once('/').ok_or(VersionError::Form)?;
        if number.len() != SEQUENCE_DIGITS {
            return Err(VersionError::Form);
        }
        Self::new(label, number)?;
        Ok(Self(text.to_owned()))
    }

    /// The version of an image that was read from its table: greater than `base`, and smaller than
    /// the next change of its stream. `base` is the greatest version of the part that the row and
    /// the object hold. A repair that sees what another one wrote gets a greater version, whatever
    /// the clock did in between.
    ///
    /// # Errors
    /// [`VersionError`] if `base` is no version, or if 16 digits cannot hold the time: a version
    /// that is not greater would be dropped by the upsert without a word.
    pub fn of_repair(base: Option<&str>, now_us: u64) -> Result<Self, VersionError> {
        let base = base.map(Self::parse).transpose()?;
        let base = base.as_ref().map_or("", Self::as_str);
        let repair_us = now_us.max(repair_us(base).unwrap_or_default() + 1);
        if repair_us > MAX_REPAIR_US {
            return Err(VersionError::RepairTime);
        }
        Ok(Self(format!("{}+{repair_us:0REPAIR_DIGITS$}", without_repair(base))))
    }

    /// The stream's label.
    #[must_use]
    pub fn label(&self) -> &str {
        self.0.split('/').next().unwrap_or_default()
    }

    /// The text that the row, the JSON and the metadata hold.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_REPAIR_US, Version, VersionError, repair_us, without_repair};

    const LABEL: &str = "2026-11-22T00:00:00.000";

    fn version(sequence_number: &str) -> Version {
        Version::new(LABEL, sequence_number).expect("a version")
    }

    #[test]
    fn a_longer_sequence_number_is_greater_although_its_text_is_not() {
        assert!("1000" < "999");
        assert!(version("1000") > version("999"));
        assert!(version(&format!("1{}", "0".repeat(21))) > version(&"9".repeat(21)));
        assert!(version(&"9".repeat(40)) > version(&"9".repeat(39)));
    }

    #[test]
    fn a_later_stream_is_greater_whatever_its_sequence_numbers() {
        let later = Version::new("2026-11-23T00:00:00.000", "1").expect("a version");
        assert!(later > version(&"9".repeat(40)));
    }

    #[test]
    fn the_form_is_fixed() {
        assert_eq!(
            version("111").as_str(),
            "2026-11-22T00:00:00.000/0000000000000000000000000000000000000111"
        );
        assert_eq!(version("111"), version("000111"));
    }

    #[test]
    fn what_no_stream_gives_out_is_refused() {
        for sequence_number in ["", "12a", "-1", "1.0", "١٢", &"1".repeat(41)] {
            assert_eq!(
                Version::new(LABEL, sequence_number),
                Err(VersionError::SequenceNumber),
                "{sequence_number}"
            );
        }
        for label in ["", "a/b", "a b", "é", &"x".repeat(65)] {
            assert_eq!(Version::new(label, "1"), Err(VersionError::Label), "{label}");
        }
    }

    #[test]
    fn a_text_is_a_version_if_it_has_the_form() {
        let plain = version("111").as_str().to_owned();
        let repaired = format!("{plain}+1795334400000000");
        for text in [plain.as_str(), &repaired, "+1795334400000000"] {
            assert_eq!(Version::parse(text).expect(text).as_str(), text);
        }
        assert_eq!(without_repair(&repaired), plain);
        assert_eq!(without_repair(&plain), plain);
        assert_eq!(without_repair("+1795334400000000"), "");
        let others =
            ["", "L/111", "L", "+17", &plain[1..].replace('/', ""), &format!("{repaired}0"), "é"];
        for text in others {
            assert!(Version::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_repair_comes_after_its_version_and_before_the_next_one() {
        let repaired = |text: &str| {
            let text = format!("{}+1795334400000000", version(text));
            Version::parse(&text).expect("a version")
        };
        assert!(version("2") < repaired("2"));
        assert!(repaired("2") < version("3"));
        assert!(Version::parse("+1795334400000000").expect("a version") < version("0"));
    }

    #[test]
    fn a_repair_is_greater_than_its_base_whatever_the_clock_says() {
        let base = version("2").as_str().to_owned();
        let mut held = None;
        // The clock stands still, goes back, and jumps.
        for (now_us, expected) in [(5, 5), (5, 6), (0, 7), (90, 90), (MAX_REPAIR_US, MAX_REPAIR_US)]
        {
            let next = Version::of_repair(held.as_deref().or(Some(&base)), now_us).expect("repair");
            assert_eq!(next.as_str(), format!("{base}+{expected:016}"));
            assert!(Some(next.as_str()) > held.as_deref() && next < version("3"));
            assert_eq!(repair_us(next.as_str()), Some(expected));
            assert_eq!(Version::parse(next.as_str()), Ok(next.clone()));
            held = Some(next.as_str().to_owned());
        }
        assert_eq!(Version::of_repair(held.as_deref(), 5), Err(VersionError::RepairTime));
        assert_eq!(Version::of_repair(None, u64::MAX), Err(VersionError::RepairTime));
        assert_eq!(Version::of_repair(Some("L"), 5), Err(VersionError::Form));
        let absent = Version::of_repair(None, 17).expect("a repair");
        assert_eq!(absent.as_str(), "+0000000000000017");
        let later = Version::of_repair(Some(absent.as_str()), 17).expect("a repair");
        assert_eq!(later.as_str(), "+0000000000000018");
        // A label may have a plus sign, too.
        assert_eq!(repair_us(&format!("+1/{:040}", 1)), None);
        assert_eq!(repair_us(""), None);
    }
}
