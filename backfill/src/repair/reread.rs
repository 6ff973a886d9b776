//! What a re-read of one part decides: for `repair`, and for each record that is redriven after
//! one. Pure.
//!
//! An image that was read from its table has no place in a stream, and no clock can give it one. So
//! the row's version is read first, then the item, and the image waits until the stream has
//! delivered what came before the read. If the row has not moved by then, the image is the newest
//! there is, and gets a version just above that of the row. `model` searches every order of events
//! over these functions.
//!
//! What the functions cannot see, their callers keep: whoever re-reads holds the one lock of
//! repairs, writes a row into `repairs` before it reads anything, and reads each item consistently.

use projector::version::{Version, VersionError, repair_us};
use time::{Duration, OffsetDateTime};

/// One part as the stores held it BEFORE its item was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen<C> {
    /// The row's version of the part; `None` if the row never held it.
    pub(crate) row: Option<String>,
    /// The greater of the row's and the object's version: the image must be newer than both.
    pub(crate) floor: Option<String>,
    /// What the row holds of the part.
    pub(crate) content: C,
}

/// What the item comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AfterRead<C> {
    /// The row holds the item, and the object is not ahead of the row: there is nothing to write.
    Equal,
    /// The image has to wait: see [`Hold`].
    Hold(Image<C>),
}

/// What an item holds, on its way into the row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image<C> {
    /// As in [`Seen`].
    pub(crate) row: Option<String>,
    /// As in [`Seen`].
    pub(crate) floor: Option<String>,
    /// What the item holds of the part.
    pub(crate) content: C,
}

/// What becomes of an image once its hold is over. In a run, the statement of
/// [`projector::read_model::upsert_unmoved`] decides it, with the row locked; here it is for the
/// search.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterHold {
    /// The row has moved: the stream has brought what the image shows, or something newer.
    Drop,
    /// The image is to be upserted, with [`image_version`].
    Upsert,
}

impl<C: PartialEq> Seen<C> {
    /// What the row holds, and the version that the object has of the same part, if there is an
    /// archive.
    pub(crate) fn new(row: Option<String>, object: Option<&str>, content: C) -> Self {
        let floor = row.as_deref().max(object).map(str::to_owned);
        Self { row, floor, content }
    }

    /// Compares with the item, which was read after this. An object that is ahead of the row gets a
    /// newer version even if the contents are equal: nobody knows what it holds.
    pub(crate) fn after_read(self, item: C) -> AfterRead<C> {
        if self.content == item && self.floor == self.row {
            return AfterRead::Equal;
        }
        AfterRead::Hold(Image { row: self.row, floor: self.floor, content: item })
    }
}

/// What becomes of an image that was made while the row had the version `row`, now that it has the
/// version `row_now`.
#[cfg(test)]
pub(crate) fn after_hold(row: Option<&str>, row_now: Option<&str>) -> AfterHold {
    if row == row_now { AfterHold::Upsert } else { AfterHold::Drop }
}

/// The version of an image: above the row and the object that were seen, below the next change of
/// the stream.
///
/// # Errors
/// [`VersionError`] if the floor is no version, or the clock is beyond what a version holds.
pub(crate) fn image_version(floor: Option<&str>, now_us: u64) -> Result<Version, VersionError> {
    Version::of_repair(floor, now_us)
}

/// How long an image waits: until the stream has been read past its read, and one function timeout
/// more, because an invocation that timed out may still commit what it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hold {
    read_at: OffsetDateTime,
    passed_at: Option<OffsetDateTime>,
}

impl Hold {
    /// The hold of an item that was read at this time: the later of this machine's clock and the
    /// database's, as the cutoff of a replay is.
    pub(crate) fn new(read_at: OffsetDateTime) -> Self {
        Self { read_at, passed_at: None }
    }

