//! The order of changes: one version a part, compared as text and yet in the order of numbers.
//!
//! A version is `<stream label>/<sequence number, padded with zeros to 40 digits>`. The same text
//! stands in the row, in the JSON and in the object's metadata, so that plain `>` (bytes, the C
//! collation) is the order of versions everywhere. Versions of different items are never compared.

use std::fmt;

/// The longest sequence number a stream gives out, in decimal digits (DynamoDB Streams API,
/// `StreamRecord.SequenceNumber`: 21 to 40). 40 digits do not fit `u128`.
pub const SEQUENCE_DIGITS: usize = 40;

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
    use super::{Version, VersionError};

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
}
