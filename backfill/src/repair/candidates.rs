//! TEMPORARY
use std::path::Path;
use futures_util::stream::{self, LocalBoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};
use time::OffsetDateTime;
use projector::part::Part;

use crate::compare_tables::look::{Looker, Looks};
use crate::compare_tables::verdict::Verdict;
use crate::compare_tables::without_items::SeenParts;
use crate::compare_tables::{Source, first_looks};
use crate::items::Key;

#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) differing: Vec<Key>,
    pub(crate) equal: Vec<(Key, Option<String>)>,
    pub(crate) without_key: Vec<String>,
    pub(crate) items: u64,
}

pub(crate) struct Candidates<'a>(LocalBoxStream<'a, anyhow::Result<Batch>>);

impl<'a> Candidates<'a> {
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Batch>> {
        self.0.try_next().await
    }

    pub(crate) async fn scan(looker: &'a Looker<'a>, segments: u16, _now: OffsetDateTime) -> anyhow::Result<(Self, u64)> {
        let items = looker.api.item_count().await?;
        enum State<'a> { Items(LocalBoxStream<'a, anyhow::Result<Looks>>, SeenParts, OffsetDateTime), Rows(crate::compare_tables::without_items::Suspected<'a>) }
        let start: Option<State<'a>> = None;
        let next = move |state: Option<State<'a>>| async move {
            let mut state = match state {
                Some(state) => state,
                None => {
                    let source = Source::Scan { segments, items };
                    let since = source.recent_since(OffsetDateTime::now_utc());
                    State::Items(first_looks(looker, source), SeenParts::new(), since)
                }
            };
            loop {
                state = match state {
                    State::Items(mut looks, mut seen, since) => match looks.try_next().await? {
                        Some(Looks { of_parts, without_key, items }) => {
                            let mut batch = Batch { without_key, items, ..Batch::default() };
                            for look in of_parts {
                                if look.in_both { seen.add(&look.key); }
                                match look.verdict {
                                    Verdict::Equal => batch.equal.push((look.key, look.version)),
                                    _ => batch.differing.push(look.key),
                                }
                            }
                            return Ok(Some((batch, Some(State::Items(looks, seen, since)))));
                        }
                        None => {
                            let mut adding = seen.add_up(looker, since);
                            while adding.next().await?.is_some() {}
                            State::Rows(adding.suspected())
                        }
                    },
                    State::Rows(mut suspected) => match suspected.next().await? {
                        Some(checked) => {
                            let keys = checked.looks.into_iter().filter(|look| look.verdict != Verdict::Equal);
                            let batch = Batch { differing: keys.map(|look| look.key).collect(), ..Batch::default() };
                            return Ok(Some((batch, Some(State::Rows(suspected)))));
                        }
                        None => return Ok(None),
                    },
                };
            }
        };
        Ok((Self(stream::try_unfold(start, next).boxed_local()), items))
    }

    pub(crate) async fn export(_: &'a Looker<'a>, _: &[String], _: Option<OffsetDateTime>, _: &aws_sdk_s3::Client, _: OffsetDateTime) -> anyhow::Result<(Self, u64)> {
        anyhow::bail!("TEMPORARY")
    }

    pub(crate) fn keys(path: &Path) -> anyhow::Result<(Self, u64)> {
        let keys = keys(path)?;
        let count = keys.len() as u64;
        let batches: Vec<anyhow::Result<Batch>> = keys.chunks(100).map(|keys| Ok(Batch { differing: keys.to_vec(), items: keys.len() as u64, ..Batch::default() })).collect();
        Ok((Self(stream::iter(batches).boxed_local()), count))
    }
}

fn keys(path: &Path) -> anyhow::Result<Vec<Key>> {
    let mut keys = Vec::new();
    for (number, line) in std::fs::read_to_string(path)?.lines().enumerate() {
        let wrong = || projector::config::ConfigError { variable: "--keys", problem: format!("line {}", number + 1) };
        if line.starts_with('{') {
            let json: serde_json::Value = serde_json::from_str(line)?;
            let id = json["session_id"].as_str().ok_or_else(wrong)?;
            match json["part"].as_str() {
                Some(part) => keys.push((Part::ALL.into_iter().find(|p| p.name() == part).ok_or_else(wrong)?, id.to_owned())),
                None => keys.extend(Part::ALL.map(|part| (part, id.to_owned()))),
            }
        } else {
            keys.extend(Part::ALL.map(|part| (part, line.to_owned())));
        }
    }
    Ok(keys)
}

pub(crate) fn count_keys(path: &Path) -> anyhow::Result<u64> {
    Ok(keys(path)?.len() as u64)
}
