//! Up to when everything of a table's streams has been read and stored. Pure.
//!
//! A repair holds an image back until the streams have been read past the time at which it read the
//! item. A claim that is too late would let a reader of the row go back in time, and one that is
//! too early only waits longer: whatever is not known for certain makes the claim earlier.

use std::collections::{HashMap, HashSet};

use time::OffsetDateTime;

use crate::replay::position::Position;
use crate::replay::source::Stream;

/// The streams of all tables.
#[derive(Debug, Default)]
pub(crate) struct Through(HashMap<String, TableThrough>);

#[derive(Debug, Default)]
struct TableThrough {
    /// Every stream that the table had then is known: a stream that was enabled later may hold
    /// changes from after that.
    listed_at: Option<OffsetDateTime>,
    /// By ARN.
    streams: Vec<(String, StreamThrough)>,
}

impl Through {
    /// The streams of a table were listed at this time, or later, and all of them are known.
    pub(crate) fn listed(&mut self, table: &str, at: OffsetDateTime) {
        let table = self.0.entry(table.to_owned()).or_default();
        table.listed_at = table.listed_at.max(Some(at));
    }

    /// What is known of a stream. One that is new counts from now on.
    pub(crate) fn of(&mut self, stream: &Stream) -> &mut StreamThrough {
        let streams = &mut self.0.entry(stream.table.clone()).or_default().streams;
        let index = streams.iter().position(|(arn, _)| *arn == stream.arn);
        let index = index.unwrap_or_else(|| {
            streams.push((stream.arn.clone(), StreamThrough::default()));
            streams.len() - 1
        });
        &mut streams[index].1
    }

    /// Up to when all of each stream of a table is stored; `None` if nothing is known. A table
    /// without a stream has no entry.
    pub(crate) fn read_through(&self, table: &str) -> Vec<Option<OffsetDateTime>> {
        let Some(table) = self.0.get(table) else { return Vec::new() };
        let of = |(_, stream): &(String, StreamThrough)| stream.read_through(table.listed_at);
        table.streams.iter().map(of).collect()
    }
}

/// One stream, shard by shard.
#[derive(Debug, Default)]
pub(crate) struct StreamThrough {
    shards: HashMap<String, ShardThrough>,
    /// The shards that a listed shard names as its parent.
    parents: HashSet<String>,
    /// Records are still added; `None` if nobody has asked yet.
    enabled: Option<bool>,
    /// What was created up to then is in the shards that the last description listed, or in their
    /// ancestors.
    complete_up_to: Option<OffsetDateTime>,
}

#[derive(Debug, Default)]
struct ShardThrough {
    parent: Option<String>,
    /// Everything of it and its ancestors that was created up to then is stored.
    through: Option<OffsetDateTime>,
    /// All of it is stored: it was read to its end.
    finished: bool,
    /// No child of it will come.
    is_last: bool,
}

impl StreamThrough {
    /// A shard is known from now on. It may be named again and again.
    pub(crate) fn list(&mut self, id: &str, parent: Option<&str>) {
        if self.shards.contains_key(id) {
            return;
        }
        self.parents.extend(parent.map(str::to_owned));
        let parent = parent.map(str::to_owned);
        self.shards.insert(id.to_owned(), ShardThrough { parent, ..ShardThrough::default() });
    }

    /// Everything of a shard up to this position is stored. `finished`: nothing more can come of
    /// it.
    pub(crate) fn stored(&mut self, id: &str, position: &Position, finished: bool) {
        let shard = self.shards.entry(id.to_owned()).or_default();
        shard.through = shard.through.max(position.surely_through());
        shard.finished |= finished;
    }

    /// No child of this shard will be listed.
    pub(crate) fn is_last(&mut self, id: &str) {
        self.shards.entry(id.to_owned()).or_default().is_last = true;
    }

    /// The shard is not there: only a child named it.
    pub(crate) fn not_there(&mut self, id: &str) {
        self.shards.remove(id);
    }

    /// The stream was described as enabled or not.
    pub(crate) fn enabled(&mut self, enabled: bool) {
        self.enabled = Some(enabled);
    }