    /// Whether the hold is over. `read_through`: up to when the shards of each stream of the part's
    /// table have been read; `None` if nothing is known. A table without a stream holds for good,
    /// since nothing can be said.
    pub(crate) fn is_over(
        &mut self,
        read_through: &[Option<OffsetDateTime>],
        function_timeout: Duration,
        now: OffsetDateTime,
    ) -> bool {
        if self.passed_at.is_none() && has_passed(read_through, self.read_at) {
            self.passed_at = Some(now);
        }
        self.passed_at.is_some_and(|passed| now - passed >= function_timeout)
    }
}

/// Creation times are cut to the second: more records of the second in which the item was read may
/// follow one of them.
fn has_passed(read_through: &[Option<OffsetDateTime>], read_at: OffsetDateTime) -> bool {
    let past = |through: &Option<OffsetDateTime>| {
        through.is_some_and(|through| through.unix_timestamp() > read_at.unix_timestamp())
    };
    !read_through.is_empty() && read_through.iter().all(past)
}

/// How a record that comes late is applied: one that was rejected, or that lies in the bucket of
/// failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replay {
    /// Its image, by its version.
    ApplyByVersion,
    /// As a key to re-read.
    ReRead,
}

/// Once a database has a row in `repairs`, no record is applied from elsewhere than its stream,
/// whatever its age: above an image, its version proves nothing.
pub(crate) fn replay(database_has_repair: bool) -> Replay {
    if database_has_repair { Replay::ReRead } else { Replay::ApplyByVersion }
}

/// Whether a version is one of an image. A merge never upserts such a part of a peer: it names the
/// key, and a repair reads the item.
pub(crate) fn is_image(version: Option<&str>) -> bool {
    version.and_then(repair_us).is_some()
}

/// Whether a merge is a repair of this database too, so that it writes its row into `repairs`
/// before it reads the peer: if the peer has had a repair, or cannot say whether it has (`None`: an
/// archive). It does not matter whether the merge brings an image. A repair that found an absent
/// item, and a row that never held it, left no version behind; a late record applied by version
/// would still bring back here what was removed.
pub(crate) fn merge_is_repair(peer_has_repair: Option<bool>) -> bool {
    peer_has_repair != Some(false)
}

/// What a merge does with one part of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FromPeer {
    /// There is nothing to take.
    Nothing,
    /// It is newer, and upserted with the version it has. One of an image is re-read instead: see
    /// [`is_image`].
    Upsert,
    /// The peer's is not newer, and yet the contents differ: only the item can tell who is right.
    /// A merge does not compare contents: `verify` names such parts, and a repair reads them.
    ReRead,
}

/// Compares a peer's part with what the row holds.
pub(crate) fn from_peer<C: PartialEq>(
    (their_version, theirs): (Option<&str>, &C),
    (our_version, ours): (Option<&str>, &C),
) -> FromPeer {
    if their_version > our_version {
        FromPeer::Upsert
    } else if theirs != ours {
        FromPeer::ReRead
    } else {
        FromPeer::Nothing
    }
}

#[cfg(test)]
mod tests {
    use time::{Duration, OffsetDateTime};

    use super::{AfterHold, AfterRead, FromPeer, Hold, Image, Replay, Seen};

    fn version(number: u32, repair: Option<u32>) -> String {
        let repair = repair.map_or_else(String::new, |repair| format!("+{repair:016}"));
        format!("L/{number:040}{repair}")
    }

