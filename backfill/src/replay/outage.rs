//! The time in which no stream of a table was on: what was written then is in no stream. Pure.
//!
//! The API says when a stream was enabled, and not when it was turned off. The shards of the older
//! stream show how long it was on at least: a shard's id says when it was made.

use serde::Serialize;
use time::OffsetDateTime;

use crate::console::clock;
use crate::replay::source::{Description, made_at};

/// What was written in this window is in no stream that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Outage {
    /// The older stream was on up to then at least; `None` if nothing shows it, or if it cannot be
    /// read.
    #[serde(with = "time::serde::rfc3339::option")]
    after: Option<OffsetDateTime>,
    /// When the newer stream was enabled; `None` if the API does not say so.
    #[serde(with = "time::serde::rfc3339::option")]
    until: Option<OffsetDateTime>,
}

impl Outage {
    /// Between a stream of a table and its next one. A stream is enabled anew only after the one
    /// before it was turned off, however short the time between them.
    pub(crate) fn between(older: &Description, newer: &Description) -> Self {
        let until = newer.enabled_since.map(to_the_second);
        let made = older.shards.iter().filter_map(|shard| made_at(&shard.id));
        let after = made.chain(older.enabled_since).filter(|_| older.has_new_images()).max();
        // An id is no document: a time that cannot be is none.
        let after = after.map(to_the_second).filter(|after| until.is_none_or(|at| *after <= at));
        Self { after, until }
    }

    /// For people, with the remedy.
    pub(crate) fn text(self) -> String {
        let after = self.after.map_or_else(String::new, |at| format!("not before {}; ", clock(at)));
        let until = self.until.map_or_else(String::new, |at| format!(" at {}", clock(at)));
        format!(
            "what was written between the end of the older stream ({after}AWS does not say when) \
                and the beginning of this one{until} is in no stream: `backfill repair --scan` \
                closes that gap"
        )
    }
}

/// As people and scripts see it.
fn to_the_second(time: OffsetDateTime) -> OffsetDateTime {
    time.replace_nanosecond(0).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;
    use time::{Duration, OffsetDateTime};

    use super::Outage;
    use crate::replay::lineage::Shard;
    use crate::replay::source::Description;

    fn description(enabled_since: Option<OffsetDateTime>, shards: &[String]) -> Description {
        let shard = |id: &String| Shard { id: id.clone(), parent: None, closed: true };
        Description {
            enabled: false,
            status: "DISABLED".to_owned(),
            view_type: "NEW_IMAGE".to_owned(),
            enabled_since,
            shards: shards.iter().map(shard).collect(),
        }
    }

    fn made(at: OffsetDateTime) -> String {
        format!("shardId-{:020}-1234abcd", at.unix_timestamp() * 1000)
    }

    #[test]
    fn the_window_begins_after_the_last_sign_of_the_older_stream() {
        let enabled = datetime!(2026-11-01 08:00 UTC);
        let (first, last) = (enabled + Duration::DAY, enabled + Duration::days(2));
        let anew = enabled + Duration::days(3);
        let late = anew + Duration::HOUR;
        for (name, since, shards, expected) in [
            ("its shards", Some(enabled), vec![made(last), made(first)], Some(last)),
            ("no shard", Some(enabled), vec![], Some(enabled)),
            ("ids that say nothing", Some(enabled), vec!["shardId-a".to_owned()], Some(enabled)),
            ("nothing", None, vec![], None),
            ("a time that cannot be", Some(enabled), vec![made(late)], None),
        ] {
            let older = description(since, &shards);
            let newer = description(Some(anew), &[]);
            let outage = Outage::between(&older, &newer);
            assert_eq!(outage, Outage { after: expected, until: Some(anew) }, "{name}");
        }
        let newer = description(None, &[]);
        let unknown = Outage::between(&description(Some(enabled), &[]), &newer);
        assert_eq!(unknown, Outage { after: Some(enabled), until: None });
        let mut unreadable = description(Some(enabled), &[made(last)]);
        unreadable.view_type = "KEYS_ONLY".to_owned();
        assert_eq!(Outage::between(&unreadable, &newer), Outage { after: None, until: None });
    }

    #[test]
    fn the_text_names_the_window_and_the_remedy() {
        let after = datetime!(2026-11-01 08:00 UTC);
        let text = Outage { after: Some(after), until: Some(after + Duration::HOUR) }.text();
        let parts = [
            "not before 2026-11-01 08:00:00Z",
            "this one at 2026-11-01 09:00:00Z",
            "repair --scan",
        ];
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        let unknown = Outage { after: None, until: None }.text();
        assert!(unknown.contains("older stream (AWS does not say when) and"), "{unknown}");
    }
}