    /// All of its shards were given to [`StreamThrough::list`], those at least that hold what was
    /// created up to this time.
    pub(crate) fn all_listed(&mut self, complete_up_to: OffsetDateTime) {
        self.complete_up_to = self.complete_up_to.max(Some(complete_up_to));
    }

    /// Up to when all of it is stored, if its table's streams were listed at `listed_at`.
    fn read_through(&self, listed_at: Option<OffsetDateTime>) -> Option<OffsetDateTime> {
        let mut through = listed_at?;
        let mut no_shard_counts = true;
        for (id, shard) in &self.shards {
            match self.claim(id, shard) {
                Claim::None => {}
                Claim::Unknown => return None,
                Claim::UpTo(time) => {
                    no_shard_counts = false;
                    through = through.min(time);
                }
            }
        }
        if no_shard_counts && self.enabled? {
            through = through.min(self.complete_up_to?);
        }
        Some(through)
    }

    fn claim(&self, id: &str, shard: &ShardThrough) -> Claim {
        if shard.finished {
            let succeeded = shard.is_last || self.parents.contains(id);
            return if succeeded { Claim::None } else { Claim::Unknown };
        }
        let parent = shard.parent.as_ref().and_then(|parent| self.shards.get(parent));
        // A child begins after the last record of its parent.
        let inherited = parent.and_then(|parent| parent.through);
        match (shard.through.max(inherited), parent) {
            (Some(through), _) => Claim::UpTo(through),
            // It is not read yet, and nothing in it is older than what is unread in its parent.
            (None, Some(parent)) if !parent.finished => Claim::None,
            (None, _) => Claim::Unknown,
        }
    }
}

/// What a shard says of its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    /// Nothing: others stand for it.
    None,
    /// Nothing can be said of the stream.
    Unknown,
    UpTo(OffsetDateTime),
}

#[cfg(test)]
mod tests {
    use time::{Duration, OffsetDateTime};

    use super::Through;
    use crate::replay::position::Position;
    use crate::replay::source::Stream;