    fn at(milliseconds: i64) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + Duration::milliseconds(milliseconds)
    }

    #[test]
    fn nothing_is_written_only_if_contents_are_equal_and_no_object_is_ahead() {
        let (one, two) = (version(1, None), version(1, Some(7)));
        let cases = [
            // The row, the object, what is expected.
            (Some(&one), None, None),
            (Some(&one), Some(&one), None),
            (Some(&two), Some(&one), None),
            (None, None, None),
            (Some(&one), Some(&two), Some(Some(&two))),
            (None, Some(&one), Some(Some(&one))),
        ];
        for (row, object, floor) in cases {
            let object = object.map(String::as_str);
            let seen = Seen::new(row.cloned(), object, 'a');
            let expected = floor.map_or(AfterRead::Equal, |floor| {
                AfterRead::Hold(Image { row: row.cloned(), floor: floor.cloned(), content: 'a' })
            });
            assert_eq!(seen.after_read('a'), expected, "{row:?} {object:?}");
            let seen = Seen::new(row.cloned(), object, 'a');
            assert!(matches!(seen.after_read('b'), AfterRead::Hold(_)), "{row:?} {object:?}");
        }
    }

    #[test]
    fn an_image_is_dropped_once_the_row_has_moved() {
        let (one, two) = (version(1, None), version(1, Some(7)));
        for (row, row_now, expected) in [
            (None, None, AfterHold::Upsert),
            (Some(&one), Some(&one), AfterHold::Upsert),
            (None, Some(&one), AfterHold::Drop),
            (Some(&one), Some(&two), AfterHold::Drop),
        ] {
            let [row, row_now] = [row, row_now].map(|version| version.map(String::as_str));
            assert_eq!(super::after_hold(row, row_now), expected, "{row:?} {row_now:?}");
        }
    }

    #[test]
    fn a_hold_ends_one_timeout_after_every_stream_has_passed_the_second_of_the_read() {
        let timeout = Duration::seconds(30);
        let mut hold = Hold::new(at(10_700));
        // Records of the second of the read may still follow.
        for through in [vec![], vec![None], vec![Some(at(10_999))], vec![Some(at(11_000)), None]] {
            assert!(!hold.is_over(&through, timeout, at(900_000)), "{through:?}");
        }
        let passed = [Some(at(11_000)), Some(at(99_000))];
        assert!(!hold.is_over(&passed, timeout, at(900_000)));
        assert!(!hold.is_over(&passed, timeout, at(929_999)));
        assert!(hold.is_over(&passed, timeout, at(930_000)));
        // Another stream that appears meanwhile has nothing from before the read.
        assert!(hold.is_over(&[None], timeout, at(930_000)));
    }

    #[test]
    fn a_version_with_a_time_of_repair_is_one_of_an_image() {
        assert!(super::is_image(Some(&version(1, Some(7)))));
        assert!(super::is_image(Some("+0000000000000007")));
        assert!(!super::is_image(Some(&version(1, None))));
        assert!(!super::is_image(None));
    }

    #[test]
    fn records_are_applied_by_version_only_as_long_as_nobody_has_repaired() {
        assert_eq!(super::replay(false), Replay::ApplyByVersion);
        assert_eq!(super::replay(true), Replay::ReRead);
        assert!(!super::merge_is_repair(Some(false)));
        assert!(super::merge_is_repair(Some(true)));
        assert!(super::merge_is_repair(None));
    }

    #[test]
    fn a_part_of_a_peer_is_taken_if_it_is_newer_and_read_again_if_it_differs() {
        let [one, image, two] = [version(1, None), version(1, Some(7)), version(2, None)];
        for (theirs, ours, same, different) in [
            (Some(&image), Some(&one), FromPeer::Upsert, FromPeer::Upsert),
            (Some(&one), None, FromPeer::Upsert, FromPeer::Upsert),
            (Some(&image), Some(&image), FromPeer::Nothing, FromPeer::ReRead),
            (Some(&image), Some(&two), FromPeer::Nothing, FromPeer::ReRead),
            (None, Some(&one), FromPeer::Nothing, FromPeer::ReRead),
        ] {
            let [theirs, ours] = [theirs, ours].map(|version| version.map(String::as_str));
            let of = |content| super::from_peer((theirs, &content), (ours, &'a'));
            assert_eq!((of('a'), of('b')), (same, different), "{theirs:?} {ours:?}");
        }
    }
}