    /// What can be told of one stream.
    #[derive(Clone, Copy, Debug)]
    enum Told {
        List(&'static str, Option<&'static str>),
        /// A record that was created at this time is stored.
        Record(&'static str, i64),
        /// The shard was found empty up to this time.
        Empty(&'static str, i64),
        /// Its end is stored.
        End(&'static str),
        IsLast(&'static str),
        NotThere(&'static str),
        Enabled(bool),
        AllListed(i64),
    }
    use Told::{AllListed, Empty, Enabled, End, IsLast, List, NotThere, Record};

    fn at(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + Duration::seconds(seconds)
    }

    fn stream(label: &str) -> Stream {
        let (arn, label) = (label.to_owned(), label.to_owned());
        Stream { arn, table: "sessions".to_owned(), label }
    }

    fn tell(through: &mut Through, label: &str, told: &[Told]) {
        let of = through.of(&stream(label));
        for told in told {
            let mut position = Position::default();
            match *told {
                List(id, parent) => of.list(id, parent),
                Record(id, created) => {
                    position.created(at(created));
                    of.stored(id, &position, false);
                }
                Empty(id, through) => {
                    position.through(at(through));
                    of.stored(id, &position, false);
                }
                End(id) => of.stored(id, &position, true),
                IsLast(id) => of.is_last(id),
                NotThere(id) => of.not_there(id),
                Enabled(enabled) => of.enabled(enabled),
                AllListed(up_to) => of.all_listed(at(up_to)),
            }
        }
    }

    /// Listed at 1000, so that no later claim is possible. Five seconds are between the creation
    /// time of a record and what it shows.
    #[test]
    fn a_stream_is_read_through_up_to_its_last_open_shard() {
        let one = [List("a", None)];
        let two = [List("a", None), List("b", None)];
        let family = [List("a", None), List("b", Some("a"))];
        let three = [List("a", None), List("b", Some("a")), List("c", Some("b"))];
        for (name, before, told, expected) in [
            ("nothing is known of it", &[][..], &[][..], None),
            ("a shard is not opened", &one, &[Enabled(true), AllListed(900)], None),
            ("a shard was found empty", &one, &[Empty("a", 700)], Some(700)),
            ("a record came", &one, &[Record("a", 700)], Some(695)),
            ("later it was found empty", &one, &[Record("a", 700), Empty("a", 800)], Some(800)),
            ("times only grow", &one, &[Empty("a", 800), Record("a", 700)], Some(800)),
            ("nothing is known of later streams", &one, &[Empty("a", 2000)], Some(1000)),
            ("one of two is not opened", &two, &[Empty("a", 700)], None),
            ("the last of two counts", &two, &[Empty("a", 700), Empty("b", 600)], Some(600)),
            ("a child waits for its parent", &family, &[Empty("a", 700)], Some(700)),
            ("… which is read to its end", &family, &[Empty("a", 700), End("a")], Some(700)),
            ("… and is read itself", &family, &[End("a"), Empty("b", 800)], Some(800)),
            ("a grandchild waits, too", &three, &[Empty("a", 700), End("a")], Some(700)),
            ("a parent without a time says nothing of the child", &family, &[End("a")], None),
            ("an unfinished parent counts beside its child", &family, &[Empty("b", 800)], None),
            ("the child is not listed yet", &one, &[Empty("a", 700), End("a")], None),
            (
                "… nor the child of one of two",
                &two,
                &[Empty("a", 700), End("a"), Empty("b", 700)],
                None,
            ),
            (
                "no child will come, of a disabled stream",
                &one,
                &[Empty("a", 700), AllListed(800), Enabled(false), IsLast("a"), End("a")],
                Some(1000),
            ),
            (
                "… of a stream that is enabled",
                &one,
                &[Empty("a", 700), AllListed(800), Enabled(true), IsLast("a"), End("a")],
                Some(800),
            ),
            (
                "… and the end is not stored yet",
                &one,
                &[Empty("a", 700), Enabled(false), IsLast("a")],
                Some(700),
            ),
            ("no shard is listed", &[], &[AllListed(800), Enabled(true)], Some(800)),
            ("no shard, and disabled", &[], &[Enabled(false)], Some(1000)),
            (
                "a parent that is not there",
                &[List("b", Some("a")), List("a", None)],
                &[Empty("b", 700), NotThere("a")],
                Some(700),
            ),
            (
                "… is asked for still",
                &[List("b", Some("a")), List("a", None)],
                &[Empty("b", 700)],
                None,
            ),
        ] {
            let mut through = Through::default();
            tell(&mut through, "L1", before);
            tell(&mut through, "L1", told);
            // A second listing of a shard changes nothing.
            let still_there = |told: &&Told| !matches!(told, List("a", _)) || before.len() < 2;
            tell(
                &mut through,
                "L1",
                &before.iter().filter(still_there).copied().collect::<Vec<_>>(),
            );
            assert_eq!(through.read_through("sessions"), [None], "{name}: not listed");
            through.listed("sessions", at(1000));
            assert_eq!(through.read_through("sessions"), [expected.map(at)], "{name}");
        }
    }

    #[test]
    fn each_stream_of_a_table_has_an_entry_and_a_table_without_one_has_none() {
        let mut through = Through::default();
        assert_eq!(through.read_through("sessions"), []);
        tell(&mut through, "L1", &[List("a", None), Empty("a", 700)]);
        through.listed("sessions", at(1000));
        through.listed("sessions", at(900));
        through.listed("scans", at(1000));
        assert_eq!(through.read_through("scans"), []);
        tell(&mut through, "L2", &[]);
        assert_eq!(through.read_through("sessions"), [Some(at(700)), None]);
        tell(&mut through, "L2", &[List("a", None), Empty("a", 950)]);
        tell(&mut through, "L1", &[End("a"), IsLast("a"), Enabled(false)]);
        assert_eq!(through.read_through("sessions"), [Some(at(1000)), Some(at(950))]);
    }
}
